// What do many queries to a cache cost, for every storage, against the same from a cache of floats?
//
// `x_float` is the speed relative to a cache of floats of the same shape, in turn with it; `of_peak` the share of the
// FMA peak of one core, `limit` what products and exponentials in float allow, and the conversion of each number once a
// head. `bf16_products` multiplies in bf16 (`Bf16Products`), where this machine can: in AMX, if it has that and the
// environment does not say ATTENTION_BALANCER_AMX=0.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <exception>
#include <stdexcept>

#include "attention_balancer/simd/bf16.hpp"
#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

enum class Way { storage, pages, products };

template <class Stored, Way way>
void prefill(benchmark::State& state) {
  const Index heads = state.range(0), kv_heads = state.range(1), queries = state.range(2), keys = state.range(3),
              dim = state.range(4);
  const auto k = bench::normal_numbers<float>(kv_heads * keys * dim, 5),
             v = bench::normal_numbers<float>(kv_heads * keys * dim, 6),
             q = bench::normal_numbers<float>(heads * queries * dim, 7);
  std::vector<float> out(q.size()), of_floats(q.size());
  const auto view_k = ab::bhsd(k.data(), 1, kv_heads, keys, dim),
             view_v = ab::bhsd(v.data(), 1, kv_heads, keys, dim),
             view_q = ab::bhsd(q.data(), 1, heads, queries, dim);
  const auto view_out = ab::bhsd(out.data(), 1, heads, queries, dim),
             view_of_floats = ab::bhsd(of_floats.data(), 1, heads, queries, dim);
  ab::Workspace workspace, other;
  try {
    ab::KvCache<float> floats(1, kv_heads, keys, dim);
    floats.append(view_k, view_v);
    constexpr Index page = 16;
    auto cache = [&] {
      if constexpr (way == Way::pages)
        return ab::PagedKvCache<Stored>(1, kv_heads, (keys + page - 1) / page, page, dim);
      else
        return ab::KvCache<Stored>(1, kv_heads, keys, dim);
    }();
    cache.append(view_k, view_v);

    auto work = [&] {
      if constexpr (way == Way::products)
        ab::attention(view_q, cache, view_out, workspace, ab::Bf16Products{});
      else
        ab::attention(view_q, cache, view_out, workspace);
    };
    auto floating = [&] { ab::attention(view_q, floats, view_of_floats, other); };
    floating();
    bench::check_last_rows<const float>(view_q, view_k, view_v,
                                        ab::bhsd<const float>(of_floats.data(), 1, heads, queries, dim));
    work();
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!(std::abs(out[i] - of_floats[i]) < 0.02f)) throw std::runtime_error("the output is not that of floats");

    const auto time = bench::run_paired<float>(state, work, floating);
    const double scores = static_cast<double>(heads * queries * keys);
    bench::Limit limit;
    if (way != Way::products)
      limit.conversions = 2.0 * static_cast<double>(heads * keys * dim) * bench::conversion_seconds<Stored>();
    bench::report_attention<float>(state, 4 * scores * static_cast<double>(dim), scores, time, limit);
    state.counters["x_float"] = time.other / time.work;
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"Hq", "Hkv", "Nq", "N", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const int queries : {16, 64, 256, 1024}) b->Args({8, 8, queries, 4096, 128});
  for (const int queries : {16, 64}) b->Args({32, 8, queries, 4096, 128});
  for (const int queries : {64, 1024}) b->Args({8, 8, queries, 1024, 64});
  for (const int dim : {64, 128}) b->Args({8, 8, 256, 256, dim});
  b->Args({4, 2, 40, 300, 48});
}

BENCHMARK(prefill<ab::bf16, Way::storage>)->Name("bf16")->Apply(shapes);
BENCHMARK(prefill<ab::bf16, Way::pages>)->Name("bf16_pages_of_16")->Apply(shapes);
BENCHMARK(prefill<ab::f16, Way::storage>)->Name("f16")->Apply(shapes);
BENCHMARK(prefill<std::int8_t, Way::storage>)->Name("int8")->Apply(shapes);
[[maybe_unused]] const bool with_products = [] {
  if (ab::simd::has_bf16_products)
    benchmark::RegisterBenchmark("bf16_products", prefill<ab::bf16, Way::products>)->Apply(shapes);
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
