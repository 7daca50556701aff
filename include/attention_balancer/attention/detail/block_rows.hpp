#pragma once
// The rows of K and V that a block of queries multiplies: where they lie, packed or converted.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention_balancer/attention/detail/call.hpp"
#include "attention_balancer/attention/detail/layout.hpp"
#include "attention_balancer/attention/detail/tile.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Keys and values of one head. What is packed or loaded is so once for all blocks of a head that a worker takes in
/// turn.
template <Scalar T>
class BlockRows {
 public:
  BlockRows(const Call<T>& call, Index batch, Index kv_head, const Scratch<T>& scratch) noexcept
      : call_(call), p_(call.problem), s_(scratch), batch_(batch), kv_head_(kv_head) {}

  /// Forgets what is packed of another head.
  void begin_head() const noexcept {
    const Index head = batch_ * p_.kv_heads + kv_head_;
    if (*s_.packed_head == head) return;
    *s_.packed_head = head;
    std::fill_n(s_.packed, 2 * (p_.keys / block_keys + 1), static_cast<unsigned char>(0));
  }

  Rows<T> keys(const KeyRange& range) const noexcept {
    if (call_.source.cache != nullptr) return loaded(false, range);
    return in_place(call_.k, range, s_.packed_keys, packed(false));
  }
  /// Of values in pairs all that there is: see value_at.
  Rows<T> values(const KeyRange& range) const noexcept {
    if (call_.source.cache != nullptr) return loaded(true, range);
    return in_place(call_.v, range, s_.packed_values, packed(true));
  }

  /// Feature c of row j of `values` of a range from `begin` on.
  T value_at(const Rows<T>& v, Index begin, Index j, Index c) const noexcept {
    if constexpr (sizeof(T) == sizeof(std::uint32_t))
      if (call_.source.pairs != nullptr) {
        const Index place = call_.source.pairs->layout.place_of_value(begin + j, c, p_.value_dim);
        const auto pair = __builtin_bit_cast(std::uint32_t, v.data[place]);
        return __builtin_bit_cast(T, (begin + j) % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
      }
    return v.data[j * v.stride + c];
  }

  /// A copy of the values of a range with every row that is not finite replaced by zeros.
  ATTENTION_BALANCER_NOINLINE Rows<T> guarded(const Rows<T>& v, const KeyRange& range) const noexcept {
    for (Index j = 0; j < range.end - range.begin; ++j) {
      T* to = s_.guarded_values + j * p_.value_dim;
      bool finite = true;
      for (Index c = 0; c < p_.value_dim; ++c) {
        to[c] = value_at(v, range.begin, j, c);
        finite = finite && std::isfinite(to[c]);
      }
      if (!finite) std::fill_n(to, p_.value_dim, T(0));
    }
    return {s_.guarded_values, p_.value_dim};
  }

  /// What is asked for while rows from `from` on are multiplied: of a cache, what is not loaded yet lies elsewhere.
  Ahead<T> ahead(bool values, Index from, Index tokens) const noexcept {
    return {call_.source, values, batch_, kv_head_, from, p_.keys, tokens};
  }
  /// `far` as a product of `count` rows has it.
  Far far_of(const Far& far, const Ahead<T>& ahead, Index count) const noexcept {
    if (call_.source.cache == nullptr || !far.rows) return far;
    if (packed(ahead.values)[(ahead.begin + count) / block_keys]) return far;
    return ahead.of(far);
  }

 private:
  /// Of a tensor; `to` is null if its feature stride is 1.
  Rows<T> in_place(const TensorView<const T>& x, const KeyRange& range, T* to, unsigned char* done) const noexcept {
    const T* first = x.data + batch_ * x.batch_stride + kv_head_ * x.head_stride;
    if (to == nullptr) return {first + range.begin * x.length_stride, x.length_stride};
    for (Index b = range.begin / block_keys; b <= (range.end - 1) / block_keys; ++b) {
      if (done[b]) continue;
      const Index begin = b * block_keys, keys = std::min(block_keys, p_.keys - begin);
      copy_matrix(to + begin * x.dim, x.dim, Index(1), first + begin * x.length_stride, x.length_stride,
                  x.dim_stride, keys, x.dim);
      done[b] = 1;
    }
    return {to + range.begin * x.dim, x.dim};
  }

  /// Of a cache, converted.
  Rows<T> loaded(bool values, const KeyRange& range) const noexcept {
    const RowSource<T>& source = call_.source;
    const PairLayout* const pairs = source.pairs != nullptr ? &source.pairs->layout : nullptr;
    const Index stride = values ? p_.value_dim : pairs != nullptr ? pairs->key_stride(p_.dim) : p_.dim;
    T* const to = values ? s_.packed_values : s_.packed_keys;
    const auto place_of = [&](Index j) {
      return to + (values && pairs != nullptr ? pairs->place_of_value(j, 0, p_.value_dim) : j * stride);
    };
    unsigned char* const done = packed(values);
    for (Index b = range.begin / block_keys; b <= (range.end - 1) / block_keys; ++b) {
      if (done[b]) continue;
      const Index begin = b * block_keys;
      source.load(source.cache, values, batch_, kv_head_, begin, std::min(begin + block_keys, p_.keys),
                  place_of(begin));
      done[b] = 1;
    }
    return {values && pairs != nullptr ? to : place_of(range.begin), stride};
  }

  /// Which blocks of keys or values are packed or loaded.
  unsigned char* packed(bool values) const noexcept {
    return values ? s_.packed + p_.keys / block_keys + 1 : s_.packed;
  }

  const Call<T>& call_;
  const Problem& p_;
  const Scratch<T>& s_;
  const Index batch_, kv_head_;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
