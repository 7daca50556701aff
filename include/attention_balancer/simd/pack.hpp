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

/// Whether there are 32 registers for packs, or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr bool has_32_registers = true;
#else
inline constexpr bool has_32_registers = false;
#endif

/// Whether rows that a product will read have to be asked for. Golden Cove does so by itself, and while many are on
/// their way what lies in the second cache has to wait: asked for, they cost it 1 to 4 % of the time with 4096 keys.
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
inline constexpr bool rows_are_asked_for = false;
#else
inline constexpr bool rows_are_asked_for = true;
#endif

#if !defined(ATTENTION_BALANCER_NO_SIMD)

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
template <class S, Scalar T>
  requires(!Scalar<S>)
ATTENTION_BALANCER_INLINE S load_first(const T* from, int count) noexcept {
  return detail::load_first<S>(from, count);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE void store_first(T* to, const xsimd::batch<T, Arch>& x, int count) noexcept {
  detail::store_first(to, x, count);
}
template <class S>
  requires(!Scalar<S>)
ATTENTION_BALANCER_INLINE S load_bytes(const unsigned char* from) noexcept {
  return detail::load_bytes<S>(from);
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
  return detail::select(mask, a, b);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> max(const xsimd::batch<T, Arch>& a,
                                                    const xsimd::batch<T, Arch>& b) noexcept {
  return detail::one_of<detail::Maximum>(a, b);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> min(const xsimd::batch<T, Arch>& a,
                                                    const xsimd::batch<T, Arch>& b) noexcept {
  return detail::one_of<detail::Minimum>(a, b);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> abs(const xsimd::batch<T, Arch>& x) noexcept {
  return xsimd::abs(x);
}
/// |x| with the sign of `sign`.
template <class T, class Arch>
ATTENTION_BALANCER_INLINE xsimd::batch<T, Arch> copy_sign(const xsimd::batch<T, Arch>& x,
                                                          const xsimd::batch<T, Arch>& sign) noexcept {
  return detail::copy_sign(x, sign);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE T reduce_add(const xsimd::batch<T, Arch>& x) noexcept {
  return detail::reduce_add(x);
}

template <class T, class Arch>
ATTENTION_BALANCER_INLINE bool any(const xsimd::batch_bool<T, Arch>& mask) noexcept {
  return xsimd::any(mask);
}
template <class T, class Arch>
ATTENTION_BALANCER_INLINE bool all(const xsimd::batch_bool<T, Arch>& mask) noexcept {
  return xsimd::all(mask);
}

#endif

/// x, but g++ does not know where from: it would load it again as the operand of each instruction that uses it.
template <class S>
ATTENTION_BALANCER_INLINE S in_register(const S& x) noexcept {
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(ATTENTION_BALANCER_NO_SIMD)
  typename S::register_type r = x;
  asm("" : "+v"(r));
  return S(r);
#else
  return x;
#endif
}

/// x, but clang does not know where from: it would carry what follows from it, such as the address of each lane, through
/// all of a loop that hardly ever needs it.
ATTENTION_BALANCER_INLINE Index opaque(Index x) noexcept {
#if defined(__clang__)
  asm("" : "+r"(x));
#endif
  return x;
}

/// Keeps what is written before this in the text before what is written after it: x, and all loads and stores.
template <class S>
ATTENTION_BALANCER_INLINE void keep_order([[maybe_unused]] S& x) noexcept {
#if defined(__GNUC__) && defined(__x86_64__) && !defined(ATTENTION_BALANCER_NO_SIMD)
  typename S::register_type r = x;
  asm volatile("" : "+v"(r) : : "memory");
  x = S(r);
#endif
}

/// An address, the same way as in in_register: g++ would take it apart, and keep its sum with each offset in a register
/// of its own.
template <Scalar T>
ATTENTION_BALANCER_INLINE const T* in_register(const T* x) noexcept {
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
  asm("" : "+r"(x));
#endif
  return x;
}

/// first, first + 1, ... over the lanes.
template <class S>
ATTENTION_BALANCER_INLINE S iota(scalar_of<S> first) noexcept {
  return generate<S>([first](int lane) { return first + static_cast<scalar_of<S>>(lane); });
}

/// Number of lanes of Pack<T>.
template <Scalar T>
inline constexpr int lanes = lanes_of<Pack<T>>;

// Transposing and reducing tiles of n packs of n lanes: first within the parts of 128 bits of each group of rows as
// many as a part has elements, then the parts themselves, log2(n) rounds of n shuffles in all.

/// rows[i] lane l becomes rows[l] lane i.
template <class S>
ATTENTION_BALANCER_INLINE void transpose(S (&rows)[lanes_of<S>]) noexcept {
  constexpr int n = lanes_of<S>;
  if constexpr (n > 1) {
    constexpr int part = detail::per_part<scalar_of<S>>, parts = n / part;
    ATTENTION_BALANCER_UNROLL
    for (int first = 0; first < n; first += part) {
      S* const r = rows + first;
      if constexpr (part == 4) {
        const S a = detail::unpack<false, 1>(r[0], r[1]), b = detail::unpack<true, 1>(r[0], r[1]);
        const S c = detail::unpack<false, 1>(r[2], r[3]), d = detail::unpack<true, 1>(r[2], r[3]);
        r[0] = detail::unpack<false, 2>(a, c), r[1] = detail::unpack<true, 2>(a, c);
        r[2] = detail::unpack<false, 2>(b, d), r[3] = detail::unpack<true, 2>(b, d);
      } else {
        const S a = r[0];
        r[0] = detail::unpack<false, 1>(a, r[1]), r[1] = detail::unpack<true, 1>(a, r[1]);
      }
    }
    // Now part l of row g * part + k holds column l * part + k of group g.
    ATTENTION_BALANCER_UNROLL
    for (int k = 0; k < part; ++k) {
      if constexpr (parts == 4) {
        const S a = detail::parts<false>(rows[k], rows[part + k]), b = detail::parts<true>(rows[k], rows[part + k]);
        const S c = detail::parts<false>(rows[2 * part + k], rows[3 * part + k]);
        const S d = detail::parts<true>(rows[2 * part + k], rows[3 * part + k]);
        rows[k] = detail::parts<false>(a, c), rows[part + k] = detail::parts<false>(b, d);
        rows[2 * part + k] = detail::parts<true>(a, c), rows[3 * part + k] = detail::parts<true>(b, d);
      } else if constexpr (parts == 2) {
        const S a = rows[k];
        rows[k] = detail::parts<false>(a, rows[part + k]), rows[part + k] = detail::parts<true>(a, rows[part + k]);
      }
    }
  }
}

/// Lane i of the result is rows[i] combined over its lanes: n reductions for n - 1 operations. `combine` is
/// associative, such as a sum or a maximum.
template <class S, class Combine>
ATTENTION_BALANCER_INLINE S reduce_each(S (&rows)[lanes_of<S>], Combine combine) noexcept {
  constexpr int n = lanes_of<S>;
  if constexpr (n > 1) {
    constexpr int part = detail::per_part<scalar_of<S>>, parts = n / part;
    S groups[parts];
    ATTENTION_BALANCER_UNROLL
    for (int g = 0; g < parts; ++g) {
      const S* const r = rows + g * part;
      const S a = combine(detail::unpack<false, 1>(r[0], r[1]), detail::unpack<true, 1>(r[0], r[1]));
      if constexpr (part == 4) {
        const S b = combine(detail::unpack<false, 1>(r[2], r[3]), detail::unpack<true, 1>(r[2], r[3]));
        groups[g] = combine(detail::unpack<false, 2>(a, b), detail::unpack<true, 2>(a, b));
      } else {
        groups[g] = a;
      }
    }
    ATTENTION_BALANCER_UNROLL
    for (int half = parts / 2; half > 0; half /= 2)
      ATTENTION_BALANCER_UNROLL
      for (int g = 0; g < half; ++g)
        groups[g] = combine(detail::parts<false>(groups[2 * g], groups[2 * g + 1]),
                            detail::parts<true>(groups[2 * g], groups[2 * g + 1]));
    return groups[0];
  } else {
    return rows[0];
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd
