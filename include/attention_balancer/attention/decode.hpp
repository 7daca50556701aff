#pragma once
// Decoding, attention of few queries to many keys: the division of the work, the merge of what the splits found,
// and the evidence.
//
// What limits it is reading the keys and values, once for all queries of all heads that share them.

#include <atomic>
#include <cstddef>
#include <limits>
#include <new>
#include <utility>

#include "attention_balancer/attention/detail/split.hpp"
#include "attention_balancer/core/workspace.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Runs a decoding call: as Worker.
template <Scalar T, class Stored>
class Decoder {
 public:
  /// Reserves the memory; nothing is written before run.
  Decoder(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence, Workspace& workspace,
          Index concurrency)
      : Decoder(call, x, evidence, call.problem.batch * call.problem.kv_heads, concurrency) {
    layout(workspace.reserve(static_cast<std::size_t>(bytes())));
  }

  /// For groups one by one, in memory of the caller: bytes() at an address aligned to 64.
  Decoder(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence)
      : Decoder(call, x, evidence, Index(1), Index(1)) {}

  Index bytes() { return layout(nullptr); }

  EvidenceShape evidence_shape() const noexcept {
    const Problem& p = call_.problem;
    return {.batch = p.batch,
            .heads = p.heads,
            .queries = p.queries,
            .keys = p.keys,
            .with_mass = with_mass_,
            .statistic = call_.statistic,
            .same_exposure = !call_.policies.has_masks,
            .overwritten = true};
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

  /// The first keys of a group.
  Following keys_of_group(Index group) const noexcept { return keys_of_item(group * splits_); }

 private:
  /// `held`: groups that are in memory at a time.
  Decoder(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence, Index held, Index concurrency)
      : call_(call),
        x_(x),
        evidence_(evidence),
        sizes_(call.problem),
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

  /// A key that takes nearly all of a row, and how much the output changes without it, squared; -1 if there is none.
  struct Dominant {
    Index key = -1;
    T change = T(0);
  };

  /// The split that has the key is walked once more without it; the others have their parts of the output.
  Dominant leave_out_dominant(Index group, Index r, T sink, const DecodeScratch<T, Stored>& scratch) noexcept {
    using S = simd::Pack<T>;
    const RowResult<T>& row = result(group, r);
    if (!(row.inverse > nearly_all<T>)) return {};  // no weight is more than 1
    Problem one = problem_of(group);
    if (call_.weights.template weight<T>(r % one.queries, one.queries) == T(0)) return {};
    const Index count = splits_of(group).count;
    Index split = 0;
    for (Index s = 1; s < count; ++s)
      if (states(group, s)[r].top > states(group, split)[r].top) split = s;
    const T top = states(group, split)[r].top, probability = detail::probability(top, row);
    const T* const output = this->output(group, r);
    // An output that is not finite is so without the key, or because of it.
    if (!(probability > nearly_all<T>) || !all_finite<T>(output, sizes_.value_dim / simd::lanes<T>)) return {};

    const auto keys = keys_of(group, split);
    const KeptRows<T> kept = this->kept(group);
    const T* const scores = kept.scores + r * kept.score_stride + keys.first;
    const Index key = keys.first + (std::find(scores, scores + (keys.second - keys.first), top) - scores);
    one.queries = 1, one.heads = one.kv_heads;
    SplitWork<T, Stored> walk(call_, x_, one, group / one.kv_heads, group % one.kv_heads, scratch, scratch.without,
                              {});
    walk.run_without(key, keys.first, keys.second, scores);
    auto part = [&](Index s) -> const RowSoftmax<T>& {
      return s == split ? *reinterpret_cast<const RowSoftmax<T>*>(scratch.without + sizes_.value_dim)
                        : states(group, s)[r];
    };
    merge_row(count, part, sink, scratch.factors);
    for (Index c = 0; c < sizes_.value_dim; c += simd::lanes<T>) {
      S sum(T(0));
      for (Index s = 0; s < count; ++s) {
        const T* const of_split = s == split ? scratch.without : record(group, s) + r * sizes_.value_dim;
        sum = simd::fma(simd::load_aligned<S>(of_split + c), S(scratch.factors[s]), sum);
      }
      simd::store_aligned(scratch.without + c, sum);
    }
    walk.distances(key, key + 1, scratch.without);
    return {key, probability * probability * scratch.spare[0]};
  }

  /// Mass, exposure and statistic of the keys of one split.
  ATTENTION_BALANCER_NOINLINE void add_mass(Index group, Index split,
                                            const DecodeScratch<T, Stored>& scratch) noexcept {
    const Problem p = problem_of(group);
    const Splits splits(p.keys);
    const auto keys = keys_of(group, split);
    const Index begin = keys.first, end = keys.second;
    for (Index g = 0; g < p.heads / p.kv_heads; ++g) {
      const Row first = row(group, g * p.queries);
      T* const mass = EvidenceAccess::mass(*evidence_, first.in_evidence);
      T u_of_head(0);
      bool written = false;
      for (Index i = 0; i < p.queries; ++i) {
        const Index r = g * p.queries + i;
        const T u = call_.weights.template weight<T>(i, call_.problem.queries);
        if (u == T(0)) continue;
        u_of_head += u;
        if (call_.statistic != evidence::Kind::mass)
          add_statistic(p, group, r, u, begin, end, EvidenceAccess::statistic(*evidence_, first.in_evidence),
                        scratch);
        if (!written)
          for_probabilities(group, r, begin, end, mass, scratch,
                            [&]<class S>(const S& x, Index) { return S(u) * x; });
        else
          for_probabilities(group, r, begin, end, mass, scratch, [&]<class S>(const S& x, Index j) {
            return simd::fma(S(u), x, simd::load<S>(mass + j));
          });
        written = true;
        if (call_.policies.has_masks) expose(p, first, i, u, begin, end);
      }
      if (!written) std::fill(mass + begin, mass + end, T(0));
      if (!call_.policies.has_masks && first.head == 0)
        std::fill_n(EvidenceAccess::exposure(*evidence_, first.in_evidence) + begin, end - begin, u_of_head);
      if (split + 1 == splits.count) std::fill(mass + end, mass + call_.problem.keys, T(0));
    }
  }

  /// into [keys] = f(probability, key) for keys of a split, from a whole block on.
  template <class F>
  ATTENTION_BALANCER_INLINE void for_probabilities(Index group, Index r, Index begin, Index end, T* into,
                                                   const DecodeScratch<T, Stored>& scratch, F f) noexcept {
    const KeptRows<T> kept = this->kept(group);
    factors_of(kept.tops + r * kept.top_stride + begin / block_keys, (end - begin + block_keys - 1) / block_keys,
               result(group, r), scratch.factors);
    const T* factor = scratch.factors;
    for (Index from = begin; from < end; from += block_keys, ++factor)
      for_packs(kept.weights + r * kept.stride + from, std::min(block_keys, end - from), into + from,
                [&]<class S>(const S& weight, Index j) { return f(scaled_weight(weight, S(*factor)), from + j); });
  }

  void expose(const Problem& p, const Row& first, Index query, T u, Index begin, Index end) noexcept {
    T* exposure = EvidenceAccess::exposure(*evidence_, first.in_evidence);
    const Index batch = call_.first_batch + first.batch;
    for (; begin < end; begin += block_keys) {
      const Index to = std::min(begin + block_keys, end);
      const auto coverage = call_.policies.classify(
          call_.policies.policies, {query, query + 1, begin, to, batch, first.head, p.queries, p.keys});
      if (coverage == mask::Coverage::partial)
        call_.policies.expose_keys(call_.policies.policies, {&p, batch, first.head, query, begin, to}, u,
                                   exposure + begin);
      else if (coverage == mask::Coverage::full)
        for (Index j = begin; j < to; ++j) exposure[j] += u;
    }
  }

  ATTENTION_BALANCER_NOINLINE void add_statistic(const Problem& p, Index group, Index r, T u, Index begin,
                                                 Index end, T* into,
                                                 const DecodeScratch<T, Stored>& scratch) noexcept {
    if (call_.statistic == evidence::Kind::squares)
      return for_probabilities(group, r, begin, end, into, scratch, [&]<class S>(const S& x, Index j) {
        return simd::fma(x * S(u), x, simd::load<S>(into + j));
      });
    if (call_.statistic == evidence::Kind::maximum)
      return for_probabilities(group, r, begin, end, into, scratch, [&]<class S>(const S& x, Index j) {
        return Larger{}(simd::load<S>(into + j), x * S(u));
      });
    if (call_.statistic == evidence::Kind::squared_odds)
      return for_probabilities(group, r, begin, end, into, scratch, [&]<class S>(const S& x, Index j) {
        return simd::fma(squared_odds<T>(x), S(u), simd::load<S>(into + j));
      });
    const T* const output = this->output(group, r);
    const Dominant dominant = dominant_[held(group, r)];
    const bool here = dominant.key >= begin && dominant.key < end;
    const T before = here ? into[dominant.key] : T(0);
    for (Index from = begin; from < end; from += block_keys) {
      const Index to = std::min(from + block_keys, end);
      SplitWork<T, Stored>(call_, x_, p, group / p.kv_heads, group % p.kv_heads, scratch, record(group, 0), {})
          .distances(from, to, output);
      for_probabilities(group, r, from, to, into, scratch, [&]<class S>(const S& x, Index j) {
        const S term = S(u) * squared_odds<T>(x) * simd::load<S>(scratch.spare + (j - from));
        // A masked value may be anything: its p of 0 must not meet it.
        return simd::load<S>(into + j) + simd::select(x == S(T(0)), S(T(0)), term);
      });
    }
    if (here) into[dominant.key] = simd::fma(u, dominant.change, before);
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
      if (u != T(0)) *EvidenceAccess::sink_mass(*evidence_, at.in_evidence) += u * result.sink;
    }
  }

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
