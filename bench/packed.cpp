// What does a serving batch of decoding steps cost when its sequences are packed, beside the same memory as a batch of
// equal lengths, and beside a call for each sequence? And what do queries of many sequences cost in one call over a
// cache, single ones beside the decoding batch, and with a piece of a prompt among them beside two calls?
//
// 32 heads on 8 of keys, D = 128, S sequences of Nq queries and N keys each. `of_reads` is the share of the bandwidth
// of loads alone over the same keys and values by as many threads, in turn with it; `x_batch` the time relative to the
// batch, `x_calls` relative to the calls one by one. `cached` is the same over a KvCache; in `mixed` the first sequence
// of the cache has Nq queries and the others one each, `x_two` is the time relative to a call for the first and one for
// the others.
//
// `unequal` has S sequences of 16 to 2048 tokens, uniform in the logarithm, 8 heads on 2 and D = 64: as
// PackedSequences, and as a batch of 2048 queries for each item with KeyLengths. `per_pair` is the time for a pair of a
// query and a key that it sees, relative to as many sequences of one length with as many pairs.
#include <benchmark/benchmark.h>

#include <numeric>

#include "support/paired.hpp"
#include "support/read_bandwidth.hpp"
#include "support/threads.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

void packed(benchmark::State& state) {
  constexpr Index heads = 32, kv_heads = 8, dim = 128;
  const Index count = state.range(0), queries = state.range(1), keys = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  const auto q = bench::normal_numbers<float>(count * queries * heads * dim, 1),
             k = bench::normal_numbers<float>(count * keys * kv_heads * dim, 2),
             v = bench::normal_numbers<float>(count * keys * kv_heads * dim, 3);
  std::vector<float> out(q.size()), expected(q.size());
  std::vector<Index> query_offsets, key_offsets;
  for (Index s = 0; s <= count; ++s) query_offsets.push_back(s * queries), key_offsets.push_back(s * keys);
  const ab::PackedSequences sequences(query_offsets, key_offsets);
  const bench::Team team = bench::team_of(threads);

  // The same memory as one row of tokens [1, H, S * N, D], as a batch [S, H, N, D], and as the sequences of it.
  auto row = [&](auto* x, Index h, Index length) { return ab::bhsd(x, 1, h, count * length, dim); };
  auto batch = [&](auto* x, Index h, Index length) {
    auto view = row(x, h, length);
    view.batch = count, view.length = length, view.batch_stride = length * dim;
    return view;
  };
  auto one = [&](auto* x, Index h, Index length, Index s) {
    auto view = batch(x, h, length);
    view.data += s * view.batch_stride, view.batch = 1;
    return view;
  };
  ab::Workspace workspaces[3];
  auto call = [&](int which, const auto&... x) {
    threads == 1 ? ab::attention(x..., workspaces[which]) : ab::attention(x..., workspaces[which], team);
  };
  auto as_packed = [&] {
    call(0, row(q.data(), heads, queries), row(k.data(), kv_heads, keys), row(v.data(), kv_heads, keys),
         row(out.data(), heads, queries), sequences);
  };
  auto as_batch = [&] {
    call(1, batch(q.data(), heads, queries), batch(k.data(), kv_heads, keys), batch(v.data(), kv_heads, keys),
         batch(expected.data(), heads, queries));
  };
  auto as_calls = [&] {
    for (Index s = 0; s < count; ++s)
      call(2, one(q.data(), heads, queries, s), one(k.data(), kv_heads, keys, s), one(v.data(), kv_heads, keys, s),
           one(expected.data(), heads, queries, s));
  };
  const std::size_t bytes = k.size() * sizeof(float);
  try {
    as_packed();
    for (const Index s : {Index(0), count - 1})
      bench::check_last_rows(one(q.data(), heads, queries, s), one(k.data(), kv_heads, keys, s),
                             one(v.data(), kv_heads, keys, s),
                             one(static_cast<const float*>(out.data()), heads, queries, s));
    for (const bool batched : {true, false}) {
      batched ? as_batch() : as_calls();
      if (out != expected) throw std::runtime_error("packed sequences are not the same bits as each alone");
    }
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }

  bench::Reads reads({{k.data(), bytes}, {v.data(), bytes}}, threads);
  std::vector<double> of_packed, of_batch, of_calls;
  for (auto _ : state) {
    reads.time();
    of_packed.push_back(bench::seconds(as_packed));
    of_batch.push_back(bench::seconds(as_batch));
    of_calls.push_back(bench::seconds(as_calls));
    state.SetIterationTime(of_packed.back());
  }
  const double time = bench::median(of_packed);
  state.counters["of_reads"] = reads.seconds() / time;
  state.counters["x_batch"] = time / bench::median(of_batch);
  state.counters["x_calls"] = time / bench::median(of_calls);
}

/// A cache of S sequences of N keys, from the same numbers.
template <class Stored>
ab::KvCache<Stored> filled(Index count, Index kv_heads, Index keys, Index dim) {
  ab::KvCache<Stored> cache(count, kv_heads, keys, dim);
  const auto numbers = bench::normal_numbers<float>(kv_heads * (keys + count) * dim, 4);
  for (Index s = 0; s < count; ++s)
    cache.append(s, bench::rows(ab::bhsd(numbers.data(), 1, kv_heads, keys + count, dim), s, keys),
                 bench::rows(ab::bhsd(numbers.data(), 1, kv_heads, keys + count, dim), count - s, keys));
  return cache;
}

/// Sequences [first, first + count) of a contiguous cache.
template <class Stored>
ab::KvView<Stored> sequences(const ab::KvCache<Stored>& cache, Index first, Index count,
                             const std::vector<Index>& lengths) {
  ab::KvView<Stored> x = cache.view();
  for (auto* rows : {&x.keys, &x.values}) rows->data += first * rows->batch_stride, rows->batch = count;
  x.lengths = std::span<const Index>(lengths).first(static_cast<std::size_t>(count));
  return x;
}

template <class Stored, bool mixed>
void cached(benchmark::State& state) {
  constexpr Index heads = 32, kv_heads = 8, dim = 128;
  const Index count = state.range(0), queries = state.range(1), keys = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  std::vector<Index> offsets{0};
  for (Index s = 0; s < count; ++s) offsets.push_back(offsets.back() + (mixed && s > 0 ? 1 : queries));
  const Index all = offsets.back();
  const auto q = bench::normal_numbers<float>(all * heads * dim, 1);
  std::vector<float> out(q.size()), expected(q.size());
  const auto cache = filled<Stored>(count, kv_heads, keys, dim);
  const std::vector<Index> lengths(static_cast<std::size_t>(count), keys);
  const ab::PackedQueries packed(offsets);
  const bench::Team team = bench::team_of(threads);

  // Tokens [first, first + some * n) as a batch [some, H, n, D] of rows [1, all, H, D].
  auto batch = [&](auto* x, Index first, Index some, Index n) {
    auto view = bench::rows(ab::bshd(x, 1, all, heads, dim), first, n);
    view.batch = some, view.batch_stride = n * view.length_stride;
    return view;
  };
  ab::Workspace workspaces[3];
  auto call = [&](int which, const auto& from, const auto& to, const auto& x, const auto&... policies) {
    threads == 1 ? ab::attention(from, x, to, policies..., workspaces[which])
                 : ab::attention(from, x, to, policies..., workspaces[which], team);
  };
  auto as_packed = [&] { call(0, batch(q.data(), 0, 1, all), batch(out.data(), 0, 1, all), cache.view(), packed); };
  const Index first = mixed ? 1 : count;
  auto apart = [&] {
    call(1, batch(q.data(), 0, first, queries), batch(expected.data(), 0, first, queries),
         sequences(cache, 0, first, lengths));
    if (mixed)
      call(2, batch(q.data(), queries, count - 1, 1), batch(expected.data(), queries, count - 1, 1),
           sequences(cache, 1, count - 1, lengths));
  };
  try {
    as_packed();
    if constexpr (std::is_same_v<Stored, float>)
      for (const Index s : {Index(0), count - 1}) {
        const auto x = sequences(cache, s, 1, lengths);
        const Index n = mixed && s > 0 ? 1 : queries, at = offsets[static_cast<std::size_t>(s)];
        bench::check_last_rows<const float>(batch(q.data(), at, 1, n), x.keys, x.values,
                                            batch(static_cast<const float*>(out.data()), at, 1, n));
      }
    apart();
    if (out != expected) throw std::runtime_error("packed queries are not the same bits as each sequence alone");
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  const auto time = bench::run_paired<float>(state, as_packed, apart);
  state.counters[mixed ? "x_two" : "x_batch"] = time.work / time.other;
}

/// Lengths of `count` sequences from 16 to `most`, uniform in the logarithm.
std::vector<Index> unequal_lengths(Index count, Index most) {
  std::mt19937 random(8);
  std::uniform_real_distribution<double> logarithm(std::log(16.0), std::log(static_cast<double>(most) + 1));
  std::vector<Index> lengths;
  for (Index s = 0; s < count; ++s)
    lengths.push_back(std::min(most, static_cast<Index>(std::exp(logarithm(random)))));
  return lengths;
}

/// Pairs of a query and a key that it sees, of sequences with so many keys; each has as many queries, or `fixed` of
/// them if that is not 0.
double visible_pairs(const std::vector<Index>& lengths, Index fixed, bool causal) {
  double pairs = 0;
  for (const Index keys : lengths) {
    const Index queries = fixed > 0 ? fixed : keys;
    // Query i sees the keys up to i, of those that there are.
    pairs += static_cast<double>(causal ? keys * (keys + 1) / 2 + (queries - keys) * keys : queries * keys);
  }
  return pairs;
}

template <bool causal, bool padded>
void unequal(benchmark::State& state) {
  constexpr Index heads = 8, kv_heads = 2, dim = 64, most = 2048;
  const Index count = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  const bench::Team team = bench::team_of(threads);
  const Index fixed = padded ? most : 0;
  std::vector<Index> lengths[2] = {unequal_lengths(count, most), {}};
  const double pairs = visible_pairs(lengths[0], fixed, causal);
  Index equal = 1;
  while (static_cast<double>(count) * visible_pairs({equal}, fixed, causal) < pairs) ++equal;
  lengths[1].assign(lengths[0].size(), equal);

  const auto q = bench::normal_numbers<float>(count * most * heads * dim, 1),
             k = bench::normal_numbers<float>(count * most * kv_heads * dim, 2),
             v = bench::normal_numbers<float>(count * most * kv_heads * dim, 3);
  std::vector<float> out(q.size());
  ab::Workspace workspaces[2];
  auto call = [&](int which, const auto&... x) {
    auto run = [&](const auto&... policies) {
      threads == 1 ? ab::attention(policies..., workspaces[which])
                   : ab::attention(policies..., workspaces[which], team);
    };
    if constexpr (causal)
      run(x..., ab::mask::Causal{});
    else
      run(x...);
  };
  // [S, H, 2048, D], and the same memory as rows of the sequences one after the other [1, H, all, D].
  auto batch = [&](auto* x, Index h) { return ab::bhsd(x, count, h, most, dim); };
  auto row = [&](auto* x, Index h, Index all) { return ab::bhsd(x, 1, h, all, dim); };
  auto work = [&](int which) {
    const std::vector<Index>& x = lengths[which];
    if constexpr (padded) {
      call(which, batch(q.data(), heads), batch(k.data(), kv_heads), batch(v.data(), kv_heads),
           batch(out.data(), heads), ab::mask::KeyLengths(x));
    } else {
      std::vector<Index> offsets{0};
      for (const Index n : x) offsets.push_back(offsets.back() + n);
      const Index all = offsets.back();
      call(which, row(q.data(), heads, all), row(k.data(), kv_heads, all), row(v.data(), kv_heads, all),
           row(out.data(), heads, all), ab::PackedSequences(offsets, offsets));
    }
  };
  auto check = [](const ab::TensorView<const float>& queries, const ab::TensorView<const float>& keys,
                  const ab::TensorView<const float>& values, const ab::TensorView<const float>& result,
                  const auto&... policies) {
    if constexpr (causal)
      bench::check_last_rows<const float>(queries, keys, values, result, ab::mask::Causal{}, policies...);
    else
      bench::check_last_rows<const float>(queries, keys, values, result, policies...);
  };
  try {
    work(0);
    if constexpr (padded) {
      check(batch(q.data(), heads), batch(k.data(), kv_heads), batch(v.data(), kv_heads), batch(out.data(), heads),
            ab::mask::KeyLengths(lengths[0]));
    } else {
      const Index all = std::accumulate(lengths[0].begin(), lengths[0].end(), Index(0));
      Index at = 0;
      for (const Index n : lengths[0]) {
        check(bench::rows(row(q.data(), heads, all), at, n), bench::rows(row(k.data(), kv_heads, all), at, n),
              bench::rows(row(v.data(), kv_heads, all), at, n), bench::rows(row(out.data(), heads, all), at, n));
        at += n;
      }
    }
    work(1);
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  const auto time = bench::run_paired<float>(
      state, [&] { work(0); }, [&] { work(1); });
  state.counters["per_pair"] = (time.work / pairs) / (time.other / visible_pairs(lengths[1], fixed, causal));
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"S", "Nq", "N", "threads"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int threads : bench::thread_counts()) {
    for (const int keys : {128, 512, 1024}) b->Args({64, 1, keys, threads});
    b->Args({16, 4, 128, threads});
    for (const int length : {128, 512}) b->Args({8, length, length, threads});  // prefill: reads limit nothing
  }
}

void short_shapes(benchmark::internal::Benchmark* b) {
  shapes(b);
  for (const int threads : bench::thread_counts())
    for (const int length : {16, 32, 64, 128}) b->Args({64, length, length, threads});
}

void mixed_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"S", "Nq", "N", "threads"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int threads : bench::thread_counts()) {
    for (const int queries : {32, 256}) b->Args({33, queries, 512, threads});
    b->Args({17, 256, 1024, threads});
  }
}

void unequal_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"S", "threads"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const int threads : bench::thread_counts()) b->Args({16, threads});
}

BENCHMARK(packed)->Apply(short_shapes);
BENCHMARK(unequal<false, false>)->Name("unequal")->Apply(unequal_shapes);
BENCHMARK(unequal<true, false>)->Name("unequal, causal")->Apply(unequal_shapes);
BENCHMARK(unequal<false, true>)->Name("unequal, KeyLengths")->Apply(unequal_shapes);
BENCHMARK(unequal<true, true>)->Name("unequal, KeyLengths, causal")->Apply(unequal_shapes);
BENCHMARK(cached<float, false>)->Name("cached<float>")->Apply(shapes);
BENCHMARK(cached<ab::bf16, false>)->Name("cached<bf16>")->Apply(shapes);
BENCHMARK(cached<float, true>)->Name("mixed<float>")->Apply(mixed_shapes);
BENCHMARK(cached<ab::bf16, true>)->Name("mixed<bf16>")->Apply(mixed_shapes);

}  // namespace

BENCHMARK_MAIN();
