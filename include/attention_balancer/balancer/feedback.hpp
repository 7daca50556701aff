#pragma once
// How a signal changes the state. The state is the logarithm of a distribution: it never underflows in use, and a
// product of many cycles is a sum.
//
// What a feedback is, and the three that take weights: Leaky, the default, Ema and Plain. FixedShare wraps another,
// Hedge takes losses and BiasBalancing loads; each has a header of its own.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/balancer/detail/log_state.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace feedback {

/// A feedback: `policy(log_state, signal)` changes the state in place; the two have the same size. It may leave the
/// state unnormalised, but not NaN, +infinite, or -infinite everywhere. It may throw: the balancer then keeps the
/// state it had.
template <class Policy, class T>
concept Feedback = Scalar<T> && requires(const Policy& policy, std::span<T> log_state, std::span<const T> signal) {
  policy(log_state, signal);
};

}  // namespace feedback

namespace feedback {

/// log r <- (1 - rate) log r + rate * gain * log w, then normalised: a leaky memory in the log domain. The signal
/// is non-negative weights w of any scale; only their ratios matter.
///
/// For weights that do not depend on r every cycle shrinks the distance to the fixed point, which is w^gain
/// normalised, by exactly 1 - rate in the oscillation (Hilbert) seminorm. When the shares steer the attention
/// themselves (log_shares() as score::KeyBias) the weights contain r: the factor is then 1 - rate * (1 - gain), so
/// the gain must be below 1; 0.5 settles at the weights that the inputs have by themselves, down to 1e-3 of the
/// largest, where the least weight below takes over.
///
/// w is first raised to 1e-6 of its largest, and so is r where it is zero: zero is not for ever. All-zero weights
/// count as equal. `rate` lies in (0, 1], `gain` is finite and above 0; otherwise InputError.
template <Scalar T>
struct Leaky {
  using value_type = T;

  T rate = T(0.5);
  T gain = T(1);

  /// The least weight, as a fraction of the largest.
  static constexpr double least = 1e-6;

  /// Throws InputError if a parameter is out of range.
  void validate() const {
    if (!(rate > T(0) && rate <= T(1)))
      detail::fail<InputError>("Leaky rate", detail::number(rate), "be in (0, 1]");
    if (!(gain > T(0)) || !std::isfinite(gain))
      detail::fail<InputError>("Leaky gain", detail::number(gain), "be finite and above 0");
  }

  /// One cycle. Throws InputError naming the item if a weight is NaN, infinite or negative, ShapeError if the sizes
  /// differ; then the state has not been changed.
  void operator()(std::span<float> log_state, std::span<const float> weights) const { apply(log_state, weights); }
  void operator()(std::span<double> log_state, std::span<const double> weights) const { apply(log_state, weights); }

 private:
  template <Scalar S>
  void apply(std::span<S> log_state, std::span<const S> weights) const {
    validate();
    const double keep = 1.0 - static_cast<double>(rate);
    const double step = static_cast<double>(rate) * static_cast<double>(gain);
    const double log_least = std::log(least);
    double largest = detail::minus_infinity;
    for (const S x : log_state) largest = std::max(largest, static_cast<double>(x));
    if (largest == detail::minus_infinity) largest = 0;  // nothing alive: every item starts anew
    detail::for_each_log_weight(weights, log_state.size(), [&](std::size_t i, double log_weight) {
      double log_r = static_cast<double>(log_state[i]);
      if (log_r == detail::minus_infinity) log_r = largest + log_least;
      log_state[i] = static_cast<S>(keep * log_r + step * std::max(log_weight, log_least));
    });
    detail::normalise_log(log_state);
  }
};

Leaky()->Leaky<double>;
template <class R>
Leaky(R) -> Leaky<detail::common_scalar<R>>;
template <class R, class G>
Leaky(R, G) -> Leaky<detail::common_scalar<R, G>>;

/// r <- (1 - rate) r + rate * w / sum w: the exponential moving average of the normalised weights, in the linear
/// domain. The signal is non-negative weights w of any scale; only their ratios matter, and all-zero weights count
/// as equal.
///
/// Two states under the same signals approach by exactly 1 - rate a cycle, in every norm; the fixed point of
/// constant weights is w / sum w. It averages where Leaky takes the geometric mean: one large outlier moves it
/// more, a weight of zero less, and after T cycles of weight zero a share is (1 - rate)^T of what it was, but back
/// to rate * w / sum w in one. The state is kept as a logarithm, so that it does not underflow in between. `rate`
/// lies in (0, 1]; otherwise InputError. At rate 1 nothing is remembered, and what has weight zero is at zero until
/// it has weight again.
template <Scalar T>
struct Ema {
  using value_type = T;

  T rate = T(0.5);

  /// Throws InputError if the rate is out of range.
  void validate() const {
    if (!(rate > T(0) && rate <= T(1))) detail::fail<InputError>("Ema rate", detail::number(rate), "be in (0, 1]");
  }

  /// One cycle. Throws InputError naming the item if a weight is NaN, infinite or negative, ShapeError if the sizes
  /// differ; then the state has not been changed.
  void operator()(std::span<float> log_state, std::span<const float> weights) const { apply(log_state, weights); }
  void operator()(std::span<double> log_state, std::span<const double> weights) const { apply(log_state, weights); }

 private:
  template <Scalar S>
  void apply(std::span<S> log_state, std::span<const S> weights) const {
    validate();
    detail::check_size("signal", weights.size(), "the state", log_state.size());
    const double largest = detail::largest_weight(weights);
    detail::Sum sum;  // of the weights, relative to the largest
    for (const S w : weights) sum.add(largest > 0 ? static_cast<double>(w) / largest : 1.0);
    const double log_all = detail::log_sum_exp(std::span<const S>(log_state));
    const double log_keep = log_all == detail::minus_infinity ? detail::minus_infinity  // nothing to remember
                                                              : std::log1p(-static_cast<double>(rate)) - log_all;
    const double log_step = std::log(static_cast<double>(rate)) - std::log(sum.value());
    detail::for_each_log_weight(weights, log_state.size(), [&](std::size_t i, double log_weight) {
      // At rate 1 log_keep is -inf, and so may the state be; but +inf it is not, so that no sum is NaN.
      log_state[i] =
          static_cast<S>(detail::log_add_exp(log_keep + static_cast<double>(log_state[i]), log_step + log_weight));
    });
    detail::normalise_log(log_state);
  }
};

Ema()->Ema<double>;
template <class R>
Ema(R) -> Ema<detail::common_scalar<R>>;

/// r <- r * w / Z: the plain rule, and Hedge with w = exp(-eta * loss). Winner-take-all: after T cycles r is
/// proportional to the product of all w (weights .30, .28, .22, .20 give .999, .001, 0, 0 at T = 100), and zero is
/// absorbing: an item whose weight was 0 once stays at 0 (its log state at -inf) for ever.
///
/// All-zero weights count as equal and change nothing. If no item that is still alive has weight, there is nothing
/// left to normalise: InputError, and the balancer keeps its state.
template <Scalar T>
struct Plain {
  using value_type = T;

  /// One cycle. Throws InputError naming the item if a weight is NaN, infinite or negative, ShapeError if the sizes
  /// differ.
  void operator()(std::span<float> log_state, std::span<const float> weights) const { apply(log_state, weights); }
  void operator()(std::span<double> log_state, std::span<const double> weights) const { apply(log_state, weights); }

 private:
  template <Scalar S>
  static void apply(std::span<S> log_state, std::span<const S> weights) {
    detail::check_size("signal", weights.size(), "the state", log_state.size());
    const bool all_zero = detail::largest_weight(weights) == 0;
    bool alive = false;  // seen before anything is written
    for (std::size_t i = 0; i < weights.size() && !alive; ++i)
      alive = (all_zero || weights[i] > S(0)) && static_cast<double>(log_state[i]) > detail::minus_infinity;
    if (!alive) detail::nothing_alive();
    detail::for_each_log_weight(weights, log_state.size(), [&](std::size_t i, double log_weight) {
      log_state[i] = static_cast<S>(static_cast<double>(log_state[i]) + log_weight);
    });
    detail::normalise_log(log_state);
  }
};

Plain()->Plain<double>;

}  // namespace feedback
}  // namespace attention_balancer
