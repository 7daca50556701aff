#pragma once
// Packed sequences: tokens of many sequences one after the other, without padding.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/tensor/offsets.hpp"
#include "attention_balancer/tensor/shape.hpp"

namespace attention_balancer {
/// A policy for `attention`: the tensors hold sequences one after the other (cu_seqlens of FlashAttention). q and
/// out are [1, Hq, all queries, D], k and v [1, Hkv, all keys, D], and sequence s has the queries [queries[s],
/// queries[s + 1]) and the keys [keys[s], keys[s + 1]): offsets that do not decrease, one more than there are
/// sequences. Queries attend to keys of their own sequence only; a sequence may be empty. Tokens in no sequence are
/// neither read nor written.
///
/// To the other policies each sequence is a batch item with its own numbers of queries and keys, so causal masks
/// are aligned within it. A view that they borrow is [sequences or 1, Hq or 1, longest queries or 1, longest keys
/// or 1]. Evidence is observed per sequence, by observe() of a span with one Evidence each. The results are those
/// of each sequence alone, bit by bit. Borrows the offsets; braced lists of up to 16 are copied.
class PackedSequences {
 public:
  PackedSequences(std::span<const Index> queries, std::span<const Index> keys) noexcept
      : queries_(queries), keys_(keys) {}
  PackedSequences(std::span<const std::int32_t> queries, std::span<const std::int32_t> keys) noexcept
      : queries_(queries), keys_(keys) {}
  PackedSequences(const std::vector<Index>& queries, const std::vector<Index>& keys) noexcept
      : PackedSequences(std::span<const Index>(queries), std::span<const Index>(keys)) {}
  PackedSequences(const std::vector<std::int32_t>& queries, const std::vector<std::int32_t>& keys) noexcept
      : PackedSequences(std::span<const std::int32_t>(queries), std::span<const std::int32_t>(keys)) {}
  /// Throws ShapeError if a list is longer than 16.
  PackedSequences(std::initializer_list<Index> queries, std::initializer_list<Index> keys)
      : queries_("PackedSequences queries", queries), keys_("PackedSequences keys", keys) {}
  // One list and something else: the list would become a vector that dies at the end of the statement.
  template <class Q>
  PackedSequences(Q&&, std::initializer_list<Index>) = delete;
  template <class K>
  PackedSequences(std::initializer_list<Index>, K&&) = delete;
  template <detail::OwningTemporary Q, class K>
  PackedSequences(Q&&, K&&) = delete;
  template <class Q, detail::OwningTemporary K>
  requires(!detail::OwningTemporary<Q>) PackedSequences(Q&&, K&&)
  = delete;

  /// Number of sequences, and where the queries and keys of one begin; `sequence` may be one past the last.
  Index sequences() const noexcept { return queries_.size() - 1; }
  Index query_begin(Index sequence) const noexcept { return queries_.begin(sequence); }
  Index key_begin(Index sequence) const noexcept { return keys_.begin(sequence); }
  Index queries(Index sequence) const noexcept { return queries_.length(sequence); }
  Index keys(Index sequence) const noexcept { return keys_.length(sequence); }

  /// Throws ShapeError unless both are offsets into so many queries and keys.
  void check(Index all_queries, Index all_keys) const {
    queries_.check("PackedSequences queries", all_queries);
    keys_.check("PackedSequences keys", all_keys);
    if (queries_.size() != keys_.size())
      detail::fail<ShapeError>("PackedSequences number of key offsets", keys_.size(),
                               "equal that of query offsets = " + std::to_string(queries_.size()));
  }

  template <class F>
  void borrowed(F f) const {
    queries_.borrowed("PackedSequences", f);
    keys_.borrowed("PackedSequences", f);
  }

 private:
  detail::Offsets queries_, keys_;
};

/// A policy for `attention(q, cache, out, ...)`: the queries of the cache's sequences one after the other, each with
/// as many as it has (cu_seqlens_q of FlashAttention, beside its block table and lengths). q is [1, Hq, all queries,
/// D], out [1, Hq, all queries, Dv], and sequence s of the cache has the queries [queries[s], queries[s + 1]): offsets
/// that do not decrease, one more than there are sequences. So one call serves prompts a piece at a time beside
/// sequences that decode. A sequence may have no queries, or no keys; queries in no sequence are neither read nor
/// written.
///
///     const std::vector<std::int32_t> offsets{0, 1, 257, 258};              // 1, 256 and 1 queries
///     ab::attention(q, cache, out, ab::PackedQueries(offsets), ab::mask::Causal{}, ab::observe(evidence_of_each));
///
/// To the other policies, and in the evidence, it is as with PackedSequences: the results are those of each sequence
/// alone, bit by bit, and its Evidence has as many keys as it has itself. Borrows the offsets; a braced list of up to
/// 16 is copied.
class PackedQueries {
 public:
  PackedQueries(std::span<const Index> queries) noexcept : queries_(queries) {}
  PackedQueries(std::span<const std::int32_t> queries) noexcept : queries_(queries) {}
  PackedQueries(const std::vector<Index>& queries) noexcept : queries_(std::span<const Index>(queries)) {}
  PackedQueries(const std::vector<std::int32_t>& queries) noexcept
      : queries_(std::span<const std::int32_t>(queries)) {}
  /// Throws ShapeError if the list is longer than 16.
  PackedQueries(std::initializer_list<Index> queries) : queries_("PackedQueries", queries) {}
  template <detail::OwningTemporary Q>
  PackedQueries(Q&&) = delete;

  /// Number of sequences, and where the queries of one begin; `sequence` may be one past the last.
  Index sequences() const noexcept { return queries_.size() - 1; }
  Index query_begin(Index sequence) const noexcept { return queries_.begin(sequence); }
  Index queries(Index sequence) const noexcept { return queries_.length(sequence); }

  /// Throws ShapeError unless these are offsets into so many queries, of so many sequences.
  void check(Index all_queries, Index cached_sequences) const {
    queries_.check("PackedQueries", all_queries);
    detail::require_equal("PackedQueries number of sequences", sequences(), "cache.batch", cached_sequences);
  }

  template <class F>
  void borrowed(F f) const {
    queries_.borrowed("PackedQueries", f);
  }

 private:
  detail::Offsets queries_;
};

/// A policy for `attention` with PackedSequences or PackedQueries: one Evidence per sequence.
template <Scalar T, evidence::Kind Statistic>
struct PackedObservation {
  static constexpr evidence::Kind statistic = Statistic;
  std::span<Evidence<T>> targets;
  QueryWeights weights;
};

/// Observe each of the sequences of the PackedSequences or PackedQueries that this is passed with. QueryWeights count
/// within a sequence, so that of() fits sequences of one number of queries only. `targets` must outlive the call, and
/// are overwritten by it.
template <Scalar T, evidence::Kind Statistic = evidence::Kind::mass>
PackedObservation<T, Statistic> observe(std::span<Evidence<T>> targets, QueryWeights weights = QueryWeights::all(),
                                        evidence::Statistic<Statistic> = {}) noexcept {
  return {targets, weights};
}
template <Scalar T, evidence::Kind Statistic = evidence::Kind::mass>
PackedObservation<T, Statistic> observe(std::vector<Evidence<T>>& targets,
                                        QueryWeights weights = QueryWeights::all(),
                                        evidence::Statistic<Statistic> = {}) noexcept {
  return {targets, weights};
}

namespace detail {

/// The problem of sequence s in a call of its own; `all`: that of the call.
template <class Sequences>
Problem problem_of(const Problem& all, const Sequences& sequences, Index s) noexcept {
  Problem p = all;
  p.batch = 1, p.queries = sequences.queries(s), p.keys = sequences.keys(s);
  return p;
}

template <class>
inline constexpr bool is_packed_observation = false;
template <class T, evidence::Kind Statistic>
inline constexpr bool is_packed_observation<PackedObservation<T, Statistic>> = true;
}  // namespace detail

}  // namespace attention_balancer
