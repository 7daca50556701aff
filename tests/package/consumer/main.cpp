// From raw pointers to integers that add up.
#include <attention_balancer/attention_balancer.hpp>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

namespace ab = attention_balancer;

double shares_of_other(const std::vector<float>& x, ab::Index length, ab::Index dim);

int main() {
  const ab::Index length = 10, dim = 8;
  std::vector<float> x(static_cast<std::size_t>(length * dim)), out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));

  const auto tokens = ab::bhsd(x.data(), 1, 1, length, dim);
  ab::Evidence<float> evidence;
  ab::attention(tokens, tokens, tokens, ab::bhsd(out.data(), 1, 1, length, dim), ab::observe(evidence));
  ab::ResourceBalancer<float> balancer(length);
  const auto shares = balancer.update(ab::saliency::mass(evidence));
  const auto units = balancer.units(1000);

  const auto sum = std::accumulate(shares.begin(), shares.end(), 0.f);
  const auto total = std::accumulate(units.begin(), units.end(), ab::Index(0));
  const double other = shares_of_other(x, length, dim);
  std::printf("shares %g, units %td, in double %g\n", static_cast<double>(sum), total, other);
  return std::abs(sum - 1) < 1e-5f && total == 1000 && std::abs(other - 1) < 1e-12 ? 0 : 1;
}
