// How fast is the backward pass against the FMA peak of one core, and against the forward pass of the same shape?
//
// `of_peak` is the share of the peak measured in the same run, with 10 N^2 D floating point operations: five
// products, of which one repeats the scores; for causal, as the visible half. `limit` is what these allow with one
// exponential for each score and with the gradients of keys and values, which the blocks of queries that walk together
// read once. `x_forward` is the time relative to forward, observed for its lse alone, run in turn with it.
// `through_evidence` has gradients of mass and entropy too: 12 N^2 D operations, counted as 10. `sparsemax`, `entmax15`
// and `top_k` (32 keys) do all scores and then only the blocks where a key has weight, and are counted as if they did
// all.
#include <benchmark/benchmark.h>

#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

template <class T>
struct Tensors {
  Tensors(Index length, Index dim) {
    for (unsigned i = 0; i < 8; ++i) numbers[i] = bench::normal_numbers<T>(length * dim, i + 1);
    auto view = [&](std::size_t i) { return ab::bhsd(numbers[i].data(), 1, 1, length, dim); };
    q = view(0), k = view(1), v = view(2), out = view(3), dout = view(4), dq = view(5), dk = view(6), dv = view(7);
    of_keys = bench::normal_numbers<T>(length, 9);
  }
  std::vector<T> numbers[8], of_keys;
  ab::TensorView<T> q, k, v, out, dout, dq, dk, dv;
};

/// Throws unless dv and dk, summed over the keys, and the last rows of dq are what they must be: sum_j dv_j is the
/// sum of dout over the queries, sum_j dk_j is sum_ij dS_ij q_i and each row of dS sums to 0; dq against the
/// reference.
template <class T, class... P>
void check(const Tensors<T>& x, P&&... policies) {
  const Index N = x.q.length, D = x.q.dim, count = std::min(Index(4), N);
  const double bound = sizeof(T) == 4 ? 1e-4 : 1e-12;
  for (Index c = 0; c < D; ++c) {
    double sum = 0, expected = 0, zero = 0;
    for (Index j = 0; j < N; ++j)
      sum += static_cast<double>(x.dv(0, 0, j, c)), expected += static_cast<double>(x.dout(0, 0, j, c)),
          zero += static_cast<double>(x.dk(0, 0, j, c));
    if (!(std::abs(sum - expected) < bound * static_cast<double>(N)) ||
        !(std::abs(zero) < bound * static_cast<double>(N)))
      throw std::runtime_error("the gradients of the keys or values do not add up");
  }
  std::vector<double> exact(static_cast<std::size_t>(2 * N * D + count * D));
  const auto dq = ab::bhsd(exact.data(), 1, 1, count, D), dk = ab::bhsd(dq.data + count * D, 1, 1, N, D),
             dv = ab::bhsd(dk.data + N * D, 1, 1, N, D);
  ab::reference::attention_backward(bench::rows(x.q, N - count, count), x.k, x.v,
                                    bench::rows(x.dout, N - count, count), dq, dk, dv, policies...);
  for (Index i = 0; i < count; ++i)
    for (Index c = 0; c < D; ++c)
      if (!(std::abs(static_cast<double>(x.dq(0, 0, N - count + i, c)) - dq(0, 0, i, c)) < bound))
        throw std::runtime_error("dq differs from the reference");
}

enum class Kind { plain, causal, through_evidence, sparsemax, entmax15, top_k };

/// call(policies...) with those that forward and backward share.
template <Kind K, class Call>
void with_policies(Call call) {
  if constexpr (K == Kind::causal)
    call(ab::mask::Causal{});
  else if constexpr (K == Kind::sparsemax)
    call(ab::normalize::Sparsemax{});
  else if constexpr (K == Kind::entmax15)
    call(ab::normalize::Entmax15{});
  else if constexpr (K == Kind::top_k)
    call(ab::normalize::TopK{32});
  else
    call();
}

template <class T, Kind K>
void backward(benchmark::State& state) {
  const Index length = state.range(0), dim = state.range(1);
  const Tensors<T> x(length, dim);
  ab::Workspace workspace;
  ab::Evidence<T> evidence;
  const std::vector<T> entropy(static_cast<std::size_t>(length), T(0.1));
  auto forward = [&](const auto&... policies) {
    ab::attention(x.q, x.k, x.v, x.out, workspace, ab::observe(evidence, ab::QueryWeights::none()), policies...);
  };
  auto back = [&](const auto&... policies) {
    ab::attention_backward(x.q, x.k, x.v, x.out, evidence, x.dout, x.dq, x.dk, x.dv, workspace, policies...);
  };
  auto work = [&] {
    if constexpr (K == Kind::through_evidence)
      back(ab::evidence::MassGradient(x.of_keys), ab::evidence::EntropyGradient(entropy));
    else
      with_policies<K>(back);
  };
  auto forward_work = [&] { with_policies<K>(forward); };
  try {
    forward_work();
    work();
    if constexpr (K == Kind::through_evidence)
      check(x, ab::evidence::MassGradient(x.of_keys),
            ab::evidence::EntropyGradient(
                std::span(entropy).first(static_cast<std::size_t>(std::min(Index(4), length)))));
    else
      with_policies<K>([&](const auto&... policies) { check(x, policies...); });
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  const auto time = bench::run_paired<T>(state, work, forward_work);
  const double pairs =
      static_cast<double>(length) * static_cast<double>(K == Kind::causal ? length + 1 : 2 * length) / 2;
  bench::Limit limit;
  const double key_bytes = 2.0 * static_cast<double>(dim) * sizeof(T),
               queries_at_once = static_cast<double>(ab::detail::block_width<T> * ab::detail::backward_together<T>);
  limit.kept =
      pairs / queries_at_once * key_bytes * bench::buffer_seconds(static_cast<double>(length) * key_bytes).read;
  bench::report_attention<T>(state, 10 * pairs * static_cast<double>(dim), pairs, time, limit);
  state.counters["x_forward"] = time.work / time.other;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const int dim : {32, 64, 128})
    for (int length = 128; length <= 4096; length *= 2) b->Args({length, dim});
}

void sparse_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (int length = 512; length <= 4096; length *= 2) b->Args({length, 64});
}

BENCHMARK(backward<float, Kind::plain>)->Name("backward<float>")->Apply(shapes);
BENCHMARK(backward<float, Kind::causal>)->Name("causal<float>")->Apply(shapes);
BENCHMARK(backward<float, Kind::through_evidence>)->Name("through_evidence<float>")->Apply(shapes);
BENCHMARK(backward<float, Kind::sparsemax>)->Name("sparsemax<float>")->Apply(sparse_shapes);
BENCHMARK(backward<float, Kind::entmax15>)->Name("entmax15<float>")->Apply(sparse_shapes);
BENCHMARK(backward<float, Kind::top_k>)->Name("top_k<float>")->Apply(sparse_shapes);
BENCHMARK(backward<double, Kind::plain>)->Name("backward<double>")->Apply(shapes);
BENCHMARK(backward<double, Kind::causal>)->Name("causal<double>")->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
