#pragma once
// The two matrix products of decoding in integers, over bytes: what is multiplied with them is rounded to words of 16
// bits, and each sum of 32 bits is exact.
//
// A register has twice as many words as floats, and a byte becomes a word in one step instead of two. Sums of integers
// have no order, so that tiles may be of any shape; they are those of decode_tile otherwise.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "attention_balancer/attention/detail/decode_tile.hpp"
#include "attention_balancer/simd/int8.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Whether decoding over Stored can multiply in integers.
template <Scalar T, class Stored>
inline constexpr bool has_integers =
    simd::has_integer_products && std::is_same_v<T, float> && std::is_same_v<Stored, std::int8_t>;

/// The largest word, and how many products of a word with a byte a sum holds for certain.
inline constexpr int largest_word = 32767;
inline constexpr Index most_products = 512;
static_assert(most_products * largest_word * 128 <= std::numeric_limits<std::int32_t>::max());
static_assert(block_keys + 1 <= most_products);

struct MultiplyAddIntegers {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b, const S& sums) const noexcept {
    return simd::Integers<S>::multiply_add(a, b, sums);
  }
};
struct AddIntegers {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b) const noexcept {
    return simd::Integers<S>::add(a, b);
  }
};
struct IntegersToFloat {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& sums) const noexcept {
    return simd::Integers<S>::to_float(sums);
  }
};

/// words = x / factor rounded to nearest, of `count` numbers, whole packs, times their scales if Scaled, with zeros
/// behind them up to `packs` packs of words. Returns the factor: the largest |x| over largest_word, but no less than
/// keeps its inverse finite; not a number if one of x is not finite.
template <bool Scaled, Scalar T>
ATTENTION_BALANCER_NOINLINE T round_row(const T* x, const T* scales, Index count, std::int16_t* words,
                                        Index packs) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const auto number = [=](Index i) {
    const S y = simd::load_aligned<S>(x + i);
    return Scaled ? y * simd::load_aligned<S>(scales + i) : y;
  };
  S most(T(0));
  for (Index i = 0; i < count; i += n) most = Larger{}(most, simd::abs(number(i)));
  alignas(64) T lane[n];
  simd::store_aligned(lane, most);
  T largest(0);
  bool finite = true;
  for (const T l : lane) finite = finite && std::isfinite(l), largest = std::max(largest, l);
  const T factor = finite ? std::max(largest / T(largest_word), std::numeric_limits<T>::min())
                          : std::numeric_limits<T>::quiet_NaN();
  const S inverse(T(1) / factor), none(T(0));
  for (Index p = 0, i = 0; p < packs; ++p, i += 2 * n) {
    const S first = i < count ? number(i) * inverse : none;
    const S second = i + n < count ? number(i + n) * inverse : none;
    simd::Integers<S>::store_rounded(words + i, first, second);
  }
  return factor;
}

/// Keys of a tile of R rows: as many accumulators as one transposing tree takes.
template <Scalar T, int R>
inline constexpr int integer_keys = simd::lanes<T> / (R == 3 ? 4 : R);

/// sums [R, K] += Q K^T for one pack of words of features, `at` of the keys; as add_scores.
template <class S, int R, int K, class Load>
ATTENTION_BALANCER_INLINE void add_word_scores(const std::int16_t* queries, Index query_stride,
                                               const std::int8_t* const* keys, Index at, S (&sums)[R][K],
                                               Load load) noexcept {
  add_products(
      sums, [&](int r) { return simd::Integers<S>::load_aligned(queries + r * query_stride + at); },
      [&](int k) { return load(keys[k] + at); }, MultiplyAddIntegers{});
}

/// scores [R, count] = Q K^T in integers for the features [from, to), at most most_products of D; queries [R, words] at
/// query_stride, with zeros behind D. As score_rows otherwise.
template <Scalar T, int R>
ATTENTION_BALANCER_NOINLINE void score_words(const std::int16_t* queries, Index query_stride,
                                             const std::int8_t* const* keys, Index count, Index from, Index to,
                                             T* scores, Index score_stride,
                                             const std::int8_t* const* ahead) noexcept {
  using S = simd::Pack<T>;
  constexpr int words = 2 * simd::lanes<T>, K = integer_keys<T, R>;
  constexpr int packs = std::max(1, 64 / (K * words));  // for one request for lines
  const Index whole = from + (to - from) / words * words;
  AskAhead<std::int8_t> asking(ahead, to - from);
  for (Index j = 0; j < count; j += K) {
    S sums[R][K];
    ATTENTION_BALANCER_UNROLL
    for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < K; ++k) sums[r][k] = S(T(0));
    const auto load = [](const std::int8_t* at) { return simd::Integers<S>::load(at); };
    Index c = from;
    if constexpr (packs > 1) {
      ATTENTION_BALANCER_NO_UNROLL
      for (; c + packs * words <= whole; c += packs * words) {
        asking.template step<packs * K * words>();
        ATTENTION_BALANCER_UNROLL
        for (int p = 0; p < packs; ++p) add_word_scores(queries, query_stride, keys + j, c + p * words, sums, load);
      }
    }
    ATTENTION_BALANCER_NO_UNROLL
    for (; c < whole; c += words) {
      asking.template step<K * words>();
      add_word_scores(queries, query_stride, keys + j, c, sums, load);
    }
    if (whole < to)
      add_word_scores(queries, query_stride, keys + j, whole, sums,
                      [left = static_cast<int>(to - whole)](const std::int8_t* at) {
                        return simd::Integers<S>::load_first(at, left);
                      });
    sum_lanes<T, R, K>(sums, scores + j, score_stride, AddIntegers{}, IntegersToFloat{});
  }
}

/// All features, as many at a time as a sum holds. `more`: memory for [R, count + table_slack] at score_stride.
template <Scalar T, int R>
void score_integers(const std::int16_t* queries, Index query_stride, const std::int8_t* const* keys, Index count,
                    Index dim, T* scores, Index score_stride, const std::int8_t* const* ahead, T* more) noexcept {
  score_words<T, R>(queries, query_stride, keys, count, 0, std::min(dim, most_products), scores, score_stride,
                    ahead);
  for (Index from = most_products; from < dim; from += most_products) {
    score_words<T, R>(queries, query_stride, keys, count, from, std::min(dim, from + most_products), more,
                      score_stride, keys);
    for (int r = 0; r < R; ++r)
      for (Index j = 0; j < count; ++j) scores[r * score_stride + j] += more[r * score_stride + j];
  }
}

/// Packs of words of features of a value tile of R rows; two accumulators each.
template <int R>
inline constexpr int integer_packs = has_32_registers ? (R <= 2 ? 4 : 2)
                                                      : (R == 1   ? 4
                                                         : R == 2 ? 2
                                                                  : 1);

/// sums [R, 2 P packs] += weights [R] of a pair of tokens times their values; `load` loads a pack of words of them.
template <class S, int R, int C, class Load>
ATTENTION_BALANCER_INLINE void add_value_pair(const std::int16_t* weights, Index weight_stride,
                                              const std::int8_t* first, const std::int8_t* second, S (&sums)[R][C],
                                              Load load) noexcept {
  using I = simd::Integers<S>;
  constexpr int words = 2 * simd::lanes_of<S>;
  S pairs[C];
  ATTENTION_BALANCER_UNROLL
  for (int c = 0; c < C; c += 2) {
    const S a = load(first + c / 2 * words), b = load(second + c / 2 * words);
    pairs[c] = I::low_pairs(a, b), pairs[c + 1] = I::high_pairs(a, b);
  }
  add_products(
      sums, [&](int r) { return I::load_pair(weights + r * weight_stride); }, [&](int c) { return pairs[c]; },
      MultiplyAddIntegers{});
}

/// output [R, P packs of words] += factors [R] times weights [R, count] V, for the features from `at` on; only the
/// first `features` of the one pack if Partial.
template <Scalar T, int R, int P, bool Partial>
ATTENTION_BALANCER_INLINE void add_word_columns(const std::int16_t* weights, Index weight_stride,
                                                const std::int8_t* const* values, Index at, Index count,
                                                int features, const T* factors, T* output, Index output_stride,
                                                AskAhead<std::int8_t>& asking) noexcept {
  using S = simd::Pack<T>;
  using I = simd::Integers<S>;
  constexpr int n = simd::lanes<T>, C = 2 * P, of_pair = 2 * C * n;  // numbers that are read for a pair of tokens
  constexpr int pairs = std::max(1, 64 / of_pair);                   // for one request for lines
  AskAhead<std::int8_t> ahead = asking;
  S sums[R][C];
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) ATTENTION_BALANCER_UNROLL
  for (int c = 0; c < C; ++c) sums[r][c] = S(T(0));
  const auto load = [=](const std::int8_t* from) {
    if constexpr (Partial)
      return I::load_first(from, features);
    else
      return I::load(from);
  };
  Index j = 0;
  if constexpr (pairs > 1 && !Partial) {
    ATTENTION_BALANCER_NO_UNROLL
    for (; j + 2 * pairs <= count; j += 2 * pairs) {
      ahead.template step<pairs * of_pair>();
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < 2 * pairs; i += 2)
        add_value_pair(weights + j + i, weight_stride, values[j + i] + at, values[j + i + 1] + at, sums, load);
    }
  }
  ATTENTION_BALANCER_NO_UNROLL
  for (; j < count; j += 2) {
    if constexpr (!Partial) ahead.template step<of_pair>();
    add_value_pair(weights + j, weight_stride, values[j] + at, values[j + 1] + at, sums, load);
  }
  ATTENTION_BALANCER_UNROLL
  for (int r = 0; r < R; ++r) {
    const S factor(factors[r]);
    ATTENTION_BALANCER_UNROLL
    for (int c = 0; c < C; c += 2) {
      I::in_order(sums[r][c], sums[r][c + 1]);
      ATTENTION_BALANCER_UNROLL
      for (int i = c; i < c + 2; ++i) {
        T* const to = output + r * output_stride + i * n;
        if (Partial && i * n >= features) continue;  // not in the row
        simd::store_aligned(to, simd::fma(I::to_float(sums[r][i]), factor, simd::load_aligned<S>(to)));
      }
    }
  }
  asking = ahead;
}

template <Scalar T, int R, int P>
ATTENTION_BALANCER_NOINLINE void add_word_rows(const std::int16_t* weights, Index weight_stride,
                                               const std::int8_t* const* values, Index at, Index count, Index dim,
                                               const T* factors, T* output, Index output_stride,
                                               AskAhead<std::int8_t>& ahead) noexcept {
  constexpr Index width = 2 * P * simd::lanes<T>;
  for (; at + width <= dim; at += width)
    add_word_columns<T, R, P, false>(weights, weight_stride, values, at, count, 0, factors, output + at,
                                     output_stride, ahead);
  if (at == dim) return;
  if constexpr (P > 1)
    add_word_rows<T, R, P / 2>(weights, weight_stride, values, at, count, dim, factors, output, output_stride,
                               ahead);
  else
    add_word_columns<T, R, 1, true>(weights, weight_stride, values, at, count, static_cast<int>(dim - at), factors,
                                    output + at, output_stride, ahead);
}

/// output [R, Dv] += factors [R] times weights [R, count] V in integers, with a zero behind an odd count of weights. As
/// value_rows otherwise.
template <Scalar T, int R>
void add_integers(const std::int16_t* weights, Index weight_stride, const std::int8_t* const* values, Index count,
                  Index dim, const T* factors, T* output, Index output_stride,
                  const std::int8_t* const* ahead) noexcept {
  AskAhead<std::int8_t> asking(ahead, dim);
  add_word_rows<T, R, integer_packs<R>>(weights, weight_stride, values, 0, count, dim, factors, output,
                                        output_stride, asking);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
