#pragma once
// How many threads are measured, and who they are: all cores where there is OpenMP, otherwise the one that calls.

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <vector>

#include "attention_balancer/executor/openmp.hpp"
#include "attention_balancer/executor/sequential.hpp"

namespace bench {

/// One thread, and one for each core if there are more.
inline std::vector<int> thread_counts() {
#if defined(_OPENMP)
  if (const int all = omp_get_num_procs(); all > 1) return {1, all};
#endif
  return {1};
}

#if defined(_OPENMP)
using Team = attention_balancer::executor::OpenMp;
#else
using Team = attention_balancer::executor::Sequential;
#endif

inline Team team_of([[maybe_unused]] int threads) {
#if defined(_OPENMP)
  return {threads};
#else
  return {};
#endif
}

}  // namespace bench
