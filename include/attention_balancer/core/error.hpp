#pragma once
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "attention_balancer/core/config.hpp"

namespace attention_balancer {

/// A tensor, view or vector whose shape, layout or memory does not fit. The message names the argument.
struct ShapeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A budget that cannot be met: bounds that cross or do not add up, more pins than units, a negative total.
struct BudgetError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A value that is not acceptable: NaN, infinite or negative weights, a rate outside its range.
struct InputError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// A number for a message; a fraction in so few digits that it reads back as the same: -1e-09 is not "-0.000000".
template <class Number>
std::string in_digits(Number value) {
  if constexpr (std::is_floating_point_v<Number>) {
    char text[48];
    for (int digits = 1; digits <= std::numeric_limits<Number>::max_digits10; ++digits) {
      std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(value));
      if (static_cast<Number>(std::strtod(text, nullptr)) == value) break;
    }
    return text;
  } else {
    return std::to_string(value);
  }
}

/// Throws Error("argument is <was>, but must <must>"): what it was and what it must be.
template <class Error, class Value>
[[noreturn]] void fail(std::string_view argument, const Value& was, std::string_view must) {
  std::string text(argument);
  text += " is ";
  if constexpr (std::is_convertible_v<Value, std::string_view>)
    text += std::string_view(was);
  else
    text += in_digits(was);
  text += ", but must ";
  text += must;
  throw Error(text);
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail
}  // namespace attention_balancer
