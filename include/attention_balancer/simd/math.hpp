#pragma once
// The exponential of the softmax, and exp, log and tanh for score modifiers, each to a stated accuracy.

#include <limits>

#include "attention_balancer/simd/pack.hpp"

namespace attention_balancer::simd {
ATTENTION_BALANCER_BEGIN_ISA

inline constexpr double log2_e = 1.4426950408889634074;
inline constexpr double ln_2 = 0.69314718055994530942;

/// Raises x to the least exponent that exp2_clamped takes, where the result is 0; keeps what is not a number.
template <class S>
ATTENTION_BALANCER_INLINE S clamp_exponent(const S& x) noexcept {
  constexpr bool single = sizeof(scalar_of<S>) == 4;
  // The second operand of max survives where either is not a number.
  return simd::max(S(scalar_of<S>(single ? -127 : -1023)), x);
}

namespace detail {

/// What 2^x is made of: x = n + f with n integral and |f| <= 1/2. Adding a large number brings n plus the
/// exponent's bias into the low bits of the sum, whence one shift makes 2^n. Needs the default rounding mode.
template <class S>
struct PowerOfTwo {
  using T = scalar_of<S>;
  static constexpr bool single = sizeof(T) == 4;
  static constexpr T shift = single ? T(12582912 + 127) : T(6755399441055744.0 + 1023);  // 1.5 * 2^23, 1.5 * 2^52

  S moved, f;

  ATTENTION_BALANCER_INLINE explicit PowerOfTwo(const S& x) noexcept
      : moved(x + S(shift)), f(x - (moved - S(shift))) {}

  /// n
  ATTENTION_BALANCER_INLINE S integral() const noexcept { return moved - S(shift); }

  /// 2^n
  ATTENTION_BALANCER_INLINE S power() const noexcept { return shift_into_exponent(moved); }
};

/// (2^f - 1) / f for |f| <= 1/2: a polynomial, fitted so that 1 + f times it has a small relative error (2.6e-9 and
/// 1.7e-17 before rounding).
template <class S>
ATTENTION_BALANCER_INLINE S exp2_slope(const S& f) noexcept {
  using T = scalar_of<S>;
  S p;
  if constexpr (sizeof(T) == 4) {
    p = simd::fma(S(T(1.5594678e-4)), f, S(T(1.34066439e-3)));
    p = simd::fma(p, f, S(T(9.61769297e-3)));
    p = simd::fma(p, f, S(T(5.55031055e-2)));
    p = simd::fma(p, f, S(T(2.40226528e-1)));
    p = simd::fma(p, f, S(T(6.93147215e-1)));
  } else {
    p = simd::fma(S(T(4.4549605981865186e-10)), f, S(T(7.072585949269223e-09)));
    p = simd::fma(p, f, S(T(1.0178062445845774e-07)));
    p = simd::fma(p, f, S(T(1.321544258792169e-06)));
    p = simd::fma(p, f, S(T(1.525273382983612e-05)));
    p = simd::fma(p, f, S(T(0.0001540353044173605)));
    p = simd::fma(p, f, S(T(0.0013333558146416936)));
    p = simd::fma(p, f, S(T(0.009618129107606888)));
    p = simd::fma(p, f, S(T(0.0555041086648216)));
    p = simd::fma(p, f, S(T(0.24022650695910097)));
    p = simd::fma(p, f, S(T(0.6931471805599453)));
  }
  return p;
}

/// As exp2_slope, for the softmax: of one degree less (9.2e-8 and 3e-16), since each costs attention a hundredth of its
/// time at D 64.
template <class S>
ATTENTION_BALANCER_INLINE S exp2_short_slope(const S& f) noexcept {
  using T = scalar_of<S>;
  if constexpr (sizeof(T) == 4) {
    S p = simd::fma(S(T(1.32647e-3)), f, S(T(9.67151e-3)));
    p = simd::fma(p, f, S(T(5.550734e-2)));
    p = simd::fma(p, f, S(T(2.4022242e-1)));
    return simd::fma(p, f, S(T(6.9314698e-1)));
  } else if constexpr (has_32_registers) {
    // Even and odd powers apart: one long chain keeps more packs waiting than a processor looks ahead.
    const S square = f * f;
    S even = simd::fma(S(T(1.0210506458816145e-07)), square, S(T(1.525264774769592e-05)));
    S odd = simd::fma(S(T(7.111758687557852e-09)), square, S(T(1.321523563477604e-06)));
    even = simd::fma(even, square, S(T(0.001333355824648072)));
    odd = simd::fma(odd, square, S(T(0.00015403530800818256)));
    even = simd::fma(even, square, S(T(0.05550410866434658)));
    odd = simd::fma(odd, square, S(T(0.009618129107380715)));
    even = simd::fma(even, square, S(T(0.6931471805599516)));
    odd = simd::fma(odd, square, S(T(0.24022650695910472)));
    return simd::fma(odd, f, even);
  } else {
    S p = simd::fma(S(T(7.111758687557852e-09)), f, S(T(1.0210506458816145e-07)));
    p = simd::fma(p, f, S(T(1.321523563477604e-06)));
    p = simd::fma(p, f, S(T(1.525264774769592e-05)));
    p = simd::fma(p, f, S(T(0.00015403530800818256)));
    p = simd::fma(p, f, S(T(0.001333355824648072)));
    p = simd::fma(p, f, S(T(0.009618129107380715)));
    p = simd::fma(p, f, S(T(0.05550410866434658)));
    p = simd::fma(p, f, S(T(0.24022650695910472)));
    return simd::fma(p, f, S(T(0.6931471805599516)));
  }
}

#if !defined(ATTENTION_BALANCER_NO_SIMD) && defined(__AVX2__) && !defined(__AVX512F__)

/// exp2_clamped for packs of eight: 2^x = 2^n 2^(i / 8) 2^f with |f| <= 1/16, the eighths from a table that is one
/// register. Half the multiply-adds of the polynomial, of which this processor has fewer units than of the rest.
template <class S>
ATTENTION_BALANCER_INLINE S exp2_by_eighths(const S& x) noexcept {
  // The mantissa of 2^(i / 8) less i in its highest bits, where moving n and i into the exponent leaves it.
  const __m256 eighths = _mm256_castsi256_ps(
      _mm256_setr_epi32(0, -289342, -509968, -655657, -719629, -694486, -572163, -343865));
  const S shift(1572864.0f + 127);  // 1.5 * 2^20, whose last bit is an eighth; and the exponent's bias
  const S moved = x + shift, f = x - (moved - shift);
  const __m256i bits = _mm256_castps_si256(moved);
  const S power(_mm256_castsi256_ps(_mm256_add_epi32(
      _mm256_slli_epi32(bits, 20), _mm256_castps_si256(_mm256_permutevar8x32_ps(eighths, bits)))));
  S p = simd::fma(S(5.5508424e-2f), f, S(2.40257621e-1f));
  p = simd::fma(p, f, S(6.93147182e-1f));
  return simd::fma(p, f * power, power);
}

#endif

#if !defined(ATTENTION_BALANCER_NO_SIMD) && defined(__AVX512DQ__)

/// 2^x = 2^n 2^f with n = floor(x), by the instructions that take f of x and scale with 2^n: 8 operations, where the
/// sum with a large number takes 11. Any x < 120; 0 for x < Least, by default the least exponent of a normal number,
/// since subnormal weights would be slow.
/// A polynomial 1 + f q(f) for 0 <= f <= 1 is as good as one for |f| <= 1/2 (8.3e-8 and 2.3e-16).
template <class S, int Least = std::numeric_limits<scalar_of<S>>::min_exponent - 1>
ATTENTION_BALANCER_INLINE S exp2_by_scaling(const S& x) noexcept {
  static_assert(sizeof(S) == 64);
  constexpr int floor_quietly = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  if constexpr (sizeof(scalar_of<S>) == 4) {
    const S f(_mm512_maskz_reduce_ps(__mmask16(0xffff), x, floor_quietly));
    S p = simd::fma(S(1.867130212e-3f), f, S(9.017029963e-3f));
    p = simd::fma(p, f, S(5.579991343e-2f));
    p = simd::fma(p, f, S(2.4016445e-1f));
    p = simd::fma(p, f, S(6.931513118e-1f));
    p = simd::fma(p, f, S(1.0f));
    return S(_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, S(static_cast<float>(Least)), _CMP_NLT_UQ), p, x));
  } else {
    const S f(_mm512_maskz_reduce_pd(__mmask8(0xff), x, floor_quietly)), square = f * f;
    S even = simd::fma(S(9.46965108446032433e-8), square, S(1.52448957528551392e-5));
    S odd = simd::fma(S(9.93532727072777557e-9), square, S(1.33108010025311249e-6));
    even = simd::fma(even, square, S(1.33335445698345172e-3));
    odd = simd::fma(odd, square, S(1.54039397417945135e-4));
    even = simd::fma(even, square, S(5.55041086325855576e-2));
    odd = simd::fma(odd, square, S(9.61812938446567911e-3));
    even = simd::fma(even, square, S(6.93147180559908999e-1));
    odd = simd::fma(odd, square, S(2.40226506960946698e-1));
    const S p = simd::fma(simd::fma(odd, f, even), f, S(1.0));
    return S(_mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, S(static_cast<double>(Least)), _CMP_NLT_UQ), p, x));
  }
}

#endif

}  // namespace detail

/// 2^x for x that clamp_exponent returned and x < 120. Exact at 0; 0 at the clamp, so a score of -inf weighs
/// nothing; not a number stays so. Relative error at most 2.5e-7 (float), 5e-16 (double) where the result is
/// normal, and at most the least normal number absolutely below that. Needs the default rounding mode.
template <class S>
ATTENTION_BALANCER_INLINE S exp2_clamped(const S& x) noexcept {
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
  if constexpr (!Scalar<S>) return detail::exp2_by_scaling(x);
#elif !defined(ATTENTION_BALANCER_NO_SIMD) && defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(scalar_of<S>) == 4 && !Scalar<S>) return detail::exp2_by_eighths(x);
#endif
  const detail::PowerOfTwo<S> y(x);
  return simd::fma(detail::exp2_short_slope(y.f), y.f, S(scalar_of<S>(1))) * y.power();
}

/// The same for any x < 120.
template <class S>
ATTENTION_BALANCER_INLINE S exp2(const S& x) noexcept {
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
  if constexpr (!Scalar<S>) return detail::exp2_by_scaling(x);
#endif
  return simd::exp2_clamped(simd::clamp_exponent(x));
}

/// The exponent of the least weight of the softmax that is sure not to be 0. Intel's processors take a hundred cycles for
/// each product that is subnormal, as those of smaller weights with values may be.
template <Scalar T>
inline constexpr int least_weight_exponent = sizeof(T) == 4 ? -110 : -1000;

/// exp2 for weights of the softmax. If Cut, 0 below the least of them, which takes an operation more, but none on Golden
/// Cove: there they always are.
template <bool Cut, class S>
ATTENTION_BALANCER_INLINE S exp2_of_weight(const S& x) noexcept {
  using T = scalar_of<S>;
  constexpr int least = least_weight_exponent<T>;
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
  if constexpr (!Scalar<S>) return detail::exp2_by_scaling<S, least>(x);
#endif
  if constexpr (Cut)  // whatever exp2_clamped makes of less than it takes
    return simd::select(x < S(static_cast<T>(least)), S(T(0)), simd::exp2_clamped(x));
  else
    return simd::exp2(x);
}

/// sum + weight * x, where weight is exp2_of_weight(x): 0 for any x that weighs nothing, -inf too.
template <class S>
ATTENTION_BALANCER_INLINE S add_exponent(const S& weight, const S& x, const S& sum) noexcept {
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
  // By the comparison that exp2_of_weight makes: clamped, x would take one operation more.
  if constexpr (!Scalar<S>) {
    using T = scalar_of<S>;
    const S least(static_cast<T>(least_weight_exponent<T>));
    if constexpr (sizeof(T) == 4)
      return S(_mm512_mask3_fmadd_ps(weight, x, sum, _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ)));
    else
      return S(_mm512_mask3_fmadd_pd(weight, x, sum, _mm512_cmp_pd_mask(x, least, _CMP_NLT_UQ)));
  }
#endif
  return simd::fma(weight, simd::clamp_exponent(x), sum);
}

#if !defined(ATTENTION_BALANCER_NO_SIMD)

namespace detail {

/// ln 2 in two parts, the first so short that it can be multiplied exactly with the exponent of a number.
template <Scalar T>
inline constexpr T ln_2_high = sizeof(T) == 4 ? T(0.693145751953125) : T(0.693147180369123816490);
template <Scalar T>
inline constexpr T ln_2_low = sizeof(T) == 4 ? T(1.42860682030941723e-6) : T(1.90821492927058770002e-10);

}  // namespace detail

/// e^x, any x. Relative error at most 4 epsilon where the result is normal, at most the least normal number
/// absolutely below that; infinity past the largest number, not a number stays so.
template <class S>
requires(!Scalar<S>) ATTENTION_BALANCER_INLINE S exp(const S& x)
noexcept {
  using T = scalar_of<S>;
  constexpr bool single = sizeof(T) == 4;
  constexpr T high = detail::ln_2_high<T>, low = detail::ln_2_low<T>;
  // At most 89 or 710, which overflow; the second operand of max survives where either is not a number.
  const S bounded = S(T(0)) - simd::max(S(T(single ? -89 : -710)), S(T(0)) - x);
  const S scaled = simd::clamp_exponent(bounded * S(T(log2_e)));
  const detail::PowerOfTwo<S> y(scaled);
  const S n = y.integral();
  const S f = ((bounded - n * S(high)) - n * S(low)) * S(T(log2_e));
  // 2^n in two factors: the largest results have an n that is no exponent of a number.
  const detail::PowerOfTwo<S> half(n * S(T(0.5)));
  const S first = half.power(), second = detail::PowerOfTwo<S>(n - half.integral()).power();
  const S power = simd::fma(detail::exp2_slope(f), f, S(T(1)));
  return simd::select(scaled > S(T(single ? -127 : -1023)), power * first * second, scaled - scaled);
}

namespace detail {

/// x = significand * 2^exponent with 3/4 <= significand < 3/2, for x > 0. Of 0 and infinity the significand is 1 and the
/// exponent infinite; of what is negative or not a number the significand is not a number.
#if defined(__AVX512F__)
template <class S>
requires(sizeof(S) == 64) ATTENTION_BALANCER_INLINE Fields<S> normalized(const S& x)
noexcept {
  const S one(scalar_of<S>(1)), zero(scalar_of<S>(0));
  S exponent, significand;  // of a significand in [1, 2), and in [3/4, 3/2)
  if constexpr (sizeof(scalar_of<S>) == 4) {
    exponent = S(_mm512_getexp_ps(x));
    significand = S(_mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan));
  } else {
    exponent = S(_mm512_getexp_pd(x));
    significand = S(_mm512_getmant_pd(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan));
  }
  significand = simd::select(x == zero, one, significand);  // that of -0 is -1
  return {simd::select(significand < one, exponent + one, exponent), significand};
}
#endif
template <class S>
requires(sizeof(S) < 64) ATTENTION_BALANCER_INLINE Fields<S> normalized(const S& x)
noexcept {
  using T = scalar_of<S>;
  constexpr bool single = sizeof(T) == 4;
  const S one(T(1)), zero(T(0));
  const S infinite(std::numeric_limits<T>::infinity()), none(std::numeric_limits<T>::quiet_NaN());
  const S least(std::numeric_limits<T>::min()), raise(single ? T(16777216) : T(18014398509481984.0));  // 2^24, 2^54
  const simd::mask_of<S> subnormal = x < least;
  const Fields<S> fields = fields_of(simd::select(subnormal, x * raise, x));
  const simd::mask_of<S> large = fields.significand >= S(T(1.5));
  const S bias = simd::select(subnormal, S(T(single ? 127 + 24 : 1023 + 54)), S(T(single ? 127 : 1023)));
  const S exponent = fields.exponent - bias + simd::select(large, one, zero);
  const S significand = simd::select(large, fields.significand * S(T(0.5)), fields.significand);
  const simd::mask_of<S> end = (x == zero) | (x == infinite);
  return {simd::select(end, simd::select(x == zero, zero - infinite, infinite), exponent),
          simd::select(end, one, simd::select(x > zero, significand, none))};
}

}  // namespace detail

/// The natural logarithm of x. Relative error at most 2 epsilon; -infinity at 0, infinity stays so, and below 0 and of
/// what is no number it is none. The method of fdlibm's log, with s = f / (2 + f) and a polynomial for what
/// 2 atanh(s) / s has beyond 2 (7e-7 and 4.1e-15 of it before rounding).
template <class S>
requires(!Scalar<S>) ATTENTION_BALANCER_INLINE S log(const S& x)
noexcept {
  using T = scalar_of<S>;
  const detail::Fields<S> of_x = detail::normalized(x);
  const S f = of_x.significand - S(T(1)), s = f / (f + S(T(2))), z = s * s;
  S r;
  if constexpr (sizeof(T) == 4) {
    r = simd::fma(S(T(0.2996026684)), z, S(T(0.3997886732)));
    r = simd::fma(r, z, S(T(0.6666671395)));
  } else {
    r = simd::fma(S(T(0.151193146195996353)), z, S(T(0.152836043021670019)));
    r = simd::fma(r, z, S(T(0.181846147272681858)));
    r = simd::fma(r, z, S(T(0.222221826836454257)));
    r = simd::fma(r, z, S(T(0.285714288369181735)));
    r = simd::fma(r, z, S(T(0.399999999993325637)));
    r = simd::fma(r, z, S(T(0.666666666666669403)));
  }
  const S half = S(T(0.5)) * f * f, k = of_x.exponent;
  const S low = simd::fma(s, simd::fma(r, z, half), k * S(detail::ln_2_low<T>));
  return simd::fma(k, S(detail::ln_2_high<T>), f - (half - low));
}

namespace detail {

/// tanh x of float as a quotient of polynomials in x^2, x times 1 at 0 (9.3e-9 up to 8.3 before rounding). Beyond that
/// it grows past 1, further at the clamp than rounding takes it back, and is cut off there.
template <class S>
ATTENTION_BALANCER_INLINE S tanh_by_quotient(const S& x) noexcept {
  const S most(9.25f), least(-9.25f), one(1.0f);
  // The second operand of max and min survives where either is not a number.
  const S u = simd::max(least, simd::min(most, x)), square = u * u;
  S p = simd::fma(S(1.464846271e-8f), square, S(2.150864673e-5f));
  S q = simd::fma(S(8.295192897e-7f), square, S(3.373965685e-4f));
  p = simd::fma(p, square, S(3.549178576e-3f));
  q = simd::fma(q, square, S(2.607998588e-2f));
  p = simd::fma(p, square, S(1.342587851e-1f));
  q = simd::fma(q, square, S(4.675920335e-1f));
  p = simd::fma(p, square, one);
  q = simd::fma(q, square, one);
  return simd::max(S(-1.0f), simd::min(one, u * p / q));
}

/// tanh x by expm1(-2|x|) = 2^n (2^f - 1) + (2^n - 1), so that nothing cancels near 0.
template <class S>
ATTENTION_BALANCER_INLINE S tanh_by_exponential(const S& x) noexcept {
  using T = scalar_of<S>;
  // 2^-100 is nothing beside 1. The second operand of max survives where either is not a number.
  const S exponent = simd::max(S(T(-100)), simd::abs(x) * S(T(-2 * log2_e)));
  const PowerOfTwo<S> y(exponent);
  const S power = y.power();
  const S less_one = simd::fma(power, exp2_slope(y.f) * y.f, power - S(T(1)));
  return simd::copy_sign(less_one / (less_one + S(T(2))), x);
}

}  // namespace detail

/// tanh x. Relative error at most 4 epsilon, and never beyond 1; not a number stays so.
template <class S>
requires(!Scalar<S>) ATTENTION_BALANCER_INLINE S tanh(const S& x)
noexcept {
  if constexpr (sizeof(scalar_of<S>) == 4)
    return detail::tanh_by_quotient(x);
  else
    return detail::tanh_by_exponential(x);
}

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
