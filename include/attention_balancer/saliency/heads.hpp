#pragma once
// From one row per head to what is asked for: one number per input, or one row per head or per KV head.

#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/core/config.hpp"  // refuses -ffast-math: NaN would be lost
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// How several heads become one number per key. Every query head counts the same; under GQA the query heads that
/// share a KV head are simply heads among the others. KvHeads reduces within each such group instead.
enum class Heads {
  mean,  ///< the average over the heads: what the keys received on the whole
  max,   ///< the largest over the heads: a key that matters to one head matters
  sum,   ///< the sum over the heads
};

/// One query head alone, without any reduction: `saliency::mass(evidence, Head{3})`.
struct Head {
  Index index = 0;
};

/// No reduction: one row per query head.
struct EachHead {};

/// Grouped queries (GQA): one row per KV head, reduced over the query heads that share it. The attention is per
/// query head, but what is kept or evicted is a slot of a KV head; H2O sums over the group, SnapKV averages. The
/// query heads must be a multiple of `count`, in contiguous groups.
struct KvHeads {
  Index count = 1;
  Heads within = Heads::mean;
};

namespace saliency {

using attention_balancer::EachHead;
using attention_balancer::Head;
using attention_balancer::Heads;
using attention_balancer::KvHeads;

/// [rows, length] numbers, one row per head: what a saliency without a full reduction returns. `values()` is all of
/// them, row after row, as allocate::ada_kv and the other joint selections take them.
template <Scalar T>
class Rows {
 public:
  Rows() = default;

  /// Zeros. Throws ShapeError if a size is negative.
  Rows(Index rows, Index length) : rows_(rows), length_(length) {
    if (rows < 0) detail::fail<ShapeError>("number of rows", rows, "not be negative");
    if (length < 0) detail::fail<ShapeError>("length of a row", length, "not be negative");
    values_.assign(static_cast<std::size_t>(rows) * static_cast<std::size_t>(length), T(0));
  }

  /// Number of rows, and of numbers in each.
  Index rows() const noexcept { return rows_; }
  Index length() const noexcept { return length_; }

  /// [length] Row r. Throws ShapeError if there is none.
  std::span<const T> operator[](Index r) const& { return {values_.data() + offset(r), size()}; }
  std::span<T> operator[](Index r) & { return {values_.data() + offset(r), size()}; }
  std::span<const T> operator[](Index) const&& = delete;  // it would dangle

  /// [rows * length] All rows, one after the other.
  std::span<const T> values() const& noexcept { return values_; }
  std::span<T> values() & noexcept { return values_; }
  std::span<const T> values() const&& = delete;

  friend bool operator==(const Rows&, const Rows&) = default;

 private:
  std::size_t size() const noexcept { return static_cast<std::size_t>(length_); }
  Index offset(Index r) const {
    if (r < 0 || r >= rows_) detail::fail<ShapeError>("row", r, "be in [0, rows = " + std::to_string(rows_) + ")");
    return r * length_;
  }

  Index rows_ = 0, length_ = 0;
  std::vector<T> values_;
};

}  // namespace saliency

namespace detail {

/// Throws InputError naming the entry unless the indices ascend strictly within [0, slots).
template <class = void>
void check_kept(std::span<const Index> kept, Index slots) {
  for (std::size_t k = 0; k < kept.size(); ++k) {
    const Index least = k == 0 ? 0 : kept[k - 1] + 1;
    if (kept[k] < least || kept[k] >= slots)
      fail<InputError>("kept slot " + std::to_string(k), kept[k],
                       "ascend strictly and be in [" + std::to_string(least) + ", " + std::to_string(slots) + ")");
  }
}

template <class Over>
concept HeadReduction = std::same_as<Over, Heads> || std::same_as<Over, Head> || std::same_as<Over, EachHead> ||
    std::same_as<Over, KvHeads>;

/// What a reduction returns: a vector, one number per key, or Rows.
template <Scalar T, HeadReduction Over>
using Reduced =
    std::conditional_t<std::same_as<Over, Heads> || std::same_as<Over, Head>, std::vector<T>, saliency::Rows<T>>;

/// result [length] = the rows [begin, end) reduced; `row(h)` is head h as a callable over the keys. In double; once
/// not a number, always so: a maximum must not hide it.
template <Scalar T, class Row>
void reduce_rows(Index begin, Index end, Heads how, const Row& row, std::span<T> result) {
  std::vector<double> reduced(result.size(), 0.0);
  for (Index h = begin; h < end; ++h) {
    const auto of_head = row(h);
    for (std::size_t j = 0; j < reduced.size(); ++j) {
      const double x = of_head(j);
      if (how != Heads::max)
        reduced[j] += x;
      else if (h == begin || (!(reduced[j] >= x) && reduced[j] == reduced[j]))
        reduced[j] = x;
    }
  }
  const double divisor = how == Heads::mean ? static_cast<double>(end - begin) : 1.0;
  for (std::size_t j = 0; j < reduced.size(); ++j) result[j] = static_cast<T>(reduced[j] / divisor);
}

/// The same for any reduction.
template <Scalar T, HeadReduction Over, class Row>
Reduced<T, Over> reduce_heads(Index heads, Index length, Over over, const Row& row) {
  if (heads < 1) fail<ShapeError>("saliency number of heads", heads, "be at least 1");
  if constexpr (std::same_as<Over, Heads>) {
    std::vector<T> result(static_cast<std::size_t>(length));
    reduce_rows<T>(0, heads, over, row, result);
    return result;
  } else if constexpr (std::same_as<Over, Head>) {
    if (over.index < 0 || over.index >= heads)
      fail<ShapeError>("saliency head", over.index, "be in [0, heads = " + std::to_string(heads) + ")");
    std::vector<T> result(static_cast<std::size_t>(length));
    reduce_rows<T>(over.index, over.index + 1, Heads::sum, row, result);
    return result;
  } else {
    KvHeads groups{heads, Heads::sum};
    if constexpr (std::same_as<Over, KvHeads>) groups = over;
    if (groups.count < 1 || heads % groups.count != 0)
      fail<ShapeError>("KvHeads count", groups.count,
                       "be at least 1 and divide the number of heads, " + std::to_string(heads));
    saliency::Rows<T> result(groups.count, length);
    const Index group = heads / groups.count;
    for (Index r = 0; r < groups.count; ++r)
      reduce_rows<T>(r * group, (r + 1) * group, groups.within, row, result[r]);
    return result;
  }
}

}  // namespace detail

namespace saliency {

/// Rows, one per query head, reduced as any saliency can be: `reduce(rows, KvHeads{2})`. Throws ShapeError if the
/// heads do not fit.
template <Scalar T, detail::HeadReduction Over>
detail::Reduced<T, Over> reduce(const Rows<T>& rows, Over over) {
  return detail::reduce_heads<T>(rows.rows(), rows.length(), over, [&rows](Index h) {
    return [row = rows[h]](std::size_t j) { return static_cast<double>(row[j]); };
  });
}

}  // namespace saliency
}  // namespace attention_balancer
