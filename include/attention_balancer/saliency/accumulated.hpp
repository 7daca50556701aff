#pragma once
// Evidence carried from call to call while keys come and go.

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/growth.hpp"
#include "attention_balancer/saliency/reducers.hpp"

namespace attention_balancer {
namespace saliency {

/// What Accumulated adds up.
enum class Accumulate {
  mass,         ///< the attention that a key received: H2O (2306.14048)
  persistence,  ///< how often a query gave it more than an equal share: Scissorhands (2305.17118)
};

/// The evidence of all calls so far, per slot of a cache and per query head, carried through decoding and compacted
/// together with what is evicted:
///
///     S_j <- decay * S_j + c_j         X_j <- decay * X_j + exposure_j
///
/// with decay 1 nothing is forgotten, as in H2O. sum() is S, per_exposure() is S / X, which ranks otherwise: late
/// keys had fewer queries to be seen by. Slots past the ones known are new keys and start at 0. All heads keep as many
/// slots; where KV heads evict different ones, compact_by_head follows them.
///
/// Persistence counts, of every call, the weight of its queries if the key's mass is at least 1 / keys of them;
/// that is Scissorhands' count, turned round, when every call is one query.
template <Scalar T>
class Accumulated {
 public:
  /// For `heads` query heads. Throws ShapeError unless heads >= 1, InputError unless decay is in (0, 1].
  explicit Accumulated(Index heads, double decay = 1, Accumulate what = Accumulate::mass)
      : heads_(heads), decay_(decay), what_(what) {
    if (heads < 1) detail::fail<ShapeError>("Accumulated heads", heads, "be at least 1");
    if (!(decay > 0 && decay <= 1)) detail::fail<InputError>("Accumulated decay", decay, "be in (0, 1]");
    values_.resize(static_cast<std::size_t>(2 * heads));
  }

  Index heads() const noexcept { return heads_; }

  /// Number of slots.
  Index slots() const noexcept { return static_cast<Index>(values_[0].size()); }

  /// Adds what item `batch` of a call was observed to do. Throws ShapeError if the heads differ or the call had
  /// fewer keys than there are slots (compact first), and otherwise as mass does; then nothing changes.
  void add(const Evidence<T>& evidence, Index batch = 0) { add(evidence, batch, evidence.keys()); }

  /// The same where the item has `keys` keys only, fewer than others of its batch: cache.length(batch).
  void add(const Evidence<T>& evidence, Index batch, Index keys) {
    detail::check_evidence(evidence, batch);
    if (evidence.heads() != heads_)
      detail::fail<ShapeError>("evidence heads", evidence.heads(),
                               "be " + std::to_string(heads_) + " as in Accumulated");
    if (keys > evidence.keys())
      detail::fail<ShapeError>("number of keys of the item", keys,
                               "be at most the evidence's, " + std::to_string(evidence.keys()));
    if (keys < slots())
      detail::fail<ShapeError>(
          "evidence keys", keys,
          "be at least the slots, " + std::to_string(slots()) + ": compact when keys are evicted");
    const auto n = static_cast<std::size_t>(keys);
    for (auto& row : values_) detail::reserve_growing(row, n);
    for (auto& row : values_) row.resize(n, 0.0);
    for (Index h = 0; h < heads_; ++h) {
      const auto mass = evidence.mass(batch, h), exposure = evidence.exposure(batch, h);
      std::vector<double>&sum = sums(h), &seen = exposures(h);
      for (std::size_t j = 0; j < n; ++j) {
        const double m = static_cast<double>(mass[j]), x = static_cast<double>(exposure[j]);
        const double added = what_ == Accumulate::mass || m != m ? m : m * static_cast<double>(n) >= x ? x : 0.0;
        sum[j] = decay_ * sum[j] + added;
        seen[j] = decay_ * seen[j] + x;
      }
    }
  }

  /// [slots] What was added up, reduced over the query heads; NaN masses stay NaN.
  template <detail::HeadReduction Over = Heads>
  detail::Reduced<T, Over> sum(Over over = {}) const {
    return detail::reduce_heads<T>(heads_, slots(), over,
                                   [this](Index h) { return [&s = sums(h)](std::size_t j) { return s[j]; }; });
  }

  /// [slots] The same divided by the exposure, per head before the reduction; 0 where that is 0.
  template <detail::HeadReduction Over = Heads>
  detail::Reduced<T, Over> per_exposure(Over over = {}) const {
    return detail::reduce_heads<T>(heads_, slots(), over, [this](Index h) {
      return [&s = sums(h), &x = exposures(h)](std::size_t j) { return detail::per_exposure(s[j], x[j]); };
    });
  }

  /// Slot k becomes what slot kept[k] was, in every head; the others are gone. Throws InputError, and changes
  /// nothing, unless the indices ascend strictly within the slots.
  void compact(std::span<const Index> kept) { compact_by_head(kept, 1); }

  /// The same with a list of its own for each KV head, kept [Hkv, n], which its query heads follow: as
  /// KvCache::keep_by_head. Throws ShapeError if the heads are no multiple of kv_heads or the lists are not of one
  /// size, InputError as compact does, and changes nothing then.
  void compact_by_head(std::span<const Index> kept, Index kv_heads) {
    if (kv_heads < 1 || heads_ % kv_heads != 0)
      detail::fail<ShapeError>("number of KV heads to compact by", kv_heads,
                               "divide the heads, " + std::to_string(heads_));
    const auto lists = static_cast<std::size_t>(kv_heads), n = kept.size() / lists;
    if (kept.size() % lists != 0)
      detail::fail<ShapeError>("number of kept slots", kept.size(),
                               "be the same for each of " + std::to_string(kv_heads) + " heads");
    for (std::size_t list = 0; list < lists; ++list) detail::check_kept(kept.subspan(list * n, n), slots());
    for (std::size_t row = 0; row < values_.size(); ++row) {
      const std::size_t head = row % static_cast<std::size_t>(heads_);
      const auto list = kept.subspan(head * lists / static_cast<std::size_t>(heads_) * n, n);
      for (std::size_t k = 0; k < n; ++k) values_[row][k] = values_[row][static_cast<std::size_t>(list[k])];
      values_[row].resize(n);
    }
  }

  /// Forgets all slots.
  void reset() noexcept {
    for (auto& row : values_) row.clear();
  }

 private:
  std::vector<double>& sums(Index h) { return values_[static_cast<std::size_t>(h)]; }
  std::vector<double>& exposures(Index h) { return values_[static_cast<std::size_t>(heads_ + h)]; }
  const std::vector<double>& sums(Index h) const { return values_[static_cast<std::size_t>(h)]; }
  const std::vector<double>& exposures(Index h) const { return values_[static_cast<std::size_t>(heads_ + h)]; }

  Index heads_;
  double decay_;
  Accumulate what_;
  // [2 * heads] rows of [slots]: the sums, then the exposures. In double: float would stop growing after 2^24
  // queries.
  std::vector<std::vector<double>> values_;
};

}  // namespace saliency
}  // namespace attention_balancer
