#pragma once
// Loading packs from what keys and values are stored in. xsimd has no packs of 16-bit numbers: they are converted
// as they are loaded, by the machine's own instructions where it has them.

#include <cstdint>

#include "attention_balancer/core/storage.hpp"
#include "attention_balancer/simd/pack.hpp"

namespace attention_balancer::simd {

/// As prefetch, for a cache line that will be written.
ATTENTION_BALANCER_INLINE void prefetch_to_write(void* address) noexcept {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 1, 2);
#else
  (void)address;
#endif
}

ATTENTION_BALANCER_BEGIN_ISA

/// A pack of the first lanes_of<S> elements, converted.
template <class S, class Stored>
ATTENTION_BALANCER_INLINE S load_as(const Stored* from) noexcept {
  using T = scalar_of<S>;
  constexpr int n = lanes_of<S>;
  if constexpr (std::is_same_v<Stored, T>) {
    return load<S>(from);
  } else {
    static_assert(std::is_same_v<T, float>);
    constexpr bool is_bf16 [[maybe_unused]] = std::is_same_v<Stored, bf16>;
    constexpr bool is_f16 [[maybe_unused]] = std::is_same_v<Stored, f16>;
#if defined(__AVX512F__) && !defined(ATTENTION_BALANCER_NO_SIMD)
    if constexpr (n == 16) {
      if constexpr (is_bf16)
        return S(_mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16)));
      else if constexpr (is_f16)
        return S(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
      else
        return S(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
    }
#endif
#if defined(__AVX2__) && !defined(ATTENTION_BALANCER_NO_SIMD)
    if constexpr (n == 8) {
      if constexpr (is_bf16)
        return S(_mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 16)));
#if defined(__F16C__)
      else if constexpr (is_f16)
        return S(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#endif
      else if constexpr (std::is_same_v<Stored, std::int8_t>)
        return S(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
    }
#endif
    alignas(64) T converted[n];
    for (int l = 0; l < n; ++l) converted[l] = static_cast<T>(from[l]);
    return load_aligned<S>(static_cast<const T*>(converted));
  }
}

/// A pack of the first `count` elements, converted, 0 < count < lanes_of<S>; the other lanes are 0. Reads no
/// further.
template <class S, class Stored>
ATTENTION_BALANCER_INLINE S load_first_as(const Stored* from, int count) noexcept {
  constexpr int n = lanes_of<S>;
#if defined(__AVX512F__) && !defined(ATTENTION_BALANCER_NO_SIMD)
  if constexpr (sizeof(S) == 64 && std::is_same_v<Stored, float>)
    return S(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from));
  if constexpr (sizeof(S) == 64 && std::is_same_v<Stored, double>)
    return S(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), from));
#endif
#if defined(__AVX2__) && !defined(ATTENTION_BALANCER_NO_SIMD)
  if constexpr (sizeof(S) == 32 && std::is_same_v<Stored, float>) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return S(_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)));
  }
  if constexpr (sizeof(S) == 32 && std::is_same_v<Stored, double>) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return S(_mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane)));
  }
#endif
  alignas(64) Stored first[n] = {};
  for (int l = 0; l < count; ++l) first[l] = from[l];
  return load_as<S>(static_cast<const Stored*>(first));
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
