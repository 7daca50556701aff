#pragma once
// Saliency that needs no attention at all: from the keys alone, and Quest's bound from pages of keys and one query.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/saliency/heads.hpp"
#include "attention_balancer/saliency/values.hpp"
#include "attention_balancer/tensor/shape.hpp"

namespace attention_balancer {
namespace saliency {

/// [keys] How much shorter a key is than the longest of its head, max_j |k_j| - |k_j|: the order of Knorm's -|k|
/// (2406.11430), and no number is negative. Long keys draw little attention. `keys` is [B, Hkv, Nk, D]; the
/// reduction is over the KV heads. Computed in double, whatever the scalar: norms in bf16 tie. A key that is not a
/// number gives NaN, and the others do not notice. Throws ShapeError if the view or the heads do not fit.
template <class K, detail::HeadReduction Over = Heads>
detail::Reduced<std::remove_const_t<K>, Over> key_norm(const TensorView<K>& keys, Over over = {}, Index batch = 0) {
  detail::check_batch_of("keys", keys, batch);
  return detail::reduce_heads<std::remove_const_t<K>>(keys.heads, keys.length, over, [&](Index h) {
    std::vector<double> norm(static_cast<std::size_t>(keys.length));
    double longest = 0;
    for (Index j = 0; j < keys.length; ++j) {
      norm[static_cast<std::size_t>(j)] = detail::row_norm(keys, batch, h, j, Norm::l2);
      longest = std::max(longest, norm[static_cast<std::size_t>(j)]);  // std::max(x, NaN) is x
    }
    return [longest, norm = std::move(norm)](std::size_t j) { return longest - norm[j]; };
  });
}

/// [keys] 1 - cos(k_j, a), a the mean of all k / |k|: KeyDiff's -cos (2504.15364) moved to [0, 2]. Keys unlike the
/// rest are kept. A key of length 0 gives 1. Otherwise as key_norm, but that one key that is not a number makes all
/// so.
///
/// The paper evicts block by block while the prompt is read, each time against the keys that are left; kvpress's
/// KeyDiffPress ranks the whole prompt at once, and its BlockPress does as the paper. A call of this is one ranking
/// of the keys it is given: whole, it keeps what KeyDiffPress keeps; after each block, what the paper does.
template <class K, detail::HeadReduction Over = Heads>
detail::Reduced<std::remove_const_t<K>, Over> key_difference(const TensorView<K>& keys, Over over = {},
                                                             Index batch = 0) {
  detail::check_batch_of("keys", keys, batch);
  return detail::reduce_heads<std::remove_const_t<K>>(keys.heads, keys.length, over, [&](Index h) {
    std::vector<double> norm(static_cast<std::size_t>(keys.length)),
        anchor(static_cast<std::size_t>(keys.dim), 0.0), cosine(norm.size(), 0.0);
    for (Index j = 0; j < keys.length; ++j) {
      const double size = norm[static_cast<std::size_t>(j)] = detail::row_norm(keys, batch, h, j, Norm::l2);
      if (size == 0) continue;
      for (Index c = 0; c < keys.dim; ++c)
        anchor[static_cast<std::size_t>(c)] += static_cast<double>(keys(batch, h, j, c)) / size;
    }
    double length = 0;
    for (const double a : anchor) length += a * a;
    length = std::sqrt(length);
    for (Index j = 0; j < keys.length; ++j) {
      const double size = norm[static_cast<std::size_t>(j)];
      if (size == 0 || length == 0) continue;
      double dot = 0;
      for (Index c = 0; c < keys.dim; ++c)
        dot += static_cast<double>(keys(batch, h, j, c)) / size * (anchor[static_cast<std::size_t>(c)] / length);
      cosine[static_cast<std::size_t>(j)] = std::clamp(dot, -1.0, 1.0);  // of not a number itself
    }
    return [cosine = std::move(cosine)](std::size_t j) { return 1 - cosine[j]; };
  });
}

/// Smallest and largest of each feature over pages of keys: what Quest keeps of a page (2406.10774).
template <Scalar T>
class PageBounds {
 public:
  /// Of item `batch` of keys [B, Hkv, Nk, D], in pages of `page` keys; the last page may hold fewer. Throws
  /// ShapeError if the view does not fit, InputError unless page >= 1.
  template <class K>
  explicit PageBounds(const TensorView<K>& keys, Index page = 16, Index batch = 0) : page_(page) {
    static_assert(std::is_same_v<std::remove_const_t<K>, T>,
                  "attention_balancer: PageBounds has the scalar of the keys");
    detail::check_batch_of("keys", keys, batch);
    if (page < 1) detail::fail<InputError>("page size", page, "be at least 1");
    heads_ = keys.heads, dim_ = keys.dim, pages_ = keys.length / page + (keys.length % page != 0);
    bounds_.resize(static_cast<std::size_t>(2 * heads_ * pages_ * dim_));
    for (Index h = 0; h < heads_; ++h)
      for (Index j = 0; j < keys.length; ++j)
        for (Index c = 0; c < dim_; ++c) {
          T &low = at(h, j / page, c, 0), &high = at(h, j / page, c, 1);
          const T x = keys(batch, h, j, c);
          // Not a number makes the page's bound so.
          if (j % page == 0 || (!(low <= x) && low == low)) low = x;
          if (j % page == 0 || (!(high >= x) && high == high)) high = x;
        }
  }

  Index heads() const noexcept { return heads_; }
  Index pages() const noexcept { return pages_; }
  Index dim() const noexcept { return dim_; }
  Index page() const noexcept { return page_; }

  /// Smallest and largest of feature c in a page of a KV head; indices in range.
  T low(Index h, Index p, Index c) const noexcept { return bounds_[offset(h, p, c, 0)]; }
  T high(Index h, Index p, Index c) const noexcept { return bounds_[offset(h, p, c, 1)]; }

 private:
  std::size_t offset(Index h, Index p, Index c, Index side) const noexcept {
    return static_cast<std::size_t>(((h * pages_ + p) * dim_ + c) * 2 + side);
  }
  T& at(Index h, Index p, Index c, Index side) { return bounds_[offset(h, p, c, side)]; }

  Index heads_ = 0, pages_ = 0, dim_ = 0, page_ = 1;
  std::vector<T> bounds_;
};

/// [pages] sum_c max(q_c low_c, q_c high_c): no key of the page has a larger dot product with the query (Quest,
/// 2406.10774). For row `query` of item `batch` of q [B, Hq, Nq, D]; reduced over the query heads, of which each
/// uses the bounds of its KV head. It bounds a logit and has any sign: select pages with it, do not allocate by it.
/// Throws ShapeError if the shapes do not fit.
template <class Q, Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> page_bound(const TensorView<Q>& q, const PageBounds<T>& bounds, Index query,
                                    Over over = {}, Index batch = 0) {
  detail::check_batch_of("q", q, batch);
  if (query < 0 || query >= q.length)
    detail::fail<ShapeError>("query", query, "be in [0, q.length = " + std::to_string(q.length) + ")");
  if (q.dim != bounds.dim())
    detail::fail<ShapeError>("q.dim", q.dim, "equal that of the keys, " + std::to_string(bounds.dim()));
  if (q.heads % bounds.heads() != 0)
    detail::fail<ShapeError>("q.heads", q.heads,
                             "be a multiple of the KV heads, " + std::to_string(bounds.heads()));
  const Index group = q.heads / bounds.heads();
  return detail::reduce_heads<T>(q.heads, bounds.pages(), over, [&](Index h) {
    return [&q, &bounds, query, batch, h, group](std::size_t p) {
      double sum = 0;
      for (Index c = 0; c < q.dim; ++c) {
        const double x = static_cast<double>(q(batch, h, query, c));
        const auto page = static_cast<Index>(p);
        const double a = x * static_cast<double>(bounds.low(h / group, page, c)),
                     b = x * static_cast<double>(bounds.high(h / group, page, c));
        sum += a != a || a > b ? a : b;
      }
      return sum;
    };
  });
}

}  // namespace saliency
}  // namespace attention_balancer
