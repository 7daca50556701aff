#pragma once
// Keeping a cache of keys and values within its budget: by token or by page, with all that belongs to the tokens.

#include <algorithm>
#include <array>
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

/// The item of an evidence that a sequence is: the only one, such as observing packed queries leaves for each sequence,
/// or that of its number.
template <class T>
Index evidence_item(const Evidence<T>& evidence, Index sequence) noexcept {
  return evidence.batch() == 1 ? 0 : sequence;
}

template <class S>
void check_state(const S& state, Index sequence, Index tokens) {
  if constexpr (is_evidence<S>) {
    if (!state.has_mass()) return;
    if (evidence_item(state, sequence) >= state.batch())
      fail<ShapeError>("sequence", sequence, "be in the evidence, whose batch is " + std::to_string(state.batch()));
    if (state.keys() < tokens || (state.batch() == 1 && state.keys() != tokens))
      fail<ShapeError>("evidence keys", state.keys(), "be those of the sequence, " + std::to_string(tokens));
  } else if constexpr (SelfCompacting<S>) {
    if (static_cast<Index>(state.slots()) != tokens)
      fail<ShapeError>("slots of a state", state.slots(),
                       "be the tokens of the sequence, " + std::to_string(tokens));
  }
}

/// Throws InputError if a state that compacts itself is given twice.
template <class... States>
void check_distinct_states(const States&... states) {
  const std::array<const void*, sizeof...(States)> all{
      (compacts_apart<States> ? static_cast<const void*>(&states) : nullptr)...};
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (all[i] != nullptr && all[i] == all[j])
        fail<InputError>("state " + std::to_string(i + 1), "the same as state " + std::to_string(j + 1),
                         "be compacted once only");
}

/// The same with slots of its own for each KV head, such as saliency::Accumulated.
template <class S>
concept CompactingByHead = SelfCompacting<S> && requires(S& s, std::span<const Index> kept, Index kv_heads) {
  { s.heads() } -> std::convertible_to<Index>;
  s.compact_by_head(kept, kv_heads);
};

template <class S>
inline constexpr bool follows_heads =
    (is_evidence<std::remove_cvref_t<S>> || CompactingByHead<std::remove_cvref_t<S>>)&&is_lasting<S>;

template <class S>
void check_heads(const S& state, Index kv_heads) {
  if (const auto heads = static_cast<Index>(state.heads()); heads % kv_heads != 0)
    fail<ShapeError>(is_evidence<S> ? "evidence heads" : "heads of a state", heads,
                     "be a multiple of the cache's kv_heads = " + std::to_string(kv_heads));
}

/// Compacts what TokenPlan::compact does not; kept [lists, n], one list or one for each KV head.
template <class S>
void compact_state(S& state, Index sequence, std::span<const Index> kept, Index lists) {
  if constexpr (is_evidence<S>) {
    if (state.has_mass()) EvidenceAccess::keep(state, evidence_item(state, sequence), kept, lists);
  } else if constexpr (CompactingByHead<S>) {
    if (lists == 1)
      state.compact(kept);
    else
      state.compact_by_head(kept, lists);
  } else if constexpr (SelfCompacting<S>) {
    state.compact(kept);
  }
}

/// kept [Hkv, n] of one plan for each KV head. Throws ShapeError unless they are for `tokens` tokens and keep as many.
template <class Plan>
std::vector<Index> kept_by_head(std::span<const Plan> plans, Index kv_heads, Index tokens) {
  if (static_cast<Index>(plans.size()) != kv_heads)
    fail<ShapeError>("number of plans", plans.size(), "be the cache's kv_heads, " + std::to_string(kv_heads));
  std::vector<Index> kept;
  for (std::size_t h = 0; h < plans.size(); ++h) {
    auto of = [h](const char* what) { return what + std::to_string(h); };
    if (plans[h].items() != tokens)
      fail<ShapeError>(of("number of tokens of the plan of head "), plans[h].items(),
                       "be those of the sequence, " + std::to_string(tokens));
    if (plans[h].size() != plans[0].size())
      fail<ShapeError>(of("number of tokens kept by the plan of head "), plans[h].size(),
                       "be that of head 0, " + std::to_string(plans[0].size()));
    kept.insert(kept.end(), plans[h].kept().begin(), plans[h].kept().end());
  }
  return kept;
}

template <class Cache, class Plan, class... States>
void evict_by_head(Cache& cache, Index sequence, std::span<const Plan> plans, States&&... states) {
  constexpr bool by_head = (follows_heads<States&&> && ...);
  static_assert(by_head,
                "attention_balancer: with a plan for each KV head, a state is an Evidence or has compact_by_head(kept, "
                "kv_heads), and is an lvalue: what has one entry per token cannot follow several plans");
  if constexpr (by_head) {
    const Index tokens = cache.length(sequence), kv_heads = cache.kv_heads();
    const std::vector<Index> kept = kept_by_head(plans, kv_heads, tokens);
    (check_state(std::as_const(states), sequence, tokens), ...);
    (check_heads(std::as_const(states), kv_heads), ...);
    check_distinct_states(states...);
    cache.keep_by_head(sequence, kept);  // first: what follows does not allocate
    (compact_state(states, sequence, kept, kv_heads), ...);
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
/// A state is an Evidence (item `sequence` of it, or its only one, as observing PackedQueries leaves of each sequence),
/// saliency::Accumulated or another with slots() and compact(kept), or what TokenPlan::compact takes. A plan of whole
/// pages moves nothing in a paged cache: the pages are given back.
///
/// Masks and score modifiers count the slots that are left: mask::Causal sees what it saw, but mask::Window and
/// score::Alibi measure distances in slots. By the tokens' own places they are a mask::Boolean and a score::Bias
/// [B, Hq, 1, Nk] made from cache.position(b, kv_head, slot). Keys that were rotated (RoPE) before they were appended
/// keep their places.
///
/// Throws ShapeError if the plan or a state is for another number of tokens, InputError if a state is given twice; then
/// nothing has been changed.
template <class Cache, class... States>
void evict(Cache& cache, Index sequence, const TokenPlan& plan, States&&... states) {
  const Index tokens = cache.length(sequence);
  if (plan.tokens() != tokens)
    detail::fail<ShapeError>("number of tokens of the plan", plan.tokens(),
                             "be those of the sequence, " + std::to_string(tokens));
  (detail::check_state(std::as_const(states), sequence, tokens), ...);
  detail::check_distinct_states(states...);
  std::vector<Index> pages;
  bool by_page = false;
  if constexpr (requires { cache.keep_blocks(sequence, plan.kept()); })
    by_page = detail::whole_pages(plan.kept(), tokens, cache.page_size(), pages);
  std::apply([&](auto&&... plain) { plan.compact(std::forward<decltype(plain)>(plain)...); },
             std::tuple_cat(detail::plain_state(std::forward<States>(states))...));
  (detail::compact_state(states, sequence, plan.kept(), 1), ...);
  if constexpr (requires { cache.keep_blocks(sequence, plan.kept()); })
    if (by_page) return cache.keep_blocks(sequence, pages);
  cache.keep(sequence, plan.kept());
}

/// The same with a plan of its own for each KV head, all for as many tokens and keeping as many (H2O, arXiv 2306.14048,
/// evicts so): slot i of head h becomes what slot plans[h].kept()[i] was, and query heads follow their KV head.
///
///     const auto scores = accumulated.sum(ab::KvHeads{kv_heads, ab::Heads::sum});
///     ab::execute::evict(cache, 0, ab::allocate::top_k(scores, 64), evidence, accumulated);
///
/// A state has numbers for each head: an Evidence, saliency::Accumulated, or another with heads(), slots() and
/// compact_by_head(kept, kv_heads). What has one entry per token cannot follow several plans, and does not compile.
/// Throws ShapeError if there is not one plan for each KV head, if they differ in how many they keep, if one or a state
/// is for another number of tokens, or if a state has heads that the KV heads cannot share, InputError if a state is
/// given twice; then nothing has been changed.
template <class Cache, class... States>
void evict(Cache& cache, Index sequence, std::span<const TokenPlan> plans, States&&... states) {
  detail::evict_by_head(cache, sequence, plans, std::forward<States>(states)...);
}
template <class Cache, class... States>
void evict(Cache& cache, Index sequence, std::span<const allocate::Selection> plans, States&&... states) {
  detail::evict_by_head(cache, sequence, plans, std::forward<States>(states)...);
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
