// Saliency that carries something from one call to the next, and pooling.
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/saliency/accumulated.hpp"
#include "attention_balancer/saliency/rollout.hpp"
#include "attention_balancer/saliency/smoothing.hpp"
#include "attention_balancer/saliency/window.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace saliency = ab::saliency;
using ab::Index;
using ab::detail::EvidenceAccess;
using ab::evidence::Kind;

namespace {

const double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// Evidence of one call: mass[h][j], every exposure the same.
template <class T>
ab::Evidence<T> call(const std::vector<std::vector<double>>& mass, double exposure, Index queries = 1) {
  ab::Evidence<T> evidence;
  EvidenceAccess::reshape(evidence, {1, static_cast<Index>(mass.size()), queries, static_cast<Index>(mass[0].size()),
                          true, Kind::mass});
  for (std::size_t h = 0; h < mass.size(); ++h)
    for (std::size_t j = 0; j < mass[h].size(); ++j) {
      EvidenceAccess::mass(evidence, static_cast<Index>(h))[j] = static_cast<T>(mass[h][j]);
      EvidenceAccess::exposure(evidence, static_cast<Index>(h))[j] = static_cast<T>(exposure);
    }
  return evidence;
}

}  // namespace

TEMPLATE_TEST_CASE("pooling along the keys", "[saliency]", SCALARS) {
  using V = std::vector<TestType>;
  const V x{5, 0, 10, 0, 0, 20};
  CHECK(saliency::average_pool(x, 1) == x);
  CHECK(saliency::average_pool(x, 5) == V{3, 3, 3, 6, 6, 4});  // zeros beyond the ends, always a fifth
  CHECK(saliency::max_pool(x, 3) == V{5, 10, 10, 10, 20, 20});
  CHECK(saliency::max_pool(V{-3, -1, -2}, 3) == V{-1, -1, -1});
  CHECK(saliency::average_pool(V{}, 5).empty());
  CHECK(saliency::average_pool(V{10}, 5) == V{2});
  CHECK(saliency::average_pool(V{10, 20}, 1001)[0] == Approx(30.0 / 1001));
  CHECK(saliency::max_pool(V{1, 2}, std::numeric_limits<Index>::max()) == V{2, 2});
  // Not a number spoils its neighbours, and nobody else.
  const V spoilt{1, TestType(not_a_number), 1, 1, 1};
  for (const auto& pooled : {saliency::average_pool(spoilt, 3), saliency::max_pool(spoilt, 3)})
    for (std::size_t j = 0; j < 5; ++j) CHECK(std::isnan(pooled[j]) == (j < 3));
  saliency::Rows<TestType> rows(2, 3);
  for (std::size_t j = 0; j < 3; ++j) rows[0][j] = TestType(3 * j), rows[1][j] = TestType(30);
  const auto smooth = saliency::average_pool(rows, 3);
  CHECK(V(smooth[0].begin(), smooth[0].end()) == V{1, 3, 3});
  CHECK(V(smooth[1].begin(), smooth[1].end()) == V{20, 30, 20});
  for (const Index width : {0, 2, -1}) {
    CHECK_THROWS_AS(saliency::average_pool(x, width), ab::InputError);
    CHECK_THROWS_AS(saliency::max_pool(rows, width), ab::InputError);
  }
}

TEMPLATE_TEST_CASE("an exponential moving average follows its keys", "[saliency]", SCALARS) {
  using V = std::vector<TestType>;
  const auto values = [](const auto& ema) { return V(ema.values().begin(), ema.values().end()); };
  saliency::Ema<TestType> ema(0.25);
  ema.update(V{4, 8});
  CHECK(values(ema) == V{4, 8});  // nothing to average with yet
  ema.update(V{8, 0, 16});
  CHECK(values(ema) == V{5, 6, 16});
  CHECK_THROWS_AS(ema.update(V{1, 2}), ab::ShapeError);
  CHECK(values(ema) == V{5, 6, 16});
  for (const auto& kept : {std::vector<Index>{0, 3}, {1, 1}, {2, 0}, {-1}}) {
    CHECK_THROWS_AS(ema.compact(kept), ab::InputError);
    CHECK(ema.slots() == 3);
  }
  ema.compact(std::vector<Index>{0, 2});
  CHECK(values(ema) == V{5, 16});
  ema.reset();
  CHECK(ema.update(V{}).empty());
  for (const double rate : {0.0, 1.5, -1.0, not_a_number})
    CHECK_THROWS_AS(saliency::Ema<TestType>(rate), ab::InputError);
}

TEMPLATE_TEST_CASE("evidence accumulates, decays, and moves with its slots", "[saliency]", SCALARS) {
  using V = std::vector<TestType>;
  saliency::Accumulated<TestType> all(2), fading(2, 0.5);
  CHECK(all.slots() == 0);
  CHECK(all.sum().empty());
  for (auto* state : {&all, &fading}) {
    state->add(call<TestType>({{3, 1, 0}, {0, 2, 2}}, 4));
    state->add(call<TestType>({{1, 0, 0, 1}, {0, 0, 1, 0}}, 1));
  }
  CHECK(all.sum(ab::Heads::sum) == V{4, 3, 3, 1});
  CHECK(fading.sum(ab::Heads::sum) == V{2.5, 1.5, 2, 1});
  CHECK(all.sum(ab::Head{0}) == V{4, 1, 0, 1});
  CHECK(all.per_exposure(ab::Head{0}) == V{TestType(0.8), TestType(0.2), 0, 1});  // the new key was seen once
  const auto rows = all.sum(ab::KvHeads{1, ab::Heads::sum});
  CHECK(rows[0][0] == 4);

  all.compact(std::vector<Index>{0, 3});  // evict slots 1 and 2; position is not slot any more
  CHECK(all.sum(ab::Heads::sum) == V{4, 1});
  CHECK(all.per_exposure(ab::Head{0}) == V{TestType(0.8), 1});
  all.add(call<TestType>({{0, 1, 5}, {0, 0, 0}}, 1));
  CHECK(all.sum(ab::Heads::sum) == V{4, 2, 5});

  CHECK_THROWS_AS(all.add(call<TestType>({{0, 1}, {0, 0}}, 1)), ab::ShapeError);  // a key is missing
  CHECK_THROWS_AS(all.add(call<TestType>({{0, 1, 2, 3}}, 1)), ab::ShapeError);    // a head is missing
  CHECK_THROWS_AS(all.add(call<TestType>({{0, 1, 2}, {0, 0, 0}}, 1), 1), ab::ShapeError);
  CHECK_THROWS_AS(all.add(ab::Evidence<TestType>{}), ab::InputError);
  CHECK_THROWS_AS(all.compact(std::vector<Index>{1, 3}), ab::InputError);
  CHECK(all.sum(ab::Heads::sum) == V{4, 2, 5});
  CHECK_THROWS_AS(all.sum(ab::KvHeads{3}), ab::ShapeError);
  all.add(call<TestType>({{not_a_number, 0, 0}, {0, 0, 0}}, 1));
  CHECK(std::isnan(all.sum()[0]));
  CHECK(all.sum(ab::Heads::sum)[1] == 2);
  CHECK_THROWS_AS(saliency::Accumulated<TestType>(0), ab::ShapeError);
  for (const double decay : {0.0, 1.5, not_a_number})
    CHECK_THROWS_AS(saliency::Accumulated<TestType>(1, decay), ab::InputError);
}

TEMPLATE_TEST_CASE("persistence counts how often a key got more than an equal share", "[saliency]", SCALARS) {
  using V = std::vector<TestType>;
  saliency::Accumulated<TestType> state(1, 1, saliency::Accumulate::persistence);
  state.add(call<TestType>({{0.5, 0.25, 0.125, 0.125}}, 1));
  state.add(call<TestType>({{0.1, 0.9, 0, 0}}, 1));
  state.add(call<TestType>({{0.3, 0.3, 0.3, 0.05, 0.05}}, 1));
  CHECK(state.sum() == V{2, 3, 1, 0, 0});
}

TEMPLATE_TEST_CASE("many small masses still add up", "[saliency]", SCALARS) {
  // In float, 2^24 would be the end.
  saliency::Accumulated<TestType> state(1);
  state.add(call<TestType>({{33554432}}, 33554432));
  for (int i = 0; i < 1000; ++i) state.add(call<TestType>({{1}}, 1));
  CHECK(state.sum()[0] == TestType(33555432));
}

TEMPLATE_TEST_CASE("rollout is the product of the layers' matrices", "[saliency]", SCALARS) {
  using V = std::vector<TestType>;
  // Three inputs, two heads, two layers: rows add up to 1.
  const double a[2][2][3][3] = {
      {{{0.5, 0.5, 0}, {0, 1, 0}, {0.25, 0.25, 0.5}}, {{1, 0, 0}, {0.5, 0, 0.5}, {0, 1, 0}}},
      {{{0, 0.5, 0.5}, {0.2, 0.2, 0.6}, {1, 0, 0}}, {{0, 1, 0}, {0, 0, 1}, {0.5, 0.5, 0}}}};
  for (const double residual : {0.5, 0.0, 0.9}) {
    double product[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};  // of the layers so far, last layer first
    std::vector<saliency::Rollout<TestType>> rollouts;
    for (const Index i : {0, 1, 2}) rollouts.emplace_back(3, i, residual);
    for (std::size_t layer = 2; layer-- > 0;) {
      double next[3][3] = {};
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
          next[i][j] = residual * product[i][j];
          for (int m = 0; m < 3; ++m)
            for (int h = 0; h < 2; ++h) next[i][j] += (1 - residual) / 2 * product[i][m] * a[layer][h][m][j];
        }
      std::copy(&next[0][0], &next[0][0] + 9, &product[0][0]);
      for (auto& rollout : rollouts) {
        const auto u = rollout.weights();
        std::vector<std::vector<double>> mass(2, std::vector<double>(3, 0.0));
        for (std::size_t h = 0; h < 2; ++h)
          for (Index i = 0; i < 3; ++i)
            for (std::size_t j = 0; j < 3; ++j)
              mass[h][j] += u.template weight<double>(i, 3) * a[layer][h][static_cast<std::size_t>(i)][j];
        rollout.step(call<TestType>(mass, 1, 3));
      }
    }
    for (std::size_t i = 0; i < 3; ++i)
      for (std::size_t j = 0; j < 3; ++j) CHECK(rollouts[i].row()[j] == Approx(product[i][j]).margin(1e-6));
  }
  saliency::Rollout<TestType> mixture(V{0.25, 0.75, 0});
  CHECK_THROWS_AS(mixture.step(call<TestType>({{1, 1, 1}}, 1, 2)), ab::ShapeError);
  CHECK_THROWS_AS(mixture.step(call<TestType>({{1, 1}}, 1, 3)), ab::ShapeError);
  CHECK_THROWS_AS(mixture.step(ab::Evidence<TestType>{}), ab::InputError);
  CHECK(mixture.row()[1] == TestType(0.75));
  CHECK_THROWS_AS(saliency::Rollout<TestType>(3, 3), ab::ShapeError);
  CHECK_THROWS_AS(saliency::Rollout<TestType>(0, 0), ab::ShapeError);
  CHECK_THROWS_AS(saliency::Rollout<TestType>(3, 0, 1.5), ab::InputError);
  CHECK_THROWS_AS(saliency::Rollout<TestType>(V{1, -1}), ab::InputError);
}

TEMPLATE_TEST_CASE("an observation window judges the keys before it", "[saliency]", SCALARS) {
  using V = std::vector<TestType>;
  const auto evidence = call<TestType>({{10, 0, 0, 20, 99, 99}, {0, 10, 0, 0, 99, 99}}, 2, 2);
  CHECK(saliency::observation_window(evidence, {.length = 2, .pool = 1}, ab::Heads::sum) == V{5, 5, 0, 10, 0, 0});
  CHECK(saliency::observation_window(evidence, {.length = 2, .pool = 5}, ab::Head{0}) == V{1, 3, 3, 2, 0, 0});
  // Pooled per head, then reduced.
  CHECK(saliency::observation_window(evidence, {.length = 2, .pool = 3, .pooling = saliency::Pooling::max}) ==
        V{5, 5, 7.5, 5, 0, 0});
  CHECK(saliency::observation_window(evidence, {.length = 2}, ab::KvHeads{2}).rows() == 2);
  for (const Index length : {6, 7, 1000})
    CHECK(saliency::observation_window(evidence, {.length = length}) == V(6, TestType(0)));
  CHECK(saliency::observation_window(evidence, {.length = 0, .pool = 1}, ab::Head{0}) ==
        saliency::per_exposure(evidence, ab::Head{0}));
  CHECK_THROWS_AS(saliency::observation_window(evidence, {.length = -1}), ab::InputError);
  CHECK_THROWS_AS(saliency::observation_window(evidence, {.pool = 4}), ab::InputError);
  CHECK_THROWS_AS(saliency::observation_window(evidence, {.gamma = 1}), ab::InputError);  // no squares
  CHECK_THROWS_AS(saliency::observation_window(evidence, {.gamma = not_a_number}), ab::InputError);
  CHECK_THROWS_AS(saliency::observation_window(ab::Evidence<TestType>{}, {}), ab::InputError);
}

TEMPLATE_TEST_CASE("of a batch of unequal lengths each item adds its own keys", "[saliency]", SCALARS) {
  ab::Evidence<TestType> evidence;
  EvidenceAccess::reshape(evidence, {2, 1, 1, 5, true, Kind::mass});
  for (Index j = 0; j < 3; ++j)
    EvidenceAccess::mass(evidence, 1)[j] = TestType(j + 1), EvidenceAccess::exposure(evidence, 1)[j] = TestType(1);
  saliency::Accumulated<TestType> state(1);
  state.add(evidence, 1, 3);
  CHECK(state.slots() == 3);
  CHECK(state.sum() == std::vector<TestType>{1, 2, 3});
  CHECK_THROWS_AS(state.add(evidence, 1, 6), ab::ShapeError);
  CHECK_THROWS_AS(state.add(evidence, 1, 2), ab::ShapeError);
  state.add(evidence, 1, 4);
  CHECK(state.sum() == std::vector<TestType>{2, 4, 6, 0});
}
