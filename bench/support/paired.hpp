#pragma once
// Times a piece of work in turn with the one it is compared to, so that a noisy machine disturbs both alike.

#include <benchmark/benchmark.h>

#include <chrono>
#include <vector>

#include "support/fma_peak.hpp"
#include "support/inputs.hpp"

namespace bench {

template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Runs `work` and `other` in turn; the benchmark's own time is that of `work`. The counter `clock` is what multiply-adds
/// of T on registers reach right after it, as a share of what they do alone: below 1 where work that loads and stores as
/// well makes the core slower, as on Intel's servers.
struct Paired {
  double work, other;  ///< medians of their seconds
  double peak;         ///< multiply-adds of T alone, in operations per second
};
template <class T, class Work, class Other>
Paired run_paired(benchmark::State& state, Work work, Other other) {
  std::vector<double> of_work, of_other, rates;
  for (auto _ : state) {
    of_other.push_back(seconds(other));
    of_work.push_back(seconds(work));
    rates.push_back(fma_rate<T>());
    state.SetIterationTime(of_work.back());
  }
  const double peak = fma_peak<T>();
  state.counters["clock"] = median(rates) / peak;
  return {median(of_work), median(of_other), peak};
}

}  // namespace bench
