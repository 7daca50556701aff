// "Share" and "Zero evidence" of the list "What must hold", for the shares by distance, tempering, and both
// engines.
#include "attention_balancer/allocate/euclidean.hpp"

#include <algorithm>
#include <random>

#include "property/property.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using property::holds;

namespace {

// Weights, bounds per item and a mask for which an allocation exists: the uniform point is always feasible.
template <class T>
struct Problem {
  std::vector<T> weights, floors, caps;
  std::vector<bool> mask;

  allocate::Euclidean<T> euclidean() const { return {.floor = floors, .cap = caps, .eligible = mask}; }
  std::vector<T> projected(const std::vector<T>& values) const {
    std::vector<T> x(values.size(), T(-1));
    euclidean().project(values, x);
    return x;
  }
};

template <class T>
void showValue(const Problem<T>& p, std::ostream& out) {
  rc::show(std::tie(p.weights, p.floors, p.caps, p.mask), out);
}

// Of any size, or of multiples of 1/8 below 4 among which shares are divided up.
template <class T>
Problem<T> make_problem(bool common) {
  Problem<T> p;
  p.weights = *property::weights<T>();
  const std::size_t n = p.weights.size();
  if (*rc::gen::inRange(0, 2))
    for (auto& w : p.weights) w = static_cast<T>(*rc::gen::inRange(0, 32)) / 8;
  for (const int x : property::as_many(n, 0, 4)) p.mask.push_back(x > 0);
  p.mask[*rc::gen::inRange<std::size_t>(0, n)] = true;
  const double m = static_cast<double>(std::count(p.mask.begin(), p.mask.end(), true));
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

template <class T>
void check_sum(const std::vector<T>& x, double m) {
  RC_ASSERT(std::abs(static_cast<double>(property::sum(x) - 1)) <= m * property::epsilon<T>());
}

template <class T>
double distance(const std::vector<T>& a, const std::vector<T>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

}  // namespace

TEMPLATE_TEST_CASE("euclidean: the post-condition and the definition", "[property]", float, double) {
  using T = TestType;
  for (const bool common : {false, true})
    holds("sum, bounds bit for bit, mask, order, clip(w + nu, l, u)", [common] {
      const auto p = make_problem<T>(common);
      const auto x = p.projected(p.weights);
      check_sum(x, static_cast<double>(std::count(p.mask.begin(), p.mask.end(), true)));
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (!p.mask[i]) {
          RC_ASSERT(x[i] == T(0));
          continue;
        }
        RC_ASSERT((x[i] >= p.floors[i] && x[i] <= p.caps[i]));
        // Who is free, or at a bound that pulls the right way, has one and the same nu: no pair can be nearer.
        for (std::size_t j = 0; j < x.size(); ++j) {
          if (!p.mask[j] || !(x[i] < p.caps[i]) || !(x[j] > p.floors[j])) continue;
          const long double nu_i = static_cast<long double>(x[i]) - p.weights[i];
          const long double nu_j = static_cast<long double>(x[j]) - p.weights[j];
          const long double slack =
              8 * property::epsilon<T>() + 2e-19L * (std::abs(nu_i) + std::abs(nu_j));  // of long double itself
          RC_ASSERT(nu_i >= nu_j - slack);
        }
        if (common)
          for (std::size_t j = 0; j < x.size(); ++j)
            if (p.mask[j] && p.weights[i] <= p.weights[j]) RC_ASSERT(x[i] <= x[j]);
      }
    });
}

TEMPLATE_TEST_CASE("euclidean: idempotent, shift-invariant, 1-Lipschitz", "[property]", float, double) {
  using T = TestType;
  holds("idempotent", [] {
    const auto p = make_problem<T>(false);
    const auto x = p.projected(p.weights), y = p.projected(x);
    for (std::size_t i = 0; i < x.size(); ++i)
      RC_ASSERT(std::abs(y[i] - x[i]) <= 4 * std::numeric_limits<T>::epsilon());
  });
  holds("shift-invariant, and 1-Lipschitz", [] {
    auto p = make_problem<T>(false);
    for (auto& w : p.weights) w = static_cast<T>(*rc::gen::inRange(-64, 64)) / 16;  // which a shift does not round
    const auto x = p.projected(p.weights);
    auto moved = p.weights, other = p.weights;
    const T shift = static_cast<T>(*rc::gen::inRange(-1000, 1000)) / 16;
    for (auto& w : moved) w += shift;
    RC_ASSERT(p.projected(moved) == x);
    for (auto& w : other) w += static_cast<T>(*rc::gen::inRange(-16, 16)) / 16;
    // Only the eligible are projected.
    auto before = p.weights, after = other;
    for (std::size_t i = 0; i < x.size(); ++i)
      if (!p.mask[i]) before[i] = after[i] = T(0);
    const double n = static_cast<double>(x.size());
    RC_ASSERT(distance(p.projected(other), x) <= distance(after, before) + 4 * n * property::epsilon<T>());
  });
}

TEMPLATE_TEST_CASE("sparsemax and entmax: sum, order, scale, zero", "[property]", float, double) {
  using T = TestType;
  const auto check = [](const auto& policy) {
    const auto w = *property::weights<T>();
    std::vector<T> x(w.size(), T(-1)), y = x;
    policy(w, x);
    check_sum(x, static_cast<double>(w.size()));
    const bool all_zero = std::all_of(w.begin(), w.end(), [](T v) { return v == T(0); });
    for (std::size_t i = 0; i < w.size(); ++i) {
      RC_ASSERT((x[i] >= T(0) && x[i] <= T(1)));
      if (w[i] == T(0) && !all_zero) RC_ASSERT(x[i] == T(0));
      for (std::size_t j = 0; j < w.size(); ++j)
        if (w[i] <= w[j]) RC_ASSERT(x[i] <= x[j]);
    }
    auto scaled = w;
    const int shift = *rc::gen::inRange(-20, 20);
    for (auto& v : scaled) v = std::ldexp(v, shift);
    policy(scaled, y);
    for (std::size_t i = 0; i < w.size(); ++i)  // the logarithms round, by up to 1e-16 of 100
      RC_ASSERT(std::abs(static_cast<double>(y[i] - x[i])) <= 4 * property::epsilon<T>() + 1e-13);
  };
  holds("sparsemax", [&] { check(allocate::Sparsemax{}); });
  holds("entmax15", [&] { check(allocate::Entmax15{}); });
  holds("entmax of any alpha", [&] { check(allocate::Entmax<T>{.alpha = T(*rc::gen::inRange(0, 40)) / 16 + 1}); });
  holds("sparsemax of logits is the projection of logits", [] {
    std::vector<T> z(*rc::gen::inRange<std::size_t>(1, 60)), x(z.size()), y(z.size());
    for (auto& v : z) v = static_cast<T>(*rc::gen::inRange(-200, 200)) / 64;
    allocate::Sparsemax{}.of_logits(z, x);
    allocate::Euclidean<T>{}.project(z, y);
    for (std::size_t i = 0; i < z.size(); ++i)
      RC_ASSERT(std::abs(x[i] - y[i]) <= 4 * std::numeric_limits<T>::epsilon());
  });
}

TEMPLATE_TEST_CASE("tempered shares: sum, bounds, order", "[property]", float, double) {
  using T = TestType;
  holds("at any temperature", [] {
    const auto p = make_problem<T>(*rc::gen::inRange(0, 2) == 0);
    const T temperature = *rc::gen::element(T(0.01), T(0.1), T(0.5), T(1), T(3), T(100));
    std::vector<T> x(p.weights.size(), T(-1)), y = x;
    allocate::Tempered<T>{temperature, p.floors, p.caps, p.mask}(p.weights, x);
    allocate::AlphaFair<T>{temperature, p.floors, p.caps, p.mask}(p.weights, y);
    RC_ASSERT(x == y);
    check_sum(x, static_cast<double>(std::count(p.mask.begin(), p.mask.end(), true)));
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (!p.mask[i]) {
        RC_ASSERT(x[i] == T(0));
        continue;
      }
      RC_ASSERT((x[i] >= p.floors[i] && x[i] <= p.caps[i]));
      for (std::size_t j = 0; j < x.size(); ++j)
        if (p.mask[j] && p.weights[i] <= p.weights[j] && p.floors[i] <= p.floors[j] && p.caps[i] <= p.caps[j])
          RC_ASSERT(x[i] <= x[j]);
    }
  });
}

TEST_CASE("engines: monotone in the budget, and met exactly", "[property]") {
  namespace detail = ab::detail;
  const auto check = [](auto items, const auto& fill) {
    using Item = typename decltype(items)::value_type;
    double least = 0, most = 0;
    for (const auto& item : items) least += item.floor, most += item.cap;
    std::vector<double> before(items.size(), 0.0);
    for (const int step : {0, 1, 2, 5, 10}) {
      const double budget = least + (most - least) * step / 10;
      fill(std::span<Item>(items), budget);
      double sum = 0;
      for (std::size_t i = 0; i < items.size(); ++i) {
        sum += items[i].share;
        RC_ASSERT((items[i].share >= items[i].floor && items[i].share <= items[i].cap));
        RC_ASSERT(items[i].share >= before[i] * (1 - 1e-13) - 1e-300);
        before[i] = items[i].share;
      }
      RC_ASSERT(std::abs(sum - budget) <= 1e-13 * (most + 1));
    }
  };
  holds("clip(nu w, l, u)", [&] {
    std::vector<detail::FillItem> items;
    for (const double w : *property::weights<double>()) {
      const double floor = *rc::gen::inRange(0, 5), cap = floor + *rc::gen::inRange(0, 9);
      items.push_back({std::max(w, 1e-30), floor, cap, 0, 0});
    }
    check(items, detail::water_fill<>);
  });
  holds("clip(w + nu, l, u)", [&] {
    std::vector<detail::ShiftItem> items;
    for (const double w : *property::weights<double>()) {
      const double floor = *rc::gen::inRange(-5, 5), cap = floor + *rc::gen::inRange(0, 9);
      items.push_back({w, floor + 5, cap + 5, 0});
    }
    check(items, detail::shift_fill<>);
  });
}

TEMPLATE_TEST_CASE("shares by distance: up to a hundred thousand items", "[property]", float, double) {
  using T = TestType;
  std::mt19937_64 random(8);
  for (const std::size_t n : {std::size_t(1000), std::size_t(100000)})
    for (const double spread : {0.1, 3.0, 20.0}) {
      std::lognormal_distribution<double> weight(0, spread);
      std::vector<T> weights(n), x(n);
      for (auto& w : weights) w = static_cast<T>(std::clamp(weight(random), 1e-30, 1e30));
      const auto check = [&](const char* what, T floor, T cap) {
        CAPTURE(n, spread, what);
        CHECK(std::abs(static_cast<double>(property::sum(x) - 1)) <=
              static_cast<double>(n) * property::epsilon<T>());
        CHECK(*std::min_element(x.begin(), x.end()) >= floor);
        CHECK(*std::max_element(x.begin(), x.end()) <= cap);
      };
      const T one = T(1) / static_cast<T>(n), floor = one / 2, cap = one * 2;
      allocate::Euclidean<T>{}(weights, x);
      check("Euclidean", T(0), T(1));
      allocate::Euclidean<T>{.floor = floor, .cap = cap}(weights, x);
      check("Euclidean within bounds", floor, cap);
      allocate::Sparsemax{}(weights, x);
      check("Sparsemax", T(0), T(1));
      allocate::Entmax15{}(weights, x);
      check("Entmax15", T(0), T(1));
      for (const T alpha : {T(1.01), T(1.3), T(2.5)}) {
        allocate::Entmax<T>{.alpha = alpha}(weights, x);
        check("Entmax", T(0), T(1));
      }
      allocate::Tempered<T>{.temperature = T(0.3), .floor = floor, .cap = cap}(weights, x);
      check("Tempered", floor, cap);
    }
}
