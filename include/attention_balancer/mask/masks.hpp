#pragma once
// The masks of the field. Masks given together intersect.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/mask/concepts.hpp"

namespace attention_balancer::mask {
ATTENTION_BALANCER_BEGIN_ISA

namespace detail {

using namespace attention_balancer::detail;

/// Classifies keys that end at `end`.
inline Coverage before(const Rect& r, Index end) noexcept {
  if (r.key_begin >= end) return Coverage::skip;
  return r.key_end <= end ? Coverage::full : Coverage::partial;
}

/// A boolean without its type: bool and std::uint8_t views are both bytes where 0 is false.
inline TensorView<const unsigned char> as_bytes(const TensorView<const bool>& v) noexcept {
  static_assert(sizeof(bool) == 1);
  return {reinterpret_cast<const unsigned char*>(v.data), v.batch, v.heads, v.length, v.dim,
          v.batch_stride, v.head_stride, v.length_stride, v.dim_stride};
}

/// Whether `count` booleans, side by side, are all equal to `value`. Eight at a time: masks are scanned as a whole.
inline bool all_equal(const unsigned char* x, Index count, bool value) noexcept {
  constexpr std::uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
  Index j = 0;
  for (; j + 8 <= count; j += 8) {
    std::uint64_t word;
    std::memcpy(&word, x + j, 8);
    const bool has_zero = ((word - ones) & ~word & tops) != 0;
    if (value ? has_zero : word != 0) return false;
  }
  for (; j < count; ++j)
    if ((x[j] != 0) != value) return false;
  return true;
}

/// Classifies the elements [i0, i1) x [j0, j1) of one head's booleans.
inline Coverage scan(const Plane<const unsigned char>& plane, Index i0, Index i1, Index j0, Index j1) noexcept {
  if (plane.row == 0) i1 = i0 + 1;  // one row or one column serves all
  if (plane.column == 0) j1 = j0 + 1;
  const bool first = plane(i0, j0) != 0;
  for (Index i = i0; i < i1; ++i) {
    if (plane.column == 1) {
      if (!all_equal(&plane(i, j0), j1 - j0, first)) return Coverage::partial;
    } else {
      for (Index j = j0; j < j1; ++j)
        if ((plane(i, j) != 0) != first) return Coverage::partial;
    }
  }
  return first ? Coverage::full : Coverage::skip;
}

}  // namespace detail

/// Which corner the diagonal of a causal mask starts from when Nq != Nk. bottom_right: the last query sees every key
/// (FlashAttention, ONNX). top_left: the first query sees the first key only (PyTorch).
enum class Align { bottom_right, top_left };

/// A query sees the keys up to its own position.
struct Causal {
  Align align = Align::bottom_right;

  Coverage classify(const Rect& r) const noexcept {
    const Index offset = shift(r.queries, r.keys);
    if (r.key_begin > r.query_end - 1 + offset) return Coverage::skip;
    return r.key_end - 1 <= r.query_begin + offset ? Coverage::full : Coverage::partial;
  }
  template <class S>
  ATTENTION_BALANCER_INLINE auto visible(const Site<S>& site) const {
    return site.key() <= site.query() + S(static_cast<simd::scalar_of<S>>(shift(site.queries, site.keys)));
  }

 private:
  // Private data would stop Causal from being an aggregate; a private function does not.
  Index shift(Index queries, Index keys) const noexcept { return align == Align::bottom_right ? keys - queries : 0; }
};

/// A query sees `left` keys before and `right` keys after its own position i + Nk - Nq, and its own; -1 is unbounded.
struct Window {
  Index left = -1, right = -1;

  void validate(const Problem&) const {
    if (left < -1) detail::fail<InputError>("mask::Window left", left, "be -1 (unbounded) or more");
    if (right < -1) detail::fail<InputError>("mask::Window right", right, "be -1 (unbounded) or more");
  }
  Coverage classify(const Rect& r) const noexcept {
    const Index offset = r.keys - r.queries;
    const Index first = r.query_begin + offset, last = r.query_end - 1 + offset;
    const Index furthest = r.queries + r.keys;  // no distance is larger, and nothing overflows
    const Index before = left < 0 ? furthest : std::min(left, furthest);
    const Index after = right < 0 ? furthest : std::min(right, furthest);
    if (r.key_end - 1 < first - before || r.key_begin > last + after) return Coverage::skip;
    const bool full = r.key_begin >= last - before && r.key_end - 1 <= first + after;
    return full ? Coverage::full : Coverage::partial;
  }
  template <class S>
  ATTENTION_BALANCER_INLINE auto visible(const Site<S>& site) const {
    using scalar = simd::scalar_of<S>;
    const S distance = site.key() - site.query() - S(static_cast<scalar>(site.keys - site.queries));
    const Index furthest = site.queries + site.keys;
    const S low(-static_cast<scalar>(left < 0 ? furthest : std::min(left, furthest)));
    const S high(static_cast<scalar>(right < 0 ? furthest : std::min(right, furthest)));
    return (distance >= low) & (distance <= high);
  }
};

/// Batch item b sees its first lengths[b] keys only: what lies behind them is padding and reaches no result. Borrows
/// the lengths, Index or std::int32_t; a braced list of up to 16 is copied.
class KeyLengths {
 public:
  explicit KeyLengths(std::span<const Index> lengths) noexcept : wide_(lengths) {}
  explicit KeyLengths(std::span<const std::int32_t> lengths) noexcept : narrow_(lengths) {}
  explicit KeyLengths(const std::vector<Index>& lengths) noexcept : wide_(lengths) {}
  explicit KeyLengths(const std::vector<std::int32_t>& lengths) noexcept : narrow_(lengths) {}
  template <attention_balancer::detail::OwningTemporary R>
  explicit KeyLengths(R&&) = delete;
  /// Throws ShapeError if the list is longer than 16.
  KeyLengths(std::initializer_list<Index> lengths) : copied_(static_cast<Index>(lengths.size())) {
    if (copied_ > 16) detail::fail<ShapeError>("mask::KeyLengths braced list length", copied_, "be at most 16");
    std::copy(lengths.begin(), lengths.end(), copy_);
  }

  void validate(const Problem& problem) const {
    const Index count = copied_ + static_cast<Index>(wide_.size() + narrow_.size());
    detail::require_equal("mask::KeyLengths number of lengths", count, "the batch", problem.batch);
    for (Index b = 0; b < count; ++b)
      if (at(b) < 0 || at(b) > problem.keys)
        detail::fail<ShapeError>("mask::KeyLengths length of batch item " + std::to_string(b), at(b),
                                 "be in [0, k.length = " + std::to_string(problem.keys) + "]");
  }
  Coverage classify(const Rect& r) const noexcept { return detail::before(r, at(r.batch)); }
  template <class S>
  ATTENTION_BALANCER_INLINE auto visible(const Site<S>& site) const {
    return site.key() < S(static_cast<simd::scalar_of<S>>(at(site.batch)));
  }

 private:
  Index at(Index b) const noexcept {
    const auto i = static_cast<std::size_t>(b);
    return copied_ > 0 ? copy_[i] : wide_.empty() ? narrow_[i] : wide_[i];
  }
  Index copy_[16] = {};
  Index copied_ = 0;
  std::span<const Index> wide_;
  std::span<const std::int32_t> narrow_;
};

/// A view of booleans [B or 1, Hq or 1, Nq or 1, Nk or 1], bool or bytes where 0 is false: true = attend. Borrows it.
class Boolean {
 public:
  explicit Boolean(const TensorView<const bool>& view) noexcept : view_(detail::as_bytes(view)) {}
  explicit Boolean(const TensorView<bool>& view) noexcept : view_(detail::as_bytes(view)) {}
  explicit Boolean(const TensorView<const unsigned char>& view) noexcept : view_(view) {}
  explicit Boolean(const TensorView<unsigned char>& view) noexcept : view_(view) {}

  template <class F>
  void borrowed(F f) const {
    f(detail::layout("mask::Boolean", view_));
  }
  void validate(const Problem& problem) const {
    detail::check_broadcast(detail::layout("mask::Boolean", view_), problem);
  }
  bool prefers_key_lanes() const noexcept { return detail::lies_along_keys(view_); }
  Coverage classify(const Rect& r) const noexcept {
    return detail::scan(detail::broadcast_plane(view_, r.batch, r.head), r.query_begin, r.query_end, r.key_begin,
                        r.key_end);
  }
  template <class S>
  ATTENTION_BALANCER_INLINE auto visible(const Site<S>& site) const {
    return site.at(view_) != S(simd::scalar_of<S>(0));
  }

 private:
  TensorView<const unsigned char> view_;
};

/// Block-sparse attention: booleans [B or 1, Hq or 1, ceil(Nq / query_block), ceil(Nk / key_block)], true = the whole
/// block may be attended. Borrows the view.
class Blocks {
 public:
  Blocks(const TensorView<const bool>& view, Index query_block, Index key_block) noexcept
      : view_(detail::as_bytes(view)), query_block_(query_block), key_block_(key_block) {}
  Blocks(const TensorView<bool>& view, Index query_block, Index key_block) noexcept
      : Blocks(TensorView<const bool>(view), query_block, key_block) {}
  Blocks(const TensorView<const unsigned char>& view, Index query_block, Index key_block) noexcept
      : view_(view), query_block_(query_block), key_block_(key_block) {}

  template <class F>
  void borrowed(F f) const {
    f(detail::layout("mask::Blocks", view_));
  }
  void validate(const Problem& problem) const {
    if (query_block_ < 1) detail::fail<ShapeError>("mask::Blocks query_block", query_block_, "be at least 1");
    if (key_block_ < 1) detail::fail<ShapeError>("mask::Blocks key_block", key_block_, "be at least 1");
    detail::require_equal("mask::Blocks length", view_.length, "the query blocks",
                          blocks(problem.queries, query_block_));
    detail::require_equal("mask::Blocks dim", view_.dim, "the key blocks", blocks(problem.keys, key_block_));
    if (view_.batch != 1) detail::require_equal("mask::Blocks batch", view_.batch, "1 or the batch", problem.batch);
    if (view_.heads != 1)
      detail::require_equal("mask::Blocks heads", view_.heads, "1 or the query heads", problem.heads);
    detail::check_layout(detail::layout("mask::Blocks", view_));
  }
  Index query_grain() const noexcept { return query_block_; }
  Coverage classify(const Rect& r) const noexcept {
    return detail::scan(detail::broadcast_plane(view_, r.batch, r.head), r.query_begin / query_block_,
                        (r.query_end - 1) / query_block_ + 1, r.key_begin / key_block_,
                        (r.key_end - 1) / key_block_ + 1);
  }
  template <class S>
  ATTENTION_BALANCER_INLINE auto visible(const Site<S>& site) const {
    const auto blocks_of_head = detail::broadcast_plane(view_, site.batch, site.head);
    return site.gather([&](Index i, Index j) {
      return blocks_of_head(i / query_block_, j / key_block_) != 0 ? 1 : 0;
    }) != S(simd::scalar_of<S>(0));
  }

 private:
  static Index blocks(Index n, Index block) noexcept { return n / block + (n % block != 0 ? 1 : 0); }

  TensorView<const unsigned char> view_;
  Index query_block_, key_block_;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::mask
