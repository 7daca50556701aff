#pragma once
// The backward pass of one block of queries of one head: the loop over keys, block by block.
//
// With P = exp(S - lse) recomputed and D_i = dO_i . O_i: dV += P^T dO, dP = dO V^T, dS = P * (dP - D), dQ = dS K,
// dK += dS^T Q. The gradient of the lse lessens D_i, that of the mass of key j adds u_i dmass_j to dP_ij and that
// of the entropy -dH_i log P_ij; what these two add to D_i takes a first pass over the scores.

#include <cmath>

#include "attention_balancer/attention/detail/backward_call.hpp"
#include "attention_balancer/attention/detail/backward_tile.hpp"
#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/detail/decode_tile.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// One block of V packs of queries, `count` of them real: the others have no part in anything.
template <Scalar T, int V>
class BackwardBlock {
 public:
  BackwardBlock(const BackwardCall<T>& call, Index batch, Index head, Index first, Index count, bool keys_finite,
                const BackwardScratch<T>& scratch, const BackwardSums<T>& sums) noexcept
      : call_(call),
        p_(call.forward.problem),
        batch_(batch),
        head_(head),
        kv_head_(head / (p_.heads / p_.kv_heads)),
        first_(first),
        count_(count),
        s_(scratch),
        sums_(sums),
        in_bits_(scores_in_bits(call.forward)),
        decoded_(decodes(call.forward) && !rows_are_lanes<T>(p_)),
        guard_(!keys_finite) {}

  void run() noexcept {
    // The forward's scores bit by bit: D has its weights, and does not cancel against those of other scores.
    load_rows(call_.forward.q, p_.dim, s_.queries, query_factor(call_.forward), s_.query_rows, call_.forward.scale);
    load_rows(call_.dout, p_.value_dim, s_.outputs, T(1), s_.output_rows, T(1));
    guard_ = guard_ || !all_finite<T>(s_.queries, p_.dim * V) || !all_finite<T>(s_.outputs, p_.value_dim * V);
    load_state();
    std::fill_n(s_.none, call_.modifiers, nullptr);
    ranges_ = visible_ranges(call_.forward,
                             {first_, first_ + count_, 0, 0, site_batch(), head_, p_.queries, p_.keys}, s_.ranges);
    if (is_sparse(call_.forward.normalization)) fill_strip();
    if (call_.mass_gradient.data != nullptr || call_.entropy_gradient.data != nullptr || has_slopes()) first_pass();
    finish_delta();

    std::fill_n(s_.dq, p_.dim * width, T(0));
    std::fill_n(s_.parameters, call_.modifiers * width, T(0));
    for_each_range([&](const KeyRange& range, const T* weights) { pass(range, weights); });
    add_to_sink();
    store_queries();
    store_parameters();
  }

 private:
  static constexpr int n = simd::lanes<T>;
  static constexpr Index width = V * n;

  /// The block's rows of x, each scaled: transposed [dim, W] and by rows [count, dim padded]; what pads them is 0.
  void load_rows(const TensorView<const T>& x, Index dim, T* transposed, T transposed_factor, T* rows,
                 T factor) noexcept {
    const T* from = &x(batch_, head_, first_, 0);
    const Index stride = padded_features<T>(dim);
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
    return x.data == nullptr ? T(0) : x(x.batch == 1 ? 0 : site_batch(), x.heads == 1 ? 0 : head_, 0, i);
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
    const Index stride = padded_features<T>(p_.value_dim);
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

  /// f(range, its part of the strip of a sparse normaliser), in steps of at most block_keys.
  template <class F>
  void for_each_range(F f) const noexcept {
    T* strip = is_sparse(call_.forward.normalization) ? s_.strip : nullptr;
    for (Index r = 0; r < ranges_; ++r)
      for (Index begin = s_.ranges[r].begin; begin < s_.ranges[r].end; begin += block_keys) {
        const KeyRange step{begin, std::min(begin + block_keys, s_.ranges[r].end), s_.ranges[r].partial};
        f(step, strip);
        if (strip != nullptr) strip += (step.end - step.begin) * width;
      }
  }

  /// The weights of a sparse normaliser, from all scores at once, as in the forward pass.
  ATTENTION_BALANCER_NOINLINE void fill_strip() noexcept {
    const Call<T>& forward = call_.forward;
    alignas(64) T top[width];
    std::fill_n(top, width, -infinity<T>);
    Index keys = 0;
    for_each_range([&](const KeyRange& range, T* scores) {
      const Rows<T> k = rows_of(forward.k, range, s_.packed_keys);
      const bool bent = forward.policies.has_modifiers || range.partial;
      score_keys<T, V>(s_.queries, k.data, k.stride, range.end - range.begin, p_.dim, scores, bent ? nullptr : top);
      if (bent) forward.policies.bend[V - 1](forward.policies.policies, scores, place(range), range.partial, top);
      keys += range.end - range.begin;
    });
    OnlineState<T> state;
    state.clear();
    raise_top<T, V>(state, top);
    Sparse<T> sparse;
    sparsify<T, V>(forward.normalization, s_.strip, keys, state.offset, sparse);
    if (!has_slopes()) weigh_kept(keys);
  }

  /// strip = exp(strip - lse), of a masked score 0 whatever the row is.
  ATTENTION_BALANCER_NOINLINE void weigh_kept(Index keys) noexcept {
    using S = simd::Pack<T>;
    for (Index j = 0; j < keys; ++j)
      for (int v = 0; v < V; ++v) {
        T* const at = s_.strip + (j * V + v) * n;
        const S score = simd::load_aligned<S>(at);
        const S x = (score - simd::load_aligned<S>(rows_.offset + v * n)) * S(T(simd::log2_e));
        const S weight = simd::exp2_clamped(simd::clamp_exponent(x));
        simd::store_aligned(at, simd::select(score == S(-infinity<T>), S(T(0)), weight));
      }
  }

  /// Whether all of weights [count] is 0.
  static bool all_zero(const T* weights, Index count) noexcept {
    using S = simd::Pack<T>;
    S others(T(0));
    for (Index i = 0; i < count; i += n)
      others = others + simd::select(simd::load_aligned<S>(weights + i) == S(T(0)), S(T(0)), S(T(1)));
    return simd::reduce_add(others) == T(0);
  }

  Place place(const KeyRange& range) const noexcept {
    return {&p_, site_batch(), head_, first_, range.begin, range.end};
  }

  ScoreGradients<T> block_of(const KeyRange& range, const T* weights) noexcept {
    ScoreGradients<T> x{};
    x.at = place(range);
    x.weights = weights;
    x.normalizer = call_.forward.normalization.kind;
    x.packs = V;
    x.partial = range.partial;
    x.scores = s_.scores;
    x.gradients = s_.gradients;
    x.rows = &rows_;
    x.exponent_per_score = in_bits_ ? T(1) : T(simd::log2_e);
    x.logit_per_score = in_bits_ ? T(simd::ln_2) : T(1);
    x.with_entropy = call_.entropy_gradient.data != nullptr;
    if (const TensorView<const T>& m = call_.mass_gradient; m.data != nullptr) {
      x.mass = &m(m.batch == 1 ? 0 : site_batch(), m.heads == 1 ? 0 : head_, 0, range.begin);
      x.mass_stride = m.dim_stride;
    }
    return x;
  }

  void derive(const ScoreGradients<T>& x) noexcept {
    using Plain = Derivatives<T, Policies<T, std::tuple<>, std::tuple<>>>;
    if (call_.forward.policies.has_modifiers || x.partial)
      call_.derive(call_.forward.policies.policies, x);
    else if (x.first_pass || x.weights != nullptr || x.with_entropy || x.mass != nullptr || x.seen != nullptr)
      Plain::template block<false, true>({}, x);
    else
      Plain::template block<false, false>({}, x);
  }

  /// rows_.sum = sum over the keys of slope (u dmass - dH log p), and of slope (dout . v) where it is not p.
  void first_pass() noexcept {
    for_each_range([&](const KeyRange& range, const T* weights) {
      const Index keys = range.end - range.begin;
      if (weights != nullptr && all_zero(weights, keys * width)) return;
      ScoreGradients<T> x = block_of(range, weights);
      score(rows_of(call_.forward.k, range, s_.packed_keys), keys);
      x.gradients = nullptr;
      if (has_slopes()) {
        const Rows<T> v = rows_of(call_.forward.v, range, s_.packed_values);
        score_keys<T, V>(s_.outputs, v.data, v.stride, keys, p_.value_dim, s_.gradients, nullptr);
        x.gradients = s_.gradients;
      }
      x.first_pass = true;
      x.parameter_rows = x.parameter_keys = s_.none;
      derive(x);
    });
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

  Rows<T> rows_of(const TensorView<const T>& x, const KeyRange& range, T* packed) const noexcept {
    const T* first = x.data + batch_ * x.batch_stride + kv_head_ * x.head_stride + range.begin * x.length_stride;
    if (x.dim_stride == 1 || x.dim == 1) return {first, x.length_stride};
    copy_matrix(packed, x.dim, Index(1), first, x.length_stride, x.dim_stride, range.end - range.begin, x.dim);
    return {packed, x.dim};
  }

  /// Scores of a block of keys before the policies, bit by bit those of the forward pass.
  void score(const Rows<T>& k, Index keys) noexcept {
    if (decoded_)  // the gradients come after the scores
      return score_decoded<T, V>(s_.query_rows, key_stride(), count_, k.data, k.stride, keys, p_.dim, s_.gradients,
                                 s_.scores);
    score_keys<T, V>(s_.queries, k.data, k.stride, keys, p_.dim, s_.scores, nullptr);
  }

  void pass(const KeyRange& range, const T* weights) noexcept {
    const Index keys = range.end - range.begin;
    if (weights != nullptr && all_zero(weights, keys * width)) return;
    const Rows<T> k = rows_of(call_.forward.k, range, s_.packed_keys),
                  v = rows_of(call_.forward.v, range, s_.packed_values);
    score(k, keys);
    score_keys<T, V>(s_.outputs, v.data, v.stride, keys, p_.value_dim, s_.gradients, nullptr);

    ScoreGradients<T> x = block_of(range, weights);
    for (Index m = 0; m < call_.modifiers; ++m) {
      const TensorView<T>& target = call_.targets[m];
      s_.by_row[m] = s_.by_key[m] = nullptr;
      if (target.data == nullptr || (target.length > 1 && target.dim > 1)) continue;
      if (target.dim > 1)
        s_.by_key[m] = sums_.by_key + m * p_.keys + range.begin;
      else
        s_.by_row[m] = s_.parameters + m * width;
    }
    x.parameter_rows = s_.by_row, x.parameter_keys = s_.by_key;
    if (guard_) x.seen = s_.seen;
    derive(x);
    if (guard_) return add_guarded(range, k);

    add_values<T, V>(s_.gradients, k.data, k.stride, keys, p_.dim, s_.dq, Onto::output, nullptr);
    add_queries<T>(s_.output_rows, value_stride(), s_.scores, width, count_, keys,
                   sums_.dv + range.begin * value_stride());
    add_queries<T>(s_.query_rows, key_stride(), s_.gradients, width, count_, keys,
                   sums_.dk + range.begin * key_stride());
  }

  /// As the end of pass where a number is not finite: it must not meet the 0 of what is masked.
  ATTENTION_BALANCER_NOINLINE void add_guarded(const KeyRange& range, const Rows<T>& k) noexcept {
    for (Index j = 0; j < range.end - range.begin; ++j) {
      T* const dk = sums_.dk + (range.begin + j) * key_stride();
      T* const dv = sums_.dv + (range.begin + j) * value_stride();
      for (Index i = 0; i < count_; ++i) {
        if (s_.seen[j * width + i] == T(0)) continue;
        saw_[i] = T(1);
        const T p = s_.scores[j * width + i], ds = s_.gradients[j * width + i];
        for (Index c = 0; c < p_.value_dim; ++c)
          dv[c] = simd::fma(p, s_.output_rows[i * value_stride() + c], dv[c]);
        for (Index c = 0; c < p_.dim; ++c) {
          dk[c] = simd::fma(ds, s_.query_rows[i * key_stride() + c], dk[c]);
          s_.dq[c * width + i] = simd::fma(ds, k.data[j * k.stride + c], s_.dq[c * width + i]);
        }
      }
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
      for (Index i = 0; i < count_; ++i) {
        if (target.length > 1)
          target(target.batch == 1 ? 0 : site_batch(), target.heads == 1 ? 0 : head_, first_ + i, 0) += of_rows[i];
        else
          sums_.numbers[m] += static_cast<double>(of_rows[i]);
      }
    }
  }

  Index key_stride() const noexcept { return padded_features<T>(p_.dim); }
  Index value_stride() const noexcept { return padded_features<T>(p_.value_dim); }

  const BackwardCall<T>& call_;
  const Problem& p_;
  const Index batch_, head_, kv_head_, first_, count_;
  const BackwardScratch<T>& s_;
  const BackwardSums<T>& sums_;
  const bool in_bits_, decoded_;  // as the forward pass has the scores
  bool guard_;
  Index ranges_ = 0;
  RowState<T> rows_;
  T saw_[width] = {};  // of each query whether it saw a key, while guarded
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
