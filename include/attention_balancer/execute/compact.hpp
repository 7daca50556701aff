#pragma once
// Moving the kept tokens to the front, in place, in whatever holds them, and rows back to their places.

#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {

namespace execute {

/// Raw memory with one token per row: `tokens` rows of `width` numbers, `stride` apart (default: width, no gaps).
/// One more maker of a TensorView, with batch = heads = 1. Borrows `data`.
template <class T>
constexpr TensorView<T> rows(T* data, Index tokens, Index width, Index stride = -1) noexcept {
  const Index step = stride < 0 ? width : stride;
  return {data, 1, 1, tokens, width, attention_balancer::detail::wrapping_product(tokens, step), step, step, 1};
}

}  // namespace execute

namespace detail {

template <class>
inline constexpr bool is_view = false;
template <class T>
inline constexpr bool is_view<TensorView<T>> = true;

template <class>
inline constexpr bool is_span = false;
template <class T, std::size_t N>
inline constexpr bool is_span<std::span<T, N>> = true;

template <class>
inline constexpr bool is_mutable_view = false;
template <class T>
inline constexpr bool is_mutable_view<TensorView<T>> = !std::is_const_v<T>;

template <class>
inline constexpr bool is_mutable_span = false;
template <class T, std::size_t N>
inline constexpr bool is_mutable_span<std::span<T, N>> = !std::is_const_v<T>;

/// A matrix with tokens in rows, Eigen's or another: recognised by what it can do, not by its name.
template <class M>
concept RowMatrix = requires(std::remove_cvref_t<M>& m, Index i) {
  { m.rows() } -> std::convertible_to<Index>;
  { m.cols() } -> std::convertible_to<Index>;
  m(i, i) = m(i, i);
};

/// A matrix that owns its rows and can give some back; Eigen's with a fixed number of rows cannot.
template <class M>
concept ShrinkingMatrix = RowMatrix<M> && requires(std::remove_cvref_t<M>& m, Index i) {
  m.conservativeResize(i, i);
} &&(!requires { std::remove_cvref_t<M>::RowsAtCompileTime; } || std::remove_cvref_t<M>::RowsAtCompileTime == -1);

/// One element per token in a container that owns them: std::vector, std::deque, std::string.
template <class V>
concept TokenSequence = !RowMatrix<V> && requires(std::remove_cvref_t<V> & v, std::size_t i) {
  { v.size() } -> std::convertible_to<std::size_t>;
  v[i] = std::move(v[i]);
  v.erase(v.begin(), v.end());
};

/// An argument that the caller still sees after the call, and may see shortened.
template <class State>
inline constexpr bool is_lasting =
    std::is_lvalue_reference_v<State&&> && !std::is_const_v<std::remove_reference_t<State>>;

/// What can be compacted. Owning temporaries cannot: the result would be lost.
template <class State, class Plain = std::remove_cvref_t<State>>
concept Compactable = is_mutable_view<Plain> || is_mutable_span<Plain> ||
                      (TokenSequence<State>&& is_lasting<State>) ||
                      (RowMatrix<State> && !ShrinkingMatrix<State> &&
                       !std::is_const_v<std::remove_reference_t<State>>) ||
                      (ShrinkingMatrix<State> && is_lasting<State>);

/// What rows can be read from: the same, and constant.
template <class State, class Plain = std::remove_cvref_t<State>>
concept Readable = is_view<Plain> || is_span<Plain> || TokenSequence<State> || RowMatrix<State>;

/// Whether rows of one can be assigned to rows of the other: both views, both matrices, or an element per token both.
template <class From, class To, class F = std::remove_cvref_t<From>, class T = std::remove_cvref_t<To>>
inline constexpr bool are_alike = is_view<F> == is_view<T> && RowMatrix<F> == RowMatrix<T>;

/// What can be expanded into what.
template <class From, class To>
inline constexpr bool is_expandable = Readable<const From&> && Compactable<To> && are_alike<From, To>;

/// Number of tokens in `state`; throws ShapeError if it is memory that rows cannot be moved in.
template <class State>
Index tokens_in(const State& state) {
  if constexpr (is_view<State>) {
    if (state.batch == 0 || state.heads == 0 || state.length == 0 || state.dim == 0) return state.length;
    if (!state.data) fail<ShapeError>("data of a view of tokens", "null", "point at its elements");
    if constexpr (!is_mutable_view<State>) return state.length;  // what is read may be broadcast
    if ((state.batch > 1 && state.batch_stride == 0) || (state.heads > 1 && state.head_stride == 0) ||
        (state.length > 1 && state.length_stride == 0) || (state.dim > 1 && state.dim_stride == 0))
      fail<ShapeError>("stride of a view of tokens", Index(0), "not be 0 where the size is above 1");
    return state.length;
  } else if constexpr (RowMatrix<State>) {
    return static_cast<Index>(state.rows());
  } else {
    return static_cast<Index>(state.size());
  }
}

/// Where the elements lie; null if unknown or none.
template <class State>
const void* memory_of(const State& state) {
  if constexpr (is_view<State>)
    return state.data;
  else if constexpr (requires { static_cast<const void*>(state.data()); })
    return state.data();
  else
    return &state;
}

/// Moves row kept[k] to row k for every k, ascending: no row is overwritten before it has been moved.
template <class State>
void move_rows(State& state, std::span<const Index> kept) {
  const Index size = static_cast<Index>(kept.size());
  const auto from = [&](Index k) { return kept[static_cast<std::size_t>(k)]; };
  if constexpr (is_mutable_view<std::remove_const_t<State>>) {
    for (Index b = 0; b < state.batch; ++b)
      for (Index h = 0; h < state.heads; ++h)
        for (Index k = 0; k < size; ++k)
          if (from(k) != k)
            for (Index c = 0; c < state.dim; ++c) state(b, h, k, c) = state(b, h, from(k), c);
  } else if constexpr (RowMatrix<State>) {
    // Along the memory: rows inside in column-major order, columns inside in row-major order.
    bool row_major = false;
    if constexpr (requires { bool(State::IsRowMajor); }) row_major = bool(State::IsRowMajor);
    if (row_major) {
      for (Index k = 0; k < size; ++k)
        if (from(k) != k)
          for (Index c = 0; c < state.cols(); ++c) state(k, c) = state(from(k), c);
    } else {
      for (Index c = 0; c < state.cols(); ++c)
        for (Index k = 0; k < size; ++k)
          if (from(k) != k) state(k, c) = state(from(k), c);
    }
  } else {
    for (Index k = 0; k < size; ++k)
      if (from(k) != k) state[static_cast<std::size_t>(k)] = std::move(state[static_cast<std::size_t>(from(k))]);
  }
}

/// Throws ShapeError unless the rows of one have the sizes of the other's.
template <class From, class To>
void check_rows(const From& from, const To& to) {
  auto check = [](const char* what, Index was, Index expected) {
    if (was != expected)
      fail<ShapeError>(std::string(what) + " of what is expanded", was,
                       "be " + std::to_string(expected) + " as of what it is expanded into");
  };
  if constexpr (is_view<From>) {
    check("batch", from.batch, to.batch);
    check("heads", from.heads, to.heads);
    check("dim", from.dim, to.dim);
  } else if constexpr (RowMatrix<From>) {
    check("number of columns", static_cast<Index>(from.cols()), static_cast<Index>(to.cols()));
  }
}

/// Row place(k) of `to` = row source(k) of `from` for all k below `count`.
template <class From, class To, class Place, class Source>
void copy_rows(const From& from, To& to, Index count, Place place, Source source) {
  if constexpr (is_view<From>) {
    for (Index b = 0; b < to.batch; ++b)
      for (Index h = 0; h < to.heads; ++h)
        for (Index k = 0; k < count; ++k)
          for (Index c = 0; c < to.dim; ++c) to(b, h, place(k), c) = from(b, h, source(k), c);
  } else if constexpr (RowMatrix<From>) {
    for (Index k = 0; k < count; ++k)
      for (Index c = 0; c < to.cols(); ++c) to(place(k), c) = from(source(k), c);
  } else {
    for (Index k = 0; k < count; ++k)
      to[static_cast<std::size_t>(place(k))] = from[static_cast<std::size_t>(source(k))];
  }
}

/// Shortens what knows its length to the first `size` tokens.
template <class State>
void shorten(State& state, Index size) {
  if constexpr (is_mutable_view<State>)
    state.length = size;
  else if constexpr (requires { state = state.first(std::size_t(0)); })  // a span, unless its size is fixed
    state = state.first(static_cast<std::size_t>(size));
  else if constexpr (ShrinkingMatrix<State>)
    state.conservativeResize(size, state.cols());
  else if constexpr (TokenSequence<State>)
    state.erase(state.begin() + size, state.end());
}

}  // namespace detail
}  // namespace attention_balancer
