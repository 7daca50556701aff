#pragma once
// Keeping as many tokens as the budget says: the plan, and carrying it out on everything that goes with the tokens.

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/select.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/execute/compact.hpp"

namespace attention_balancer {

namespace execute {

/// Which of a number of tokens are kept, in order: a selection that can be carried out.
class TokenPlan : public allocate::Selection {
 public:
  /// A plan that keeps `kept` of `tokens` tokens: a plan of the caller's own, token_budget makes the usual one.
  /// Throws InputError naming the entry unless the indices ascend strictly within [0, tokens).
  template <class = void>
  TokenPlan(Index tokens, std::vector<Index> kept) : Selection(tokens, std::move(kept)) {}

  /// The plan that carries out a selection: allocate::inverse_cdf, allocate::facility_location, ...
  TokenPlan(Selection selection) noexcept : Selection(std::move(selection)) {}

  /// Number of tokens before. Entry k of everything compacted is what entry kept()[k] was.
  Index tokens() const noexcept { return items(); }

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
    check<States&&...>(states...);
    (detail::move_rows(states, kept()), ...);
    (shorten<States>(states), ...);
  }

  /// The way back: row k of `from`, which has the size() tokens that compact left or what became of them, is copied to
  /// row kept()[k] of `to`, which has tokens(). The rows of dropped tokens stay as they are in `to`: zeros, or what
  /// they were before the layers that they skip. Dense prediction needs it (Tang et al., DToP, arXiv 2308.01045).
  ///
  ///     auto grid = features;                                                // every token
  ///     plan.compact(features);
  ///     layer(features);                                                     // the kept ones
  ///     plan.expand(features, grid);
  ///
  /// Both are what compact takes, of one kind: two TensorViews, two matrices, or two with an element per token. `from`
  /// may be constant. Throws ShapeError if the sizes do not fit and InputError if both are the same memory, before
  /// anything is written.
  template <class From, class To>
  void expand(const From& from, To&& to) const {
    check_expanded<From, To&&>(from, to);
    if constexpr (detail::is_expandable<From, To&&>)
      detail::copy_rows(
          from, to, size(), [this](Index k) { return kept()[static_cast<std::size_t>(k)]; },
          [](Index k) { return k; });
  }

  /// Throws what compact would throw, and changes nothing.
  template <class... States>
  void check(const std::remove_reference_t<States>&... states) const {
    static_assert(
        (detail::Compactable<States> && ...),
        "TokenPlan::compact takes TensorViews and std::spans of mutable elements, containers with one element "
        "per token, and matrices with tokens in rows; none of them constant, none an owning temporary");
    int place = 0;
    (check_tokens(++place, detail::tokens_in(states)), ...);
    check_distinct(std::array<const void*, sizeof...(States)>{detail::memory_of(states)...});
  }

 private:
  friend class MergePlan;

  /// What expand throws.
  template <class From, class To>
  void check_expanded(const From& from, const std::remove_reference_t<To>& to) const {
    static_assert(detail::is_expandable<From, To>,
                  "attention_balancer: expand takes two TensorViews, two matrices with tokens in rows, or two spans or "
                  "containers with one element per token, the second neither constant nor an owning temporary");
    if constexpr (detail::is_expandable<From, To>) {
      if (const Index n = detail::tokens_in(from); n != size())
        detail::fail<ShapeError>("number of tokens to expand", n,
                                 "be " + std::to_string(size()) + " as the plan keeps");
      if (const Index n = detail::tokens_in(to); n != tokens())
        detail::fail<ShapeError>("number of tokens to expand into", n,
                                 "be " + std::to_string(tokens()) + " as in the plan");
      detail::check_rows(from, to);
      if (const void* memory = detail::memory_of(to); memory != nullptr && memory == detail::memory_of(from))
        detail::fail<InputError>("what is expanded into", "the memory of what is expanded", "be of its own");
    }
  }

  template <class = void>
  void check_tokens(int place, Index tokens) const {
    if (tokens != items())
      detail::fail<ShapeError>("number of tokens in argument " + std::to_string(place) + " of compact", tokens,
                               "be " + std::to_string(items()) + " as in the plan");
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
};

/// What token_budget must keep, and may: pins, eligible, allow_empty, ids.
using TokenOptions = allocate::SelectOptions;

/// The plan that carries out allocate::top_k: it keeps the pins and, up to `budget` tokens in all, the highest
/// scores. |kept| = min(budget, eligible); ties to the lower index; what a smaller budget keeps, a larger one keeps
/// too. `scores` has one entry per token: shares, saliency, or any number, infinite and negative too, of which only
/// the order counts. O(n).
///
/// Throws InputError if a score is NaN (naming the token) or a pin is out of range or not eligible; BudgetError if
/// the budget is negative or there are more pins than budget, or if nothing would be kept (a budget of 0, no
/// eligible token) and the options do not allow it; ShapeError if the mask has another size.
template <class = void>
TokenPlan token_budget(std::span<const float> scores, Index budget, const TokenOptions& options = {}) {
  return allocate::top_k(scores, budget, options);
}
template <class = void>
TokenPlan token_budget(std::span<const double> scores, Index budget, const TokenOptions& options = {}) {
  return allocate::top_k(scores, budget, options);
}

/// The same with pins only: token_budget(scores, 64, {0, 1}) keeps the first two tokens whatever their score.
template <class = void>
TokenPlan token_budget(std::span<const float> scores, Index budget, std::span<const Index> pins) {
  return allocate::top_k(scores, budget, {.pins = pins});
}
template <class = void>
TokenPlan token_budget(std::span<const double> scores, Index budget, std::span<const Index> pins) {
  return allocate::top_k(scores, budget, {.pins = pins});
}
template <class = void>
TokenPlan token_budget(std::span<const float> scores, Index budget, std::initializer_list<Index> pins) {
  return allocate::top_k(scores, budget, {.pins = std::span<const Index>(pins.begin(), pins.size())});
}
template <class = void>
TokenPlan token_budget(std::span<const double> scores, Index budget, std::initializer_list<Index> pins) {
  return allocate::top_k(scores, budget, {.pins = std::span<const Index>(pins.begin(), pins.size())});
}

}  // namespace execute
}  // namespace attention_balancer
