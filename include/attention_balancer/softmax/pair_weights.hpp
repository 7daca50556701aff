#pragma once
// The running softmax where weights are wanted as pairs of bf16 and no longer as floats.

#include "attention_balancer/simd/bf16.hpp"
#include "attention_balancer/softmax/online_state.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

#if defined(ATTENTION_BALANCER_BF16_PRODUCTS)

/// 2^x as the machine that the code is compiled for does it best, and as those do that have AMX.
struct Exponential {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& x) const noexcept {
    return simd::exp2(x);
  }
};
struct ScalingExponential {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& x) const noexcept {
    return simd::detail::exp2_by_scaling(x);
  }
};

/// As weigh, for scores [count, V packs] that are logits: pairs [(count + 1) / 2, V packs] of their weights, of two
/// keys each, rounded to bf16 after they were summed; behind an odd last weight 0. May be the same memory.
template <int V, class Exp2, bool Entropy>
ATTENTION_BALANCER_NOINLINE void weigh_pairs(const float* scores, Index count, OnlineState<float>& state,
                                             float* pairs) noexcept {
  using S = simd::Pack<float>;
  constexpr int n = simd::lanes<float>, width = V * n;
  const S log2_e(static_cast<float>(simd::log2_e));
  S offset[V], sum[V], dot[V];
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) offset[v] = simd::load_aligned<S>(state.offset + v * n), sum[v] = dot[v] = S(0.0f);
  // Subtracted first, as in weigh: of scores of 2^31 the offset times log2(e) is off by more than exponents reach.
  const auto weigh_one = [&](const float* from, int v) {
    const S y = (simd::load_aligned<S>(from + v * n) - offset[v]) * log2_e, weight = Exp2{}(y);
    sum[v] = sum[v] + weight;
    if constexpr (Entropy) dot[v] = simd::fma(weight, simd::clamp_exponent(y), dot[v]);
    return weight;
  };
  for (; count >= 2; count -= 2, scores += 2 * width, pairs += width) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    const S first = weigh_one(scores, v), second = weigh_one(scores + width, v);
    simd::store_aligned(pairs + v * n, simd::to_pairs_of_weights(first, second));
  }
  if (count > 0) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v)
    simd::store_aligned(pairs + v * n, simd::to_pairs_of_weights(weigh_one(scores, v), S(0.0f)));
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    simd::store_aligned(state.sum + v * n, simd::load_aligned<S>(state.sum + v * n) + sum[v]);
    if constexpr (Entropy)
      simd::store_aligned(state.dot + v * n, simd::load_aligned<S>(state.dot + v * n) + dot[v]);
  }
}

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
