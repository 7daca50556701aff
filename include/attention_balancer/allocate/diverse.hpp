#pragma once
// A selection that covers: what is kept stands for what is not. A function of the set, not of the single item.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/selection.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace allocate {

/// Cosine similarity of the rows of a borrowed [items, width] array, 0 for a row of zeros: `similarity(i, j)`.
template <Scalar T>
class Cosine {
 public:
  /// Throws ShapeError if the size is no multiple of the width, InputError naming the entry if one is NaN or
  /// infinite.
  Cosine(std::span<const T> rows, Index width) : rows_(rows), width_(static_cast<std::size_t>(width)) {
    if (width < 1) detail::fail<ShapeError>("width of the rows", width, "be at least 1");
    if (rows.size() % width_ != 0)
      detail::fail<ShapeError>("size of the rows", rows.size(),
                               "be a multiple of the width " + std::to_string(width));
    for (std::size_t i = 0; i < rows.size(); i += width_) {
      double largest = 0, squares = 0;  // scaled, so that no square overflows
      for (const T x : rows.subspan(i, width_)) {
        if (!std::isfinite(x))
          detail::fail<InputError>("row " + std::to_string(i / width_), detail::number(x), "be finite");
        largest = std::max(largest, std::abs(static_cast<double>(x)));
      }
      for (const T x : rows.subspan(i, width_)) {
        const double scaled = largest > 0 ? static_cast<double>(x) / largest : 0;
        squares += scaled * scaled;
      }
      norms_.push_back(largest * std::sqrt(squares));
    }
  }

  /// Number of rows.
  Index items() const noexcept { return static_cast<Index>(norms_.size()); }

  double operator()(Index i, Index j) const noexcept {
    const auto a = static_cast<std::size_t>(i), b = static_cast<std::size_t>(j);
    if (!(norms_[a] > 0) || !(norms_[b] > 0)) return 0;
    double dot = 0;
    for (std::size_t d = 0; d < width_; ++d)
      dot += (static_cast<double>(rows_[a * width_ + d]) / norms_[a]) *
             (static_cast<double>(rows_[b * width_ + d]) / norms_[b]);
    return dot;
  }

 private:
  std::span<const T> rows_;
  std::size_t width_ = 1;
  std::vector<double> norms_;
};

template <class Rows>
Cosine(const Rows&, Index) -> Cosine<std::remove_cv_t<typename Rows::value_type>>;

/// Greedy facility location: the selection grows by the item that adds most to sum_i w_i * max(0, max_{j kept}
/// sim(i, j)), i over the eligible items, w_i = 1 unless `weights` are given: how well what is kept stands for all.
/// The pins count as kept from the start. Its cover is at least (1 - 1/e) of the best that the same budget allows
/// (Nemhauser, Wolsey and Fisher 1978). |kept| = min(budget, eligible), nested in the budget; ties to the lower id,
/// then to the lower index.
///
///     const allocate::Cosine similarity(keys, dim);
///     const auto kept = allocate::facility_location(similarity.items(), similarity, 64);
///
/// `similarity(i, j)` takes two Index and returns a number; it is called O(items^2) times at worst, lazily: an item
/// whose old gain is already too small is not looked at again.
///
/// Throws InputError if a similarity is NaN, naming the pair, or a weight is NaN, infinite or negative; otherwise
/// as top_k does.
template <class Similarity>
Selection facility_location(Index items, const Similarity& similarity, Index budget,
                            const SelectOptions& options = {}, std::span<const double> weights = {}) {
  if (items < 0) detail::fail<ShapeError>("number of items", items, "not be negative");
  const auto n = static_cast<std::size_t>(items);
  if (!weights.empty()) detail::check_size("weights", weights.size(), "items", n);
  static_cast<void>(detail::largest_weight(weights));
  auto c = detail::candidates(n, options);
  const Index size = detail::kept_size(c, budget, options);

  std::vector<Index> covered;  // whom to stand for
  for (Index i = 0; i < items; ++i)
    if (options.eligible[static_cast<std::size_t>(i)]) covered.push_back(i);
  std::vector<double> best(n, 0.0);  // how well each is covered so far
  const auto similar = [&](Index i, Index j) {
    const double s = static_cast<double>(similarity(i, j));
    if (s != s)
      detail::fail<InputError>("similarity of items " + std::to_string(i) + " and " + std::to_string(j),
                               detail::number(s), "be a number");
    return s;
  };
  const auto keep = [&](Index j) {
    c.keep[static_cast<std::size_t>(j)] = true;
    for (const Index i : covered) {
      double& so_far = best[static_cast<std::size_t>(i)];
      so_far = std::max(so_far, similar(i, j));
    }
  };
  // Gains are summed in one order and every term falls as the cover grows, so that a gain of an earlier round is an
  // upper bound to the last bit, and the lazy choice is the greedy one.
  const auto gain = [&](Index j) {
    double sum = 0;
    for (const Index i : covered) {
      const auto at = static_cast<std::size_t>(i);
      const double more = std::max(0.0, similar(i, j) - best[at]);
      sum += weights.empty() ? more : weights[at] * more;
    }
    return sum;
  };
  for (std::size_t j = 0; j < n; ++j)
    if (c.keep[j]) keep(static_cast<Index>(j));

  struct Offer {
    double gain;
    Index item, round;
  };
  const auto worse = [&](const Offer& a, const Offer& b) {
    if (a.gain != b.gain) return a.gain < b.gain;
    const auto i = static_cast<std::size_t>(a.item), j = static_cast<std::size_t>(b.item);
    if (!options.ids.empty() && options.ids[i] != options.ids[j]) return options.ids[i] > options.ids[j];
    return a.item > b.item;
  };
  std::vector<Offer> offers;
  for (const Index j : c.others) offers.push_back({std::numeric_limits<double>::infinity(), j, -1});
  std::make_heap(offers.begin(), offers.end(), worse);
  for (Index round = c.pinned; round < size;) {
    std::pop_heap(offers.begin(), offers.end(), worse);
    Offer& top = offers.back();
    if (top.round == round) {
      keep(top.item);
      offers.pop_back();
      ++round;
    } else {
      top.gain = gain(top.item);
      top.round = round;
      std::push_heap(offers.begin(), offers.end(), worse);
    }
  }
  return detail::selection_of(c.keep, size);
}

}  // namespace allocate
}  // namespace attention_balancer
