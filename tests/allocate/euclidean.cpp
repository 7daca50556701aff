#include "attention_balancer/allocate/euclidean.hpp"

#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "attention_balancer/balancer/resource_balancer.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using Catch::Matchers::ContainsSubstring;

namespace {

template <class T, class Policy>
std::vector<T> shares_of(const Policy& policy, const std::vector<T>& weights) {
  std::vector<T> shares(weights.size(), T(-1));
  policy(weights, shares);
  return shares;
}

template <class T>
void check_near(const std::vector<T>& is, const std::vector<double>& expected, double epsilons = 4) {
  REQUIRE(is.size() == expected.size());
  for (std::size_t i = 0; i < is.size(); ++i) {
    INFO("item " << i << " is " << is[i] << ", expected " << expected[i]);
    CHECK(std::abs(static_cast<double>(is[i]) - expected[i]) <=
          epsilons * double(std::numeric_limits<T>::epsilon()));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Euclidean shifts and clips", "", SCALARS) {
  using T = TestType;
  const allocate::Euclidean<T> free;
  check_near(shares_of<T>(free, {1, 1, 1, 1}), {0.25, 0.25, 0.25, 0.25});
  check_near(shares_of<T>(free, {T(0.5), T(0.25), T(0.25)}), {0.5, 0.25, 0.25});
  check_near(shares_of<T>(free, {2, 1.5, 0}), {0.75, 0.25, 0});
  check_near(shares_of<T>(free, {0, 0}), {0.5, 0.5});
  check_near(shares_of<T>(free, {7}), {1});
  check_near(shares_of<T>(allocate::Euclidean<T>{.floor = T(0.125), .cap = T(0.5)}, {9, 1, T(1.25), 0}),
             {0.5, 0.125, 0.25, 0.125});
  const std::vector<bool> mask{true, false, true};
  check_near(shares_of<T>(allocate::Euclidean<T>{.eligible = mask}, {1, 100, T(1.5)}), {0.25, 0, 0.75});
  std::vector<T> shares(3);
  free.project(std::vector<T>{-1, -2, T(-1.5)}, shares);
  check_near(shares, {0.75, 0, 0.25});
}

TEST_CASE("Euclidean loses nothing beside weights of 1e30") {
  const allocate::Euclidean<double> free;
  check_near(shares_of<double>(free, {1e30, 1e30, 1}), {0.5, 0.5, 0});
  check_near(shares_of<double>(allocate::Euclidean<double>{.cap = 0.5}, {1e30, 1.25, 1, 0}),
             {0.5, 0.375, 0.125, 0});
  check_near(shares_of<double>(allocate::Euclidean<double>{.floor = 0.125}, {1e30, 1e30, 1e-30, 0}),
             {0.375, 0.375, 0.125, 0.125});
  const double most = std::numeric_limits<double>::max();
  check_near(shares_of<double>(free, {most, most, 0}), {0.5, 0.5, 0});
}

TEMPLATE_TEST_CASE("Sparsemax and Entmax are of the logarithms of the weights", "", SCALARS) {
  using T = TestType;
  const T e = static_cast<T>(std::exp(0.5));
  check_near(shares_of<T>(allocate::Sparsemax{}, {e, 1, 0}), {0.75, 0.25, 0});
  check_near(shares_of<T>(allocate::Sparsemax{}, {3, 1, 1}), {1, 0, 0});  // a factor of 3 is more than e
  check_near(shares_of<T>(allocate::Sparsemax{}, {0, 0, 0, 0}), {0.25, 0.25, 0.25, 0.25});
  check_near(shares_of<T>(allocate::Entmax15{}, {1, 1}), {0.5, 0.5});
  check_near(shares_of<T>(allocate::Entmax15{}, {8, 1, 0}), {1, 0, 0});
  check_near(shares_of<T>(allocate::Entmax<T>{.alpha = 1}, {6, 6, 2}), {6.0 / 14, 6.0 / 14, 2.0 / 14});
  check_near(shares_of<T>(allocate::Entmax<T>{.alpha = T(1.0009765625)}, {6, 6, 0}), {0.5, 0.5, 0});
  check_near(shares_of<T>(allocate::Entmax<T>{.alpha = 2}, {e, 1, 0}), {0.75, 0.25, 0});
  const std::vector<bool> mask{false, true, true};
  check_near(shares_of<T>(allocate::Sparsemax{mask}, {100, e, 1}), {0, 0.75, 0.25});
  check_near(shares_of<T>(allocate::Entmax15{mask}, {100, 0, 0}), {0, 0.5, 0.5});
  const T inf = std::numeric_limits<T>::infinity();
  std::vector<T> shares(3);
  allocate::Sparsemax{}.of_logits(std::vector<T>{-3, T(-3.5), -inf}, shares);
  check_near(shares, {0.75, 0.25, 0});
  allocate::Entmax15{}.of_logits(std::vector<T>{-inf, -inf, -inf}, shares);
  check_near(shares, {1.0 / 3, 1.0 / 3, 1.0 / 3});
}

// golden/make_entmax.py: alpha, logits, shares by the PyPI package `entmax`.
TEST_CASE("Sparsemax, Entmax15 and Entmax agree with the package entmax") {
  std::ifstream file(ATTENTION_BALANCER_TEST_DATA "/entmax.csv");
  REQUIRE(file);
  std::string line;
  int lines = 0;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    ++lines;
    std::istringstream fields(line);
    std::string alpha, logit_list, share_list;
    std::getline(fields, alpha, ',');
    std::getline(fields, logit_list, ',');
    std::getline(fields, share_list, ',');
    std::vector<double> logits, expected;
    std::istringstream logit_stream(logit_list), share_stream(share_list);
    for (double z; logit_stream >> z;) logits.push_back(z);
    for (double p; share_stream >> p;) expected.push_back(p);
    REQUIRE(logits.size() == expected.size());
    INFO(line);
    // Their bisection stops at its own 1e-15 or so.
    std::vector<double> shares(logits.size());
    allocate::Entmax<double>{.alpha = std::stod(alpha)}.of_logits(logits, shares);
    check_near(shares, expected, 64);
    if (alpha == "2.0") allocate::Sparsemax{}.of_logits(logits, shares);
    if (alpha == "1.5") allocate::Entmax15{}.of_logits(logits, shares);
    check_near(shares, expected, 64);
    std::vector<double> weights;
    for (const double z : logits) weights.push_back(std::exp(z));
    allocate::Entmax<double>{.alpha = std::stod(alpha)}(weights, shares);
    check_near(shares, expected, 64);
    const std::vector<float> narrow(logits.begin(), logits.end());
    std::vector<float> narrow_shares(logits.size());
    allocate::Entmax<float>{.alpha = std::stof(alpha)}.of_logits(narrow, narrow_shares);
    check_near(narrow_shares, expected, 16);
  }
  CHECK(lines == 96);
}

TEST_CASE("distance-based shares name what is wrong") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  std::vector<double> shares(2, -7), three(3);
  const auto untouched = shares;
  const allocate::Euclidean<double> euclidean;
  CHECK_THROWS_WITH(euclidean(std::vector<double>{1, -1}, shares), ContainsSubstring("weight of item 1 is -1"));
  CHECK_THROWS_WITH(euclidean.project(std::vector<double>{1, inf}, shares),
                    ContainsSubstring("value of item 1 is inf"));
  CHECK_THROWS_AS(euclidean(std::vector<double>{1, 1}, three), ab::ShapeError);
  CHECK_THROWS_WITH(
      allocate::Euclidean<double>{.cap = 0.25}(std::vector<double>{1, 1}, shares),
      "sum of the Euclidean caps of 2 eligible items is 0.5, but must reach the total 1: the cap of item 0 "
      "is 0.25");
  CHECK_THROWS_WITH(allocate::Euclidean<double>{.floor = 0.75}(std::vector<double>{1, 1}, shares),
                    ContainsSubstring("Euclidean floors of 2 eligible items is 1.5"));
  CHECK_THROWS_AS(allocate::Sparsemax{}(std::vector<double>{1, -1}, shares), ab::InputError);
  CHECK_THROWS_AS(allocate::Sparsemax{}(std::vector<double>{}, std::span<double>{}), ab::BudgetError);
  CHECK_THROWS_WITH(allocate::Entmax15{}.of_logits(std::vector<double>{1, nan}, shares),
                    ContainsSubstring("logit of item 1 is nan"));
  CHECK_THROWS_AS(allocate::Entmax15{}.of_logits(std::vector<double>{1, inf}, shares), ab::InputError);
  CHECK_THROWS_WITH(allocate::Entmax<double>{.alpha = 0.5}(std::vector<double>{1, 1}, shares),
                    "Entmax alpha is 0.5, but must be finite and at least 1");
  CHECK_THROWS_AS(allocate::Entmax<double>{.alpha = inf}(std::vector<double>{1, 1}, shares), ab::InputError);
  const std::vector<bool> none(2, false);
  CHECK_THROWS_AS(allocate::Sparsemax{none}(std::vector<double>{1, 1}, shares), ab::BudgetError);
  CHECK(shares == untouched);
}

TEST_CASE("a balancer takes any of them") {
  const std::vector<bool> mask{true, true, false};
  ab::ResourceBalancer sparse(3, allocate::Sparsemax{mask}, ab::feedback::Leaky{1.0});
  check_near(std::vector<double>(sparse.shares().begin(), sparse.shares().end()), {0.5, 0.5, 0});
  const auto shares = sparse.update(std::vector<double>{3, 1, 100});
  check_near(std::vector<double>(shares.begin(), shares.end()), {1, 0, 0});
  CHECK(sparse.explain(2).held == ab::Held::masked);
  CHECK(sparse.units(7) == std::vector<ab::Index>{7, 0, 0});
  ab::ResourceBalancer tempered(2, allocate::Tempered{2.0, 0.25}, ab::feedback::Leaky{1.0});
  const auto levelled = tempered.update(std::vector<double>{4, 1});
  check_near(std::vector<double>(levelled.begin(), levelled.end()), {2.0 / 3, 1.0 / 3});
  ab::ResourceBalancer nearest(2, allocate::Euclidean<double>{}, ab::feedback::Leaky{1.0});
  const auto near = nearest.update(std::vector<double>{4, 2});
  check_near(std::vector<double>(near.begin(), near.end()), {0.75, 0.25});
}
