#pragma once
// The work of a pool of threads, divided among queues by their units.

#include <algorithm>
#include <cstddef>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/apportion.hpp"
#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace execute {

/// What becomes of the units of a queue that has less work than that.
enum class Idle {
  lend,   ///< they go to the queues that have more work, in proportion to the units of these
  waste,  ///< they are not used in this cycle
};

/// One cycle of work: how many items of each queue run, and in which order they are handed out.
class WorkPlan {
 public:
  struct Item {
    Index queue = 0;
    Index place = 0;  ///< within its queue, from 0, the one that waits longest
    bool operator==(const Item&) const = default;
  };

  /// See work_budget.
  template <class = void>
  WorkPlan(std::span<const Index> units, std::span<const Index> waiting, Idle idle) : takes_(units.size()) {
    detail::check_size("waiting", waiting.size(), "units", units.size());
    check(units, "units");
    check(waiting, "waiting items");
    for (std::size_t q = 0; q < units.size(); ++q) takes_[q] = std::min(units[q], waiting[q]);
    if (idle == Idle::lend) lend(units, waiting);

    // Item k of a queue of n is due at (k + 1/2) / n of the cycle: every beginning of the order is in proportion
    // too, up to rounding, so that a pool that hands out in order serves all queues all the time.
    std::vector<double> due;
    for (std::size_t q = 0; q < takes_.size(); ++q)
      for (Index k = 0; k < takes_[q]; ++k) {
        order_.push_back({static_cast<Index>(q), k});
        due.push_back((static_cast<double>(k) + 0.5) / static_cast<double>(takes_[q]));
      }
    std::vector<std::size_t> rank(order_.size());
    for (std::size_t i = 0; i < rank.size(); ++i) rank[i] = i;
    std::sort(rank.begin(), rank.end(),
              [&](std::size_t a, std::size_t b) { return std::pair(due[a], a) < std::pair(due[b], b); });
    std::vector<Item> sorted;
    sorted.reserve(order_.size());
    for (const std::size_t i : rank) sorted.push_back(order_[i]);
    order_ = std::move(sorted);
  }

  /// [queues] How many items of each queue run.
  const std::vector<Index>& takes() const& noexcept { return takes_; }
  std::vector<Index> takes() && noexcept { return std::move(takes_); }

  /// The items in the order in which they are handed out.
  const std::vector<Item>& order() const& noexcept { return order_; }
  std::vector<Item> order() && noexcept { return std::move(order_); }

  /// Calls f(queue, place) once for every item and returns when all are done. With executor::Sequential in this
  /// order; other executors hand out in this order and finish in any, so f must be safe to run beside itself and,
  /// as everywhere in this library, must not throw.
  template <class Executor, class F>
  void run(const Executor& executor, F&& f) const {
    executor.for_each(static_cast<Index>(order_.size()), [&](Index i) {
      const Item item = order_[static_cast<std::size_t>(i)];
      f(item.queue, item.place);
    });
  }

 private:
  template <class = void>
  static void check(std::span<const Index> counts, const char* what) {
    Index sum = 0;
    for (std::size_t q = 0; q < counts.size(); ++q) {
      if (counts[q] < 0)
        detail::fail<BudgetError>(std::string(what) + " of queue " + std::to_string(q), counts[q],
                                  "not be negative");
      if (counts[q] > detail::largest_total - sum)
        detail::fail<BudgetError>("sum of the " + std::string(what) + " up to queue " + std::to_string(q),
                                  detail::number(static_cast<double>(sum) + static_cast<double>(counts[q])),
                                  "not exceed 2^53");
      sum += counts[q];
    }
  }

  /// No queue gets less than its own units while it has work; what is left over goes on.
  template <class = void>
  void lend(std::span<const Index> units, std::span<const Index> waiting) {
    Index budget = 0, work = 0, taken = 0;
    for (std::size_t q = 0; q < units.size(); ++q) budget += units[q], work += waiting[q], taken += takes_[q];
    const Index total = std::min(budget, work);
    if (taken == total) return;
    std::vector<double> weights(units.begin(), units.end());
    takes_ = apportion::sainte_lague(std::span<const double>(weights), total, std::span<const Index>(takes_), waiting);
  }

  std::vector<Index> takes_;
  std::vector<Item> order_;
};

/// Plans one cycle of the work of a pool: of each queue as many items as it has units, as far as it has them
/// waiting. With Idle::lend no unit is lost while any queue has work: sum of takes = min(sum of units, sum of
/// waiting), and none gets less than its own units. `units` are what ResourceBalancer::units returned, one per
/// queue.
///
/// Throws BudgetError naming the queue if a number is negative or a sum above 2^53, ShapeError if the sizes differ.
/// O(items log items).
template <class = void>
WorkPlan work_budget(std::span<const Index> units, std::span<const Index> waiting, Idle idle = Idle::lend) {
  return {units, waiting, idle};
}

/// Queues of tasks that share a pool of threads in proportion to their units, cycle after cycle.
///
///     execute::WorkQueues<Task> queues(tenants);
///     queues.push(2, task);
///     auto done = queues.run(balancer.units(64), executor::OpenMp{}, [](Index queue, Task& task) { ... });
///
/// One thread at a time may push or run.
template <class Task>
class WorkQueues {
 public:
  /// Throws ShapeError if there is not at least one queue.
  explicit WorkQueues(Index queues) {
    if (queues < 1) detail::fail<ShapeError>("number of queues", queues, "be at least 1");
    tasks_.resize(static_cast<std::size_t>(queues));
  }

  Index queues() const noexcept { return static_cast<Index>(tasks_.size()); }

  /// Puts a task at the end of a queue. Throws ShapeError if there is no such queue.
  void push(Index queue, Task task) { tasks_[place(queue)].push_back(std::move(task)); }

  /// Number of tasks that wait in a queue. Throws ShapeError if there is no such queue.
  Index waiting(Index queue) const { return static_cast<Index>(tasks_[place(queue)].size()); }

  /// Runs one cycle: f(queue, task) for the first tasks of each queue, as many as work_budget(units, waiting, idle)
  /// takes. Returns how many ran, per queue; those are gone. Within a queue they start in the order in which they
  /// came. Throws what work_budget throws, before anything runs.
  template <class Executor, class F>
  std::vector<Index> run(std::span<const Index> units, const Executor& executor, F&& f, Idle idle = Idle::lend) {
    std::vector<Index> waiting;
    for (const auto& queue : tasks_) waiting.push_back(static_cast<Index>(queue.size()));
    WorkPlan plan(units, waiting, idle);
    plan.run(executor, [&](Index queue, Index place) {
      f(queue, tasks_[static_cast<std::size_t>(queue)][static_cast<std::size_t>(place)]);
    });
    for (std::size_t q = 0; q < tasks_.size(); ++q)
      tasks_[q].erase(tasks_[q].begin(), tasks_[q].begin() + plan.takes()[q]);
    return std::move(plan).takes();
  }

 private:
  std::size_t place(Index queue) const {
    if (queue < 0 || queue >= queues())
      detail::fail<ShapeError>("queue", queue, "be in [0, queues = " + std::to_string(queues()) + ")");
    return static_cast<std::size_t>(queue);
  }

  std::vector<std::deque<Task>> tasks_;
};

}  // namespace execute
}  // namespace attention_balancer
