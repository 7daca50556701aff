#include "cache_keeper.hpp"

#include <algorithm>
#include <cmath>

#include "eviction.hpp"

namespace example {
namespace ab = attention_balancer;
namespace {

// What the balancer may give a layer, as parts of the mean.
constexpr float least_part = 0.5f, most_part = 2.f;

bool keeps_by_head(CacheRule rule) noexcept { return rule == CacheRule::by_head || rule == CacheRule::balanced; }

}  // namespace

const char* to_string(CacheRule rule) noexcept {
  switch (rule) {
    case CacheRule::all: return "everything";
    case CacheRule::latest: return "first and latest";
    case CacheRule::random: return "random";
    case CacheRule::attention: return "attention";
    case CacheRule::by_head: return "attention by head";
    case CacheRule::balanced: return "... layers balanced";
  }
  return "";
}

CacheKeeper::CacheKeeper(const CacheBudget& budget, const LlamaShape& shape, Index batch)
    : budget_(budget),
      shape_(shape),
      batch_(batch),
      spare_(std::max(Index(1), budget.tokens / 16)),
      tokens_(static_cast<std::size_t>(shape.layers), budget.tokens),
      lost_(static_cast<std::size_t>(shape.layers), 0.f),
      balancer_(shape.layers,
                {.floor = least_part / static_cast<float>(shape.layers),
                 .cap = std::min(1.f, most_part / static_cast<float>(shape.layers))},
                {.rate = 0.5f, .gain = 0.5f}),
      random_(budget.seed) {
  if (budget.rule == CacheRule::all) return;
  const Index least = 2 * (budget.first + spare_) + 2;
  if (budget.tokens < least)
    throw ab::BudgetError("the budget of a cache is " + std::to_string(budget.tokens) + ", but must be at least " +
                          std::to_string(least) + " tokens");
  if (!observes()) return;
  seen_.assign(static_cast<std::size_t>(shape.layers * batch), Accumulated(shape.heads, budget.decay));
}

CacheKeeper::Index CacheKeeper::capacity(Index tokens) const {
  if (budget_.rule == CacheRule::all) return tokens;
  const auto most = budget_.rule == CacheRule::balanced ? most_part : 1.f;
  return std::min(tokens, static_cast<Index>(std::ceil(most * static_cast<float>(budget_.tokens))));
}

AfterAttention CacheKeeper::observer() {
  if (!observes()) return {};
  return [this](Index layer, std::span<const Evidence> of_each) { observe(layer, of_each); };
}

void CacheKeeper::observe(Index layer, std::span<const Evidence> of_each) {
  for (Index b = 0; b < batch_; ++b)
    seen_[static_cast<std::size_t>(layer * batch_ + b)].add(of_each[static_cast<std::size_t>(b)]);
}

void CacheKeeper::balance() {
  // Slots go to the layers whose evicted tokens had received most; there the next ones evicted will have received less.
  balancer_.update(lost_);
  // Rather the plan in force than one that moves a hundredth of the slots: who was evicted does not come back.
  tokens_ = balancer_.units(shape_.layers * budget_.tokens, {.hysteresis = 0.01});
}

std::vector<float> CacheKeeper::blind_scores(Index tokens) {
  std::vector<float> scores(static_cast<std::size_t>(tokens));
  std::uniform_real_distribution<float> uniform;
  if (budget_.rule == CacheRule::random)
    for (float& score : scores) score = uniform(random_);
  return scores;
}

template <ab::CacheStorage Stored>
void CacheKeeper::evict(ab::KvCache<Stored>& cache, Index layer, Index sequence, Index keep) {
  const Index tokens = cache.length(sequence);
  const auto pins =
      always_kept(tokens, keep, budget_.first, budget_.rule == CacheRule::latest ? 1.0 : budget_.latest);
  if (!observes())
    return ab::execute::evict(cache, sequence, ab::execute::token_budget(blind_scores(tokens), keep, pins));
  auto& seen = seen_[static_cast<std::size_t>(layer * batch_ + sequence)];
  if (!keeps_by_head(budget_.rule))
    return ab::execute::evict(cache, sequence, ab::execute::token_budget(seen.sum(), keep, pins), seen);
  lost_[static_cast<std::size_t>(layer)] += static_cast<float>(evict_by_head(cache, sequence, keep, pins, seen));
}

template <ab::CacheStorage Stored>
void CacheKeeper::evict(std::vector<ab::KvCache<Stored>>& caches) {
  if (budget_.rule == CacheRule::all) return;
  const bool all_have_lost = std::all_of(lost_.begin(), lost_.end(), [](float lost) { return lost > 0; });
  if (budget_.rule == CacheRule::balanced && all_have_lost && ++steps_ % spare_ == 0) balance();
  for (Index layer = 0; layer < shape_.layers; ++layer) {
    auto& cache = caches[static_cast<std::size_t>(layer)];
    const Index most = tokens_[static_cast<std::size_t>(layer)];
    if (cache.length(0) >= most) lost_[static_cast<std::size_t>(layer)] = 0;
    for (Index b = 0; b < batch_; ++b)
      if (cache.length(b) >= most) evict(cache, layer, b, most - spare_);
  }
}

template void CacheKeeper::evict(std::vector<ab::KvCache<float>>& caches);
template void CacheKeeper::evict(std::vector<ab::KvCache<ab::bf16>>& caches);
template void CacheKeeper::evict(std::vector<ab::KvCache<ab::f16>>& caches);
template void CacheKeeper::evict(std::vector<ab::KvCache<std::int8_t>>& caches);

}  // namespace example
