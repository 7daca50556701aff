// How much faster do two threads make attention, against how much faster they make multiply-adds on registers?
//
// `speedup` is that of two threads over one, `limit` that of multiply-adds alone, and `of_limit` the one by the other:
// medians of all four, run in turn. Both cores share a clock and a third cache, so that `limit` may be below 2. For
// `decode`, 32 heads on 8 and D = 128 in huge pages, `limit` is that of loads alone over the same keys and values.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "support/fma_peak.hpp"
#include "support/pages.hpp"
#include "support/paired.hpp"
#include "support/read_bandwidth.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

constexpr int threads = 2;

/// Multiply-adds that take one thread some milliseconds, on each of `team` threads.
void multiply_on(Index team) {
  constexpr std::int64_t rounds = 400000;
  static volatile float factors[2] = {0.5f, 1e-3f};
  ab::executor::OpenMp{team}.for_each(team, [](Index) {
    const float result = bench::detail::multiply_add<float>(factors[0], factors[1], rounds);
    asm volatile("" : : "m"(result));  // used, as far as the compiler knows
  });
}

void report(benchmark::State& state, double reached, double limit) {
  state.counters["speedup"] = reached;
  state.counters["limit"] = limit;
  state.counters["of_limit"] = reached / limit;
}

template <bool Causal, bool Observed>
void speedup(benchmark::State& state) {
  const Index heads = state.range(0), length = state.range(1), dim = state.range(2);
  const auto q = bench::normal_numbers<float>(heads * length * dim, 1),
             k = bench::normal_numbers<float>(heads * length * dim, 2),
             v = bench::normal_numbers<float>(heads * length * dim, 3);
  std::vector<float> out(q.size()), of_one(q.size());
  auto view = [&](auto* x) { return ab::bhsd(x, 1, heads, length, dim); };
  ab::Workspace workspace, other;
  ab::Evidence<float> evidence;
  auto work = [&](Index team, std::vector<float>& result, ab::Workspace& memory) {
    const ab::executor::OpenMp executor{team};
    auto run = [&](auto&&... policies) {
      ab::attention(view(q.data()), view(k.data()), view(v.data()), view(result.data()), executor, memory,
                    policies...);
    };
    if constexpr (Causal && Observed)
      run(ab::mask::Causal{}, ab::observe(evidence));
    else if constexpr (Causal)
      run(ab::mask::Causal{});
    else if constexpr (Observed)
      run(ab::observe(evidence));
    else
      run();
  };
  work(threads, out, workspace);
  work(1, of_one, other);
  if (out != of_one) return state.SkipWithError("one thread and two differ");
  try {
    const auto last = ab::bhsd<const float>(out.data(), 1, heads, length, dim);
    if constexpr (Causal)
      bench::check_last_rows<const float>(view(q.data()), view(k.data()), view(v.data()), last, ab::mask::Causal{});
    else
      bench::check_last_rows<const float>(view(q.data()), view(k.data()), view(v.data()), last);
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }

  std::vector<double> one, two, peak_one, peak_two;
  for (auto _ : state) {
    peak_one.push_back(bench::seconds([] { multiply_on(1); }));
    one.push_back(bench::seconds([&] { work(1, of_one, other); }));
    peak_two.push_back(bench::seconds([] { multiply_on(threads); }));
    two.push_back(bench::seconds([&] { work(threads, out, workspace); }));
    state.SetIterationTime(two.back());
  }
  report(state, bench::median(one) / bench::median(two),
         static_cast<double>(threads) * bench::median(peak_one) / bench::median(peak_two));
}

void decode(benchmark::State& state) {
  constexpr Index heads = 32, kv_heads = 8, dim = 128;
  const Index length = state.range(0);
  const auto q = bench::normal_numbers<float>(heads * dim, 1);
  std::vector<float> out(q.size()), of_one(q.size());
  const std::size_t bytes = static_cast<std::size_t>(kv_heads * length * dim) * sizeof(float);
  const bench::Pages keys(bench::normal_numbers<float>(kv_heads * length * dim, 2).data(), bytes, true),
      values(bench::normal_numbers<float>(kv_heads * length * dim, 3).data(), bytes, true);
  const auto rows = [&](const bench::Pages& x) {
    return ab::bhsd(reinterpret_cast<const float*>(x.data()), 1, kv_heads, length, dim);
  };
  ab::Workspace workspace, other;
  auto work = [&](Index team, std::vector<float>& result, ab::Workspace& memory) {
    ab::attention(ab::bhsd(q.data(), 1, heads, 1, dim), rows(keys), rows(values),
                  ab::bhsd(result.data(), 1, heads, 1, dim), ab::executor::OpenMp{team}, memory);
  };
  work(threads, out, workspace);
  work(1, of_one, other);
  if (out != of_one) return state.SkipWithError("one thread and two differ");
  try {
    bench::check_last_rows<const float>(ab::bhsd(q.data(), 1, heads, 1, dim), rows(keys), rows(values),
                                        ab::bhsd<const float>(out.data(), 1, heads, 1, dim));
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }

  const std::vector<bench::Reads::Piece> memory{{keys.data(), bytes}, {values.data(), bytes}};
  bench::Reads reads_one(memory, 1), reads_two(memory, threads);
  std::vector<double> one, two;
  for (auto _ : state) {
    reads_one.time();
    one.push_back(bench::seconds([&] { work(1, of_one, other); }));
    reads_two.time();
    two.push_back(bench::seconds([&] { work(threads, out, workspace); }));
    state.SetIterationTime(two.back());
  }
  report(state, bench::median(one) / bench::median(two), reads_one.seconds() / reads_two.seconds());
  state.SetLabel(keys.kind());
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"H", "N", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
  b->Args({3, 300, 64});
  for (const int dim : {64, 128})
    for (int length = 1024; length <= 8192; length *= 2) b->Args({1, length, dim});
  for (const int heads : {3, 5, 8}) b->Args({heads, 1024, 64});
}

BENCHMARK(decode)->ArgName("N")->Arg(8192)->Arg(32768)->Arg(131072)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(speedup<false, false>)->Name("forward")->Apply(shapes);
BENCHMARK(speedup<true, false>)->Name("causal")->Apply(shapes);
BENCHMARK(speedup<false, true>)->Name("observed")->Apply(shapes);
BENCHMARK(speedup<true, true>)->Name("causal_observed")->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
