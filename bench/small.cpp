// How fast are short sequences with many heads, where what a call and a block cost once cannot hide?
//
// `of_peak` is the share of the FMA peak measured in the same run, `limit` what the model allows: products and
// exponentials, or loads of as many bytes as all tensors have, where that takes longer. 4096 tokens in all, so that K
// and V of all heads do not stay in the first caches, or 65536, which come from memory. `one_head` is the time of a
// call of one head, relative to its share of the call of all heads.
#include <benchmark/benchmark.h>

#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

template <class T, Index tokens>
void small(benchmark::State& state) {
  const Index length = state.range(0), dim = state.range(1), heads = tokens / length;
  std::vector<T> numbers[4];
  ab::TensorView<T> x[4], one[4];
  for (int i = 0; i < 4; ++i) {
    numbers[i] = bench::normal_numbers<T>(heads * length * dim, static_cast<unsigned>(i + 1));
    x[i] = one[i] = ab::bhsd(numbers[i].data(), 1, heads, length, dim);
    one[i].heads = 1;
  }
  ab::Workspace workspace;
  auto all_heads = [&] { ab::attention(x[0], x[1], x[2], x[3], workspace); };
  try {
    all_heads();
    bench::check_last_rows(x[0], x[1], x[2], x[3]);
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  const auto time =
      bench::run_paired<T>(state, all_heads, [&] { ab::attention(one[0], one[1], one[2], one[3], workspace); });
  const double pairs = static_cast<double>(heads) * static_cast<double>(length) * static_cast<double>(length);
  std::vector<bench::Reads::Piece> tensors;
  for (const std::vector<T>& tensor : numbers) tensors.push_back({tensor.data(), tensor.size() * sizeof(T)});
  bench::Limit limit;
  limit.memory = bench::read_seconds(tensors, 1, 9);
  bench::report_attention<T>(state, 4 * pairs * static_cast<double>(dim), pairs, time, limit);
  state.counters["one_head"] = time.other * static_cast<double>(heads) / time.work;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "D"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int dim : {16, 32, 64, 128})
    for (int length = 16; length <= 512; length *= 2) b->Args({length, dim});
}

void shapes_from_memory(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "D"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int dim : {32, 64})
    for (int length = 32; length <= 256; length *= 2) b->Args({length, dim});
}

BENCHMARK(small<float, 4096>)->Name("many heads<float>")->Apply(shapes);
BENCHMARK(small<double, 4096>)->Name("many heads<double>")->Apply(shapes);
BENCHMARK(small<float, 65536>)->Name("many heads from memory<float>")->Apply(shapes_from_memory);

}  // namespace

BENCHMARK_MAIN();
