// "Select" and "Ties" of the list "What must hold". token_budget is top_k, and is tested as that.
#include <algorithm>
#include <random>

#include "attention_balancer/execute/token_budget.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using property::holds;

namespace {

// Scores with many ties, a mask, pins among the eligible.
template <class T>
struct Case {
  std::vector<T> scores;
  std::vector<bool> mask;
  std::vector<Index> pins;
  Index eligible = 0;

  std::vector<Index> kept(Index budget) const {
    const auto plan = execute::token_budget(scores, budget, {.pins = pins, .eligible = mask, .allow_empty = true});
    return {plan.kept().begin(), plan.kept().end()};
  }
};

template <class T>
Case<T> make_case(std::size_t most = 100000) {
  Case<T> c;
  c.scores = property::weights<T>(property::size(most));
  const auto kinds = property::as_many(c.scores.size(), 0, 10);  // half of them -4 .. 0
  for (std::size_t i = 0; i < kinds.size(); ++i)
    if (kinds[i] < 5) c.scores[i] = static_cast<T>(-kinds[i]);
  for (const int x : property::as_many(c.scores.size(), 0, 8)) {
    const auto i = static_cast<Index>(c.mask.size());
    c.mask.push_back(x > 1);
    c.eligible += x > 1;
    if (x == 7) c.pins.push_back(i);
  }
  return c;
}

}  // namespace

TEMPLATE_TEST_CASE("select: size, order, pins, mask, and the best", "[property]", SCALARS) {
  using T = TestType;
  holds("every promise of token_budget", [] {
    const auto c = make_case<T>();
    const auto pins = static_cast<Index>(c.pins.size());
    const Index budget = property::in_range<Index>(pins, static_cast<Index>(c.scores.size()) + 3);
    const auto kept = c.kept(budget);
    PROPERTY(static_cast<Index>(kept.size()) == std::min(budget, c.eligible));
    PROPERTY(std::is_sorted(kept.begin(), kept.end()));
    PROPERTY(std::adjacent_find(kept.begin(), kept.end()) == kept.end());
    const auto is_in = [](const std::vector<Index>& set, Index i) {
      return std::binary_search(set.begin(), set.end(), i);
    };
    for (const Index pin : c.pins) PROPERTY(is_in(kept, pin));
    // The last in the order (score, index) of those that are kept and no pins: who is left out comes after it.
    Index last = -1;
    const auto before = [&](Index a, Index b) {
      const T x = c.scores[static_cast<std::size_t>(a)], y = c.scores[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    };
    for (const Index k : kept)
      if (!is_in(c.pins, k) && (last < 0 || before(last, k))) last = k;
    for (Index i = 0; i < static_cast<Index>(c.scores.size()); ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (is_in(kept, i)) {
        PROPERTY(c.mask[at]);
        continue;
      }
      if (!c.mask[at]) continue;
      PROPERTY(last < 0 || before(last, i));
    }
  });
  holds("nested in the budget, and the same input gives the same plan", [] {
    const auto c = make_case<T>(60);
    std::vector<Index> smaller = c.kept(static_cast<Index>(c.pins.size()));
    for (auto budget = static_cast<Index>(c.pins.size()); budget <= c.eligible; ++budget) {
      const auto larger = c.kept(budget);
      PROPERTY(std::includes(larger.begin(), larger.end(), smaller.begin(), smaller.end()));
      PROPERTY(larger == c.kept(budget));
      smaller = larger;
    }
  });
  holds("more pins than budget is an error", [] {
    auto c = make_case<T>();
    c.scores.push_back(T(1)), c.mask.push_back(true), c.pins.push_back(static_cast<Index>(c.scores.size()) - 1);
    PROPERTY_THROWS(c.kept(static_cast<Index>(c.pins.size()) - 1), ab::BudgetError);
  });
}

TEST_CASE("select: compacting moves everything together", "[property]") {
  holds("rows follow their positions", [] {
    const auto c = make_case<float>(60);
    const Index n = static_cast<Index>(c.scores.size());
    const Index budget = property::in_range<Index>(static_cast<Index>(c.pins.size()), n + 1);
    const auto plan =
        execute::token_budget(c.scores, budget, {.pins = c.pins, .eligible = c.mask, .allow_empty = true});
    const Index batch = property::in_range<Index>(1, 3), heads = property::in_range<Index>(1, 3),
                dim = property::in_range<Index>(1, 4);
    std::vector<double> memory(static_cast<std::size_t>(batch * heads * n * dim));
    const auto whole = ab::bshd(memory.data(), batch, n, heads, dim);
    const auto value = [](Index b, Index h, Index i, Index d) {
      return double(((b * 10 + h) * 1000 + i) * 10 + d);
    };
    for (Index b = 0; b < batch; ++b)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < n; ++i)
          for (Index d = 0; d < dim; ++d) whole(b, h, i, d) = value(b, h, i, d);
    auto view = whole;
    auto scores = c.scores;
    std::vector<Index> positions(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i) positions[static_cast<std::size_t>(i)] = i;
    plan.compact(view, scores, positions);
    PROPERTY(view.length == plan.size());
    PROPERTY(std::equal(positions.begin(), positions.end(), plan.kept().begin(), plan.kept().end()));
    for (Index k = 0; k < plan.size(); ++k) {
      const Index from = positions[static_cast<std::size_t>(k)];
      PROPERTY(scores[static_cast<std::size_t>(k)] == c.scores[static_cast<std::size_t>(from)]);
      for (Index b = 0; b < batch; ++b)
        for (Index h = 0; h < heads; ++h)
          for (Index d = 0; d < dim; ++d) PROPERTY(view(b, h, k, d) == value(b, h, from, d));
    }
  });
}
