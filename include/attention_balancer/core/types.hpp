#pragma once
#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>

namespace attention_balancer {

/// Signed index and size type of the whole library.
using Index = std::ptrdiff_t;

/// The scalars that kernels and policies are instantiated for.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double>;

namespace detail {

/// A temporary that owns its elements, such as a vector or an array: nothing may be borrowed from it.
template <class R>
concept OwningTemporary = !std::is_lvalue_reference_v<R> &&
                          !std::ranges::enable_borrowed_range<std::remove_cvref_t<R>> && requires(R& r) {
                            r.data();
                            r.size();
                          };

}  // namespace detail
}  // namespace attention_balancer
