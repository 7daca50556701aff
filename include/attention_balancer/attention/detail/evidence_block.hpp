#pragma once
// What a block of queries leaves behind beside its output: lse and entropy of its queries, and from the strip of all
// weights, which is still there, the mass of each key and the other statistics.

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/detail/statistic.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Evidence of a block whose output is stored. Uses up its strip and its memory.
template <Scalar T, int V>
class BlockEvidence {
 public:
  explicit BlockEvidence(Block<T, V>& block) noexcept
      : block_(block),
        call_(block.call_),
        p_(block.p_),
        s_(block.s_),
        evidence_(block.evidence_),
        state_(block.state_),
        result_(block.result_),
        u_(block.u_) {}

  void store() noexcept {
    std::copy_n(result_.lse, block_.count_, evidence_.lse + block_.first_);
    std::copy_n(result_.entropy, block_.count_, evidence_.entropy + block_.first_);
    if (is_sparse(call_.normalization)) store_sparse();
    for (Index i = 0; i < block_.count_; ++i)
      if (state_.sum[i] == T(0)) evidence_.totals[1] += T(1);
    if (!block_.weighted_) return;

    const bool leave_one_out = call_.statistic == evidence::Kind::leave_one_out;
    if (leave_one_out) multiply_rows<T, V>(s_.output, p_.value_dim, result_.factor);
    alignas(64) T factor[width];
    T u_of_block(0);
    for (Index i = 0; i < width; ++i) {
      factor[i] = u_[i] == T(0) ? T(0) : u_[i] * result_.factor[i];
      if (u_[i] != T(0)) evidence_.totals[0] += u_[i] * result_.sink[i];
      u_of_block += u_[i];
      if (!std::isfinite(state_.sum[i])) isolate(i, factor);
    }
    if (leave_one_out) square_outputs();
    const T* weights = s_.strip;
    for (Index r = 0; r < block_.ranges_; ++r) {
      const KeyRange& range = s_.ranges[r];
      add_mass<T, V>(weights, range.end - range.begin, factor, evidence_.mass + range.begin);
      if (evidence_.statistic != nullptr) add_statistic(range, weights);
      weights += (range.end - range.begin) * width;
      const Index mixed_begin = range.partial ? range.mixed_begin : range.end;
      const Index mixed_end = range.partial ? range.mixed_end : range.end;
      add_to_all(evidence_.exposure + range.begin, mixed_begin - range.begin, u_of_block);
      if (range.partial)
        call_.policies.expose[V - 1](call_.policies.policies, block_.place(mixed_begin, mixed_end), u_,
                                     evidence_.exposure);
      add_to_all(evidence_.exposure + mixed_end, range.end - mixed_end, u_of_block);
    }
    if (leave_one_out && std::any_of(dominant_, dominant_ + width, [](Index row) { return row >= 0; }))
      add_without_dominant();
  }

 private:
  using B = Block<T, V>;
  static constexpr Index width = B::width;

  ATTENTION_BALANCER_NOINLINE void store_sparse() noexcept {
    const T unit = call_.normalization.kind == Normalization::Kind::entmax15 ? T(2) : T(1);
    for (Index i = 0; i < block_.count_; ++i) {
      evidence_.support[block_.first_ + i] = static_cast<Index>(block_.sparse_.support[i]);
      if (block_.has_weights())
        evidence_.lse[block_.first_ + i] = state_.top[i] == -infinity<T> && state_.sum[i] == T(0)
                                               ? -infinity<T>
                                               : state_.offset[i] + unit * block_.sparse_.threshold[i];
    }
  }

  /// Leave-one-out of the keys that take nearly all of a query: the output without them, added up from the others.
  ATTENTION_BALANCER_NOINLINE void add_without_dominant() noexcept {
    Index keys[width];
    alignas(64) T p[width];
    bool sole[width], others_seen = false;
    for (Index i = 0; i < width; ++i) {
      if (dominant_[i] < 0) continue;
      T& weight = s_.strip[dominant_[i] * width + i];
      p[i] = weight * result_.factor[i];
      weight = T(0);
      keys[i] = key_of_row(dominant_[i]);
      sole[i] = sees_only(block_.first_ + i, keys[i]);
      others_seen = others_seen || !sole[i];
    }
    Normalized<T> others;
    std::fill_n(others.factor, width, T(0));
    if (others_seen) {
      sum_kept_weights();
      normalize_block<T, V>(state_, block_.sink(), false, others);
      // Measured by the largest weight, which is left out, all others may be too small for a number.
      const T most = 1 / std::sqrt(std::numeric_limits<T>::min());
      bool lost = false;
      for (Index i = 0; i < width; ++i)
        lost = lost || (dominant_[i] >= 0 && !sole[i] && !(others.factor[i] > T(0) && others.factor[i] < most));
      B* const alone[] = {&block_};
      if (lost && !block_.has_weights()) {
        attend_without_dominant();
        normalize_block<T, V>(state_, block_.sink(), false, others);
      } else {
        B::walk(alone, 1, [this](B&, Index r) { add_kept_values(r); });
      }
    }
    for (Index i = 0; i < width; ++i) {
      if (dominant_[i] < 0) continue;
      const Rows<T> v = block_.rows_.values({keys[i], keys[i] + 1, false});
      T distance(0);
      for (Index c = 0; c < p_.value_dim; ++c) {
        const T other = others.factor[i] == T(0) ? T(0) : s_.output[c * width + i] * others.factor[i];
        const T d = v.data[c] - other;
        distance += d * d;
      }
      evidence_.statistic[keys[i]] += u_[i] * p[i] * p[i] * distance;
    }
  }

  /// The key of a row of the strip.
  Index key_of_row(Index row) const noexcept {
    const KeyRange* range = s_.ranges;
    for (; row >= range->end - range->begin; ++range) row -= range->end - range->begin;
    return range->begin + row;
  }

  /// Whether the masks can tell, without looking at each key, that a query sees no other one.
  bool sees_only(Index query, Index key) const noexcept {
    auto unseen = [&](Index begin, Index end) {
      return begin == end ||
             (call_.policies.has_masks &&
              call_.policies.classify(call_.policies.policies,
                                      {query, query + 1, begin, end, call_.first_batch + block_.batch_,
                                       block_.head_, p_.queries, p_.keys}) == mask::Coverage::skip);
    };
    return unseen(0, key) && unseen(key + 1, p_.keys);
  }

  /// Output and state of all keys but those of dominant_, from the scores once more.
  void attend_without_dominant() noexcept {
    B* const alone[] = {&block_};
    block_.start();
    B::walk(alone, 1, [](B& block, Index r) { block.step(r, false); });
    block_.turn();
    for (Index i = 0; i < width; ++i)
      if (dominant_[i] >= 0) s_.strip[dominant_[i] * width + i] = -infinity<T>;
    std::fill_n(block_.top_, width, -infinity<T>);
    for_kept([this](const T* scores, Index keys) { raise_to_rows<T, V>(scores, keys, block_.top_); });
    state_.clear();
    raise_top<T, V>(state_, block_.top_);
    B::walk(alone, 1, [](B& block, Index r) { block.spend_kept(r, block.guarded_); });
  }

  void sum_kept_weights() noexcept {
    std::fill_n(state_.sum, width, T(0));
    for_kept([this](const T* weights, Index keys) { add_rows<T, V>(weights, keys, state_.sum); });
  }

  /// f(rows of the strip, their number) for each range.
  template <class F>
  void for_kept(F f) const noexcept {
    const T* rows = s_.strip;
    for (Index r = 0; r < block_.ranges_; ++r) {
      const Index keys = s_.ranges[r].end - s_.ranges[r].begin;
      f(rows, keys);
      rows += keys * width;
    }
  }

  /// The weights of a range as they are, times its values. Values that are not finite are left out: an output that
  /// is finite has not met them.
  void add_kept_values(Index r) noexcept {
    if (r == 0) block_.kept_ = s_.strip;
    const Index keys = s_.ranges[r].end - s_.ranges[r].begin;
    if (p_.value_dim > 0) {
      Rows<T> v = block_.rows_.values(s_.ranges[r]);
      if (block_.guarded_) v = block_.rows_.guarded(v, s_.ranges[r]);
      add_values<T, V>(block_.kept_, v.data, v.stride, keys, p_.value_dim, s_.output,
                       r == 0 ? Onto::zero : Onto::output, state_.shrink, block_.far_);
    }
    block_.kept_ += keys * width;
  }

  /// output_squares_ [W] = |o|^2, of normalised outputs. Notes what leave-one-out must expect: a key with p >= 1/2
  /// (the largest weight of a query is 1), and outputs that are not finite.
  void square_outputs() noexcept {
    std::fill_n(output_squares_, width, T(0));
    for (Index c = 0; c < p_.value_dim; ++c)
      for (Index i = 0; i < width; ++i) output_squares_[i] += s_.output[c * width + i] * s_.output[c * width + i];
    std::fill_n(dominant_, width, Index(-1));
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
    const Rows<T> v = block_.rows_.values(range);
    const Index row = (weights - s_.strip) / width;
    for (Index j = 0; j < keys; j += leave_one_out_keys) {
      const Index now = std::min(leave_one_out_keys, keys - j);
      const T* values = v.data + j * v.stride;
      score_keys<T, V>(s_.output, values, v.stride, now, p_.value_dim, s_.spare, nullptr);
      add_leave_one_out<T, V>(
          {weights + j * width, result_.factor, u_},
          {s_.output, output_squares_, values, v.stride, p_.value_dim, s_.spare, row + j, dominant_}, peaked_,
          finite_, now, into + j);
    }
  }

  /// A row that is not a number makes the masses that it touches so, and no others: not those of keys that it does
  /// not see, and none at all if its query weighs nothing.
  ATTENTION_BALANCER_NOINLINE void isolate(Index i, T* factor) noexcept {
    alignas(64) T top[width] = {};
    T* weights = s_.strip;
    for (Index r = 0; r < block_.ranges_; ++r) {
      block_.enter();
      block_.score(s_.ranges[r], s_.spare, top);  // once more: a weight of 0 does not tell masked from small
      for (Index j = 0; j < s_.ranges[r].end - s_.ranges[r].begin; ++j, weights += width)
        weights[i] =
            u_[i] == T(0) || s_.spare[j * width + i] == -infinity<T> ? T(0) : std::numeric_limits<T>::quiet_NaN();
    }
    factor[i] = result_.factor[i] = T(1);
  }

  B& block_;
  const Call<T>& call_;
  const Problem& p_;
  const Scratch<T>& s_;
  const EvidenceRows<T>& evidence_;
  OnlineState<T>& state_;
  Normalized<T>& result_;
  const T* const u_;
  alignas(64) T output_squares_[width];
  Index dominant_[width];  // the row of the strip whose key takes nearly all of a query; -1 if there is none
  bool peaked_ = false, finite_ = true;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
