#pragma once
// The engine behind Euclidean shares: x_i = clip(w_i + nu, floor_i, cap_i) with the nu at which they add up. That
// is the projection onto the capped simplex (1503.01002), sparsemax, and continuous bits.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "attention_balancer/allocate/detail/crossing.hpp"

namespace attention_balancer::detail {

/// One item of shift_fill: any finite weight, floor <= cap, both finite; `share` is the result.
struct ShiftItem {
  double weight = 0, floor = 0, cap = 0, share = 0;
};

/// A difference of two doubles, exactly: beside a weight of 1e30 a share of 1 is not lost.
struct Shift {
  double high = 0, low = 0;

  static Shift difference(double a, double b) noexcept {
    const double d = a - b, of_b = a - d, of_a = d + of_b;
    return {d, (a - of_a) + (of_b - b)};
  }
  friend bool operator<(Shift a, Shift b) noexcept { return a.high != b.high ? a.high < b.high : a.low < b.low; }
  /// w + nu, right to the last bit or so where the two nearly cancel.
  friend double operator+(double w, Shift nu) noexcept { return (w + nu.high) + nu.low; }
};

/// The places of shift_fill.
class ShiftModel {
 public:
  using Level = Shift;
  static constexpr bool folds = true;

  explicit ShiftModel(std::span<const ShiftItem> items) : items_(items) {}

  double floor(std::size_t i) const noexcept { return items_[i].floor; }
  double cap(std::size_t i) const noexcept { return items_[i].cap; }
  Shift leaves_floor(std::size_t i) const noexcept { return Shift::difference(items_[i].floor, items_[i].weight); }
  Shift meets_cap(std::size_t i) const noexcept { return Shift::difference(items_[i].cap, items_[i].weight); }
  double at(std::size_t i, Shift nu) const noexcept {
    return std::clamp(items_[i].weight + nu, items_[i].floor, items_[i].cap);
  }
  /// As differences from one of them: these are small, so that nothing is lost even if the weights are huge.
  void fold(std::size_t i) noexcept {
    if (count_ == 0) pivot_ = items_[i].weight;
    differences_.add(items_[i].weight - pivot_);
    count_ += 1;
  }
  void add_folded(Sum& sum, Shift nu) const noexcept {
    if (count_ > 0) sum.add(differences_.value()), sum.add(count_ * (pivot_ + nu));
  }

  template <class = void>
  Narrowed narrow(double budget) const noexcept {
    const double n = static_cast<double>(items_.size());
    double sum = 0;
    for (const auto& item : items_) sum += item.weight;
    return narrowed((budget - sum) / n, [&](double nu) {
      double total = 0, sizes = 0, slope = 0;
      for (const auto& item : items_) {
        const double x = item.weight + nu, clipped = std::min(std::max(x, item.floor), item.cap);
        total += clipped;
        sizes += std::abs(clipped);
        slope += x == clipped ? 1.0 : 0.0;
      }
      return FillEstimate{total - budget, slope, (n + 4) * 0x1p-53 * (sizes + std::abs(budget))};
    });
  }

 private:
  std::span<const ShiftItem> items_;
  double pivot_ = 0, count_ = 0;
  Sum differences_;
};

/// Sets every share to clip(weight + nu, floor, cap), the shares adding up to `budget`. A budget outside
/// [sum of floors, sum of caps] gives all floors or all caps: the caller judges feasibility. O(n).
template <class = void>
void shift_fill(std::span<ShiftItem> items, double budget) {
  ShiftModel model(items);
  const auto place = places_at(model, items.size(), budget);

  // Whoever is held by a bound is there, and the others share what remains, as a shift of their mean.
  Sum remaining, differences;
  remaining.add(budget);
  double count = 0, pivot = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    auto& item = items[i];
    if (place[i] == FillPlace::free) {
      if (count == 0) pivot = item.weight;
      differences.add(item.weight - pivot);
      count += 1;
    } else {
      item.share = place[i] == FillPlace::cap ? item.cap : item.floor;
      remaining.add(-item.share);
    }
  }
  if (count == 0) return;
  const double shift = (remaining.value() - differences.value()) / count;
  for (std::size_t i = 0; i < items.size(); ++i)
    if (place[i] == FillPlace::free)
      items[i].share = std::clamp((items[i].weight - pivot) + shift, items[i].floor, items[i].cap);
}

}  // namespace attention_balancer::detail
