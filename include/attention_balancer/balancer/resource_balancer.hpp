#pragma once
// The state across cycles: a signal per input comes in, a share of the budget per input goes out.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/apportion.hpp"
#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/shares.hpp"
#include "attention_balancer/balancer/feedback.hpp"
#include "attention_balancer/balancer/report.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// Divides a budget among n inputs, cycle after cycle.
///
///     ab::ResourceBalancer<float> balancer(length);                  // uniform: 1/n each
///     auto shares = balancer.update(ab::saliency::mass(evidence));   // one cycle
///     auto units  = balancer.units(1000);                            // exactly 1000
///
/// It owns the state, the logarithm of a distribution, and contains no arithmetic of the policies: an update is
/// `feedback(log_state, signal)`, then `allocate(exp(log_state - max), shares)`. The state is never bounded, the
/// shares always are. The signal is what the feedback names: weights, losses or loads.
///
/// The scalar is deduced from the policies where they have one:
/// `ResourceBalancer balancer(n, allocate::Bounded<float>{.floor = 0.01f}, feedback::Leaky{0.2f});`
///
/// What throws leaves the balancer as it was. Returned spans live until the next update or restore. Memory that a
/// policy borrows (masks, bounds per item) must outlive the balancer and keep its size. Copies are independent.
template <Scalar T, class Allocate = allocate::Proportional, class Feedback = feedback::Leaky<T>>
class ResourceBalancer {
  static_assert(allocate::Allocation<Allocate, T>,
                "attention_balancer: the allocation of a ResourceBalancer must be callable as allocate(std::span<const T> saliency, "
                "std::span<T> shares) with the balancer's scalar T");
  static_assert(feedback::Feedback<Feedback, T>,
                "attention_balancer: the feedback of a ResourceBalancer must be callable as feedback(std::span<T> log_state, "
                "std::span<const T> signal) with the balancer's scalar T");

 public:
  using value_type = T;

  /// n >= 1 inputs, of equal state: shares are uniform as far as the allocation's bounds let them. Throws
  /// ShapeError if n < 1, and what the policies throw: BudgetError if the bounds are infeasible, InputError if a
  /// rate is out of range.
  explicit ResourceBalancer(Index n, Allocate allocate = {}, Feedback feedback = {})
      : allocate_(std::move(allocate)), feedback_(std::move(feedback)) {
    if (n < 1) detail::fail<ShapeError>("ResourceBalancer size", n, "be at least 1");
    if constexpr (requires { feedback_.validate(); }) feedback_.validate();
    const auto size = static_cast<std::size_t>(n);
    now_ = next_ = Cycle(size);
    weights_.resize(size);
    std::fill(next_.state.begin(), next_.state.end(), static_cast<T>(-std::log(static_cast<double>(n))));
    share_out();
    commit(0);
  }

  /// One cycle: takes in one signal per input and returns the new shares. Throws ShapeError if the size differs
  /// from size(), and what the policies throw.
  std::span<const T> update(std::span<const T> signal) {
    detail::check_size("signal", signal.size(), "the balancer", now_.state.size());
    std::copy(now_.state.begin(), now_.state.end(), next_.state.begin());
    feedback_(std::span<T>(next_.state), signal);
    check_state(next_.state, "state after the feedback");
    std::copy(signal.begin(), signal.end(), next_.signal.begin());
    next_.has_signal = true;
    share_out();
    commit(cycle_ + 1);
    return shares();
  }

  /// [n] The shares: non-negative, within the bounds of the allocation, adding up to 1 within n * epsilon.
  std::span<const T> shares() const noexcept { return now_.shares; }

  /// [n] log(shares()), what score::KeyBias takes to let the shares steer the attention: added to the scores, it
  /// multiplies each attention weight by the share. Finite, or -inf where the share is 0 (such a key is then not
  /// attended at all), never NaN. It is the shares, not the state, that are fed back: a floor, a cap and a mask are
  /// felt in the loop too. Without bounds the two are the same up to rounding, save that a share below the smallest
  /// T is 0 while its state() is still finite.
  std::span<const T> log_shares() const noexcept { return now_.log_shares; }

  /// The shares as whole units that add up to `total` exactly: apportion::sainte_lague between ceil(floor * total)
  /// and floor(cap * total) of each input (see apportion::unit_limits); a masked input gets none. explain() tells
  /// of it until the next update. Throws BudgetError if the total is negative or above 2^53, or if the bounds,
  /// rounded to whole units, cannot add up to it.
  std::vector<Index> units(Index total) {
    detail::check_total(total, now_.shares.size());
    std::vector<Index> units, lower, upper;
    for (Index i = 0; i < size(); ++i) {
      const auto whole = apportion::unit_limits(limits(i), total);
      lower.push_back(whole.lower);
      upper.push_back(whole.upper);
    }
    try {
      units = apportion::sainte_lague(shares(), total, lower, upper);
    } catch (const BudgetError& error) {
      throw BudgetError("units(" + std::to_string(total) +
                        "), where floors round up and caps down to whole units: " + error.what());
    }
    units_ = units;
    total_ = total;
    return units;
  }

  /// Why input i has its share: signal, state, share, the bound that held it, and its rounding if units were asked
  /// since the last update. Throws ShapeError if i is out of range.
  Report<T> explain(Index i) const {
    if (i < 0 || i >= size())
      detail::fail<ShapeError>("explain item", i, "be in [0, size = " + std::to_string(size()) + ")");
    const auto at = static_cast<std::size_t>(i);
    Report<T> report;
    report.item = i;
    report.cycle = cycle_;
    if (now_.has_signal) report.signal = now_.signal[at];
    report.state = now_.state[at];
    report.share = now_.shares[at];
    report.log_share = now_.log_shares[at];
    report.limits = limits(i);
    if (!report.limits.eligible)
      report.held = Held::masked;
    else if (report.limits.floor > T(0) && report.share <= report.limits.floor)
      report.held = Held::floor;
    else if (report.limits.cap < T(1) && report.share >= report.limits.cap)
      report.held = Held::cap;
    if (!units_.empty()) {
      const auto whole = apportion::unit_limits(report.limits, total_);
      report.rounding =
          Rounding{total_, units_[at], static_cast<double>(report.share) * static_cast<double>(total_), whole.lower,
                   whole.upper};
    }
    return report;
  }

  /// [n] The logarithm of the unbounded distribution: exp of it adds up to 1, up to a factor if a feedback of the user's
  /// or restore() left it so. -inf for what Plain has let die. Copy
  /// it to save the balancer; restore() continues from it bit for bit.
  std::span<const T> state() const noexcept { return now_.state; }

  /// Continues from a saved state after `cycle` updates; as there, the last signal is unknown until the next. The
  /// state need not be normalised. Throws ShapeError if its size differs from size(), InputError naming the item if
  /// one is NaN or +inf, or if all are -inf, and what the allocation throws.
  void restore(std::span<const T> state, Index cycle = 0) {
    detail::check_size("state", state.size(), "the balancer", now_.state.size());
    if (cycle < 0) detail::fail<InputError>("cycle", cycle, "not be negative");
    check_state(state, "state");
    std::copy(state.begin(), state.end(), next_.state.begin());
    next_.has_signal = false;
    share_out();
    commit(cycle);
  }

  /// Number of inputs.
  Index size() const noexcept { return static_cast<Index>(now_.state.size()); }

  /// Number of updates so far.
  Index cycle() const noexcept { return cycle_; }

 private:
  struct Cycle {
    Cycle() = default;
    explicit Cycle(std::size_t n) : state(n), shares(n), log_shares(n), signal(n) {}
    std::vector<T> state, shares, log_shares, signal;
    bool has_signal = false;
  };

  allocate::Limits<T> limits(Index i) const { return allocate::limits_of<T>(allocate_, i); }

  static void check_state(std::span<const T> state, const char* what) {
    bool alive = false;
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (!(state[i] < std::numeric_limits<T>::infinity()))
        detail::fail<InputError>(detail::item_of(what, i), detail::number(state[i]),
                                 "be a finite logarithm or -inf");
      alive = alive || state[i] > -std::numeric_limits<T>::infinity();
    }
    if (!alive) detail::fail<InputError>(what, "-inf for every item", "leave at least one item alive");
  }

  Index size_of_next() const noexcept { return static_cast<Index>(next_.state.size()); }

  /// Fills the shares of next_ from its state; may throw.
  void share_out() {
    // Relative to the largest that can get a share: beside a masked giant the others would all round to 0.
    double largest = -std::numeric_limits<double>::infinity();
    for (Index i = 0; i < size_of_next(); ++i)
      if (limits(i).eligible) largest = std::max(largest, static_cast<double>(next_.state[static_cast<std::size_t>(i)]));
    const bool alive = largest > -std::numeric_limits<double>::infinity();
    for (Index i = 0; i < size_of_next(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      weights_[at] = alive && limits(i).eligible
                         ? static_cast<T>(std::exp(static_cast<double>(next_.state[at]) - largest))
                         : T(0);
    }
    allocate_(std::span<const T>(weights_), std::span<T>(next_.shares));
    for (std::size_t i = 0; i < weights_.size(); ++i) next_.log_shares[i] = std::log(next_.shares[i]);
  }

  /// Makes next_ the present; cannot throw.
  void commit(Index cycle) noexcept {
    std::swap(now_, next_);
    cycle_ = cycle;
    units_.clear();
  }

  Allocate allocate_;
  Feedback feedback_;
  Cycle now_, next_;        // every cycle is made in next_ and swapped in when nothing can throw any more
  std::vector<T> weights_;  // exp(log_state - max), what the allocation sees
  Index cycle_ = 0;
  std::vector<Index> units_;  // the last ones asked since the update
  Index total_ = 0;
};

namespace detail {

template <class Policy>
struct ScalarOf {};
template <class Policy>
requires requires { typename Policy::value_type; }
struct ScalarOf<Policy> {
  using type = typename Policy::value_type;
};

template <class Allocate, class Feedback>
struct BalancerScalar : ScalarOf<Allocate> {};
template <class Allocate, class Feedback>
requires(!requires { typename Allocate::value_type; }) struct BalancerScalar<Allocate, Feedback>
    : ScalarOf<Feedback> {
};

}  // namespace detail

template <class Allocate>
ResourceBalancer(Index, Allocate) -> ResourceBalancer<typename detail::ScalarOf<Allocate>::type, Allocate>;
template <class Allocate, class Feedback>
ResourceBalancer(Index, Allocate, Feedback)
    -> ResourceBalancer<typename detail::BalancerScalar<Allocate, Feedback>::type, Allocate, Feedback>;

}  // namespace attention_balancer
