#pragma once
// Arithmetic on the logarithm of a distribution, shared by the feedbacks.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/crossing.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

inline constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

/// log sum exp of the state; -inf if every entry is.
template <Scalar T>
double log_sum_exp(std::span<const T> log_state) {
  double largest = minus_infinity;
  for (const T x : log_state) largest = std::max(largest, static_cast<double>(x));
  if (largest == minus_infinity) return minus_infinity;
  Sum sum;  // a plain sum of a hundred thousand items is off by hundreds of epsilon, and so would be every share
  for (const T x : log_state) sum.add(std::exp(static_cast<double>(x) - largest));
  return largest + std::log(sum.value());
}

[[noreturn]] inline void nothing_alive() {
  fail<InputError>("state after the feedback", "zero for every item", "leave at least one item alive");
}

/// Subtracts log sum exp in place. Throws InputError if every entry is -inf.
template <Scalar T>
void normalise_log(std::span<T> log_state) {
  const double log_sum = log_sum_exp(std::span<const T>(log_state));
  if (log_sum == minus_infinity) nothing_alive();
  for (T& x : log_state) x = static_cast<T>(static_cast<double>(x) - log_sum);
}

/// log(e^a + e^b), where either may be -inf.
inline double log_add_exp(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return low == minus_infinity ? high : high + std::log1p(std::exp(low - high));
}

/// log w_i - log max w for every item, through `use(i, that)`; 0 for all if all weights are zero. Throws InputError
/// on a bad weight before it uses any.
template <Scalar T, class Use>
void for_each_log_weight(std::span<const T> weights, std::size_t states, const Use& use) {
  check_size("signal", weights.size(), "the state", states);
  const double largest = largest_weight(weights), log_largest = largest > 0 ? std::log(largest) : 0.0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double w = static_cast<double>(weights[i]);
    use(i, largest == 0 ? 0.0 : w > 0 ? std::log(w) - log_largest : minus_infinity);
  }
}

}  // namespace attention_balancer::detail
