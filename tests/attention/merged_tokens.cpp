// A merged token weighs as many as it stands for: with log(size) as a key bias attention over merged tokens is
// attention over all of them, where what was merged was equal.

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "attention_balancer/execute/merge_tokens.hpp"
#include "support/catch.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace ab = attention_balancer;
using ab::Index;

TEST_CASE("attention over merged tokens with the log of their size", "[attention]") {
  constexpr Index n = 24, dim = 8, queries = 5;
  support::Random random(3);
  std::vector<float> q(queries * dim), k(n * dim), v(n * dim);
  for (auto* x : {&q, &k, &v})
    for (float& e : *x) e = static_cast<float>(random.uniform(-1, 1));
  // Ten of the even tokens are copies of an odd one: these pairs have cosine 1.
  for (Index pair = 0; pair < 10; ++pair)
    for (Index c = 0; c < dim; ++c) {
      const Index from = 2 * pair, to = 2 * ((7 * pair) % 5) + 1;
      k[static_cast<std::size_t>(from * dim + c)] = k[static_cast<std::size_t>(to * dim + c)];
      v[static_cast<std::size_t>(from * dim + c)] = v[static_cast<std::size_t>(to * dim + c)];
    }
  std::vector<float> whole(queries * dim), merged(queries * dim), unbiased(queries * dim);
  const auto view = [](std::vector<float>& x, Index rows) { return ab::bhsd(x.data(), 1, 1, rows, dim); };
  ab::attention(view(q, queries), view(k, n), view(v, n), view(whole, queries));

  const auto plan = ab::execute::merge(view(k, n), 10);
  auto keys = view(k, n), values = view(v, n);
  plan.apply(keys, values);
  CHECK(keys.length == n - 10);
  const auto bias = plan.log_sizes<float>();
  ab::attention(view(q, queries), keys, values, view(merged, queries), ab::score::KeyBias{bias});
  ab::attention(view(q, queries), keys, values, view(unbiased, queries));
  double worst = 0, without = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(merged[i]) - static_cast<double>(whole[i])));
    without = std::max(without, std::abs(static_cast<double>(unbiased[i]) - static_cast<double>(whole[i])));
  }
  CHECK(worst < 1e-6);
  CHECK(without > 1e-2);
}
