#pragma once
// Decoding, attention of few queries to many keys: the division of the work, and the merge of what the splits found.
//
// What limits it is reading the keys and values, once for all queries of all heads that share them.

#include <atomic>
#include <cstddef>
#include <new>
#include <utility>

#include "attention_balancer/attention/detail/decode_mass.hpp"
#include "attention_balancer/core/workspace.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Runs a decoding call: as Worker.
template <Scalar T, class Stored>
class Decoder : DecodeMass<T, Stored> {
  using Base = DecodeMass<T, Stored>;
  using Base::call_, Base::x_, Base::evidence_, Base::sizes_, Base::groups_, Base::first_held_, Base::with_mass_;
  using Base::leaves_out, Base::splits_of, Base::keys_of, Base::problem_of, Base::row, Base::held, Base::record;
  using Base::pack_keys_, Base::pack_values_, Base::merge_at_once_, Base::splits_, Base::slots_, Base::slot_bytes_;
  using Base::slot_memory_, Base::left_, Base::dominant_;
  using Base::states, Base::kept, Base::layout, Base::leave_out_dominant, Base::add_mass;
  using typename Base::Row;

 public:
  /// Reserves the memory; nothing is written before run.
  Decoder(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence, Workspace& workspace,
          Index concurrency)
      : Base(call, x, evidence, call.problem.batch * call.problem.kv_heads, concurrency) {
    layout(workspace.reserve(static_cast<std::size_t>(bytes())));
  }

  /// For groups one by one, in memory of the caller: bytes() at an address aligned to 64.
  Decoder(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence)
      : Base(call, x, evidence, Index(1), Index(1)) {}

  Index bytes() { return layout(nullptr); }

  EvidenceShape evidence_shape() const noexcept {
    const Problem& p = call_.problem;
    return {.batch = p.batch, .heads = p.heads, .queries = p.queries, .keys = p.keys, .with_mass = with_mass_,
            .statistic = call_.statistic, .same_exposure = !call_.policies.has_masks, .overwritten = true};
  }

  template <class Run>
  void run(const Run& executor) {
    if (evidence_ != nullptr) EvidenceAccess::reshape(*evidence_, evidence_shape());
    for (Index g = 0; g < groups_; ++g) new (left_ + g) std::atomic<Index>(splits_of(g).count);
    share(executor, groups_ * splits_,
          [this](Index item, const DecodeScratch<T, Stored>& scratch, Index following) {
            const Index group = item / splits_, split = item % splits_;
            if (split >= splits_of(group).count) return;
            attend(group, split, scratch, keys_of_item(following));
            if (left_[group].fetch_sub(1, std::memory_order_acq_rel) == 1 && merge_at_once_) finish(group, scratch);
          });
    if (!merge_at_once_) {
      share(executor, groups_,
            [this](Index group, const DecodeScratch<T, Stored>& scratch, Index) { merge(group, scratch); });
      if (with_mass_)
        share(executor, groups_ * splits_, [this](Index item, const DecodeScratch<T, Stored>& scratch, Index) {
          if (item % splits_ < splits_of(item / splits_).count) add_mass(item / splits_, item % splits_, scratch);
        });
    }
    for (Index g = 0; g < groups_; ++g) total(g);
  }

  using Following = typename SplitWork<T, Stored>::Following;

  /// All of one group, where the evidence has its shape already. `following`: the keys of the next one.
  void run_group_in(std::byte* memory, Index group, const Following& following) noexcept {
    layout(memory);
    first_held_ = group;
    const DecodeScratch<T, Stored> scratch = scratch_in(slot_memory_);
    const Index count = splits_of(group).count;
    for (Index s = 0; s < count; ++s)
      attend(group, s, scratch, s + 1 < count ? keys_of_item(group * splits_ + s + 1) : following);
    finish(group, scratch);
    total(group);
  }

 private:
  /// f(item, scratch, the item that the slot is likely to take next) for all items, taken in order, a few
  /// neighbours at a time, by whichever slot is free: what follows in memory is then often for the same slot.
  template <class Run, class F>
  void share(const Run& executor, Index items, F f) {
    std::atomic<Index> next{0};
    const Index some = slots_ == 1 ? items : std::max(Index(1), items / (8 * slots_));
    executor.for_each(std::min(slots_, items), [&](Index slot) {
      const DecodeScratch<T, Stored> scratch = scratch_in(slot_memory_ + slot * slot_bytes_);
      for (Index first; (first = next.fetch_add(some, std::memory_order_relaxed)) < items;) {
        const Index end = std::min(first + some, items);
        for (Index item = first; item < end; ++item)
          f(item, scratch, item + 1 < end ? item + 1 : next.load(std::memory_order_relaxed));
      }
    });
  }

  DecodeScratch<T, Stored> scratch_in(std::byte* memory) const noexcept {
    Index used = 0;
    DecodeScratch<T, Stored> scratch;
    scratch.carve(sizes_, call_.problem, pack_keys_, pack_values_, splits_,
                  [&](auto*& pointer, Index rows, Index columns) {
                    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
                    used += (rows * columns * static_cast<Index>(sizeof(*pointer)) + 63) / 64 * 64;
                  });
    return scratch;
  }

  /// The same of an item of run; none past the last one.
  Following keys_of_item(Index item) const noexcept {
    const Index group = item / splits_, kv_heads = call_.problem.kv_heads;
    if (group >= groups_) return {};
    const auto keys = keys_of(group, item % splits_);
    return {&x_, group / kv_heads, group % kv_heads, keys.first, keys.second};
  }

  ATTENTION_BALANCER_NOINLINE void attend(Index group, Index split, const DecodeScratch<T, Stored>& scratch,
                                          const Following& following) noexcept {
    const Problem p = problem_of(group);
    const auto keys = keys_of(group, split);
    SplitWork<T, Stored>(call_, x_, p, group / p.kv_heads, group % p.kv_heads, scratch, record(group, split),
                         kept(group))
        .run(keys.first, keys.second, following);
  }

  /// What a group's splits found, together.
  void finish(Index group, const DecodeScratch<T, Stored>& scratch) noexcept {
    merge(group, scratch);
    if (with_mass_)
      for (Index s = 0; s < splits_of(group).count; ++s) add_mass(group, s, scratch);
  }

  ATTENTION_BALANCER_NOINLINE void merge(Index group, const DecodeScratch<T, Stored>& scratch) noexcept {
    using S = simd::Pack<T>;
    const Problem& p = call_.problem;
    const Index count = splits_of(group).count;
    for (Index r = 0; r < sizes_.rows; ++r) {
      const Row at = row(group, r);
      auto part = [&](Index s) -> const RowSoftmax<T>& { return states(group, s)[r]; };
      const T sink = call_.sinks != nullptr ? call_.sink_logit(call_.sinks, at.head) : -infinity<T>;
      RowResult<T>& result = this->result(group, r) = merge_row(count, part, sink, scratch.factors);
      if (evidence_ != nullptr) {
        EvidenceAccess::lse(*evidence_, at.in_evidence)[at.query] = result.lse;
        EvidenceAccess::entropy(*evidence_, at.in_evidence)[at.query] = result.entropy;
      }
      if (p.value_dim == 0) continue;
      T* const output = this->output(group, r);
      for (Index c = 0; c < sizes_.value_dim; c += simd::lanes<T>) {
        S sum(T(0));
        for (Index s = 0; s < count; ++s)
          sum = simd::fma(simd::load_aligned<S>(record(group, s) + r * sizes_.value_dim + c), S(scratch.factors[s]),
                          sum);
        simd::store_aligned(output + c, sum);
      }
      T* to = &call_.out(at.batch, at.head, at.query, 0);
      for (Index c = 0; c < p.value_dim; ++c) to[c * call_.out.dim_stride] = output[c];
      if (leaves_out()) dominant_[held(group, r)] = leave_out_dominant(group, r, sink, scratch);
    }
  }

  /// What is counted by row.
  void total(Index group) noexcept {
    if (evidence_ == nullptr) return;
    for (Index r = 0; r < sizes_.rows; ++r) {
      const Row at = row(group, r);
      const RowResult<T>& result = this->result(group, r);
      if (result.empty) ++*EvidenceAccess::empty_rows(*evidence_, at.in_evidence);
      if (!with_mass_) continue;
      const T u = call_.weights.template weight<T>(at.query, call_.problem.queries);
      T& sink_mass = *EvidenceAccess::sink_mass(*evidence_, at.in_evidence);
      if (u != T(0)) sink_mass = simd::fma(u, result.sink, sink_mass);
    }
  }
};

/// Keys and values of a call on plain tensors.
template <Scalar T>
KvView<T> kv_view_of(const Call<T>& call) noexcept {
  KvView<T> x;
  x.keys = call.k;
  x.values = call.v;
  return x;
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
