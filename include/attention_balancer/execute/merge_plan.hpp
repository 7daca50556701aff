#pragma once
// Several tokens become one, and everything that goes with them follows.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/execute/compact.hpp"
#include "attention_balancer/execute/token_budget.hpp"

namespace attention_balancer {

namespace detail {

/// What can be averaged; of the rest a group keeps the entry of its own token.
template <class State>
constexpr bool is_averaged() {
  using Plain = std::remove_cvref_t<State>;
  if constexpr (is_mutable_view<Plain>)
    return std::is_floating_point_v<typename Plain::value_type>;
  else if constexpr (RowMatrix<Plain>)
    return std::is_floating_point_v<std::remove_cvref_t<decltype(std::declval<Plain&>()(0, 0))>>;
  else
    return std::is_floating_point_v<std::remove_cvref_t<decltype(std::declval<Plain&>()[0])>>;
}

/// Calls f(get) for every column of `state`, get(token) being a reference to the element of that token.
template <class State, class F>
void for_each_column(State& state, const F& f) {
  if constexpr (is_mutable_view<std::remove_const_t<State>>) {
    for (Index b = 0; b < state.batch; ++b)
      for (Index h = 0; h < state.heads; ++h)
        for (Index c = 0; c < state.dim; ++c) f([&](Index token) -> auto& { return state(b, h, token, c); });
  } else if constexpr (RowMatrix<State>) {
    for (Index c = 0; c < state.cols(); ++c) f([&](Index token) -> decltype(auto) { return state(token, c); });
  } else {
    f([&](Index token) -> auto& { return state[static_cast<std::size_t>(token)]; });
  }
}

}  // namespace detail

namespace execute {

/// Which tokens are joined: every token goes into one group, and each group becomes one token at the place of one
/// of its members. Made by `fuse` and `merge`, or by the caller.
class MergePlan {
 public:
  /// Token i joins the group of token into[i]; a token that stays is its own: into[into[i]] == into[i]. Within a
  /// group tokens count by their weight, non-negative and finite; equally if all are 0. `sizes`, positive and
  /// finite, say how many original tokens each stands for. Empty weights are the sizes, empty sizes ones. Throws
  /// InputError naming the token, ShapeError if the sizes differ.
  template <class = void>
  explicit MergePlan(std::vector<Index> into, std::vector<double> weights = {}, std::vector<double> sizes = {})
      : kept_(make(into)), into_(std::move(into)), weights_(std::move(weights)) {
    const std::size_t n = into_.size();
    if (sizes.empty()) sizes.assign(n, 1.0);
    detail::check_size("sizes of the tokens", sizes.size(), "the plan", n);
    for (std::size_t i = 0; i < n; ++i)
      if (!(sizes[i] > 0) || !std::isfinite(sizes[i]))
        detail::fail<InputError>("size of token " + std::to_string(i), detail::number(sizes[i]),
                                 "be finite and above 0");
    if (weights_.empty()) weights_ = sizes;
    detail::check_size("weights of the tokens", weights_.size(), "the plan", n);
    static_cast<void>(detail::largest_weight(std::span<const double>(weights_)));

    places_.assign(n, 0);
    for (Index k = 0; k < size(); ++k) places_[static_cast<std::size_t>(kept()[static_cast<std::size_t>(k)])] = k;
    for (std::size_t i = 0; i < n; ++i) places_[i] = places_[static_cast<std::size_t>(into_[i])];
    sizes_ = totals(sizes);
    // The members of the groups of two and more, group by group, each scaled so that its weights add up to 1.
    for (std::size_t i = 0; i < n; ++i) members_.push_back(static_cast<Index>(i));
    std::sort(members_.begin(), members_.end(),
              [&](Index a, Index b) { return std::pair(place(a), a) < std::pair(place(b), b); });
    scale_weights();
  }

  /// Number of tokens before and after.
  Index tokens() const noexcept { return kept_.tokens(); }
  Index size() const noexcept { return kept_.size(); }

  /// [size()] The tokens at whose places the groups go on, ascending: what pruning the others would keep.
  template <class = void>
  std::span<const Index> kept() const& noexcept {
    return kept_.kept();
  }
  std::span<const Index> kept() const&& = delete;  // it would dangle

  /// [tokens()] Where each token went: its group among the size() that are left.
  template <class = void>
  std::span<const Index> places() const& noexcept {
    return std::span<const Index>(places_);
  }
  std::span<const Index> places() const&& = delete;

  /// [size()] How many original tokens each stands for; adds up to what it was before. The next plan takes it.
  const std::vector<double>& sizes() const& noexcept { return sizes_; }
  std::vector<double> sizes() && noexcept { return std::move(sizes_); }

  /// [size()] log(sizes()), for score::KeyBias: a token that stands for s of them then gets the attention of s
  /// equal keys ("proportional attention" of ToMe, arXiv 2210.09461). KeyBias borrows it: keep the vector.
  template <Scalar T>
  std::vector<T> log_sizes() const {
    std::vector<T> logs;
    for (const double s : sizes_) logs.push_back(static_cast<T>(std::log(s)));
    return logs;
  }

  /// [size()] The sum over each group of one number per token: shares, evidence, sizes. Throws ShapeError.
  template <class Values, class Value = std::remove_cvref_t<decltype(std::declval<const Values&>()[0])>>
  std::vector<Value> totals(const Values& values) const {
    detail::check_size("values", std::size(values), "the plan", into_.size());
    std::vector<Value> sums(static_cast<std::size_t>(size()));
    for (std::size_t i = 0; i < into_.size(); ++i) sums[static_cast<std::size_t>(places_[i])] += values[i];
    return sums;
  }

  /// Joins the tokens in everything that goes with them, in place: each group's row becomes the weighted mean of
  /// its members, then the rows move to the front as in TokenPlan::compact, which says what the arguments may be.
  /// Integers, strings and whatever else has no mean keep the entry of the token at whose place the group goes on.
  /// A token alone keeps its bits. Members of weight zero are not looked at.
  ///
  /// Throws as TokenPlan::compact does, before anything is changed.
  template <class... States>
  void apply(States&&... states) const {
    kept_.check<States&&...>(states...);
    (average(states), ...);
    kept_.compact(std::forward<States>(states)...);
  }

  /// The way back ("unmerge"): row i of `to`, which has tokens(), becomes a copy of row places()[i] of `from`, which
  /// has the size() rows that apply left or what became of them: every member gets what its group has. The arguments
  /// and errors are those of TokenPlan::expand. Source: Bolya and Hoffman, Token Merging for Fast Stable Diffusion,
  /// arXiv 2303.17604.
  template <class From, class To>
  void expand(const From& from, To&& to) const {
    kept_.check_expanded<From, To&&>(from, to);
    if constexpr (detail::is_expandable<From, To&&>)
      detail::copy_rows(
          from, to, tokens(), [](Index i) { return i; }, [this](Index i) { return place(i); });
  }

 private:
  template <class = void>
  static TokenPlan make(const std::vector<Index>& into) {
    const auto n = static_cast<Index>(into.size());
    std::vector<Index> kept;
    for (Index i = 0; i < n; ++i) {
      const Index to = into[static_cast<std::size_t>(i)];
      if (to < 0 || to >= n)
        detail::fail<InputError>("destination of token " + std::to_string(i), to,
                                 "be in [0, tokens = " + std::to_string(n) + ")");
      if (into[static_cast<std::size_t>(to)] != to)
        detail::fail<InputError>("destination of token " + std::to_string(i), to, "be a token that stays");
      if (to == i) kept.push_back(i);
    }
    return {n, std::move(kept)};
  }

  Index place(Index token) const noexcept { return places_[static_cast<std::size_t>(token)]; }

  template <class F>
  void for_each_group(const F& f) const {
    const std::span<const Index> all(members_);
    for (std::size_t begin = 0, end = 0; begin < all.size(); begin = end) {
      while (end < all.size() && place(all[end]) == place(all[begin])) ++end;
      if (end - begin > 1) f(all.subspan(begin, end - begin));
    }
  }

  template <class = void>
  void scale_weights() {
    for_each_group([&](std::span<const Index> group) {
      double largest = 0, sum = 0;
      for (const Index i : group) largest = std::max(largest, weights_[static_cast<std::size_t>(i)]);
      for (const Index i : group) {
        double& w = weights_[static_cast<std::size_t>(i)];
        sum += w = largest > 0 ? w / largest : 1.0;
      }
      for (const Index i : group) weights_[static_cast<std::size_t>(i)] /= sum;
    });
  }

  template <class State>
  void average(State& state) const {
    if constexpr (detail::is_averaged<State>())
      for_each_group([&](std::span<const Index> group) {
        const Index rep = kept()[static_cast<std::size_t>(place(group[0]))];
        detail::for_each_column(state, [&](const auto& element) {
          double mean = 0;
          for (const Index i : group)
            if (const double w = weights_[static_cast<std::size_t>(i)]; w > 0)
              mean += w * static_cast<double>(element(i));
          element(rep) = static_cast<std::remove_cvref_t<decltype(element(rep))>>(mean);
        });
      });
  }

  TokenPlan kept_;
  std::vector<Index> into_, places_, members_;
  std::vector<double> weights_, sizes_;
};

}  // namespace execute
}  // namespace attention_balancer
