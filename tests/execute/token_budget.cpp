#include "attention_balancer/execute/token_budget.hpp"

#include <deque>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#if __has_include(<Eigen/Core>)
#include <Eigen/Core>
#endif

#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Indices = std::vector<Index>;

namespace {

Indices kept(const execute::TokenPlan& plan) { return {plan.kept().begin(), plan.kept().end()}; }

template <class T>
std::vector<T> iota(Index n) {
  std::vector<T> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), T(0));
  return values;
}

}  // namespace

TEMPLATE_TEST_CASE("token_budget keeps the highest scores, in order", "", SCALARS) {
  const std::vector<TestType> scores{1, 5, 3, -2, 5, 4};
  CHECK(kept(execute::token_budget(scores, 1)) == Indices{1});
  CHECK(kept(execute::token_budget(scores, 2)) == Indices{1, 4});
  CHECK(kept(execute::token_budget(scores, 4)) == Indices{1, 2, 4, 5});
  CHECK(kept(execute::token_budget(scores, 6)) == Indices{0, 1, 2, 3, 4, 5});
  CHECK(kept(execute::token_budget(scores, 100)).size() == 6);
  const auto plan = execute::token_budget(scores, 4);
  CHECK(plan.size() == 4);
  CHECK(plan.tokens() == 6);
  CHECK(plan.dropped() == Indices{0, 3});
}

TEMPLATE_TEST_CASE("ties go to the lower index; infinite scores are scores", "", SCALARS) {
  const TestType inf = std::numeric_limits<TestType>::infinity();
  CHECK(kept(execute::token_budget(std::vector<TestType>(6, TestType(2)), 3)) == Indices{0, 1, 2});
  CHECK(kept(execute::token_budget(std::vector<TestType>{0, -0.0, 0}, 2)) == Indices{0, 1});
  CHECK(kept(execute::token_budget(std::vector<TestType>{-inf, 1, inf, -5}, 3)) == Indices{1, 2, 3});
}

TEMPLATE_TEST_CASE("pins are kept and count", "", SCALARS) {
  const std::vector<TestType> scores{1, 5, 3, 2, 5, 4};
  CHECK(kept(execute::token_budget(scores, 3, {0, 3})) == Indices{0, 1, 3});
  CHECK(kept(execute::token_budget(scores, 2, {3, 0})) == Indices{0, 3});
  CHECK(kept(execute::token_budget(scores, 2, {3, 0, 3})) == Indices{0, 3});
  CHECK(kept(execute::token_budget(scores, 2, {4})) == Indices{1, 4});
  const Indices pins{5};
  CHECK(kept(execute::token_budget(scores, 2, pins)) == Indices{1, 5});
  CHECK(kept(execute::token_budget(scores, 2, {.pins = pins})) == Indices{1, 5});
  CHECK_THROWS_AS(execute::token_budget(scores, 2, {0, 1, 2}), ab::BudgetError);
  CHECK_THROWS_WITH(execute::token_budget(scores, 2, {0, 1, 2}),
                    "number of pins is 3, but must not exceed the budget 2");
  CHECK_THROWS_WITH(execute::token_budget(scores, 2, {6}), "pin is 6, but must be in [0, items = 6)");
  CHECK_THROWS_AS(execute::token_budget(scores, 2, {-1}), ab::InputError);
}

TEMPLATE_TEST_CASE("only the eligible are kept", "", SCALARS) {
  const std::vector<TestType> scores{1, 5, 3, 2, 5, 4};
  const std::vector<bool> mask{true, false, true, true, false, false};
  const Indices pins{0}, wrong{1};
  CHECK(kept(execute::token_budget(scores, 2, {.eligible = mask})) == Indices{2, 3});
  CHECK(kept(execute::token_budget(scores, 5, {.eligible = mask})) == Indices{0, 2, 3});
  CHECK(kept(execute::token_budget(scores, 2, {.pins = pins, .eligible = mask})) == Indices{0, 2});
  CHECK_THROWS_WITH(execute::token_budget(scores, 2, {.pins = wrong, .eligible = mask}),
                    "pin is 1, but must be eligible");
  const std::vector<bool> small(3, true);
  CHECK_THROWS_AS(execute::token_budget(scores, 2, {.eligible = small}), ab::ShapeError);
}

TEMPLATE_TEST_CASE("keeping nothing must be meant", "", SCALARS) {
  const std::vector<TestType> scores{1, 5}, none;
  const std::vector<bool> mask(2, false);
  CHECK_THROWS_AS(execute::token_budget(scores, 0), ab::BudgetError);
  CHECK_THROWS_WITH(execute::token_budget(scores, 0),
                    ContainsSubstring("with budget 0 is 0") && ContainsSubstring("allow_empty"));
  CHECK_THROWS_AS(execute::token_budget(scores, 2, {.eligible = mask}), ab::BudgetError);
  CHECK_THROWS_AS(execute::token_budget(none, 2), ab::BudgetError);
  CHECK(execute::token_budget(scores, 0, {.allow_empty = true}).size() == 0);
  CHECK(execute::token_budget(scores, 2, {.eligible = mask, .allow_empty = true}).size() == 0);
  CHECK(execute::token_budget(none, 2, {.allow_empty = true}).size() == 0);
  CHECK_THROWS_WITH(execute::token_budget(scores, 0, {0}),
                    "number of pins is 1, but must not exceed the budget 0");
  CHECK_THROWS_WITH(execute::token_budget(scores, -1, {.allow_empty = true}),
                    "budget is -1, but must not be negative");
}

TEMPLATE_TEST_CASE("a NaN score is named", "", SCALARS) {
  const std::vector<TestType> scores{1, std::numeric_limits<TestType>::quiet_NaN()};
  CHECK_THROWS_AS(execute::token_budget(scores, 1), ab::InputError);
  CHECK_THROWS_WITH(execute::token_budget(scores, 1), "score of item 1 is nan, but must be a number");
}

TEST_CASE("a plan of the caller's own is checked") {
  CHECK(kept(execute::TokenPlan(5, {0, 2, 4})) == Indices{0, 2, 4});
  CHECK_THROWS_AS(execute::TokenPlan(5, {2, 0}), ab::InputError);
  CHECK_THROWS_AS(execute::TokenPlan(5, {2, 2}), ab::InputError);
  CHECK_THROWS_AS(execute::TokenPlan(5, {-1, 2}), ab::InputError);
  CHECK_THROWS_WITH(execute::TokenPlan(5, {1, 5}), "kept item 1 is 5, but must ascend strictly and be in [2, 5)");
  CHECK_THROWS_AS(execute::TokenPlan(-1, {}), ab::InputError);
}

TEST_CASE("one call compacts everything that goes with the tokens") {
  const execute::TokenPlan plan(6, {0, 2, 3, 5});
  auto scores = iota<float>(6);
  auto positions = iota<Index>(6);
  std::vector<std::string> words{"a", "b", "c", "d", "e", "f"};
  std::vector<bool> flags{true, false, false, true, false, true};
  std::deque<int> labels{0, 1, 2, 3, 4, 5};
  auto raw = iota<double>(12);
  std::vector<float> spanned = iota<float>(6);
  std::span<float> span(spanned);
  plan.compact(scores, positions, words, flags, labels, execute::rows(raw.data(), 6, 2), span);
  CHECK(scores == std::vector<float>{0, 2, 3, 5});
  CHECK(positions == kept(plan));
  CHECK(words == std::vector<std::string>{"a", "c", "d", "f"});
  CHECK(flags == std::vector<bool>{true, false, true, true});
  CHECK(labels == std::deque<int>{0, 2, 3, 5});
  CHECK(std::vector<double>(raw.begin(), raw.begin() + 8) == std::vector<double>{0, 1, 4, 5, 6, 7, 10, 11});
  CHECK(span.size() == 4);
  CHECK(std::vector<float>(span.begin(), span.end()) == std::vector<float>{0, 2, 3, 5});
  CHECK(spanned.size() == 6);
}

TEST_CASE("views are compacted along their length and shortened") {
  const execute::TokenPlan plan(3, {0, 2});
  auto values = iota<float>(24);
  SECTION("[B, H, N, D]") {
    auto view = ab::bhsd(values.data(), 2, 2, 3, 2);
    plan.compact(view);
    CHECK(view.length == 2);
    for (Index b = 0; b < 2; ++b)
      for (Index h = 0; h < 2; ++h)
        for (Index k = 0; k < 2; ++k)
          for (Index c = 0; c < 2; ++c) CHECK(view(b, h, k, c) == float(((b * 2 + h) * 3 + 2 * k) * 2 + c));
  }
  SECTION("[B, N, H, D], constant lvalue: not shortened") {
    const auto view = ab::bshd(values.data(), 2, 3, 2, 2);
    plan.compact(view);
    CHECK(view.length == 3);
    for (Index b = 0; b < 2; ++b)
      for (Index h = 0; h < 2; ++h) CHECK(view(b, h, 1, 1) == float(((b * 3 + 2) * 2 + h) * 2 + 1));
  }
  SECTION("rows with a gap, which is left alone") {
    plan.compact(execute::rows(values.data(), 3, 3, 8));
    CHECK(values[8] == 16);
    CHECK(values[10] == 18);
    CHECK(values[11] == 11);
  }
}

#if __has_include(<Eigen/Core>)

TEST_CASE("Eigen matrices with tokens in rows, either storage order, Map and Block") {
  const execute::TokenPlan plan(4, {1, 3});
  const auto fill = [](auto& m) {
    for (Index i = 0; i < m.rows(); ++i)
      for (Index j = 0; j < m.cols(); ++j) m(i, j) = static_cast<float>(10 * i + j);
  };
  Eigen::MatrixXf column(4, 3);
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> row(4, 3);
  Eigen::Matrix<double, Eigen::Dynamic, 3> thin(4, 3);
  Eigen::Matrix4f fixed;
  Eigen::VectorXf vector(4);
  Eigen::MatrixXf big(6, 5);
  std::vector<float> memory(12);
  Eigen::Map<Eigen::Matrix<float, 4, 3, Eigen::RowMajor>> map(memory.data());
  fill(column), fill(row), fill(thin), fill(fixed), fill(vector), fill(big), fill(map);
  plan.compact(column, row, thin, fixed, vector, big.block(1, 1, 4, 3), map);
  CHECK(column.rows() == 2);
  CHECK(row.rows() == 2);
  CHECK(thin.rows() == 2);
  CHECK(vector.rows() == 2);
  for (Index k = 0; k < 2; ++k)
    for (Index c = 0; c < 3; ++c) {
      const float expected = static_cast<float>(10 * (2 * k + 1) + c);
      CHECK(column(k, c) == expected);
      CHECK(row(k, c) == expected);
      CHECK(thin(k, c) == double(expected));
      CHECK(fixed(k, c) == expected);
      CHECK(map(k, c) == expected);
      CHECK(big(1 + k, 1 + c) == expected + 11);
    }
  CHECK(vector(1) == 30);
  CHECK(big(1, 0) == 10);
  CHECK(big(5, 4) == 54);
}

static_assert(!ab::detail::Compactable<Eigen::MatrixXf>);
static_assert(!ab::detail::Compactable<const Eigen::MatrixXf&>);
static_assert(ab::detail::Compactable<Eigen::MatrixXf&>);
static_assert(ab::detail::Compactable<Eigen::Block<Eigen::MatrixXf>>);

#endif

TEST_CASE("what cannot be compacted does not compile") {
  static_assert(ab::detail::Compactable<std::vector<float>&>);
  static_assert(!ab::detail::Compactable<std::vector<float>>);
  static_assert(!ab::detail::Compactable<const std::vector<float>&>);
  static_assert(ab::detail::Compactable<std::span<float>>);
  static_assert(!ab::detail::Compactable<std::span<const float>>);
  static_assert(ab::detail::Compactable<ab::TensorView<float>>);
  static_assert(!ab::detail::Compactable<ab::TensorView<const float>>);
  static_assert(!ab::detail::Compactable<float*>);
  static_assert(!ab::detail::Compactable<int&>);
}

TEST_CASE("all sizes are checked before anything moves") {
  const execute::TokenPlan plan(3, {1, 2});
  auto scores = iota<float>(3);
  auto wrong = iota<Index>(4);
  auto raw = iota<float>(6);
  CHECK_THROWS_AS(plan.compact(scores, execute::rows(raw.data(), 3, 2), wrong), ab::ShapeError);
  CHECK_THROWS_WITH(plan.compact(scores, execute::rows(raw.data(), 3, 2), wrong),
                    "number of tokens in argument 3 of compact is 4, but must be 3 as in the plan");
  CHECK_THROWS_AS(plan.compact(scores, execute::rows(static_cast<float*>(nullptr), 3, 2)), ab::ShapeError);
  CHECK_THROWS_AS(plan.compact(scores, ab::TensorView<float>{raw.data(), 2, 1, 3, 2, 0, 0, 2, 1}), ab::ShapeError);
  CHECK_THROWS_WITH(plan.compact(scores, raw, scores), ContainsSubstring("argument 2 of compact is 6"));
  CHECK_THROWS_AS(plan.compact(scores, scores), ab::InputError);
  CHECK_THROWS_AS(plan.compact(scores, execute::rows(scores.data(), 3, 1)), ab::InputError);
  CHECK_THROWS_WITH(plan.compact(scores, scores),
                    "argument 2 of compact is the same memory as argument 1, but must be compacted once only");
  CHECK(scores == iota<float>(3));
  CHECK(raw == iota<float>(6));
  plan.compact(scores);
  CHECK_THROWS_AS(plan.compact(scores), ab::ShapeError);  // twice is once too often
}

TEST_CASE("a plan that keeps nothing or everything") {
  auto scores = iota<float>(3);
  execute::TokenPlan(3, {0, 1, 2}).compact(scores);
  CHECK(scores == iota<float>(3));
  execute::TokenPlan(3, {}).compact(scores);
  CHECK(scores.empty());
  execute::TokenPlan(0, {}).compact(scores);
  execute::TokenPlan(0, {}).compact(execute::rows(static_cast<float*>(nullptr), 0, 4));
}
