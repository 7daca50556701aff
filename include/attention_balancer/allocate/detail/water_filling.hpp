#pragma once
// The one engine behind bounded shares: x_i = clip(nu * w_i, floor_i, cap_i) with the nu at which they add up.
// That is the KL projection onto the box, weighted max-min filling and capped proportional fairness at once.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "attention_balancer/allocate/detail/crossing.hpp"

namespace attention_balancer::detail {

/// The power of two that takes x > 0 into [0.5, 1), or as near to it as a finite factor can (subnormal x).
inline double unit_scale(double x) noexcept {
  int exponent = 0;
  static_cast<void>(std::frexp(x, &exponent));
  return std::ldexp(1.0, std::min(-exponent, 1023));
}

/// x * 2^exponent for a whole exponent of any size.
inline double times_two_to(double x, double exponent) noexcept {
  return std::ldexp(x, static_cast<int>(std::clamp(exponent, -5000.0, 5000.0)));
}

/// A non-negative number, mantissa * 2^(exponent + power): the ratio of a bound to a weight can leave the range of
/// double. `power` is that of the weight, whole, and a double because that of a high power of a weight can leave the
/// range of integers; apart from the exponent, because beside 2^60 a few binary digits would be rounded away.
struct Level {
  double mantissa = 0;
  int exponent = 0;
  double power = 0;

  static Level of(double x, double power_of_x = 0) noexcept {
    Level level;
    if (x > 0) level.mantissa = std::frexp(x, &level.exponent), level.power = power_of_x;
    return level;
  }
  friend Level operator/(Level a, Level b) noexcept {
    if (a.mantissa == 0) return a;
    Level q = of(a.mantissa / b.mantissa, a.power - b.power);
    q.exponent += a.exponent - b.exponent;
    return q;
  }
  friend bool operator<(Level a, Level b) noexcept {
    if (a.mantissa == 0 || b.mantissa == 0) return a.mantissa < b.mantissa;
    // Powers that are near each other have an exact difference, and to that of others exponents add nothing.
    const double apart = (a.power - b.power) + (a.exponent - b.exponent);
    return apart != 0 ? apart < 0 : a.mantissa < b.mantissa;
  }
  /// The product, as a double again: infinite or zero if it leaves the range, which the clip then mends.
  friend double operator*(Level a, Level b) noexcept {
    return times_two_to(a.mantissa * b.mantissa, (a.power + b.power) + (a.exponent + b.exponent));
  }
};

/// One item of water_fill: a weight of weight * 2^exponent, weight > 0 and 0 <= floor <= cap, all finite; `share`
/// is the result. Where exponents differ, weights lie in [1, 2): a power of a weight can leave the range of double.
struct FillItem {
  double weight = 0, floor = 0, cap = 0, share = 0, exponent = 0;
};

/// share_i = clip(remaining * weight_i / sum of weights, floor_i, cap_i) over the items for which `free` holds.
/// Divides before it multiplies: equal weights get equal shares, and one item gets exactly what remains.
template <class Free>
void fill_free(std::span<FillItem> items, double remaining, const Free& free) {
  double largest = 0, exponent = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < items.size(); ++i)
    if (free(i)) {
      if (items[i].exponent > exponent) exponent = items[i].exponent, largest = 0;
      if (items[i].exponent == exponent) largest = std::max(largest, items[i].weight);
    }
  if (largest == 0) return;
  const double scale = unit_scale(largest);  // no sum overflows; what underflows is below any share's last bit
  const auto scaled = [&](const FillItem& item) {
    const double w = item.weight * scale;
    return item.exponent == exponent ? w : times_two_to(w, item.exponent - exponent);
  };
  Sum total;
  for (std::size_t i = 0; i < items.size(); ++i)
    if (free(i)) total.add(scaled(items[i]));
  const double sum = total.value();
  for (std::size_t i = 0; i < items.size(); ++i)
    if (free(i)) {
      auto& item = items[i];
      item.share = std::clamp(remaining * (scaled(item) / sum), item.floor, item.cap);
    }
}

/// The places of water_fill, its levels plain doubles.
class RatioModel {
 public:
  using Level = double;
  static constexpr bool folds = true;

  template <class = void>
  explicit RatioModel(std::span<const FillItem> items) : items_(items) {
    double top = -std::numeric_limits<double>::infinity();
    for (const auto& item : items) top = std::max(top, item.exponent);
    weights_.reserve(items.size()), levels_.reserve(2 * items.size());
    const auto fits = [](double x) { return x == 0 || (x > 1e-290 && x < 1e290); };
    for (const auto& item : items) {
      const double w = item.exponent == top ? item.weight : times_two_to(item.weight, item.exponent - top);
      weights_.push_back(w);
      levels_.push_back(item.floor / w);
      levels_.push_back(item.cap / w);
      in_range_ = in_range_ && w > 0 && fits(w) && fits(levels_.end()[-1]) && fits(levels_.end()[-2]);
    }
  }

  /// Whether nothing has over- or underflown, or could.
  bool in_range() const noexcept { return in_range_; }

  double floor(std::size_t i) const noexcept { return items_[i].floor; }
  double cap(std::size_t i) const noexcept { return items_[i].cap; }
  double leaves_floor(std::size_t i) const noexcept { return levels_[2 * i]; }
  double meets_cap(std::size_t i) const noexcept { return levels_[2 * i + 1]; }
  double at(std::size_t i, double nu) const noexcept {
    if (!(nu < meets_cap(i))) return cap(i);  // to the bit, whatever the product rounds to
    return leaves_floor(i) < nu ? std::clamp(nu * weights_[i], floor(i), cap(i)) : floor(i);
  }
  void fold(std::size_t i) noexcept { free_.add(weights_[i]); }
  /// Exactly, so that a share of 1e-30 still counts beside the others.
  void add_folded(Sum& sum, double nu) const noexcept {
    const double weights = free_.value(), product = std::fma(nu, weights, 0.0);  // not contracted with the sum
    sum.add(product);
    sum.add(std::fma(nu, weights, -product));
    sum.add(nu * free_.rest());
  }

  template <class = void>
  Narrowed narrow(double budget) const noexcept {
    double sum = 0;
    for (const double w : weights_) sum += w;
    return narrowed(budget / sum, [&](double nu) {
      double total = 0, slope = 0;  // the level is clipped, not the product: that reads half the memory
      for (std::size_t i = 0; i < weights_.size(); ++i) {
        const double clipped = std::min(std::max(nu, levels_[2 * i]), levels_[2 * i + 1]);
        total += clipped * weights_[i];
        slope += nu == clipped ? weights_[i] : 0.0;
      }
      const double n = static_cast<double>(items_.size()) + 4;
      return FillEstimate{total - budget, slope, n * 0x1p-53 * (total + budget)};
    });
  }

 private:
  std::span<const FillItem> items_;
  std::vector<double> weights_, levels_;
  Sum free_;  // only added to: nothing is left of a small weight once a large one is taken away again
  bool in_range_ = true;
};

/// The same with levels of any size.
class LevelModel {
 public:
  using Level = detail::Level;
  static constexpr bool folds = false;

  template <class = void>
  explicit LevelModel(std::span<const FillItem> items) : items_(items) {
    for (const auto& item : items) {
      weights_.push_back(Level::of(item.weight, item.exponent));
      levels_.push_back(Level::of(item.floor) / weights_.back());
      levels_.push_back(Level::of(item.cap) / weights_.back());
    }
  }

  double floor(std::size_t i) const noexcept { return items_[i].floor; }
  double cap(std::size_t i) const noexcept { return items_[i].cap; }
  Level leaves_floor(std::size_t i) const noexcept { return levels_[2 * i]; }
  Level meets_cap(std::size_t i) const noexcept { return levels_[2 * i + 1]; }
  double at(std::size_t i, Level nu) const noexcept {
    if (!(nu < meets_cap(i))) return cap(i);
    return leaves_floor(i) < nu ? std::clamp(nu * weights_[i], floor(i), cap(i)) : floor(i);
  }
  void fold(std::size_t) noexcept {}
  void add_folded(Sum&, Level) const noexcept {}

 private:
  std::span<const FillItem> items_;
  std::vector<Level> weights_, levels_;
};

/// Sets every share to clip(nu * weight, floor, cap), the shares adding up to `budget`. A budget outside
/// [sum of floors, sum of caps] gives all floors or all caps: the caller judges feasibility. O(n).
template <class = void>
void water_fill(std::span<FillItem> items, double budget) {
  Sum floors;
  for (auto& item : items) floors.add(item.share = item.floor);
  if (floors.value() >= budget) return;

  // Where no bound binds it is a proportion, and most calls end here.
  fill_free(items, budget, [](std::size_t) { return true; });
  const bool bound = std::any_of(items.begin(), items.end(), [](const FillItem& item) {
    return item.share <= item.floor || item.share >= item.cap;
  });
  if (!bound) return;

  // Each item leaves its floor at one level of nu and meets its cap at another: plain numbers as a rule, and with
  // an exponent of their own where a ratio leaves the range of double.
  std::vector<FillPlace> place;
  RatioModel plain(items);
  if (plain.in_range()) {
    place = places_at(plain, items.size(), budget);
  } else {
    LevelModel wide(items);
    place = places_at(wide, items.size(), budget);
  }

  // Whoever is held by a bound is there, and the others share what remains.
  Sum remaining;
  remaining.add(budget);
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (place[i] == FillPlace::free) continue;
    items[i].share = place[i] == FillPlace::cap ? items[i].cap : items[i].floor;
    remaining.add(-items[i].share);
  }
  fill_free(items, remaining.value(), [&](std::size_t i) { return place[i] == FillPlace::free; });
}

}  // namespace attention_balancer::detail
