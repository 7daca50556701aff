#pragma once
// Keeping as many tokens as the budget says: the plan, and carrying it out on everything that goes with the tokens.

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/execute/compact.hpp"

namespace attention_balancer {

namespace execute {

/// Which of a number of tokens are kept, in order.
class TokenPlan {
 public:
  /// A plan that keeps `kept` of `tokens` tokens: a plan of the caller's own, token_budget makes the usual one.
  /// Throws InputError naming the entry unless the indices ascend strictly within [0, tokens).
  TokenPlan(Index tokens, std::vector<Index> kept) : tokens_(tokens), kept_(std::move(kept)) {
    if (tokens < 0) detail::fail<InputError>("number of tokens", tokens, "not be negative");
    for (std::size_t k = 0; k < kept_.size(); ++k) {
      const Index least = k == 0 ? 0 : kept_[k - 1] + 1;
      if (kept_[k] < least || kept_[k] >= tokens)
        detail::fail<InputError>(
            "kept token " + std::to_string(k), kept_[k],
            "ascend strictly and be in [" + std::to_string(least) + ", " + std::to_string(tokens) + ")");
    }
  }

  /// Number of tokens before.
  Index tokens() const noexcept { return tokens_; }

  /// The kept tokens, ascending: entry k of everything compacted is what entry kept()[k] was.
  std::span<const Index> kept() const& noexcept { return kept_; }
  std::span<const Index> kept() const&& = delete;  // it would dangle

  /// Number of tokens kept.
  Index size() const noexcept { return static_cast<Index>(kept_.size()); }

  /// The other tokens, ascending.
  std::vector<Index> dropped() const {
    std::vector<Index> others;
    others.reserve(static_cast<std::size_t>(tokens_) - kept_.size());
    auto next = kept_.begin();
    for (Index i = 0; i < tokens_; ++i)
      if (next != kept_.end() && *next == i)
        ++next;
      else
        others.push_back(i);
    return others;
  }

  /// Moves the kept tokens of every argument to its front, in order and in place. Pass in one call everything that
  /// has one entry per token: activations, scores, positions, labels.
  ///
  ///     plan.compact(x, scores, positions);
  ///
  /// An argument is a TensorView (its length axis; the same tokens in every batch item and head; for raw memory
  /// execute::rows(pointer, tokens, width)), a std::span or a container such as std::vector with one element per
  /// token, or a matrix with tokens in rows (Eigen's Matrix, Map, Block). What knows its length and is an lvalue is
  /// shortened to size() tokens: containers, views, spans, resizable matrices. Elsewhere the memory behind the
  /// first size() tokens is left as it was.
  ///
  /// Throws ShapeError, naming the argument by its place, if it does not have tokens() tokens, and InputError if
  /// two arguments are the same memory: all are checked before anything is moved.
  template <class... States>
  void compact(States&&... states) const {
    static_assert(
        (detail::Compactable<States> && ...),
        "TokenPlan::compact takes TensorViews and std::spans of mutable elements, containers with one element "
        "per token, and matrices with tokens in rows; none of them constant, none an owning temporary");
    int place = 0;
    (check(++place, detail::tokens_in(std::as_const(states))), ...);
    check_distinct(std::array<const void*, sizeof...(States)>{detail::memory_of(std::as_const(states))...});
    (detail::move_rows(states, kept()), ...);
    (shorten<States>(states), ...);
  }

 private:
  void check(int place, Index tokens) const {
    if (tokens != tokens_)
      detail::fail<ShapeError>("number of tokens in argument " + std::to_string(place) + " of compact", tokens,
                               "be " + std::to_string(tokens_) + " as in the plan");
  }

  template <std::size_t N>
  static void check_distinct(const std::array<const void*, N>& memory) {
    for (std::size_t i = 0; i < N; ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (memory[i] && memory[i] == memory[j])
          detail::fail<InputError>("argument " + std::to_string(i + 1) + " of compact",
                                   "the same memory as argument " + std::to_string(j + 1),
                                   "be compacted once only");
  }

  template <class State>
  void shorten(std::remove_reference_t<State>& state) const {
    if constexpr (detail::is_lasting<State>) detail::shorten(state, size());
  }

  Index tokens_ = 0;
  std::vector<Index> kept_;
};

/// What token_budget must keep, and may.
struct TokenOptions {
  std::span<const Index> pins = {};  ///< kept whatever their score; each counts once, in any order
  allocate::Eligible eligible = {};  ///< the only tokens that may be kept; default all
  bool allow_empty = false;          ///< a plan that keeps nothing is an error unless this says it is meant
};

}  // namespace execute

namespace detail {

inline execute::TokenPlan token_budget(const std::vector<double>& scores, Index budget,
                                       const execute::TokenOptions& options) {
  const std::size_t n = scores.size();
  if (budget < 0) fail<BudgetError>("token budget", budget, "not be negative");
  if (options.eligible.given()) check_size("eligible", options.eligible.size(), "scores", n);
  for (std::size_t i = 0; i < n; ++i)
    if (scores[i] != scores[i]) fail<InputError>(item_of("score", i), number(scores[i]), "be a number");

  std::vector<bool> keep(n, false);
  Index pinned = 0;
  for (const Index pin : options.pins) {
    if (pin < 0 || pin >= static_cast<Index>(n))
      fail<InputError>("pin", pin, "be in [0, tokens = " + std::to_string(n) + ")");
    const auto i = static_cast<std::size_t>(pin);
    if (!options.eligible[i]) fail<InputError>("pin", pin, "be eligible");
    if (!keep[i]) keep[i] = true, ++pinned;
  }
  if (pinned > budget)
    fail<BudgetError>("number of pins", pinned, "not exceed the token budget " + std::to_string(budget));

  std::vector<Index> others;
  for (std::size_t i = 0; i < n; ++i)
    if (options.eligible[i] && !keep[i]) others.push_back(static_cast<Index>(i));
  const Index eligible = static_cast<Index>(others.size()) + pinned, size = std::min(budget, eligible);
  if (size == 0 && !options.allow_empty)
    fail<BudgetError>("number of tokens kept of " + std::to_string(eligible) + " eligible ones with budget " +
                          std::to_string(budget),
                      size, "be at least 1 unless TokenOptions::allow_empty is set");
  const auto best_end = others.begin() + (size - pinned);
  if (best_end != others.end())
    std::nth_element(others.begin(), best_end, others.end(), [&](Index a, Index b) {
      const double x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
      return x != y ? x > y : a < b;
    });
  for (auto best = others.begin(); best != best_end; ++best) keep[static_cast<std::size_t>(*best)] = true;
  std::vector<Index> kept;
  for (std::size_t i = 0; i < n; ++i)
    if (keep[i]) kept.push_back(static_cast<Index>(i));
  return {static_cast<Index>(n), std::move(kept)};
}

template <Scalar T>
execute::TokenPlan token_budget(std::span<const T> scores, Index budget, const execute::TokenOptions& options) {
  return token_budget(std::vector<double>(scores.begin(), scores.end()), budget, options);
}

}  // namespace detail

namespace execute {

/// The plan that keeps the pins and, up to `budget` tokens in all, the highest scores: |kept| = min(budget,
/// eligible); ties to the lower index; what a smaller budget keeps, a larger one keeps too. `scores` has one entry
/// per token: shares, saliency, or any number, infinite and negative too, of which only the order counts. O(n).
///
/// Throws InputError if a score is NaN (naming the token) or a pin is out of range or not eligible; BudgetError if
/// the budget is negative or there are more pins than budget, or if nothing would be kept (a budget of 0, no
/// eligible token) and the options do not allow it; ShapeError if the mask has another size.
inline TokenPlan token_budget(std::span<const float> scores, Index budget, const TokenOptions& options = {}) {
  return detail::token_budget(scores, budget, options);
}
inline TokenPlan token_budget(std::span<const double> scores, Index budget, const TokenOptions& options = {}) {
  return detail::token_budget(scores, budget, options);
}

/// The same with pins only: token_budget(scores, 64, {0, 1}) keeps the first two tokens whatever their score.
inline TokenPlan token_budget(std::span<const float> scores, Index budget, std::span<const Index> pins) {
  return detail::token_budget(scores, budget, TokenOptions{.pins = pins});
}
inline TokenPlan token_budget(std::span<const double> scores, Index budget, std::span<const Index> pins) {
  return detail::token_budget(scores, budget, TokenOptions{.pins = pins});
}
inline TokenPlan token_budget(std::span<const float> scores, Index budget, std::initializer_list<Index> pins) {
  return detail::token_budget(scores, budget, TokenOptions{.pins = {pins.begin(), pins.size()}});
}
inline TokenPlan token_budget(std::span<const double> scores, Index budget, std::initializer_list<Index> pins) {
  return detail::token_budget(scores, budget, TokenOptions{.pins = {pins.begin(), pins.size()}});
}

}  // namespace execute
}  // namespace attention_balancer
