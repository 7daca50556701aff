#pragma once
// A feedback around another that keeps every item alive.

#include <cmath>
#include <span>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/balancer/detail/log_state.hpp"
#include "attention_balancer/balancer/feedback.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// A feedback of the user's need not have a value_type.
template <class Inner>
struct InnerScalar {
  using type = double;
};
template <class Inner>
requires requires { typename Inner::value_type; }
struct InnerScalar<Inner> {
  using type = typename Inner::value_type;
};

}  // namespace attention_balancer::detail

namespace attention_balancer::feedback {

/// r <- (1 - alpha) r + alpha / n after each cycle of the inner feedback (Herbster and Warmuth 1998, "Tracking the
/// best expert", in the form that mixes with the uniform distribution): every item keeps at least alpha / n of the
/// state, up to rounding, so that what another rule would let die comes back in about log(n / alpha) / log(ratio of
/// the weights) cycles. Where a least share must hold to the bit, or per item, take the floor of allocate::Bounded.
///
///     feedback::FixedShare{0.01, feedback::Plain<float>{}}
///
/// The signal is that of the inner feedback. `alpha` lies in [0, 1]; otherwise InputError. At 0 only the
/// normalisation is left of it, at 1 the state is always uniform.
template <class Inner = Plain<double>>
struct FixedShare {
  using value_type = typename detail::InnerScalar<Inner>::type;

  double alpha = 0.01;
  Inner inner = {};

  /// Throws InputError if alpha is out of range, and what the inner feedback throws.
  void validate() const {
    if (!(alpha >= 0 && alpha <= 1))
      detail::fail<InputError>("FixedShare alpha", detail::number(alpha), "be in [0, 1]");
    if constexpr (requires { inner.validate(); }) inner.validate();
  }

  /// One cycle. Throws what the inner feedback throws.
  void operator()(std::span<float> log_state, std::span<const float> signal) const requires Feedback<Inner, float> {
    apply(log_state, signal);
  }
  void operator()(std::span<double> log_state,
                  std::span<const double> signal) const requires Feedback<Inner, double> {
    apply(log_state, signal);
  }

 private:
  template <Scalar S>
  void apply(std::span<S> log_state, std::span<const S> signal) const {
    validate();
    inner(log_state, signal);
    detail::normalise_log(log_state);
    const double log_keep = alpha < 1 ? std::log1p(-alpha) : detail::minus_infinity;
    const double log_least = std::log(alpha) - std::log(static_cast<double>(log_state.size()));
    for (S& x : log_state) x = static_cast<S>(detail::log_add_exp(log_keep + static_cast<double>(x), log_least));
  }
};

FixedShare()->FixedShare<Plain<double>>;
template <class A>
FixedShare(A) -> FixedShare<Plain<detail::common_scalar<A>>>;
template <class A, class Inner>
FixedShare(A, Inner) -> FixedShare<Inner>;

}  // namespace attention_balancer::feedback
