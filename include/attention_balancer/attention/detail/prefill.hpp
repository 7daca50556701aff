#pragma once
// Many queries to keys and values in a cache: the kernel of plain tensors has a block of their rows converted when it
// first needs them, and each worker keeps those of the head that it is at, in memory linear in the length. Reading and
// converting them costs as much as a few queries.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>

#include "attention_balancer/attention/detail/amx.hpp"
#include "attention_balancer/attention/detail/pairs.hpp"
#include "attention_balancer/attention/forward.hpp"
#include "attention_balancer/cache/kv_view.hpp"
#include "attention_balancer/simd/convert.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// to [end - begin, D] = the rows [begin, end) of a sequence, times their scales and those of the channels if not
/// null.
template <Scalar T, class Stored>
ATTENTION_BALANCER_NOINLINE void expand_rows(const KvView<Stored>& x, const TensorView<const Stored>& view,
                                             const TensorView<const float>& scales,
                                             [[maybe_unused]] const float* channels, Index b, Index head,
                                             Index begin, Index end, T* to) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const Index dim = view.dim, whole = dim / n * n;
  const int left = static_cast<int>(dim - whole);
  alignas(64) T last[n];
  for_runs(x, view, b, head, begin, end, [&](const Stored* row, Index first, Index count) {
    const float* scale = nullptr;
    if (scales.data != nullptr)
      for_runs(x, scales, b, head, first, first + 1, [&](const float* at, Index, Index) { scale = at; });
    for (Index j = 0; j < count; ++j, row += view.length_stride) {
      T* const out = to + (first - begin + j) * dim;
      const S factor(scale == nullptr ? T(1) : static_cast<T>(scale[j * scales.length_stride]));
      for (Index c = 0; c < whole; c += n) {
        S value = simd::load_as<S>(row + c);
        if (scale != nullptr) value = value * factor;
        if constexpr (std::is_same_v<Stored, std::int8_t>)
          if (channels != nullptr) value = value * simd::load_as<S>(channels + c);
        simd::store(out + c, value);
      }
      if (left > 0) {
        S value = simd::load_first_as<S>(row + whole, left);
        if (scale != nullptr) value = value * factor;
        if constexpr (std::is_same_v<Stored, std::int8_t>)
          if (channels != nullptr) value = value * simd::load_first_as<S>(channels + whole, left);
        simd::store_aligned(last, value);
        std::copy_n(last, left, out + whole);
      }
    }
  });
}

/// The sequences of a cache from `first` on, as a RowSource.
template <Scalar T, class Stored>
struct CacheRows {
  const KvView<Stored>& x;
  Index first;

  void load(bool values, Index batch, Index kv_head, Index begin, Index end, T* to) const noexcept {
    const float* channels =
        x.channel_scales == nullptr || values ? nullptr : x.channel_scales + kv_head * x.keys.dim;
    expand_rows<T>(x, values ? x.values : x.keys, values ? x.value_scales : x.key_scales, channels, first + batch,
                   kv_head, begin, end, to);
  }

  void load_pairs(bool values, Index batch, Index kv_head, Index begin, Index end, T* to) const noexcept {
    values ? load_value_pairs(x, first + batch, kv_head, begin, end, to)
           : load_key_pairs(x, first + batch, kv_head, begin, end, to);
  }

#if defined(ATTENTION_BALANCER_AMX)
  void load_for_amx(bool values, Index batch, Index kv_head, Index begin, Index end, T* to) const noexcept {
    values ? load_values_for_amx(x, first + batch, kv_head, begin, end, to)
           : load_keys_for_amx(x, first + batch, kv_head, begin, end, to);
  }
#endif

  void ask(bool values, Index batch, Index kv_head, Index begin, Index end) const noexcept {
    const TensorView<const Stored>& view = values ? x.values : x.keys;
    for_runs(x, view, first + batch, kv_head, begin, end, [&](const Stored* row, Index, Index count) {
      prefetch_rows(row, view.length_stride, count, view.dim);
    });
  }

  /// `pairs`: for products of bf16, if the machine has them and they are the faster ones.
  RowSource<T> source([[maybe_unused]] bool pairs) const noexcept {
    RowSource<T> source;
    source.cache = this;
    source.load = loading<&CacheRows::load>;
    source.ask = [](const void* cache, bool values, Index batch, Index kv_head, Index begin, Index end) {
      static_cast<const CacheRows*>(cache)->ask(values, batch, kv_head, begin, end);
    };
    if constexpr (simd::has_bf16_products && std::is_same_v<Stored, bf16>)
      if (pairs) {
#if defined(ATTENTION_BALANCER_AMX)
        source.pairs = amx_products();
        if (source.pairs != nullptr) {
          source.load = loading<&CacheRows::load_for_amx>;
          return source;
        }
#endif
        // A product of pairs takes Golden Cove two cycles, and two of floats one.
#if !defined(ATTENTION_BALANCER_GOLDEN_COVE)
        source.pairs = pair_products();
        source.load = loading<&CacheRows::load_pairs>;
#endif
      }
    return source;
  }

 private:
  template <void (CacheRows::*Load)(bool, Index, Index, Index, Index, T*) const noexcept>
  static void loading(const void* cache, bool values, Index batch, Index kv_head, Index begin, Index end, T* to) {
    (static_cast<const CacheRows*>(cache)->*Load)(values, batch, kv_head, begin, end, to);
  }
};

/// Gives a call its keys and values, of the sequences from rows.first on: where they lie, or as `rows` loads them,
/// which must outlive it. `pairs`: for products of bf16, if the machine has them.
template <Scalar T, class Stored>
void take_rows(Call<T>& call, const CacheRows<T, Stored>& rows, bool pairs) noexcept {
  const Problem& p = call.problem;
  call.k = bhsd(static_cast<const T*>(nullptr), p.batch, p.kv_heads, p.keys, p.dim);
  call.v = bhsd(static_cast<const T*>(nullptr), p.batch, p.kv_heads, p.keys, p.value_dim);
  call.source = rows.source(pairs);
  if constexpr (std::is_same_v<Stored, T>)
    if (!rows.x.block_table.given()) {
      auto these = [&](TensorView<const T> all) {
        if (all.data != nullptr) all.data += rows.first * all.batch_stride;
        all.batch = p.batch, all.length = p.keys;
        return all;
      };
      call.k = these(rows.x.keys), call.v = these(rows.x.values), call.source = {};
    }
}

/// Throws std::bad_alloc if the rows that a worker keeps of a head cannot be counted in bytes: what shares memory in
/// the cache does not there. Sizes were checked to stay below 2^43 each.
inline void check_kept_rows(const Problem& p) {
  constexpr Index padding = 64;  // more than pairs are padded with
  const Index keys = p.keys + padding, features = p.dim + p.value_dim + padding;
  if (multiply_overflows(keys, features) || keys * features > std::numeric_limits<Index>::max() / 64)
    throw std::bad_alloc();
}

/// Runs a call of many queries on a cache: all sequences at once where they have one length, else one by one.
/// `pairs`: with products of bf16, if the machine has them.
template <Scalar T, class Stored, class Run>
void run_prefill(const Call<T>& call, const KvView<Stored>& x, bool pairs, Evidence<T>* evidence,
                 Workspace& workspace, const Run& executor, Index concurrency) {
  const Problem& p = call.problem;
  bool uniform = true;
  for (Index b = 0; b < p.batch; ++b) uniform = uniform && x.length(b) == p.keys;
  const Index together = uniform ? p.batch : 1;
  check_kept_rows(p);

  // The call of the sequences from rows.first on.
  auto call_of = [&](const CacheRows<T, Stored>& rows, Index keys) {
    const Index first = rows.first;
    Call<T> one = call;
    one.problem.batch = one.q.batch = one.out.batch = together;
    one.problem.keys = keys;
    one.q.data = call.q.data + first * call.q.batch_stride;
    if (p.value_dim > 0) one.out.data = call.out.data + first * call.out.batch_stride;
    one.first_batch = call.first_batch + first;
    take_rows(one, rows, pairs);
    return one;
  };
  auto run = [&](Index first) {
    const CacheRows<T, Stored> rows{x, first};
    const Call<T> one = call_of(rows, x.length(first));
    Worker<T>(one, evidence, workspace, concurrency, first * p.heads).run_reshaped(executor);
  };

  // All memory first, so that what throws has written nothing.
  const CacheRows<T, Stored> rows{x, 0};
  const Call<T> longest = call_of(rows, p.keys);
  Worker<T>(longest, evidence, workspace, concurrency);
  Worker<T>(call, evidence).reshape_evidence();
  for (Index b = 0; b < p.batch; b += together) run(b);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
