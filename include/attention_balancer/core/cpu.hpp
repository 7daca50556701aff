#pragma once
// What the machine that runs the program can do, asked of the processor itself. Standard library only.

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string_view>

#include "attention_balancer/core/config.hpp"

#if defined(ATTENTION_BALANCER_AMX)
#include <sys/syscall.h>
#endif

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif
#if !defined(_SC_NPROCESSORS_ONLN)
#include <thread>
#endif

namespace attention_balancer {

/// The instruction sets that kernels are compiled for, on each processor from the least demanding to the most.
enum class Isa { scalar, sse2, avx2, avx512, avx512bf16, neon64 };

namespace detail {

struct NamedIsa {
  std::string_view name;
  Isa isa;
};
inline constexpr NamedIsa named_isas[] = {
    {"scalar", Isa::scalar},         {"sse2", Isa::sse2},    {"avx2", Isa::avx2}, {"avx512", Isa::avx512},
    {"avx512bf16", Isa::avx512bf16}, {"neon64", Isa::neon64}};

#if defined(__x86_64__) || defined(__i386__)

ATTENTION_BALANCER_BEGIN_ISA

/// What the processor says of itself in a leaf of CPUID; all 0 if it has no such leaf. Source: Intel SDM, volume 2.
struct CpuLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;

  explicit CpuLeaf(unsigned leaf, unsigned part = 0) noexcept {
    if (!__get_cpuid_count(leaf, part, &eax, &ebx, &ecx, &edx)) eax = ebx = ecx = edx = 0;
  }
};

constexpr bool has_bits(unsigned x, unsigned bits) noexcept { return (x & bits) == bits; }

ATTENTION_BALANCER_END_ISA

#endif

}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// How many threads the machine runs at once; at least 1. Asked of the system: <thread> takes longer to compile than all
/// of this header.
[[nodiscard]] inline long processors() noexcept {
#if defined(_SC_NPROCESSORS_ONLN)
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
#else
  const long online = static_cast<long>(std::thread::hardware_concurrency());
#endif
  return online < 1 ? 1 : online;
}

/// Whether this machine, its operating system included, runs code compiled for `isa`: all of x86-64-v3 for avx2, all of
/// x86-64-v4 for avx512, and AVX512_BF16 and AVX512_VNNI beside it for avx512bf16, as CMake's
/// attention_balancer_target_isa compiles them.
[[nodiscard]] inline bool cpu_runs(Isa isa) noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::scalar: return true;
    case Isa::sse2: return __builtin_cpu_supports("sse2") != 0;
    case Isa::avx2: {
      // What clang 14 has no name for: F16C, MOVBE and LZCNT, which virtual machines can hide.
      constexpr unsigned f16c_and_movbe = 1u << 29 | 1u << 22, lzcnt = 1u << 5;
      return detail::has_bits(detail::CpuLeaf(1).ecx, f16c_and_movbe) &&
             detail::has_bits(detail::CpuLeaf(0x80000001u).ecx, lzcnt) && __builtin_cpu_supports("avx2") &&
             __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
             __builtin_cpu_supports("popcnt");
    }
    case Isa::avx512:
      return cpu_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::avx512bf16: {
      constexpr unsigned avx512_bf16 = 1u << 5;
      return cpu_runs(Isa::avx512) && __builtin_cpu_supports("avx512vnni") &&
             detail::has_bits(detail::CpuLeaf(7, 1).eax, avx512_bf16);
    }
    case Isa::neon64: return false;
  }
  return false;
#elif defined(__aarch64__)
  return isa == Isa::scalar || isa == Isa::neon64;  // part of the base architecture
#else
  return isa == Isa::scalar;
#endif
}

#if defined(ATTENTION_BALANCER_AMX)

/// Whether this process may use the products of bf16 of AMX: the machine has them, its operating system keeps their
/// registers, and lets the process use these, for which it is asked once. ATTENTION_BALANCER_AMX=0 in the environment
/// says no. Source: Intel SDM, volume 1, chapter 18; the documentation of Linux, "Using XSTATE features in user space
/// applications".
[[nodiscard]] inline bool may_use_amx() noexcept {
  static const bool may = [] {
    if (const char* wanted = std::getenv("ATTENTION_BALANCER_AMX"); wanted != nullptr && *wanted == '0')
      return false;
    constexpr unsigned osxsave = 1u << 27, amx_bf16_and_tile = 1u << 22 | 1u << 24,
                       tile_state = 1u << 17 | 1u << 18;
    if (!detail::has_bits(detail::CpuLeaf(1).ecx, osxsave)) return false;
    if (!detail::has_bits(detail::CpuLeaf(7).edx, amx_bf16_and_tile)) return false;
    unsigned enabled = 0, upper = 0;
    asm volatile("xgetbv" : "=a"(enabled), "=d"(upper) : "c"(0));
    if (!detail::has_bits(enabled, tile_state)) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return may;
}

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer
