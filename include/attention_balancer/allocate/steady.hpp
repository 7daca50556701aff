#pragma once
// Integer plans that do not flicker: a new plan beside the one in force.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_balancer/allocate/apportion.hpp"
#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace apportion {

/// How willingly a plan in whole units gives way to a new one.
///
///     balancer.units(1000, {.hysteresis = 0.02, .churn = 50});
struct Steady {
  /// The part of the total, in [0, 1], up to which units would only flicker: the plan stays in force unless more
  /// than hysteresis * total of them would change hands.
  double hysteresis = 0;
  /// The most units that change hands at once, at least 1 unless nothing ever shall: the plan then approaches the
  /// new one step by step. Default: no limit.
  Index churn = std::numeric_limits<Index>::max();

  /// Throws InputError if hysteresis is not in [0, 1], BudgetError if churn is negative.
  template <class = void>
  void validate() const {
    if (!(hysteresis >= 0 && hysteresis <= 1))
      detail::fail<InputError>("Steady hysteresis", detail::number(hysteresis), "be in [0, 1]");
    if (churn < 0) detail::fail<BudgetError>("Steady churn", churn, "not be negative");
  }
};

/// The units that change hands between two plans: what the gainers gain, and of plans with equal totals also what
/// the losers lose. Throws ShapeError if the sizes differ.
template <class = void>
Index moved(std::span<const Index> before, std::span<const Index> after) {
  detail::check_size("plan after", after.size(), "the plan before", before.size());
  Index units = 0;
  for (std::size_t i = 0; i < before.size(); ++i) units += std::max(Index(0), after[i] - before[i]);
  return units;
}

}  // namespace apportion

namespace detail {

/// Throws BudgetError unless the units of a plan are non-negative and add up to its total.
template <class = void>
void check_plan(std::span<const Index> plan, Index total, const char* what) {
  Index sum = 0;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    if (plan[i] < 0) fail<BudgetError>(item_of(what, i), plan[i], "not be negative");
    if (plan[i] > total - sum)
      fail<BudgetError>("sum of the " + std::string(what) + " up to item " + std::to_string(i),
                        number(static_cast<double>(sum) + static_cast<double>(plan[i])),
                        "not exceed the total " + std::to_string(total));
    sum += plan[i];
  }
  if (sum != total)
    fail<BudgetError>("sum of the " + std::string(what), sum, "be the total " + std::to_string(total));
}

template <Scalar T, class Method>
std::vector<Index> steady(std::span<const T> weights, Index total, std::span<const Index> lower,
                          std::span<const Index> upper, std::span<const Index> previous,
                          const apportion::Steady& how, const Method& method) {
  how.validate();
  std::vector<Index> fresh = method(weights, total, lower, upper);
  if (previous.empty()) return fresh;
  check_size("previous plan", previous.size(), "weights", weights.size());
  check_plan(previous, total, "previous plan");
  const std::size_t n = fresh.size();
  Index gained = 0, forced_up = 0, forced_down = 0;
  for (std::size_t i = 0; i < n; ++i) {
    gained += std::max(Index(0), fresh[i] - previous[i]);
    forced_up += std::max(Index(0), lower[i] - previous[i]);
    forced_down += std::max(Index(0), previous[i] - upper[i]);
  }
  const Index forced = std::max(forced_up, forced_down);
  if (forced == 0 && static_cast<double>(gained) <= how.hysteresis * static_cast<double>(total))
    return {previous.begin(), previous.end()};
  if (gained <= how.churn) return fresh;
  if (forced > how.churn)
    fail<BudgetError>(
        "Steady churn", how.churn,
        "be at least " + std::to_string(forced) + ", the units that the bounds take from the plan in force");

  // Part of the way: `churn` units from the losers to the gainers, none past the new plan. Each side is a
  // problem of its own, so that the units which are worth most at their new place move first.
  std::vector<T> side;
  std::vector<Index> low, high;
  std::vector<std::size_t> items;
  for (const bool gains : {true, false}) {
    side.clear(), low.clear(), high.clear(), items.clear();
    Index held = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (gains ? fresh[i] <= previous[i] : fresh[i] >= previous[i]) continue;
      items.push_back(i);
      side.push_back(weights[i]);
      low.push_back(gains ? std::max(previous[i], lower[i]) : fresh[i]);
      high.push_back(gains ? fresh[i] : std::min(previous[i], upper[i]));
      held += previous[i];
    }
    const std::vector<Index> part = method(std::span<const T>(side), gains ? held + how.churn : held - how.churn,
                                           std::span<const Index>(low), std::span<const Index>(high));
    for (std::size_t k = 0; k < items.size(); ++k) fresh[items[k]] = part[k];
  }
  return fresh;
}

}  // namespace detail

namespace apportion {

/// An apportionment within the bounds, method(weights, total, lower, upper), Sainte-Lague by default, beside a plan
/// in force: `previous` with the same total, or empty when there is none. Where the bounds allow it, the plan stays
/// as it is until more than hysteresis * total units would change hands; then no more than `churn` of them do,
/// those first that are worth most at their new place. Under constant weights the plan reaches the one of the
/// method in moved / churn calls.
///
/// Adds up to `total` and keeps the bounds whatever the plan in force was: bounds are stronger than hysteresis.
/// Throws what the method throws; ShapeError if the previous plan has another size; BudgetError if it does not
/// add up to the total, or if the bounds alone move more units than `churn`.
template <class Method = std::remove_const_t<decltype(sainte_lague)>>
std::vector<Index> steady(std::span<const float> weights, Index total, std::span<const Index> lower,
                          std::span<const Index> upper, std::span<const Index> previous, const Steady& how,
                          const Method& method = {}) {
  return detail::steady(weights, total, lower, upper, previous, how, method);
}
template <class Method = std::remove_const_t<decltype(sainte_lague)>>
std::vector<Index> steady(std::span<const double> weights, Index total, std::span<const Index> lower,
                          std::span<const Index> upper, std::span<const Index> previous, const Steady& how,
                          const Method& method = {}) {
  return detail::steady(weights, total, lower, upper, previous, how, method);
}

}  // namespace apportion
}  // namespace attention_balancer
