#pragma once
// Decoding: attention of the few queries of all heads that share a key head, over one split of the keys.
//
// The rows of a group are its queries, head by head. Where they are few, scores, weights and outputs lie row by row:
// lanes are keys, then features. Where they fill packs, lanes are rows. A split is walked in blocks of keys; while the
// scores of a block are computed its values are asked for from memory, and while the values are added, the keys of the
// next block.

#include <algorithm>

#include "attention_balancer/attention/detail/decode_integers.hpp"
#include "attention_balancer/attention/detail/split_lanes.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// One split of one group.
template <Scalar T, class Stored>
class SplitWork : SplitLanes<T, Stored> {
  using Base = SplitLanes<T, Stored>;
  using Base::call_, Base::x_, Base::p_, Base::sizes_, Base::batch_, Base::kv_head_, Base::s_, Base::output_;
  using Base::load_queries, Base::locate, Base::load_scales, Base::cover, Base::bend_row, Base::keep_nothing;
  using Base::shrink_output, Base::add_guarded;
  using Base::states_, Base::kept_, Base::n;
  using Base::turn_queries, Base::begin_lanes, Base::attend_lanes, Base::finish_lanes;

 public:
  using Base::Base;

  /// The keys that will be walked next; a guess, nothing depends on it.
  struct Following {
    const KvView<Stored>* x;
    Index batch, kv_head, begin, end;
  };

  void run(Index begin, Index end, const Following& following) noexcept {
    following_ = following;
    load_queries();
    if (sizes_.in_lanes) turn_queries();
    if (in_integers()) round_queries();
    attend(begin, end, false);
    // A value that is infinite or not a number may have met the weight 0 of a row that does not see it. That shows
    // in the output, and is rare.
    const T* const all = output_;
    if (!all_finite<T>(all, sizes_.rows * sizes_.value_dim / simd::lanes<T>)) attend(begin, end, true);
  }

  /// For a problem of one row: as run, from its scores of the keys [begin, end) and without one of them.
  ATTENTION_BALANCER_NOINLINE void run_without(Index key, Index begin, Index end, const T* scores) noexcept {
    for (const bool guard : {false, true}) {
      std::fill_n(output_, sizes_.value_dim, T(0));
      *states_ = {};
      for (Index from = begin; from < end; from += block_keys) {
        const Index to = std::min(from + block_keys, end), count = to - from;
        std::copy_n(scores + (from - begin), count, s_.strip);
        std::fill(s_.strip + count, s_.strip + DecodeSizes<T>::strip, -infinity<T>);
        if (key >= from && key < to) s_.strip[key - from] = -infinity<T>;
        if (guard) std::copy_n(s_.strip, DecodeSizes<T>::strip, s_.spare);
        locate(x_, x_.values, batch_, kv_head_, from, to, s_.values, s_.packed_values);
        if (x_.value_scales.data != nullptr) load_scales(x_.value_scales, from, to, s_.value_scales);
        weigh(count);
        if (x_.value_scales.data != nullptr) scale_weights(count);
        guard ? add_guarded(0, 1, count) : add(count, s_.values);
      }
      const T* const all = output_;
      if (all_finite<T>(all, sizes_.value_dim / simd::lanes<T>)) return;
    }
  }

  /// |v_j - o|^2 for the keys [begin, end) of a block into the spare strip; output [Dv], zeros behind.
  void distances(Index begin, Index end, const T* output) noexcept {
    locate(x_, x_.values, batch_, kv_head_, begin, end, s_.values, s_.packed_values);
    const bool scaled = x_.value_scales.data != nullptr;
    if (scaled) load_scales(x_.value_scales, begin, end, s_.value_scales);
    distance_row<T, Stored>(output, s_.values, scaled ? s_.value_scales : nullptr, end - begin, p_.value_dim,
                            s_.spare);
  }

 private:
  static constexpr bool may_use_integers = has_integers<T, Stored>;
  bool in_integers() const noexcept { return may_use_integers && sizes_.words > 0; }

  void attend(Index begin, Index end, bool guard) noexcept {
    std::fill_n(output_, sizes_.rows * sizes_.value_dim, T(0));
    std::fill_n(states_, sizes_.rows, RowSoftmax<T>{});
    if (sizes_.in_lanes) begin_lanes();
    const bool pack_keys = x_.keys.dim_stride != 1 && x_.keys.dim > 1;
    const bool follows = following_.begin < following_.end;
    Index located = -1, half = 0;  // the block whose keys are located, and in which of the two tables
    for (Index from = begin; from < end; from += block_keys) {
      const Index to = std::min(from + block_keys, end), count = to - from;
      if (!cover(from, to)) {
        keep_nothing(from, count);
        continue;
      }
      if (located != from) locate(x_, x_.keys, batch_, kv_head_, from, to, s_.keys[half], s_.packed_keys);
      const Stored* const* keys = s_.keys[half];
      const Stored *const *values = keys, *const *next = s_.values;
      if (p_.value_dim > 0) {
        locate(x_, x_.values, batch_, kv_head_, from, to, s_.values, s_.packed_values);
        values = s_.values;
        if (x_.value_scales.data != nullptr) load_scales(x_.value_scales, from, to, s_.value_scales);
        if (!pack_keys && (to < end || follows)) {
          half = 1 - half;
          Index count_next;
          if (to < end) {
            located = to;
            count_next = std::min(block_keys, end - to);
            locate(x_, x_.keys, batch_, kv_head_, to, to + count_next, s_.keys[half], nullptr);
          } else {
            count_next = std::min(block_keys, following_.end - following_.begin);
            locate(*following_.x, following_.x->keys, following_.batch, following_.kv_head, following_.begin,
                   following_.begin + count_next, s_.keys[half], nullptr);
          }
          // A shorter block, the last one, is asked for again and again at its last keys: they are there by then.
          for (Index j = count_next + table_slack; j < DecodeSizes<T>::strip; ++j)
            s_.keys[half][j] = s_.keys[half][count_next];
          next = s_.keys[half];
        }
      }
      if (kept_.weights != nullptr && to < end) {
        constexpr Index line = 64 / static_cast<Index>(sizeof(T));
        for (Index r = 0; r < sizes_.rows; ++r)
          for (Index j = to; j < std::min(to + block_keys, end); j += line)
            simd::prefetch_to_write(kept_.weights + r * kept_.stride + j);
      }
      if (sizes_.in_lanes) {
        attend_lanes({keys, values, next, from, to, guard});
        continue;
      }
      score(keys, from, to, values);
      if (guard) std::copy_n(s_.strip, sizes_.rows * DecodeSizes<T>::strip, s_.spare);
      weigh(count);
      if (kept_.weights != nullptr) keep(from, count);
      if (p_.value_dim == 0) continue;
      if (x_.value_scales.data != nullptr && !in_integers()) scale_weights(count);
      guard && !in_integers() ? add_guarded(0, sizes_.rows, count) : add(count, next, guard);
    }
    if (sizes_.in_lanes) finish_lanes(guard);
  }

  /// Scores of a block into the strip, after all policies, -inf behind them.
  void score(const Stored* const* keys, Index from, Index to, const Stored* const* values) noexcept {
    const Index count = to - from, stride = DecodeSizes<T>::strip;
    for_row_tiles(sizes_.rows, [&]<int R>(std::integral_constant<int, R>, Index r) {
      T* const scores = s_.strip + r * stride;
      const Stored* const* const ahead = r == 0 ? values : keys;
      if constexpr (may_use_integers)
        if (in_integers())
          return score_integers<T, R>(s_.query_words + r * sizes_.words, sizes_.words, keys, count, p_.dim, scores,
                                      stride, ahead, s_.spare + r * stride);
      score_rows<T, Stored, R>(s_.queries + r * sizes_.dim, sizes_.dim, keys, count, p_.dim, scores, stride, ahead);
    });
    const bool scaled = x_.key_scales.data != nullptr;
    if (scaled) load_scales(x_.key_scales, from, to, s_.key_scales);
    for (Index r = 0; r < sizes_.rows; ++r) {
      T* row = s_.strip + r * stride;
      if (in_integers())
        multiply(row, s_.key_scales, count, s_.query_factors[r]);
      else if (scaled)
        multiply(row, s_.key_scales, count);
      bend_row(row, r, from, to);
      std::fill(row + count, row + stride, -infinity<T>);
      if (kept_.scores != nullptr) std::copy_n(row, count, kept_.scores + r * kept_.score_stride + from);
    }
  }

  /// x [whole packs of count] *= factors
  static void multiply(T* x, const T* factors, Index count) noexcept {
    using S = simd::Pack<T>;
    for (Index i = 0; i < count; i += n)
      simd::store_aligned(x + i, simd::load_aligned<S>(x + i) * simd::load_aligned<S>(factors + i));
  }

  /// x *= factors * factor
  static void multiply(T* x, const T* factors, Index count, T factor) noexcept {
    using S = simd::Pack<T>;
    for (Index i = 0; i < count; i += n)
      simd::store_aligned(x + i, simd::load_aligned<S>(x + i) * S(factor) * simd::load_aligned<S>(factors + i));
  }

  void round_queries() noexcept {
    if constexpr (may_use_integers)
      for (Index r = 0; r < sizes_.rows; ++r)
        s_.query_factors[r] = round_row<false, T>(s_.queries + r * sizes_.dim, nullptr, sizes_.dim,
                                                  s_.query_words + r * sizes_.words, sizes_.words / (2 * n));
  }

  /// Scores become weights; what is already added up comes down to the new tops.
  void weigh(Index count) noexcept {
    const Index whole = (count + n - 1) / n * n;
    for (Index r = 0; r < sizes_.rows; ++r) {
      T* row = s_.strip + r * DecodeSizes<T>::strip;
      const T shrink = kept_.weights != nullptr ? weigh_row<true>(row, whole, states_[r])
                                                : weigh_row<false>(row, whole, states_[r]);
      shrink_output(r, shrink);
    }
  }

  void scale_weights(Index count) noexcept {
    for (Index r = 0; r < sizes_.rows; ++r) multiply(s_.strip + r * DecodeSizes<T>::strip, s_.value_scales, count);
  }

  void keep(Index from, Index count) noexcept {
    for (Index r = 0; r < sizes_.rows; ++r) {
      std::copy_n(s_.strip + r * DecodeSizes<T>::strip, count, kept_.weights + r * kept_.stride + from);
      kept_.tops[r * kept_.top_stride + from / block_keys] = states_[r].top;
    }
  }

  /// The weights of a row times the scales of the values as words. `guard`: only of the keys that it sees, so that it
  /// keeps its bits whatever the others are; the spare strip has their scores.
  void round_weights(Index r, Index count, bool guard) noexcept {
    if constexpr (may_use_integers) {
      T* const row = s_.strip + r * DecodeSizes<T>::strip;
      const T* const scores = s_.spare + r * DecodeSizes<T>::strip;
      if (guard) {
        multiply(row, s_.value_scales, count);
        for (Index j = 0; j < count; ++j)
          if (scores[j] == -infinity<T>) row[j] = T(0);
      }
      const auto round = guard ? round_row<false, T> : round_row<true, T>;
      s_.weight_factors[r] = round(row, s_.value_scales, (count + n - 1) / n * n, s_.weight_words + r * block_keys,
                                   (count + 2 * n - 1) / (2 * n));
    }
  }

  /// output += weights V; `guard`: in integers without the keys that a row does not see.
  void add(Index count, const Stored* const* next, bool guard = false) noexcept {
    constexpr Index stride = DecodeSizes<T>::strip;
    for_row_tiles(sizes_.rows, [&]<int R>(std::integral_constant<int, R>, Index r) {
      if constexpr (may_use_integers)
        if (in_integers()) {
          for (Index i = r; i < r + R; ++i) round_weights(i, count, guard);
          return add_integers<T, R>(s_.weight_words + r * block_keys, block_keys, s_.values, count, p_.value_dim,
                                    s_.weight_factors + r, output_ + r * sizes_.value_dim, sizes_.value_dim,
                                    r == 0 ? next : s_.values);
        }
      value_rows<T, Stored, R>(s_.strip + r * stride, stride, s_.values, count, p_.value_dim,
                               output_ + r * sizes_.value_dim, sizes_.value_dim, r == 0 ? next : s_.values);
    });
  }

  Following following_{};
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
