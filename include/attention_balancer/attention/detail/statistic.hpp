#pragma once
// From the weights of a block of queries to one number per key: the mass, and the other statistics.

#include <algorithm>
#include <limits>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/simd/pack.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Sum of two packs.
struct Add {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b) const noexcept {
    return a + b;
  }
};

/// The larger of two packs; not a number where either is.
struct Larger {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b) const noexcept {
    // Not `a != a`: xsimd 8.1 calls that false of not a number on AVX.
    return simd::select(a == a, simd::max(a, b), a);
  }
};

/// into [keys] = combine(into, the lanes of of_key(j) combined)
template <Scalar T, class OfKey, class Combine>
ATTENTION_BALANCER_INLINE void reduce_keys(Index keys, T* into, OfKey of_key, Combine combine) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S rows[n];
  Index j = 0;
  for (; j + n <= keys; j += n) {
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < n; ++i) rows[i] = of_key(j + i);
    simd::store(into + j, combine(simd::load<S>(into + j), simd::reduce_each(rows, combine)));
  }
  if (j == keys) return;
  for (int i = 0; i < n; ++i) rows[i] = j + i < keys ? of_key(j + i) : S(T(0));
  alignas(64) T last[n];
  std::copy(into + j, into + keys, last);
  std::fill(last + (keys - j), last + n, T(0));
  simd::store_aligned(last, combine(simd::load_aligned<S>(last), simd::reduce_each(rows, combine)));
  std::copy(last, last + (keys - j), into + j);
}

/// mass [keys] += sum over the queries of weights [keys, V packs] * factor [V packs]
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void add_mass(const T* weights, Index keys, const T* factor, T* mass) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S f[V];
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) f[v] = simd::load_aligned<S>(factor + v * n);
  auto of_key = [&](Index j) {
    const T* row = weights + j * V * n;
    S sum = simd::load_aligned<S>(row) * f[0];
    ATTENTION_BALANCER_UNROLL
    for (int v = 1; v < V; ++v) sum = simd::fma(simd::load_aligned<S>(row + v * n), f[v], sum);
    return sum;
  };
  reduce_keys(keys, mass, of_key, Add{});
}

/// The probabilities of a block of queries: p = weights * factor, counting u each.
template <Scalar T>
struct WeightedRows {
  const T* weights;  // [keys, V packs]
  const T* factor;   // [V packs]
  const T* u;        // [V packs]
};

/// squares [keys] += sum over the queries of u p^2
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void add_squares(const WeightedRows<T>& rows, Index keys, T* squares) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  auto of_key = [&](Index j) {
    S sum(T(0));
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) {
      const S p =
          simd::load_aligned<S>(rows.weights + (j * V + v) * n) * simd::load_aligned<S>(rows.factor + v * n);
      sum = simd::fma(p * simd::load_aligned<S>(rows.u + v * n), p, sum);
    }
    return sum;
  };
  reduce_keys(keys, squares, of_key, Add{});
}

/// largest [keys] = max(largest, maximum over the queries of u p)
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void add_maximum(const WeightedRows<T>& rows, Index keys, T* largest) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  auto of_key = [&](Index j) {
    S most(T(0));
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v)
      most =
          Larger{}(most, simd::load_aligned<S>(rows.weights + (j * V + v) * n) *
                             (simd::load_aligned<S>(rows.factor + v * n) * simd::load_aligned<S>(rows.u + v * n)));
    return most;
  };
  reduce_keys(keys, largest, of_key, Larger{});
}

/// (p / (1 - p))^2 with the ratio capped at 1 / epsilon; not a number stays so.
template <Scalar T, class S>
ATTENTION_BALANCER_INLINE S squared_odds(const S& p) noexcept {
  const S most(1 / std::numeric_limits<T>::epsilon()), rest = S(T(1)) - p;
  const S ratio = simd::select(rest > S(T(0)), p / rest, simd::select(p == p, most, p));
  const S capped = simd::select(ratio > most, most, ratio);
  return capped * capped;
}

/// odds [keys] += sum over the queries of u (p / (1 - p))^2
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void add_squared_odds(const WeightedRows<T>& rows, Index keys, T* odds) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  auto of_key = [&](Index j) {
    S sum(T(0));
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) {
      const S p =
          simd::load_aligned<S>(rows.weights + (j * V + v) * n) * simd::load_aligned<S>(rows.factor + v * n);
      sum = simd::fma(squared_odds<T>(p), simd::load_aligned<S>(rows.u + v * n), sum);
    }
    return sum;
  };
  reduce_keys(keys, odds, of_key, Add{});
}

/// What leave-one-out needs beside the probabilities.
template <Scalar T>
struct LeaveOneOut {
  const T* output;          // [Dv, V packs]: o, normalised
  const T* output_squares;  // [V packs]: |o|^2
  const T* values;          // [keys, Dv] at value_stride
  Index value_stride, value_dim;
  const T* products;  // [keys, V packs]: v . o
  Index first;        // row of the first key in the strip
  Index* dominant;    // [V packs]: receives the row of the key with p > nearly_all, if there is one
};

/// From here on what a key leaves to the others, 1 - p and the difference of v and o, has lost too many bits to
/// rounding: they are added up anew without it.
template <Scalar T>
inline constexpr T nearly_all = T(1) - T(1) / 256;

/// Keys that leave-one-out takes at a time: their products with the outputs stay in the first cache.
inline constexpr Index leave_one_out_keys = 32;

/// squares [keys] = |v|^2; returns whether all are finite.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE bool square_values(const T* values, Index stride, Index dim, Index keys,
                                               T* squares) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  std::fill_n(squares, keys, T(0));
  auto of_key = [&](Index j) {
    const T* v = values + j * stride;
    S sum(T(0));
    for (Index c = 0; c + n <= dim; c += n) sum = simd::fma(simd::load<S>(v + c), simd::load<S>(v + c), sum);
    return sum;
  };
  if (dim >= n) reduce_keys(keys, squares, of_key, Add{});
  bool finite = true;
  for (Index j = 0; j < keys; ++j) {
    for (Index c = dim - dim % n; c < dim; ++c) squares[j] += values[j * stride + c] * values[j * stride + c];
    finite = finite && squares[j] - squares[j] == T(0);
  }
  return finite;
}

/// sums [V packs] += rows [keys, V packs]
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void add_rows(const T* rows, Index keys, T* sums) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S sum[V];
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) sum[v] = S(T(0));
  for (Index j = 0; j < keys; ++j) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) sum[v] = sum[v] + simd::load_aligned<S>(rows + (j * V + v) * n);
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) simd::store_aligned(sums + v * n, simd::load_aligned<S>(sums + v * n) + sum[v]);
}

/// The keys of a query that have p >= 1/2, one at most: from the difference itself, or noted.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE T change_without_dominant(const WeightedRows<T>& rows, const LeaveOneOut<T>& x,
                                                      Index j) noexcept {
  constexpr Index width = V * Index(simd::lanes<T>);
  const T* v = x.values + j * x.value_stride;
  T change(0);
  for (Index i = 0; i < width; ++i) {
    const T p = rows.weights[j * width + i] * rows.factor[i];
    if (!(p >= T(0.5)) || rows.u[i] == T(0)) continue;
    T distance(0), trace(0);
    for (Index c = 0; c < x.value_dim; ++c) {
      const T o = x.output[c * width + i], d = v[c] - o;
      distance += d * d;
      trace += o - o;
    }
    if (p > nearly_all<T> && trace == T(0))  // an output that is not finite is so without the key, or because of it
      x.dominant[i] = x.first + j;
    else
      change += rows.u[i] * squared_odds<T>(p) * distance;
  }
  return change;
}

/// change [keys] += sum over the queries of u (p / (1 - p))^2 |v - o|^2, for at most leave_one_out_keys keys
///
/// |v - o|^2 is |v|^2 + |o|^2 - 2 v.o, whose products are one more register tile. Where p is near 1, v is near o and
/// what is left after the cancellation would be noise, multiplied by a large number; but at most one key of a query
/// has p >= 1/2, so those take the difference itself. `Peaked`: there may be such a key. `Guarded`: values or outputs
/// may not be finite, and must not meet the p of 0 of a query that does not see them, nor the u of 0 of one that does not
/// count.
template <Scalar T, int V, bool Peaked, bool Guarded>
ATTENTION_BALANCER_NOINLINE void add_changes(const WeightedRows<T>& rows, const LeaveOneOut<T>& x,
                                             const T* value_squares, Index keys, T* change) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const S one = S(T(1)), half = S(T(0.5)), zero = S(T(0));
  alignas(64) T twice[V * n], opposite[V * n], halves[V * n];
  ATTENTION_BALANCER_UNROLL
  for (int k = 0; k < V; ++k) {
    const S f = simd::load_aligned<S>(rows.factor + k * n);
    // 2 u f^2
    const S u = simd::load_aligned<S>(rows.u + k * n);
    simd::store_aligned(twice + k * n, (u + u) * f * f);
    simd::store_aligned(opposite + k * n, zero - f);
    simd::store_aligned(halves + k * n, half * simd::load_aligned<S>(x.output_squares + k * n));
  }
  auto of_key = [&](Index j) {
    const S value_half = S(value_squares[j] * T(0.5));
    S w[V], rest[V];
    bool dominated = false;
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < V; ++k) {
      w[k] = simd::load_aligned<S>(rows.weights + (j * V + k) * n);
      rest[k] = simd::fma(w[k], simd::load_aligned<S>(opposite + k * n), one);  // 1 - p
      if constexpr (Peaked) {
        const auto dominant = rest[k] <= half;
        dominated = dominated || simd::any(dominant);
        w[k] = simd::select(dominant, zero, w[k]);
        rest[k] = simd::select(dominant, one, rest[k]);
      }
    }
    // One division for all: each is in (1/2, 1].
    S inverse[V];
    if constexpr (V == 1) {
      inverse[0] = one / rest[0];
    } else if constexpr (V == 2) {
      const S both = one / (rest[0] * rest[1]);
      inverse[0] = both * rest[1];
      inverse[1] = both * rest[0];
    } else {
      static_assert(V == 3);
      const S first = rest[0] * rest[1], all = one / (first * rest[2]), second = all * rest[2];
      inverse[0] = second * rest[1];
      inverse[1] = second * rest[0];
      inverse[2] = all * first;
    }
    S sum = zero;
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < V; ++k) {
      S distance = simd::max(zero, simd::load_aligned<S>(halves + k * n) + value_half -
                                       simd::load_aligned<S>(x.products + (j * V + k) * n));
      if constexpr (Guarded) {
        const simd::mask_of<S> unseen = w[k] == zero, uncounted = simd::load_aligned<S>(rows.u + k * n) == zero;
        distance = simd::select(unseen | uncounted, zero, distance);
      }
      const S ratio = w[k] * inverse[k];
      sum = simd::fma(ratio * ratio, simd::load_aligned<S>(twice + k * n) * distance, sum);
    }
    if constexpr (Peaked)
      if (dominated) change[j] += change_without_dominant<T, V>(rows, x, j);
    return sum;
  };
  reduce_keys(keys, change, of_key, Add{});
}

template <Scalar T, int V>
void add_leave_one_out(const WeightedRows<T>& rows, const LeaveOneOut<T>& x, bool peaked, bool finite, Index keys,
                       T* change) noexcept {
  alignas(64) T value_squares[leave_one_out_keys];
  finite = square_values(x.values, x.value_stride, x.value_dim, keys, value_squares) && finite;
  if (!finite)
    add_changes<T, V, true, true>(rows, x, value_squares, keys, change);
  else if (peaked)
    add_changes<T, V, true, false>(rows, x, value_squares, keys, change);
  else
    add_changes<T, V, false, false>(rows, x, value_squares, keys, change);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
