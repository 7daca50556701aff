#pragma once
// Decoding: how the keys of a sequence are cut, and the memory of one worker.

#include <algorithm>
#include <cstdint>

#include "attention_balancer/attention/detail/decode_lanes.hpp"
#include "attention_balancer/attention/detail/decode_tile.hpp"
#include "attention_balancer/softmax/online_state.hpp"

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
  Index words;           // of a query in integers, padded to whole packs; 0 where nothing is multiplied in them
  bool in_lanes;         // whether rows are lanes: for integers tiles of rows are the faster ones
  static constexpr Index strip = block_keys + table_slack;

  DecodeSizes(const Problem& p, bool in_integers) noexcept
      : rows(p.heads / p.kv_heads * p.queries),
        dim(padded(p.dim)),
        value_dim(padded(p.value_dim)),
        words(in_integers ? 2 * padded((p.dim + 1) / 2) : 0),
        in_lanes(!in_integers && rows_are_lanes<T>(p)) {}

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
  unsigned char* coverage;              // [heads of the group]: what the masks leave of a block
  T* factors;                           // [splits] or [blocks of a split]
  T* without;                           // the record of one row without a key
  // Only for products of integers: queries and weights of a row as words, and what a word of each means.
  std::int16_t *query_words, *weight_words;  // [rows, words], [rows, block_keys]
  T *query_factors, *weight_factors;         // [rows]
  // Only where rows are lanes, in packs of them:
  T *lane_queries, *lane_output;  // [packs, D, lanes], [packs, Dv, lanes], a few packs at a time
  T* lane_strip;                  // [block_keys, most_lane_packs packs]
  T* converted;                   // [lane_keys, D or Dv]: rows of keys or values
  OnlineState<T>* lane_states;    // [packs]

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
    take(coverage, Index(1), p.heads / p.kv_heads);
    take(factors, Index(1), std::max(splits, DecodeSizes<T>::padded(Splits::longest / block_keys)));
    take(without, Index(1), sizes.value_dim + DecodeSizes<T>::padded(3));
    const Index of_integers = sizes.words > 0 ? sizes.rows : 0;
    take(query_words, of_integers, sizes.words);
    take(weight_words, of_integers, block_keys);
    take(query_factors, Index(1), of_integers);
    take(weight_factors, Index(1), of_integers);
    const Index packs = sizes.in_lanes ? (sizes.rows + simd::lanes<T> - 1) / simd::lanes<T> : 0;
    take(lane_queries, packs * simd::lanes<T>, sizes.dim);
    take(lane_output, packs * simd::lanes<T>, sizes.value_dim);
    take(lane_strip, packs > 0 ? block_keys : 0, Index(most_lane_packs * simd::lanes<T>));
    take(converted, packs > 0 ? lane_keys : 0, std::max(sizes.dim, sizes.value_dim));
    take(lane_states, Index(1), packs);
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

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
