// Ema, FixedShare, Hedge and BiasBalancing: what each says of itself, in numbers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention_balancer/balancer/bias_balancing.hpp"
#include "attention_balancer/balancer/feedback.hpp"
#include "attention_balancer/balancer/fixed_share.hpp"
#include "attention_balancer/balancer/hedge.hpp"
#include "attention_balancer/balancer/resource_balancer.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace feedback = ab::feedback;
using ab::Index;
using Catch::Matchers::ContainsSubstring;

namespace {

template <class T>
std::vector<T> uniform(std::size_t n) {
  return std::vector<T>(n, static_cast<T>(-std::log(double(n))));
}

template <class T>
std::vector<double> shares(const std::vector<T>& log_state) {
  std::vector<double> r;
  for (const T x : log_state) r.push_back(std::exp(double(x)));
  return r;
}

template <class Error, class T, class Policy>
void check_throws(const Policy& policy, const std::vector<T>& signal, const std::string& text) {
  auto state = uniform<T>(3);
  CHECK_THROWS_AS(policy(state, signal), Error);
  CHECK_THROWS_WITH(policy(state, signal), ContainsSubstring(text));
  CHECK(state == uniform<T>(3));
}

/// A user's own feedback, without a scalar.
struct Nothing {
  template <class T>
  void operator()(std::span<T>, std::span<const T>) const {}
};

}  // namespace

TEMPLATE_TEST_CASE("Ema averages the normalised weights", "", SCALARS) {
  using V = std::vector<TestType>;
  const feedback::Ema<TestType> ema{TestType(0.25)};
  auto state = uniform<TestType>(4);
  ema(state, V{1, 3, 0, 4});
  CHECK(shares(state)[0] == Approx(0.75 * 0.25 + 0.25 * 1 / 8));
  CHECK(shares(state)[2] == Approx(0.75 * 0.25));
  CHECK(shares(state)[3] == Approx(0.75 * 0.25 + 0.25 * 0.5));
  SECTION("all weights zero count as equal") {
    for (int t = 0; t < 100; ++t) ema(state, V{0, 0, 0, 0});
    for (const double r : shares(state)) CHECK(r == Approx(0.25));
  }
  SECTION("a share decays without an end, and is back at once") {
    for (int t = 0; t < 5000; ++t) ema(state, V{1, 1, 0, 1});
    CHECK(double(state[2]) == Approx(5000 * std::log(0.75)).epsilon(1e-2));
    ema(state, V{1, 1, 1, 1});
    CHECK(shares(state)[2] == Approx(0.25 * 0.25));
  }
  SECTION("rate 1 remembers nothing") {
    feedback::Ema<TestType>{1}(state, V{1, 0, 1, 2});
    CHECK(std::isinf(state[1]));
    CHECK(shares(state)[3] == Approx(0.5));
    feedback::Ema<TestType>{1}(state, V{1, 1, 1, 1});
    CHECK(shares(state)[1] == Approx(0.25));
  }
  SECTION("the dead are raised by what weight they have") {
    const TestType dead = -std::numeric_limits<TestType>::infinity();
    V state_of_two{0, dead};
    ema(state_of_two, V{1, 1});
    CHECK(shares(state_of_two)[1] == Approx(0.125));
    V none{dead, dead};
    ema(none, V{1, 3});
    CHECK(shares(none)[1] == Approx(0.75));
  }
}

TEMPLATE_TEST_CASE("FixedShare keeps everyone alive", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const feedback::FixedShare policy{0.02, feedback::Plain<T>{}};
  auto state = uniform<T>(4);
  for (int t = 0; t < 1000; ++t) policy(state, V{3, 2, 1, 0});
  CHECK(shares(state)[3] == Approx(0.005));
  CHECK(shares(state)[0] > 0.97);
  // Back within log(n / alpha) / log(ratio) cycles and one or two.
  const int cycles = static_cast<int>(std::log(4 / 0.02) / std::log(4.0)) + 2;
  for (int t = 0; t < cycles; ++t) policy(state, V{1, 1, 1, 4});
  CHECK(shares(state)[3] > 0.8);

  for (const double alpha : {0.0, 1.0}) {
    auto other = uniform<T>(2);
    feedback::FixedShare{alpha, feedback::Plain<T>{}}(other, V{3, 1});
    CHECK(shares(other)[0] == Approx(alpha == 0 ? 0.75 : 0.5));
  }
  auto untouched = uniform<T>(3);
  feedback::FixedShare{0.5, Nothing{}}(untouched, V{9, 9, 9});
  CHECK(shares(untouched)[1] == Approx(1.0 / 3));
}

TEMPLATE_TEST_CASE("Hedge multiplies by exp(-eta loss)", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const feedback::Hedge<T> policy{.horizon = 100};
  const double eta = std::sqrt(8 * std::log(3.0) / 100);
  CHECK(policy.rate(3) == Approx(eta));
  CHECK(policy.rate(1) == 0);
  CHECK(policy.regret_bound(3) == Approx(std::sqrt(100 * std::log(3.0) / 2)));
  CHECK(policy.regret_bound(1) == 0);
  CHECK(feedback::Hedge<T>{1, T(0.5)}.regret_bound(2, 16) == Approx(std::log(2.0) / 0.5 + 0.5 * 16 / 8));
  auto state = uniform<T>(3);
  policy(state, V{0, 1, T(0.5)});
  CHECK(double(state[0] - state[1]) == Approx(eta));
  CHECK(double(state[0] - state[2]) == Approx(eta / 2));
  CHECK(shares(state)[0] + shares(state)[1] + shares(state)[2] == Approx(1));
}

TEMPLATE_TEST_CASE("BiasBalancing looks at the sign alone", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const feedback::BiasBalancing<T> policy{T(0.1)};
  auto state = uniform<T>(4);
  policy(state, V{0, 10, 4, 2});  // the mean is 4
  CHECK(double(state[0] - state[2]) == Approx(0.1).epsilon(1e-5));
  CHECK(double(state[1] - state[2]) == Approx(-0.1).epsilon(1e-5));
  CHECK(double(state[3] - state[2]) == Approx(0.1).epsilon(1e-5));
  CHECK(shares(state)[0] + shares(state)[1] + shares(state)[2] + shares(state)[3] == Approx(1));
  const auto before = state;
  policy(state, V{0, 0, 0, 0});
  CHECK(state == before);
  policy(state, V{T(0.1), T(0.1), T(0.1), T(0.1)});
  for (std::size_t i = 0; i < 4; ++i) CHECK(double(state[i]) == Approx(double(before[i])).epsilon(1e-6));
  const T huge = std::numeric_limits<T>::max();
  auto wild = uniform<T>(3);
  policy(wild, V{huge, huge, 0});
  CHECK(double(wild[2] - wild[0]) == Approx(0.2).epsilon(1e-5));

  SECTION("a loop of shares and loads comes to balance, whatever the scale of the loads") {
    const std::vector<double> capacity{8, 4, 2, 1, 1};
    ab::ResourceBalancer balancer(5, ab::allocate::Proportional{}, feedback::BiasBalancing<T>{T(0.01)});
    V loads(5);
    for (int t = 0; t < 1000; ++t) {
      for (std::size_t i = 0; i < 5; ++i)
        loads[i] = static_cast<T>(1e20 * double(balancer.shares()[i]) / capacity[i]);
      balancer.update(loads);
    }
    for (std::size_t i = 0; i < 5; ++i)
      CHECK(double(balancer.shares()[i]) == Approx(capacity[i] / 16).epsilon(0.03));
  }
  SECTION("a step that is lost is an error, not a standstill") {
    std::vector<float> low{-5, -5};
    CHECK_THROWS_WITH(feedback::BiasBalancing<float>{1e-9f}(low, std::vector<float>{1, 2}),
                      ContainsSubstring("be large enough to change the state of item 0, -5"));
  }
}

TEMPLATE_TEST_CASE("bad signals and parameters of the other feedbacks", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  const feedback::FixedShare fixed{0.1, feedback::Plain<T>{}};
  for (const T bad : {nan, inf, T(-1)}) {
    check_throws<ab::InputError, T>(feedback::Ema<T>{}, V{1, bad, 1}, "weight of item 1 is ");
    check_throws<ab::InputError, T>(fixed, V{1, 1, bad}, "weight of item 2 is ");
    check_throws<ab::InputError, T>(feedback::Hedge<T>{}, V{1, 0, bad}, "loss of item 2 is ");
    check_throws<ab::InputError, T>(feedback::BiasBalancing<T>{}, V{bad, 0, 1}, "load of item 0 is ");
  }
  check_throws<ab::InputError, T>(feedback::Hedge<T>{}, V{1, 0, T(1.01)}, "but must be in [0, 1]");
  for (const auto& wrong : {V{1, 1}, V{1, 1, 1, 1}}) {
    check_throws<ab::ShapeError, T>(feedback::Ema<T>{}, wrong, "signal size is");
    check_throws<ab::ShapeError, T>(fixed, wrong, "signal size is");
    check_throws<ab::ShapeError, T>(feedback::Hedge<T>{}, wrong, "signal size is");
    check_throws<ab::ShapeError, T>(feedback::BiasBalancing<T>{}, wrong, "signal size is");
  }
  for (const T rate : {T(0), T(-1), T(1.5), nan})
    check_throws<ab::InputError, T>(feedback::Ema<T>{rate}, V{1, 1, 1}, "Ema rate is ");
  for (const double alpha : {-0.1, 1.5, std::nan("")})
    check_throws<ab::InputError, T>(feedback::FixedShare{alpha, feedback::Plain<T>{}}, V{1, 1, 1},
                                    "FixedShare alpha is ");
  check_throws<ab::InputError, T>(feedback::FixedShare{0.1, feedback::Leaky<T>{T(3)}}, V{1, 1, 1},
                                  "Leaky rate is ");
  for (const T eta : {T(-1), inf, nan})
    check_throws<ab::InputError, T>(feedback::Hedge<T>{1, eta}, V{1, 1, 1}, "Hedge eta is ");
  check_throws<ab::InputError, T>(feedback::Hedge<T>{0}, V{1, 1, 1}, "Hedge horizon is 0");
  for (const T step : {T(0), T(-1), inf, nan})
    check_throws<ab::InputError, T>(feedback::BiasBalancing<T>{step}, V{1, 1, 1}, "BiasBalancing step is ");
  CHECK_THROWS_AS(ab::ResourceBalancer(2, ab::allocate::Proportional{}, feedback::Hedge<T>{-1}), ab::InputError);
}

TEST_CASE("deduction guides of the other feedbacks") {
  static_assert(std::is_same_v<decltype(feedback::Ema{0.5f}), feedback::Ema<float>>);
  static_assert(std::is_same_v<decltype(feedback::Ema{1}), feedback::Ema<double>>);
  static_assert(std::is_same_v<decltype(feedback::FixedShare{0.1f}), feedback::FixedShare<feedback::Plain<float>>>);
  static_assert(std::is_same_v<decltype(feedback::FixedShare{0.1, feedback::Leaky{0.5f}}),
                               feedback::FixedShare<feedback::Leaky<float>>>);
  static_assert(std::is_same_v<decltype(feedback::FixedShare{0.1, Nothing{}})::value_type, double>);
  static_assert(std::is_same_v<decltype(feedback::Hedge{100}), feedback::Hedge<double>>);
  static_assert(std::is_same_v<decltype(feedback::Hedge{100, 0.1f}), feedback::Hedge<float>>);
  static_assert(std::is_same_v<decltype(feedback::BiasBalancing{0.1f}), feedback::BiasBalancing<float>>);
  static_assert(feedback::Feedback<feedback::FixedShare<Nothing>, float>);
  ab::ResourceBalancer balancer(2, ab::allocate::Proportional{}, feedback::FixedShare{0.1, feedback::Leaky{0.5f}});
  static_assert(std::is_same_v<decltype(balancer)::value_type, float>);
  CHECK(balancer.size() == 2);
}
