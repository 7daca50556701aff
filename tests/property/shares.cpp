// "Share" and "Zero evidence" of the list "What must hold".
#include "attention_balancer/allocate/shares.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "property/property.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using property::holds;

namespace {

using property::Problem;

template <class T>
std::vector<T> shares_of(const Problem<T>& p, const std::vector<T>& weights) {
  std::vector<T> result(weights.size(), T(-1));
  p.template bound<allocate::Bounded<T>>()(weights, result);
  return result;
}

template <class T>
std::vector<T> shares_of(const Problem<T>& p) {
  return shares_of(p, p.weights);
}

template <class T>
bool close(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(),
                    [](T x, T y) { return std::abs(x - y) <= 4 * std::numeric_limits<T>::epsilon(); });
}

// The definition by bisection on log nu in long double: x = clip(exp(t) w, l, u).
template <class T>
std::vector<long double> oracle(const Problem<T>& p) {
  const std::size_t n = p.weights.size();
  const auto at = [&](long double t, bool zeros) {
    std::vector<long double> x(n, 0.0L);
    for (std::size_t i = 0; i < n; ++i) {
      if (!p.mask[i]) continue;
      const long double w = p.weights[i], low = p.floors[i], high = std::max(p.floors[i], p.caps[i]);
      if (zeros)
        x[i] = w > 0 ? high : std::clamp(std::exp(t), low, high);
      else
        x[i] = std::clamp(w * std::exp(t), low, high);
    }
    return x;
  };
  const bool zeros = property::sum(at(200, false)) < 1;
  long double low = -200, high = 200;
  for (int k = 0; k < 200; ++k) {
    const long double middle = (low + high) / 2;
    (property::sum(at(middle, zeros)) < 1 ? low : high) = middle;
  }
  return at(high, zeros);
}

}  // namespace

TEMPLATE_TEST_CASE("shares: the post-condition", "[property]", SCALARS) {
  using T = TestType;
  holds("sum, bounds bit for bit, masked get nothing", [] {
    const auto p = property::problem<T>();
    check_shares(p, shares_of(p));
  });
}

TEMPLATE_TEST_CASE("shares: they are clip(nu w, l, u)", "[property]", SCALARS) {
  using T = TestType;
  holds("agrees with bisection", [] {
    const auto p = property::problem<T>(300);
    const auto x = shares_of(p);
    const auto expected = oracle(p);
    for (std::size_t i = 0; i < x.size(); ++i)
      PROPERTY(std::abs(static_cast<double>(x[i] - expected[i])) <= (std::is_same_v<T, float> ? 1e-7 : 1e-14));
  });
}

TEMPLATE_TEST_CASE("shares: order, scale, idempotence", "[property]", SCALARS) {
  using T = TestType;
  holds("order-preserving under common bounds", [] {
    auto p = property::problem<T>();
    std::fill(p.floors.begin(), p.floors.end(), p.floors[0]);
    std::fill(p.caps.begin(), p.caps.end(), p.caps[0]);
    PROPERTY(property::rises_with(p.weights, shares_of(p), p.mask));
  });
  holds("scale-invariant: to the bit for powers of two", [] {
    const auto p = property::problem<T>();
    const auto x = shares_of(p);
    auto scaled = p.weights;
    const int shift = property::in_range(-20, 20);
    for (auto& w : scaled) w = std::ldexp(w, shift);
    PROPERTY(shares_of(p, scaled) == x);
    for (std::size_t i = 0; i < scaled.size(); ++i) scaled[i] = p.weights[i] * T(0.3);
    PROPERTY(close(shares_of(p, scaled), x));
  });
  holds("idempotent", [] {
    const auto p = property::problem<T>();
    const auto x = shares_of(p);
    PROPERTY(close(shares_of(p, x), x));
  });
  holds("permutation-equivariant", [] {
    const auto p = property::problem<T>();
    const std::size_t n = p.weights.size();
    const auto order = property::order(n);
    auto q = p;
    for (std::size_t i = 0; i < n; ++i) {
      const auto from = static_cast<std::size_t>(order[i]);
      q.weights[i] = p.weights[from], q.floors[i] = p.floors[from];
      q.caps[i] = p.caps[from], q.mask[i] = p.mask[from];
    }
    const auto x = shares_of(p);
    auto moved = x;
    for (std::size_t i = 0; i < n; ++i) moved[i] = x[static_cast<std::size_t>(order[i])];
    PROPERTY(close(shares_of(q), moved));
  });
  holds("the same bounds as a number and per item, with and without a mask, are the same", [] {
    auto p = property::problem<T>();
    std::fill(p.floors.begin(), p.floors.end(), p.floors[0]);
    std::fill(p.caps.begin(), p.caps.end(), p.caps[0]);
    p.common = true;
    const auto x = shares_of(p);
    p.common = false;
    PROPERTY(close(shares_of(p), x));
  });
}

TEMPLATE_TEST_CASE("shares: in place, and no bounds at all", "[property]", SCALARS) {
  using T = TestType;
  holds("the spans may be the same memory", [] {
    const auto p = property::problem<T>();
    auto x = p.weights;
    p.template bound<allocate::Bounded<T>>()(x, x);
    PROPERTY(x == shares_of(p));
    auto y = p.weights, z = y;
    allocate::Proportional{}(p.weights, y);
    allocate::Proportional{}(z, z);
    PROPERTY(y == z);
  });
  holds("Bounded without bounds is Proportional", [] {
    const auto w = property::weights<T>();
    auto x = w, y = w;
    allocate::Proportional{}(w, x);
    allocate::Bounded<T>{}(w, y);
    PROPERTY(std::abs(static_cast<double>(property::sum(x) - 1)) <= double(w.size()) * property::epsilon<T>());
    PROPERTY(property::rises_with(w, x));
    PROPERTY(close(x, y));
  });
}

TEMPLATE_TEST_CASE("zero evidence: uniform over the eligible", "[property]", SCALARS) {
  using T = TestType;
  holds("all weights zero", [] {
    const auto p = property::problem<T>();
    const std::size_t n = p.weights.size();
    PROPERTY(close(shares_of(p, std::vector<T>(n, T(0))), shares_of(p, std::vector<T>(n, T(1)))));
  });
  holds("what the capped leave goes equally to weight zero", [] {
    // Two kinds only: k with weight and a cap that they all reach, z without.
    const int k = property::in_range(1, 20), z = property::in_range(1, 20);
    const T cap = static_cast<T>(property::in_range(1, 100) / 100.0 / (k + z));
    std::vector<T> weights, caps;
    for (int i = 0; i < k; ++i) weights.push_back(std::max(property::weight<T>(), T(1e-30))), caps.push_back(cap);
    for (int i = 0; i < z; ++i) weights.push_back(T(0)), caps.push_back(T(1));
    std::vector<T> x(weights.size());
    allocate::Bounded<T>{.cap = caps}(weights, x);
    for (int i = 0; i < k; ++i) PROPERTY(x[std::size_t(i)] == cap);
    for (int i = 0; i < z; ++i)
      PROPERTY(std::abs(double(x[std::size_t(k + i)]) - (1 - k * double(cap)) / z) <= property::epsilon<T>());
  });
}

TEMPLATE_TEST_CASE("shares: infeasible or bad is an error, and nothing is written", "[property]", SCALARS) {
  using T = TestType;
  const auto throws = []<class Error>(const Problem<T>& p, Error*) {
    std::vector<T> x(p.weights.size(), T(-3));
    PROPERTY_THROWS(p.template bound<allocate::Bounded<T>>()(p.weights, x), Error);
    PROPERTY(x == std::vector<T>(x.size(), T(-3)));
  };
  holds("floors above 1 or caps below 1 by more than the slack", [throws] {
    auto p = property::problem<T>();
    const double m = static_cast<double>(p.eligible());
    const double slack = 4 * m * property::epsilon<T>(), some = property::element({1e-5, 0.1, 0.5});
    const T off = static_cast<T>(std::max(some, slack));
    for (std::size_t i = 0; i < p.weights.size(); ++i) {
      p.floors[i] = static_cast<T>(1 / m) * (1 + off);
      p.caps[i] = T(2);
    }
    throws(p, static_cast<ab::BudgetError*>(nullptr));
    for (std::size_t i = 0; i < p.weights.size(); ++i) {
      p.floors[i] = T(0);
      p.caps[i] = static_cast<T>(1 / m) * (1 - off);
    }
    throws(p, static_cast<ab::BudgetError*>(nullptr));
  });
  holds("NaN, infinite, negative", [throws] {
    auto p = property::problem<T>();
    const T inf = std::numeric_limits<T>::infinity();
    p.weights[property::in_range<std::size_t>(0, p.weights.size())] =
        property::element({std::numeric_limits<T>::quiet_NaN(), inf, -inf, T(-1)});
    throws(p, static_cast<ab::InputError*>(nullptr));
  });
}
