// "Round" and "Ties" of the list "What must hold".
#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention_balancer/allocate/apportion.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace apportion = ab::apportion;
using ab::Index;
using property::holds;
using property::total_of;
using Units = std::vector<Index>;

namespace {

Index total() {
  const Index below[] = {50, 100000, Index(1) << 53};
  return property::in_range<Index>(0, below[property::in_range(0, 3)]);
}

template <class T>
struct Method {
  const char* name;
  Units (*divide)(std::span<const T>, Index, const apportion::Options&);
  double (*price)(double w, double a);  // of a divisor method
};
template <class Kind, class T>
Units divide_by(std::span<const T> weights, Index total, const apportion::Options& options) {
  return Kind{}(weights, total, options);
}
template <class T>
const Method<T> divisors[] = {
    {"sainte_lague", divide_by<decltype(apportion::sainte_lague), T>,
     [](double w, double a) { return w / (a + 0.5); }},
    {"dhondt", divide_by<decltype(apportion::dhondt), T>, [](double w, double a) { return w / (a + 1); }},
    {"huntington_hill", divide_by<decltype(apportion::huntington_hill), T>,
     [](double w, double a) { return w * w / (a * (a + 1)); }},
    {"adams", divide_by<decltype(apportion::adams), T>, [](double w, double a) { return w / a; }},
};
template <class T>
const Method<T> remainders{"hamilton", divide_by<decltype(apportion::hamilton), T>, nullptr};
template <class T>
const Method<T> within_quota{"quota", divide_by<decltype(apportion::quota), T>, nullptr};

/// One of those that take bounds.
template <class T>
const Method<T>& any_method() {
  const auto which = property::in_range<std::size_t>(0, 5);
  return which < 4 ? divisors<T>[which] : remainders<T>;
}

// Awarding one by one.
template <class T>
Units slow(const Method<T>& method, const std::vector<T>& weights, Index total, Units units, const Units& upper) {
  for (Index left = total - total_of(units); left > 0; --left) {
    std::size_t best = units.size();
    const auto price = [&](std::size_t i) {
      return method.price(static_cast<double>(weights[i]), static_cast<double>(units[i]));
    };
    for (std::size_t i = 0; i < units.size(); ++i) {
      if (units[i] >= upper[i]) continue;
      if (best == units.size() || price(i) > price(best) || (price(i) == price(best) && weights[i] > weights[best]))
        best = i;
    }
    ++units[best];
  }
  return units;
}

template <class T>
long double quota_of(const std::vector<T>& weights, long double sum, Index total, std::size_t i) {
  return static_cast<long double>(total) *
         (sum > 0 ? static_cast<long double>(weights[i]) / sum : 1 / static_cast<long double>(weights.size()));
}

template <class T>
bool all_zero(const std::vector<T>& weights) {
  return std::all_of(weights.begin(), weights.end(), [](T x) { return x == T(0); });
}

}  // namespace

TEMPLATE_TEST_CASE("units: the sum is the total, exactly, and more weight never gets less", "[property]", SCALARS) {
  using T = TestType;
  holds("every method", [] {
    const auto w = property::weights<T>();
    const Index t = total();
    const auto& method = any_method<T>();
    const auto units = method.divide(w, t, {});
    PROPERTY(total_of(units) == t);
    PROPERTY(*std::min_element(units.begin(), units.end()) >= 0);
    const bool zero = all_zero(w);
    std::vector<std::size_t> by_weight(w.size());
    std::iota(by_weight.begin(), by_weight.end(), std::size_t(0));
    std::sort(by_weight.begin(), by_weight.end(), [&](std::size_t a, std::size_t b) { return w[a] < w[b]; });
    Index most = 0;  // of any lighter item
    for (std::size_t k = 0, same = 0; k < w.size(); ++k) {
      const std::size_t i = by_weight[k];
      if (w[i] == T(0) && !zero) PROPERTY(units[i] == 0);
      for (; w[by_weight[same]] < w[i]; ++same) most = std::max(most, units[by_weight[same]]);
      PROPERTY(units[i] >= most);
    }
  });
  holds("equal weights differ by one at most, the lower index first", [] {
    const std::vector<T> w(property::size(), std::max(property::weight<T>(), T(1e-30)));
    const auto units = any_method<T>().divide(w, total(), {});
    PROPERTY(units.front() - units.back() <= 1);
    PROPERTY(std::is_sorted(units.rbegin(), units.rend()));
  });
  holds("scaling the weights by a power of two changes nothing", [] {
    const auto w = property::weights<T>();
    const Index t = total();
    auto scaled = w;
    const int shift = property::in_range(-20, 20);
    for (auto& x : scaled) x = std::ldexp(x, shift);
    const auto& method = any_method<T>();
    PROPERTY(method.divide(scaled, t, {}) == method.divide(w, t, {}));
  });
}

TEMPLATE_TEST_CASE("units: hamilton stays within one of the quota", "[property]", SCALARS) {
  using T = TestType;
  holds("|units - quota| < 1", [] {
    const auto w = property::weights<T>();
    const Index t = total();
    const long double sum = property::sum(w);
    const auto units = apportion::hamilton(w, t);
    for (std::size_t i = 0; i < w.size(); ++i)
      PROPERTY(std::abs(static_cast<long double>(units[i]) - quota_of(w, sum, t, i)) <
               1 + 1e-18L * static_cast<long double>(t));
  });
}

TEMPLATE_TEST_CASE("units: divisor methods and quota are house monotone, and the sum is the total", "[property]",
                   SCALARS) {
  using T = TestType;
  const auto grows = [](const Units& before, const Units& after) {
    for (std::size_t i = 0; i < before.size(); ++i) PROPERTY(after[i] >= before[i]);
  };
  holds("divisor methods", [&] {
    const auto w = property::weights<T>();
    const Index t = std::min(total(), (Index(1) << 53) - 4);
    const auto& method = divisors<T>[property::in_range<std::size_t>(0, 4)];
    auto before = method.divide(w, t, {});
    PROPERTY(total_of(before) == t);
    for (int step = 1; step <= 4; ++step) {
      const auto after = method.divide(w, t + step, {});
      PROPERTY(total_of(after) == t + step);
      grows(before, after);
      before = after;
    }
  });
  holds("quota: and it keeps quota", [&] {
    const auto w = property::weights<T>();
    const Index t = property::in_range<Index>(0, 1500);
    const auto before = within_quota<T>.divide(w, t, {}), after = within_quota<T>.divide(w, t + 1, {});
    PROPERTY(total_of(before) == t);
    PROPERTY(total_of(after) == t + 1);
    grows(before, after);
    const long double sum = property::sum(w);
    for (std::size_t i = 0; i < w.size(); ++i)
      PROPERTY(std::abs(static_cast<long double>(before[i]) - quota_of(w, sum, t, i)) < 1 + 1e-12L);
  });
}

TEMPLATE_TEST_CASE("units: dhondt is never below quota, adams never above", "[property]", SCALARS) {
  using T = TestType;
  holds("lower and upper quota", [] {
    auto w = property::weights<T>();
    w.push_back(T(1));
    const Index t = property::in_range<Index>(0, 1 << 30);
    const long double sum = property::sum(w);
    const auto most = apportion::adams(w, t), least = apportion::dhondt(w, t);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const long double exact = quota_of(w, sum, t, i);
      PROPERTY(static_cast<long double>(least[i]) > exact - 1 - 1e-9L);
      // Adams keeps upper quota as soon as the first units suffice for all with weight.
      if (t >= static_cast<Index>(w.size())) PROPERTY(static_cast<long double>(most[i]) < exact + 1 + 1e-9L);
    }
  });
}

TEMPLATE_TEST_CASE("units: a divisor method is what awarding one by one gives", "[property]", SCALARS) {
  using T = TestType;
  holds("no bounds", [] {
    const auto& method = divisors<T>[property::in_range<std::size_t>(0, 4)];
    auto w = property::weights<T>(property::size(60));
    w.push_back(T(1));
    if (method.price(1, 0) > 1e300) w.erase(std::remove(w.begin(), w.end(), T(0)), w.end());  // 0 / 0 is no price
    const Index t = property::in_range<Index>(0, 300);
    PROPERTY(method.divide(w, t, {}) == slow(method, w, t, Units(w.size(), 0), Units(w.size(), t)));
  });
  holds("within bounds", [] {
    const auto& method = divisors<T>[property::in_range<std::size_t>(0, 4)];
    auto w = property::weights<T>(property::size(60));
    for (auto& x : w) x = std::max(x, T(1e-30));
    Units lower, upper;
    for (const int x : property::as_many(w.size(), 0, 5)) lower.push_back(x);
    for (const int x : property::as_many(w.size(), 0, 20)) upper.push_back(lower[upper.size()] + x);
    const Index t = property::in_range<Index>(total_of(lower), total_of(upper) + 1);
    PROPERTY(method.divide(w, t, {.lower = lower, .upper = upper}) == slow(method, w, t, lower, upper));
  });
}

TEMPLATE_TEST_CASE("units: bounds, blocks and pins are kept at any total", "[property]", SCALARS) {
  using T = TestType;
  holds("every method", [] {
    const auto w = property::weights<T>();
    const std::size_t n = w.size();
    const Index step = property::element<Index>({1, 1, 2, 16}), t = total() / 16 * 16;
    Units lower, upper;
    const Index even = t / step / static_cast<Index>(n), more = even + 1;
    for (const int x : property::as_many(n, 0, 5)) lower.push_back(even * x / 4 * step);
    for (const int x : property::as_many(n, 4, 9))
      upper.push_back((more * x / 4 + (x - 4)) * step + (x - 4) % step);
    std::vector<apportion::Pin> pins;
    if (property::coin()) pins.push_back({static_cast<Index>(n) - 1, even * step});
    const auto units = any_method<T>().divide(w, t, {.lower = lower, .upper = upper, .step = step, .pins = pins});
    PROPERTY(total_of(units) == t);
    for (std::size_t i = 0; i < n; ++i) {
      PROPERTY(units[i] >= lower[i] && units[i] <= upper[i]);
      PROPERTY(units[i] % step == 0);
    }
    for (const auto& pin : pins) PROPERTY(units[n - 1] == pin.units);
  });
}

TEMPLATE_TEST_CASE("units: hamilton within bounds is within one of clip(nu w, l, u)", "[property]", SCALARS) {
  using T = TestType;
  holds("|units - x| < 1", [] {
    auto w = property::weights<T>();
    const std::size_t n = w.size();
    std::vector<ab::detail::FillItem> items;
    Units lower, upper;
    for (auto& x : w) x = std::max(x, T(1e-30));
    for (const int x : property::as_many(n, 0, 5)) lower.push_back(x);
    for (const int x : property::as_many(n, 0, 90)) upper.push_back(lower[upper.size()] + x);
    const Index t = property::in_range<Index>(total_of(lower), total_of(upper) + 1);
    for (std::size_t i = 0; i < n; ++i)
      items.push_back(
          {static_cast<double>(w[i]), static_cast<double>(lower[i]), static_cast<double>(upper[i]), 0, 0});
    ab::detail::water_fill(std::span<ab::detail::FillItem>(items), static_cast<double>(t));
    const auto units = apportion::hamilton(w, t, lower, upper);
    for (std::size_t i = 0; i < n; ++i)
      PROPERTY(std::abs(static_cast<double>(units[i]) - items[i].share) < 1 + 1e-9);
  });
}

TEMPLATE_TEST_CASE("units: ids make it equivariant under permutation", "[property]", SCALARS) {
  using T = TestType;
  holds("every method", [] {
    const std::size_t n = property::size();
    std::vector<T> w, moved(n);
    for (const int x : property::as_many(n, 0, 4)) w.push_back(static_cast<T>(x));
    const auto order = property::order(n);
    for (std::size_t i = 0; i < n; ++i) moved[i] = w[static_cast<std::size_t>(order[i])];
    const Index t = property::in_range<Index>(0, 4 * static_cast<Index>(n));
    const auto& method = n < 60 && property::in_range(0, 6) == 0 ? within_quota<T> : any_method<T>();
    const auto here = method.divide(w, t, {}), there = method.divide(moved, t, {.ids = order});
    for (std::size_t i = 0; i < n; ++i) PROPERTY(there[i] == here[static_cast<std::size_t>(order[i])]);
  });
}
