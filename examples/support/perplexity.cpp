#include "perplexity.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "progress.hpp"

namespace example {
namespace ab = attention_balancer;

Windows windows_of(const std::vector<int>& ids, Eigen::Index count, Eigen::Index length) {
  const auto tokens = static_cast<Eigen::Index>(ids.size());
  if (tokens < length + 1)
    throw std::invalid_argument("the text has " + std::to_string(tokens) + " tokens, but must have at least " +
                                std::to_string(length + 1));
  Windows windows{count, length, {}};
  for (Eigen::Index w = 0; w < count; ++w) {
    const auto begin = ids.begin() + (count > 1 ? (tokens - length - 1) * w / (count - 1) : 0);
    windows.ids.insert(windows.ids.end(), begin, begin + length + 1);
  }
  return windows;
}

double surprise(const Matrix& logits, Eigen::Index row, int id) {
  const auto numbers = logits.row(row).array();
  const float largest = numbers.maxCoeff();
  const auto lse = static_cast<double>(largest + std::log((numbers - largest).exp().sum()));
  return lse - static_cast<double>(numbers[id]);
}

double PerplexityRun::perplexity() const {
  return std::exp(std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size()));
}

template <ab::CacheStorage Stored>
PerplexityRun measure_perplexity(const Llama& model, const Windows& windows, const CacheBudget& budget,
                                 int threads) {
  CacheKeeper keeper(budget, model.shape, windows.count);
  LlamaDecoder decoder(
      model, caches_of<ab::KvCache<Stored>>(model.shape, windows.count, keeper.capacity(windows.length)), threads);
  const AfterAttention observe = keeper.observer();

  PerplexityRun run;
  run.losses.assign(static_cast<std::size_t>(windows.count), 0);
  std::vector<int> ids(static_cast<std::size_t>(windows.count));
  const Stopwatch watch;
  for (Eigen::Index i = 0; i < windows.length; ++i) {
    const auto id = [&](Eigen::Index w, Eigen::Index at) {
      return windows.ids[static_cast<std::size_t>(w * (windows.length + 1) + at)];
    };
    for (Eigen::Index w = 0; w < windows.count; ++w) ids[static_cast<std::size_t>(w)] = id(w, i);
    const Matrix& logits = decoder.read(ids, observe);
    for (Eigen::Index w = 0; w < windows.count; ++w)
      run.losses[static_cast<std::size_t>(w)] += surprise(logits, w, id(w, i + 1));
    run.cache_bytes = std::max(run.cache_bytes, decoder.cache_bytes());
    keeper.evict(decoder.caches());
  }
  run.seconds = watch.seconds();
  run.attention_seconds = decoder.attention_seconds();
  run.tokens_of_layers = keeper.tokens_of_layers();
  for (double& loss : run.losses) loss /= static_cast<double>(windows.length);
  return run;
}

template PerplexityRun measure_perplexity<float>(const Llama&, const Windows&, const CacheBudget&, int);
template PerplexityRun measure_perplexity<ab::bf16>(const Llama&, const Windows&, const CacheBudget&, int);
template PerplexityRun measure_perplexity<ab::f16>(const Llama&, const Windows&, const CacheBudget&, int);
template PerplexityRun measure_perplexity<std::int8_t>(const Llama&, const Windows&, const CacheBudget&, int);

ServedRun measure_served(const Llama& model, const std::vector<Continuation>& texts, const ServerRoom& room,
                         const PageBudget& budget, int threads) {
  Server server(model, room, budget, threads);
  ServedRun run;
  run.losses.assign(texts.size(), 0);
  for (std::size_t i = 0; i < texts.size(); ++i)
    server.add({texts[i].prompt, static_cast<Eigen::Index>(texts[i].rest.size()),
                [&rest = texts[i].rest, &loss = run.losses[i], at = std::size_t(0)](
                    const Matrix& logits, Eigen::Index row) mutable -> std::optional<int> {
                  loss += surprise(logits, row, rest[at]) / static_cast<double>(rest.size());
                  return rest[at++];
                }});
  const Stopwatch watch;
  while (server.step()) {
  }
  run.seconds = watch.seconds();
  run.counts = server.counts();
  run.shortages = server.keeper().shortages();
  run.evicted = server.keeper().evicted();
  run.pages_of_each = server.keeper().pages_of_each();
  return run;
}

}  // namespace example
