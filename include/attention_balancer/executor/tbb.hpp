#pragma once
// oneTBB's threads. In no umbrella: include it where TBB is installed, and link TBB::tbb.

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <atomic>

#include "attention_balancer/core/types.hpp"
#include "attention_balancer/executor/sequential.hpp"

namespace attention_balancer::executor {

/// oneTBB's threads: `threads` of them at most, or as many as the calling thread's arena has if 0. Waiting for the
/// pieces of a call, a thread takes none of the work around it, so that a Workspace per thread is safe inside a
/// tbb::parallel_for.
struct Tbb {
  Index threads = 0;
  Index grain = default_grain;  ///< multiply-adds that are worth one more thread

  Index concurrency() const noexcept {
    return threads > 0 ? threads : std::max(Index(1), Index(oneapi::tbb::this_task_arena::max_concurrency()));
  }

  template <class F>
  void for_each(Index n, F&& f) const {
    const Index tasks = std::min(n, concurrency());
    if (tasks <= 1) {
      for (Index i = 0; i < n; ++i) f(i);
      return;
    }
    std::atomic<Index> next{0};
    auto take = [&](Index) {
      for (Index i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(i);
    };
    oneapi::tbb::this_task_arena::isolate(
        [&] { oneapi::tbb::parallel_for(Index(0), tasks, take, oneapi::tbb::simple_partitioner{}); });
  }
};

}  // namespace attention_balancer::executor
