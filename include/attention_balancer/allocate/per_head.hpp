#pragma once
// Selections from the rows of a saliency: every head by itself, or all heads together.

#include <string>
#include <vector>

#include "attention_balancer/allocate/nested.hpp"
#include "attention_balancer/allocate/select.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/saliency/heads.hpp"

namespace attention_balancer {
namespace allocate {

/// One selection per row, each of `budget` items, as top_k of that row; the options hold in every row. Throws as
/// top_k does.
template <Scalar T>
std::vector<Selection> top_k(const saliency::Rows<T>& scores, Index budget, const SelectOptions& options = {}) {
  std::vector<Selection> result;
  result.reserve(static_cast<std::size_t>(scores.rows()));
  for (Index r = 0; r < scores.rows(); ++r) result.push_back(top_k(scores[r], budget, options));
  return result;
}

/// joint_top_k and ada_kv of rows.
template <Scalar T>
std::vector<Selection> joint_top_k(const saliency::Rows<T>& scores, Index budget, Index floor,
                                   const SelectOptions& options = {}) {
  return joint_top_k(scores.values(), scores.rows(), budget, floor, options);
}
template <Scalar T>
std::vector<Selection> ada_kv(const saliency::Rows<T>& scores, Index budget, double safeguard = 0.2,
                              const SelectOptions& options = {}) {
  return ada_kv(scores.values(), scores.rows(), budget, safeguard, options);
}

/// In each row the best `first_budget` items of `first`, then the best others of `second`, `budget` in all
/// (CriticalKV, 2502.03805: first_budget = budget / 2). The pins count in both. Throws ShapeError if the sizes
/// differ, BudgetError if first_budget exceeds budget or is less than the pins, and otherwise as top_k does.
template <Scalar T>
std::vector<Selection> two_stage(const saliency::Rows<T>& first, const saliency::Rows<T>& second, Index budget,
                                 Index first_budget, const SelectOptions& options = {}) {
  if (second.rows() != first.rows())
    detail::fail<ShapeError>("rows of the second scores", second.rows(),
                             "equal those of the first, " + std::to_string(first.rows()));
  if (second.length() != first.length())
    detail::fail<ShapeError>("length of the second scores", second.length(),
                             "equal that of the first, " + std::to_string(first.length()));
  if (first_budget > budget)
    detail::fail<BudgetError>("budget of the first stage", first_budget,
                              "not exceed the whole, " + std::to_string(budget));
  std::vector<Selection> result;
  result.reserve(static_cast<std::size_t>(first.rows()));
  SelectOptions of_first = options;
  of_first.allow_empty = true;
  for (Index r = 0; r < first.rows(); ++r) {
    const Selection sure = top_k(first[r], first_budget, of_first);
    SelectOptions of_second = options;
    of_second.pins = sure.kept();
    result.push_back(top_k(second[r], budget, of_second));
  }
  return result;
}

}  // namespace allocate
}  // namespace attention_balancer
