#pragma once
// Scores to a selection: the highest, those above a threshold, those at the quantiles.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/allocate/selection.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace allocate {

/// Between how many items a threshold may keep.
struct Counts {
  Index least = 0;
  Index most = std::numeric_limits<Index>::max();
};

}  // namespace allocate

namespace detail {

template <Scalar T>
allocate::Selection threshold(std::span<const T> scores, T least, allocate::Counts counts,
                              const allocate::SelectOptions& options) {
  check_scores(scores);
  if (least != least) fail<InputError>("threshold", number(least), "be a number");
  if (counts.least < 0) fail<BudgetError>("least count of a threshold", counts.least, "not be negative");
  if (counts.least > counts.most)
    fail<BudgetError>("least count of a threshold", counts.least,
                      "not exceed the most, " + std::to_string(counts.most));
  auto c = candidates(scores.size(), options);
  if (c.pinned > counts.most)
    fail<BudgetError>("number of pins", c.pinned,
                      "not exceed the most that a threshold may keep, " + std::to_string(counts.most));
  Index reached = c.pinned;
  for (const Index i : c.others) reached += scores[static_cast<std::size_t>(i)] >= least;
  const Index size = kept_size(c, std::clamp(reached, counts.least, counts.most), options);
  keep_best(c, size, Better<T>{scores, options.ids});
  return selection_of(c.keep, size);
}

template <Scalar T>
allocate::Selection inverse_cdf(std::span<const T> weights, Index budget, const allocate::SelectOptions& options) {
  const double largest = largest_weight(weights);
  auto c = candidates(weights.size(), options);
  const Index quantiles = kept_size(c, budget, options) - c.pinned;
  double heaviest = 0;  // of those that are drawn from
  for (const Index i : c.others)
    heaviest = std::max(heaviest, static_cast<double>(weights[static_cast<std::size_t>(i)]));
  const double scale = largest > 0 && heaviest > 0 ? unit_scale(heaviest) : 0;
  std::vector<double> cdf;
  cdf.reserve(c.others.size());
  double sum = 0;  // a plain sum never falls, and that is what an inverse needs
  for (const Index i : c.others)
    cdf.push_back(sum += scale > 0 ? static_cast<double>(weights[static_cast<std::size_t>(i)]) * scale : 1.0);
  auto at = cdf.begin();
  Index size = c.pinned;
  for (Index k = 0; k < quantiles; ++k) {
    const double level = sum * ((static_cast<double>(k) + 0.5) / static_cast<double>(quantiles));
    at = std::lower_bound(at, cdf.end(), level);
    auto drawn = c.keep.begin() + c.others[static_cast<std::size_t>(at - cdf.begin())];
    if (!*drawn) *drawn = true, ++size;
  }
  return selection_of(c.keep, size);
}

}  // namespace detail

namespace allocate {

/// The pins and, up to `budget` items in all, the highest scores: |kept| = min(budget, eligible); ties to the lower
/// id, then to the lower index; what a smaller budget keeps, a larger one keeps too. `scores` is any number per
/// item, infinite and negative too, of which only the order counts. O(n).
///
///     const auto pins = allocate::sinks_and_recent(n, 4, 64);
///     const auto kept = allocate::top_k(scores, 256, {.pins = pins});
///
/// Throws InputError if a score is NaN (naming the item) or a pin is out of range or not eligible; BudgetError if
/// the budget is negative or there are more pins than budget, or if nothing would be kept (a budget of 0, no
/// eligible item) and the options do not allow it; ShapeError if the mask or the ids have another size.
template <class = void>
Selection top_k(std::span<const float> scores, Index budget, const SelectOptions& options = {}) {
  return detail::top_k(scores, budget, options);
}
template <class = void>
Selection top_k(std::span<const double> scores, Index budget, const SelectOptions& options = {}) {
  return detail::top_k(scores, budget, options);
}

/// The pins and every score of at least `least` (LTP, 2107.00910), but not fewer than counts.least items nor more
/// than counts.most: the highest are then taken, or left. Throws as top_k does, and if the counts cross or the
/// threshold is NaN.
template <class = void>
Selection threshold(std::span<const float> scores, float least, Counts counts = {},
                    const SelectOptions& options = {}) {
  return detail::threshold(scores, least, counts, options);
}
template <class = void>
Selection threshold(std::span<const double> scores, double least, Counts counts = {},
                    const SelectOptions& options = {}) {
  return detail::threshold(scores, least, counts, options);
}

/// Inverse-CDF sampling (ATS, 2111.15667): the pins, and the items in which the quantiles (k + 1/2) / K of the
/// other weights fall, K = budget - pins: a heavy item is drawn once however many quantiles it holds, so that at
/// most `budget` are kept, often fewer, and a larger budget need not keep what a smaller one did. Drawn in index
/// order, it spreads over the positions and is not equivariant under permutation. Weight zero is never drawn, save
/// when all are zero and count as equal. O(n + K log n).
///
/// Throws InputError naming the item if a weight is NaN, infinite or negative, and otherwise as top_k does.
template <class = void>
Selection inverse_cdf(std::span<const float> weights, Index budget, const SelectOptions& options = {}) {
  return detail::inverse_cdf(weights, budget, options);
}
template <class = void>
Selection inverse_cdf(std::span<const double> weights, Index budget, const SelectOptions& options = {}) {
  return detail::inverse_cdf(weights, budget, options);
}

}  // namespace allocate
}  // namespace attention_balancer
