#pragma once
// What a selection is, and what every way to select has in common: pins, a mask, a total order.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace allocate {

/// Which of a number of items are kept, ascending. Not shares: a selection says who, not how much.
class Selection {
 public:
  /// Nothing of nothing.
  Selection() noexcept = default;

  /// Keeps `kept` of `items` items. Throws InputError naming the entry unless the indices ascend strictly within
  /// [0, items).
  template <class = void>
  Selection(Index items, std::vector<Index> kept) : items_(items), kept_(std::move(kept)) {
    if (items < 0) detail::fail<InputError>("number of items", items, "not be negative");
    for (std::size_t k = 0; k < kept_.size(); ++k) {
      const Index least = k == 0 ? 0 : kept_[k - 1] + 1;
      if (kept_[k] < least || kept_[k] >= items)
        detail::fail<InputError>(
            "kept item " + std::to_string(k), kept_[k],
            "ascend strictly and be in [" + std::to_string(least) + ", " + std::to_string(items) + ")");
    }
  }

  /// Number of items selected from.
  Index items() const noexcept { return items_; }

  /// [size] The kept items, ascending.
  template <class = void>
  std::span<const Index> kept() const& noexcept {
    return std::span<const Index>(kept_);
  }
  std::span<const Index> kept() const&& = delete;  // it would dangle

  /// Number of items kept.
  Index size() const noexcept { return static_cast<Index>(kept_.size()); }

  /// Whether item i is kept. O(log size).
  template <class = void>
  bool contains(Index i) const noexcept { return std::binary_search(kept_.begin(), kept_.end(), i); }

  /// [items - size] The other items, ascending.
  template <class = void>
  std::vector<Index> dropped() const {
    std::vector<Index> others;
    others.reserve(static_cast<std::size_t>(items_) - kept_.size());
    auto next = kept_.begin();
    for (Index i = 0; i < items_; ++i)
      if (next != kept_.end() && *next == i)
        ++next;
      else
        others.push_back(i);
    return others;
  }

  /// [items] True for the kept: the mask of a later step, such as Bounded::eligible.
  template <class = void>
  std::vector<bool> mask() const {
    std::vector<bool> bits(static_cast<std::size_t>(items_));
    for (const Index i : kept_) bits[static_cast<std::size_t>(i)] = true;
    return bits;
  }

  friend bool operator==(const Selection&, const Selection&) = default;

 private:
  Index items_ = 0;
  std::vector<Index> kept_;
};

/// What every selection must keep, and may. All of it is borrowed.
struct SelectOptions {
  std::span<const Index> pins = {};  ///< kept whatever their score; each counts once, in any order
  Eligible eligible = {};            ///< the only items that may be kept; default all
  bool allow_empty = false;          ///< keeping nothing is an error unless this says it is meant
  std::span<const Index> ids = {};  ///< equal scores go to the lower id, then to the lower index; default the index
};

/// The first `sinks` and the last `recent` of `items` positions, ascending and each once: the pins of StreamingLLM
/// (2309.17453; 4 sinks) and of every fair comparison between scores. Throws BudgetError if a number is negative.
template <class = void>
std::vector<Index> sinks_and_recent(Index items, Index sinks, Index recent) {
  if (items < 0) detail::fail<BudgetError>("number of items", items, "not be negative");
  if (sinks < 0) detail::fail<BudgetError>("number of sinks", sinks, "not be negative");
  if (recent < 0) detail::fail<BudgetError>("number of recent items", recent, "not be negative");
  sinks = std::min(sinks, items);
  recent = std::min(recent, items - sinks);
  std::vector<Index> pins;
  pins.reserve(static_cast<std::size_t>(sinks + recent));
  for (Index i = 0; i < sinks; ++i) pins.push_back(i);
  for (Index i = items - recent; i < items; ++i) pins.push_back(i);
  return pins;
}

}  // namespace allocate

namespace detail {

/// The total order of selections: the higher score, then the caller's lower id, then the lower index.
template <Scalar T>
struct Better {
  std::span<const T> scores;
  std::span<const Index> ids;

  bool operator()(Index a, Index b) const noexcept {
    const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
    if (scores[i] != scores[j]) return scores[i] > scores[j];
    if (!ids.empty() && ids[i] != ids[j]) return ids[i] < ids[j];
    return a < b;
  }
};

template <Scalar T>
void check_scores(std::span<const T> scores) {
  for (std::size_t i = 0; i < scores.size(); ++i)
    if (scores[i] != scores[i]) fail<InputError>(item_of("score", i), number(scores[i]), "be a number");
}

/// The options, checked: who is pinned, and who else may be kept.
struct Candidates {
  std::vector<bool> keep;     // the pins so far
  Index pinned = 0;           // their number
  std::vector<Index> others;  // eligible and not pinned, ascending

  Index eligible() const noexcept { return static_cast<Index>(others.size()) + pinned; }
};

template <class = void>
Candidates candidates(std::size_t n, const allocate::SelectOptions& options) {
  if (options.eligible.given()) check_size("eligible", options.eligible.size(), "scores", n);
  if (!options.ids.empty()) check_size("ids", options.ids.size(), "scores", n);
  Candidates c;
  c.keep.resize(n);
  for (const Index pin : options.pins) {
    if (pin < 0 || pin >= static_cast<Index>(n))
      fail<InputError>("pin", pin, "be in [0, items = " + std::to_string(n) + ")");
    const auto i = static_cast<std::size_t>(pin);
    if (!options.eligible[i]) fail<InputError>("pin", pin, "be eligible");
    if (!c.keep[i]) c.keep[i] = true, ++c.pinned;
  }
  c.others.reserve(n - static_cast<std::size_t>(c.pinned));
  for (std::size_t i = 0; i < n; ++i)
    if (options.eligible[i] && !c.keep[i]) c.others.push_back(static_cast<Index>(i));
  return c;
}

/// How many a budget keeps: min(budget, eligible). Throws if it is negative, if the pins are more, or if nothing
/// would be kept and that was not asked for.
template <class = void>
Index kept_size(const Candidates& c, Index budget, const allocate::SelectOptions& options) {
  if (budget < 0) fail<BudgetError>("budget", budget, "not be negative");
  if (c.pinned > budget)
    fail<BudgetError>("number of pins", c.pinned, "not exceed the budget " + std::to_string(budget));
  const Index size = std::min(budget, c.eligible());
  if (size == 0 && !options.allow_empty)
    fail<BudgetError>("number of items kept of " + std::to_string(c.eligible()) + " eligible ones with budget " +
                          std::to_string(budget),
                      size, "be at least 1 unless allow_empty is set");
  return size;
}

template <class = void>
allocate::Selection selection_of(const std::vector<bool>& keep, Index size) {
  std::vector<Index> kept;
  kept.reserve(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < keep.size(); ++i)
    if (keep[i]) kept.push_back(static_cast<Index>(i));
  return {static_cast<Index>(keep.size()), std::move(kept)};
}

/// Keeps the best of the others, up to `size` items in all, and marks them in `keep`.
template <Scalar T>
void keep_best(Candidates& c, Index size, const Better<T>& better) {
  const auto end = c.others.begin() + (size - c.pinned);
  if (end != c.others.end()) std::nth_element(c.others.begin(), end, c.others.end(), better);
  for (auto best = c.others.begin(); best != end; ++best) c.keep[static_cast<std::size_t>(*best)] = true;
}

template <Scalar T>
allocate::Selection top_k(std::span<const T> scores, Index budget, const allocate::SelectOptions& options) {
  check_scores(scores);
  auto c = candidates(scores.size(), options);
  const Index size = kept_size(c, budget, options);
  keep_best(c, size, Better<T>{scores, options.ids});
  return selection_of(c.keep, size);
}

}  // namespace detail
}  // namespace attention_balancer
