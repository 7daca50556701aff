// Weights as pairs of bf16, where the machine has products of them.

#include "attention_balancer/simd/bf16.hpp"

#include <cmath>

#include "attention_balancer/core/storage.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

#if defined(ATTENTION_BALANCER_BF16_PRODUCTS)

namespace {

namespace ab = attention_balancer;
namespace simd = ab::simd;
using S = simd::Pack<float>;

float first(const S& x) {
  alignas(64) float lane[simd::lanes<float>];
  simd::store_aligned(lane, x);
  for (const float y : lane)
    if (!(y == lane[0]) && !(std::isnan(y) && std::isnan(lane[0]))) return -12345;  // lanes differ
  return lane[0];
}

}  // namespace

TEST_CASE("weights become pairs of bf16", "[simd][bf16]") {
  support::Random random(113);
  auto halves = [](float a, float b) {
    const auto pair = __builtin_bit_cast(std::uint32_t, first(simd::to_pairs_of_weights(S(a), S(b))));
    return std::pair{__builtin_bit_cast(float, pair << 16), __builtin_bit_cast(float, pair & 0xffff0000u)};
  };
  for (int n = 0; n < 20000; ++n) {
    const float a = static_cast<float>(std::exp2(-120 * random.unit())), b = static_cast<float>(random.unit());
    const auto [x, y] = halves(a, b);
    INFO(a << " and " << b);
    REQUIRE(std::fabs(x - a) <= 0x1p-8f * a);
    REQUIRE(std::fabs(y - b) <= 0x1p-8f * b);
  }
  CHECK(halves(0.0f, 1.0f) == std::pair{0.0f, 1.0f});
  CHECK(halves(1.0f, 0.0f) == std::pair{1.0f, 0.0f});
  CHECK(halves(1 + 0x1p-8f, 1 + 3 * 0x1p-8f) == std::pair{1 + 0x1p-7f, 1 + 0x1p-6f});  // ties
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(halves(nan, 1.0f).first));
  CHECK(std::isnan(halves(1.0f, -nan).second));
}

#endif
