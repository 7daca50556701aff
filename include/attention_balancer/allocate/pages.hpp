#pragma once
// Selection by the page: what a paged cache can load or evict as a whole.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/selection.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

template <class = void>
Index pages_of(Index items, Index page) {
  if (page < 1) fail<ShapeError>("page size", page, "be at least 1");
  return items / page + (items % page != 0);
}

template <Scalar T>
allocate::Selection top_pages(std::span<const T> page_scores, Index items, Index page, Index pages,
                              const allocate::SelectOptions& options) {
  if (items < 0) fail<ShapeError>("number of items", items, "not be negative");
  check_size("page scores", page_scores.size(), "the pages", pages_of(items, page));
  const auto chosen = top_k(page_scores, pages, options);
  std::vector<Index> kept;
  for (const Index p : chosen.kept())
    for (Index i = p * page; i < std::min(items, p * page + page); ++i) kept.push_back(i);
  return {items, std::move(kept)};
}

}  // namespace detail

namespace allocate {

/// The items of the `pages` pages with the highest scores: top_k of pages, whole. `options` (pins, mask, ids) are
/// about pages. With saliency::page_bound it is Quest (2406.10774): these are loaded for the query at hand, nothing
/// is evicted. Throws ShapeError unless there is one score per page of `page` items, and otherwise as top_k does.
template <class = void>
Selection top_pages(std::span<const float> page_scores, Index items, Index page, Index pages,
                    const SelectOptions& options = {}) {
  return detail::top_pages(page_scores, items, page, pages, options);
}
template <class = void>
Selection top_pages(std::span<const double> page_scores, Index items, Index page, Index pages,
                    const SelectOptions& options = {}) {
  return detail::top_pages(page_scores, items, page, pages, options);
}

}  // namespace allocate
}  // namespace attention_balancer
