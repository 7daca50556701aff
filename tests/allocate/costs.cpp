// Where bits and items have prices: bits.hpp and knapsack.hpp.
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention_balancer/allocate/bits.hpp"
#include "attention_balancer/allocate/knapsack.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
namespace apportion = ab::apportion;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Units = std::vector<Index>;

namespace {

double error_of(const std::vector<double>& s, const Units& bits) {
  double sum = 0;
  for (std::size_t i = 0; i < s.size(); ++i) sum += std::ldexp(s[i], static_cast<int>(-2 * bits[i]));
  return sum;
}

// The least error over all divisions within the bounds whose cost is `total` (or at most, if a price is given).
double least_error(const std::vector<double>& s, const Units& price, Index total, Index least, Index most,
                   bool exact) {
  Units bits(s.size(), least);
  double best = std::numeric_limits<double>::infinity();
  const std::function<void(std::size_t, Index)> visit = [&](std::size_t i, Index left) {
    if (left < 0) return;
    if (i == s.size()) {
      if (!exact || left == 0) best = std::min(best, error_of(s, bits));
      return;
    }
    for (bits[i] = least; bits[i] <= most; ++bits[i]) visit(i + 1, left - price[i] * bits[i]);
  };
  visit(0, total);
  return best;
}

}  // namespace

TEMPLATE_TEST_CASE("bits go where they save most", "", SCALARS) {
  using V = std::vector<TestType>;
  CHECK(apportion::bits(V{1, 1, 1, 1}, 12) == Units{3, 3, 3, 3});
  CHECK(apportion::bits(V{16, 4, 1}, 6) == Units{3, 2, 1});
  CHECK(apportion::bits(V{16, 4, 1}, 7) == Units{4, 2, 1});  // all three save the same: the largest weight first
  CHECK(apportion::bits(V{16, 4, 0}, 3) == Units{2, 1, 0});
  CHECK(apportion::bits(V{0, 0, 0}, 4) == Units{2, 1, 1});
  CHECK(apportion::bits(V{1000, 1, 0}, 9, Units{1, 1, 1}, Units{3, 4, 8}) == Units{3, 4, 2});
  CHECK(apportion::bits(V{1000, 1}, 2, Units{1, 1}, Units{3, 4}) == Units{1, 1});
  CHECK(apportion::bits(V{1000, 1}, 0) == Units{0, 0});
  CHECK(apportion::bits(V{}, 0).empty());
  CHECK(apportion::bits(V{std::numeric_limits<TestType>::max(), std::numeric_limits<TestType>::denorm_min()}, 8) ==
        Units{8, 0});
  const Index huge = Index(1) << 53;
  CHECK(apportion::bits(V{4, 1}, huge) == Units{huge / 2 + 1, huge / 2 - 1});
  CHECK_THROWS_AS(apportion::bits(V{1, -1}, 4), ab::InputError);
  CHECK_THROWS_AS(apportion::bits(V{1, 1}, 20, Units{1, 1}, Units{8, 8}), ab::BudgetError);
}

TEST_CASE("bits are optimal against brute force") {
  std::mt19937 random(4);
  std::lognormal_distribution<double> sensitivity(0, 4);
  for (int round = 0; round < 300; ++round) {
    std::vector<double> s(std::uniform_int_distribution<std::size_t>(1, 5)(random));
    for (double& x : s)
      x = round % 3 == 0 ? std::exp2(std::floor(std::log(sensitivity(random)))) : sensitivity(random);
    const Index n = static_cast<Index>(s.size()), least = round % 2;
    const Index most = least + 1 + round % 4,
                total = std::uniform_int_distribution<Index>(n * least, n * most)(random);
    const auto bits = apportion::bits(s, total, Units(s.size(), least), Units(s.size(), most));
    CAPTURE(s, total, least, most, bits);
    CHECK(std::accumulate(bits.begin(), bits.end(), Index(0)) == total);
    CHECK(error_of(s, bits) <= least_error(s, Units(s.size(), 1), total, least, most, true) * (1 + 1e-12));
  }
}

TEST_CASE("continuous bits are their mean and half the logarithm to base 2") {
  const auto b = apportion::continuous_bits(std::vector<double>{16, 4, 1}, 6);
  CHECK(b[0] == Approx(3));
  CHECK(b[1] == Approx(2));
  CHECK(b[2] == Approx(1));
  const auto clipped = apportion::continuous_bits(std::vector<float>{1e30f, 4, 1, 0}, 12, 1, 5);
  CHECK(clipped[0] == 5);
  CHECK(clipped[1] == Approx(3.5));
  CHECK(clipped[2] == Approx(2.5));
  CHECK(clipped[3] == 1);
  CHECK(apportion::continuous_bits(std::vector<double>{1e30, 1, 0}, 6, 0, 2) == std::vector<double>{2, 2, 2});
  CHECK(apportion::continuous_bits(std::vector<double>{}, 0).empty());
  CHECK_THROWS_AS(apportion::continuous_bits(std::vector<double>{}, 1), ab::BudgetError);
  CHECK_THROWS_WITH(apportion::continuous_bits(std::vector<double>{1, 1}, 6, 0, 2),
                    "sum of the most bits of 2 items is 4, but must reach the total 6");
  CHECK_THROWS_WITH(apportion::continuous_bits(std::vector<double>{1, 1}, 1, 1, 2),
                    "sum of the least bits of 2 items is 2, but must not exceed the total 1");
  CHECK_THROWS_AS(apportion::continuous_bits(std::vector<double>{1, 1}, 1, 3, 2), ab::BudgetError);
  CHECK_THROWS_AS(apportion::continuous_bits(std::vector<double>{1, -1}, 1), ab::InputError);
}

TEST_CASE("priced bits: within the budget, and the gap to the best is what is said") {
  std::mt19937 random(5);
  std::lognormal_distribution<double> sensitivity(0, 2);
  for (int round = 0; round < 300; ++round) {
    std::vector<double> s(std::uniform_int_distribution<std::size_t>(1, 4)(random));
    Units price(s.size());
    for (double& x : s) x = sensitivity(random);
    for (Index& p : price) p = std::uniform_int_distribution<Index>(1, 9)(random);
    const Index least = round % 2, most = least + 3;
    const Index cheapest = least * std::accumulate(price.begin(), price.end(), Index(0));
    const Index budget = cheapest + std::uniform_int_distribution<Index>(0, 50)(random);
    const auto plan = apportion::priced_bits(s, price, budget, least, most);
    const double best = least_error(s, price, budget, least, most, false);
    CAPTURE(s, price, budget, plan.bits);
    CHECK(plan.cost <= budget);
    CHECK(plan.cost == std::inner_product(price.begin(), price.end(), plan.bits.begin(), Index(0)));
    CHECK(plan.error == Approx(error_of(s, plan.bits)));
    CHECK(plan.bound <= best * (1 + 1e-12));
    CHECK(best <= plan.error * (1 + 1e-12));
  }
  // At one price it is what bits gives.
  const std::vector<double> s{100, 3, 0.5, 0};
  const auto same = apportion::priced_bits(s, Units(4, 7), 7 * 9, 1, 8);
  CHECK(same.bits == apportion::bits(s, 9, Units(4, 1), Units(4, 8)));
  CHECK(same.gap() == 0);
  CHECK_THROWS_WITH(apportion::priced_bits(s, Units(4, 7), 27, 1, 8),
                    "cost of the least bits up to item 3 is 28, but must not exceed the budget 27");
  CHECK_THROWS_WITH(apportion::priced_bits(s, Units{1, 0, 1, 1}, 27, 1, 8),
                    ContainsSubstring("price of a bit of item 1 is 0"));
  CHECK_THROWS_AS(apportion::priced_bits(s, Units(3, 1), 27, 1, 8), ab::ShapeError);
  CHECK_THROWS_AS(apportion::priced_bits(s, Units(4, 1), 27, 3, 2), ab::BudgetError);
  CHECK_THROWS_AS(apportion::priced_bits(std::vector<double>{-1}, Units(1, 1), 27, 0, 2), ab::InputError);
}

TEMPLATE_TEST_CASE("knapsack: the pins, then the most value per cost", "", SCALARS) {
  using V = std::vector<TestType>;
  const auto kept = [](const allocate::Packing& p) {
    return Units(p.selection.kept().begin(), p.selection.kept().end());
  };
  const auto plain = allocate::knapsack(V{6, 10, 12}, Units{1, 2, 3}, 5);
  CHECK(kept(plain) == Units{0, 1});
  CHECK(plain.value == 16);
  CHECK(plain.cost == 3);
  CHECK(plain.bound == 24);
  CHECK(plain.gap() == 8);
  CHECK(kept(allocate::knapsack(V{6, 10, 12}, Units{1, 2, 3}, 6)) == Units{0, 1, 2});
  CHECK(allocate::knapsack(V{6, 10, 12}, Units{1, 2, 3}, 6).gap() == 0);
  const auto single = allocate::knapsack(V{2, 10}, Units{1, 10}, 10);  // 2 per cost against 1
  CHECK(kept(single) == Units{1});
  CHECK(single.cost == 10);
  const Units pins{2};
  CHECK(kept(allocate::knapsack(V{6, 10, 0}, Units{1, 2, 3}, 5, {.pins = pins})) == Units{1, 2});
  const std::vector<bool> mask{true, false, true};
  CHECK(kept(allocate::knapsack(V{6, 10, 12}, Units{1, 2, 3}, 5, {.eligible = mask})) == Units{0, 2});
  CHECK(kept(allocate::knapsack(V{0, 1, 0}, Units{0, 1, 0}, 0)) == Units{0, 2});  // what costs nothing is kept
  CHECK_THROWS_WITH(allocate::knapsack(V{1, 1}, Units{3, 3}, 2), ContainsSubstring("allow_empty"));
  CHECK(kept(allocate::knapsack(V{1, 1}, Units{3, 3}, 2, {.allow_empty = true})).empty());
  CHECK_THROWS_WITH(allocate::knapsack(V{6, 10, 12}, Units{1, 2, 3}, 2, {.pins = pins}),
                    "cost of the pins up to item 2 is 3, but must not exceed the budget 2");
  CHECK_THROWS_WITH(allocate::knapsack(V{1, 1}, Units{1, -1}, 2), "cost of item 1 is -1, but must not be negative");
  CHECK_THROWS_AS(allocate::knapsack(V{1, -1}, Units{1, 1}, 2), ab::InputError);
  CHECK_THROWS_AS(allocate::knapsack(V{1, 1}, Units{1}, 2), ab::ShapeError);
  CHECK_THROWS_AS(allocate::knapsack(V{1, 1}, Units{1, 1}, -1), ab::BudgetError);
}

TEST_CASE("knapsack is within its gap of the best, and at least half of it") {
  std::mt19937 random(6);
  for (int round = 0; round < 500; ++round) {
    const auto n = std::uniform_int_distribution<std::size_t>(1, 10)(random);
    std::vector<double> values(n);
    Units costs(n);
    for (double& v : values) v = std::uniform_int_distribution<int>(0, round % 2 ? 5 : 1000)(random);
    for (Index& c : costs) c = std::uniform_int_distribution<Index>(0, 20)(random);
    const Index budget = std::uniform_int_distribution<Index>(0, 60)(random);
    double best = 0;
    for (unsigned set = 0; set < (1u << n); ++set) {
      double value = 0;
      Index cost = 0;
      for (std::size_t i = 0; i < n; ++i)
        if (set >> i & 1u) value += values[i], cost += costs[i];
      if (cost <= budget) best = std::max(best, value);
    }
    const auto p = allocate::knapsack(values, costs, budget, {.allow_empty = true});
    CAPTURE(values, costs, budget);
    CHECK(p.cost <= budget);
    CHECK(p.value <= best);
    CHECK(p.bound >= best - 1e-9);
    CHECK(2 * p.value >= best);
    double value = 0;
    Index cost = 0;
    for (const Index i : p.selection.kept()) value += values[std::size_t(i)], cost += costs[std::size_t(i)];
    CHECK(value == p.value);
    CHECK(cost == p.cost);
  }
}

TEST_CASE("prices and values as large and as small as they come") {
  using V = std::vector<double>;
  constexpr Index most = std::numeric_limits<Index>::max();
  // Values per cost underflow: the order is theirs all the same, and the bound holds.
  const auto tiny = allocate::knapsack(V{2e-323, 3e-323, 1e-322}, Units{10, 10, 100}, 100);
  CHECK(tiny.value == 1e-322);
  CHECK(allocate::knapsack(V{5e-324, 1e-323}, Units{3, 5}, 5).value == 1e-323);
  CHECK(allocate::knapsack(V{1e-323, 1.5e-323}, Units{4, 7}, 4).value == 1e-323);
  const auto dense = allocate::knapsack(V{5e-324, 5e-324, 5e-324, 1.5e-323}, Units{1, 1, 1, 100}, 100);
  CHECK(dense.value == 1.5e-323);
  CHECK(dense.bound >= dense.value);
  CHECK(allocate::knapsack(V{1e308, 1}, Units{most, most}, most).value == 1e308);
  CHECK(allocate::knapsack(V{1e308, 5e-324}, Units{most, 0}, most).cost == most);
  CHECK_THROWS_WITH(allocate::knapsack(V{1e308, 1e308}, Units{1, 1}, 2), ContainsSubstring("sum of the values"));
  CHECK_THROWS_AS(allocate::knapsack(V{1, 1}, Units{most, most}, most, {.pins = Units{0, 1}}), ab::BudgetError);
  CHECK_THROWS_WITH(apportion::priced_bits(V{1e308, 1e308}, Units{1, 1}, 8, 0, 8),
                    ContainsSubstring("sum of the sensitivity"));
  CHECK_THROWS_AS(apportion::priced_bits(V{1}, Units{1}, 8, most, most), ab::BudgetError);
  CHECK(apportion::priced_bits(V{1e308, 5e-324}, Units{1, 1}, Index(1) << 53, 0, most).bits[1] > 0);
  // Bits up to the largest total; and a bound so large that blocks of it exceed every number says so.
  const Index total = Index(1) << 53;
  const auto bits = apportion::bits(V{5e-324, 1.7e308, -0.0}, total);
  CHECK(bits[0] + bits[1] == total);
  CHECK(bits[1] - bits[0] == 1048);
  CHECK_THROWS_AS(apportion::bits(V{1, 1}, total + 1), ab::BudgetError);
  const Units huge{most, 0};
  const std::vector<apportion::Pin> pins{{0, 1000}};
  CHECK_THROWS_AS(apportion::hamilton(V{1, 1}, 1000, {.lower = huge, .step = 1000, .pins = pins}), ab::BudgetError);
  CHECK_THROWS_AS(apportion::hamilton(V{1, 1}, 1000, {.lower = huge, .step = 1000}), ab::BudgetError);
}
