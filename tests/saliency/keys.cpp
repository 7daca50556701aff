// Saliency from keys and values: hostile numbers, the smallest sizes, and what must be refused.
#include "attention_balancer/saliency/keys.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "attention_balancer/allocate/per_head.hpp"
#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/saliency/expected.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace saliency = ab::saliency;
using ab::Index;
using ab::detail::EvidenceAccess;

namespace {

template <class T>
constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();

template <class T>
ab::TensorView<const T> view(const std::vector<T>& x, Index heads, Index length, Index dim) {
  return ab::bhsd(x.data(), 1, heads, length, dim);
}

template <class T>
ab::Evidence<T> flat(Index heads, Index keys) {
  ab::Evidence<T> evidence;
  EvidenceAccess::reshape(evidence, {1, heads, 1, keys, true, ab::evidence::Kind::mass});
  for (Index h = 0; h < heads; ++h)
    for (Index j = 0; j < keys; ++j) EvidenceAccess::mass(evidence, h)[j] = T(1);
  return evidence;
}

}  // namespace

TEMPLATE_TEST_CASE("norms of any size", "[saliency]", SCALARS) {
  using T = TestType;
  const T most = std::numeric_limits<T>::max() / 8, least = std::numeric_limits<T>::min();
  const std::vector<T> x{3, 4, -3, 4, most * T(0.6), most * T(0.8), least * 3, least * 4, 0, 0};
  const auto l2 = saliency::norms(view(x, 1, 5, 2));
  CHECK(l2[0][0] == 5);
  CHECK(l2[0][1] == 5);
  CHECK(l2[0][2] == Approx(static_cast<double>(most)));
  CHECK(l2[0][3] / least == Approx(5));
  CHECK(l2[0][4] == 0);
  const auto l1 = saliency::norms(view(x, 1, 5, 2), saliency::Norm::l1);
  CHECK(l1[0][1] == 7);
  const std::vector<T> odd{std::numeric_limits<T>::infinity(), 1, not_a_number<T>, 1};
  const auto strange = saliency::norms(view(odd, 1, 2, 2));
  CHECK(std::isinf(strange[0][0]));
  CHECK(std::isnan(strange[0][1]));
}

TEMPLATE_TEST_CASE("key norm and key difference", "[saliency]", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const V k{3, 4, 0, 1, 0, 0, /* second head */ 1, 0, 1, 0, 0, 2};
  CHECK(saliency::key_norm(view(k, 2, 3, 2), ab::Head{0}) == V{0, 4, 5});
  CHECK(saliency::key_norm(view(k, 2, 3, 2)) == V{0.5, 2.5, 2.5});
  const auto difference = saliency::key_difference(view(k, 2, 3, 2), ab::EachHead{});
  CHECK(difference[0][2] == 1);  // of length 0
  CHECK(difference[1][0] == Approx(1 - 2 / std::sqrt(5.0)));
  CHECK(difference[1][2] == Approx(1 - 1 / std::sqrt(5.0)));
  // Opposite keys: the mean of the directions is 0, and none is more unlike it than another.
  CHECK(saliency::key_difference(view(V{1, -1}, 1, 2, 1)) == V{1, 1});

  V spoilt = k;
  spoilt[2] = not_a_number<T>;
  const auto norm = saliency::key_norm(view(spoilt, 2, 3, 2), ab::Head{0});
  CHECK(norm[0] == 0);
  CHECK(std::isnan(norm[1]));
  CHECK(norm[2] == 5);
  for (const T x : saliency::key_difference(view(spoilt, 2, 3, 2), ab::Head{0}))
    CHECK((std::isnan(x) || x == 1));  // all with a direction

  CHECK(saliency::key_norm(view(V{7}, 1, 1, 1)) == V{0});
  CHECK(saliency::key_difference(view(V{7}, 1, 1, 1)) == V{0});
  CHECK(saliency::key_norm(view(V{}, 1, 0, 4)).empty());
  CHECK(saliency::key_difference(view(V{}, 1, 0, 4)).empty());
  CHECK_THROWS_AS(saliency::key_norm(view(k, 2, 3, 2), ab::Heads::mean, 1), ab::ShapeError);
  CHECK_THROWS_AS(saliency::key_norm(view(k, 2, 3, 2), ab::KvHeads{3}), ab::ShapeError);
  CHECK_THROWS_AS(saliency::key_difference(ab::TensorView<const T>{nullptr, 1, 1, 3, 2, 6, 6, 2, 1}),
                  ab::ShapeError);
}

TEMPLATE_TEST_CASE("value-weighted mass", "[saliency]", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  auto evidence = flat<T>(4, 3);
  EvidenceAccess::mass(evidence, 1)[0] = T(0);
  const V v{1, -2, not_a_number<T>, 0, 3, 4, /* second head */ 1, 1, 0, 0, 0, 5};
  const auto each = saliency::value_weighted(evidence, view(v, 2, 3, 2), saliency::Norm::l1, ab::EachHead{});
  CHECK(each[0][0] == 3);
  CHECK(each[1][0] == 0);
  CHECK(std::isnan(each[0][1]));
  CHECK(each[0][2] == 7);
  CHECK(each[3][2] == 5);
  EvidenceAccess::mass(evidence, 0)[1] = EvidenceAccess::mass(evidence, 1)[1] = T(0);
  CHECK(saliency::value_weighted(evidence, view(v, 2, 3, 2), saliency::Norm::l2, ab::Head{0})[1] ==
        0);  // nobody looks
  CHECK_THROWS_AS(saliency::value_weighted(evidence, view(v, 2, 2, 3)), ab::ShapeError);
  CHECK_THROWS_AS(saliency::value_weighted(flat<T>(3, 3), view(v, 2, 3, 2)), ab::ShapeError);
  CHECK_THROWS_AS(saliency::value_weighted(ab::Evidence<T>{}, view(v, 2, 3, 2)), ab::InputError);
  CHECK_THROWS_AS(saliency::projected_norms(view(v, 2, 3, 2), view(V(24, T(1)), 4, 3, 2)), ab::ShapeError);
  CHECK_THROWS_AS(saliency::projected_norms(view(v, 2, 3, 2), view(V(12, T(1)), 3, 2, 2)), ab::ShapeError);
  const V w{1, 0, 0, 1, /* other head */ 2, 0, 0, 0};
  const V one{1, -2};
  const auto projected = saliency::projected_norms(view(one, 1, 1, 2), view(w, 2, 2, 2));
  CHECK(projected[0][0] == T(2.5));

  saliency::Rows<T> scores(1, 2), norms(1, 2), other(2, 2);
  scores[0][1] = T(1);
  norms[0][0] = norms[0][1] = T(2);
  const auto weighted = saliency::norm_weighted(scores, norms, 0.5);
  CHECK(V(weighted[0].begin(), weighted[0].end()) == V{1, 3});
  CHECK_THROWS_AS(saliency::norm_weighted(scores, other), ab::ShapeError);
  CHECK_THROWS_AS(saliency::norm_weighted(scores, saliency::Rows<T>(1, 3)), ab::ShapeError);
  for (const double epsilon : {-1.0, std::nan(""), HUGE_VAL})
    CHECK_THROWS_AS(saliency::norm_weighted(scores, norms, epsilon), ab::InputError);
  CHECK_THROWS_AS(ab::allocate::two_stage(scores, other, 2, 1), ab::ShapeError);
  CHECK_THROWS_AS(ab::allocate::two_stage(scores, norms, 1, 2), ab::BudgetError);
  CHECK(ab::allocate::two_stage(scores, norms, 1, 0)[0].kept()[0] == 0);  // a tie of the second scores
  CHECK(ab::allocate::two_stage(scores, norms, 1, 1)[0].kept()[0] == 1);
}

TEMPLATE_TEST_CASE("expected attention", "[saliency]", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  // Queries that are all the same have no covariance: it is their attention.
  const V q{1, 2, 1, 2, 1, 2}, k{1, 0, 0, 1, 1, 1, 2, -1}, v{3, 4, 0, 1, 0, 0, 6, 8};
  saliency::QueryStatistics same(view(q, 1, 3, 2));
  const auto score =
      saliency::expected_attention(same, view(k, 1, 4, 2), view(v, 1, 4, 2), ab::Heads::mean, {.sinks = 0});
  double sum = 0;
  const double dots[] = {1, 2, 3, 0}, sizes[] = {5, 1, 0, 10};
  for (const double dot : dots) sum += std::exp(dot / std::sqrt(2.0));
  for (std::size_t j = 0; j < 4; ++j)
    CHECK(score[j] == Approx(sizes[j] * std::exp(dots[j] / std::sqrt(2.0)) / sum));
  // Sinks are not judged; more of them than keys is not an error.
  const auto after =
      saliency::expected_attention(same, view(k, 1, 4, 2), view(v, 1, 4, 2), ab::Heads::mean, {.sinks = 1});
  CHECK(after[0] == 0);
  CHECK(after[3] > score[3]);
  CHECK(saliency::expected_attention(same, view(k, 1, 4, 2), view(v, 1, 4, 2)) == V(4, T(0)));
  // Logits far beyond exp.
  const V far{1000, 2000};
  for (const T x : saliency::expected_attention(saliency::QueryStatistics(view(far, 1, 1, 2)), view(k, 1, 4, 2),
                                                view(v, 1, 4, 2), ab::Heads::max, {.sinks = 0, .epsilon = 0.5}))
    CHECK(std::isfinite(x));

  // A rotation by positions 0 alone is none; the average of many shrinks.
  const auto none = saliency::average_rotation(4, 0, 1);
  for (std::size_t i = 0; i < 16; ++i) CHECK(none[i] == (i % 5 == 0 ? 1 : 0));
  CHECK(std::fabs(saliency::average_rotation(4, 0, 1000)[0]) < 0.01);
  same.rotate(saliency::average_rotation(2, 3, 1));
  CHECK(same.mean(0)[0] == Approx(std::cos(3.0) - 2 * std::sin(3.0)));
  CHECK(same.mean(0)[1] == Approx(std::sin(3.0) + 2 * std::cos(3.0)));
  // A rotation keeps the trace of the covariance.
  const V two{1, 0, 0, 3};
  saliency::QueryStatistics spread(view(two, 1, 2, 2));
  CHECK(spread.covariance(0)[0] == Approx(0.25));
  CHECK(spread.covariance(0)[1] == Approx(-0.75));
  spread.rotate(saliency::average_rotation(2, 1, 1));
  CHECK(spread.covariance(0)[0] + spread.covariance(0)[3] == Approx(2.5));
  CHECK(spread.covariance(0)[1] == Approx(spread.covariance(0)[2]));

  CHECK_THROWS_AS(same.rotate(none), ab::ShapeError);
  CHECK_THROWS_AS(saliency::QueryStatistics(view(q, 1, 3, 2), 3), ab::ShapeError);
  CHECK_THROWS_AS(saliency::QueryStatistics(view(q, 1, 3, 2), -1), ab::ShapeError);
  CHECK_THROWS_AS(saliency::average_rotation(3, 0, 1), ab::ShapeError);
  CHECK_THROWS_AS(saliency::average_rotation(4, 0, 0), ab::InputError);
  CHECK_THROWS_AS(saliency::average_rotation(4, 0, 1, -1), ab::InputError);
  CHECK_THROWS_AS(saliency::expected_attention(same, view(k, 2, 2, 2), view(v, 2, 2, 2)), ab::ShapeError);
  CHECK_THROWS_AS(saliency::expected_attention(same, view(k, 1, 2, 4), view(v, 1, 2, 4)), ab::ShapeError);
  CHECK_THROWS_AS(saliency::expected_attention(same, view(k, 1, 4, 2), view(v, 1, 2, 2)), ab::ShapeError);
  CHECK_THROWS_AS(
      saliency::expected_attention(same, view(k, 1, 4, 2), view(v, 1, 4, 2), ab::Heads::mean, {.sinks = -1}),
      ab::InputError);
}

TEMPLATE_TEST_CASE("page bounds", "[saliency]", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const V k{1, -1, 3, 0, -2, 5}, q{1, -2};
  const saliency::PageBounds<T> bounds(view(k, 1, 3, 2), 2);
  CHECK(bounds.pages() == 2);
  CHECK(saliency::page_bound(view(q, 1, 1, 2), bounds, 0) == V{5, -12});
  CHECK(saliency::PageBounds<T>(view(k, 1, 3, 2), 100).pages() == 1);
  CHECK(saliency::PageBounds<T>(view(V{}, 1, 0, 2)).pages() == 0);
  V spoilt = k;
  spoilt[0] = not_a_number<T>;
  const auto bound = saliency::page_bound(view(q, 1, 1, 2), saliency::PageBounds<T>(view(spoilt, 1, 3, 2), 2), 0);
  CHECK(std::isnan(bound[0]));
  CHECK(bound[1] == -12);
  CHECK_THROWS_AS(saliency::PageBounds<T>(view(k, 1, 3, 2), 0), ab::InputError);
  CHECK_THROWS_AS(saliency::page_bound(view(q, 1, 1, 2), bounds, 1), ab::ShapeError);
  CHECK_THROWS_AS(saliency::page_bound(view(q, 1, 2, 1), bounds, 0), ab::ShapeError);
  CHECK_THROWS_AS(saliency::page_bound(view(q, 1, 1, 2), saliency::PageBounds<T>(view(k, 3, 1, 2)), 0),
                  ab::ShapeError);
}
