// "Share" and "Zero evidence" of the list "What must hold".
#include "attention_balancer/allocate/shares.hpp"

#include <algorithm>
#include <memory>
#include <random>

#include "property/property.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using property::holds;

namespace {

// Weights, bounds per item and a mask for which an allocation exists.
template <class T>
struct Problem {
  std::vector<T> weights, floors, caps;
  std::vector<bool> mask;

  allocate::Bounded<T> policy() const { return {.floor = floors, .cap = caps, .eligible = mask}; }
  std::vector<T> shares() const { return shares(weights); }
  std::vector<T> shares(const std::vector<T>& of) const {
    std::vector<T> result(of.size(), T(-1));
    policy()(of, result);
    return result;
  }
  std::size_t eligible() const { return static_cast<std::size_t>(std::count(mask.begin(), mask.end(), true)); }
};

template <class T>
void showValue(const Problem<T>& p, std::ostream& out) {
  rc::show(std::tie(p.weights, p.floors, p.caps, p.mask), out);
}

// floor_i in [0, 1/m], cap_i in [1/m, 1/m + 1]: the uniform point is always feasible, and often the only one.
template <class T>
Problem<T> make_problem(bool common) {
  Problem<T> p;
  p.weights = *property::weights<T>();
  const std::size_t n = p.weights.size();
  for (const int x : property::as_many(n, 0, 4)) p.mask.push_back(x > 0);
  p.mask[*rc::gen::inRange<std::size_t>(0, n)] = true;
  const double m = static_cast<double>(p.eligible());
  auto low = property::as_many(n, 0, 11), high = property::as_many(n, 0, 11);
  if (common) {
    std::fill(low.begin(), low.end(), low[0]);
    std::fill(high.begin(), high.end(), high[0]);
  }
  for (std::size_t i = 0; i < n; ++i) {
    p.floors.push_back(static_cast<T>(low[i] / 10.0 / m));
    p.caps.push_back(static_cast<T>((1.0 + high[i] * high[i] / 20.0) / m));
  }
  return p;
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

TEMPLATE_TEST_CASE("shares: the post-condition", "[property]", float, double) {
  using T = TestType;
  for (const bool common : {false, true})
    holds("sum, bounds bit for bit, masked get nothing", [common] {
      const auto p = make_problem<T>(common);
      const auto x = p.shares();
      const double m = static_cast<double>(p.eligible());
      RC_ASSERT(std::abs(static_cast<double>(property::sum(x) - 1)) <= m * property::epsilon<T>());
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (p.mask[i])
          RC_ASSERT(x[i] >= p.floors[i] && x[i] <= p.caps[i]);
        else
          RC_ASSERT(x[i] == T(0));
      }
    });
}

TEMPLATE_TEST_CASE("shares: they are clip(nu w, l, u)", "[property]", float, double) {
  using T = TestType;
  for (const bool common : {false, true})
    holds("agrees with bisection", [common] {
      const auto p = make_problem<T>(common);
      const auto x = p.shares();
      const auto expected = oracle(p);
      for (std::size_t i = 0; i < x.size(); ++i)
        RC_ASSERT(std::abs(static_cast<double>(x[i] - expected[i])) <= (std::is_same_v<T, float> ? 1e-7 : 1e-14));
    });
}

TEMPLATE_TEST_CASE("shares: order, scale, idempotence", "[property]", float, double) {
  using T = TestType;
  holds("order-preserving under common bounds", [] {
    const auto p = make_problem<T>(true);
    const auto x = p.shares();
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t j = 0; j < x.size(); ++j)
        if (p.mask[i] && p.mask[j] && p.weights[i] <= p.weights[j]) RC_ASSERT(x[i] <= x[j]);
  });
  holds("scale-invariant: to the bit for powers of two", [] {
    const auto p = make_problem<T>(false);
    const auto x = p.shares();
    auto scaled = p.weights;
    const int shift = *rc::gen::inRange(-20, 20);
    for (auto& w : scaled) w = std::ldexp(w, shift);
    RC_ASSERT(p.shares(scaled) == x);
    for (std::size_t i = 0; i < scaled.size(); ++i) scaled[i] = p.weights[i] * T(0.3);
    const auto y = p.shares(scaled);
    for (std::size_t i = 0; i < x.size(); ++i)
      RC_ASSERT(std::abs(y[i] - x[i]) <= 4 * std::numeric_limits<T>::epsilon());
  });
  holds("idempotent", [] {
    const auto p = make_problem<T>(false);
    const auto x = p.shares(), y = p.shares(x);
    for (std::size_t i = 0; i < x.size(); ++i)
      RC_ASSERT(std::abs(y[i] - x[i]) <= 4 * std::numeric_limits<T>::epsilon());
  });
  holds("permutation-equivariant", [] {
    const auto p = make_problem<T>(false);
    const std::size_t n = p.weights.size();
    std::vector<std::size_t> order(n);
    for (std::size_t i = 0; i < n; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937(*rc::gen::arbitrary<unsigned>()));
    Problem<T> q = p;
    for (std::size_t i = 0; i < n; ++i) {
      q.weights[i] = p.weights[order[i]], q.floors[i] = p.floors[order[i]];
      q.caps[i] = p.caps[order[i]], q.mask[i] = p.mask[order[i]];
    }
    const auto x = p.shares(), y = q.shares();
    for (std::size_t i = 0; i < n; ++i)
      RC_ASSERT(std::abs(y[i] - x[order[i]]) <= 4 * std::numeric_limits<T>::epsilon());
  });
}

TEMPLATE_TEST_CASE("shares: in place, and no bounds at all", "[property]", float, double) {
  using T = TestType;
  holds("the spans may be the same memory", [] {
    const auto p = make_problem<T>(false);
    auto x = p.weights;
    p.policy()(x, x);
    RC_ASSERT(x == p.shares());
  });
  holds("Bounded without bounds is Proportional", [] {
    const auto w = *property::weights<T>();
    auto x = w, y = w;
    allocate::Proportional{}(w, x);
    allocate::Bounded<T>{}(w, y);
    RC_ASSERT(std::abs(static_cast<double>(property::sum(x) - 1)) <= double(w.size()) * property::epsilon<T>());
    for (std::size_t i = 0; i < w.size(); ++i)
      RC_ASSERT(std::abs(x[i] - y[i]) <= std::numeric_limits<T>::epsilon());
  });
}

TEMPLATE_TEST_CASE("zero evidence: uniform over the eligible", "[property]", float, double) {
  using T = TestType;
  holds("all weights zero", [] {
    auto p = make_problem<T>(false);
    std::fill(p.weights.begin(), p.weights.end(), T(0));
    auto equal = p;
    std::fill(equal.weights.begin(), equal.weights.end(), T(1));
    RC_ASSERT(p.shares() == equal.shares());
  });
  holds("what the capped leave goes equally to weight zero", [] {
    // Two kinds only: k with weight and a cap that they all reach, z without.
    const int k = *rc::gen::inRange(1, 20), z = *rc::gen::inRange(1, 20);
    const T cap = static_cast<T>(*rc::gen::inRange(1, 100) / 100.0 / (k + z));
    std::vector<T> weights, caps;
    for (int i = 0; i < k; ++i) weights.push_back(std::max(*property::weight<T>(), T(1e-30))), caps.push_back(cap);
    for (int i = 0; i < z; ++i) weights.push_back(T(0)), caps.push_back(T(1));
    std::vector<T> x(weights.size());
    allocate::Bounded<T>{.cap = caps}(weights, x);
    for (int i = 0; i < k; ++i) RC_ASSERT(x[std::size_t(i)] == cap);
    for (int i = 0; i < z; ++i)
      RC_ASSERT(std::abs(double(x[std::size_t(k + i)]) - (1 - k * double(cap)) / z) <= property::epsilon<T>());
  });
}

TEMPLATE_TEST_CASE("shares: infeasible or bad is an error, and nothing is written", "[property]", float, double) {
  using T = TestType;
  const auto throws = []<class Error>(const Problem<T>& p, Error*) {
    std::vector<T> x(p.weights.size(), T(-3));
    RC_ASSERT_THROWS_AS(p.policy()(p.weights, x), Error);
    RC_ASSERT(x == std::vector<T>(x.size(), T(-3)));
  };
  holds("floors above 1 or caps below 1 by more than the slack", [throws] {
    auto p = make_problem<T>(false);
    const double m = static_cast<double>(p.eligible());
    const T off = static_cast<T>(*rc::gen::element(1e-5, 0.1, 1.0));
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
    auto p = make_problem<T>(false);
    const T inf = std::numeric_limits<T>::infinity();
    p.weights[*rc::gen::inRange<std::size_t>(0, p.weights.size())] =
        *rc::gen::element(std::numeric_limits<T>::quiet_NaN(), inf, -inf, T(-1));
    throws(p, static_cast<ab::InputError*>(nullptr));
  });
}

TEMPLATE_TEST_CASE("shares: up to a hundred thousand items", "[property]", float, double) {
  using T = TestType;
  std::mt19937_64 random(5);
  for (const std::size_t n : {std::size_t(1000), std::size_t(10000), std::size_t(100000)})
    for (const double spread : {0.1, 3.0, 20.0}) {
      std::lognormal_distribution<double> weight(0, spread);
      std::vector<T> weights(n), x(n);
      for (auto& w : weights) w = static_cast<T>(std::clamp(weight(random), 1e-30, 1e30));
      const double one = 1.0 / static_cast<double>(n);
      for (const auto& [low, high] :
           {std::pair(0.0, 1.0), std::pair(0.5, 2.0), std::pair(0.0, 1.001), std::pair(0.999, 1e9)}) {
        const T floor = static_cast<T>(low * one), cap = static_cast<T>(high * one);
        allocate::Bounded<T>{.floor = floor, .cap = cap}(weights, x);
        CAPTURE(n, spread, low, high);
        CHECK(std::abs(static_cast<double>(property::sum(x) - 1)) <=
              static_cast<double>(n) * property::epsilon<T>());
        CHECK(*std::min_element(x.begin(), x.end()) >= floor);
        CHECK(*std::max_element(x.begin(), x.end()) <= cap);
      }
      allocate::Proportional{}(weights, x);
      CHECK(std::abs(static_cast<double>(property::sum(x) - 1)) <= static_cast<double>(n) * property::epsilon<T>());
    }
}
