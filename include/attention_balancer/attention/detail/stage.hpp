#pragma once
// The stage between the matrix products that knows the policies.

#include <algorithm>
#include <concepts>
#include <tuple>

#include "attention_balancer/mask/concepts.hpp"
#include "attention_balancer/score/concepts.hpp"
#include "attention_balancer/softmax/online_state.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Where a block of scores stands.
struct Place {
  const Problem* problem;
  Index batch, head, first_query, key_begin, key_end;
};

template <class P>
concept ChoosesLanes = requires(const P& p) {
  { p.prefers_key_lanes() } -> std::convertible_to<bool>;
};

/// Whether a policy would rather have keys as lanes.
template <class P>
bool prefers_key_lanes(const P& policy) noexcept {
  if constexpr (ChoosesLanes<P>)
    return policy.prefers_key_lanes();
  else
    return false;
}

/// Queries that a mask treats alike from each multiple of it on; 0 if it does not say.
template <class P>
Index query_grain(const P& policy) noexcept {
  if constexpr (requires {
                  { policy.query_grain() } -> std::convertible_to<Index>;
                })
    return policy.query_grain();
  else
    return 0;
}

/// The sites of V packs of queries at the first key of a block.
template <Scalar T, int V>
ATTENTION_BALANCER_INLINE void place_sites(Site<simd::Pack<T>> (&sites)[V], const Place& at) noexcept {
  ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v)
    sites[v] = Site<simd::Pack<T>>::along_queries(at.batch, at.head, *at.problem, at.first_query + v * simd::lanes<T>,
                                                  at.key_begin);
}

/// The score modifiers and masks of a call, for scores of T. All that depends on the types of the policies is here,
/// so that the kernels are compiled once per scalar whatever the policies are.
template <Scalar T, class Modifiers, class Masks>
struct Policies;

template <Scalar T, class... Modifiers, class... Masks>
struct Policies<T, std::tuple<const Modifiers&...>, std::tuple<const Masks&...>> {
  std::tuple<const Modifiers&...> modifiers;
  std::tuple<const Masks&...> masks;

  static constexpr bool has_modifiers = sizeof...(Modifiers) > 0;
  static constexpr bool has_masks = sizeof...(Masks) > 0;
  static constexpr bool masks_choose_lanes = (ChoosesLanes<Masks> || ...);
  static constexpr bool can_choose_lanes = (ChoosesLanes<Modifiers> || ...) || masks_choose_lanes;

  template <class S>
  ATTENTION_BALANCER_INLINE S bend_score(S score, const Site<S>& site) const {
    std::apply([&](const auto&... m) { ((score = m(score, site)), ...); }, modifiers);
    return score;
  }

  /// Intersection of the masks at a site; only where there are any.
  template <class S>
  ATTENTION_BALANCER_INLINE auto visible(const Site<S>& site) const {
    simd::mask_of<S> all(true);
    auto meet = [&all](const simd::mask_of<S>& one) { all = all & one; };  // named: clang warns of & on calls
    std::apply([&](const auto&... m) { (meet(simd::mask_of<S>(m.visible(site))), ...); }, masks);
    return all;
  }

  mask::Coverage classify(const Rect& rect) const {
    mask::Coverage all = mask::Coverage::full;
    auto meet = [&](mask::Coverage one) {
      if (one != mask::Coverage::full && all != mask::Coverage::skip) all = one;
      return one != mask::Coverage::skip;  // nothing can follow a skip
    };
    std::apply([&](const auto&... m) { (meet(m.classify(rect)) && ...); }, masks);
    return all;
  }

  /// What blocks of queries had better not cross: the largest grain of the masks, or 0. Blocks of few packs make poor
  /// use of what they load, and so do packs that are not full.
  Index query_grain() const noexcept {
    constexpr Index n = simd::lanes<T>;
    auto useful = [](Index grain) { return grain % n == 0 ? grain >= 2 * n : grain >= 12 * n; };
    Index largest = 0;
    auto take = [&](Index grain) { largest = std::max(largest, useful(grain) ? grain : Index(0)); };
    std::apply([&](const auto&... m) { (take(detail::query_grain(m)), ...); }, masks);
    return largest;
  }

  /// Applies the modifiers, and the masks if `partial`, which it is where there are no modifiers, to scores [keys, V
  /// packs]; raises top [V packs].
  template <int V>
  void bend(T* scores, const Place& at, bool partial, T* top) const noexcept {
    if (!has_modifiers || (has_masks && partial))
      bend_block<V, has_masks>(scores, at, top);
    else
      bend_block<V, false>(scores, at, top);
  }

  /// exposure [Nk] += the weights u [V packs] of the queries that see each key of the block.
  template <int V>
  void expose(const Place& at, const T* u, T* exposure) const noexcept {
    if constexpr (has_masks) {
      using S = simd::Pack<T>;
      constexpr int n = simd::lanes<T>;
      Index first = at.key_begin;
      if constexpr (masks_choose_lanes && n > 1)
        if (masks_prefer_keys())
          for (; first + n <= at.key_end; first += n) {
            auto site = Site<S>::along_keys(at.batch, at.head, *at.problem, at.first_query, first);
            S seen(T(0));
            for (int i = 0; i < V * n; ++i) {
              site.move_to_query(std::min(at.first_query + i, at.problem->queries - 1));
              seen = seen + simd::select(visible(site), S(u[i]), S(T(0)));
            }
            simd::store(exposure + first, simd::load<S>(exposure + first) + seen);
          }
      Site<S> sites[V] = {};
      place_sites<T>(sites, at);
      for (Index j = first; j < at.key_end; ++j) {
        S seen(T(0));
        ATTENTION_BALANCER_UNROLL
        for (int v = 0; v < V; ++v) {
          sites[v].move_to_key(j);
          seen = seen + simd::select(visible(sites[v]), simd::load_aligned<S>(u + v * n), S(T(0)));
        }
        exposure[j] += simd::reduce_add(seen);
      }
    }
  }

  /// The same for the scores of one query, keys side by side, in whole packs.
  void bend_keys(T* scores, const Place& at, bool partial) const noexcept {
    if (!has_modifiers || (has_masks && partial))
      bend_row<has_masks>(scores, at);
    else
      bend_row<false>(scores, at);
  }

  /// exposure [keys of the block] += u where the query sees the key.
  void expose_keys(const Place& at, T u, T* exposure) const noexcept {
    if constexpr (has_masks) {
      auto site = Site<T>::along_keys(at.batch, at.head, *at.problem, at.first_query, at.key_begin);
      for (Index j = at.key_begin; j < at.key_end; ++j) {
        site.move_to_key(j);
        if (visible(site)) exposure[j - at.key_begin] += u;
      }
    }
  }

 private:
  template <bool Masked>
  ATTENTION_BALANCER_NOINLINE void bend_row(T* scores, const Place& at) const noexcept {
    using S = simd::Pack<T>;
    auto site = Site<S>::along_keys(at.batch, at.head, *at.problem, at.first_query, at.key_begin);
    for (Index j = at.key_begin; j < at.key_end; j += simd::lanes<T>, scores += simd::lanes<T>) {
      site.move_to_key(j);
      S score = bend_score<S>(simd::load_aligned<S>(scores), site);
      if constexpr (Masked) score = simd::select(visible(site), score, S(-infinity<T>));
      simd::store_aligned(scores, score);
    }
  }

  bool modifiers_prefer_keys() const noexcept {
    return std::apply([](const auto&... m) { return (false || ... || detail::prefers_key_lanes(m)); }, modifiers);
  }
  bool masks_prefer_keys() const noexcept {
    return std::apply([](const auto&... m) { return (false || ... || detail::prefers_key_lanes(m)); }, masks);
  }

  template <bool Masked, class S>
  ATTENTION_BALANCER_INLINE S bend_and_mask(const S& score, const Site<S>& site) const noexcept {
    const S bent = bend_score<S>(score, site);
    if constexpr (Masked)
      return simd::select(visible(site), bent, S(-infinity<T>));
    else
      return bent;
  }

  template <int V, bool Masked>
  ATTENTION_BALANCER_NOINLINE void bend_block(T* scores, const Place& at, T* top) const noexcept {
    using S = simd::Pack<T>;
    constexpr int n = simd::lanes<T>;
    Index done = 0;
    if constexpr (can_choose_lanes && n > 1)
      if (modifiers_prefer_keys() || (Masked && masks_prefer_keys())) {
        done = (at.key_end - at.key_begin) / n * n;
        for (int v = 0; v < V; ++v)
          for (Index j = 0; j < done; j += n)
            bend_tile<Masked>(scores + (j * V + v) * n, V * n, at, at.first_query + v * n, at.key_begin + j,
                              top + v * n);
        scores += done * V * n;
      }
    Site<S> sites[V] = {};
    place_sites<T>(sites, at);
    S highest[V];
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) highest[v] = simd::load_aligned<S>(top + v * n);
    for (Index j = at.key_begin + done; j < at.key_end; ++j, scores += V * n) {
      ATTENTION_BALANCER_UNROLL
      for (int v = 0; v < V; ++v) {
        sites[v].move_to_key(j);
        const S score = bend_and_mask<Masked>(simd::load_aligned<S>(scores + v * n), sites[v]);
        simd::store_aligned(scores + v * n, score);
        highest[v] = simd::max(score, highest[v]);
      }
    }
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) simd::store_aligned(top + v * n, highest[v]);
  }

  /// One pack of queries by as many keys, scores[key * row + query], with the keys in the lanes: what a policy
  /// looks up along the keys is then one load, not one per lane.
  template <bool Masked>
  ATTENTION_BALANCER_NOINLINE void bend_tile(T* scores, Index row, const Place& at, Index query, Index key,
                                             T* top) const noexcept {
    using S = simd::Pack<T>;
    constexpr int n = simd::lanes<T>;
    S tile[n];
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < n; ++i) tile[i] = simd::load_aligned<S>(scores + i * row);
    simd::transpose(tile);
    auto site = Site<S>::along_keys(at.batch, at.head, *at.problem, query, key);
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < n; ++i) {
      site.move_to_query(std::min(query + i, at.problem->queries - 1));  // past the last one it is repeated
      tile[i] = bend_and_mask<Masked>(tile[i], site);
    }
    simd::transpose(tile);
    S highest = simd::load_aligned<S>(top);
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < n; ++i) {
      simd::store_aligned(scores + i * row, tile[i]);
      highest = simd::max(tile[i], highest);
    }
    simd::store_aligned(top, highest);
  }
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
