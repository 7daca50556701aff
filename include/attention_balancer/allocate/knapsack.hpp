#pragma once
// A selection where items have costs: the highest values per cost, and how far that can be from the best.

#include <algorithm>
#include <cmath>
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

/// What knapsack gives.
struct Packing {
  Selection selection;
  Index cost = 0;    ///< of what is kept, at most the budget
  double value = 0;  ///< of what is kept
  double bound = 0;  ///< no selection within the budget has a higher value than this

  /// bound - value >= what is lost against the best selection.
  double gap() const noexcept { return bound - value; }
};

}  // namespace allocate

namespace detail {

template <Scalar T>
allocate::Packing knapsack(std::span<const T> values, std::span<const Index> costs, Index budget,
                           const allocate::SelectOptions& options) {
  const std::size_t n = values.size();
  check_size("costs", costs.size(), "values", n);
  static_cast<void>(largest_weight(values));
  if (budget < 0) fail<BudgetError>("budget", budget, "not be negative");
  for (std::size_t i = 0; i < n; ++i)
    if (costs[i] < 0) fail<BudgetError>(item_of("cost", i), costs[i], "not be negative");
  auto c = candidates(n, options);
  Index left = budget;
  Sum value;
  for (std::size_t i = 0; i < n; ++i) {
    if (!c.keep[i]) continue;
    if (costs[i] > left)
      fail<BudgetError>("cost of the pins up to item " + std::to_string(i),
                        number(static_cast<double>(budget - left) + static_cast<double>(costs[i])),
                        "not exceed the budget " + std::to_string(budget));
    left -= costs[i];
    value.add(static_cast<double>(values[i]));
  }
  const Index room = left;
  const double pinned_value = value.value();

  // By value per cost, relative to a large power of two so that none underflows; what costs nothing comes first.
  auto& order = c.others;
  int raise = 0;
  const auto value_of = [&](Index i) { return static_cast<double>(values[static_cast<std::size_t>(i)]); };
  const auto cost_of = [&](Index i) { return costs[static_cast<std::size_t>(i)]; };
  const auto density = [&](Index i) {
    return cost_of(i) == 0 ? std::numeric_limits<double>::infinity()
                           : std::ldexp(value_of(i), raise) / static_cast<double>(cost_of(i));
  };
  order.erase(std::remove_if(order.begin(), order.end(), [&](Index i) { return cost_of(i) > room; }), order.end());
  double largest = 0;
  for (const Index i : order) largest = std::max(largest, value_of(i));
  static_cast<void>(std::frexp(largest, &raise));
  raise = 960 - raise;
  std::sort(order.begin(), order.end(), [&](Index a, Index b) {
    const double x = density(a), y = density(b);
    if (x != y) return x > y;
    if (value_of(a) != value_of(b)) return value_of(a) > value_of(b);
    const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
    if (!options.ids.empty() && options.ids[i] != options.ids[j]) return options.ids[i] < options.ids[j];
    return a < b;
  });
  allocate::Packing result;
  bool exact = true;  // until the first that no longer fits, what is kept is the best there is for its cost
  Index single = -1;  // the most valuable of all that fit alone
  Index size = c.pinned;
  std::vector<Index> taken;
  for (const Index i : order) {
    if (single < 0 || value_of(i) > value_of(single)) single = i;
    if (cost_of(i) > left) {
      if (exact)
        result.bound = value.value() + value_of(i) * (static_cast<double>(left) / static_cast<double>(cost_of(i)));
      exact = false;
      continue;
    }
    left -= cost_of(i);
    value.add(value_of(i));
    taken.push_back(i);
  }
  result.value = value.value();
  if (!std::isfinite(result.value) || !std::isfinite(result.bound))
    fail<InputError>("sum of the values", number(std::numeric_limits<double>::infinity()), "be finite");
  if (single >= 0 && pinned_value + value_of(single) > result.value) {
    taken.assign(1, single);
    result.value = pinned_value + value_of(single);
    left = room - cost_of(single);
  }
  for (const Index i : taken) c.keep[static_cast<std::size_t>(i)] = true, ++size;
  if (size == 0 && !options.allow_empty)
    fail<BudgetError>("number of items kept of " + std::to_string(c.eligible()) + " eligible ones with budget " +
                          std::to_string(budget),
                      size, "be at least 1 unless allow_empty is set");
  result.cost = budget - left;
  result.bound = exact ? result.value : std::max(result.bound, result.value);
  result.selection = selection_of(c.keep, size);
  return result;
}

}  // namespace detail

namespace allocate {

/// A selection where item i costs cost_i >= 0 and all that is kept may cost no more than `budget`: layers of
/// different sizes, pages that are not full. The pins, then greedily the highest values per cost, passing over what
/// does not fit; or the most valuable item alone where that is better, so that beyond the pins it is at least half
/// of the best. `bound` is the optimum with one item split: the value is within gap() of the best, and that is
/// below the value of the first item that was passed over. Not nested in the budget. Ties to the larger value, then
/// to the lower id and index. O(n log n).
///
/// Throws ShapeError if the sizes differ, InputError naming the item if a value is NaN, infinite or negative, or
/// if value or bound is no finite number, BudgetError if a cost or the budget is negative or the pins cost more than
/// the budget, and otherwise as top_k does.
template <class = void>
Packing knapsack(std::span<const float> values, std::span<const Index> costs, Index budget,
                 const SelectOptions& options = {}) {
  return detail::knapsack(values, costs, budget, options);
}
template <class = void>
Packing knapsack(std::span<const double> values, std::span<const Index> costs, Index budget,
                 const SelectOptions& options = {}) {
  return detail::knapsack(values, costs, budget, options);
}

}  // namespace allocate
}  // namespace attention_balancer
