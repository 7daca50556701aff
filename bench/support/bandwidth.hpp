#pragma once
// What reading memory costs at most: plain loads, one after another, over the very memory that a kernel reads.

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cstddef>

#include "attention_balancer/simd/pack.hpp"

namespace bench {

/// Reads `bytes` bytes, cut among `threads` threads, and does nothing with them.
inline void read_through(const void* memory, std::size_t bytes, [[maybe_unused]] int threads) {
  namespace simd = attention_balancer::simd;
  using Pack = simd::Pack<float>;
  const float* const first = static_cast<const float*>(memory);
  const std::ptrdiff_t step = 8 * simd::lanes<float>,
                       steps = static_cast<std::ptrdiff_t>(bytes / sizeof(float)) / step;
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
  for (std::ptrdiff_t i = 0; i < steps; ++i) {
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < 8; ++k) {
      const Pack x = simd::load<Pack>(first + i * step + k * simd::lanes<float>);
      asm volatile("" : : "m"(x));
    }
  }
}

}  // namespace bench
