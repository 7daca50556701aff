#pragma once
// The backward pass of one block of queries of one head: the loop over keys, block by block.
//
// With P = exp(S - lse) recomputed and D_i = dO_i . O_i: dV += P^T dO, dP = dO V^T, dS = P * (dP - D), dQ = dS K,
// dK += dS^T Q. The gradient of the lse lessens D_i, that of the mass of key j adds u_i dmass_j to dP_ij and that
// of the entropy -dH_i log P_ij; what these two add to D_i takes a first pass over the scores.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>

#include "attention_balancer/attention/detail/backward_queries.hpp"
#include "attention_balancer/attention/detail/backward_tile.hpp"
#include "attention_balancer/attention/detail/decode_tile.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// One block of V packs of queries.
template <Scalar T, int V>
class BackwardBlock : BackwardQueries<T, V> {
  using Base = BackwardQueries<T, V>;
  using Base::add_to_sink, Base::store_queries, Base::store_parameters;
  using Base::call_, Base::p_, Base::batch_, Base::head_, Base::first_, Base::count_, Base::s_, Base::sums_;
  using Base::in_bits_, Base::guard_, Base::rows_, Base::saw_, Base::n, Base::width;
  using Base::load_rows, Base::load_state, Base::finish_delta, Base::has_slopes, Base::site_batch;

 public:
  BackwardBlock(const BackwardCall<T>& call, Index batch, Index head, Index first, Index count, bool keys_finite,
                const BackwardScratch<T>& scratch, const BackwardSums<T>& sums) noexcept
      : Base(call, batch, head, first, count, scratch, sums),
        kv_head_(head / (p_.heads / p_.kv_heads)),
        keys_finite_(keys_finite),
        decoded_(decodes(call.forward) && !rows_are_lanes<T>(p_)) {}

  /// This block and those that follow it, `count` in all, of whole packs but for the last, which has `last_count`
  /// queries. The same bits as one after the other, but that a key which masks leave in different steps gets its
  /// gradients in another order.
  void run(int count, Index last_count) noexcept {
    alignas(BackwardBlock) std::byte memory[most_together - 1][sizeof(BackwardBlock)];
    BackwardBlock* blocks[most_together] = {this};
    for (int b = 1; b < count; ++b)
      blocks[b] = new (memory[b - 1]) BackwardBlock(*this, b, b + 1 < count ? width : last_count);
    bool guarded = false;
    for (int b = 0; b < count; ++b) {
      blocks[b]->begin();
      guarded = guarded || blocks[b]->guard_;
    }
    if (!guarded)
      attend(blocks, count);
    else  // which adds to the gradients of the keys at once
      for (int b = 0; b < count; ++b) attend(blocks + b, 1);
    for (int b = 0; b < count; ++b) blocks[b]->finish();
  }

 private:
  static constexpr int most_together = static_cast<int>(backward_together<T>);
  static constexpr Index strip_size = longest_step * width;

  /// Block `place` of those that the first is followed by, with memory of its own.
  BackwardBlock(const BackwardBlock& first, Index place, Index count) noexcept
      : BackwardBlock(first.call_, first.batch_, first.head_, first.first_ + place * width, count,
                      first.keys_finite_, first.s_, first.sums_) {
    s_.queries += place * p_.dim * width;
    s_.outputs += place * p_.value_dim * width;
    s_.query_rows += place * row_stride<T>(p_.dim) * width;
    s_.output_rows += place * row_stride<T>(p_.value_dim) * width;
    s_.dq += place * p_.dim * width;
    s_.scores += place * strip_size;
    s_.gradients += place * strip_size;
    s_.ranges += place * s_.most_ranges;
    s_.parameters += place * call_.modifiers * width;
  }

  void begin() noexcept {
    // The forward's scores bit by bit: D has its weights, and does not cancel against those of other scores.
    load_rows(call_.forward.q, p_.dim, s_.queries, query_factor(call_.forward), s_.query_rows, call_.forward.scale);
    load_rows(call_.dout, p_.value_dim, s_.outputs, T(1), s_.output_rows, T(1));
    guard_ =
        !keys_finite_ || !all_finite<T>(s_.queries, p_.dim * V) || !all_finite<T>(s_.outputs, p_.value_dim * V);
    load_state();
    std::fill_n(s_.none, call_.modifiers, nullptr);
    ranges_ = visible_ranges(call_.forward,
                             {first_, first_ + count_, 0, 0, site_batch(), head_, p_.queries, p_.keys}, s_.ranges);
    if (is_sparse(call_.forward.normalization)) fill_strip();
    if (call_.mass_gradient.data != nullptr || call_.entropy_gradient.data != nullptr || has_slopes()) first_pass();
    finish_delta();

    std::fill_n(s_.dq, p_.dim * width, T(0));
    std::fill_n(s_.parameters, call_.modifiers * width, T(0));
    walk_ = walk();
  }

  /// All blocks through all keys. Each takes its own ranges in their order, and those that take the same one add to
  /// the gradients of its keys together.
  static void attend(BackwardBlock* const* blocks, int count) noexcept {
    for (;;) {
      Index from = std::numeric_limits<Index>::max();
      for (int b = 0; b < count; ++b)
        if (!blocks[b]->walk_.done()) from = std::min(from, blocks[b]->walk_.begin);
      if (from == std::numeric_limits<Index>::max()) return;
      for (int b = 0; b < count; ++b) blocks[b]->step(from);
      for (int b = 0, e; b < count; b = e) {
        for (e = b + 1; e < count && blocks[b]->adds_beside(*blocks[e]); ++e) {
        }
        if (blocks[b]->pending_) blocks[b]->add_to_keys(*blocks[e - 1]);
      }
    }
  }

  void finish() noexcept {
    add_to_sink();
    store_queries();
    store_parameters();
  }

  /// A walk over the visible keys, in steps of at most block_keys.
  struct Walk {
    const KeyRange *range, *end;
    Index begin;  // of the next step
    T* weights;   // its part of the strip of a sparse normaliser, or null

    bool done() const noexcept { return range == end; }

    KeyRange next() noexcept {
      const KeyRange step{begin, std::min(begin + block_keys, range->end), range->partial};
      begin = step.end;
      if (begin == range->end && ++range != end) begin = range->begin;
      if (weights != nullptr) weights += (step.end - step.begin) * width;
      return step;
    }
  };

  Walk walk() const noexcept {
    const bool sparse = is_sparse(call_.forward.normalization);
    return {s_.ranges, s_.ranges + ranges_, ranges_ > 0 ? s_.ranges->begin : 0, sparse ? s_.strip : nullptr};
  }

  /// f(step, its part of the strip of a sparse normaliser)
  template <class F>
  void for_each_step(F f) const noexcept {
    for (Walk w = walk(); !w.done();) {
      T* const weights = w.weights;
      f(w.next(), weights);
    }
  }

  /// The next step, if it begins within a block of keys behind `from`.
  void step(Index from) noexcept {
    pending_ = false;
    if (walk_.done() || walk_.begin >= from + block_keys) return;
    const T* const weights = walk_.weights;
    range_ = walk_.next();
    pass(range_, weights);
  }

  /// Whether the next block adds to the gradients of the same keys.
  bool adds_beside(const BackwardBlock& next) const noexcept {
    return pending_ && next.pending_ && range_.begin == next.range_.begin && range_.end == next.range_.end;
  }

  /// What this block and the others up to `last` add to dv and dk.
  void add_to_keys(const BackwardBlock& last) noexcept {
    const Index keys = range_.end - range_.begin, depth = last.first_ + last.count_ - first_;
    add_queries<T>({s_.scores, width, strip_size, depth, s_.output_rows, row_stride<T>(p_.value_dim)}, keys,
                   sums_.dv + range_.begin * value_stride(), value_stride());
    add_queries<T>({s_.gradients, width, strip_size, depth, s_.query_rows, row_stride<T>(p_.dim)}, keys,
                   sums_.dk + range_.begin * key_stride(), key_stride());
  }

  /// The weights of a sparse normaliser, from all scores at once, as in the forward pass.
  ATTENTION_BALANCER_NOINLINE void fill_strip() noexcept {
    const Call<T>& forward = call_.forward;
    alignas(64) T top[width];
    std::fill_n(top, width, -infinity<T>);
    Index keys = 0;
    for_each_step([&](const KeyRange& range, T* scores) {
      const Rows<T> k = rows_of(forward.k, range, s_.packed_keys);
      const bool bent = forward.policies.has_modifiers || range.partial;
      score_keys<T, V>(s_.queries, k.data, k.stride, range.end - range.begin, p_.dim, scores, bent ? nullptr : top);
      if (bent) forward.policies.bend[V - 1](forward.policies.policies, scores, place(range), range.partial, top);
      keys += range.end - range.begin;
    });
    OnlineState<T> state;
    state.clear();
    raise_top<T, V>(state, top);
    Sparse<T> sparse;
    sparsify<T, V>(forward.normalization, s_.strip, keys, state.offset, sparse);
    if (!has_slopes()) weigh_kept(keys);
  }

  /// strip = exp(strip - lse), of a masked score 0 whatever the row is.
  ATTENTION_BALANCER_NOINLINE void weigh_kept(Index keys) noexcept {
    using S = simd::Pack<T>;
    for (Index j = 0; j < keys; ++j)
      for (int v = 0; v < V; ++v) {
        T* const at = s_.strip + (j * V + v) * n;
        const S score = simd::load_aligned<S>(at);
        const S x = (score - simd::load_aligned<S>(rows_.offset + v * n)) * S(T(simd::log2_e));
        const S weight = simd::exp2(x);
        simd::store_aligned(at, simd::select(score == S(-infinity<T>), S(T(0)), weight));
      }
  }

  /// Whether all of weights [count] is 0.
  static bool all_zero(const T* weights, Index count) noexcept {
    using S = simd::Pack<T>;
    S others(T(0));
    for (Index i = 0; i < count; i += n)
      others = others + simd::select(simd::load_aligned<S>(weights + i) == S(T(0)), S(T(0)), S(T(1)));
    return simd::reduce_add(others) == T(0);
  }

  Place place(const KeyRange& range) const noexcept {
    return {&p_, site_batch(), head_, first_, range.begin, range.end};
  }

  ScoreGradients<T> block_of(const KeyRange& range, const T* weights) noexcept {
    ScoreGradients<T> x{};
    x.at = place(range);
    x.weights = weights;
    x.normalizer = call_.forward.normalization.kind;
    x.packs = V;
    x.partial = range.partial;
    x.scores = s_.scores;
    x.gradients = s_.gradients;
    x.rows = &rows_;
    x.exponent_per_score = in_bits_ ? T(1) : T(simd::log2_e);
    x.logit_per_score = in_bits_ ? T(simd::ln_2) : T(1);
    x.with_entropy = call_.entropy_gradient.data != nullptr;
    if (const TensorView<const T>& m = call_.mass_gradient; m.data != nullptr) {
      const Plane<const T> of_keys = broadcast_plane(m, site_batch(), head_);
      x.mass = &of_keys(0, range.begin);
      x.mass_stride = of_keys.column;
    }
    return x;
  }

  void derive(const ScoreGradients<T>& x) noexcept {
    using Plain = Derivatives<T, Policies<T, std::tuple<>, std::tuple<>>>;
    if (call_.forward.policies.has_modifiers || x.partial)
      call_.derive(call_.forward.policies.policies, x);
    else if (x.first_pass || x.weights != nullptr || x.with_entropy || x.mass != nullptr || x.seen != nullptr)
      Plain::template block<false>({}, x);
    else if (in_bits_)
      derive_plain<T, V, true>(x.scores, x.gradients, x.at.key_end - x.at.key_begin, rows_);
    else
      derive_plain<T, V, false>(x.scores, x.gradients, x.at.key_end - x.at.key_begin, rows_);
  }

  /// rows_.sum = sum over the keys of slope (u dmass - dH log p), and of slope (dout . v) where it is not p.
  void first_pass() noexcept {
    for_each_step([&](const KeyRange& range, const T* weights) {
      const Index keys = range.end - range.begin;
      if (weights != nullptr && all_zero(weights, keys * width)) return;
      ScoreGradients<T> x = block_of(range, weights);
      score(rows_of(call_.forward.k, range, s_.packed_keys), keys);
      x.gradients = nullptr;
      if (has_slopes()) {
        const Rows<T> v = rows_of(call_.forward.v, range, s_.packed_values);
        score_keys<T, V>(s_.outputs, v.data, v.stride, keys, p_.value_dim, s_.gradients, nullptr);
        x.gradients = s_.gradients;
      }
      x.first_pass = true;
      x.parameter_rows = x.parameter_keys = s_.none;
      derive(x);
    });
  }

  Rows<T> rows_of(const TensorView<const T>& x, const KeyRange& range, T* packed) const noexcept {
    const T* first = x.data + batch_ * x.batch_stride + kv_head_ * x.head_stride + range.begin * x.length_stride;
    if (x.dim_stride == 1 || x.dim == 1) return {first, x.length_stride};
    copy_matrix(packed, x.dim, Index(1), first, x.length_stride, x.dim_stride, range.end - range.begin, x.dim);
    return {packed, x.dim};
  }

  /// Scores of a block of keys before the policies, bit by bit those of the forward pass.
  void score(const Rows<T>& k, Index keys) noexcept {
    if (decoded_)  // the gradients come after the scores
      return score_decoded<T, V>(s_.query_rows, row_stride<T>(p_.dim), count_, k.data, k.stride, keys, p_.dim,
                                 s_.gradients, s_.scores);
    score_with(s_.queries, k, keys, p_.dim, s_.scores);
  }

  Far asking() const noexcept { return {.ask = &Coming::ask, .asker = s_.coming}; }

  /// scores [keys, W] = the block's rows times those of `x`. With each tile some of what is computed next is asked for.
  void score_with(const T* rows, const Rows<T>& x, Index keys, Index dim, T* scores) noexcept {
    if (s_.coming == nullptr)  // without a question in the way of the tiles
      score_keys<T, V>(rows, x.data, x.stride, keys, dim, scores, nullptr);
    else
      score_keys<T, V>(rows, x.data, x.stride, keys, dim, scores, nullptr, asking());
  }

  void pass(const KeyRange& range, const T* weights) noexcept {
    const Index keys = range.end - range.begin;
    if (weights != nullptr && all_zero(weights, keys * width)) return;
    const Rows<T> k = rows_of(call_.forward.k, range, s_.packed_keys),
                  v = rows_of(call_.forward.v, range, s_.packed_values);
    score(k, keys);
    score_with(s_.outputs, v, keys, p_.value_dim, s_.gradients);

    ScoreGradients<T> x = block_of(range, weights);
    for (Index m = 0; m < call_.modifiers; ++m) {
      const TensorView<T>& target = call_.targets[m];
      s_.by_row[m] = s_.by_key[m] = nullptr;
      if (target.data == nullptr || (target.length > 1 && target.dim > 1)) continue;
      if (target.dim > 1)
        s_.by_key[m] = sums_.by_key + m * p_.keys + range.begin;
      else
        s_.by_row[m] = s_.parameters + m * width;
    }
    x.parameter_rows = s_.by_row, x.parameter_keys = s_.by_key;
    if (guard_) x.seen = s_.seen;
    derive(x);
    if (guard_) return add_guarded(range, k);

    if (s_.coming == nullptr)
      add_values<T, V>(s_.gradients, k.data, k.stride, keys, p_.dim, s_.dq, Onto::output, nullptr);
    else
      add_values<T, V>(s_.gradients, k.data, k.stride, keys, p_.dim, s_.dq, Onto::output, nullptr, asking());
    pending_ = true;
  }

  /// As the end of pass where a number is not finite: it must not meet the 0 of what is masked.
  ATTENTION_BALANCER_NOINLINE void add_guarded(const KeyRange& range, const Rows<T>& k) noexcept {
    for (Index j = 0; j < range.end - range.begin; ++j) {
      T* const dk = sums_.dk + (range.begin + j) * key_stride();
      T* const dv = sums_.dv + (range.begin + j) * value_stride();
      for (Index i = 0; i < count_; ++i) {
        if (s_.seen[j * width + i] == T(0)) continue;
        saw_[i] = T(1);
        const T p = s_.scores[j * width + i], ds = s_.gradients[j * width + i];
        for (Index c = 0; c < p_.value_dim; ++c)
          dv[c] = simd::fma(p, s_.output_rows[i * row_stride<T>(p_.value_dim) + c], dv[c]);
        for (Index c = 0; c < p_.dim; ++c) {
          dk[c] = simd::fma(ds, s_.query_rows[i * row_stride<T>(p_.dim) + c], dk[c]);
          s_.dq[c * width + i] = simd::fma(ds, k.data[j * k.stride + c], s_.dq[c * width + i]);
        }
      }
    }
  }

  Index key_stride() const noexcept { return padded_features<T>(p_.dim); }
  Index value_stride() const noexcept { return padded_features<T>(p_.value_dim); }

  const Index kv_head_;
  const bool keys_finite_, decoded_;  // decoded: how the forward pass has the scores
  Index ranges_ = 0;
  Walk walk_{};
  KeyRange range_{};      // of the last step
  bool pending_ = false;  // whether its strips are still to be added to the gradients of its keys
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
