#pragma once
// Tensors of tests: every layout that a view can describe, in a heap block of exactly the elements from its lowest to
// its highest address, so that an address sanitizer sees each read beyond them. The gaps hold a marker.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "attention_balancer/tensor/tensor_view.hpp"
#include "support/random.hpp"

namespace ab = attention_balancer;

namespace support {

using ab::TensorView;

enum class Layout {
  bhsd,            // contiguous
  bshd,            // token rows
  fused,           // token rows of one projection to queries, keys and values, of an odd length
  columns,         // a token is a column: unit stride along the length
  unaligned,       // rows of odd length that start off any vector's alignment
  reversed,        // lengths and heads from the last to the first
  reversed_dims,   // features from the last to the first
  shared_heads,    // stride 0 over batch and heads; for inputs only
  shared_rows,     // stride 0 over the length as well; for inputs only
  shared_dims      // stride 0 over the features; for inputs only
};
inline constexpr Index input_layouts = 10, output_layouts = 7;

inline const char* name_of(Layout layout) {
  static constexpr const char* names[] = {"bhsd",     "bshd",          "fused",        "columns",     "unaligned",
                                          "reversed", "reversed_dims", "shared_heads", "shared_rows", "shared_dims"};
  return names[static_cast<int>(layout)];
}

template <class T>
class Tensor {
 public:
  Tensor(Layout layout, Index batch, Index heads, Index length, Index dim)
      : view_{nullptr, batch, heads, length, dim} {
    switch (layout) {
      case Layout::bhsd: strides(heads * length * dim, length * dim, dim, 1); break;
      case Layout::bshd: strides(length * heads * dim, dim, heads * dim, 1); break;
      case Layout::fused: strides(length * (3 * heads * dim + 1), dim, 3 * heads * dim + 1, 1); break;
      case Layout::columns: strides(heads * dim * (length + 1), dim * (length + 1), 1, length + 1); break;
      case Layout::unaligned: strides(heads * length * (dim + 1) + 3, length * (dim + 1), dim + 1, 1); break;
      case Layout::reversed: strides(heads * length * dim, -length * dim, -dim, 1); break;
      case Layout::reversed_dims: strides(heads * length * dim, length * dim, dim, -1); break;
      case Layout::shared_heads: strides(0, 0, dim, 1); break;
      case Layout::shared_rows: strides(0, 0, 0, 1); break;
      case Layout::shared_dims: strides(heads * length, length, 1, 0); break;
    }
    const std::array<std::array<Index, 2>, 4> axes{{{batch, view_.batch_stride},
                                                    {heads, view_.head_stride},
                                                    {length, view_.length_stride},
                                                    {dim, view_.dim_stride}}};
    Index low = layout == Layout::unaligned ? -1 : 0, high = 0;
    bool empty = false;
    for (const auto& [size, stride] : axes) {
      empty = empty || size == 0;
      (stride < 0 ? low : high) += stride * std::max(Index(0), size - 1);
    }
    if (empty) return;
    count_ = high - low + 1;
    memory_.reset(new T[static_cast<std::size_t>(count_)]);
    std::fill_n(memory_.get(), count_, marker());
    view_.data = memory_.get() - low;
  }

  /// What the gaps hold. A sum that it enters by mistake is far off; it is no NaN, which an output could hide.
  static constexpr T marker() {
    if constexpr (std::is_integral_v<T>)
      return T(1);
    else
      return T(-7.0e5);
  }

  const TensorView<T>& view() const { return view_; }
  TensorView<const T> input() const { return view_; }
  T& operator()(Index b, Index h, Index i, Index c) const { return view_(b, h, i, c); }

  template <class F>
  void fill(F f) const {
    for (Index b = 0; b < view_.batch; ++b)
      for (Index h = 0; h < view_.heads; ++h)
        for (Index i = 0; i < view_.length; ++i)
          for (Index c = 0; c < view_.dim; ++c) view_(b, h, i, c) = static_cast<T>(f(b, h, i, c));
  }
  void fill(Random& random, Family family, double factor = 1) const {
    fill([&](Index, Index, Index, Index) { return factor * draw(random, family); });
  }

  std::vector<T> memory() const { return {memory_.get(), memory_.get() + count_}; }

  /// Whether every element outside the view still holds the marker.
  bool gaps_untouched() const {
    std::vector<char> inside(static_cast<std::size_t>(count_), 0);
    for (Index b = 0; b < view_.batch; ++b)
      for (Index h = 0; h < view_.heads; ++h)
        for (Index i = 0; i < view_.length; ++i)
          for (Index c = 0; c < view_.dim; ++c)
            inside[static_cast<std::size_t>(&view_(b, h, i, c) - memory_.get())] = 1;
    for (Index at = 0; at < count_; ++at)
      if (!inside[static_cast<std::size_t>(at)] && memory_[static_cast<std::size_t>(at)] != marker()) return false;
    return true;
  }

 private:
  void strides(Index b, Index h, Index i, Index c) {
    view_.batch_stride = b, view_.head_stride = h, view_.length_stride = i, view_.dim_stride = c;
  }

  TensorView<T> view_;
  Index count_ = 0;
  std::unique_ptr<T[]> memory_;
};

}  // namespace support
