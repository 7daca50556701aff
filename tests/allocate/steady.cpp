#include "attention_balancer/allocate/steady.hpp"

#include <vector>

#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace apportion = ab::apportion;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Plan = std::vector<Index>;

TEST_CASE("moved counts each unit once") {
  CHECK(apportion::moved(Plan{5, 5, 0}, Plan{3, 5, 2}) == 2);
  CHECK(apportion::moved(Plan{5}, Plan{5}) == 0);
  CHECK(apportion::moved(Plan{}, Plan{}) == 0);
  CHECK_THROWS_AS(apportion::moved(Plan{1}, Plan{1, 2}), ab::ShapeError);
}

TEMPLATE_TEST_CASE("a plan gives way past the hysteresis, and no faster than the churn", "", SCALARS) {
  const std::vector<TestType> weights{60, 30, 10};
  const Plan lower{0, 0, 0}, upper{100, 100, 100}, none;
  const auto steady = [&](const Plan& previous, const apportion::Steady& how) {
    return apportion::steady(weights, 100, lower, upper, previous, how);
  };
  CHECK(steady(none, {.hysteresis = 1, .churn = 0}) == Plan{60, 30, 10});
  CHECK(steady({57, 33, 10}, {}) == Plan{60, 30, 10});
  CHECK(steady({57, 33, 10}, {.hysteresis = 0.03}) == Plan{57, 33, 10});
  CHECK(steady({56, 34, 10}, {.hysteresis = 0.03}) == Plan{60, 30, 10});
  CHECK(steady({56, 34, 10}, {.churn = 1}) == Plan{57, 33, 10});
  CHECK(steady({56, 34, 10}, {.churn = 4}) == Plan{60, 30, 10});
  CHECK(steady({0, 0, 100}, {.churn = 0}) == Plan{0, 0, 100});
  // What is worth most at its new place first: 60 / 0.5, 30 / 0.5, 60 / 1.5.
  CHECK(steady({0, 0, 100}, {.churn = 3}) == Plan{2, 1, 97});
  // And what is worth least where it is: 10 / 49.5 before 30 / 49.5.
  CHECK(steady({0, 50, 50}, {.hysteresis = 0.59, .churn = 10}) == Plan{10, 50, 40});
}

TEST_CASE("bounds are stronger than the plan in force") {
  const std::vector<double> weights{60, 30, 10};
  const Plan lower{0, 0, 20}, upper{50, 100, 100};
  const auto steady = [&](const Plan& previous, const apportion::Steady& how) {
    return apportion::steady(weights, 100, lower, upper, previous, how);
  };
  CHECK(steady({60, 30, 10}, {.hysteresis = 1}) == Plan{50, 30, 20});
  CHECK(steady({90, 0, 10}, {.churn = 40}) == Plan{50, 30, 20});
  CHECK(steady({50, 35, 15}, {.churn = 5}) == Plan{50, 30, 20});
  CHECK_THROWS_WITH(
      steady({90, 0, 10}, {.churn = 39}),
      "Steady churn is 39, but must be at least 40, the units that the bounds take from the plan in force");
  CHECK_THROWS_WITH(steady({90, 0, 11}, {}), ContainsSubstring("sum of the previous plan up to item 2 is 101"));
  CHECK_THROWS_AS(steady({90, 10}, {}), ab::ShapeError);
}
