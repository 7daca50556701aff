#pragma once
// The division of a call among workers: heads, and the chunks of their queries.

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>

#include "attention_balancer/attention/detail/query_blocks.hpp"
#include "attention_balancer/core/workspace.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// How the queries of a head are cut, by their own number and the grain of the masks only: results do not depend on
/// who computes the chunks.
template <Scalar T>
struct Chunks {
  static constexpr Index most = 16;

  Index packs, blocks, count, grain;

  explicit Chunks(Index queries, Index query_grain = 0) noexcept
      : packs((queries + simd::lanes<T> - 1) / simd::lanes<T>),
        blocks(std::max(Index(1), (packs + 1) / block_packs)),  // the last block takes up to 4 packs
        count(std::min(most, blocks)),
        grain(query_grain > queries / count ? 0 : query_grain) {}

  /// First query of chunk c; chunk `count` starts past the last one.
  Index begin(Index c, Index queries) const noexcept {
    if (c == count) return queries;
    const Index first = blocks * c / count * block_packs * simd::lanes<T>;
    return grain > 0 ? std::min(queries, (first + grain / 2) / grain * grain) : first;
  }

  /// About how many register tiles of `tile` keys or features a chunk takes that computes `by_key` numbers of each of
  /// its queries for every key, and `by_step` for every step of them.
  Index tiles(Index keys, Index by_key, Index by_step, Index tile = tile_rows<block_packs>) const noexcept {
    const Index steps = (keys + block_keys - 1) / block_keys;
    const Index each = (packs / count + block_packs - 1) / block_packs;
    return each * (by_key * keys + steps * by_step) / tile;
  }
};

/// Runs call's work items, at most `slots` at a time, each with scratch memory of its own.
template <Scalar T>
class Worker {
 public:
  /// For whole heads, in memory of the caller: slot_bytes() at an address that he carves.
  Worker(const Call<T>& call, Evidence<T>* evidence) : Worker(call, evidence, Index(1)) {}

  /// Reserves the memory; nothing is written to the evidence before run. The first head has row `evidence_row` there.
  Worker(const Call<T>& call, Evidence<T>* evidence, Workspace& workspace, Index concurrency,
         Index evidence_row = 0)
      : Worker(call, evidence, concurrency) {
    evidence_row_ = evidence_row;
    const Index kept_bytes = partial_size_ * static_cast<Index>(sizeof(T));
    if (multiply_overflows(slots_, slot_bytes_) || multiply_overflows(partials_kept_, kept_bytes) ||
        slots_ * slot_bytes_ > std::numeric_limits<Index>::max() - partials_kept_ * kept_bytes)
      throw std::bad_alloc();
    memory_ = workspace.reserve(static_cast<std::size_t>(slots_ * slot_bytes_ + partials_kept_ * kept_bytes));
  }

  template <class Run>
  void run(const Run& executor) {
    reshape_evidence();
    run_reshaped(executor);
  }

  /// The same where the evidence has its shape already: that of this call, or of one with more batch items or keys.
  template <class Run>
  void run_reshaped(const Run& executor) {
    if (slots_ > 1) order_chunks();
    const Index whole = heads_ - cut_;
    share(executor, whole + cut_ * chunks_.count, [this, whole](Index item, const Scratch<T>& scratch) {
      item < whole ? run_head(item, scratch, next(item + slots_)) : run_chunk(item - whole, scratch);
    });
    if (partials_kept_ > 0) share(executor, cut_, [this](Index head, const Scratch<T>&) { add_kept(head); });
  }

  void reshape_evidence() {
    if (evidence_ != nullptr) EvidenceAccess::reshape(*evidence_, evidence_shape_of(call_));
  }

  Index slot_bytes() const noexcept { return slot_bytes_; }

  /// A head of a call; of none, if there is no worker.
  struct Head {
    const Worker* worker = nullptr;
    Index head = 0;
  };

  /// All of one head, in memory of slot_bytes(). `again`: the last to use it was another head of the same call.
  /// `following`: the head that will be computed next, to be asked for; a guess, nothing depends on it.
  void run_head_in(std::byte* memory, Index head, bool again, const Head& following) noexcept {
    Scratch<T> scratch;
    scratch.carve(memory, call_, whole_strip(), partial_size_, again);
    Coming coming;
    if (following.worker != nullptr) scratch.coming = &coming;
    run_head(head, scratch, following);
  }

  /// Asking for the next head keeps tiles apart: it costs 1 % with 512 keys, which take long enough by themselves, and
  /// 3 to 6 % with 32 where all heads stay in a core's part of the third cache. On Golden Cove, whose third cache is
  /// far, calls beyond the second take 5 to 20 % less time, up to heads that fill a quarter of it.
  static bool small_heads_come_from_memory(const Problem& p, double elements) noexcept {
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
    constexpr Index most = Index(1) << 19;
    constexpr double least = 0x1p20;
#else
    constexpr Index most = Index(1) << 17;
    constexpr double least = 0x1p23;
#endif
    return p.keys * (p.dim + p.value_dim) <= most / static_cast<Index>(sizeof(T)) && elements * sizeof(T) > least;
  }

  /// Numbers that a call reads and writes.
  static double elements(const Problem& p) noexcept {
    return static_cast<double>(p.dim + p.value_dim) * static_cast<double>(p.batch) *
           (static_cast<double>(p.heads) * static_cast<double>(p.queries) +
            static_cast<double>(p.kv_heads) * static_cast<double>(p.keys));
  }

 private:
  Worker(const Call<T>& call, Evidence<T>* evidence, Index concurrency)
      : call_(call),
        evidence_(evidence),
        chunks_(call.problem.queries, call.policies.query_grain),
        heads_(call.problem.batch * call.problem.heads),
        with_mass_(evidence != nullptr && call.weights.kind() != QueryWeights::Kind::none),
        slots_(std::clamp(concurrency, Index(1), heads_ * chunks_.count)) {
    const Problem& p = call.problem;
    // Chunks of a head have partial masses of their own, to be added in order. As long as there are heads enough for
    // everybody, a worker takes whole heads and keeps one chunk's at a time; of the last heads, fewer than two for each
    // worker, all are kept, so that everybody is done at the same time.
    if (evidence == nullptr)
      cut_ = heads_;
    else if (chunks_.count > 1 && slots_ > 1)
      cut_ = std::min(heads_, slots_ + heads_ % slots_);
    for (Index c = 0; c < chunks_.count; ++c) order_[c] = c;
    partials_kept_ = evidence != nullptr ? cut_ * chunks_.count : 0;
    columns_ = !with_mass_ ? 0 : call.statistic == evidence::Kind::mass ? 2 : 3;
    partial_size_ = Scratch<T>::padded(columns_ * p.keys + 2);
    Scratch<T> sizes;
    slot_bytes_ = sizes.carve(nullptr, call, whole_strip(), partial_size_);
    ask_for_next_ = heads_ > 1 && small_heads_come_from_memory(p, elements(p));
  }

  bool whole_strip() const noexcept { return with_mass_ || is_sparse(call_.normalization); }

  /// f(item, scratch) for all items, taken in order by whichever slot is free.
  template <class Run, class F>
  void share(const Run& executor, Index items, F f) {
    std::atomic<Index> next{0};
    executor.for_each(std::min(slots_, items), [&](Index slot) {
      Scratch<T> scratch;
      scratch.carve(memory_ + slot * slot_bytes_, call_, whole_strip(), partial_size_);
      Coming coming;
      if (ask_for_next_) scratch.coming = &coming;
      for (Index item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(item, scratch);
    });
  }

  /// The chunks of a head by their work, as the query in the middle of each in the first head tells: those that take
  /// longest come first, lest one of them keeps a worker busy when all else is done.
  void order_chunks() noexcept {
    const Problem& p = call_.problem;
    double work[Chunks<T>::most];
    for (Index c = 0; c < chunks_.count; ++c) {
      const Index begin = chunks_.begin(c, p.queries), end = chunks_.begin(c + 1, p.queries);
      work[c] = static_cast<double>(end - begin) * visible_part((begin + end) / 2);
      // The later of two alike is first: it has the queries that are left over.
      Index at = c;
      for (; at > 0 && work[order_[at - 1]] <= work[c]; --at) order_[at] = order_[at - 1];
      order_[at] = c;
    }
  }

  /// About how much a query sees of the keys: 1 if all.
  double visible_part(Index query) const noexcept {
    const Problem& p = call_.problem;
    if (!call_.policies.has_masks || p.keys == 0) return 1;
    constexpr Index pieces = 32;
    Index seen = 0;
    for (Index i = 0; i < pieces; ++i) {
      const Index begin = p.keys * i / pieces, end = std::max(begin + 1, p.keys * (i + 1) / pieces);
      const Rect rect{query, query + 1, begin, end, call_.first_batch, 0, p.queries, p.keys};
      const mask::Coverage coverage = call_.policies.classify(call_.policies.policies, rect);
      seen += coverage == mask::Coverage::full ? 2 : coverage == mask::Coverage::partial ? 1 : 0;
    }
    return static_cast<double>(seen) / (2 * pieces);
  }

  /// Chunks of the heads that are cut.
  void run_chunk(Index item, const Scratch<T>& scratch) noexcept {
    const Index head = item / chunks_.count, chunk = order_[item % chunks_.count], then = item + slots_;
    const Index whole = heads_ - cut_;
    if (scratch.coming != nullptr)
      expect(*scratch.coming, next(whole + then / chunks_.count), order_[then % chunks_.count], item % chunks_.count,
             next(whole + std::max(then, item + chunks_.count) / chunks_.count));
    attend_chunk(whole + head, chunk, scratch, partials_kept_ > 0 ? kept(head * chunks_.count + chunk) : nullptr);
  }

  void run_head(Index head, const Scratch<T>& scratch, const Head& following) noexcept {
    for (Index c = 0; c < chunks_.count; ++c) {
      if (scratch.coming != nullptr) {
        const bool last = c + 1 == chunks_.count;
        expect(*scratch.coming, last ? following : Head{this, head}, last ? 0 : c + 1, c, following);
      }
      attend_chunk(head, c, scratch, evidence_ != nullptr ? scratch.partial : nullptr);
      if (evidence_ != nullptr) add_partial(head, scratch.partial);
    }
  }

  /// A head of this call that comes later, if there is one.
  Head next(Index head) const noexcept { return head < heads_ ? Head{this, head} : Head{}; }

  /// While a chunk is computed, the queries and the output of `chunk` of `queries` come, which is next, and of the keys
  /// and values of `keys`, the next head of others, one of as many parts as there are chunks.
  void expect(Coming& coming, const Head& queries, Index chunk, Index part, const Head& keys) const noexcept {
    coming.clear();
    if (queries.worker != nullptr) queries.worker->add_queries(coming, queries.head, chunk);
    // Heads that share a key head come one after the other: the first of them asks for it, or the first of a sequence.
    const Problem& p = call_.problem;
    if (keys.worker != nullptr && (keys.worker != this || keys.head % (p.heads / p.kv_heads) == 0))
      keys.worker->add_keys(coming, keys.head, part, chunks_.count);
    const PairProducts<T>* const pairs = call_.source.pairs;
    coming.within(chunks_.tiles(p.keys, 1, p.value_dim, pairs != nullptr ? pairs->tile : tile_rows<block_packs>));
  }

  void add_queries(Coming& coming, Index head, Index chunk) const noexcept {
    const Problem& p = call_.problem;
    const Index begin = chunks_.begin(chunk, p.queries), end = chunks_.begin(chunk + 1, p.queries);
    coming.add(call_.q, head / p.heads, head % p.heads, begin, end);
    coming.add(call_.out, head / p.heads, head % p.heads, begin, end);
  }

  void add_keys(Coming& coming, Index head, Index part, Index parts) const noexcept {
    if (call_.source.cache != nullptr) return;  // they are loaded block by block
    const Problem& p = call_.problem;
    const Index begin = p.keys * part / parts, end = p.keys * (part + 1) / parts, group = p.heads / p.kv_heads;
    coming.add(call_.k, head / p.heads, head % p.heads / group, begin, end);
    coming.add(call_.v, head / p.heads, head % p.heads / group, begin, end);
  }

  void attend_chunk(Index head, Index chunk, const Scratch<T>& scratch, T* partial) noexcept {
    const Index queries = call_.problem.queries, keys = call_.problem.keys;
    EvidenceRows<T> rows;
    if (partial != nullptr) {
      std::fill_n(partial, columns_ * keys + 2, T(0));
      const Index row = evidence_row_ + head;
      rows.lse = EvidenceAccess::lse(*evidence_, row);
      rows.entropy = EvidenceAccess::entropy(*evidence_, row);
      if (is_sparse(call_.normalization)) rows.support = EvidenceAccess::support(*evidence_, row);
      if (with_mass_) rows.mass = partial, rows.exposure = partial + keys;
      if (columns_ > 2) rows.statistic = partial + 2 * keys;
      rows.totals = partial + columns_ * keys;
    }
    attend_queries(call_, head / call_.problem.heads, head % call_.problem.heads, chunks_.begin(chunk, queries),
                   chunks_.begin(chunk + 1, queries), scratch, rows);
  }

  ATTENTION_BALANCER_NOINLINE void add_partial(Index head, const T* partial) noexcept {
    const Index keys = with_mass_ ? call_.problem.keys : 0, row = evidence_row_ + head;
    T *mass = EvidenceAccess::mass(*evidence_, row), *exposure = EvidenceAccess::exposure(*evidence_, row);
    for (Index j = 0; j < keys; ++j) mass[j] += partial[j];
    for (Index j = 0; j < keys; ++j) exposure[j] += partial[keys + j];
    if (columns_ > 2) {
      T* statistic = EvidenceAccess::statistic(*evidence_, row);
      const T* of_chunk = partial + 2 * keys;
      if (call_.statistic == evidence::Kind::maximum)
        for (Index j = 0; j < keys; ++j) statistic[j] = Larger{}(statistic[j], of_chunk[j]);
      else
        for (Index j = 0; j < keys; ++j) statistic[j] += of_chunk[j];
    }
    const T* totals = partial + columns_ * keys;
    *EvidenceAccess::sink_mass(*evidence_, row) += totals[0];
    *EvidenceAccess::empty_rows(*evidence_, row) += static_cast<Index>(totals[1]);
  }

  /// `head`: one of those that are cut.
  void add_kept(Index head) noexcept {
    for (Index c = 0; c < chunks_.count; ++c) add_partial(heads_ - cut_ + head, kept(head * chunks_.count + c));
  }

  T* kept(Index item) const noexcept {
    return reinterpret_cast<T*>(memory_ + slots_ * slot_bytes_) + item * partial_size_;
  }

  const Call<T>& call_;
  Evidence<T>* evidence_;
  Chunks<T> chunks_;
  Index heads_, cut_ = 0;         // the last heads are cut: their chunks are items of their own
  Index order_[Chunks<T>::most];  // in which the chunks of a head are taken
  bool with_mass_, ask_for_next_ = false;
  Index slots_, columns_, partials_kept_, partial_size_, slot_bytes_, evidence_row_ = 0;
  std::byte* memory_ = nullptr;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
