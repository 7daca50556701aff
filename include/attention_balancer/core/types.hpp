#pragma once
#include <concepts>
#include <cstddef>

namespace attention_balancer {

/// Signed index and size type of the whole library.
using Index = std::ptrdiff_t;

/// The scalars that kernels and policies are instantiated for.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double>;

}  // namespace attention_balancer
