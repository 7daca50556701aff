#pragma once
#include <concepts>
#include <cstddef>
#include <type_traits>

#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// A four-axis strided view [batch, heads, length, dim] that owns nothing: element (b, h, i, c) is
/// data[b * batch_stride + h * head_stride + i * length_stride + c * dim_stride]. Strides count elements and may be
/// anything, also 0 (broadcast) or negative, for a tensor that is read. A unit dim_stride is the fast path.
template <class T>
struct TensorView {
  using value_type = std::remove_cv_t<T>;

  T* data = nullptr;
  Index batch = 0, heads = 0, length = 0, dim = 0;
  Index batch_stride = 0, head_stride = 0, length_stride = 0, dim_stride = 1;

  T& operator()(Index b, Index h, Index i, Index c) const noexcept {
    return data[b * batch_stride + h * head_stride + i * length_stride + c * dim_stride];
  }

  /// Number of elements.
  Index size() const noexcept { return batch * heads * length * dim; }

  /// A view of mutable elements is also a view of constant ones.
  operator TensorView<const T>() const noexcept
    requires(!std::is_const_v<T>)
  {
    return {data, batch, heads, length, dim, batch_stride, head_stride, length_stride, dim_stride};
  }
};

namespace detail {

/// A product that wraps where it overflows: no error in a maker of views, and refused by the call that takes the view.
template <std::same_as<Index>... N>
constexpr Index wrapping_product(N... factors) noexcept {
  return static_cast<Index>((std::size_t(1) * ... * static_cast<std::size_t>(factors)));
}

}  // namespace detail

/// View of contiguous memory laid out [batch, heads, length, dim]. Borrows `data`.
template <class T>
constexpr TensorView<T> bhsd(T* data, Index batch, Index heads, Index length, Index dim) noexcept {
  return {data, batch, heads, length, dim, detail::wrapping_product(heads, length, dim),
          detail::wrapping_product(length, dim), dim, 1};
}

/// View of contiguous memory laid out [batch, length, heads, dim], as a projection of token rows leaves it.
/// The arguments follow the memory. Borrows `data`.
template <class T>
constexpr TensorView<T> bshd(T* data, Index batch, Index length, Index heads, Index dim) noexcept {
  return {data, batch, heads, length, dim, detail::wrapping_product(length, heads, dim), dim,
          detail::wrapping_product(heads, dim), 1};
}

}  // namespace attention_balancer
