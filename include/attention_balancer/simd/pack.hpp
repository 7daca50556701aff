#pragma once
// The pack facade: the few operations that the kernels need, over xsimd. Kernels, score modifiers and masks name
// only what is here and in math.hpp.

#include "attention_balancer/core/config.hpp"
#include "attention_balancer/simd/scalar_pack.hpp"

#if !defined(ATTENTION_BALANCER_NO_SIMD)
#include "attention_balancer/simd/detail/xsimd_compat.hpp"
#endif

namespace attention_balancer::simd {
ATTENTION_BALANCER_BEGIN_ISA

/// Name of the instruction set that the kernels of this translation unit are compiled for.
inline constexpr const char* isa = &ATTENTION_BALANCER_STRINGIZE(ATTENTION_BALANCER_ISA)[4];

#if defined(ATTENTION_BALANCER_NO_SIMD)

/// The widest pack of T that the compiler may use; here a scalar.
template <Scalar T>
using Pack = T;

#else

/// The widest pack of T that the compiler may use (-march decides). Arithmetic and comparisons are operators.
template <Scalar T>
using Pack = xsimd::batch<T>;

template <class S, Scalar T>
  requires(!Scalar<S>)
ATTENTION_BALANCER_INLINE S load(const T* from) noexcept {
  return S::load_unaligned(from);
}
template <class S, Scalar T>
  requires(!Scalar<S>)
ATTENTION_BALANCER_INLINE S load_aligned(const T* from) noexcept {
  return S::load_aligned(from);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE void store(T* to, const xsimd::batch<T, Arch>& x) noexcept {
  x.store_unaligned(to);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE void store_aligned(T* to, const xsimd::batch<T, Arch>& x) noexcept {
  x.store_aligned(to);
}

template <class S, class F>
  requires(!Scalar<S>)
ATTENTION_BALANCER_INLINE S generate(F f) noexcept {
  return detail::generate<S>(f, std::make_integer_sequence<int, lanes_of<S>>{});
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> fma(const xsimd::batch<T, Arch>& a, const xsimd::batch<T, Arch>& b,
                                                    const xsimd::batch<T, Arch>& c) noexcept {
  return detail::fma(a, b, c);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> select(const xsimd::batch_bool<T, Arch>& mask,
                                                       const xsimd::batch<T, Arch>& a,
                                                       const xsimd::batch<T, Arch>& b) noexcept {
  return xsimd::select(mask, a, b);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> max(const xsimd::batch<T, Arch>& a,
                                                    const xsimd::batch<T, Arch>& b) noexcept {
  return detail::max_or_second(a, b);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> abs(const xsimd::batch<T, Arch>& x) noexcept {
  return xsimd::abs(x);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> exp(const xsimd::batch<T, Arch>& x) noexcept {
  return xsimd::exp(x);
}
// Lane by lane, for what is done once per query: xsimd 8.1's does not compile for AVX-512 without optimisation.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> log(const xsimd::batch<T, Arch>& x) noexcept {
  alignas(64) T lane[lanes_of<xsimd::batch<T, Arch>>];
  x.store_aligned(lane);
  return generate<xsimd::batch<T, Arch>>([&](int l) { return std::log(lane[l]); });
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> tanh(const xsimd::batch<T, Arch>& x) noexcept {
  return xsimd::tanh(x);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE T reduce_add(const xsimd::batch<T, Arch>& x) noexcept {
  return detail::reduce_add(x);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE bool any(const xsimd::batch_bool<T, Arch>& mask) noexcept {
  return xsimd::any(mask);
}

#endif

/// first, first + 1, ... over the lanes.
template <class S>
ATTENTION_BALANCER_INLINE S iota(scalar_of<S> first) noexcept {
  return generate<S>([first](int lane) { return first + static_cast<scalar_of<S>>(lane); });
}

/// Number of lanes of Pack<T>.
template <Scalar T>
inline constexpr int lanes = lanes_of<Pack<T>>;

/// rows[i] lane l becomes rows[l] lane i.
template <class S>
ATTENTION_BALANCER_INLINE void transpose(S (&rows)[lanes_of<S>]) noexcept {
  constexpr int n = lanes_of<S>;
  // Each round interleaves row i with row i + n/2: the row's index moves into the lanes bit by bit.
  if constexpr (n > 1) {
    ATTENTION_BALANCER_UNROLL
    for (int round = 1; round < n; round *= 2) {
      S next[n];
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < n / 2; ++i) {
        next[2 * i] = detail::interleave<false>(rows[i], rows[i + n / 2]);
        next[2 * i + 1] = detail::interleave<true>(rows[i], rows[i + n / 2]);
      }
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < n; ++i) rows[i] = next[i];
    }
  }
}

/// Lane i of the result is rows[i] combined over its lanes: n reductions for n - 1 operations. `combine` is
/// associative, such as a sum or a maximum.
template <class S, class Combine>
ATTENTION_BALANCER_INLINE S reduce_each(S (&rows)[lanes_of<S>], Combine combine) noexcept {
  constexpr int n = lanes_of<S>;
  if constexpr (n > 1) {
    ATTENTION_BALANCER_UNROLL
    for (int half = n / 2; half > 0; half /= 2) {
      ATTENTION_BALANCER_UNROLL
      for (int i = 0; i < half; ++i)
        rows[i] = combine(detail::interleave<false>(rows[i], rows[i + half]),
                          detail::interleave<true>(rows[i], rows[i + half]));
    }
  }
  return rows[0];
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
