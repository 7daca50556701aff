// How fast is decoding against loads alone over the same memory, for every storage of the cache, and what does the mass
// add?
//
// Nq queries, grouped heads. `GB/s` counts each stored key and value once; `of_reads` is the share of the bandwidth
// of loads alone over the same bytes by as many threads, in turn with it. `x_float` is the speed in tokens relative
// to a cache of floats of the same shape (in turn), `x_mass` the time with the mass relative to that without.
// The label says what the limit is (see support/limit.hpp): "reads", or "core" where 4 G Nq D operations a key, their
// exponentials and each number's conversion take longer, and `of_limit` is the share of it. `of_both` is the share of
// the two one after the other, as if nothing overlapped: what is read while it is worked on makes it more than 1.
// `mass_of_limit` is as `of_limit`, with the mass: Hq Nq N weights are written and read. The label also says in what
// pages the keys and values lie. With IntegerProducts a multiply-add is half as much work and nothing is converted,
// and `x_int8` the speed relative to int8 without it.
// `from memory` has keys and values beyond every cache, with all threads, of some 3 GB a case.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "support/limit.hpp"
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
struct Cache {
  Cache(const Shape& s, bool huge)
      : bytes(static_cast<std::size_t>(s.kv_heads * s.keys * s.dim) * sizeof(Stored)),
        keys(bytes, huge),
        values(bytes, huge),
        key_scales(static_cast<std::size_t>(s.kv_heads * s.keys)),
        value_scales(key_scales) {
    const Index some = std::min(s.keys, Index(1021));
    ab::KvCache<Stored> part(1, s.kv_heads, some, s.dim);
    const auto numbers = bench::normal_numbers<float>(some * s.kv_heads * s.dim, 5);
    const auto others = bench::normal_numbers<float>(some * s.kv_heads * s.dim, 6);
    part.append(ab::bhsd(numbers.data(), 1, s.kv_heads, some, s.dim),
                ab::bhsd(others.data(), 1, s.kv_heads, some, s.dim));
    const ab::KvView<Stored> from = part.view();
    view.keys = repeat(from.keys, reinterpret_cast<Stored*>(keys.data()), s.keys);
    view.values = repeat(from.values, reinterpret_cast<Stored*>(values.data()), s.keys);
    if (from.key_scales.data) {
      view.key_scales = repeat(from.key_scales, key_scales.data(), s.keys);
      view.value_scales = repeat(from.value_scales, value_scales.data(), s.keys);
    }
  }

  template <class T>
  static ab::TensorView<const T> repeat(const ab::TensorView<const T>& from, T* to, Index length) {
    for (Index h = 0; h < from.heads; ++h)
      for (Index j = 0; j < length; ++j)
        std::copy_n(&from(0, h, j % from.length, 0), from.dim, to + (h * length + j) * from.dim);
    return ab::bhsd<const T>(to, 1, from.heads, length, from.dim);
  }

  std::size_t bytes;  // of the keys, and of the values
  bench::Pages keys, values;
  std::vector<float> key_scales, value_scales;
  ab::KvView<Stored> view;
};

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
  constexpr bool compared = !std::is_same_v<Stored, float>;
  const double numbers = 2.0 * static_cast<double>(s.kv_heads * s.keys * s.dim);
  if (numbers * (sizeof(Stored) + (compared ? sizeof(float) : 0)) > 0.8 * bench::available_memory())
    return state.SkipWithError("there is not enough memory");
  const Cache<Stored> cache(s, huge);
  const ab::KvView<Stored>& x = cache.view;
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

  const Cache<float> floats(compared ? s : Shape{1, 1, 1, 1, 1}, huge);
  bench::Reads reads({{x.keys.data, cache.bytes}, {x.values.data, cache.bytes}}, threads);
  std::vector<double> of_plain, of_observed, of_floats, of_others;
  for (auto _ : state) {
    reads.time();
    of_plain.push_back(bench::seconds([&] { plain(x, workspace, products...); }));
    of_observed.push_back(bench::seconds(observed));
    if (compared) of_floats.push_back(bench::seconds([&] { plain(floats.view, other); }));
    if (sizeof...(products) > 0) of_others.push_back(bench::seconds([&] { plain(x, other); }));
    state.SetIterationTime(of_plain.back());
  }
  const double time = bench::median(of_plain), with_mass = bench::median(of_observed);
  const double scores = static_cast<double>(s.heads * s.queries * s.keys);
  bench::Limit limit;
  limit.products =
      4 * scores * static_cast<double>(s.dim) / (threads * bench::fma_peak<float>() * (integers ? 2 : 1));
  limit.exponentials = scores * bench::exponential_seconds<float>() / threads;
  if (!integers) limit.conversions = numbers * bench::conversion_seconds<Stored>() / threads;
  limit.memory = reads.seconds();
  const double core = limit.core(), read = limit.memory;
  limit.report(state, time);
  state.counters["GB/s"] = numbers * sizeof(Stored) / time / 1e9;
  state.counters["of_reads"] = read / time;
  state.counters["of_both"] = (read + core) / time;
  state.counters["x_mass"] = with_mass / time;
  const bench::BufferSeconds strip = bench::buffer_seconds(4 * scores);
  limit.kept = 4 * scores * (strip.write + strip.read) / threads;
  state.counters["mass_of_limit"] = limit.seconds() / with_mass;
  if (compared) state.counters["x_float"] = bench::median(of_floats) / time;
  if (sizeof...(products) > 0) state.counters["x_int8"] = bench::median(of_others) / time;
  state.SetLabel(std::string(core > read ? "limit: core, " : "limit: reads, ") + cache.keys.kind());
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

void shapes_from_memory(benchmark::internal::Benchmark* b) {
  b->ArgNames({"Hq", "Hkv", "Nq", "N", "D", "threads", "huge"})->UseManualTime()->Unit(benchmark::kMillisecond);
  b->Args({32, 8, 1, 262144, 128, bench::thread_counts().back(), 1})->Iterations(5);
}

BENCHMARK(decode<float>)->Name("decode<float>")->Apply(shapes);
BENCHMARK(decode<ab::bf16>)->Name("decode<bf16>")->Apply(shapes);
BENCHMARK(decode<ab::f16>)->Name("decode<f16>")->Apply(shapes);
BENCHMARK(decode<std::int8_t>)->Name("decode<int8>")->Apply(shapes);
BENCHMARK(decode_in_integers)->Name("decode<int8, IntegerProducts>")->Apply(shapes);
BENCHMARK(decode<ab::bf16>)->Name("from memory<bf16>")->Apply(shapes_from_memory);
BENCHMARK(decode<ab::f16>)->Name("from memory<f16>")->Apply(shapes_from_memory);
BENCHMARK(decode<std::int8_t>)->Name("from memory<int8>")->Apply(shapes_from_memory);

}  // namespace

BENCHMARK_MAIN();
