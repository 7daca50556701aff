// Does any shape or stride run slower per floating point operation than 0.8 of the speed of its aligned neighbour?
//
// `of_aligned` is the speed per operation relative to the aligned shape, run in turn with it; `of_peak` and `limit` are
// as in bench_attention.
#include <benchmark/benchmark.h>

#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

enum class Layout { contiguous, heads_inside, columns };

/// Queries Nq and keys Nk of `heads` heads, in one of the layouts that users have.
struct Shape {
  Index heads, queries, keys, dim, value_dim;
  Layout layout = Layout::contiguous;

  double scores() const { return static_cast<double>(heads * queries * keys); }
  double flops() const { return 2 * scores() * static_cast<double>(dim + value_dim); }
};

struct Tensor {
  Tensor(Index heads, Index length, Index dim, Layout layout, unsigned seed)
      : numbers(bench::normal_numbers<float>(heads * length * dim, seed)) {
    if (layout == Layout::contiguous) view = ab::bhsd(numbers.data(), 1, heads, length, dim);
    if (layout == Layout::heads_inside) view = ab::bshd(numbers.data(), 1, length, heads, dim);
    if (layout == Layout::columns)
      view = {numbers.data(), 1, heads, length, dim, heads * length * dim, length * dim, 1, length};
  }
  std::vector<float> numbers;
  ab::TensorView<float> view;
};

struct Inputs {
  explicit Inputs(const Shape& s)
      : q(s.heads, s.queries, s.dim, s.layout, 1), k(s.heads, s.keys, s.dim, s.layout, 2),
        v(s.heads, s.keys, s.value_dim, s.layout, 3), out(s.heads, s.queries, s.value_dim, s.layout, 4) {}
  void run() { ab::attention(q.view, k.view, v.view, out.view, workspace); }

  Tensor q, k, v, out;
  ab::Workspace workspace;
};

void compare(benchmark::State& state, Shape odd, Shape aligned) {
  Inputs x(odd), y(aligned);
  try {
    x.run();
    bench::check_last_rows(x.q.view, x.k.view, x.v.view, x.out.view);
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  y.run();
  const auto time = bench::run_paired<float>(state, [&] { x.run(); }, [&] { y.run(); });
  bench::report_attention<float>(state, odd.flops(), odd.scores(), time);
  state.counters["of_aligned"] = (odd.flops() / time.work) / (aligned.flops() / time.other);
}

void add(const char* name, Shape odd, Shape aligned) {
  benchmark::RegisterBenchmark(name, [odd, aligned](benchmark::State& s) { compare(s, odd, aligned); })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  const Shape base{8, 256, 256, 64, 64}, small{8, 32, 32, 32, 32};
  add("Nq=Nk=257", {8, 257, 257, 64, 64}, base);
  add("Nq=Nk=255", {8, 255, 255, 64, 64}, base);
  add("Nq=Nk=241", {8, 241, 241, 64, 64}, base);
  add("Nq=Nk=1000", {8, 1000, 1000, 64, 64}, {8, 1024, 1024, 64, 64});
  add("Nq=Nk=31", {8, 31, 31, 32, 32}, small);
  add("Nq=Nk=33", {8, 33, 33, 32, 32}, small);
  add("Nq=Nk=17", {8, 17, 17, 32, 32}, {8, 16, 16, 32, 32});
  add("Nq=Nk=320", {8, 320, 320, 64, 64}, base);
  add("N=257, D=33", {8, 257, 257, 33, 33}, {8, 256, 256, 32, 32});
  add("Nk=129", {8, 256, 129, 64, 64}, {8, 256, 128, 64, 64});
  add("Nk=7", {8, 256, 7, 64, 64}, {8, 256, 8, 64, 64});
  add("D=63", {8, 256, 256, 63, 63}, base);
  add("D=65", {8, 256, 256, 65, 65}, base);
  add("D=33", {8, 256, 256, 33, 33}, {8, 256, 256, 32, 32});
  add("D=7", {8, 256, 256, 7, 7}, {8, 256, 256, 8, 8});
  add("Dv=47", {8, 256, 256, 64, 47}, {8, 256, 256, 64, 48});
  add("heads inside", {8, 256, 256, 64, 64, Layout::heads_inside}, base);
  add("features strided", {8, 256, 256, 64, 64, Layout::columns}, base);
  add("features strided, D=32", {8, 256, 256, 32, 32, Layout::columns}, {8, 256, 256, 32, 32});
  add("features strided, N=1023, D=65", {8, 1023, 1023, 65, 65, Layout::columns}, {8, 1024, 1024, 64, 64});
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
