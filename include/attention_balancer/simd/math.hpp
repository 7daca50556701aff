#pragma once
// The exponential of the softmax, to a stated accuracy.

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

/// 2^x for x that clamp_exponent returned and x < 120. Exact at 0; 0 at the clamp, so a score of -inf weighs nothing;
/// not a number stays so. Relative error at most 2.5e-7 (float), 4e-16 (double) where the result is normal, and at
/// most the least normal number absolutely below that. Needs the default rounding mode.
///
/// x = n + f with n integral: adding a large number brings n plus the exponent's bias into the low bits of the sum,
/// whence one shift makes 2^n. 2^f is a polynomial, fitted to a small relative error over |f| <= 1/2 with the
/// constant term fixed at 1 (2.6e-9 and 1.7e-17 before rounding).
template <class S>
ATTENTION_BALANCER_INLINE S exp2_clamped(const S& x) noexcept {
  using T = scalar_of<S>;
  constexpr bool single = sizeof(T) == 4;
  constexpr T shift = single ? T(12582912 + 127) : T(6755399441055744.0 + 1023);  // 1.5 * 2^23, 1.5 * 2^52
  const S moved = x + S(shift);
  const S f = x - (moved - S(shift));
  S p;
  if constexpr (single) {
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
  p = simd::fma(p, f, S(T(1)));
  return p * detail::shift_into_exponent(moved);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
