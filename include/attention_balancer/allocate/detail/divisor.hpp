#pragma once
// Divisor methods: each unit in turn goes to the largest w / d(a), a being what the item has so far.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "attention_balancer/allocate/detail/units.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

// What the method divides by. `least` and `exponent` scale the weights: the largest becomes huge, so that the small
// ones are not lost where caps bind and they share what is left. Some 600 orders below it there is an end, half as many
// for squares: a price must not underflow.
struct SainteLagueDivisor {
  static constexpr int exponent = 1023;
  static constexpr double least = 0x1p-972;
  static constexpr bool first_is_free = false, squared = false;
  static constexpr double surplus = 0.5;  // units per item by which the usual rounding exceeds rounding down
  static double of(double units) noexcept { return units + 0.5; }
  static double worth(double weight) noexcept { return weight; }
  static double root(double x) noexcept { return x; }
};
struct DhondtDivisor : SainteLagueDivisor {
  static constexpr double surplus = 0;
  static double of(double units) noexcept { return units + 1; }
};
struct AdamsDivisor : SainteLagueDivisor {
  static constexpr double surplus = 1;
  static constexpr bool first_is_free = true;
  static double of(double units) noexcept { return units; }
};
/// w / sqrt(a (a + 1)), compared by its square: that is exact for weights of up to 26 bits, where the root would
/// round equal prices apart.
struct HuntingtonHillDivisor {
  static constexpr int exponent = 511;
  static constexpr double least = 0x1p-458;
  static constexpr bool first_is_free = true, squared = true;
  static constexpr double surplus = 0.5;
  static double of(double units) noexcept { return units * (units + 1); }
  static double worth(double weight) noexcept { return weight * weight; }
  static double root(double x) noexcept { return std::sqrt(x); }
};

/// What unit k of a seat, counted from 0, is worth. The quotient is correctly rounded, so that equal prices are
/// equal bits.
template <class Divisor>
double price_of(const Seat& seat, Index k) noexcept {
  return Divisor::worth(seat.weight) / Divisor::of(static_cast<double>(k));
}

/// Number of units of a seat that are worth `price` or more, within its bounds.
template <class Divisor>
Index units_worth(const Seat& seat, double price) noexcept {
  const auto worth = [&](Index k) { return price_of<Divisor>(seat, k) >= price; };
  if (seat.lower == seat.upper || !worth(seat.lower)) return seat.lower;
  if (worth(seat.upper - 1)) return seat.upper;
  // Prices fall with k, and the quotient is off by a unit or two at most.
  const double guess = Divisor::root(Divisor::worth(seat.weight) / price);
  Index k = std::clamp(static_cast<Index>(guess), seat.lower + 1, seat.upper - 1);
  while (!worth(k - 1)) --k;
  while (worth(k)) ++k;
  return k;
}

/// Gives every seat its units worth `price` or more: all of them and no others, so the same whatever the order of
/// ties. Returns their number, or any number above `most` if it is larger than that.
template <class Divisor>
Index award_worth(std::span<Seat> seats, double price, Index most) noexcept {
  Index awarded = 0;
  for (auto& seat : seats) {
    seat.units = units_worth<Divisor>(seat, price);
    awarded += seat.units;
    if (awarded > most) break;
  }
  return awarded;
}

/// Where the first unit is worth more than any other, it comes before all. Returns false if the total does not
/// suffice for all of these: then they have been awarded.
template <class = void>
bool award_first(std::span<Seat> seats, Index total) {
  Index left = total;
  std::vector<Seat*> waiting;
  for (auto& seat : seats) {
    left -= seat.units = seat.lower;
    if (seat.lower == 0 && seat.upper > 0) waiting.push_back(&seat);
  }
  const auto enough = static_cast<std::size_t>(left) >= waiting.size();
  if (!enough)
    std::sort(waiting.begin(), waiting.end(), [](const Seat* a, const Seat* b) { return ties_before(*a, *b); });
  for (Seat* seat : waiting) {
    if (left-- == 0) break;
    seat->units = seat->lower = 1;
  }
  return enough;
}

/// Awards `total` units within the bounds, in O(n log n); sum of lower <= total <= sum of upper. One by one would
/// take `total` steps. A price is looked for above which few are left to award: first where it would be if no bound
/// held and every item were rounded alike, then by bisection over the bits of a double, which are ordered as
/// positive doubles are, 63 steps at most, until no more than n are left. A heap awards the rest.
template <class Divisor>
void award(std::span<Seat> seats, Index total) {
  if (Divisor::first_is_free && !award_first(seats, total)) return;
  const auto n = static_cast<Index>(seats.size());
  Sum sum;
  for (const auto& seat : seats) sum.add(Divisor::root(Divisor::worth(seat.weight)) * 0x1p-64);  // may overflow
  const double roots = sum.value(), items = static_cast<double>(n),
               wanted = static_cast<double>(total) - items / 64;
  const auto price_at = [&](double units) {  // at which quotas add up to so many units
    const double root = roots / units * 0x1p64;
    return Divisor::squared ? root * root : root;
  };
  double price = price_at(wanted - Divisor::surplus * items);
  std::uint64_t above = 0;  // too many are worth this
  std::uint64_t below = std::bit_cast<std::uint64_t>(std::numeric_limits<double>::infinity());  // not too many
  Index left = -1;
  for (int step = 0;; ++step) {
    if (below - above <= 1) {  // what is left are ties
      left = total - award_worth<Divisor>(seats, std::bit_cast<double>(below), total);
      break;
    }
    std::uint64_t bits = price > 0 ? std::bit_cast<std::uint64_t>(price) : 0;
    if (step > 2 || bits <= above || bits >= below) bits = above + (below - above) / 2;
    price = std::bit_cast<double>(bits);
    const Index awarded = award_worth<Divisor>(seats, price, total + 2 * n);
    left = total - awarded;
    if (left >= 0 && left <= (step < 2 ? n / 32 + 8 : n)) break;
    (left < 0 ? above : below) = bits;
    // Rounding gave so many more than the quotas, and will again.
    const double quotas = roots * 0x1p64 / Divisor::root(price);
    price = price_at(wanted - (static_cast<double>(awarded) - quotas));
  }

  struct Offer {
    double price;
    Seat* seat;
  };
  const auto worse = [](const Offer& a, const Offer& b) {
    if (a.price != b.price) return a.price < b.price;
    if (a.seat->weight == b.seat->weight && a.seat->units != b.seat->units)
      return a.seat->units > b.seat->units;  // near 2^53 units the divisors of two units round to one
    return ties_before(*b.seat, *a.seat);
  };
  std::vector<Offer> offers;
  offers.reserve(seats.size());
  for (auto& seat : seats)
    if (seat.units < seat.upper) offers.push_back({price_of<Divisor>(seat, seat.units), &seat});
  std::make_heap(offers.begin(), offers.end(), worse);
  for (; left > 0; --left) {
    std::pop_heap(offers.begin(), offers.end(), worse);
    Seat& best = *offers.back().seat;
    offers.back().price = price_of<Divisor>(best, ++best.units);
    if (best.units < best.upper)
      std::push_heap(offers.begin(), offers.end(), worse);
    else
      offers.pop_back();
  }
}

/// A divisor method, as apportion::Apportionment calls it.
template <class Divisor>
struct DivisorMethod {
  static constexpr bool takes_bounds = true;

  template <Scalar T>
  static std::vector<Index> units(std::span<const T> weights, Index total, const UnitBounds& bounds,
                                  std::span<const Index> ids) {
    return award_within(scaled_weights(weights, Divisor::exponent, Divisor::least), total, bounds, ids,
                        award<Divisor>);
  }
};

}  // namespace attention_balancer::detail
