#pragma once
// The division of a backward pass among workers, and the order in which what they find is added up.

#include <atomic>
#include <limits>
#include <new>

#include "attention_balancer/attention/detail/backward_block.hpp"
#include "attention_balancer/attention/forward.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The queries [first, end) of one head, in blocks as in the forward pass.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void attend_queries_backward(const BackwardCall<T>& call, Index batch, Index head,
                                                         Index first, Index end, bool keys_finite,
                                                         const BackwardScratch<T>& scratch,
                                                         const BackwardSums<T>& sums) noexcept {
  constexpr Index n = simd::lanes<T>;
  while (first < end) {
    const Index packs = (end - first + n - 1) / n;
    const Index now = packs == 4 ? 2 : std::min(packs, Index(block_packs));
    const Index count = std::min(now * n, end - first);
    if (now == 3)
      BackwardBlock<T, 3>(call, batch, head, first, count, keys_finite, scratch, sums).run();
    else if (now == 2)
      BackwardBlock<T, 2>(call, batch, head, first, count, keys_finite, scratch, sums).run();
    else
      BackwardBlock<T, 1>(call, batch, head, first, count, keys_finite, scratch, sums).run();
    first += count;
  }
}

/// to [rows, dim] = or += from [rows, stride]
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void add_partial_rows(T* to, Index row, Index column, const T* from, Index stride,
                                                  Index rows, Index dim, bool add) noexcept {
  for (Index j = 0; j < rows; ++j) {
    T* const x = to + j * row;
    const T* const y = from + j * stride;
    if (column == 1)
      for (Index c = 0; c < dim; ++c) x[c] = add ? x[c] + y[c] : y[c];
    else
      for (Index c = 0; c < dim; ++c) x[c * column] = add ? x[c * column] + y[c] : y[c];
  }
}

template <Scalar T, class F>
void for_each_element(const TensorView<T>& x, F f) {
  for (Index b = 0; b < x.batch; ++b)
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.length; ++i)
        for (Index c = 0; c < x.dim; ++c) f(x(b, h, i, c), b, h, i, c);
}

/// Runs a backward call. The queries of a head are cut into at most 8 chunks by their own number; each has partial
/// gradients of the keys and values of its own, and all are added in the order of the chunks.
template <Scalar T>
class BackwardWorker {
 public:
  /// Reserves the memory. `sink_target` and `scale_target` without data: not wanted.
  BackwardWorker(const BackwardCall<T>& call, Workspace& workspace, Index concurrency)
      : call_(call), p_(call.forward.problem), chunks_(p_.queries), group_(p_.heads / p_.kv_heads) {
    chunks_.count = std::min(Index(8), chunks_.count);
    // Heads that add to the same rows of a parameter's gradient do so one after another.
    for (Index m = 0; m < call.modifiers; ++m) {
      const TensorView<T>& target = call.targets[m];
      if (target.data == nullptr) continue;
      if (target.length > 1) {
        batch_in_turn_ = batch_in_turn_ || (target.batch == 1 && p_.batch > 1);
        heads_in_turn_ = heads_in_turn_ || (target.heads == 1 && p_.kv_heads > 1);
      } else if (target.dim > 1) {
        keys_kept_ = call.modifiers * p_.keys;
      }
    }
    groups_ = (batch_in_turn_ ? 1 : p_.batch) * (heads_in_turn_ ? 1 : p_.kv_heads);
    slots_ = std::clamp(concurrency, Index(1), groups_ * chunks_.count);
    // With groups enough for everybody a worker takes whole ones and keeps one chunk's sums at a time.
    by_chunk_ = chunks_.count > 1 && slots_ > 1 && groups_ < 2 * slots_;
    if (!by_chunk_) slots_ = std::min(slots_, groups_);

    key_stride_ = padded_features<T>(p_.dim), value_stride_ = padded_features<T>(p_.value_dim);
    require_addressable("k.length", p_.keys, key_stride_ + value_stride_);
    partial_size_ = Scratch<T>::padded(p_.keys * key_stride_) + Scratch<T>::padded(p_.keys * value_stride_);
    partials_ = by_chunk_ ? p_.batch * p_.kv_heads * chunks_.count : 0;
    const Index rows = p_.batch * p_.heads * chunks_.count;
    numbers_ = call.modifiers + 2;
    BackwardScratch<T> sizes;
    slot_bytes_ = sizes.carve(nullptr, p_, is_sparse(call.forward.normalization), call.modifiers,
                              by_chunk_ ? 0 : partial_size_);
    Index bytes = 0;
    auto add = [&bytes](Index count, Index each) {
      if (multiply_overflows(count, each) || count * each > std::numeric_limits<Index>::max() - 64 - bytes)
        throw std::bad_alloc();
      const Index at = bytes;
      bytes += (count * each + 63) / 64 * 64;
      return at;
    };
    add(slots_, slot_bytes_);
    const Index partials_at = add(partials_, partial_size_ * static_cast<Index>(sizeof(T)));
    const Index keys_at = add(rows, keys_kept_ * static_cast<Index>(sizeof(T)));
    const Index numbers_at = add(rows, numbers_ * static_cast<Index>(sizeof(double)));
    memory_ = workspace.reserve(static_cast<std::size_t>(bytes));
    partials_memory_ = reinterpret_cast<T*>(memory_ + partials_at);
    by_key_ = reinterpret_cast<T*>(memory_ + keys_at);
    numbers_memory_ = reinterpret_cast<double*>(memory_ + numbers_at);
  }

  template <class Run>
  void run(const Run& executor) {
    for (Index m = 0; m < call_.modifiers; ++m)
      if (call_.targets[m].data != nullptr) for_each_element(call_.targets[m], [](T& x, auto...) { x = T(0); });
    share(executor, by_chunk_ ? groups_ * chunks_.count : groups_,
          [this](Index item, const BackwardScratch<T>& scratch) {
            by_chunk_ ? run_chunk(item, scratch) : run_group(item, scratch);
          });
    if (by_chunk_)
      share(executor, p_.batch * p_.kv_heads, [this](Index head, const BackwardScratch<T>&) {
        for (Index c = 0; c < chunks_.count; ++c)
          add_partial(head, c, partials_memory_ + (head * chunks_.count + c) * partial_size_);
      });
    for (Index m = 0; m < call_.modifiers; ++m) add_parameters(m);
  }

  /// After run: the gradient of a sink's logits, or of the scale, summed as the shape of `target` says.
  void add_sink(const TensorView<T>& target) noexcept { add_numbers(call_.modifiers, target, 1); }
  void add_scale(const TensorView<T>& target, double factor) noexcept {
    add_numbers(call_.modifiers + 1, target, factor);
  }

 private:
  template <class Run, class F>
  void share(const Run& executor, Index items, F f) {
    std::atomic<Index> next{0};
    executor.for_each(std::min(slots_, items), [&](Index slot) {
      BackwardScratch<T> scratch;
      scratch.carve(memory_ + slot * slot_bytes_, p_, is_sparse(call_.forward.normalization), call_.modifiers,
                    by_chunk_ ? 0 : partial_size_);
      for (Index item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(item, scratch);
    });
  }

  /// f(batch item, key head) for all of a group, in order.
  template <class F>
  void for_each_head(Index group, F f) const noexcept {
    const Index columns = heads_in_turn_ ? 1 : p_.kv_heads, b = group / columns, h = group % columns;
    for (Index i = batch_in_turn_ ? 0 : b; i < (batch_in_turn_ ? p_.batch : b + 1); ++i)
      for (Index j = heads_in_turn_ ? 0 : h; j < (heads_in_turn_ ? p_.kv_heads : h + 1); ++j) f(i, j);
  }

  void run_chunk(Index item, const BackwardScratch<T>& scratch) noexcept {
    const Index chunk = item % chunks_.count;
    for_each_head(item / chunks_.count, [&](Index b, Index kv) {
      attend_chunk(b, kv, chunk, scratch,
                   partials_memory_ + ((b * p_.kv_heads + kv) * chunks_.count + chunk) * partial_size_);
    });
  }

  void run_group(Index group, const BackwardScratch<T>& scratch) noexcept {
    for_each_head(group, [&](Index b, Index kv) {
      for (Index c = 0; c < chunks_.count; ++c) {
        attend_chunk(b, kv, c, scratch, scratch.partial);
        add_partial(b * p_.kv_heads + kv, c, scratch.partial);
      }
    });
  }

  void attend_chunk(Index b, Index kv, Index chunk, const BackwardScratch<T>& scratch, T* partial) noexcept {
    std::fill_n(partial, partial_size_, T(0));
    const bool finite = keys_finite(b, kv);
    for (Index h = kv * group_; h < (kv + 1) * group_; ++h) {
      const Index row = (b * p_.heads + h) * chunks_.count + chunk;
      const BackwardSums<T> sums{partial, partial + Scratch<T>::padded(p_.keys * key_stride_),
                                 by_key_ + row * keys_kept_, numbers_memory_ + row * numbers_};
      std::fill_n(sums.by_key, keys_kept_, T(0));
      std::fill_n(sums.numbers, numbers_, 0.0);
      attend_queries_backward(call_, b, h, chunks_.begin(chunk, p_.queries), chunks_.begin(chunk + 1, p_.queries),
                              finite, scratch, sums);
    }
  }

  ATTENTION_BALANCER_NOINLINE bool keys_finite(Index b, Index kv) const noexcept {
    const TensorView<const T>& k = call_.forward.k;
    T trace(0);  // 0 * x is not a number exactly where x is not finite
    for (Index j = 0; j < p_.keys; ++j)
      for (Index c = 0; c < p_.dim; ++c) trace += T(0) * k(b, kv, j, c);
    return trace == T(0);
  }

  void add_partial(Index head, Index chunk, const T* partial) noexcept {
    const Index b = head / p_.kv_heads, kv = head % p_.kv_heads;
    const TensorView<T>&dk = call_.dk, &dv = call_.dv;
    if (p_.keys == 0) return;
    add_partial_rows(&dk(b, kv, 0, 0), dk.length_stride, dk.dim_stride, partial, key_stride_, p_.keys, p_.dim,
                     chunk > 0);
    add_partial_rows(&dv(b, kv, 0, 0), dv.length_stride, dv.dim_stride,
                     partial + Scratch<T>::padded(p_.keys * key_stride_), value_stride_, p_.keys, p_.value_dim,
                     chunk > 0);
  }

  /// Targets that sum over the queries: batch item by batch item, head by head, chunk by chunk.
  void add_parameters(Index m) noexcept {
    const TensorView<T>& target = call_.targets[m];
    if (target.data == nullptr || target.length > 1) return;
    if (target.dim <= 1) return add_numbers(m, target, 1);
    for (Index b = 0; b < p_.batch; ++b)
      for (Index h = 0; h < p_.heads; ++h)
        for (Index c = 0; c < chunks_.count; ++c) {
          const T* from = by_key_ + ((b * p_.heads + h) * chunks_.count + c) * keys_kept_ + m * p_.keys;
          T* to = &target(target.batch == 1 ? 0 : b, target.heads == 1 ? 0 : h, 0, 0);
          for (Index j = 0; j < p_.keys; ++j) to[j * target.dim_stride] += from[j];
        }
  }

  void add_numbers(Index which, const TensorView<T>& target, double factor) noexcept {
    for_each_element(target, [&](T& x, Index tb, Index th, auto...) {
      double sum = 0;
      for (Index b = target.batch == 1 ? 0 : tb; b < (target.batch == 1 ? p_.batch : tb + 1); ++b)
        for (Index h = target.heads == 1 ? 0 : th; h < (target.heads == 1 ? p_.heads : th + 1); ++h)
          for (Index c = 0; c < chunks_.count; ++c)
            sum += numbers_memory_[((b * p_.heads + h) * chunks_.count + c) * numbers_ + which];
      x = static_cast<T>(sum * factor);
    });
  }

  const BackwardCall<T>& call_;
  const Problem& p_;
  Chunks<T> chunks_;
  const Index group_;  // query heads per key head
  bool batch_in_turn_ = false, heads_in_turn_ = false, by_chunk_ = false;
  Index groups_ = 0, slots_ = 0, key_stride_ = 0, value_stride_ = 0;
  Index partial_size_ = 0, partials_ = 0, keys_kept_ = 0, numbers_ = 0, slot_bytes_ = 0;
  std::byte* memory_ = nullptr;
  T *partials_memory_ = nullptr, *by_key_ = nullptr;
  double* numbers_memory_ = nullptr;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
