#pragma once
// RapidCheck inside Catch2: a fixed seed, so that a red run is red again (RC_PARAMS="seed=... max_success=..." goes
// elsewhere), thousands of cases, and what falsifies a property is shrunk and shown.

#include <rapidcheck.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "attention_balancer/core/types.hpp"
#include "support/catch.hpp"

namespace property {

template <class Testable>
void holds(const std::string& what, Testable&& testable, int cases = 3000) {
  auto parameters = rc::detail::configuration().testParams;
  if (!std::getenv("RC_PARAMS")) parameters.seed = 20240229, parameters.maxSuccess = cases;
  rc::detail::TestMetadata metadata;
  metadata.id = metadata.description = what;
  const auto result = rc::detail::checkTestable(std::forward<Testable>(testable), metadata, parameters);
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  INFO(what << ": " << text.str());
  CHECK(result.template is<rc::detail::SuccessResult>());
}

/// A weight between 1e-30 and 1e30, often zero or a small integer, so that ties and zero evidence occur.
template <class T>
rc::Gen<T> weight() {
  return rc::gen::weightedOneOf<T>(
      {{2, rc::gen::just(T(0))},
       {3, rc::gen::map(rc::gen::inRange(1, 6), [](int x) { return static_cast<T>(x); })},
       {5, rc::gen::apply(
               [](int mantissa, int exponent) { return static_cast<T>(mantissa * std::pow(10.0, exponent)); },
               rc::gen::inRange(1, 10), rc::gen::inRange(-30, 30))}});
}

/// One to a few hundred weights.
template <class T>
rc::Gen<std::vector<T>> weights() {
  return rc::gen::nonEmpty(rc::gen::container<std::vector<T>>(weight<T>()));
}

/// The same number of whole numbers in [low, high).
inline std::vector<int> as_many(std::size_t n, int low, int high) {
  return *rc::gen::container<std::vector<int>>(n, rc::gen::inRange(low, high));
}

template <class T>
double epsilon() {
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

template <class Values>
long double sum(const Values& values) {
  long double total = 0;
  for (const auto x : values) total += static_cast<long double>(x);
  return total;
}

}  // namespace property
