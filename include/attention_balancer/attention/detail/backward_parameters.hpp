#pragma once
// The gradients of parameters that are summed over the queries: what each chunk of them gives is kept, and all is added
// in one order, whoever found it.

#include <limits>
#include <new>

#include "attention_balancer/attention/detail/backward_call.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// f(element, batch, head, row, column) for all of a view.
template <Scalar T, class F>
void for_each_element(const TensorView<T>& x, F f) {
  for (Index b = 0; b < x.batch; ++b)
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.length; ++i)
        for (Index c = 0; c < x.dim; ++c) f(x(b, h, i, c), b, h, i, c);
}

/// Adds up the bytes of arrays that lie one after the other, each aligned to a cache line. Throws std::bad_alloc.
class ByteCount {
 public:
  /// Where the next array begins.
  Index add(Index count, Index each) {
    if (multiply_overflows(count, each) || count * each > std::numeric_limits<Index>::max() - 64 - bytes_)
      throw std::bad_alloc();
    const Index at = bytes_;
    bytes_ += (count * each + 63) / 64 * 64;
    return at;
  }
  Index bytes() const noexcept { return bytes_; }

 private:
  Index bytes_ = 0;
};

/// One row of sums per batch item (or packed sequence), query head and chunk of queries.
template <Scalar T>
class ParameterSums {
 public:
  static constexpr Index most_chunks = 8;

  /// Of so many batch items with so many keys together. `call` must outlive it.
  ParameterSums(const BackwardCall<T>& call, Index batch, Index all_keys)
      : call_(call), batch_(batch), heads_(call.forward.problem.heads), numbers_(call.modifiers + 2) {
    for (Index m = 0; m < call.modifiers; ++m) {
      const TensorView<T>& target = call.targets[m];
      if (target.data != nullptr && target.length <= 1 && target.dim > 1) by_key_modifiers_ = call.modifiers;
    }
    ByteCount count;
    if (multiply_overflows(batch, heads_ * most_chunks) || multiply_overflows(all_keys, heads_ * most_chunks))
      throw std::bad_alloc();
    count.add(batch * heads_ * most_chunks, numbers_ * static_cast<Index>(sizeof(double)));
    by_key_at_ = count.add(all_keys * heads_ * most_chunks, by_key_modifiers_ * static_cast<Index>(sizeof(T)));
    bytes_ = count.bytes();
  }

  Index bytes() const noexcept { return bytes_; }

  /// In memory of bytes(); sets the targets to 0.
  void begin(std::byte* memory) {
    numbers_memory_ = reinterpret_cast<double*>(memory);
    by_key_memory_ = reinterpret_cast<T*>(memory + by_key_at_);
    std::fill_n(numbers_memory_, batch_ * heads_ * most_chunks * numbers_, 0.0);
    for (Index m = 0; m < call_.modifiers; ++m)
      if (call_.targets[m].data != nullptr) for_each_element(call_.targets[m], [](T& x, auto...) { x = T(0); });
  }

  /// Per modifier, then the sink and the scale: for targets that sum over queries and keys.
  double* numbers(Index batch, Index head, Index chunk) const noexcept {
    return numbers_memory_ + ((batch * heads_ + head) * most_chunks + chunk) * numbers_;
  }

  /// Per modifier [keys]: for targets that sum over the queries only. `first_key`: keys of the batch items before.
  T* by_key(Index first_key, Index keys, Index head, Index chunk) const noexcept {
    return by_key_memory_ +
           (first_key * heads_ * most_chunks + (head * most_chunks + chunk) * keys) * by_key_modifiers_;
  }
  Index by_key_size(Index keys) const noexcept { return by_key_modifiers_ * keys; }

  /// What the keys of a batch item have, head by head and chunk by chunk: once for each of them, in their order.
  void add_by_key(Index batch, Index first_key, Index keys, Index chunks) const noexcept {
    for (Index m = 0; m < call_.modifiers; ++m) {
      const TensorView<T>& target = call_.targets[m];
      if (target.data == nullptr || target.length > 1 || target.dim <= 1 || keys == 0) continue;
      for (Index h = 0; h < heads_; ++h)
        for (Index c = 0; c < chunks; ++c) {
          const T* from = by_key(first_key, keys, h, c) + m * keys;
          const Plane<T> to = broadcast_plane(target, batch, h);
          for (Index j = 0; j < keys; ++j) to(0, j) += from[j];
        }
    }
  }

  /// All numbers of modifiers, after all batch items have run.
  void add_numbers() const noexcept {
    for (Index m = 0; m < call_.modifiers; ++m) {
      const TensorView<T>& target = call_.targets[m];
      if (target.data != nullptr && target.length <= 1 && target.dim <= 1) add(m, target, 1);
    }
  }
  void add_sink(const TensorView<T>& target) const noexcept { add(call_.modifiers, target, 1); }
  void add_scale(const TensorView<T>& target, double factor) const noexcept {
    add(call_.modifiers + 1, target, factor);
  }

 private:
  void add(Index which, const TensorView<T>& target, double factor) const noexcept {
    for_each_element(target, [&](T& x, Index tb, Index th, auto...) {
      double sum = 0;
      for (Index b = target.batch == 1 ? 0 : tb; b < (target.batch == 1 ? batch_ : tb + 1); ++b)
        for (Index h = target.heads == 1 ? 0 : th; h < (target.heads == 1 ? heads_ : th + 1); ++h)
          for (Index c = 0; c < most_chunks; ++c) sum += numbers(b, h, c)[which];
      x = static_cast<T>(sum * factor);
    });
  }

  const BackwardCall<T>& call_;
  Index batch_, heads_, numbers_, by_key_modifiers_ = 0, by_key_at_ = 0, bytes_ = 0;
  double* numbers_memory_ = nullptr;
  T* by_key_memory_ = nullptr;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
