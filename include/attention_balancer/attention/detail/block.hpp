#pragma once
// Attention of one block of queries of one head: the loop over keys, block by block.
//
// Without mass the softmax is online: a strip of [block_keys, W] scores is scored, bent by the policies, weighed
// and multiplied with V. With mass the strip holds all visible keys [Nk, W] at once, memory linear in Nk: the exact
// maximum is known before the first exponential, each score is exponentiated once, and a last pass over the strip
// adds p = weight / sum to the mass of each key. Recomputing Q K^T instead would cost half as much again.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <new>

#include "attention_balancer/attention/detail/block_rows.hpp"
#include "attention_balancer/attention/detail/call.hpp"
#include "attention_balancer/attention/detail/layout.hpp"
#include "attention_balancer/attention/detail/tile.hpp"
#include "attention_balancer/softmax/sparse.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

template <Scalar T, int V>
class BlockEvidence;  // what a finished block leaves behind beside its output: evidence_block.hpp

/// One block of V packs of queries, `count` of them real: the rest repeat the last one and weigh nothing.
template <Scalar T, int V>
class Block {
 public:
  Block(const Call<T>& call, Index batch, Index head, Index first, Index count, const Scratch<T>& scratch,
        const EvidenceRows<T>& evidence) noexcept
      : call_(call),
        p_(call.problem),
        batch_(batch),
        head_(head),
        first_(first),
        count_(count),
        far_{is_far<T>(p_), false, scratch.coming != nullptr ? &Coming::ask : nullptr, scratch.coming},
        s_(scratch),
        rows_(call, batch, head / (p_.heads / p_.kv_heads), scratch),
        evidence_(evidence) {}

  /// The same with the memory of block `place` of those that walk together.
  Block(const Block& first_of_them, Index place, Index first) noexcept
      : Block(first_of_them.call_, first_of_them.batch_, first_of_them.head_, first, width, first_of_them.s_,
              first_of_them.evidence_) {
    s_.ranges += place * s_.most_ranges;
    s_.queries += place * s_.query_rows * width;
    s_.output += place * s_.output_rows * width;
    s_.strip += place * s_.strip_size;
  }

  void run() noexcept {
    begin();
    Block* const alone[] = {this};
    attend(alone, 1, false);
    finish();
    leave();
  }

  /// This block and the `count` - 1 that follow it, all of whole packs: the same results.
  ATTENTION_BALANCER_NOINLINE void run_together(int count) noexcept {
    alignas(Block) std::byte memory[most_together - 1][sizeof(Block)];
    Block* blocks[most_together] = {this};
    for (int b = 1; b < count; ++b) blocks[b] = new (memory[b - 1]) Block(*this, b, first_ + b * width);
    for (int b = 0; b < count; ++b) blocks[b]->begin();
    attend(blocks, count, false);
    for (int b = 0; b < count; ++b) blocks[b]->finish();
    leave();
  }

 private:
  friend class BlockEvidence<T, V>;

  static constexpr int n = simd::lanes<T>;
  static constexpr Index width = V * n;

  void begin() noexcept {
    load_queries();
    rows_.begin_head();
    ranges_ = visible_ranges(
        call_, {first_, first_ + count_, 0, 0, call_.first_batch + batch_, head_, p_.queries, p_.keys}, s_.ranges);
    weighted_ = evidence_.mass != nullptr && load_query_weights();
    keeps_ = weighted_ || is_sparse(call_.normalization);
    far_.strip = keeps_ && is_far_strip<T>(p_);
  }

  void finish() noexcept {
    // A value that is infinite or not a number may have met the weight 0 of a query that does not see it. That
    // shows in the output, and is rare.
    Block* const alone[] = {this};
    guarded_ = !all_finite<T>(s_.output, p_.value_dim * V);
    if (guarded_) attend(alone, 1, true);
    normalize_block<T, V>(state_, sink(), evidence_.lse != nullptr, result_);
    store_output();
    if (evidence_.lse != nullptr) BlockEvidence<T, V>(*this).store();
  }

  /// Around products of pairs.
  void enter() const noexcept {
    if (call_.source.pairs != nullptr && call_.source.pairs->enter != nullptr) call_.source.pairs->enter();
  }
  void leave() const noexcept {
    if (call_.source.pairs != nullptr && call_.source.pairs->leave != nullptr) call_.source.pairs->leave();
  }

  T sink() const noexcept { return call_.sinks ? call_.sink_logit(call_.sinks, head_) : -infinity<T>; }

  void load_queries() noexcept {
    const TensorView<const T>& q = call_.q;
    state_.in_bits = scores_in_bits(call_);
    load_block<T, V>(&q(batch_, head_, first_, 0), q.length_stride, q.dim_stride, count_, p_.dim,
                     query_factor(call_), s_.queries);
    if (call_.source.pairs != nullptr) call_.source.pairs[V - 1].load(s_.queries, p_.dim);
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

  /// The walk over the keys. Each block takes its own ranges in their order, whoever walks beside it.
  static void attend(Block* const* blocks, int count, bool guard) noexcept {
    for (int b = 0; b < count; ++b) blocks[b]->start();
    blocks[0]->enter();
    walk(blocks, count, [guard](Block& block, Index r) { block.step(r, guard); });
    for (int b = 0; b < count; ++b) blocks[b]->turn();
    walk(blocks, count, [guard](Block& block, Index r) { block.spend_kept(r, guard); });
  }

  /// f(block, r) for all ranges of all blocks, those that share keys one after the other: only the first of these
  /// asks for the keys and values that follow.
  template <class F>
  static void walk(Block* const* blocks, int count, F f) noexcept {
    const bool far = is_far<T>(blocks[0]->p_);
    Index next[most_together] = {};
    for (;;) {
      Index from = std::numeric_limits<Index>::max();
      for (int b = 0; b < count; ++b)
        if (next[b] < blocks[b]->ranges_) from = std::min(from, blocks[b]->s_.ranges[next[b]].begin);
      if (from == std::numeric_limits<Index>::max()) return;
      bool first = far;
      for (int b = 0; b < count; ++b) {
        if (next[b] == blocks[b]->ranges_ || blocks[b]->s_.ranges[next[b]].begin >= from + block_keys) continue;
        blocks[b]->far_.rows = first;
        first = false;
        f(*blocks[b], next[b]++);
      }
    }
  }

  void start() noexcept {
    state_.clear();
    if (ranges_ == 0) std::fill_n(s_.output, p_.value_dim * width, T(0));
    std::fill_n(top_, width, -infinity<T>);
    kept_ = s_.strip;
  }

  /// A range of keys: scores that are kept, if all of them are needed at once, or all that there is to do.
  void step(Index r, bool guard) noexcept {
    const KeyRange& range = s_.ranges[r];
    if (keeps_) {
      kept_ = score(range, kept_, top_);
      return;
    }
    score(range, s_.strip, top_);
    const bool shrunk = raise_top<T, V>(state_, top_);
    spend(range, s_.strip, r == 0 ? Onto::zero : shrunk ? Onto::shrunk_output : Onto::output, guard);
  }

  void turn() noexcept {
    if (keeps_) raise_top<T, V>(state_, top_);
    if (is_sparse(call_.normalization)) sparsify_strip((kept_ - s_.strip) / width);
    kept_ = s_.strip;
  }

  void spend_kept(Index r, bool guard) noexcept {
    if (keeps_) kept_ = spend(s_.ranges[r], kept_, r == 0 ? Onto::zero : Onto::output, guard);
  }

  /// Scores of a range of keys into the strip, after all policies; returns the strip after it.
  T* score(const KeyRange& range, T* scores, T* top) noexcept {
    const Index keys = range.end - range.begin;
    const Rows<T> k = rows_.keys(range);
    const bool bent = call_.policies.has_modifiers;
    if (!range.partial) {
      multiply_keys(k.data, k.stride, range.begin, keys, scores, bent ? nullptr : top);
      if (bent) bend(range.begin, range.end, false, scores, top);
      return scores + keys * width;
    }
    auto part = [&](Index begin, Index end, bool mixed) {
      if (begin == end) return;
      T* const at = scores + (begin - range.begin) * width;
      multiply_keys(k.data + (begin - range.begin) * k.stride, k.stride, begin, end - begin, at,
                    bent || mixed ? nullptr : top);
      if (bent || mixed) bend(begin, end, mixed, at, top);
    };
    part(range.begin, range.mixed_begin, false);
    part(range.mixed_begin, range.mixed_end, true);
    part(range.mixed_end, range.end, false);
    return scores + keys * width;
  }

  /// scores [count, W] of keys, and top raised to them unless it is null. `from`: the position of the first.
  void multiply_keys(const T* keys, Index stride, Index from, Index count, T* scores, T* top) const noexcept {
    const Ahead<T> next = rows_.ahead(false, from, 1);
    const Far far = rows_.far_of(far_, next, count);
    if (call_.source.pairs != nullptr)
      call_.source.pairs[V - 1].score(s_.queries, {keys, stride}, count, p_.dim, scores, top, far);
    else
      score_keys<T, V>(s_.queries, keys, stride, count, p_.dim, scores, top, far);
  }

  void bend(Index begin, Index end, bool mixed, T* scores, T* top) const noexcept {
    call_.policies.bend[V - 1](call_.policies.policies, scores, place(begin, end), mixed, top);
    enter();
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
  T* spend(const KeyRange& range, T* scores, Onto onto, bool guard) noexcept {
    const Index keys = range.end - range.begin;
    if (guard && has_weights())
      keep_weights(scores, keys * width);
    else if (guard)
      std::copy_n(scores, keys * width, s_.spare);
    const PairProducts<T>* const pairs =
        call_.source.pairs != nullptr && !guard && p_.value_dim > 0 ? call_.source.pairs + V - 1 : nullptr;
    T* const weights = pairs != nullptr ? s_.spare + pairs->layout.pairs_before(range.begin) * width : scores;
    if (pairs != nullptr && !weighted_)
      pairs->weigh(scores, keys, state_, evidence_.lse != nullptr, weights);
    else if (!has_weights())
      evidence_.lse != nullptr ? weigh<T, V, true>(scores, keys, state_) : weigh<T, V, false>(scores, keys, state_);
    if (pairs != nullptr && weighted_) pairs->pair(scores, keys, weights);
    if (p_.value_dim > 0) {
      Rows<T> v = rows_.values(range);
      if (guard) v = rows_.guarded(v, range);
      const Ahead<T> next = rows_.ahead(true, range.begin, pairs != nullptr ? 2 : 1);
      const Far far = rows_.far_of(far_, next, keys);
      if (pairs != nullptr)
        pairs->add(weights, v.data, range.begin, keys, p_.value_dim, s_.output, onto, state_.shrink, far);
      else
        add_values<T, V>(scores, v.data, v.stride, keys, p_.value_dim, s_.output, onto, state_.shrink, far);
      if (guard) add_guarded(range, scores);
    }
    return scores + keys * width;
  }

  /// Adds the rows that guarded left out, only for the queries whose score is not masked.
  ATTENTION_BALANCER_NOINLINE void add_guarded(const KeyRange& range, const T* weights) noexcept {
    const Rows<T> v = rows_.values(range);
    for (Index j = 0; j < range.end - range.begin; ++j) {
      bool finite = true;
      for (Index c = 0; c < p_.value_dim; ++c)
        finite = finite && std::isfinite(rows_.value_at(v, range.begin, j, c));
      if (finite) continue;
      const Index row = j * width;
      for (Index i = 0; i < width; ++i)
        if (s_.spare[row + i] != -infinity<T>)
          for (Index c = 0; c < p_.value_dim; ++c)
            s_.output[c * width + i] += weights[row + i] * rows_.value_at(v, range.begin, j, c);
    }
  }

  void store_output() noexcept {
    if (p_.value_dim == 0) return;
    const TensorView<T>& out = call_.out;
    store_block<T, V>(s_.output, result_.factor, &out(batch_, head_, first_, 0), out.length_stride, out.dim_stride,
                      count_, p_.value_dim);
  }

  Place place(Index key_begin, Index key_end) const noexcept {
    return {&p_, call_.first_batch + batch_, head_, first_, key_begin, key_end};
  }

  const Call<T>& call_;
  const Problem& p_;
  const Index batch_, head_, first_, count_;
  Far far_;
  Scratch<T> s_;
  const BlockRows<T> rows_;
  const EvidenceRows<T>& evidence_;
  Index ranges_ = 0;
  bool weighted_ = false, keeps_ = false;  // the strip of all scores
  bool guarded_ = false;                   // against values that are not finite
  T* kept_ = nullptr;                      // where the strip goes on
  alignas(64) T top_[width];
  OnlineState<T> state_;
  Sparse<T> sparse_;
  Normalized<T> result_;
  alignas(64) T u_[width];
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
