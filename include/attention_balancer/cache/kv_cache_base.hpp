#pragma once
// What a contiguous and a paged cache have in common: lengths, appending, eviction, the view that attention reads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/cache/storage.hpp"
#include "attention_balancer/tensor/offsets.hpp"

namespace attention_balancer::detail {

/// Both caches but for Cache, which says where the slots lie.
template <CacheStorage Stored, class Cache>
class KvCacheBase {
 public:
  /// What attention over this cache computes in: the scalar of the queries and of the output.
  using scalar = arithmetic_of<Stored>;

  Index batch() const noexcept { return static_cast<Index>(lengths_.size()); }
  Index kv_heads() const noexcept { return pages_.heads(); }
  Index dim() const noexcept { return pages_.dim(); }
  Index value_dim() const noexcept { return pages_.value_dim(); }

  /// Bytes of keys, values and scales that are reserved.
  std::size_t bytes() const noexcept { return pages_.bytes(); }

  /// Those of one token of one sequence, in all heads: length(b) * token_bytes() is what sequence b fills.
  std::size_t token_bytes() const noexcept { return pages_.token_bytes(); }

  /// Tokens of sequence b that are in the cache. Throws ShapeError if there is no such sequence.
  Index length(Index b) const {
    check_sequence(b);
    return lengths_[static_cast<std::size_t>(b)];
  }

  /// Tokens that sequence b has seen, evicted ones included: the position of the next one.
  Index seen(Index b) const {
    check_sequence(b);
    return seen_[static_cast<std::size_t>(b)];
  }

  /// The position, from 0, that the token in a slot of a key head had when it was appended.
  Index position(Index b, Index head, Index slot) const {
    check_head(head);
    if (slot < 0 || slot >= length(b))
      fail<ShapeError>("cache slot", slot, "be in [0, length = " + std::to_string(length(b)) + ")");
    const auto [page, at] = self().place(b, slot);
    return pages_.position(page, head, at);
  }

  /// Appends the tokens of k [B, Hkv, n, D] and v [B, Hkv, n, Dv] to all sequences, n each. Throws ShapeError if
  /// the shapes do not fit, BudgetError if there is no room, InputError if a finite key is too large for its channel
  /// scale (see set_channel_scales); nothing is changed then.
  template <class K, class V>
  void append(const TensorView<K>& k, const TensorView<V>& v) {
    check_appended(k, v, batch());
    self().make_room(0, batch(), [&](Index) { return k.length; });
    for (Index b = 0; b < batch(); ++b) store(b, k, v, b, 0, k.length);
  }

  /// Appends the tokens of k [1, Hkv, n, D] and v [1, Hkv, n, Dv] to one sequence.
  template <class K, class V>
  void append(Index sequence, const TensorView<K>& k, const TensorView<V>& v) {
    check_sequence(sequence);
    check_appended(k, v, 1);
    self().make_room(sequence, sequence + 1, [&](Index) { return k.length; });
    store(sequence, k, v, 0, 0, k.length);
  }

  /// Appends tokens of many sequences that lie one after the other in k [1, Hkv, all, D] and v [1, Hkv, all, Dv]:
  /// sequence s gets those in [offsets[s], offsets[s + 1]), which may be none. The offsets are those of the
  /// PackedQueries that attend to them. Throws as append to all sequences does, and ShapeError unless the offsets do
  /// not decrease, lie in [0, all] and are one more than there are sequences; nothing is changed then, in any sequence.
  template <class K, class V>
  void append(std::span<const Index> offsets, const TensorView<K>& k, const TensorView<V>& v) {
    append_packed(offsets, k, v);
  }
  template <class K, class V>
  void append(std::span<const std::int32_t> offsets, const TensorView<K>& k, const TensorView<V>& v) {
    append_packed(offsets, k, v);
  }
  template <class K, class V>
  void append(std::initializer_list<Index> offsets, const TensorView<K>& k, const TensorView<V>& v) {
    append_packed(std::span<const Index>(offsets.begin(), offsets.size()), k, v);
  }

  /// Keeps the tokens in `kept` slots of sequence b, ascending, and evicts the others: slot i becomes what slot
  /// kept[i] was, with its position and scales, in all heads. Evidence and other state of the caller's is compacted
  /// together by execute::evict. Throws InputError, and changes nothing, unless the slots ascend strictly within
  /// the sequence.
  void keep(Index b, std::span<const Index> kept) {
    check_kept_slots("kept slot ", b, kept);
    for (Index h = 0; h < kv_heads(); ++h) move_kept(b, h, kept);
    self().resize(b, static_cast<Index>(kept.size()));
  }

  /// The same with a list of its own for each key head, all of one size: kept [Hkv, n].
  void keep_by_head(Index b, std::span<const Index> kept) {
    const auto heads = static_cast<std::size_t>(kv_heads());
    if (kept.size() % heads != 0)
      fail<ShapeError>("number of kept slots", kept.size(),
                       "be the same for each of " + std::to_string(heads) + " heads");
    const std::size_t each = kept.size() / heads;
    for (std::size_t h = 0; h < heads; ++h)
      check_kept_slots("head " + std::to_string(h) + " kept slot ", b, kept.subspan(h * each, each));
    for (std::size_t h = 0; h < heads; ++h) move_kept(b, static_cast<Index>(h), kept.subspan(h * each, each));
    self().resize(b, static_cast<Index>(each));
  }

  /// Forgets sequence b, positions included.
  void clear(Index b) {
    check_sequence(b);
    self().resize(b, 0);
    seen_[static_cast<std::size_t>(b)] = 0;
  }

  /// int8 keys only: the scale of each channel, [Hkv, D], positive. Keys whose channels differ in size lose less
  /// so: the scale of a token no longer has to serve its largest channel (Xiao et al., SmoothQuant, arXiv
  /// 2211.10438; per-channel keys as in KIVI, arXiv 2402.02750, but a token at a time). The error of channel c is
  /// channel_scale[c] * scale / 2 with scale = max(max_c(|k_c| / channel_scale[c]) / 127, 2^-124). Keys must be less
  /// than 2^128 times the scale of their channel, 2^64 at the least scale: append refuses larger ones. Up to eight
  /// queries a head are multiplied by the channel scales before they meet the keys: a product beyond the range of
  /// float makes the query NaN. Throws InputError if a sequence has tokens or a scale is not in [2^-64, 2^64].
  void set_channel_scales(std::span<const float> scales) requires(std::is_same_v<Stored, std::int8_t>) {
    if (static_cast<Index>(scales.size()) != kv_heads() * dim())
      fail<ShapeError>("channel scales size", scales.size(),
                       "be kv_heads * dim = " + std::to_string(kv_heads() * dim()));
    for (const Index n : lengths_)
      if (n > 0) fail<InputError>("length of a sequence", n, "be 0 when the channel scales are set");
    for (std::size_t i = 0; i < scales.size(); ++i)
      if (!(scales[i] >= least_channel && scales[i] <= most_channel))
        fail<InputError>("channel scale " + std::to_string(i), scales[i], "be in [2^-64, 2^64]");
    pages_.set_channels({scales.begin(), scales.end()});
  }

  /// Channel scales from keys [B, Hkv, n, D] that are like those to come, such as a prompt's: the largest size of
  /// each channel, 2^64 at most, 1 where that is below 2^-64.
  template <class K>
  void calibrate_channels(const TensorView<K>& k) requires(std::is_same_v<Stored, std::int8_t>) {
    require_equal("k.heads", k.heads, "the cache's kv_heads", kv_heads());
    require_equal("k.dim", k.dim, "the cache's dim", dim());
    check_layout(layout("k", k));
    std::vector<float> scales(static_cast<std::size_t>(kv_heads() * dim()), 0.0f);
    for (Index b = 0; b < k.batch; ++b)
      for (Index h = 0; h < k.heads; ++h)
        for (Index j = 0; j < k.length; ++j)
          for (Index c = 0; c < k.dim; ++c)
            if (const float x = std::fabs(static_cast<float>(k(b, h, j, c))); std::isfinite(x))
              scales[static_cast<std::size_t>(h * dim() + c)] =
                  std::max(scales[static_cast<std::size_t>(h * dim() + c)], x);
    for (float& s : scales) s = s >= least_channel ? std::min(s, most_channel) : 1.0f;
    set_channel_scales(scales);
  }

 protected:
  KvCacheBase(Index batch, KvPages<Stored> pages) : pages_(std::move(pages)) {
    if (batch < 1) fail<ShapeError>("cache batch", batch, "be at least 1");
    lengths_.assign(static_cast<std::size_t>(batch), 0);
    seen_.assign(static_cast<std::size_t>(batch), 0);
  }

  static constexpr float least_channel = 0x1p-64f, most_channel = 0x1p64f;

  void check_sequence(Index b) const {
    if (b < 0 || b >= batch()) fail<ShapeError>("cache sequence", b, "be in [0, " + std::to_string(batch()) + ")");
  }
  void check_head(Index h) const {
    if (h < 0 || h >= kv_heads())
      fail<ShapeError>("cache head", h, "be in [0, " + std::to_string(kv_heads()) + ")");
  }

  KvPages<Stored> pages_;
  std::vector<Index> lengths_, seen_;

 private:
  Cache& self() noexcept { return static_cast<Cache&>(*this); }
  const Cache& self() const noexcept { return static_cast<const Cache&>(*this); }

  template <class K, class V>
  void append_packed(const Offsets& offsets, const TensorView<K>& k, const TensorView<V>& v) {
    check_appended(k, v, 1);
    offsets.check("append", k.length);
    require_equal("append number of sequences", offsets.size() - 1, "cache.batch", batch());
    self().make_room(0, batch(), [&](Index b) { return offsets.length(b); });
    for (Index b = 0; b < batch(); ++b) store(b, k, v, 0, offsets.begin(b), offsets.length(b));
  }

  template <class K, class V>
  void check_appended(const TensorView<K>& k, const TensorView<V>& v, Index batch) const {
    static_assert(std::is_same_v<std::remove_const_t<K>, scalar> && std::is_same_v<std::remove_const_t<V>, scalar>,
                  "attention_balancer: a cache takes keys and values of float, one of doubles takes double");
    check_layout(layout("k", k));
    check_layout(layout("v", v));
    require_equal("k.batch", k.batch, "the sequences", batch);
    require_equal("v.batch", v.batch, "the sequences", batch);
    require_equal("k.heads", k.heads, "the cache's kv_heads", kv_heads());
    require_equal("v.heads", v.heads, "the cache's kv_heads", kv_heads());
    require_equal("k.dim", k.dim, "the cache's dim", dim());
    require_equal("v.dim", v.dim, "the cache's value_dim", value_dim());
    require_equal("v.length", v.length, "k.length", k.length);
    if constexpr (KvPages<Stored>::scaled) check_quotients(k);
  }

  /// A finite key whose quotient is infinite would be stored as not a number.
  template <class K>
  void check_quotients(const TensorView<K>& k) const {
    const std::vector<float>& channels = pages_.channels();
    if (channels.empty()) return;
    for (Index b = 0; b < k.batch; ++b)
      for (Index h = 0; h < k.heads; ++h)
        for (Index j = 0; j < k.length; ++j)
          for (Index c = 0; c < k.dim; ++c) {
            const float x = k(b, h, j, c), channel = channels[static_cast<std::size_t>(h * dim() + c)];
            if (std::isfinite(x) && !std::isfinite(x / channel))
              fail<InputError>("k of sequence " + std::to_string(b) + ", head " + std::to_string(h) + ", token " +
                                   std::to_string(j) + ", channel " + std::to_string(c),
                               x, "be less than 2^128 times its channel scale " + number(channel));
          }
  }

  /// The `count` tokens from `begin` on of item `from`.
  template <class K, class V>
  void store(Index b, const TensorView<K>& k, const TensorView<V>& v, Index from, Index begin, Index count) {
    const Index length = lengths_[static_cast<std::size_t>(b)];
    for (Index j = 0; j < count; ++j) {
      const auto [page, at] = self().place(b, length + j);
      for (Index h = 0; h < kv_heads(); ++h)
        pages_.store(page, h, at, &k(from, h, begin + j, 0), k.dim_stride, &v(from, h, begin + j, 0), v.dim_stride,
                     seen_[static_cast<std::size_t>(b)] + j);
    }
    lengths_[static_cast<std::size_t>(b)] += count;
    seen_[static_cast<std::size_t>(b)] += count;
  }

  void check_kept_slots(const std::string& name, Index b, std::span<const Index> kept) const {
    const Index tokens = length(b);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const Index least = i == 0 ? 0 : kept[i - 1] + 1;
      if (kept[i] < least || kept[i] >= tokens)
        fail<InputError>(
            name + std::to_string(i), kept[i],
            "ascend strictly and be in [" + std::to_string(least) + ", " + std::to_string(tokens) + ")");
    }
  }

  void move_kept(Index b, Index h, std::span<const Index> kept) {
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (kept[i] == static_cast<Index>(i)) continue;
      const auto [from_page, from_at] = self().place(b, kept[i]);
      const auto [page, at] = self().place(b, static_cast<Index>(i));
      pages_.move(h, from_page, from_at, page, at);
    }
  }
};

}  // namespace attention_balancer::detail
