#pragma once
// A block of keys of a split where lanes are rows: scores, weights and outputs lie feature by feature or key by key,
// [.., V packs of rows], and are turned only for what works on rows: policies, and what is kept of the weights.

#include <algorithm>
#include <new>

#include "attention_balancer/attention/detail/split_parts.hpp"
#include "attention_balancer/attention/detail/tile.hpp"
#include "attention_balancer/softmax/online_state.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

template <Scalar T, class Stored>
class SplitLanes : protected SplitParts<T, Stored> {
  using Base = SplitParts<T, Stored>;

 protected:
  using Base::Base;
  using Base::call_, Base::x_, Base::p_, Base::sizes_, Base::s_, Base::output_, Base::states_, Base::kept_, Base::n;
  using Base::coverage, Base::load_scales, Base::bend_row, Base::shrink_output, Base::add_guarded;

  /// A block of keys: their addresses, those of rows to ask for meanwhile, and whether values that are not finite are
  /// kept from the rows that do not see them.
  struct LaneBlock {
    const Stored *const *keys, *const *ahead_of_scores, *const *ahead_of_values;
    Index from, to;
    bool guard;
  };

  /// Queries from rows to lanes. A lane without a row has zeros.
  void turn_queries() noexcept {
    for_lane_packs<T>(sizes_.rows, [&]<int V>(std::integral_constant<int, V>, Index r, Index rows) {
      T* const to = s_.lane_queries + r * sizes_.dim;
      if (rows < V * n) std::fill_n(to, p_.dim * V * n, T(0));
      copy_matrix(to, Index(V * n), Index(1), static_cast<const T*>(s_.queries + r * sizes_.dim), Index(1),
                  sizes_.dim, p_.dim, rows);
    });
  }

  void begin_lanes() noexcept {
    OnlineState<T>* state = s_.lane_states;
    for_lane_packs<T>(sizes_.rows, [&]<int V>(std::integral_constant<int, V>, Index r, Index) {
      (new (state++) OnlineState<T>)->clear();
      std::fill_n(s_.lane_output + r * sizes_.value_dim, p_.value_dim * V * n, T(0));
    });
  }

  void attend_lanes(const LaneBlock& block) noexcept {
    if (x_.key_scales.data != nullptr) load_scales(x_.key_scales, block.from, block.to, s_.key_scales);
    OnlineState<T>* state = s_.lane_states;
    for_lane_packs<T>(sizes_.rows, [&]<int V>(std::integral_constant<int, V>, Index r, Index rows) {
      score_block<V>(block, r, rows);
      spend_block<V>(block, r, rows, *state++);
    });
  }

  /// States and outputs from lanes to rows; a guarded output is there already.
  void finish_lanes(bool guard) noexcept {
    const OnlineState<T>* state = s_.lane_states;
    for_lane_packs<T>(sizes_.rows, [&]<int V>(std::integral_constant<int, V>, Index r, Index rows) {
      for (Index i = 0; i < rows; ++i) states_[r + i] = {state->top[i], state->sum[i], state->dot[i]};
      ++state;
      if (!guard)
        copy_matrix(output_ + r * sizes_.value_dim, sizes_.value_dim, Index(1),
                    static_cast<const T*>(s_.lane_output + r * sizes_.value_dim), Index(1), Index(V * n), rows,
                    p_.value_dim);
    });
  }

 private:
  static constexpr Index strip_stride = DecodeSizes<T>::strip;
  static_assert(OnlineState<T>::width == most_lane_packs * n);

  /// Rows of `to`, `to_stride` apart, from lanes of V packs.
  template <int V>
  static void turn(const T* lanes, Index rows, Index count, T* to, Index to_stride) noexcept {
    copy_matrix(to, to_stride, Index(1), lanes, Index(1), Index(V * n), rows, count);
  }

  /// Whether the policies change the scores of any of these rows.
  bool bends(Index first, Index rows) const noexcept {
    if (call_.policies.has_modifiers) return true;
    for (Index r = first; r < first + rows; ++r)
      if (coverage(r) != mask::Coverage::full) return true;
    return false;
  }

  /// Scores [keys, V packs], after all policies, into the strip of lanes.
  template <int V>
  ATTENTION_BALANCER_NOINLINE void score_block(const LaneBlock& block, Index r, Index rows) noexcept {
    const Index count = block.to - block.from;
    T *const scores = s_.lane_strip, *const of_rows = s_.strip + r * strip_stride;
    score_lanes<T, Stored, V>(s_.lane_queries + r * sizes_.dim, block.keys, count, p_.dim, scores, s_.converted,
                              r == 0 ? block.ahead_of_scores : block.keys);
    if (x_.key_scales.data != nullptr) scale_lanes<T, V>(scores, s_.key_scales, count);
    const bool bent = bends(r, rows);
    if (!bent && !block.guard && kept_.scores == nullptr) return;
    turn<V>(scores, rows, count, of_rows, strip_stride);
    if (bent) {
      for (Index i = 0; i < rows; ++i) {
        T* const row = of_rows + i * strip_stride;
        std::fill_n(row + count, n, T(0));  // policies see whole packs
        bend_row(row, r + i, block.from, block.to);
      }
      copy_matrix(scores, Index(V * n), Index(1), static_cast<const T*>(of_rows), Index(1), strip_stride, count,
                  rows);
    }
    for (Index i = 0; i < rows; ++i) {
      if (kept_.scores != nullptr)
        std::copy_n(of_rows + i * strip_stride, count, kept_.scores + (r + i) * kept_.score_stride + block.from);
      if (block.guard) std::copy_n(of_rows + i * strip_stride, count, s_.spare + (r + i) * strip_stride);
    }
  }

  /// Scores of the strip become weights, and the output has their values.
  template <int V>
  ATTENTION_BALANCER_NOINLINE void spend_block(const LaneBlock& block, Index r, Index rows,
                                               OnlineState<T>& state) noexcept {
    const Index count = block.to - block.from;
    T* const weights = s_.lane_strip;
    alignas(64) T top[V * n];
    std::fill_n(top, V * n, -infinity<T>);
    raise_to_rows<T, V>(weights, count, top);
    const bool shrunk = raise_top<T, V>(state, top);
    if (kept_.weights == nullptr) {
      weigh_scores<T, V, true, false>(weights, count, state);
    } else {
      weigh_scores<T, V, true, false, true>(weights, count, state);
      turn<V>(weights, rows, count, kept_.weights + r * kept_.stride + block.from, kept_.stride);
      for (Index i = 0; i < rows; ++i)
        kept_.tops[(r + i) * kept_.top_stride + block.from / block_keys] = state.top[i];
    }
    if (p_.value_dim == 0) return;
    if (x_.value_scales.data != nullptr) scale_lanes<T, V>(weights, s_.value_scales, count);
    if (block.guard) {
      turn<V>(weights, rows, count, s_.strip + r * strip_stride, strip_stride);
      for (Index i = 0; i < rows; ++i) shrink_output(r + i, state.shrink[i]);
      return add_guarded(r, rows, count);
    }
    T* const output = s_.lane_output + r * sizes_.value_dim;
    if (shrunk) detail::multiply_rows<T, V>(output, p_.value_dim, state.shrink);
    add_lane_values<T, Stored, V>(weights, s_.values, count, p_.value_dim, output, s_.converted,
                                  r == 0 ? block.ahead_of_values : s_.values);
  }
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
