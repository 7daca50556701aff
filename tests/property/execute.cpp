// What executing a budget conserves: sizes and weighted sums in fusing and merging, the error of a number of bits,
// the counts of work.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "attention_balancer/execute/bit_budget.hpp"
#include "attention_balancer/execute/merge_tokens.hpp"
#include "attention_balancer/execute/work_budget.hpp"
#include "attention_balancer/executor/sequential.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using property::holds;

namespace {

/// [n * width] numbers of one magnitude, from 1e-25 to 1e25.
template <class T>
std::vector<T> rows(std::size_t n, std::size_t width) {
  std::vector<T> x;
  const T unit = static_cast<T>(std::pow(10.0, property::in_range(-25, 26))) / T(8);
  for (const int v : property::as_many(n * width, -50, 51)) x.push_back(static_cast<T>(v) * unit);
  return x;
}

/// What holds for any plan applied to `x`, weighted by `weights`: nothing lost of the sizes, nor of the weighted
/// sums.
template <class T>
void check_conserved(const execute::MergePlan& plan, std::vector<T> x, std::size_t width,
                     const std::vector<double>& weights, const std::vector<double>& sizes) {
  const auto n = static_cast<std::size_t>(plan.tokens()), m = static_cast<std::size_t>(plan.size());
  PROPERTY(std::abs(property::sum(plan.sizes()) - property::sum(sizes)) <= 1e-12L * property::sum(sizes));
  const auto before = x;
  std::vector<Index> labels(n);
  std::iota(labels.begin(), labels.end(), Index(0));
  plan.apply(execute::rows(x.data(), plan.tokens(), static_cast<Index>(width)), labels);
  PROPERTY(labels == std::vector<Index>(plan.kept().begin(), plan.kept().end()));
  double largest = 0;
  for (const T v : before) largest = std::max(largest, std::abs(double(v)));
  struct Group {
    long double sum = 0, total = 0, plain = 0;
    double low = std::numeric_limits<double>::infinity(), high = -low;
    Index members = 0;
  };
  for (std::size_t c = 0; c < width; ++c) {
    std::vector<Group> groups(m);
    for (std::size_t i = 0; i < n; ++i) {
      const double v = double(before[i * width + c]);
      Group& g = groups[static_cast<std::size_t>(plan.places()[i])];
      g.sum += static_cast<long double>(weights[i]) * v, g.total += weights[i], g.plain += v, ++g.members;
      g.low = std::min(g.low, v), g.high = std::max(g.high, v);
    }
    for (std::size_t k = 0; k < m; ++k) {
      const Group& g = groups[k];
      const double got = double(x[k * width + c]), items = double(g.members);
      const double mean = static_cast<double>(g.total > 0 ? g.sum / g.total : g.plain / g.members);
      const double slack = (4 * property::epsilon<T>() + 2 * items * property::epsilon<double>()) * largest;
      PROPERTY(std::abs(got - mean) <= slack);
      PROPERTY(got >= g.low - slack && got <= g.high + slack);
      if (g.members == 1) PROPERTY(x[k * width + c] == before[static_cast<std::size_t>(labels[k]) * width + c]);
    }
  }
}

std::vector<double> sizes_of(std::size_t n) {
  std::vector<double> sizes;
  for (const int s : property::as_many(n, 1, 6)) sizes.push_back(s);
  return sizes;
}

}  // namespace

TEMPLATE_TEST_CASE("fuse: the weighted mean and the size of what was dropped", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "fuse",
      [] {
        const auto n = property::size(), width = property::in_range<std::size_t>(1, 4);
        const auto w = property::weights<T>(n);
        const auto sizes = sizes_of(n);
        const Index budget = property::in_range<Index>(1, static_cast<Index>(n) + 1);
        const auto plan = execute::fuse(execute::token_budget(w, budget), w, sizes);
        PROPERTY(plan.size() == std::min(static_cast<Index>(n), budget + 1));
        check_conserved(plan, rows<T>(n, width), width, {w.begin(), w.end()}, sizes);
      },
      1500);
}

TEMPLATE_TEST_CASE("merge: the best pairs, and the mean by size", "[property]", SCALARS) {
  using T = TestType;
  holds(
      "merge",
      [] {
        const auto n = 1 + property::size(1000), dim = property::in_range<std::size_t>(1, 4);  // O(n^2)
        const auto keys = rows<T>(n, dim);
        const auto sizes = sizes_of(n);
        std::vector<Index> pins;
        for (const int x : property::as_many(n / 4, 0, static_cast<int>(n))) pins.push_back(x);
        std::vector<bool> pinned(n, false);
        for (const Index pin : pins) pinned[static_cast<std::size_t>(pin)] = true;
        std::vector<std::size_t> a, b;
        for (std::size_t i = 0; i < n; ++i)
          if (!pinned[i]) (i % 2 ? b : a).push_back(i);
        const auto most = static_cast<Index>(b.empty() ? 0 : a.size());
        const Index count = property::in_range<Index>(0, most + 1);
        const auto view = execute::rows(keys.data(), static_cast<Index>(n), static_cast<Index>(dim));
        PROPERTY_THROWS(execute::merge(view, most + 1, {.pins = pins}), ab::BudgetError);
        const auto plan = execute::merge(view, count, {.pins = pins, .sizes = sizes});
        PROPERTY(plan.size() == static_cast<Index>(n) - count);
        check_conserved(plan, keys, dim, sizes, sizes);

        const auto cosine = [&](std::size_t i, std::size_t j) {
          double dot = 0, x = 0, y = 0;
          for (std::size_t c = 0; c < dim; ++c) {
            const double p = double(keys[i * dim + c]), q = double(keys[j * dim + c]);
            dot += p * q, x += p * p, y += q * q;
          }
          return x > 0 && y > 0 ? dot / std::sqrt(x * y) : 0.0;
        };
        const std::set<Index> kept(plan.kept().begin(), plan.kept().end());
        for (const Index pin : pins) PROPERTY(kept.count(pin) == 1);
        // Whoever was merged found the best partner there is, and had one no worse than whoever was not.
        double worst_merged = 2, best_kept = -2;
        for (const std::size_t i : a) {
          double best = -2;
          for (const std::size_t j : b) best = std::max(best, cosine(i, j));
          if (kept.count(static_cast<Index>(i))) {
            best_kept = std::max(best_kept, best);
            continue;
          }
          const auto into = static_cast<std::size_t>(plan.kept()[static_cast<std::size_t>(plan.places()[i])]);
          PROPERTY(into % 2 == 1 && !pinned[into]);
          PROPERTY(cosine(i, into) >= best - 1e-12);
          worst_merged = std::min(worst_merged, best);
        }
        PROPERTY(worst_merged >= best_kept - 1e-12);
      },
      1500);
}

TEMPLATE_TEST_CASE("bits: the error that each scheme states, and the same back", "[property]", SCALARS) {
  using T = TestType;
  holds("bit_budget", [] {
    const auto n = property::size(10000), width = property::in_range<std::size_t>(1, 12);
    const Index group = property::in_range<Index>(0, 14), columns = static_cast<Index>(width);
    const auto levels =
        property::element({execute::Levels::asymmetric, execute::Levels::symmetric, execute::Levels::centred});
    auto x = rows<T>(n, width);
    const Index step = group == 0 ? columns : group, groups = (columns + step - 1) / step;
    std::vector<Index> bits;
    for (const int b : property::as_many(n * static_cast<std::size_t>(groups), 0, 17)) bits.push_back(b);
    const auto view = execute::rows(x.data(), static_cast<Index>(n), columns);
    const auto q = execute::bit_budget(view, bits, {.group = group, .levels = levels});
    std::vector<T> back(x.size());
    q.restore(execute::rows(back.data(), static_cast<Index>(n), columns));
    double squared = 0;
    Index spent = 0;
    for (Index row = 0; row < static_cast<Index>(n); ++row)
      for (Index g = 0; g < groups; ++g) {
        const Index b = bits[static_cast<std::size_t>(row * groups + g)];
        double low = 1e300, high = -1e300, worst = 0;
        std::set<T> values;
        for (Index c = g * step; c < std::min(columns, (g + 1) * step); ++c) {
          const auto at = static_cast<std::size_t>(row * columns + c);
          const double v = double(x[at]), e = double(back[at]) - v;
          low = std::min(low, v), high = std::max(high, v), worst = std::max(worst, std::abs(e));
          squared += e * e;
          spent += b;
          values.insert(back[at]);
        }
        const double m = std::max(std::abs(low), std::abs(high)), range = high - low,
                     cells = std::ldexp(1.0, int(b));
        const double bound = levels == execute::Levels::centred      ? range / 2 / cells
                             : levels == execute::Levels::asymmetric ? (b > 0 ? range / 2 / (cells - 1) : range / 2)
                             : b > 1                                 ? m / (cells - 2)
                                                                     : m;
        PROPERTY(worst <= bound * (1 + 1e-6) + 4 * property::epsilon<T>() * m);
        PROPERTY(double(values.size()) <= cells);
      }
    PROPERTY(q.report().bits == spent);
    PROPERTY(std::abs(q.report().squared_error - squared) <= 1e-9 * squared);
    // Quantising again what came back changes next to nothing: it is on the levels already.
    if (levels == execute::Levels::asymmetric) {
      const auto again =
          execute::bit_budget(execute::rows(back.data(), static_cast<Index>(n), columns), bits, {.group = group});
      double m = 0;
      for (const T v : x) m = std::max(m, std::abs(double(v)));
      PROPERTY(again.report().largest_error <= 16 * property::epsilon<T>() * m);
    }
  });
}

TEST_CASE("work: counts, order and nothing lost", "[property]") {
  holds("work_budget", [] {
    const auto n = property::size();
    std::vector<Index> units, waiting;
    for (const int x : property::as_many(n, 0, 30)) units.push_back(x);
    for (const int x : property::as_many(n, 0, 30)) waiting.push_back(x);
    const Index budget = std::accumulate(units.begin(), units.end(), Index(0));
    const Index work = std::accumulate(waiting.begin(), waiting.end(), Index(0));
    const auto lent = execute::work_budget(units, waiting),
               wasted = execute::work_budget(units, waiting, execute::Idle::waste);
    PROPERTY(std::accumulate(lent.takes().begin(), lent.takes().end(), Index(0)) == std::min(budget, work));
    for (std::size_t q = 0; q < n; ++q) {
      PROPERTY(wasted.takes()[q] == std::min(units[q], waiting[q]));
      PROPERTY(lent.takes()[q] >= wasted.takes()[q] && lent.takes()[q] <= waiting[q]);
    }
    // Each item once, those of a queue in order, and every beginning in proportion within one item per queue.
    std::vector<Index> done(n, 0);
    double handed = 0;
    const double total = static_cast<double>(lent.order().size());
    for (const auto& item : lent.order()) {
      const auto q = static_cast<std::size_t>(item.queue);
      PROPERTY(item.place == done[q]);
      ++done[q], ++handed;
      const auto beginning = static_cast<std::size_t>(handed);
      for (std::size_t p = 0; (n <= 12 || beginning % (4 * n) == 0) && p < n; ++p) {
        const double fair = handed * static_cast<double>(lent.takes()[p]) / total;
        PROPERTY(std::abs(static_cast<double>(done[p]) - fair) <= 1 + static_cast<double>(n) / 2);
      }
    }
    PROPERTY(done == lent.takes());
    std::vector<Index> ran(n, 0);
    lent.run(ab::executor::Sequential{},
             [&](Index queue, Index place) { PROPERTY(ran[static_cast<std::size_t>(queue)]++ == place); });
    PROPERTY(ran == lent.takes());
  });
}
