#pragma once
// Numbers of 16 bits that keys and values may be stored in. Nothing is computed in them: they become float first.

#include <cstdint>

#include "attention_balancer/core/config.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

constexpr std::uint16_t to_bf16_bits(float x) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // stays not a number
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float from_bf16_bits(std::uint16_t bits) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

constexpr std::uint16_t to_f16_bits(float x) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  std::uint32_t result;
  if (size > 0x7f800000u)
    result = 0x7e00u | ((size >> 13) & 0x3ffu);
  else if (size >= 0x47800000u)  // 2^16 and above
    result = 0x7c00u;
  else if (size < 0x38800000u)  // below 2^-14: adding 1/2 rounds to multiples of 2^-24
    result = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, size) + 0.5f) - 0x3f000000u;
  else
    result = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
  return static_cast<std::uint16_t>(sign | result);
}

constexpr float from_f16_bits(std::uint16_t bits) noexcept {
  // The exponent's bias grows by 112; the product is exact for subnormal numbers too.
  const std::uint32_t size = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
  std::uint32_t result = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, size) * 0x1p112f);
  if ((bits & 0x7c00u) == 0x7c00u) result = size | 0x7f800000u;
  return __builtin_bit_cast(float, result | (static_cast<std::uint32_t>(bits & 0x8000u) << 16));
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail

/// bfloat16: 8 bits of exponent as float, 8 of precision. Rounds to nearest, ties to even: relative error 2^-8.
struct bf16 {
  std::uint16_t bits = 0;

  constexpr bf16() = default;
  ATTENTION_BALANCER_INLINE constexpr explicit bf16(float x) noexcept : bits(detail::to_bf16_bits(x)) {}
  ATTENTION_BALANCER_INLINE constexpr explicit operator float() const noexcept {
    return detail::from_bf16_bits(bits);
  }
  ATTENTION_BALANCER_INLINE constexpr explicit operator double() const noexcept {
    return static_cast<double>(detail::from_bf16_bits(bits));
  }
};

/// IEEE 754 binary16: 5 bits of exponent, 11 of precision. Rounds to nearest, ties to even: relative error 2^-11
/// from 2^-14 on, absolute error 2^-25 below; what rounds to 65520 or more becomes infinite.
struct f16 {
  std::uint16_t bits = 0;

  constexpr f16() = default;
  ATTENTION_BALANCER_INLINE constexpr explicit f16(float x) noexcept : bits(detail::to_f16_bits(x)) {}
  ATTENTION_BALANCER_INLINE constexpr explicit operator float() const noexcept {
    return detail::from_f16_bits(bits);
  }
  ATTENTION_BALANCER_INLINE constexpr explicit operator double() const noexcept {
    return static_cast<double>(detail::from_f16_bits(bits));
  }
};

namespace detail {

/// What keys and values may be stored in for arithmetic in T: T itself, and for float also 16 bits or 8.
template <class Stored, class T>
concept StorageOf = Scalar<T> &&
    (std::same_as<Stored, T> ||
     (std::same_as<T, float> &&
      (std::same_as<Stored, bf16> || std::same_as<Stored, f16> || std::same_as<Stored, std::int8_t>)));

}  // namespace detail
}  // namespace attention_balancer
