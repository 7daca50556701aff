#pragma once
// A scalar is a pack of one lane: every operation of the pack facade on float and double, so that score modifiers
// and masks are written once for packs, for the reference and for machines without SIMD.

#include <cmath>
#include <type_traits>
#include <utility>

#include "attention_balancer/core/config.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::simd {
ATTENTION_BALANCER_BEGIN_ISA

namespace traits {

template <class S>
struct Pack {
  using scalar = typename S::value_type;
  static constexpr int lanes = static_cast<int>(S::size);
};
template <Scalar T>
struct Pack<T> {
  using scalar = T;
  static constexpr int lanes = 1;
};

}  // namespace traits

/// The scalar type of a pack (of a scalar: itself).
template <class S>
using scalar_of = typename traits::Pack<S>::scalar;

/// Number of lanes of a pack (of a scalar: 1).
template <class S>
inline constexpr int lanes_of = traits::Pack<S>::lanes;

/// What comparisons of packs give; constructible from bool.
template <class S>
using mask_of = decltype(std::declval<S>() == std::declval<S>());

/// Load from and store to memory of any alignment, or aligned to the size of the pack.
template <class S, Scalar T>
  requires std::is_same_v<S, T>
ATTENTION_BALANCER_INLINE S load(const T* from) noexcept {
  return *from;
}
template <class S, Scalar T>
  requires std::is_same_v<S, T>
ATTENTION_BALANCER_INLINE S load_aligned(const T* from) noexcept {
  return *from;
}
/// The first `count` lanes (at least 1, at most all) from or to memory of any alignment; nothing behind them is
/// touched, and the other lanes are 0.
template <class S, Scalar T>
  requires std::is_same_v<S, T>
ATTENTION_BALANCER_INLINE S load_first(const T* from, int) noexcept {
  return *from;
}
template <Scalar T>
ATTENTION_BALANCER_INLINE void store_first(T* to, T x, int) noexcept {
  *to = x;
}

/// Asks for a cache line to be brought to the second cache; it will be read soon. Any address will do. (To the
/// first one was slower by a third: there are too few places for lines on their way.)
ATTENTION_BALANCER_INLINE void prefetch(const void* address) noexcept {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 2);
#else
  (void)address;
#endif
}

/// The same, to the first cache: where one line after another is asked for at an even pace. To the second one all the
/// same on Golden Cove, which has three times as many places for lines on their way there: a quarter faster to decode.
ATTENTION_BALANCER_INLINE void prefetch_near(const void* address) noexcept {
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
  __builtin_prefetch(address, 0, 2);
#elif defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 3);
#else
  (void)address;
#endif
}

/// Bytes as numbers.
template <class S>
  requires Scalar<S>
ATTENTION_BALANCER_INLINE S load_bytes(const unsigned char* from) noexcept {
  return static_cast<S>(*from);
}
template <Scalar T>
ATTENTION_BALANCER_INLINE void store(T* to, T x) noexcept {
  *to = x;
}
template <Scalar T>
ATTENTION_BALANCER_INLINE void store_aligned(T* to, T x) noexcept {
  *to = x;
}

/// The pack of f(0), f(1), ... over the lanes.
template <class S, class F>
  requires Scalar<S>
ATTENTION_BALANCER_INLINE S generate(F f) noexcept {
  return f(0);
}

/// a * b + c with one rounding where the machine has it.
template <Scalar T>
ATTENTION_BALANCER_INLINE T fma(T a, T b, T c) noexcept {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// mask ? a : b, lane by lane.
template <Scalar T>
ATTENTION_BALANCER_INLINE T select(bool mask, T a, T b) noexcept {
  return mask ? a : b;
}

/// The larger of a and b; b where either is not a number.
template <Scalar T>
ATTENTION_BALANCER_INLINE T max(T a, T b) noexcept {
  return a > b ? a : b;
}
/// The smaller, in the same way.
template <Scalar T>
ATTENTION_BALANCER_INLINE T min(T a, T b) noexcept {
  return a < b ? a : b;
}

template <Scalar T>
ATTENTION_BALANCER_INLINE T abs(T x) noexcept {
  return std::fabs(x);
}
/// |x| with the sign of `sign`.
template <Scalar T>
ATTENTION_BALANCER_INLINE T copy_sign(T x, T sign) noexcept {
  return std::copysign(x, sign);
}
template <Scalar T>
ATTENTION_BALANCER_INLINE T exp(T x) noexcept {
  return std::exp(x);
}
template <Scalar T>
ATTENTION_BALANCER_INLINE T log(T x) noexcept {
  return std::log(x);
}
template <Scalar T>
ATTENTION_BALANCER_INLINE T tanh(T x) noexcept {
  return std::tanh(x);
}

/// Sum over the lanes.
template <Scalar T>
ATTENTION_BALANCER_INLINE T reduce_add(T x) noexcept {
  return x;
}

/// Whether any lane, or all lanes, of a comparison are true.
ATTENTION_BALANCER_INLINE bool any(bool mask) noexcept { return mask; }
ATTENTION_BALANCER_INLINE bool all(bool mask) noexcept { return mask; }

namespace detail {

template <Scalar T>
ATTENTION_BALANCER_INLINE T shift_into_exponent(T x) noexcept {
  using Integer = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;
  return __builtin_bit_cast(T, static_cast<Integer>(__builtin_bit_cast(Integer, x) << (sizeof(T) == 4 ? 23 : 52)));
}

}  // namespace detail

#if defined(ATTENTION_BALANCER_NO_SIMD)

/// The widest pack of T that the compiler may use; here a scalar.
template <Scalar T>
using Pack = T;

namespace detail {

// Named by the shuffles of pack.hpp, and never run: a pack of one lane has nothing to move.
template <class T>
inline constexpr int per_part = 1;
template <bool High, int Chunk, Scalar T>
ATTENTION_BALANCER_INLINE T unpack(T a, T b) noexcept {
  return High ? b : a;
}
template <bool Odd, Scalar T>
ATTENTION_BALANCER_INLINE T parts(T a, T b) noexcept {
  return Odd ? b : a;
}

}  // namespace detail

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
