#pragma once
// Products of 16-bit integers with bytes, in sums of 32 bits, which are exact: one instruction multiplies twice as many
// numbers as fma does, and two tell bytes from words where float needs a conversion more. A pack of integers is a pack
// of floats of which only the bits count: twice its lanes of words, or its lanes of sums.

#include <cstring>

#include "attention_balancer/simd/convert.hpp"

namespace attention_balancer::simd {
ATTENTION_BALANCER_BEGIN_ISA

/// What packs of integers can do, where the translation unit is compiled for a machine that has them.
template <class S>
struct Integers;

namespace detail {

ATTENTION_BALANCER_INLINE int pair_of(const std::int16_t* from) noexcept {
  int both;
  std::memcpy(&both, from, sizeof both);
  return both;
}

}  // namespace detail

#if defined(ATTENTION_BALANCER_INTEGER_PRODUCTS) && defined(__AVX512F__)

inline constexpr bool has_integer_products = true;

template <>
struct Integers<Pack<float>> {
  using S = Pack<float>;

  /// Words from the first bytes of a row.
  ATTENTION_BALANCER_INLINE static S load(const std::int8_t* from) noexcept {
    return pack(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }

  /// The same of `count` bytes, fewer than there are words, with zeros behind them. Reads no further.
  ATTENTION_BALANCER_INLINE static S load_first(const std::int8_t* from, int count) noexcept {
    const __m512i bytes = _mm512_maskz_loadu_epi8((__mmask64(1) << count) - 1, from);
    return pack(_mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)));
  }

  /// Words from memory aligned to their size, and one pair of words again and again.
  ATTENTION_BALANCER_INLINE static S load_aligned(const std::int16_t* from) noexcept {
    return pack(_mm512_load_si512(from));
  }
  ATTENTION_BALANCER_INLINE static S load_pair(const std::int16_t* from) noexcept {
    return pack(_mm512_set1_epi32(detail::pair_of(from)));
  }

  /// to [2 lanes] = floats, rounded to nearest: those of `first`, then those of `second`.
  ATTENTION_BALANCER_INLINE static void store_rounded(std::int16_t* to, const S& first, const S& second) noexcept {
    const auto words = [](const S& x) { return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)); };
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words(first));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + lanes<float>), words(second));
  }

  /// sums + a.first * b.first + a.second * b.second, for the pairs of words of each sum.
  ATTENTION_BALANCER_INLINE static S multiply_add(const S& a, const S& b, const S& sums) noexcept {
#if defined(ATTENTION_BALANCER_BF16_PRODUCTS)  // AVX512_VNNI with it
    return in_register(pack(_mm512_dpwssd_epi32(bits(sums), bits(a), bits(b))));
#else
    return in_register(add(pack(_mm512_madd_epi16(bits(a), bits(b))), sums));
#endif
  }

  ATTENTION_BALANCER_INLINE static S add(const S& a, const S& b) noexcept {
    return pack(_mm512_add_epi32(bits(a), bits(b)));
  }

  /// Pairs of a word of `a` and the same of `b`, half of them each, in an order that in_order undoes.
  ATTENTION_BALANCER_INLINE static S low_pairs(const S& a, const S& b) noexcept {
    return pack(_mm512_unpacklo_epi16(bits(a), bits(b)));
  }
  ATTENTION_BALANCER_INLINE static S high_pairs(const S& a, const S& b) noexcept {
    return pack(_mm512_unpackhi_epi16(bits(a), bits(b)));
  }

  /// Sums of products with low_pairs and with high_pairs become the first and the second half of them.
  ATTENTION_BALANCER_INLINE static void in_order(S& low, S& high) noexcept {
    const __m512i first = _mm512_shuffle_i64x2(bits(low), bits(high), 0x44),
                  second = _mm512_shuffle_i64x2(bits(low), bits(high), 0xee);
    low = pack(_mm512_shuffle_i64x2(first, first, 0xd8));
    high = pack(_mm512_shuffle_i64x2(second, second, 0xd8));
  }

  ATTENTION_BALANCER_INLINE static S to_float(const S& sums) noexcept { return S(_mm512_cvtepi32_ps(bits(sums))); }

 private:
  ATTENTION_BALANCER_INLINE static __m512i bits(const S& x) noexcept { return _mm512_castps_si512(x); }
  ATTENTION_BALANCER_INLINE static S pack(__m512i x) noexcept { return S(_mm512_castsi512_ps(x)); }
};

#elif defined(ATTENTION_BALANCER_INTEGER_PRODUCTS)

inline constexpr bool has_integer_products = true;

template <>
struct Integers<Pack<float>> {
  using S = Pack<float>;

  ATTENTION_BALANCER_INLINE static S load(const std::int8_t* from) noexcept {
    return pack(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  ATTENTION_BALANCER_INLINE static S load_first(const std::int8_t* from, int count) noexcept {
    alignas(16) std::int8_t first[16] = {};
    for (int i = 0; i < count; ++i) first[i] = from[i];
    return load(first);
  }
  ATTENTION_BALANCER_INLINE static S load_aligned(const std::int16_t* from) noexcept {
    return pack(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
  }
  ATTENTION_BALANCER_INLINE static S load_pair(const std::int16_t* from) noexcept {
    return pack(_mm256_set1_epi32(detail::pair_of(from)));
  }
  ATTENTION_BALANCER_INLINE static void store_rounded(std::int16_t* to, const S& first, const S& second) noexcept {
    const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(both, 0xd8));
  }
  ATTENTION_BALANCER_INLINE static S multiply_add(const S& a, const S& b, const S& sums) noexcept {
    // g++ would copy each sum to another register.
    return in_register(add(pack(_mm256_madd_epi16(bits(a), bits(b))), sums));
  }
  ATTENTION_BALANCER_INLINE static S add(const S& a, const S& b) noexcept {
    return pack(_mm256_add_epi32(bits(a), bits(b)));
  }
  ATTENTION_BALANCER_INLINE static S low_pairs(const S& a, const S& b) noexcept {
    return pack(_mm256_unpacklo_epi16(bits(a), bits(b)));
  }
  ATTENTION_BALANCER_INLINE static S high_pairs(const S& a, const S& b) noexcept {
    return pack(_mm256_unpackhi_epi16(bits(a), bits(b)));
  }
  ATTENTION_BALANCER_INLINE static void in_order(S& low, S& high) noexcept {
    const __m256i first = _mm256_permute2x128_si256(bits(low), bits(high), 0x20);
    high = pack(_mm256_permute2x128_si256(bits(low), bits(high), 0x31));
    low = pack(first);
  }
  ATTENTION_BALANCER_INLINE static S to_float(const S& sums) noexcept { return S(_mm256_cvtepi32_ps(bits(sums))); }

 private:
  ATTENTION_BALANCER_INLINE static __m256i bits(const S& x) noexcept { return _mm256_castps_si256(x); }
  ATTENTION_BALANCER_INLINE static S pack(__m256i x) noexcept { return S(_mm256_castsi256_ps(x)); }
};

#else

inline constexpr bool has_integer_products = false;

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
