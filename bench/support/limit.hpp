#pragma once
// What a kernel could reach at most, by its model: a sum of terms, each of them what this machine takes for that alone,
// measured in the same run. What a measurement stays below it is loads and stores of the tiles, tiles that are not
// full, sums over lanes, and waiting.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "support/paired.hpp"
#include "support/read_bandwidth.hpp"

namespace bench {

/// Seconds that the parts of a call take at least, each by itself.
struct Limit {
  double products = 0;      ///< multiply-adds of the matrix products, at the peak
  double exponentials = 0;  ///< weights from scores
  double tanh = 0;          ///< what Softcap adds
  double conversions = 0;   ///< stored keys and values to numbers, once
  double kept = 0;          ///< what goes to a buffer and is read from there again: weights, gradients of the keys
  double memory = 0;        ///< inputs that are read from memory, or from the cache that holds them

  /// On the units of the core, which do one after the other.
  double core() const { return products + exponentials + tanh + conversions; }
  /// Inputs can be asked for while the core computes: the longer of the two. A buffer is read by itself.
  double seconds() const { return std::max(core(), memory) + kept; }

  /// The terms beside the products as shares of `time`, those that there are, and `of_limit`, the share of it all.
  void report(benchmark::State& state, double time) const {
    const std::pair<const char*, double> terms[] = {{"exponentials", exponentials},
                                                    {"tanh", tanh},
                                                    {"conversions", conversions},
                                                    {"kept", kept},
                                                    {"memory", memory}};
    for (const auto& [name, seconds] : terms)
      if (seconds > 0) state.counters[name] = seconds / time;
    state.counters["of_limit"] = seconds() / time;
  }
};

namespace detail {

/// The least of several times that f() takes, over `count`: seconds for each of what it does.
template <class F>
double least_seconds(int rounds, int repetitions, double count, F f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < repetitions; ++i) {
      f();
      asm volatile("" : : : "memory");
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best / (repetitions * count);
}

inline constexpr ab::Index strip_keys = 64;

/// A strip of scores in the first cache.
template <class T>
struct Strip {
  static constexpr int packs = ab::detail::block_packs, count = strip_keys * packs * ab::simd::lanes<T>;
  Strip() {
    for (int i = 0; i < count; ++i) scores[i] = T(-i % 8);
  }
  alignas(64) T scores[count];
};

}  // namespace detail

/// Seconds for one score of the stage that makes weights of scores.
template <class T>
double exponential_seconds() {
  detail::Strip<T> strip;
  ab::detail::OnlineState<T> state;
  state.clear();
  state.in_bits = true;
  return detail::least_seconds(50, 100, strip.count, [&] {
    ab::detail::weigh<T, detail::Strip<T>::packs, false>(strip.scores, detail::strip_keys, state);
  });
}

/// Seconds for one score of tanh.
template <class T>
double tanh_seconds() {
  using Pack = ab::simd::Pack<T>;
  detail::Strip<T> strip;
  return detail::least_seconds(50, 100, strip.count, [&] {
    for (int i = 0; i < strip.count; i += ab::simd::lanes<T>)
      ab::simd::store(strip.scores + i, ab::simd::tanh(ab::simd::load<Pack>(strip.scores + i)));
  });
}

/// Seconds for one number of a cache to become a float, in the first cache; 0 if it is one.
template <class Stored>
double conversion_seconds() {
  if constexpr (std::is_same_v<Stored, float>) {
    return 0;
  } else {
    constexpr int count = 8192, lanes = ab::simd::lanes<float>;
    const std::vector<Stored> numbers(count);
    const Stored* const from = numbers.data();
    return detail::least_seconds(50, 20, count, [from] {
      for (int i = 0; i < count; i += 8 * lanes) {
        ATTENTION_BALANCER_UNROLL
        for (int k = 0; k < 8; ++k) {
          ab::simd::Pack<float> x = ab::simd::load_as<ab::simd::Pack<float>>(from + i + k * lanes);
#if defined(__x86_64__) && !defined(ATTENTION_BALANCER_NO_SIMD)
          ab::simd::keep_order(x);  // used, as far as the compiler knows, and not stored
#else
          asm volatile("" : : "m"(x));
#endif
        }
      }
    });
  }
}

/// Seconds for one byte of a buffer of so many that is written, and read when it is full.
struct BufferSeconds {
  double write, read;
};
inline BufferSeconds buffer_seconds(double bytes) {
  using Pack = ab::simd::Pack<float>;
  constexpr std::ptrdiff_t step = detail::read_step;
  std::vector<float> buffer(static_cast<std::size_t>((static_cast<std::ptrdiff_t>(bytes / 4) / step + 1) * step));
  float* const first = buffer.data();
  const auto count = static_cast<std::ptrdiff_t>(buffer.size());
  const int repetitions = static_cast<int>(std::max(1.0, 4e6 / bytes));
  const auto write = [=] {
    for (std::ptrdiff_t i = 0; i < count; i += ab::simd::lanes<float>) ab::simd::store(first + i, Pack(1.f));
    asm volatile("" : : : "memory");
  };
  const auto seconds_of = [&](auto f) {
    return detail::least_seconds(10, repetitions, 4.0 * static_cast<double>(count), f);
  };
  const double written = seconds_of(write), both = seconds_of([=] {
                                              write();
                                              const float sum = detail::read_all<1, 0, 0>(first, count);
                                              asm volatile("" : : "m"(sum));
                                            });
  return {written, std::max(both - written, 0.0)};
}

/// The term of weights that are kept until the sum of their row is known: for each pair of a query and a key one number
/// of T, in a strip of one block of queries by `keys` keys. They are written while the products go on.
template <class T>
double strip_seconds(double pairs, ab::Index keys) {
  const double size = sizeof(T);
  return pairs * size * buffer_seconds(size * static_cast<double>(keys * ab::detail::block_width<T>)).read;
}

/// Of work on T: writes GFLOP/s; the share of the peak, and the same beside what the core did at the clock that the work
/// left it with; the share that the model allows for so many operations and exponentials and for what `limit` has beside
/// these; and its terms.
template <class T>
void report_attention(benchmark::State& state, double flops, double scores, const Paired& measured,
                      Limit limit = {}) {
  const double time = measured.work;
  limit.products = flops / measured.peak;
  limit.exponentials = scores * exponential_seconds<T>();
  state.counters["GFLOP/s"] = flops / time / 1e9;
  state.counters["of_peak"] = limit.products / time;
  state.counters["at_clock"] = limit.products / time / state.counters["clock"];
  state.counters["limit"] = limit.products / limit.seconds();
  limit.report(state, time);
}

}  // namespace bench
