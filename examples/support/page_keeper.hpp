#pragma once
// Divides the pages of a cache among the sequences that share it: attention -> share of the pages of each sequence ->
// eviction down to it -> the attention of the next step.

#include <cstdint>
#include <span>
#include <vector>

#include "attention_balancer/attention_balancer.hpp"
#include "llama.hpp"

namespace example {

/// What happens when pages run short.
enum class PageRule {
  reserved,  ///< they do not: a sequence waits until there are pages up to its longest end
  latest,    ///< equal shares; within a sequence the first tokens and the latest stay (StreamingLLM, 2309.17453)
  equal,     ///< equal shares; those tokens stay that received most attention, by key head
  balanced,  ///< the same, and the balancer gives more pages to sequences whose marginal tokens receive more attention
};

const char* to_string(PageRule rule) noexcept;

struct PageBudget {
  PageRule rule = PageRule::reserved;
  Eigen::Index first = 4;  // attention sinks
  double latest = 0.5;     // part of a sequence's tokens that stays because it is new
};

/// What a server has for its sequences.
struct ServerRoom {
  Eigen::Index sequences = 8;   // at once
  Eigen::Index pages = 64;      // that all of them share, in each layer
  Eigen::Index page_size = 16;  // tokens
  Eigen::Index piece = 16;      // tokens of a prompt that a step reads

  Eigen::Index pages_of(Eigen::Index tokens) const noexcept { return (tokens + page_size - 1) / page_size; }
};

/// Watches the attention of all layers and makes room between the steps of a decoder. An equal share that a sequence
/// does not need goes to the others: shares lie between the fewest pages that a sequence can go on with and those that
/// hold all of it.
class PageKeeper {
 public:
  using Index = attention_balancer::Index;
  using Cache = attention_balancer::PagedKvCache<float>;
  using Evidence = attention_balancer::Evidence<float>;

  /// Throws attention_balancer::BudgetError if the pages are too few for so many sequences.
  PageKeeper(const PageBudget& budget, const ServerRoom& room, const LlamaShape& shape);

  /// What takes in the attention of each layer; none if the rule needs not see it. It must not outlive the keeper.
  AfterAttention observer();

  /// The place of a sequence is taken by another text.
  void restart(Index place);

  /// Makes room for so many tokens more of each sequence, 0 where none is served.
  void make_room(std::vector<Cache>& caches, std::span<const Index> tokens);

  /// [sequences] The pages that each could have when they ran short last while all places were served; empty if they
  /// never did.
  const std::vector<Index>& pages_of_each() const noexcept { return pages_of_each_; }

  /// Times that pages ran short, and tokens that were evicted, in each layer.
  Index shortages() const noexcept { return balancer_.cycle(); }
  Index evicted() const noexcept { return evicted_; }

 private:
  using Accumulated = attention_balancer::saliency::Accumulated<float>;
  using Bounded = attention_balancer::allocate::Bounded<double>;

  bool observes() const noexcept { return budget_.rule >= PageRule::equal; }
  Accumulated& seen(Index layer, Index place) {
    return seen_[static_cast<std::size_t>(layer * room_.sequences + place)];
  }
  double marginal_attention(Index place);
  void evict(std::vector<Cache>& caches, Index place, Index keep);

  PageBudget budget_;
  ServerRoom room_;
  LlamaShape shape_;
  Index least_;  // pages that a sequence can go on with
  Index evicted_ = 0;
  std::vector<Accumulated> seen_;  // [layers, sequences]
  std::vector<Index> needed_;      // [sequences] pages
  std::vector<Index> pages_of_each_;
  std::vector<double> floor_, cap_;   // [sequences] as parts of all pages; the balancer borrows them
  std::vector<std::uint8_t> served_;  // [sequences] likewise
  attention_balancer::ResourceBalancer<double, Bounded> balancer_;
};

}  // namespace example
