#pragma once
// What differs between xsimd 8.1 (Debian 12) and the current release, and what 8.1 gets wrong, is settled here.
// Beside the rest of simd/, nothing in the library names xsimd.

#include <cstdint>
#include <type_traits>
#include <utility>

#include "attention_balancer/core/config.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12, inside its own AVX-512 headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <xsimd/xsimd.hpp>
#pragma GCC diagnostic pop
#else
#include <xsimd/xsimd.hpp>
#endif

#if XSIMD_VERSION_MAJOR < 8 || (XSIMD_VERSION_MAJOR == 8 && XSIMD_VERSION_MINOR < 1)
#error "attention_balancer needs xsimd 8.1 or newer"
#endif

namespace attention_balancer::simd::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// a * b + c. xsimd 8.1 has no fused form for AVX-512: there it is a multiply and an add that a compiler may or may
/// not contract, which is neither fast nor the same everywhere.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> fma(const xsimd::batch<T, Arch>& a, const xsimd::batch<T, Arch>& b,
                                                    const xsimd::batch<T, Arch>& c) noexcept {
#if defined(__AVX512F__)
  if constexpr (sizeof(xsimd::batch<T, Arch>) == 64) {
    if constexpr (sizeof(T) == 4)
      return xsimd::batch<T, Arch>(_mm512_fmadd_ps(a, b, c));
    else
      return xsimd::batch<T, Arch>(_mm512_fmadd_pd(a, b, c));
  }
#endif
#if defined(__FMA__)
  if constexpr (sizeof(xsimd::batch<T, Arch>) == 32) {
    if constexpr (sizeof(T) == 4)
      return xsimd::batch<T, Arch>(_mm256_fmadd_ps(a, b, c));
    else
      return xsimd::batch<T, Arch>(_mm256_fmadd_pd(a, b, c));
  }
#endif
  return xsimd::fma(a, b, c);
}

/// max(a, b), and b where a is not a number. On x86 that is what the instruction does; xsimd's max has changed its
/// mind about not-a-number between releases.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> max_or_second(const xsimd::batch<T, Arch>& a,
                                                              const xsimd::batch<T, Arch>& b) noexcept {
  using Batch [[maybe_unused]] = xsimd::batch<T, Arch>;
#if defined(__AVX512F__)
  if constexpr (sizeof(Batch) == 64) {
    if constexpr (sizeof(T) == 4)
      return Batch(_mm512_max_ps(a, b));
    else
      return Batch(_mm512_max_pd(a, b));
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof(Batch) == 32) {
    if constexpr (sizeof(T) == 4)
      return Batch(_mm256_max_ps(a, b));
    else
      return Batch(_mm256_max_pd(a, b));
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(Batch) == 16) {
    if constexpr (sizeof(T) == 4)
      return Batch(_mm_max_ps(a, b));
    else
      return Batch(_mm_max_pd(a, b));
  }
#endif
  return xsimd::select(a > b, a, b);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE T reduce_add(const xsimd::batch<T, Arch>& x) noexcept {
#if XSIMD_VERSION_MAJOR >= 9
  return xsimd::reduce_add(x);
#else
  return xsimd::hadd(x);
#endif
}

/// The bits of x, an integral number plus a power of two that moved it into the low bits of the mantissa, as the
/// exponent field of a float: 2^n for n + bias in the low bits.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> shift_into_exponent(const xsimd::batch<T, Arch>& x) noexcept {
  using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
#if XSIMD_VERSION_MAJOR >= 11
  return xsimd::bitwise_cast<T>(xsimd::bitwise_cast<Integer>(x) << mantissa);
#else
  const auto bits = xsimd::bitwise_cast<xsimd::batch<Integer, Arch>>(x);
  return xsimd::bitwise_cast<xsimd::batch<T, Arch>>(bits << mantissa);
#endif
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ATTENTION_BALANCER_HAS_SHUFFLE 1
#endif
#endif

/// f(0), f(1), ... lane by lane. Put together in registers: small stores followed by a wide load would stall.
template <class Batch, class F, int... Lane>
ATTENTION_BALANCER_INLINE Batch generate(F f, std::integer_sequence<int, Lane...>) noexcept {
#if defined(__GNUC__) || defined(__clang__)
  using Register = typename Batch::register_type;
  return Batch(Register{f(Lane)...});
#else
  alignas(64) typename Batch::value_type values[] = {f(Lane)...};
  return Batch::load_aligned(values);
#endif
}

/// Interleaves the low (or high) halves of a and b over the whole register: a0 b0 a1 b1 ...
template <bool High, class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> interleave(const xsimd::batch<T, Arch>& a,
                                                           const xsimd::batch<T, Arch>& b) noexcept {
  using Batch = xsimd::batch<T, Arch>;
  constexpr int n = static_cast<int>(Batch::size);
  [[maybe_unused]] constexpr int from = High ? n / 2 : 0;
#if defined(ATTENTION_BALANCER_HAS_SHUFFLE)
  using Register = typename Batch::register_type;
  const Register x = a, y = b;
  if constexpr (n == 2)
    return Batch(Register(__builtin_shufflevector(x, y, from, n + from)));
  else if constexpr (n == 4)
    return Batch(Register(__builtin_shufflevector(x, y, from, n + from, from + 1, n + from + 1)));
  else if constexpr (n == 8)
    return Batch(Register(__builtin_shufflevector(x, y, from, n + from, from + 1, n + from + 1, from + 2, n + from + 2,
                                                  from + 3, n + from + 3)));
  else if constexpr (n == 16)
    return Batch(Register(__builtin_shufflevector(
        x, y, from, n + from, from + 1, n + from + 1, from + 2, n + from + 2, from + 3, n + from + 3, from + 4,
        n + from + 4, from + 5, n + from + 5, from + 6, n + from + 6, from + 7, n + from + 7)));
#else
  alignas(64) T in[2][n], out[n];
  a.store_aligned(in[0]);
  b.store_aligned(in[1]);
  for (int i = 0; i < n; ++i) out[i] = in[i % 2][from + i / 2];
  return Batch::load_aligned(out);
#endif
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd::detail
