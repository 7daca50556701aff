// The element types of the tensors of one call.
// case 1: attention_balancer: out must be a view of mutable elements
// case 2: attention_balancer: q, k, v and out must all be float or all be double
// case 3: attention_balancer: q, k, v and out must all be float or all be double
// case 4: attention_balancer: q and k must both be float or both be double
#include "attention_balancer/attention.hpp"

namespace ab = attention_balancer;

void f(ab::TensorView<const float> q, ab::TensorView<float> k, ab::TensorView<float> out, ab::TensorView<double> d,
       ab::TensorView<int> i, ab::Evidence<float>& e) {
#if CASE == 0
  ab::attention(q, k, q, out);  // constant and mutable views mix
#elif CASE == 1
  ab::attention(q, k, q, q);
#elif CASE == 2
  ab::attention(q, d, d, out);
#elif CASE == 3
  ab::attention(i, i, i, i);
#elif CASE == 4
  ab::attention_evidence(q, d, ab::observe(e));
#endif
  (void)q, (void)k, (void)out, (void)d, (void)i, (void)e;
}
