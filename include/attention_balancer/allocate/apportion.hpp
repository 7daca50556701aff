#pragma once
// Shares to integers: whole units that add up to the total exactly.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

/// Totals are counted in double and must stay exact.
inline constexpr Index largest_total = Index(1) << 53;

inline void check_total(Index total, std::size_t items) {
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

/// For prices: the largest weight becomes huge, so that the small ones are not lost where caps bind and they share
/// what is left. 600 orders below it there is an end: a price must not underflow.
template <Scalar T>
std::vector<double> price_weights(std::span<const T> weights) {
  return scaled_weights(weights, 1023, 0x1p-972);
}

/// `w` from scaled_weights(..., 0).
inline std::vector<Index> hamilton(const std::vector<double>& w, Index total) {
  const std::size_t n = w.size();
  check_total(total, n);
  Sum sum;
  for (const double x : w) sum.add(x);
  const double all = sum.value(), all_rest = sum.rest(), t = static_cast<double>(total);

  // quota = total * w / all, as whole * all + remainder with a remainder exact to about 2^-100 of the quota, so
  // that equal remainders compare equal. The products are inside fma: no compiler may contract them differently.
  std::vector<Index> units(n);
  std::vector<double> remainder(n);
  Index left = total;
  for (std::size_t i = 0; i < n; ++i) {
    const double product = t * w[i], product_rest = std::fma(t, w[i], -product);
    double whole = std::floor(product / all);
    double r = std::fma(-whole, all, product) + std::fma(-whole, all_rest, product_rest);
    if (r < 0) whole -= 1, r += all;
    if (r >= all) whole += 1, r -= all;
    units[i] = static_cast<Index>(whole);
    remainder[i] = r;
    left -= units[i];
  }

  // 0 <= left < n: one unit more for the largest remainders.
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (remainder[a] != remainder[b]) return remainder[a] > remainder[b];
    if (w[a] != w[b]) return w[a] > w[b];
    return a < b;
  });
  for (std::size_t k = 0; left > 0; ++k, --left) ++units[order[k]];
  return units;
}

/// One item of a divisor method; weight > 0.
struct Seat {
  double weight = 0;
  std::size_t item = 0;
  Index lower = 0, upper = 0, units = 0;

  /// What unit k, counted from 0, is worth. The quotient is correctly rounded, so that equal prices are equal bits.
  double price(Index k) const noexcept { return weight / (static_cast<double>(k) + 0.5); }
};

/// Number of units of a seat that are worth `price` or more, within its bounds.
inline Index units_worth(const Seat& seat, double price) noexcept {
  const auto worth = [&](Index k) { return seat.price(k) >= price; };
  if (seat.lower == seat.upper || !worth(seat.lower)) return seat.lower;
  if (worth(seat.upper - 1)) return seat.upper;
  // Prices fall with k, and the quotient is off by a unit or two at most.
  Index k = std::clamp(static_cast<Index>(seat.weight / price), seat.lower + 1, seat.upper - 1);
  while (!worth(k - 1)) --k;
  while (worth(k)) ++k;
  return k;
}

/// Gives every seat its units worth `price` or more: all of them and no others, so the same whatever the order of
/// ties. Returns their number, or any number above `most` if it is larger than that.
inline Index award_worth(std::span<Seat> seats, double price, Index most) noexcept {
  Index awarded = 0;
  for (auto& seat : seats) {
    seat.units = units_worth(seat, price);
    awarded += seat.units;
    if (awarded > most) break;
  }
  return awarded;
}

/// Awards `total` units by Sainte-Lague within the bounds, in O(n log n); sum of lower <= total <= sum of upper.
/// One by one would take `total` steps. A price above which no more than n are left to award is bisected for, over
/// the bits of a double, which are ordered as positive doubles are: 63 steps at most, and few as a rule, because
/// the first guess is the price at which the quotas are met. A heap awards the rest.
inline void award(std::span<Seat> seats, Index total) {
  const auto enough = static_cast<Index>(seats.size());
  Sum weights;
  for (const auto& seat : seats) weights.add(seat.weight * 0x1p-64);  // their sum may overflow
  double guess = weights.value() / std::max(1.0, static_cast<double>(total)) * 0x1p64;
  std::uint64_t above = 0;  // too many are worth this
  std::uint64_t below = std::bit_cast<std::uint64_t>(std::numeric_limits<double>::infinity());  // not too many
  Index left = -1;
  for (bool first = true;; first = false) {
    if (below - above <= 1) {  // what is left are ties
      left = total - award_worth(seats, std::bit_cast<double>(below), total);
      break;
    }
    const std::uint64_t middle = above + (below - above) / 2;
    if (!first || !(guess > 0) || !std::isfinite(guess)) guess = std::bit_cast<double>(middle);
    left = total - award_worth(seats, guess, total);
    if (left >= 0 && left <= enough) break;
    (left < 0 ? above : below) = std::bit_cast<std::uint64_t>(guess);
  }

  struct Offer {
    double price;
    const Seat* seat;
  };
  const auto worse = [](const Offer& a, const Offer& b) {
    if (a.price != b.price) return a.price < b.price;
    if (a.seat->weight != b.seat->weight) return a.seat->weight < b.seat->weight;
    if (a.seat->units != b.seat->units)
      return a.seat->units > b.seat->units;  // near 2^53 units 1/2 is rounded away
    return a.seat->item > b.seat->item;
  };
  std::vector<Offer> offers;
  offers.reserve(seats.size());
  for (const auto& seat : seats)
    if (seat.units < seat.upper) offers.push_back({seat.price(seat.units), &seat});
  std::make_heap(offers.begin(), offers.end(), worse);
  for (; left > 0; --left) {
    std::pop_heap(offers.begin(), offers.end(), worse);
    auto& best = seats[static_cast<std::size_t>(offers.back().seat - seats.data())];
    offers.back().price = best.price(++best.units);
    if (best.units < best.upper)
      std::push_heap(offers.begin(), offers.end(), worse);
    else
      offers.pop_back();
  }
}

/// `w` from price_weights. Empty bounds are 0 and total.
inline std::vector<Index> sainte_lague(const std::vector<double>& w, Index total,
                                       std::span<const Index> lowers = {}, std::span<const Index> uppers = {}) {
  const std::size_t n = w.size();
  check_total(total, n);
  std::vector<Seat> weighted, zero;
  Index lower_sum = 0, upper_sum = 0, weighted_upper = 0, zero_lower = 0;  // the uppers saturate at total
  for (std::size_t i = 0; i < n; ++i) {
    const Index lower = lowers.empty() ? 0 : lowers[i], given_upper = uppers.empty() ? total : uppers[i];
    if (lower < 0) fail<BudgetError>(item_of("lower bound", i), lower, "not be negative");
    if (lower > given_upper)
      fail<BudgetError>(item_of("lower bound", i), lower,
                        "not exceed its upper bound " + std::to_string(given_upper));
    if (lower > total - lower_sum)
      fail<BudgetError>("sum of the lower bounds up to item " + std::to_string(i),
                        number(static_cast<double>(lower_sum) + static_cast<double>(lower)),
                        "not exceed the total " + std::to_string(total));
    const Index upper = std::min(given_upper, total);
    lower_sum += lower;
    upper_sum += std::min(upper, total - upper_sum);
    if (w[i] > 0) {
      weighted.push_back({w[i], i, lower, upper, 0});
      weighted_upper += std::min(upper, total - weighted_upper);
    } else {
      zero.push_back({1.0, i, lower, upper, 0});
      zero_lower += lower;
    }
  }
  if (upper_sum < total)
    fail<BudgetError>("sum of the upper bounds of " + std::to_string(n) + " items", upper_sum,
                      "reach the total " + std::to_string(total));
  // As with shares: weight zero gets more than its lower bound only when the others cannot take it.
  const Index for_weighted = std::min(total - zero_lower, weighted_upper);
  award(weighted, for_weighted);
  award(zero, total - for_weighted);
  std::vector<Index> units(n);
  for (const auto& seat : weighted) units[seat.item] = seat.units;
  for (const auto& seat : zero) units[seat.item] = seat.units;
  return units;
}

template <Scalar T>
std::vector<Index> sainte_lague_within(std::span<const T> weights, Index total, std::span<const Index> lower,
                                       std::span<const Index> upper) {
  check_size("lower bounds", lower.size(), "weights", weights.size());
  check_size("upper bounds", upper.size(), "weights", weights.size());
  return sainte_lague(price_weights(weights), total, lower, upper);
}

}  // namespace detail

namespace apportion {

/// Hamilton's method (largest remainders): every item gets the whole part of its quota total * w_i / sum w, and
/// what is left goes, a unit each, to the largest remainders; ties to the larger weight, then to the lower index.
/// Always |units - quota| < 1, but not house monotone (weights 6, 6, 2: 10 -> 4, 4, 2 but 11 -> 5, 5, 1): for one
/// shot.
///
/// Returns one Index per weight, adding up to `total` exactly. All-zero weights count as equal. O(n log n). Throws
/// InputError naming the item if a weight is NaN, infinite or negative; BudgetError if the total is negative, above
/// 2^53, or positive without an item.
inline std::vector<Index> hamilton(std::span<const float> weights, Index total) {
  return detail::hamilton(detail::scaled_weights(weights, 0), total);
}
inline std::vector<Index> hamilton(std::span<const double> weights, Index total) {
  return detail::hamilton(detail::scaled_weights(weights, 0), total);
}

/// Sainte-Lague's method (Webster): each unit in turn goes to the largest w_i / (a_i + 1/2), a_i being what the
/// item has so far; ties to the larger weight, then to the lower index. House monotone: a larger total takes
/// nothing away. It may leave quota (|units - quota| can reach 1 and more). For feedback loops.
///
/// Returns and throws as hamilton does; O(n log n) whatever the total.
inline std::vector<Index> sainte_lague(std::span<const float> weights, Index total) {
  return detail::sainte_lague(detail::price_weights(weights), total);
}
inline std::vector<Index> sainte_lague(std::span<const double> weights, Index total) {
  return detail::sainte_lague(detail::price_weights(weights), total);
}

/// The same within lower_i <= units_i <= upper_i: units are awarded in turn from `lower` on, to items below
/// `upper`. When every item with weight is at its upper bound, the rest goes equally to the items of weight zero.
/// Also throws ShapeError if the sizes differ and BudgetError, naming the item, if a bound is negative, crosses the
/// other, or the bounds cannot add up to the total.
inline std::vector<Index> sainte_lague(std::span<const float> weights, Index total, std::span<const Index> lower,
                                       std::span<const Index> upper) {
  return detail::sainte_lague_within(weights, total, lower, upper);
}
inline std::vector<Index> sainte_lague(std::span<const double> weights, Index total, std::span<const Index> lower,
                                       std::span<const Index> upper) {
  return detail::sainte_lague_within(weights, total, lower, upper);
}

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
