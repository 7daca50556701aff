#pragma once
// The sequences of a cache with queries one after the other, as PackedWorker takes them.

#include <algorithm>

#include "attention_balancer/attention/detail/packed_worker.hpp"
#include "attention_balancer/attention/detail/prefill.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// As TensorSequences, in a cache. `pairs`: with products of bf16, if the machine has them.
template <Scalar T, class Stored>
class CacheSequences {
 public:
  using Cached = Stored;
  using Following = typename SplitWork<T, Stored>::Following;

  CacheSequences(const Call<T>& call, const PackedQueries& offsets, const KvView<Stored>& x, bool pairs) noexcept
      : call_(call), offsets_(offsets), x_(x), pairs_(pairs) {}

  Index count() const noexcept { return offsets_.sequences(); }
  Index queries(Index s) const noexcept { return offsets_.queries(s); }
  Index keys(Index s) const noexcept { return x_.length(s); }

  /// A sequence as a call of its own, and its keys and values.
  struct One {
    const KvView<Stored> x;
    const CacheRows<T, Stored> rows;
    Call<T> call;  // its source is `rows`

    One(const CacheSequences& all, Index s) noexcept
        : x(sequence_of(all.x_, s)), rows{x, 0}, call(queries_of(all.call_, all.offsets_, s)) {
      call.problem.keys = all.keys(s);
      take_rows(call, rows, all.pairs_);
    }
    One(const One&) = delete;
    One& operator=(const One&) = delete;
  };

  /// The first keys that a worker reads of a sequence.
  Following first_keys(Index s, Index kv_head) const noexcept {
    return {&x_, s, kv_head, 0, std::min(Splits(keys(s)).length, keys(s))};
  }

 private:
  const Call<T>& call_;
  const PackedQueries& offsets_;
  const KvView<Stored>& x_;
  bool pairs_;
};

/// The problem that fits every sequence of a cache, with a batch item for each. Throws ShapeError.
inline Problem packed_problem(const Problem& all, const PackedQueries& offsets, Index cached_sequences) {
  offsets.check(all.queries, cached_sequences);
  Problem largest = all;
  largest.batch = cached_sequences, largest.queries = 0;
  for (Index s = 0; s < cached_sequences; ++s) largest.queries = std::max(largest.queries, offsets.queries(s));
  return largest;
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
