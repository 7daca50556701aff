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
#include "attention_balancer/allocate/detail/box.hpp"
#include "attention_balancer/allocate/detail/common_bounds.hpp"
#include "attention_balancer/allocate/detail/proportion.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

template <Scalar T>
void proportional(std::span<const T> saliency, std::span<T> shares) {
  check_size("shares", shares.size(), "saliency", saliency.size());
  if (saliency.empty()) fail<BudgetError>("number of items", Index(0), "be at least 1 to share a budget");
  const T* const w = saliency.data();
  const auto weight = [w](std::size_t i) { return static_cast<double>(w[i]); };
  if (const Total all = total_of(saliency.size(), weight); all.good && is_plain(all.sum))
    return divide_by(all.sum, shares, weight);
  const double largest = largest_weight(saliency);
  if (largest == 0) {
    std::fill(shares.begin(), shares.end(), static_cast<T>(1.0 / static_cast<double>(shares.size())));
    return;
  }
  const double scale = unit_scale(largest);
  Sum sums[4];  // in turn, because each addition waits for the one before
  for (std::size_t i = 0; i < saliency.size(); ++i) sums[i % 4].add(static_cast<double>(saliency[i]) * scale);
  for (std::size_t k = 1; k < 4; ++k) sums[0].add(sums[k].value());
  const double total = sums[0].value();
  for (std::size_t i = 0; i < shares.size(); ++i)
    shares[i] = static_cast<T>(static_cast<double>(saliency[i]) * scale / total + 0.0);  // -0 becomes 0
}

/// clip(nu * w^power, floor, cap); power in [0, inf].
template <Scalar T>
void share_within(const Box<T>& box, double power, std::span<const T> saliency, std::span<T> shares) {
  check_size("shares", shares.size(), "saliency", saliency.size());
  power = std::min(power, 1e300);  // an infinite one is all for the largest, but no number times it
  if (share_commonly(box, power, saliency, shares)) return;
  const double largest = largest_weight(saliency);
  const std::size_t m = check_box(box, saliency.size());
  const double log_largest = power != 1 && largest > 0 ? std::log2(largest) : 0;

  std::vector<FillItem> weighted, zero;  // the eligible items with and without weight, in order
  weighted.reserve(m);
  Sum weighted_caps, zero_floors;
  for (std::size_t i = 0; i < saliency.size(); ++i) {
    if (!box.eligible[i]) continue;
    const double w = static_cast<double>(saliency[i]), low = static_cast<double>(box.floor[i]),
                 high = box.cap_of(i);
    if (!(w > 0)) {
      zero.push_back({1.0, low, high, low, 0}), zero_floors.add(low);
      continue;
    }
    weighted_caps.add(high);
    if (power == 1 || power == 0.5) {
      weighted.push_back({power == 1 ? w : std::sqrt(w), low, high, low, 0});
    } else {  // with an exponent of its own: a power leaves the range of double
      const double exponent = power * (std::log2(w) - log_largest), whole = std::floor(exponent);
      weighted.push_back({std::exp2(exponent - whole), low, high, low, whole});
    }
  }

  // Items of weight zero rise above their floors only when those with weight cannot take more: the limit of giving
  // them all the same vanishing weight.
  const double for_weighted = 1.0 - zero_floors.value();
  if (weighted_caps.value() >= for_weighted) {
    water_fill(std::span<FillItem>(weighted), for_weighted);
  } else {
    for (auto& item : weighted) item.share = item.cap;
    water_fill(std::span<FillItem>(zero), 1.0 - weighted_caps.value());
  }
  auto next_weighted = weighted.begin(), next_zero = zero.begin();
  write_shares(box, m, shares,
               [&](std::size_t i) { return (saliency[i] > T(0) ? *next_weighted++ : *next_zero++).share; });
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
  template <class = void>
  void operator()(std::span<const float> saliency, std::span<float> shares) const {
    detail::proportional(saliency, shares);
  }
  template <class = void>
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
    detail::share_within<T>({"Bounded", floor, cap, eligible}, 1, saliency, shares);
  }

  /// Throws ShapeError unless bounds and mask of one entry per item have n.
  void check_items(std::size_t n) const { detail::check_box_size<T>({"Bounded", floor, cap, eligible}, n); }

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

/// share_i = clip(nu * w_i^(1 / temperature), floor_i, cap_i): softmax(log w / temperature) within bounds. Above 1
/// it levels the weights, below 1 it sharpens them, at 1 it is Bounded; a temperature of infinity is the same for
/// every item with weight. Weight zero stays zero at any temperature.
///
/// Everything else as for Bounded. Throws InputError also unless temperature > 0.
template <Scalar T>
struct Tempered {
  using value_type = T;

  T temperature = T(1);
  Bound<T> floor = T(0);
  Bound<T> cap = T(1);
  Eligible eligible = {};

  void operator()(std::span<const T> saliency, std::span<T> shares) const {
    validate();
    detail::share_within<T>({"Tempered", floor, cap, eligible}, 1.0 / static_cast<double>(temperature), saliency,
                            shares);
  }

  /// Throws InputError unless temperature > 0.
  void validate() const {
    if (!(temperature > T(0)))
      detail::fail<InputError>("Tempered temperature", detail::number(temperature), "be above 0");
  }

  /// Throws ShapeError unless bounds and mask of one entry per item have n.
  void check_items(std::size_t n) const { detail::check_box_size<T>({"Tempered", floor, cap, eligible}, n); }

  /// The limits of item i; {0, 0, false} if it is masked.
  Limits<T> limits(Index item) const { return Bounded<T>{floor, cap, eligible}.limits(item); }
};

template <class... Ns>
Tempered(Ns...) -> Tempered<detail::common_scalar<Ns...>>;

/// Alpha-fairness (Mo and Walrand 2000): the shares within floor and cap with the largest sum of
/// w_i * share_i^(1 - alpha) / (1 - alpha), that is clip(nu * w_i^(1 / alpha), floor_i, cap_i). alpha = 1 is
/// proportional fairness, sum w_i log share_i, and the same as Bounded; alpha = infinity is max-min fairness, equal
/// shares to all with weight. Max-min fairness that is weighted, share_i / w_i as equal as the bounds let them, is
/// Bounded.
///
/// Everything else as for Bounded. Throws InputError also unless alpha > 0.
template <Scalar T>
struct AlphaFair {
  using value_type = T;

  T alpha = T(1);
  Bound<T> floor = T(0);
  Bound<T> cap = T(1);
  Eligible eligible = {};

  void operator()(std::span<const T> saliency, std::span<T> shares) const {
    validate();
    detail::share_within<T>({"AlphaFair", floor, cap, eligible}, 1.0 / static_cast<double>(alpha), saliency,
                            shares);
  }

  /// Throws InputError unless alpha > 0.
  void validate() const {
    if (!(alpha > T(0))) detail::fail<InputError>("AlphaFair alpha", detail::number(alpha), "be above 0");
  }

  /// Throws ShapeError unless bounds and mask of one entry per item have n.
  void check_items(std::size_t n) const { detail::check_box_size<T>({"AlphaFair", floor, cap, eligible}, n); }

  /// The limits of item i; {0, 0, false} if it is masked.
  Limits<T> limits(Index item) const { return Bounded<T>{floor, cap, eligible}.limits(item); }
};

template <class... Ns>
AlphaFair(Ns...) -> AlphaFair<detail::common_scalar<Ns...>>;

}  // namespace allocate
}  // namespace attention_balancer
