#pragma once
// A proportion without bounds that bind, in loops that a compiler can do several items at a time.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "attention_balancer/allocate/detail/crossing.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// A sum of finite numbers that are not negative, the least and the greatest of them; not `good` if one is negative
/// (-0 counts as that), infinite or NaN.
struct Total {
  double sum = 0, least = 0, greatest = 0;
  bool good = true;
};

/// Whether a sum of weights is far from what double cannot hold, so that they need not be scaled.
inline bool is_plain(double sum) noexcept { return sum > 1e-250 && sum < 1e250; }

/// Sums are made of blocks of this many numbers, each in eight parts: 19 roundings at most, whatever n. One sum in
/// turn would wait for each addition, and a compensated sum of every number takes four times as long.
inline constexpr std::size_t total_block = 128;

/// value(begin) + ... + value(end - 1), of one block.
template <class Value>
double block_sum(std::size_t begin, std::size_t end, const Value& value) {
  constexpr std::size_t lanes = 8;
  double parts[lanes] = {};
  const std::size_t whole = begin + (end - begin) / lanes * lanes;
  for (std::size_t i = begin; i < whole; i += lanes)
    for (std::size_t k = 0; k < lanes; ++k) parts[k] += value(i + k);
  for (std::size_t i = whole; i < end; ++i) parts[i - whole] += value(i);
  return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

/// The total of value(0) .. value(n - 1). Each loop has one thing to do, so that compilers vectorise it.
template <class Value>
Total total_of(std::size_t n, const Value& value) {
  Total total;
  if (n == 0) return total;
  // Numbers that are not negative are ordered as the integers of the same bits, and a sign shows as a negative one.
  const auto bits = [&](std::size_t i) { return std::bit_cast<std::int64_t>(value(i)); };
  std::int64_t least = bits(0), greatest = least;
  Sum sum;
  for (std::size_t begin = 0; begin < n; begin += total_block) {
    const std::size_t end = std::min(n, begin + total_block);
    sum.add(block_sum(begin, end, value));
    for (std::size_t i = begin; i < end; ++i) least = std::min(least, bits(i));
    for (std::size_t i = begin; i < end; ++i) greatest = std::max(greatest, bits(i));
  }
  total.sum = sum.value();
  total.least = std::bit_cast<double>(least);
  total.greatest = std::bit_cast<double>(greatest);
  total.good = least >= 0 && std::isfinite(total.sum);  // what is not finite shows in the sum
  return total;
}

/// shares_i = value(i) / sum, the quotient rounded once.
template <Scalar T, class Value>
void divide_by(double sum, std::span<T> shares, const Value& value) {
  T* const out = shares.data();
  for (std::size_t i = 0; i < shares.size(); ++i) out[i] = static_cast<T>(value(i) / sum);
}

}  // namespace attention_balancer::detail
