#pragma once
// The two matrix products of attention as register tiles. They know nothing of policies, and are functions of their
// own: inlined into one another, g++ 12 keeps the accumulators of one on the stack while the other runs.
//
// Lanes are queries. A block of queries is W = V * lanes wide and lies transposed, queries [D, W]; K and V are read
// where they lie, one broadcast element at a time, so they need unit feature stride only.

#include "attention_balancer/simd/pack.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

using simd::has_32_registers;

/// Rows of a register tile that is V packs wide: enough accumulators to hide the latency of fma, and no spills.
template <int V>
inline constexpr int tile_rows = has_32_registers ? (V == 1 ? 16 : 8) : (V == 1 ? 8 : 4);

/// a * b + c, the product that the tiles are made of.
struct MultiplyAdd {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b, const S& c) const noexcept {
    return simd::fma(a, b, c);
  }
};

/// tile[r][v] += sum over k of a[k][v] * b[k * step + r * row], a [depth, V packs]
template <Scalar T, int V, int R, class Product>
ATTENTION_BALANCER_INLINE void multiply(const T* a, const T* b, Index step, Index row, Index depth,
                                        simd::Pack<T> (&tile)[R][V]) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  for (Index k = 0; k < depth; ++k) {
    S column[V];
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) column[v] = simd::in_register(simd::load_aligned<S>(a + (k * V + v) * n));
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) {
      const S scalar(b[k * step + r * row]);
      ATTENTION_BALANCER_UNROLL
      for (int v = 0; v < V; ++v) tile[r][v] = Product{}(scalar, column[v], tile[r][v]);
    }
  }
}

/// scores [R, W] = K Q^T for R keys, and top [W] raised to them if it is not null.
template <Scalar T, int V, int R, class Product>
ATTENTION_BALANCER_NOINLINE void score_tile(const T* queries, const T* K, Index key_stride, Index dim, T* scores,
                                            T* top) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S tile[R][V];
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) tile[r][v] = S(T(0));
  multiply<T, V, R, Product>(queries, K, 1, key_stride, dim, tile);
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::store_aligned(scores + (r * V + v) * n, tile[r][v]);
  if (top == nullptr) return;
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    S highest = simd::load_aligned<S>(top + v * n);
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) highest = simd::max(tile[r][v], highest);
    simd::store_aligned(top + v * n, highest);
  }
}

/// What value_tile adds to.
enum class Onto { zero, output, shrunk_output };

/// output [R, W] = (0, output or output * shrink [W]) + V^T weights, weights [keys, W], for R features of V.
template <Scalar T, int V, int R, class Product>
ATTENTION_BALANCER_NOINLINE void value_tile(const T* weights, const T* values, Index key_stride, Index keys,
                                            T* output, Onto onto, const T* shrink) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S tile[R][V];
  if (onto == Onto::zero) {
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) tile[r][v] = S(T(0));
  } else {
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) tile[r][v] = simd::load_aligned<S>(output + (r * V + v) * n);
    if (onto == Onto::shrunk_output) {
      ATTENTION_BALANCER_UNROLL
      for (int v = 0; v < V; ++v) {
        const S factor = simd::load_aligned<S>(shrink + v * n);
        ATTENTION_BALANCER_UNROLL
        for (int r = 0; r < R; ++r) tile[r][v] = tile[r][v] * factor;
      }
    }
  }
  multiply<T, V, R, Product>(weights, values, key_stride, 1, keys, tile);
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::store_aligned(output + (r * V + v) * n, tile[r][v]);
}

/// Asks for rows that the next tiles will read. The rows of a tile are short and many, and the hardware does not
/// see where they go on; from the third cache or from memory they would come late. Any address will do.
template <class T>
ATTENTION_BALANCER_INLINE void prefetch_rows(const T* x, Index stride, Index rows, Index dim) noexcept {
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < dim; c += 64 / static_cast<Index>(sizeof(T))) simd::prefetch(x + r * stride + c);
}

/// What a product reads or writes beyond the second cache, to be asked for early: rows of K or V, the strip of
/// scores.
struct Far {
  bool rows = false, strip = false;
  /// Not null: asks for `count` rows from row `first` on, counted from the first of the product.
  void (*ask)(const void* asker, Index first, Index count) = nullptr;
  const void* asker = nullptr;
};

/// Keys in tiles of R rows, what is left in tiles of half as many, down to one.
template <Scalar T, int V, int R = tile_rows<V>, class Product = MultiplyAdd>
void score_keys(const T* queries, const T* K, Index key_stride, Index keys, Index dim, T* scores, T* top,
                Far far = {}) noexcept {
  constexpr int width = V * simd::lanes<T>;
  Index j = 0;
  for (; j + R <= keys; j += R) {
    if (far.ask != nullptr)
      far.ask(far.asker, keys + j, Index(R));
    else if (far.rows)
      prefetch_rows(K + (j + R) * key_stride, key_stride, Index(R), dim);
    if (far.strip) prefetch_rows(scores + (j + R) * width, Index(width), Index(R), Index(width));
    score_tile<T, V, R, Product>(queries, K + j * key_stride, key_stride, dim, scores + j * width, top);
  }
  if constexpr (R > 1)
    if (j < keys)
      score_keys<T, V, R / 2, Product>(queries, K + j * key_stride, key_stride, keys - j, dim, scores + j * width,
                                       top);
}

/// Features of V in tiles of R, what is left in tiles of half as many, down to one. Asks for as much as it reads of
/// what follows.
template <Scalar T, int V, int R = tile_rows<V>, class Product = MultiplyAdd>
void add_values(const T* weights, const T* values, Index key_stride, Index keys, Index dim, T* output, Onto onto,
                const T* shrink, Far far = {}) noexcept {
  constexpr int width = V * simd::lanes<T>;
  Index c = 0;
  for (; c + R <= dim; c += R) {
    if (far.rows || far.strip) {
      const Index first = keys + keys * c / dim, rows = keys + keys * (c + R) / dim - first;
      if (far.ask != nullptr)
        far.ask(far.asker, first, rows);
      else if (far.rows)
        prefetch_rows(values + first * key_stride, key_stride, rows, dim);
      if (far.strip) prefetch_rows(weights + first * width, Index(width), rows, Index(width));
    }
    value_tile<T, V, R, Product>(weights, values + c, key_stride, keys, output + c * width, onto, shrink);
  }
  if constexpr (R > 1)
    if (c < dim)
      add_values<T, V, R / 2, Product>(weights, values + c, key_stride, keys, dim - c, output + c * width, onto,
                                       shrink);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
