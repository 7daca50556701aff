#pragma once
// What a cache stores and at which error, and the memory of its pages.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "attention_balancer/cache/kv_view.hpp"
#include "attention_balancer/core/workspace.hpp"

namespace attention_balancer {

/// What keys and values may be stored in. A number x becomes, with the largest error:
///
///   float, double   x itself
///   bf16            2^-8 |x| from 2^-126 on, 2^-134 below; infinite from 2^128 - 2^119 on
///   f16             2^-11 |x| from 2^-14 on, 2^-25 below; infinite from 65520 on
///   std::int8_t     scale / 2 (and one rounding), where scale is the largest |x| of the token and head over 127,
///                   at least 2^-124
///
/// A logit is then off by at most d = |score scale| * sum over the features of |q_c| times the error of k_c, so that
/// no probability is off by more than a factor within exp(-2 d) and exp(2 d), and the output by at most
/// (exp(2 d) - 1) max |v| plus the largest error of a value. Beyond that, attention is as exact as to plain tensors of
/// what the cache holds.
///
/// Attention computes in float (in double for a cache of doubles). Numbers that are not finite stay so; in int8
/// they make the whole row of their token and head not a number.
template <class Stored>
concept CacheStorage =
    Scalar<Stored> || std::same_as<Stored, bf16> || std::same_as<Stored, f16> || std::same_as<Stored, std::int8_t>;

namespace detail {

/// What attention over Stored computes in.
template <CacheStorage Stored>
using arithmetic_of = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

ATTENTION_BALANCER_BEGIN_ISA

/// One row of keys or values into storage; `channel` divides int8 ones first if it is not null.
template <class Stored, class T>
void store_row(const T* from, Index stride, Index dim, Stored* to, [[maybe_unused]] float* scale,
               [[maybe_unused]] const float* channel) noexcept {
  if constexpr (std::is_same_v<Stored, std::int8_t>) {
    auto element = [&](Index c) {
      const float x = static_cast<float>(from[c * stride]);
      return channel == nullptr ? x : x / channel[c];
    };
    float most = 0;
    bool finite = true;
    for (Index c = 0; c < dim; ++c) {
      most = std::max(most, std::fabs(element(c)));
      finite = finite && std::isfinite(element(c));
    }
    // The least scale keeps the inverse finite.
    *scale = finite ? std::max(most / 127, 4 * std::numeric_limits<float>::min())
                    : std::numeric_limits<float>::quiet_NaN();
    if (127 * *scale > std::numeric_limits<float>::max()) *scale = std::nextafter(*scale, 0.0f);
    if (most == 0) *scale = finite ? 0.0f : *scale;
    const float inverse = finite && most > 0 ? 1 / *scale : 0;
    for (Index c = 0; c < dim; ++c)
      to[c] = static_cast<std::int8_t>(finite ? std::clamp(std::nearbyint(element(c) * inverse), -127.0f, 127.0f)
                                              : 1.0f);
  } else {
    for (Index c = 0; c < dim; ++c) to[c] = static_cast<Stored>(from[c * stride]);
  }
}

ATTENTION_BALANCER_END_ISA

/// Pages of keys and values: [pages, Hkv, page size, D or Dv], with the scales and the positions of the tokens.
/// Each page lies in one piece, aligned to cache lines.
template <CacheStorage Stored>
class KvPages {
 public:
  static constexpr bool scaled = std::is_same_v<Stored, std::int8_t>;

  KvPages(Index pages, Index kv_heads, Index page_size, Index dim, Index value_dim)
      : pages_(pages), heads_(kv_heads), page_size_(page_size), dim_(dim), value_dim_(value_dim) {
    auto check = [](const char* what, Index n) {
      if (n < 1) fail<ShapeError>(what, n, "be at least 1");
    };
    check("cache kv_heads", kv_heads);
    check("cache dim", dim);
    check("cache value_dim", value_dim);
    const Index most = std::numeric_limits<Index>::max() / 64;
    Index rows = kv_heads;
    const std::pair<const char*, Index> factors[] = {{"cache number of sequences or pages", pages},
                                                     {"cache capacity or page_size", page_size},
                                                     {"cache dim or value_dim", std::max(dim, value_dim)}};
    for (const auto& [what, factor] : factors) {
      if (factor < 0) fail<ShapeError>(what, factor, "not be negative");
      if (multiply_overflows(rows, factor) || rows * factor > most)
        fail<ShapeError>(what, factor, "not make the memory overflow");
      rows *= factor;
    }
    rows = pages * kv_heads * page_size;
    const auto bytes = [](Index n, std::size_t size) { return static_cast<std::size_t>(n) * size; };
    keys_ = reinterpret_cast<Stored*>(key_memory_.reserve(bytes(rows * dim, sizeof(Stored))));
    values_ = reinterpret_cast<Stored*>(value_memory_.reserve(bytes(rows * value_dim, sizeof(Stored))));
    if constexpr (scaled) scales_.assign(static_cast<std::size_t>(2 * rows), 0.0f);
    positions_.assign(static_cast<std::size_t>(rows), 0);
  }

  Index pages() const noexcept { return pages_; }
  Index heads() const noexcept { return heads_; }
  Index page_size() const noexcept { return page_size_; }
  Index dim() const noexcept { return dim_; }
  Index value_dim() const noexcept { return value_dim_; }

  /// Bytes of keys, values and scales.
  std::size_t bytes() const noexcept {
    return key_memory_.capacity() + value_memory_.capacity() + scales_.size() * sizeof(float);
  }
  std::size_t token_bytes() const noexcept {
    const auto row =
        static_cast<std::size_t>(dim_ + value_dim_) * sizeof(Stored) + (scaled ? 2 * sizeof(float) : 0);
    return static_cast<std::size_t>(heads_) * row;
  }

  template <class T>
  void store(Index page, Index head, Index at, const T* key, Index key_stride, const T* value, Index value_stride,
             Index position) {
    const Index row = this->row(page, head, at);
    const float* channel = channels_.empty() ? nullptr : channels_.data() + head * dim_;
    store_row(key, key_stride, dim_, keys_ + row * dim_, scaled ? scale(row) : nullptr, channel);
    store_row(value, value_stride, value_dim_, values_ + row * value_dim_, scaled ? scale(rows() + row) : nullptr,
              nullptr);
    positions_[static_cast<std::size_t>(row)] = position;
  }

  /// Copies all that belongs to a slot.
  void move(Index head, Index from_page, Index from_at, Index to_page, Index to_at) {
    const Index from = row(from_page, head, from_at), to = row(to_page, head, to_at);
    std::memcpy(keys_ + to * dim_, keys_ + from * dim_, static_cast<std::size_t>(dim_) * sizeof(Stored));
    std::memcpy(values_ + to * value_dim_, values_ + from * value_dim_,
                static_cast<std::size_t>(value_dim_) * sizeof(Stored));
    if constexpr (scaled) *scale(to) = *scale(from), *scale(rows() + to) = *scale(rows() + from);
    positions_[static_cast<std::size_t>(to)] = positions_[static_cast<std::size_t>(from)];
  }

  Index position(Index page, Index head, Index at) const {
    return positions_[static_cast<std::size_t>(row(page, head, at))];
  }

  void set_channels(std::vector<float> channels) { channels_ = std::move(channels); }
  const std::vector<float>& channels() const noexcept { return channels_; }

  KvView<Stored> view() const noexcept {
    KvView<Stored> x;
    x.keys = bhsd(static_cast<const Stored*>(keys_), pages_, heads_, page_size_, dim_);
    x.values = bhsd(static_cast<const Stored*>(values_), pages_, heads_, page_size_, value_dim_);
    if constexpr (scaled) {
      x.key_scales = bhsd(scales_.data(), pages_, heads_, page_size_, Index(1));
      x.value_scales = bhsd(scales_.data() + rows(), pages_, heads_, page_size_, Index(1));
      if (!channels_.empty()) x.channel_scales = channels_.data();
    }
    return x;
  }

 private:
  Index rows() const noexcept { return pages_ * heads_ * page_size_; }
  Index row(Index page, Index head, Index at) const noexcept { return (page * heads_ + head) * page_size_ + at; }
  float* scale(Index i) noexcept { return scales_.data() + i; }

  Index pages_, heads_, page_size_, dim_, value_dim_;
  Workspace key_memory_, value_memory_;
  Stored *keys_ = nullptr, *values_ = nullptr;
  std::vector<float> scales_, channels_;
  std::vector<Index> positions_;
};

}  // namespace detail
}  // namespace attention_balancer
