#pragma once
#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "attention_balancer/core/types.hpp"

namespace attention_balancer::executor {

/// OpenMP threads: `threads` of them, or as many as OpenMP would start if 0. Needs -fopenmp where it is used.
struct OpenMp {
  Index threads = 0;

#if defined(_OPENMP)
  Index concurrency() const noexcept { return threads > 0 ? threads : static_cast<Index>(omp_get_max_threads()); }

  template <class F>
  void for_each(Index n, F&& f) const {
    const int team = static_cast<int>(std::max(Index(1), std::min(n, concurrency())));
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
