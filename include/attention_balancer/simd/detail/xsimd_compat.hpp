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

// xsimd finds an intrinsic for Arm in tables of all types, one for each operation, over which g++ 12 takes up to four
// seconds each. What is no operator is called by its name here.
#if defined(__aarch64__) && !(defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS > 0)
#define ATTENTION_BALANCER_NEON 1
#endif

namespace attention_balancer::simd::detail {
ATTENTION_BALANCER_BEGIN_ISA

// What has an intrinsic for each width and type is overloaded over the registers.

#if defined(__AVX512F__)
ATTENTION_BALANCER_INLINE __m512 fused(__m512 a, __m512 b, __m512 c) noexcept { return _mm512_fmadd_ps(a, b, c); }
ATTENTION_BALANCER_INLINE __m512d fused(__m512d a, __m512d b, __m512d c) noexcept {
  return _mm512_fmadd_pd(a, b, c);
}
#endif
#if defined(__FMA__)
ATTENTION_BALANCER_INLINE __m256 fused(__m256 a, __m256 b, __m256 c) noexcept { return _mm256_fmadd_ps(a, b, c); }
ATTENTION_BALANCER_INLINE __m256d fused(__m256d a, __m256d b, __m256d c) noexcept {
  return _mm256_fmadd_pd(a, b, c);
}
#endif

struct Maximum {
#if defined(__AVX512F__)
  ATTENTION_BALANCER_INLINE static __m512 of(__m512 a, __m512 b) noexcept { return _mm512_max_ps(a, b); }
  ATTENTION_BALANCER_INLINE static __m512d of(__m512d a, __m512d b) noexcept { return _mm512_max_pd(a, b); }
#endif
#if defined(__AVX__)
  ATTENTION_BALANCER_INLINE static __m256 of(__m256 a, __m256 b) noexcept { return _mm256_max_ps(a, b); }
  ATTENTION_BALANCER_INLINE static __m256d of(__m256d a, __m256d b) noexcept { return _mm256_max_pd(a, b); }
#endif
#if defined(__SSE2__)
  ATTENTION_BALANCER_INLINE static __m128 of(__m128 a, __m128 b) noexcept { return _mm_max_ps(a, b); }
  ATTENTION_BALANCER_INLINE static __m128d of(__m128d a, __m128d b) noexcept { return _mm_max_pd(a, b); }
#endif
  template <class S>
  ATTENTION_BALANCER_INLINE static auto mask(const S& a, const S& b) noexcept {
    return a > b;
  }
};
struct Minimum {
#if defined(__AVX512F__)
  ATTENTION_BALANCER_INLINE static __m512 of(__m512 a, __m512 b) noexcept { return _mm512_min_ps(a, b); }
  ATTENTION_BALANCER_INLINE static __m512d of(__m512d a, __m512d b) noexcept { return _mm512_min_pd(a, b); }
#endif
#if defined(__AVX__)
  ATTENTION_BALANCER_INLINE static __m256 of(__m256 a, __m256 b) noexcept { return _mm256_min_ps(a, b); }
  ATTENTION_BALANCER_INLINE static __m256d of(__m256d a, __m256d b) noexcept { return _mm256_min_pd(a, b); }
#endif
#if defined(__SSE2__)
  ATTENTION_BALANCER_INLINE static __m128 of(__m128 a, __m128 b) noexcept { return _mm_min_ps(a, b); }
  ATTENTION_BALANCER_INLINE static __m128d of(__m128d a, __m128d b) noexcept { return _mm_min_pd(a, b); }
#endif
  template <class S>
  ATTENTION_BALANCER_INLINE static auto mask(const S& a, const S& b) noexcept {
    return a < b;
  }
};

/// a * b + c. xsimd 8.1 has no fused form for AVX-512: there it is a multiply and an add that a compiler may or may
/// not contract, which is neither fast nor the same everywhere.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> fma(const xsimd::batch<T, Arch>& a, const xsimd::batch<T, Arch>& b,
                                                    const xsimd::batch<T, Arch>& c) noexcept {
  using Register = typename xsimd::batch<T, Arch>::register_type;
  if constexpr (requires(Register r) { fused(r, r, r); })
    return xsimd::batch<T, Arch>(fused(Register(a), Register(b), Register(c)));
  else
    return xsimd::fma(a, b, c);
}

#if defined(ATTENTION_BALANCER_NEON)

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> select(const xsimd::batch_bool<T, Arch>& mask,
                                                       const xsimd::batch<T, Arch>& a,
                                                       const xsimd::batch<T, Arch>& b) noexcept {
  if constexpr (sizeof(T) == 4)
    return xsimd::batch<T, Arch>(vbslq_f32(mask, a, b));
  else
    return xsimd::batch<T, Arch>(vbslq_f64(mask, a, b));
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> copy_sign(const xsimd::batch<T, Arch>& x,
                                                          const xsimd::batch<T, Arch>& sign) noexcept {
  if constexpr (sizeof(T) == 4)
    return xsimd::batch<T, Arch>(vbslq_f32(vdupq_n_u32(1u << 31), sign, x));
  else
    return xsimd::batch<T, Arch>(vbslq_f64(vdupq_n_u64(1ull << 63), sign, x));
}

#else

using xsimd::select;

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> copy_sign(const xsimd::batch<T, Arch>& x,
                                                          const xsimd::batch<T, Arch>& sign) noexcept {
  return xsimd::copysign(x, sign);
}

#endif

/// The Maximum or Minimum of a and b, and b where either is not a number. On x86 that is what the instruction does;
/// xsimd's max has changed its mind about not-a-number between releases.
template <class Which, class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> one_of(const xsimd::batch<T, Arch>& a,
                                                       const xsimd::batch<T, Arch>& b) noexcept {
  using Register = typename xsimd::batch<T, Arch>::register_type;
  if constexpr (requires(Register r) { Which::of(r, r); })
    return xsimd::batch<T, Arch>(Which::of(Register(a), Register(b)));
  else
    return detail::select(Which::mask(a, b), a, b);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE T reduce_add(const xsimd::batch<T, Arch>& x) noexcept {
#if XSIMD_VERSION_MAJOR >= 9
  return xsimd::reduce_add(x);
#else
  return xsimd::hadd(x);
#endif
}

/// The same bits as lanes of To.
template <class To, class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<To, Arch> bitwise_cast(const xsimd::batch<T, Arch>& x) noexcept {
#if XSIMD_VERSION_MAJOR >= 11
  return xsimd::bitwise_cast<To>(x);
#else
  return xsimd::bitwise_cast<xsimd::batch<To, Arch>>(x);
#endif
}

/// The bits of x, an integral number plus a power of two that moved it into the low bits of the mantissa, as the
/// exponent field of a float: 2^n for n + bias in the low bits.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> shift_into_exponent(const xsimd::batch<T, Arch>& x) noexcept {
  using Integer [[maybe_unused]] = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
#if defined(ATTENTION_BALANCER_NEON)
  if constexpr (sizeof(T) == 4)
    return xsimd::batch<T, Arch>(vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), mantissa)));
  else
    return xsimd::batch<T, Arch>(vreinterpretq_f64_s64(vshlq_n_s64(vreinterpretq_s64_f64(x), mantissa)));
#else
  return detail::bitwise_cast<T>(detail::bitwise_cast<Integer>(x) << mantissa);
#endif
}

/// The exponent field of a positive x as a number, and its mantissa as one in [1, 2).
template <class Batch>
struct Fields {
  Batch exponent, significand;
};
template <class T, class Arch>
ATTENTION_BALANCER_INLINE Fields<xsimd::batch<T, Arch>> fields_of(const xsimd::batch<T, Arch>& x) noexcept {
  using Batch = xsimd::batch<T, Arch>;
  using Integer = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr T integral = sizeof(T) == 4 ? T(8388608) : T(4503599627370496.0);  // its last bit is 1
  constexpr Integer field = (Integer(1) << mantissa) - 1;
  constexpr auto one = __builtin_bit_cast(Integer, T(1)), large = __builtin_bit_cast(Integer, integral);
#if defined(ATTENTION_BALANCER_NEON)
  if constexpr (sizeof(T) == 4) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t moved = vorrq_u32(vshrq_n_u32(bits, 23), vdupq_n_u32(large));
    const uint32x4_t kept = vorrq_u32(vandq_u32(bits, vdupq_n_u32(field)), vdupq_n_u32(one));
    return {Batch(vreinterpretq_f32_u32(moved)) - Batch(integral), Batch(vreinterpretq_f32_u32(kept))};
  } else {
    const uint64x2_t bits = vreinterpretq_u64_f64(x);
    const uint64x2_t moved = vorrq_u64(vshrq_n_u64(bits, 52), vdupq_n_u64(large));
    const uint64x2_t kept = vorrq_u64(vandq_u64(bits, vdupq_n_u64(field)), vdupq_n_u64(one));
    return {Batch(vreinterpretq_f64_u64(moved)) - Batch(integral), Batch(vreinterpretq_f64_u64(kept))};
  }
#else
  using Bits = xsimd::batch<Integer, Arch>;
  const Bits bits = detail::bitwise_cast<Integer>(x);
  const Bits moved = (bits >> mantissa) | Bits(large), kept = (bits & Bits(field)) | Bits(one);
  return {detail::bitwise_cast<T>(moved) - Batch(integral), detail::bitwise_cast<T>(kept)};
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

/// The first `count` lanes from memory, the others 0.
template <class Batch>
ATTENTION_BALANCER_INLINE Batch load_first(const typename Batch::value_type* from, int count) noexcept {
  using T = typename Batch::value_type;
#if defined(__AVX512F__)
  if constexpr (sizeof(Batch) == 64) {
    if constexpr (sizeof(T) == 4)
      return Batch(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
    else
      return Batch(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from));
  }
#endif
  alignas(64) T values[Batch::size] = {};
  for (int i = 0; i < count; ++i) values[i] = from[i];
  return Batch::load_aligned(values);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE void store_first(T* to, const xsimd::batch<T, Arch>& x, int count) noexcept {
#if defined(__AVX512F__)
  if constexpr (sizeof(x) == 64) {
    if constexpr (sizeof(T) == 4)
      return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
    else
      return _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), x);
  }
#endif
  alignas(64) T values[xsimd::batch<T, Arch>::size];
  x.store_aligned(values);
  for (int i = 0; i < count; ++i) to[i] = values[i];
}

/// Lane i is from[i].
template <class Batch>
ATTENTION_BALANCER_INLINE Batch load_bytes(const unsigned char* from) noexcept {
  constexpr int n = static_cast<int>(Batch::size);
  [[maybe_unused]] constexpr bool single = sizeof(typename Batch::value_type) == 4;
#if defined(__AVX512F__)
  if constexpr (n == 16)
    return Batch(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
  if constexpr (n == 8 && !single)
    return Batch(_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
#endif
#if defined(__AVX2__)
  if constexpr (n == 8 && single)
    return Batch(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
#endif
  return generate<Batch>([from](int lane) { return static_cast<typename Batch::value_type>(from[lane]); },
                         std::make_integer_sequence<int, n>{});
}

/// Elements of the parts of 128 bits within which a machine moves elements most cheaply.
template <class T>
inline constexpr int per_part = 16 / static_cast<int>(sizeof(T));

// What the shuffles below choose: element i of the result is element pattern[i] of a followed by b.

/// Within each part, the low (or high) halves of a and b in turn, Chunk elements at a time.
template <bool High, int Chunk, class T>
constexpr int unpacked(int n, int i) {
  const int part = i / per_part<T> * per_part<T>, at = i % per_part<T>;
  return part + (High ? per_part<T> / 2 : 0) + at / (2 * Chunk) * Chunk + at % Chunk + (at / Chunk % 2) * n;
}

/// The even (or odd) parts of a, then those of b.
template <bool Odd, class T>
constexpr int every_other_part(int i) {
  const int part = i / per_part<T>;  // counts through a, then b
  return (2 * part + (Odd ? 1 : 0)) * per_part<T> + i % per_part<T>;
}

template <class Pattern, class T, class Arch, int... Lane>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> shuffle(const xsimd::batch<T, Arch>& a, const xsimd::batch<T, Arch>& b,
                                                        std::integer_sequence<int, Lane...>) noexcept {
  using Batch = xsimd::batch<T, Arch>;
#if defined(ATTENTION_BALANCER_HAS_SHUFFLE)
  using Register = typename Batch::register_type;
  const Register x = a, y = b;
  return Batch(Register(__builtin_shufflevector(x, y, Pattern::at(sizeof...(Lane), Lane)...)));
#else
  constexpr int n = sizeof...(Lane);
  alignas(64) T in[2 * n], out[n] = {};
  a.store_aligned(in);
  b.store_aligned(in + n);
  ((out[Lane] = in[Pattern::at(n, Lane)]), ...);
  return Batch::load_aligned(out);
#endif
}

template <bool High, int Chunk, class T>
struct Unpack {
  static constexpr int at(int n, int i) { return unpacked<High, Chunk, T>(n, i); }
};
template <bool Odd, class T>
struct EveryOtherPart {
  static constexpr int at(int, int i) { return every_other_part<Odd, T>(i); }
};

template <bool High, int Chunk, class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> unpack(const xsimd::batch<T, Arch>& a,
                                                       const xsimd::batch<T, Arch>& b) noexcept {
  return shuffle<Unpack<High, Chunk, T>>(a, b, std::make_integer_sequence<int, xsimd::batch<T, Arch>::size>{});
}
template <bool Odd, class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> parts(const xsimd::batch<T, Arch>& a,
                                                      const xsimd::batch<T, Arch>& b) noexcept {
  return shuffle<EveryOtherPart<Odd, T>>(a, b, std::make_integer_sequence<int, xsimd::batch<T, Arch>::size>{});
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd::detail
