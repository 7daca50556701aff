#pragma once
// The one engine behind bounded shares: x_i = clip(nu * w_i, floor_i, cap_i) with the nu at which they add up.
// That is the KL projection onto the box, weighted max-min filling and capped proportional fairness at once.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

namespace attention_balancer::detail {

/// Neumaier's compensated sum: the result is right to the last bit or so, whatever the order and the number of
/// terms.
class Sum {
 public:
  void add(double x) noexcept {
    const double t = high_ + x;
    low_ += std::abs(high_) >= std::abs(x) ? (high_ - t) + x : (x - t) + high_;
    high_ = t;
  }
  double value() const noexcept { return high_ + low_; }

  /// What value() rounded away.
  double rest() const noexcept { return (high_ - value()) + low_; }

 private:
  double high_ = 0, low_ = 0;
};

/// The power of two that takes x > 0 into [0.5, 1), or as near to it as a finite factor can (subnormal x).
inline double unit_scale(double x) noexcept {
  int exponent = 0;
  static_cast<void>(std::frexp(x, &exponent));
  return std::ldexp(1.0, std::min(-exponent, 1023));
}

/// A non-negative number with an exponent of its own: the ratio of a bound to a weight can leave the range of
/// double.
struct Level {
  double mantissa = 0;
  int exponent = -100000;  // of zero: below every other

  static Level of(double x) noexcept {
    Level level;
    if (x > 0) level.mantissa = std::frexp(x, &level.exponent);
    return level;
  }
  friend Level operator/(Level a, Level b) noexcept {
    if (a.mantissa == 0) return a;
    Level q = of(a.mantissa / b.mantissa);
    q.exponent += a.exponent - b.exponent;
    return q;
  }
  friend bool operator<(Level a, Level b) noexcept {
    return a.exponent != b.exponent ? a.exponent < b.exponent : a.mantissa < b.mantissa;
  }
  /// The product, as a double again: infinite or zero if it leaves the range, which the clip then mends.
  friend double operator*(Level a, Level b) noexcept {
    return std::ldexp(a.mantissa * b.mantissa, a.exponent + b.exponent);
  }
};

/// One item of water_fill: weight > 0 and 0 <= floor <= cap, all finite; `share` is the result.
struct FillItem {
  double weight = 0, floor = 0, cap = 0, share = 0;
};

/// share_i = clip(remaining * weight_i / sum of weights, floor_i, cap_i) over the items for which `free` holds.
/// Divides before it multiplies: equal weights get equal shares, and one item gets exactly what remains.
template <class Free>
void fill_free(std::span<FillItem> items, double remaining, const Free& free) {
  double largest = 0;
  for (std::size_t i = 0; i < items.size(); ++i)
    if (free(i)) largest = std::max(largest, items[i].weight);
  if (largest == 0) return;
  const double scale = unit_scale(largest);  // no sum overflows; what underflows is below any share's last bit
  Sum total;
  for (std::size_t i = 0; i < items.size(); ++i)
    if (free(i)) total.add(items[i].weight * scale);
  const double sum = total.value();
  for (std::size_t i = 0; i < items.size(); ++i)
    if (free(i)) {
      auto& item = items[i];
      item.share = std::clamp(remaining * (item.weight * scale / sum), item.floor, item.cap);
    }
}

/// Sets every share to clip(nu * weight, floor, cap), the shares adding up to `budget`. A budget outside
/// [sum of floors, sum of caps] gives all floors or all caps: the caller judges feasibility. O(n log n).
inline void water_fill(std::span<FillItem> items, double budget) {
  Sum floors;
  for (auto& item : items) floors.add(item.share = item.floor);
  if (floors.value() >= budget) return;

  // Where no bound binds it is a proportion, and most calls end here.
  fill_free(items, budget, [](std::size_t) { return true; });
  const bool bound = std::any_of(items.begin(), items.end(), [](const FillItem& item) {
    return item.share <= item.floor || item.share >= item.cap;
  });
  if (!bound) return;

  // Each item leaves its floor at one level of nu and meets its cap at another. The sum at a level is computed
  // afresh, never by adding and taking away: with weights 600 orders apart nothing would be left of the small ones.
  const std::size_t n = items.size();
  std::vector<Level> weight(n), leaves_floor(n), meets_cap(n), levels;
  levels.reserve(2 * n);
  for (std::size_t i = 0; i < n; ++i) {
    weight[i] = Level::of(items[i].weight);
    levels.push_back(leaves_floor[i] = Level::of(items[i].floor) / weight[i]);
    levels.push_back(meets_cap[i] = Level::of(items[i].cap) / weight[i]);
  }
  std::sort(levels.begin(), levels.end());
  const auto affordable = [&](Level nu) {
    Sum excess;  // over the budget, which is inside the sum: beside it the last bits of the small ones are rounded away
    excess.add(-budget);
    for (std::size_t i = 0; i < n; ++i)
      excess.add(!(nu < meets_cap[i])      ? items[i].cap
                 : !(leaves_floor[i] < nu) ? items[i].floor
                                           : std::clamp(nu * weight[i], items[i].floor, items[i].cap));
    return excess.value() <= 0;
  };
  const auto above = std::partition_point(levels.begin(), levels.end(), affordable);

  // nu lies in [*(above - 1), *above): whoever met its cap below is there, whoever leaves its floor above is still
  // there, and the others share what remains.
  enum class Place : char { floor, free, cap };
  std::vector<Place> place(n, Place::free);
  Sum remaining;
  remaining.add(budget);
  for (std::size_t i = 0; i < n; ++i) {
    if (above == levels.end() || (above != levels.begin() && !(*(above - 1) < meets_cap[i])))
      place[i] = Place::cap, items[i].share = items[i].cap;
    else if (above == levels.begin() || !(leaves_floor[i] < *above))
      place[i] = Place::floor, items[i].share = items[i].floor;
    if (place[i] != Place::free) remaining.add(-items[i].share);
  }
  fill_free(items, remaining.value(), [&](std::size_t i) { return place[i] == Place::free; });
}

}  // namespace attention_balancer::detail
