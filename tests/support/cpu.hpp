#pragma once
// Whether this machine runs what was compiled.

#include "attention_balancer/core/cpu.hpp"

namespace support {

/// The name of an instruction set that this file was compiled for and that this machine lacks, or nullptr.
inline const char* missing_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512f")) return "AVX-512F";
#endif
#if defined(__AVX512BW__)
  if (!__builtin_cpu_supports("avx512bw")) return "AVX-512BW";
#endif
#if defined(__AVX512DQ__)
  if (!__builtin_cpu_supports("avx512dq")) return "AVX-512DQ";
#endif
#if defined(__AVX512CD__)
  if (!__builtin_cpu_supports("avx512cd")) return "AVX-512CD";
#endif
#if defined(__AVX512VL__)
  if (!__builtin_cpu_supports("avx512vl")) return "AVX-512VL";
#endif
#if defined(__AVX512VNNI__)
  if (!__builtin_cpu_supports("avx512vnni")) return "AVX512_VNNI";
#endif
#if defined(__AVX512BF16__)
  if (!__builtin_cpu_supports("avx512bf16")) return "AVX512_BF16";
#endif
#if defined(__AVX512FP16__)
  // What clang 14 has no name for: bit 23 of leaf 7.
  if (!attention_balancer::detail::has_bits(attention_balancer::detail::CpuLeaf(7).edx, 1u << 23))
    return "AVX512_FP16";
#endif
#if defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2")) return "AVX2";
#endif
#if defined(__FMA__)
  if (!__builtin_cpu_supports("fma")) return "FMA";
#endif
#endif
  return nullptr;
}

/// The same of the test program, whose main() may come from another build: tests/support/cpu.cpp.
const char* isa_missing_to_tests();

}  // namespace support
