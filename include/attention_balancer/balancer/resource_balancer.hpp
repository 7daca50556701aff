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
#include "attention_balancer/allocate/steady.hpp"
#include "attention_balancer/balancer/detail/threshold.hpp"
#include "attention_balancer/balancer/feedback.hpp"
#include "attention_balancer/balancer/report.hpp"
#include "attention_balancer/balancer/snapshot.hpp"
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
/// After them may stand the apportionment that units() uses, apportion::hamilton for one; it must take bounds.
///
/// Inputs may come and go, in n places: an allocation with bounds takes a mask of those that are `eligible`, which may
/// be rewritten between updates, and restart(i) begins anew in a place.
///
/// What throws leaves the balancer as it was. Returned spans live until the next update or restore. Memory that a
/// policy borrows (masks, bounds per item) must outlive the balancer and keep its size. Copies are independent.
template <Scalar T, class Allocate = allocate::Proportional, class Feedback = feedback::Leaky<T>,
          class Apportion = std::remove_const_t<decltype(apportion::sainte_lague)>>
class ResourceBalancer {
  static_assert(allocate::Allocation<Allocate, T>,
                "attention_balancer: the allocation of a ResourceBalancer must be callable as "
                "allocate(std::span<const T> saliency, "
                "std::span<T> shares) with the balancer's scalar T");
  static_assert(
      feedback::Feedback<Feedback, T>,
      "attention_balancer: the feedback of a ResourceBalancer must be callable as feedback(std::span<T> log_state, "
      "std::span<const T> signal) with the balancer's scalar T");

 public:
  using value_type = T;

  /// n >= 1 inputs, of equal state: shares are uniform as far as the allocation's bounds let them. Throws
  /// ShapeError if n < 1, and what the policies throw: BudgetError if the bounds are infeasible, InputError if a
  /// rate is out of range.
  explicit ResourceBalancer(Index n, Allocate allocate = {}, Feedback feedback = {}, Apportion units_by = {})
      : allocate_(std::move(allocate)), feedback_(std::move(feedback)), units_by_(std::move(units_by)) {
    if (n < 1) detail::fail<ShapeError>("ResourceBalancer size", n, "be at least 1");
    if constexpr (requires { feedback_.validate(); }) feedback_.validate();
    const auto size = static_cast<std::size_t>(n);
    now_ = next_ = Cycle(size);
    before_.resize(size);
    weights_.resize(size);
    std::fill(next_.state.begin(), next_.state.end(), static_cast<T>(-std::log(static_cast<double>(n))));
    share_out(next_.state, weights_, next_.shares);
    log_shares_of_next();
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
    share_out(next_.state, weights_, next_.shares);
    log_shares_of_next();
    std::copy(now_.state.begin(), now_.state.end(), before_.begin());
    commit(cycle_ + 1);
    return shares();
  }

  /// Input i is another one from now on: a request that ended has given its place to the next. Its state becomes the
  /// mean of the eligible others', so that it begins with what they have on average and leaves their ratios as they
  /// are; the cycle and the plan in force stay. Throws ShapeError if i is out of range, and what the allocation throws.
  std::span<const T> restart(Index i) {
    check_item("restart item", i);
    const auto at = static_cast<std::size_t>(i);
    double largest = -std::numeric_limits<double>::infinity(), sum = 0, others = 0;
    const auto each_other = [&](auto use) {
      for (std::size_t j = 0; j < now_.state.size(); ++j)
        if (j != at && limits(static_cast<Index>(j)).eligible) use(static_cast<double>(now_.state[j]));
    };
    each_other([&](double state) { largest = std::max(largest, state), ++others; });
    const bool alive = largest > -std::numeric_limits<double>::infinity();
    if (alive) each_other([&](double state) { sum += std::exp(state - largest); });
    std::copy(now_.state.begin(), now_.state.end(), next_.state.begin());
    next_.state[at] = alive ? static_cast<T>(largest + std::log(sum / others)) : T(0);
    next_.has_signal = false;
    share_out(next_.state, weights_, next_.shares);
    log_shares_of_next();
    commit(cycle_);
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

  /// The shares as whole units that add up to `total` exactly: by apportion::sainte_lague, or what the balancer was
  /// made with, between ceil(floor * total) and floor(cap * total) of each input (see apportion::unit_limits); a
  /// masked input gets none. What it returns is the plan in force until it is asked again.
  ///
  /// With `how` the plan does not flicker: `units(1000, {.hysteresis = 0.02, .churn = 50})` returns the plan in
  /// force unless more than 20 units would change hands, and moves no more than 50 of them at a time (see
  /// apportion::steady). A plan with another total is none in force.
  ///
  /// Throws BudgetError if the total is negative or above 2^53, if the bounds, rounded to whole units, cannot add
  /// up to it, or if they move more units than the churn; InputError if the hysteresis is not in [0, 1].
  std::vector<Index> units(Index total, const apportion::Steady& how = {}) {
    Plan next{total, how, plan_.total == total ? plan_.units : std::vector<Index>(), {}, true};
    next.units = whole_units(now_.shares, next);
    auto result = next.units;
    plan_ = std::move(next);
    return result;
  }

  /// Why input i has its share: signal, state, share, the bound that held it, its rounding if units were asked
  /// since the last update, and what would change it: the signal of this input, all others the same, at which the
  /// last update would have released the bound, or given one unit more or less. To find these the update is run
  /// again some hundred times on copies; Explain::brief leaves them out. Throws ShapeError if i is out of range.
  Report<T> explain(Index i, Explain depth = Explain::full) const {
    check_item("explain item", i);
    const auto at = static_cast<std::size_t>(i);
    Report<T> report;
    report.item = i;
    report.cycle = cycle_;
    if (now_.has_signal) report.signal = now_.signal[at];
    report.state = now_.state[at];
    report.share = now_.shares[at];
    report.log_share = now_.log_shares[at];
    report.limits = limits(i);
    report.held = held_by(report.limits, report.share);
    if (plan_.current) {
      const auto whole = apportion::unit_limits(report.limits, plan_.total);
      report.rounding =
          Rounding{plan_.total, plan_.units[at],
                   static_cast<double>(report.share) * static_cast<double>(plan_.total), whole.lower, whole.upper};
      if (!plan_.previous.empty()) report.rounding->before = plan_.previous[at];
    }
    if (depth == Explain::full && now_.has_signal) report.changes = changes(at, report);
    return report;
  }

  /// [n] The logarithm of the unbounded distribution: exp of it adds up to 1, up to a factor if a feedback of the
  /// user's or restore() left it so. -inf for what Plain has let die.
  std::span<const T> state() const noexcept { return now_.state; }

  /// All that the next cycles depend on, beside the policies: state, cycle and the plan in force.
  Snapshot<T> save() const { return {cycle_, now_.state, plan_.total, plan_.units}; }

  /// Continues from what save() gave, bit for bit under the same policies and signals. Throws as restore(state)
  /// does, and if the plan has another size (ShapeError) or does not add up to its total (BudgetError).
  void restore(const Snapshot<T>& saved) {
    Plan plan;
    if (!saved.plan.empty()) {
      detail::check_size("plan", saved.plan.size(), "the balancer", now_.state.size());
      detail::check_plan(saved.plan, saved.total, "plan");
      plan.total = saved.total;
      plan.units = saved.plan;
    }
    restore(saved.state, saved.cycle);
    plan_ = std::move(plan);
  }

  /// Continues from a state() after `cycle` updates, without a plan in force; the last signal is unknown until the
  /// next. The state need not be normalised. Throws ShapeError if its size differs from size(), InputError naming
  /// the item if one is NaN or +inf, or if all are -inf, and what the allocation throws.
  void restore(std::span<const T> state, Index cycle = 0) {
    detail::check_size("state", state.size(), "the balancer", now_.state.size());
    if (cycle < 0) detail::fail<InputError>("cycle", cycle, "not be negative");
    check_state(state, "state");
    std::copy(state.begin(), state.end(), next_.state.begin());
    next_.has_signal = false;
    share_out(next_.state, weights_, next_.shares);
    log_shares_of_next();
    commit(cycle);
    plan_ = {};
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

  void check_item(const char* what, Index i) const {
    if (i < 0 || i >= size()) detail::fail<ShapeError>(what, i, "be in [0, size = " + std::to_string(size()) + ")");
  }

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

  /// Fills the shares from a state, through the weights that the allocation sees; may throw.
  void share_out(const std::vector<T>& state, std::vector<T>& weights, std::vector<T>& shares) const {
    if constexpr (requires { allocate_.check_items(state.size()); }) allocate_.check_items(state.size());
    // Relative to the largest that can get a share: beside a masked giant the others would all round to 0.
    double largest = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < state.size(); ++i)
      if (limits(static_cast<Index>(i)).eligible) largest = std::max(largest, static_cast<double>(state[i]));
    const bool alive = largest > -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < state.size(); ++i)
      weights[i] = alive && limits(static_cast<Index>(i)).eligible
                       ? static_cast<T>(std::exp(static_cast<double>(state[i]) - largest))
                       : T(0);
    allocate_(std::span<const T>(weights), std::span<T>(shares));
  }
  void log_shares_of_next() noexcept {
    for (std::size_t i = 0; i < next_.shares.size(); ++i) next_.log_shares[i] = std::log(next_.shares[i]);
  }

  /// What units() was asked last, and what it answered.
  struct Plan {
    Index total = 0;
    apportion::Steady how = {};
    std::vector<Index> previous, units;  // the plan then in force, or empty; the answer
    bool current = false;                // asked since the last update
  };

  /// The units of a plan at these shares.
  std::vector<Index> whole_units(const std::vector<T>& shares, const Plan& plan) const {
    detail::check_total(plan.total, shares.size());
    plan.how.validate();  // here, where it is not blamed on the bounds
    std::vector<Index> lower, upper;
    lower.reserve(shares.size()), upper.reserve(shares.size());
    for (Index i = 0; i < size(); ++i) {
      const auto whole = apportion::unit_limits(limits(i), plan.total);
      lower.push_back(whole.lower);
      upper.push_back(whole.upper);
    }
    try {
      return apportion::steady(shares, plan.total, lower, upper, plan.previous, plan.how, units_by_);
    } catch (const BudgetError& error) {
      throw BudgetError("units(" + std::to_string(plan.total) +
                        "), where floors round up and caps down to whole units: " + error.what());
    }
  }

  static Held held_by(const allocate::Limits<T>& limits, T share) noexcept {
    if (!limits.eligible) return Held::masked;
    if (limits.floor > T(0) && share <= limits.floor) return Held::floor;
    if (limits.cap < T(1) && share >= limits.cap) return Held::cap;
    return Held::none;
  }

  /// The last update run again with other signals of one input.
  Changes<T> changes(std::size_t item, const Report<T>& report) const {
    std::vector<T> signal = now_.signal, state(signal.size()), weights(signal.size()), shares(signal.size());
    const auto rerun = [&](T value) {
      signal[item] = value;
      state = before_;
      feedback_(std::span<T>(state), std::span<const T>(signal));
      check_state(state, "state after the feedback");
      share_out(state, weights, shares);
    };
    const T largest = *std::max_element(now_.signal.begin(), now_.signal.end());
    Changes<T> result;
    if (report.held == Held::floor || report.held == Held::cap)
      result.release = detail::threshold(*report.signal, largest, [&](T value) {
        rerun(value);
        return held_by(report.limits, shares[item]) != report.held;
      });
    if (report.rounding) {
      const Index units = report.rounding->units;
      const auto units_at = [&](T value) {
        rerun(value);
        return whole_units(shares, plan_)[item];
      };
      if (units < report.rounding->upper)
        result.one_more =
            detail::threshold(*report.signal, largest, [&](T value) { return units_at(value) > units; });
      if (units > report.rounding->lower)
        result.one_less =
            detail::threshold(*report.signal, largest, [&](T value) { return units_at(value) < units; });
    }
    return result;
  }

  /// Makes next_ the present; cannot throw.
  void commit(Index cycle) noexcept {
    std::swap(now_, next_);
    cycle_ = cycle;
    plan_.current = false;
  }

  Allocate allocate_;
  Feedback feedback_;
  Apportion units_by_;
  Cycle now_, next_;        // every cycle is made in next_ and swapped in when nothing can throw any more
  std::vector<T> before_;   // the state before the last update, for explain
  std::vector<T> weights_;  // exp(log_state - max), what the allocation sees
  Index cycle_ = 0;
  Plan plan_;
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
template <class Allocate, class Feedback, class Apportion>
ResourceBalancer(Index, Allocate, Feedback, Apportion)
    -> ResourceBalancer<typename detail::BalancerScalar<Allocate, Feedback>::type, Allocate, Feedback, Apportion>;

}  // namespace attention_balancer
