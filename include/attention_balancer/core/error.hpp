#pragma once
#include <charconv>
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

/// The shortest text that reads back as the same number.
template <class Number>
std::string number(Number value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return {text, end};
}

/// Throws Error("argument is <was>, but must <must>"): what it was and what it must be.
template <class Error, class Value>
[[noreturn]] void fail(std::string_view argument, const Value& was, std::string_view must) {
  std::string text(argument);
  text += " is ";
  if constexpr (std::is_convertible_v<Value, std::string_view>)
    text += std::string_view(was);
  else
    text += number(was);
  text += ", but must ";
  text += must;
  throw Error(text);
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail
}  // namespace attention_balancer
