#include "attention_balancer/execute/work_budget.hpp"

#include <atomic>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "attention_balancer/execute/route.hpp"
#include "attention_balancer/executor/openmp.hpp"
#include "attention_balancer/executor/sequential.hpp"
#include "support/catch.hpp"
#if defined(ATTENTION_BALANCER_HAS_TBB)
#include "attention_balancer/executor/tbb.hpp"
#endif

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Counts = std::vector<Index>;

TEST_CASE("as many items as units, in proportion all the time") {
  const auto plan = execute::work_budget(Counts{4, 2, 0, 1}, Counts{9, 9, 9, 9});
  CHECK(plan.takes() == Counts{4, 2, 0, 1});
  std::string order;
  for (const auto& item : plan.order()) order += std::to_string(item.queue);
  CHECK(order == "0103010");
  CHECK(plan.order()[2] == execute::WorkPlan::Item{0, 1});
}

TEST_CASE("what a queue cannot use is lent, or wasted if so meant") {
  CHECK(execute::work_budget(Counts{6, 3, 1}, Counts{1, 20, 20}).takes() == Counts{1, 7, 2});
  CHECK(execute::work_budget(Counts{6, 3, 1}, Counts{1, 20, 20}, execute::Idle::waste).takes() == Counts{1, 3, 1});
  CHECK(execute::work_budget(Counts{6, 3, 0}, Counts{1, 4, 20}).takes() == Counts{1, 4, 4});
  CHECK(execute::work_budget(Counts{6, 3, 1}, Counts{2, 1, 0}).takes() == Counts{2, 1, 0});
  CHECK(execute::work_budget(Counts{0, 0}, Counts{2, 1}).takes() == Counts{0, 0});
  CHECK(execute::work_budget(Counts{}, Counts{}).order().empty());
}

TEST_CASE("bad units name their queue") {
  CHECK_THROWS_AS(execute::work_budget(Counts{1}, Counts{1, 2}), ab::ShapeError);
  CHECK_THROWS_WITH(execute::work_budget(Counts{1, -1}, Counts{1, 2}),
                    "units of queue 1 is -1, but must not be negative");
  CHECK_THROWS_WITH(execute::work_budget(Counts{1, 1}, Counts{1, -2}),
                    "waiting items of queue 1 is -2, but must not be negative");
  CHECK_THROWS_AS(execute::work_budget(Counts{Index(1) << 53, 1}, Counts{0, 0}), ab::BudgetError);
}

namespace {

/// A pool of the user's own: four threads that take the next item.
struct Threads {
  template <class F>
  void for_each(Index n, F&& f) const {
    std::atomic<Index> next{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&] {
        for (Index i = next++; i < n; i = next++) f(i);
      });
    for (auto& thread : threads) thread.join();
  }
};

/// Runs three queues dry and returns what came out, task by task, and how many ran in each cycle.
template <class Executor>
std::pair<std::vector<double>, std::vector<Counts>> run_dry(const Executor& executor) {
  struct Task {
    std::size_t slot;
    double x;
  };
  execute::WorkQueues<Task> queues(3);
  std::vector<double> results(60, 0.0);
  std::vector<std::atomic<int>> runs(60);
  for (std::size_t i = 0; i < 60; ++i) queues.push(static_cast<Index>(i % 3), {i, 1.0 + static_cast<double>(i)});
  std::vector<Counts> cycles;
  while (queues.waiting(0) + queues.waiting(1) + queues.waiting(2) > 0)
    cycles.push_back(queues.run(Counts{5, 3, 1}, executor, [&](Index, Task& task) {
      for (int k = 0; k < 100; ++k) results[task.slot] += task.x / (1.0 + k);
      ++runs[task.slot];
    }));
  for (const auto& r : runs) CHECK(r == 1);
  return {results, cycles};
}

}  // namespace

TEST_CASE("a pool runs every task once, with the same results on any executor") {
  const auto sequential = run_dry(ab::executor::Sequential{});
  CHECK(sequential.second[0] == Counts{5, 3, 1});
  CHECK(sequential.second.back() == Counts{0, 0, 6});
  CHECK(sequential.second.size() == 7);  // 60 tasks, 9 at a time
#if defined(_OPENMP)
  CHECK(run_dry(ab::executor::OpenMp{4}) == sequential);
#endif
#if defined(ATTENTION_BALANCER_HAS_TBB)
  CHECK(run_dry(ab::executor::Tbb{4}) == sequential);
#endif
  CHECK(run_dry(Threads{}) == sequential);
}

TEST_CASE("in one thread the tasks of a queue run in the order in which they came") {
  execute::WorkQueues<int> queues(2);
  for (int i = 0; i < 6; ++i) queues.push(i % 2, i);
  std::vector<int> order;
  for (int cycle = 0; cycle < 2; ++cycle)
    queues.run(Counts{2, 1}, ab::executor::Sequential{}, [&](Index, int task) { order.push_back(task); });
  CHECK(order == std::vector<int>{0, 1, 2, 3, 4, 5});  // then queue 0 has one task left, and lends a unit
  CHECK_THROWS_WITH(queues.push(2, 0), "queue is 2, but must be in [0, queues = 2)");
  CHECK_THROWS_AS(queues.waiting(-1), ab::ShapeError);
  CHECK_THROWS_AS(queues.run(Counts{1}, ab::executor::Sequential{}, [](Index, int) {}), ab::ShapeError);
  CHECK_THROWS_AS(execute::WorkQueues<int>(0), ab::ShapeError);
}

TEMPLATE_TEST_CASE("route chooses with the bias and weights without it", "", SCALARS) {
  using V = std::vector<TestType>;
  const V scores{TestType(0.1), TestType(0.5), TestType(0.4)};
  auto route = execute::route(scores, V{0, 0, 0}, 2);
  CHECK(route.chosen == Counts{1, 2});
  CHECK(route.weights[0] == Approx(5.0 / 9));
  route = execute::route(scores, V{TestType(0.35), 0, 0}, 2);
  CHECK(route.chosen == Counts{0, 1});
  CHECK(route.weights[0] == Approx(1.0 / 6));
  CHECK(execute::route(V{0, 0}, V{0, 0}, 1).chosen == Counts{0});
  CHECK(execute::route(V{0, 0}, V{0, 0}, 2).weights[1] == Approx(0.5));
  CHECK_THROWS_AS(execute::route(scores, V{0, 0, 0}, 0), ab::BudgetError);
  CHECK_THROWS_AS(execute::route(scores, V{0, 0, 0}, 4), ab::BudgetError);
  CHECK_THROWS_AS(execute::route(scores, V{0, 0}, 1), ab::ShapeError);
  CHECK_THROWS_WITH(execute::route(V{1, -1}, V{0, 0}, 1), ContainsSubstring("weight of item 1 is -1"));
  CHECK_THROWS_WITH(execute::route(V{1, 1}, V{0, std::numeric_limits<TestType>::quiet_NaN()}, 1),
                    ContainsSubstring("bias of item 1 is nan"));
}
