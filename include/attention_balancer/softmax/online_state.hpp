#pragma once
// The running softmax of a block of queries: the largest score, the sum of exponentials relative to it, and, when
// entropy is wanted, the sum of exponentials times their exponents. The only place where exponentials are summed.
//
// Everything lies query by query in arrays of V packs, V * lanes queries: lanes are queries.

#include <limits>

#include "attention_balancer/simd/math.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Packs in a full block of queries. With the keys of a register tile it gives 24 accumulators of 32 registers, or
/// 12 of 16.
inline constexpr int block_packs = 3;

template <Scalar T>
inline constexpr T infinity = std::numeric_limits<T>::infinity();

/// The state of a block of queries, at most four packs of them.
template <Scalar T>
struct OnlineState {
  static constexpr int width = 4 * simd::lanes<T>;

  alignas(64) T top[width];     // the largest score so far; -inf if none is visible
  alignas(64) T sum[width];     // sum of 2^y, y = (logit - top logit) * log2(e)
  alignas(64) T dot[width];     // sum of 2^y * y, for the entropy
  alignas(64) T offset[width];  // top, or 0 while there is none: what is subtracted from a score
  alignas(64) T shrink[width];  // what the last raise of the top multiplied sums and outputs with

  /// Scores are logits, or logits times log2(e): what to multiply their differences with before exponentiating, and
  /// what their logits.
  bool in_bits = false;
  T exponent_per_score() const noexcept { return in_bits ? T(1) : T(simd::log2_e); }
  T logit_per_score() const noexcept { return in_bits ? T(simd::ln_2) : T(1); }

  /// Forgets the scores.
  void clear() noexcept {
    for (int i = 0; i < width; ++i) top[i] = -infinity<T>, sum[i] = dot[i] = offset[i] = T(0), shrink[i] = T(1);
  }
};

/// Raises the tops to at least `candidate` [V packs] and brings sum and dot down to them. Returns whether shrink is
/// other than 1 anywhere.
template <Scalar T, int V>
bool raise_top(OnlineState<T>& state, const T* candidate) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const S per_score(state.exponent_per_score());
  bool raised_any = false;
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    const S before = simd::load_aligned<S>(state.top + v * n), offset = simd::load_aligned<S>(state.offset + v * n);
    const S top = simd::max(simd::load_aligned<S>(candidate + v * n), before);
    // Without a visible key top is -inf, and -inf - -inf would be not a number: subtract 0 until there is one.
    const S raised = simd::select(top == S(-infinity<T>), S(T(0)), top);
    // While sum is 0 any finite factor does; before a first top, offset is no measure of the distance.
    const S exponent = simd::clamp_exponent(
        simd::select(before == S(-infinity<T>), S(-infinity<T>), (offset - raised) * per_score));
    const S shrink = simd::exp2_clamped(exponent);
    const S sum = simd::load_aligned<S>(state.sum + v * n), dot = simd::load_aligned<S>(state.dot + v * n);
    // Each 2^y * y becomes shrink * 2^y * (y + exponent).
    simd::store_aligned(state.dot + v * n, shrink * simd::fma(sum, exponent, dot));
    simd::store_aligned(state.sum + v * n, shrink * sum);
    simd::store_aligned(state.top + v * n, top);
    simd::store_aligned(state.offset + v * n, raised);
    simd::store_aligned(state.shrink + v * n, shrink);
    raised_any = raised_any || !simd::all(shrink == S(T(1)));
  }
  return raised_any;
}

/// As weigh, for scores in or not in bits. `Marked`: as weigh_row.
template <Scalar T, int V, bool Entropy, bool InBits, bool Marked = false>
ATTENTION_BALANCER_NOINLINE void weigh_scores(T* scores, Index keys, OnlineState<T>& state) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  S offset[V], sum[V], dot[V];
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) offset[v] = simd::load_aligned<S>(state.offset + v * n), sum[v] = dot[v] = S(T(0));
  [[maybe_unused]] const S log2_e = S(T(simd::log2_e));
  for (Index j = 0; j < keys; ++j) {
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) {
      T* at = scores + (j * V + v) * n;
      // Subtracted first: a difference of scores is exact where it matters.
      const S score = simd::load_aligned<S>(at);
      S y = score - offset[v];
      if constexpr (!InBits) y = y * log2_e;
      // Scores that are not in bits went through modifiers, such as ALiBi, which may take those of most keys far down.
      S weight = simd::exp2_of_weight<!InBits>(y);
      if constexpr (Marked) weight = simd::select(score == S(-infinity<T>), S(T(-0.0)), weight);
      simd::store_aligned(at, weight);
      sum[v] = sum[v] + weight;
      if constexpr (Entropy) dot[v] = simd::add_exponent(weight, y, dot[v]);
    }
  }
  // Blocks are summed by themselves first: the rounding error grows with their number, not with that of the keys.
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    simd::store_aligned(state.sum + v * n, simd::load_aligned<S>(state.sum + v * n) + sum[v]);
    if constexpr (Entropy)
      simd::store_aligned(state.dot + v * n, simd::load_aligned<S>(state.dot + v * n) + dot[v]);
  }
}

/// scores [keys, V packs] become weights 2^y in place, and are added to sum (and dot).
template <Scalar T, int V, bool Entropy>
void weigh(T* scores, Index keys, OnlineState<T>& state) noexcept {
  state.in_bits ? weigh_scores<T, V, Entropy, true>(scores, keys, state)
                : weigh_scores<T, V, Entropy, false>(scores, keys, state);
}

/// What a finished block of queries says of itself.
template <Scalar T>
struct Normalized {
  static constexpr int width = OnlineState<T>::width;
  alignas(64) T factor[width];   // a weight times this is a probability; 0 for a row that sees nothing
  alignas(64) T sink[width];     // the probability of the sink
  alignas(64) T lse[width];      // natural logarithm of the denominator
  alignas(64) T entropy[width];  // in nats
};

/// Merges the state with a sink of one logit (-inf: none) and normalises.
template <Scalar T, int V>
void normalize_block(const OnlineState<T>& state, T sink_logit, bool evidence, Normalized<T>& result) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const S per_score(state.logit_per_score());
  const S sink = S(sink_logit), none = S(-infinity<T>), zero = S(T(0)), log2_e = S(T(simd::log2_e));
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    const S top = simd::load_aligned<S>(state.top + v * n) * per_score;
    const S sum = simd::load_aligned<S>(state.sum + v * n), dot = simd::load_aligned<S>(state.dot + v * n);
    const S highest = simd::max(sink, top);
    const S base = simd::select(highest == none, zero, highest);
    // No difference of products: contracted, that of a number and itself is its rounding error.
    const S below = simd::select(highest == top, zero, base - top);
    const S shrink =
        simd::exp2_clamped(simd::clamp_exponent(simd::select(top == none, none, below * S(T(-simd::log2_e)))));
    const S sink_weight = simd::exp2_clamped(simd::clamp_exponent((sink - base) * log2_e));
    const S total = simd::fma(sum, shrink, sink_weight);
    const S inverse = simd::select(total == zero, zero, S(T(1)) / total);
    const S factor = shrink * inverse, sink_probability = simd::select(sink == none, zero, sink_weight * inverse);
    simd::store_aligned(result.factor + v * n, factor);
    simd::store_aligned(result.sink + v * n, sink_probability);
    if (!evidence) continue;
    const S log_total = simd::log(total);
    simd::store_aligned(result.lse + v * n, log_total + base);
    // H = lse - sum p s - p_sink s_sink, with every score measured from the highest: no cancellation of large numbers.
    const S from_top = simd::select((top == none) | (shrink == zero), zero, below),
            from_sink = simd::select(sink_weight == zero, zero, base - sink);
    S entropy = simd::select(total == zero, zero, log_total);
    entropy = entropy + sum * factor * from_top + sink_probability * from_sink - S(T(simd::ln_2)) * dot * factor;
    simd::store_aligned(result.entropy + v * n, simd::max(zero, entropy));
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
