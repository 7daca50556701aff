#pragma once
// What the keepers of caches have in common: who stays, by the attention that each token received.

#include <cmath>
#include <vector>

#include "attention_balancer/attention_balancer.hpp"

namespace example {

/// Slots of `tokens` that stay whatever they received, where `keep` stay in all: the first ones, and of the rest of the
/// budget the part `latest` for the latest.
inline std::vector<attention_balancer::Index> always_kept(attention_balancer::Index tokens,
                                                          attention_balancer::Index keep,
                                                          attention_balancer::Index first, double latest) {
  const auto others = static_cast<double>(keep - first);
  return attention_balancer::allocate::sinks_and_recent(
      tokens, first, static_cast<attention_balancer::Index>(std::lround(latest * others)));
}

/// Evicts all but `keep` tokens of a sequence: for each key head by itself those stay that are pinned or received most
/// (H2O, 2306.14048). Returns the attention that an evicted token had received, on the mean.
template <class Cache>
double evict_by_head(Cache& cache, attention_balancer::Index sequence, attention_balancer::Index keep,
                     const std::vector<attention_balancer::Index>& pins,
                     attention_balancer::saliency::Accumulated<float>& seen) {
  namespace ab = attention_balancer;
  const ab::Index tokens = cache.length(sequence);
  const auto scores = seen.sum(ab::KvHeads{cache.kv_heads(), ab::Heads::sum});
  const auto plans = ab::allocate::top_k(scores, keep, {.pins = pins});
  double lost = 0;
  for (ab::Index head = 0; head < cache.kv_heads(); ++head)
    for (const ab::Index slot : plans[static_cast<std::size_t>(head)].dropped())
      lost += static_cast<double>(scores[head][static_cast<std::size_t>(slot)]);
  ab::execute::evict(cache, sequence, plans, seen);
  return lost / static_cast<double>(tokens - keep);
}

}  // namespace example
