// "Select" of the list "What must hold", for the ways to select beside top_k and for budgets that nest.
#include "attention_balancer/allocate/nested.hpp"

#include <algorithm>
#include <numeric>

#include "attention_balancer/allocate/diverse.hpp"
#include "attention_balancer/allocate/select.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using ab::Index;
using property::holds;

namespace {

// Weights per item, a mask, pins among the eligible.
template <class T>
struct Case {
  std::vector<T> weights;
  std::vector<bool> mask;
  std::vector<Index> pins;
  Index eligible = 0;

  allocate::SelectOptions options() const { return {.pins = pins, .eligible = mask, .allow_empty = true}; }
  Index pinned() const { return static_cast<Index>(pins.size()); }
  Index items() const { return static_cast<Index>(mask.size()); }
};

// Items of one head; `weights` are those of `heads` heads.
template <class T>
Case<T> make_case(std::size_t heads = 1) {
  Case<T> c;
  const auto n = property::in_range(0, 40) == 0 ? std::size_t(0) : property::size();
  c.weights = property::weights<T>(n * heads);
  for (const int x : property::as_many(n, 0, 8)) {
    const auto i = static_cast<Index>(c.mask.size());
    c.mask.push_back(x > 1);
    c.eligible += x > 1;
    if (x == 7) c.pins.push_back(i);
  }
  return c;
}

template <class T>
void check_kept(const Case<T>& c, const allocate::Selection& s) {
  PROPERTY(s.items() == c.items());
  PROPERTY(std::adjacent_find(s.kept().begin(), s.kept().end(), std::greater_equal<>()) == s.kept().end());
  for (const Index i : s.kept()) PROPERTY(c.mask[static_cast<std::size_t>(i)]);
  for (const Index pin : c.pins) PROPERTY(s.contains(pin));
}

}  // namespace

TEMPLATE_TEST_CASE("select: the caller's ids make it equivariant under permutation", "[property]", SCALARS) {
  using T = TestType;
  holds("top_k keeps the same items wherever they stand", [] {
    const auto c = make_case<T>();
    const std::size_t n = c.weights.size();
    const Index budget = property::in_range<Index>(0, c.items() + 2);
    const auto order = property::order(n);
    std::vector<Index> ids(n);
    std::iota(ids.begin(), ids.end(), Index(0));
    std::vector<T> moved(n);
    std::vector<bool> mask(n);
    for (std::size_t i = 0; i < n; ++i)
      moved[i] = c.weights[static_cast<std::size_t>(order[i])],
      mask[i] = c.mask[static_cast<std::size_t>(order[i])];
    const auto here = allocate::top_k(c.weights, budget, {.eligible = c.mask, .allow_empty = true, .ids = ids});
    const auto there = allocate::top_k(moved, budget, {.eligible = mask, .allow_empty = true, .ids = order});
    std::vector<Index> back;
    for (const Index i : there.kept()) back.push_back(order[static_cast<std::size_t>(i)]);
    std::sort(back.begin(), back.end());
    PROPERTY(std::equal(back.begin(), back.end(), here.kept().begin(), here.kept().end()));
  });
}

TEMPLATE_TEST_CASE("select: threshold", "[property]", SCALARS) {
  using T = TestType;
  holds("keeps what reaches it, the best first where a count binds", [] {
    const auto c = make_case<T>();
    const T least = property::weight<T>();
    const Index low = property::in_range<Index>(0, 10);
    const Index high = std::max(low, c.pinned()) + property::in_range<Index>(0, 20);
    const auto s = allocate::threshold(c.weights, least, {low, high}, c.options());
    check_kept(c, s);
    Index reached = 0;
    for (Index i = 0; i < c.items(); ++i)
      reached += c.mask[static_cast<std::size_t>(i)] && (c.weights[static_cast<std::size_t>(i)] >= least ||
                                                         std::count(c.pins.begin(), c.pins.end(), i) > 0);
    PROPERTY(s.size() == std::min(c.eligible, std::clamp(reached, low, high)));
    PROPERTY(s == allocate::top_k(c.weights, std::max(s.size(), c.pinned()), c.options()));
  });
}

TEMPLATE_TEST_CASE("select: inverse_cdf", "[property]", SCALARS) {
  using T = TestType;
  holds("at most the budget, never weight zero, always what holds a whole quantile", [] {
    const auto c = make_case<T>();
    const Index budget = property::in_range<Index>(c.pinned(), c.items() + 3);
    const auto s = allocate::inverse_cdf(c.weights, budget, c.options());
    check_kept(c, s);
    const Index quantiles = std::min(budget, c.eligible) - c.pinned();
    PROPERTY(s.size() <= c.pinned() + quantiles);
    PROPERTY(s.size() > c.pinned() || quantiles == 0);
    long double sum = 0;
    std::vector<std::size_t> others;
    for (std::size_t i = 0; i < c.mask.size(); ++i)
      if (c.mask[i] && std::count(c.pins.begin(), c.pins.end(), static_cast<Index>(i)) == 0)
        others.push_back(i), sum += c.weights[i];
    for (const std::size_t i : others) {
      const bool kept = s.contains(static_cast<Index>(i));
      if (c.weights[i] == T(0) && sum > 0) PROPERTY(!kept);
      if (quantiles > 0 && c.weights[i] > sum / static_cast<long double>(quantiles) * (1 + 1e-9L)) PROPERTY(kept);
    }
    PROPERTY(s == allocate::inverse_cdf(c.weights, budget, c.options()));
  });
}

TEMPLATE_TEST_CASE("select: joint over heads", "[property]", SCALARS) {
  using T = TestType;
  holds("the total, the floors, the best, nested", [] {
    const Index heads = property::in_range<Index>(1, 5);
    const auto c = make_case<T>(static_cast<std::size_t>(heads));
    const Index floor = property::in_range<Index>(0, 6);
    const Index sure = std::min(std::max(floor, c.pinned()), c.eligible);
    const Index budget = heads * sure + property::in_range<Index>(0, 60);
    const auto s = allocate::joint_top_k(c.weights, heads, budget, floor, c.options());
    const auto larger = allocate::joint_top_k(c.weights, heads, budget + 1, floor, c.options());
    PROPERTY(static_cast<Index>(s.size()) == heads);
    Index total = 0;
    T worst_free = std::numeric_limits<T>::infinity(), best_left = -1;
    for (std::size_t h = 0; h < s.size(); ++h) {
      check_kept(c, s[h]);
      total += s[h].size();
      PROPERTY(s[h].size() >= sure);
      PROPERTY(
          std::includes(larger[h].kept().begin(), larger[h].kept().end(), s[h].kept().begin(), s[h].kept().end()));
      const auto of_head = std::span<const T>(c.weights).subspan(h * c.mask.size(), c.mask.size());
      // Within a head it is a plain selection of that size.
      PROPERTY(s[h] == allocate::top_k(of_head, s[h].size(), c.options()));
      const auto certain = allocate::top_k(of_head, sure, c.options());
      for (Index i = 0; i < c.items(); ++i) {
        const T w = of_head[static_cast<std::size_t>(i)];
        if (!c.mask[static_cast<std::size_t>(i)] || certain.contains(i)) continue;
        if (s[h].contains(i))
          worst_free = std::min(worst_free, w);
        else
          best_left = std::max(best_left, w);
      }
    }
    PROPERTY(total == std::min(budget, heads * c.eligible));
    PROPERTY(worst_free >= best_left);
  });
}

TEST_CASE("select: facility location is the plain greedy choice, nested in the budget", "[property]") {
  holds(
      "lazy is greedy",
      [] {
        const auto c = make_case<double>();
        const auto n = static_cast<Index>(std::min<std::size_t>(c.mask.size(), 14));
        std::vector<double> rows;
        for (const int x : property::as_many(static_cast<std::size_t>(2 * n), -2, 3)) rows.push_back(x);
        const allocate::Cosine similarity(rows, 2);
        const std::vector<bool> mask(c.mask.begin(), c.mask.begin() + n);
        std::vector<double> weights(static_cast<std::size_t>(n));
        for (auto& w : weights) w = property::in_range(0, 3);
        std::vector<Index> kept;
        for (const Index pin : c.pins)
          if (pin < n) kept.push_back(pin);
        const auto pins = kept;
        const auto cover = [&](Index i) {
          double best = 0;
          for (const Index j : kept) best = std::max(best, similarity(i, j));
          return best;
        };
        for (Index budget = static_cast<Index>(pins.size()); budget <= n; ++budget) {
          const auto s = allocate::facility_location(
              n, similarity, budget, {.pins = pins, .eligible = mask, .allow_empty = true}, weights);
          auto sorted = kept;
          std::sort(sorted.begin(), sorted.end());
          PROPERTY(std::equal(sorted.begin(), sorted.end(), s.kept().begin(), s.kept().end()));
          Index best = -1;
          double most = -1;
          for (Index j = 0; j < n; ++j) {
            if (!mask[static_cast<std::size_t>(j)] || std::count(kept.begin(), kept.end(), j) > 0) continue;
            double gain = 0;
            for (Index i = 0; i < n; ++i)
              if (mask[static_cast<std::size_t>(i)])
                gain += weights[static_cast<std::size_t>(i)] * std::max(0.0, similarity(i, j) - cover(i));
            if (gain > most) most = gain, best = j;
          }
          if (best >= 0) kept.push_back(best);
        }
      },
      1000);
}

TEST_CASE("select: a tree adds up at every node", "[property]") {
  holds("sums, bounds, house monotone", [] {
    allocate::BudgetTree tree;
    std::vector<Index> parents{-1}, lower{0}, upper{1 << 20};
    const int nodes = property::in_range(0, 30);
    for (int i = 0; i < nodes; ++i) {
      const Index parent = property::in_range<Index>(0, tree.size());
      const Index low = property::in_range<Index>(0, 3);
      const Index high = low + property::in_range<Index>(50, 200);
      tree.add(parent, {.weight = property::weight<double>(), .lower = low, .upper = high});
      parents.push_back(parent), lower.push_back(low), upper.push_back(high);
    }
    // What a node needs and can take, by the definition.
    std::vector<Index> needs = lower, takes = upper;
    for (std::size_t i = parents.size(); i-- > 0;) {
      if (tree.children(static_cast<Index>(i)).empty()) continue;
      Index low = 0, high = 0;
      for (const Index child : tree.children(static_cast<Index>(i)))
        low += needs[static_cast<std::size_t>(child)], high += takes[static_cast<std::size_t>(child)];
      needs[i] = std::max(needs[i], low), takes[i] = std::min(takes[i], high);
      if (needs[i] > takes[i]) {
        PROPERTY_THROWS(tree.divide(needs[0]), ab::BudgetError);
        return;
      }
    }
    const Index total = property::in_range<Index>(needs[0], takes[0] + 1);
    const auto units = tree.divide(total);
    PROPERTY(units[0] == total);
    for (std::size_t i = 0; i < units.size(); ++i) {
      PROPERTY(units[i] >= lower[i]);
      PROPERTY(units[i] <= upper[i]);
      const auto children = tree.children(static_cast<Index>(i));
      Index sum = 0;
      for (const Index child : children) sum += units[static_cast<std::size_t>(child)];
      PROPERTY(children.empty() || sum == units[i]);
    }
    if (total < takes[0]) {
      const auto more = tree.divide(total + 1);
      for (std::size_t i = 0; i < units.size(); ++i) PROPERTY(more[i] >= units[i]);
    }
    if (needs[0] > 0) PROPERTY_THROWS(tree.divide(needs[0] - 1), ab::BudgetError);
    if (units.size() > 1) PROPERTY_THROWS(tree.divide(takes[0] + 1), ab::BudgetError);
  });
}

TEST_CASE("select: the published pyramids and cakes add up", "[property]") {
  holds("pyramid_kv", [] {
    const Index layers = property::in_range<Index>(1, 100), budget = property::in_range<Index>(0, 5000);
    const Index most = budget + property::in_range<Index>(0, 6000);
    const double beta = property::in_range(10, 400) / 10.0;
    const auto units = allocate::pyramid_kv(layers, budget, most, beta);
    PROPERTY(std::accumulate(units.begin(), units.end(), Index(0)) == layers * budget);
    PROPERTY(units.front() <= most);
    PROPERTY(std::is_sorted(units.rbegin(), units.rend()));
    PROPERTY(units.back() >= static_cast<Index>(static_cast<double>(budget) / beta) - 1 || layers == 1);
  });
  holds("cake", [] {
    const auto entropy = property::weights<double>();
    const auto variance = property::weights<double>(entropy.size());
    const Index n = static_cast<Index>(entropy.size()), lower = property::in_range<Index>(0, 5);
    const Index upper = lower + property::in_range<Index>(0, 300);
    const Index total = property::in_range<Index>(n * lower, n * upper + 1);
    const auto units = allocate::cake(entropy, variance, total, property::in_range(1, 30) / 10.0,
                                      property::in_range(1, 30) / 10.0, lower, upper);
    PROPERTY(std::accumulate(units.begin(), units.end(), Index(0)) == total);
    for (const Index u : units) PROPERTY((u >= lower && u <= upper));
  });
}
