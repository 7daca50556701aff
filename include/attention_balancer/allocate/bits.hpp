#pragma once
// Bits by marginal utility: one bit more divides the squared error of an item by four, so it goes where that saves
// most.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/apportion.hpp"
#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/shift_filling.hpp"
#include "attention_balancer/allocate/detail/units.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

/// Awards the total to the largest s * 4^(-b), b being the bits so far. These are ordered by exponent, then by
/// mantissa, exactly: no rounding and no underflow, however many bits.
template <class = void>
void award_bits(std::span<Seat> seats, Index total) {
  if (seats.empty()) return;
  const std::size_t n = seats.size();
  std::vector<int> exponent(n);
  std::vector<double> mantissa(n);
  int highest = std::numeric_limits<int>::min(), lowest = std::numeric_limits<int>::max();
  Index most = 0;
  for (std::size_t i = 0; i < n; ++i) {
    mantissa[i] = std::frexp(seats[i].weight, &exponent[i]);
    highest = std::max(highest, exponent[i]), lowest = std::min(lowest, exponent[i]);
    most = std::max(most, seats[i].upper);
  }
  // The bits of which each is worth 2^(level - 1) or more.
  const auto bits_worth = [&](std::size_t i, Index level) {
    const Index above = exponent[i] - level;
    return std::clamp(above < 0 ? Index(0) : above / 2 + 1, seats[i].lower, seats[i].upper);
  };
  const auto awarded = [&](Index level) {
    Index sum = 0;
    for (std::size_t i = 0; i < n && sum <= total; ++i) sum += bits_worth(i, level);
    return sum;
  };
  Index too_many = Index(lowest) - 2 * most - 2, level = Index(highest) + 1;  // all are at upper; all are at lower
  while (level - too_many > 1) {
    const Index middle = too_many + (level - too_many) / 2;
    (awarded(middle) <= total ? level : too_many) = middle;
  }
  Index left = total;
  for (std::size_t i = 0; i < n; ++i) left -= seats[i].units = bits_worth(i, level);
  // One level below there are more than are left, one for an item at most: the largest mantissas.
  std::vector<std::size_t> next;
  for (std::size_t i = 0; left > 0 && i < n; ++i)
    if (bits_worth(i, level - 1) > seats[i].units) next.push_back(i);
  const auto end = next.begin() + std::min(left, static_cast<Index>(next.size()));
  if (end != next.end())
    std::nth_element(next.begin(), end, next.end(), [&](std::size_t a, std::size_t b) {
      return mantissa[a] != mantissa[b] ? mantissa[a] > mantissa[b] : ties_before(seats[a], seats[b]);
    });
  for (auto i = next.begin(); i != end; ++i) ++seats[*i].units;
}

/// Bits by marginal utility, as apportion::Apportionment calls it.
struct BitMethod {
  static constexpr bool takes_bounds = true;

  template <Scalar T>
  static std::vector<Index> units(std::span<const T> weights, Index total, const UnitBounds& bounds,
                                  std::span<const Index> ids) {
    // Not scaled: only all-zero weights become ones, which then share equally.
    std::vector<double> w(weights.begin(), weights.end());
    if (largest_weight(weights) == 0) std::fill(w.begin(), w.end(), 1.0);
    return award_within(w, total, bounds, ids, award_bits<>);
  }
};

template <Scalar T>
std::vector<double> continuous_bits(std::span<const T> sensitivity, double total, double least, double most) {
  const std::size_t n = sensitivity.size();
  static_cast<void>(largest_weight(sensitivity));
  if (!std::isfinite(total) || total < 0)
    fail<BudgetError>("total of the bits", number(total), "be finite and not negative");
  if (!(least >= 0)) fail<BudgetError>("least bits", number(least), "not be negative");
  if (!(least <= most)) fail<BudgetError>("least bits", number(least), "not exceed the most, " + number(most));
  if (n == 0 && total > 0)
    fail<BudgetError>("total of the bits", number(total), "be 0 when there is no item to get it");
  if (n == 0) return {};
  const double items = static_cast<double>(n), slack = items * std::numeric_limits<double>::epsilon() * (1 + total);
  if (least * items > total + slack)
    fail<BudgetError>("sum of the least bits of " + std::to_string(n) + " items", number(least * items),
                      "not exceed the total " + number(total));
  if (most * items < total - slack)
    fail<BudgetError>("sum of the most bits of " + std::to_string(n) + " items", number(most * items),
                      "reach the total " + number(total));
  std::vector<ShiftItem> weighted, zero;
  const double cap = std::max(least, std::min(most, total));
  for (const T s : sensitivity) {
    if (s > T(0))
      weighted.push_back({0.5 * std::log2(static_cast<double>(s)), least, cap, least});
    else
      zero.push_back({0, least, cap, least});
  }
  const double for_weighted =
      std::min(total - least * static_cast<double>(zero.size()), cap * static_cast<double>(weighted.size()));
  shift_fill(std::span<ShiftItem>(weighted), for_weighted);
  shift_fill(std::span<ShiftItem>(zero), total - for_weighted);
  std::vector<double> bits;
  auto next_weighted = weighted.begin(), next_zero = zero.begin();
  for (const T s : sensitivity) bits.push_back(s > T(0) ? (next_weighted++)->share : (next_zero++)->share);
  return bits;
}

}  // namespace detail

namespace apportion {

/// Bits by marginal utility: each bit in turn goes to the largest s_i * 4^(-b_i), s_i being weight times variance
/// and b_i the bits so far: what a uniform quantiser loses falls to a quarter with each bit, so that no other
/// division of `total` bits has a smaller sum of s_i * 4^(-b_i). The bounds are the least and the most bits of each
/// item.
///
///     const std::vector<Index> least(n, 2), most(n, 8);
///     const auto bits = apportion::bits(sensitivity, 3 * n, least, most);
///
/// O(n log) of the most bits whatever the total. Everything else as for the other methods of Apportionment.
inline constexpr Apportionment<detail::BitMethod> bits{};

/// Bits with a price: what was bought, and how far it can be from the best.
struct PricedBits {
  std::vector<Index> bits;  ///< [n] bits of each item
  Index cost = 0;           ///< sum of price_i * bits_i, at most the budget
  double error = 0;         ///< sum of s_i * 4^(-bits_i)
  double bound = 0;         ///< no division within the budget has a smaller error than this

  /// error - bound >= what is lost against the best division.
  double gap() const noexcept { return error - bound; }
};

}  // namespace apportion

namespace detail {

template <class = void>
apportion::PricedBits priced_bits(std::span<const double> sensitivity, std::span<const Index> price, Index budget,
                                  Index least, Index most) {
  const std::size_t n = sensitivity.size();
  check_size("prices", price.size(), "sensitivity", n);
  static_cast<void>(largest_weight(sensitivity));
  check_total(budget, 1);
  if (least < 0) fail<BudgetError>("least bits", least, "not be negative");
  if (least > most) fail<BudgetError>("least bits", least, "not exceed the most, " + std::to_string(most));
  apportion::PricedBits result;
  Index left = budget;
  for (std::size_t i = 0; i < n; ++i) {
    if (price[i] < 1 || price[i] > largest_total)
      fail<BudgetError>(item_of("price of a bit", i), price[i], "be in [1, 2^53]");
    if (least > left / price[i])
      fail<BudgetError>(
          "cost of the least bits up to item " + std::to_string(i),
          number(static_cast<double>(budget - left) + static_cast<double>(least) * static_cast<double>(price[i])),
          "not exceed the budget " + std::to_string(budget));
    left -= least * price[i];
  }
  struct Offer {
    double density;
    std::size_t item;
  };
  const auto worse = [&](const Offer& a, const Offer& b) {
    return a.density != b.density ? a.density < b.density : a.item > b.item;
  };
  std::vector<double> remaining(n);  // s * 4^-b
  std::vector<Offer> offers;
  result.bits.assign(n, least);
  const auto error = [&] {  // afresh: what is taken away from a sum leaves its rounding behind
    Sum sum;
    for (const double r : remaining) sum.add(r);
    return sum.value();
  };
  for (std::size_t i = 0; i < n; ++i) {
    remaining[i] = std::ldexp(sensitivity[i], static_cast<int>(std::max<Index>(-2 * least, -4000)));
    if (least < most && remaining[i] > 0) offers.push_back({remaining[i] / static_cast<double>(price[i]), i});
  }
  if (!std::isfinite(error()))
    fail<InputError>("sum of the sensitivity", number(std::numeric_limits<double>::infinity()), "be finite");
  std::make_heap(offers.begin(), offers.end(), worse);
  bool exact = true;  // the fractional optimum is what was bought until the first that the budget no longer covers
  while (!offers.empty()) {
    std::pop_heap(offers.begin(), offers.end(), worse);
    const std::size_t i = offers.back().item;
    offers.pop_back();
    const double gain = 0.75 * remaining[i];
    if (price[i] > left) {
      if (exact) result.bound = error() - gain * (static_cast<double>(left) / static_cast<double>(price[i]));
      exact = false;
      continue;  // a later one may be cheap enough; this item is never cheaper
    }
    left -= price[i];
    remaining[i] *= 0.25;
    if (++result.bits[i] < most && remaining[i] > 0) {
      offers.push_back({remaining[i] / static_cast<double>(price[i]), i});
      std::push_heap(offers.begin(), offers.end(), worse);
    }
  }
  result.cost = budget - left;
  result.error = error();
  result.bound = exact ? result.error : std::min(result.bound, result.error);
  return result;
}

}  // namespace detail

namespace apportion {

/// The same where a bit of item i costs price_i >= 1 (the number of weights in it, say) and `budget` is what all
/// bits may cost; `least` <= bits <= `most`. `sensitivity` is the error of the whole item at 0 bits. Greedy by
/// saving per cost; a bit that is too dear for what is left is passed over. The error exceeds the least possible by
/// no more than gap(), which is below three quarters of s_i * 4^(-b_i) of the first item that was passed over, so
/// it is small where every price is small beside the budget. O((n + bits) log n).
///
/// Throws ShapeError if the sizes differ, InputError naming the item if a sensitivity is NaN, infinite or negative,
/// or if they add up to no finite number, BudgetError if a price is below 1, the bounds cross or the least bits cost
/// more than the budget.
template <class = void>
PricedBits priced_bits(std::span<const float> sensitivity, std::span<const Index> price, Index budget, Index least,
                       Index most) {
  const std::vector<double> wide(sensitivity.begin(), sensitivity.end());
  return detail::priced_bits(std::span<const double>(wide), price, budget, least, most);
}
template <class = void>
PricedBits priced_bits(std::span<const double> sensitivity, std::span<const Index> price, Index budget, Index least,
                       Index most) {
  return detail::priced_bits(sensitivity, price, budget, least, most);
}

/// [n] The continuous form: b_i = nu + log2(s_i) / 2, clipped to [least, most], with the nu at which they add up to
/// `total`; without clipping, total / n + log2(s_i / geometric mean of s) / 2. Where s is 0, least, unless all
/// others are at most.
///
/// Throws InputError naming the item if a sensitivity is NaN, infinite or negative, BudgetError if the bounds cross
/// or do not include the total.
template <class = void>
std::vector<double> continuous_bits(std::span<const float> sensitivity, double total, double least = 0,
                                    double most = std::numeric_limits<double>::infinity()) {
  return detail::continuous_bits(sensitivity, total, least, most);
}
template <class = void>
std::vector<double> continuous_bits(std::span<const double> sensitivity, double total, double least = 0,
                                    double most = std::numeric_limits<double>::infinity()) {
  return detail::continuous_bits(sensitivity, total, least, most);
}

}  // namespace apportion
}  // namespace attention_balancer
