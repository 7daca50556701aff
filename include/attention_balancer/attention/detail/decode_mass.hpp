#pragma once
// The second pass of decoding, from the weights that were kept to the evidence per key: mass, exposure, statistic.

#include <algorithm>

#include "attention_balancer/attention/detail/decode_groups.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The second pass of Decoder.
template <Scalar T, class Stored>
class DecodeMass : protected DecodeGroups<T, Stored> {
 protected:
  using Base = DecodeGroups<T, Stored>;
  using Base::Base;
  using Base::call_, Base::x_, Base::evidence_, Base::sizes_, Base::dominant_;
  using Base::splits_of, Base::keys_of, Base::problem_of, Base::row, Base::held, Base::record, Base::states;
  using typename Base::Dominant, typename Base::Row;

  /// The split that has the key is walked once more without it; the others have their parts of the output.
  Dominant leave_out_dominant(Index group, Index r, T sink, const DecodeScratch<T, Stored>& scratch) noexcept {
    using S = simd::Pack<T>;
    const RowResult<T>& result = this->result(group, r);
    if (!(result.inverse > nearly_all<T>)) return {};  // no weight is more than 1
    Problem one = problem_of(group);
    if (call_.weights.template weight<T>(r % one.queries, one.queries) == T(0)) return {};
    const Index count = splits_of(group).count;
    Index split = 0;
    for (Index s = 1; s < count; ++s)
      if (states(group, s)[r].top > states(group, split)[r].top) split = s;
    const T top = states(group, split)[r].top, probability = detail::probability(top, result);
    const T* const output = this->output(group, r);
    // An output that is not finite is so without the key, or because of it.
    if (!(probability > nearly_all<T>) || !all_finite<T>(output, sizes_.value_dim / simd::lanes<T>)) return {};

    const auto keys = keys_of(group, split);
    const KeptRows<T> kept = this->kept(group);
    const T* const scores = kept.scores + r * kept.score_stride + keys.first;
    const Index key = keys.first + (std::find(scores, scores + (keys.second - keys.first), top) - scores);
    one.queries = 1, one.heads = one.kv_heads;
    SplitWork<T, Stored> walk(call_, x_, one, group / one.kv_heads, group % one.kv_heads, scratch, scratch.without,
                              {});
    walk.run_without(key, keys.first, keys.second, scores);
    auto part = [&](Index s) -> const RowSoftmax<T>& {
      return s == split ? *reinterpret_cast<const RowSoftmax<T>*>(scratch.without + sizes_.value_dim)
                        : states(group, s)[r];
    };
    merge_row(count, part, sink, scratch.factors);
    for (Index c = 0; c < sizes_.value_dim; c += simd::lanes<T>) {
      S sum(T(0));
      for (Index s = 0; s < count; ++s) {
        const T* const of_split = s == split ? scratch.without : record(group, s) + r * sizes_.value_dim;
        sum = simd::fma(simd::load_aligned<S>(of_split + c), S(scratch.factors[s]), sum);
      }
      simd::store_aligned(scratch.without + c, sum);
    }
    walk.distances(key, key + 1, scratch.without);
    return {key, probability * probability * scratch.spare[0]};
  }

  /// Mass, exposure and statistic of the keys of one split.
  ATTENTION_BALANCER_NOINLINE void add_mass(Index group, Index split,
                                            const DecodeScratch<T, Stored>& scratch) noexcept {
    const Problem p = problem_of(group);
    const Splits splits(p.keys);
    const auto keys = keys_of(group, split);
    const Index begin = keys.first, end = keys.second;
    for (Index g = 0; g < p.heads / p.kv_heads; ++g) {
      const Row first = row(group, g * p.queries);
      T* const mass = EvidenceAccess::mass(*evidence_, first.in_evidence);
      T u_of_head(0);
      bool written = false;
      for (Index i = 0; i < p.queries; ++i) {
        const Index r = g * p.queries + i;
        const T u = call_.weights.template weight<T>(i, call_.problem.queries);
        if (u == T(0)) continue;
        u_of_head += u;
        if (call_.statistic != evidence::Kind::mass)
          add_statistic(p, group, r, u, begin, end, EvidenceAccess::statistic(*evidence_, first.in_evidence),
                        scratch);
        if (!written)
          for_probabilities(group, r, begin, end, mass, scratch,
                            [&]<class S>(const S& x, Index) { return S(u) * x; });
        else
          for_probabilities(group, r, begin, end, mass, scratch, [&]<class S>(const S& x, Index j) {
            return simd::fma(S(u), x, simd::load<S>(mass + j));
          });
        written = true;
        if (call_.policies.has_masks) expose(p, first, i, u, begin, end);
      }
      if (!written) std::fill(mass + begin, mass + end, T(0));
      if (!call_.policies.has_masks && first.head == 0)
        std::fill_n(EvidenceAccess::exposure(*evidence_, first.in_evidence) + begin, end - begin, u_of_head);
      if (split + 1 == splits.count) std::fill(mass + end, mass + call_.problem.keys, T(0));
    }
  }

  /// into [keys] = f(probability, key) for keys of a split, from a whole block on.
  template <class F>
  ATTENTION_BALANCER_INLINE void for_probabilities(Index group, Index r, Index begin, Index end, T* into,
                                                   const DecodeScratch<T, Stored>& scratch, F f) noexcept {
    const KeptRows<T> kept = this->kept(group);
    factors_of(kept.tops + r * kept.top_stride + begin / block_keys, (end - begin + block_keys - 1) / block_keys,
               this->result(group, r), scratch.factors);
    const T* factor = scratch.factors;
    for (Index from = begin; from < end; from += block_keys, ++factor)
      for_packs(kept.weights + r * kept.stride + from, std::min(block_keys, end - from), into + from,
                [&]<class S>(const S& weight, Index j) { return f(scaled_weight(weight, S(*factor)), from + j); });
  }

  void expose(const Problem& p, const Row& first, Index query, T u, Index begin, Index end) noexcept {
    T* exposure = EvidenceAccess::exposure(*evidence_, first.in_evidence);
    const Index batch = call_.first_batch + first.batch;
    for (; begin < end; begin += block_keys) {
      const Index to = std::min(begin + block_keys, end);
      const auto coverage = call_.policies.classify(
          call_.policies.policies, {query, query + 1, begin, to, batch, first.head, p.queries, p.keys});
      if (coverage == mask::Coverage::partial)
        call_.policies.expose_keys(call_.policies.policies, {&p, batch, first.head, query, begin, to}, u,
                                   exposure + begin);
      else if (coverage == mask::Coverage::full)
        for (Index j = begin; j < to; ++j) exposure[j] += u;
    }
  }

  ATTENTION_BALANCER_NOINLINE void add_statistic(const Problem& p, Index group, Index r, T u, Index begin,
                                                 Index end, T* into,
                                                 const DecodeScratch<T, Stored>& scratch) noexcept {
    if (call_.statistic == evidence::Kind::squares)
      return for_probabilities(group, r, begin, end, into, scratch, [&]<class S>(const S& x, Index j) {
        return simd::fma(x * S(u), x, simd::load<S>(into + j));
      });
    if (call_.statistic == evidence::Kind::maximum)
      return for_probabilities(group, r, begin, end, into, scratch, [&]<class S>(const S& x, Index j) {
        return Larger{}(simd::load<S>(into + j), x * S(u));
      });
    if (call_.statistic == evidence::Kind::squared_odds)
      return for_probabilities(group, r, begin, end, into, scratch, [&]<class S>(const S& x, Index j) {
        return simd::fma(squared_odds<T>(x), S(u), simd::load<S>(into + j));
      });
    const T* const output = this->output(group, r);
    const Dominant dominant = dominant_[held(group, r)];
    const bool here = dominant.key >= begin && dominant.key < end;
    const T before = here ? into[dominant.key] : T(0);
    for (Index from = begin; from < end; from += block_keys) {
      const Index to = std::min(from + block_keys, end);
      SplitWork<T, Stored>(call_, x_, p, group / p.kv_heads, group % p.kv_heads, scratch, record(group, 0), {})
          .distances(from, to, output);
      for_probabilities(group, r, from, to, into, scratch, [&]<class S>(const S& x, Index j) {
        const S term = S(u) * squared_odds<T>(x) * simd::load<S>(scratch.spare + (j - from));
        // A masked value may be anything: its p of 0 must not meet it.
        return simd::load<S>(into + j) + simd::select(x == S(T(0)), S(T(0)), term);
      });
    }
    if (here) into[dominant.key] = simd::fma(u, dominant.change, before);
  }
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
