// What can follow several plans of eviction.
// case 1: attention_balancer: with a plan for each KV head, a state is an Evidence or has compact_by_head
// case 2: attention_balancer: with a plan for each KV head, a state is an Evidence or has compact_by_head
#include <vector>

#include "attention_balancer/cache/kv_cache.hpp"
#include "attention_balancer/execute/cache_budget.hpp"
#include "attention_balancer/saliency/accumulated.hpp"

namespace ab = attention_balancer;

void f(ab::KvCache<float>& cache, const std::vector<ab::execute::TokenPlan>& plans, std::vector<int>& ids,
       ab::Evidence<float>& evidence, ab::saliency::Accumulated<float>& accumulated, ab::TensorView<float> x) {
#if CASE == 0
  ab::execute::evict(cache, 0, plans, evidence, accumulated);
  ab::execute::evict(cache, 0, plans[0], evidence, accumulated, ids, x);
#elif CASE == 1
  ab::execute::evict(cache, 0, plans, evidence, ids);
#elif CASE == 2
  ab::execute::evict(cache, 0, plans, x);
#endif
  (void)cache, (void)plans, (void)ids, (void)evidence, (void)accumulated, (void)x;
}
