#pragma once
// Many queries to keys and values in a cache: each sequence is laid out once as rows of the scalar, in memory
// linear in its length, and goes through the kernel of plain tensors. Reading and converting it costs as much as a
// few queries.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <new>

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

/// Copies what was observed of one sequence to its place in the evidence of all.
template <Scalar T>
void place_evidence(Evidence<T>& one, Evidence<T>& all, Index batch) {
  for (Index h = 0; h < one.heads(); ++h) {
    const Index row = batch * one.heads() + h;
    auto copy = [](std::span<const T> from, T* to) { std::copy(from.begin(), from.end(), to); };
    copy(one.lse(0, h), EvidenceAccess::lse(all, row));
    copy(one.entropy(0, h), EvidenceAccess::entropy(all, row));
    copy(one.mass(0, h), EvidenceAccess::mass(all, row));
    copy(one.exposure(0, h), EvidenceAccess::exposure(all, row));
    if (one.has_mass() && one.statistic_kind() != evidence::Kind::mass)
      copy(one.statistic(0, h), EvidenceAccess::statistic(all, row));
    *EvidenceAccess::sink_mass(all, row) = one.sink_mass(0, h);
    *EvidenceAccess::empty_rows(all, row) = one.empty_rows(0, h);
  }
}

/// Runs a call of many queries on a cache: all sequences at once where they have one length, else one by one.
template <Scalar T, class Stored, class Run>
void run_prefill(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence, Workspace& workspace,
                 const Run& executor, Index concurrency) {
  const Problem& p = call.problem;
  bool uniform = true;
  for (Index b = 0; b < p.batch; ++b) uniform = uniform && x.length(b) == p.keys;
  const Index together = uniform ? p.batch : 1;
  const bool in_place = std::is_same_v<Stored, T> && !x.block_table.given();
  // The sizes were checked to stay below 2^43 each.
  const Index width = p.dim + p.value_dim, rows = in_place ? 0 : p.keys;
  if (multiply_overflows(together * p.kv_heads, rows) || multiply_overflows(together * p.kv_heads * rows, width) ||
      together * p.kv_heads * rows * width > std::numeric_limits<Index>::max() / 64)
    throw std::bad_alloc();
  T* const dense = reinterpret_cast<T*>(
      workspace.reserve_beside(static_cast<std::size_t>(together * p.kv_heads * rows * width) * sizeof(T)));

  auto run = [&](Index first, Evidence<T>* of_these) {
    Call<T> one = call;
    const Index keys = x.length(first);
    one.problem.batch = one.q.batch = one.out.batch = together;
    one.problem.keys = keys;
    one.q.data = call.q.data + first * call.q.batch_stride;
    if (p.value_dim > 0) one.out.data = call.out.data + first * call.out.batch_stride;
    one.first_batch = call.first_batch + first;
    T* const values = dense + together * p.kv_heads * keys * p.dim;
    one.k = bhsd(static_cast<const T*>(dense), together, p.kv_heads, keys, p.dim);
    one.v = bhsd(static_cast<const T*>(values), together, p.kv_heads, keys, p.value_dim);
    if constexpr (std::is_same_v<Stored, T>) {
      if (in_place) {
        auto these = [&](TensorView<const T> all) {
          if (all.data != nullptr) all.data += first * all.batch_stride;
          all.batch = together, all.length = keys;
          return all;
        };
        one.k = these(x.keys), one.v = these(x.values);
      }
    }
    if (!in_place) {
      constexpr Index some = 256;
      const Index pieces = (keys + some - 1) / some, items = together * p.kv_heads * pieces;
      std::atomic<Index> next{0};
      executor.for_each(std::min(concurrency, items), [&](Index) {
        for (Index i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
          const Index row = i / pieces, head = row % p.kv_heads, b = first + row / p.kv_heads;
          const Index begin = i % pieces * some, end = std::min(begin + some, keys);
          const float* channels = x.channel_scales == nullptr ? nullptr : x.channel_scales + head * p.dim;
          expand_rows<T>(x, x.keys, x.key_scales, channels, b, head, begin, end,
                         dense + (row * keys + begin) * p.dim);
          if (p.value_dim > 0)
            expand_rows<T>(x, x.values, x.value_scales, nullptr, b, head, begin, end,
                           values + (row * keys + begin) * p.value_dim);
        }
      });
    }
    Worker<T>(one, of_these, workspace, concurrency).run(executor);
  };
  if (uniform) return run(0, evidence);

  // All memory first, so that what throws has written nothing.
  Evidence<T> of_one;
  Call<T> longest = call;
  longest.problem.batch = 1;
  Worker<T>(longest, evidence == nullptr ? nullptr : &of_one, workspace, concurrency);
  if (evidence != nullptr)
    EvidenceAccess::reshape(of_one, 1, p.heads, p.queries, p.keys, call.weights.kind() != QueryWeights::Kind::none,
                            call.statistic);
  if (evidence != nullptr)
    EvidenceAccess::reshape(*evidence, p.batch, p.heads, p.queries, p.keys,
                            call.weights.kind() != QueryWeights::Kind::none, call.statistic);
  for (Index b = 0; b < p.batch; ++b) {
    run(b, evidence == nullptr ? nullptr : &of_one);
    if (evidence != nullptr) place_evidence(of_one, *evidence, b);
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
