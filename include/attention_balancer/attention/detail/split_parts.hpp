#pragma once
// What the ways to walk a split of decoding share: where its numbers lie, what the policies make of the scores of a
// row, and what is kept of it.

#include <algorithm>

#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/detail/decode_scratch.hpp"
#include "attention_balancer/attention/detail/layout.hpp"
#include "attention_balancer/cache/kv_view.hpp"
#include "attention_balancer/softmax/row_softmax.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// One split of one group.
template <Scalar T, class Stored>
class SplitParts {
 public:
  /// `record` is written, and what `kept` names.
  SplitParts(const Call<T>& call, const KvView<Stored>& x, const Problem& problem, Index batch, Index kv_head,
             const DecodeScratch<T, Stored>& scratch, T* record, const KeptRows<T>& kept) noexcept
      : call_(call),
        x_(x),
        p_(problem),
        sizes_(problem, call.integer_products),
        batch_(batch),
        kv_head_(kv_head),
        group_(p_.heads / p_.kv_heads),
        s_(scratch),
        output_(record),
        states_(reinterpret_cast<RowSoftmax<T>*>(record + sizes_.rows * sizes_.value_dim)),
        kept_(kept) {}

 protected:
  static constexpr int n = simd::lanes<T>;

  void load_queries() noexcept {
    const TensorView<const T>& q = call_.q;
    const float* channel = x_.channel_scales == nullptr ? nullptr : x_.channel_scales + kv_head_ * p_.dim;
    for (Index r = 0; r < sizes_.rows; ++r) {
      const T* from = &q(batch_, kv_head_ * group_ + r / p_.queries, r % p_.queries, 0);
      T* to = s_.queries + r * sizes_.dim;
      for (Index c = 0; c < p_.dim; ++c) to[c] = from[c * q.dim_stride] * call_.scale;
      if (channel != nullptr)
        for (Index c = 0; c < p_.dim; ++c) to[c] *= static_cast<T>(channel[c]);
      std::fill(to + p_.dim, to + sizes_.dim, T(0));
    }
  }

  /// Addresses of the rows [begin, end) of keys or values, the last one repeated table_slack times.
  static void locate(const KvView<Stored>& x, const TensorView<const Stored>& view, Index batch, Index kv_head,
                     Index begin, Index end, const Stored** table, Stored* packed) noexcept {
    const Index dim = view.dim;
    for_runs(x, view, batch, kv_head, begin, end, [&](const Stored* row, Index first, Index count) {
      Index stride = view.length_stride;
      if constexpr (std::is_same_v<Stored, T>)
        if (view.dim_stride != 1 && dim > 1) {
          Stored* to = packed + (first - begin) * dim;
          copy_matrix(to, dim, Index(1), row, stride, view.dim_stride, count, dim);
          row = to, stride = dim;
        }
      // Not j * stride: there is no product of packs of 64-bit integers before AVX-512.
      for (Index j = 0, at = 0; j < count; ++j, at += stride) table[first - begin + j] = row + at;
    });
    for (Index j = end - begin; j < end - begin + table_slack; ++j) table[j] = table[end - begin - 1];
  }

  /// Scales of the rows [begin, end).
  void load_scales(const TensorView<const float>& view, Index begin, Index end, T* scales) const noexcept {
    for_runs(x_, view, batch_, kv_head_, begin, end, [&](const float* from, Index first, Index count) {
      for (Index j = 0; j < count; ++j) scales[first - begin + j] = static_cast<T>(from[j * view.length_stride]);
    });
    std::fill_n(scales + (end - begin), table_slack, T(0));
  }

  /// What the masks leave of a block, by head; whether anything is left.
  bool cover(Index begin, Index end) noexcept {
    if (!call_.policies.has_masks) return true;
    bool any = false;
    for (Index g = 0; g < group_; ++g) {
      const auto coverage = call_.policies.classify(
          call_.policies.policies,
          {0, p_.queries, begin, end, call_.first_batch + batch_, kv_head_ * group_ + g, p_.queries, p_.keys});
      s_.coverage[g] = static_cast<unsigned char>(coverage);
      any = any || coverage != mask::Coverage::skip;
    }
    return any;
  }

  mask::Coverage coverage(Index row) const noexcept {
    return call_.policies.has_masks ? static_cast<mask::Coverage>(s_.coverage[row / p_.queries])
                                    : mask::Coverage::full;
  }

  /// Scores of a row become what the policies make of them.
  void bend_row(T* row, Index r, Index from, Index to) noexcept {
    const auto covered = coverage(r);
    if (covered == mask::Coverage::skip) {
      std::fill_n(row, to - from, -infinity<T>);
      return;
    }
    const bool partial = covered == mask::Coverage::partial;
    if (partial || call_.policies.has_modifiers)
      call_.policies.bend_keys(
          call_.policies.policies, row,
          {&p_, call_.first_batch + batch_, kv_head_ * group_ + r / p_.queries, r % p_.queries, from, to}, partial);
  }

  /// Of a block that no row sees.
  void keep_nothing(Index from, Index count) noexcept {
    for (Index r = 0; r < sizes_.rows; ++r) {
      if (kept_.weights != nullptr) {
        std::fill_n(kept_.weights + r * kept_.stride + from, count, T(-0.0));
        kept_.tops[r * kept_.top_stride + from / block_keys] = -infinity<T>;
      }
      if (kept_.scores != nullptr) std::fill_n(kept_.scores + r * kept_.score_stride + from, count, -infinity<T>);
    }
  }

  void shrink_output(Index r, T shrink) noexcept {
    if (shrink == T(1)) return;
    T* output = output_ + r * sizes_.value_dim;
    for (Index c = 0; c < sizes_.value_dim; ++c) output[c] *= shrink;
  }

  /// output += weights V for rows of the strip, without the keys that they do not see: the spare strip has their
  /// scores.
  ATTENTION_BALANCER_NOINLINE void add_guarded(Index first, Index rows, Index count) noexcept {
    constexpr Index stride = DecodeSizes<T>::strip;
    for (Index r = first; r < first + rows; ++r)
      for (Index j = 0; j < count; ++j)
        if (s_.spare[r * stride + j] != -infinity<T>)
          value_rows<T, Stored, 1>(s_.strip + r * stride + j, stride, s_.values + j, 1, p_.value_dim,
                                   output_ + r * sizes_.value_dim, sizes_.value_dim, s_.values + j);
  }

  const Call<T>& call_;
  const KvView<Stored>& x_;
  const Problem& p_;
  const DecodeSizes<T> sizes_;
  const Index batch_, kv_head_, group_;
  const DecodeScratch<T, Stored>& s_;
  T* const output_;
  RowSoftmax<T>* const states_;
  const KeptRows<T> kept_;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
