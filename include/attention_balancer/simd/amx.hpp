#pragma once
// Products of matrices in the tile registers of AMX (Intel from Sapphire Rapids on): eight registers of 16 rows of 64
// bytes, and an instruction that multiplies 16 x 32 by 32 x 16 numbers of bf16. By the assembler, since the intrinsics
// of g++ 12 take no number of a register that is a template argument, and do not tell the compiler that a tile is read
// from memory. Functions that use them are marked ATTENTION_BALANCER_AMX_FUNCTION.

#include <cstdint>

#include "attention_balancer/core/types.hpp"
#include "attention_balancer/simd/bf16.hpp"

#if defined(ATTENTION_BALANCER_AMX)

#define ATTENTION_BALANCER_AMX_FUNCTION [[gnu::target("amx-tile,amx-bf16")]]

namespace attention_balancer::simd::amx {
ATTENTION_BALANCER_BEGIN_ISA

/// Rows of a tile, and pairs or floats in a row of it.
inline constexpr Index tile = 16;

/// What ldtilecfg reads: all tiles are full.
struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr Configuration full_tiles;

/// Before the first product of a thread, and after the last: the operating system has to keep what is in tiles.
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void configure() noexcept {
  asm volatile("ldtilecfg\t%0" : : "m"(full_tiles));
}
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void release() noexcept { asm volatile("tilerelease"); }

/// Tile I = 0, or the rows from `from` on, `stride` floats apart; and back.
template <int I>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void zero() noexcept {
  asm volatile("tilezero\t%%tmm%c0" : : "i"(I));
}
template <int I>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void load(const float* from, Index stride) noexcept {
  asm volatile("{tileloadd\t(%0,%1,1), %%tmm%c2|tileloadd\t%%tmm%c2, [%0+%1*1]}"
               :
               : "r"(from), "r"(stride * Index(sizeof(float))), "i"(I)
               : "memory");
}
template <int I>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void store(float* to, Index stride) noexcept {
  asm volatile("{tilestored\t%%tmm%c2, (%0,%1,1)|tilestored\t[%0+%1*1], %%tmm%c2}"
               :
               : "r"(to), "r"(stride * Index(sizeof(float))), "i"(I)
               : "memory");
}

/// Tile C [16, 16] += tile A [16, 16 pairs] * tile B [16 pairs, 16]: the products of the first and of the second
/// numbers of all pairs are summed by fma, each by themselves, both sums added, and to C; rounded to nearest, and
/// subnormal numbers count as 0. Source: Intel SDM, TDPBF16PS.
template <int C, int A, int B>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void multiply_add() noexcept {
  asm volatile("{tdpbf16ps\t%%tmm%c2, %%tmm%c1, %%tmm%c0|tdpbf16ps\t%%tmm%c0, %%tmm%c1, %%tmm%c2}"
               :
               : "i"(C), "i"(A), "i"(B));
}

// Sums are R rows of V tiles, from tile 0 on; 6 and 7 are left for A and B. By recursion: a lambda, to be called for
// each number of a tile, would be a function that is not marked.

template <int R, int V, int I = 0>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void zero_sums() noexcept {
  static_assert(R * V <= 6);
  zero<I>();
  if constexpr (I + 1 < R * V) zero_sums<R, V, I + 1>();
}
/// From and to rows of V tiles.
template <int R, int V, int I = 0>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void load_sums(const float* from) noexcept {
  load<I>(from + I / V * tile * V * tile + I % V * tile, V * tile);
  if constexpr (I + 1 < R * V) load_sums<R, V, I + 1>(from);
}
template <int R, int V, int I = 0>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void store_sums(float* to) noexcept {
  store<I>(to + I / V * tile * V * tile + I % V * tile, V * tile);
  if constexpr (I + 1 < R * V) store_sums<R, V, I + 1>(to);
}
/// sums += A B for R tiles of A, one below the other, and V of B, side by side in rows of V tiles. Every second row of
/// them from behind, so that one B less is loaded.
template <int R, int V, int I = 0>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void add_products(const float* a, Index stride,
                                                                            Index below, const float* b) noexcept {
  constexpr int r = I / V, v = r % 2 == 0 ? I % V : V - 1 - I % V;
  if constexpr (I % V == 0) load<6>(a + r * below, stride);
  if constexpr (I % V != 0 || I == 0) load<7>(b + v * tile, V * tile);
  multiply_add<r * V + v, 6, 7>();
  if constexpr (I + 1 < R * V) add_products<R, V, I + 1>(a, stride, below, b);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::simd::amx

#endif
