#pragma once
// Packed sequences: tokens of many sequences one after the other, without padding.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/error.hpp"
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
/// of each sequence alone, bit by bit. Borrows the offsets.
class PackedSequences {
 public:
  PackedSequences(std::span<const Index> queries, std::span<const Index> keys) noexcept : wide_{queries, keys} {}
  PackedSequences(std::span<const std::int32_t> queries, std::span<const std::int32_t> keys) noexcept
      : narrow_{queries, keys} {}
  PackedSequences(const std::vector<Index>& queries, const std::vector<Index>& keys) noexcept
      : wide_{queries, keys} {}
  PackedSequences(const std::vector<std::int32_t>& queries, const std::vector<std::int32_t>& keys) noexcept
      : narrow_{queries, keys} {}
  template <detail::OwningTemporary Q, class K>
  PackedSequences(Q&&, K&&) = delete;
  template <class Q, detail::OwningTemporary K>
  requires(!detail::OwningTemporary<Q>) PackedSequences(Q&&, K&&)
  = delete;

  /// Number of sequences, and where the queries and keys of one begin; `sequence` may be one past the last.
  Index sequences() const noexcept { return static_cast<Index>(wide_[0].size() + narrow_[0].size()) - 1; }
  Index query_begin(Index sequence) const noexcept { return offset(0, sequence); }
  Index key_begin(Index sequence) const noexcept { return offset(1, sequence); }
  Index queries(Index sequence) const noexcept { return offset(0, sequence + 1) - offset(0, sequence); }
  Index keys(Index sequence) const noexcept { return offset(1, sequence + 1) - offset(1, sequence); }

  /// Throws ShapeError unless both are offsets into so many queries and keys.
  void check(Index all_queries, Index all_keys) const {
    check_offsets("PackedSequences queries", 0, all_queries);
    check_offsets("PackedSequences keys", 1, all_keys);
    if (size(0) != size(1))
      detail::fail<ShapeError>("PackedSequences number of key offsets", size(1),
                               "equal that of query offsets = " + std::to_string(size(0)));
  }

  template <class F>
  void borrowed(F f) const {
    for (int axis = 0; axis < 2; ++axis) {
      if (!wide_[axis].empty()) f(detail::layout("PackedSequences", wide_[axis]));
      if (!narrow_[axis].empty()) f(detail::layout("PackedSequences", narrow_[axis]));
    }
  }

 private:
  Index size(int axis) const noexcept { return static_cast<Index>(wide_[axis].size() + narrow_[axis].size()); }
  Index offset(int axis, Index i) const noexcept {
    const auto at = static_cast<std::size_t>(i);
    return narrow_[axis].empty() ? wide_[axis][at] : static_cast<Index>(narrow_[axis][at]);
  }
  void check_offsets(const char* what, int axis, Index length) const {
    auto of = [what](const std::string& part) { return what + part; };  // only of what is wrong: it allocates
    if (size(axis) < 2) detail::fail<ShapeError>(of(" number of offsets"), size(axis), "be at least 2");
    Index least = 0;
    for (Index i = 0; i < size(axis); ++i) {
      if (offset(axis, i) < least || offset(axis, i) > length)
        detail::fail<ShapeError>(of(" offset " + std::to_string(i)), offset(axis, i),
                                 "be in [" + std::to_string(least) + ", " + std::to_string(length) + "]");
      least = offset(axis, i);
    }
  }

  std::span<const Index> wide_[2];
  std::span<const std::int32_t> narrow_[2];
};

/// A policy for `attention` with PackedSequences: one Evidence per sequence.
template <Scalar T, evidence::Kind Statistic>
struct PackedObservation {
  static constexpr evidence::Kind statistic = Statistic;
  std::span<Evidence<T>> targets;
  QueryWeights weights;
};

/// Observe each of the PackedSequences that this is passed with. QueryWeights count within a sequence, so that of()
/// fits sequences of one length only. `targets` must outlive the call, and are overwritten by it.
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
template <class>
inline constexpr bool is_packed_observation = false;
template <class T, evidence::Kind Statistic>
inline constexpr bool is_packed_observation<PackedObservation<T, Statistic>> = true;
}  // namespace detail

}  // namespace attention_balancer
