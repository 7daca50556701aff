// "Feedback" of the list "What must hold", and the balancer around it.
#include <algorithm>
#include <numeric>

#include "attention_balancer/balance.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
using ab::Index;
using property::holds;

namespace {

template <class T>
std::vector<T> copy(std::span<const T> values) {
  return {values.begin(), values.end()};
}

template <class T>
std::vector<T> signal(std::size_t n) {
  return property::weights<T>(n);
}

template <class T>
double oscillation(const std::vector<T>& a, const std::vector<T>& b) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    low = std::min(low, d), high = std::max(high, d);
  }
  return high - low;
}

template <class T>
ab::feedback::Leaky<T> leaky() {
  return {static_cast<T>(property::in_range(1, 101) / 100.0), static_cast<T>(property::in_range(1, 21) / 10.0)};
}

}  // namespace

TEMPLATE_TEST_CASE("feedback: strictly positive and normalised, whatever comes", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "Leaky",
      [] {
        const auto n = property::size();
        ab::ResourceBalancer balancer(static_cast<Index>(n), ab::allocate::Proportional{}, leaky<T>());
        for (int t = 0; t < 10; ++t) {
          const auto shares = balancer.update(signal<T>(n));
          PROPERTY(std::abs(static_cast<double>(property::sum(shares) - 1)) <= double(n) * property::epsilon<T>());
          double alive = 0;
          for (std::size_t i = 0; i < n; ++i) {
            PROPERTY(shares[i] > T(0));
            PROPERTY(std::isfinite(balancer.state()[i]) && std::isfinite(balancer.log_shares()[i]));
            alive += std::exp(static_cast<double>(balancer.state()[i]));
          }
          PROPERTY(std::abs(alive - 1) <= (1000 + double(n)) * property::epsilon<T>());
        }
      },
      300);
  holds(
      "Plain: never NaN, and what is dead stays dead",
      [] {
        const auto n = property::in_range<std::size_t>(1, 10);
        ab::ResourceBalancer<T, ab::allocate::Proportional, ab::feedback::Plain<T>> balancer(static_cast<Index>(n));
        std::vector<bool> dead(n, false);
        for (int t = 0; t < 10; ++t) {
          const auto w = signal<T>(n);
          const bool all_zero = std::all_of(w.begin(), w.end(), [](T x) { return x == T(0); });
          const auto before = copy(balancer.state());
          try {
            balancer.update(w);
            for (std::size_t i = 0; i < n; ++i) dead[i] = dead[i] || (w[i] == T(0) && !all_zero);
          } catch (const ab::InputError&) {
            for (std::size_t i = 0; i < n; ++i) PROPERTY(dead[i] || w[i] == T(0));
            PROPERTY(copy(balancer.state()) == before);
          }
          for (std::size_t i = 0; i < n; ++i) {
            PROPERTY(!std::isnan(balancer.log_shares()[i]) && !std::isnan(balancer.state()[i]));
            PROPERTY(std::isinf(balancer.state()[i]) == dead[i]);
          }
        }
      },
      300);
}

TEMPLATE_TEST_CASE("feedback: contraction by 1 - rate, and the fixed point", "[property]", SCALARS) {
  using T = TestType;
  holds("two states under the same signals approach by 1 - rate each cycle", [] {
    const auto n = property::size();
    const auto policy = leaky<T>();
    auto a = signal<T>(n), b = signal<T>(n);
    for (auto* state : {&a, &b})
      for (auto& x : *state) x = std::log(std::max(x, T(1e-6)));
    for (int t = 0; t < 5; ++t) {
      const auto w = signal<T>(n);
      const double before = oscillation(a, b);
      policy(a, w);
      policy(b, w);
      PROPERTY(std::abs(oscillation(a, b) - (1 - static_cast<double>(policy.rate)) * before) <=
               500 * property::epsilon<T>());
    }
  });
  holds(
      "constant w settles at w^gain, raised to 1e-6 of the largest",
      [] {
        const auto n = property::in_range<std::size_t>(1, 20);
        auto policy = leaky<T>();
        policy.rate = std::max(policy.rate, T(0.1));
        auto w = signal<T>(n);
        w[0] = std::max(w[0], T(1e-30));
        const T largest = *std::max_element(w.begin(), w.end());
        std::vector<T> fixed(n), state(n, T(0));
        for (std::size_t i = 0; i < n; ++i)
          fixed[i] = static_cast<T>(double(policy.gain) *
                                    std::max(std::log(double(w[i]) / double(largest)), std::log(1e-6)));
        for (int t = 0; t < 500; ++t) policy(state, w);
        PROPERTY(oscillation(state, fixed) <= 2000 * property::epsilon<T>());
      },
      200);
}

TEMPLATE_TEST_CASE("feedback: starvation", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "weight zero for long, then recovery within log(.) / rate steps",
      [] {
        const double rate = property::in_range(5, 100) / 100.0;
        const int starved = property::in_range(1, 500);
        ab::ResourceBalancer<T> balancer(2, {}, {.rate = static_cast<T>(rate)});
        for (int t = 0; t < starved; ++t) balancer.update(std::vector<T>{1, 0});
        const double low = static_cast<double>(balancer.shares()[1]);
        PROPERTY(low > 0.99e-6);
        // The distance log(1e6) falls by exp(-rate) a step at least; within 1 % it is over.
        const int steps = static_cast<int>(std::ceil(std::log(std::log(1e6) / 0.01) / rate));
        for (int t = 0; t < steps; ++t) balancer.update(std::vector<T>{1, 1});
        PROPERTY(balancer.shares()[1] > T(0.49));
      },
      300);
}

TEMPLATE_TEST_CASE("feedback: replay, save and restore to the bit", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "same signals, same shares; a restored balancer goes on as the saved one",
      [] {
        const auto n = property::size();
        const int cut = property::in_range(0, 10);
        const auto policy = leaky<T>();
        const T floor = static_cast<T>(0.1 / static_cast<double>(n));
        using Balancer = ab::ResourceBalancer<T, ab::allocate::Bounded<T>>;
        const auto make = [&] { return Balancer(static_cast<Index>(n), {.floor = floor}, policy); };
        Balancer first = make(), second = make(), third = make();
        for (int t = 0; t < 12; ++t) {
          if (t == cut) third.restore(first.state(), first.cycle());
          const auto w = signal<T>(n);
          first.update(w);
          second.update(w);
          if (t >= cut) third.update(w);
        }
        for (const auto* other : {&second, &third}) {
          PROPERTY(copy(first.state()) == copy(other->state()));
          PROPERTY(copy(first.shares()) == copy(other->shares()));
          PROPERTY(copy(first.log_shares()) == copy(other->log_shares()));
          PROPERTY(first.cycle() == other->cycle());
        }
        const Index total = 20 * static_cast<Index>(n);  // floors of two units
        PROPERTY(first.units(total) == second.units(total));
      },
      300);
}

TEMPLATE_TEST_CASE("balancer: units are exact within whole bounds, or it says why not", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "units(total)",
      [] {
        const auto n = property::size();
        const double even = 1.0 / static_cast<double>(n);
        const T floor = static_cast<T>(even * property::in_range(0, 11) / 10.0);
        const T cap = static_cast<T>(std::min(1.0, even * (1 + property::in_range(1, 30) / 10.0)));
        ab::ResourceBalancer<T, ab::allocate::Bounded<T>> balancer(static_cast<Index>(n),
                                                                   {.floor = floor, .cap = cap});
        for (int t = 0; t < 4; ++t) balancer.update(signal<T>(n));
        const Index total = property::in_range<Index>(0, property::coin() ? Index(1) << 40 : 100);
        const auto whole = ab::apportion::unit_limits(ab::allocate::Limits<T>{floor, cap, true}, total);
        const auto items = static_cast<Index>(n);
        if (whole.lower > whole.upper || whole.lower * items > total || whole.upper * items < total) {
          PROPERTY_THROWS(balancer.units(total), ab::BudgetError);
          return;
        }
        const auto units = balancer.units(total);
        PROPERTY(std::accumulate(units.begin(), units.end(), Index(0)) == total);
        const double t = static_cast<double>(total);
        for (std::size_t i = 0; i < n; ++i) {
          PROPERTY(units[i] >= whole.lower && units[i] <= whole.upper);
          // No more than a rounding error outside the bounds as they are written.
          PROPERTY(double(units[i]) >= t * double(floor) * (1 - property::epsilon<T>()) - 1e-9);
          PROPERTY(double(units[i]) <= t * double(cap) * (1 + property::epsilon<T>()) + 1e-9);
        }
        const auto item = property::in_range<std::size_t>(0, n);
        const auto report = balancer.explain(static_cast<Index>(item));
        PROPERTY(report.rounding && report.rounding->units == units[item]);
      },
      1000);
}
