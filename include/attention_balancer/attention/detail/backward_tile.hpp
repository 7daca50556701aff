#pragma once
// The third matrix product of the backward pass, into the gradients of keys and values: it contracts over the
// queries, which are the lanes of the strip, so here the lanes are features.
//
// Blocks of queries lie in rows, [depth, D padded to packs]; their strips [keys, W] are read one broadcast element at a
// time, and a tile of R keys x V packs of features is loaded, added to and stored once for all of the blocks.

#include <algorithm>

#include "attention_balancer/attention/detail/tile.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Blocks of queries, W each but the last: their strips [keys, W], and their rows.
template <Scalar T>
struct QueryBlocks {
  const T* strips;
  Index width, apart;  // W, and from one strip to the next
  Index depth;         // queries in all
  const T* rows;       // [depth, stride]
  Index stride;
};

/// sums [tiles * R, V packs] += strips [tiles * R, depth]^T rows [depth, V packs], for one tile or more
template <Scalar T, int V, int R>
ATTENTION_BALANCER_NOINLINE void key_tiles(QueryBlocks<T> blocks, Index tiles, T* sums, Index stride) noexcept {
  using S = simd::Pack<T>;
  const Index width = blocks.width, row_stride = blocks.stride;
  S tile[R][V];
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) load_row<T>(sums + r * stride, tile[r]);
  for (;; sums += R * stride) {
    const T *row = blocks.rows, *strip = blocks.strips;
    ATTENTION_BALANCER_NO_UNROLL
    for (Index left = blocks.depth; left > 0; left -= width, strip += blocks.apart) {
      ATTENTION_BALANCER_NO_UNROLL
      for (const T *at = strip, *const end = strip + std::min(left, width); at != end; ++at, row += row_stride) {
        S features[V];
        load_row<T>(row, features);
        ATTENTION_BALANCER_UNROLL
        for (int r = 0; r < R; ++r) {
          const S scalar(at[r * width]);
          ATTENTION_BALANCER_UNROLL
          for (int v = 0; v < V; ++v) tile[r][v] = simd::fma(scalar, features[v], tile[r][v]);
        }
      }
    }
    if (--tiles == 0) break;
    blocks.strips += R * width;
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
void add_to_keys(QueryBlocks<T> blocks, Index keys, T* sums, Index stride) noexcept {
  const Index tiles = keys / R, j = tiles * R;
  if (tiles > 0) key_tiles<T, V, R>(blocks, tiles, sums, stride);
  if constexpr (sizeof...(Smaller) > 0)
    if (j < keys) {
      blocks.strips += j * blocks.width;
      add_to_keys<T, V, Smaller...>(blocks, keys - j, sums + j * stride, stride);
    }
}

/// sums [keys, stride] += strips [keys, depth]^T rows [depth, stride]; stride is a whole number of packs of features.
template <Scalar T>
void add_queries(QueryBlocks<T> blocks, Index keys, T* sums, Index stride) noexcept {
  constexpr int n = simd::lanes<T>;
  Index c = 0;
  if constexpr (has_32_registers)
    for (; c + 4 * n <= stride; c += 4 * n, blocks.rows += 4 * n)
      add_to_keys<T, 4, 6, 2, 1>(blocks, keys, sums + c, stride);
  for (; c + 2 * n <= stride; c += 2 * n, blocks.rows += 2 * n) {
    if constexpr (has_32_registers)
      add_to_keys<T, 2, 12, 4, 1>(blocks, keys, sums + c, stride);
    else
      add_to_keys<T, 2, 6, 2, 1>(blocks, keys, sums + c, stride);
  }
  if (c < stride) add_to_keys<T, 1, 8, 1>(blocks, keys, sums + c, stride);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
