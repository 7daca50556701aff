#pragma once
#include <span>
#include <string>
#include <vector>

#include "cache_keeper.hpp"
#include "server.hpp"

namespace example {

/// Stretches of a text, all of one length, that are read side by side, each with a cache of its own.
struct Windows {
  Eigen::Index count = 0, length = 0;  // length: tokens that are predicted, one less than are read
  std::vector<int> ids;                // [count, length + 1]
};

/// `count` windows of `length` predicted tokens, evenly spaced in the text. Throws std::invalid_argument if it has too
/// few tokens.
Windows windows_of(const std::vector<int>& ids, Eigen::Index count, Eigen::Index length);

/// -log p of token `id` after the row's, in nats; logits [., vocabulary].
double surprise(const Matrix& logits, Eigen::Index row, int id);

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

/// A text whose beginning is read as a prompt and whose end is predicted token by token.
struct Continuation {
  std::vector<int> prompt, rest;
};

struct ServedRun {
  std::vector<double> losses;  // [texts] mean over the rest of -log p, in nats
  double seconds = 0;
  ServerCounts counts;
  Eigen::Index shortages = 0, evicted = 0;
  std::vector<Eigen::Index> pages_of_each;  // as PageKeeper has them
};

/// How well each text's end is predicted while a server has all of them in work, with the pages that they share.
ServedRun measure_served(const Llama& model, const std::vector<Continuation>& texts, const ServerRoom& room,
                         const PageBudget& budget, int threads);

}  // namespace example
