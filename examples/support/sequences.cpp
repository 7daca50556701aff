#include "sequences.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention_balancer/core/error.hpp"

namespace example {

const char* name_of(Keep keep) {
  switch (keep) {
    case Keep::shares: return "shares";
    case Keep::random: return "random";
    case Keep::stride: return "stride";
    case Keep::prefix: return "prefix";
  }
  return "";
}

Eigen::Index TokenBudget::of(Eigen::Index tokens) const {
  if (!(part > 0 && part <= 1))
    throw attention_balancer::BudgetError("part of the tokens is " + std::to_string(part) +
                                          ", but must be in (0, 1]");
  if (tokens < 2) return tokens;
  return 1 +
         std::max(Eigen::Index(1), static_cast<Eigen::Index>(std::lround(part * static_cast<double>(tokens - 1))));
}

std::pair<Sequences, Sequences> hold_out(const Sequences& data, double part, unsigned seed) {
  using attention_balancer::InputError;
  if (!(part > 0 && part < 1))
    throw InputError("part that is held out is " + std::to_string(part) + ", but must be in (0, 1)");
  const auto size = data.size();
  if (size < 2)
    throw InputError("number of examples is " + std::to_string(size) + ", but must be at least 2 to hold out some");
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  Random random(seed);
  std::shuffle(order.begin(), order.end(), random);
  const auto held =
      std::clamp(static_cast<std::size_t>(std::lround(part * static_cast<double>(size))), std::size_t{1}, size - 1);
  const auto take = [&](std::size_t begin, std::size_t end) {
    Sequences some;
    some.tokens = data.tokens;
    some.features.resize(static_cast<Eigen::Index>(end - begin) * data.tokens, data.features.cols());
    for (std::size_t i = begin; i < end; ++i) {
      if (data.ids.empty())
        some.features.middleRows(static_cast<Eigen::Index>(i - begin) * data.tokens, data.tokens) =
            data.features.middleRows(static_cast<Eigen::Index>(order[i]) * data.tokens, data.tokens);
      else
        some.ids.push_back(data.ids[order[i]]);
      some.labels.push_back(data.labels[order[i]]);
    }
    return some;
  };
  return {take(held, size), take(0, held)};
}

template <class T>
Batch<T> make_batch(const Sequences& data, std::span<const std::size_t> which, const TokenBudget& budget,
                    Random& random, double loss) {
  Batch<T> batch;
  std::vector<Eigen::Index> rows;  // of data.features
  std::bernoulli_distribution lost(loss);
  std::vector<int> places, kept;
  for (const auto i : which) {
    const auto length = data.length(i);
    places.clear();
    for (Eigen::Index j = 0; j < length; ++j)
      if (j == 0 || loss == 0 || !lost(random)) places.push_back(static_cast<int>(j));
    const auto n = static_cast<Eigen::Index>(places.size()), count = budget.of(n);
    batch.tokens += n;
    if (count < n && budget.keep != Keep::shares) {
      kept.assign(1, places[0]);
      if (budget.keep == Keep::random) {
        std::sample(places.begin() + 1, places.end(), std::back_inserter(kept), count - 1, random);
      } else {
        for (Eigen::Index k = 0; k < count - 1; ++k)
          kept.push_back(places[static_cast<std::size_t>(
              1 + (budget.keep == Keep::prefix ? k : (2 * k + 1) * (n - 1) / (2 * (count - 1))))]);
      }
      places.swap(kept);
    }
    for (const int place : places) {
      batch.positions.push_back(place);
      if (data.ids.empty())
        rows.push_back(static_cast<Eigen::Index>(i) * data.tokens + place);
      else
        batch.ids.push_back(data.ids[i][static_cast<std::size_t>(place)]);
    }
    batch.segments.add(static_cast<Eigen::Index>(places.size()));
    batch.labels.push_back(data.labels[i]);
  }
  if (data.ids.empty()) batch.features = data.features(rows, Eigen::all).template cast<T>();
  return batch;
}

template Batch<float> make_batch(const Sequences&, std::span<const std::size_t>, const TokenBudget&, Random&,
                                 double);
template Batch<double> make_batch(const Sequences&, std::span<const std::size_t>, const TokenBudget&, Random&,
                                  double);

}  // namespace example
