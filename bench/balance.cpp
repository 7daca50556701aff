// What a cycle of the balancer costs per item, against n: each feedback, the update and the whole units.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_balancer/balance.hpp"

namespace ab = attention_balancer;
using ab::Index;

namespace {

/// Signals in (0, 1]: weights, losses and loads alike.
std::vector<float> signal(Index n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0.01f, 1.f);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& e : x) e = uniform(random);
  return x;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

template <class Balancer>
void check_shares(const Balancer& balancer) {
  double sum = 0;
  for (const float r : balancer.shares()) {
    require(r > 0 && std::isfinite(r), "a share is not above zero");
    sum += static_cast<double>(r);
  }
  require(std::abs(sum - 1) <= static_cast<double>(balancer.size()) * 1.2e-7, "the shares do not add up to 1");
}

void per_item(benchmark::State& state) {
  const auto items = static_cast<double>(state.range(0)) * static_cast<double>(state.iterations());
  state.counters["per_item"] =
      benchmark::Counter(items, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);  // seconds
}

/// Runs `body` with the signals in turn; SkipWithError if `check` throws after a first run.
template <class Body, class Check>
void run(benchmark::State& state, Body&& body, Check&& check) {
  const std::vector<float> signals[2] = {signal(state.range(0), 1), signal(state.range(0), 2)};
  try {
    body(signals[0]);
    check();
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  std::size_t turn = 1;
  for (auto _ : state) body(signals[turn++ % 2]);
  per_item(state);
}

template <class Feedback>
void feedback_alone(benchmark::State& state, Feedback feedback) {
  std::vector<float> log_state(static_cast<std::size_t>(state.range(0)),
                               -std::log(static_cast<float>(state.range(0))));
  run(
      state, [&](const std::vector<float>& x) { feedback(log_state, x); },
      [&] {
        double sum = 0;
        for (const float x : log_state) sum += std::exp(static_cast<double>(x));
        require(std::abs(sum - 1) < 1e-4, "the state is not normalised");
      });
}

template <class Allocate>
void update(benchmark::State& state, Allocate allocate) {
  ab::ResourceBalancer<float, Allocate> balancer(state.range(0), allocate);
  run(
      state, [&](const std::vector<float>& x) { balancer.update(x); }, [&] { check_shares(balancer); });
}

void bounded(benchmark::State& state) {
  const float even = 1.f / static_cast<float>(state.range(0));
  update(state, ab::allocate::Bounded<float>{.floor = 0.5f * even, .cap = 1.5f * even});
}

/// An update and its units, ten per item, with or without holding on to the plan.
void update_and_units(benchmark::State& state, ab::apportion::Steady how) {
  ab::ResourceBalancer<float> balancer(state.range(0));
  const Index total = 10 * state.range(0);
  if (how.churn > 0 && how.hysteresis > 0) how.churn = std::max(Index(1), total / 20);
  run(
      state,
      [&](const std::vector<float>& x) {
        balancer.update(x);
        benchmark::DoNotOptimize(balancer.units(total, how));
      },
      [&] {
        const auto units = balancer.units(total, how);
        require(std::accumulate(units.begin(), units.end(), Index(0)) == total, "the units do not add up");
      });
}

template <class F, class... Args>
void add(const std::string& name, F f, Args... args) {
  auto* benchmark =
      benchmark::RegisterBenchmark(name.c_str(), [f, args...](benchmark::State& s) { f(s, args...); });
  benchmark->ArgName("N")->RangeMultiplier(10)->Range(100, 1000000)->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  namespace feedback = ab::feedback;
  add("Plain", feedback_alone<feedback::Plain<float>>, feedback::Plain<float>{});
  add("Leaky", feedback_alone<feedback::Leaky<float>>, feedback::Leaky<float>{});
  add("Ema", feedback_alone<feedback::Ema<float>>, feedback::Ema<float>{});
  add("FixedShare", feedback_alone<feedback::FixedShare<feedback::Plain<float>>>,
      feedback::FixedShare{0.01, feedback::Plain<float>{}});
  add("Hedge", feedback_alone<feedback::Hedge<float>>, feedback::Hedge<float>{});
  add("BiasBalancing", feedback_alone<feedback::BiasBalancing<float>>, feedback::BiasBalancing<float>{});
  add("update, Proportional", update<ab::allocate::Proportional>, ab::allocate::Proportional{});
  add("update, Bounded", bounded);
  add("update and units", update_and_units, ab::apportion::Steady{});
  add("update and units, held", update_and_units, ab::apportion::Steady{.hysteresis = 0.01});
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
