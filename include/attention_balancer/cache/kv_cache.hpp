#pragma once
// A cache of keys and values in one piece for each sequence.

#include "attention_balancer/cache/kv_cache_base.hpp"

namespace attention_balancer {

/// Keys and values of B sequences with room for `capacity` tokens each, [B, Hkv, capacity, D], stored as Stored;
/// see CacheStorage for what that loses. Append tokens, attend with `attention(q, cache, out, ...)`, keep what a
/// budget allows. Each sequence has a length of its own. Movable, not copyable.
///
///     ab::KvCache<ab::bf16> cache(batch, kv_heads, capacity, dim);
///     cache.append(k, v);                       // float views [B, Hkv, n, D]
///     ab::attention(q, cache, out);             // q [B, Hq, Nq, D], out [B, Hq, Nq, D]
template <CacheStorage Stored>
class KvCache : public detail::KvCacheBase<Stored, KvCache<Stored>> {
  using Base = detail::KvCacheBase<Stored, KvCache<Stored>>;
  friend Base;

 public:
  /// Throws ShapeError unless all sizes are at least 1 (capacity: 0) and their product is addressable,
  /// std::bad_alloc.
  KvCache(Index batch, Index kv_heads, Index capacity, Index dim, Index value_dim)
      : Base(batch, detail::KvPages<Stored>(batch, kv_heads, capacity, dim, value_dim)) {}
  KvCache(Index batch, Index kv_heads, Index capacity, Index dim) : KvCache(batch, kv_heads, capacity, dim, dim) {}

  /// Tokens that a sequence has room for.
  Index capacity() const noexcept { return this->pages_.page_size(); }

  /// What `attention` reads. Lives until the cache is moved or destroyed; shows the lengths as they are when it is
  /// read.
  KvView<Stored> view() const noexcept {
    KvView<Stored> x = this->pages_.view();
    x.lengths = this->lengths_;
    return x;
  }

 private:
  std::pair<Index, Index> place(Index b, Index slot) const noexcept { return {b, slot}; }

  /// `tokens_of(b)`: those appended to sequence b.
  template <class F>
  void make_room(Index first, Index last, F tokens_of) const {
    for (Index b = first; b < last; ++b)
      if (const Index tokens = tokens_of(b); tokens > capacity() - this->lengths_[static_cast<std::size_t>(b)])
        detail::fail<BudgetError>("number of tokens appended to sequence " + std::to_string(b), tokens,
                                  "fit in the capacity " + std::to_string(capacity()) + " behind the " +
                                      std::to_string(this->lengths_[static_cast<std::size_t>(b)]) + " there");
  }

  void resize(Index b, Index length) noexcept { this->lengths_[static_cast<std::size_t>(b)] = length; }
};

}  // namespace attention_balancer
