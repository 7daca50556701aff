#pragma once
// Saliency to shares: non-negative numbers that add up to 1, within bounds. What is promised holds, or it throws.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

/// What |sum - 1| may be for n shares, and the slack in which feasibility is judged: n * epsilon of the scalar.
template <Scalar T>
double sum_slack(std::size_t n) noexcept {
  return static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon());
}

template <Scalar T>
void proportional(std::span<const T> saliency, std::span<T> shares) {
  check_size("shares", shares.size(), "saliency", saliency.size());
  if (saliency.empty()) fail<BudgetError>("number of items", Index(0), "be at least 1 to share a budget");
  const double largest = largest_weight(saliency);
  if (largest == 0) {
    std::fill(shares.begin(), shares.end(), static_cast<T>(1.0 / static_cast<double>(shares.size())));
    return;
  }
  const double scale = unit_scale(largest);
  Sum sum;
  for (const T w : saliency) sum.add(static_cast<double>(w) * scale);
  const double total = sum.value();
  for (std::size_t i = 0; i < shares.size(); ++i)
    shares[i] = static_cast<T>(static_cast<double>(saliency[i]) * scale / total);
}

/// Throws unless 0 <= floor <= cap for item i.
template <Scalar T>
void check_bounds(T floor, T cap, std::size_t i) {
  if (floor != floor) fail<InputError>(item_of("Bounded floor", i), number(floor), "be a number");
  if (cap != cap) fail<InputError>(item_of("Bounded cap", i), number(cap), "be a number");
  if (floor < T(0)) fail<BudgetError>(item_of("Bounded floor", i), number(floor), "not be negative");
  if (floor > cap)
    fail<BudgetError>(item_of("Bounded floor", i), number(floor), "not exceed its cap " + number(cap));
}

/// Throws if bounds of `eligible` items that add up to `sum` cannot make 1; item `worst` has the strictest.
template <Scalar T>
[[noreturn]] void infeasible(const char* bound, double sum, std::size_t eligible, std::size_t worst, T value,
                             const char* must) {
  fail<BudgetError>(
      "sum of the Bounded " + std::string(bound) + "s of " + std::to_string(eligible) + " eligible items",
      number(sum), std::string(must) + " the total 1: the " + item_of(bound, worst) + " is " + number(value));
}

/// Bounded::operator().
template <Scalar T>
void share_within(const allocate::Bound<T>& floor, const allocate::Bound<T>& cap,
                  const allocate::Eligible& eligible, std::span<const T> saliency, std::span<T> shares) {
  const std::size_t n = saliency.size();
  check_size("shares", shares.size(), "saliency", n);
  if (floor.per_item()) check_size("Bounded floor", floor.size(), "saliency", n);
  if (cap.per_item()) check_size("Bounded cap", cap.size(), "saliency", n);
  if (eligible.given()) check_size("Bounded eligible", eligible.size(), "saliency", n);
  static_cast<void>(largest_weight(saliency));

  std::vector<FillItem> weighted, zero;  // the eligible items with and without weight, in order
  Sum floors, caps, weighted_caps, zero_floors;
  std::size_t highest_floor = 0, lowest_cap = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (!eligible[i]) continue;
    check_bounds(floor[i], cap[i], i);
    if (weighted.empty() && zero.empty()) highest_floor = lowest_cap = i;
    if (floor[i] > floor[highest_floor]) highest_floor = i;
    if (cap[i] < cap[lowest_cap]) lowest_cap = i;
    const double w = static_cast<double>(saliency[i]), low = static_cast<double>(floor[i]);
    const double high = std::max(low, std::min(static_cast<double>(cap[i]), 1.0));  // an infinite cap is no cap
    floors.add(low);
    caps.add(high);
    if (w > 0)
      weighted.push_back({w, low, high, low}), weighted_caps.add(high);
    else
      zero.push_back({1.0, low, high, low}), zero_floors.add(low);
  }
  const std::size_t m = weighted.size() + zero.size();
  if (m == 0) fail<BudgetError>("number of eligible items", Index(0), "be at least 1 to share a budget");
  const double slack = sum_slack<T>(m);
  if (!(floors.value() <= 1.0 + slack))
    infeasible("floor", floors.value(), m, highest_floor, floor[highest_floor], "not exceed");
  if (!(caps.value() >= 1.0 - slack)) infeasible("cap", caps.value(), m, lowest_cap, cap[lowest_cap], "reach");

  // Items of weight zero rise above their floors only when those with weight cannot take more: the limit of giving
  // them all the same vanishing weight.
  const double for_weighted = 1.0 - zero_floors.value();
  if (weighted_caps.value() >= for_weighted) {
    water_fill(weighted, for_weighted);
  } else {
    for (auto& item : weighted) item.share = item.cap;
    water_fill(zero, 1.0 - weighted_caps.value());
  }

  // Rounding to T keeps order and bounds, because the bounds are numbers of T. The sum is checked, not trusted.
  std::vector<T> result(n, T(0));
  Sum sum;
  auto next_weighted = weighted.begin(), next_zero = zero.begin();
  for (std::size_t i = 0; i < n; ++i) {
    if (!eligible[i]) continue;
    result[i] = static_cast<T>((saliency[i] > T(0) ? *next_weighted++ : *next_zero++).share);
    sum.add(static_cast<double>(result[i]));
  }
  if (!(std::abs(sum.value() - 1.0) <= slack))
    fail<BudgetError>("sum of the Bounded shares", number(sum.value()), "be 1 within " + number(slack));
  std::copy(result.begin(), result.end(), shares.begin());
}

}  // namespace detail

namespace allocate {

/// share_i = w_i / sum w. All-zero weights are uniform.
///
/// `operator()(saliency, shares)`: n >= 1 non-negative weights of any scale to n shares with |sum - 1| <= n *
/// epsilon; order-preserving, scale-invariant, idempotent. The spans may be the same memory. Throws ShapeError if
/// the sizes differ, BudgetError if there is no item, InputError naming the item if a weight is NaN, infinite or
/// negative; then nothing has been written.
struct Proportional {
  void operator()(std::span<const float> saliency, std::span<float> shares) const {
    detail::proportional(saliency, shares);
  }
  void operator()(std::span<const double> saliency, std::span<double> shares) const {
    detail::proportional(saliency, shares);
  }
};

/// share_i = clip(nu * w_i, floor_i, cap_i) with the nu at which they add up to 1: at once the KL projection of the
/// weights onto the bounds, weighted max-min water-filling and capped proportional fairness.
///
///     allocate::Bounded<float>{.floor = 0.01f, .cap = 0.2f, .eligible = mask}
///
/// `floor` and `cap` are one number, or borrowed numbers, one per item; `eligible` is a borrowed mask.
///
/// `operator()(saliency, shares)`: floors and caps hold bit for bit; |sum - 1| <= n * epsilon, n counting the
/// eligible; a masked item gets 0, an item of weight zero its floor. When every item with weight is at its cap, the
/// rest goes equally to the eligible items of weight zero, within their bounds; all-zero weights are uniform within
/// the bounds. Order-preserving under common bounds, scale-invariant, idempotent. O(n log n). The spans may be the
/// same memory.
///
/// Throws ShapeError if sizes differ; InputError naming the item if a weight is NaN, infinite or negative (masked
/// items too) or a bound is NaN; BudgetError if no item is eligible, a floor is negative or above its cap, or the
/// floors of the eligible add up to more than 1 or their caps to less, by more than n * epsilon. Then nothing has
/// been written.
template <Scalar T>
struct Bounded {
  using value_type = T;

  Bound<T> floor = T(0);
  Bound<T> cap = T(1);
  Eligible eligible = {};

  void operator()(std::span<const T> saliency, std::span<T> shares) const {
    detail::share_within(floor, cap, eligible, saliency, shares);
  }

  /// The limits of item i; {0, 0, false} if it is masked.
  Limits<T> limits(Index item) const {
    const auto i = static_cast<std::size_t>(item);
    return eligible[i] ? Limits<T>{floor[i], cap[i], true} : Limits<T>{T(0), T(0), false};
  }
};

template <class F>
Bounded(F) -> Bounded<detail::common_scalar<F>>;
template <class F, class C>
Bounded(F, C) -> Bounded<detail::common_scalar<F, C>>;
template <class F, class C, class E>
Bounded(F, C, E) -> Bounded<detail::common_scalar<F, C>>;

}  // namespace allocate
}  // namespace attention_balancer
