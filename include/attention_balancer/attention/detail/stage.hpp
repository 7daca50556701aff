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

/// A modifier that chooses lanes for the sake of one element of a view of T for each score: looked_up() is the view,
/// and bend(S score, S element) what the modifier returns. It says so of itself, by looks_up_as: a class that derives
/// from it may compute something else.
template <class M, class T>
concept LooksUp = ChoosesLanes<M> && requires(const M& m, const simd::Pack<T>& x) {
  requires std::is_same_v<typename M::looks_up_as, M>;
  { m.looked_up() } -> std::convertible_to<TensorView<const T>>;
  { m.bend(x, x) } -> std::convertible_to<simd::Pack<T>>;
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

/// How a loop over scores holds a policy: a copy, if that is but its bytes. Of another the compiler does not know that
/// storing scores leaves it as it is, and loads it again for each.
template <class P>
using InLoop = std::conditional_t<std::is_trivially_copyable_v<P> && std::is_trivially_copy_constructible_v<P> &&
                                      sizeof(P) <= 128,
                                  const P, const P&>;

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
  static constexpr bool can_look_up = (LooksUp<Modifiers, T> || ...);
  static constexpr bool can_choose_lanes = (ChoosesLanes<Modifiers> || ...) || masks_choose_lanes;

  template <class S>
  ATTENTION_BALANCER_INLINE S bend_score(S score, const Site<S>& site) const {
    std::apply([&](const auto&... m) { ((score = m(score, site)), ...); }, modifiers);
    return score;
  }

  /// The same policies as a loop over scores holds them. Made one by one: of tuples, one policy that can be made of
  /// anything would be made of the tuple.
  struct Copies {
    std::tuple<InLoop<Modifiers>...> modifiers;
    std::tuple<InLoop<Masks>...> masks;

    ATTENTION_BALANCER_INLINE explicit Copies(const Policies& x) noexcept
        : modifiers(std::apply([](const auto&... m) { return std::tuple<InLoop<Modifiers>...>(m...); }, x.modifiers)),
          masks(std::apply([](const auto&... m) { return std::tuple<InLoop<Masks>...>(m...); }, x.masks)) {}
    ATTENTION_BALANCER_INLINE Policies policies() const noexcept {
      return {std::apply([](const auto&... m) { return std::tuple<const Modifiers&...>(m...); }, modifiers),
              std::apply([](const auto&... m) { return std::tuple<const Masks&...>(m...); }, masks)};
    }
  };

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
    const Copies copies(*this);
    const Policies policies = copies.policies();
    const Index end = at.key_end;
    auto site = Site<S>::along_keys(at.batch, at.head, *at.problem, at.first_query, at.key_begin);
    for (Index j = at.key_begin; j < end; j += simd::lanes<T>, scores += simd::lanes<T>) {
      site.move_to_key(j);
      simd::store_aligned(scores, policies.template bend_and_mask<Masked>(simd::load_aligned<S>(scores), site));
    }
  }

  bool modifiers_prefer_keys() const noexcept {
    return std::apply([](const auto&... m) { return (false || ... || detail::prefers_key_lanes(m)); }, modifiers);
  }
  /// Whether keys are preferred as lanes for the sake of elements that can be brought to queries as lanes.
  bool modifiers_look_up() const noexcept {
    auto looks_up = []<class M>(const M& m) { return LooksUp<M, T> == detail::prefers_key_lanes(m); };
    return can_look_up && std::apply([&](const auto&... m) { return (looks_up(m) && ...); }, modifiers);
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
        const bool whole = !(Masked && masks_prefer_keys()) && modifiers_look_up();
        for (int v = 0; v < V; ++v) {
          const Index query = at.first_query + v * n;
          if constexpr (can_look_up)
            if (whole) {
              bend_looked_up<Masked>(scores + v * n, V * n, at, query, done, top + v * n);
              continue;
            }
          for (Index j = 0; j < done; j += n)
            bend_tile<Masked>(scores + (j * V + v) * n, V * n, at, query, at.key_begin + j, top + v * n);
        }
        scores += done * V * n;
      }
    const Copies copies(*this);
    const Policies policies = copies.policies();
    Site<S> sites[V] = {};
    place_sites<T>(sites, at);
    S highest[V];
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) highest[v] = simd::load_aligned<S>(top + v * n);
    const Index end = at.key_end;
    for (Index j = at.key_begin + done; j < end; ++j, scores += V * n) {
      ATTENTION_BALANCER_UNROLL
      for (int v = 0; v < V; ++v) {
        sites[v].move_to_key(j);
        const S score = policies.template bend_and_mask<Masked>(simd::load_aligned<S>(scores + v * n), sites[v]);
        simd::store_aligned(scores + v * n, score);
        highest[v] = simd::max(score, highest[v]);
      }
    }
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) simd::store_aligned(top + v * n, highest[v]);
  }

  /// What a modifier does to a tile of one pack of queries by as many keys, lanes are queries: of one that looks up,
  /// the elements of its view, brought from keys side by side to queries side by side. `more` queries follow the
  /// first.
  template <class M>
  struct OnTile {
    ATTENTION_BALANCER_INLINE OnTile(const M& m, const Site<simd::Pack<T>>&, Index) noexcept : modifier(m) {}
    template <class S>
    ATTENTION_BALANCER_INLINE S operator()(int, const S& score, const Site<S>& site) const noexcept {
      return modifier(score, site);
    }
    const M& modifier;
  };
  template <class M>
    requires LooksUp<M, T>
  struct OnTile<M> {
    using S = simd::Pack<T>;
    static constexpr int n = simd::lanes<T>;

    ATTENTION_BALANCER_INLINE OnTile(const M& m, const Site<S>& site, Index more) noexcept : modifier(m) {
      const Plane<const T> plane = broadcast_plane(m.looked_up(), site.batch, site.head);
      const T* const first = &plane(site.query_at(0), site.key_at(0));
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < n; ++i) {
        const T* const row = first + std::min(Index(i), more) * plane.row;
        simd::prefetch(row + 128);  // the next block of keys; the hardware loses so many rows
        element[i] = simd::load<S>(row);
      }
      simd::transpose(element);
    }
    ATTENTION_BALANCER_INLINE S operator()(int key, const S& score, const Site<S>&) const noexcept {
      return modifier.bend(score, element[key]);
    }
    const M& modifier;
    S element[n];
  };

  /// One pack of queries by `keys` keys, a multiple of its lanes, scores[key * row + query], with the queries in the
  /// lanes: what the modifiers look up along the keys is brought to them.
  template <bool Masked>
  ATTENTION_BALANCER_NOINLINE void bend_looked_up(T* scores, Index row, const Place& at, Index query, Index keys,
                                                  T* top) const noexcept {
    using S = simd::Pack<T>;
    constexpr int n = simd::lanes<T>;
    const Copies copies(*this);
    const Policies policies = copies.policies();
    auto site = Site<S>::along_queries(at.batch, at.head, *at.problem, query, at.key_begin);
    const Index more = at.problem->queries - 1 - query;  // past the last one it is repeated
    S highest = simd::load_aligned<S>(top);
    for (Index key = at.key_begin; key < at.key_begin + keys; key += n) {
      site.move_to_key(key);
      const auto bend = std::apply(
          [&](const auto&... m) { return std::tuple<OnTile<Modifiers>...>(OnTile<Modifiers>(m, site, more)...); },
          policies.modifiers);
      // Not unrolled: of many policies there would be too many instructions, and elements are loaded as fast.
      ATTENTION_BALANCER_NO_UNROLL
      for (int k = 0; k < n; ++k, scores += row) {
        site.move_to_key(key + k);
        S score = simd::load_aligned<S>(scores);
        std::apply([&](const auto&... m) { ((score = m(k, score, site)), ...); }, bend);
        if constexpr (Masked) score = simd::select(policies.visible(site), score, S(-infinity<T>));
        simd::store_aligned(scores, score);
        highest = simd::max(score, highest);
      }
    }
    simd::store_aligned(top, highest);
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
    const Copies copies(*this);
    const Policies policies = copies.policies();
    auto site = Site<S>::along_keys(at.batch, at.head, *at.problem, query, key);
    ATTENTION_BALANCER_UNROLL
    for (int i = 0; i < n; ++i) {
      site.move_to_query(std::min(query + i, at.problem->queries - 1));  // past the last one it is repeated
      tile[i] = policies.template bend_and_mask<Masked>(tile[i], site);
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
