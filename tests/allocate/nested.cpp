#include "attention_balancer/allocate/nested.hpp"

#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "attention_balancer/allocate/select.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Indices = std::vector<Index>;

namespace {

Indices kept(const allocate::Selection& selection) { return {selection.kept().begin(), selection.kept().end()}; }

Index sum(const Indices& units) { return std::accumulate(units.begin(), units.end(), Index(0)); }

}  // namespace

TEMPLATE_TEST_CASE("joint_top_k is one selection over all heads with a floor for each", "", SCALARS) {
  const std::vector<TestType> scores{1, 2, 3, 4,   // head 0
                                     9, 8, 7, 6};  // head 1
  auto heads = allocate::joint_top_k(scores, 2, 4, 1);
  CHECK(kept(heads[0]) == Indices{3});
  CHECK(kept(heads[1]) == Indices{0, 1, 2});
  heads = allocate::joint_top_k(scores, 2, 4, 2);
  CHECK(kept(heads[0]) == Indices{2, 3});
  CHECK(kept(heads[1]) == Indices{0, 1});
  heads = allocate::joint_top_k(scores, 2, 4, 0, {.allow_empty = true});
  CHECK(kept(heads[0]).empty());
  CHECK(kept(heads[1]) == Indices{0, 1, 2, 3});
  CHECK_THROWS_WITH(allocate::joint_top_k(scores, 2, 4, 0),
                    ContainsSubstring("number of items kept by head 0 of 2 with budget 4 is 0"));
  CHECK(kept(allocate::joint_top_k(scores, 2, 100, 1)[0]).size() == 4);
  const Indices pins{0};
  heads = allocate::joint_top_k(scores, 2, 4, 1, {.pins = pins});
  CHECK(kept(heads[0]) == Indices{0});
  CHECK(kept(heads[1]) == Indices{0, 1, 2});
  CHECK_THROWS_WITH(allocate::joint_top_k(scores, 2, 3, 2),
                    "sum over 2 heads of the pins or floor of 2 is 4, but must not exceed the budget 3");
  CHECK_THROWS_AS(allocate::joint_top_k(scores, 3, 3, 1), ab::ShapeError);
  CHECK_THROWS_AS(allocate::joint_top_k(scores, 0, 3, 1), ab::ShapeError);
  CHECK_THROWS_AS(allocate::joint_top_k(scores, 2, -1, 1), ab::BudgetError);
  CHECK_THROWS_AS(allocate::joint_top_k(scores, 2, 4, -1), ab::BudgetError);
}

TEST_CASE("joint_top_k: ties go to the lower id or item, then to the lower head") {
  const std::vector<double> equal(6, 1.0);
  const auto heads = allocate::joint_top_k(equal, 2, 3, 1);
  CHECK(kept(heads[0]) == Indices{0, 1});
  CHECK(kept(heads[1]) == Indices{0});
  const Indices ids{2, 1, 0};
  const auto named = allocate::joint_top_k(equal, 2, 3, 1, {.ids = ids});
  CHECK(kept(named[0]) == Indices{1, 2});
  CHECK(kept(named[1]) == Indices{2});
}

TEST_CASE("ada_kv keeps the floor of a fifth of the average for every head") {
  std::vector<double> scores;
  for (int j = 0; j < 20; ++j) scores.push_back(0.01 * j);
  for (int j = 0; j < 20; ++j) scores.push_back(1.0 + j);
  const auto heads = allocate::ada_kv(scores, 2, 10);
  CHECK(kept(heads[0]) == Indices{18, 19});
  CHECK(heads[1].size() == 18);
  CHECK(allocate::ada_kv(scores, 2, 14)[0].size() == 8);  // 20 of head 1, and 2.8 is 2 before the 8 that are left
  CHECK(allocate::ada_kv(scores, 2, 10, 1.0)[0].size() == 10);
  CHECK_THROWS_AS(allocate::ada_kv(scores, 2, 10, 1.5), ab::InputError);
  CHECK_THROWS_AS(allocate::ada_kv(scores, 2, -10), ab::BudgetError);
  CHECK_THROWS_AS(allocate::ada_kv(scores, 2, 4), ab::BudgetError);  // 0.8 is 0: head 0 would keep nothing
}

TEST_CASE("a tree divides layer, head and token") {
  allocate::BudgetTree tree;
  std::vector<Index> layers, heads;
  for (const double weight : {6.0, 6.0, 2.0}) {
    layers.push_back(tree.add(tree.root, {.weight = weight}));
    for (const double w : {1.0, 3.0})
      heads.push_back(tree.add(layers.back(), {.weight = w, .lower = 2, .upper = 30}));
  }
  const auto units = tree.divide(100);
  CHECK(units[0] == 100);
  CHECK(Indices{units[size_t(layers[0])], units[size_t(layers[1])], units[size_t(layers[2])]} ==
        Indices{43, 43, 14});
  for (const Index layer : layers) {
    Index of_heads = 0;
    for (const Index head : tree.children(layer)) of_heads += units[static_cast<std::size_t>(head)];
    CHECK(of_heads == units[static_cast<std::size_t>(layer)]);
  }
  CHECK(units[static_cast<std::size_t>(heads[1])] == 30);  // three quarters of 43 would be 32
  CHECK(units[static_cast<std::size_t>(heads[0])] == 13);
  CHECK(tree.divide(12) == Indices{12, 4, 2, 2, 4, 2, 2, 4, 2, 2});
  CHECK_THROWS_WITH(tree.divide(11),
                    "total of the tree is 11, but must be within the bounds of its nodes, [12, 180]");
  CHECK_THROWS_AS(tree.divide(181), ab::BudgetError);
  CHECK_THROWS_AS(tree.divide(-1), ab::BudgetError);
  CHECK_THROWS_AS(tree.add(99, {}), ab::ShapeError);
  CHECK_THROWS_AS(tree.children(99), ab::ShapeError);
  CHECK_THROWS_WITH(tree.add(0, {.weight = -1}), "weight of node 10 is -1, but must be finite and not negative");
  CHECK_THROWS_AS(tree.add(0, {.lower = 3, .upper = 2}), ab::BudgetError);
  const Index narrow = tree.add(tree.root, {.upper = 1});
  tree.add(narrow, {.lower = 2});
  CHECK_THROWS_WITH(tree.divide(50),
                    "lower bound of node 10 and its descendants is 2, but must not exceed its upper bound 1");
  CHECK(allocate::BudgetTree().divide(7) == Indices{7});
}

TEST_CASE("pyramid_kv follows its line and adds up") {
  CHECK(allocate::pyramid_kv(3, 20, 1000) == Indices{39, 20, 1});
  CHECK(allocate::pyramid_kv(3, 20, 30) == Indices{30, 20, 10});
  CHECK(allocate::pyramid_kv(1, 20, 30) == Indices{20});
  CHECK(allocate::pyramid_kv(4, 0, 30) == Indices(4, 0));
  CHECK(allocate::pyramid_kv(4, 30, 30) == Indices(4, 30));
  CHECK(allocate::pyramid_kv(5, 7, 30, 1) == Indices(5, 7));
  for (Index layers = 1; layers < 40; layers += 3)
    for (Index budget = 0; budget < 130; budget += 7)
      for (const Index most : {budget, budget + 1, budget + 13, 2 * budget + 1, Index(100000)}) {
        const auto units = allocate::pyramid_kv(layers, budget, most);
        CAPTURE(layers, budget, most);
        CHECK(sum(units) == layers * budget);
        CHECK(units.front() <= most);
        CHECK(std::is_sorted(units.rbegin(), units.rend()));
        CHECK(units.back() >= 0);
      }
  CHECK_THROWS_WITH(allocate::pyramid_kv(4, 31, 30),
                    "budget per layer is 31, but must not exceed the most that a layer can keep, 30");
  CHECK_THROWS_AS(allocate::pyramid_kv(0, 3, 30), ab::BudgetError);
  CHECK_THROWS_AS(allocate::pyramid_kv(4, 3, 30, 0.5), ab::InputError);
  CHECK_THROWS_AS(allocate::pyramid_kv(std::numeric_limits<Index>::max(), 3, 30), ab::BudgetError);
}

TEST_CASE("cake shares by entropy and variance") {
  // 4^(1/2) * 1 : 1 * 3^(1/1) = 2 : 3
  CHECK(allocate::cake(std::vector<double>{4, 1}, std::vector<double>{1, 3}, 50, 2, 1, 0, 50) == Indices{20, 30});
  CHECK(allocate::cake(std::vector<double>{4, 1}, std::vector<double>{1, 3}, 50, 2, 1, 0, 26) == Indices{24, 26});
  CHECK(allocate::cake(std::vector<double>{0, 0}, std::vector<double>{1, 3}, 50, 2, 1, 0, 50) == Indices{25, 25});
  CHECK(allocate::cake(std::vector<double>{1e300, 0, 1e-300}, std::vector<double>{1e300, 3, 1e-300}, 9, 0.01, 0.01,
                       1, 50) == Indices{7, 1, 1});
  CHECK_THROWS_AS(allocate::cake(std::vector<double>{1}, std::vector<double>{1, 3}, 50, 2, 1, 0, 50),
                  ab::ShapeError);
  CHECK_THROWS_AS(allocate::cake(std::vector<double>{1, -1}, std::vector<double>{1, 3}, 50, 2, 1, 0, 50),
                  ab::InputError);
  CHECK_THROWS_WITH(allocate::cake(std::vector<double>{1, 1}, std::vector<double>{1, 3}, 50, 0, 1, 0, 50),
                    "t1 is 0, but must be finite and above 0");
  CHECK_THROWS_AS(allocate::cake(std::vector<double>{1, 1}, std::vector<double>{1, 3}, 50, 2, 1, 0, 24),
                  ab::BudgetError);
}
