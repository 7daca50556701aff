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

// Awarding one by one.
Units slow(const std::vector<double>& weights, Index total, Units units, const Units& upper) {
  for (Index left = total - total_of(units); left > 0; --left) {
    std::size_t best = units.size();
    const auto price = [&](std::size_t i) { return weights[i] / (static_cast<double>(units[i]) + 0.5); };
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

TEMPLATE_TEST_CASE("units: sainte_lague is house monotone", "[property]", float, double) {
  using T = TestType;
  holds("a larger total takes nothing away", [] {
    const auto w = *property::weights<T>();
    Index t = *total();
    t = std::min(t, (Index(1) << 53) - 8);
    auto before = apportion::sainte_lague(w, t);
    for (int step = 1; step <= 8; ++step) {
      const auto after = apportion::sainte_lague(w, t + step);
      for (std::size_t i = 0; i < w.size(); ++i) RC_ASSERT(after[i] >= before[i]);
      before = after;
    }
  });
}

TEST_CASE("units: sainte_lague is what awarding one by one gives", "[property]") {
  holds("no bounds", [] {
    auto w = *property::weights<double>();
    w.push_back(1.0);
    const Index t = *rc::gen::inRange<Index>(0, 400);
    const std::size_t n = w.size();
    RC_ASSERT(apportion::sainte_lague(w, t) == slow(w, t, Units(n, 0), Units(n, t)));
  });
  holds("within bounds", [] {
    auto w = *property::weights<double>();
    const std::size_t n = w.size();
    for (auto& x : w) x = std::max(x, 1e-30);
    Units lower, upper;
    for (const int x : property::as_many(n, 0, 5)) lower.push_back(x);
    for (const int x : property::as_many(n, 0, 20)) upper.push_back(lower[upper.size()] + x);
    const Index t = *rc::gen::inRange<Index>(total_of(lower), total_of(upper) + 1);
    const auto units = apportion::sainte_lague(w, t, lower, upper);
    RC_ASSERT(units == slow(w, t, lower, upper));
  });
}

TEST_CASE("units: bounds are kept at any total", "[property]") {
  holds("lower <= units <= upper", [] {
    const auto w = *property::weights<double>();
    const std::size_t n = w.size();
    const Index t = *total();
    Units lower, upper;
    const Index even = t / static_cast<Index>(n), more = (t + static_cast<Index>(n) - 1) / static_cast<Index>(n);
    for (const int x : property::as_many(n, 0, 5)) lower.push_back(even * x / 4);
    for (const int x : property::as_many(n, 4, 9)) upper.push_back(more * x / 4 + (x - 4));
    const auto units = apportion::sainte_lague(w, t, lower, upper);
    RC_ASSERT(total_of(units) == t);
    for (std::size_t i = 0; i < n; ++i) RC_ASSERT(units[i] >= lower[i] && units[i] <= upper[i]);
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
