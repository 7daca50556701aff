#pragma once
// The two matrix products of decoding as register tiles, for few rows: the queries of the heads that share a key
// head.
//
// Lanes are features. A tile of R rows shares each load (and conversion) of a key or value. Keys and values are
// named by a table of addresses, one each, so that it makes no difference where they lie. What a row gets does not
// depend on the rows beside it: every sum has one order.

#include <algorithm>
#include <bit>
#include <type_traits>

#include "attention_balancer/attention/detail/call.hpp"
#include "attention_balancer/attention/detail/layout.hpp"
#include "attention_balancer/attention/detail/statistic.hpp"
#include "attention_balancer/attention/detail/tile.hpp"
#include "attention_balancer/simd/convert.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Rows of a tile, at most.
inline constexpr int decode_rows = 4;

/// Runs f with R as a constant for tiles of at most decode_rows rows: f(constant, first row).
template <class F>
ATTENTION_BALANCER_INLINE void for_row_tiles(Index rows, F f) noexcept {
  Index r = 0;
  for (; r + decode_rows <= rows; r += decode_rows) f(std::integral_constant<int, decode_rows>{}, r);
  if (rows - r == 3) f(std::integral_constant<int, 3>{}, r);
  if (rows - r == 2) f(std::integral_constant<int, 2>{}, r);
  if (rows - r == 1) f(std::integral_constant<int, 1>{}, r);
}

/// Keys of a tile of R rows: enough accumulators to fill one transposing tree and to hide the latency. With 16
/// registers 12 are accumulators where the rows are many: 8 would have to take turns without a gap.
template <Scalar T, int R>
inline constexpr int decode_keys =
    !has_32_registers && R >= 3 ? 12 / R : std::max(simd::lanes<T>, 8) / (R == 3 ? 4 : R);

/// Keys that a table of addresses must go on for behind the last one, repeating it.
inline constexpr Index table_slack = 16;

/// Asks for the cache lines of rows that will be read soon, one by one in the order of their addresses, which is
/// what memory answers fastest, while other rows are worked on. Evenly spread: a core has few places for lines that
/// are on their way, and waits when they are all taken. Any rows will do.
template <class Stored>
class AskAhead {
  static constexpr int most_at_once = 64;

 public:
  ATTENTION_BALANCER_INLINE AskAhead(const Stored* const* rows, Index dim) noexcept
      : row_(rows), dim_(std::max<Index>(most_at_once, (dim + 15) / 16 * 16)) {}

  /// To be called for each `Features` features that are worked on, whole packs. Without a branch: compilers make
  /// copies of the loops around it for each way it can go, and run out of registers there. Asking again for a line
  /// costs less. `Grain`: how many at a time, of those that divide the features.
  template <int Features, int Grain = most_at_once>
  ATTENTION_BALANCER_INLINE void step() noexcept {
    constexpr int piece = std::min(Features, Grain);
    static_assert(Features % piece == 0);
    ATTENTION_BALANCER_UNROLL
    for (int p = 0; p < Features; p += piece) {
      const Stored* const from = *row_ + at_;
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < piece; i += per_line) simd::prefetch_near(from + i);
      // What goes beyond the end counts for the next row: the asking keeps its distance.
      at_ += piece;
      const bool next = at_ >= dim_;
      row_ += next;
      at_ -= next ? dim_ : 0;
    }
  }

 private:
  static constexpr Index per_line = 64 / static_cast<Index>(sizeof(Stored));
  const Stored* const* row_;
  Index at_ = 0;
  // Never less than is worked on for a row, or the table of rows would end too soon; short rows come late.
  Index dim_;
};

/// A sum that is there as it should be.
struct Same {
  template <class S>
  ATTENTION_BALANCER_INLINE const S& operator()(const S& x) const noexcept {
    return x;
  }
};

/// into [R, K] at `stride` = finish(each accumulator summed over its lanes), by trees that take `lanes` of them at a
/// time: a row in whole packs, or several rows of few keys. Writes numbers without meaning behind the K.
template <Scalar T, int R, int K, class Sum = Add, class Finish = Same>
ATTENTION_BALANCER_INLINE void sum_lanes(const simd::Pack<T> (&sums)[R][K], T* into, Index stride, Sum add = {},
                                         Finish finish = {}) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>, part = std::min(n, static_cast<int>(std::bit_ceil(unsigned(K)))),
                padded = (K + part - 1) / part * part;
  ATTENTION_BALANCER_UNROLL
  for (int first = 0; first < R * padded; first += n) {
    S tree[n];
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < n; ++i) {
      const int r = (first + i) / padded, k = (first + i) % padded;
      tree[i] = r < R && k < K ? sums[std::min(r, R - 1)][std::min(k, K - 1)] : S(T(0));
    }
    if constexpr (part == n) {
      simd::store(into + first / padded * stride + first % padded, finish(simd::reduce_each(tree, add)));
    } else {
      alignas(64) T lane[n];
      simd::store_aligned(lane, finish(simd::reduce_each(tree, add)));
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < n; i += part)
        if (first + i < R * padded) std::copy_n(lane + i, part, into + (first + i) / part * stride);
    }
  }
}

struct Fma {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b, const S& sum) const noexcept {
    return simd::fma(a, b, sum);
  }
};

/// sums [R, K] = multiply_add(of_row(r), of_column(k), sums). What is less is loaded first: one of the others at a time
/// is in a register then.
template <class S, int R, int K, class OfRow, class OfColumn, class MultiplyAdd = Fma>
ATTENTION_BALANCER_INLINE void add_products(S (&sums)[R][K], OfRow of_row, OfColumn of_column,
                                            MultiplyAdd multiply_add = {}) noexcept {
  if constexpr (R > K) {
    S x[K];
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < K; ++k) x[k] = simd::in_register(of_column(k));
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) {
      const S y = simd::in_register(of_row(r));
      ATTENTION_BALANCER_UNROLL
      for (int k = 0; k < K; ++k) sums[r][k] = multiply_add(y, x[k], sums[r][k]);
    }
  } else {
    S y[R];
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) y[r] = simd::in_register(of_row(r));
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < K; ++k) {
      const S x = simd::in_register(of_column(k));
      ATTENTION_BALANCER_UNROLL
      for (int r = 0; r < R; ++r) sums[r][k] = multiply_add(y[r], x, sums[r][k]);
    }
  }
}

/// sums [R, K] += Q K^T by features, for one pack of them; `load` loads it. Not a lambda: clang calls those.
template <class S, Scalar T, class Stored, int R, int K, class Load>
ATTENTION_BALANCER_INLINE void add_scores(const T* queries, Index query_stride, const Stored* const* keys, Index at,
                                          S (&sums)[R][K], Load load) noexcept {
  add_products(
      sums, [&](int r) { return simd::load_aligned<S>(queries + r * query_stride + at); },
      [&](int k) { return load(keys[k] + at); });
}

/// scores [R, count] = Q K^T, queries [R, D] at query_stride, a multiple of the lanes, with zeros behind D. Writes
/// up to table_slack numbers more than `count` in each row. `ahead`: rows that will be read soon; any, such as
/// `keys`.
template <Scalar T, class Stored, int R>
ATTENTION_BALANCER_NOINLINE void score_rows(const T* queries, Index query_stride, const Stored* const* keys,
                                            Index count, Index dim, T* scores, Index score_stride,
                                            const Stored* const* ahead) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>, K = decode_keys<T, R>;
  const Index whole = dim / n * n;
  AskAhead<Stored> asking(ahead, dim);
  for (Index j = 0; j < count; j += K) {
    S sums[R][K];
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < K; ++k) sums[r][k] = S(T(0));
    const auto load = [](const Stored* at) { return simd::load_as<S>(at); };
    Index c = 0;
    // Two packs of features for one request for lines; with more rows there are no registers left for it.
    if constexpr (R <= 2 && K * n <= 32) {
      ATTENTION_BALANCER_NO_UNROLL
      for (; c + 2 * n <= whole; c += 2 * n) {
        asking.template step<2 * K * n>();
        add_scores(queries, query_stride, keys + j, c, sums, load);
        add_scores(queries, query_stride, keys + j, c + n, sums, load);
      }
    }
    ATTENTION_BALANCER_NO_UNROLL
    for (; c < whole; c += n) {
      asking.template step<K * n>();
      add_scores(queries, query_stride, keys + j, c, sums, load);
    }
    if (whole < dim)
      add_scores(
          queries, query_stride, keys + j, whole, sums,
          [left = static_cast<int>(dim - whole)](const Stored* at) { return simd::load_first_as<S>(at, left); });
    sum_lanes<T, R, K>(sums, scores + j, score_stride);
  }
}

/// scores [keys, V packs] of `count` queries as decoding adds them up, which is in another order than score_keys: by
/// rows of queries, then turned. `rows`: memory for [count, keys + table_slack]. At most block_keys keys.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void score_decoded(const T* queries, Index query_stride, Index count, const T* K,
                                               Index key_stride, Index keys, Index dim, T* rows, T* scores) noexcept {
  constexpr Index width = V * simd::lanes<T>;
  const T* table[block_keys + table_slack];
  for (Index j = 0; j < keys + table_slack; ++j) table[j] = K + std::min(j, keys - 1) * key_stride;
  const Index stride = keys + table_slack;
  for_row_tiles(count, [&]<int R>(std::integral_constant<int, R>, Index r) {
    score_rows<T, T, R>(queries + r * query_stride, query_stride, table, keys, dim, rows + r * stride, stride, table);
  });
  if (count < width) std::fill_n(scores, keys * width, T(0));
  copy_matrix(scores, width, Index(1), static_cast<const T*>(rows), Index(1), stride, keys, count);
}

/// Packs of features of a value tile of R rows: with the accumulators, the weights and the values fit the
/// registers.
template <int R>
inline constexpr int decode_packs = has_32_registers ? (R <= 2 ? 8 : 4)
                                                     : (R == 1   ? 8
                                                        : R <= 3 ? 4
                                                                 : 3);

/// sums [R, C packs] += weights [R] v for one value; `load` loads a pack of it.
template <class S, Scalar T, class Stored, int R, int C, class Load>
ATTENTION_BALANCER_INLINE void add_value(const T* weights, Index weight_stride, const Stored* value,
                                         S (&sums)[R][C], Load load) noexcept {
  constexpr int n = simd::lanes<T>;
  add_products(
      sums, [&](int r) { return S(weights[r * weight_stride]); }, [&](int c) { return load(value + c * n); });
}

/// output [R, C packs] += weights [R, count] V, for the features from where the addresses point, plus `at`.
template <Scalar T, class Stored, int R, int C, bool Partial>
ATTENTION_BALANCER_INLINE void value_columns(const T* weights, Index weight_stride, const Stored* const* values,
                                             Index at, Index count, int features, T* output, Index output_stride,
                                             AskAhead<Stored>& asking) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  constexpr int keys = R <= 2 ? std::clamp(64 / (C * n), 1, 4) : 1;  // for one request for lines, as in score_rows
  AskAhead<Stored> ahead = asking;
  S sums[R][C];
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
  for (int c = 0; c < C; ++c) sums[r][c] = simd::load_aligned<S>(output + r * output_stride + c * n);
  const auto load = [=](const Stored* from) {
    if constexpr (Partial)
      return simd::load_first_as<S>(from, features);
    else
      return simd::load_as<S>(from);
  };
  Index j = 0;
  if constexpr (keys > 1 && !Partial) {
    ATTENTION_BALANCER_NO_UNROLL
    for (const Index whole = count - count % keys; j < whole; j += keys) {
      ahead.template step<keys * C * n>();
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < keys; ++i) add_value(weights + j + i, weight_stride, values[j + i] + at, sums, load);
    }
  }
  ATTENTION_BALANCER_NO_UNROLL
  for (; j < count; ++j) {
    ahead.template step<C * n>();
    add_value(weights + j, weight_stride, values[j] + at, sums, load);
  }
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
  for (int c = 0; c < C; ++c) simd::store_aligned(output + r * output_stride + c * n, sums[r][c]);
  asking = ahead;
}

template <Scalar T, class Stored, int R, int C>
ATTENTION_BALANCER_NOINLINE void value_rest(const T* weights, Index weight_stride, const Stored* const* values,
                                            Index at, Index count, Index dim, T* output, Index output_stride,
                                            AskAhead<Stored>& ahead) noexcept {
  constexpr Index n = simd::lanes<T>, width = C * n;
  // Two tiles of two packs are better than one of three and one of a single one.
  for (; at + width <= dim && !(C == 3 && dim - at >= 4 * n && dim - at < 5 * n); at += width)
    value_columns<T, Stored, R, C, false>(weights, weight_stride, values, at, count, 0, output + at, output_stride,
                                          ahead);
  if (at == dim) return;
  if constexpr (C > 1)
    value_rest<T, Stored, R, (C + 1) / 2>(weights, weight_stride, values, at, count, dim, output, output_stride,
                                          ahead);
  else
    value_columns<T, Stored, R, 1, true>(weights, weight_stride, values, at, count, static_cast<int>(dim - at),
                                         output + at, output_stride, ahead);
}

/// output [R, Dv] += weights [R, count] V. Rows of the output are padded to whole packs.
template <Scalar T, class Stored, int R>
void value_rows(const T* weights, Index weight_stride, const Stored* const* values, Index count, Index dim,
                T* output, Index output_stride, const Stored* const* ahead) noexcept {
  AskAhead<Stored> asking(ahead, dim);
  value_rest<T, Stored, R, decode_packs<R>>(weights, weight_stride, values, 0, count, dim, output, output_stride,
                                            asking);
}

/// sums [K] += |v - o|^2 by features, for one pack of them; as add_scores.
template <class S, Scalar T, class Stored, int K, class Load>
ATTENTION_BALANCER_INLINE void add_distances(const T* output, const Stored* const* values, const T* scales,
                                             Index at, S (&sums)[1][K], Load load) noexcept {
  const S o = simd::load_aligned<S>(output + at);
  ATTENTION_BALANCER_UNROLL
  for (int k = 0; k < K; ++k) {
    S v = load(values[k] + at);
    if (scales != nullptr) v = v * S(scales[k]);
    const S d = v - o;
    sums[0][k] = simd::fma(d, d, sums[0][k]);
  }
}

/// distances [count] = |v_j - o|^2 for one row o [Dv], zeros behind; v_j is scales[j] times what is stored if
/// `scales` is not null. Writes up to table_slack numbers more.
template <Scalar T, class Stored>
ATTENTION_BALANCER_NOINLINE void distance_row(const T* output, const Stored* const* values, const T* scales,
                                              Index count, Index dim, T* distances) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>, K = decode_keys<T, 1>;
  const Index whole = dim / n * n;
  for (Index j = 0; j < count; j += K) {
    const T* const of_keys = scales == nullptr ? nullptr : scales + j;
    S sums[1][K];
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < K; ++k) sums[0][k] = S(T(0));
    for (Index c = 0; c < whole; c += n)
      add_distances(output, values + j, of_keys, c, sums, [](const Stored* x) { return simd::load_as<S>(x); });
    if (whole < dim)
      add_distances(
          output, values + j, of_keys, whole, sums,
          [left = static_cast<int>(dim - whole)](const Stored* x) { return simd::load_first_as<S>(x, left); });
    sum_lanes<T, 1, K>(sums, distances + j, 0);
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
