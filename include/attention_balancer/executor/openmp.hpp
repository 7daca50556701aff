#pragma once
#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "attention_balancer/core/types.hpp"
#include "attention_balancer/executor/sequential.hpp"

namespace attention_balancer::executor {

/// OpenMP threads: `threads` of them, or as many as OpenMP would start if 0. Needs -fopenmp where it is used.
struct OpenMp {
  Index threads = 0;
  Index grain = default_grain;  ///< multiply-adds that are worth one more thread

#if defined(_OPENMP)
  Index concurrency() const noexcept { return threads > 0 ? threads : static_cast<Index>(omp_get_max_threads()); }

  template <class F>
  void for_each(Index n, F&& f) const {
    // The whole of OpenMP's own team, be there work for all of it or not: where the next team is smaller, libgomp ends
    // the threads that are too many, and has to start them again for the one after it. Nested teams it does not keep.
    const Index kept = omp_in_parallel() ? Index(1) : static_cast<Index>(omp_get_max_threads());
    const int team = static_cast<int>(n <= 1 ? Index(1) : std::min(concurrency(), std::max(n, kept)));
    if (team == 1) {
      for (Index i = 0; i < n; ++i) f(i);
      return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (Index i = 0; i < n; ++i) f(i);
  }
#else
  template <class F>
  void for_each(Index, F&&) const {
    static_assert(sizeof(F) == 0, "attention_balancer: executor::OpenMp needs OpenMP, compile with -fopenmp");
  }
#endif
};

}  // namespace attention_balancer::executor
