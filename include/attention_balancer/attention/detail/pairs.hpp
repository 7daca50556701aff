#pragma once
// Both matrix products on pairs of bf16, with the tiles of float: a lane holds two features of a query, or the weights
// of two keys, and each broadcast element of K or V two numbers as well.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "attention_balancer/attention/detail/call.hpp"
#include "attention_balancer/attention/detail/tile.hpp"
#include "attention_balancer/cache/kv_view.hpp"
#include "attention_balancer/simd/bf16.hpp"
#include "attention_balancer/softmax/pair_weights.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

#if defined(ATTENTION_BALANCER_BF16_PRODUCTS)

/// The product of tiles of pairs.
struct MultiplyPairs {
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b) const noexcept {
    return simd::multiply_pairs(a, b, S(0.0f));
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& a, const S& b, const S& c) const noexcept {
    return simd::multiply_pairs(a, b, c);
  }
};

/// pairs [(rows + 1) / 2, V packs] of x [rows, V packs], behind an odd last row 0. May be the same memory.
template <int V>
ATTENTION_BALANCER_NOINLINE void pair_rows(const float* x, Index rows, float* pairs) noexcept {
  using S = simd::Pack<float>;
  constexpr int n = simd::lanes<float>, width = V * n;
  Index r = 0;
  for (; r + 2 <= rows; r += 2) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v)
    simd::store_aligned(pairs + r / 2 * width + v * n,
                        simd::to_pairs(simd::load_aligned<S>(x + r * width + v * n),
                                       simd::load_aligned<S>(x + (r + 1) * width + v * n)));
  if (r < rows) ATTENTION_BALANCER_UNROLL
  for (int v = 0; v < V; ++v)
    simd::store_aligned(pairs + r / 2 * width + v * n,
                        simd::to_pairs(simd::load_aligned<S>(x + r * width + v * n), S(0.0f)));
}

/// As PairProducts::weigh.
template <int V, class Exp2>
void weigh_as_pairs(const float* scores, Index count, OnlineState<float>& state, bool entropy,
                    float* pairs) noexcept {
  entropy ? weigh_pairs<V, Exp2, true>(scores, count, state, pairs)
          : weigh_pairs<V, Exp2, false>(scores, count, state, pairs);
}

/// The products with blocks of V packs of queries.
template <int V>
constexpr PairProducts<float> pair_products_of() noexcept {
  return {{},
          [](float* queries, Index dim) { pair_rows<V>(queries, dim, queries); },
          [](const float* queries, const Rows<float>& keys, Index count, Index dim, float* scores, float* top,
             const Far& far) {
            score_keys<float, V, tile_rows<V>, MultiplyPairs>(queries, keys.data, keys.stride, count, (dim + 1) / 2,
                                                              scores, top, far);
          },
          weigh_as_pairs<V, Exponential>,
          pair_rows<V>,
          [](float* pairs, const float* values, Index first, Index count, Index dim, float* output, Onto onto,
             const float* shrink, const Far& far) {
            add_values<float, V, tile_rows<V>, MultiplyPairs>(pairs, values + first / 2 * dim, dim, (count + 1) / 2,
                                                              dim, output, onto, shrink, far);
          }};
}

/// By number of packs less one; null if the machine has no products of bf16.
inline const PairProducts<float>* pair_products() noexcept {
  static_assert(block_packs == 3);
  static constexpr PairProducts<float> products[] = {pair_products_of<1>(), pair_products_of<2>(),
                                                     pair_products_of<3>()};
  return products;
}

ATTENTION_BALANCER_INLINE float pair_of(bf16 first, bf16 second) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(first.bits) | static_cast<std::uint32_t>(second.bits)
                                                                                << 16);
}

/// to [end - begin, (D + 1) / 2] = the keys [begin, end) of a sequence as pairs of features; the partner of an odd last
/// one is 0.
ATTENTION_BALANCER_NOINLINE inline void load_key_pairs(const KvView<bf16>& x, Index batch, Index kv_head,
                                                       Index begin, Index end, float* to) noexcept {
  const Index dim = x.keys.dim;
  for_runs(x, x.keys, batch, kv_head, begin, end, [&](const bf16* row, Index, Index count) {
    for (Index j = 0; j < count; ++j, row += x.keys.length_stride) {
      std::memcpy(to, row, static_cast<std::size_t>(dim / 2) * sizeof(float));
      to += dim / 2;
      if (dim % 2 != 0) *to++ = pair_of(row[dim - 1], bf16{});
    }
  });
}

/// to [(end - begin + 1) / 2, Dv] = its values as pairs of tokens, the same feature of both; the partner of an odd last
/// one is 0.
ATTENTION_BALANCER_NOINLINE inline void load_value_pairs(const KvView<bf16>& x, Index batch, Index kv_head,
                                                         Index begin, Index end, float* to) noexcept {
  using S = simd::Pack<float>;
  constexpr int n = simd::lanes<float>;
  const Index dim = x.values.dim;
  const bf16* before = nullptr;  // the first of a pair
  for_runs(x, x.values, batch, kv_head, begin, end, [&](const bf16* row, Index, Index count) {
    for (Index j = 0; j < count; ++j, row += x.values.length_stride) {
      if (before == nullptr) {
        before = row;
        continue;
      }
      Index c = 0;
      for (; c + n <= dim; c += n) simd::store(to + c, simd::load_pairs<S>(before + c, row + c));
      for (; c < dim; ++c) to[c] = pair_of(before[c], row[c]);
      to += dim;
      before = nullptr;
    }
  });
  if (before != nullptr)
    for (Index c = 0; c < dim; ++c) to[c] = pair_of(before[c], bf16{});
}

#else

inline const PairProducts<float>* pair_products() noexcept { return nullptr; }

#endif

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
