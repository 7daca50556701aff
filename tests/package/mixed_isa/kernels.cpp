// Compiled once per instruction set; ISA names the functions.
#include <attention_balancer/attention.hpp>
#include <vector>

#define JOIN_DETAIL(a, b) a##b
#define JOIN(a, b) JOIN_DETAIL(a, b)

namespace ab = attention_balancer;

namespace {

template <class T>
void attend(const std::vector<T>& x, ab::Index length, ab::Index dim, std::vector<T>& out, ab::Evidence<T>& evidence) {
  const auto tokens = ab::bhsd(x.data(), 1, 1, length, dim);
  ab::attention(tokens, tokens, tokens, ab::bhsd(out.data(), 1, 1, length, dim), ab::mask::Causal{},
                ab::score::Softcap{30}, ab::observe(evidence));
}

}  // namespace

void JOIN(attend_float_, ISA)(const std::vector<float>& x, ab::Index length, ab::Index dim, std::vector<float>& out,
                              ab::Evidence<float>& evidence) {
  attend(x, length, dim, out, evidence);
}

void JOIN(attend_double_, ISA)(const std::vector<double>& x, ab::Index length, ab::Index dim, std::vector<double>& out,
                               ab::Evidence<double>& evidence) {
  attend(x, length, dim, out, evidence);
}
