// "Feedback" of the list "What must hold", for the feedbacks beside Leaky, for plans in whole units and for
// snapshots.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "attention_balancer/balance.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace feedback = ab::feedback;
using ab::Index;
using property::holds;

namespace {

template <class T>
std::vector<T> signal(std::size_t n) {
  return property::weights<T>(n);
}

template <class T>
std::vector<T> losses(std::size_t n) {
  std::vector<T> result;
  for (const int x : property::as_many(n, 0, 101)) result.push_back(static_cast<T>(x) / T(100));
  return result;
}

double part(int low, int high) { return property::in_range(low, high) / 100.0; }

template <class T>
std::vector<double> distribution(const std::vector<T>& log_state) {
  std::vector<double> r;
  for (const T x : log_state) r.push_back(std::exp(double(x)));
  return r;
}

template <class T>
std::vector<T> random_state(std::size_t n) {
  std::vector<T> state;
  for (const int x : property::as_many(n, -12, 13)) state.push_back(static_cast<T>(x));
  ab::detail::normalise_log(std::span<T>(state));
  return state;
}

double l1(const std::vector<double>& a, const std::vector<double>& b) {
  long double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return static_cast<double>(sum);
}

/// One cycle of each feedback after another keeps the state positive and normalised.
template <class T, class Policy>
void check_positive(const Policy& policy, const std::vector<T>& given, std::vector<T>& state, double least = 0) {
  policy(state, given);
  long double sum = 0;
  for (const T x : state) {
    PROPERTY(std::isfinite(x));
    PROPERTY(std::exp(double(x)) >= least * (1 - 20 * property::epsilon<T>() * (1 + std::abs(double(x)))));
    sum += std::exp(double(x));
  }
  PROPERTY(std::abs(static_cast<double>(sum - 1)) <= 300 * property::epsilon<T>());
}

}  // namespace

TEMPLATE_TEST_CASE("feedbacks: strictly positive, >= alpha / n with fixed share", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "whatever comes, each state stays positive and adds up to 1",
      [] {
        const auto n = property::size();
        const double alpha = part(1, 101);
        const feedback::Ema<T> ema{static_cast<T>(part(1, 100))};
        const feedback::FixedShare fixed_plain{alpha, feedback::Plain<T>{}};
        const feedback::FixedShare fixed_leaky{alpha, feedback::Leaky<T>{static_cast<T>(part(1, 101))}};
        const feedback::FixedShare fixed_hedge{alpha, feedback::Hedge<T>{1, static_cast<T>(part(1, 1000))}};
        const feedback::Hedge<T> hedge{property::in_range<Index>(1, 1000)};
        const feedback::BiasBalancing<T> bias{static_cast<T>(part(1, 100))};
        std::vector<std::vector<T>> states(6, random_state<T>(n));
        const double least = alpha / static_cast<double>(n);
        for (int t = 0; t < 8; ++t) {
          const auto weights = signal<T>(n);
          const auto loss = losses<T>(n);
          check_positive(ema, weights, states[0]);
          check_positive(fixed_plain, weights, states[1], least);
          check_positive(fixed_leaky, weights, states[2], least);
          check_positive(fixed_hedge, loss, states[3], least);
          check_positive(hedge, loss, states[4]);
          if (std::any_of(weights.begin(), weights.end(), [](T w) { return w > 0; }))
            check_positive(bias, weights, states[5]);
        }
      },
      400);
}

TEMPLATE_TEST_CASE("feedbacks: no underflow over thousands of cycles", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "one signal for 5000 cycles, however extreme, then another",
      [] {
        const auto n = property::in_range<std::size_t>(2, 5);
        auto w = signal<T>(n);
        for (auto& x : w) x = std::max(x, T(1e-30));
        const auto loss = losses<T>(n);
        std::vector<std::vector<T>> states(5, std::vector<T>(n, static_cast<T>(-std::log(double(n)))));
        const auto run = [&](const std::vector<T>& weights, int cycles) {
          for (int t = 0; t < cycles; ++t) {
            feedback::Plain<T>{}(states[0], weights);
            feedback::Leaky<T>{T(0.3)}(states[1], weights);
            feedback::Ema<T>{T(0.3)}(states[2], weights);
            feedback::FixedShare{0.01, feedback::Plain<T>{}}(states[3], weights);
            feedback::Hedge<T>{1, T(1)}(states[4], loss);
          }
        };
        run(w, 5000);
        for (const auto& state : states) {
          PROPERTY(std::all_of(state.begin(), state.end(), [](T x) { return std::isfinite(x); }));
          PROPERTY(std::abs(property::sum(distribution(state)) - 1) < 1e-3);
        }
        // Equal weights: what remembers for a while has forgotten, and the plain rule has not.
        const auto plain = states[0];
        run(std::vector<T>(n, T(1)), 200);
        for (const std::size_t s : {1u, 2u})
          for (const double r : distribution(states[s])) PROPERTY(std::abs(r * double(n) - 1) < 1e-3);
        for (std::size_t i = 0; i < n; ++i)
          PROPERTY(std::abs(double(plain[i]) - double(states[0][i])) <= 1e-3 * (1 + std::abs(double(plain[i]))));
      },
      25);
}

TEMPLATE_TEST_CASE("feedbacks: Ema contracts by 1 - rate and settles at the weights", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "two states under the same signals",
      [] {
        const auto n = property::size();
        const feedback::Ema<T> ema{static_cast<T>(part(1, 101))};
        auto a = random_state<T>(n), b = random_state<T>(n);
        for (int t = 0; t < 4; ++t) {
          const auto w = signal<T>(n);
          const double before = l1(distribution(a), distribution(b));
          ema(a, w);
          ema(b, w);
          // A share r is off by about |log r| epsilon, and those add up to their entropy at most, log n; the sums over
          // all items are in double.
          PROPERTY(std::abs(l1(distribution(a), distribution(b)) - (1 - double(ema.rate)) * before) <=
                   (8 + 4 * std::log(double(n))) * property::epsilon<T>() + 1e-17 * double(n));
        }
      },
      3000);
  holds(
      "constant weights are the fixed point, without a least weight",
      [] {
        const auto n = property::in_range<std::size_t>(1, 20);
        const feedback::Ema<T> ema{static_cast<T>(part(10, 101))};
        auto w = signal<T>(n), state = random_state<T>(n);
        w[0] = std::max(w[0], T(1e-30));
        for (int t = 0; t < 400; ++t) ema(state, w);
        double largest = 0, sum = 0;
        for (const T x : w) largest = std::max(largest, double(x));
        for (const T x : w) sum += double(x) / largest;
        const auto r = distribution(state);
        for (std::size_t i = 0; i < n; ++i)
          PROPERTY(std::abs(r[i] - double(w[i]) / largest / sum) <= 200 * property::epsilon<T>());
      },
      100);
}

TEMPLATE_TEST_CASE("feedbacks: starvation and recovery", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "weight zero for long, then back",
      [] {
        const int starved = property::in_range(1, 2000);
        const double rate = part(5, 100), alpha = part(1, 20);
        const std::vector<T> without{1, 0}, with{1, 1}, more{1, 4};
        std::vector<T> ema(2, T(-0.5)), fixed = ema, leaky = ema;
        for (int t = 0; t < starved; ++t) {
          feedback::Ema<T>{static_cast<T>(rate)}(ema, without);
          feedback::Leaky<T>{static_cast<T>(rate)}(leaky, without);
          feedback::FixedShare{alpha, feedback::Plain<T>{}}(fixed, without);
        }
        // Ema: |r - 1/2| falls by 1 - rate a cycle. Leaky: so does |log r_0 - log r_1| <= log 1e6.
        const int ema_steps = static_cast<int>(std::ceil(std::log(0.5 / 0.01) / rate));
        for (int t = 0; t < ema_steps; ++t) feedback::Ema<T>{static_cast<T>(rate)}(ema, with);
        PROPERTY(std::exp(double(ema[1])) > 0.489);
        const int leaky_steps = static_cast<int>(std::ceil(std::log(std::log(1e6) / 0.01) / rate));
        for (int t = 0; t < leaky_steps; ++t) feedback::Leaky<T>{static_cast<T>(rate)}(leaky, with);
        PROPERTY(std::exp(double(leaky[1])) > 0.489);
        // Fixed share: the ratio, alpha / 2 at least, grows fourfold a cycle.
        const int fixed_steps = static_cast<int>(std::ceil(std::log(2 / alpha) / std::log(4.0)));
        for (int t = 0; t < fixed_steps; ++t) feedback::FixedShare{alpha, feedback::Plain<T>{}}(fixed, more);
        PROPERTY(fixed[1] > fixed[0] - T(1e-3) || std::exp(double(fixed[1])) > 0.5 - alpha);
      },
      150);
}

TEMPLATE_TEST_CASE("feedbacks: the regret of Hedge", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "at most sqrt(T log n / 2), whatever the adversary, who sees the shares",
      [] {
        const auto n = property::in_range<std::size_t>(1, 12);
        const Index cycles = property::in_range<Index>(1, 200);
        const int adversary = property::in_range(0, 4);
        const feedback::Hedge<T> hedge{cycles};
        std::vector<T> state(n, static_cast<T>(-std::log(double(n))));
        std::vector<double> lost(n, 0.0);
        double paid = 0;
        for (Index t = 0; t < cycles; ++t) {
          const auto r = distribution(state);
          const auto best = static_cast<std::size_t>(std::max_element(r.begin(), r.end()) - r.begin());
          std::vector<T> loss(n, T(0));
          if (adversary == 0) loss[best] = 1;  // hits the leader
          if (adversary == 1) std::fill(loss.begin(), loss.end(), T(1)), loss[best] = t % 2 ? T(1) : T(0);
          if (adversary == 2) loss[(static_cast<std::size_t>(t) / 7) % n] = 1;  // moves on
          if (adversary == 3) loss = losses<T>(n);
          double weighted = 0, all = 0;
          for (std::size_t i = 0; i < n; ++i) {
            weighted += r[i] * double(loss[i]);
            all += r[i];
            lost[i] += double(loss[i]);
          }
          paid += weighted / all;
          hedge(state, loss);
        }
        const double regret = paid - *std::min_element(lost.begin(), lost.end());
        PROPERTY(regret <= std::sqrt(double(cycles) * std::log(double(n)) / 2) +
                               double(cycles) * double(cycles) * 20 * property::epsilon<T>());
      },
      5000);
}

TEMPLATE_TEST_CASE("feedbacks: bias balancing moves by its step and no more", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "against the sign of the excess",
      [] {
        const auto n = property::size();
        const feedback::BiasBalancing<T> policy{static_cast<T>(part(1, 50))};
        const auto before = random_state<T>(n);
        std::vector<T> loads;
        for (const int x : property::as_many(n, 0, 6)) loads.push_back(static_cast<T>(x));
        auto after = before;
        policy(after, loads);
        const int sum = static_cast<int>(property::sum(loads));
        // Up to the constant that the normalisation takes from all.
        std::vector<double> change;
        for (std::size_t i = 0; i < n; ++i) {
          const int excess = static_cast<int>(n) * static_cast<int>(loads[i]) - sum;
          change.push_back(double(after[i]) - double(before[i]) +
                           double(policy.step) * ((excess > 0) - (excess < 0)));
        }
        for (const double c : change) PROPERTY(std::abs(c - change[0]) <= 200 * property::epsilon<T>());
      },
      3000);
}

TEMPLATE_TEST_CASE("feedbacks: a hundred thousand items of sixty orders of magnitude", "[property]", SCALARS) {
  using T = TestType;
  constexpr std::size_t n = 100000;
  std::mt19937 random(5);
  std::uniform_real_distribution<double> exponent(-30, 30), unit(0, 1);
  std::vector<T> weights(n), loss(n);
  const auto check = [&](auto policy, const std::vector<T>& given, double least) {
    ab::ResourceBalancer<T, ab::allocate::Proportional, decltype(policy)> balancer(Index(n), {}, policy);
    std::vector<Index> before;
    for (int t = 0; t < 3; ++t) {
      const auto shares = balancer.update(given);
      CHECK(std::abs(double(property::sum(shares) - 1)) <= double(n) * property::epsilon<T>());
      double low = 1;
      for (const T r : shares) low = std::min(low, double(r));
      CHECK(low >= least * (1 - 1e-4));
      CHECK(std::all_of(balancer.state().begin(), balancer.state().end(), [](T x) { return std::isfinite(x); }));
      const auto units = balancer.units(1000000, {.hysteresis = 0.001, .churn = 1000});
      CHECK(std::accumulate(units.begin(), units.end(), Index(0)) == 1000000);
      if (!before.empty()) CHECK(ab::apportion::moved(before, units) <= 1000);
      before = units;
    }
    const auto saved = balancer.save();
    CHECK(ab::Snapshot<T>::from_text(saved.to_text()) == saved);
    CHECK(ab::Snapshot<T>::from_bytes(saved.to_bytes()) == saved);
  };
  for (auto& w : weights) w = static_cast<T>(std::pow(10.0, exponent(random)));
  for (auto& l : loss) l = static_cast<T>(unit(random));
  check(feedback::Leaky<T>{T(0.3)}, weights, 0);
  check(feedback::Ema<T>{T(0.3)}, weights, 0);
  check(feedback::FixedShare{0.1, feedback::Plain<T>{}}, weights, 0.1 / n);
  check(feedback::Hedge<T>{100}, loss, 0);
  check(feedback::BiasBalancing<T>{T(0.01)}, weights, 0);
}

TEMPLATE_TEST_CASE("plans: only past the hysteresis, and never more than the churn", "[property]", SCALARS) {
  using T = TestType;
  holds("apportion::steady beside any plan in force", [] {
    const auto n = property::size();
    const auto w = signal<T>(n);
    std::vector<Index> lower, upper, previous;
    for (const int x : property::as_many(n, 0, 6)) lower.push_back(x < 4 ? 0 : x);
    for (const int x : property::as_many(n, 0, 40)) upper.push_back(lower[upper.size()] + x);
    const Index least = std::accumulate(lower.begin(), lower.end(), Index(0));
    const Index most = std::accumulate(upper.begin(), upper.end(), Index(0));
    const Index total = property::in_range<Index>(least, most + 1);
    // A plan in force that may have known other bounds.
    const bool within = property::coin();
    const auto other = signal<T>(n);
    previous = within ? ab::apportion::sainte_lague(other, total, lower, upper)
                      : ab::apportion::sainte_lague(other, total);
    const ab::apportion::Steady how{
        property::in_range(0, 101) / 100.0,
        property::in_range<Index>(0, static_cast<Index>(property::coin() ? 40 : 2 * n))};
    const auto fresh = ab::apportion::sainte_lague(w, total, lower, upper);
    Index up = 0, down = 0;
    for (std::size_t i = 0; i < n; ++i)
      up += std::max(Index(0), lower[i] - previous[i]), down += std::max(Index(0), previous[i] - upper[i]);
    const Index forced = std::max(up, down), wanted = ab::apportion::moved(previous, fresh);
    if (forced > how.churn) {
      PROPERTY_THROWS(ab::apportion::steady(w, total, lower, upper, previous, how), ab::BudgetError);
      return;
    }
    const auto plan = ab::apportion::steady(w, total, lower, upper, previous, how);
    PROPERTY(std::accumulate(plan.begin(), plan.end(), Index(0)) == total);
    const Index moved = ab::apportion::moved(previous, plan);
    const bool past = forced > 0 || double(wanted) > how.hysteresis * double(total);
    PROPERTY(moved == (past ? std::min(wanted, how.churn) : 0));
    for (std::size_t i = 0; i < n; ++i) {
      PROPERTY(plan[i] >= std::min(previous[i], fresh[i]) && plan[i] <= std::max(previous[i], fresh[i]));
      if (past) PROPERTY(plan[i] >= lower[i] && plan[i] <= upper[i]);
    }
    PROPERTY(plan == ab::apportion::steady(w, total, lower, upper, previous, how));
    const Index calls = how.churn > 0 ? (wanted + how.churn - 1) / how.churn : 0;
    if (calls > 0 && past && calls * static_cast<Index>(n) <= 200000) {  // constant weights: there in so many calls
      auto next = plan;
      const ab::apportion::Steady go{0, how.churn};
      for (Index call = 1; call < calls; ++call) next = ab::apportion::steady(w, total, lower, upper, next, go);
      PROPERTY(next == fresh);
    }
  });
}

TEMPLATE_TEST_CASE("balancer: replay, save and restore with every feedback", "[property]", SCALARS) {
  using T = TestType;
  const auto check = [](const char* name, auto policy, bool of_losses) {
    holds(
        name,
        [&] {
          const auto n = property::size();
          const int cut = property::in_range(0, 8);
          const Index total = property::in_range<Index>(0, 1000);
          const ab::apportion::Steady how{part(0, 10), property::in_range<Index>(0, 30)};
          using Balancer = ab::ResourceBalancer<T, ab::allocate::Proportional, decltype(policy)>;
          const auto items = static_cast<Index>(n);
          Balancer first(items, {}, policy), second(items, {}, policy), from_text(items, {}, policy),
              from_bytes(items, {}, policy);
          for (int t = 0; t < 9; ++t) {
            if (t == cut) {
              const auto saved = first.save();
              from_text.restore(ab::Snapshot<T>::from_text(saved.to_text()));
              from_bytes.restore(ab::Snapshot<T>::from_bytes(saved.to_bytes()));
              PROPERTY(from_text.save() == saved);
              PROPERTY(from_bytes.save() == saved);
            }
            const auto w = of_losses ? losses<T>(n) : signal<T>(n);
            const auto step = [&](Balancer& balancer) {
              try {
                balancer.update(w);
              } catch (const ab::InputError&) {  // Plain, when the last one alive has no weight
              }
              return balancer.units(total, how);
            };
            const auto units = step(first);
            PROPERTY(step(second) == units);
            if (t >= cut) {
              PROPERTY(step(from_text) == units);
              PROPERTY(step(from_bytes) == units);
            }
          }
          for (const auto* other : {&second, &from_text, &from_bytes}) {
            PROPERTY(other->save() == first.save());
            PROPERTY(std::equal(other->shares().begin(), other->shares().end(), first.shares().begin()));
          }
        },
        60);
  };
  check("Plain", feedback::Plain<T>{}, false);
  check("Leaky", feedback::Leaky<T>{T(0.3)}, false);
  check("Ema", feedback::Ema<T>{T(0.3)}, false);
  check("FixedShare", feedback::FixedShare{0.05, feedback::Plain<T>{}}, false);
  check("Hedge", feedback::Hedge<T>{50}, true);
  check("BiasBalancing", feedback::BiasBalancing<T>{T(0.02)}, false);
}
