#include "attention_balancer/execute/merge_tokens.hpp"

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Indices = std::vector<Index>;

namespace {

Indices list(std::span<const Index> values) { return {values.begin(), values.end()}; }
Indices places(const execute::MergePlan& plan) { return list(plan.places()); }

}  // namespace

TEMPLATE_TEST_CASE("fuse joins what is dropped, weighted, where the heaviest stood", "", SCALARS) {
  using T = TestType;
  const std::vector<T> scores{8, 1, 9, 2, 1};
  const auto plan = execute::fuse(execute::token_budget(scores, 2), scores);
  CHECK(plan.tokens() == 5);
  CHECK(plan.size() == 3);
  CHECK(list(plan.kept()) == Indices{0, 2, 3});
  CHECK(list(plan.places()) == Indices{0, 2, 1, 2, 2});
  CHECK(plan.sizes() == std::vector<double>{1, 1, 3});
  CHECK(plan.totals(scores) == std::vector<T>{8, 9, 4});
  CHECK(plan.template log_sizes<T>()[2] == Approx(std::log(3.0)));

  std::vector<T> x{1, 10, 2, 20, 3, 30, 4, 40, 5, 50};
  Indices positions{0, 1, 2, 3, 4};
  std::vector<std::string> words{"a", "b", "c", "d", "e"};
  plan.apply(execute::rows(x.data(), 5, 2), positions, words);
  CHECK(std::vector<T>(x.begin(), x.begin() + 4) == std::vector<T>{1, 10, 3, 30});
  CHECK(x[4] == Approx((2 + 2 * 4 + 5) / 4.0));
  CHECK(x[5] == Approx((20 + 2 * 40 + 50) / 4.0));
  CHECK(positions == Indices{0, 2, 3});
  CHECK(words == std::vector<std::string>{"a", "c", "d"});

  SECTION("nothing dropped, nothing fused") {
    const auto all = execute::fuse(execute::token_budget(scores, 5), scores);
    CHECK(all.size() == 5);
    std::vector<T> same{1, 2, 3, 4, 5};
    all.apply(same);
    CHECK(same == std::vector<T>{1, 2, 3, 4, 5});
  }
  SECTION("weights of zero count as equal, beside others not at all") {
    std::vector<T> y{1, 2, 3, 6};
    execute::fuse(execute::TokenPlan(4, {3}), std::vector<T>{0, 0, 0, 1}).apply(y);
    CHECK(y == std::vector<T>{2, 6});
    const T nan = std::numeric_limits<T>::quiet_NaN();
    std::vector<T> z{1, nan, 3, 6};
    execute::fuse(execute::TokenPlan(4, {3}), std::vector<T>{1, 0, 1, 0}).apply(z);
    CHECK(z == std::vector<T>{2, 6});
  }
  SECTION("bad input") {
    CHECK_THROWS_AS(execute::fuse(execute::TokenPlan(2, {0}), scores), ab::ShapeError);
    CHECK_THROWS_WITH(execute::fuse(execute::TokenPlan(2, {0}), std::vector<T>{1, -1}),
                      ContainsSubstring("weight of item 1 is -1"));
    CHECK_THROWS_WITH(execute::fuse(execute::TokenPlan(2, {0}), std::vector<T>{1, 1}, std::vector<double>{1, 0}),
                      ContainsSubstring("size of token 1 is 0"));
  }
}

TEMPLATE_TEST_CASE("merge joins the most alike of two halves", "", SCALARS) {
  using T = TestType;
  // Even: 0, 2, 4. Odd: 1, 3, 5. Cosines: 0 and 1 alike, 2 and 3 nearly, 4 opposite to all.
  std::vector<T> keys{1, 0, 3, T(0.03), 0, 1, T(0.2), 2, -1, -1, T(0.1), T(0.1)};
  const auto view = execute::rows(keys.data(), 6, 2);
  const auto one = execute::merge(view, 1);
  CHECK(list(one.places()) == Indices{0, 0, 1, 2, 3, 4});
  CHECK(list(one.kept()) == Indices{1, 2, 3, 4, 5});
  const auto two = execute::merge(view, 2);
  CHECK(list(two.places()) == Indices{0, 0, 1, 1, 2, 3});
  CHECK(two.sizes() == std::vector<double>{2, 2, 1, 1});
  const auto all = execute::merge(view, 3);
  CHECK(all.size() == 3);

  SECTION("by size") {
    const std::vector<double> sizes{3, 1, 1, 1, 1, 1};
    const auto plan = execute::merge(view, 1, {.sizes = sizes});
    CHECK(plan.sizes() == std::vector<double>{4, 1, 1, 1, 1});
    std::vector<T> x{4, 8, 0, 0, 0, 0};
    plan.apply(x);
    CHECK(x[0] == Approx(5));
  }
  SECTION("pins are left alone on both sides") {
    const Indices first{0}, second{1};
    CHECK(places(execute::merge(view, 1, {.pins = first})) == Indices{0, 1, 2, 2, 3, 4});
    CHECK(places(execute::merge(view, 1, {.pins = second})) == Indices{0, 1, 2, 2, 3, 4});
    CHECK_THROWS_WITH(execute::merge(view, 3, {.pins = first}),
                      ContainsSubstring("number of tokens to merge is 3, but must not exceed 2"));
    const Indices odd{1, 3, 5};
    CHECK_THROWS_AS(execute::merge(view, 1, {.pins = odd}), ab::BudgetError);
    const Indices wrong{6};
    CHECK_THROWS_WITH(execute::merge(view, 1, {.pins = wrong}), "pin is 6, but must be in [0, tokens = 6)");
  }
  SECTION("the keys of several heads count as their mean") {
    std::vector<T> heads{1, 0, 0, 1, 1, 0, /**/ -1, 0, 0, 0, 1, 0};  // [2 heads, 3 tokens, 2]
    // Means: (0, 0), (0, 1/2), (1, 0): zero has cosine 0 with all, as token 2 has.
    CHECK(places(execute::merge(ab::bhsd(heads.data(), 1, 2, 3, 2), 1)) == Indices{0, 0, 1});
  }
  SECTION("several into one") {
    std::vector<T> same(10, T(1));
    const auto plan = execute::merge(execute::rows(same.data(), 5, 2), 3);
    CHECK(plan.sizes() == std::vector<double>{4, 1});
    CHECK(list(plan.places()) == Indices{0, 0, 0, 1, 0});
  }
  SECTION("bad input") {
    CHECK_THROWS_AS(execute::merge(view, 4), ab::BudgetError);
    CHECK_THROWS_AS(execute::merge(view, -1), ab::BudgetError);
    CHECK_THROWS_WITH(execute::merge(ab::bhsd(keys.data(), 2, 1, 3, 2), 1),
                      ContainsSubstring("batch of the keys to merge is 2"));
    keys[7] = std::numeric_limits<T>::infinity();
    CHECK_THROWS_WITH(execute::merge(view, 1), ContainsSubstring("key of token 3 is inf"));
  }
  SECTION("nothing to merge") {
    CHECK(execute::merge(view, 0).size() == 6);
    CHECK(execute::merge(execute::rows(keys.data(), 0, 2), 0).size() == 0);
    CHECK(execute::merge(execute::rows(keys.data(), 1, 2), 0).size() == 1);
    CHECK_THROWS_AS(execute::merge(execute::rows(keys.data(), 1, 2), 1), ab::BudgetError);
  }
}

TEST_CASE("a merge plan of the caller's own is checked, and so is what it is applied to") {
  const execute::MergePlan plan({2, 1, 2, 1}, {1, 0, 3, 1});
  CHECK(list(plan.kept()) == Indices{1, 2});
  std::vector<double> x{1, 2, 5, 7};
  std::vector<float> y{1, 2, 5, 7}, wrong(3);
  CHECK_THROWS_AS(plan.apply(x, wrong), ab::ShapeError);
  CHECK_THROWS_AS(plan.apply(x, x), ab::InputError);
  CHECK(x == std::vector<double>{1, 2, 5, 7});
  plan.apply(x, y);
  CHECK(x == std::vector<double>{7, 4});
  CHECK(y == std::vector<float>{7, 4});
  CHECK_THROWS_WITH(execute::MergePlan({0, 5}),
                    ContainsSubstring("destination of token 1 is 5, but must be in [0, tokens = 2)"));
  CHECK_THROWS_WITH(execute::MergePlan({1, 2, 2}),
                    ContainsSubstring("destination of token 0 is 1, but must be a token that stays"));
  CHECK_THROWS_AS(execute::MergePlan({0, 0}, {1}), ab::ShapeError);
  CHECK_THROWS_AS(execute::MergePlan({0, 0}, {1, -1}), ab::InputError);
  CHECK_THROWS_AS(execute::MergePlan({0, 0}, {}, {1, -1}), ab::InputError);
  CHECK(execute::MergePlan(Indices{}).size() == 0);
}
