#pragma once
// Between the matrix products of the backward pass: a block of scores [keys, W] and of gradients of its weights
// become weights and gradients of the scores, through the masks and, from the last to the first, the score
// modifiers.

#include <tuple>
#include <type_traits>

#include "attention_balancer/attention/detail/stage.hpp"
#include "attention_balancer/attention/gradients.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// What is known of the rows of a block of queries, lane by lane.
template <Scalar T>
struct RowState {
  static constexpr int width = block_packs * simd::lanes<T>;

  alignas(64) T lse[width];      // +inf for a row that gives and gets nothing
  alignas(64) T offset[width];   // the same in the scores' unit: p = exp(logit of (score - offset))
  alignas(64) T delta[width];    // sum over the keys of weight times its gradient, less the gradient of the lse
  alignas(64) T entropy[width];  // gradient of the entropy
  alignas(64) T u[width];        // weight of the query in the mass
  alignas(64) T sum[width];      // first pass: sum of slope * gradient of the weight
  alignas(64) T slopes[width];   // first pass: sum of slopes
};

/// A block of scores on its way back.
template <Scalar T>
struct ScoreGradients {
  Place at;
  int packs;         // W = packs * lanes
  bool partial;      // masks must be tested
  bool first_pass;   // only adds to rows.sum
  T* scores;         // [keys, W] scaled products in, weights out
  T* gradients;      // [keys, W] gradients of the weights in, of the scores out; null: 0 in, none out
  T* seen;           // [keys, W] 1 where a key is visible, else 0; null: not wanted
  const T* weights;  // [keys, W] what sparsify or weigh_kept left; null: weights are computed from scores and lse
  Normalization::Kind normalizer;
  RowState<T>* rows;
  T exponent_per_score, logit_per_score;  // as in OnlineState
  bool with_entropy;
  const T* mass;  // gradient of the mass of the first key of the block; null: none
  Index mass_stride;
  T* const* parameter_rows;  // per score modifier [W], added to; null: its parameter's gradient is not wanted so
  T* const* parameter_keys;  // per score modifier, of the first key of the block; likewise
};

template <class>
inline constexpr bool is_gradient = false;
template <class P, class T>
inline constexpr bool is_gradient<Gradient<P, T>> = true;

/// Whether a score modifier knows its derivative.
template <class M, class T>
concept Differentiable = requires(const M& m, const simd::Pack<T>& x, const Site<simd::Pack<T>>& site) {
  { m.pullback(x, x, site) } -> std::convertible_to<simd::Pack<T>>;
};

/// Whether it knows the derivative of its parameter too.
template <class M, class T>
concept Learnable = requires(const M& m, const simd::Pack<T>& x, const Site<simd::Pack<T>>& site) {
  { m.parameter_gradient(x, x, site) } -> std::convertible_to<simd::Pack<T>>;
};

/// The score modifiers and masks of a call on their way back.
template <Scalar T, class Set>
struct Derivatives;

template <Scalar T, class... Modifiers, class... Masks>
struct Derivatives<T, Policies<T, std::tuple<const Modifiers&...>, std::tuple<const Masks&...>>> {
  using Set = Policies<T, std::tuple<const Modifiers&...>, std::tuple<const Masks&...>>;
  using S = simd::Pack<T>;
  static constexpr int n = simd::lanes<T>;
  static constexpr std::size_t modifiers = sizeof...(Modifiers);
  static constexpr bool has_masks = sizeof...(Masks) > 0;

  static void run(const void* set, const ScoreGradients<T>& x) noexcept {
    if (has_masks && x.partial)
      block<has_masks>(*static_cast<const Set*>(set), x);
    else
      block<false>(*static_cast<const Set*>(set), x);
  }

  template <bool Masked>
  ATTENTION_BALANCER_NOINLINE static void block(const Set& set, const ScoreGradients<T>& x) noexcept {
    constexpr bool placed = Masked || modifiers > 0;
    Site<S> sites[block_packs] = {};
    Sums sums[block_packs];
    if constexpr (placed)
      for (int v = 0; v < x.packs; ++v)
        sites[v] =
            Site<S>::along_queries(x.at.batch, x.at.head, *x.at.problem, x.at.first_query + v * n, x.at.key_begin);
    const Index keys = x.at.key_end - x.at.key_begin;
    for (Index j = 0; j < keys; ++j) {
      Across across;
      for (int v = 0; v < x.packs; ++v) {
        if constexpr (placed) sites[v].move_to_key(x.at.key_begin + j);
        T* const at = x.scores + (j * x.packs + v) * n;
        Lane lane{x, j, v, at, simd::mask_of<S>(false)};
        const S score = simd::load_aligned<S>(at);
        const S gradient = back<0, Masked>(set, score, sites[v], lane, sums[v], across);
        if (x.first_pass || x.gradients == nullptr) continue;
        simd::store_aligned(x.gradients + (j * x.packs + v) * n, simd::select(lane.hidden, S(T(0)), gradient));
      }
      for (std::size_t m = 0; m < modifiers; ++m)
        if (x.parameter_keys[m] != nullptr && !x.first_pass)
          x.parameter_keys[m][j] += simd::reduce_add(across.keys[m]);
    }
    for (int v = 0; v < x.packs; ++v) {
      if (x.first_pass) {
        T *const sum = x.rows->sum + v * n, *const slopes = x.rows->slopes + v * n;
        simd::store_aligned(sum, simd::load_aligned<S>(sum) + sums[v].weighted);
        simd::store_aligned(slopes, simd::load_aligned<S>(slopes) + sums[v].slopes);
      }
      for (std::size_t m = 0; m < modifiers; ++m)
        if (x.parameter_rows[m] != nullptr && !x.first_pass) {
          T* const row = x.parameter_rows[m] + v * n;
          simd::store_aligned(row, simd::load_aligned<S>(row) + sums[v].parameters[m]);
        }
    }
  }

 private:
  struct Sums {
    S weighted = S(T(0)), slopes = S(T(0));
    S parameters[modifiers + 1];
    Sums() noexcept {
      for (S& x : parameters) x = S(T(0));
    }
  };
  struct Across {
    S keys[modifiers + 1];
    Across() noexcept {
      for (S& x : keys) x = S(T(0));
    }
  };
  struct Lane {
    const ScoreGradients<T>& x;
    Index key;
    int pack;
    T* at;
    simd::mask_of<S> hidden;
  };

  /// The gradient of the score that modifier I is given; Site is unused without policies.
  template <std::size_t I, bool Masked>
  ATTENTION_BALANCER_INLINE static S back(const Set& set, const S& before, const Site<S>& site, Lane& lane,
                                          Sums& sums, Across& across) noexcept {
    if constexpr (I == modifiers) {
      return finish<Masked>(set, before, site, lane, sums);
    } else {
      const auto& modifier = std::get<I>(set.modifiers);
      const S gradient = back<I + 1, Masked>(set, modifier(before, site), site, lane, sums, across);
      if constexpr (is_gradient<std::remove_cvref_t<decltype(modifier)>>) {
        if (!lane.x.first_pass) {
          const S of_parameter =
              simd::select(lane.hidden, S(T(0)), S(modifier.parameter_gradient(before, gradient, site)));
          if (lane.x.parameter_rows[I] != nullptr) {
            sums.parameters[I] = sums.parameters[I] + of_parameter;
          } else if (lane.x.parameter_keys[I] != nullptr) {
            across.keys[I] = across.keys[I] + of_parameter;
          } else {
            add_to_plane(modifier.target(), of_parameter, lane);
          }
        }
      }
      return modifier.pullback(before, gradient, site);
    }
  }

  /// The target has an element of its own for each of these queries and keys.
  static void add_to_plane(const TensorView<T>& target, const S& of_parameter, const Lane& lane) noexcept {
    const Place& at = lane.x.at;
    alignas(64) T values[n];
    simd::store_aligned(values, of_parameter);
    const Index first = at.first_query + lane.pack * n;
    const Plane<T> to = broadcast_plane(target, at.batch, at.head);
    const Index count = std::min(Index(n), at.problem->queries - first);
    for (Index i = 0; i < count; ++i) to(first + i, at.key_begin + lane.key) += values[i];
  }

  /// Weight and gradient of a score after all modifiers.
  template <bool Masked>
  ATTENTION_BALANCER_INLINE static S finish(const Set& set, S score, const Site<S>& site, Lane& lane,
                                            Sums& sums) noexcept {
    const ScoreGradients<T>& x = lane.x;
    const RowState<T>& rows = *x.rows;
    const S none(-infinity<T>), zero(T(0));
    if constexpr (Masked) score = simd::select(set.visible(site), score, none);
    const S offset = simd::load_aligned<S>(rows.offset + lane.pack * n);
    const simd::mask_of<S> masked = score == none, dead = offset == S(infinity<T>);
    lane.hidden = masked | dead;
    S p, slope, log_p;  // slope: dp / ds, were the other scores fixed and the sum of the weights free
    if (x.weights != nullptr) {
      const S weight = simd::load_aligned<S>(x.weights + (lane.key * x.packs + lane.pack) * n);
      const simd::mask_of<S> outside = weight == zero;
      lane.hidden = outside | dead;
      p = simd::select(lane.hidden, zero, x.normalizer == Normalization::Kind::entmax15 ? weight * weight : weight);
      // Not a number stays so.
      slope = x.normalizer == Normalization::Kind::sparsemax ? simd::fma(weight, zero, S(T(1))) : weight;
      log_p = x.with_entropy ? simd::log(simd::select(lane.hidden, S(T(1)), p)) : zero;
    } else {
      const S difference = score - offset;
      slope = p = simd::select(lane.hidden, zero, simd::exp2_of_weight<true>(difference * S(x.exponent_per_score)));
      log_p = simd::select(p == zero, zero, difference * S(x.logit_per_score));  // which may be infinite
    }
    S gradient = zero;
    if (x.gradients != nullptr)
      gradient = simd::load_aligned<S>(x.gradients + (lane.key * x.packs + lane.pack) * n);
    if (x.mass != nullptr)
      gradient =
          simd::fma(simd::load_aligned<S>(rows.u + lane.pack * n), S(x.mass[lane.key * x.mass_stride]), gradient);
    if (x.with_entropy) gradient = gradient - simd::load_aligned<S>(rows.entropy + lane.pack * n) * log_p;
    if (x.first_pass) {
      sums.weighted = sums.weighted + simd::select(lane.hidden, zero, slope * gradient);
      sums.slopes = sums.slopes + simd::select(lane.hidden, zero, slope);
      return zero;
    }
    if (x.seen != nullptr)
      simd::store_aligned(x.seen + (lane.key * x.packs + lane.pack) * n, simd::select(lane.hidden, zero, S(T(1))));
    simd::store_aligned(lane.at, p);
    return simd::select(lane.hidden, zero, slope * (gradient - simd::load_aligned<S>(rows.delta + lane.pack * n)));
  }
};

/// What Derivatives makes of V packs of scores where there is no policy and nothing but these gradients is asked for,
/// bit by bit. Most blocks are that, and the shorter the loop, the more packs a processor works on at a time.
template <Scalar T, int V, bool InBits>
ATTENTION_BALANCER_NOINLINE void derive_plain(T* scores, T* gradients, Index keys,
                                              const RowState<T>& rows) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  const S none(-infinity<T>), zero(T(0));
  S offset[V], delta[V];
  simd::mask_of<S> dead[V];
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v) {
    offset[v] = simd::load_aligned<S>(rows.offset + v * n);
    delta[v] = simd::load_aligned<S>(rows.delta + v * n);
    dead[v] = offset[v] == S(infinity<T>);
  }
  ATTENTION_BALANCER_NO_UNROLL
  for (Index j = 0; j < keys; ++j, scores += V * n, gradients += V * n) {
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) {
      const S score = simd::load_aligned<S>(scores + v * n);
      const simd::mask_of<S> hidden = dead[v] | (score == none);
      S x = score - offset[v];
      if constexpr (!InBits) x = x * S(T(simd::log2_e));
      const S p = simd::select(hidden, zero, simd::exp2_of_weight<!InBits>(x));
      const S gradient = simd::load_aligned<S>(gradients + v * n);
      simd::store_aligned(scores + v * n, p);
      simd::store_aligned(gradients + v * n, simd::select(hidden, zero, p * (gradient - delta[v])));
    }
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
