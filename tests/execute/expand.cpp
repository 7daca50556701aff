// The way back of compact and of apply: rows to their places.

#include <deque>
#include <string>
#include <vector>

#if __has_include(<Eigen/Core>)
#include <Eigen/Core>
#endif

#include "attention_balancer/execute/merge_tokens.hpp"
#include "attention_balancer/execute/token_budget.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("expand takes back what compact took away, and leaves the dropped as they are") {
  const execute::TokenPlan plan(5, {1, 2, 4});
  const std::vector<float> all{10, 11, 12, 13, 14};
  std::vector<float> x = all, grid = all, zeros(5);
  plan.compact(x);
  for (float& value : x) value *= 2;
  plan.expand(x, grid);
  CHECK(grid == std::vector<float>{10, 22, 24, 13, 28});
  plan.expand(std::span<const float>(x), std::span<float>(zeros));
  CHECK(zeros == std::vector<float>{0, 22, 24, 0, 28});
  std::deque<double> queue(5, 7.0);
  plan.expand(x, queue);
  CHECK(queue == std::deque<double>{7, 22, 24, 7, 28});
  std::vector<std::string> words{"a", "b", "c", "d", "e"};
  plan.expand(std::vector<std::string>{"B", "C", "E"}, words);
  CHECK(words == std::vector<std::string>{"a", "B", "C", "d", "E"});
  std::vector<bool> seen(5);
  plan.expand(std::vector<bool>(3, true), seen);
  CHECK(seen == std::vector<bool>{false, true, true, false, true});
}

TEST_CASE("views expand along their length in every batch item and head") {
  const execute::TokenPlan plan(3, {0, 2});
  std::vector<int> small(2 * 2 * 2 * 2), large(2 * 3 * 2 * 2, -1);
  for (std::size_t i = 0; i < small.size(); ++i) small[i] = static_cast<int>(i);
  const auto from = ab::bhsd(static_cast<const int*>(small.data()), 2, 2, 2, 2);
  const auto to = ab::bshd(large.data(), 2, 3, 2, 2);
  plan.expand(from, to);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 2; ++h)
      for (Index c = 0; c < 2; ++c) {
        CHECK(to(b, h, 0, c) == from(b, h, 0, c));
        CHECK(to(b, h, 1, c) == -1);
        CHECK(to(b, h, 2, c) == from(b, h, 1, c));
      }
  // A row that serves all may be read, not written.
  plan.expand(ab::TensorView<const int>{small.data() + 8, 2, 2, 2, 2, 0, 0, 0, 1}, to);
  CHECK(to(1, 1, 2, 1) == 9);
  CHECK_THROWS_AS(plan.expand(from, ab::TensorView<int>{large.data(), 2, 2, 3, 2, 0, 6, 2, 1}), ab::ShapeError);
}

TEST_CASE("merged tokens expand to what their group has") {
  const execute::MergePlan plan({2, 1, 2, 1});
  std::vector<double> x{1, 2, 5, 8};
  std::vector<double> grid(4);
  plan.apply(x);
  CHECK(x == std::vector<double>{5, 3});
  plan.expand(x, grid);
  CHECK(grid == std::vector<double>{3, 5, 3, 5});
  CHECK_THROWS_WITH(plan.expand(grid, grid), ContainsSubstring("number of tokens to expand is 4, but must be 2"));
}

#if __has_include(<Eigen/Core>)
TEST_CASE("Eigen matrices expand with tokens in rows") {
  const execute::TokenPlan plan(3, {1, 2});
  Eigen::MatrixXf grid = Eigen::MatrixXf::Zero(3, 2);
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> x(2, 2);
  x << 1, 2, 3, 4;
  plan.expand(x, grid);
  CHECK((grid.row(0).isZero() && grid.bottomRows(2) == x));
  plan.expand(x, Eigen::Map<Eigen::MatrixXf>(grid.data(), 3, 2));
  const Eigen::MatrixXf wide(2, 3);
  CHECK_THROWS_WITH(plan.expand(wide, grid), ContainsSubstring("number of columns of what is expanded is 3"));
}
#endif

TEST_CASE("what does not fit is not expanded") {
  const execute::TokenPlan plan(3, {1, 2});
  const std::vector<float> before{1, 2, 3};
  std::vector<float> grid = before;
  CHECK_THROWS_WITH(plan.expand(std::vector<float>(3), grid),
                    "number of tokens to expand is 3, but must be 2 as the plan keeps");
  CHECK_THROWS_WITH(plan.expand(std::span<const float>(grid).first(2), std::span<float>(grid).first(2)),
                    "number of tokens to expand into is 2, but must be 3 as in the plan");
  CHECK_THROWS_AS(plan.expand(std::span<const float>(grid).first(2), grid), ab::InputError);
  CHECK_THROWS_WITH(plan.expand(std::span<const float>(grid).first(2), grid),
                    "what is expanded into is the memory of what is expanded, but must be of its own");
  const auto rows = [&](float* data, Index tokens, Index width) { return execute::rows(data, tokens, width); };
  std::vector<float> wide(6);
  CHECK_THROWS_WITH(plan.expand(rows(wide.data(), 2, 2), rows(grid.data(), 3, 1)),
                    "dim of what is expanded is 2, but must be 1 as of what it is expanded into");
  CHECK_THROWS_AS(plan.expand(rows(nullptr, 2, 1), rows(grid.data(), 3, 1)), ab::ShapeError);
  CHECK(grid == before);
  execute::TokenPlan(3, {}).expand(std::vector<float>(), grid);
  CHECK(grid == before);
}
