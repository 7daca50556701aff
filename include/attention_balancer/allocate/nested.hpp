#pragma once
// Budgets that nest, layer -> head -> token: one selection over all heads, a tree whose every node is the exact sum
// of its children, and the published rules as compositions of the two.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/apportion.hpp"
#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/selection.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {

template <class = void>
Index times(std::string_view what, Index a, Index b) {
  Index product = 0;
  if (__builtin_mul_overflow(a, b, &product))
    fail<BudgetError>(what, std::to_string(a) + " * " + std::to_string(b), "not overflow");
  return product;
}

template <Scalar T>
std::vector<allocate::Selection> joint_top_k(std::span<const T> scores, Index heads, Index budget, Index floor,
                                             const allocate::SelectOptions& options) {
  if (heads < 1) fail<ShapeError>("number of heads", heads, "be at least 1");
  if (scores.size() % static_cast<std::size_t>(heads) != 0)
    fail<ShapeError>("size of the scores", scores.size(), "be a multiple of the heads, " + std::to_string(heads));
  if (budget < 0) fail<BudgetError>("budget", budget, "not be negative");
  if (floor < 0) fail<BudgetError>("floor per head", floor, "not be negative");
  check_scores(scores);
  const std::size_t n = scores.size() / static_cast<std::size_t>(heads);
  const auto c = candidates(n, options);
  const Index least = std::min(std::max(floor, c.pinned), c.eligible());
  if (least > budget / heads)
    fail<BudgetError>(
        "sum over " + std::to_string(heads) + " heads of the pins or floor of " + std::to_string(least),
        number(static_cast<double>(least) * static_cast<double>(heads)),
        "not exceed the budget " + std::to_string(budget));

  // What each head is sure of, and then one order of all that is left: the head is the first part of the index.
  std::vector<Candidates> of_head(static_cast<std::size_t>(heads), c);
  struct Item {
    T score;
    Index id, head, token;
  };
  std::vector<Item> rest;
  for (std::size_t h = 0; h < of_head.size(); ++h) {
    auto& mine = of_head[h];
    const auto of_h = scores.subspan(h * n, n);
    keep_best(mine, least, Better<T>{of_h, options.ids});
    for (const Index i : mine.others) {
      const auto at = static_cast<std::size_t>(i);
      if (!mine.keep[at])
        rest.push_back({of_h[at], options.ids.empty() ? i : options.ids[at], static_cast<Index>(h), i});
    }
    mine.pinned = least;
  }
  const auto left = std::min(static_cast<std::size_t>(budget - least * heads), rest.size());
  const auto end = rest.begin() + static_cast<std::ptrdiff_t>(left);
  if (end != rest.end())
    std::nth_element(rest.begin(), end, rest.end(), [](const Item& a, const Item& b) {
      if (a.score != b.score) return a.score > b.score;
      if (a.id != b.id) return a.id < b.id;
      return a.head != b.head ? a.head < b.head : a.token < b.token;
    });
  for (auto item = rest.begin(); item != end; ++item) {
    auto& mine = of_head[static_cast<std::size_t>(item->head)];
    mine.keep[static_cast<std::size_t>(item->token)] = true;
    ++mine.pinned;
  }
  std::vector<allocate::Selection> result;
  result.reserve(of_head.size());
  for (std::size_t h = 0; h < of_head.size(); ++h) {
    if (of_head[h].pinned == 0 && !options.allow_empty)
      fail<BudgetError>("number of items kept by head " + std::to_string(h) + " of " + std::to_string(heads) +
                            " with budget " + std::to_string(budget),
                        Index(0), "be at least 1 unless the floor is, or allow_empty is set");
    result.push_back(selection_of(of_head[h].keep, of_head[h].pinned));
  }
  return result;
}

/// floor(fraction * budget), which AdaKV pins.
template <class = void>
Index safeguard_of(double safeguard, Index budget) {
  if (!(safeguard >= 0 && safeguard <= 1)) fail<InputError>("safeguard", number(safeguard), "be in [0, 1]");
  if (budget < 0) fail<BudgetError>("budget per head", budget, "not be negative");
  return static_cast<Index>(safeguard * static_cast<double>(budget));
}

template <Scalar T>
std::vector<allocate::Selection> ada_kv(std::span<const T> scores, Index heads, Index budget, double safeguard,
                                        const allocate::SelectOptions& options) {
  const Index floor = safeguard_of(safeguard, budget);
  return joint_top_k(scores, heads, times("budget of all heads", budget, heads), floor, options);
}

}  // namespace detail

namespace allocate {

/// One selection over all heads at once, with a floor per head: every head keeps its pins and at least `floor`
/// items, its best; what is left of the budget goes to the highest scores wherever they are. `scores` is [heads,
/// items], head after head; pins, mask and ids are per item and hold in every head. Returns one Selection per head,
/// their sizes adding up to min(budget, heads * eligible); nested in the budget. Ties to the lower id or item, then
/// to the lower head. O(heads * items).
///
/// Throws ShapeError if the scores are no multiple of the heads, BudgetError if heads * max(floor, pins) exceeds
/// the budget, or if a head would keep nothing and the options do not allow it, and otherwise as top_k does.
template <class = void>
std::vector<Selection> joint_top_k(std::span<const float> scores, Index heads, Index budget, Index floor,
                                   const SelectOptions& options = {}) {
  return detail::joint_top_k(scores, heads, budget, floor, options);
}
template <class = void>
std::vector<Selection> joint_top_k(std::span<const double> scores, Index heads, Index budget, Index floor,
                                   const SelectOptions& options = {}) {
  return detail::joint_top_k(scores, heads, budget, floor, options);
}

/// AdaKV (2407.11550) as kvpress runs it: joint_top_k of heads * budget items, with each head's best
/// floor(safeguard * budget) sure. `budget` is the average per head.
template <class = void>
std::vector<Selection> ada_kv(std::span<const float> scores, Index heads, Index budget, double safeguard = 0.2,
                              const SelectOptions& options = {}) {
  return detail::ada_kv(scores, heads, budget, safeguard, options);
}
template <class = void>
std::vector<Selection> ada_kv(std::span<const double> scores, Index heads, Index budget, double safeguard = 0.2,
                              const SelectOptions& options = {}) {
  return detail::ada_kv(scores, heads, budget, safeguard, options);
}

/// A budget that nests. Each node divides what it gets among its children by their weights, within their bounds,
/// and every node is exactly the sum of its children.
///
///     allocate::BudgetTree tree;
///     for (double w : layer_weights) {
///       const Index layer = tree.add(tree.root, {.weight = w});
///       for (Index h = 0; h < heads; ++h) tree.add(layer, {.lower = pins, .upper = tokens});
///     }
///     const auto units = tree.divide(total);   // one number per node; units[tree.root] == total
template <class = void>
class BasicBudgetTree {
 public:
  static constexpr Index root = 0;

  /// A share of what the parent gets, within lower <= units <= upper. The bounds of its descendants bind it too.
  struct Node {
    double weight = 1;
    Index lower = 0;
    Index upper = detail::largest_total;
  };

  /// A root alone.
  BasicBudgetTree() : nodes_(1), children_(1) {}

  /// Adds a child to `parent` and returns its number; nodes are numbered in the order they are added. Throws
  /// ShapeError if there is no such parent, InputError if the weight is NaN, infinite or negative, BudgetError if
  /// the bounds cross or are negative.
  Index add(Index parent, Node node) {
    if (parent < 0 || parent >= size())
      detail::fail<ShapeError>("parent node", parent, "be in [0, nodes = " + std::to_string(size()) + ")");
    if (!(node.weight >= 0) || !std::isfinite(node.weight))
      detail::fail<InputError>("weight of node " + std::to_string(size()), detail::number(node.weight),
                               "be finite and not negative");
    if (node.lower < 0)
      detail::fail<BudgetError>("lower bound of node " + std::to_string(size()), node.lower, "not be negative");
    if (node.lower > node.upper)
      detail::fail<BudgetError>("lower bound of node " + std::to_string(size()), node.lower,
                                "not exceed its upper bound " + std::to_string(node.upper));
    nodes_.push_back(node);
    children_.emplace_back();
    children_[static_cast<std::size_t>(parent)].push_back(size() - 1);
    return size() - 1;
  }

  /// Number of nodes, the root included.
  Index size() const noexcept { return static_cast<Index>(nodes_.size()); }

  /// The children of a node, in the order they were added.
  /// Throws ShapeError if there is no such node.
  std::span<const Index> children(Index node) const {
    if (node < 0 || node >= size())
      detail::fail<ShapeError>("node", node, "be in [0, nodes = " + std::to_string(size()) + ")");
    return std::span<const Index>(children_[static_cast<std::size_t>(node)]);
  }

  /// [size] What each node gets of `total`, whole units, by Sainte-Lague at every node: house monotone, so a larger
  /// total takes nothing from any node. O(n log n). Throws BudgetError, naming the node, if bounds of
  /// a node and of its descendants cross, or if those of the root do not include the total.
  std::vector<Index> divide(Index total) const {
    detail::check_total(total, 1);
    const std::size_t n = nodes_.size();
    std::vector<Index> lower(n), upper(n), units(n);
    for (std::size_t i = n; i-- > 0;) {
      Index low = nodes_[i].lower, high = std::min(nodes_[i].upper, detail::largest_total);
      if (!children_[i].empty()) {
        Index lows = 0, highs = 0;  // saturating: above 2^53 no total is left to tell them apart
        for (const Index child : children_[i]) {
          const auto c = static_cast<std::size_t>(child);
          lows += std::min(lower[c], detail::largest_total + 1 - lows);
          highs += std::min(upper[c], detail::largest_total - highs);
        }
        low = std::max(low, lows), high = std::min(high, highs);
      }
      if (low > high)
        detail::fail<BudgetError>("lower bound of node " + std::to_string(i) + " and its descendants", low,
                                  "not exceed its upper bound " + std::to_string(high));
      lower[i] = low, upper[i] = high;
    }
    if (total < lower[0] || total > upper[0])
      detail::fail<BudgetError>("total of the tree", total,
                                "be within the bounds of its nodes, [" + std::to_string(lower[0]) + ", " +
                                    std::to_string(upper[0]) + "]");
    units[0] = total;
    std::vector<double> weights;
    std::vector<Index> lows, highs;
    for (std::size_t i = 0; i < n; ++i) {
      if (children_[i].empty()) continue;
      weights.clear(), lows.clear(), highs.clear();
      for (const Index child : children_[i]) {
        const auto c = static_cast<std::size_t>(child);
        weights.push_back(nodes_[c].weight), lows.push_back(lower[c]), highs.push_back(upper[c]);
      }
      const auto shared = apportion::sainte_lague(std::span<const double>(weights), units[i],
                                                  std::span<const Index>(lows), std::span<const Index>(highs));
      for (std::size_t k = 0; k < shared.size(); ++k) units[static_cast<std::size_t>(children_[i][k])] = shared[k];
    }
    return units;
  }

 private:
  std::vector<Node> nodes_;
  std::vector<std::vector<Index>> children_;
};
using BudgetTree = BasicBudgetTree<>;

/// PyramidKV (2406.02069): the budgets of `layers` layers whose average is `budget`, falling linearly from
/// max = 2 budget - min to min = budget / beta; if max exceeds `most`, max = most and min = 2 budget - max. Returns
/// whole numbers that add up to layers * budget exactly (largest remainders of the line), each below `most` and
/// within one of the line. The observation window comes on top: `budget` and `most` = items - window do not count
/// it.
///
/// kvpress instead rounds layer by layer, which misses the total, lets the window count against the budget, and
/// falls back to equal budgets where min is below the window.
///
/// Throws BudgetError if there is no layer, or the budget is negative or exceeds `most`; InputError unless beta
/// >= 1.
template <class = void>
std::vector<Index> pyramid_kv(Index layers, Index budget, Index most, double beta = 20) {
  if (layers < 1) detail::fail<BudgetError>("number of layers", layers, "be at least 1");
  if (budget < 0) detail::fail<BudgetError>("budget per layer", budget, "not be negative");
  if (budget > most)
    detail::fail<BudgetError>("budget per layer", budget,
                              "not exceed the most that a layer can keep, " + std::to_string(most));
  if (!(beta >= 1) || !std::isfinite(beta)) detail::fail<InputError>("beta", detail::number(beta), "be at least 1");
  const Index total = detail::times("budget of all layers", budget, layers);
  detail::check_total(total, static_cast<std::size_t>(layers));
  const double b = static_cast<double>(budget);
  double low = b / beta, high = 2 * b - low;
  if (high > static_cast<double>(most)) high = static_cast<double>(most), low = 2 * b - high;
  std::vector<double> line(static_cast<std::size_t>(layers), b);
  for (std::size_t l = 0; layers > 1 && l < line.size(); ++l)
    line[l] = high - (high - low) * static_cast<double>(l) / static_cast<double>(layers - 1);
  return apportion::hamilton(std::span<const double>(line), total);
}

/// CAKE (2503.12491): the budgets of the layers, adding up to `total` exactly, in proportion to
/// entropy^(1/t1) * variance^(1/t2) within `lower` <= units <= `upper` of each layer; the entropy summed over the
/// queries of the observation window, the variance over them summed over the keys. It needs every layer's
/// statistics before any budget is known. Sainte-Lague.
///
/// Throws ShapeError if the sizes differ, InputError naming the layer if a statistic is NaN, infinite or negative,
/// or if t1 or t2 is not above 0; BudgetError if the bounds do not include the total.
template <class = void>
std::vector<Index> cake(std::span<const double> entropy, std::span<const double> variance, Index total, double t1,
                        double t2, Index lower, Index upper) {
  detail::check_size("variance", variance.size(), "entropy", entropy.size());
  if (!(t1 > 0) || !std::isfinite(t1)) detail::fail<InputError>("t1", detail::number(t1), "be finite and above 0");
  if (!(t2 > 0) || !std::isfinite(t2)) detail::fail<InputError>("t2", detail::number(t2), "be finite and above 0");
  static_cast<void>(detail::largest_weight(entropy));
  static_cast<void>(detail::largest_weight(variance));
  // In logarithms and relative to the largest: neither the powers nor their product can overflow.
  std::vector<double> weights(entropy.size());
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t l = 0; l < weights.size(); ++l)
    largest = std::max(largest, weights[l] = std::log(entropy[l]) / t1 + std::log(variance[l]) / t2);
  for (double& w : weights) w = largest > -std::numeric_limits<double>::infinity() ? std::exp(w - largest) : 0.0;
  const std::vector<Index> lowers(weights.size(), lower), uppers(weights.size(), upper);
  return apportion::sainte_lague(std::span<const double>(weights), total, std::span<const Index>(lowers),
                                 std::span<const Index>(uppers));
}

}  // namespace allocate
}  // namespace attention_balancer
