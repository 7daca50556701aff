#pragma once
// Where the attention went: what every other fused kernel throws away. Standard library only, so that the balance
// half can read evidence without the kernels.

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace evidence {

/// What is summed (or maximised) over the queries, per key j, of the probabilities p_ij.
enum class Kind { mass, squares, maximum, leave_one_out, squared_odds };

/// A statistic is named by a constant: evidence::mass, ...
template <Kind K>
struct Statistic {
  static constexpr Kind kind = K;
};

/// sum_i u_i p_ij: the mass alone.
inline constexpr Statistic<Kind::mass> mass{};

/// sum_i u_i p_ij^2: the second moment. The mass beside it is the first, so that one call gives mean and variance over
/// the queries: saliency::mean_and_variance (CAKE, arXiv 2503.12491).
inline constexpr Statistic<Kind::squares> squares{};

/// max_i u_i p_ij.
inline constexpr Statistic<Kind::maximum> maximum{};

/// sum_i u_i (p_ij / (1 - p_ij))^2: how far the other weights move if key j is dropped. p / (1 - p) is capped at
/// 1 / epsilon.
inline constexpr Statistic<Kind::squared_odds> squared_odds{};

/// sum_i u_i (p_ij / (1 - p_ij))^2 |v_j - o_i|^2: the squared change of the output if key j were dropped, exactly. In
/// units of the output, so comparable across heads. Needs values and output. Where p is near 1, and both 1 - p and
/// v - o vanish, it is computed as p^2 |v_j - o'_i|^2, o' the output of the other keys: the relative error stays below
/// 300 epsilon beside that of the scores, unless the values are large beside their differences. Without the only key
/// that a query sees, its output is 0, as of an empty row.
inline constexpr Statistic<Kind::leave_one_out> leave_one_out{};

}  // namespace evidence

namespace detail {
struct EvidenceAccess;
}

/// What one call of `attention` observed, per batch item b and query head h. Each call overwrites it.
/// The spans live until the next call that writes this object.
template <Scalar T>
class Evidence {
 public:
  /// Sizes of the observed call: batch, query heads, queries, keys.
  Index batch() const noexcept { return batch_; }
  Index heads() const noexcept { return heads_; }
  Index queries() const noexcept { return queries_; }
  Index keys() const noexcept { return keys_; }

  /// False when observed with QueryWeights::none(): then mass() and exposure() are empty spans.
  bool has_mass() const noexcept { return has_mass_; }

  /// [keys] sum over queries of u_i p_ij: the weighted attention that each key received.
  std::span<const T> mass(Index b, Index h) const { return row(mass_, b, h, has_mass_ ? keys_ : 0); }

  /// Which statistic was asked for beside the mass; evidence::Kind::mass if none.
  evidence::Kind statistic_kind() const noexcept { return kind_; }

  /// [keys] the statistic that was asked for beside the mass; the mass itself for evidence::mass.
  std::span<const T> statistic(Index b, Index h) const {
    return statistic_.empty() ? mass(b, h) : row(statistic_, b, h, keys_);
  }

  /// [keys] sum of u_i over the queries whose masks let them see the key.
  std::span<const T> exposure(Index b, Index h) const {
    check_row(b, h);
    const Index length = has_mass_ ? keys_ : 0;
    return {exposure_.data() + (same_exposure_ ? b : b * heads_ + h) * length, static_cast<std::size_t>(length)};
  }

  /// [queries] natural logarithm of the softmax denominator, sinks included; -inf for an empty row without a sink. With
  /// normalize::Sparsemax and Entmax15 the threshold tau of the scores: what scores no more gets exactly nothing.
  std::span<const T> lse(Index b, Index h) const { return row(lse_, b, h, queries_); }

  /// [batch, heads, queries] all of them, contiguous: what `merge` takes.
  std::span<const T> lse() const noexcept { return lse_; }

  /// [queries] number of keys that each query gives weight to; empty with softmax, which gives to all that it sees.
  std::span<const Index> support(Index b, Index h) const {
    return row(support_, b, h, support_.empty() ? 0 : queries_);
  }

  /// [queries] entropy in nats of each query's distribution over its keys and its sink.
  std::span<const T> entropy(Index b, Index h) const { return row(entropy_, b, h, queries_); }

  /// Sum over queries of u_i times the probability that went to the sink; 0 without a sink.
  T sink_mass(Index b, Index h) const { return row(sink_mass_, b, h, 1)[0]; }

  /// Number of queries that had no visible key.
  Index empty_rows(Index b, Index h) const { return row(empty_rows_, b, h, 1)[0]; }

 private:
  friend struct detail::EvidenceAccess;

  template <class U>
  std::span<const U> row(const std::vector<U>& values, Index b, Index h, Index length) const {
    check_row(b, h);
    return {values.data() + (b * heads_ + h) * length, static_cast<std::size_t>(length)};
  }
  void check_row(Index b, Index h) const {
    if (b < 0 || b >= batch_) detail::fail<ShapeError>("evidence batch index", b, bound("batch", batch_));
    if (h < 0 || h >= heads_) detail::fail<ShapeError>("evidence head index", h, bound("heads", heads_));
  }
  static std::string bound(const char* what, Index size) {
    return std::string("be in [0, ") + what + " = " + std::to_string(size) + ")";
  }

  Index batch_ = 0, heads_ = 0, queries_ = 0, keys_ = 0;
  bool has_mass_ = false;
  evidence::Kind kind_ = evidence::Kind::mass;
  bool same_exposure_ = false;  // one row of exposure serves all heads of a batch item
  std::vector<T> mass_, exposure_, statistic_, lse_, entropy_, sink_mass_;
  std::vector<Index> empty_rows_, support_;
};

/// Which queries count, and how much: the u of mass_j = sum_i u_i p_ij. The same for every head and batch item.
class QueryWeights {
 public:
  enum class Kind { all, last, range, decayed, given, none };

  /// Every query counts 1.
  static QueryWeights all() noexcept { return {}; }

  /// The last `count` queries count 1 (all of them when there are fewer), the others 0. Throws InputError if negative.
  template <class = void>
  static QueryWeights last(Index count) {
    if (count < 0) detail::fail<InputError>("QueryWeights::last count", count, "not be negative");
    QueryWeights w;
    w.kind_ = Kind::last;
    w.count_ = count;
    return w;
  }

  /// The queries in [begin, end) count 1, the others 0. Throws InputError unless 0 <= begin < end; a call that has
  /// queries, but fewer than `end`, throws ShapeError.
  template <class = void>
  static QueryWeights range(Index begin, Index end) {
    if (begin < 0) detail::fail<InputError>("QueryWeights::range begin", begin, "not be negative");
    if (end <= begin)
      detail::fail<InputError>("QueryWeights::range end", end, "be above begin = " + std::to_string(begin));
    QueryWeights w;
    w.kind_ = Kind::range;
    w.begin_ = begin;
    w.count_ = end;
    return w;
  }

  /// One query counts 1, the others 0: only(0) is the CLS token of an encoder. Throws as range does.
  template <class = void>
  static QueryWeights only(Index query) {
    if (query < 0 || query == std::numeric_limits<Index>::max())
      detail::fail<InputError>("QueryWeights::only query", query, "be the index of a query");
    return range(query, query + 1);
  }

  /// Query i of Nq counts decay^(Nq - 1 - i): the last one 1, older ones less. Throws InputError unless decay is in
  /// (0, 1].
  template <class = void>
  static QueryWeights decayed(double decay) {
    if (!(decay > 0 && decay <= 1)) detail::fail<InputError>("QueryWeights::decayed decay", decay, "be in (0, 1]");
    QueryWeights w;
    w.kind_ = Kind::decayed;
    w.decay_ = decay;
    return w;
  }

  /// Weights of the caller, one per query, finite and not negative (InputError otherwise). Borrowed.
  template <class = void>
  static QueryWeights of(std::span<const float> weights) { return given(weights); }
  template <class = void>
  static QueryWeights of(std::span<const double> weights) { return given(weights); }
  template <class = void>
  static QueryWeights of(const std::vector<float>& weights) { return of(std::span<const float>(weights)); }
  template <class = void>
  static QueryWeights of(const std::vector<double>& weights) { return of(std::span<const double>(weights)); }
  template <detail::OwningTemporary R>
  static QueryWeights of(R&&) = delete;

  /// No query counts: lse and entropy only, no mass and no exposure.
  static QueryWeights none() noexcept {
    QueryWeights w;
    w.kind_ = Kind::none;
    return w;
  }

  Kind kind() const noexcept { return kind_; }

  /// Number of weights given with of(); -1 for the other kinds, which fit any number of queries.
  Index size() const noexcept { return kind_ == Kind::given ? count_ : -1; }

  /// Throws ShapeError unless the weights fit a call with this number of queries.
  template <class = void>
  void validate(Index queries) const {
    if (kind_ == Kind::given && count_ != queries)
      detail::fail<ShapeError>("QueryWeights::of number of weights", count_,
                               "equal q.length = " + std::to_string(queries));
    if (kind_ == Kind::range && count_ > queries && queries > 0)
      detail::fail<ShapeError>("QueryWeights::range end", count_, "be at most q.length = " + std::to_string(queries));
  }

  /// What of() borrows, and its number of bytes; null for the other kinds.
  template <class = void>
  std::pair<const void*, std::size_t> borrowed() const noexcept {
    const auto n = static_cast<std::size_t>(kind_ == Kind::given ? count_ : 0);
    return {given_, n * (in_double_ ? sizeof(double) : sizeof(float))};
  }

  /// u of query i of `queries`.
  template <class T>
  ATTENTION_BALANCER_INLINE T weight(Index i, Index queries) const noexcept {  // in the kernels, so no shared symbol
    switch (kind_) {
      case Kind::all: return T(1);
      case Kind::last: return T(i >= queries - count_ ? 1 : 0);
      case Kind::range: return T(i >= begin_ && i < count_ ? 1 : 0);
      case Kind::decayed: return static_cast<T>(std::pow(decay_, static_cast<double>(queries - 1 - i)));
      case Kind::given:
        return in_double_ ? static_cast<T>(static_cast<const double*>(given_)[i])
                          : static_cast<T>(static_cast<const float*>(given_)[i]);
      case Kind::none: break;
    }
    return T(0);
  }

 private:
  template <class T>
  static QueryWeights given(std::span<const T> weights) {
    for (std::size_t i = 0; i < weights.size(); ++i)
      if (!(weights[i] >= T(0)) || !std::isfinite(weights[i]))
        detail::fail<InputError>("QueryWeights::of weight " + std::to_string(i), weights[i],
                                 "be finite and not negative");
    QueryWeights w;
    w.kind_ = Kind::given;
    w.count_ = static_cast<Index>(weights.size());
    w.given_ = weights.data();
    w.in_double_ = std::is_same_v<T, double>;
    return w;
  }

  Kind kind_ = Kind::all;
  Index count_ = 0, begin_ = 0;  // of range: its end and its begin
  double decay_ = 1;
  const void* given_ = nullptr;
  bool in_double_ = false;
};

/// A policy for `attention`: write what was observed into `target`.
template <Scalar T, evidence::Kind Statistic>
struct Observation {
  static constexpr evidence::Kind statistic = Statistic;
  Evidence<T>* target;
  QueryWeights weights;
};

/// Observe the call that this is passed to. `target` must outlive the call and is overwritten by it.
template <Scalar T, evidence::Kind Statistic = evidence::Kind::mass>
Observation<T, Statistic> observe(Evidence<T>& target, QueryWeights weights = QueryWeights::all(),
                                  evidence::Statistic<Statistic> = {}) noexcept {
  return {&target, weights};
}

namespace detail {

/// Throws InputError unless a call has observed it.
template <Scalar T>
void require_observed(const Evidence<T>& evidence, const char* name) {
  if (evidence.heads() == 0)
    fail<InputError>(name, "empty", "have been observed first: pass observe(evidence) to attention");
}

template <class>
inline constexpr bool is_observation = false;
template <class T, evidence::Kind Statistic>
inline constexpr bool is_observation<Observation<T, Statistic>> = true;

}  // namespace detail
}  // namespace attention_balancer
