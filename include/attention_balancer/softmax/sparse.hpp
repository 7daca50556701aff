#pragma once
// Normalisers that give most keys exactly nothing: from the whole strip of scores of a block of queries, lanes are
// queries, to their weights.

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention_balancer/softmax/normalizers.hpp"
#include "attention_balancer/softmax/online_state.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// What a sparse normaliser finds, lane by lane.
template <Scalar T>
struct Sparse {
  static constexpr int width = OnlineState<T>::width;
  alignas(64) T threshold[width];  // of the scores relative to the largest; entmax: of their halves
  alignas(64) T support[width];    // number of keys with a weight
};

/// threshold = the tau where the weights add up to 1: sum max(0, x - tau) for sparsemax, sum max(0, x - tau)^2 for
/// entmax, x the scores relative to the largest, times `factor`. Newton's method from tau = -1, where the sum is at
/// least 1 of a function that is convex and falls: no step goes too far, and each that counts raises tau.
template <Scalar T, bool Entmax>
ATTENTION_BALANCER_NOINLINE void find_threshold(const T* scores, Index keys, Index stride, const T* offset,
                                                T* threshold) noexcept {
  using S = simd::Pack<T>;
  const S top = simd::load_aligned<S>(offset), zero(T(0)), one(T(1)), factor(T(Entmax ? 0.5 : 1)),
          none(-infinity<T>);
  S tau = zero - one;
  for (int round = 0; round < 1000; ++round) {
    S sum = zero, square = zero, count = zero;
    for (Index j = 0; j < keys; ++j) {
      const S score = simd::load_aligned<S>(scores + j * stride), x = (score - top) * factor;
      // What is not a number is no less than tau: its row becomes so. What is masked is.
      const simd::mask_of<S> small = x <= tau, masked = score == none, outside = small | masked;
      const S above = simd::select(outside, zero, x - tau);
      sum = sum + above;
      if constexpr (Entmax)
        square = simd::fma(above, above, square);
      else
        count = count + simd::select(outside, zero, one);
    }
    S step = Entmax ? (square - one) / (sum + sum) : (sum - one) / count;
    step = simd::select(Entmax ? sum == zero : count == zero, zero, step);  // a row without a visible key
    const S next = tau + step;
    const bool rising = simd::any(next > tau);
    tau = simd::select(next <= tau, tau, next);
    if (!rising) break;
  }
  simd::store_aligned(threshold, tau);
}

/// Scores become weights in place: w = max(0, x - tau) of sparsemax, the probability, or its square root for
/// entmax.
template <Scalar T, bool Entmax>
ATTENTION_BALANCER_NOINLINE void cut_at_threshold(T* scores, Index keys, Index stride, const T* offset,
                                                  const T* threshold, T* support) noexcept {
  using S = simd::Pack<T>;
  const S top = simd::load_aligned<S>(offset), tau = simd::load_aligned<S>(threshold), zero(T(0)), one(T(1)),
          factor(T(Entmax ? 0.5 : 1)), none(-infinity<T>);
  S count = zero;
  for (Index j = 0; j < keys; ++j) {
    T* const at = scores + j * stride;
    const S score = simd::load_aligned<S>(at), x = (score - top) * factor;
    const simd::mask_of<S> small = x <= tau, masked = score == none, outside = small | masked;
    simd::store_aligned(at, simd::select(outside, zero, x - tau));
    count = count + simd::select(outside, zero, one);
  }
  simd::store_aligned(support, count);
}

/// Leaves the k largest scores of each lane, of equals those of the lower keys; the others become -inf, as if
/// masked. A row with a score that is not a number is left as it is.
///
/// The k-th largest is enclosed by two of the scores, which close in on it from a middle between them.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void keep_largest(T* scores, Index keys, Index stride, Index k, T* support) noexcept {
  using S = simd::Pack<T>;
  const S zero(T(0)), one(T(1)), half(T(0.5)), none(-infinity<T>), most(infinity<T>), wanted(static_cast<T>(k));
  auto at = [&](Index j) { return simd::load_aligned<S>(scores + j * stride); };
  S visible = zero, numbers = zero, low = most, high = none;
  for (Index j = 0; j < keys; ++j) {
    const S x = at(j);
    visible = visible + simd::select(x == none, zero, one);
    const simd::mask_of<S> above = x > none, finite = x < most, number = above & finite;
    numbers = numbers + simd::select(number, one, zero);
    low = simd::select(number, simd::select(x < low, x, low), low);
    high = simd::select(number, simd::select(x > high, x, high), high);
  }
  // With so few, or with one that is infinite or not a number, all stay.
  const simd::mask_of<S> few = visible <= wanted, odd = numbers < visible, all = few | odd;
  low = simd::select(all, none, low), high = simd::select(all, none, high);
  while (simd::any(low < high)) {
    const S middle = [&] {
      const S m = low * half + high * half;
      return simd::select(m < high, simd::select(m > low, m, low), low);
    }();
    S count = zero, up = most, down = none;
    for (Index j = 0; j < keys; ++j) {
      const S x = at(j);
      const simd::mask_of<S> above = x > middle;
      count = count + simd::select(above, one, zero);
      const S higher = simd::select(above, x, most), lower = simd::select(above, none, x);
      up = simd::select(higher < up, higher, up);
      down = simd::select(lower > down, lower, down);
    }
    const simd::mask_of<S> open = low < high, enough = count >= wanted, exact = count == wanted;
    const S next_low = simd::select(enough, up, low),
            next_high = simd::select(enough, simd::select(exact, up, high), down);
    low = simd::select(open, next_low, low), high = simd::select(open, next_high, high);
  }
  S greater = zero;
  for (Index j = 0; j < keys; ++j) greater = greater + simd::select(at(j) > low, one, zero);
  S ties = simd::select(all, zero, wanted - greater);
  for (Index j = 0; j < keys; ++j) {
    const S x = at(j);
    const simd::mask_of<S> above = x > low, equal = x == low, left = ties > zero, tie = equal & left,
                           first = above | tie, kept = first | all;
    ties = ties - simd::select(tie, one, zero);
    simd::store_aligned(scores + j * stride, simd::select(kept, x, none));
  }
  const S count = simd::select(few, visible, simd::select(odd, visible, wanted));
  simd::store_aligned(support, count);
}

/// What is left of the scores [keys, V packs]: for top-k the scores that take part in the softmax, else the weights
/// of cut_at_threshold. `offset` are their maxima, or 0 where there is none.
template <Scalar T, int V>
void sparsify(const Normalization& x, T* scores, Index keys, const T* offset, Sparse<T>& sparse) noexcept {
  constexpr int n = simd::lanes<T>;
  for (int v = 0; v < V; ++v) {
    const Index at = v * n;
    switch (x.kind) {
      case Normalization::Kind::softmax: break;
      case Normalization::Kind::top_k: keep_largest<T>(scores + at, keys, V * n, x.k, sparse.support + at); break;
      case Normalization::Kind::sparsemax:
        find_threshold<T, false>(scores + at, keys, V * n, offset + at, sparse.threshold + at);
        cut_at_threshold<T, false>(scores + at, keys, V * n, offset + at, sparse.threshold + at,
                                   sparse.support + at);
        break;
      case Normalization::Kind::entmax15:
        find_threshold<T, true>(scores + at, keys, V * n, offset + at, sparse.threshold + at);
        cut_at_threshold<T, true>(scores + at, keys, V * n, offset + at, sparse.threshold + at,
                                  sparse.support + at);
        break;
    }
  }
}

/// weights [keys, V packs] become probabilities, and their sum and sum of p log2 p a state that normalize_block
/// reads.
template <Scalar T, int V>
ATTENTION_BALANCER_NOINLINE void sum_weights(const Normalization& x, T* weights, Index keys, bool entropy,
                                             OnlineState<T>& state) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const bool squared = x.kind == Normalization::Kind::entmax15;
  for (int v = 0; v < V; ++v) {
    S sum(T(0)), dot(T(0));
    for (Index j = 0; j < keys; ++j) {
      T* const at = weights + (j * V + v) * n;
      const S w = simd::load_aligned<S>(at), p = squared ? w * w : w;
      simd::store_aligned(at, p);
      sum = sum + p;
      const simd::mask_of<S> outside = p == S(T(0));
      if (entropy && simd::any(p > S(T(0))))  // most have none
        dot = dot + simd::select(outside, S(T(0)), p * simd::log(simd::select(outside, S(T(1)), p)));
    }
    simd::store_aligned(state.sum + v * n, sum);
    simd::store_aligned(state.dot + v * n, dot * S(T(simd::log2_e)));
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
