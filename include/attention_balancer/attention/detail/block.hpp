#pragma once
// Attention of one block of queries of one head: the loop over keys, block by block.
//
// Without mass the softmax is online: a strip of [block_keys, W] scores is scored, bent by the policies, weighed and
// multiplied with V. With mass the strip holds all visible keys [Nk, W] at once, memory linear in Nk: the exact maximum
// is known before the first exponential, each score is exponentiated once, and a last pass over the strip adds
// p = weight / sum to the mass of each key. Recomputing Q K^T instead would cost half as much again.

#include <algorithm>
#include <cmath>

#include "attention_balancer/attention/detail/stage.hpp"
#include "attention_balancer/attention/detail/statistic.hpp"
#include "attention_balancer/attention/detail/tile.hpp"
#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/softmax/sparse.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Keys per step: the strip [block_keys, W] and a block of K or V stay in the first caches.
inline constexpr Index block_keys = 128;

/// Queries in a full block.
template <Scalar T>
inline constexpr Index block_width = Index(block_packs) * simd::lanes<T>;

/// The policies of a call behind plain functions: one pointer call per block of keys.
template <Scalar T>
struct PolicyCalls {
  const void* policies = nullptr;
  bool has_modifiers = false, has_masks = false;
  mask::Coverage (*classify)(const void*, const Rect&) = nullptr;
  // By number of packs less one.
  void (*bend[block_packs])(const void*, T* scores, const Place&, bool partial, T* top) = {};
  void (*expose[block_packs])(const void*, const Place&, const T* u, T* exposure) = {};
  // For scores of one query, keys side by side.
  void (*bend_keys)(const void*, T* scores, const Place&, bool partial) = nullptr;
  void (*expose_keys)(const void*, const Place&, T u, T* exposure) = nullptr;
};

/// Rows of K or V with unit feature stride.
template <Scalar T>
struct Rows {
  const T* data;
  Index stride;
};

/// A call as the kernels see it: plain pointers and numbers.
template <Scalar T>
struct Call {
  Problem problem;
  TensorView<const T> q, k, v;
  TensorView<T> out;
  T scale = T(1);
  const void* sinks = nullptr;  // null: none
  T (*sink_logit)(const void* sinks, Index head) = nullptr;
  PolicyCalls<T> policies = {};
  QueryWeights weights = QueryWeights::none();
  evidence::Kind statistic = evidence::Kind::mass;
  Normalization normalization = {};
};

/// Where the evidence of one head, or of one chunk of its queries, goes. Null pointers: not observed.
template <Scalar T>
struct EvidenceRows {
  T* lse = nullptr;       // [Nq] of the head
  T* entropy = nullptr;   // [Nq] of the head
  Index* support = nullptr;  // [Nq] of the head; null with softmax
  T* mass = nullptr;      // [Nk]; null for QueryWeights::none()
  T* exposure = nullptr;  // [Nk]
  T* statistic = nullptr;  // [Nk]; null if the mass is all that is asked for
  T* totals = nullptr;    // sink mass, empty rows
};

/// A run of visible keys; `partial`: the masks must be tested lane by lane.
struct KeyRange {
  Index begin, end;
  bool partial;
};

/// Memory of one worker, carved out of the workspace.
template <Scalar T>
struct Scratch {
  T *queries, *output, *strip;         // [D, W], [Dv, W], [block_keys or Nk, W]
  T *packed_keys, *packed_values;      // [block_keys, D], [block_keys, Dv]
  T* spare;                            // [block_keys, W]: scores kept while their block is weighed; products of leave-one-out
  KeyRange* ranges;                    // [Nk / block_keys + 1]
  T* partial;                          // a chunk's evidence: mass, exposure, statistic [Nk] each, sink mass, empty rows

  static Index padded(Index elements) noexcept { return (elements + 15) / 16 * 16; }

  /// Sets the pointers from `memory` on, aligned to 64 bytes, if it is not null; returns the number of bytes used.
  Index carve(std::byte* memory, const Problem& p, bool whole_strip, Index partial_size) noexcept {
    Index used = 0;
    auto take = [&](auto*& pointer, Index elements) {
      if (memory != nullptr) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
      used += padded(elements) * static_cast<Index>(sizeof(*pointer));
    };
    constexpr Index width = block_width<T>;
    take(queries, p.dim * width);
    take(output, p.value_dim * width);
    take(strip, std::max(whole_strip ? p.keys : 0, block_keys) * width);
    take(packed_keys, block_keys * p.dim);
    take(packed_values, block_keys * p.value_dim);
    take(spare, block_keys * width);
    take(ranges, p.keys / block_keys + 2);
    take(partial, partial_size);
    return used;
  }
};

/// Lists the keys that a block of queries may see: halves what is mixed until it is uniform or one block long, and
/// trims mixed blocks at both ends. Returns the number of ranges.
template <Scalar T>
Index visible_ranges(const Call<T>& call, Rect rect, KeyRange* ranges) noexcept {
  Index count = 0;
  auto emit = [&](Index begin, Index end, bool partial) {
    for (; begin < end; begin += block_keys) ranges[count++] = {begin, std::min(begin + block_keys, end), partial};
  };
  if (!call.policies.has_masks) {
    emit(0, call.problem.keys, false);
    return count;
  }
  auto classify = [&](Index begin, Index end) {
    rect.key_begin = begin, rect.key_end = end;
    return call.policies.classify(call.policies.policies, rect);
  };
  constexpr Index grain = 16;
  auto visit = [&](auto& self, Index begin, Index end) -> void {
    const auto coverage = classify(begin, end);
    if (coverage == mask::Coverage::skip) return;
    if (coverage == mask::Coverage::full) return emit(begin, end, false);
    if (end - begin > block_keys) {
      const Index middle = begin + ((end - begin) / 2 + block_keys - 1) / block_keys * block_keys;
      self(self, begin, middle);
      return self(self, middle, end);
    }
    while (begin + grain < end && classify(begin, begin + grain) == mask::Coverage::skip) begin += grain;
    while (begin + grain < end && classify(end - grain, end) == mask::Coverage::skip) end -= grain;
    emit(begin, end, true);
  };
  if (call.problem.keys > 0) visit(visit, 0, call.problem.keys);
  return count;
}

/// One block of V packs of queries, `count` of them real: the rest repeat the last one and weigh nothing.
template <Scalar T, int V>
class Block {
 public:
  Block(const Call<T>& call, Index batch, Index head, Index first, Index count, const Scratch<T>& scratch,
        const EvidenceRows<T>& evidence) noexcept
      : call_(call), p_(call.problem), batch_(batch), head_(head), kv_head_(head / (p_.heads / p_.kv_heads)),
        first_(first), count_(count), s_(scratch), evidence_(evidence) {}

  void run() noexcept {
    load_queries();
    ranges_ = visible_ranges(call_, {first_, first_ + count_, 0, 0, batch_, head_, p_.queries, p_.keys}, s_.ranges);
    const bool weighted = evidence_.mass != nullptr && load_query_weights();
    attend(weighted, false);
    // A value that is infinite or not a number may have met the weight 0 of a query that does not see it. That shows
    // in the output, and is rare.
    if (!all_finite<T, V>(s_.output, p_.value_dim)) attend(weighted, true);
    normalize_block<T, V>(state_, call_.sinks ? call_.sink_logit(call_.sinks, head_) : -infinity<T>, evidence_.lse != nullptr, result_);
    store_output();
    if (evidence_.lse != nullptr) store_evidence(weighted);
  }

 private:
  static constexpr int n = simd::lanes<T>;
  static constexpr Index width = V * n;

  void load_queries() noexcept {
    const TensorView<const T>& q = call_.q;
    copy_matrix(s_.queries, width, Index(1), &q(batch_, head_, first_, 0), q.dim_stride, q.length_stride, p_.dim, count_);
    for (Index c = 0; c < p_.dim; ++c)
      for (Index i = count_; i < width; ++i) s_.queries[c * width + i] = s_.queries[c * width + count_ - 1];
    alignas(64) T scale[width];
    std::fill_n(scale, width, call_.scale);
    multiply_rows<T, V>(s_.queries, p_.dim, scale);
  }

  /// Fills u_ and returns whether any query counts.
  bool load_query_weights() noexcept {
    bool any = false;
    for (Index i = 0; i < width; ++i) {
      u_[i] = i < count_ ? call_.weights.template weight<T>(first_ + i, p_.queries) : T(0);
      any = any || u_[i] != T(0);
    }
    return any;
  }

  /// Rows of K or V where they lie, or packed if their feature stride is not 1.
  static Rows<T> rows_of(const TensorView<const T>& x, Index b, Index h, Index begin, Index end, T* packed) noexcept {
    const T* first = x.data + b * x.batch_stride + h * x.head_stride + begin * x.length_stride;
    if (x.dim_stride == 1 || x.dim == 1) return {first, x.length_stride};
    copy_matrix(packed, x.dim, Index(1), first, x.length_stride, x.dim_stride, end - begin, x.dim);
    return {packed, x.dim};
  }

  void attend(bool weighted, bool guard) noexcept {
    state_.clear();
    std::fill_n(s_.output, p_.value_dim * width, T(0));
    alignas(64) T top[width];
    std::fill_n(top, width, -infinity<T>);
    if (weighted || is_sparse(call_.normalization)) {
      T* scores = s_.strip;
      for (Index r = 0; r < ranges_; ++r) scores = score(s_.ranges[r], scores, top);
      raise_top<T, V>(state_, top);
      if (is_sparse(call_.normalization)) sparsify_strip((scores - s_.strip) / width);
      std::fill_n(state_.shrink, width, T(1));
      scores = s_.strip;
      for (Index r = 0; r < ranges_; ++r) scores = spend(s_.ranges[r], scores, guard);
    } else {
      for (Index r = 0; r < ranges_; ++r) {
        score(s_.ranges[r], s_.strip, top);
        raise_top<T, V>(state_, top);
        spend(s_.ranges[r], s_.strip, guard);
      }
    }
  }

  /// Scores of a range of keys into the strip, after all policies; returns the strip after it.
  T* score(const KeyRange& range, T* scores, T* top) noexcept {
    const Index keys = range.end - range.begin;
    const Rows<T> k = rows_of(call_.k, batch_, kv_head_, range.begin, range.end, s_.packed_keys);
    const bool bent = call_.policies.has_modifiers || range.partial;
    score_keys<T, V>(s_.queries, k.data, k.stride, keys, p_.dim, scores, bent ? nullptr : top);
    if (bent) call_.policies.bend[V - 1](call_.policies.policies, scores, place(range), range.partial, top);
    return scores + keys * width;
  }

  /// The strip of a sparse normaliser: scores for the softmax of top-k, otherwise probabilities.
  ATTENTION_BALANCER_NOINLINE void sparsify_strip(Index keys) noexcept {
    sparsify<T, V>(call_.normalization, s_.strip, keys, state_.offset, sparse_);
    if (!has_weights()) return;
    sum_weights<T, V>(call_.normalization, s_.strip, keys, evidence_.lse != nullptr, state_);
  }

  /// Whether sparsify leaves weights, rather than scores.
  bool has_weights() const noexcept {
    return call_.normalization.kind == Normalization::Kind::sparsemax ||
           call_.normalization.kind == Normalization::Kind::entmax15;
  }

  /// For add_guarded: what has no weight counts as masked.
  void keep_weights(const T* weights, Index count) noexcept {
    for (Index i = 0; i < count; ++i) s_.spare[i] = weights[i] == T(0) ? -infinity<T> : weights[i];
  }

  /// Turns the scores of a range into weights and adds the weighted values to the output.
  T* spend(const KeyRange& range, T* scores, bool guard) noexcept {
    const Index keys = range.end - range.begin;
    if (guard && has_weights())
      keep_weights(scores, keys * width);
    else if (guard)
      std::copy_n(scores, keys * width, s_.spare);
    if (!has_weights()) evidence_.lse != nullptr ? weigh<T, V, true>(scores, keys, state_) : weigh<T, V, false>(scores, keys, state_);
    if (p_.value_dim > 0) {
      Rows<T> v = rows_of(call_.v, batch_, kv_head_, range.begin, range.end, s_.packed_values);
      if (guard) v = guarded(v, keys);
      add_values<T, V>(scores, v.data, v.stride, keys, p_.value_dim, s_.output, state_.shrink);
      if (guard) add_guarded(range, scores);
    }
    return scores + keys * width;
  }

  /// A copy of the values with every row that is not finite replaced by zeros.
  ATTENTION_BALANCER_NOINLINE Rows<T> guarded(Rows<T> v, Index keys) noexcept {
    for (Index j = 0; j < keys; ++j) {
      const T* from = v.data + j * v.stride;
      T* to = s_.packed_values + j * p_.value_dim;
      const bool finite = std::all_of(from, from + p_.value_dim, [](T x) { return std::isfinite(x); });
      for (Index c = 0; c < p_.value_dim; ++c) to[c] = finite ? from[c] : T(0);
    }
    return {s_.packed_values, p_.value_dim};
  }

  /// Adds the rows that guarded left out, only for the queries whose score is not masked.
  ATTENTION_BALANCER_NOINLINE void add_guarded(const KeyRange& range, const T* weights) noexcept {
    for (Index j = range.begin; j < range.end; ++j) {
      const T* v = &call_.v(batch_, kv_head_, j, 0);
      bool finite = true;
      for (Index c = 0; c < p_.value_dim; ++c) finite = finite && std::isfinite(v[c * call_.v.dim_stride]);
      if (finite) continue;
      const Index row = (j - range.begin) * width;
      for (Index i = 0; i < width; ++i)
        if (s_.spare[row + i] != -infinity<T>)
          for (Index c = 0; c < p_.value_dim; ++c)
            s_.output[c * width + i] += weights[row + i] * v[c * call_.v.dim_stride];
    }
  }

  void store_output() noexcept {
    if (p_.value_dim == 0) return;
    multiply_rows<T, V>(s_.output, p_.value_dim, result_.factor);
    const TensorView<T>& out = call_.out;
    copy_matrix(&out(batch_, head_, first_, 0), out.length_stride, out.dim_stride, static_cast<const T*>(s_.output),
                Index(1), width, count_, p_.value_dim);
  }

  ATTENTION_BALANCER_NOINLINE void store_sparse() noexcept {
    const T unit = call_.normalization.kind == Normalization::Kind::entmax15 ? T(2) : T(1);
    for (Index i = 0; i < count_; ++i) {
      evidence_.support[first_ + i] = static_cast<Index>(sparse_.support[i]);
      if (has_weights())
        evidence_.lse[first_ + i] =
            state_.top[i] == -infinity<T> && state_.sum[i] == T(0) ? -infinity<T> : state_.offset[i] + unit * sparse_.threshold[i];
    }
  }

  void store_evidence(bool weighted) noexcept {
    std::copy_n(result_.lse, count_, evidence_.lse + first_);
    std::copy_n(result_.entropy, count_, evidence_.entropy + first_);
    if (is_sparse(call_.normalization)) store_sparse();
    for (Index i = 0; i < count_; ++i)
      if (state_.sum[i] == T(0)) evidence_.totals[1] += T(1);
    if (!weighted) return;

    alignas(64) T factor[width];
    T u_of_block(0);
    for (Index i = 0; i < width; ++i) {
      factor[i] = u_[i] == T(0) ? T(0) : u_[i] * result_.factor[i];
      if (u_[i] != T(0)) evidence_.totals[0] += u_[i] * result_.sink[i];
      u_of_block += u_[i];
      if (!std::isfinite(state_.sum[i])) isolate(i, factor);
    }
    if (call_.statistic == evidence::Kind::leave_one_out) square_outputs();
    const T* weights = s_.strip;
    for (Index r = 0; r < ranges_; ++r) {
      const KeyRange& range = s_.ranges[r];
      add_mass<T, V>(weights, range.end - range.begin, factor, evidence_.mass + range.begin);
      if (evidence_.statistic != nullptr) add_statistic(range, weights);
      weights += (range.end - range.begin) * width;
      if (range.partial)
        call_.policies.expose[V - 1](call_.policies.policies, place(range), u_, evidence_.exposure);
      else
        for (Index j = range.begin; j < range.end; ++j) evidence_.exposure[j] += u_of_block;
    }
  }

  /// output_squares_ [W] = |o|^2, of the outputs that store_output has normalised. Notes what leave-one-out must expect:
  /// a key with p >= 1/2 (the largest weight of a query is 1), and outputs that are not finite.
  void square_outputs() noexcept {
    std::fill_n(output_squares_, width, T(0));
    for (Index c = 0; c < p_.value_dim; ++c)
      for (Index i = 0; i < width; ++i) output_squares_[i] += s_.output[c * width + i] * s_.output[c * width + i];
    peaked_ = false, finite_ = true;
    for (Index i = 0; i < width; ++i) {
      peaked_ = peaked_ || !(result_.factor[i] < T(0.5));
      finite_ = finite_ && std::isfinite(output_squares_[i]);
    }
  }

  void add_statistic(const KeyRange& range, const T* weights) noexcept {
    const Index keys = range.end - range.begin;
    T* const into = evidence_.statistic + range.begin;
    const WeightedRows<T> rows{weights, result_.factor, u_};
    switch (call_.statistic) {
      case evidence::Kind::mass: return;
      case evidence::Kind::squares: return add_squares<T, V>(rows, keys, into);
      case evidence::Kind::maximum: return add_maximum<T, V>(rows, keys, into);
      case evidence::Kind::squared_odds: return add_squared_odds<T, V>(rows, keys, into);
      case evidence::Kind::leave_one_out: break;
    }
    const Rows<T> v = rows_of(call_.v, batch_, kv_head_, range.begin, range.end, s_.packed_values);
    for (Index j = 0; j < keys; j += leave_one_out_keys) {
      const Index now = std::min(leave_one_out_keys, keys - j);
      const T* values = v.data + j * v.stride;
      score_keys<T, V>(s_.output, values, v.stride, now, p_.value_dim, s_.spare, nullptr);
      add_leave_one_out<T, V>({weights + j * width, result_.factor, u_},
                              {s_.output, output_squares_, values, v.stride, p_.value_dim, s_.spare}, peaked_, finite_,
                              now, into + j);
    }
  }

  /// A row that is not a number makes the masses that it touches so, and no others: not those of keys that it does
  /// not see, and none at all if its query weighs nothing.
  ATTENTION_BALANCER_NOINLINE void isolate(Index i, T* factor) noexcept {
    alignas(64) T top[width] = {};
    T* weights = s_.strip;
    for (Index r = 0; r < ranges_; ++r) {
      score(s_.ranges[r], s_.spare, top);  // once more: a weight of 0 does not tell masked from small
      for (Index j = 0; j < s_.ranges[r].end - s_.ranges[r].begin; ++j, weights += width)
        weights[i] = u_[i] == T(0) || s_.spare[j * width + i] == -infinity<T> ? T(0)
                                                                             : std::numeric_limits<T>::quiet_NaN();
    }
    factor[i] = result_.factor[i] = T(1);
  }

  Place place(const KeyRange& range) const noexcept {
    return {&p_, batch_, head_, first_, range.begin, range.end};
  }

  const Call<T>& call_;
  const Problem& p_;
  const Index batch_, head_, kv_head_, first_, count_;
  const Scratch<T>& s_;
  const EvidenceRows<T>& evidence_;
  Index ranges_ = 0;
  OnlineState<T> state_;
  Sparse<T> sparse_;
  Normalized<T> result_;
  alignas(64) T u_[width];
  alignas(64) T output_squares_[width];
  bool peaked_ = false, finite_ = true;
};

/// The queries [first, end) of one head, in blocks of three packs; four packs are two blocks of two, because a block
/// of one pack makes poor use of what it loads.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void attend_queries(const Call<T>& call, Index batch, Index head, Index first, Index end,
                                                const Scratch<T>& scratch, const EvidenceRows<T>& evidence) noexcept {
  constexpr Index n = simd::lanes<T>;
  while (first < end) {
    const Index packs = (end - first + n - 1) / n;
    const Index now = packs == 4 ? 2 : std::min(packs, Index(block_packs));
    const Index count = std::min(now * n, end - first);
    if (now == 3)
      Block<T, 3>(call, batch, head, first, count, scratch, evidence).run();
    else if (now == 2)
      Block<T, 2>(call, batch, head, first, count, scratch, evidence).run();
    else
      Block<T, 1>(call, batch, head, first, count, scratch, evidence).run();
    first += count;
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
