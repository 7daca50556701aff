#pragma once
// An observation window: what the last queries of a prompt looked at, before the window itself.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/saliency/reducers.hpp"
#include "attention_balancer/saliency/smoothing.hpp"

namespace attention_balancer {
namespace saliency {

/// How the last queries judge the keys before them.
struct Window {
  Index length = 64;  ///< number of last positions that judge, and are not judged
  Index pool = 5;     ///< width of the pooling along the keys, odd; 1: none
  Pooling pooling = Pooling::average;
  double gamma = 0;  ///< weight of the variance over the queries; 0: the mean alone
};

/// [keys] mean_i p_ij + gamma * Var_i p_ij over the observed queries, for the keys before the window: pooled along
/// them per query head, then reduced over the heads. The keys of the window get 0 and are to be pinned; they take
/// no part in the pooling.
///
/// SnapKV (2404.14469): observe the attention of the last `length` queries with QueryWeights::last(length), reduce
/// with KvHeads{Hkv}, keep the top B - length and the window. CAKE (2503.12491): observe evidence::squares, gamma >
/// 0 (see mean_and_variance). The published code of both masks as ours does, and normalises over all keys, the
/// window included.
///
/// Throws InputError unless length >= 0, pool is odd and gamma finite and not negative, or if gamma > 0 and the
/// squares were not observed; otherwise as mass does.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> observation_window(const Evidence<T>& evidence, Window window, Over over = {},
                                            Index batch = 0) {
  if (window.length < 0) detail::fail<InputError>("Window length", window.length, "not be negative");
  detail::check_pool_width(window.pool);
  const auto judged = static_cast<std::size_t>(std::max(Index(0), evidence.keys() - window.length));
  Rows<T> rows = window.gamma == 0 ? per_exposure(evidence, EachHead{}, batch)
                                   : mean_and_variance(evidence, window.gamma, EachHead{}, batch);
  std::vector<T> pooled(judged);
  for (Index h = 0; h < rows.rows(); ++h) {
    const std::span<T> row = rows[h];
    detail::pool<T>(row.first(judged), window.pool, window.pooling, pooled);
    std::fill(std::copy(pooled.begin(), pooled.end(), row.begin()), row.end(), T(0));
  }
  return reduce(rows, over);
}

}  // namespace saliency
}  // namespace attention_balancer
