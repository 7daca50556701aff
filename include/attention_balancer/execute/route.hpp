#pragma once
// Who works on one piece of work: chosen by score and bias, weighted by the score alone.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace execute {

/// Who works, and how much each of them counts.
template <Scalar T>
struct Route {
  std::vector<Index> chosen;  ///< ascending
  std::vector<T> weights;     ///< as many, adding up to 1
};

}  // namespace execute

namespace detail {

template <Scalar T>
execute::Route<T> route(std::span<const T> scores, std::span<const T> bias, Index count) {
  check_size("bias", bias.size(), "scores", scores.size());
  const auto n = static_cast<Index>(scores.size());
  if (count < 1 || count > n)
    fail<BudgetError>("number of items to choose", count, "be in [1, items = " + std::to_string(n) + "]");
  static_cast<void>(largest_weight(scores));
  std::vector<double> key;
  std::vector<Index> order;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (!(bias[i] < std::numeric_limits<T>::infinity()))
      fail<InputError>(item_of("bias", i), number(bias[i]), "be finite or -inf");
    key.push_back(static_cast<double>(scores[i]) + static_cast<double>(bias[i]));
    order.push_back(static_cast<Index>(i));
  }
  std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), [&](Index a, Index b) {
    const double x = key[static_cast<std::size_t>(a)], y = key[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  execute::Route<T> result{order, {}};
  double largest = 0, sum = 0;
  for (const Index i : order) largest = std::max(largest, static_cast<double>(scores[static_cast<std::size_t>(i)]));
  const auto weight = [&](Index i) {
    return largest > 0 ? static_cast<double>(scores[static_cast<std::size_t>(i)]) / largest : 1.0;
  };
  for (const Index i : order) sum += weight(i);
  for (const Index i : order) result.weights.push_back(static_cast<T>(weight(i) / sum));
  return result;
}

}  // namespace detail

namespace execute {

/// Chooses the `count` items of the largest score + bias, ties to the lower index, and weights them by their scores
/// alone, normalised over the chosen (arXiv 2408.15664): the bias, as feedback::BiasBalancing moves it, changes who
/// works but not what comes out. Scores are non-negative, such as a sigmoid or softmax of the logits; all zero, the
/// weights are equal.
///
/// Throws InputError naming the item if a score is NaN, infinite or negative or a bias is NaN or +inf; BudgetError
/// if the count is not in [1, items]; ShapeError if the sizes differ.
template <class = void>
Route<float> route(std::span<const float> scores, std::span<const float> bias, Index count) {
  return detail::route(scores, bias, count);
}
template <class = void>
Route<double> route(std::span<const double> scores, std::span<const double> bias, Index count) {
  return detail::route(scores, bias, count);
}

}  // namespace execute
}  // namespace attention_balancer
