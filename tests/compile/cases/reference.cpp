// What the reference does not take.
// case 1: attention_balancer: PackedQueries needs a cache, which the reference does not take
#include <vector>

#include "attention_balancer/reference.hpp"

namespace ab = attention_balancer;

void f(ab::TensorView<const double> q, ab::TensorView<double> out, std::vector<ab::Index>& offsets) {
#if CASE == 0
  ab::reference::attention(q, q, q, out, ab::PackedSequences(offsets, offsets));
#elif CASE == 1
  ab::reference::attention(q, q, q, out, ab::PackedQueries(offsets));
#endif
  (void)q, (void)out, (void)offsets;
}
