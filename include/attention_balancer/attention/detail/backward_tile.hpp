#pragma once
// The third matrix product of the backward pass, into the gradients of keys and values: it contracts over the
// queries, which are the lanes of the strip, so here the lanes are features.
//
// A block of queries lies in rows, [count, D padded to packs]; the strip [keys, W] is read one broadcast element at
// a time, and a tile of R keys x V packs of features is loaded, added to and stored once per block of queries.

#include "attention_balancer/attention/detail/tile.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// sums [tiles * R, V packs] += strip [tiles * R, depth]^T rows [depth, V packs], for one tile or more
template <Scalar T, int V, int R>
ATTENTION_BALANCER_NOINLINE void key_tiles(const T* rows, Index stride, const T* strip, Index width, Index depth,
                                           Index tiles, T* sums) noexcept {
  using S = simd::Pack<T>;
  S tile[R][V];
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) load_row<T>(sums + r * stride, tile[r]);
  for (;; sums += R * stride) {
    ATTENTION_BALANCER_NO_UNROLL
    for (Index i = 0; i < depth; ++i) {
      S features[V];
      load_row<T>(rows + i * stride, features);
      ATTENTION_BALANCER_UNROLL
      for (int r = 0; r < R; ++r) {
        const S scalar(strip[r * width + i]);
        ATTENTION_BALANCER_UNROLL
        for (int v = 0; v < V; ++v) tile[r][v] = simd::fma(scalar, features[v], tile[r][v]);
      }
    }
    if (--tiles == 0) break;
    strip += R * width;
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) {
      store_row<T>(sums + r * stride, tile[r]);
      load_row<T>(sums + (R + r) * stride, tile[r]);
      keep_order(tile[r]);
    }
  }
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) store_row<T>(sums + r * stride, tile[r]);
}

/// Keys in tiles of R rows, what is left in tiles of the next size.
template <Scalar T, int V, int R, int... Smaller>
void add_to_keys(const T* rows, Index stride, const T* strip, Index width, Index depth, Index keys,
                 T* sums) noexcept {
  const Index tiles = keys / R, j = tiles * R;
  if (tiles > 0) key_tiles<T, V, R>(rows, stride, strip, width, depth, tiles, sums);
  if constexpr (sizeof...(Smaller) > 0)
    if (j < keys)
      add_to_keys<T, V, Smaller...>(rows, stride, strip + j * width, width, depth, keys - j, sums + j * stride);
}

/// sums [keys, stride] += strip [keys, W]^T rows [depth, stride]; stride is a whole number of packs of features.
template <Scalar T>
void add_queries(const T* rows, Index stride, const T* strip, Index width, Index depth, Index keys,
                 T* sums) noexcept {
  constexpr int n = simd::lanes<T>;
  Index c = 0;
  if constexpr (has_32_registers)
    for (; c + 4 * n <= stride; c += 4 * n)
      add_to_keys<T, 4, 6, 2, 1>(rows + c, stride, strip, width, depth, keys, sums + c);
  for (; c + 2 * n <= stride; c += 2 * n) {
    if constexpr (has_32_registers)
      add_to_keys<T, 2, 12, 4, 1>(rows + c, stride, strip, width, depth, keys, sums + c);
    else
      add_to_keys<T, 2, 6, 2, 1>(rows + c, stride, strip, width, depth, keys, sums + c);
  }
  if (c < stride) add_to_keys<T, 1, 8, 1>(rows + c, stride, strip, width, depth, keys, sums + c);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
