#pragma once
// What a block of the backward pass knows of its queries, and what it leaves of them: dq, and its part in the gradients
// of the sink and of parameters.

#include <algorithm>
#include <cmath>

#include "attention_balancer/attention/detail/backward_call.hpp"
#include "attention_balancer/attention/detail/block.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// V packs of queries, `count` of them real: the others have no part in anything.
template <Scalar T, int V>
class BackwardQueries {
 protected:
  static constexpr int n = simd::lanes<T>;
  static constexpr Index width = V * n;

  BackwardQueries(const BackwardCall<T>& call, Index batch, Index head, Index first, Index count,
                  const BackwardScratch<T>& scratch, const BackwardSums<T>& sums) noexcept
      : call_(call),
        p_(call.forward.problem),
        batch_(batch),
        head_(head),
        first_(first),
        count_(count),
        s_(scratch),
        sums_(sums),
        in_bits_(scores_in_bits(call.forward)) {}

  /// The block's rows of x, each scaled: transposed [dim, W] and by rows [count, dim padded]; what pads them is 0.
  void load_rows(const TensorView<const T>& x, Index dim, T* transposed, T transposed_factor, T* rows,
                 T factor) noexcept {
    const T* from = &x(batch_, head_, first_, 0);
    const Index stride = row_stride<T>(dim);
    alignas(64) T factors[width];
    std::fill_n(factors, width, transposed_factor);
    if (count_ < width)
      for (Index c = 0; c < dim; ++c)
        std::fill(transposed + c * width + count_, transposed + (c + 1) * width, T(0));
    copy_matrix(transposed, width, Index(1), from, x.dim_stride, x.length_stride, dim, count_);
    multiply_rows<T, V>(transposed, dim, factors);
    for (Index i = 0; i < count_; ++i) {
      const T* row = from + i * x.length_stride;
      for (Index c = 0; c < dim; ++c) rows[i * stride + c] = row[c * x.dim_stride] * factor;
      std::fill(rows + i * stride + dim, rows + (i + 1) * stride, T(0));
    }
  }

  /// The batch item, or the packed sequence, as policies know it.
  Index site_batch() const noexcept { return call_.forward.first_batch + batch_; }

  T position(const TensorView<const T>& x, Index i) const noexcept {
    return x.data == nullptr ? T(0) : broadcast_plane(x, site_batch(), head_)(0, i);
  }

  void load_state() noexcept {
    const TensorView<const T>& out = call_.out;
    for (Index i = 0; i < width; ++i) {
      const bool real = i < count_;
      const T lse = real ? call_.lse(batch_, head_, 0, first_ + i) : -infinity<T>;
      rows_.lse[i] = lse == -infinity<T> ? infinity<T> : lse;
      rows_.offset[i] = in_bits_ ? rows_.lse[i] * T(simd::log2_e) : rows_.lse[i];
      rows_.entropy[i] = real ? position(call_.entropy_gradient, first_ + i) : T(0);
      rows_.u[i] = real ? call_.weights.template weight<T>(first_ + i, p_.queries) : T(0);
      rows_.delta[i] = rows_.sum[i] = rows_.slopes[i] = T(0);
    }
    // out and dout by rows: a sum of products of a row with its own.
    const Index stride = row_stride<T>(p_.value_dim);
    for (Index i = 0; i < count_; ++i) {
      const T *row = s_.output_rows + i * stride, *o = &out(batch_, head_, first_ + i, 0);
      simd::Pack<T> sum(T(0));
      Index c = 0;
      auto of_out = [&](Index at) {  // the same order of additions whatever the layout
        if (out.dim_stride == 1) return simd::load<simd::Pack<T>>(o + at);
        return simd::generate<simd::Pack<T>>([&](int lane) { return o[(at + lane) * out.dim_stride]; });
      };
      for (; c + n <= p_.value_dim; c += n) sum = simd::fma(simd::load<simd::Pack<T>>(row + c), of_out(c), sum);
      T total = simd::reduce_add(sum);
      for (; c < p_.value_dim; ++c) total = simd::fma(row[c], o[c * out.dim_stride], total);
      rows_.delta[i] = total;
    }
  }

  /// Whether the slope of a weight is not the weight itself: then D is no product of out and dout.
  bool has_slopes() const noexcept {
    return call_.forward.normalization.kind == Normalization::Kind::sparsemax ||
           call_.forward.normalization.kind == Normalization::Kind::entmax15;
  }

  T sink_logit() const noexcept {
    return call_.forward.sinks != nullptr ? call_.forward.sink_logit(call_.forward.sinks, head_) : -infinity<T>;
  }

  /// The weight of a sink in row i, which is not dead, and what the entropy adds to the gradient of that weight.
  struct SinkWeight {
    T p, gradient;
  };
  SinkWeight sink_weight(T logit, Index i) const noexcept {
    const T log_p = logit - rows_.lse[i];
    const T p = std::exp(log_p);
    return {p, p == T(0) ? T(0) : -rows_.entropy[i] * log_p};
  }

  /// Completes D, with what a sink has of the entropy.
  void finish_delta() noexcept {
    const T logit = sink_logit();
    for (Index i = 0; i < count_; ++i) {
      const bool dead = rows_.lse[i] == infinity<T>;
      T delta = rows_.delta[i] + rows_.sum[i] - position(call_.lse_gradient, first_ + i);
      if (logit != -infinity<T> && !dead) {
        const SinkWeight sink = sink_weight(logit, i);
        delta += sink.p * sink.gradient;
      }
      if (has_slopes())
        delta = dead ? T(0) : (rows_.sum[i] - position(call_.lse_gradient, first_ + i)) / rows_.slopes[i];
      rows_.delta[i] = delta;
    }
  }

  /// Whether row i sees a key. Known after the passes, and only where something is not finite: a row that sees none
  /// has 0 of everything otherwise.
  bool sees(Index i) const noexcept { return !guard_ || saw_[i] != T(0); }

  /// The gradient of the sink's logit.
  void add_to_sink() noexcept {
    const T logit = sink_logit();
    if (!call_.wants_sink || logit == -infinity<T>) return;
    for (Index i = 0; i < count_; ++i) {
      if (rows_.lse[i] == infinity<T>) continue;
      const SinkWeight sink = sink_weight(logit, i);
      // A row of nothing but the sink: its output is 0 whatever it would have meant to the loss.
      const T delta = sees(i) ? rows_.delta[i] : sink.p * sink.gradient - position(call_.lse_gradient, first_ + i);
      sums_.numbers[call_.modifiers] += static_cast<double>(sink.p * (sink.gradient - delta));
    }
  }

  /// dq, and what it says of the scale: the sum of dS times its product is q . (dS K).
  void store_queries() noexcept {
    if (call_.wants_scale)
      for (Index i = 0; i < count_; ++i) {
        const T* q = &call_.forward.q(batch_, head_, first_ + i, 0);
        double sum = 0;
        for (Index c = 0; c < p_.dim; ++c)
          sum += static_cast<double>(q[c * call_.forward.q.dim_stride]) * static_cast<double>(s_.dq[c * width + i]);
        if (rows_.lse[i] != infinity<T> && sees(i)) sums_.numbers[call_.modifiers + 1] += sum;
      }
    alignas(64) T factors[width];
    std::fill_n(factors, width, call_.forward.scale);
    multiply_rows<T, V>(s_.dq, p_.dim, factors);
    const TensorView<T>& dq = call_.dq;
    copy_matrix(&dq(batch_, head_, first_, 0), dq.length_stride, dq.dim_stride, static_cast<const T*>(s_.dq),
                Index(1), width, count_, p_.dim);
  }

  void store_parameters() noexcept {
    for (Index m = 0; m < call_.modifiers; ++m) {
      const TensorView<T>& target = call_.targets[m];
      if (target.data == nullptr || target.dim > 1) continue;
      const T* of_rows = s_.parameters + m * width;
      const Plane<T> of_queries = broadcast_plane(target, site_batch(), head_);
      for (Index i = 0; i < count_; ++i) {
        if (target.length > 1)
          of_queries(first_ + i, 0) += of_rows[i];
        else
          sums_.numbers[m] += static_cast<double>(of_rows[i]);
      }
    }
  }

  const BackwardCall<T>& call_;
  const Problem& p_;
  const Index batch_, head_, first_, count_;
  BackwardScratch<T> s_;
  const BackwardSums<T>& sums_;
  const bool in_bits_;
  bool guard_ = false;  // against what is not finite
  RowState<T> rows_;
  T saw_[width] = {};  // of each query whether it saw a key, while guarded
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
