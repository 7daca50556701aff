#pragma once
// The running softmax of one query whose scores lie side by side: lanes are keys. As OnlineState, one query at a
// time.

#include <algorithm>

#include "attention_balancer/softmax/online_state.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The largest score so far (-inf if none is visible), the sum of 2^y, y = (score - top) * log2(e), and of 2^y * y.
template <Scalar T>
struct RowSoftmax {
  T top = -infinity<T>, sum = T(0), dot = T(0);
};

/// (from - to) * log2(e) as exp2_clamped takes it; the least exponent for a score of -inf.
template <Scalar T>
ATTENTION_BALANCER_INLINE T exponent_of(T from, T to) noexcept {
  return simd::clamp_exponent(from == -infinity<T> ? -infinity<T> : (from - to) * T(simd::log2_e));
}

/// The largest of whole packs of scores that is a number.
template <Scalar T>
ATTENTION_BALANCER_INLINE T top_of(const T* scores, Index count) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S highest(-infinity<T>);
  for (Index j = 0; j < count; j += n) highest = simd::max(simd::load_aligned<S>(scores + j), highest);
  alignas(64) T lane[n];
  simd::store_aligned(lane, highest);
  T top = lane[0];
  for (int l = 1; l < n; ++l) top = simd::max(lane[l], top);
  return top;
}

/// `count` scores, whole packs, become weights 2^((score - top) * log2(e)) in place and are added to the state.
/// Returns the factor that brings what was added up with earlier weights down to the new top. `Marked`: the weight of a
/// score of -inf is -0, for scaled_weight.
template <bool Marked, Scalar T>
ATTENTION_BALANCER_NOINLINE T weigh_row(T* scores, Index count, RowSoftmax<T>& state) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const T top = simd::max(top_of(scores, count), state.top);
  const T offset = top == -infinity<T> ? T(0) : top;
  T shrink(1);
  if (!(top == state.top)) {
    const T exponent = exponent_of(state.top, offset);
    shrink = simd::exp2_clamped(exponent);
    state.dot = shrink * simd::fma(state.sum, exponent, state.dot);
    state.sum = shrink * state.sum;
    state.top = top;
  }
  const S low(offset), log2_e = S(T(simd::log2_e));
  S sum(T(0)), dot(T(0));
  for (Index j = 0; j < count; j += n) {
    const S score = simd::load_aligned<S>(scores + j);
    const S y = simd::clamp_exponent((score - low) * log2_e);
    S weight = simd::exp2_clamped(y);
    if constexpr (Marked) weight = simd::select(score == S(-infinity<T>), S(T(-0.0)), weight);
    simd::store_aligned(scores + j, weight);
    sum = sum + weight;
    dot = simd::fma(weight, y, dot);
  }
  state.sum += simd::reduce_add(sum);
  state.dot += simd::reduce_add(dot);
  return shrink;
}

/// What a finished row says of itself: a probability is 2^((score - base) * log2(e)) * inverse.
template <Scalar T>
struct RowResult {
  T base, inverse;  // inverse is 0 for a row that sees nothing
  T sink;           // the probability of the sink
  T lse, entropy;
  bool empty;
};

/// Merges the states of the parts of a row, `part(s)` for s < parts, in order, and a sink of one logit (-inf:
/// none). Writes for each part what its weights are to be multiplied with to become probabilities.
template <Scalar T, class Part>
RowResult<T> merge_row(Index parts, Part part, T sink_logit, T* factors) noexcept {
  T top = sink_logit;
  for (Index s = 0; s < parts; ++s) top = simd::max(part(s).top, top);
  RowResult<T> result{};
  result.base = top == -infinity<T> ? T(0) : top;
  const T sink_weight = simd::exp2_clamped(exponent_of(sink_logit, result.base));
  T total = sink_weight, own(0);
  for (Index s = 0; s < parts; ++s) {
    factors[s] = simd::exp2_clamped(exponent_of(part(s).top, result.base));
    total = simd::fma(part(s).sum, factors[s], total);
    own += part(s).sum;
  }
  result.empty = own == T(0);
  result.inverse = total == T(0) ? T(0) : T(1) / total;
  const bool has_sink = !(sink_logit == -infinity<T>);
  result.sink = has_sink ? sink_weight * result.inverse : T(0);
  const T log_total = std::log(total);
  result.lse = log_total + result.base;
  // H = lse - sum p s - p_sink s_sink, with every score measured from the highest: no cancellation of large
  // numbers.
  T entropy = total == T(0) ? T(0) : log_total;
  if (has_sink && result.sink != T(0)) entropy = simd::fma(result.sink, result.base - sink_logit, entropy);
  for (Index s = 0; s < parts; ++s) {
    factors[s] *= result.inverse;
    if (part(s).top == -infinity<T>) {
      entropy += part(s).sum;  // 0, or not a number
      continue;
    }
    if (factors[s] == T(0)) continue;  // its top may be further away than T reaches
    entropy = simd::fma(part(s).sum * factors[s], result.base - part(s).top, entropy);
    entropy = simd::fma(T(-simd::ln_2) * part(s).dot, factors[s], entropy);
  }
  result.entropy = simd::max(T(0), entropy);
  return result;
}

/// Calls f(S number, Index j) for packs of `count` numbers and, one by one, for the rest, and stores what it
/// returns.
template <Scalar T, class F>
ATTENTION_BALANCER_INLINE void for_packs(const T* from, Index count, T* into, F f) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  Index j = 0;
  for (; j + n <= count; j += n) simd::store(into + j, f(simd::load<S>(from + j), j));
  for (; j < count; ++j) into[j] = f(from[j], j);
}

/// The probability of a score.
template <Scalar T>
ATTENTION_BALANCER_INLINE T probability(T score, const RowResult<T>& row) noexcept {
  return simd::exp2_clamped(exponent_of(score, row.base)) * row.inverse;
}

/// factors [tops] = what brings weights that were measured from a top to probabilities; whole packs.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void factors_of(const T* tops, Index count, const RowResult<T>& row,
                                            T* factors) noexcept {
  using S = simd::Pack<T>;
  const S base(row.base), inverse(row.inverse), log2_e = S(T(simd::log2_e));
  for (Index i = 0; i < count; i += simd::lanes<T>)
    simd::store_aligned(
        factors + i, simd::exp2_clamped(simd::clamp_exponent((simd::load<S>(tops + i) - base) * log2_e)) * inverse);
}

/// Probabilities of marked weights, which are 1 at most; of masked keys 0, whatever the row is: one that is not a
/// number touches all others.
template <class S>
ATTENTION_BALANCER_INLINE S scaled_weight(const S& weight, const S& factor) noexcept {
  using T = simd::scalar_of<S>;
  // Not < 0: what is not a number may have the sign of -0.
  return simd::select(simd::copy_sign(S(T(2)), weight) < weight, S(T(0)), weight * factor);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
