#include "attention_balancer/allocate/apportion.hpp"

#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace apportion = ab::apportion;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Units = std::vector<Index>;

namespace {

// The definitions, word for word, in integers: exact.
Units slow_hamilton(const std::vector<Index>& weights, Index total) {
  const Index sum = std::accumulate(weights.begin(), weights.end(), Index(0));
  Units units;
  std::vector<Index> rest;
  for (const Index w : weights) units.push_back(w * total / sum), rest.push_back(w * total % sum);
  for (Index left = total - std::accumulate(units.begin(), units.end(), Index(0)); left > 0; --left) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < units.size(); ++i)
      if (rest[i] > rest[best] || (rest[i] == rest[best] && weights[i] > weights[best])) best = i;
    ++units[best];
    rest[best] = -1;
  }
  return units;
}

Units slow_sainte_lague(const std::vector<Index>& weights, Index total, Units units, const Units& upper) {
  for (Index left = total - std::accumulate(units.begin(), units.end(), Index(0)); left > 0; --left) {
    std::size_t best = units.size();
    for (std::size_t i = 0; i < units.size(); ++i) {
      if (units[i] >= upper[i]) continue;
      if (best == units.size()) best = i;
      const Index mine = weights[i] * (2 * units[best] + 1), its = weights[best] * (2 * units[i] + 1);
      if (mine > its || (mine == its && weights[i] > weights[best])) best = i;
    }
    ++units[best];
  }
  return units;
}

Index total_of(const Units& units) { return std::accumulate(units.begin(), units.end(), Index(0)); }

Units by(const std::string& method, const std::vector<double>& weights, Index total,
         const apportion::Options& options = {}) {
  if (method == "hamilton") return apportion::hamilton(weights, total, options);
  if (method == "sainte_lague") return apportion::sainte_lague(weights, total, options);
  if (method == "dhondt") return apportion::dhondt(weights, total, options);
  if (method == "huntington_hill") return apportion::huntington_hill(weights, total, options);
  if (method == "adams") return apportion::adams(weights, total, options);
  if (method == "quota") return apportion::quota(weights, total, options);
  throw std::invalid_argument(method);
}

template <class T>
std::vector<T> as(const std::vector<Index>& weights) {
  return {weights.begin(), weights.end()};
}

}  // namespace

TEMPLATE_TEST_CASE("the example of the two methods", "", SCALARS) {
  const std::vector<TestType> weights{6, 6, 2};
  CHECK(apportion::hamilton(weights, 10) == Units{4, 4, 2});
  CHECK(apportion::hamilton(weights, 11) == Units{5, 5, 1});
  CHECK(apportion::sainte_lague(weights, 9) == Units{4, 4, 1});
  CHECK(apportion::sainte_lague(weights, 10) == Units{5, 4, 1});  // 6 / 4.5 == 2 / 1.5: the larger weight
  CHECK(apportion::sainte_lague(weights, 11) == Units{5, 5, 1});
  CHECK(apportion::sainte_lague(weights, 12) == Units{5, 5, 2});
}

TEMPLATE_TEST_CASE("totals of nothing, weights of nothing", "", SCALARS) {
  using V = std::vector<TestType>;
  CHECK(apportion::hamilton(V{1, 2}, 0) == Units{0, 0});
  CHECK(apportion::sainte_lague(V{1, 2}, 0) == Units{0, 0});
  CHECK(apportion::hamilton(V{}, 0).empty());
  CHECK(apportion::sainte_lague(V{}, 0).empty());
  CHECK(apportion::hamilton(V{0, 0, 0}, 7) == Units{3, 2, 2});
  CHECK(apportion::sainte_lague(V{0, 0, 0}, 7) == Units{3, 2, 2});
  CHECK(apportion::hamilton(V{0, 1, 0}, 7) == Units{0, 7, 0});
  CHECK(apportion::sainte_lague(V{0, 1, 0}, 7) == Units{0, 7, 0});
}

TEST_CASE("ties go to the larger weight, then to the lower index") {
  CHECK(apportion::hamilton(std::vector<double>{1, 1, 1}, 2) == Units{1, 1, 0});
  CHECK(apportion::hamilton(std::vector<double>{1, 1, 4}, 4) == Units{1, 0, 3});  // remainders 2/3, 2/3, 2/3
  CHECK(apportion::sainte_lague(std::vector<double>{1, 1, 1}, 2) == Units{1, 1, 0});
  CHECK(apportion::sainte_lague(std::vector<double>{1, 3}, 2) == Units{0, 2});  // 1 / 0.5 == 3 / 1.5
  CHECK(apportion::sainte_lague(std::vector<double>{3, 1}, 2) == Units{2, 0});
}

TEMPLATE_TEST_CASE("both methods agree with their definition in integers", "", SCALARS) {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    const auto n = std::uniform_int_distribution<std::size_t>(1, 9)(random);
    const Index most = round % 3 == 0 ? 4 : round % 3 == 1 ? 40 : 4000;  // small ones tie often
    const Index total = std::uniform_int_distribution<Index>(0, 120)(random);
    std::vector<Index> weights(n);
    for (auto& w : weights) w = std::uniform_int_distribution<Index>(0, most)(random);
    weights[0] += 1;
    CAPTURE(weights, total);
    CHECK(apportion::hamilton(as<TestType>(weights), total) == slow_hamilton(weights, total));
    CHECK(apportion::sainte_lague(as<TestType>(weights), total) ==
          slow_sainte_lague(weights, total, Units(n, 0), Units(n, total)));
  }
}

TEST_CASE("sainte_lague within bounds agrees with awarding one by one") {
  std::mt19937 random(2);
  for (int round = 0; round < 3000; ++round) {
    const auto n = std::uniform_int_distribution<std::size_t>(1, 8)(random);
    std::vector<Index> weights(n);
    Units lower(n), upper(n);
    Index least = 0, most = 0;
    for (std::size_t i = 0; i < n; ++i) {
      weights[i] = std::uniform_int_distribution<Index>(1, round % 2 ? 5 : 1000)(random);
      lower[i] = std::uniform_int_distribution<Index>(0, 9)(random);
      upper[i] = lower[i] + std::uniform_int_distribution<Index>(0, 30)(random);
      least += lower[i], most += upper[i];
    }
    const Index total = std::uniform_int_distribution<Index>(least, most)(random);
    CAPTURE(weights, lower, upper, total);
    CHECK(apportion::sainte_lague(as<double>(weights), total, lower, upper) ==
          slow_sainte_lague(weights, total, lower, upper));
  }
}

TEST_CASE("sainte_lague within bounds: zero weights, tiny weights") {
  CHECK(apportion::sainte_lague(std::vector<double>{5, 0, 1, 0, 0}, 12, Units(5, 0), Units{3, 9, 3, 9, 1}) ==
        Units{3, 3, 3, 2, 1});
  CHECK(apportion::sainte_lague(std::vector<double>{5, 0, 1}, 6, Units{0, 2, 0}, Units(3, 6)) == Units{3, 2, 1});
  CHECK(apportion::sainte_lague(std::vector<double>{1e300, 1e-300, 2e-300}, 10, Units(3, 0), Units{4, 10, 10}) ==
        Units{4, 2, 4});
  CHECK(apportion::sainte_lague(std::vector<double>{1, 1}, 4, Units{0, 3}, Units{1, 3}) == Units{1, 3});
  // The smallest double beside the largest, and all of a huge total left to it and its like.
  const Index total = Index(1) << 53;
  const auto units = apportion::sainte_lague(std::vector<double>{1.7e308, 5e-324, 5e-324}, total, Units(3, 0),
                                             Units{4, total, total});
  CHECK(units == Units{4, total / 2 - 2, total / 2 - 2});
}

TEMPLATE_TEST_CASE("sums are exact at any size and any total", "", SCALARS) {
  std::mt19937_64 random(3);
  std::lognormal_distribution<double> weight(0, 5);
  for (const std::size_t n : {1u, 2u, 3u, 100u, 10000u, 100000u})
    for (const Index total : {Index(0), Index(1), Index(n) - 1, Index(n) + 1, Index(1000003), Index(1) << 40,
                              (Index(1) << 53) - 1, Index(1) << 53}) {
      std::vector<TestType> weights(n);
      for (auto& w : weights) w = static_cast<TestType>(weight(random));
      CAPTURE(n, total);
      const Units hamilton = apportion::hamilton(weights, total),
                  sainte_lague = apportion::sainte_lague(weights, total);
      CHECK(std::accumulate(hamilton.begin(), hamilton.end(), Index(0)) == total);
      CHECK(std::accumulate(sainte_lague.begin(), sainte_lague.end(), Index(0)) == total);
      CHECK(*std::min_element(hamilton.begin(), hamilton.end()) >= 0);
      CHECK(*std::min_element(sainte_lague.begin(), sainte_lague.end()) >= 0);
    }
}

TEST_CASE("one giant among many that round up: far from quota and still exact") {
  // Each dwarf has a quota just above 1/2, so Sainte-Lague gives it a unit that the giant loses.
  for (const Index dwarfs : {10, 1000}) {
    std::vector<Index> weights(static_cast<std::size_t>(dwarfs), 51);
    weights.push_back(100 * 2 * dwarfs);
    const Index total = 2 * dwarfs + dwarfs / 2;
    CHECK(apportion::sainte_lague(as<double>(weights), total) ==
          slow_sainte_lague(weights, total, Units(weights.size(), 0), Units(weights.size(), total)));
  }
}

TEST_CASE("equal weights share to within one unit, whatever the total") {
  for (const Index total : {Index(99), Index(1) << 52, (Index(1) << 53) - 1}) {
    const std::vector<double> weights(7, 0.1);
    for (const auto& units : {apportion::hamilton(weights, total), apportion::sainte_lague(weights, total)}) {
      CHECK(units.front() - units.back() <= 1);
      CHECK(std::is_sorted(units.rbegin(), units.rend()));
    }
  }
}

TEST_CASE("unit_limits are the whole units within limits on shares") {
  using Limits = ab::allocate::Limits<float>;
  const auto limits = [](float floor, float cap, Index total) {
    const auto whole = apportion::unit_limits(Limits{floor, cap, true}, total);
    return std::pair(whole.lower, whole.upper);
  };
  CHECK(limits(0.1f, 0.3f, 1000) == std::pair<Index, Index>(100, 300));  // 0.1f is above 0.1, 0.3f too
  CHECK(limits(0.7f, 0.7f, 10) == std::pair<Index, Index>(7, 7));        // 0.7f is below 0.7
  CHECK(limits(0.15f, 0.25f, 10) == std::pair<Index, Index>(2, 2));
  CHECK(limits(0.01f, 0.99f, 10) == std::pair<Index, Index>(1, 9));
  CHECK(limits(0, 1, Index(1) << 53) == std::pair<Index, Index>(0, Index(1) << 53));
  CHECK(limits(0, std::numeric_limits<float>::infinity(), 10) == std::pair<Index, Index>(0, 10));
  CHECK(apportion::unit_limits(Limits{0, 0, false}, 10).upper == 0);
  CHECK(apportion::unit_limits(ab::allocate::Limits<double>{0.07, 0.57, true}, 100).lower ==
        7);  // 7.000000000000001
  CHECK(apportion::unit_limits(ab::allocate::Limits<double>{0.07, 0.57, true}, 100).upper == 57);
}

TEMPLATE_TEST_CASE("apportionment names what is wrong", "", SCALARS) {
  using V = std::vector<TestType>;
  const TestType nan = std::numeric_limits<TestType>::quiet_NaN();
  CHECK_THROWS_AS(apportion::hamilton(V{1, nan}, 3), ab::InputError);
  CHECK_THROWS_AS(apportion::sainte_lague(V{1, -1}, 3), ab::InputError);
  CHECK_THROWS_WITH(apportion::sainte_lague(V{1, -1}, 3), ContainsSubstring("weight of item 1 is -1"));
  CHECK_THROWS_AS(apportion::hamilton(V{1}, -1), ab::BudgetError);
  CHECK_THROWS_WITH(apportion::sainte_lague(V{1}, -1), "total is -1, but must not be negative");
  CHECK_THROWS_AS(apportion::hamilton(V{1}, (Index(1) << 53) + 1), ab::BudgetError);
  CHECK_THROWS_AS(apportion::hamilton(V{}, 1), ab::BudgetError);
  CHECK_THROWS_AS(apportion::sainte_lague(V{}, 1), ab::BudgetError);
  const V w{1, 1};
  CHECK_THROWS_AS(apportion::sainte_lague(w, 3, Units{0}, Units{3, 3}), ab::ShapeError);
  CHECK_THROWS_WITH(apportion::sainte_lague(w, 3, Units{2, 2}, Units{3, 3}),
                    ContainsSubstring("up to item 1 is 4, but must not exceed the total 3"));
  CHECK_THROWS_WITH(apportion::sainte_lague(w, 3, Units{0, 0}, Units{1, 1}),
                    ContainsSubstring("upper bounds of 2 items is 2, but must reach the total 3"));
  CHECK_THROWS_WITH(apportion::sainte_lague(w, 3, Units{0, 2}, Units{1, 1}),
                    ContainsSubstring("lower bound of item 1 is 2, but must not exceed its upper bound 1"));
  CHECK_THROWS_AS(apportion::sainte_lague(w, 3, Units{-1, 0}, Units{1, 1}), ab::BudgetError);
}

// golden/make_apportion.py: method, total, weights, units by the PyPI package `apportionment`.
TEST_CASE("every method agrees with the package apportionment") {
  std::ifstream file(ATTENTION_BALANCER_TEST_DATA "/apportion.csv");
  REQUIRE(file);
  std::string line;
  std::map<std::string, int> checked;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream fields(line);
    std::string method, total, weight_list, unit_list;
    std::getline(fields, method, ',');
    std::getline(fields, total, ',');
    std::getline(fields, weight_list, ',');
    std::getline(fields, unit_list, ',');
    std::vector<double> weights;
    Units expected;
    std::istringstream weight_stream(weight_list), unit_stream(unit_list);
    for (double w; weight_stream >> w;) weights.push_back(w);
    for (Index u; unit_stream >> u;) expected.push_back(u);
    INFO(line);
    REQUIRE(weights.size() == expected.size());
    ++checked[method];
    CHECK(by(method, weights, std::stoll(total)) == expected);
  }
  CHECK(checked.size() == 6);
  for (const auto& [method, lines] : checked) CHECK(lines == 60);
}

TEST_CASE("the methods on one example of Balinski and Young") {
  const std::vector<double> states{9061, 7179, 5259, 3319, 1182};
  CHECK(apportion::hamilton(states, 26) == Units{9, 7, 5, 4, 1});
  CHECK(apportion::dhondt(states, 26) == Units{10, 7, 5, 3, 1});
  CHECK(apportion::sainte_lague(states, 26) == Units{9, 8, 5, 3, 1});
  CHECK(apportion::huntington_hill(states, 26) == Units{9, 7, 6, 3, 1});
  CHECK(apportion::adams(states, 26) == Units{9, 7, 5, 3, 2});
  CHECK(apportion::quota(states, 26) == Units{10, 7, 5, 3, 1});
}

TEST_CASE("methods that give the first unit to all, when it does not suffice for all") {
  const std::vector<double> weights{1, 5, 0, 3, 5};
  for (const char* method : {"adams", "huntington_hill"}) {
    CHECK(by(method, weights, 0) == Units{0, 0, 0, 0, 0});
    CHECK(by(method, weights, 1) == Units{0, 1, 0, 0, 0});
    CHECK(by(method, weights, 3) == Units{0, 1, 0, 1, 1});
    CHECK(by(method, weights, 4) == Units{1, 1, 0, 1, 1});
    CHECK(by(method, weights, 5) == Units{1, 2, 0, 1, 1});
  }
  CHECK(apportion::adams(weights, 3, Units{0, 0, 0, 0, 2}, Units{5, 0, 5, 5, 5}) == Units{0, 0, 0, 1, 2});
  CHECK(apportion::adams(weights, 9, Units{0, 0, 0, 0, 2}, Units{1, 1, 5, 1, 3}) == Units{1, 1, 3, 1, 3});
}

TEST_CASE("equal prices of Huntington-Hill are ties") {
  // 1 / sqrt(1 * 2) and 6 / sqrt(8 * 9): the larger weight comes first.
  for (const double scale : {1.0, 3.0, 12345.0, 1e-300}) {
    CHECK(apportion::huntington_hill(std::vector<double>{scale, 6 * scale}, 9) == Units{1, 8});
    CHECK(apportion::huntington_hill(std::vector<double>{scale, 6 * scale}, 10) == Units{1, 9});
    CHECK(apportion::huntington_hill(std::vector<double>{scale, 6 * scale}, 11) == Units{2, 9});
  }
}

TEMPLATE_TEST_CASE("hamilton within bounds", "", SCALARS) {
  using V = std::vector<TestType>;
  CHECK(apportion::hamilton(V{6, 6, 2}, 10, Units{0, 0, 0}, Units{3, 9, 9}) == Units{3, 5, 2});  // 3, 5.25, 1.75
  CHECK(apportion::hamilton(V{6, 6, 2}, 10, Units{0, 0, 4}, Units{9, 9, 9}) == Units{3, 3, 4});
  CHECK(apportion::hamilton(V{5, 0, 1, 0, 0}, 12, Units(5, 0), Units{3, 9, 3, 9, 1}) == Units{3, 3, 3, 2, 1});
  CHECK(apportion::hamilton(V{1, 1}, 4, Units{0, 3}, Units{1, 3}) == Units{1, 3});
  CHECK_THROWS_AS(apportion::hamilton(V{1, 1}, 4, Units{0, 3}, Units{0, 3}), ab::BudgetError);
}

TEST_CASE("blocks, pins and ids") {
  const std::vector<double> weights{6, 6, 2};
  const Units lower{0, 0, 17}, upper{40, 100, 100}, ids{3, 1, 2};
  const apportion::Pin pins[] = {{0, 32}}, uneven[] = {{0, 30}}, outside[] = {{0, 64}}, nobody[] = {{3, 16}},
                       twice[] = {{0, 32}, {0, 16}};
  for (const char* method : {"hamilton", "sainte_lague", "dhondt", "huntington_hill", "adams"}) {
    INFO(method);
    CHECK(by(method, weights, 160, {.step = 16})[0] % 16 == 0);
    CHECK(by(method, weights, 160, {.lower = lower, .upper = upper, .step = 16}) == Units{32, 96, 32});
    CHECK(by(method, weights, 160, {.step = 16, .pins = pins})[0] == 32);
    CHECK(total_of(by(method, weights, 160, {.step = 16, .pins = pins})) == 160);
  }
  CHECK(apportion::quota(weights, 160, {.step = 16}) == Units{80, 64, 16});
  CHECK(apportion::hamilton(std::vector<double>{1, 1, 1}, 2, {.ids = ids}) == Units{0, 1, 1});
  CHECK(apportion::sainte_lague(std::vector<double>{1, 1, 1}, 2, {.ids = ids}) == Units{0, 1, 1});
  CHECK(apportion::adams(std::vector<double>{1, 1, 1}, 1, {.ids = ids}) == Units{0, 1, 0});
  CHECK(apportion::quota(std::vector<double>{1, 1, 1}, 2, {.ids = ids}) == Units{0, 1, 1});
  const auto give = [&](const apportion::Options& options, Index total = 160) {
    return apportion::sainte_lague(weights, total, options);
  };
  CHECK_THROWS_WITH(give({.step = 16}, 161), "total is 161, but must be a multiple of the step 16");
  CHECK_THROWS_WITH(give({.step = 0}), "step is 0, but must be at least 1");
  CHECK_THROWS_WITH(give({.step = 16, .pins = uneven}),
                    "pin of item 0 is 30, but must be a multiple of the step 16");
  CHECK_THROWS_WITH(give({.upper = upper, .step = 16, .pins = outside}),
                    "pin of item 0 is 64, but must be within its bounds, other pins and the total, [0, 32]");
  CHECK_THROWS_AS(give({.pins = nobody}), ab::InputError);
  CHECK_THROWS_AS(give({.pins = twice}), ab::BudgetError);
  const Units narrow{15, 100, 100}, one{1, 0, 0};
  CHECK_THROWS_WITH(give({.lower = one, .upper = narrow, .step = 16}),
                    "lower bound of item 0 in steps of 16 is 1, but must not exceed its upper bound 15");
  CHECK_THROWS_AS(give({.lower = ids, .upper = lower}), ab::BudgetError);
  const Units few{1};
  CHECK_THROWS_AS(give({.ids = few}), ab::ShapeError);
  CHECK_THROWS_WITH(apportion::quota(weights, 160, {.upper = upper}), ContainsSubstring("quota and bounds"));
  CHECK_THROWS_AS(apportion::quota(weights, (Index(1) << 27) + 1), ab::BudgetError);
}

TEST_CASE("weights far below one that is at its cap share as if it were not there, down to the stated limit",
          "[apportion]") {
  std::mt19937 random(9);
  const auto below = [](const std::vector<double>& weights, int exponent) {  // the first is 2^1000
    std::vector<double> result{0x1p1000};
    for (const double w : weights) result.push_back(std::ldexp(w, 1000 + exponent));
    return result;
  };
  for (const std::string method : {"sainte_lague", "dhondt", "adams", "huntington_hill"}) {
    const int limit = method == "huntington_hill" ? -968 : -1994;
    for (int round = 0; round < 300; ++round) {
      std::vector<double> weights(std::uniform_int_distribution<std::size_t>(1, 9)(random));
      for (double& w : weights) w = std::uniform_int_distribution<int>(1, 40)(random);
      const Index total = std::uniform_int_distribution<Index>(9, round % 2 == 0 ? 100 : Index(1) << 40)(random);
      Units upper(weights.size() + 1, total);
      upper[0] = 5;
      Units expected = by(method, weights, total);
      expected.insert(expected.begin(), 5);
      CAPTURE(method, weights, total);
      CHECK(by(method, below(weights, limit), total + 5, {.upper = upper}) == expected);
    }
  }
  // Beyond it they count as equal.
  CHECK(by("huntington_hill", below({3, 1}, -971), 45, {.upper = Units{5, 40, 40}}) == Units{5, 20, 20});
  CHECK(by("huntington_hill", below({3, 1}, -968), 45, {.upper = Units{5, 40, 40}}) == Units{5, 30, 10});
}

TEST_CASE("weights many orders apart take no longer", "[apportion]") {
  constexpr ab::Index most = ab::Index(1) << 53;
  const std::vector<double> two{1, 1e-16}, five{9.87e-10, 4.80e241, 4.10e96, 1.38e-190, 5.17e225};
  const std::vector<ab::Index> lower{most - 1, 1}, upper{most, most};
  auto sum = [](const std::vector<ab::Index>& units) {
    ab::Index total = 0;
    for (const ab::Index u : units) total += u;
    return total;
  };
  CHECK(sum(ab::apportion::sainte_lague(two, most)) == most);
  CHECK(sum(ab::apportion::sainte_lague(two, most, lower, upper)) == most);
  CHECK(ab::apportion::sainte_lague(five, most) == std::vector<ab::Index>{0, most - 1, 0, 0, 1});
}
