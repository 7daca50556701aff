#pragma once
// Where the keys and values of a call lie: in the pages that a table names for each sequence, or in one piece each.

#include <algorithm>
#include <cstdint>

#include "attention_balancer/attention/detail/decode_tile.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Integers of the caller, of either width.
struct Integers {
  const Index* wide = nullptr;
  const std::int32_t* narrow = nullptr;

  bool given() const noexcept { return wide != nullptr || narrow != nullptr; }
  Index operator[](Index i) const noexcept { return wide != nullptr ? wide[i] : static_cast<Index>(narrow[i]); }
};

/// Keys and values of a call, as the kernels read them.
template <class Stored>
struct KeyValues {
  TensorView<const Stored> keys, values;  // [pages, Hkv, page size, D], [pages, Hkv, page size, Dv]
  Integers table = {};  // [B, most pages]: the pages of a sequence; not given: sequence b is page b
  Index table_stride = 0;
  Integers lengths = {};  // [B] keys of each sequence; not given: the page size
  TensorView<const float> key_scales = {}, value_scales = {};  // [pages, Hkv, page size, 1]; null: none
  const float* channel_scales = nullptr;                       // [Hkv, D], part of the keys' scale; null: none

  /// Number of keys of a sequence.
  Index length(Index b) const noexcept { return lengths.given() ? lengths[b] : keys.length; }
};

/// Calls f(address of the first row, rows' stride, position of the first, number) for the runs of tokens [begin,
/// end) of a sequence that lie in one page.
template <class Stored, class F>
void for_runs(const KeyValues<Stored>& x, const TensorView<const Stored>& view, Index b, Index kv_head, Index begin,
              Index end, F f) noexcept {
  while (begin < end) {
    Index page = b, at = begin, room = end - begin;
    if (x.table.given()) {
      page = x.table[b * x.table_stride + begin / view.length];
      at = begin % view.length;
      room = std::min(room, view.length - at);
    }
    f(view.data + page * view.batch_stride + kv_head * view.head_stride + at * view.length_stride,
      view.length_stride, begin, room);
    begin += room;
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
