#pragma once
// Two ways to spend less on tokens without losing them: fuse what was dropped into one, merge what is alike.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/execute/merge_plan.hpp"
#include "attention_balancer/execute/token_budget.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {

namespace detail {

template <Scalar T>
execute::MergePlan fuse(const execute::TokenPlan& plan, std::span<const T> weights, std::span<const double> sizes) {
  check_size("weights", weights.size(), "the plan", static_cast<std::size_t>(plan.tokens()));
  static_cast<void>(largest_weight(weights));
  std::vector<Index> into;
  for (Index i = 0; i < plan.tokens(); ++i) into.push_back(i);
  const auto dropped = plan.dropped();
  if (!dropped.empty()) {
    const Index heaviest = *std::max_element(dropped.begin(), dropped.end(), [&](Index a, Index b) {
      const T x = weights[static_cast<std::size_t>(a)], y = weights[static_cast<std::size_t>(b)];
      return x != y ? x < y : a > b;
    });
    for (const Index i : dropped) into[static_cast<std::size_t>(i)] = heaviest;
  }
  return execute::MergePlan(std::move(into), {weights.begin(), weights.end()}, {sizes.begin(), sizes.end()});
}

}  // namespace detail

namespace execute {

/// The plan that keeps what `plan` keeps and fuses all that it drops into one token more: their mean, weighted by
/// `weights` (EViT, arXiv 2202.07800: the attention that they received). It stands where the heaviest of them
/// stood, so that order and causality hold. Nothing dropped, nothing fused. `sizes` are how many original tokens
/// each stands for; default ones.
///
///     const auto plan = execute::fuse(execute::token_budget(shares, 64), shares);
///     plan.apply(x, positions);
///
/// Throws InputError naming the item if a weight is NaN, infinite or negative, or a size not positive; ShapeError
/// if the sizes differ.
template <class = void>
MergePlan fuse(const TokenPlan& plan, std::span<const float> weights, std::span<const double> sizes = {}) {
  return detail::fuse(plan, weights, sizes);
}
template <class = void>
MergePlan fuse(const TokenPlan& plan, std::span<const double> weights, std::span<const double> sizes = {}) {
  return detail::fuse(plan, weights, sizes);
}

/// What `merge` must leave alone, and what the tokens stand for.
struct MergeOptions {
  std::span<const Index> pins = {};    ///< neither merged away nor merged into; in any order
  std::span<const double> sizes = {};  ///< how many original tokens each stands for; default ones
};

}  // namespace execute

namespace detail {

/// [tokens, dim] The mean over the heads, each row of length 1; a row of zeros stays.
template <class T>
std::vector<double> unit_keys(const TensorView<T>& keys) {
  std::vector<double> unit(static_cast<std::size_t>(keys.length * keys.dim));
  for (Index i = 0; i < keys.length; ++i) {
    double largest = 0, norm = 0;
    const auto row = [&](Index c) -> double& { return unit[static_cast<std::size_t>(i * keys.dim + c)]; };
    for (Index c = 0; c < keys.dim; ++c) {
      for (Index h = 0; h < keys.heads; ++h) row(c) += static_cast<double>(keys(0, h, i, c));
      if (!std::isfinite(row(c)))
        fail<InputError>("key of token " + std::to_string(i), number(row(c)), "be finite, over all heads together");
      largest = std::max(largest, std::abs(row(c)));
    }
    if (largest == 0) continue;
    for (Index c = 0; c < keys.dim; ++c) norm += (row(c) / largest) * (row(c) / largest);
    for (Index c = 0; c < keys.dim; ++c) row(c) = row(c) / largest / std::sqrt(norm);
  }
  return unit;
}

template <class T>
execute::MergePlan merge(const TensorView<T>& keys, Index count, const execute::MergeOptions& options) {
  const Index n = keys.length, dim = keys.dim;
  if (keys.batch != 1)
    fail<ShapeError>("batch of the keys to merge", keys.batch, "be 1: each batch item merges its own way");
  if (keys.heads < 1 || dim < 1)
    fail<ShapeError>("heads and dim of the keys to merge", std::min(keys.heads, dim), "be at least 1");
  if (n > 0 && !keys.data) fail<ShapeError>("data of the keys to merge", "null", "point at its elements");
  if (count < 0) fail<BudgetError>("number of tokens to merge", count, "not be negative");
  std::vector<char> pinned(static_cast<std::size_t>(n), 0);
  for (const Index pin : options.pins) {
    if (pin < 0 || pin >= n) fail<InputError>("pin", pin, "be in [0, tokens = " + std::to_string(n) + ")");
    pinned[static_cast<std::size_t>(pin)] = 1;
  }
  const auto unit = unit_keys(keys);
  std::vector<Index> from, to;
  for (Index i = 0; i < n; ++i)
    if (!pinned[static_cast<std::size_t>(i)]) (i % 2 == 0 ? from : to).push_back(i);
  if (to.empty()) from.clear();
  if (count > static_cast<Index>(from.size()))
    fail<BudgetError>("number of tokens to merge", count,
                      "not exceed " + std::to_string(from.size()) + ", the tokens at even places of " +
                          std::to_string(n) + " that are not pinned and have a partner");

  // [dim, to]: with the partners side by side the inner loop needs no order of summation to be changed.
  std::vector<double> across(static_cast<std::size_t>(dim) * to.size()), cosine(to.size());
  for (std::size_t b = 0; b < to.size(); ++b)
    for (Index c = 0; c < dim; ++c)
      across[static_cast<std::size_t>(c) * to.size() + b] = unit[static_cast<std::size_t>(to[b] * dim + c)];
  struct Edge {
    double cosine;
    Index from, to;
  };
  std::vector<Edge> edges;
  for (const Index a : from) {
    std::fill(cosine.begin(), cosine.end(), 0.0);
    for (Index c = 0; c < dim; ++c) {
      const double x = unit[static_cast<std::size_t>(a * dim + c)];
      const double* row = across.data() + static_cast<std::size_t>(c) * to.size();
      for (std::size_t b = 0; b < to.size(); ++b) cosine[b] += x * row[b];
    }
    const auto best = static_cast<std::size_t>(std::max_element(cosine.begin(), cosine.end()) - cosine.begin());
    edges.push_back({cosine[best], a, to[best]});
  }
  const auto end = edges.begin() + count;
  if (end != edges.end())
    std::nth_element(edges.begin(), end, edges.end(), [](const Edge& a, const Edge& b) {
      return a.cosine != b.cosine ? a.cosine > b.cosine : a.from < b.from;
    });
  std::vector<Index> into;
  for (Index i = 0; i < n; ++i) into.push_back(i);
  for (auto edge = edges.begin(); edge != end; ++edge) into[static_cast<std::size_t>(edge->from)] = edge->to;
  return execute::MergePlan(std::move(into), {}, {options.sizes.begin(), options.sizes.end()});
}

}  // namespace detail

namespace execute {

/// The plan that merges `count` tokens into others that are alike (ToMe, arXiv 2210.09461: bipartite soft
/// matching). The tokens at even places each look for the one at an odd place whose key, the mean over the heads,
/// has the largest cosine; the `count` best of these pairs are merged, weighted by size. Ties go to the lower
/// index; a key of zeros has cosine 0 with all.
///
///     const auto plan = execute::merge(k, 16, {.pins = cls, .sizes = sizes});
///     plan.apply(x, positions);
///     sizes = plan.sizes();                                  // for the next layer
///     const auto bias = plan.log_sizes<float>();
///     ab::attention(q, k, v, out, ab::score::KeyBias{bias}); // a merged key counts as many
///
/// `keys` is [1, H, N, D]. At most every other token can be merged in one step: BudgetError if `count` asks for
/// more, or is negative. Throws InputError if a key is not finite, a pin out of range or a size not positive,
/// ShapeError if there is more than one batch item or the sizes do not fit. O(N^2 D).
template <class = void>
MergePlan merge(TensorView<const float> keys, Index count, const MergeOptions& options = {}) {
  return detail::merge(keys, count, options);
}
template <class = void>
MergePlan merge(TensorView<const double> keys, Index count, const MergeOptions& options = {}) {
  return detail::merge(keys, count, options);
}

}  // namespace execute
}  // namespace attention_balancer
