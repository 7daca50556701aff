#pragma once
// Decoding: attention of the few queries of all heads that share a key head, over one split of the keys.
//
// The rows of a group are its queries, head by head. Scores, weights and outputs of the rows of a group lie row by
// row: lanes are keys, then features. A split is walked in blocks of keys; while the scores of a block are computed
// its values are asked for from memory, and while the values are added, the keys of the next block.

#include <algorithm>

#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/detail/decode_tile.hpp"
#include "attention_balancer/attention/detail/layout.hpp"
#include "attention_balancer/cache/kv_view.hpp"
#include "attention_balancer/softmax/row_softmax.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// How the keys of a sequence are cut, by their own number only: results depend neither on who computes the splits
/// nor on other sequences.
struct Splits {
  static constexpr Index longest = 4096;
  Index length, count;

  explicit Splits(Index keys) noexcept
      : length((std::clamp(keys / 16, Index(512), longest) + block_keys - 1) / block_keys * block_keys),
        count(std::max(Index(1), (keys + length - 1) / length)) {}
};

/// Sizes of a decoding call.
template <Scalar T>
struct DecodeSizes {
  Index rows;            // queries of the heads of a group
  Index dim, value_dim;  // padded to whole packs
  static constexpr Index strip = block_keys + table_slack;

  explicit DecodeSizes(const Problem& p) noexcept
      : rows(p.heads / p.kv_heads * p.queries), dim(padded(p.dim)), value_dim(padded(p.value_dim)) {}

  static Index padded(Index n) noexcept { return (n + 15) / 16 * 16; }

  /// Numbers in the record of a split: outputs [rows, value_dim], states [rows, 3].
  Index record() const noexcept { return rows * value_dim + padded(3 * rows); }
};

/// Memory of one worker.
template <Scalar T, class Stored>
struct DecodeScratch {
  T *queries, *strip, *spare;           // [rows, D], [rows, block_keys], the same
  T *key_scales, *value_scales;         // [block_keys]
  const Stored** keys[2];               // addresses of the keys of a block and of the next one
  const Stored** values;                // [block_keys]
  Stored *packed_keys, *packed_values;  // [block_keys, D], only for strided features
  unsigned char* coverage;              // [rows]: what the masks leave of a block, by row
  T* factors;                           // [splits] or [blocks of a split]
  T* without;                           // the record of one row without a key

  /// As Scratch::carve. `size` sees the number of bytes of each array, for the check of overflow.
  template <class Take>
  void carve(const DecodeSizes<T>& sizes, const Problem& p, bool pack_keys, bool pack_values, Index splits,
             Take take) {
    take(queries, sizes.rows, sizes.dim);
    take(strip, sizes.rows, DecodeSizes<T>::strip);
    take(spare, sizes.rows, DecodeSizes<T>::strip);
    take(key_scales, Index(1), DecodeSizes<T>::strip);
    take(value_scales, Index(1), DecodeSizes<T>::strip);
    take(keys[0], Index(1), DecodeSizes<T>::strip);
    take(keys[1], Index(1), DecodeSizes<T>::strip);
    take(values, Index(1), DecodeSizes<T>::strip);
    take(packed_keys, pack_keys ? block_keys : 0, p.dim);
    take(packed_values, pack_values ? block_keys : 0, p.value_dim);
    take(coverage, Index(1), sizes.rows);
    take(factors, Index(1), std::max(splits, DecodeSizes<T>::padded(Splits::longest / block_keys)));
    take(without, Index(1), sizes.value_dim + DecodeSizes<T>::padded(3));
  }
};

/// What is kept of the rows of a group until their softmax is known, so that no exponential is computed again: the
/// weights of each block of keys as they were used, and the top that they are measured from.
template <Scalar T>
struct KeptRows {
  T* weights = nullptr;  // [rows, Nk]; null: nothing is kept
  T* tops = nullptr;     // [rows, blocks of keys]
  T* scores = nullptr;   // [rows, Nk], for leave-one-out alone: a weight of 0 says nothing of what is left without
  Index stride = 0, score_stride = 0, top_stride = 0;
};

/// One split of one group.
template <Scalar T, class Stored>
class SplitWork {
 public:
  /// `record` is written, and what `kept` names.
  SplitWork(const Call<T>& call, const KvView<Stored>& x, const Problem& problem, Index batch, Index kv_head,
            const DecodeScratch<T, Stored>& scratch, T* record, const KeptRows<T>& kept) noexcept
      : call_(call),
        x_(x),
        p_(problem),
        sizes_(problem),
        batch_(batch),
        kv_head_(kv_head),
        group_(p_.heads / p_.kv_heads),
        s_(scratch),
        output_(record),
        states_(reinterpret_cast<RowSoftmax<T>*>(record + sizes_.rows * sizes_.value_dim)),
        kept_(kept) {}

  /// The keys that will be walked next; a guess, nothing depends on it.
  struct Following {
    const KvView<Stored>* x;
    Index batch, kv_head, begin, end;
  };

  void run(Index begin, Index end, const Following& following) noexcept {
    following_ = following;
    load_queries();
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
        guard ? add_guarded(count) : add(count, s_.values);
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

  void attend(Index begin, Index end, bool guard) noexcept {
    std::fill_n(output_, sizes_.rows * sizes_.value_dim, T(0));
    std::fill_n(states_, sizes_.rows, RowSoftmax<T>{});
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
      score(keys, from, to, values);
      if (guard) std::copy_n(s_.strip, sizes_.rows * DecodeSizes<T>::strip, s_.spare);
      weigh(count);
      if (kept_.weights != nullptr) keep(from, count);
      if (x_.value_scales.data != nullptr) scale_weights(count);
      if (p_.value_dim > 0) guard ? add_guarded(count) : add(count, next);
    }
  }

  /// Scores of a block into the strip, after all policies, -inf behind them.
  void score(const Stored* const* keys, Index from, Index to, const Stored* const* values) noexcept {
    const Index count = to - from, stride = DecodeSizes<T>::strip;
    for_row_tiles(sizes_.rows, [&]<int R>(std::integral_constant<int, R>, Index r) {
      score_rows<T, Stored, R>(s_.queries + r * sizes_.dim, sizes_.dim, keys, count, p_.dim, s_.strip + r * stride,
                               stride, r == 0 ? values : keys);
    });
    const bool scaled = x_.key_scales.data != nullptr;
    if (scaled) load_scales(x_.key_scales, from, to, s_.key_scales);
    for (Index r = 0; r < sizes_.rows; ++r) {
      T* row = s_.strip + r * stride;
      if (scaled) multiply_rows<T, 1>(row, s_.key_scales, (count + n - 1) / n);
      const auto covered = coverage(r);
      if (covered == mask::Coverage::skip) {
        std::fill_n(row, stride, -infinity<T>);
      } else {
        const bool partial = covered == mask::Coverage::partial;
        if (partial || call_.policies.has_modifiers)
          call_.policies.bend_keys(
              call_.policies.policies, row,
              {&p_, call_.first_batch + batch_, kv_head_ * group_ + r / p_.queries, r % p_.queries, from, to},
              partial);
        std::fill(row + count, row + stride, -infinity<T>);
      }
      if (kept_.scores != nullptr) std::copy_n(row, count, kept_.scores + r * kept_.score_stride + from);
    }
  }

  template <Scalar U, int>
  static void multiply_rows(U* x, const U* factors, Index packs) noexcept {
    using S = simd::Pack<U>;
    for (Index i = 0; i < packs; ++i)
      simd::store_aligned(x + i * n, simd::load_aligned<S>(x + i * n) * simd::load_aligned<S>(factors + i * n));
  }

  /// Scores become weights; what is already added up comes down to the new tops.
  void weigh(Index count) noexcept {
    const Index whole = (count + n - 1) / n * n;
    for (Index r = 0; r < sizes_.rows; ++r) {
      T* row = s_.strip + r * DecodeSizes<T>::strip;
      const T shrink = kept_.weights != nullptr ? weigh_row<true>(row, whole, states_[r])
                                                : weigh_row<false>(row, whole, states_[r]);
      if (shrink != T(1)) {
        T* output = output_ + r * sizes_.value_dim;
        for (Index c = 0; c < sizes_.value_dim; ++c) output[c] *= shrink;
      }
    }
  }

  void scale_weights(Index count) noexcept {
    for (Index r = 0; r < sizes_.rows; ++r)
      multiply_rows<T, 1>(s_.strip + r * DecodeSizes<T>::strip, s_.value_scales, (count + n - 1) / n);
  }

  void keep(Index from, Index count) noexcept {
    for (Index r = 0; r < sizes_.rows; ++r) {
      std::copy_n(s_.strip + r * DecodeSizes<T>::strip, count, kept_.weights + r * kept_.stride + from);
      kept_.tops[r * kept_.top_stride + from / block_keys] = states_[r].top;
    }
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

  void add(Index count, const Stored* const* next) noexcept {
    constexpr Index stride = DecodeSizes<T>::strip;
    for_row_tiles(sizes_.rows, [&]<int R>(std::integral_constant<int, R>, Index r) {
      value_rows<T, Stored, R>(s_.strip + r * stride, stride, s_.values, count, p_.value_dim,
                               output_ + r * sizes_.value_dim, sizes_.value_dim, r == 0 ? next : s_.values);
    });
  }

  /// The same sums, without the keys that a row does not see.
  ATTENTION_BALANCER_NOINLINE void add_guarded(Index count) noexcept {
    constexpr Index stride = DecodeSizes<T>::strip;
    for (Index r = 0; r < sizes_.rows; ++r)
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
  Following following_{};
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
