#include "attention_balancer/allocate/shares.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

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
void check_near(const std::vector<T>& is, const std::vector<double>& expected) {
  REQUIRE(is.size() == expected.size());
  for (std::size_t i = 0; i < is.size(); ++i) {
    INFO("item " << i << " is " << is[i] << ", expected " << expected[i]);
    CHECK(std::abs(static_cast<double>(is[i]) - expected[i]) <= 2.0 * double(std::numeric_limits<T>::epsilon()));
  }
}

// Throws as stated and leaves the shares alone.
template <class Error, class T, class Policy>
void check_throws(const Policy& policy, const std::vector<T>& weights, const std::string& text) {
  std::vector<T> shares(weights.size(), T(-7));
  CHECK_THROWS_AS(policy(weights, shares), Error);
  CHECK_THROWS_WITH(policy(weights, shares), ContainsSubstring(text));
  CHECK(shares == std::vector<T>(weights.size(), T(-7)));
}

}  // namespace

TEMPLATE_TEST_CASE("Proportional divides by the sum", "", SCALARS) {
  const allocate::Proportional policy;
  check_near(shares_of<TestType>(policy, {1, 2, 1}), {0.25, 0.5, 0.25});
  check_near(shares_of<TestType>(policy, {0, 0, 0, 0}), {0.25, 0.25, 0.25, 0.25});
  check_near(shares_of<TestType>(policy, {0, 3}), {0, 1});
  CHECK(shares_of<TestType>(policy, {TestType(0.3)}) == std::vector<TestType>{1});
  std::vector<TestType> in_place{6, 6, 2};
  policy(in_place, in_place);
  check_near(in_place, {6.0 / 14, 6.0 / 14, 2.0 / 14});
}

TEST_CASE("weights at the ends of the range are divided right") {
  const allocate::Proportional proportional;
  const allocate::Bounded<double> bounded{};
  const double most = std::numeric_limits<double>::max(), least = std::numeric_limits<double>::denorm_min();
  for (const auto& shares : {shares_of<double>(proportional, {most, most, most, most}),
                             shares_of<double>(bounded, {most, most, most, most}),
                             shares_of<double>(proportional, {least, least, least, least}),
                             shares_of<double>(bounded, {least, least, least, least})})
    CHECK(shares == std::vector<double>(4, 0.25));
  check_near(shares_of<double>(proportional, {1e300, 3e300}), {0.25, 0.75});
  check_near(shares_of<double>(proportional, {1e-300, 3e-300}), {0.25, 0.75});
  check_near(shares_of<float>(proportional, {1e30f, 3e30f}), {0.25, 0.75});
  check_near(shares_of<float>(proportional, {1e-30f, 3e-30f}), {0.25, 0.75});
  const float tiny = std::numeric_limits<float>::denorm_min();
  check_near(shares_of<float>(proportional, {tiny, 3 * tiny}), {0.25, 0.75});
}

TEST_CASE("what the large weights may not take is divided among the smallest in proportion") {
  // 600 orders of magnitude: neither the quotient nor the sum of these weights can be held in a double.
  check_near(shares_of<double>(allocate::Bounded<double>{.cap = 0.5}, {1e300, 1e-300, 2e-300}),
             {0.5, 0.5 / 3, 1.0 / 3});
  check_near(shares_of<double>(allocate::Bounded<double>{.floor = 0.1, .cap = 0.6}, {1e-300, 1e300, 1e-308, 1e300}),
             {0.1, 0.4, 0.1, 0.4});
  check_near(shares_of<double>(allocate::Bounded<double>{.cap = 0.375}, {1e300, 1e300, 1e-320, 0}),
             {0.375, 0.375, 0.25, 0});
  check_near(shares_of<float>(allocate::Bounded<float>{.cap = 0.5f}, {1e30f, 1e-30f, 3e-30f}), {0.5, 0.125, 0.375});
}

TEMPLATE_TEST_CASE("Bounded fills up to the caps and never below the floors", "", SCALARS) {
  using T = TestType;
  using B = allocate::Bounded<T>;
  SECTION("no bound binds") { check_near(shares_of<T>(B{}, {1, 2, 1}), {0.25, 0.5, 0.25}); }
  SECTION("a cap") { check_near(shares_of<T>(B{.cap = T(0.5)}, {8, 1, 1}), {0.5, 0.25, 0.25}); }
  SECTION("a cap that makes another bind") {
    check_near(shares_of<T>(B{.cap = T(0.375)}, {90, 9, 1}), {0.375, 0.375, 0.25});
  }
  SECTION("a floor") { check_near(shares_of<T>(B{.floor = T(0.25)}, {0, 1, 2}), {0.25, 0.25, 0.5}); }
  SECTION("both") {
    check_near(shares_of<T>(B{.floor = T(0.125), .cap = T(0.5)}, {100, 2, 1, 0}), {0.5, 0.25, 0.125, 0.125});
  }
  SECTION("only one point is feasible") {
    check_near(shares_of<T>(B{.floor = T(0.25)}, {1, 0, 5, 9}), {0.25, 0.25, 0.25, 0.25});
    check_near(shares_of<T>(B{.cap = T(0.25)}, {1, 0, 5, 9}), {0.25, 0.25, 0.25, 0.25});
  }
  SECTION("bounds that are no exact fractions are kept bit for bit") {
    for (const T w : {T(0), T(1), T(1e6)}) {
      const auto low = shares_of<T>(B{.floor = T(0.1)}, {w, 1, 1e6, 1, 1, 1, 1, 1, 1, 1});
      const auto high = shares_of<T>(B{.cap = T(0.1)}, {w, 1, 1e6, 1, 1, 1, 1, 1, 1, 1});
      for (std::size_t i = 0; i < low.size(); ++i) {
        CHECK(low[i] >= T(0.1));
        CHECK(high[i] <= T(0.1));
      }
    }
  }
}

TEMPLATE_TEST_CASE("what is left at the caps goes equally to weight zero", "", SCALARS) {
  using T = TestType;
  using B = allocate::Bounded<T>;
  check_near(shares_of<T>(B{.cap = T(0.25)}, {1, 5, 0, 0, 0, 0}), {0.25, 0.25, 0.125, 0.125, 0.125, 0.125});
  const std::vector<T> floors{0, 0, T(0.25), 0, 0, 0};
  check_near(shares_of<T>(B{.floor = floors, .cap = T(0.25)}, {1, 5, 0, 0, 0, 0}),
             {0.25, 0.25, 0.25, 0.25 / 3, 0.25 / 3, 0.25 / 3});
  SECTION("all weights zero: uniform within the bounds") {
    check_near(shares_of<T>(B{}, {0, 0, 0, 0}), {0.25, 0.25, 0.25, 0.25});
    check_near(shares_of<T>(B{.floor = floors}, {0, 0, 0, 0, 0, 0}), {0.15, 0.15, 0.25, 0.15, 0.15, 0.15});
  }
}

TEMPLATE_TEST_CASE("masked is not zero", "", SCALARS) {
  using T = TestType;
  using B = allocate::Bounded<T>;
  const std::vector<T> weights{4, 0, 4, 8};
  const std::vector<double> expected{0.3, 0.1, 0, 0.6};
  const std::vector<std::uint8_t> bytes{1, 1, 0, 7};
  const std::vector<char> chars{1, 1, 0, 1};
  const std::vector<bool> bits{true, true, false, true};
  const std::array<bool, 4> bools{true, true, false, true};
  const bool raw[] = {true, true, false, true};
  const T floor = T(0.1);
  check_near(shares_of<T>(B{.floor = floor, .eligible = bytes}, weights), expected);
  check_near(shares_of<T>(B{.floor = floor, .eligible = chars}, weights), expected);
  check_near(shares_of<T>(B{.floor = floor, .eligible = bits}, weights), expected);
  check_near(shares_of<T>(B{.floor = floor, .eligible = bools}, weights), expected);
  check_near(shares_of<T>(B{.floor = floor, .eligible = raw}, weights), expected);
  check_near(shares_of<T>(B{.floor = floor, .eligible = std::span<const bool>(bools)}, weights), expected);
  CHECK(shares_of<T>(B{.floor = floor, .eligible = bits}, weights)[2] == T(0));
  check_near(shares_of<T>(B{.eligible = bits}, {0, 0, 5, 0}), {1.0 / 3, 1.0 / 3, 0, 1.0 / 3});
}

TEMPLATE_TEST_CASE("bounds per item, in place, and limits()", "", SCALARS) {
  using T = TestType;
  const std::vector<T> floors{0, T(0.5), 0}, caps{T(0.125), 1, 1};
  const std::array<bool, 3> mask{true, true, false};
  const allocate::Bounded<T> policy{.floor = floors, .cap = caps, .eligible = {}};
  std::vector<T> x{1, 1, 1};
  policy(x, x);
  check_near(x, {0.125, 0.5, 0.375});
  CHECK(policy.limits(0).cap == T(0.125));
  CHECK(policy.limits(1).floor == T(0.5));
  const allocate::Bounded<T> masked{.floor = floors, .eligible = mask};
  CHECK_FALSE(masked.limits(2).eligible);
  CHECK(masked.limits(2).cap == T(0));
  CHECK(allocate::limits_of<T>(allocate::Proportional{}, 0).cap == T(1));
}

TEMPLATE_TEST_CASE("an infinite cap is no cap", "", SCALARS) {
  const allocate::Bounded<TestType> policy{.cap = std::numeric_limits<TestType>::infinity()};
  check_near(shares_of<TestType>(policy, {1, 3}), {0.25, 0.75});
}

TEST_CASE("deduction guides: numbers decide, integers are accepted") {
  static_assert(std::is_same_v<decltype(allocate::Bounded{0.1f, 0.5f}), allocate::Bounded<float>>);
  static_assert(std::is_same_v<decltype(allocate::Bounded{0, 0.5f}), allocate::Bounded<float>>);
  static_assert(std::is_same_v<decltype(allocate::Bounded{0.1f, 1}), allocate::Bounded<float>>);
  static_assert(std::is_same_v<decltype(allocate::Bounded{0.1, 0.5}), allocate::Bounded<double>>);
  static_assert(std::is_same_v<decltype(allocate::Bounded{0, 1}), allocate::Bounded<double>>);
  static_assert(std::is_same_v<decltype(allocate::Bounded{0.1f}), allocate::Bounded<float>>);
  const std::vector<float> caps(3, 0.5f);
  const std::vector<bool> mask(3, true);
  static_assert(std::is_same_v<decltype(allocate::Bounded{0, caps, mask}), allocate::Bounded<float>>);
  static_assert(allocate::Allocation<allocate::Proportional, float>);
  static_assert(allocate::Allocation<allocate::Bounded<double>, double>);
  static_assert(!allocate::Allocation<allocate::Bounded<double>, float>);
  // A temporary that owns its memory would dangle.
  static_assert(!std::is_convertible_v<std::vector<float>, allocate::Bound<float>>);
  static_assert(!std::is_convertible_v<std::vector<bool>, allocate::Eligible>);
  static_assert(!std::is_convertible_v<std::vector<char>, allocate::Eligible>);
  static_assert(std::is_convertible_v<const std::vector<bool>&, allocate::Eligible>);
}

TEMPLATE_TEST_CASE("bad weights are named and nothing is written", "", SCALARS) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  for (const T bad : {nan, inf, -inf, T(-1)}) {
    check_throws<ab::InputError, T>(allocate::Proportional{}, {1, 2, bad}, "weight of item 2 is ");
    check_throws<ab::InputError, T>(allocate::Bounded<T>{}, {1, bad, 2}, "weight of item 1 is ");
    const std::vector<bool> mask{true, false, true};
    check_throws<ab::InputError, T>(allocate::Bounded<T>{.eligible = mask}, {1, bad, 2}, "weight of item 1 is ");
  }
  check_throws<ab::InputError, T>(allocate::Proportional{}, {1, -2}, "is -2, but must be finite and not negative");
}

TEMPLATE_TEST_CASE("infeasible bounds are named and nothing is written", "", SCALARS) {
  using T = TestType;
  using B = allocate::Bounded<T>;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const std::vector<T> one(4, T(1));
  check_throws<ab::BudgetError, T>(
      B{.floor = T(0.5)}, one,
      "sum of the Bounded floors of 4 eligible items is 2, but must not exceed the total 1");
  check_throws<ab::BudgetError, T>(B{.cap = T(0.125)}, one,
                                   "caps of 4 eligible items is 0.5, but must reach the total 1");
  const std::vector<T> floors{0, T(0.75), T(0.5), 0}, caps{1, 1, T(0.25), 1};
  check_throws<ab::BudgetError, T>(B{.floor = floors}, one, "the floor of item 1 is 0.75");
  check_throws<ab::BudgetError, T>(B{.floor = floors, .cap = caps}, one,
                                   "Bounded floor of item 2 is 0.5, but must not exceed its cap 0.25");
  check_throws<ab::BudgetError, T>(B{.floor = T(-0.5)}, one,
                                   "Bounded floor of item 0 is -0.5, but must not be negative");
  check_throws<ab::InputError, T>(B{.floor = nan}, one, "Bounded floor of item 0 is nan");
  check_throws<ab::InputError, T>(B{.cap = nan}, one, "Bounded cap of item 0 is nan");
  const std::vector<bool> none(4, false), two{false, true, true, false};
  check_throws<ab::BudgetError, T>(B{.eligible = none}, one, "number of eligible items is 0");
  check_throws<ab::BudgetError, T>(B{.cap = T(0.375), .eligible = two}, one, "2 eligible items is 0.75");
  check_throws<ab::BudgetError, T>(B{}, {}, "number of eligible items is 0");
  check_throws<ab::BudgetError, T>(allocate::Proportional{}, {}, "number of items is 0");
}

TEMPLATE_TEST_CASE("sizes must agree", "", SCALARS) {
  using T = TestType;
  using B = allocate::Bounded<T>;
  const std::vector<T> three(3, T(0.25));
  const std::vector<bool> mask(5, true);
  std::vector<T> weights(4, T(1)), shares(3);
  CHECK_THROWS_AS(allocate::Proportional{}(weights, shares), ab::ShapeError);
  CHECK_THROWS_WITH(B{}(weights, shares),
                    ContainsSubstring("shares size is 3, but must equal the size of saliency, 4"));
  check_throws<ab::ShapeError, T>(B{.floor = three}, weights, "Bounded floor size is 3");
  check_throws<ab::ShapeError, T>(B{.cap = three}, weights, "Bounded cap size is 3");
  check_throws<ab::ShapeError, T>(B{.eligible = mask}, weights, "Bounded eligible size is 5");
}

TEMPLATE_TEST_CASE("Tempered and AlphaFair are powers of the weights within bounds", "", SCALARS) {
  using T = TestType;
  const T inf = std::numeric_limits<T>::infinity();
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = 2}, {9, 1, 4}), {0.5, 1.0 / 6, 1.0 / 3});
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = T(0.5)}, {2, 1, 0}), {0.8, 0.2, 0});
  check_near(shares_of<T>(allocate::Tempered<T>{}, {6, 6, 2}), {6.0 / 14, 6.0 / 14, 2.0 / 14});
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = inf}, {6, 1, 0}), {0.5, 0.5, 0});
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = 2}, {0, 0}), {0.5, 0.5});
  check_near(shares_of<T>(allocate::AlphaFair<T>{.alpha = 2, .cap = T(0.375)}, {16, 1, 4}), {0.375, 0.25, 0.375});
  check_near(shares_of<T>(allocate::AlphaFair<T>{.alpha = inf, .floor = T(0.125)}, {16, 1, 0}),
             {0.4375, 0.4375, 0.125});
  const std::vector<bool> mask{false, true, true};
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = 2, .eligible = mask}, {100, 9, 1}), {0, 0.75, 0.25});
  std::vector<double> halves(4);  // not {0.5, 0.5, 0, 0}: g++ 12 -O3 fills that list with 0.5 for AVX-512
  halves[0] = halves[1] = 0.5;
  // A power that leaves the range of double still divides what the capped leave.
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = T(0.0078125), .cap = T(0.5)}, {T(1e30), 2, 2}),
             {0.5, 0.25, 0.25});
  check_near(shares_of<T>(allocate::Tempered<T>{.temperature = T(0.0078125), .cap = T(0.5)}, {T(1e30), 2, 1, 0}),
             halves);
  CHECK_THROWS_WITH(shares_of<T>(allocate::Tempered<T>{.temperature = 0}, {1, 1}),
                    "Tempered temperature is 0, but must be above 0");
  CHECK_THROWS_AS(shares_of<T>(allocate::AlphaFair<T>{.alpha = -1}, {1, 1}), ab::InputError);
  CHECK_THROWS_WITH(shares_of<T>(allocate::AlphaFair<T>{.cap = T(0.25)}, {1, 1}),
                    ContainsSubstring("sum of the AlphaFair caps of 2 eligible items is 0.5"));
}

TEST_CASE("Tempered at temperatures whose powers leave every range", "[allocate]") {
  // Between 1 and 1e-300 there is no comparison at such a power: what the capped leave is all for the former.
  for (const double temperature : {1e-310, 1e-200, 1e-12}) {
    std::vector<double> shares(3);
    allocate::Tempered<double>{.temperature = temperature, .cap = 0.5}(std::vector<double>{1, 2, 1e-300}, shares);
    CHECK(shares == std::vector<double>{0.5, 0.5, 0});
    allocate::Tempered<double>{.temperature = temperature}(std::vector<double>{5e-324, 1.7e308, 1.7e308}, shares);
    CHECK(shares == std::vector<double>{0, 0.5, 0.5});
  }
  // Bounds that differ are told apart beside exponents of 1e18 and more: the largest is at its cap, the next one too.
  const std::vector<double> floors{0.25, 0.03125, 0.0625}, caps{0.5, 0.375, 1}, weights{1, 1e10, 3e-20};
  for (const double temperature : {1e-310, 1e-30, 1e-17, 0.001}) {
    std::vector<double> shares(3);
    allocate::Tempered<double>{.temperature = temperature, .floor = floors, .cap = caps}(weights, shares);
    CHECK(shares == std::vector<double>{0.5, 0.375, 0.125});
  }
  std::vector<double> shares(2);
  allocate::Proportional{}(std::vector<double>{-0.0, 1}, shares);
  CHECK(!std::signbit(shares[0]));
}

TEMPLATE_TEST_CASE("shares: many held by common floors and caps leave the total whole", "", SCALARS) {
  // Weights over tens of powers of ten under tight common bounds: where the first guess of Newton's method is far off,
  // and a step ends between two numbers at which the same items are held.
  std::mt19937_64 random(20261124);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  for (int trial = 0; trial < 4000; ++trial) {
    const auto n = static_cast<std::size_t>(16 + trial % 40);
    const double mean = 1 / static_cast<double>(n);
    const auto cap = static_cast<TestType>((1 + 3 * uniform(random)) * mean);
    const auto floor = std::min(cap, static_cast<TestType>(uniform(random) * mean));
    std::vector<TestType> weights(n), shares(n);
    for (auto& w : weights) w = static_cast<TestType>(std::exp(normal(random) * (uniform(random) < 0.1 ? 15 : 2)));
    CAPTURE(trial, n, floor, cap);
    allocate::Bounded<TestType>{floor, cap}(weights, shares);
    double sum = 0;
    for (const TestType share : shares) {
      REQUIRE((share >= floor && share <= cap));
      sum += static_cast<double>(share);
    }
    REQUIRE(std::abs(sum - 1) <= double(n) * double(std::numeric_limits<TestType>::epsilon()));
  }
}
