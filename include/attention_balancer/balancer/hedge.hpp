#pragma once
// Exponential weights on losses.

#include <cmath>
#include <cstddef>
#include <span>
#include <string>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/balancer/detail/log_state.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::feedback {

/// r <- r * exp(-eta * loss) / Z (Freund and Schapire 1997; the constants are those of Cesa-Bianchi and Lugosi
/// 2006, theorem 2.2). The signal is losses in [0, 1], one per item: what a unit of share would have lost there.
///
///     feedback::Hedge<float>{.horizon = 1000}
///
/// The state starts uniform, as a ResourceBalancer does. For any losses whatever, chosen by an adversary who sees
/// the shares, what is lost in T cycles, sum_t <r_t, loss_t>, then exceeds the loss of the best single item by at
/// most log n / eta + eta T / 8. `horizon` says for how many cycles T that shall be least: eta = sqrt(8 log n / T),
/// and the bound is sqrt(T log n / 2). Or `eta` is given itself.
///
/// It looks for the best item and not for a division: with losses that do not depend on the shares it is
/// winner-take-all, as Plain is. To divide a budget let the loss grow with the share, such as r / (r + w) for
/// demands w: it settles where all losses are equal, here at w.
template <Scalar T>
struct Hedge {
  using value_type = T;

  Index horizon = 1000;  ///< number of cycles, at least 1; ignored if eta is given
  T eta = T(0);          ///< learning rate, finite and not negative; 0: from the horizon

  /// Throws InputError if a parameter is out of range.
  void validate() const {
    if (!(eta >= T(0)) || !std::isfinite(eta))
      detail::fail<InputError>("Hedge eta", detail::number(eta), "be finite and not negative");
    if (horizon < 1) detail::fail<InputError>("Hedge horizon", horizon, "be at least 1");
  }

  /// The learning rate for n items.
  double rate(Index n) const {
    if (eta > T(0)) return static_cast<double>(eta);
    return n > 1 ? std::sqrt(8 * std::log(static_cast<double>(n)) / static_cast<double>(horizon)) : 0;
  }

  /// What `cycles` cycles (default: the horizon) with n items lose at most beyond the best item.
  double regret_bound(Index n, Index cycles = 0) const {
    const double t = static_cast<double>(cycles > 0 ? cycles : horizon), step = rate(n);
    return step > 0 ? std::log(static_cast<double>(n)) / step + step * t / 8 : 0;
  }

  /// One cycle. Throws InputError naming the item if a loss is not in [0, 1], ShapeError if the sizes differ; then
  /// the state has not been changed.
  void operator()(std::span<float> log_state, std::span<const float> losses) const { apply(log_state, losses); }
  void operator()(std::span<double> log_state, std::span<const double> losses) const { apply(log_state, losses); }

 private:
  template <Scalar S>
  void apply(std::span<S> log_state, std::span<const S> losses) const {
    validate();
    detail::check_size("signal", losses.size(), "the state", log_state.size());
    for (std::size_t i = 0; i < losses.size(); ++i)
      if (!(losses[i] >= S(0) && losses[i] <= S(1)))
        detail::fail<InputError>(detail::item_of("loss", i), detail::number(losses[i]), "be in [0, 1]");
    const double step = rate(static_cast<Index>(log_state.size()));
    for (std::size_t i = 0; i < losses.size(); ++i)
      log_state[i] = static_cast<S>(static_cast<double>(log_state[i]) - step * static_cast<double>(losses[i]));
    detail::normalise_log(log_state);
  }
};

Hedge()->Hedge<double>;
template <class H>
Hedge(H) -> Hedge<double>;
template <class H, class E>
Hedge(H, E) -> Hedge<detail::common_scalar<E>>;

}  // namespace attention_balancer::feedback
