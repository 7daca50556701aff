// What does an allocation cost per item, against the number of items? peers/policies.py sets it beside Python.
//
// `ns_per_item` is the time of one call over the number of items: where it grows, the policy is more than linear.
// Weights are log-uniform over six units of the logarithm, from a generator that policies.py repeats bit for bit.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_balancer/balance.hpp"

namespace {

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
namespace apportion = ab::apportion;
using ab::Index;
using Numbers = std::vector<double>;

/// The logarithms of the weights: uniform in [-3, 3), by splitmix64 of the index.
Numbers make_logits(Index n) {
  Numbers logits;
  for (Index i = 0; i < n; ++i) {
    std::uint64_t x = (static_cast<std::uint64_t>(i) + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    logits.push_back(static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53 * 6 - 3);
  }
  return logits;
}

/// What the policies are given: logits, their weights, and these divided by their sum.
struct Inputs {
  explicit Inputs(Index n) : logits(make_logits(n)) {
    for (const double z : logits) weights.push_back(std::exp(z));
    normalised.resize(weights.size());
    allocate::Proportional{}(weights, normalised);
  }
  double floor() const { return 0.5 / static_cast<double>(logits.size()); }
  double cap() const { return 2.0 / static_cast<double>(logits.size()); }
  Index total() const { return 10 * static_cast<Index>(logits.size()); }

  Numbers logits, weights, normalised;
};

/// Runs `work` and reports its time per item.
template <class Work>
void measure(benchmark::State& state, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) work();
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_item"] =
      spent.count() / (static_cast<double>(state.iterations()) * static_cast<double>(state.range(0)));
}

/// `share(inputs, shares)` fills the shares, which must add up to 1.
template <class Share>
void shares(benchmark::State& state, const Share& share) {
  const Inputs in(state.range(0));
  Numbers out(in.weights.size());
  share(in, out);
  if (!(std::abs(std::accumulate(out.begin(), out.end(), 0.0) - 1) < 1e-9))
    return state.SkipWithError("the shares do not add up to 1");
  measure(state, [&] {
    share(in, out);
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
  });
}

/// `divide(inputs)` returns units, which must add up to the total.
template <class Divide>
void units(benchmark::State& state, const Divide& divide, Index total = -1) {
  const Inputs in(state.range(0));
  const std::vector<Index> once = divide(in);
  if (std::accumulate(once.begin(), once.end(), Index(0)) != (total < 0 ? in.total() : total))
    return state.SkipWithError("the units do not add up to the total");
  // As a number: two plans are the same if these are, which policies.py compares.
  double moment = 0;
  for (std::size_t i = 0; i < once.size(); ++i) moment += static_cast<double>(once[i]) * in.logits[i];
  state.counters["moment"] = moment;
  measure(state, [&] { benchmark::DoNotOptimize(divide(in)); });
}

/// Costs of items from 1 to 50, and a budget for a quarter of them.
std::vector<Index> make_costs(Index n) {
  std::vector<Index> costs;
  for (Index i = 0; i < n; ++i) costs.push_back(1 + i * 31 % 50);
  return costs;
}

/// `select(inputs)` returns a selection, which must keep that many items, if they are given.
template <class Select>
void selection(benchmark::State& state, const Select& select, Index expected = -1) {
  const Inputs in(state.range(0));
  const allocate::Selection once = select(in);
  if (expected >= 0 && once.size() != expected) return state.SkipWithError("another number is kept");
  double moment = 0;
  for (const Index i : once.kept()) moment += in.logits[static_cast<std::size_t>(i)];
  state.counters["moment"] = moment;
  measure(state, [&] { benchmark::DoNotOptimize(select(in)); });
}

/// Users of four resources, one unit of each per user.
void dominant_resource(benchmark::State& state) {
  const Inputs in(state.range(0));
  Numbers demands = make_logits(4 * state.range(0));
  for (double& x : demands) x = std::exp(x);
  const Numbers capacities(4, static_cast<double>(state.range(0)));
  const auto divide = [&] { return allocate::dominant_resource(demands, capacities, in.weights); };
  const auto once = divide();
  double moment = 0;
  for (std::size_t i = 0; i < once.tasks.size(); ++i) moment += once.tasks[i] * in.logits[i];
  state.counters["moment"] = moment;
  measure(state, [&] { benchmark::DoNotOptimize(divide()); });
}

/// A tenth that covers, by the cosine of rows of eight numbers.
void facility_location(benchmark::State& state) {
  const Index n = state.range(0);
  const Numbers rows = make_logits(8 * n);
  selection(
      state,
      [&](const Inputs&) {
        const allocate::Cosine similarity(rows, 8);
        return allocate::facility_location(n, similarity, n / 10);
      },
      n / 10);
}

/// One cycle of a feedback from the state log r = z / 2, r adding up to 1, given w / max w: weights, losses and loads
/// alike.
template <class Policy>
void cycle(benchmark::State& state, const Policy& policy) {
  const Inputs in(state.range(0));
  const double largest = *std::max_element(in.weights.begin(), in.weights.end());
  Numbers signal, start, log_state;
  for (const double w : in.weights) signal.push_back(w / largest);
  for (const double z : in.logits) start.push_back(z / 2);
  ab::detail::normalise_log(std::span<double>(start));
  log_state = start;
  policy(log_state, signal);
  double sum = 0;
  for (const double x : log_state) sum += std::exp(x);
  if (!(std::abs(sum - 1) < 1e-9)) return state.SkipWithError("the state does not add up to 1");
  // As a number: two states are the same if these are, which policies.py compares.
  double moment = 0;
  for (std::size_t i = 0; i < log_state.size(); ++i) moment += std::exp(log_state[i]) * in.logits[i];
  state.counters["moment"] = moment;
  measure(state, [&] {
    std::copy(start.begin(), start.end(), log_state.begin());
    policy(log_state, signal);
    benchmark::DoNotOptimize(log_state.data());
    benchmark::ClobberMemory();
  });
}

template <class F>
void add(const char* name, const F& f, Index most = 1000000) {
  auto* b = benchmark::RegisterBenchmark(name, f)->ArgName("N")->Unit(benchmark::kMicrosecond);
  for (Index n = 100; n <= most; n *= 10) b->Arg(n);
}

void add_all() {
  const auto share = [](const char* name, auto policy) {
    add(name, [policy](benchmark::State& state) { shares(state, policy); });
  };
  share("proportional", [](const Inputs& in, Numbers& out) { allocate::Proportional{}(in.weights, out); });
  share("bounded", [](const Inputs& in, Numbers& out) {
    allocate::Bounded<double>{.floor = in.floor(), .cap = in.cap()}(in.weights, out);
  });
  share("tempered",
        [](const Inputs& in, Numbers& out) { allocate::Tempered<double>{.temperature = 2}(in.weights, out); });
  share("euclidean",
        [](const Inputs& in, Numbers& out) { allocate::Euclidean<double>{.cap = in.cap()}(in.normalised, out); });
  share("sparsemax", [](const Inputs& in, Numbers& out) { allocate::Sparsemax{}.of_logits(in.logits, out); });
  share("entmax15", [](const Inputs& in, Numbers& out) { allocate::Entmax15{}.of_logits(in.logits, out); });
  share("entmax1.25",
        [](const Inputs& in, Numbers& out) { allocate::Entmax<double>{.alpha = 1.25}.of_logits(in.logits, out); });
  const auto feedback = [](const char* name, auto policy) {
    add(name, [policy](benchmark::State& state) { cycle(state, policy); });
  };
  const auto divide = [](const char* name, auto method) {
    add(name, [method](benchmark::State& state) {
      units(state, [&](const Inputs& in) { return method(in.weights, in.total()); });
    });
  };
  divide("hamilton", apportion::hamilton);
  divide("sainte_lague", apportion::sainte_lague);
  divide("dhondt", apportion::dhondt);
  divide("huntington_hill", apportion::huntington_hill);
  divide("adams", apportion::adams);
  add(
      "quota",
      [](benchmark::State& state) {
        units(state, [](const Inputs& in) { return apportion::quota(in.weights, in.total()); });
      },
      100000);
  divide("bits", apportion::bits);
  add("top_k", [](benchmark::State& state) {
    const Index budget = state.range(0) / 10;
    selection(
        state, [=](const Inputs& in) { return allocate::top_k(in.weights, budget); }, budget);
  });
  add("threshold", [](benchmark::State& state) {
    selection(state, [](const Inputs& in) { return allocate::threshold(in.weights, 1.0); });
  });
  add("inverse_cdf", [](benchmark::State& state) {
    const Index budget = state.range(0) / 10;
    selection(state, [=](const Inputs& in) { return allocate::inverse_cdf(in.weights, budget); });
  });
  add("knapsack", [](benchmark::State& state) {
    const auto costs = make_costs(state.range(0));
    const Index budget = std::accumulate(costs.begin(), costs.end(), Index(0)) / 4;
    selection(state, [&](const Inputs& in) { return allocate::knapsack(in.weights, costs, budget).selection; });
  });
  add("facility_location", facility_location, 1000);
  add("dominant_resource", dominant_resource);
  feedback("plain", ab::feedback::Plain<double>{});
  feedback("leaky", ab::feedback::Leaky<double>{.rate = 0.5});
  feedback("ema", ab::feedback::Ema<double>{.rate = 0.5});
  feedback("fixed_share", ab::feedback::FixedShare{0.01, ab::feedback::Plain<double>{}});
  feedback("hedge", ab::feedback::Hedge<double>{.eta = 0.1});
  feedback("bias_balancing", ab::feedback::BiasBalancing<double>{.step = 0.01});
}

const bool added = (add_all(), true);

}  // namespace

BENCHMARK_MAIN();
