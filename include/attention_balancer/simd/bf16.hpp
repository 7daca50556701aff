#pragma once
// The machine's dot products of pairs of bf16 (AVX512_BF16: AMD from Zen 4, Intel from Cooper Lake), which do twice as
// many multiplications as fma does. A pack of pairs is a pack of floats of which only the bits count: the lower half of
// a lane is the first number of its pair.

#include "attention_balancer/simd/convert.hpp"

namespace attention_balancer::simd {
ATTENTION_BALANCER_BEGIN_ISA

#if defined(ATTENTION_BALANCER_BF16_PRODUCTS)

/// Whether this translation unit is compiled for a machine with such products.
inline constexpr bool has_bf16_products = true;

/// c + a.first * b.first + a.second * b.second, rounded to nearest after each step; subnormal numbers count as 0.
/// Source: Intel, Architecture Instruction Set Extensions Programming Reference, VDPBF16PS.
template <class S>
ATTENTION_BALANCER_INLINE S multiply_pairs(const S& a, const S& b, const S& c) noexcept {
  static_assert(sizeof(S) == 64);
  return S(_mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b)));
}

/// Pairs of the lanes of two packs, rounded to nearest, ties to even; subnormal numbers become 0.
template <class S>
ATTENTION_BALANCER_INLINE S to_pairs(const S& first, const S& second) noexcept {
  static_assert(sizeof(S) == 64);
  // The conversion leaves `first` in the lower half, `second` in the upper.
  alignas(64) static constexpr std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                          21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                          11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  return S(_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(~__mmask32(0), _mm512_load_si512(order), both)));
}

/// The same for numbers that are not near the largest, at half the cost; ties away from 0. Of what is not a number some
/// become one.
template <class S>
ATTENTION_BALANCER_INLINE S to_pairs_of_weights(const S& first, const S& second) noexcept {
  static_assert(sizeof(S) == 64);
  const auto rounded = [](const S& x) {
    return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  };
  constexpr int a_or_b_and_c = 0xf8;
  return S(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_srli_epi32(rounded(first), 16), rounded(second),
                                                         _mm512_set1_epi32(-0x10000), a_or_b_and_c)));
}

/// Pairs of the first lanes_of<S> elements of two rows.
template <class S>
ATTENTION_BALANCER_INLINE S load_pairs(const bf16* first, const bf16* second) noexcept {
  static_assert(sizeof(S) == 64);
  const auto wide = [](const bf16* x) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  };
  return S(_mm512_castsi512_ps(_mm512_or_si512(wide(first), _mm512_slli_epi32(wide(second), 16))));
}

#else

inline constexpr bool has_bf16_products = false;

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
