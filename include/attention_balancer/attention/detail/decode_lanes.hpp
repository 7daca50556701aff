#pragma once
// The two matrix products of decoding where the rows of a group, the queries of the heads that share a key head, fill
// packs: lanes are rows.
//
// As in the tiles of prefill nothing is summed over lanes, and a key or value is read once for up to four packs of
// rows, one broadcast element at a time. The scores are bit by bit those of score_keys, but for the sign of a zero.

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "attention_balancer/attention/detail/decode_tile.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Packs of rows of a tile, at most.
inline constexpr int most_lane_packs = 4;

/// Keys or features of a tile of V packs of rows, so that all accumulators and what they share fit the registers; of
/// one pack half as many, whose addresses fit theirs.
template <int V>
inline constexpr int lane_tile = (has_32_registers && V > 1 ? 24 : 12) / V;

/// Keys whose values are added at a time: they and their weights stay in the first cache from one tile of features to
/// the next.
inline constexpr Index lane_keys = 64;

/// Runs f(constant, first row, rows) with the number of packs as a constant, for at most four packs of rows at a time.
template <Scalar T, class F>
ATTENTION_BALANCER_INLINE void for_lane_packs(Index rows, F f) noexcept {
  constexpr Index n = simd::lanes<T>;
  for (Index r = 0; r < rows;) {
    const Index left = (rows - r + n - 1) / n, packs = left == 5 ? 3 : std::min(left, Index(most_lane_packs));
    const Index some = std::min(rows - r, packs * n);
    if constexpr (has_32_registers)
      if (packs == 1) f(std::integral_constant<int, 1>{}, r, some);
    if (packs == 2) f(std::integral_constant<int, 2>{}, r, some);
    if (packs == 3) f(std::integral_constant<int, 3>{}, r, some);
    if (packs == 4) f(std::integral_constant<int, 4>{}, r, some);
    r += some;
  }
}

/// Rows of a table as T, converted if they are stored as something else.
template <Scalar T, class Stored>
ATTENTION_BALANCER_INLINE void convert_rows(const Stored* const* from, Index rows, Index dim, T* to) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  for (Index r = 0; r < rows; ++r, to += dim) {
    Index c = 0;
    for (; c + n <= dim; c += n) simd::store(to + c, simd::load_as<S>(from[r] + c));
    for (; c < dim; ++c) to[c] = static_cast<T>(from[r][c]);
  }
}

/// scores [K, V packs] = K Q^T for K keys, `stride` apart; queries [D, V packs].
template <Scalar T, class Stored, int V, int K>
ATTENTION_BALANCER_NOINLINE void lane_score_tile(const T* queries, const T* keys, Index stride, Index dim,
                                                 T* scores, AskAhead<Stored>& asking) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>, features = 16;  // for one request for lines, as in score_rows
  AskAhead<Stored> ahead = asking;
  S sums[K][V];
  ATTENTION_BALANCER_UNROLL
  for (int k = 0; k < K; ++k) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) sums[k][v] = S(T(0));
  ATTENTION_BALANCER_NO_UNROLL
  for (Index from = 0; from < dim; from += features) {
    ahead.template step<K * features, std::gcd(K * features, 64)>();
    ATTENTION_BALANCER_NO_UNROLL
    for (Index c = from; c < std::min(from + features, dim); ++c)
      add_products(
          sums, [&](int k) { return S(keys[c + k * stride]); },
          [&](int v) { return simd::load_aligned<S>(queries + (c * V + v) * n); });
  }
  ATTENTION_BALANCER_UNROLL
  for (int k = 0; k < K; ++k) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::store_aligned(scores + (k * V + v) * n, sums[k][v]);
  asking = ahead;
}

/// scores [count, V packs] = K Q^T; queries [D, V packs]. `converted`: memory for [lane_keys, D]. `ahead`: as in
/// score_rows.
template <Scalar T, class Stored, int V, int K = lane_tile<V>>
void score_lanes(const T* queries, const Stored* const* keys, Index count, Index dim, T* scores, T* converted,
                 const Stored* const* ahead) noexcept {
  if constexpr (K > 1)
    if (count < K) return score_lanes<T, Stored, V, 1>(queries, keys, count, dim, scores, converted, ahead);
  AskAhead<Stored> asking(ahead, dim);
  for (Index j = 0; j < count; j += K) {
    // The last tile computes some scores again rather than take fewer keys.
    const Index first = std::min(j, count - K);
    const T* rows = converted;
    Index stride = dim;
    bool apart = true;  // not the same distance from each key to the next
    if constexpr (std::is_same_v<T, Stored>) {
      rows = keys[first];
      stride = K > 1 ? keys[first + 1] - rows : 0;
      apart = false;
      for (int k = 2; k < K; ++k) apart = apart || keys[first + k] - keys[first + k - 1] != stride;
    }
    if (apart) {
      convert_rows(keys + first, Index(K), dim, converted);
      rows = converted, stride = dim;
    }
    lane_score_tile<T, Stored, V, K>(queries, rows, stride, dim, scores + first * V * simd::lanes<T>, asking);
  }
}

/// output [F, V packs] += V^T weights for F features, from `at` on, of `count` values; weights [count, V packs].
template <Scalar T, class Stored, int V, int F>
ATTENTION_BALANCER_NOINLINE void lane_value_tile(const T* weights, const T* const* values, Index at, Index count,
                                                 T* output, AskAhead<Stored>& asking) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>, keys = 16;  // for one request for lines
  AskAhead<Stored> ahead = asking;
  S sums[F][V];
  ATTENTION_BALANCER_UNROLL
  for (int f = 0; f < F; ++f) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) sums[f][v] = simd::load_aligned<S>(output + (f * V + v) * n);
  ATTENTION_BALANCER_NO_UNROLL
  for (Index from = 0; from < count; from += keys) {
    ahead.template step<F * keys, std::gcd(F * keys, 64)>();
    ATTENTION_BALANCER_NO_UNROLL
    for (Index j = from; j < std::min(from + keys, count); ++j) {
      const T* const value = simd::in_register(values[j] + at);
      add_products(
          sums, [&](int f) { return S(value[f]); },
          [&](int v) { return simd::load_aligned<S>(weights + (j * V + v) * n); });
    }
  }
  ATTENTION_BALANCER_UNROLL
  for (int f = 0; f < F; ++f) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::store_aligned(output + (f * V + v) * n, sums[f][v]);
  asking = ahead;
}

/// Features in tiles of F, what is left in smaller ones.
template <Scalar T, class Stored, int V, int F>
void lane_value_tiles(const T* weights, const T* const* values, Index at, Index count, Index dim, T* output,
                      AskAhead<Stored>& asking) noexcept {
  for (; at + F <= dim; at += F)
    lane_value_tile<T, Stored, V, F>(weights, values, at, count, output + at * V * simd::lanes<T>, asking);
  if constexpr (F > 1)
    if (at < dim)
      lane_value_tiles<T, Stored, V, F % 3 == 0 ? F / 3 * 2 : F / 2>(weights, values, at, count, dim, output,
                                                                     asking);
}

/// output [Dv, V packs] += V^T weights, weights [count, V packs]. `converted`: memory for [lane_keys, Dv].
template <Scalar T, class Stored, int V>
void add_lane_values(const T* weights, const Stored* const* values, Index count, Index dim, T* output, T* converted,
                     const Stored* const* ahead) noexcept {
  AskAhead<Stored> asking(ahead, dim);
  for (Index j = 0; j < count; j += lane_keys) {
    const Index some = std::min(lane_keys, count - j);
    const T* const of_block = weights + j * V * simd::lanes<T>;
    if constexpr (std::is_same_v<T, Stored>) {
      lane_value_tiles<T, Stored, V, lane_tile<V>>(of_block, values + j, 0, some, dim, output, asking);
    } else {
      convert_rows(values + j, some, dim, converted);
      const T* table[lane_keys];
      for (Index k = 0; k < some; ++k) table[k] = converted + k * dim;
      lane_value_tiles<T, Stored, V, lane_tile<V>>(of_block, static_cast<const T* const*>(table), 0, some, dim,
                                                   output, asking);
    }
  }
}

/// x [count, V packs] *= factors [count]
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void scale_lanes(T* x, const T* factors, Index count) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  for (Index j = 0; j < count; ++j) {
    const S factor(factors[j]);
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) {
      T* const at = x + (j * V + v) * n;
      simd::store_aligned(at, simd::load_aligned<S>(at) * factor);
    }
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
