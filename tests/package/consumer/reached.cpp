// That the library and what it needs are found is all that is asked of the second and third way of getting it.
#include <attention_balancer/attention_balancer.hpp>

namespace ab = attention_balancer;

int main() {
  ab::ResourceBalancer<float> balancer(4);
  return balancer.units(8)[3] == 2 && ab::simd::lanes<float> > 0 ? 0 : 1;
}
