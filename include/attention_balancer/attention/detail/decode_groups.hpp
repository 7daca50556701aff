#pragma once
// The groups of a decoding call, the queries of all heads that share a key head: their rows, their splits, and where in
// memory lies what is found of them.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <limits>
#include <new>
#include <utility>

#include "attention_balancer/attention/detail/split.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// What the passes of Decoder share.
template <Scalar T, class Stored>
class DecodeGroups {
 protected:
  /// `held`: groups that are in memory at a time.
  DecodeGroups(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence, Index held, Index concurrency)
      : call_(call),
        x_(x),
        evidence_(evidence),
        sizes_(call.problem, call.integer_products),
        groups_(call.problem.batch * call.problem.kv_heads),
        held_(held),
        with_mass_(evidence != nullptr && call.weights.kind() != QueryWeights::Kind::none),
        pack_keys_(x.keys.dim_stride != 1 && x.keys.dim > 1),
        pack_values_(x.values.dim_stride != 1 && x.values.dim > 1) {
    const Problem& p = call.problem;
    for (Index b = 0; b < p.batch; ++b) splits_ = std::max(splits_, Splits(x.length(b)).count);
    slots_ = std::clamp(concurrency, Index(1), groups_ * splits_);
    // A worker that finishes the last split of a group merges it while the scores are near; but with few groups the
    // others would stand idle meanwhile.
    merge_at_once_ = slots_ == 1 || groups_ >= 4 * slots_;
  }

  /// Sets the pointers from `memory` on, aligned to 64 bytes, if it is not null; returns the number of bytes used.
  Index layout(std::byte* memory) {
    Index used = 0;
    auto take = [&](auto*& pointer, Index rows, Index columns) {
      const Index size = static_cast<Index>(sizeof(*pointer));
      if (multiply_overflows(rows, columns) || multiply_overflows(rows * columns, size) ||
          rows * columns * size > std::numeric_limits<Index>::max() / 2 - used)
        throw std::bad_alloc();
      if (memory != nullptr) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
      used += (rows * columns * size + 63) / 64 * 64;
    };
    slot_bytes_ = 0;
    DecodeScratch<T, Stored> scratch;
    scratch.carve(sizes_, call_.problem, pack_keys_, pack_values_, splits_, take);
    slot_bytes_ = used;
    used = 0;
    take(slot_memory_, slots_, slot_bytes_);
    take(records_, held_ * splits_, sizes_.record());
    take(outputs_, held_ * sizes_.rows, sizes_.value_dim);
    take(results_, held_, sizes_.rows);
    const Index rows = held_ * sizes_.rows, keys = DecodeSizes<T>::padded(call_.problem.keys);
    take(weights_, with_mass_ && call_.problem.queries > 1 ? rows : 0, keys);
    take(tops_, with_mass_ ? rows : 0, top_stride());
    take(scores_, leaves_out() ? rows : 0, keys);
    take(left_, Index(1), held_);
    take(dominant_, leaves_out() ? held_ : 0, sizes_.rows);
    return used;
  }

  bool leaves_out() const noexcept { return with_mass_ && call_.statistic == evidence::Kind::leave_one_out; }

  Splits splits_of(Index group) const noexcept { return Splits(x_.length(group / call_.problem.kv_heads)); }

  Problem problem_of(Index group) const noexcept {
    Problem p = call_.problem;
    p.keys = x_.length(group / p.kv_heads);
    return p;
  }

  /// The query head and the query of a row of a group, and the head's place in the evidence.
  struct Row {
    Index batch, head, query, in_evidence;
  };
  Row row(Index group, Index r) const noexcept {
    const Problem& p = call_.problem;
    const Index batch = group / p.kv_heads, head = group % p.kv_heads * (p.heads / p.kv_heads) + r / p.queries;
    return {batch, head, r % p.queries, batch * p.heads + head};
  }

  T* record(Index group, Index split) const noexcept {
    return records_ + ((group - first_held_) * splits_ + split) * sizes_.record();
  }
  const RowSoftmax<T>* states(Index group, Index split) const noexcept {
    return reinterpret_cast<const RowSoftmax<T>*>(record(group, split) + sizes_.rows * sizes_.value_dim);
  }

  /// Row r of a group among those in memory.
  Index held(Index group, Index r) const noexcept { return (group - first_held_) * sizes_.rows + r; }
  T* output(Index group, Index r) const noexcept { return outputs_ + held(group, r) * sizes_.value_dim; }
  RowResult<T>& result(Index group, Index r) const noexcept { return results_[held(group, r)]; }

  /// Where the weights of a group's rows are kept until the mass is known: those of single queries in the place of the
  /// mass.
  KeptRows<T> kept(Index group) const noexcept {
    if (!with_mass_) return {};
    const Index keys = call_.problem.keys, padded = DecodeSizes<T>::padded(keys), first = held(group, 0);
    KeptRows<T> x{.tops = tops_ + first * top_stride(), .top_stride = top_stride()};
    if (call_.problem.queries > 1)
      x.weights = weights_ + first * padded, x.stride = padded;
    else
      x.weights = EvidenceAccess::mass(*evidence_, row(group, 0).in_evidence), x.stride = keys;
    if (leaves_out()) x.scores = scores_ + first * padded, x.score_stride = padded;
    return x;
  }

  /// Tops are read in whole packs, from any of them on.
  Index top_stride() const noexcept {
    return DecodeSizes<T>::padded((call_.problem.keys + block_keys - 1) / block_keys) + 16;
  }

  /// The keys of a split; none for what is no split.
  std::pair<Index, Index> keys_of(Index group, Index split) const noexcept {
    const Index keys = x_.length(group / call_.problem.kv_heads), length = Splits(keys).length;
    return {std::min(split * length, keys), std::min((split + 1) * length, keys)};
  }

  /// A key that takes nearly all of a row, and how much the output changes without it, squared; -1 if there is none.
  struct Dominant {
    Index key = -1;
    T change = T(0);
  };

  const Call<T>& call_;
  const KvView<Stored>& x_;
  Evidence<T>* evidence_;
  const DecodeSizes<T> sizes_;
  Index groups_, held_, first_held_ = 0;  // groups, those in memory, the first of these
  bool with_mass_, pack_keys_, pack_values_, merge_at_once_ = true;
  Index splits_ = 1, slots_ = 1, slot_bytes_ = 0;
  std::byte* slot_memory_ = nullptr;
  T *records_ = nullptr, *outputs_ = nullptr;
  T *weights_ = nullptr, *tops_ = nullptr, *scores_ = nullptr;  // as KeptRows
  RowResult<T>* results_ = nullptr;
  std::atomic<Index>* left_ = nullptr;
  Dominant* dominant_ = nullptr;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
