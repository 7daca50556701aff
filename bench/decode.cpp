// How fast is decoding against plain reads of the same memory, for every storage of the cache, and what does the
// mass add?
//
// Nq queries, grouped heads. `GB/s` counts each stored key and value once; `of_reads` is the share of the bandwidth
// of plain loads over the same bytes by as many threads, in turn with it. `x_float` is the speed in tokens relative
// to a cache of floats of the same shape (in turn), `x_mass` the time with the mass relative to that without.
// `limit` is the model: "reads", or "fma" where 4 G Nq D multiply-adds per key take longer than its bytes, and
// `of_limit` the share of it. `of_both` is the share of the two one after the other, as if nothing overlapped: what is
// read while it is worked on makes it more than 1. The label says in what pages the keys and values lie.
// With IntegerProducts a multiply-add is half as much work, and `x_int8` the speed relative to int8 without it.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "support/bandwidth.hpp"
#include "support/fma_peak.hpp"
#include "support/pages.hpp"
#include "support/paired.hpp"
#include "support/threads.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

struct Shape {
  Index heads, kv_heads, queries, keys, dim;
};

/// A cache full of numbers that repeat every 1021 tokens: as good as random ones, and quickly made.
template <class Stored>
ab::KvCache<Stored> filled(const Shape& s) {
  ab::KvCache<Stored> cache(1, s.kv_heads, s.keys, s.dim);
  const Index some = std::min(s.keys, Index(1021));
  const auto numbers = bench::normal_numbers<float>(some * s.kv_heads * s.dim, 5);
  const auto values = bench::normal_numbers<float>(some * s.kv_heads * s.dim, 6);
  for (Index j = 0; j < s.keys; j += some) {
    auto rows = [&](const std::vector<float>& x) {
      return bench::rows(ab::bhsd(x.data(), 1, s.kv_heads, some, s.dim), 0, std::min(some, s.keys - j));
    };
    cache.append(rows(numbers), rows(values));
  }
  return cache;
}

/// Throws unless the output of the first head is that of the formula, on what the cache holds.
template <class Stored>
void check(const ab::KvView<Stored>& x, const std::vector<float>& q, const std::vector<float>& out, const Shape& s,
           double bound) {
  const auto stored = [](const ab::TensorView<const Stored>& rows, const ab::TensorView<const float>& scales,
                         Index j, Index c) {
    return static_cast<double>(rows(0, 0, j, c)) * (scales.data ? static_cast<double>(scales(0, 0, j, 0)) : 1.0);
  };
  std::vector<double> scores(static_cast<std::size_t>(s.keys)), expected(static_cast<std::size_t>(s.dim));
  double top = -HUGE_VAL, sum = 0;
  for (Index j = 0; j < s.keys; ++j) {
    double dot = 0;
    for (Index c = 0; c < s.dim; ++c)
      dot += static_cast<double>(q[static_cast<std::size_t>(c)]) * stored(x.keys, x.key_scales, j, c);
    scores[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<double>(s.dim));
    top = std::max(top, scores[static_cast<std::size_t>(j)]);
  }
  for (Index j = 0; j < s.keys; ++j) {
    const double p = std::exp(scores[static_cast<std::size_t>(j)] - top);
    sum += p;
    for (Index c = 0; c < s.dim; ++c)
      expected[static_cast<std::size_t>(c)] += p * stored(x.values, x.value_scales, j, c);
  }
  for (std::size_t c = 0; c < expected.size(); ++c)
    if (!(std::abs(expected[c] / sum - static_cast<double>(out[c])) < bound))
      throw std::runtime_error("the output differs from the formula");
}

template <class Stored, class... Products>
void decode(benchmark::State& state, Products... products) {
  constexpr bool integers = sizeof...(products) > 0 && ab::simd::has_integer_products;
  const double bound = integers ? 1e-3 : 1e-5;  // of what IntegerProducts promises a tenth
  const Shape s{state.range(0), state.range(1), state.range(2), state.range(3), state.range(4)};
  const int threads = static_cast<int>(state.range(5));
  const bool huge = state.range(6) != 0;
  const auto cache = filled<Stored>(s);
  const std::size_t bytes = static_cast<std::size_t>(s.kv_heads * s.keys * s.dim) * sizeof(Stored);
  auto x = cache.view();
  const bench::Pages keys(x.keys.data, bytes, huge), values(x.values.data, bytes, huge);
  x.keys.data = reinterpret_cast<const Stored*>(keys.data());
  x.values.data = reinterpret_cast<const Stored*>(values.data());
  const auto q = bench::normal_numbers<float>(s.heads * s.queries * s.dim, 7);
  std::vector<float> out(q.size());
  const auto vq = ab::bhsd(q.data(), 1, s.heads, s.queries, s.dim);
  const auto vout = ab::bhsd(out.data(), 1, s.heads, s.queries, s.dim);
  ab::Workspace workspace, other;
  ab::Evidence<float> evidence;
  const bench::Team team = bench::team_of(threads);
  auto plain = [&](const auto& from, ab::Workspace& scratch, auto... policies) {
    if (threads == 1)
      ab::attention(vq, from, vout, scratch, policies...);
    else
      ab::attention(vq, from, vout, scratch, policies..., team);
  };
  auto observed = [&] { plain(x, workspace, products..., ab::observe(evidence)); };
  auto reads = [&] {
    bench::read_through(x.keys.data, bytes, threads);
    bench::read_through(x.values.data, bytes, threads);
  };
  try {
    plain(x, workspace, products...);
    check(x, q, out, s, bound);
    observed();
    check(x, q, out, s, bound);
    double total = 0;
    for (const float mass : evidence.mass(0, 0)) total += static_cast<double>(mass);
    if (!(std::abs(total / static_cast<double>(s.queries) - 1) < 1e-4))
      throw std::runtime_error("the masses add up to " + std::to_string(total));
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }

  constexpr bool compared = !std::is_same_v<Stored, float>;
  const auto float_cache = compared ? filled<float>(s) : ab::KvCache<float>(1, 1, 1, 1);
  auto floats = float_cache.view();
  const std::size_t float_bytes = compared ? bytes / sizeof(Stored) * sizeof(float) : 0;
  const bench::Pages float_keys(floats.keys.data, float_bytes, huge),
      float_values(floats.values.data, float_bytes, huge);
  floats.keys.data = reinterpret_cast<const float*>(float_keys.data());
  floats.values.data = reinterpret_cast<const float*>(float_values.data());
  std::vector<double> of_reads, of_plain, of_observed, of_floats, of_others;
  for (auto _ : state) {
    of_reads.push_back(bench::seconds(reads));
    of_plain.push_back(bench::seconds([&] { plain(x, workspace, products...); }));
    of_observed.push_back(bench::seconds(observed));
    if (compared) of_floats.push_back(bench::seconds([&] { plain(floats, other); }));
    if (sizeof...(products) > 0) of_others.push_back(bench::seconds([&] { plain(x, other); }));
    state.SetIterationTime(of_plain.back());
  }
  const double time = bench::median(of_plain), read = bench::median(of_reads);
  const double flops = 4.0 * static_cast<double>(s.heads * s.queries * s.keys * s.dim),
               fma = flops / (threads * bench::fma_peak<float>() * (integers ? 2 : 1));
  state.counters["GB/s"] = 2.0 * static_cast<double>(bytes) / time / 1e9;
  state.counters["of_reads"] = read / time;
  state.counters["of_limit"] = std::max(read, fma) / time;
  state.counters["of_both"] = (read + fma) / time;
  state.counters["x_mass"] = bench::median(of_observed) / time;
  if (compared) state.counters["x_float"] = bench::median(of_floats) / time;
  if (sizeof...(products) > 0) state.counters["x_int8"] = bench::median(of_others) / time;
  state.SetLabel(std::string(fma > read ? "limit: fma, " : "limit: reads, ") + keys.kind());
}

void decode_in_integers(benchmark::State& state) { decode<std::int8_t>(state, ab::IntegerProducts{}); }

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"Hq", "Hkv", "Nq", "N", "D", "threads", "huge"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const int threads : bench::thread_counts()) {
    for (const int huge : {0, 1}) {
      for (const int keys : {512, 1024, 8192, 32768, 131072}) b->Args({32, 8, 1, keys, 128, threads, huge});
      for (const int keys : {8192, 131072}) b->Args({9, 3, 1, keys, 64, threads, huge});
      b->Args({8, 8, 1, 8192, 128, threads, huge});
      for (const int queries : {2, 4, 8}) b->Args({32, 8, queries, 8192, 128, threads, huge});
    }
  }
}

BENCHMARK(decode<float>)->Name("decode<float>")->Apply(shapes);
BENCHMARK(decode<ab::bf16>)->Name("decode<bf16>")->Apply(shapes);
BENCHMARK(decode<ab::f16>)->Name("decode<f16>")->Apply(shapes);
BENCHMARK(decode<std::int8_t>)->Name("decode<int8>")->Apply(shapes);
BENCHMARK(decode_in_integers)->Name("decode<int8, IntegerProducts>")->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
