#pragma once
// Shares within bounds that are the same for every item: the engine of water_filling.hpp without its memory, for
// what most callers ask for. Whatever is out of the ordinary is left to that one.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/box.hpp"
#include "attention_balancer/allocate/detail/proportion.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer::detail {

/// Who is held by a bound where a threshold says so: how many, and the sum of the others.
struct Held {
  std::int64_t at_floor = 0, at_cap = 0;
  double free = 0;
};

/// low and below are at the floor, high and above at the cap. In the blocks of total_of.
template <class Value>
Held held_by(std::size_t n, const Value& value, double low, double high) {
  Held held;
  Sum sum;
  for (std::size_t begin = 0; begin < n; begin += total_block) {
    const std::size_t end = std::min(n, begin + total_block);
    sum.add(block_sum(begin, end, [&](std::size_t i) {
      const double x = value(i);
      return ((x > low) & (x < high)) ? x : 0.0;
    }));
    for (std::size_t i = begin; i < end; ++i) held.at_floor += value(i) <= low;
    for (std::size_t i = begin; i < end; ++i) held.at_cap += value(i) >= high;
  }
  held.free = sum.value();
  return held;
}

/// shares_i = clip(nu * value_i, floor, cap), by Newton's method on the nu at which they add up to 1; `sum` is that
/// of the values. It is done when a step stays where it was: held equal after a bisection says nothing. False, and
/// nothing has been written, where that is not soon, or the shares miss 1 by more than n * epsilon.
template <Scalar T, class Value>
bool fill_common(double sum, double floor, double cap, std::span<T> shares, const Value& value) {
  const std::size_t n = shares.size();
  const double items = static_cast<double>(n);
  if (n < 16 || !(items * floor < 0.999999) || !(items * cap > 1.000001)) return false;
  double nu = 1 / sum, below = 0, above = std::numeric_limits<double>::infinity();
  for (int step = 0; step < 40; ++step) {
    const double low = floor / nu, high = cap / nu;
    const Held held = held_by(n, value, low, high);
    const double at_floor = static_cast<double>(held.at_floor), at_cap = static_cast<double>(held.at_cap);
    const double remaining = std::fma(-at_cap, cap, std::fma(-at_floor, floor, 1.0));
    if (!is_plain(held.free)) return false;
    const double next = remaining / held.free;
    if (next == nu) {
      const auto share = [&](std::size_t i) {
        const double x = value(i), proportion = remaining * (x / held.free);
        double within = proportion < floor ? floor : proportion;  // step by step: no branch that is hard to foretell
        within = within > cap ? cap : within;
        within = x <= low ? floor : within;
        within = x >= high ? cap : within;
        return static_cast<T>(within);
      };
      Sum total;
      for (std::size_t begin = 0; begin < n; begin += total_block)
        total.add(block_sum(begin, std::min(n, begin + total_block),
                            [&](std::size_t i) { return static_cast<double>(share(i)); }));
      if (!(std::abs(total.value() - 1) <= sum_slack<T>(n))) return false;
      T* const out = shares.data();
      for (std::size_t i = 0; i < n; ++i) out[i] = share(i);
      return true;
    }
    (nu * held.free < remaining ? below : above) = nu;
    nu = next > below && next < above ? next : below + (above - below) / 2;
  }
  return false;
}

/// clip(nu * w^power, floor, cap) under bounds that are the same for all. If they are not, or anything else is not
/// as it should be, false, and nothing has been written.
template <Scalar T>
bool share_commonly(const Box<T>& box, double power, std::span<const T> saliency, std::span<T> shares) {
  if (box.floor.per_item() || box.cap.per_item() || box.eligible.given() || power == 0) return false;
  const double floor = static_cast<double>(box.floor[0]), cap = static_cast<double>(box.cap[0]);
  if (!(floor >= 0 && floor <= cap)) return false;
  const T* const w = saliency.data();
  const std::size_t n = saliency.size();
  const auto weight = [w](std::size_t i) { return static_cast<double>(w[i]); };
  const auto share = [&](const auto& value) {
    const Total all = total_of(n, value);
    if (!all.good || !is_plain(all.sum)) return false;
    if (!(all.least / all.sum >= floor && all.greatest / all.sum <= cap))
      return fill_common(all.sum, floor, std::min(cap, 1.0), shares, value);
    divide_by(all.sum, shares, value);
    return true;
  };
  if (power == 1) return share(weight);
  std::vector<double> powers(n);  // worth the memory: a power takes longer than a store
  if (power == 0.5) {
    for (std::size_t i = 0; i < n; ++i) powers[i] = std::sqrt(weight(i));
  } else {  // half the time of std::pow; weight zero is exp2(-infinity)
    const double largest = largest_weight(saliency);
    if (largest == 0) return false;
    const double log_largest = std::log2(largest);
    for (std::size_t i = 0; i < n; ++i) powers[i] = std::exp2(power * (std::log2(weight(i)) - log_largest));
  }
  return share([x = powers.data()](std::size_t i) { return x[i]; });
}

}  // namespace attention_balancer::detail
