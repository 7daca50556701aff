#pragma once
// A call of attention_backward as the kernels see it, the memory of a worker, and where a chunk's gradients go.

#include "attention_balancer/attention/detail/backward_stage.hpp"
#include "attention_balancer/attention/detail/call.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// A call of attention_backward as the kernels see it.
template <Scalar T>
struct BackwardCall {
  Call<T> forward = {};          // without out, which is only read here
  TensorView<const T> out, lse;  // lse [B, Hq, 1, Nq]
  TensorView<const T> dout;
  TensorView<T> dq, dk, dv;
  // [B or 1, Hq or 1, 1, N], or without data.
  TensorView<const T> lse_gradient = {}, entropy_gradient = {}, mass_gradient = {};
  QueryWeights weights = QueryWeights::none();
  // The policies on their way back, and where the gradients of their parameters go.
  void (*derive)(const void* set, const ScoreGradients<T>&) = nullptr;
  Index modifiers = 0;
  const TensorView<T>* targets = nullptr;  // one per modifier, without data if not wanted
  bool wants_sink = false, wants_scale = false;
};

/// Features of a row, padded to whole packs.
template <Scalar T>
constexpr Index padded_features(Index dim) noexcept {
  return (dim + simd::lanes<T> - 1) / simd::lanes<T> * simd::lanes<T>;
}

/// From one row of queries to the next: an odd number of cache lines, so that the same features of many rows find room
/// in the first cache.
template <Scalar T>
constexpr Index row_stride(Index dim) noexcept {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  return ((dim + line - 1) / line | 1) * line;
}

/// Blocks of queries that walk the keys side by side, so that the gradients of keys and values, which lie in memory,
/// are loaded and stored once for all of them: a block of twelve queries alone spends a third of its products' time on
/// that. Their strips and rows stay in the second cache.
template <Scalar T>
inline constexpr Index backward_together = std::clamp(Index(128) / static_cast<Index>(sizeof(simd::Pack<T>)),
                                                      Index(2), Index(4));

/// Memory of one worker; blocks that walk together have [together, ..] of what depends on W.
template <Scalar T>
struct BackwardScratch {
  T *queries, *outputs;            // q [D, W] scaled and dout [Dv, W], lanes are queries
  T *query_rows, *output_rows;     // the same by rows, [W, row_stride]
  T* dq;                           // [D, W]
  T *scores, *gradients;           // [longest_step, W]
  T* seen;                         // [longest_step, W], of one block at a time
  T *packed_keys, *packed_values;  // [longest_step, D], [longest_step, Dv]
  T* strip;                        // [Nk, W] the weights of a sparse normaliser, whose blocks walk alone
  KeyRange* ranges;                // [Nk / block_keys + 2]
  T* parameters;                   // per modifier [W]
  T **by_row, **by_key, **none;    // per modifier: where its parameter's gradient is summed, for the stage
  T* partial;                      // a chunk's dk [Nk, D padded] and dv [Nk, Dv padded]
  Index together, most_ranges;
  Coming* coming = nullptr;  // the rows of what is computed next, if those lie far away

  Index carve(std::byte* memory, const Problem& p, bool whole_strip, Index modifiers, Index partial_size) noexcept {
    Index used = 0;
    auto take = [&](auto*& pointer, Index elements) {
      if (memory != nullptr) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
      used += Scratch<T>::padded(elements) * static_cast<Index>(sizeof(*pointer));
    };
    constexpr Index width = block_width<T>;
    together = whole_strip ? 1 : backward_together<T>;
    take(queries, together * p.dim * width);
    take(outputs, together * p.value_dim * width);
    take(query_rows, together * row_stride<T>(p.dim) * width);
    take(output_rows, together * row_stride<T>(p.value_dim) * width);
    take(dq, together * p.dim * width);
    take(scores, together * longest_step * width);
    take(gradients, together * longest_step * width);
    take(seen, longest_step * width);
    take(packed_keys, longest_step * p.dim);
    take(packed_values, longest_step * p.value_dim);
    take(strip, whole_strip ? p.keys * width : 0);
    most_ranges = p.keys / block_keys + 2;
    take(ranges, together * most_ranges);
    take(parameters, together * modifiers * width);
    take(by_row, modifiers);
    take(by_key, modifiers);
    take(none, modifiers);
    take(partial, partial_size);
    return used;
  }
};

/// Where the gradients of one chunk of queries go.
template <Scalar T>
struct BackwardSums {
  T *dk, *dv;       // [Nk, D padded], [Nk, Dv padded], added to
  T* by_key;        // per modifier [Nk], for targets that sum over the queries only
  double* numbers;  // per modifier, then the sink and the scale: for targets that sum over queries and keys
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
