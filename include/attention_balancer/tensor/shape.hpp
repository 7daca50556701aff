#pragma once
// Shape checks: everything that can be wrong with the tensors of a call is found here, before anything is written.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {

/// The sizes of one attention call: q [B, Hq, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv], out [B, Hq, Nq, Dv].
struct Problem {
  Index batch, heads, kv_heads, queries, keys, dim, value_dim;
};

namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// A view without its element type, so that the checks are compiled once.
struct Layout {
  const char* name;
  std::uintptr_t address;
  Index element_size;
  Index sizes[4];
  Index strides[4];
};

template <class T>
Layout layout(const char* name, const TensorView<T>& x) {
  return {name,
          reinterpret_cast<std::uintptr_t>(x.data),
          static_cast<Index>(sizeof(T)),
          {x.batch, x.heads, x.length, x.dim},
          {x.batch_stride, x.head_stride, x.length_stride, x.dim_stride}};
}

/// A span as a view [1, 1, 1, n].
template <class T>
Layout layout(const char* name, std::span<T> x) {
  return layout(name, bhsd(x.data(), 1, 1, 1, static_cast<Index>(x.size())));
}

/// What one batch item and one head have of a view in which an axis of size 1 serves all: elements [length, dim].
template <class T>
struct Plane {
  T* data;
  Index row, column;  ///< strides; 0 along an axis of size 1

  T& operator()(Index i, Index j) const noexcept { return data[i * row + j * column]; }
};
template <class T>
Plane<T> broadcast_plane(const TensorView<T>& x, Index batch, Index head) noexcept {
  return {x.data + (x.batch == 1 ? 0 : batch) * x.batch_stride + (x.heads == 1 ? 0 : head) * x.head_stride,
          x.length == 1 ? 0 : x.length_stride, x.dim == 1 ? 0 : x.dim_stride};
}

inline bool multiply_overflows(Index a, Index b) {
  constexpr Index most = std::numeric_limits<Index>::max();
  return a != 0 && b != 0 && a > most / b;
}

/// Offsets of the first and one past the last byte of a view, relative to its address.
struct Extent {
  Index low, high;
};

inline constexpr const char* axes[] = {".batch", ".heads", ".length", ".dim"};

/// Checks sizes, null data and address arithmetic. Throws ShapeError.
template <class = void>
Extent check_layout(const Layout& x) {
  constexpr Index most = std::numeric_limits<Index>::max() / 4;
  Index elements = 1;
  Extent extent{0, x.element_size};
  for (int a = 0; a < 4; ++a) {
    if (x.sizes[a] < 0) fail<ShapeError>(std::string(x.name) + axes[a], x.sizes[a], "not be negative");
    if (multiply_overflows(elements, x.sizes[a]))
      fail<ShapeError>(std::string(x.name) + axes[a], x.sizes[a], "not make the number of elements overflow");
    elements *= x.sizes[a];
    if (x.strides[a] < -most)  // its negative may not exist
      fail<ShapeError>(std::string(x.name) + axes[a] + " stride", x.strides[a], "not make the address overflow");
    const Index steps = x.sizes[a] > 0 ? x.sizes[a] - 1 : 0;
    const Index stride = x.strides[a] < 0 ? -x.strides[a] : x.strides[a];
    if (multiply_overflows(steps, stride) || steps * stride > most / x.element_size)
      fail<ShapeError>(std::string(x.name) + axes[a] + " stride", x.strides[a], "not make the address overflow");
    (x.strides[a] < 0 ? extent.low : extent.high) += (x.strides[a] < 0 ? -1 : 1) * steps * stride * x.element_size;
    if (extent.high > most || extent.low < -most)
      fail<ShapeError>(std::string(x.name) + axes[a] + " stride", x.strides[a], "not make the address overflow");
  }
  if (elements == 0) return {0, 0};
  if (x.address == 0) fail<ShapeError>(std::string(x.name) + ".data", "null", "point to its elements");
  return extent;
}

/// Whether two checked views can share a byte. Views interleaved in one buffer, as q, k, v and out can be in rows of
/// one projection, are told apart: with the axes of small strides as a run of bytes, and the others as repetitions of
/// it at multiples of one step, two views are apart if their runs are apart within the step.
template <class = void>
bool may_overlap(const Layout& a, Extent ea, const Layout& b, Extent eb) {
  if (ea.low == ea.high || eb.low == eb.high) return false;
  // Relative to the address of a, in unsigned arithmetic that wraps as addresses do.
  const auto between = static_cast<Index>(b.address - a.address);
  if (between + eb.low >= ea.high || ea.low >= between + eb.high) return false;

  const Layout* views[] = {&a, &b};
  for (const Layout* by : views)
    for (int split = -1; split < 4; ++split) {  // each stride in turn as the longest within a run
      if (split >= 0 && by->sizes[split] <= 1) continue;
      const Index longest = split < 0 ? 0 : std::abs(by->strides[split]) * by->element_size;
      Index step = 0;
      Extent run[2];
      for (int i = 0; i < 2; ++i) {
        const Layout& x = *views[i];
        run[i] = {0, x.element_size};
        for (int axis = 0; axis < 4; ++axis) {
          if (x.sizes[axis] <= 1) continue;
          const Index bytes = x.strides[axis] * x.element_size;
          if (std::abs(bytes) > longest)
            step = std::gcd(step, std::abs(bytes));
          else
            (bytes < 0 ? run[i].low : run[i].high) += bytes * (x.sizes[axis] - 1);
        }
      }
      if (step == 0) continue;
      const Index gap = between + run[1].low - run[0].low, offset = ((gap % step) + step) % step;
      if (offset >= run[0].high - run[0].low && offset + (run[1].high - run[1].low) <= step) return false;
    }
  return true;
}

/// An output must not write an element twice: its axes, from the smallest stride up, must each step over the last.
template <class = void>
void check_no_self_overlap(const Layout& x) {
  if (std::ranges::count(x.sizes, 0) > 0) return;  // no elements; strides of contiguous memory are 0 then
  int order[4] = {0, 1, 2, 3};
  auto stride = [&](int axis) { return std::abs(x.strides[axis]); };
  for (int end = 4; end > 1; --end)
    for (int i = 1; i < end; ++i)
      if (stride(order[i]) < stride(order[i - 1])) std::swap(order[i], order[i - 1]);
  Index covered = 1;
  for (const int axis : order) {
    if (x.sizes[axis] <= 1) continue;
    if (stride(axis) < covered)
      fail<ShapeError>(std::string(x.name) + " stride", x.strides[axis], "not let its elements overlap");
    covered += (x.sizes[axis] - 1) * stride(axis);
  }
}

template <class = void>
void require_equal(const char* what, Index was, const char* other, Index expected) {
  if (was != expected)
    fail<ShapeError>(what, was, std::string("equal ") + other + " = " + std::to_string(expected));
}

/// The same of an axis of two views. The names are made only of what is wrong: a string may allocate.
template <class = void>
void require_same(const Layout& x, const Layout& other, int axis) {
  if (x.sizes[axis] != other.sizes[axis])
    require_equal((std::string(x.name) + axes[axis]).c_str(), x.sizes[axis],
                  (std::string(other.name) + axes[axis]).c_str(), other.sizes[axis]);
}

template <class = void>
void require_at_least_one(const char* what, Index was) {
  if (was < 1) fail<ShapeError>(what, was, "be at least 1");
}

/// count * length numbers must leave room to count bytes, blocks and workers.
template <class = void>
void require_addressable(const char* what, Index count, Index length) {
  constexpr Index most = std::numeric_limits<Index>::max() >> 20;
  if (count > most || multiply_overflows(count, length) || count * length > most)
    fail<ShapeError>(what, length, "not make the scratch memory overflow");
}

/// Sizes of q and k that belong together. Throws ShapeError.
template <class = void>
Problem check_queries_and_keys(const Layout& q, const Layout& k) {
  check_layout(q);
  check_layout(k);
  require_at_least_one("q.heads", q.sizes[1]);
  require_at_least_one("q.dim", q.sizes[3]);
  require_same(k, q, 0);
  require_at_least_one("k.heads", k.sizes[1]);
  if (q.sizes[1] % k.sizes[1] != 0)
    fail<ShapeError>("q.heads", q.sizes[1],
                     std::string("be a multiple of ") + k.name + ".heads = " + std::to_string(k.sizes[1]));
  require_same(k, q, 3);
  // Broadcast views can claim any size; scratch memory and evidence must be able to count its bytes.
  require_addressable("q.dim", 1, q.sizes[3]);
  require_addressable("q.length", q.sizes[0] * q.sizes[1], q.sizes[2]);
  require_addressable("k.length", q.sizes[0] * q.sizes[1], k.sizes[2]);
  return {q.sizes[0], q.sizes[1], k.sizes[1], q.sizes[2], k.sizes[2], q.sizes[3], 0};
}

/// Adds v to a checked problem. Throws ShapeError.
template <class = void>
Extent check_values(Problem& problem, const Layout& v) {
  const Extent extent = check_layout(v);
  require_equal("v.batch", v.sizes[0], "q.batch", problem.batch);
  require_equal("v.heads", v.sizes[1], "k.heads", problem.kv_heads);
  require_equal("v.length", v.sizes[2], "k.length", problem.keys);
  require_at_least_one("v.dim", v.sizes[3]);
  require_addressable("v.dim", 1, v.sizes[3]);
  problem.value_dim = v.sizes[3];
  return extent;
}

/// The output's sizes. Throws ShapeError.
template <class = void>
void check_output_sizes(const Problem& problem, const Layout& v, const Layout& out) {
  require_equal("out.batch", out.sizes[0], "q.batch", problem.batch);
  require_equal("out.heads", out.sizes[1], "q.heads", problem.heads);
  require_equal("out.length", out.sizes[2], "q.length", problem.queries);
  require_same(out, v, 3);
}

/// Adds v and out to a checked problem. Throws ShapeError.
template <class = void>
void check_values_and_output(Problem& problem, const Layout& q, const Layout& k, const Layout& v,
                                    const Layout& out) {
  const Extent output_extent = check_layout(out), value_extent = check_values(problem, v);
  check_output_sizes(problem, v, out);
  check_no_self_overlap(out);
  const std::pair<const Layout*, Extent> inputs[] = {{&q, check_layout(q)}, {&k, check_layout(k)}, {&v, value_extent}};
  for (const auto& [input, extent] : inputs)
    if (may_overlap(out, output_extent, *input, extent))
      fail<ShapeError>("out", std::string("in the memory of ") + input->name, "not overlap an input");
}

/// A tensor with the sizes of another. Throws ShapeError.
template <class = void>
void require_shape(const Layout& x, const Layout& like) {
  for (int a = 0; a < 4; ++a) require_same(x, like, a);
  check_layout(x);
}

/// Positions travel as floating point numbers of `mantissa_bits` bits.
template <class = void>
void check_positions(const Problem& problem, int mantissa_bits) {
  const Index most = Index(1) << std::min(mantissa_bits, 62);
  auto check = [most](const char* what, Index length) {
    if (length > most)
      fail<ShapeError>(what, length, "be at most " + std::to_string(most) + ", to which positions are exact");
  };
  check("q.length", problem.queries);
  check("k.length", problem.keys);
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail
}  // namespace attention_balancer
