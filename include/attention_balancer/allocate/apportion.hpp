#pragma once
// Shares to integers: whole units that add up to the total exactly.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/divisor.hpp"
#include "attention_balancer/allocate/detail/quota_methods.hpp"
#include "attention_balancer/allocate/detail/units.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace apportion {

/// An item whose units are fixed in advance; the others share the rest.
struct Pin {
  Index item = 0, units = 0;
};

/// What an apportionment must keep to. All of it is borrowed.
struct Options {
  std::span<const Index> lower = {};  ///< the least units of each item; default 0
  std::span<const Index> upper = {};  ///< the most; default the total
  Index step = 1;  ///< units come in blocks of this size: bounds are rounded inwards to whole blocks
  std::span<const Pin> pins = {};   ///< items whose units are fixed
  std::span<const Index> ids = {};  ///< the last ties go to the lower id, then to the lower index
};

}  // namespace apportion

namespace detail {

/// The bounds of n items in steps. Throws, naming the item, if one is negative or crosses the other, or if they
/// cannot add up to the total.
template <class = void>
UnitBounds unit_bounds(std::size_t n, Index total, const apportion::Options& options) {
  const Index step = options.step;
  if (step < 1) fail<BudgetError>("step", step, "be at least 1");
  const std::string steps = step > 1 ? " in steps of " + std::to_string(step) : "";
  if (total % step != 0) fail<BudgetError>("total", total, "be a multiple of the step " + std::to_string(step));
  if (!options.lower.empty()) check_size("lower bounds", options.lower.size(), "weights", n);
  if (!options.upper.empty()) check_size("upper bounds", options.upper.size(), "weights", n);
  if (!options.ids.empty()) check_size("ids", options.ids.size(), "weights", n);
  UnitBounds bounds{std::vector<Index>(n, 0), std::vector<Index>(n, total / step)};
  for (std::size_t i = 0; i < n; ++i) {
    if (!options.lower.empty()) {
      const Index lower = options.lower[i];
      if (lower < 0) fail<BudgetError>(item_of("lower bound", i), lower, "not be negative");
      bounds.lower[i] = lower / step + (lower % step != 0);
    }
    if (!options.upper.empty()) bounds.upper[i] = options.upper[i] < 0 ? -1 : options.upper[i] / step;
  }
  for (const apportion::Pin& pin : options.pins) {
    if (pin.item < 0 || pin.item >= static_cast<Index>(n))
      fail<InputError>("item of a pin", pin.item, "be in [0, items = " + std::to_string(n) + ")");
    const auto i = static_cast<std::size_t>(pin.item);
    if (pin.units < 0 || pin.units % step != 0)
      fail<BudgetError>(item_of("pin", i), pin.units, "be a multiple of the step " + std::to_string(step));
    const Index units = pin.units / step;
    if (units < bounds.lower[i] || units > bounds.upper[i])
      fail<BudgetError>(item_of("pin", i), pin.units,
                        "be within its bounds, other pins and the total, [" +
                            number(static_cast<double>(bounds.lower[i]) * static_cast<double>(step)) + ", " +
                            number(static_cast<double>(bounds.upper[i]) * static_cast<double>(step)) + "]");
    bounds.lower[i] = bounds.upper[i] = units;
  }
  Index lowers = 0, uppers = 0;  // the uppers saturate at the total
  const Index whole = total / step;
  for (std::size_t i = 0; i < n; ++i) {
    const Index lower = bounds.lower[i], upper = bounds.upper[i];
    if (lower > upper)
      fail<BudgetError>(
          item_of("lower bound", i) + steps, options.lower.empty() ? 0 : options.lower[i],
          "not exceed its upper bound " + std::to_string(options.upper.empty() ? total : options.upper[i]));
    if (lower > whole - lowers)
      fail<BudgetError>(
          "sum of the lower bounds" + steps + " up to item " + std::to_string(i),
          number((static_cast<double>(lowers) + static_cast<double>(lower)) * static_cast<double>(step)),
          "not exceed the total " + std::to_string(total));
    lowers += lower;
    uppers += std::min(upper, whole - uppers);
  }
  if (uppers < whole)
    fail<BudgetError>("sum of the upper bounds" + steps + " of " + std::to_string(n) + " items", uppers * step,
                      "reach the total " + std::to_string(total));
  return bounds;
}

}  // namespace detail

namespace apportion {

/// A method of apportionment, a function object: `method(weights, total)` divides `total` >= 0 whole units among
/// non-negative weights of any scale, `method(weights, total, {.lower = ..., .step = 16, ...})` within bounds.
///
/// Returns one Index per weight, adding up to `total` exactly. All-zero weights count as equal. When every item
/// with weight is at its upper bound, the rest goes equally to the items of weight zero. Ties go to the larger
/// weight, then to the lower id, then to the lower index. Computed in double, in O(n log n) whatever the total,
/// save by `quota`. Divisor methods tell weights apart down to 2^-1994 (10^-600) of the largest, huntington_hill,
/// which compares squares, down to 2^-968 (10^-291); what is smaller counts as that much.
///
/// Throws InputError naming the item if a weight is NaN, infinite or negative; ShapeError if sizes differ;
/// BudgetError, naming item, bound and total, if the total is negative, above 2^53, positive without an item, or no
/// multiple of the step, if a bound or a pin is negative, crosses another, or if they cannot add up to the total.
template <class Method>
struct Apportionment {
  std::vector<Index> operator()(std::span<const float> weights, Index total, const Options& options = {}) const {
    return apply(weights, total, options);
  }
  std::vector<Index> operator()(std::span<const double> weights, Index total, const Options& options = {}) const {
    return apply(weights, total, options);
  }

  /// The same within lower_i <= units_i <= upper_i.
  std::vector<Index> operator()(std::span<const float> weights, Index total, std::span<const Index> lower,
                                std::span<const Index> upper) const {
    return within(weights, total, lower, upper);
  }
  std::vector<Index> operator()(std::span<const double> weights, Index total, std::span<const Index> lower,
                                std::span<const Index> upper) const {
    return within(weights, total, lower, upper);
  }

 private:
  template <Scalar T>
  static std::vector<Index> apply(std::span<const T> weights, Index total, const Options& options) {
    detail::check_total(total, weights.size());
    if constexpr (!Method::takes_bounds)
      if (!options.lower.empty() || !options.upper.empty() || !options.pins.empty())
        detail::fail<BudgetError>("options of the quota method", "with bounds or pins",
                                  "have none: quota and bounds can contradict each other");
    const auto bounds = detail::unit_bounds(weights.size(), total, options);
    auto units = Method::units(weights, total / options.step, bounds, options.ids);
    if (options.step > 1)
      for (Index& u : units) u *= options.step;
    return units;
  }

  template <Scalar T>
  static std::vector<Index> within(std::span<const T> weights, Index total, std::span<const Index> lower,
                                   std::span<const Index> upper) {
    static_assert(
        Method::takes_bounds,
        "attention_balancer: the quota method takes no bounds: quota and bounds can contradict each other");
    detail::check_size("lower bounds", lower.size(), "weights", weights.size());
    detail::check_size("upper bounds", upper.size(), "weights", weights.size());
    return apply(weights, total, {.lower = lower, .upper = upper});
  }
};

/// Hamilton's method (largest remainders): every item gets the whole part of its quota, total * w_i / sum w, and
/// what is left goes, a unit each, to the largest remainders. Always |units - quota| < 1, but not house monotone
/// (weights 6, 6, 2: 10 -> 4, 4, 2 but 11 -> 5, 5, 1): for one shot. Within bounds the quota is clip(nu * w_i,
/// lower, upper).
inline constexpr Apportionment<detail::HamiltonMethod> hamilton{};

/// Sainte-Lague's method (Webster): each unit in turn goes to the largest w_i / (a_i + 1/2), a_i being what the
/// item has so far. House monotone: a larger total takes nothing away. It may leave quota (|units - quota| can
/// reach 1 and more), and favours neither large nor small weights. For feedback loops.
inline constexpr Apportionment<detail::DivisorMethod<detail::SainteLagueDivisor>> sainte_lague{};

/// D'Hondt's method (Jefferson): each unit in turn goes to the largest w_i / (a_i + 1). House monotone; never below
/// the quota rounded down, and in favour of large weights.
inline constexpr Apportionment<detail::DivisorMethod<detail::DhondtDivisor>> dhondt{};

/// Huntington-Hill's method: each unit in turn goes to the largest w_i / sqrt(a_i (a_i + 1)), so that the first
/// goes to every item with weight, the heaviest first. House monotone; no move of a unit makes the ratio of two
/// items fairer.
inline constexpr Apportionment<detail::DivisorMethod<detail::HuntingtonHillDivisor>> huntington_hill{};

/// Adams' method: each unit in turn goes to the largest w_i / a_i, so that the first goes to every item with
/// weight, the heaviest first. House monotone; never above the quota rounded up, and in favour of small weights.
inline constexpr Apportionment<detail::DivisorMethod<detail::AdamsDivisor>> adams{};

/// The quota method (Balinski and Young 1975, The quota method of apportionment): each unit in turn goes to the
/// largest w_i / (a_i + 1) among the items that it does not lift above their quota rounded up. Both house monotone
/// and within quota: floor(quota) <= units <= ceil(quota). O(n + total log n), and a total of at most 2^27 steps;
/// takes neither bounds nor pins.
inline constexpr Apportionment<detail::QuotaMethod> quota{};

/// Whole units that keep within limits on shares.
struct UnitLimits {
  Index lower = 0, upper = 0;
};

/// ceil(floor * total) and floor(cap * total), kept to within epsilon of the scalar; {0, 0} for an item that is not
/// eligible. A floor of 0.1f is a little above 0.1, and asks for 100 of 1000, not 101.
template <Scalar T>
UnitLimits unit_limits(const allocate::Limits<T>& limits, Index total) {
  if (!limits.eligible) return {};
  const double t = static_cast<double>(total);
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  const double floor = std::min(static_cast<double>(limits.floor), 1.0) * t;
  const double cap = std::min(static_cast<double>(limits.cap), 1.0) * t;
  return {static_cast<Index>(std::ceil(floor * (1 - epsilon))),
          static_cast<Index>(std::min(t, std::floor(cap * (1 + epsilon))))};
}

}  // namespace apportion
}  // namespace attention_balancer
