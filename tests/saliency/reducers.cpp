#include "attention_balancer/saliency/reducers.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/balancer/resource_balancer.hpp"
#include "attention_balancer/saliency/accumulated.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
using ab::detail::EvidenceAccess;
using ab::evidence::Kind;

namespace {

// Two batch items, two heads, three keys; the values tell where they come from.
template <class T>
ab::Evidence<T> sample() {
  ab::Evidence<T> evidence;
  EvidenceAccess::reshape(evidence, {2, 2, 4, 3, true, Kind::mass});
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

TEMPLATE_TEST_CASE("saliency::mass reduces over heads or takes one", "", SCALARS) {
  using V = std::vector<TestType>;
  const auto evidence = sample<TestType>();
  CHECK(ab::saliency::mass(evidence) == V{2, 1, 0});
  CHECK(ab::saliency::mass(evidence, ab::Heads::mean, 1) == V{20, 20, 20});
  CHECK(ab::saliency::mass(evidence, ab::Heads::max) == V{3, 2, 0});
  CHECK(ab::saliency::mass(evidence, ab::saliency::Heads::max, 1) == V{30, 20, 30});
  CHECK(ab::saliency::mass(evidence, ab::Head{1}) == V{3, 0, 0});
  CHECK(ab::saliency::mass(evidence, ab::Head{0}, 1) == V{10, 20, 30});
}

TEMPLATE_TEST_CASE("saliency::per_exposure divides per head; exposure 0 gives 0", "", SCALARS) {
  using V = std::vector<TestType>;
  const auto evidence = sample<TestType>();
  CHECK(ab::saliency::per_exposure(evidence) == V{TestType(0.5), TestType(0.5), 0});
  CHECK(ab::saliency::per_exposure(evidence, ab::Heads::max) == V{TestType(0.75), 1, 0});
  CHECK(ab::saliency::per_exposure(evidence, ab::Heads::max, 1) == V{TestType(3.75), 5, TestType(7.5)});
  CHECK(ab::saliency::per_exposure(evidence, ab::Head{0}) == V{TestType(0.25), 1, 0});
}

TEMPLATE_TEST_CASE("saliency::statistic is what was observed beside the mass, or the mass", "", SCALARS) {
  using V = std::vector<TestType>;
  CHECK(ab::saliency::statistic(sample<TestType>(), ab::Heads::max) == V{3, 2, 0});
  ab::Evidence<TestType> evidence;
  EvidenceAccess::reshape(evidence, {1, 2, 4, 2, true, Kind::squares});
  for (const ab::Index row : {0, 1})
    for (const ab::Index j : {0, 1}) EvidenceAccess::statistic(evidence, row)[j] = TestType(1 + 2 * row + j);
  CHECK(ab::saliency::mass(evidence) == V{0, 0});
  CHECK(ab::saliency::statistic(evidence) == V{2, 3});
  CHECK(ab::saliency::statistic(evidence, ab::Heads::max) == V{3, 4});
  CHECK(ab::saliency::statistic(evidence, ab::Head{0}) == V{1, 2});
}

TEMPLATE_TEST_CASE("heads can be summed, left alone, or reduced within the groups of a KV head", "", SCALARS) {
  using V = std::vector<TestType>;
  ab::Evidence<TestType> evidence;
  EvidenceAccess::reshape(evidence, {2, 4, 3, 2, true, Kind::mass});
  for (ab::Index row = 0; row < 8; ++row)
    for (const ab::Index j : {0, 1}) EvidenceAccess::mass(evidence, row)[j] = TestType(10 * row + j);
  CHECK(ab::saliency::mass(evidence, ab::Heads::sum, 1) == V{220, 224});
  const auto each = ab::saliency::mass(evidence, ab::EachHead{}, 1);
  REQUIRE(each.rows() == 4);
  REQUIRE(each.length() == 2);
  for (const ab::Index h : {0, 1, 2, 3})
    CHECK(V(each[h].begin(), each[h].end()) == ab::saliency::mass(evidence, ab::Head{h}, 1));
  const auto values = [](const auto& rows) { return V(rows.values().begin(), rows.values().end()); };
  CHECK(values(ab::saliency::mass(evidence, ab::KvHeads{2})) == V{5, 6, 25, 26});
  CHECK(values(ab::saliency::mass(evidence, ab::KvHeads{2, ab::Heads::max})) == V{10, 11, 30, 31});
  CHECK(values(ab::saliency::mass(evidence, ab::KvHeads{2, ab::Heads::sum})) == V{10, 12, 50, 52});
  CHECK(ab::saliency::mass(evidence, ab::KvHeads{4}, 1) == each);
  CHECK(values(ab::saliency::mass(evidence, ab::KvHeads{1})) == ab::saliency::mass(evidence));
  CHECK(ab::saliency::reduce(each, ab::KvHeads{2}) == ab::saliency::mass(evidence, ab::KvHeads{2}, 1));
  CHECK(ab::saliency::reduce(each, ab::Heads::max) == ab::saliency::mass(evidence, ab::Heads::max, 1));
  for (const ab::Index count : {0, 3, -1, 8})
    CHECK_THROWS_AS(ab::saliency::mass(evidence, ab::KvHeads{count}), ab::ShapeError);
  CHECK_THROWS_AS(each[4], ab::ShapeError);
  CHECK_THROWS_AS(each[-1], ab::ShapeError);
  CHECK_THROWS_AS(ab::saliency::Rows<TestType>(-1, 2), ab::ShapeError);
}

TEMPLATE_TEST_CASE("a maximum over negative numbers is one of them", "", SCALARS) {
  ab::saliency::Rows<TestType> rows(2, 1);
  rows[0][0] = -3;
  rows[1][0] = -2;
  CHECK(ab::saliency::reduce(rows, ab::Heads::max) == std::vector<TestType>{-2});
}

TEMPLATE_TEST_CASE("mean and variance are those of the probabilities", "", SCALARS) {
  // Two heads; the weights p_ij of three queries on two keys, and a third key that nobody sees.
  const double p[2][3][2] = {{{0.5, 0.1}, {0.5, 0.4}, {0.5, 0.7}}, {{0.2, 0.8}, {0.3, 0.7}, {1, 0}}};
  ab::Evidence<TestType> evidence;
  EvidenceAccess::reshape(evidence, {1, 2, 3, 3, true, Kind::squares});
  for (const ab::Index h : {0, 1})
    for (const ab::Index j : {0, 1})
      for (const auto& row : p[h]) {
        EvidenceAccess::mass(evidence, h)[j] += TestType(row[j]);
        EvidenceAccess::statistic(evidence, h)[j] += TestType(row[j] * row[j]);
        EvidenceAccess::exposure(evidence, h)[j] += 1;
      }
  const double mean[2][2] = {{0.5, 0.4}, {0.5, 0.5}}, variance[2][2] = {{0, 0.06}, {0.38 / 3, 0.38 / 3}};
  for (const ab::Index h : {0, 1}) {
    const auto both = ab::saliency::mean_and_variance(evidence, 10, ab::Head{h});
    const auto alone = ab::saliency::variance(evidence, ab::Head{h});
    for (std::size_t j = 0; j < 2; ++j) {
      CHECK(alone[j] == Approx(variance[h][j]).margin(1e-6));
      CHECK(both[j] == Approx(mean[h][j] + 10 * variance[h][j]));
      CHECK(alone[j] >= 0);
    }
    CHECK(both[2] == 0);
  }
  CHECK(ab::saliency::variance(evidence)[1] == Approx((0.06 + 0.38 / 3) / 2));
  for (const double gamma : {-1.0, std::nan(""), HUGE_VAL})
    CHECK_THROWS_AS(ab::saliency::mean_and_variance(evidence, gamma), ab::InputError);
  CHECK_THROWS_AS(ab::saliency::leave_one_out(evidence), ab::InputError);
  CHECK_THROWS_WITH(ab::saliency::variance(sample<TestType>()),
                    Catch::Matchers::ContainsSubstring("evidence::squares"));
  EvidenceAccess::reshape(evidence, {1, 2, 3, 2, true, Kind::leave_one_out});
  for (const ab::Index h : {0, 1}) EvidenceAccess::statistic(evidence, h)[0] = TestType(h + 1);
  CHECK(ab::saliency::leave_one_out(evidence) == std::vector<TestType>{3, 0});
  CHECK(ab::saliency::leave_one_out(evidence, ab::Heads::max) == std::vector<TestType>{2, 0});
}

TEMPLATE_TEST_CASE("entropy is one number per query, and needs no mass", "", SCALARS) {
  ab::Evidence<TestType> evidence;
  EvidenceAccess::reshape(evidence, {1, 2, 3, 5, false, Kind::mass});
  for (const ab::Index h : {0, 1})
    for (const ab::Index i : {0, 1, 2}) EvidenceAccess::entropy(evidence, h)[i] = TestType(h + i);
  CHECK(ab::saliency::entropy(evidence) == std::vector<TestType>{0.5, 1.5, 2.5});
  CHECK(ab::saliency::entropy(evidence, ab::Head{1}) == std::vector<TestType>{1, 2, 3});
  CHECK_THROWS_AS(ab::saliency::entropy(ab::Evidence<TestType>{}), ab::InputError);
  CHECK_THROWS_AS(ab::saliency::entropy(evidence, ab::Heads::mean, 1), ab::ShapeError);
}

TEMPLATE_TEST_CASE("a NaN mass is not hidden by a reduction", "", SCALARS) {
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

TEMPLATE_TEST_CASE("large masses do not overflow in the mean", "", SCALARS) {
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
  CHECK_THROWS_WITH(ab::saliency::mass(without),
                    "evidence is empty, but must have been observed first: pass observe(evidence) to attention");
  EvidenceAccess::reshape(without, {1, 1, 4, 3, false, Kind::mass});
  CHECK_THROWS_AS(ab::saliency::mass(without), ab::InputError);
  CHECK_THROWS_AS(ab::saliency::per_exposure(without, ab::Head{0}), ab::InputError);
  CHECK_THROWS_WITH(ab::saliency::mass(without), ContainsSubstring("QueryWeights::none()"));
}

TEST_CASE("evidence of no queries is no saliency, which a balancer takes as the same for all") {
  ab::Evidence<float> evidence;
  EvidenceAccess::reshape(evidence, {1, 2, 0, 3, true, Kind::squares});
  const std::vector<float> nothing(3);
  CHECK(ab::saliency::mass(evidence) == nothing);
  CHECK(ab::saliency::per_exposure(evidence) == nothing);
  CHECK(ab::saliency::mean_and_variance(evidence, 1) == nothing);
  CHECK(ab::saliency::entropy(evidence).empty());
  ab::saliency::Accumulated<float> received(2);
  received.add(evidence);
  CHECK(received.sum() == nothing);
  ab::ResourceBalancer<float> balancer(3);
  const auto shares = balancer.update(ab::saliency::mass(evidence));
  for (const float share : shares) CHECK(share == Approx(1.0 / 3));
  EvidenceAccess::reshape(evidence, {0, 2, 4, 3, true, Kind::mass});
  CHECK_THROWS_WITH(ab::saliency::mass(evidence), "saliency batch is 0, but must be in [0, batch = 0)");
}

TEST_CASE("evidence without keys gives an empty saliency") {
  ab::Evidence<double> evidence;
  EvidenceAccess::reshape(evidence, {1, 2, 4, 0, true, Kind::mass});
  CHECK(ab::saliency::mass(evidence).empty());
  CHECK(ab::saliency::per_exposure(evidence, ab::Head{1}).empty());
}
