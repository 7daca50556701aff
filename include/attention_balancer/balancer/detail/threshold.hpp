#pragma once
// The value at which something changes, found by trying.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>

#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// The value nearest to `now` >= 0 at which `changed(value)` holds, to within a millionth and on the side where it
/// does, if it changes once on that side; larger values are tried before smaller ones, 0 at last. `changed` may
/// throw std::invalid_argument for values that cannot be. Empty if none is found. `scale` says how large values are
/// where `now` is 0.
template <Scalar T, class Changed>
std::optional<T> threshold(T now, T scale, const Changed& changed) {
  enum class Answer { no, yes, impossible };
  const auto ask = [&](T value) {
    try {
      return changed(value) ? Answer::yes : Answer::no;
    } catch (const std::invalid_argument&) {
      return Answer::impossible;
    }
  };
  // Between `no`, where it has not changed, and `other`, where it has or which cannot be.
  const auto bisect = [&](double no, double other, bool yes) {
    std::optional<T> found;
    if (yes) found = static_cast<T>(other);
    for (int step = 0; step < 100 && std::abs(other - no) > 1e-6 * std::max(other, no); ++step) {
      const double ratio = std::max(other, no) / std::min(other, no);  // infinite from zero
      const double middle =
          ratio > 4 && std::isfinite(ratio) ? std::sqrt(no) * std::sqrt(other) : no + (other - no) / 2;
      const T value = static_cast<T>(middle);
      if (static_cast<double>(value) == no || static_cast<double>(value) == other) break;
      const Answer answer = ask(value);
      if (answer == Answer::yes) found = value;
      (answer == Answer::no ? no : other) = static_cast<double>(value);
    }
    return found;
  };
  if (!(now >= T(0)) || !std::isfinite(now)) return {};
  // Both ways at once, in strides that double, so that what is found is the nearer.
  const double most = static_cast<double>(std::numeric_limits<T>::max());
  const double from_zero = std::max(std::ldexp(scale > T(0) ? static_cast<double>(scale) : 1, -32),
                                    std::numeric_limits<double>::denorm_min());  // doubling zero would go nowhere
  const double start = now > T(0) ? static_cast<double>(now) : from_zero;
  double no_above = static_cast<double>(now), no_below = no_above;
  bool above = true, below = now > T(0);
  for (int doublings = now > T(0) ? 1 : 0; above || below; doublings = doublings > 0 ? 2 * doublings : 1) {
    if (above) {
      const T value = static_cast<T>(std::min(std::ldexp(start, doublings), most));
      const Answer answer = ask(value);
      if (answer != Answer::no) {
        if (const auto found = bisect(no_above, static_cast<double>(value), answer == Answer::yes)) return found;
      }
      above = answer == Answer::no && static_cast<double>(value) < most;
      no_above = static_cast<double>(value);
    }
    if (below) {
      const T value = static_cast<T>(std::ldexp(start, -doublings));
      const Answer answer = ask(value);
      if (answer != Answer::no) {
        if (const auto found = bisect(no_below, static_cast<double>(value), answer == Answer::yes)) return found;
      }
      below = answer == Answer::no && value > T(0);
      no_below = static_cast<double>(value);
    }
  }
  return {};
}

}  // namespace attention_balancer::detail
