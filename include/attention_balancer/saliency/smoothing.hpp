#pragma once
// Saliency that is less jumpy: pooled along the keys, or averaged over the cycles.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/saliency/heads.hpp"

namespace attention_balancer {

namespace saliency {

enum class Pooling { average, max };

}  // namespace saliency

namespace detail {

template <class = void>
void check_pool_width(Index width) {
  if (width < 1 || width % 2 == 0) fail<InputError>("pooling width", width, "be odd and at least 1");
}

/// result [n] = values [n] pooled over `width` neighbours, width odd. Not a number stays within its neighbourhood.
template <Scalar T>
void pool(std::span<const T> values, Index width, saliency::Pooling how, std::span<T> result) {
  const auto n = static_cast<Index>(values.size()), half = std::min(width / 2, n);
  for (Index j = 0; j < n; ++j) {
    const Index begin = j - std::min(j, half), end = j + std::min(half, n - 1 - j) + 1;
    double sum = 0;
    T most = values[static_cast<std::size_t>(begin)];
    for (Index i = begin; i < end; ++i) {
      const T x = values[static_cast<std::size_t>(i)];
      sum += static_cast<double>(x);
      if (!(most >= x) && most == most) most = x;
    }
    result[static_cast<std::size_t>(j)] =
        how == saliency::Pooling::max ? most : static_cast<T>(sum / static_cast<double>(width));
  }
}

template <Scalar T>
std::vector<T> pooled(std::span<const T> values, Index width, saliency::Pooling how) {
  check_pool_width(width);
  std::vector<T> result(values.size());
  pool<T>(values, width, how, result);
  return result;
}

template <Scalar T>
saliency::Rows<T> pooled(const saliency::Rows<T>& rows, Index width, saliency::Pooling how) {
  check_pool_width(width);
  saliency::Rows<T> result(rows.rows(), rows.length());
  for (Index r = 0; r < rows.rows(); ++r) pool<T>(rows[r], width, how, result[r]);
  return result;
}

}  // namespace detail

namespace saliency {

/// [n] The average over `width` neighbours, an odd number, with zeros beyond both ends and `width` as the divisor
/// everywhere (SnapKV, 2404.14469: width 5): neighbours of an important key are kept with it. It depends on the
/// order of the keys. O(n * width). Throws InputError unless the width is odd and at least 1.
template <class = void>
std::vector<float> average_pool(std::span<const float> values, Index width) {
  return detail::pooled(values, width, Pooling::average);
}
template <class = void>
std::vector<double> average_pool(std::span<const double> values, Index width) {
  return detail::pooled(values, width, Pooling::average);
}
template <Scalar T>
Rows<T> average_pool(const Rows<T>& rows, Index width) {
  return detail::pooled(rows, width, Pooling::average);
}

/// [n] The largest of `width` neighbours, fewer at both ends. Otherwise as average_pool.
template <class = void>
std::vector<float> max_pool(std::span<const float> values, Index width) {
  return detail::pooled(values, width, Pooling::max);
}
template <class = void>
std::vector<double> max_pool(std::span<const double> values, Index width) {
  return detail::pooled(values, width, Pooling::max);
}
template <Scalar T>
Rows<T> max_pool(const Rows<T>& rows, Index width) {
  return detail::pooled(rows, width, Pooling::max);
}

/// The exponential moving average of a saliency over cycles: s <- (1 - rate) s + rate x. The first time that an
/// entry is seen it is taken as it is. Grows with the keys, and is compacted with them.
template <Scalar T>
class Ema {
 public:
  /// Throws InputError unless rate is in (0, 1].
  explicit Ema(double rate) : rate_(rate) {
    if (!(rate > 0 && rate <= 1)) detail::fail<InputError>("Ema rate", rate, "be in (0, 1]");
  }

  /// Takes the saliency of one cycle and returns the average, valid until the next update. Entries past the ones
  /// known are new keys. Throws ShapeError, and takes nothing, if there are fewer than known: call compact when
  /// keys are evicted.
  std::span<const T> update(std::span<const T> saliency) {
    if (saliency.size() < values_.size())
      detail::fail<ShapeError>(
          "Ema saliency size", saliency.size(),
          "be at least " + std::to_string(values_.size()) + ": compact it when keys are evicted");
    values_.reserve(saliency.size());
    for (std::size_t j = 0; j < values_.size(); ++j)
      values_[j] = static_cast<T>((1 - rate_) * values_[j] + rate_ * static_cast<double>(saliency[j]));
    values_.insert(values_.end(), saliency.begin() + static_cast<Index>(values_.size()), saliency.end());
    return values();
  }

  /// [slots] The average so far.
  std::span<const T> values() const noexcept { return values_; }
  Index slots() const noexcept { return static_cast<Index>(values_.size()); }

  /// Entry k becomes what entry kept[k] was; the others are gone. Throws InputError, and changes nothing, unless
  /// the indices ascend strictly within the slots.
  void compact(std::span<const Index> kept) {
    detail::check_kept(kept, slots());
    for (std::size_t k = 0; k < kept.size(); ++k) values_[k] = values_[static_cast<std::size_t>(kept[k])];
    values_.resize(kept.size());
  }

  /// Forgets everything.
  void reset() noexcept { values_.clear(); }

 private:
  double rate_;
  std::vector<T> values_;
};

}  // namespace saliency
}  // namespace attention_balancer
