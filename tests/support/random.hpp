#pragma once
// Numbers that are the same on every machine and in every run.

#include <array>
#include <cmath>
#include <cstdint>

#include "attention_balancer/core/types.hpp"

namespace support {

using attention_balancer::Index;

/// splitmix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept : state_(seed * 0x9E3779B97F4A7C15u + 0x1234567u) {}

  std::uint64_t bits() noexcept {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  /// In (0, 1).
  double unit() noexcept { return (static_cast<double>(bits() >> 12) + 0.5) * 0x1p-52; }
  double uniform(double low, double high) noexcept { return low + (high - low) * unit(); }
  double normal() noexcept {
    const double radius = std::sqrt(-2 * std::log(unit()));
    return radius * std::cos(6.283185307179586 * unit());
  }
  Index below(Index n) noexcept { return static_cast<Index>(bits() % static_cast<std::uint64_t>(n)); }
  bool chance(double p) noexcept { return unit() < p; }

 private:
  std::uint64_t state_;
};

/// What the elements of a tensor are drawn from.
enum class Family { uniform, log_normal, cauchy };
inline constexpr std::array families{Family::uniform, Family::log_normal, Family::cauchy};

inline const char* name_of(Family family) noexcept {
  switch (family) {
    case Family::uniform: return "uniform";
    case Family::log_normal: return "log-normal";
    case Family::cauchy: return "Cauchy";
  }
  return "?";
}

inline double draw(Random& random, Family family) noexcept {
  switch (family) {
    case Family::uniform: return random.uniform(-1, 1);
    case Family::log_normal: return std::exp(random.normal()) * (random.chance(0.5) ? 1 : -1);
    case Family::cauchy: return std::tan(3.141592653589793 * (random.unit() - 0.5));
  }
  return 0;
}

}  // namespace support
