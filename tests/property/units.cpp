// "Round" and "Ties" of the list "What must hold".
#include <algorithm>
#include <numeric>
#include <random>

#include "attention_balancer/allocate/apportion.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace apportion = ab::apportion;
using ab::Index;
using property::holds;
using Units = std::vector<Index>;

namespace {

Index total_of(const Units& units) { return std::accumulate(units.begin(), units.end(), Index(0)); }

rc::Gen<Index> total() {
  return rc::gen::oneOf(rc::gen::inRange<Index>(0, 50), rc::gen::inRange<Index>(0, 100000),
                        rc::gen::inRange<Index>(0, Index(1) << 53));
}

struct Method {
  const char* name;
  Units (*divide)(std::span<const double>, Index, const apportion::Options&);
  double (*price)(double w, double a);  // of a divisor method
};
template <class Kind>
Units divide_by(std::span<const double> weights, Index total, const apportion::Options& options) {
  return Kind{}(weights, total, options);
}
const Method divisors[] = {
    {"sainte_lague", divide_by<decltype(apportion::sainte_lague)>,
     [](double w, double a) { return w / (a + 0.5); }},
    {"dhondt", divide_by<decltype(apportion::dhondt)>, [](double w, double a) { return w / (a + 1); }},
    {"huntington_hill", divide_by<decltype(apportion::huntington_hill)>,
     [](double w, double a) { return w * w / (a * (a + 1)); }},
    {"adams", divide_by<decltype(apportion::adams)>, [](double w, double a) { return w / a; }},
};
const Method remainders{"hamilton", divide_by<decltype(apportion::hamilton)>, nullptr};
const Method within_quota{"quota", divide_by<decltype(apportion::quota)>, nullptr};

// Awarding one by one.
Units slow(const Method& method, const std::vector<double>& weights, Index total, Units units, const Units& upper) {
  for (Index left = total - total_of(units); left > 0; --left) {
    std::size_t best = units.size();
    const auto price = [&](std::size_t i) { return method.price(weights[i], static_cast<double>(units[i])); };
    for (std::size_t i = 0; i < units.size(); ++i) {
      if (units[i] >= upper[i]) continue;
      if (best == units.size() || price(i) > price(best) || (price(i) == price(best) && weights[i] > weights[best]))
        best = i;
    }
    ++units[best];
  }
  return units;
}

}  // namespace

TEMPLATE_TEST_CASE("units: the sum is the total, exactly", "[property]", float, double) {
  using T = TestType;
  holds("hamilton and sainte_lague", [] {
    const auto w = *property::weights<T>();
    const Index t = *total();
    for (const auto& units : {apportion::hamilton(w, t), apportion::sainte_lague(w, t)}) {
      RC_ASSERT(total_of(units) == t);
      RC_ASSERT(*std::min_element(units.begin(), units.end()) >= 0);
      const bool all_zero = std::all_of(w.begin(), w.end(), [](T x) { return x == T(0); });
      for (std::size_t i = 0; i < w.size(); ++i)
        if (w[i] == T(0) && !all_zero) RC_ASSERT(units[i] == 0);
    }
  });
}

TEMPLATE_TEST_CASE("units: hamilton stays within one of the quota", "[property]", float, double) {
  using T = TestType;
  holds("|units - quota| < 1", [] {
    auto w = *property::weights<T>();
    w.push_back(T(1));
    const Index t = *total();
    const long double sum = property::sum(w);
    const auto units = apportion::hamilton(w, t);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const long double quota = static_cast<long double>(t) * w[i] / sum;
      RC_ASSERT(std::abs(static_cast<long double>(units[i]) - quota) < 1 + 1e-18L * static_cast<long double>(t));
    }
  });
}

TEST_CASE("units: divisor methods and quota are house monotone, and the sum is the total", "[property]") {
  for (const Method& method : divisors)
    holds(
        method.name,
        [&] {
          const auto w = *property::weights<double>();
          const Index t = std::min(*total(), (Index(1) << 53) - 8);
          auto before = method.divide(w, t, {});
          RC_ASSERT(total_of(before) == t);
          for (int step = 1; step <= 4; ++step) {
            const auto after = method.divide(w, t + step, {});
            RC_ASSERT(total_of(after) == t + step);
            for (std::size_t i = 0; i < w.size(); ++i) RC_ASSERT(after[i] >= before[i]);
            before = after;
          }
        },
        1500);
  holds(
      "quota: and it keeps quota",
      [] {
        const auto w = *property::weights<double>();
        const Index t = *rc::gen::inRange<Index>(0, 1500);
        const auto before = within_quota.divide(w, t, {}), after = within_quota.divide(w, t + 1, {});
        RC_ASSERT(total_of(before) == t);
        RC_ASSERT(total_of(after) == t + 1);
        const long double sum = property::sum(w);
        for (std::size_t i = 0; i < w.size(); ++i) {
          RC_ASSERT(after[i] >= before[i]);
          const long double exact =
              static_cast<long double>(t) * (sum > 0 ? w[i] / sum : 1 / static_cast<long double>(w.size()));
          RC_ASSERT(std::abs(static_cast<long double>(before[i]) - exact) < 1 + 1e-12L);
        }
      },
      1500);
}

TEST_CASE("units: dhondt is never below quota, adams never above", "[property]") {
  holds("lower and upper quota", [] {
    auto w = *property::weights<double>();
    w.push_back(1.0);
    const Index t = *rc::gen::inRange<Index>(0, 1 << 30);
    const long double sum = property::sum(w);
    const auto most = apportion::adams(w, t), least = apportion::dhondt(w, t);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const long double exact = static_cast<long double>(t) * w[i] / sum;
      RC_ASSERT(static_cast<long double>(least[i]) > exact - 1 - 1e-9L);
      // Adams keeps upper quota as soon as the first units suffice for all with weight.
      if (t >= static_cast<Index>(w.size())) RC_ASSERT(static_cast<long double>(most[i]) < exact + 1 + 1e-9L);
    }
  });
}

TEST_CASE("units: a divisor method is what awarding one by one gives", "[property]") {
  for (const Method& method : divisors) {
    INFO(method.name);
    holds(
        "no bounds",
        [&] {
          auto w = *property::weights<double>();
          w.push_back(1.0);
          const Index t = *rc::gen::inRange<Index>(0, 300);
          const std::size_t n = w.size();
          if (method.price(1, 0) > 1e300) {  // weight zero is out: 0 / 0 is no price
            w.erase(std::remove(w.begin(), w.end(), 0.0), w.end());
            RC_ASSERT(method.divide(w, t, {}) == slow(method, w, t, Units(w.size(), 0), Units(w.size(), t)));
          } else {
            RC_ASSERT(method.divide(w, t, {}) == slow(method, w, t, Units(n, 0), Units(n, t)));
          }
        },
        1500);
    holds(
        "within bounds",
        [&] {
          auto w = *property::weights<double>();
          const std::size_t n = w.size();
          for (auto& x : w) x = std::max(x, 1e-30);
          Units lower, upper;
          for (const int x : property::as_many(n, 0, 5)) lower.push_back(x);
          for (const int x : property::as_many(n, 0, 20)) upper.push_back(lower[upper.size()] + x);
          const Index t = *rc::gen::inRange<Index>(total_of(lower), total_of(upper) + 1);
          RC_ASSERT(method.divide(w, t, {.lower = lower, .upper = upper}) == slow(method, w, t, lower, upper));
        },
        1500);
  }
}

TEST_CASE("units: bounds, blocks and pins are kept at any total", "[property]") {
  const auto check = [](const Method& method) {
    const auto w = *property::weights<double>();
    const std::size_t n = w.size();
    const Index step = *rc::gen::element<Index>(1, 1, 2, 16), t = *total() / 16 * 16;
    Units lower, upper;
    const Index even = t / step / static_cast<Index>(n), more = even + 1;
    for (const int x : property::as_many(n, 0, 5)) lower.push_back(even * x / 4 * step);
    for (const int x : property::as_many(n, 4, 9))
      upper.push_back((more * x / 4 + (x - 4)) * step + (x - 4) % step);
    std::vector<apportion::Pin> pins;
    if (*rc::gen::inRange(0, 2)) pins.push_back({static_cast<Index>(n) - 1, even * step});
    const auto units = method.divide(w, t, {.lower = lower, .upper = upper, .step = step, .pins = pins});
    RC_ASSERT(total_of(units) == t);
    for (std::size_t i = 0; i < n; ++i) {
      RC_ASSERT((units[i] >= lower[i] && units[i] <= upper[i]));
      RC_ASSERT(units[i] % step == 0);
    }
    for (const auto& pin : pins) RC_ASSERT(units[n - 1] == pin.units);
  };
  for (const Method& method : divisors)
    holds(
        method.name, [&] { check(method); }, 1500);
  holds(remainders.name, [&] { check(remainders); });
}

TEST_CASE("units: hamilton within bounds is within one of clip(nu w, l, u)", "[property]") {
  holds("|units - x| < 1", [] {
    auto w = *property::weights<double>();
    const std::size_t n = w.size();
    std::vector<ab::detail::FillItem> items;
    Units lower, upper;
    for (auto& x : w) x = std::max(x, 1e-30);
    for (const int x : property::as_many(n, 0, 5)) lower.push_back(x);
    for (const int x : property::as_many(n, 0, 90)) upper.push_back(lower[upper.size()] + x);
    const Index t = *rc::gen::inRange<Index>(total_of(lower), total_of(upper) + 1);
    for (std::size_t i = 0; i < n; ++i)
      items.push_back({w[i], static_cast<double>(lower[i]), static_cast<double>(upper[i]), 0, 0});
    ab::detail::water_fill(std::span<ab::detail::FillItem>(items), static_cast<double>(t));
    const auto units = apportion::hamilton(w, t, lower, upper);
    for (std::size_t i = 0; i < n; ++i)
      RC_ASSERT(std::abs(static_cast<double>(units[i]) - items[i].share) < 1 + 1e-9);
  });
}

TEMPLATE_TEST_CASE("units: scale and order", "[property]", float, double) {
  using T = TestType;
  holds("scaling the weights by a power of two changes nothing", [] {
    const auto w = *property::weights<T>();
    const Index t = *total();
    auto scaled = w;
    const int shift = *rc::gen::inRange(-20, 20);
    for (auto& x : scaled) x = std::ldexp(x, shift);
    RC_ASSERT(apportion::hamilton(scaled, t) == apportion::hamilton(w, t));
    RC_ASSERT(apportion::sainte_lague(scaled, t) == apportion::sainte_lague(w, t));
  });
  holds("more weight never gets less", [] {
    const auto w = *property::weights<T>();
    const Index t = *total();
    for (const auto& units : {apportion::hamilton(w, t), apportion::sainte_lague(w, t)})
      for (std::size_t i = 0; i < w.size(); ++i)
        for (std::size_t j = 0; j < w.size(); ++j)
          if (w[i] < w[j]) RC_ASSERT(units[i] <= units[j]);
  });
  holds("ids make it equivariant under permutation", [] {
    const std::size_t n = *rc::gen::inRange<std::size_t>(1, 40);
    std::vector<double> w(n), moved(n);
    for (auto& x : w) x = *rc::gen::inRange(0, 4);
    std::vector<Index> order(n);
    std::iota(order.begin(), order.end(), Index(0));
    for (std::size_t i = n; i > 1; --i) std::swap(order[i - 1], order[*rc::gen::inRange<std::size_t>(0, i)]);
    for (std::size_t i = 0; i < n; ++i) moved[i] = w[static_cast<std::size_t>(order[i])];
    const Index t = *rc::gen::inRange<Index>(0, 100);
    const auto check = [&](const Method& method) {
      const auto here = method.divide(w, t, {}), there = method.divide(moved, t, {.ids = order});
      for (std::size_t i = 0; i < n; ++i) RC_ASSERT(there[i] == here[static_cast<std::size_t>(order[i])]);
    };
    for (const Method& method : divisors) check(method);
    check(remainders);
    check(within_quota);
  });
  holds("equal weights differ by one at most, the lower index first", [] {
    const auto n = *rc::gen::inRange<std::size_t>(1, 200);
    const std::vector<T> w(n, std::max(*property::weight<T>(), T(1e-30)));
    const Index t = *total();
    for (const auto& units : {apportion::hamilton(w, t), apportion::sainte_lague(w, t)}) {
      RC_ASSERT(units.front() - units.back() <= 1);
      RC_ASSERT(std::is_sorted(units.rbegin(), units.rend()));
    }
  });
}
