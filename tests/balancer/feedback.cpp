#include "attention_balancer/balancer/feedback.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace feedback = ab::feedback;
using Catch::Matchers::ContainsSubstring;

namespace {

template <class T>
std::vector<T> uniform(std::size_t n) {
  return std::vector<T>(n, static_cast<T>(-std::log(double(n))));
}

// The oscillation (Hilbert) seminorm of a difference: what Leaky contracts.
template <class T>
double oscillation(const std::vector<T>& a, const std::vector<T>& b) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (std::size_t i = 0; i < a.size(); ++i) {
    low = std::min(low, double(a[i]) - double(b[i]));
    high = std::max(high, double(a[i]) - double(b[i]));
  }
  return high - low;
}

template <class T>
double sum_of_exp(const std::vector<T>& log_state) {
  double sum = 0;
  for (const T x : log_state) sum += std::exp(double(x));
  return sum;
}

template <class Error, class T, class Policy>
void check_throws(const Policy& policy, const std::vector<T>& signal, const std::string& text) {
  auto state = uniform<T>(3);
  CHECK_THROWS_AS(policy(state, signal), Error);
  CHECK_THROWS_WITH(policy(state, signal), ContainsSubstring(text));
  CHECK(state == uniform<T>(3));
}

}  // namespace

TEMPLATE_TEST_CASE("the plain rule is winner-take-all", "", SCALARS) {
  const std::vector<TestType> weights{TestType(.30), TestType(.28), TestType(.22), TestType(.20)};
  auto state = uniform<TestType>(4);
  for (int t = 0; t < 100; ++t) feedback::Plain<TestType>{}(state, weights);
  CHECK(std::exp(state[0]) == Approx(.999).margin(5e-4));
  CHECK(std::exp(state[1]) == Approx(.001).margin(5e-5));
  CHECK(std::exp(state[2]) < 1e-12);
  CHECK(std::exp(state[3]) < 1e-12);
  CHECK(sum_of_exp(state) == Approx(1));
  // In the log domain nothing is lost where the distribution itself would have underflowed.
  for (int t = 100; t < 5000; ++t) feedback::Plain<TestType>{}(state, weights);
  CHECK(state[3] == Approx(5000 * std::log(.2 / .3)).epsilon(1e-4));
}

TEMPLATE_TEST_CASE("under the plain rule zero is absorbing, and never NaN", "", SCALARS) {
  using V = std::vector<TestType>;
  auto state = uniform<TestType>(3);
  const feedback::Plain<TestType> plain;
  plain(state, V{1, 0, 1});
  CHECK(std::isinf(state[1]));
  plain(state, V{1, 5, 3});
  plain(state, V{1, 0, 3});
  CHECK(state[1] == -std::numeric_limits<TestType>::infinity());
  CHECK(std::exp(state[2]) == Approx(0.9));
  SECTION("all weights zero count as equal") {
    const auto before = state;
    plain(state, V{0, 0, 0});
    for (std::size_t i = 0; i < 3; ++i) CHECK(std::exp(state[i]) == Approx(std::exp(before[i])));
  }
  SECTION("nobody left is an error") {
    CHECK_THROWS_AS(plain(state, V{0, 1, 0}), ab::InputError);
    CHECK_THROWS_WITH(plain(state, V{0, 1, 0}), ContainsSubstring("at least one item alive"));
  }
}

TEMPLATE_TEST_CASE("Leaky contracts by 1 - rate to w^gain", "", SCALARS) {
  const std::vector<TestType> weights{4, 1, 9, 2};
  for (const double rate : {0.1, 0.5, 1.0})
    for (const double gain : {0.5, 1.0, 2.0}) {
      const feedback::Leaky<TestType> leaky{TestType(rate), TestType(gain)};
      std::vector<TestType> fixed(4);
      for (std::size_t i = 0; i < 4; ++i) fixed[i] = TestType(gain * std::log(double(weights[i])));
      std::vector<TestType> state{-9, 0, 3, 1};
      const double tolerance = 200 * double(std::numeric_limits<TestType>::epsilon());
      for (int t = 0; t < 20; ++t) {
        const double before = oscillation(state, fixed);
        leaky(state, weights);
        CHECK(std::abs(oscillation(state, fixed) - (1 - double(leaky.rate)) * before) <= tolerance);
        CHECK(sum_of_exp(state) == Approx(1));
      }
      for (int t = 0; t < 400; ++t) leaky(state, weights);
      CHECK(oscillation(state, fixed) <= tolerance);
    }
}

TEMPLATE_TEST_CASE("the closed loop contracts by 1 - rate * (1 - gain)", "", SCALARS) {
  // What is observed is own * r: the shares steer the attention.
  const std::vector<TestType> own{4, 1, 9, 2};
  const auto observe = [&](const std::vector<TestType>& state) {
    std::vector<TestType> seen(4);
    for (std::size_t i = 0; i < 4; ++i) seen[i] = own[i] * std::exp(state[i]);
    return seen;
  };
  SECTION("gain 1/2 settles at the weights that the inputs have by themselves") {
    const feedback::Leaky<TestType> leaky{TestType(0.5), TestType(0.5)};
    std::vector<TestType> fixed(4);
    for (std::size_t i = 0; i < 4; ++i) fixed[i] = std::log(own[i]);
    auto state = uniform<TestType>(4);
    double distance = oscillation(state, fixed);
    for (int t = 0; t < 20; ++t) {
      leaky(state, observe(state));
      CHECK(oscillation(state, fixed) == Approx(0.75 * distance).margin(1e-5));
      distance = oscillation(state, fixed);
    }
    for (int t = 0; t < 200; ++t) leaky(state, observe(state));
    for (std::size_t i = 0; i < 4; ++i) CHECK(std::exp(state[i]) == Approx(own[i] / TestType(16)).epsilon(1e-4));
  }
  SECTION("gain 1 does not settle") {
    const feedback::Leaky<TestType> leaky{TestType(0.5), TestType(1)};
    auto state = uniform<TestType>(4);
    for (int t = 0; t < 300; ++t) leaky(state, observe(state));
    CHECK(std::exp(state[2]) > 0.99);
  }
}

TEMPLATE_TEST_CASE("Leaky: zero is not for ever", "", SCALARS) {
  using V = std::vector<TestType>;
  const feedback::Leaky<TestType> leaky{};
  auto state = uniform<TestType>(2);
  SECTION("it settles at 1e-6 of the largest") {
    for (int t = 0; t < 100; ++t) leaky(state, V{5, 0});
    CHECK(double(state[1]) - double(state[0]) == Approx(std::log(1e-6)));
  }
  SECTION("it recovers within log(1e6) / rate steps") {
    for (int t = 0; t < 1000; ++t) leaky(state, V{5, 0});
    for (int t = 0; t < int(std::log(1e6) / 0.5); ++t) leaky(state, V{1, 1});
    CHECK(std::exp(state[1]) == Approx(0.5).epsilon(1e-3));
  }
  SECTION("a state of zero is raised too") {
    const TestType dead = -std::numeric_limits<TestType>::infinity();
    for (const TestType rate : {TestType(0.5), TestType(1)}) {
      state = {0, dead};
      feedback::Leaky<TestType>{rate}(state, V{1, 1});
      CHECK(double(state[1]) - double(state[0]) == Approx((1 - double(rate)) * std::log(1e-6)));
      state = {dead, dead};
      feedback::Leaky<TestType>{rate}(state, V{1, 1});
      CHECK(std::exp(state[1]) == Approx(0.5));
    }
  }
  SECTION("all weights zero count as equal") {
    state = {TestType(std::log(0.2)), TestType(std::log(0.8))};
    leaky(state, V{0, 0});
    CHECK(std::exp(double(state[1]) - double(state[0])) == Approx(2));
  }
}

TEST_CASE("weights of any scale: only their ratios matter") {
  const feedback::Leaky<double> leaky{};
  auto state = uniform<double>(2), scaled = state;
  leaky(state, std::vector<double>{1, 3});
  for (const double scale : {1e-300, 1e-320, 1e300}) {
    scaled = uniform<double>(2);
    leaky(scaled, std::vector<double>{scale, 3 * scale});
    CHECK(scaled[0] == Approx(state[0]).epsilon(scale < 1e-310 ? 1e-3 : 1e-12));
    auto plain = uniform<double>(2);
    feedback::Plain<double>{}(plain, std::vector<double>{scale, 3 * scale});
    CHECK(std::exp(plain[1]) == Approx(0.75).epsilon(scale < 1e-310 ? 1e-3 : 1e-12));
  }
}

TEMPLATE_TEST_CASE("bad signals and bad parameters", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  for (const T bad : {nan, inf, T(-1)}) {
    check_throws<ab::InputError, T>(feedback::Leaky<T>{}, V{1, bad, 1}, "weight of item 1 is ");
    check_throws<ab::InputError, T>(feedback::Plain<T>{}, V{1, 1, bad}, "weight of item 2 is ");
  }
  check_throws<ab::ShapeError, T>(feedback::Leaky<T>{}, V{1, 1},
                                  "signal size is 2, but must equal the size of the state, 3");
  check_throws<ab::ShapeError, T>(feedback::Plain<T>{}, V{1, 1}, "signal size is 2");
  for (const T rate : {T(0), T(-0.5), T(1.5), nan})
    check_throws<ab::InputError, T>(feedback::Leaky<T>{rate}, V{1, 1, 1}, "Leaky rate is ");
  for (const T gain : {T(0), T(-1), inf, nan})
    check_throws<ab::InputError, T>(feedback::Leaky<T>{T(0.5), gain}, V{1, 1, 1}, "Leaky gain is ");
}

TEST_CASE("deduction guides of the feedbacks") {
  static_assert(std::is_same_v<decltype(feedback::Leaky{0.5f, 1}), feedback::Leaky<float>>);
  static_assert(std::is_same_v<decltype(feedback::Leaky{1, 0.5f}), feedback::Leaky<float>>);
  static_assert(std::is_same_v<decltype(feedback::Leaky{0.5}), feedback::Leaky<double>>);
  static_assert(std::is_same_v<decltype(feedback::Leaky{1, 2}), feedback::Leaky<double>>);
  static_assert(std::is_same_v<decltype(feedback::Leaky{}), feedback::Leaky<double>>);
  static_assert(std::is_same_v<decltype(feedback::Plain{}), feedback::Plain<double>>);
  static_assert(feedback::Feedback<feedback::Leaky<double>, float>);  // the parameters' scalar is not the state's
  CHECK(feedback::Leaky{1, 2}.gain == 2.0);
}
