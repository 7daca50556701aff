#pragma once
// Shares by distance: the Euclidean projection onto the bounds, and the sparse relatives of softmax.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/shift_filling.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/allocate/shares.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

template <Scalar T>
void check_finite(std::string_view what, std::span<const T> values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i])) fail<InputError>(item_of(what, i), number(values[i]), "be finite");
}

/// clip(w + nu, floor, cap).
template <Scalar T>
void project_onto(const Box<T>& box, std::span<const T> values, std::span<T> shares) {
  check_size("shares", shares.size(), "saliency", values.size());
  const std::size_t m = check_box(box, values.size());
  std::vector<ShiftItem> items;
  items.reserve(m);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (box.eligible[i]) {
      const double low = static_cast<double>(box.floor[i]);
      items.push_back({static_cast<double>(values[i]), low, box.cap_of(i), low});
    }
  shift_fill(std::span<ShiftItem>(items), 1.0);
  auto next = items.begin();
  write_shares(box, m, shares, [&](std::size_t) { return (next++)->share; });
}

/// (1 + x)^power for x > -1; where alpha is near 1 the power is large and x small, and no digit of it may be lost.
inline double entmax_power(double x, double power) noexcept {
  return power == 1 ? 1 + x : power == 2 ? (1 + x) * (1 + x) : std::exp(power * std::log1p(x));
}

/// Sets every value, at most 0 and one of them 0, to (1 + value - tau)_+^power, with the tau at which they add up
/// to 1, and returns their sum. Newton's method from below: for power >= 1 the sum is convex in tau and is met from
/// one side, so that who is out is out for ever; otherwise, or where it does not stay within, the bracket is
/// halved.
template <class = void>
double solve_entmax(std::span<double> values, double power) {
  std::vector<double> alive;
  for (const double x : values)
    if (x > -1) alive.push_back(x);
  // The largest alone has at least 1 at 0; all together have at most 1 where each would have 1 / n.
  double low = 0, high = -std::expm1(-std::log(static_cast<double>(alive.size())) / power), tau = low;
  for (int step = 0; step < 200; ++step) {
    Sum sum, slope;
    std::size_t kept = 0;
    for (const double x : alive) {
      const double d = 1 + (x - tau);
      if (d > 0 || power < 1) alive[kept++] = x;
      if (!(d > 0)) continue;
      const double p = entmax_power(x - tau, power);
      sum.add(p);
      slope.add(power == 1 ? 1 : power * (p / d));
    }
    const double excess = sum.value() - 1;
    if (std::abs(excess) <= 4e-16) break;
    if (excess > 0) alive.resize(kept);
    (excess > 0 ? low : high) = tau;
    double next = tau + excess / slope.value();
    if (!(next > low && next < high)) {
      if (next == tau) break;
      next = low + (high - low) / 2;
      if (!(next > low && next < high)) break;
    }
    tau = next;
  }
  Sum total;
  for (double& x : values) {
    x = x - tau > -1 ? entmax_power(x - tau, power) : 0;
    total.add(x);
  }
  return total.value();
}

/// The shares of logits, of which one is finite at least: (alpha - 1) (z - max z) goes in.
template <Scalar T, class Logit>
void entmax_shares(const char* name, const allocate::Eligible& eligible, double alpha, std::span<T> shares,
                   const Logit& logit) {
  const allocate::Bound<T> floor(0), cap(1);
  const Box<T> box{name, floor, cap, eligible};
  const std::size_t n = shares.size(), m = check_box(box, n);
  std::vector<double> values;
  values.reserve(m);
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < n; ++i)
    if (eligible[i]) values.push_back(logit(i)), largest = std::max(largest, values.back());
  double sum = 0;
  if (largest == -std::numeric_limits<double>::infinity()) {  // no evidence: uniform
    std::fill(values.begin(), values.end(), 1.0);
    sum = static_cast<double>(m);
  } else if (alpha == 1) {
    Sum total;
    for (double& x : values) total.add(x = std::exp(x - largest));
    sum = total.value();
  } else {
    for (double& x : values) x = (alpha - 1) * (x - largest);
    sum = solve_entmax(std::span<double>(values), 1 / (alpha - 1));
  }
  auto next = values.begin();
  write_shares(box, m, shares, [&](std::size_t) { return *next++ / sum; });
}

template <Scalar T>
void entmax_of_weights(const char* name, const allocate::Eligible& eligible, double alpha,
                       std::span<const T> saliency, std::span<T> shares) {
  check_size("shares", shares.size(), "saliency", saliency.size());
  static_cast<void>(largest_weight(saliency));
  entmax_shares(name, eligible, alpha, shares,
                [&](std::size_t i) { return std::log(static_cast<double>(saliency[i])); });
}

template <Scalar T>
void entmax_of_logits(const char* name, const allocate::Eligible& eligible, double alpha, std::span<const T> logits,
                      std::span<T> shares) {
  check_size("shares", shares.size(), "logits", logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (!(logits[i] < std::numeric_limits<T>::infinity()))
      fail<InputError>(item_of("logit", i), number(logits[i]), "be a number below infinity");
  entmax_shares(name, eligible, alpha, shares, [&](std::size_t i) { return static_cast<double>(logits[i]); });
}

/// Limits without bounds of any scalar: what an allocation that is no template tells a balancer.
struct UnboundedLimits {
  bool eligible = true;

  template <Scalar T>
  operator allocate::Limits<T>() const noexcept {
    return {T(0), T(eligible ? 1 : 0), eligible};
  }
};

/// Throws ShapeError unless a mask has n entries.
template <class = void>
void check_mask_size(const char* name, const allocate::Eligible& eligible, std::size_t n) {
  if (eligible.given()) check_size(std::string(name) + " eligible", eligible.size(), "saliency", n);
}

/// Entmax of a fixed alpha: alpha = 1 + 1 / power.
template <class Policy>
struct FixedEntmax {
  /// [n] Shares of non-negative weights, whose logarithms are the logits.
  void operator()(std::span<const float> saliency, std::span<float> shares) const {
    entmax_of_weights(Policy::name, self().eligible, Policy::alpha, saliency, shares);
  }
  void operator()(std::span<const double> saliency, std::span<double> shares) const {
    entmax_of_weights(Policy::name, self().eligible, Policy::alpha, saliency, shares);
  }

  /// [n] Shares of logits: any number below infinity; -infinity gets nothing.
  void of_logits(std::span<const float> logits, std::span<float> shares) const {
    entmax_of_logits(Policy::name, self().eligible, Policy::alpha, logits, shares);
  }
  void of_logits(std::span<const double> logits, std::span<double> shares) const {
    entmax_of_logits(Policy::name, self().eligible, Policy::alpha, logits, shares);
  }

  /// Throws ShapeError unless a mask has n entries.
  void check_items(std::size_t n) const { check_mask_size(Policy::name, self().eligible, n); }

  /// The limits of item i: none, but for the mask.
  UnboundedLimits limits(Index item) const { return {self().eligible[static_cast<std::size_t>(item)]}; }

 private:
  const Policy& self() const noexcept { return static_cast<const Policy&>(*this); }
};

}  // namespace detail

namespace allocate {

/// share_i = clip(w_i + nu, floor_i, cap_i) with the nu at which they add up to 1: the point within the bounds that
/// is nearest to the weights (1503.01002), and sparsemax (1602.02068) of them where only floor 0 binds. Differences
/// count, not ratios: adding a constant to every weight changes nothing, doubling them does. Weights that already
/// add up to 1 within the bounds are returned as they are; weight zero is a value like the others.
///
/// Bounds, masks and post-condition as for Bounded; order-preserving under common bounds, 1-Lipschitz in the
/// Euclidean norm. O(n log n). Throws as Bounded does.
template <Scalar T>
struct Euclidean {
  using value_type = T;

  Bound<T> floor = T(0);
  Bound<T> cap = T(1);
  Eligible eligible = {};

  void operator()(std::span<const T> saliency, std::span<T> shares) const {
    static_cast<void>(detail::largest_weight(saliency));
    project(saliency, shares);
  }

  /// The same of any finite numbers, negative ones too: the projection itself.
  void project(std::span<const T> values, std::span<T> shares) const {
    detail::check_finite("value", values);
    detail::project_onto<T>({"Euclidean", floor, cap, eligible}, values, shares);
  }

  /// Throws ShapeError unless bounds and mask of one entry per item have n.
  void check_items(std::size_t n) const { detail::check_box_size<T>({"Euclidean", floor, cap, eligible}, n); }

  /// The limits of item i; {0, 0, false} if it is masked.
  Limits<T> limits(Index item) const { return Bounded<T>{floor, cap, eligible}.limits(item); }
};

template <class... Ns>
Euclidean(Ns...) -> Euclidean<detail::common_scalar<Ns...>>;

/// Sparsemax (1602.02068) of the logarithms of the weights, as softmax of them is Proportional: the point of the
/// simplex nearest to log w. Only ratios of weights count; whoever is below the largest by a factor of e or more
/// gets nothing, and weight zero always does, unless all are zero: then all eligible are equal. `of_logits` takes
/// scores instead. |sum - 1| <= n * epsilon. O(n) as a rule, a few passes. Throws as Proportional does, BudgetError
/// also if no item is eligible.
struct Sparsemax : detail::FixedEntmax<Sparsemax> {
  static constexpr const char* name = "Sparsemax";
  static constexpr double alpha = 2;

  Sparsemax(Eligible mask = {}) noexcept : eligible(mask) {}

  Eligible eligible;
};

/// 1.5-entmax (1905.05702) of the logarithms of the weights: between softmax and sparsemax; whoever is below the
/// largest by a factor of e^2 or more gets nothing. Everything else as for Sparsemax.
struct Entmax15 : detail::FixedEntmax<Entmax15> {
  static constexpr const char* name = "Entmax15";
  static constexpr double alpha = 1.5;

  Entmax15(Eligible mask = {}) noexcept : eligible(mask) {}

  Eligible eligible;
};

/// alpha-entmax (1905.05702) of the logarithms of the weights z = log w: share_i = [(alpha - 1) z_i - tau]_+ ^
/// (1 / (alpha - 1)) with the tau at which they add up to 1. alpha = 1 is Proportional, 2 is Sparsemax. Everything
/// else as for Sparsemax. Throws InputError also unless alpha is finite and at least 1.
template <Scalar T>
struct Entmax {
  using value_type = T;

  T alpha = T(1.5);
  Eligible eligible = {};

  void operator()(std::span<const T> saliency, std::span<T> shares) const {
    validate();
    detail::entmax_of_weights("Entmax", eligible, static_cast<double>(alpha), saliency, shares);
  }

  /// The same of logits: any number below infinity; -infinity gets nothing.
  void of_logits(std::span<const T> logits, std::span<T> shares) const {
    validate();
    detail::entmax_of_logits("Entmax", eligible, static_cast<double>(alpha), logits, shares);
  }

  /// Throws InputError unless alpha is finite and at least 1.
  void validate() const {
    if (!(alpha >= T(1)) || !std::isfinite(alpha))
      detail::fail<InputError>("Entmax alpha", detail::number(alpha), "be finite and at least 1");
  }

  /// Throws ShapeError unless a mask has n entries.
  void check_items(std::size_t n) const { detail::check_mask_size("Entmax", eligible, n); }

  /// The limits of item i: none, but for the mask.
  Limits<T> limits(Index item) const { return detail::UnboundedLimits{eligible[static_cast<std::size_t>(item)]}; }
};

template <class... Ns>
Entmax(Ns...) -> Entmax<detail::common_scalar<Ns...>>;

}  // namespace allocate
}  // namespace attention_balancer
