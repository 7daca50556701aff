#pragma once
// Matrices as tensors, without including a matrix library: anything with data(), rows(), cols(), rowStride() and
// colStride() fits, as Eigen's Matrix, Array, Map, Ref and Block do.

#include <string>
#include <type_traits>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {

/// A matrix whose elements lie in memory at fixed row and column strides.
template <class M>
concept StridedMatrix = requires(M& m) {
  *m.data();
  static_cast<Index>(m.rows());
  static_cast<Index>(m.cols());
  static_cast<Index>(m.rowStride());
  static_cast<Index>(m.colStride());
};

namespace detail {

// Eigen names the owning type of each expression PlainObject; a Map or Block is not its own PlainObject.
template <class M>
inline constexpr bool owns_its_elements = !std::is_trivially_copyable_v<M>;
template <class M>
  requires requires { typename M::PlainObject; }
inline constexpr bool owns_its_elements<M> = std::is_same_v<M, typename M::PlainObject>;

template <class M>
inline constexpr bool is_owning_temporary =
    !std::is_lvalue_reference_v<M> && owns_its_elements<std::remove_cvref_t<M>>;

inline Index features_per_head(const char* maker, Index features, Index heads) {
  if (heads < 1) fail<ShapeError>(std::string(maker) + ": heads", heads, "be at least 1");
  if (features % heads != 0)
    fail<ShapeError>(std::string(maker) + ": number of features", features,
                     "be a multiple of heads = " + std::to_string(heads));
  return features / heads;
}

}  // namespace detail

/// A matrix [tokens, heads * dim] as a view [1, heads, tokens, dim]; either storage order, Map and Block included.
/// Borrows the matrix: an owning temporary does not compile. Throws ShapeError if heads does not divide the columns.
template <class M>
  requires StridedMatrix<std::remove_reference_t<M>>
auto tokens_in_rows(M&& m, Index heads = 1) {
  static_assert(!detail::is_owning_temporary<M>,
                "attention_balancer: tokens_in_rows borrows the matrix, so it cannot take an owning temporary");
  const Index dim = detail::features_per_head("tokens_in_rows", m.cols(), heads);
  const Index row = m.rowStride(), column = m.colStride(), tokens = m.rows();
  return TensorView<std::remove_pointer_t<decltype(m.data())>>{
      m.data(), 1, heads, tokens, dim, tokens * row, dim * column, row, column};
}

/// A matrix [heads * dim, tokens] as a view [1, heads, tokens, dim]; otherwise as tokens_in_rows.
template <class M>
  requires StridedMatrix<std::remove_reference_t<M>>
auto tokens_in_columns(M&& m, Index heads = 1) {
  static_assert(!detail::is_owning_temporary<M>,
                "attention_balancer: tokens_in_columns borrows the matrix, so it cannot take an owning temporary");
  const Index dim = detail::features_per_head("tokens_in_columns", m.rows(), heads);
  const Index row = m.rowStride(), column = m.colStride(), tokens = m.cols();
  return TensorView<std::remove_pointer_t<decltype(m.data())>>{
      m.data(), 1, heads, tokens, dim, tokens * column, dim * row, column, row};
}

}  // namespace attention_balancer
