#include "page_keeper.hpp"

#include <algorithm>
#include <numeric>

#include "eviction.hpp"

namespace example {
namespace ab = attention_balancer;

const char* to_string(PageRule rule) noexcept {
  switch (rule) {
    case PageRule::reserved: return "reserved";
    case PageRule::latest: return "equal, first and latest";
    case PageRule::equal: return "equal, attention";
    case PageRule::balanced: return "balanced, attention";
  }
  return "";
}

PageKeeper::PageKeeper(const PageBudget& budget, const ServerRoom& room, const LlamaShape& shape)
    : budget_(budget),
      room_(room),
      shape_(shape),
      least_(room.pages_of(budget.first + 1 + 2 * std::max(room.piece, room.page_size))),
      needed_(static_cast<std::size_t>(room.sequences)),
      floor_(needed_.size(), 0.0),
      cap_(needed_.size(), 1.0),
      served_(needed_.size(), 1),
      balancer_(room.sequences, Bounded{.floor = floor_, .cap = cap_, .eligible = served_},
                {.rate = 0.5, .gain = 0.9}) {
  if (budget.rule == PageRule::reserved) return;
  if (room.pages < least_ * room.sequences)
    throw ab::BudgetError("the pages are " + std::to_string(room.pages) + ", but must be at least " +
                          std::to_string(least_) + " for each of " + std::to_string(room.sequences) + " sequences");
  if (observes()) seen_.assign(static_cast<std::size_t>(shape.layers * room.sequences), Accumulated(shape.heads));
}

AfterAttention PageKeeper::observer() {
  if (!observes()) return {};
  return [this](Index layer, std::span<const Evidence> of_each) {
    for (Index s = 0; s < room_.sequences; ++s)
      if (const Evidence& evidence = of_each[static_cast<std::size_t>(s)]; evidence.queries() > 0)
        seen(layer, s).add(evidence);
  };
}

void PageKeeper::restart(Index place) {
  for (Index layer = 0; observes() && layer < shape_.layers; ++layer) seen(layer, place).reset();
  balancer_.restart(place);
}

// What a query gives, over all layers and heads, to a token that would be evicted next.
double PageKeeper::marginal_attention(Index place) {
  double sum = 0;
  for (Index layer = 0; layer < shape_.layers; ++layer) {
    const auto scores = seen(layer, place).per_exposure(ab::KvHeads{shape_.kv_heads, ab::Heads::sum});
    const Index tokens = scores.length(),
                end = tokens - static_cast<Index>(budget_.latest * static_cast<double>(tokens));
    for (Index head = 0; head < shape_.kv_heads && budget_.first < end; ++head) {
      std::vector<float> middle(scores[head].begin() + budget_.first, scores[head].begin() + end);
      const Index some = std::min(room_.page_size, end - budget_.first);
      std::nth_element(middle.begin(), middle.begin() + some - 1, middle.end());
      sum += std::accumulate(middle.begin(), middle.begin() + some, 0.0) / static_cast<double>(some);
    }
  }
  return sum;
}

void PageKeeper::evict(std::vector<Cache>& caches, Index place, Index keep) {
  const Index tokens = caches.front().length(place);
  const auto pins =
      always_kept(tokens, keep, budget_.first, budget_.rule == PageRule::latest ? 1.0 : budget_.latest);
  evicted_ += tokens - keep;
  for (Index layer = 0; layer < shape_.layers; ++layer) {
    Cache& cache = caches[static_cast<std::size_t>(layer)];
    if (observes())
      evict_by_head(cache, place, keep, pins, seen(layer, place));
    else
      ab::execute::evict(cache, place, ab::execute::TokenPlan(tokens, pins));
  }
}

void PageKeeper::make_room(std::vector<Cache>& caches, std::span<const Index> tokens) {
  if (budget_.rule == PageRule::reserved) return;
  // All layers hold as many tokens of a sequence, so that their tables of pages fill alike.
  const Cache& cache = caches.front();
  Index wanted = 0;
  for (Index s = 0; s < room_.sequences; ++s) {
    const auto at = static_cast<std::size_t>(s);
    needed_[at] = cache.pages_for(cache.length(s) + tokens[at]);
    wanted += needed_[at];
  }
  if (wanted <= room_.pages) return;

  std::vector<double> signal(needed_.size(), 1.0);
  for (std::size_t s = 0; s < needed_.size(); ++s) {
    served_[s] = tokens[s] > 0;
    cap_[s] = static_cast<double>(needed_[s]) / static_cast<double>(room_.pages);
    floor_[s] = static_cast<double>(std::min(needed_[s], least_)) / static_cast<double>(room_.pages);
    // The share that it has is in the signal: then the balancer rests where the marginal tokens are worth the same.
    if (budget_.rule == PageRule::balanced && served_[s])
      signal[s] = static_cast<double>(needed_[s]) * marginal_attention(static_cast<Index>(s));
  }
  balancer_.update(signal);
  // Rather the plan in force than one that moves a hundredth of the pages: who was evicted does not come back.
  const auto pages = balancer_.units(room_.pages, {.hysteresis = 0.01});
  if (std::ranges::min(tokens) > 0) pages_of_each_ = pages;
  for (std::size_t s = 0; s < needed_.size(); ++s)
    if (needed_[s] >
        pages[s])  // a page more than the step wants: one token at a time would move the rest each time
      evict(caches, static_cast<Index>(s), pages[s] * room_.page_size - std::max(tokens[s], room_.page_size));
}

}  // namespace example
