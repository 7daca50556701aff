// How fast is attention against the FMA peak of one core, what does the evidence add, and what does a causal mask save?
//
// `of_peak` is the share of the peak measured in the same run, `limit` what the model allows: products, exponentials,
// and with the evidence a strip of weights that is read once more (see support/limit.hpp). `x_forward` is the time
// relative to plain forward of the same shape, run in turn with it. Floating point operations are counted as 4 N^2 D;
// for causal, as the visible half.
#include <benchmark/benchmark.h>

#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

template <class T>
struct Inputs {
  Inputs(Index length, Index dim)
      : numbers{bench::normal_numbers<T>(length * dim, 1), bench::normal_numbers<T>(length * dim, 2),
                bench::normal_numbers<T>(length * dim, 3), bench::normal_numbers<T>(length * dim, 4)},
        q(ab::bhsd(numbers[0].data(), 1, 1, length, dim)), k(ab::bhsd(numbers[1].data(), 1, 1, length, dim)),
        v(ab::bhsd(numbers[2].data(), 1, 1, length, dim)), out(ab::bhsd(numbers[3].data(), 1, 1, length, dim)) {}

  std::vector<T> numbers[4];
  ab::TensorView<T> q, k, v, out;
};

template <class T, bool Causal, bool Observed>
void attention(benchmark::State& state) {
  const Index length = state.range(0), dim = state.range(1);
  const Inputs<T> x(length, dim);
  ab::Workspace workspace;
  ab::Evidence<T> evidence;
  auto forward = [&] { ab::attention(x.q, x.k, x.v, x.out, workspace); };
  auto work = [&] {
    if constexpr (Causal && Observed)
      ab::attention(x.q, x.k, x.v, x.out, workspace, ab::mask::Causal{}, ab::observe(evidence));
    else if constexpr (Causal)
      ab::attention(x.q, x.k, x.v, x.out, workspace, ab::mask::Causal{});
    else if constexpr (Observed)
      ab::attention(x.q, x.k, x.v, x.out, workspace, ab::observe(evidence));
    else
      forward();
  };

  try {
    forward();
    bench::check_last_rows(x.q, x.k, x.v, x.out);
    work();
    if constexpr (Causal)
      bench::check_last_rows(x.q, x.k, x.v, x.out, ab::mask::Causal{});
    else
      bench::check_last_rows(x.q, x.k, x.v, x.out);
    if constexpr (Observed) {
      double total = 0;
      for (const T mass : evidence.mass(0, 0)) total += static_cast<double>(mass);
      if (!(std::abs(total - static_cast<double>(length)) < 1e-4 * static_cast<double>(length)))
        throw std::runtime_error("the masses add up to " + std::to_string(total));
    }
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }

  const auto time = bench::run_paired<T>(state, work, forward);
  const double pairs = static_cast<double>(length) * static_cast<double>(Causal ? length + 1 : 2 * length) / 2;
  bench::Limit limit;
  if (Observed) limit.kept = bench::strip_seconds<T>(pairs, length);
  bench::report_attention<T>(state, 4 * pairs * static_cast<double>(dim), pairs, time, limit);
  if (Causal || Observed) state.counters["x_forward"] = time.work / time.other;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const int dim : {32, 64, 128})
    for (int length = 128; length <= 16384; length *= 2) b->Args({length, dim});
}

BENCHMARK(attention<float, false, false>)->Name("forward<float>")->Apply(shapes);
BENCHMARK(attention<float, false, true>)->Name("observed<float>")->Apply(shapes);
BENCHMARK(attention<float, true, false>)->Name("causal<float>")->Apply(shapes);
BENCHMARK(attention<float, true, true>)->Name("causal_observed<float>")->Apply(shapes);
BENCHMARK(attention<double, false, false>)->Name("forward<double>")->Apply(shapes);
BENCHMARK(attention<double, false, true>)->Name("observed<double>")->Apply(shapes);
BENCHMARK(attention<double, true, false>)->Name("causal<double>")->Apply(shapes);
BENCHMARK(attention<double, true, true>)->Name("causal_observed<double>")->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
