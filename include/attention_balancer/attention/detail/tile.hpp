#pragma once
// The two matrix products of attention as register tiles. They know nothing of policies, and are functions of their
// own: inlined into one another, g++ 12 keeps the accumulators of one on the stack while the other runs.
//
// Tiles are joined: row by row one is stored and the next begins. Stored in one go, the 12 packs of a tile on AVX2 hold
// up a Zen 3 as long as 50 products, a fifteenth of a tile of 64 features. Compilers would gather the stores again:
// hence keep_order.
//
// Lanes are queries. A block of queries is W = V * lanes wide and lies transposed, queries [D, W]; K and V are read
// where they lie, one broadcast element at a time, so they need unit feature stride only.

#include <algorithm>

#include "attention_balancer/simd/pack.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

using simd::has_32_registers;

/// Rows of a register tile that is V packs wide: enough accumulators to hide the latency of fma, and no spills.
template <int V>
inline constexpr int tile_rows = has_32_registers ? (V == 1 ? 16 : 8) : (V == 1 ? 8 : 4);

/// The products that the tiles are made of: a * b, and a * b + c.
struct MultiplyAdd {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b) const noexcept {
    return a * b;
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b, const S& c) const noexcept {
    return simd::fma(a, b, c);
  }
};

/// The packs of a row of V of them.
template <Scalar T, int V>
ATTENTION_BALANCER_INLINE void load_row(const T* from, simd::Pack<T> (&row)[V]) noexcept {
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v)
    row[v] = simd::in_register(simd::load_aligned<simd::Pack<T>>(from + v * simd::lanes<T>));
}
template <Scalar T, int V>
ATTENTION_BALANCER_INLINE void store_row(T* to, const simd::Pack<T> (&row)[V]) noexcept {
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::store_aligned(to + v * simd::lanes<T>, row[v]);
}

template <class S, int V>
ATTENTION_BALANCER_INLINE void keep_order(S (&row)[V]) noexcept {
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::keep_order(row[v]);
}
template <class S, int R, int V>
ATTENTION_BALANCER_INLINE void keep_order(S (&tile)[R][V]) noexcept {
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) keep_order(tile[r]);
}

/// Steps of a product from one branch to the next. Golden Cove does not guess where a loop of more than some 30
/// branches ends, and waits for 40 cycles then, of a tile's 768 at 64 features.
template <int Accumulators>
inline constexpr int steps_together = Accumulators >= 12 ? 4 : 1;

/// tile[r][v] += sum over k from `first` on of a[k][v] * b[k * step + r * row], a [depth, V packs]
template <Scalar T, int V, int R, class Product>
ATTENTION_BALANCER_INLINE void multiply(const T* a, const T* b, Index step, Index row, Index first, Index depth,
                                        simd::Pack<T> (&tile)[R][V]) noexcept {
  using S = simd::Pack<T>;
  constexpr int together = steps_together<R * V>;
  const auto add = [&](Index k) __attribute__((always_inline)) {
    S column[V];
    load_row(a + k * V * simd::lanes<T>, column);
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) {
      const S scalar(b[k * step + r * row]);
      ATTENTION_BALANCER_UNROLL
      for (int v = 0; v < V; ++v) tile[r][v] = Product{}(scalar, column[v], tile[r][v]);
    }
  };
  Index k = first;
  ATTENTION_BALANCER_NO_UNROLL
  for (; (depth - k) % together != 0; ++k) add(k);
  ATTENTION_BALANCER_NO_UNROLL
  for (; k < depth; k += together) {
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < together; ++i) {
      add(k + i);
      if constexpr (together > 1) keep_order(tile);  // g++ would mix the steps, and spill
    }
  }
}

/// row[v] = scalar * column[v]: how a row begins that is added to nothing. If all its products are -0 it stays -0.
template <Scalar T, int V, class Product>
ATTENTION_BALANCER_INLINE void begin_row(T scalar, const simd::Pack<T> (&column)[V],
                                         simd::Pack<T> (&row)[V]) noexcept {
  const simd::Pack<T> factor(scalar);
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) row[v] = Product{}(factor, column[v]);
}

/// Asks for rows that the next tiles will read. The rows of a tile are short and many, and the hardware does not
/// see where they go on; from the third cache or from memory they would come late. Any address will do.
template <class T>
ATTENTION_BALANCER_INLINE void prefetch_rows(const T* x, Index stride, Index rows, Index dim) noexcept {
  if constexpr (!simd::rows_are_asked_for) return;
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

/// a = the larger of a and b, lane by lane.
template <class S, int V>
ATTENTION_BALANCER_INLINE void raise_row(S (&a)[V], const S (&b)[V]) noexcept {
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) a[v] = simd::max(b[v], a[v]);
}

/// top [V packs] raised to a row. What is not a number does not count.
template <Scalar T, int V>
ATTENTION_BALANCER_INLINE void raise_to(T* top, const simd::Pack<T> (&row)[V]) noexcept {
  using S = simd::Pack<T>;
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    T* const at = top + v * simd::lanes<T>;
    simd::store_aligned(at, simd::max(row[v], simd::load_aligned<S>(at)));
  }
}

/// top [V packs] raised to those of rows [count, V packs] that are numbers. In four chains: one would wait for each
/// maximum.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void raise_to_rows(const T* rows, Index count, T* top) noexcept {
  constexpr Index width = V * simd::lanes<T>, chains = 4;
  simd::Pack<T> most[chains][V], row[V];
  ATTENTION_BALANCER_UNROLL
  for (Index r = 0; r < chains; ++r) load_row<T>(top, most[r]);
  for (; count >= chains; count -= chains, rows += chains * width) ATTENTION_BALANCER_UNROLL
  for (Index r = 0; r < chains; ++r) {
    load_row<T>(rows + r * width, row);
    raise_row(most[r], row);
  }
  for (; count > 0; --count, rows += width) {
    load_row<T>(rows, row);
    raise_row(most[0], row);
  }
  for (Index r = 1; r < chains; ++r) raise_row(most[0], most[r]);
  store_row<T>(top, most[0]);
}

/// scores [tiles * R, W] = K Q^T for one tile of R keys or more of one feature or more, and top [W] raised to them: of
/// a query with a score that is not a number perhaps to less than its largest, since its results are none either.
template <Scalar T, int V, int R, class Product>
ATTENTION_BALANCER_NOINLINE void score_tiles(const T* queries, const T* K, Index key_stride, Index tiles, Index dim,
                                             T* scores, T* top, Far far) noexcept {
  using S = simd::Pack<T>;
  constexpr int width = V * simd::lanes<T>, last = R - 1;
  S tile[R][V], column[V];
  load_row<T>(queries, column);
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) begin_row<T, V, Product>(K[r * key_stride], column, tile[r]);
  for (;; scores += R * width) {
    if (far.rows) prefetch_rows(K + R * key_stride, key_stride, Index(R), dim);
    if (far.strip) prefetch_rows(scores + R * width, Index(width), Index(R), Index(width));
    multiply<T, V, R, Product>(queries, K, 1, key_stride, 1, dim, tile);
    if (--tiles == 0) break;
    K += R * key_stride;
    load_row<T>(queries, column);
    store_row<T>(scores + last * width, tile[last]);  // then it gathers the largest of all rows
    ATTENTION_BALANCER_UNROLL
    for (int r = last - 1; r >= 0; --r) {
      raise_row(tile[last], tile[r]);
      store_row<T>(scores + r * width, tile[r]);
      begin_row<T, V, Product>(K[r * key_stride], column, tile[r]);
      keep_order(tile[r]);
    }
    raise_to(top, tile[last]);
    begin_row<T, V, Product>(K[last * key_stride], column, tile[last]);
  }
  store_row<T>(scores + last * width, tile[last]);
  ATTENTION_BALANCER_UNROLL
  for (int r = last - 1; r >= 0; --r) {
    raise_row(tile[last], tile[r]);
    store_row<T>(scores + r * width, tile[r]);
  }
  raise_to(top, tile[last]);
}

/// What value_tiles adds to.
enum class Onto { zero, output, shrunk_output };

/// row [V packs] = (0, row or row * shrink) + x: the sum of a block of keys is added to that of those before. Loaded
/// first and added to, rows cost Golden Cove 40 cycles more at each tile.
template <Onto To, Scalar T, int V>
ATTENTION_BALANCER_INLINE void add_row(T* row, const T* shrink, const simd::Pack<T> (&x)[V]) noexcept {
  using S = simd::Pack<T>;
  S sum[V];
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    constexpr int n = simd::lanes<T>;
    if constexpr (To == Onto::zero)
      sum[v] = x[v];
    else if constexpr (To == Onto::output)
      sum[v] = simd::load_aligned<S>(row + v * n) + x[v];
    else
      sum[v] = simd::fma(simd::load_aligned<S>(row + v * n), simd::load_aligned<S>(shrink + v * n), x[v]);
  }
  store_row<T>(row, sum);
}

/// The end of a tile, and, joined to it, the beginning of the next, if `values` is not null: of its features.
template <Onto To, class Product, Scalar T, int V, int R>
ATTENTION_BALANCER_INLINE void turn_tile_onto(simd::Pack<T> (&tile)[R][V], T* output, const T* shrink,
                                              const T* weights, const T* values) noexcept {
  simd::Pack<T> column[V];
  if (values != nullptr) load_row<T>(weights, column);
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) {
    add_row<To, T>(output + r * V * simd::lanes<T>, shrink, tile[r]);
    if (values == nullptr) continue;
    begin_row<T, V, Product>(values[r], column, tile[r]);
    keep_order(tile[r]);
  }
}

template <class Product, Scalar T, int V, int R>
ATTENTION_BALANCER_INLINE void turn_tile(simd::Pack<T> (&tile)[R][V], T* output, Onto onto, const T* shrink,
                                         const T* weights, const T* values) noexcept {
  switch (onto) {
    case Onto::zero: return turn_tile_onto<Onto::zero, Product, T>(tile, output, shrink, weights, values);
    case Onto::output: return turn_tile_onto<Onto::output, Product, T>(tile, output, shrink, weights, values);
    case Onto::shrunk_output:
      return turn_tile_onto<Onto::shrunk_output, Product, T>(tile, output, shrink, weights, values);
  }
}

/// output [tiles * R, W] = (0, output or output * shrink [W]) + V^T weights, weights [keys, W], for one tile of R
/// features or more of one key or more. The first feature is number `at` of `dim`: of what follows it asks for as much
/// as it reads.
template <Scalar T, int V, int R, class Product>
ATTENTION_BALANCER_NOINLINE void value_tiles(const T* weights, const T* values, Index key_stride, Index keys,
                                             Index tiles, T* output, Onto onto, const T* shrink, Index at,
                                             Index dim, Far far) noexcept {
  using S = simd::Pack<T>;
  constexpr int width = V * simd::lanes<T>;
  const T* const row = values;
  S tile[R][V], column[V];
  load_row<T>(weights, column);
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) begin_row<T, V, Product>(values[r], column, tile[r]);
  for (;; output += R * width) {
    if (far.rows || far.strip) {
      const Index first = keys + keys * at / dim, rows = keys + keys * (at + R) / dim - first;
      if (far.rows) prefetch_rows(row + first * key_stride, key_stride, rows, dim);
      if (far.strip) prefetch_rows(weights + first * width, Index(width), rows, Index(width));
      at += R;
    }
    multiply<T, V, R, Product>(weights, values, key_stride, 1, 1, keys, tile);
    if (--tiles == 0) break;
    values += R;
    turn_tile<Product, T>(tile, output, onto, shrink, weights, values);
  }
  turn_tile<Product, T>(tile, output, onto, shrink, weights, nullptr);
}

/// Keys in tiles of R rows, what is left in tiles of half as many, down to one. Raises top to the scores unless it is
/// null.
template <Scalar T, int V, int R = tile_rows<V>, class Product = MultiplyAdd>
void score_keys(const T* queries, const T* K, Index key_stride, Index keys, Index dim, T* scores, T* top,
                Far far = {}) noexcept {
  constexpr int width = V * simd::lanes<T>;
  alignas(64) T unused[width];
  if (top == nullptr) {
    std::fill_n(unused, width, T(0));
    top = unused;
  }
  Index j = 0;
  if (far.ask != nullptr)  // a call between two tiles keeps them apart
    for (; j + R <= keys; j += R) {
      far.ask(far.asker, keys + j, Index(R));
      score_tiles<T, V, R, Product>(queries, K + j * key_stride, key_stride, 1, dim, scores + j * width, top,
                                    {.strip = far.strip});
    }
  else if (keys >= R) {
    score_tiles<T, V, R, Product>(queries, K, key_stride, keys / R, dim, scores, top, far);
    j = keys / R * R;
  }
  if constexpr (R > 1)
    if (j < keys)
      score_keys<T, V, R / 2, Product>(queries, K + j * key_stride, key_stride, keys - j, dim, scores + j * width,
                                       top);
}

/// Features of V in tiles of R, what is left in tiles of half as many, down to one.
template <Scalar T, int V, int R = tile_rows<V>, class Product = MultiplyAdd>
void add_values(const T* weights, const T* values, Index key_stride, Index keys, Index dim, T* output, Onto onto,
                const T* shrink, Far far = {}) noexcept {
  constexpr int width = V * simd::lanes<T>;
  Index c = 0;
  if (far.ask != nullptr)
    for (; c + R <= dim; c += R) {
      const Index first = keys + keys * c / dim, rows = keys + keys * (c + R) / dim - first;
      far.ask(far.asker, first, rows);
      value_tiles<T, V, R, Product>(weights, values + c, key_stride, keys, 1, output + c * width, onto, shrink, c,
                                    dim, {.strip = far.strip});
    }
  else if (dim >= R) {
    value_tiles<T, V, R, Product>(weights, values, key_stride, keys, dim / R, output, onto, shrink, 0, dim, far);
    c = dim / R * R;
  }
  if constexpr (R > 1)
    if (c < dim)
      add_values<T, V, R / 2, Product>(weights, values + c, key_stride, keys, dim - c, output + c * width, onto,
                                       shrink);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
