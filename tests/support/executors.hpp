#pragma once
// Threads however small a call is: the tests want them to change nothing where they do share the work.

#include "support/check.hpp"
#if defined(ATTENTION_BALANCER_HAS_TBB)
#include "attention_balancer/executor/tbb.hpp"
#endif

namespace support {

#if defined(_OPENMP)
inline ab::executor::OpenMp openmp(Index threads) { return {.threads = threads, .grain = 0}; }
#endif

#if defined(ATTENTION_BALANCER_HAS_TBB)
inline ab::executor::Tbb tbb(Index threads) { return {.threads = threads, .grain = 0}; }
#endif

}  // namespace support
