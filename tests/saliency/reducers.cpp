#include "attention_balancer/saliency/reducers.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace ab = attention_balancer;
using ab::detail::EvidenceAccess;
using ab::evidence::Kind;

namespace {

// Two batch items, two heads, three keys; the values tell where they come from.
template <class T>
ab::Evidence<T> sample() {
  ab::Evidence<T> evidence;
  EvidenceAccess::reshape(evidence, 2, 2, 4, 3, true, Kind::mass);
  const double mass[4][3] = {{1, 2, 0}, {3, 0, 0}, {10, 20, 30}, {30, 20, 10}};
  const double exposure[4][3] = {{4, 2, 0}, {4, 2, 0}, {4, 4, 4}, {8, 8, 8}};
  for (ab::Index row = 0; row < 4; ++row)
    for (ab::Index j = 0; j < 3; ++j) {
      EvidenceAccess::mass(evidence, row)[j] = T(mass[row][j]);
      EvidenceAccess::exposure(evidence, row)[j] = T(exposure[row][j]);
    }
  return evidence;
}

}  // namespace

TEMPLATE_TEST_CASE("saliency::mass reduces over heads or takes one", "", float, double) {
  using V = std::vector<TestType>;
  const auto evidence = sample<TestType>();
  CHECK(ab::saliency::mass(evidence) == V{2, 1, 0});
  CHECK(ab::saliency::mass(evidence, ab::Heads::mean, 1) == V{20, 20, 20});
  CHECK(ab::saliency::mass(evidence, ab::Heads::max) == V{3, 2, 0});
  CHECK(ab::saliency::mass(evidence, ab::saliency::Heads::max, 1) == V{30, 20, 30});
  CHECK(ab::saliency::mass(evidence, ab::Head{1}) == V{3, 0, 0});
  CHECK(ab::saliency::mass(evidence, ab::Head{0}, 1) == V{10, 20, 30});
}

TEMPLATE_TEST_CASE("saliency::per_exposure divides per head; exposure 0 gives 0", "", float, double) {
  using V = std::vector<TestType>;
  const auto evidence = sample<TestType>();
  CHECK(ab::saliency::per_exposure(evidence) == V{TestType(0.5), TestType(0.5), 0});
  CHECK(ab::saliency::per_exposure(evidence, ab::Heads::max) == V{TestType(0.75), 1, 0});
  CHECK(ab::saliency::per_exposure(evidence, ab::Heads::max, 1) == V{TestType(3.75), 5, TestType(7.5)});
  CHECK(ab::saliency::per_exposure(evidence, ab::Head{0}) == V{TestType(0.25), 1, 0});
}

TEMPLATE_TEST_CASE("saliency::statistic is what was observed beside the mass, or the mass", "", float, double) {
  using V = std::vector<TestType>;
  CHECK(ab::saliency::statistic(sample<TestType>(), ab::Heads::max) == V{3, 2, 0});
  ab::Evidence<TestType> evidence;
  EvidenceAccess::reshape(evidence, 1, 2, 4, 2, true, Kind::squares);
  for (const ab::Index row : {0, 1})
    for (const ab::Index j : {0, 1}) EvidenceAccess::statistic(evidence, row)[j] = TestType(1 + 2 * row + j);
  CHECK(ab::saliency::mass(evidence) == V{0, 0});
  CHECK(ab::saliency::statistic(evidence) == V{2, 3});
  CHECK(ab::saliency::statistic(evidence, ab::Heads::max) == V{3, 4});
  CHECK(ab::saliency::statistic(evidence, ab::Head{0}) == V{1, 2});
}

TEMPLATE_TEST_CASE("a NaN mass is not hidden by a reduction", "", float, double) {
  for (const ab::Index row : {0, 1}) {
    auto evidence = sample<TestType>();
    EvidenceAccess::mass(evidence, row)[1] = std::numeric_limits<TestType>::quiet_NaN();
    for (const auto heads : {ab::Heads::mean, ab::Heads::max}) {
      const auto mass = ab::saliency::mass(evidence, heads);
      CHECK_FALSE(std::isnan(mass[0]));
      CHECK(std::isnan(mass[1]));
      CHECK(std::isnan(ab::saliency::per_exposure(evidence, heads)[1]));
    }
  }
}

TEMPLATE_TEST_CASE("large masses do not overflow in the mean", "", float, double) {
  auto evidence = sample<TestType>();
  const auto huge = TestType(0.4) * std::numeric_limits<TestType>::max();
  for (const ab::Index row : {0, 1}) EvidenceAccess::mass(evidence, row)[0] = huge;
  CHECK(ab::saliency::mass(evidence)[0] == huge);
}

TEST_CASE("saliency names what is wrong with the evidence") {
  using Catch::Matchers::ContainsSubstring;
  const auto evidence = sample<float>();
  CHECK_THROWS_AS(ab::saliency::mass(evidence, ab::Heads::mean, 2), ab::ShapeError);
  CHECK_THROWS_AS(ab::saliency::mass(evidence, ab::Heads::mean, -1), ab::ShapeError);
  CHECK_THROWS_WITH(ab::saliency::mass(evidence, ab::Heads::mean, 2),
                    "saliency batch is 2, but must be in [0, batch = 2)");
  CHECK_THROWS_AS(ab::saliency::per_exposure(evidence, ab::Head{2}), ab::ShapeError);
  CHECK_THROWS_WITH(ab::saliency::per_exposure(evidence, ab::Head{-1}), ContainsSubstring("[0, heads = 2)"));

  ab::Evidence<float> without;
  CHECK_THROWS_AS(ab::saliency::mass(without), ab::InputError);
  CHECK_THROWS_WITH(ab::saliency::mass(without), ContainsSubstring("empty"));
  EvidenceAccess::reshape(without, 1, 1, 4, 3, false, Kind::mass);
  CHECK_THROWS_AS(ab::saliency::mass(without), ab::InputError);
  CHECK_THROWS_AS(ab::saliency::per_exposure(without, ab::Head{0}), ab::InputError);
  CHECK_THROWS_WITH(ab::saliency::mass(without), ContainsSubstring("QueryWeights::none()"));
}

TEST_CASE("evidence without keys gives an empty saliency") {
  ab::Evidence<double> evidence;
  EvidenceAccess::reshape(evidence, 1, 2, 4, 0, true, Kind::mass);
  CHECK(ab::saliency::mass(evidence).empty());
  CHECK(ab::saliency::per_exposure(evidence, ab::Head{1}).empty());
}
