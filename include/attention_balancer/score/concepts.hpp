#pragma once
// What a score modifier is, and what it is told about the score it changes.

#include <algorithm>
#include <concepts>
#include <type_traits>

#include "attention_balancer/simd/pack.hpp"
#include "attention_balancer/tensor/shape.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {
ATTENTION_BALANCER_BEGIN_ISA

/// Where a score stands: which batch item, query head, query and key. S is a scalar, or a pack whose lanes are
/// consecutive queries of one key or consecutive keys of one query. Modifiers and masks are written once for all.
template <class S>
class Site {
 public:
  using scalar = simd::scalar_of<S>;
  static constexpr int lanes = simd::lanes_of<S>;

  /// Batch item, query head, and the numbers of queries and keys of the call.
  Index batch = 0, head = 0, queries = 0, keys = 0;

  Site() = default;

  /// The query and the key, counted from 0 in the call, exact.
  const S& query() const noexcept { return query_; }
  const S& key() const noexcept { return key_; }

  /// Where the query stands among the keys, query + keys - queries: the last query at the last key, as under
  /// mask::Causal. Distances are measured from here; in decoding query() is 0 while there are thousands of keys.
  S query_position() const noexcept { return query_ + S(static_cast<scalar>(keys - queries)); }

  /// The same for one lane, as an integer. A lane past the last query or key stands at the last one.
  Index query_at(int lane) const noexcept { return std::min(first_query_ + lane * query_step_, queries - 1); }
  Index key_at(int lane) const noexcept { return std::min(first_key_ + lane * (1 - query_step_), keys - 1); }

  /// Pack of f(query, key) over the lanes, for what must be looked up.
  template <class F>
  S gather(F f) const {
    return simd::generate<S>([&](int lane) { return static_cast<scalar>(f(query_at(lane), key_at(lane))); });
  }

  /// The element of a view [batch, heads, queries, keys] that belongs here; an axis of size 1 serves all.
  template <class T>
  S at(const TensorView<T>& view) const {
    const detail::Plane<T> plane = detail::broadcast_plane(view, batch, head);
    const T* const first = &plane(first_query_, first_key_);
    if constexpr (lanes > 1) {
      const Index lane_stride = query_step_ != 0 ? plane.row : plane.column;
      if (lane_stride == 0) return S(static_cast<scalar>(*first));
      const Index room = (query_step_ != 0 ? queries - first_query_ : keys - first_key_) - 1;
      if (query_step_ == 0) simd::prefetch(first + 128);  // the next block of keys; the hardware loses so many rows
      if constexpr (std::is_same_v<std::remove_cv_t<T>, scalar>) {
        if (lane_stride == 1 && room >= lanes - 1) return simd::load<S>(first);
      } else if constexpr (std::is_same_v<std::remove_cv_t<T>, unsigned char>) {
        if (lane_stride == 1 && room >= lanes - 1) return simd::load_bytes<S>(first);
      }
      const Index stride = simd::opaque(lane_stride);
      return simd::generate<S>(
          [&](int lane) { return static_cast<scalar>(first[std::min(Index(lane), room) * stride]); });
    } else {
      return S(static_cast<scalar>(*first));
    }
  }

  /// A site whose lanes are queries first_query, first_query + 1, ... of one key.
  ATTENTION_BALANCER_INLINE static Site along_queries(Index batch, Index head, const Problem& problem,
                                                      Index first_query, Index key) noexcept {
    Site site{batch, head, problem.queries, problem.keys};
    site.first_query_ = first_query;
    site.first_key_ = key;
    site.query_step_ = 1;
    site.query_ = from(first_query, problem.queries);
    site.key_ = S(static_cast<scalar>(key));
    return site;
  }

  /// A site whose lanes are keys first_key, first_key + 1, ... of one query.
  ATTENTION_BALANCER_INLINE static Site along_keys(Index batch, Index head, const Problem& problem, Index query,
                                                   Index first_key) noexcept {
    Site site{batch, head, problem.queries, problem.keys};
    site.first_query_ = query;
    site.query_step_ = 0;
    site.query_ = S(static_cast<scalar>(query));
    site.move_to_key(first_key);
    return site;
  }

  /// The same queries at another key, or the same query at the keys from another one on.
  void move_to_key(Index key) noexcept {
    first_key_ = key;
    key_ = query_step_ == 0 ? from(key, keys) : S(static_cast<scalar>(key));
  }

  /// The same keys of another query.
  void move_to_query(Index query) noexcept {
    first_query_ = query;
    query_ = S(static_cast<scalar>(query));
  }

 private:
  Site(Index b, Index h, Index nq, Index nk) noexcept : batch(b), head(h), queries(nq), keys(nk) {}

  /// first, first + 1, ... over the lanes; a lane past the last of `count` stands at the last one.
  ATTENTION_BALANCER_INLINE static S from(Index first, Index count) noexcept {
    const S all = S(static_cast<scalar>(first)) + simd::iota<S>(scalar(0)), last(static_cast<scalar>(count - 1));
    return simd::select(all < last, all, last);
  }

  S query_{}, key_{};
  Index first_query_ = 0, first_key_ = 0, query_step_ = 1;
};

/// A score modifier changes a logit: pure, must not throw. Called with scalars and with packs.
/// It may have `void validate(const Problem&) const`, which throws if it does not fit the call,
/// `void borrowed(F f) const`, which calls f(detail::Layout) for memory that the call must not overwrite, and
/// `bool prefers_key_lanes() const`: whether the lanes had better be keys of one query, because it looks up numbers
/// that lie side by side along the keys.
/// To be trained with, it has `S pullback(S before, S d_after, Site<S>) const`: the gradient of the loss with respect
/// to the score that it was given, from that with respect to the score that it returned; and, if its own parameters
/// learn, `S parameter_gradient(S before, S d_after, Site<S>) const`: what this score adds to the gradient of the
/// parameter.
template <class M, class T>
concept ScoreModifier = requires(const M& m, T score, simd::Pack<T> scores, const Site<T>& site,
                                 const Site<simd::Pack<T>>& sites) {
  { m(score, site) } -> std::convertible_to<T>;
  { m(scores, sites) } -> std::convertible_to<simd::Pack<T>>;
};

ATTENTION_BALANCER_END_ISA

namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// A view [batch or 1, heads or 1, queries or 1, keys or 1]. Throws ShapeError.
inline void check_broadcast(const Layout& view, const Problem& problem) {
  const Index expected[] = {problem.batch, problem.heads, problem.queries, problem.keys};
  for (int a = 0; a < 4; ++a)
    if (view.sizes[a] != 1 && view.sizes[a] != expected[a])
      fail<ShapeError>(std::string(view.name) + axes[a], view.sizes[a],
                       "be 1 or " + std::to_string(expected[a]) + " (its axes are batch, heads, queries, keys)");
  check_layout(view);
}

/// Whether a view of one element per score lies side by side along the keys.
template <class T>
bool lies_along_keys(const TensorView<T>& view) noexcept {
  return view.length > 1 && view.dim > 1 && view.dim_stride == 1 && view.length_stride != 1;
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail
}  // namespace attention_balancer
