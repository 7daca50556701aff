// Where items have costs or need several resources: bits by marginal utility, knapsacks, dominant-resource fairness.
// Each answer is checked at any size by what proves it best, not by trying the others.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention_balancer/allocate/bits.hpp"
#include "attention_balancer/allocate/fair.hpp"
#include "attention_balancer/allocate/knapsack.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
namespace apportion = ab::apportion;
using ab::Index;
using property::holds;
using property::total_of;
using Units = std::vector<Index>;

namespace {

Units whole_numbers(std::size_t n, int low, int high) {
  Units result;
  for (const int x : property::as_many(n, low, high)) result.push_back(x);
  return result;
}

/// s * 4^(-b).
template <class T>
long double left_at(T s, Index b) {
  return std::ldexp(static_cast<long double>(s), static_cast<int>(-2 * b));
}

template <class T>
std::vector<double> wide(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

}  // namespace

TEMPLATE_TEST_CASE("bits: optimal within bounds, at any size", "[property]", SCALARS) {
  using T = TestType;
  holds("no bit would save more elsewhere; one bit more changes one item", [] {
    const auto s = property::weights<T>();
    const std::size_t n = s.size();
    const auto lower = whole_numbers(n, 0, 4);
    auto upper = whole_numbers(n, 0, property::element({2, 9, 300}));
    for (std::size_t i = 0; i < n; ++i) upper[i] += lower[i];
    const Index total = property::in_range<Index>(total_of(lower), total_of(upper) + 1);
    const auto bits = apportion::bits(s, total, lower, upper);
    PROPERTY(total_of(bits) == total);
    long double most_to_gain = -1, least_to_lose = std::numeric_limits<long double>::infinity();
    for (std::size_t i = 0; i < n; ++i) {
      PROPERTY(bits[i] >= lower[i] && bits[i] <= upper[i]);
      if (bits[i] < upper[i]) most_to_gain = std::max(most_to_gain, left_at(s[i], bits[i]));
      if (bits[i] > lower[i]) least_to_lose = std::min(least_to_lose, left_at(s[i], bits[i] - 1));
    }
    PROPERTY(most_to_gain <= least_to_lose);
    if (total < total_of(upper)) {
      const auto more = apportion::bits(s, total + 1, lower, upper);
      for (std::size_t i = 0; i < n; ++i) PROPERTY(more[i] >= bits[i]);
    }
    auto scaled = s;
    const int shift = property::in_range(-20, 20);
    for (auto& x : scaled) x = std::ldexp(x, shift);
    PROPERTY(apportion::bits(scaled, total, lower, upper) == bits);
  });
  holds("within one of the continuous form", [] {
    const auto s = property::weights<T>();
    const Index n = static_cast<Index>(s.size()), least = property::in_range<Index>(0, 4);
    const Index most = least + property::in_range<Index>(0, 60);
    const Index total = property::in_range<Index>(n * least, n * most + 1);
    const Units lower(s.size(), least), upper(s.size(), most);
    const auto bits = apportion::bits(s, total, lower, upper);
    const auto exact =
        apportion::continuous_bits(s, static_cast<double>(total), static_cast<double>(least), double(most));
    PROPERTY(std::abs(static_cast<double>(property::sum(exact)) - double(total)) <= 1e-12 * double(total));
    for (std::size_t i = 0; i < s.size(); ++i) {
      PROPERTY((exact[i] >= double(least) && exact[i] <= double(most)));
      PROPERTY(std::abs(double(bits[i]) - exact[i]) < 1 + 1e-9);
    }
  });
}

TEMPLATE_TEST_CASE("priced bits: within the budget, and the bound is the optimum with a bit split", "[property]",
                   SCALARS) {
  using T = TestType;
  holds("cost, error, bound", [] {
    const auto s = property::weights<T>();
    const std::size_t n = s.size();
    auto price = whole_numbers(n, 1, 50);
    const bool one_price = property::coin();
    if (one_price) std::fill(price.begin(), price.end(), price[0]);
    const Index least = property::in_range<Index>(0, 3);
    const Index most = least + property::in_range<Index>(0, n <= 100 ? 100 : 10);
    const Index budget = property::in_range<Index>(least * total_of(price), most * total_of(price) + 50);
    const auto plan = apportion::priced_bits(s, price, budget, least, most);
    Index cost = 0;
    long double error = 0, worth = 0;  // of a unit of cost: what the first that was passed over would have saved
    for (std::size_t i = 0; i < n; ++i) {
      PROPERTY(plan.bits[i] >= least && plan.bits[i] <= most);
      cost += price[i] * plan.bits[i];
      error += left_at(s[i], plan.bits[i]);
      if (plan.bits[i] < most)
        worth = std::max(worth, left_at(s[i], plan.bits[i]) * 3 / 4 / static_cast<long double>(price[i]));
    }
    PROPERTY(cost == plan.cost && cost <= budget);
    PROPERTY(std::abs(static_cast<double>(error - plan.error)) <= 1e-13 * plan.error);
    for (std::size_t i = 0; i < n; ++i)
      if (plan.bits[i] < most && price[i] <= budget - cost) PROPERTY(s[i] == T(0));
    // By duality: whatever a unit of cost is worth, no division has a smaller error than the sum of what is best for
    // each item at that price, less the budget at that price.
    long double bound = error - worth * static_cast<long double>(budget - cost);
    for (std::size_t i = 0; i < n; ++i) {
      long double more = 0;
      for (Index b = least; b <= most; ++b)
        more = std::min(more, left_at(s[i], b) - left_at(s[i], plan.bits[i]) +
                                  worth * static_cast<long double>(price[i] * (b - plan.bits[i])));
      bound += more;
    }
    PROPERTY(std::abs(static_cast<double>(bound - plan.bound)) <= 1e-12 * plan.error);
    PROPERTY(plan.bound <= plan.error);
    if (one_price) {
      const Index total = std::min(budget / price[0], most * static_cast<Index>(n));
      const auto same = apportion::bits(s, total, Units(n, least), Units(n, most));
      long double of_same = 0;
      for (std::size_t i = 0; i < n; ++i) of_same += left_at(s[i], same[i]);
      PROPERTY(std::abs(static_cast<double>(of_same - error)) <= 1e-13 * plan.error);
    }
  });
}

TEMPLATE_TEST_CASE("knapsack: within the budget, at least half of the best, and the bound holds", "[property]",
                   SCALARS) {
  using T = TestType;
  holds("cost, value, bound, pins, mask", [] {
    const auto values = property::weights<T>();
    const std::size_t n = values.size();
    auto costs = whole_numbers(n, 0, 50);
    const Index grain = property::element<Index>({1, 1000, Index(1) << 40});
    for (std::size_t i = 0; i < n; ++i) costs[i] *= i % 3 == 0 ? 1 : grain;
    std::vector<bool> mask;
    Units pins;
    Index of_pins = 0, all = 0;
    for (const int x : property::as_many(n, 0, 12)) {
      const auto i = mask.size();
      mask.push_back(x > 1), all += costs[i];
      if (x == 11) pins.push_back(static_cast<Index>(i)), of_pins += costs[i];
    }
    const Index budget = of_pins + property::in_range<Index>(0, std::max<Index>(1, all / property::in_range(1, 6)));
    const allocate::SelectOptions options{.pins = pins, .eligible = mask, .allow_empty = true};
    const auto p = allocate::knapsack(values, costs, budget, options);
    Index cost = 0;
    long double value = 0, pinned = 0;
    for (const Index i : p.selection.kept()) {
      PROPERTY(mask[static_cast<std::size_t>(i)]);
      cost += costs[static_cast<std::size_t>(i)],
          value += static_cast<long double>(values[static_cast<std::size_t>(i)]);
    }
    for (const Index pin : pins) {
      PROPERTY(p.selection.contains(pin));
      pinned += static_cast<long double>(values[static_cast<std::size_t>(pin)]);
    }
    PROPERTY(cost == p.cost && cost <= budget);
    PROPERTY(std::abs(static_cast<double>(value - p.value)) <= 1e-13 * p.value);

    // The optimum with one item split, by the definition: the others in the order of their values per cost.
    struct Item {
      long double value, cost;
    };
    std::vector<Item> items;
    long double bound = pinned, left = static_cast<long double>(budget - of_pins), most = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const auto v = static_cast<long double>(values[i]);
      if (!mask[i] || std::binary_search(pins.begin(), pins.end(), static_cast<Index>(i))) continue;
      if (costs[i] == 0)
        bound += v;
      else if (costs[i] <= budget - of_pins)
        items.push_back({v, static_cast<long double>(costs[i])});
    }
    std::sort(items.begin(), items.end(),
              [](const Item& a, const Item& b) { return a.value * b.cost > b.value * a.cost; });
    for (const Item& item : items) {
      most = std::max(most, item.value);
      const long double part = item.cost > left ? left / item.cost : 1;
      bound += item.value * part;
      left -= item.cost * part;
    }
    PROPERTY(std::abs(static_cast<double>(bound - p.bound)) <= 1e-12 * p.bound || p.bound == p.value);
    PROPERTY(static_cast<double>(bound) <= p.bound * (1 + 1e-12));
    PROPERTY(p.value <= p.bound);
    PROPERTY(static_cast<double>(value - pinned) >= static_cast<double>(bound - pinned) / 2 - 1e-12 * p.bound);
    PROPERTY(p.gap() <= static_cast<double>(most) * (1 + 1e-9) + 1e-12 * p.bound);

    auto scaled = values;
    const int shift = property::in_range(-20, 20);
    for (auto& x : scaled) x = std::ldexp(x, shift);
    PROPERTY(allocate::knapsack(scaled, costs, budget, options).selection == p.selection);
    if (!pins.empty() && of_pins > 0)
      PROPERTY_THROWS(allocate::knapsack(values, costs, of_pins - 1, options), ab::BudgetError);
  });
}

namespace {

/// Users and resources of any magnitude, or such that several resources run out at once.
template <class T>
struct Users {
  std::size_t users = 0, resources = 0;
  std::vector<T> demands, capacities, weights, caps;

  double part(std::size_t i, std::size_t r) const {
    return double(demands[i * resources + r]) / double(capacities[r]);
  }
  double dominant(std::size_t i) const {
    double most = 0;
    for (std::size_t r = 0; r < resources; ++r)
      if (demands[i * resources + r] > T(0)) most = std::max(most, part(i, r));
    return most;
  }
  /// Needs what there is none of.
  bool starved(std::size_t i) const { return dominant(i) == std::numeric_limits<double>::infinity(); }

  allocate::FairTasks divide() const { return allocate::dominant_resource(demands, capacities, weights, caps); }
};

template <class T>
Users<T> make_users() {
  Users<T> c;
  c.users = property::size(), c.resources = property::in_range<std::size_t>(1, 5);
  const int kind = property::in_range(0, 4);
  if (kind == 3 && c.resources > 2) {
    // All run out at one level up to rounding, and then there are users who need next to nothing of one of them.
    for (std::size_t r = 0; r < c.resources; ++r)
      c.capacities.push_back(static_cast<T>(0.7) * static_cast<T>(2 * r + 1));
    for (const int x : property::as_many(c.users, 0, 100000))
      for (std::size_t r = 0; r < c.resources; ++r) {
        const bool last = r + 1 == c.resources;
        const T factor = static_cast<T>(x) / T(1000);
        if (x % 8 == 0)
          c.demands.push_back(last ? T(1) : r == 1 ? T(1e-20) : T(0));
        else
          c.demands.push_back(last ? T(0) : static_cast<T>(2 * r + 1) * factor);
      }
    return c;
  }
  if (kind == 2) {
    const auto pattern = property::weights<T>(c.resources);
    for (const T w : property::weights<T>(c.users))
      for (const T x : pattern) c.demands.push_back(std::sqrt(x) * std::sqrt(w));
  } else {
    c.demands = property::weights<T>(c.users * c.resources);
  }
  c.capacities = property::weights<T>(c.resources);
  if (property::in_range(0, 4) > 0)
    for (T& x : c.capacities) x = std::max(x, T(1e-30));  // mostly there is something of each
  for (std::size_t i = 0; i < c.users; ++i) {
    T* of_user = &c.demands[i * c.resources];
    if (std::all_of(of_user, of_user + c.resources, [](T d) { return d == T(0); })) of_user[i % c.resources] = T(1);
  }
  if (property::coin()) c.weights = property::weights<T>(c.users);
  if (property::coin()) {
    c.caps = property::weights<T>(c.users);
    if (property::coin()) std::fill(c.caps.begin(), c.caps.end(), std::numeric_limits<T>::infinity());
  }
  return c;
}

}  // namespace

TEMPLATE_TEST_CASE("dominant_resource: fair, and nothing left that anybody could use", "[property]", SCALARS) {
  using T = TestType;
  holds("each is held by its cap, or by a resource that is gone and of which none has more", [] {
    const auto c = make_users<T>();
    const auto plan = c.divide();
    const double slack = 1e-14 + 4e-16 * double(c.users);
    std::vector<long double> used(c.resources, 0);
    std::vector<double> most(c.resources, 0);  // the largest weighted share of those who use a resource
    const auto weight = [&](std::size_t i) { return c.weights.empty() ? 1.0 : double(c.weights[i]); };
    for (std::size_t i = 0; i < c.users; ++i) {
      PROPERTY(plan.tasks[i] >= 0 && std::isfinite(plan.tasks[i]));
      if (!c.caps.empty()) PROPERTY(plan.tasks[i] <= double(c.caps[i]));
      if (!(plan.tasks[i] > 0)) continue;
      PROPERTY(!c.starved(i) && weight(i) > 0);
      PROPERTY(std::abs(plan.share[i] - plan.tasks[i] * c.dominant(i)) <= 1e-14 * plan.share[i]);
      for (std::size_t r = 0; r < c.resources; ++r) {
        const T demand = c.demands[i * c.resources + r];
        if (!(demand > T(0))) continue;
        used[r] += static_cast<long double>(demand) * plan.tasks[i];
        most[r] = std::max(most[r], plan.share[i] / weight(i));
      }
    }
    for (std::size_t r = 0; r < c.resources; ++r) {
      PROPERTY(static_cast<double>(used[r]) <= double(c.capacities[r]) * (1 + slack));
      PROPERTY(std::abs(static_cast<double>(used[r] - plan.used[r])) <= slack * plan.used[r]);
    }
    for (std::size_t i = 0; i < c.users; ++i) {
      if (weight(i) == 0) continue;
      const Index by = plan.held_by[i];
      if (by < 0) {
        PROPERTY(!c.caps.empty() && plan.tasks[i] == double(c.caps[i]));
        continue;
      }
      const auto r = static_cast<std::size_t>(by);
      PROPERTY(c.demands[i * c.resources + r] > T(0));
      if (c.capacities[r] == T(0)) continue;
      PROPERTY(static_cast<double>(used[r]) >= double(c.capacities[r]) * (1 - slack));
      PROPERTY(plan.share[i] / weight(i) >= most[r] * (1 - slack));
    }
  });
  holds("sharing pays, nobody envies, scaling and order change nothing", [] {
    auto c = make_users<T>();
    c.caps.clear();
    const auto plan = c.divide();
    long double all = 0;
    for (std::size_t i = 0; i < c.users; ++i) all += c.weights.empty() ? 1 : static_cast<long double>(c.weights[i]);
    for (std::size_t i = 0; i < c.users; ++i)
      if (!c.starved(i) && all > 0)  // at least what a part of every resource by weight would give
        PROPERTY(plan.share[i] >= static_cast<double>((c.weights.empty() ? 1 : c.weights[i]) / all) * (1 - 1e-9));
    if (c.weights.empty() && !c.starved(0)) {
      // How many tasks user 0 could run with what another has.
      for (std::size_t j = 0; j < c.users; ++j) {
        double could = std::numeric_limits<double>::infinity();
        for (std::size_t r = 0; r < c.resources; ++r)
          if (c.demands[r] > T(0))
            could = std::min(could, double(c.demands[j * c.resources + r]) / double(c.demands[r]) * plan.tasks[j]);
        PROPERTY(could <= plan.tasks[0] * (1 + 1e-9));
      }
    }
    auto moved = c;
    const auto order = property::order(c.users);
    const int of_resource = property::in_range(-20, 20), of_weights = property::in_range(-20, 20);
    for (T& x : moved.capacities) x = std::ldexp(x, of_resource);
    for (std::size_t i = 0; i < c.users; ++i) {
      const auto from = static_cast<std::size_t>(order[i]);
      for (std::size_t r = 0; r < c.resources; ++r)
        moved.demands[i * c.resources + r] = std::ldexp(c.demands[from * c.resources + r], of_resource);
      if (!c.weights.empty()) moved.weights[i] = std::ldexp(c.weights[from], of_weights);
    }
    const auto again = moved.divide();
    for (std::size_t i = 0; i < c.users; ++i) {
      const double before = plan.tasks[static_cast<std::size_t>(order[i])];
      PROPERTY(std::abs(again.tasks[i] - before) <= 1e-9 * before);
    }
  });
}
