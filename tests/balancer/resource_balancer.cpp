#include "attention_balancer/balancer/resource_balancer.hpp"

#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <vector>

#include "attention_balancer/allocate/euclidean.hpp"
#include "attention_balancer/balancer/hedge.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
using ab::Index;
using Catch::Matchers::ContainsSubstring;

namespace {

template <class T>
std::vector<T> copy(std::span<const T> values) {
  return {values.begin(), values.end()};
}

// Everything that can be seen of a balancer, to show that nothing changed.
template <class Balancer>
struct Seen {
  using V = std::vector<typename Balancer::value_type>;
  V shares, logs, state;
  Index cycle;
  std::string explanation;
  explicit Seen(const Balancer& b)
      : shares(copy(b.shares())),
        logs(copy(b.log_shares())),
        state(copy(b.state())),
        cycle(b.cycle()),
        explanation(to_string(b.explain(0))) {}
  bool operator==(const Seen&) const = default;
};

// A user's own policies.
struct FirstTakesAll {
  template <class T>
  void operator()(std::span<const T>, std::span<T> shares) const {
    std::fill(shares.begin(), shares.end(), T(0));
    shares[0] = T(1);
  }
};
struct Set {
  template <class T>
  void operator()(std::span<T> log_state, std::span<const T> signal) const {
    std::copy(signal.begin(), signal.end(), log_state.begin());
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a balancer starts uniform and follows its signal", "", SCALARS) {
  ab::ResourceBalancer<TestType> balancer(4);
  CHECK(copy(balancer.shares()) == std::vector<TestType>(4, TestType(0.25)));
  CHECK(balancer.size() == 4);
  CHECK(balancer.cycle() == 0);
  const auto shares = balancer.update(std::vector<TestType>{1, 4, 1, 1});
  CHECK(balancer.cycle() == 1);
  // Half a step, in logarithms, from (1, 1, 1, 1) to (1, 4, 1, 1).
  CHECK(shares[1] == Approx(0.4));
  CHECK(shares[0] == Approx(0.2));
  CHECK(std::accumulate(shares.begin(), shares.end(), 0.0) == Approx(1));
  for (int t = 0; t < 60; ++t) balancer.update(std::vector<TestType>{1, 4, 1, 1});
  CHECK(balancer.shares()[1] == Approx(4.0 / 7));
}

TEMPLATE_TEST_CASE("the shares are bounded, the state is not", "", SCALARS) {
  using T = TestType;
  const ab::allocate::Bounded<T> bounds{.floor = T(0.1), .cap = T(0.5)};
  ab::ResourceBalancer balancer(3, bounds);
  static_assert(std::is_same_v<decltype(balancer), ab::ResourceBalancer<T, ab::allocate::Bounded<T>>>);
  for (int t = 0; t < 50; ++t) balancer.update(std::vector<T>{1000, 10, 1});
  CHECK(balancer.shares()[0] == T(0.5));
  CHECK(balancer.shares()[2] == T(0.1));
  CHECK(balancer.shares()[1] == Approx(0.4));
  CHECK(std::exp(balancer.state()[0]) == Approx(1000.0 / 1011));
  CHECK(std::exp(balancer.state()[2]) == Approx(1.0 / 1011));
  // What is fed back are the shares.
  for (std::size_t i = 0; i < 3; ++i) CHECK(balancer.log_shares()[i] == std::log(balancer.shares()[i]));
}

TEMPLATE_TEST_CASE("log_shares is finite or -inf, never NaN", "", SCALARS) {
  using T = TestType;
  const std::vector<bool> mask{true, false, true};
  ab::ResourceBalancer<T, ab::allocate::Bounded<T>> masked(3, {.eligible = mask});
  masked.update(std::vector<T>{1, 2, 0});
  CHECK(masked.shares()[1] == T(0));
  CHECK(masked.log_shares()[1] == -std::numeric_limits<T>::infinity());
  CHECK(std::isfinite(masked.log_shares()[2]));
  CHECK(std::isfinite(masked.state()[1]));

  ab::ResourceBalancer<T, ab::allocate::Proportional, ab::feedback::Plain<T>> plain(3);
  plain.update(std::vector<T>{1, 2, 0});
  for (int t = 0; t < 2000; ++t) plain.update(std::vector<T>{1, 2, 1});
  CHECK(plain.shares()[1] == T(1));
  CHECK(plain.log_shares()[1] == T(0));
  CHECK(std::isinf(plain.log_shares()[2]));
  CHECK(std::isfinite(plain.state()[0]));
}

TEMPLATE_TEST_CASE("units are exact and within the bounds", "", SCALARS) {
  using T = TestType;
  SECTION("without bounds they are Sainte-Lague of the shares") {
    ab::ResourceBalancer<T> balancer(3);
    CHECK(balancer.units(1000) == std::vector<Index>{334, 333, 333});
    CHECK(balancer.units(0) == std::vector<Index>{0, 0, 0});
    balancer.update(std::vector<T>{6, 6, 2});
    CHECK(balancer.units(100) == ab::apportion::sainte_lague(balancer.shares(), 100));
  }
  SECTION("floors round up, caps down") {
    ab::ResourceBalancer<T, ab::allocate::Bounded<T>> balancer(5, {.floor = T(0.1), .cap = T(0.35)});
    for (int t = 0; t < 9; ++t) balancer.update(std::vector<T>{1000, 1000, 1, 1, 1});
    CHECK(balancer.units(10) == std::vector<Index>{3, 3, 2, 1, 1});
    CHECK(balancer.units(1000) == std::vector<Index>{350, 350, 100, 100, 100});
  }
  SECTION("a masked input gets none") {
    const std::vector<bool> mask{true, false, true};
    ab::ResourceBalancer<T, ab::allocate::Bounded<T>> balancer(3, {.floor = T(0.1), .eligible = mask});
    CHECK(balancer.units(11) == std::vector<Index>{6, 0, 5});
  }
  SECTION("what cannot be is an error") {
    ab::ResourceBalancer<T, ab::allocate::Bounded<T>> floors(4, {.floor = T(0.2)}), caps(3, {.cap = T(0.4)});
    CHECK_THROWS_AS(floors.units(3), ab::BudgetError);
    CHECK_THROWS_WITH(floors.units(3), ContainsSubstring("units(3)") && ContainsSubstring("floors round up") &&
                                           ContainsSubstring("is 4, but must not exceed the total 3"));
    CHECK_THROWS_WITH(caps.units(4), ContainsSubstring("upper bounds of 3 items is 3, but must reach the total 4"));
    CHECK_THROWS_AS(floors.units(-1), ab::BudgetError);
    CHECK_THROWS_AS(floors.units((Index(1) << 53) + 1), ab::BudgetError);
  }
}

TEMPLATE_TEST_CASE("explain says signal, state, share, bound and rounding", "", SCALARS) {
  using T = TestType;
  const std::vector<bool> mask{true, true, true, false};
  ab::ResourceBalancer<T, ab::allocate::Bounded<T>, ab::feedback::Leaky<T>> balancer(
      4, {.floor = T(0.125), .cap = T(0.5), .eligible = mask}, {.rate = T(1)});
  auto report = balancer.explain(0);
  CHECK_FALSE(report.signal);
  CHECK_FALSE(report.rounding);
  CHECK(report.held == ab::Held::none);
  CHECK(report.cycle == 0);
  CHECK_THAT(to_string(report), ContainsSubstring("item 0, cycle 0: no signal yet, share 0.333"));

  balancer.update(std::vector<T>{100, 10, 1, 1000});
  balancer.units(10);
  report = balancer.explain(0);
  CHECK(report.signal == T(100));
  CHECK(report.share == T(0.5));
  CHECK(report.log_share == std::log(T(0.5)));
  CHECK(report.state == Approx(std::log(100.0 / 1111)));
  CHECK(report.held == ab::Held::cap);
  REQUIRE(report.rounding);
  CHECK(report.rounding->units == 5);
  CHECK(report.rounding->total == 10);
  CHECK(report.rounding->direction() == 0);
  CHECK(report.rounding->upper == 5);
  CHECK(to_string(balancer.explain(0, ab::Explain::brief)) ==
        "item 0, cycle 1: weight 100, share 0.5 held by its cap 0.5, 5 of 10 units (quota 5)");
  CHECK_THAT(to_string(report), ContainsSubstring("held by its cap 0.5 (released at weight 1") &&
                                    ContainsSubstring("(quota 5; one more at no weight, one less at weight "));
  CHECK(balancer.explain(1).held == ab::Held::none);
  CHECK(to_string(balancer.explain(2, ab::Explain::brief)) ==
        "item 2, cycle 1: weight 1, share 0.125 held by its floor 0.125, 2 of 10 units (quota 1.25, rounded up)");
  CHECK(balancer.explain(1).rounding->direction() == -1);
  CHECK(balancer.explain(3).held == ab::Held::masked);
  CHECK_THAT(to_string(balancer.explain(3)),
             ContainsSubstring("share 0 because it is masked, 0 of 10 units (quota 0; one more at no weight"));
  std::ostringstream out;
  out << balancer.explain(3);
  CHECK(out.str() == to_string(balancer.explain(3)));

  balancer.update(std::vector<T>{1, 1, 1, 1});
  CHECK_FALSE(balancer.explain(0).rounding);
  CHECK_THROWS_AS(balancer.explain(4), ab::ShapeError);
  CHECK_THROWS_WITH(balancer.explain(-1), "explain item is -1, but must be in [0, size = 4)");
}

TEMPLATE_TEST_CASE("explain says what would change it", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  ab::ResourceBalancer<T, ab::allocate::Bounded<T>> balancer(4, {.floor = T(0.1), .cap = T(0.5)}, {.rate = T(1)});
  CHECK_FALSE(balancer.explain(0).changes);
  balancer.update(V{100, 10, 1, 1});
  CHECK_FALSE(balancer.explain(0, ab::Explain::brief).changes);
  // Two floors of 0.1 leave 0.8 to x and 10: x is below the cap of 0.5 from 10 * 0.5 / 0.3 on.
  CHECK(*balancer.explain(0).changes->release == Approx(10 * 0.5 / 0.3).epsilon(1e-5));
  // At the cap of 0.5 and the floor of 0.1 the others share 0.4: x is above its floor from 10 * 0.1 / 0.3 on.
  CHECK(*balancer.explain(2).changes->release == Approx(10 * 0.1 / 0.3).epsilon(1e-5));
  CHECK_FALSE(balancer.explain(1).changes->release);
  CHECK_FALSE(balancer.explain(1).changes->one_more);  // units were not asked

  // From zero it looks upwards, among the smallest numbers that there are too.
  constexpr T least = std::numeric_limits<T>::denorm_min();
  balancer.update(V{0, least, 2000 * least, 2000 * least});
  CHECK(*balancer.explain(0).changes->release > T(0));
  balancer.update(V{100, 10, 1, 1});

  SECTION("what it says comes true") {
    const V signal{40, 10, 2, 1};
    balancer.update(signal);
    const auto before = balancer;
    for (const bool steady : {false, true}) {
      const ab::apportion::Steady how{steady ? 0.02 : 0.0, steady ? Index(30) : Index(1000)};
      balancer.units(100);
      balancer.update(signal);
      balancer.units(100, how);
      for (Index i = 0; i < 4; ++i) {
        const auto report = balancer.explain(i);
        const auto run = [&](T weight) {
          auto other = before;
          V changed = signal;
          other.units(100);
          changed[static_cast<std::size_t>(i)] = weight;
          other.update(changed);
          return other.units(100, how)[static_cast<std::size_t>(i)];
        };
        const Index units = report.rounding->units;
        CHECK(run(*report.signal) == units);
        for (const auto& [weight, more] :
             {std::pair{report.changes->one_more, true}, {report.changes->one_less, false}}) {
          if (!weight) continue;
          CHECK((more ? run(*weight) > units : run(*weight) < units));
          const T inside = *weight + (*report.signal - *weight) * T(1e-4);
          CHECK((more ? run(inside) <= units : run(inside) >= units));
        }
        if (report.held == ab::Held::none) CHECK((report.changes->one_more || report.changes->one_less));
      }
    }
  }
  SECTION("losses count the other way round, and only those that the feedback takes") {
    ab::ResourceBalancer hedge(2, ab::allocate::Proportional{}, ab::feedback::Hedge<T>{1000, T(0.1)});
    hedge.update(V{T(0.5), T(0.5)});
    hedge.units(1000);
    const auto changes = *hedge.explain(0).changes;
    CHECK(*changes.one_more < T(0.5));
    CHECK(*changes.one_less > T(0.5));
    hedge.units(2);
    CHECK_FALSE(hedge.explain(0).changes->one_more);  // no loss in [0, 1] would
    CHECK_THAT(to_string(hedge.explain(0)), ContainsSubstring("one more at no weight"));
  }
  SECTION("weight zero") {
    balancer.update(V{1, 0, 1, 1});
    const auto report = balancer.explain(1);
    REQUIRE(report.held == ab::Held::floor);
    CHECK(*report.changes->release == Approx(0.1 * 3 / 0.9).epsilon(1e-4));
  }
}

TEMPLATE_TEST_CASE("a plan that does not flicker", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  ab::ResourceBalancer<T> balancer(2, {}, {.rate = T(1)});
  CHECK(balancer.units(100) == std::vector<Index>{50, 50});
  balancer.update(V{52, 48});
  CHECK(balancer.units(100, {.hysteresis = 0.02}) == std::vector<Index>{50, 50});
  // 47 units are the first that are more than 2 away: from a share of 0.475 down.
  CHECK(*balancer.explain(0).changes->one_less == Approx(48 * 0.475 / 0.525).epsilon(1e-4));
  CHECK(*balancer.explain(0).rounding->before == 50);
  balancer.update(V{53, 47});
  CHECK(balancer.units(100, {.hysteresis = 0.02}) == std::vector<Index>{53, 47});
  balancer.update(V{20, 80});
  CHECK(balancer.units(100, {.churn = 10}) == std::vector<Index>{43, 57});
  CHECK(balancer.units(100, {.churn = 10}) == std::vector<Index>{33, 67});
  CHECK(balancer.units(200, {.churn = 10}) == std::vector<Index>{40, 160});  // another total, another plan
  CHECK_THROWS_WITH(balancer.units(200, {.hysteresis = 1.5}), ContainsSubstring("Steady hysteresis is 1.5"));
  CHECK_THROWS_WITH(balancer.units(200, {.churn = -1}), "Steady churn is -1, but must not be negative");
  CHECK(balancer.units(200) == std::vector<Index>{40, 160});
}

TEMPLATE_TEST_CASE("a saved state continues bit for bit", "", SCALARS) {
  using T = TestType;
  ab::ResourceBalancer<T> first(3), second(3);
  for (int t = 0; t < 5; ++t) first.update(std::vector<T>{T(0.3), T(1) + T(t), T(7)});
  const auto saved = copy(first.state());
  const Index cycle = first.cycle();
  second.restore(saved, cycle);
  CHECK(copy(second.shares()) == copy(first.shares()));
  for (int t = 0; t < 5; ++t) {
    first.update(std::vector<T>{1, T(t), T(0.1)});
    second.update(std::vector<T>{1, T(t), T(0.1)});
  }
  CHECK(Seen(first) == Seen(second));

  SECTION("a state with the dead in it is one of Plain's") {
    using Plain = ab::ResourceBalancer<T, ab::allocate::Proportional, ab::feedback::Plain<T>>;
    Plain before(3), after(3);
    before.update(std::vector<T>{1, 0, 2});
    after.restore(before.state());
    CHECK(copy(after.shares()) == copy(before.shares()));
    CHECK(after.cycle() == 0);
    CHECK_FALSE(after.explain(0).signal);
  }
  SECTION("it need not be normalised") {
    first.restore(std::vector<T>{5, 5, 5});
    CHECK(first.shares()[2] == Approx(1.0 / 3));
  }
}

TEMPLATE_TEST_CASE("an input that is another one from now on begins with the mean of the others", "", SCALARS) {
  using T = TestType;
  std::vector<bool> eligible{true, true, true, true};
  const ab::allocate::Bounded<T> bounded{.floor = 0, .cap = 1, .eligible = eligible};
  ab::ResourceBalancer<T, ab::allocate::Bounded<T>> balancer(4, bounded);
  for (int cycle = 0; cycle < 30; ++cycle) balancer.update(std::vector<T>{1, 2, 3, 1000});
  balancer.units(100);
  const auto shares = copy(balancer.restart(3));
  CHECK(shares[0] == Approx(1.0 / 8));
  CHECK(shares[1] == Approx(2.0 / 8));
  CHECK(shares[2] == Approx(3.0 / 8));
  CHECK(shares[3] == Approx(2.0 / 8));
  CHECK(balancer.cycle() == 30);
  CHECK_FALSE(balancer.explain(3).signal.has_value());
  // The plan in force is still that of before.
  CHECK(balancer.units(100, {.hysteresis = 1})[3] > 90);
  // Those that are not eligible count for nothing; without others it starts as the only one.
  eligible = {true, false, false, true};
  CHECK(balancer.restart(3)[3] == Approx(0.5));
  eligible = {false, false, false, true};
  CHECK(balancer.restart(3)[3] == Approx(1));
  CHECK_THROWS_AS(balancer.restart(4), ab::ShapeError);
  CHECK_THROWS_WITH(balancer.restart(-1), ContainsSubstring("restart item is -1"));
}

TEMPLATE_TEST_CASE("what throws changes nothing", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  ab::ResourceBalancer<T, ab::allocate::Bounded<T>, ab::feedback::Plain<T>> balancer(3, {.floor = T(0.1)});
  balancer.update(V{1, 0, 2});
  balancer.units(10);
  const Seen before(balancer);
  CHECK_THROWS_AS(balancer.update(V{1, 2}), ab::ShapeError);
  CHECK_THROWS_WITH(balancer.update(V{1, 2}), "signal size is 2, but must equal the size of the balancer, 3");
  CHECK_THROWS_AS(balancer.update(V{1, nan, 2}), ab::InputError);
  CHECK_THROWS_AS(balancer.update(V{1, inf, 2}), ab::InputError);
  CHECK_THROWS_AS(balancer.update(V{1, 1, -1}), ab::InputError);
  CHECK_THROWS_AS(balancer.update(V{0, 1, 0}), ab::InputError);  // only the dead have weight
  CHECK_THROWS_AS(balancer.units(-3), ab::BudgetError);
  CHECK_THROWS_AS(balancer.restore(V{0, 0}), ab::ShapeError);
  CHECK_THROWS_AS(balancer.restore(V{0, nan, 0}), ab::InputError);
  CHECK_THROWS_WITH(balancer.restore(V{0, 0, inf}), ContainsSubstring("state of item 2 is inf"));
  CHECK_THROWS_AS(balancer.restore(V{-inf, -inf, -inf}), ab::InputError);
  CHECK_THROWS_AS(balancer.restore(V{0, 0, 0}, -1), ab::InputError);
  CHECK(Seen(balancer) == before);
  balancer.update(V{1, 1, 1});
  CHECK(balancer.cycle() == 2);
}

TEST_CASE("an allocation that fails later leaves the balancer as it was") {
  std::vector<bool> mask{true, true};
  ab::ResourceBalancer<float, ab::allocate::Bounded<float>> balancer(2, {.cap = 0.5f, .eligible = mask});
  const Seen before(balancer);
  mask[0] = false;  // borrowed: now one item with a cap of 0.5 is all there is
  CHECK_THROWS_AS(balancer.update(std::vector<float>{1, 2}), ab::BudgetError);
  CHECK_THROWS_AS(balancer.restore(std::vector<float>{0, -1}), ab::BudgetError);
  mask[0] = true;
  CHECK(Seen(balancer) == before);
}

TEST_CASE("a balancer that cannot work is not made") {
  CHECK_THROWS_AS(ab::ResourceBalancer<float>(0), ab::ShapeError);
  CHECK_THROWS_WITH(ab::ResourceBalancer<float>(-2), "ResourceBalancer size is -2, but must be at least 1");
  using Bounded = ab::ResourceBalancer<float, ab::allocate::Bounded<float>>;
  CHECK_THROWS_AS(Bounded(4, {.floor = 0.3f}), ab::BudgetError);
  CHECK_THROWS_AS(ab::ResourceBalancer(4, ab::allocate::Proportional{}, ab::feedback::Leaky{2.0f}), ab::InputError);
}

// Nothing may be read behind their end, nor where there are none, to find that they are too few.
TEST_CASE("bounds and masks of another number of items are refused before they are read") {
  namespace allocate = ab::allocate;
  const auto refuses = [](auto allocation, const std::string& message) {
    using Balancer = ab::ResourceBalancer<float, decltype(allocation)>;
    CHECK_THROWS_AS(Balancer(4, allocation), ab::ShapeError);
    CHECK_THROWS_WITH(Balancer(4, allocation), ContainsSubstring(message));
  };
  const std::vector<float> none, three(3, 0.25f), five(5, 0.25f);
  const std::vector<char> nobody, two(2, 1);
  refuses(allocate::Bounded<float>{.floor = none}, "Bounded floor size is 0");
  refuses(allocate::Bounded<float>{.cap = three}, "Bounded cap size is 3");
  refuses(allocate::Bounded<float>{.eligible = nobody}, "Bounded eligible size is 0");
  refuses(allocate::Tempered<float>{.floor = five}, "Tempered floor size is 5");
  refuses(allocate::AlphaFair<float>{.cap = none}, "AlphaFair cap size is 0");
  refuses(allocate::Euclidean<float>{.cap = none}, "Euclidean cap size is 0");
  refuses(allocate::Sparsemax{two}, "Sparsemax eligible size is 2");
  refuses(allocate::Entmax15{nobody}, "Entmax15 eligible size is 0");
  refuses(allocate::Entmax<float>{.eligible = nobody}, "Entmax eligible size is 0");
}

TEST_CASE("the scalar is that of the policies") {
  ab::ResourceBalancer a(2, ab::allocate::Proportional{}, ab::feedback::Leaky{0.5f});
  static_assert(std::is_same_v<decltype(a)::value_type, float>);
  ab::ResourceBalancer b(2, ab::allocate::Bounded{0.1, 0.9}, ab::feedback::Leaky{0.5f});
  static_assert(std::is_same_v<decltype(b)::value_type, double>);
  ab::ResourceBalancer c(2, ab::allocate::Bounded{0.1f, 1}, ab::feedback::Plain{});
  static_assert(std::is_same_v<decltype(c)::value_type, float>);
  ab::ResourceBalancer<float, ab::allocate::Proportional, ab::feedback::Leaky<double>> d(2);
  CHECK(d.update(std::vector<float>{1, 3})[1] > 0.5f);
}

TEST_CASE("a user's own allocation and feedback") {
  ab::ResourceBalancer<double, FirstTakesAll, Set> balancer(3);
  const auto shares = balancer.update(std::vector<double>{-1, -2, -3});
  CHECK(copy(shares) == std::vector<double>{1, 0, 0});
  CHECK(copy(balancer.state()) == std::vector<double>{-1, -2, -3});
  CHECK(balancer.units(5) == std::vector<Index>{5, 0, 0});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(balancer.update(std::vector<double>{0, nan, 0}),
                    "state after the feedback of item 1 is nan, but must be a finite logarithm or -inf");
  CHECK(balancer.cycle() == 1);
}

TEST_CASE("its own shares may be the signal, and copies are independent") {
  ab::ResourceBalancer<double> balancer(2), other = balancer;
  balancer.update(std::vector<double>{1, 3});
  const auto share = balancer.shares()[1];
  balancer.update(balancer.shares());
  CHECK(balancer.shares()[1] == Approx(share));
  CHECK(balancer.explain(1).signal == share);
  CHECK(other.cycle() == 0);
  CHECK(other.shares()[1] == 0.5);
}

TEST_CASE("a masked giant does not level the others", "[balancer]") {
  const std::vector<char> mask{0, 1, 1};
  ab::ResourceBalancer<float, ab::allocate::Bounded<float>, ab::feedback::Plain<float>> balancer(
      3, ab::allocate::Bounded<float>{.eligible = mask});
  const std::vector<float> signal{1.f, 1e-3f, 2e-3f};
  for (int cycle = 0; cycle < 40; ++cycle) balancer.update(signal);
  CHECK(balancer.shares()[0] == 0.f);
  CHECK(balancer.shares()[1] < 1e-11f);
  CHECK(balancer.shares()[2] > 0.999f);
}

TEST_CASE("a large budget under floors and caps of a float", "[balancer]") {
  ab::ResourceBalancer<float, ab::allocate::Bounded<float>> tenths(10, ab::allocate::Bounded<float>{.floor = 0.1f});
  CHECK(tenths.units(1'000'000'000) == std::vector<ab::Index>(10, 100'000'000));
  ab::ResourceBalancer<float, ab::allocate::Bounded<float>> one(1,
                                                                ab::allocate::Bounded<float>{.cap = 0.99999994f});
  CHECK(one.units(1'000'000'000) == std::vector<ab::Index>{1'000'000'000});
}

TEST_CASE("a small share beside a large one is not lost to the bounds", "[balancer]") {
  ab::ResourceBalancer<float, ab::allocate::Bounded<float>, ab::feedback::Plain<float>> balancer(2);
  const std::vector<float> signal{1.f, 0.1f};
  for (int cycle = 0; cycle < 17; ++cycle) balancer.update(signal);
  CHECK(balancer.log_shares()[1] == Approx(-39.144).epsilon(1e-3));
}

TEST_CASE("units by another apportionment") {
  const std::vector<double> states{9061, 7179, 5259, 3319, 1182};
  const ab::feedback::Leaky forget{1.0};
  ab::ResourceBalancer webster(5, ab::allocate::Proportional{}, forget);
  ab::ResourceBalancer jefferson(5, ab::allocate::Proportional{}, forget, ab::apportion::dhondt);
  ab::ResourceBalancer hamilton(5, ab::allocate::Proportional{}, forget, ab::apportion::hamilton);
  webster.update(states), jefferson.update(states), hamilton.update(states);
  CHECK(webster.units(26) == std::vector<ab::Index>{9, 8, 5, 3, 1});
  CHECK(jefferson.units(26) == std::vector<ab::Index>{10, 7, 5, 3, 1});
  CHECK(hamilton.units(26) == std::vector<ab::Index>{9, 7, 5, 4, 1});
  CHECK(jefferson.explain(0).rounding->units == 10);
}
