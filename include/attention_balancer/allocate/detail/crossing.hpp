#pragma once
// Where a monotone sum of clipped terms meets its budget, found without sorting: who is at the floor there, who at
// the cap, and who is free. Both engines of shares stand on it.

#include <algorithm>
#include <cmath>
#include <cstddef>
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

/// Where an item is when the shares add up.
enum class FillPlace : unsigned char { floor, free, cap };

/// A sum in doubles with a bound on what rounding can have done to it, and what a step of the level adds.
struct FillEstimate {
  double excess = 0, slope = 0, error = 0;
};

/// Levels between which a sum surely meets its budget, as far as a few passes in plain double find any.
struct Narrowed {
  double below = 0, above = 0;
  bool any_below = false, any_above = false;
};

/// Newton's method on the piecewise linear `estimate(level)` from `start`.
template <class Estimator>
Narrowed narrowed(double start, const Estimator& estimate) {
  Narrowed bracket;
  const auto probe = [&](double level) {
    const FillEstimate e = estimate(level);
    if (e.excess < -e.error && (!bracket.any_below || level > bracket.below))
      bracket.below = level, bracket.any_below = true;
    if (e.excess > e.error && (!bracket.any_above || level < bracket.above))
      bracket.above = level, bracket.any_above = true;
    return e;
  };
  double level = start;
  for (int step = 0; step < 12 && std::isfinite(level); ++step) {
    const FillEstimate e = probe(level);
    if (!(std::isfinite(e.excess) && e.slope > 0)) break;
    if (std::abs(e.excess) <= 4 * e.error) {  // nearly there: close the bracket on both sides of it
      const double width = 16 * e.error / e.slope;
      probe(level - e.excess / e.slope - width);
      probe(level - e.excess / e.slope + width);
      break;
    }
    level -= e.excess / e.slope;
    if (bracket.any_below && bracket.any_above && !(level > bracket.below && level < bracket.above))
      level = bracket.below + (bracket.above - bracket.below) / 2;
  }
  return bracket;
}

/// The places of n items when their clipped values add up to `budget`, or all floors or all caps if they cannot.
/// The `model` has
///   Level                                     what is raised until the sum is met; ordered by <
///   leaves_floor(i), meets_cap(i)             the levels at which item i does
///   floor(i), cap(i), at(i, level)            its values
///   fold(i), add_folded(sum, level)           takes in an item that is free from now on; adds all of these
///   narrow(budget)                            levels between which it is, if that is quickly told
///
/// Each step halves the levels that are left, and looks only at items that are still undecided: O(n) in all.
template <class Model>
std::vector<FillPlace> places_at(Model& model, std::size_t n, double budget) {
  using Level = typename Model::Level;
  std::vector<FillPlace> place(n, FillPlace::free);
  std::vector<std::size_t> undecided;
  Sum decided;  // less the budget: beside it the last bits of the small ones are rounded away
  decided.add(-budget);
  Level below{}, above{};  // affordable, and not
  bool any_below = false, any_above = false;
  const auto decide = [&](std::size_t i) {
    const Level low = model.leaves_floor(i), high = model.meets_cap(i);
    if (any_below && !(below < high))
      place[i] = FillPlace::cap, decided.add(model.cap(i));
    else if (any_above && !(low < above))
      place[i] = FillPlace::floor, decided.add(model.floor(i));
    else if (Model::folds && any_below && any_above && !(below < low) && !(high < above))
      model.fold(i);
    else
      return false;
    return true;
  };
  if constexpr (Model::folds) {
    const Narrowed bracket = model.narrow(budget);
    any_below = bracket.any_below, any_above = bracket.any_above;
    if (any_below) below = Level{bracket.below};
    if (any_above) above = Level{bracket.above};
  }
  std::vector<Level> levels;
  const auto is_open = [&](Level level) {
    return !(any_below && !(below < level)) && !(any_above && !(level < above));
  };
  for (std::size_t i = 0; i < n; ++i) {
    if (decide(i)) continue;
    undecided.push_back(i);
    if (is_open(model.leaves_floor(i))) levels.push_back(model.leaves_floor(i));
    if (is_open(model.meets_cap(i))) levels.push_back(model.meets_cap(i));
  }
  for (auto first = levels.begin(), last = levels.end(); first != last;) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last);
    const Level level = *middle;
    Sum excess = decided;
    model.add_folded(excess, level);
    for (const std::size_t i : undecided) excess.add(model.at(i, level));
    if (excess.value() <= 0)
      below = level, any_below = true, first = middle + 1;
    else
      above = level, any_above = true, last = middle;

    std::size_t kept = 0;
    for (const std::size_t i : undecided)
      if (!decide(i)) undecided[kept++] = i;
    undecided.resize(kept);
  }
  return place;
}

}  // namespace attention_balancer::detail
