#pragma once
// What every apportionment has in common: totals, scaled weights, bounds, and what a method must be.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// Totals are counted in double and must stay exact.
inline constexpr Index largest_total = Index(1) << 53;

template <class = void>
void check_total(Index total, std::size_t items) {
  if (total < 0) fail<BudgetError>("total", total, "not be negative");
  if (total > largest_total) fail<BudgetError>("total", total, "not exceed 2^53");
  if (items == 0 && total > 0) fail<BudgetError>("total", total, "be 0 when there is no item to get it");
}

/// The weights times the power of two that brings the largest to [0.5, 1) * 2^exponent, and none that is above 0 to
/// less than `least`; all-zero weights become ones.
template <Scalar T>
std::vector<double> scaled_weights(std::span<const T> weights, int exponent, double least = 0) {
  const double largest = largest_weight(weights);
  std::vector<double> scaled(weights.size(), 1.0);
  if (largest == 0) return scaled;
  int of_largest = 0;
  static_cast<void>(std::frexp(largest, &of_largest));
  for (std::size_t i = 0; i < scaled.size(); ++i) {
    const double w = static_cast<double>(weights[i]);
    scaled[i] = w > 0 ? std::max(std::ldexp(w, exponent - of_largest), least) : 0;
  }
  return scaled;
}

/// One item of an apportionment; its weight is above 0, or 1 for all in a group of weight zero.
struct Seat {
  double weight = 0;
  std::size_t item = 0;
  Index id = 0;
  Index lower = 0, upper = 0, units = 0;
};

/// The order of ties: the larger weight, then the caller's lower id, then the lower index.
inline bool ties_before(const Seat& a, const Seat& b) noexcept {
  if (a.weight != b.weight) return a.weight > b.weight;
  return a.id != b.id ? a.id < b.id : a.item < b.item;
}

/// Bounds of every item in whole steps, checked.
struct UnitBounds {
  std::vector<Index> lower, upper;
};

/// Awards `total` to weights within bounds that are already checked. A method is `award(seats, total)` for seats of
/// positive weight, the sum of lower <= total <= the sum of upper; it sets their units.
template <class Award>
std::vector<Index> award_within(const std::vector<double>& weights, Index total, const UnitBounds& bounds,
                                std::span<const Index> ids, const Award& award) {
  std::vector<Seat> weighted, zero;
  Index weighted_upper = 0, zero_lower = 0;  // the uppers saturate at total
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Index lower = bounds.lower[i], upper = std::min(bounds.upper[i], total);
    const Index id = ids.empty() ? 0 : ids[i];
    if (weights[i] > 0) {
      weighted.push_back({weights[i], i, id, lower, upper, 0});
      weighted_upper += std::min(upper, total - weighted_upper);
    } else {
      zero.push_back({1.0, i, id, lower, upper, 0});
      zero_lower += lower;
    }
  }
  // As with shares: weight zero gets more than its lower bound only when the others cannot take it.
  const Index for_weighted = std::min(total - zero_lower, weighted_upper);
  award(std::span<Seat>(weighted), for_weighted);
  award(std::span<Seat>(zero), total - for_weighted);
  std::vector<Index> units(weights.size());
  for (const auto& seat : weighted) units[seat.item] = seat.units;
  for (const auto& seat : zero) units[seat.item] = seat.units;
  return units;
}

}  // namespace attention_balancer::detail
