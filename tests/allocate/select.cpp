#include "attention_balancer/allocate/select.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention_balancer/allocate/diverse.hpp"
#include "attention_balancer/allocate/pages.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Indices = std::vector<Index>;

namespace {

Indices kept(const allocate::Selection& selection) { return {selection.kept().begin(), selection.kept().end()}; }

}  // namespace

TEST_CASE("a selection knows who is in it") {
  const allocate::Selection s(6, {0, 2, 5});
  CHECK(s.items() == 6);
  CHECK(s.size() == 3);
  CHECK(s.dropped() == Indices{1, 3, 4});
  CHECK(s.mask() == std::vector<bool>{true, false, true, false, false, true});
  CHECK((s.contains(2) && !s.contains(3) && !s.contains(-1) && !s.contains(6)));
  CHECK(s == allocate::Selection(6, {0, 2, 5}));
  CHECK_FALSE(s == allocate::Selection(7, {0, 2, 5}));
  CHECK(allocate::Selection().size() == 0);
  CHECK_THROWS_WITH(allocate::Selection(5, {1, 1}), "kept item 1 is 1, but must ascend strictly and be in [2, 5)");
}

TEST_CASE("sinks and recent are pins, each once") {
  CHECK(allocate::sinks_and_recent(10, 2, 3) == Indices{0, 1, 7, 8, 9});
  CHECK(allocate::sinks_and_recent(4, 3, 3) == Indices{0, 1, 2, 3});
  CHECK(allocate::sinks_and_recent(2, 5, 5) == Indices{0, 1});
  CHECK(allocate::sinks_and_recent(0, 4, 4).empty());
  CHECK(allocate::sinks_and_recent(3, 0, 0).empty());
  CHECK_THROWS_WITH(allocate::sinks_and_recent(3, -1, 0), "number of sinks is -1, but must not be negative");
  CHECK_THROWS_AS(allocate::sinks_and_recent(3, 0, -1), ab::BudgetError);
}

TEMPLATE_TEST_CASE("top_k: ties go to the caller's id, then to the index", "", SCALARS) {
  const std::vector<TestType> scores{1, 1, 2, 1, 1};
  const Indices ids{9, 4, 0, 4, 1}, few{1, 2};
  CHECK(kept(allocate::top_k(scores, 2)) == Indices{0, 2});
  CHECK(kept(allocate::top_k(scores, 2, {.ids = ids})) == Indices{2, 4});
  CHECK(kept(allocate::top_k(scores, 3, {.ids = ids})) == Indices{1, 2, 4});
  CHECK_THROWS_AS(allocate::top_k(scores, 2, {.ids = few}), ab::ShapeError);
}

TEMPLATE_TEST_CASE("threshold keeps what reaches it, within its counts", "", SCALARS) {
  using T = TestType;
  const std::vector<T> scores{1, 5, 3, -2, 5, 4};
  const T most = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(kept(allocate::threshold(scores, T(4))) == Indices{1, 4, 5});
  CHECK(kept(allocate::threshold(scores, -most)).size() == 6);
  CHECK(kept(allocate::threshold(scores, T(4), {.least = 4})) == Indices{1, 2, 4, 5});
  CHECK(kept(allocate::threshold(scores, T(4), {.most = 1})) == Indices{1});
  const Indices pins{3, 0};
  CHECK(kept(allocate::threshold(scores, T(4), {}, {.pins = pins})) == Indices{0, 1, 3, 4, 5});
  CHECK(kept(allocate::threshold(scores, T(4), {.most = 3}, {.pins = pins})) == Indices{0, 1, 3});
  CHECK(kept(allocate::threshold(scores, most, {}, {.pins = pins})) == Indices{0, 3});
  CHECK(kept(allocate::threshold(scores, most, {.least = 100})).size() == 6);
  CHECK_THROWS_WITH(allocate::threshold(scores, T(9)), ContainsSubstring("be at least 1 unless allow_empty"));
  CHECK(kept(allocate::threshold(scores, T(9), {}, {.allow_empty = true})).empty());
  CHECK_THROWS_WITH(allocate::threshold(scores, T(4), {.most = 1}, {.pins = pins}),
                    "number of pins is 2, but must not exceed the most that a threshold may keep, 1");
  CHECK_THROWS_WITH(allocate::threshold(scores, T(4), {3, 2}),
                    "least count of a threshold is 3, but must not exceed the most, 2");
  CHECK_THROWS_AS(allocate::threshold(scores, T(4), {-1, 2}), ab::BudgetError);
  CHECK_THROWS_AS(allocate::threshold(scores, nan), ab::InputError);
}

TEMPLATE_TEST_CASE("inverse_cdf draws at the quantiles", "", SCALARS) {
  using T = TestType;
  // Quantiles 1/8, 3/8, 5/8, 7/8 of a sum of 8: at 1, 3, 5 and 7.
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{1, 1, 1, 1, 1, 1, 1, 1}, 4)) == Indices{0, 2, 4, 6});
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{2, 4, 1, 1}, 4)) == Indices{0, 1, 2});  // 3 and 5 fall into one
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{0, 8, 0, 0}, 4)) == Indices{1});
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{0, 0, 0, 0}, 2)) == Indices{0, 2});  // equal: 1 and 3 of 4
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{0, 0, 0, 0}, 9)).size() == 4);
  const Indices pins{0};
  const std::vector<bool> mask{true, false, true, true, true};
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{100, 7, 3, 3, 3}, 3, {.pins = pins, .eligible = mask})) ==
        Indices{0, 2, 4});  // 9/4 and 27/4 of the other 9
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{100, 7, 0, 0, 0}, 3, {.pins = pins, .eligible = mask})) ==
        Indices{0, 2, 4});  // the others have no weight
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{1, 2}, 1, {.pins = pins})) == Indices{0});
  const T huge = std::numeric_limits<T>::max(), tiny = std::numeric_limits<T>::denorm_min();
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{huge, huge, huge}, 3)) == Indices{0, 1, 2});
  CHECK(kept(allocate::inverse_cdf(std::vector<T>{tiny, tiny, tiny}, 3)) == Indices{0, 1, 2});
  CHECK_THROWS_WITH(allocate::inverse_cdf(std::vector<T>{1, -1}, 1), ContainsSubstring("weight of item 1 is -1"));
  CHECK_THROWS_AS(allocate::inverse_cdf(std::vector<T>{1, 1}, 0), ab::BudgetError);
}

TEMPLATE_TEST_CASE("facility_location covers before it repeats", "", SCALARS) {
  using T = TestType;
  // Three groups of directions; the first two members of the first are nearly the same.
  const std::vector<T> rows{1, 0, T(0.99), T(0.1), T(0.98), T(0.2), 0, 1, T(0.1), T(0.99), -1, 0};
  const allocate::Cosine similarity(rows, 2);
  CHECK(similarity.items() == 6);
  CHECK(similarity(0, 3) == 0);
  CHECK(similarity(0, 5) == Approx(-1));
  CHECK(kept(allocate::facility_location(6, similarity, 1)) == Indices{2});  // nearest to the most
  CHECK(kept(allocate::facility_location(6, similarity, 3)) == Indices{2, 3, 5});
  const Indices pins{5};
  CHECK(kept(allocate::facility_location(6, similarity, 3, {.pins = pins})) == Indices{2, 3, 5});
  const std::vector<bool> mask{true, true, false, true, true, false};
  CHECK(kept(allocate::facility_location(6, similarity, 2, {.eligible = mask})) == Indices{1, 3});
  const std::vector<double> weights{0, 0, 0, 0, 0, 1};
  CHECK(kept(allocate::facility_location(6, similarity, 1, {}, weights)) == Indices{5});
  CHECK(kept(allocate::facility_location(6, similarity, 9)).size() == 6);
  const allocate::Cosine none(std::vector<T>{}, 2);
  CHECK(allocate::facility_location(0, none, 3, {.allow_empty = true}).size() == 0);
  CHECK_THROWS_AS(allocate::Cosine(rows, 5), ab::ShapeError);
  CHECK_THROWS_AS(allocate::Cosine(rows, 0), ab::ShapeError);
  CHECK_THROWS_WITH(allocate::facility_location(
                        2, [](Index, Index) { return std::nan(""); }, 1),
                    "similarity of items 0 and 0 is nan, but must be a number");
}

TEMPLATE_TEST_CASE("top pages are kept whole", "", SCALARS) {
  const std::vector<TestType> scores{5, 2, 5};
  CHECK(kept(allocate::top_pages(scores, 5, 2, 1)) == Indices{0, 1});
  CHECK(kept(allocate::top_pages(scores, 5, 2, 2)) == Indices{0, 1, 4});
  const Indices pins{1};
  CHECK(kept(allocate::top_pages(scores, 5, 2, 2, {.pins = pins})) == Indices{0, 1, 2, 3});
  CHECK_THROWS_AS(allocate::top_pages(scores, 7, 2, 2), ab::ShapeError);
  CHECK_THROWS_AS(allocate::top_pages(scores, 5, 0, 2), ab::ShapeError);
}
