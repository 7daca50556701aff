#pragma once
// Properties: a fixed seed, so that a red run is red again, thousands of cases, and what falsifies one is shrunk
// and shown. RapidCheck does that, in property.cpp alone: a file of properties that included it would take three
// times as long to compile.
//
// Inside a property, integer(), weights() and so on draw the case. What they drew is listed where the property
// fails.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "attention_balancer/core/types.hpp"
#include "support/catch.hpp"

/// Inside a property: the case falsifies it unless `condition` holds.
#define PROPERTY(...) ((__VA_ARGS__) ? void() : ::property::broken(#__VA_ARGS__, __FILE__, __LINE__))

/// Inside a property: `expression` must throw `Error`.
#define PROPERTY_THROWS(expression, Error)                                                  \
  do {                                                                                      \
    bool thrown = false;                                                                    \
    try {                                                                                   \
      static_cast<void>(expression);                                                        \
    } catch (const Error&) {                                                                \
      thrown = true;                                                                        \
    }                                                                                       \
    if (!thrown) ::property::broken(#expression " must throw " #Error, __FILE__, __LINE__); \
  } while (false)

namespace property {

using attention_balancer::Index;

/// A test that `property` holds in that many cases. RC_PARAMS="seed=... max_success=..." in the environment goes
/// elsewhere.
void holds(const std::string& what, const std::function<void()>& property, int cases = 3000);

[[noreturn]] void broken(const char* condition, const char* file, int line);

/// A whole number in [low, high), shrinking to `low`.
std::int64_t integer(std::int64_t low, std::int64_t high);

template <class I = int>
I in_range(I low, I high) {
  return static_cast<I>(integer(static_cast<std::int64_t>(low), static_cast<std::int64_t>(high)));
}

inline bool coin() { return integer(0, 2) != 0; }

/// One of these, shrinking to the first.
template <class V>
V element(std::initializer_list<V> values) {
  return values.begin()[integer(0, static_cast<std::int64_t>(values.size()))];
}

/// How many items a case has, in [1, most]: a few dozen as a rule, and in one case of 24 of any order of
/// magnitude.
std::size_t size(std::size_t most = 100000);

/// A weight from 1e-30 to 1e30, often zero or a small integer, so that ties and zero evidence occur.
template <class T>
T weight();

/// That many weights. Up to a hundred of them shrink one by one; more come from a seed.
template <class T>
std::vector<T> weights(std::size_t n);

template <class T>
std::vector<T> weights() {
  return weights<T>(size());
}

/// That many whole numbers in [low, high), in the same way.
std::vector<int> as_many(std::size_t n, int low, int high);

/// A permutation of [0, n).
std::vector<Index> order(std::size_t n);

/// Whether x never falls where the weights rise, among the items of the mask, all if it is empty.
template <class T>
bool rises_with(const std::vector<T>& weights, const std::vector<T>& x, const std::vector<bool>& mask = {});

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

inline Index total_of(const std::vector<Index>& units) {
  return std::accumulate(units.begin(), units.end(), Index(0));
}

/// Weights, bounds per item and a mask for which shares exist: floor_i in [0, 1/m], cap_i in [1/m, 6/m], m being
/// the number of the eligible. The uniform point is always feasible, and often the only one.
template <class T>
struct Problem {
  std::vector<T> weights, floors, caps;
  std::vector<bool> mask;
  bool common = false;  ///< one floor and one cap, and then often everyone is eligible

  std::size_t eligible() const;

  /// `Policy` with these bounds: as numbers where they are common, and without a mask where it says nothing.
  template <class Policy>
  Policy bound(Policy policy = {}) const {
    policy.floor = floors, policy.cap = caps, policy.eligible = mask;
    if (common) policy.floor = floors[0], policy.cap = caps[0];
    if (eligible() == mask.size()) policy.eligible = {};
    return policy;
  }
};

template <class T>
Problem<T> problem(std::size_t most = 100000);

/// The sum of shares is 1, each is within its bounds bit for bit, and who is masked has nothing.
template <class T>
void check_shares(const Problem<T>& problem, const std::vector<T>& shares);

}  // namespace property
