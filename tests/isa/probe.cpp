// Computes a little attention in both scalars, checks it, and prints the instruction set that did it.
#include <cmath>
#include <cstdio>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "attention_balancer/simd/pack.hpp"
#include "support/cpu.hpp"

namespace ab = attention_balancer;

namespace {

// The keys are all alike, so that each query attends to all of them equally and the output is the mean of the values.
template <class T>
bool averages_equal_keys() {
  const ab::Index queries = 37, keys = 29, dim = 19;
  const std::vector<T> q(static_cast<std::size_t>(queries * dim), T(0.25)),
      k(static_cast<std::size_t>(keys * dim), T(1));
  std::vector<T> v(static_cast<std::size_t>(keys * dim)), out(q.size());
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<T>(i / static_cast<std::size_t>(dim));
  ab::Evidence<T> evidence;
  ab::attention(ab::bhsd(q.data(), 1, 1, queries, dim), ab::bhsd(k.data(), 1, 1, keys, dim),
                ab::bhsd(v.data(), 1, 1, keys, dim), ab::bhsd(out.data(), 1, 1, queries, dim), ab::observe(evidence));
  bool right = true;
  for (const T x : out) right = right && std::abs(x - T(keys - 1) / 2) < T(1e-4);
  for (const T m : evidence.mass(0, 0)) right = right && std::abs(m - T(queries) / T(keys)) < T(1e-4);
  return right;
}

}  // namespace

int main() {
  if (const char* missing = support::missing_isa()) {
    std::printf("skipped: this machine has no %s\n", missing);
    return 77;
  }
  if (!averages_equal_keys<float>() || !averages_equal_keys<double>()) {
    std::printf("%s: wrong result\n", ab::simd::isa);
    return 1;
  }
  std::printf("%s ran: %d lanes of float, %d of double\n", ab::simd::isa, ab::simd::lanes<float>,
              ab::simd::lanes<double>);
}
