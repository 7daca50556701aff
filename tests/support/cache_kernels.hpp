#pragma once
// As kernels.hpp, for each storage of a cache: compiled once for all tests and examples, in cache_kernels.cpp.

#include "attention_balancer/attention/cached.hpp"
#include "attention_balancer/executor/openmp.hpp"
#include "kernels.hpp"

#if !defined(ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES)
#define ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES extern
#endif

// Calls with an executor each, which a file that only calls attention is spared whole, and the classes behind them.
#define ATTENTION_BALANCER_TEST_CACHE_CALL(T, Stored, Executor)                                                 \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template void run_call_on_cache(                                   \
      const Call<T>&, const KvView<Stored>&, bool, Evidence<T>*, Workspace&, const Executor&, Index);           \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template void run_sequences(                                       \
      const Call<T>&, const CacheSequences<T, Stored>&, std::span<Evidence<T>>, Workspace&, const Executor&, Index)
#define ATTENTION_BALANCER_TEST_CACHE(T, Stored)                                                                \
  ATTENTION_BALANCER_TEST_CACHE_CALL(T, Stored, executor::Sequential);                                          \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template class PackedWorker<T, CacheSequences<T, Stored>>;         \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template Problem check_cached(const Layout&, const KvView<Stored>&, \
                                                                           const Layout*, bool)
#define ATTENTION_BALANCER_TEST_DECODER(T, Stored)                                   \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template class Decoder<T, Stored>;      \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template class DecodeMass<T, Stored>;   \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES template class SplitWork<T, Stored>

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

ATTENTION_BALANCER_TEST_DECODER(float, bf16);
ATTENTION_BALANCER_TEST_DECODER(float, f16);
ATTENTION_BALANCER_TEST_DECODER(float, std::int8_t);
ATTENTION_BALANCER_TEST_CACHE(float, float);
ATTENTION_BALANCER_TEST_CACHE(float, bf16);
ATTENTION_BALANCER_TEST_CACHE(float, f16);
ATTENTION_BALANCER_TEST_CACHE(float, std::int8_t);
ATTENTION_BALANCER_TEST_CACHE(double, double);
#if defined(_OPENMP)
ATTENTION_BALANCER_TEST_CACHE_CALL(float, float, executor::OpenMp);
ATTENTION_BALANCER_TEST_CACHE_CALL(float, bf16, executor::OpenMp);
ATTENTION_BALANCER_TEST_CACHE_CALL(float, f16, executor::OpenMp);
ATTENTION_BALANCER_TEST_CACHE_CALL(float, std::int8_t, executor::OpenMp);
#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
