#pragma once
// Keeping a cache of keys and values within its budget: by token or by page, with all that belongs to the tokens.

#include <algorithm>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/execute/token_budget.hpp"

namespace attention_balancer {

namespace detail {

template <class>
inline constexpr bool is_evidence = false;
template <class T>
inline constexpr bool is_evidence<Evidence<T>> = true;

/// State that knows its slots and compacts itself, such as saliency::Accumulated.
template <class S>
concept SelfCompacting = requires(S& s, std::span<const Index> kept) {
  { s.slots() } -> std::convertible_to<Index>;
  s.compact(kept);
};

template <class S>
inline constexpr bool compacts_apart =
    is_evidence<std::remove_cvref_t<S>> || SelfCompacting<std::remove_cvref_t<S>>;

/// A lasting reference to a state that TokenPlan::compact takes, or nothing.
template <class S>
auto plain_state(S&& state) {
  if constexpr (compacts_apart<S>)
    return std::tuple<>();
  else
    return std::tuple<S&&>(std::forward<S>(state));
}

template <class S>
void check_state(const S& state, Index sequence, Index tokens) {
  if constexpr (is_evidence<S>) {
    if (!state.has_mass()) return;
    if (sequence >= state.batch())
      fail<ShapeError>("sequence", sequence, "be in the evidence, whose batch is " + std::to_string(state.batch()));
    if (state.keys() < tokens || (state.batch() == 1 && state.keys() != tokens))
      fail<ShapeError>("evidence keys", state.keys(), "be those of the sequence, " + std::to_string(tokens));
  } else if constexpr (SelfCompacting<S>) {
    if (static_cast<Index>(state.slots()) != tokens)
      fail<ShapeError>("slots of a state", state.slots(),
                       "be the tokens of the sequence, " + std::to_string(tokens));
  }
}

template <class S>
void compact_state(S& state, Index sequence, std::span<const Index> kept) {
  if constexpr (is_evidence<S>) {
    if (state.has_mass()) EvidenceAccess::keep(state, sequence, kept);
  } else if constexpr (SelfCompacting<S>) {
    state.compact(kept);
  }
}

/// The pages of which `kept` tokens of `tokens` hold all, and whether those are all of `kept`.
template <class = void>
bool whole_pages(std::span<const Index> kept, Index tokens, Index page_size, std::vector<Index>& pages) {
  for (std::size_t i = 0; i < kept.size();) {
    if (kept[i] % page_size != 0) return false;
    const Index size = std::min(page_size, tokens - kept[i]);
    if (static_cast<Index>(kept.size() - i) < size ||
        kept[i + static_cast<std::size_t>(size) - 1] != kept[i] + size - 1)
      return false;
    pages.push_back(kept[i] / page_size);
    i += static_cast<std::size_t>(size);
  }
  return true;
}

}  // namespace detail

namespace execute {

/// Evicts from one sequence of a cache what the plan does not keep, and compacts with it everything that has one
/// entry per token, in place:
///
///     const auto plan = ab::execute::token_budget(ab::saliency::mass(evidence), 64, {0, 1, 2, 3});
///     ab::execute::evict(cache, 0, plan, evidence, accumulated, token_ids);
///
/// A state is an Evidence (item `sequence` of it), saliency::Accumulated or another with slots() and compact(kept),
/// or what TokenPlan::compact takes. A plan of whole pages moves nothing in a paged cache: the pages are given
/// back.
///
/// Masks and score modifiers count the slots that are left: mask::Causal sees what it saw, but mask::Window and
/// score::Alibi measure distances in slots. By the tokens' own places they are a mask::Boolean and a score::Bias
/// [B, Hq, 1, Nk] made from cache.position(b, kv_head, slot). Keys that were rotated (RoPE) before they were appended
/// keep their places.
///
/// Throws ShapeError if the plan or a state is for another number of tokens, InputError as TokenPlan::compact does;
/// then nothing has been changed.
template <class Cache, class... States>
void evict(Cache& cache, Index sequence, const TokenPlan& plan, States&&... states) {
  const Index tokens = cache.length(sequence);
  if (plan.tokens() != tokens)
    detail::fail<ShapeError>("number of tokens of the plan", plan.tokens(),
                             "be those of the sequence, " + std::to_string(tokens));
  (detail::check_state(std::as_const(states), sequence, tokens), ...);
  std::vector<Index> pages;
  bool by_page = false;
  if constexpr (requires { cache.keep_blocks(sequence, plan.kept()); })
    by_page = detail::whole_pages(plan.kept(), tokens, cache.page_size(), pages);
  std::apply([&](auto&&... plain) { plan.compact(std::forward<decltype(plain)>(plain)...); },
             std::tuple_cat(detail::plain_state(std::forward<States>(states))...));
  (detail::compact_state(states, sequence, plan.kept()), ...);
  if constexpr (requires { cache.keep_blocks(sequence, plan.kept()); })
    if (by_page) return cache.keep_blocks(sequence, pages);
  cache.keep(sequence, plan.kept());
}

}  // namespace execute

namespace detail {

template <Scalar T>
execute::TokenPlan page_budget(std::span<const T> scores, Index page_size, Index pages,
                               const execute::TokenOptions& options) {
  if (page_size < 1) fail<InputError>("page size", page_size, "be at least 1");
  const Index tokens = static_cast<Index>(scores.size());
  const Index count = tokens / page_size + (tokens % page_size != 0 ? 1 : 0);
  std::vector<double> of_page(static_cast<std::size_t>(count), 0.0);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] != scores[i]) fail<InputError>(item_of("score", i), number(scores[i]), "be a number");
    of_page[i / static_cast<std::size_t>(page_size)] += static_cast<double>(scores[i]);
  }
  const execute::TokenPlan plan = execute::token_budget(std::span<const double>(of_page), pages, options);
  std::vector<Index> kept;
  for (const Index page : plan.kept())
    for (Index i = page * page_size; i < std::min((page + 1) * page_size, tokens); ++i) kept.push_back(i);
  return {tokens, std::move(kept)};
}

}  // namespace detail

namespace execute {

/// The plan that keeps whole pages of `page_size` tokens, at most `pages` of them: those whose tokens' scores add
/// up to most. The options, their pins and eligible are about pages: pin the last one to go on appending where it
/// ends. Whole pages cost nothing to evict (see evict); tokens one by one keep more of what counts. Throws as
/// token_budget does.
template <class = void>
TokenPlan page_budget(std::span<const float> scores, Index page_size, Index pages,
                             const TokenOptions& options = {}) {
  return detail::page_budget(scores, page_size, pages, options);
}
template <class = void>
TokenPlan page_budget(std::span<const double> scores, Index page_size, Index pages,
                             const TokenOptions& options = {}) {
  return detail::page_budget(scores, page_size, pages, options);
}

}  // namespace execute
}  // namespace attention_balancer
