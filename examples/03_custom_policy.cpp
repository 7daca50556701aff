// Three policies of one's own: a score modifier, a mask and an allocation. Each is a plain function object; the
// kernel runs them on scalars and on SIMD packs alike, and no base class is involved.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <span>
#include <vector>

#include "attention_balancer/attention_balancer.hpp"

namespace ab = attention_balancer;

/// A score modifier: what is near counts more, a Gaussian of the distance between query and key. S is float, double
/// or a pack of them, and so are the positions. Measured from the query's position among the keys it means the same in
/// decoding, where the last query comes alone.
struct Nearby {
  float width;

  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    const S steps = (site.query_position() - site.key()) * S(1 / width);
    return score - S(0.5f) * steps * steps;
  }
};

/// A mask: nobody attends to himself. `classify` looks at a whole block first; only a block that the diagonal
/// crosses is then asked element by element.
struct Others {
  ab::mask::Coverage classify(const ab::Rect& block) const {
    const ab::Index offset = block.query_offset();
    const bool crossed = block.query_begin + offset < block.key_end && block.key_begin < block.query_end + offset;
    return crossed ? ab::mask::Coverage::partial : ab::mask::Coverage::full;
  }
  template <class S>
  auto visible(const ab::Site<S>& site) const {
    return site.query_position() != site.key();
  }
};

/// An allocation: shares in proportion to the square root, a compromise between equal and proportional.
struct SquareRoot {
  void operator()(std::span<const float> saliency, std::span<float> shares) const {
    std::vector<float> roots;
    for (const float weight : saliency) roots.push_back(std::sqrt(weight));
    ab::allocate::Proportional{}(roots, shares);
  }
};

int main() try {
  constexpr ab::Index inputs = 12, features = 8;
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<float> data(inputs * features), out(data.size());
  for (float& x : data) x = normal(generator);

  const auto x = ab::bhsd(data.data(), 1, 1, inputs, features);
  ab::Evidence<float> evidence;
  ab::attention(x, x, x, ab::bhsd(out.data(), 1, 1, inputs, features), Nearby{3.f}, Others{},
                ab::observe(evidence));

  std::vector<float> alone(features);
  auto last = x;
  last.length = 1;
  last.data += (inputs - 1) * features;
  ab::attention(last, x, x, ab::bhsd(alone.data(), 1, 1, 1, features), Nearby{3.f}, Others{});
  float difference = 0;
  for (std::size_t c = 0; c < alone.size(); ++c)
    difference = std::max(difference, std::abs(alone[c] - out[(inputs - 1) * features + c]));

  const auto mass = ab::saliency::mass(evidence);
  const ab::feedback::Leaky at_once{1.f};  // no memory: the first cycle goes all the way
  ab::ResourceBalancer proportional(inputs, ab::allocate::Proportional{}, at_once);
  ab::ResourceBalancer square_root(inputs, SquareRoot{}, at_once);
  proportional.update(mass);
  square_root.update(mass);
  const auto units = proportional.units(1000), softer = square_root.units(1000);
  std::printf("input  attention  of 1000: proportional  square root\n");
  for (std::size_t i = 0; i < mass.size(); ++i)
    std::printf("%5zu %10.3f %22td %12td\n", i, static_cast<double>(mass[i]), units[i], softer[i]);
  std::printf("the last input as the only query: differs by at most %.1e\n", static_cast<double>(difference));
  return difference < 1e-5f ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "custom_policy: %s\n", error.what());
  return 1;
}
