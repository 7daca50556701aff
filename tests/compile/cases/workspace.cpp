// Two calls must not share a copy of one scratch memory.
// case 1: deleted
// case 2: deleted
#include <utility>

#include "attention_balancer/core/workspace.hpp"

attention_balancer::Workspace f(attention_balancer::Workspace& a, attention_balancer::Workspace& b) {
#if CASE == 1
  a = b;
#elif CASE == 2
  return a;
#endif
  a = std::move(b);
  return std::move(a);
}
