#pragma once
// Both matrix products on pairs of bf16 in the tiles of AMX. Scores [keys, W] = K Q^T are tiles of 16 keys by a pack of
// queries, made of rows of K as they lie and of queries as pairs of features [D / 2, W]; output [Dv, W] = V^T weights
// is made of values turned, a row for each feature of the pairs of 32 tokens, and of weights as pairs of tokens
// [keys / 2, W]. What is not a whole tile is padded with zeros.

#include <algorithm>
#include <cstring>

#include "attention_balancer/attention/detail/layout.hpp"
#include "attention_balancer/attention/detail/pairs.hpp"
#include "attention_balancer/core/cpu.hpp"
#include "attention_balancer/simd/amx.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

#if defined(ATTENTION_BALANCER_AMX)

inline constexpr PairLayout amx_layout = {
    .features = 2 * simd::amx::tile, .tokens = 2 * simd::amx::tile, .value_features = simd::amx::tile};
// Scratch::spare holds the weights of a step, padded at both ends.
static_assert((longest_step + 2 * amx_layout.tokens) / 2 <= longest_step);

/// scores [16 R, V tiles] of 16 R keys, `steps` tiles of features.
template <int R, int V>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void score_in_amx(const float* queries, const float* keys,
                                                                            Index stride, Index steps,
                                                                            float* scores) noexcept {
  constexpr Index tile = simd::amx::tile;
  simd::amx::zero_sums<R, V>();
  ATTENTION_BALANCER_NO_UNROLL
  for (Index s = 0; s < steps; ++s)
    simd::amx::add_products<R, V>(keys + s * tile, stride, tile * stride, queries + s * tile * V * tile);
  simd::amx::store_sums<R, V>(scores);
}

/// As score_keys; `keys` may be read up to 15 rows behind the last.
template <int V>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_NOINLINE void score_keys_in_amx(const float* queries,
                                                                                   const Rows<float>& keys,
                                                                                   Index count, Index dim,
                                                                                   float* scores, float* top,
                                                                                   const Far& far) noexcept {
  constexpr Index tile = simd::amx::tile, width = V * tile;
  const Index steps = (dim + 2 * tile - 1) / (2 * tile);
  if (count < tile) {
    alignas(64) float whole[tile * width];
    score_in_amx<1, V>(queries, keys.data, keys.stride, steps, whole);
    std::copy_n(whole, count * width, scores);
  }
  Index j = 0;
  for (; j + 2 * tile <= count; j += 2 * tile) {
    if (far.ask != nullptr) far.ask(far.asker, count + j, 2 * tile);
    score_in_amx<2, V>(queries, keys.data + j * keys.stride, keys.stride, steps, scores + j * width);
  }
  // What is left overlaps what is done, and finds the same.
  for (; j < count && count >= tile; j += tile) {
    const Index from = std::min(j, count - tile);
    score_in_amx<1, V>(queries, keys.data + from * keys.stride, keys.stride, steps, scores + from * width);
  }
  if (top != nullptr) raise_to_rows<float, V>(scores, count, top);
}

/// output [16 R, V tiles] = (0 or output) + values weights, `groups` tiles of pairs of tokens, `size` floats apart.
template <int R, int V>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_INLINE void add_in_amx(const float* weights, const float* values,
                                                                          Index size, Index groups, float* output,
                                                                          bool alone) noexcept {
  constexpr Index tile = simd::amx::tile;
  if (alone)
    simd::amx::zero_sums<R, V>();
  else
    simd::amx::load_sums<R, V>(output);
  ATTENTION_BALANCER_NO_UNROLL
  for (Index g = 0; g < groups; ++g)
    simd::amx::add_products<R, V>(values + g * size, tile, tile * tile, weights + g * tile * V * tile);
  simd::amx::store_sums<R, V>(output);
}

/// As PairProducts::add.
template <int V>
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_NOINLINE void add_values_in_amx(
    float* pairs, const float* values, Index first, Index count, Index dim, float* output, Onto onto,
    const float* shrink, const Far& far) noexcept {
  constexpr Index tile = simd::amx::tile, width = V * tile;
  // Tokens of whole tiles before the first and behind the last weigh nothing.
  const Index before = amx_layout.pairs_before(first), pairs_of_them = (count + 1) / 2,
              groups = (before + pairs_of_them + tile - 1) / tile;
  pairs -= before * width;
  std::fill_n(pairs, before * width, 0.0f);
  std::fill_n(pairs + (before + pairs_of_them) * width, (groups * tile - before - pairs_of_them) * width, 0.0f);
  if (onto == Onto::shrunk_output) multiply_rows<float, V>(output, dim, shrink);

  const Index rows = amx_layout.value_rows(dim), size = rows * tile;
  const float* from = values + first / (2 * tile) * size;
  const bool alone = onto == Onto::zero;
  Index c = 0, asked = 0;
  const auto ask = [&](Index next) {
    if (far.ask == nullptr) return;
    const Index until = pairs_of_them * next / rows;
    far.ask(far.asker, pairs_of_them + asked, until - asked);
    asked = until;
  };
  for (; c + 2 * tile <= rows; c += 2 * tile) {
    ask(c + 2 * tile);
    add_in_amx<2, V>(pairs, from + c * tile, size, groups, output + c * width, alone);
  }
  if (c < rows) {
    ask(rows);
    add_in_amx<1, V>(pairs, from + c * tile, size, groups, output + c * width, alone);
  }
}

/// queries [D, W] become pairs of features in place, with zeros behind them up to whole tiles.
template <int V>
ATTENTION_BALANCER_NOINLINE void load_queries_for_amx(float* queries, Index dim) noexcept {
  constexpr Index width = V * simd::lanes<float>;
  const Index rows = (dim + 1) / 2;
  pair_rows<V>(queries, dim, queries);
  std::fill_n(queries + rows * width, (amx_layout.key_stride(dim) - rows) * width, 0.0f);
}

ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_NOINLINE inline void enter_amx() noexcept {
  simd::amx::configure();
}
ATTENTION_BALANCER_AMX_FUNCTION ATTENTION_BALANCER_NOINLINE inline void leave_amx() noexcept {
  simd::amx::release();
}

template <int V>
constexpr PairProducts<float> amx_products_of() noexcept {
  static_assert(simd::lanes<float> == simd::amx::tile);
  return {amx_layout,
          load_queries_for_amx<V>,
          score_keys_in_amx<V>,
          weigh_as_pairs<V, ScalingExponential>,
          pair_rows<V>,
          add_values_in_amx<V>,
          enter_amx,
          leave_amx,
          2 * simd::amx::tile};
}

/// By number of packs less one; null if this process has no AMX.
inline const PairProducts<float>* amx_products() noexcept {
  static_assert(block_packs == 3);
  static constexpr PairProducts<float> products[] = {amx_products_of<1>(), amx_products_of<2>(),
                                                     amx_products_of<3>()};
  return may_use_amx() ? products : nullptr;
}

/// As load_key_pairs, each row with zeros behind it up to whole tiles.
ATTENTION_BALANCER_NOINLINE inline void load_keys_for_amx(const KvView<bf16>& x, Index batch, Index kv_head,
                                                          Index begin, Index end, float* to) noexcept {
  const Index dim = x.keys.dim, stride = amx_layout.key_stride(dim);
  for_runs(x, x.keys, batch, kv_head, begin, end, [&](const bf16* row, Index, Index count) {
    for (Index j = 0; j < count; ++j, row += x.keys.length_stride, to += stride) {
      std::memcpy(to, row, static_cast<std::size_t>(dim) * sizeof(bf16));
      std::memset(reinterpret_cast<char*>(to) + dim * static_cast<Index>(sizeof(bf16)), 0,
                  static_cast<std::size_t>(2 * stride - dim) * sizeof(bf16));
    }
  });
}

/// to = the values of the tokens [begin, end), `begin` a multiple of 32, turned: for each 32 tokens [Dv, 16 pairs], Dv
/// and the tokens padded with zeros.
ATTENTION_BALANCER_NOINLINE inline void load_values_for_amx(const KvView<bf16>& x, Index batch, Index kv_head,
                                                            Index begin, Index end, float* to) noexcept {
  using S = simd::Pack<float>;
  constexpr Index tile = simd::amx::tile;
  const Index dim = x.values.dim, size = amx_layout.value_rows(dim) * tile;
  const bf16* rows[2 * tile];
  for (Index first = begin; first < end; first += 2 * tile, to += size) {
    Index known = 0;
    for_runs(x, x.values, batch, kv_head, first, std::min(first + 2 * tile, end),
             [&](const bf16* row, Index, Index count) {
               for (Index j = 0; j < count; ++j, row += x.values.length_stride) rows[known++] = row;
             });
    for (Index c = 0; c < dim; c += tile) {
      const Index features = std::min(dim - c, tile);
      S turned[tile];
      for (Index i = 0; i < tile; ++i) {
        if (features == tile && 2 * i + 1 < known) {
          turned[i] = simd::load_pairs<S>(rows[2 * i] + c, rows[2 * i + 1] + c);
          continue;
        }
        bf16 pair[2][tile] = {};
        for (Index t = 0; t < 2 && 2 * i + t < known; ++t) std::copy_n(rows[2 * i + t] + c, features, pair[t]);
        turned[i] = simd::load_pairs<S>(pair[0], pair[1]);
      }
      simd::transpose(turned);
      ATTENTION_BALANCER_UNROLL
      for (Index i = 0; i < tile; ++i) simd::store_aligned(to + (c + i) * tile, turned[i]);
    }
  }
}

#else

inline const PairProducts<float>* amx_products() noexcept { return nullptr; }

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
