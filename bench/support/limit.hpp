#pragma once
// What a kernel could reach at most, by its model: both matrix products at the peak of multiply-adds, and the
// exponentials, measured alone on a strip in the first cache, since they need the same units. What a measurement
// stays below it is loads and stores, tiles that are not full, and memory.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

#include "attention_balancer/attention.hpp"
#include "support/fma_peak.hpp"

namespace bench {

/// Seconds for one score of the stage that makes weights of scores.
template <class T>
double exponential_seconds() {
  namespace ab = attention_balancer;
  using Clock = std::chrono::steady_clock;
  constexpr int packs = ab::detail::block_packs, width = packs * ab::simd::lanes<T>;
  constexpr ab::Index keys = 64;
  alignas(64) static T strip[keys * width];
  ab::detail::OnlineState<T> state;
  state.clear();
  state.in_bits = true;
  for (int i = 0; i < keys * width; ++i) strip[i] = T(-i % 8);
  double best = 1;
  for (int round = 0; round < 50; ++round) {
    constexpr int repetitions = 100;
    const auto start = Clock::now();
    for (int i = 0; i < repetitions; ++i) ab::detail::weigh<T, packs, false>(strip, keys, state);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count() /
                              (repetitions * static_cast<double>(keys * width)));
  }
  return best;
}

/// Writes GFLOP/s, the share of the peak measured just now, the same beside what the core did at the clock that the
/// work left it with, and the share that the model allows for so many operations and scores.
template <class T>
void report_attention(benchmark::State& state, double flops, double scores, double time) {
  const double peak = fma_peak<T>(), products = flops / peak;
  state.counters["GFLOP/s"] = flops / time / 1e9;
  state.counters["of_peak"] = products / time;
  state.counters["at_clock"] = products / time / state.counters["clock"];
  state.counters["limit"] = products / (products + scores * exponential_seconds<T>());
}

}  // namespace bench
