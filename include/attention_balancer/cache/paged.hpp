#pragma once
// A cache of keys and values in pages that all sequences share.

#include "attention_balancer/cache/kv_cache_base.hpp"

namespace attention_balancer {

/// Keys and values in a pool of `pages` pages of `page_size` tokens, [pages, Hkv, page_size, D], which sequences
/// take as they grow and give back when tokens are evicted (Kwon et al., PagedAttention, arXiv 2309.06180).
/// Otherwise as KvCache, with the same bits. Movable, not copyable.
template <CacheStorage Stored>
class PagedKvCache : public detail::KvCacheBase<Stored, PagedKvCache<Stored>> {
  using Base = detail::KvCacheBase<Stored, PagedKvCache<Stored>>;
  friend Base;

 public:
  /// A sequence takes at most `sequence_pages` of the pages, by default all; the block table has that many entries
  /// for each sequence. Throws ShapeError unless all sizes are at least 1 and their product is addressable,
  /// std::bad_alloc.
  PagedKvCache(Index batch, Index kv_heads, Index pages, Index page_size, Index dim, Index value_dim,
               Index sequence_pages)
      : Base(batch, detail::KvPages<Stored>(pages, kv_heads, page_size, dim, value_dim)), row_(sequence_pages) {
    if (page_size < 1) detail::fail<ShapeError>("cache page_size", page_size, "be at least 1");
    if (pages < 1) detail::fail<ShapeError>("cache pages", pages, "be at least 1");
    if (row_ < 1 || row_ > pages)
      detail::fail<ShapeError>("cache sequence_pages", row_, "be from 1 to pages = " + std::to_string(pages));
    free_.reserve(static_cast<std::size_t>(pages));
    for (Index p = pages; p-- > 0;) free_.push_back(p);
    table_.assign(static_cast<std::size_t>(batch) * static_cast<std::size_t>(row_), 0);
    blocks_.assign(static_cast<std::size_t>(batch), 0);
  }
  PagedKvCache(Index batch, Index kv_heads, Index pages, Index page_size, Index dim, Index value_dim)
      : PagedKvCache(batch, kv_heads, pages, page_size, dim, value_dim, pages) {}
  PagedKvCache(Index batch, Index kv_heads, Index pages, Index page_size, Index dim)
      : PagedKvCache(batch, kv_heads, pages, page_size, dim, dim) {}

  Index page_size() const noexcept { return this->pages_.page_size(); }

  /// Pages of the pool, and those that no sequence holds.
  Index pages() const noexcept { return this->pages_.pages(); }
  Index free_pages() const noexcept { return static_cast<Index>(free_.size()); }

  /// Most pages of one sequence.
  Index sequence_pages() const noexcept { return row_; }

  /// Pages that so many tokens of a sequence fill. Appending n tokens to sequence b takes pages_for(length(b) + n) -
  /// block_table(b).size() of the free ones.
  Index pages_for(Index tokens) const noexcept {
    return tokens / page_size() + (tokens % page_size() != 0 ? 1 : 0);
  }

  /// Pages of sequence b, in order.
  std::span<const Index> block_table(Index b) const {
    this->check_sequence(b);
    return {table_.data() + b * row_, static_cast<std::size_t>(blocks_[static_cast<std::size_t>(b)])};
  }

  /// Keeps whole pages: the `kept` blocks of sequence b, ascending, without moving a token; the other pages go back
  /// to the pool. A last page that is not full stays the last one or is dropped, so lengths stay right. Throws
  /// InputError, and changes nothing, unless the blocks ascend strictly within the sequence.
  void keep_blocks(Index b, std::span<const Index> kept) {
    const Index blocks = static_cast<Index>(block_table(b).size());
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const Index least = i == 0 ? 0 : kept[i - 1] + 1;
      if (kept[i] < least || kept[i] >= blocks)
        detail::fail<InputError>(
            "kept block " + std::to_string(i), kept[i],
            "ascend strictly and be in [" + std::to_string(least) + ", " + std::to_string(blocks) + ")");
    }
    const auto at = static_cast<std::size_t>(b);
    const Index in_last = this->lengths_[at] - (blocks - 1) * page_size();  // tokens of the last block
    Index* table = table_.data() + b * row_;
    std::size_t next = 0;
    for (Index i = 0; i < blocks; ++i) {
      if (next < kept.size() && kept[next] == i)
        table[next++] = table[i];
      else
        free_.push_back(table[i]);
    }
    const bool has_last = !kept.empty() && kept.back() == blocks - 1;
    blocks_[at] = static_cast<Index>(kept.size());
    this->lengths_[at] = blocks_[at] * page_size() - (has_last ? page_size() - in_last : 0);
  }

  /// What `attention` reads. Lives until the cache is moved or destroyed; shows tables and lengths as they are when
  /// read.
  KvView<Stored> view() const noexcept {
    KvView<Stored> x = this->pages_.view();
    x.block_table = table_;
    x.max_blocks = row_;
    x.lengths = this->lengths_;
    return x;
  }

 private:
  std::pair<Index, Index> place(Index b, Index slot) const noexcept {
    return {table_[static_cast<std::size_t>(b * row_ + slot / page_size())], slot % page_size()};
  }

  /// `tokens_of(b)`: those appended to sequence b.
  template <class F>
  void make_room(Index first, Index last, F tokens_of) {
    Index wanted = 0;
    for (Index b = first; b < last; ++b) {
      const auto at = static_cast<std::size_t>(b);
      const Index tokens = tokens_of(b);
      if (tokens > row_ * page_size() || pages_for(this->lengths_[at] + tokens) > row_)
        detail::fail<BudgetError>("number of tokens appended to sequence " + std::to_string(b), tokens,
                                  "fit in the " + std::to_string(row_) + " pages of " + std::to_string(page_size()) +
                                      " that it may have, beside the " + std::to_string(this->lengths_[at]) +
                                      " there");
      wanted += pages_for(this->lengths_[at] + tokens) - blocks_[at];
    }
    if (wanted > free_pages())
      detail::fail<BudgetError>("number of pages wanted", wanted,
                                "be at most the free pages = " + std::to_string(free_pages()));
    for (Index b = first; b < last; ++b) {
      const auto at = static_cast<std::size_t>(b);
      const Index blocks = pages_for(this->lengths_[at] + tokens_of(b));
      for (; blocks_[at] < blocks; ++blocks_[at]) {
        table_[static_cast<std::size_t>(b * row_ + blocks_[at])] = free_.back();
        free_.pop_back();
      }
    }
  }

  void resize(Index b, Index length) noexcept {
    const auto at = static_cast<std::size_t>(b);
    this->lengths_[at] = length;
    while (blocks_[at] > pages_for(length))
      free_.push_back(table_[static_cast<std::size_t>(b * row_ + --blocks_[at])]);
  }

  Index row_;                                 // entries of the table for a sequence
  std::vector<Index> free_, table_, blocks_;  // free pages, taken from the end; [B, row_]; pages of each sequence
};

}  // namespace attention_balancer
