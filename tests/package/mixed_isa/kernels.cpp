// Compiled once per instruction set.
#include "kernels.hpp"

#include <algorithm>
#include <attention_balancer/attention.hpp>
#include <string>

const char* refuse();

namespace {

const char* isa() { return ab::simd::isa; }

template <class T>
void attend(const std::vector<T>& x, ab::Index length, ab::Index dim, std::vector<T>& out,
            ab::Evidence<T>& evidence) {
  // What the standard library makes of these has one name for every instruction set.
  std::vector<T> copy(x);
  std::sort(copy.begin(), copy.end());
  if (std::to_string(copy.size()).empty()) return;
  const auto tokens = ab::bhsd(x.data(), 1, 1, length, dim);
  ab::attention(tokens, tokens, tokens, ab::bhsd(out.data(), 1, 1, length, dim), ab::mask::Causal{},
                ab::score::Softcap{30}, ab::observe(evidence));
}

}  // namespace

ATTENTION_BALANCER_DEFINE_KERNELS(kernels, Kernels) = {isa, attend<float>, attend<double>, refuse};
