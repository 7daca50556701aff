#pragma once
// Who computes in the examples: all threads where there is OpenMP, otherwise the one that calls.

#include "attention_balancer/executor/openmp.hpp"
#include "attention_balancer/executor/sequential.hpp"

namespace example {

#if defined(_OPENMP)
using Executor = attention_balancer::executor::OpenMp;
#else
using Executor = attention_balancer::executor::Sequential;
#endif

/// `threads` 0 is all of them, where there is OpenMP.
inline Executor executor_of([[maybe_unused]] int threads) {
#if defined(_OPENMP)
  return {threads};
#else
  return {};
#endif
}

}  // namespace example
