// "Share" and "Zero evidence" of the list "What must hold", for the shares by distance, tempering, and both
// engines.
#include "attention_balancer/allocate/euclidean.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "property/property.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using property::holds;

namespace {

using property::Problem;

// Of any size, or of multiples of 1/8 below 4 among which shares are divided up.
template <class T>
Problem<T> problem() {
  auto p = property::problem<T>();
  if (property::coin()) {
    const auto eighths = property::as_many(p.weights.size(), 0, 32);
    for (std::size_t i = 0; i < eighths.size(); ++i) p.weights[i] = static_cast<T>(eighths[i]) / 8;
  }
  return p;
}

template <class T>
std::vector<T> projected(const Problem<T>& p, const std::vector<T>& values) {
  std::vector<T> x(values.size(), T(-1));
  p.template bound<allocate::Euclidean<T>>().project(values, x);
  return x;
}

template <class T>
void make_common(Problem<T>& p) {
  std::fill(p.floors.begin(), p.floors.end(), p.floors[0]);
  std::fill(p.caps.begin(), p.caps.end(), p.caps[0]);
}

template <class T>
void check_sum(const std::vector<T>& x) {
  PROPERTY(std::abs(static_cast<double>(property::sum(x) - 1)) <=
           static_cast<double>(x.size()) * property::epsilon<T>());
}

template <class T>
double distance(const std::vector<T>& a, const std::vector<T>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

}  // namespace

TEMPLATE_TEST_CASE("euclidean: the post-condition and the definition", "[property]", SCALARS) {
  using T = TestType;
  holds("sum, bounds bit for bit, mask, clip(w + nu, l, u)", [] {
    const auto p = problem<T>();
    const auto x = projected(p, p.weights);
    check_shares(p, x);
    // Whoever could give has a nu no lower than whoever could take: no pair can be nearer.
    const long double infinity = std::numeric_limits<long double>::infinity();
    long double takes = infinity, gives = -infinity;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (!p.mask[i]) continue;
      const long double nu = static_cast<long double>(x[i]) - p.weights[i];
      if (x[i] < p.caps[i]) takes = std::min(takes, nu);
      if (x[i] > p.floors[i]) gives = std::max(gives, nu);
    }
    if (std::isfinite(takes) && std::isfinite(gives))
      PROPERTY(takes >= gives - 8 * property::epsilon<T>() -
                            2e-19L * (std::abs(takes) + std::abs(gives)));  // of long double itself
  });
  holds("order-preserving under common bounds", [] {
    auto p = problem<T>();
    make_common(p);
    PROPERTY(property::rises_with(p.weights, projected(p, p.weights), p.mask));
  });
}

TEMPLATE_TEST_CASE("euclidean: idempotent, shift-invariant, 1-Lipschitz", "[property]", SCALARS) {
  using T = TestType;
  holds("idempotent", [] {
    const auto p = problem<T>();
    const auto x = projected(p, p.weights), y = projected(p, x);
    for (std::size_t i = 0; i < x.size(); ++i)
      PROPERTY(std::abs(y[i] - x[i]) <= 4 * std::numeric_limits<T>::epsilon());
  });
  holds("shift-invariant, and 1-Lipschitz", [] {
    auto p = problem<T>();
    const std::size_t n = p.weights.size();
    const auto sixteenths = property::as_many(n, -64, 64), changes = property::as_many(n, -16, 16);
    for (std::size_t i = 0; i < n; ++i)
      p.weights[i] = static_cast<T>(sixteenths[i]) / 16;  // a shift rounds nothing
    const auto x = projected(p, p.weights);
    auto moved = p.weights, other = p.weights;
    const T shift = static_cast<T>(property::in_range(-1000, 1000)) / 16;
    for (auto& w : moved) w += shift;
    PROPERTY(projected(p, moved) == x);
    for (std::size_t i = 0; i < n; ++i) other[i] += static_cast<T>(changes[i]) / 16;
    // Only the eligible are projected.
    auto before = p.weights, after = other;
    for (std::size_t i = 0; i < n; ++i)
      if (!p.mask[i]) before[i] = after[i] = T(0);
    PROPERTY(distance(projected(p, other), x) <=
             distance(after, before) + 4 * static_cast<double>(n) * property::epsilon<T>());
  });
}

TEMPLATE_TEST_CASE("sparsemax and entmax: sum, order, scale, zero", "[property]", SCALARS) {
  using T = TestType;
  const auto check = [](const auto& policy) {
    const auto w = property::weights<T>();
    std::vector<T> x(w.size(), T(-1)), y = x;
    policy(w, x);
    check_sum(x);
    PROPERTY(property::rises_with(w, x));
    const bool all_zero = std::all_of(w.begin(), w.end(), [](T v) { return v == T(0); });
    for (std::size_t i = 0; i < w.size(); ++i) {
      PROPERTY((x[i] >= T(0) && x[i] <= T(1)));
      if (w[i] == T(0) && !all_zero) PROPERTY(x[i] == T(0));
    }
    auto scaled = w;
    const int shift = property::in_range(-20, 20);
    for (auto& v : scaled) v = std::ldexp(v, shift);
    policy(scaled, y);
    for (std::size_t i = 0; i < w.size(); ++i)  // the logarithms round, by up to 1e-16 of 100
      PROPERTY(std::abs(static_cast<double>(y[i] - x[i])) <= 4 * property::epsilon<T>() + 1e-13);
  };
  holds("sparsemax", [&] { check(allocate::Sparsemax{}); });
  holds("entmax15", [&] { check(allocate::Entmax15{}); });
  holds("entmax of any alpha", [&] { check(allocate::Entmax<T>{.alpha = T(property::in_range(0, 40)) / 16 + 1}); });
  holds("sparsemax of logits is the projection of logits", [] {
    std::vector<T> z(property::in_range<std::size_t>(1, 60)), x(z.size()), y(z.size());
    for (auto& v : z) v = static_cast<T>(property::in_range(-200, 200)) / 64;
    allocate::Sparsemax{}.of_logits(z, x);
    allocate::Euclidean<T>{}.project(z, y);
    for (std::size_t i = 0; i < z.size(); ++i)
      PROPERTY(std::abs(x[i] - y[i]) <= 4 * std::numeric_limits<T>::epsilon());
  });
}

TEMPLATE_TEST_CASE("tempered shares: sum, bounds, order", "[property]", SCALARS) {
  using T = TestType;
  const auto check = [](Problem<T> p, bool common) {
    if (common) make_common(p);
    const T temperature = property::element({T(0.01), T(0.1), T(0.5), T(1), T(2), T(3), T(100)});
    std::vector<T> x(p.weights.size(), T(-1)), y = x;
    p.bound(allocate::Tempered<T>{.temperature = temperature})(p.weights, x);
    p.bound(allocate::AlphaFair<T>{.alpha = temperature})(p.weights, y);
    PROPERTY(x == y);
    check_shares(p, x);
    if (common) PROPERTY(property::rises_with(p.weights, x, p.mask));
  };
  holds("at any temperature", [&] { check(property::problem<T>(), false); });
  holds("order-preserving under common bounds", [&] { check(property::problem<T>(), true); });
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
      long double sum = 0;
      for (std::size_t i = 0; i < items.size(); ++i) {
        sum += static_cast<long double>(items[i].share);
        PROPERTY((items[i].share >= items[i].floor && items[i].share <= items[i].cap));
        PROPERTY(items[i].share >= before[i] * (1 - 1e-13) - 1e-300);
        before[i] = items[i].share;
      }
      PROPERTY(std::abs(static_cast<double>(sum - budget)) <= 1e-13 * (most + 1));
    }
  };
  holds("clip(nu w, l, u)", [&] {
    const auto w = property::weights<double>();
    const auto floors = property::as_many(w.size(), 0, 5), ranges = property::as_many(w.size(), 0, 9);
    std::vector<detail::FillItem> items;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double floor = floors[i];
      items.push_back({std::max(w[i], 1e-30), floor, floor + ranges[i], 0, 0});
    }
    check(items, detail::water_fill<>);
  });
  holds("clip(w + nu, l, u)", [&] {
    const auto w = property::weights<double>();
    const auto floors = property::as_many(w.size(), 0, 10), ranges = property::as_many(w.size(), 0, 9);
    std::vector<detail::ShiftItem> items;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double floor = floors[i];
      items.push_back({w[i], floor, floor + ranges[i], 0});
    }
    check(items, detail::shift_fill<>);
  });
}
