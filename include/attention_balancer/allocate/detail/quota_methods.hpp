#pragma once
// Methods that keep quota, the share of the total that an item would get if units could be split: largest
// remainders, and the house monotone method of Balinski and Young.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "attention_balancer/allocate/detail/units.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// The sum of all weights as a value and what it rounds away: some 100 bits.
struct ExactSum {
  template <class = void>
  explicit ExactSum(std::span<const Seat> seats) {
    Sum sum;
    for (const Seat& seat : seats) sum.add(seat.weight);
    value = sum.value(), rest = sum.rest();
  }
  double value = 0, rest = 0;
};

/// Sets the units of the seats to the largest-remainder units of `total`, without bounds; weights of at most 1.
template <class = void>
void award_remainders(std::span<Seat* const> seats, Index total) {
  const std::size_t n = seats.size();
  if (n == 0) return;
  Sum sum;
  for (const Seat* seat : seats) sum.add(seat->weight);
  const double all = sum.value(), all_rest = sum.rest(), t = static_cast<double>(total);

  // quota = total * w / all, as whole * all + remainder with a remainder exact to about 2^-100 of the quota, so
  // that equal remainders compare equal. The products are inside fma: no compiler may contract them differently.
  struct Remainder {
    double value;
    Seat* seat;
  };
  std::vector<Remainder> order(n);
  Index left = total;
  for (std::size_t i = 0; i < n; ++i) {
    const double w = seats[i]->weight, product = t * w, product_rest = std::fma(t, w, -product);
    double whole = std::floor(product / all);
    double r = std::fma(-whole, all, product) + std::fma(-whole, all_rest, product_rest);
    if (r < 0) whole -= 1, r += all;
    if (r >= all) whole += 1, r -= all;
    seats[i]->units = static_cast<Index>(whole);
    order[i] = {r, seats[i]};
    left -= seats[i]->units;
  }

  // 0 <= left < n: one unit more for the largest remainders.
  const auto end = order.begin() + std::clamp<Index>(left, 0, static_cast<Index>(n));
  const auto better = [](const Remainder& a, const Remainder& b) {
    return a.value != b.value ? a.value > b.value : ties_before(*a.seat, *b.seat);
  };
  if (end != order.end()) std::nth_element(order.begin(), end, order.end(), better);
  for (auto item = order.begin(); item != end; ++item) ++item->seat->units;
}

/// Largest remainders of clip(nu w, lower, upper): who is held by a bound is found in real numbers, and the others
/// share what is left by their quotas.
template <class = void>
void award_hamilton(std::span<Seat> seats, Index total) {
  std::vector<FillItem> items;
  items.reserve(seats.size());
  for (const Seat& seat : seats)
    items.push_back({seat.weight, static_cast<double>(seat.lower), static_cast<double>(seat.upper), 0});
  water_fill(std::span<FillItem>(items), static_cast<double>(total));
  std::vector<Seat*> free;
  Index left = total;
  double largest = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    Seat& seat = seats[i];
    if (items[i].share > items[i].floor && items[i].share < items[i].cap) {
      free.push_back(&seat);
      largest = std::max(largest, seat.weight);
    } else {
      left -= seat.units = items[i].share > items[i].floor ? seat.upper : seat.lower;
    }
  }
  if (!free.empty() && left >= 0) {
    int exponent = 0;
    static_cast<void>(std::frexp(largest, &exponent));
    std::vector<Seat> scaled;  // the weights that hold others are gone: the largest that is left is 1 again
    scaled.reserve(free.size());
    std::vector<Seat*> pointers;
    for (const Seat* seat : free) {
      scaled.push_back(*seat);
      scaled.back().weight = std::ldexp(seat->weight, -exponent);
      pointers.push_back(&scaled.back());
    }
    award_remainders(std::span<Seat* const>(pointers), left);
    for (std::size_t k = 0; k < free.size(); ++k) {
      Seat& seat = *free[k];
      left -= seat.units = std::clamp(scaled[k].units, seat.lower, seat.upper);
    }
  } else {
    for (Seat* seat : free) left -= seat->units = seat->lower;
  }
  if (left == 0) return;
  // What the real numbers rounded away, near 2^53 units or at a bound met to the last bit: a unit each, in order.
  std::vector<Seat*> order;
  for (Seat& seat : seats) order.push_back(&seat);
  std::sort(order.begin(), order.end(), [](const Seat* a, const Seat* b) { return ties_before(*a, *b); });
  while (left > 0)
    for (Seat* seat : order)
      if (left > 0 && seat->units < seat->upper) ++seat->units, --left;
  while (left < 0)
    for (std::size_t k = order.size(); k-- > 0;)
      if (left < 0 && order[k]->units > order[k]->lower) --order[k]->units, ++left;
}

/// Hamilton, as apportion::Apportionment calls it.
struct HamiltonMethod {
  static constexpr bool takes_bounds = true;

  template <Scalar T>
  static std::vector<Index> units(std::span<const T> weights, Index total, const UnitBounds& bounds,
                                  std::span<const Index> ids) {
    return award_within(scaled_weights(weights, 1023, 0x1p-972), total, bounds, ids, award_hamilton<>);
  }
};

/// Awards one by one, so the total has an end.
inline constexpr Index largest_quota_total = Index(1) << 27;

/// Each unit in turn goes to the largest w / (a + 1) among the items that it does not lift over their quota of the
/// units awarded so far, rounded up. Those that wait for their quota to grow are kept by the total that lets them
/// in.
template <class = void>
void award_quota(std::span<Seat> seats, Index total) {
  if (seats.empty()) return;
  const ExactSum all(seats);
  // Whether h w > a W, the sign of an exact difference.
  const auto room = [&](const Seat& seat, Index h) {
    const double a = static_cast<double>(seat.units), b = static_cast<double>(h);
    // The products are inside fma: contracted with the difference their rest would count twice.
    const double x = std::fma(b, seat.weight, 0.0), x_rest = std::fma(b, seat.weight, -x);
    const double y = std::fma(a, all.value, 0.0), y_rest = std::fma(a, all.value, -y);
    return (x - y) + ((x_rest - y_rest) - a * all.rest) > 0;
  };
  const auto next_house = [&](const Seat& seat) {
    const double guess = std::floor(static_cast<double>(seat.units) * (all.value / seat.weight));
    if (!(guess < static_cast<double>(total))) return total + 1;
    Index h = std::max<Index>(static_cast<Index>(guess), 1);
    while (h > 1 && room(seat, h - 1)) --h;
    while (h <= total && !room(seat, h)) ++h;
    return h;
  };
  struct Offer {
    double price;
    Index house;  // the total from which it may be awarded
    Seat* seat;
  };
  const auto worse = [](const Offer& a, const Offer& b) {
    return a.price != b.price ? a.price < b.price : ties_before(*b.seat, *a.seat);
  };
  const auto later = [](const Offer& a, const Offer& b) { return a.house > b.house; };
  std::vector<Offer> ready, waiting;
  for (Seat& seat : seats) seat.units = 0, ready.push_back({seat.weight, 1, &seat});
  std::make_heap(ready.begin(), ready.end(), worse);
  for (Index h = 1; h <= total; ++h) {
    while (!waiting.empty() && (waiting.front().house <= h || ready.empty())) {
      std::pop_heap(waiting.begin(), waiting.end(), later);
      ready.push_back(waiting.back());
      std::push_heap(ready.begin(), ready.end(), worse);
      waiting.pop_back();
    }
    std::pop_heap(ready.begin(), ready.end(), worse);
    Seat& best = *ready.back().seat;
    ready.pop_back();
    ++best.units;
    const Offer next{best.weight / static_cast<double>(best.units + 1), next_house(best), &best};
    if (next.house <= h + 1) {
      ready.push_back(next);
      std::push_heap(ready.begin(), ready.end(), worse);
    } else if (next.house <= total) {
      waiting.push_back(next);
      std::push_heap(waiting.begin(), waiting.end(), later);
    }
  }
}

/// The quota method, as apportion::Apportionment calls it.
struct QuotaMethod {
  static constexpr bool takes_bounds = false;

  template <Scalar T>
  static std::vector<Index> units(std::span<const T> weights, Index total, const UnitBounds& bounds,
                                  std::span<const Index> ids) {
    if (total > largest_quota_total)
      fail<BudgetError>("total of the quota method", total, "not exceed 2^27 steps: it awards one by one");
    return award_within(scaled_weights(weights, 0), total, bounds, ids, award_quota<>);
  }
};

}  // namespace attention_balancer::detail
