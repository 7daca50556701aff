#pragma once
// Balancing by the sign of the load alone.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/balancer/detail/log_state.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::feedback {

/// b_i += step * sign(mean load - load_i): auxiliary-loss-free balancing (arXiv 2408.15664, algorithm 1, with the
/// sign of the error). The signal is loads, finite and non-negative: what each item had to carry in the last cycle.
/// The state is the bias b, up to a constant that all items share and that no choice depends on.
///
///     feedback::BiasBalancing<float>{.step = 0.01f}
///
/// Add the state to the scores to choose who works, and weight by the scores alone: execute::route does both. Or
/// let it be a ResourceBalancer's state: then the shares are exp(b) normalised, and an item that carries too much
/// loses share by the factor exp(-step) a cycle. Only the sign is looked at, so that one wild load does no more
/// than a small one; the price is a ripple of `step` around the balance, and a distance d takes d / step cycles.
///
/// Loads within 1e-12 of the mean count as balanced. `step` is finite and above 0, otherwise InputError; so is a
/// state that is too large for the step to change it.
template <Scalar T>
struct BiasBalancing {
  using value_type = T;

  T step = T(0.01);

  /// Throws InputError if the step is out of range.
  void validate() const {
    if (!(step > T(0)) || !std::isfinite(step))
      detail::fail<InputError>("BiasBalancing step", detail::number(step), "be finite and above 0");
  }

  /// One cycle. Throws InputError naming the item if a load is NaN, infinite or negative, or if the step is lost
  /// beside its state; ShapeError if the sizes differ. Then the state has not been changed.
  void operator()(std::span<float> log_state, std::span<const float> loads) const { apply(log_state, loads); }
  void operator()(std::span<double> log_state, std::span<const double> loads) const { apply(log_state, loads); }

 private:
  template <Scalar S>
  void apply(std::span<S> log_state, std::span<const S> loads) const {
    validate();
    detail::check_size("signal", loads.size(), "the state", log_state.size());
    double largest = 0;
    for (std::size_t i = 0; i < loads.size(); ++i) {
      if (!(loads[i] >= S(0)) || !std::isfinite(loads[i]))
        detail::fail<InputError>(detail::item_of("load", i), detail::number(loads[i]),
                                 "be finite and not negative");
      largest = std::max(largest, static_cast<double>(loads[i]));
      const S with_step = static_cast<S>(static_cast<double>(log_state[i]) + static_cast<double>(step));
      if (with_step == log_state[i] && std::isfinite(log_state[i]))
        detail::fail<InputError>("BiasBalancing step", detail::number(step),
                                 "be large enough to change the state of item " + std::to_string(i) + ", " +
                                     detail::number(log_state[i]));
    }
    if (largest == 0) return;  // all alike
    const double scale = detail::unit_scale(largest);
    detail::Sum sum;
    for (const S load : loads) sum.add(static_cast<double>(load) * scale);
    const double mean = sum.value() / static_cast<double>(loads.size());
    for (std::size_t i = 0; i < loads.size(); ++i) {
      const double excess = static_cast<double>(loads[i]) * scale - mean;
      if (std::abs(excess) <= 1e-12 * mean) continue;
      const double change = excess > 0 ? -static_cast<double>(step) : static_cast<double>(step);
      log_state[i] = static_cast<S>(static_cast<double>(log_state[i]) + change);
    }
    detail::normalise_log(log_state);
  }
};

BiasBalancing()->BiasBalancing<double>;
template <class U>
BiasBalancing(U) -> BiasBalancing<detail::common_scalar<U>>;

}  // namespace attention_balancer::feedback
