// What does each statistic cost on top of the mass, and the mass on top of plain attention?
//
// `x_mass` is the time of the whole call relative to the same call that observes the mass alone, run in turn with
// it. The inputs are normal, so that attention is spread; the queries of the `peaked` ones are four times as long,
// so that most queries have a key of probability above 1/2, which leave-one-out treats apart.
#include <benchmark/benchmark.h>

#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

template <class T, ab::evidence::Kind Kind, bool Causal, bool Peaked>
void statistic(benchmark::State& state) {
  const Index length = state.range(0), dim = state.range(1);
  std::vector<T> numbers[4];
  for (unsigned i = 0; i < 4; ++i) numbers[i] = bench::normal_numbers<T>(length * dim, i + 1);
  if (Peaked)
    for (T& x : numbers[0]) x *= T(4);
  const auto view = [&](int i) { return ab::bhsd(numbers[i].data(), 1, 1, length, dim); };
  const auto q = view(0), k = view(1), v = view(2), out = view(3);
  ab::Workspace workspace;
  ab::Evidence<T> evidence, mass_only;
  auto call = [&](ab::Evidence<T>& target, auto of) {
    const auto observation = ab::observe(target, ab::QueryWeights::all(), of);
    if constexpr (Causal)
      ab::attention(q, k, v, out, workspace, ab::mask::Causal{}, observation);
    else
      ab::attention(q, k, v, out, workspace, observation);
  };
  auto mass = [&] { call(mass_only, ab::evidence::mass); };
  auto work = [&] { call(evidence, ab::evidence::Statistic<Kind>{}); };
  // The statistic of the last queries against the reference.
  try {
    const Index count = std::min(Index(4), length);
    ab::Evidence<T> last;
    ab::Evidence<double> truth;
    std::vector<double> exact(static_cast<std::size_t>(count * dim));
    const auto few = bench::rows(q, length - count, count);
    ab::attention(few, k, v, bench::rows(out, 0, count), ab::mask::Causal{},
                  ab::observe(last, ab::QueryWeights::all(), ab::evidence::Statistic<Kind>{}));
    ab::reference::attention(few, k, v, ab::bhsd(exact.data(), 1, 1, count, dim), ab::mask::Causal{},
                             ab::observe(truth, ab::QueryWeights::all(), ab::evidence::Statistic<Kind>{}));
    const double bound = sizeof(T) == 4 ? 1e-3 : 1e-11;
    for (std::size_t j = 0; j < last.statistic(0, 0).size(); ++j) {
      const double right = truth.statistic(0, 0)[j], got = static_cast<double>(last.statistic(0, 0)[j]);
      if (!(std::abs(got - right) <= bound * right + 1e-30))
        throw std::runtime_error("the statistic of key " + std::to_string(j) + " is " + std::to_string(got) +
                                 ", not " + std::to_string(right));
    }
    mass();
    work();
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  const auto time = bench::run_paired<T>(state, work, mass);
  const double pairs = static_cast<double>(length) * static_cast<double>(Causal ? length + 1 : 2 * length) / 2;
  const int products = Kind == ab::evidence::Kind::leave_one_out ? 6 : 4;
  bench::Limit limit;
  limit.kept = bench::strip_seconds<T>(pairs, length);
  bench::report_attention<T>(state, products * pairs * static_cast<double>(dim), pairs, time, limit);
  state.counters["x_mass"] = time.work / time.other;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const int dim : {32, 64, 128})
    for (const int length : {128, 1024, 4096}) b->Args({length, dim});
}

using ab::evidence::Kind;
BENCHMARK(statistic<float, Kind::leave_one_out, false, false>)->Name("leave_one_out<float>")->Apply(shapes);
BENCHMARK(statistic<float, Kind::leave_one_out, false, true>)->Name("leave_one_out_peaked<float>")->Apply(shapes);
BENCHMARK(statistic<float, Kind::leave_one_out, true, false>)->Name("leave_one_out_causal<float>")->Apply(shapes);
BENCHMARK(statistic<double, Kind::leave_one_out, false, false>)->Name("leave_one_out<double>")->Apply(shapes);
BENCHMARK(statistic<double, Kind::leave_one_out, false, true>)->Name("leave_one_out_peaked<double>")->Apply(shapes);
BENCHMARK(statistic<float, Kind::squares, false, false>)->Name("squares<float>")->Apply(shapes);
BENCHMARK(statistic<float, Kind::maximum, false, false>)->Name("maximum<float>")->Apply(shapes);
BENCHMARK(statistic<float, Kind::squared_odds, false, false>)->Name("squared_odds<float>")->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
