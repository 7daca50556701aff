#pragma once
// What one core can do at most: fused multiply-adds on registers alone, with the packs that the kernels use. Every
// benchmark reports its ratio to this number, measured in the same run, because clocks differ by machine and hour.

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "attention_balancer/simd/pack.hpp"

namespace bench {

namespace detail {

// Independent chains: enough to fill two units of four cycles' latency, and few enough to stay in registers beside
// the two factors. x86 before AVX-512 has 16 registers, the others 32.
#if defined(__x86_64__) && !defined(__AVX512F__)
inline constexpr int chains = 12;
#else
inline constexpr int chains = 24;
#endif

/// `rounds` multiply-adds in each chain. The result depends on all of them.
template <class T>
[[gnu::noinline]] T multiply_add(T a, T b, std::int64_t rounds) {
  namespace simd = attention_balancer::simd;
  using Pack = simd::Pack<T>;
  const Pack x(a), y(b);
  Pack sums[chains];
  ATTENTION_BALANCER_UNROLL
  for (int i = 0; i < chains; ++i) sums[i] = Pack(static_cast<T>(i));
  for (std::int64_t r = 0; r < rounds; ++r) {
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < chains; ++i) sums[i] = simd::fma(x, y, sums[i]);
  }
  Pack total = sums[0];
  ATTENTION_BALANCER_UNROLL
  for (int i = 1; i < chains; ++i) total = total + sums[i];
  return simd::reduce_add(total);
}

template <class T>
double seconds_of_rounds(std::int64_t rounds) {
  using Clock = std::chrono::steady_clock;
  // Not constants to the compiler; the sums grow slowly and never become subnormal.
  static volatile T factors[2] = {T(0.5), T(1e-3)};
  const auto start = Clock::now();
  const T result = multiply_add<T>(factors[0], factors[1], rounds);
  asm volatile("" : : "m"(result));  // used, as far as the compiler knows
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <class T>
double operations(std::int64_t rounds) {
  return 2.0 * static_cast<double>(rounds) * chains * attention_balancer::simd::lanes<T>;
}

}  // namespace detail

/// Floating point operations per second of one core in T: the best of several runs of about two milliseconds, after a
/// warm-up that lets the clock settle. Whatever else runs here can only make it less, and a ratio to it look better
/// than it is. A multiply-add counts as two.
template <class T>
double fma_peak() {
  std::int64_t rounds = 1024;
  const auto run = [&] { return detail::seconds_of_rounds<T>(rounds); };
  while (run() < 2e-3) rounds *= 2;
  for (int i = 0; i < 5; ++i) run();

  double best = run();
  for (int i = 0; i < 10; ++i) best = std::min(best, run());
  return detail::operations<T>(rounds) / best;
}

/// The same from 20 to 60 microseconds from now, about: at the clock that the core has, once it has got over the change
/// of work.
template <class T>
double fma_rate() {
  constexpr std::int64_t rounds = 12288;
  detail::seconds_of_rounds<T>(rounds / 2);
  return detail::operations<T>(rounds) / detail::seconds_of_rounds<T>(rounds);
}

}  // namespace bench
