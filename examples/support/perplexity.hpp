#pragma once
#include <span>
#include <string>
#include <vector>

#include "cache_keeper.hpp"

namespace example {

/// Stretches of a text, all of one length, that are read side by side, each with a cache of its own.
struct Windows {
  Eigen::Index count = 0, length = 0;  // length: tokens that are predicted, one less than are read
  std::vector<int> ids;                // [count, length + 1]
};

/// `count` windows of `length` predicted tokens, evenly spaced in the text. Throws std::invalid_argument if it has too
/// few tokens.
Windows windows_of(const std::vector<int>& ids, Eigen::Index count, Eigen::Index length);

struct PerplexityRun {
  std::vector<double> losses;  // [windows] mean of -log p of the next token, in nats
  double seconds = 0, attention_seconds = 0;
  std::size_t cache_bytes = 0;  // of what the caches held, at most
  std::vector<Eigen::Index> tokens_of_layers;

  double perplexity() const;
};

/// How well the model predicts each next token, decoding the windows token by token with caches stored as Stored and
/// kept within the budget.
template <attention_balancer::CacheStorage Stored>
PerplexityRun measure_perplexity(const Llama& model, const Windows& windows, const CacheBudget& budget,
                                 int threads);

}  // namespace example
