#pragma once
// Blocks of queries between the layouts of the user and [D, W], lanes queries, of the kernels.

#include <algorithm>

#include "attention_balancer/core/types.hpp"
#include "attention_balancer/simd/pack.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// to[r * to_row + c * to_column] = from[r * from_row + c * from_column], fast where both are contiguous along the
/// same axis or along different ones.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void copy_matrix(T* to, Index to_row, Index to_column, const T* from, Index from_row,
                                             Index from_column, Index rows, Index columns) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  Index whole_rows = 0, whole_columns = 0;  // what the transposing tiles have done
  if (to_column == 1 && from_row == 1 && n > 1) {
    whole_rows = rows - rows % n;
    whole_columns = columns - columns % n;
    for (Index r = 0; r < whole_rows; r += n)
      for (Index c = 0; c < whole_columns; c += n) {
        S tile[n];
        ATTENTION_BALANCER_UNROLL
        for (int i = 0; i < n; ++i) tile[i] = simd::load<S>(from + r + (c + i) * from_column);
        simd::transpose(tile);
        ATTENTION_BALANCER_UNROLL
        for (int i = 0; i < n; ++i) simd::store(to + (r + i) * to_row + c, tile[i]);
      }
  } else if (to_row == 1 && from_column == 1 && n > 1) {
    return copy_matrix(to, to_column, to_row, from, from_column, from_row, columns, rows);
  }
  for (Index r = 0; r < rows; ++r)
    for (Index c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[r * to_row + c * to_column] = from[r * from_row + c * from_column];
}

/// block [dim, V packs] = factor * the transpose of `count` rows of x, at most V packs of them; lanes past the last
/// row repeat it.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void load_block(const T* x, Index row_stride, Index feature_stride, Index count,
                                            Index dim, T factor, T* block) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const S scale(factor);
  for (int v = 0; v < V; ++v) {
    const Index first = v * n, real = std::min(count - first, Index(n));  // not positive: all lanes repeat the last
    T* const to = block + first;
    if (feature_stride == 1) {
      const T* rows[n];
      for (int i = 0; i < n; ++i) rows[i] = x + std::min(first + i, count - 1) * row_stride;
      auto turn = [&](Index c, auto load, Index features) {
        S tile[n];
        ATTENTION_BALANCER_UNROLL
        for (int i = 0; i < n; ++i) tile[i] = load(rows[i] + c) * scale;
        simd::transpose(tile);
        if (features == n) {
          ATTENTION_BALANCER_UNROLL
          for (int i = 0; i < n; ++i) simd::store_aligned(to + (c + i) * V * n, tile[i]);
        } else {
          alignas(64) T turned[n * n];
          ATTENTION_BALANCER_UNROLL
          for (int i = 0; i < n; ++i) simd::store_aligned(turned + i * n, tile[i]);
          for (Index i = 0; i < features; ++i) std::copy_n(turned + i * n, n, to + (c + i) * V * n);
        }
      };
      Index c = 0;
      for (; c + n <= dim; c += n)
        turn(
            c, [](const T* p) { return simd::load<S>(p); }, n);
      if (c < dim) {
        const int left = static_cast<int>(dim - c);
        turn(
            c, [left](const T* p) { return simd::load_first<S>(p, left); }, left);
      }
    } else if (row_stride == 1 && real == n) {
      for (Index c = 0; c < dim; ++c)
        simd::store_aligned(to + c * V * n, simd::load<S>(x + c * feature_stride + first) * scale);
    } else {
      for (Index c = 0; c < dim; ++c)
        for (int i = 0; i < n; ++i)
          to[c * V * n + i] = x[std::min(first + i, count - 1) * row_stride + c * feature_stride] * factor;
    }
  }
}

/// The first `count` rows of x = the transpose of block [dim, V packs] * factor [V packs] + 0: the sum of nothing but
/// masked values below 0 is -0, and would tell of them.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void store_block(const T* block, const T* factor, T* x, Index row_stride,
                                             Index feature_stride, Index count, Index dim) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  for (int v = 0; v < V && v * n < count; ++v) {
    const Index first = v * n, real = std::min(count - first, Index(n));
    const T* const from = block + first;
    const S scale = simd::load_aligned<S>(factor + first), zero(T(0));
    auto scaled = [&](Index c) { return simd::fma(simd::load_aligned<S>(from + c * V * n), scale, zero); };
    T* const to = x + first * row_stride;
    if (feature_stride == 1) {
      for (Index c = 0; c < dim; c += n) {
        const Index features = std::min(dim - c, Index(n));
        S tile[n];
        if (features == n) {
          ATTENTION_BALANCER_UNROLL
          for (int i = 0; i < n; ++i) tile[i] = scaled(c + i);
        } else {
          for (int i = 0; i < n; ++i) tile[i] = i < features ? scaled(c + i) : zero;
        }
        simd::transpose(tile);
        if (features == n && real == n) {
          ATTENTION_BALANCER_UNROLL
          for (int i = 0; i < n; ++i) simd::store(to + i * row_stride + c, tile[i]);
        } else {
          for (int i = 0; i < real; ++i)
            simd::store_first(to + i * row_stride + c, tile[i], static_cast<int>(features));
        }
      }
    } else if (row_stride == 1 && real == n) {
      for (Index c = 0; c < dim; ++c) simd::store(to + c * feature_stride, scaled(c));
    } else {
      for (Index c = 0; c < dim; ++c)
        for (Index i = 0; i < real; ++i)
          to[i * row_stride + c * feature_stride] = simd::fma(from[c * V * n + i], factor[first + i], T(0));
    }
  }
}

/// x [rows, V packs] *= factor [V packs]
template <Scalar T, int V>
void multiply_rows(T* x, Index rows, const T* factor) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  for (Index r = 0; r < rows; ++r) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    T* at = x + (r * V + v) * n;
    simd::store_aligned(at, simd::load_aligned<S>(at) * simd::load_aligned<S>(factor + v * n));
  }
}

/// x [count] += y, any alignment
template <Scalar T>
void add_to_all(T* x, Index count, T y) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  Index i = 0;
  for (; i + n <= count; i += n) simd::store(x + i, simd::load<S>(x + i) + S(y));
  for (; i < count; ++i) x[i] += y;
}

/// Whether `rows` rows of `dim` features are finite.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE bool rows_finite(const T* x, Index row_stride, Index feature_stride, Index rows,
                                             Index dim) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  // 0 * x is not a number exactly where x is infinite or not a number. Four chains: one would wait for each
  // product.
  S trace[4] = {S(T(0)), S(T(0)), S(T(0)), S(T(0))};
  T rest(0);
  for (Index r = 0; r < rows; ++r) {
    const T* const row = x + r * row_stride;
    Index c = 0;
    if (feature_stride == 1) {
      for (; c + 4 * n <= dim; c += 4 * n) ATTENTION_BALANCER_UNROLL
      for (int t = 0; t < 4; ++t) trace[t] = simd::fma(simd::load<S>(row + c + t * n), S(T(0)), trace[t]);
      for (; c + n <= dim; c += n) trace[0] = simd::fma(simd::load<S>(row + c), S(T(0)), trace[0]);
    }
    for (; c < dim; ++c) rest += T(0) * row[c * feature_stride];
  }
  // Not by x != x: of not a number, xsimd 8.1 calls that false on AVX.
  return rest == T(0) && simd::reduce_add((trace[0] + trace[1]) + (trace[2] + trace[3])) == T(0);
}

/// Whether all of x [packs] is finite.
template <Scalar T>
bool all_finite(const T* x, Index packs) noexcept {
  return rows_finite(x, Index(0), Index(1), Index(1), packs * simd::lanes<T>);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
