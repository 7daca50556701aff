#pragma once
// The bounds of an allocation, checked, and shares within them, written.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/crossing.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// What |sum - 1| may be for n shares, and the slack in which feasibility is judged: n * epsilon of the scalar.
template <Scalar T>
double sum_slack(std::size_t n) noexcept {
  return static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon());
}

/// What an allocation may give: a floor and a cap per item, and who takes part. `name` is the policy's, for
/// messages.
template <Scalar T>
struct Box {
  const char* name;
  const allocate::Bound<T>& floor;
  const allocate::Bound<T>& cap;
  const allocate::Eligible& eligible;

  std::string text(const char* what) const { return std::string(name) + " " + what; }

  /// An infinite cap is no cap.
  double cap_of(std::size_t i) const noexcept {
    return std::max(static_cast<double>(floor[i]), std::min(static_cast<double>(cap[i]), 1.0));
  }
};

/// Throws if bounds of `eligible` items that add up to `sum` cannot make 1; item `worst` has the strictest.
template <Scalar T>
[[noreturn]] void infeasible(const Box<T>& box, const char* bound, double sum, std::size_t eligible,
                             std::size_t worst, T value, const char* must) {
  fail<BudgetError>("sum of the " + box.text(bound) + "s of " + std::to_string(eligible) + " eligible items",
                    number(sum),
                    std::string(must) + " the total 1: the " + item_of(bound, worst) + " is " + number(value));
}

/// Throws ShapeError unless what the box borrows has n entries.
template <Scalar T>
void check_box_size(const Box<T>& box, std::size_t n) {
  if (box.floor.per_item()) check_size(box.text("floor"), box.floor.size(), "saliency", n);
  if (box.cap.per_item()) check_size(box.text("cap"), box.cap.size(), "saliency", n);
  if (box.eligible.given()) check_size(box.text("eligible"), box.eligible.size(), "saliency", n);
}

/// Throws unless n items can share 1 within the box. Returns how many of them are eligible.
template <Scalar T>
std::size_t check_box(const Box<T>& box, std::size_t n) {
  check_box_size(box, n);
  Sum floors, caps;
  std::size_t m = 0, highest_floor = 0, lowest_cap = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (!box.eligible[i]) continue;
    const T floor = box.floor[i], cap = box.cap[i];
    if (floor != floor) fail<InputError>(item_of(box.text("floor"), i), number(floor), "be a number");
    if (cap != cap) fail<InputError>(item_of(box.text("cap"), i), number(cap), "be a number");
    if (floor < T(0)) fail<BudgetError>(item_of(box.text("floor"), i), number(floor), "not be negative");
    if (floor > cap)
      fail<BudgetError>(item_of(box.text("floor"), i), number(floor), "not exceed its cap " + number(cap));
    if (m == 0) highest_floor = lowest_cap = i;
    if (floor > box.floor[highest_floor]) highest_floor = i;
    if (cap < box.cap[lowest_cap]) lowest_cap = i;
    floors.add(static_cast<double>(floor));
    caps.add(box.cap_of(i));
    ++m;
  }
  if (m == 0) fail<BudgetError>("number of eligible items", Index(0), "be at least 1 to share a budget");
  const double slack = sum_slack<T>(m);
  if (!(floors.value() <= 1.0 + slack))
    infeasible(box, "floor", floors.value(), m, highest_floor, box.floor[highest_floor], "not exceed");
  if (!(caps.value() >= 1.0 - slack))
    infeasible(box, "cap", caps.value(), m, lowest_cap, box.cap[lowest_cap], "reach");
  return m;
}

/// Writes the shares of m eligible items, `share(i)` for item i. Rounding to T keeps order and bounds, because the
/// bounds are numbers of T. The sum is checked, not trusted.
template <Scalar T, class Share>
void write_shares(const Box<T>& box, std::size_t m, std::span<T> shares, Share&& share) {
  std::vector<T> result(shares.size(), T(0));
  Sum sum;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (!box.eligible[i]) continue;
    result[i] = static_cast<T>(share(i));
    sum.add(static_cast<double>(result[i]));
  }
  if (!(std::abs(sum.value() - 1.0) <= sum_slack<T>(m)))
    fail<BudgetError>("sum of the " + box.text("shares"), number(sum.value()),
                      "be 1 within " + number(sum_slack<T>(m)));
  std::copy(result.begin(), result.end(), shares.begin());
}

}  // namespace attention_balancer::detail
