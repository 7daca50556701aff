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
      const S p = simd::load_aligned<S>(rows.weights + (j * V + v) * n) * simd::load_aligned<S>(rows.factor + v * n);
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
      most = Larger{}(most, simd::load_aligned<S>(rows.weights + (j * V + v) * n) *
                                (simd::load_aligned<S>(rows.factor + v * n) * simd::load_aligned<S>(rows.u + v * n)));
    return most;
  };
  reduce_keys(keys, largest, of_key, Larger{});
}

/// What leave-one-out needs beside the probabilities.
template <Scalar T>
struct LeaveOneOut {
  const T* output;          // [Dv, V packs]: o, normalised
  const T* output_squares;  // [V packs]: |o|^2
  const T* values;          // [keys, Dv] at value_stride
  Index value_stride, value_dim;
  const T* products;  // [keys, V packs]: v . o
};

/// change [keys] += sum over the queries of u (p / (1 - p))^2 |v - o|^2
///
/// |v - o|^2 is |v|^2 + |o|^2 - 2 v.o, whose products are one more register tile. Where p is near 1, v is near o and
/// what is left after the cancellation would be noise, multiplied by a large number; but at most one key of a query
/// has p >= 1/2, so those take the difference itself.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void add_leave_one_out(const WeightedRows<T>& rows, const LeaveOneOut<T>& x, Index keys,
                                                   T* change) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const S one = S(T(1)), half = S(T(0.5)), zero = S(T(0));
  auto dominant = [&](Index j) {
    const T* v = x.values + j * x.value_stride;
    for (Index i = 0; i < V * n; ++i) {
      const T p = rows.weights[j * V * n + i] * rows.factor[i];
      if (!(p >= T(0.5)) || rows.u[i] == T(0)) continue;
      T distance(0);
      for (Index c = 0; c < x.value_dim; ++c) {
        const T d = v[c] - x.output[c * V * n + i];
        distance += d * d;
      }
      const T ratio = p < T(1) ? std::min(p / (T(1) - p), 1 / std::numeric_limits<T>::epsilon())
                               : 1 / std::numeric_limits<T>::epsilon();
      change[j] += rows.u[i] * ratio * ratio * distance;
    }
  };
  auto of_key = [&](Index j) {
    const T* v = x.values + j * x.value_stride;
    S squares = zero;
    Index c = 0;
    for (; c + n <= x.value_dim; c += n) squares = simd::fma(simd::load<S>(v + c), simd::load<S>(v + c), squares);
    T square = simd::reduce_add(squares);
    for (; c < x.value_dim; ++c) square = simd::fma(v[c], v[c], square);

    S sum = zero, largest = zero;
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < V; ++k) {
      const Index at = (j * V + k) * n;
      const S p = simd::load_aligned<S>(rows.weights + at) * simd::load_aligned<S>(rows.factor + k * n);
      const S distance = simd::max(
          zero, simd::fma(simd::load_aligned<S>(x.products + at), S(T(-2)),
                          simd::load_aligned<S>(x.output_squares + k * n) + S(square)));
      const S ratio = p / (one - p);
      const S term = simd::load_aligned<S>(rows.u + k * n) * ratio * ratio * distance;
      // A masked value may be anything: its p of 0 must not meet it. One at 1/2 or more is left to `dominant`.
      sum = sum + simd::select(p == zero, zero, simd::select(p >= half, zero, term));
      largest = simd::max(p, largest);
    }
    if (simd::any(largest >= half)) dominant(j);
    return sum;
  };
  reduce_keys(keys, change, of_key, Add{});
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
