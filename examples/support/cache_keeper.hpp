#pragma once
// Keeps the caches of a decoder within a budget while it decodes: attention -> shares -> budget -> feedback, where the
// budget is slots of a cache.

#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention_balancer.hpp"
#include "llama.hpp"

namespace example {

/// Who stays when a cache is full. Every rule but `all` keeps the first tokens and the latest ones.
enum class CacheRule {
  all,        ///< everybody: the cache is as long as the text
  latest,     ///< nobody else: the rest of the budget goes to the latest too (StreamingLLM, 2309.17453)
  random,     ///< others at random
  attention,  ///< those that received most attention so far (H2O, 2306.14048)
  by_head,    ///< the same, for each key head by itself, as in the paper
  balanced,   ///< by_head, and the layers share one budget: the balancer gives to those that lose most
};

const char* to_string(CacheRule rule) noexcept;

struct CacheBudget {
  CacheRule rule = CacheRule::all;
  Eigen::Index tokens = 0;  // that a layer holds for a sequence at most; of `balanced` the mean over the layers
  Eigen::Index first = 4;   // attention sinks
  double latest = 0.5;      // part of the tokens that stays because it is new
  double decay = 1;         // of the attention received so far, per token
  unsigned seed = 1;
};

/// Watches the attention of all layers and evicts between the steps of a decoder.
class CacheKeeper {
 public:
  using Index = attention_balancer::Index;
  using Evidence = attention_balancer::Evidence<float>;

  /// Throws attention_balancer::BudgetError for a budget that is too small for the tokens that always stay.
  CacheKeeper(const CacheBudget& budget, const LlamaShape& shape, Index batch);

  /// Slots that a cache of `tokens` tokens needs.
  Index capacity(Index tokens) const;

  /// What takes in the attention of each layer; none if the rule needs not see it. It must not outlive the keeper.
  AfterAttention observer();

  /// Makes room for the next token in every cache that is full. All sequences have read the same number of tokens.
  template <attention_balancer::CacheStorage Stored>
  void evict(std::vector<attention_balancer::KvCache<Stored>>& caches);

  /// Tokens that each layer may hold.
  const std::vector<Index>& tokens_of_layers() const noexcept { return tokens_; }

 private:
  using Accumulated = attention_balancer::saliency::Accumulated<float>;

  bool observes() const noexcept { return budget_.rule >= CacheRule::attention; }
  void observe(Index layer, std::span<const Evidence> of_each);
  void balance();
  template <attention_balancer::CacheStorage Stored>
  void evict(attention_balancer::KvCache<Stored>& cache, Index layer, Index sequence, Index keep);
  std::vector<float> blind_scores(Index tokens);

  CacheBudget budget_;
  LlamaShape shape_;
  Index batch_;
  Index spare_;  // slots that an eviction frees: one at a time would move the rest each time
  Index steps_ = 0;
  std::vector<Index> tokens_;      // [layers]
  std::vector<Accumulated> seen_;  // [layers, batch]
  std::vector<float> lost_;        // [layers] attention that a token evicted last had received, on the mean
  attention_balancer::ResourceBalancer<float, attention_balancer::allocate::Bounded<float>> balancer_;
  std::mt19937_64 random_;
};

}  // namespace example
