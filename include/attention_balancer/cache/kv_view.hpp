#pragma once
// Keys and values where they lie: in one piece for each sequence, or in the pages that a table names.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/core/config.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/storage.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/tensor/shape.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {

/// Integers of the caller, Index or std::int32_t, given even if there are none. Borrows them.
class IntegerSpan {
 public:
  IntegerSpan() = default;
  IntegerSpan(std::span<const Index> x) noexcept
      : wide_(x.data()), size_(static_cast<Index>(x.size())), given_(true) {}
  IntegerSpan(std::span<const std::int32_t> x) noexcept
      : narrow_(x.data()), size_(static_cast<Index>(x.size())), given_(true) {}
  template <std::same_as<Index> N, std::size_t E>
  IntegerSpan(std::span<N, E> x) noexcept : IntegerSpan(std::span<const Index>(x)) {}
  template <std::same_as<std::int32_t> N, std::size_t E>
  IntegerSpan(std::span<N, E> x) noexcept : IntegerSpan(std::span<const std::int32_t>(x)) {}
  IntegerSpan(const std::vector<Index>& x) noexcept : IntegerSpan(std::span<const Index>(x)) {}
  IntegerSpan(const std::vector<std::int32_t>& x) noexcept : IntegerSpan(std::span<const std::int32_t>(x)) {}
  template <detail::OwningTemporary R>
  IntegerSpan(R&&) = delete;

  ATTENTION_BALANCER_INLINE bool given() const noexcept { return given_; }
  ATTENTION_BALANCER_INLINE Index size() const noexcept { return size_; }
  ATTENTION_BALANCER_INLINE Index operator[](Index i) const noexcept {
    return wide_ != nullptr ? wide_[i] : static_cast<Index>(narrow_[i]);
  }

  /// `count` of them from `first` on.
  ATTENTION_BALANCER_INLINE IntegerSpan part(Index first, Index count) const noexcept {
    IntegerSpan x = *this;
    if (wide_ != nullptr) x.wide_ += first;
    if (narrow_ != nullptr) x.narrow_ += first;
    x.size_ = count;
    return x;
  }

 private:
  const Index* wide_ = nullptr;
  const std::int32_t* narrow_ = nullptr;
  Index size_ = 0;
  bool given_ = false;  // the data of an empty vector may be null
};

/// A view of keys and values that owns nothing, for `attention(q, view, out, ...)`: of B sequences, each with a
/// length of its own, stored as Stored: float, double, bf16, f16 or std::int8_t (times scales).
///
/// Without a block table sequence b is page b. With one, token j of sequence b is row j % page_size of page
/// block_table[b * max_blocks + j / page_size], and the same page may serve several sequences (a shared prefix).
/// Pages may lie in any order and with any strides between their heads and tokens; features need a unit stride. Entries
/// of the table behind a sequence's last page are not read, and may be -1.
///
/// bf16 and f16 are their 16 bits and nothing else: memory that another library keeps as half floats is
/// `reinterpret_cast<const ab::f16*>(pointer)`. The scales of int8 are set in the view, whoever made it.
template <class Stored>
struct KvView {
  TensorView<const Stored> keys, values;  ///< [pages, Hkv, page_size, D], [pages, Hkv, page_size, Dv]
  IntegerSpan block_table = {};           ///< [B, max_blocks]; not given: sequence b is page b
  Index max_blocks = 0;
  IntegerSpan lengths = {};  ///< [B] tokens of each sequence; not given: page_size, only without a block table
  /// int8 only, [pages, Hkv, page_size, 1]: a stored number times the scale of its token and head is what it means.
  TensorView<const float> key_scales = {}, value_scales = {};
  const float* channel_scales = nullptr;  ///< int8 only, [Hkv, D] contiguous: multiplies the keys as well; null: 1

  /// Number of sequences.
  ATTENTION_BALANCER_INLINE Index batch() const noexcept { return lengths.given() ? lengths.size() : keys.batch; }

  /// Number of tokens of sequence b.
  ATTENTION_BALANCER_INLINE Index length(Index b) const noexcept {
    return lengths.given() ? lengths[b] : keys.length;
  }
};

/// A view of paged memory of the caller: pools of keys [pages, Hkv, page_size, D] and values [pages, Hkv,
/// page_size, Dv] with any strides, block_table [B, max_blocks], and seqlens_k [B]. A pool laid out [pages,
/// page_size, Hkv, D] is bshd(pointer, pages, page_size, Hkv, D). Borrows everything; checked by the call that it
/// is given to.
template <class K, class V>
KvView<std::remove_const_t<K>> paged(const TensorView<K>& keys, const TensorView<V>& values,
                                     IntegerSpan block_table, Index max_blocks, IntegerSpan seqlens_k) {
  static_assert(std::is_same_v<std::remove_const_t<K>, std::remove_const_t<V>>,
                "attention_balancer: the keys and values of a cache must be stored alike");
  return {keys, values, block_table, max_blocks, seqlens_k};
}

namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Calls f(address of the first row, position of the first, number) for the runs of tokens [begin, end) of a
/// sequence that lie in one page.
template <class Stored, class T, class F>
void for_runs(const KvView<Stored>& x, const TensorView<T>& view, Index b, Index kv_head, Index begin, Index end,
              F f) noexcept {
  while (begin < end) {
    Index page = b, at = begin, room = end - begin;
    if (x.block_table.given()) {
      page = x.block_table[b * x.max_blocks + begin / view.length];
      at = begin % view.length;
      room = std::min(room, view.length - at);
    }
    f(view.data + page * view.batch_stride + kv_head * view.head_stride + at * view.length_stride, begin, room);
    begin += room;
  }
}

/// Sequence b of a view, alone.
template <class Stored>
KvView<Stored> sequence_of(const KvView<Stored>& x, Index b) noexcept {
  KvView<Stored> one = x;
  if (x.block_table.given()) {
    one.block_table = x.block_table.part(b * x.max_blocks, x.max_blocks);
    one.lengths = x.lengths.part(b, 1);
    return one;
  }
  auto take = [&](auto& rows) {
    if (rows.data != nullptr) rows.data += b * rows.batch_stride;
    rows.batch = 1, rows.length = x.length(b);
  };
  take(one.keys), take(one.values), take(one.key_scales), take(one.value_scales);
  one.lengths = {};
  return one;
}

/// Everything that can be wrong with a view of keys and values. Throws ShapeError.
template <class Stored>
void check_kv_view(const KvView<Stored>& x) {
  const Layout k = layout("cache.keys", x.keys), v = layout("cache.values", x.values);
  check_layout(k);
  check_layout(v);
  require_equal("cache.values.batch", v.sizes[0], "cache.keys.batch", k.sizes[0]);
  require_equal("cache.values.heads", v.sizes[1], "cache.keys.heads", k.sizes[1]);
  require_equal("cache.values.length", v.sizes[2], "cache.keys.length", k.sizes[2]);
  auto unit = [](const char* what, Index stride, Index size) {
    if (size > 1 && stride != 1) fail<ShapeError>(what, stride, "be 1: the features of a cache lie side by side");
  };
  unit("cache.keys.dim stride", k.strides[3], k.sizes[3]);
  unit("cache.values.dim stride", v.strides[3], v.sizes[3]);
  constexpr bool scaled = std::is_same_v<Stored, std::int8_t>;
  auto check_scales = [&](const char* name, const TensorView<const float>& scales) {
    if ((scales.data != nullptr) != (scaled && k.sizes[0] * k.sizes[1] * k.sizes[2] > 0))
      fail<ShapeError>(name, scales.data != nullptr ? "given" : "null",
                       scaled ? "be given for int8" : "not be given");
    if (scales.data == nullptr) return;
    check_layout(layout(name, scales));
    if (scales.batch != k.sizes[0] || scales.heads != k.sizes[1] || scales.length != k.sizes[2] || scales.dim != 1)
      fail<ShapeError>(name, "of another shape", "be [pages, Hkv, page size, 1] as the keys are");
  };
  check_scales("cache.key_scales", x.key_scales);
  check_scales("cache.value_scales", x.value_scales);
  if (!scaled && x.channel_scales != nullptr)
    fail<ShapeError>("cache.channel_scales", "given", "be null but for int8");

  const Index pages = k.sizes[0], page_size = k.sizes[2];
  if (x.block_table.given()) {
    if (page_size < 1) fail<ShapeError>("cache.keys.length, the page size,", page_size, "be at least 1");
    if (!x.lengths.given()) fail<ShapeError>("cache.lengths", "missing", "be given with a block table");
    if (x.max_blocks < 0) fail<ShapeError>("cache.max_blocks", x.max_blocks, "not be negative");
    if (multiply_overflows(x.max_blocks, x.lengths.size()) ||
        x.block_table.size() != x.max_blocks * x.lengths.size())
      fail<ShapeError>("cache.block_table size", x.block_table.size(),
                       "be max_blocks for each of " + std::to_string(x.lengths.size()) + " sequences");
  } else if (x.batch() > pages) {
    fail<ShapeError>("cache.lengths size", x.batch(), "be at most the pages = " + std::to_string(pages));
  }
  for (Index b = 0; b < x.batch(); ++b) {
    const Index length = x.length(b);
    // Only of what is wrong: a string may allocate.
    auto name = [b] { return "cache length of sequence " + std::to_string(b); };
    if (length < 0) fail<ShapeError>(name(), length, "not be negative");
    if (!x.block_table.given()) {
      if (length > page_size) fail<ShapeError>(name(), length, "be at most " + std::to_string(page_size));
      continue;
    }
    const Index blocks = length / page_size + (length % page_size != 0 ? 1 : 0);
    if (blocks > x.max_blocks)
      fail<ShapeError>(name(), length, "fit in max_blocks = " + std::to_string(x.max_blocks) + " pages");
    for (Index i = 0; i < blocks; ++i)
      if (const Index page = x.block_table[b * x.max_blocks + i]; page < 0 || page >= pages)
        fail<ShapeError>("cache.block_table page " + std::to_string(i) + " of sequence " + std::to_string(b), page,
                         "be in [0, pages = " + std::to_string(pages) + ")");
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail
}  // namespace attention_balancer
