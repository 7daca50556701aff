// The exponential of the softmax to its stated accuracy, and the functions that modifiers may use.

#include <cmath>

#include "attention_balancer/simd/math.hpp"
#include "support/options.hpp"
#include "support/random.hpp"
#include "support/table.hpp"

namespace {

namespace simd = attention_balancer::simd;

template <class S>
double first(const S& x) {
  alignas(64) simd::scalar_of<S> values[simd::lanes_of<S>];
  simd::store_aligned(values, x);
  for (const auto v : values)
    if (!(v == values[0]) && !(std::isnan(v) && std::isnan(values[0]))) return -12345;  // lanes differ
  return static_cast<double>(values[0]);
}

template <class S>
double exp2_of(simd::scalar_of<S> x) {
  return first(simd::exp2(S(x)));
}

template <class S>
void check_exp2(support::Table& table, const std::string& name) {
  using T = simd::scalar_of<S>;
  constexpr bool single = sizeof(T) == 4;
  const double bound = single ? 2.5e-7 : 5e-16, least = static_cast<double>(std::numeric_limits<T>::min());
  const T lowest = T(single ? -126 : -1022);
  table.begin(name);
  {
    auto normal = table.column("normal results"), below = table.column("results below");
    support::Random random(111);
    const int samples = support::quick() ? 20000 : 400000;
    for (int n = 0; n < samples; ++n) {
      // All of the range, much of it near 0, where the weights that matter are.
      const double range = n % 3 == 0 ? (single ? 130 : 1030) : n % 3 == 1 ? 4 : 40;
      const T x = static_cast<T>(n % 17 == 0 ? random.uniform(0, 119.9) : -range * random.unit());
      const double got = exp2_of<S>(x);
      const double expected =
          single ? std::exp2(static_cast<double>(x)) : static_cast<double>(std::exp2(static_cast<long double>(x)));
      if (x >= lowest)
        normal.compare(got, expected, bound * expected, n);
      else
        below.compare(got, expected, least, n);
    }
    for (int n = 0; n <= (single ? 126 : 1022); ++n)
      normal.compare(exp2_of<S>(T(-n)), std::ldexp(1.0, -n), bound * std::ldexp(1.0, -n), -n);
  }
  auto exact = table.column("exact");
  exact.equal(exp2_of<S>(T(0)), 1, 0);
  exact.equal(exp2_of<S>(-T(0)), 1, 1);
  exact.equal(exp2_of<S>(-std::numeric_limits<T>::infinity()), 0, 2);
  exact.equal(exp2_of<S>(T(single ? -127 : -1023)), 0, 3);
  exact.equal(exp2_of<S>(std::numeric_limits<T>::lowest()), 0, 4);
  exact.equal(exp2_of<S>(std::numeric_limits<T>::quiet_NaN()), std::nan(""), 5);
  exact.equal(exp2_of<S>(-std::numeric_limits<T>::quiet_NaN()), std::nan(""), 6);
  exact.equal(exp2_of<S>(std::numeric_limits<T>::denorm_min()), 1, 7);
}

/// As exp2, or 0 where that is next to nothing.
template <class S>
void check_weights(support::Table& table, const std::string& name) {
  using T = simd::scalar_of<S>;
  constexpr bool single = sizeof(T) == 4;
  table.begin(name);
  auto weight = table.column("weight");
  support::Random random(113);
  for (int n = 0; n < 20000; ++n) {
    const T x = static_cast<T>(-(single ? 130 : 1030) * random.unit());
    const bool below = x < T(simd::least_weight_exponent<T>);
    const double got = first(simd::exp2_of_weight<false>(S(x)));
    weight.equal(got, got == 0 && below ? 0 : exp2_of<S>(x), n);
    weight.equal(first(simd::exp2_of_weight<true>(S(x))), below ? 0 : exp2_of<S>(x), n);
  }
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const T x : {T(0), -infinity, std::numeric_limits<T>::lowest(), nan}) {
    const double right = x == T(0) ? 1 : x < T(0) ? 0 : std::nan("");
    weight.equal(first(simd::exp2_of_weight<false>(S(x))), right, -1);
    weight.equal(first(simd::exp2_of_weight<true>(S(x))), right, -2);
  }
}

/// x as a number of some last places of 1.
template <class T>
T tiny_of(double x) {
  return static_cast<T>(std::nearbyint(x)) * std::numeric_limits<T>::epsilon();
}

template <class S>
void check_functions(support::Table& table, const std::string& name) {
  using T = simd::scalar_of<S>;
  const double eps = static_cast<double>(std::numeric_limits<T>::epsilon()), inf = HUGE_VAL;
  table.begin(name);
  auto exp = table.column("exp"), log = table.column("log"), tanh = table.column("tanh"), abs = table.column("abs");
  support::Random random(112);
  for (int n = 0; n < (support::quick() ? 2000 : 20000); ++n) {
    const T x = static_cast<T>(random.uniform(-30, 30)), y = static_cast<T>(random.normal() * 0.7);
    const double dx = static_cast<double>(x), dy = static_cast<double>(y);
    exp.compare(first(simd::exp(S(x))), std::exp(dx), 4 * eps * std::exp(dx), n);
    const T positive = static_cast<T>(std::exp(dx)), around_one = T(1) + static_cast<T>(dx / 60);
    for (const T z : {positive, around_one, T(1) + tiny_of<T>(dx), std::fabs(x) * std::numeric_limits<T>::min()}) {
      const double right = static_cast<double>(std::log(static_cast<long double>(z)));
      log.compare(first(simd::log(S(z))), right, 2 * eps * std::fabs(right), n);
    }
    tanh.compare(first(simd::tanh(S(y))), std::tanh(dy), 4 * eps * std::fabs(std::tanh(dy)), n);
    abs.equal(first(simd::abs(S(x))), std::fabs(dx), n);
    const T wide = static_cast<T>(random.uniform(-1, 1) * (sizeof(T) == 4 ? 87 : 708)), tiny = y * T(1e-10);
    exp.compare(first(simd::exp(S(wide))), std::exp(static_cast<double>(wide)),
                4 * eps * std::exp(static_cast<double>(wide)), n);
    const T near = static_cast<T>(std::copysign(random.uniform(0, 10), dx));
    const double of_near = first(simd::tanh(S(near))), right = std::tanh(static_cast<double>(near));
    tanh.compare(of_near, right, 4 * eps * std::fabs(right), n);
    tanh.compare(std::max(std::fabs(of_near), 1.0), 1, 0, n);
    tanh.compare(first(simd::tanh(S(x))), std::tanh(dx), 4 * eps, n);
    tanh.compare(first(simd::tanh(S(tiny))), static_cast<double>(tiny),
                 4 * eps * std::fabs(static_cast<double>(tiny)), n);
  }
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  exp.equal(first(simd::exp(S(-infinity))), 0, -1);
  exp.equal(first(simd::exp(S(infinity))), inf, -2);
  exp.equal(first(simd::exp(S(nan))), std::nan(""), -3);
  exp.equal(first(simd::exp(S(T(0)))), 1, -4);
  exp.equal(first(simd::exp(S(T(1000)))), inf, -5);
  exp.equal(first(simd::exp(S(T(-1000)))), 0, -6);
  const T most = static_cast<T>(sizeof(T) == 4 ? 88.72 : 709.78),
          least = static_cast<T>(sizeof(T) == 4 ? -87.3 : -708.3);
  for (const T x : {most, least})
    exp.compare(first(simd::exp(S(x))), std::exp(static_cast<double>(x)),
                4 * eps * std::exp(static_cast<double>(x)), -7);
  log.equal(first(simd::log(S(T(0)))), -inf, -1);
  log.equal(first(simd::log(S(T(1)))), 0, -2);
  log.equal(first(simd::log(S(nan))), std::nan(""), -3);
  log.equal(first(simd::log(S(infinity))), inf, -4);
  log.equal(first(simd::log(S(-T(0)))), -inf, -5);
  log.equal(first(simd::log(S(T(-1)))), std::nan(""), -6);
  log.equal(first(simd::log(S(-infinity))), std::nan(""), -7);
  tanh.equal(first(simd::tanh(S(infinity))), 1, -1);
  tanh.equal(first(simd::tanh(S(-infinity))), -1, -2);
  tanh.equal(first(simd::tanh(S(nan))), std::nan(""), -3);
  tanh.equal(first(simd::tanh(S(T(0)))), 0, -4);
  tanh.equal(1 / first(simd::tanh(S(-T(0)))), -inf, -4);
  tanh.compare(first(simd::tanh(S(T(300)))), 1, eps, -5);
  abs.equal(first(simd::abs(S(-infinity))), inf, -1);
  abs.equal(first(simd::abs(S(nan))), std::nan(""), -2);
}

}  // namespace

TEST_CASE("exp2 is as accurate as it says", "[simd]") {
  support::Table table;
  check_exp2<float>(table, "float");
  check_weights<float>(table, "weights of float");
  check_exp2<double>(table, "double");
  check_weights<double>(table, "weights of double");
  check_exp2<simd::Pack<float>>(table, "pack of float");
  check_weights<simd::Pack<float>>(table, "weights of pack of float");
  check_exp2<simd::Pack<double>>(table, "pack of double");
  check_weights<simd::Pack<double>>(table, "weights of pack of double");
  table.report();
}

TEST_CASE("exp, log, tanh and abs, with what is no number", "[simd]") {
  support::Table table;
  check_functions<float>(table, "float");
  check_functions<double>(table, "double");
  check_functions<simd::Pack<float>>(table, "pack of float");
  check_functions<simd::Pack<double>>(table, "pack of double");
  table.report();
}
