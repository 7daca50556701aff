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

/// Memory of one worker.
template <Scalar T>
struct BackwardScratch {
  T *queries, *outputs;            // q [D, W] scaled and dout [Dv, W], lanes are queries
  T *query_rows, *output_rows;     // the same by rows, [W, D padded], [W, Dv padded]
  T* dq;                           // [D, W]
  T *scores, *gradients, *seen;    // [longest_step, W]
  T *packed_keys, *packed_values;  // [longest_step, D], [longest_step, Dv]
  T* strip;                        // [Nk, W] the weights of a sparse normaliser
  KeyRange* ranges;                // [Nk / block_keys + 2]
  T* parameters;                   // per modifier [W]
  T **by_row, **by_key, **none;    // per modifier: where its parameter's gradient is summed, for the stage
  T* partial;                      // a chunk's dk [Nk, D padded] and dv [Nk, Dv padded]

  Index carve(std::byte* memory, const Problem& p, bool whole_strip, Index modifiers, Index partial_size) noexcept {
    Index used = 0;
    auto take = [&](auto*& pointer, Index elements) {
      if (memory != nullptr) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
      used += Scratch<T>::padded(elements) * static_cast<Index>(sizeof(*pointer));
    };
    constexpr Index width = block_width<T>;
    take(queries, p.dim * width);
    take(outputs, p.value_dim * width);
    take(query_rows, padded_features<T>(p.dim) * width);
    take(output_rows, padded_features<T>(p.value_dim) * width);
    take(dq, p.dim * width);
    take(scores, longest_step * width);
    take(gradients, longest_step * width);
    take(seen, longest_step * width);
    take(packed_keys, longest_step * p.dim);
    take(packed_values, longest_step * p.value_dim);
    take(strip, whole_strip ? p.keys * width : 0);
    take(ranges, p.keys / block_keys + 2);
    take(parameters, modifiers * width);
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
