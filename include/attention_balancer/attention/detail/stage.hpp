#pragma once
// The stages between the matrix products: moving blocks between layouts, policies on scores.

#include <tuple>

#include "attention_balancer/mask/concepts.hpp"
#include "attention_balancer/score/concepts.hpp"
#include "attention_balancer/softmax/online_state.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// to[r * to_row + c * to_column] = from[r * from_row + c * from_column], fast where both are contiguous along the
/// same axis or along different ones.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void copy_matrix(T* to, Index to_row, Index to_column, const T* from, Index from_row,
                                             Index from_column, Index rows, Index columns) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  Index whole_rows = 0, whole_columns = 0;  // what the transposing tiles have done
  if (to_column == 1 && from_row == 1 && n > 1) {
    whole_rows = rows - rows % n;
    whole_columns = columns - columns % n;
    for (Index r = 0; r < whole_rows; r += n)
      for (Index c = 0; c < whole_columns; c += n) {
        S tile[n];
        ATTENTION_BALANCER_UNROLL
        for (int i = 0; i < n; ++i) tile[i] = simd::load<S>(from + r + (c + i) * from_column);
        simd::transpose(tile);
        ATTENTION_BALANCER_UNROLL
        for (int i = 0; i < n; ++i) simd::store(to + (r + i) * to_row + c, tile[i]);
      }
  } else if (to_row == 1 && from_column == 1 && n > 1) {
    return copy_matrix(to, to_column, to_row, from, from_column, from_row, columns, rows);
  }
  for (Index r = 0; r < rows; ++r)
    for (Index c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[r * to_row + c * to_column] = from[r * from_row + c * from_column];
}

/// x [rows, V packs] *= factor [V packs]
template <Scalar T, int V>
void multiply_rows(T* x, Index rows, const T* factor) noexcept {
  using S = simd::Pack<T>;
  constexpr int n = simd::lanes<T>;
  for (Index r = 0; r < rows; ++r)
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) {
      T* at = x + (r * V + v) * n;
      simd::store_aligned(at, simd::load_aligned<S>(at) * simd::load_aligned<S>(factor + v * n));
    }
}

/// Whether all of x [rows, V packs] is finite.
template <Scalar T, int V>
bool all_finite(const T* x, Index rows) noexcept {
  using S = simd::Pack<T>;
  S trace(T(0));  // 0 * x is not a number exactly where x is infinite or not a number
  for (Index i = 0; i < rows * V; ++i)
    trace = simd::fma(simd::load_aligned<S>(x + i * simd::lanes<T>), S(T(0)), trace);
  return simd::reduce_add(trace) == T(0);  // not by x != x: of not a number, xsimd 8.1 calls that false on AVX
}

/// Where a block of scores stands.
struct Place {
  const Problem* problem;
  Index batch, head, first_query, key_begin, key_end;
};

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

  /// Applies the modifiers, and the masks if `partial`, to scores [keys, V packs]; raises top [V packs].
  template <int V>
  void bend(T* scores, const Place& at, bool partial, T* top) const noexcept {
    if (has_masks && partial)
      bend_block<V, has_masks>(scores, at, top);
    else
      bend_block<V, false>(scores, at, top);
  }

  /// exposure [Nk] += the weights u [V packs] of the queries that see each key of the block.
  template <int V>
  void expose(const Place& at, const T* u, T* exposure) const noexcept {
    if constexpr (has_masks) {
      using S = simd::Pack<T>;
      Site<S> sites[V] = {};
      place_sites(sites, at);
      for (Index j = at.key_begin; j < at.key_end; ++j) {
        S seen(T(0));
        ATTENTION_BALANCER_UNROLL
        for (int v = 0; v < V; ++v) {
          sites[v].move_to_key(j);
          seen = seen + simd::select(visible(sites[v]), simd::load_aligned<S>(u + v * simd::lanes<T>), S(T(0)));
        }
        exposure[j] += simd::reduce_add(seen);
      }
    }
  }

  /// The same for the scores of one query, keys side by side, in whole packs.
  void bend_keys(T* scores, const Place& at, bool partial) const noexcept {
    if (has_masks && partial)
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

  template <int V>
  static void place_sites(Site<simd::Pack<T>> (&sites)[V], const Place& at) noexcept {
    for (int v = 0; v < V; ++v)
      sites[v] = Site<simd::Pack<T>>::along_queries(at.batch, at.head, *at.problem,
                                                    at.first_query + v * simd::lanes<T>, at.key_begin);
  }

  template <int V, bool Masked>
  ATTENTION_BALANCER_NOINLINE void bend_block(T* scores, const Place& at, T* top) const noexcept {
    using S = simd::Pack<T>;
    constexpr int n = simd::lanes<T>;
    Site<S> sites[V] = {};
    place_sites(sites, at);
    S highest[V];
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) highest[v] = simd::load_aligned<S>(top + v * n);
    for (Index j = at.key_begin; j < at.key_end; ++j, scores += V * n) {
      ATTENTION_BALANCER_UNROLL
      for (int v = 0; v < V; ++v) {
        sites[v].move_to_key(j);
        S score = bend_score<S>(simd::load_aligned<S>(scores + v * n), sites[v]);
        if constexpr (Masked) score = simd::select(visible(sites[v]), score, S(-infinity<T>));
        simd::store_aligned(scores + v * n, score);
        highest[v] = simd::max(score, highest[v]);
      }
    }
    ATTENTION_BALANCER_UNROLL
    for (int v = 0; v < V; ++v) simd::store_aligned(top + v * n, highest[v]);
  }
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
