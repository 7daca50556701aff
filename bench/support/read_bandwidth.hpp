#pragma once
// What memory can deliver at most: plain streaming reads of a buffer, added up in packs. What decode reports its
// ratio to, measured in the same run and at the same footprint.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include "attention_balancer/simd/pack.hpp"

namespace bench {

namespace detail {

/// The sum of count floats, a multiple of 8 packs.
[[gnu::noinline]] inline float read_all(const float* data, std::ptrdiff_t count) {
  namespace simd = attention_balancer::simd;
  using Pack = simd::Pack<float>;
  constexpr int lanes = simd::lanes<float>;
  Pack sums[8];
  for (Pack& sum : sums) sum = Pack(0.f);
  for (std::ptrdiff_t i = 0; i < count; i += 8 * lanes) {
    ATTENTION_BALANCER_UNROLL
    for (int s = 0; s < 8; ++s) sums[s] = sums[s] + simd::load<Pack>(data + i + s * lanes);
  }
  for (int s = 1; s < 8; ++s) sums[0] = sums[0] + sums[s];
  return simd::reduce_add(sums[0]);
}

}  // namespace detail

/// Seconds to read `count` floats once with `threads` threads, each a part of its own: the mean of `passes` over
/// the same memory, so that what fits into a cache is read from there.
inline double read_seconds(const float* data, std::ptrdiff_t count, int threads, int passes) {
  using Clock = std::chrono::steady_clock;
  constexpr std::ptrdiff_t step = 8 * attention_balancer::simd::lanes<float>;
  const std::ptrdiff_t part = count / threads / step * step;
  const auto read = [&](int t) {
    for (int pass = 0; pass < passes; ++pass) {
      const float sum = detail::read_all(data + t * part, part);
      asm volatile("" : : "m"(sum) : "memory");  // used, and not the same again, as far as the compiler knows
    }
  };
  std::vector<std::thread> team;
  const auto start = Clock::now();
  for (int t = 1; t < threads; ++t) team.emplace_back(read, t);
  read(0);
  for (std::thread& t : team) t.join();
  return std::chrono::duration<double>(Clock::now() - start).count() / passes;
}

}  // namespace bench
