#pragma once
// The division of a backward pass among workers, and the order in which what they find is added up.

#include <algorithm>
#include <atomic>

#include "attention_balancer/attention/detail/backward_block.hpp"
#include "attention_balancer/attention/detail/backward_parameters.hpp"
#include "attention_balancer/attention/detail/worker.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The queries [first, end) of one head, in blocks as in the forward pass.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void attend_queries_backward(const BackwardCall<T>& call, Index batch, Index head,
                                                         Index first, Index end, bool keys_finite,
                                                         const BackwardScratch<T>& scratch,
                                                         const BackwardSums<T>& sums) noexcept {
  constexpr Index n = simd::lanes<T>;
  while (first < end) {
    const Index packs = (end - first + n - 1) / n;
    const Index now = packs == 4 ? 2 : std::min(packs, Index(block_packs));
    // The same blocks as one by one: no four packs are left on the way.
    const Index blocks = now < 3 ? 1 : std::min(scratch.together, (packs % 3 == 1 ? packs - 4 : packs) / 3);
    const Index last = std::min(now * n, end - first - (blocks - 1) * now * n), count = blocks > 1 ? now * n : last;
    if (now == 3)
      BackwardBlock<T, 3>(call, batch, head, first, count, keys_finite, scratch, sums)
          .run(static_cast<int>(blocks), last);
    else if (now == 2)
      BackwardBlock<T, 2>(call, batch, head, first, count, keys_finite, scratch, sums).run(1, last);
    else
      BackwardBlock<T, 1>(call, batch, head, first, count, keys_finite, scratch, sums).run(1, last);
    first += (blocks - 1) * now * n + last;
  }
}

/// to [rows, dim] = or += from [rows, stride]
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void add_partial_rows(T* to, Index row, Index column, const T* from, Index stride,
                                                  Index rows, Index dim, bool add) noexcept {
  for (Index j = 0; j < rows; ++j) {
    T* const x = to + j * row;
    const T* const y = from + j * stride;
    if (column == 1)
      for (Index c = 0; c < dim; ++c) x[c] = add ? x[c] + y[c] : y[c];
    else
      for (Index c = 0; c < dim; ++c) x[c * column] = add ? x[c * column] + y[c] : y[c];
  }
}

/// Runs a backward call. The queries of a head are cut into at most 8 chunks by their own number; each has partial
/// gradients of the keys and values of its own, and all are added in the order of the chunks.
template <Scalar T>
class BackwardWorker {
 public:
  /// `sums`, without memory yet, and `call` must outlive it; the policies know its first batch item as
  /// call.forward.first_batch, before which there were `first_key` keys.
  BackwardWorker(const BackwardCall<T>& call, const ParameterSums<T>& sums, Index concurrency, Index first_key = 0)
      : call_(call),
        p_(call.forward.problem),
        sums_(sums),
        chunks_(p_.queries),
        group_(p_.heads / p_.kv_heads),
        first_key_(first_key) {
    // At least two blocks each: to add up the gradients of all keys costs as much as a tenth of a block.
    chunks_.count = std::clamp(chunks_.blocks / 2, Index(1), ParameterSums<T>::most_chunks);
    // Heads that add to the same rows of a parameter's gradient do so one after another.
    for (Index m = 0; m < call.modifiers; ++m) {
      const TensorView<T>& target = call.targets[m];
      if (target.data == nullptr || target.length <= 1) continue;
      batch_in_turn_ = batch_in_turn_ || (target.batch == 1 && p_.batch > 1);
      heads_in_turn_ = heads_in_turn_ || (target.heads == 1 && p_.kv_heads > 1);
    }
    groups_ = (batch_in_turn_ ? 1 : p_.batch) * (heads_in_turn_ ? 1 : p_.kv_heads);
    slots_ = std::clamp(concurrency, Index(1), std::max(groups_ * chunks_.count, Index(1)));
    // With groups enough for everybody a worker takes whole ones and keeps one chunk's sums at a time.
    by_chunk_ = chunks_.count > 1 && slots_ > 1 && groups_ < 2 * slots_;
    if (!by_chunk_) slots_ = std::min(slots_, groups_);

    key_stride_ = padded_features<T>(p_.dim), value_stride_ = padded_features<T>(p_.value_dim);
    require_addressable("k.length", p_.keys, key_stride_ + value_stride_);
    partial_size_ = Scratch<T>::padded(p_.keys * key_stride_) + Scratch<T>::padded(p_.keys * value_stride_);
    const Index partials = by_chunk_ ? p_.batch * p_.kv_heads * chunks_.count : 0;
    BackwardScratch<T> sizes;
    slot_bytes_ = carve(sizes, nullptr);
    ByteCount count;
    count.add(slots_, slot_bytes_);
    partials_at_ = count.add(partials, partial_size_ * static_cast<Index>(sizeof(T)));
    bytes_ = count.bytes();
  }

  /// Numbers that a call reads and writes, of every tensor and its gradient.
  static double elements(const Problem& p) noexcept { return 2 * Worker<T>::elements(p); }

  /// A group of a call; of none, if there is no worker.
  struct Group {
    const BackwardWorker* worker = nullptr;
    Index group = 0;
  };

  /// Of memory for run, and for run_group.
  Index bytes() const noexcept { return bytes_; }
  Index slot_bytes() const noexcept { return slot_bytes_; }

  /// Batch items and key heads that can run beside each other.
  Index groups() const noexcept { return groups_; }
  /// Whether there are more of them than groups.
  bool in_turn() const noexcept { return batch_in_turn_ || heads_in_turn_; }

  /// All of the call; `sums` have begun.
  template <class Run>
  void run(std::byte* memory, const Run& executor) {
    memory_ = memory;
    partials_memory_ = reinterpret_cast<T*>(memory + partials_at_);
    share(executor, by_chunk_ ? groups_ * chunks_.count : groups_,
          [this](Index item, const BackwardScratch<T>& scratch) {
            by_chunk_ ? run_chunk(item, scratch) : run_group(item, scratch, next(item + slots_));
          });
    if (by_chunk_)
      share(executor, p_.batch * p_.kv_heads, [this](Index head, const BackwardScratch<T>&) {
        for (Index c = 0; c < chunks_.count; ++c)
          add_partial(head, c, partials_memory_ + (head * chunks_.count + c) * partial_size_);
      });
  }

  /// One group, in memory of slot_bytes(), of a worker made for a concurrency of 1. `following`: the group that will be
  /// computed next, to be asked for; a guess, nothing depends on it.
  void run_group_in(std::byte* memory, Index group, const Group& following) noexcept {
    BackwardScratch<T> scratch;
    carve(scratch, memory);
    run_group(group, scratch, following);
  }

  /// After all groups have run.
  void add_by_key() const noexcept {
    for (Index b = 0; b < p_.batch; ++b)
      sums_.add_by_key(call_.forward.first_batch + b, first_key_ + b * p_.keys, p_.keys, chunks_.count);
  }

 private:
  Index carve(BackwardScratch<T>& scratch, std::byte* memory) const noexcept {
    return scratch.carve(memory, p_, is_sparse(call_.forward.normalization), call_.modifiers,
                         by_chunk_ ? 0 : partial_size_);
  }

  template <class Run, class F>
  void share(const Run& executor, Index items, F f) {
    if (items == 0) return;
    std::atomic<Index> next{0};
    executor.for_each(std::min(slots_, items), [&](Index slot) {
      BackwardScratch<T> scratch;
      carve(scratch, memory_ + slot * slot_bytes_);
      for (Index item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(item, scratch);
    });
  }

  /// f(batch item, key head) for all of a group, in order.
  template <class F>
  void for_each_head(Index group, F f) const noexcept {
    const Index columns = heads_in_turn_ ? 1 : p_.kv_heads, b = group / columns, h = group % columns;
    for (Index i = batch_in_turn_ ? 0 : b; i < (batch_in_turn_ ? p_.batch : b + 1); ++i)
      for (Index j = heads_in_turn_ ? 0 : h; j < (heads_in_turn_ ? p_.kv_heads : h + 1); ++j) f(i, j);
  }

  void run_chunk(Index item, const BackwardScratch<T>& scratch) noexcept {
    const Index chunk = item % chunks_.count;
    for_each_head(item / chunks_.count, [&](Index b, Index kv) {
      attend_chunk(b, kv, chunk, keys_finite(b, kv), scratch,
                   partials_memory_ + ((b * p_.kv_heads + kv) * chunks_.count + chunk) * partial_size_, {});
    });
  }

  void run_group(Index group, BackwardScratch<T> scratch, const Group& following) noexcept {
    Coming coming;
    if (following.worker != nullptr) scratch.coming = &coming;
    for_each_head(group, [&](Index b, Index kv) {
      const bool finite = keys_finite(b, kv);
      for (Index c = 0; c < chunks_.count; ++c) {
        attend_chunk(b, kv, c, finite, scratch, scratch.partial, following);
        add_partial(b * p_.kv_heads + kv, c, scratch.partial);
      }
    });
  }

  void attend_chunk(Index b, Index kv, Index chunk, bool finite, const BackwardScratch<T>& scratch, T* partial,
                    const Group& following) noexcept {
    std::fill_n(partial, partial_size_, T(0));
    for (Index h = kv * group_; h < (kv + 1) * group_; ++h) {
      if (following.worker != nullptr)
        expect(*scratch.coming, b * p_.kv_heads + kv, chunk * group_ + h % group_, following);
      const Index item = call_.forward.first_batch + b, first_key = first_key_ + b * p_.keys;
      const BackwardSums<T> sums{partial, partial + Scratch<T>::padded(p_.keys * key_stride_),
                                 sums_.by_key(first_key, p_.keys, h, chunk), sums_.numbers(item, h, chunk)};
      std::fill_n(sums.by_key, sums_.by_key_size(p_.keys), T(0));
      attend_queries_backward(call_, b, h, chunks_.begin(chunk, p_.queries), chunks_.begin(chunk + 1, p_.queries),
                              finite, scratch, sums);
    }
  }

  /// The group of this call that a worker takes next, if it is to be asked for.
  Group next(Index group) const noexcept {
    const bool asks = Worker<T>::small_heads_come_from_memory(p_, elements(p_));
    return asks && group < groups_ && !in_turn() ? Group{this, group} : Group{};
  }

  /// While a piece of a group is computed, one query head's part of a chunk, the rows of the next one come, and of the
  /// keys and values of the following group one of as many parts as there are pieces.
  void expect(Coming& coming, Index group, Index piece, const Group& following) const noexcept {
    const Index pieces = chunks_.count * group_;
    coming.clear();
    if (piece + 1 < pieces)
      add_queries(coming, group, piece + 1);
    else
      following.worker->add_queries(coming, following.group, 0);
    following.worker->add_keys(coming, following.group, piece, pieces);
    coming.within(chunks_.tiles(p_.keys, 2, p_.dim));
  }

  void add_queries(Coming& coming, Index group, Index piece) const noexcept {
    const Index b = group / p_.kv_heads, h = group % p_.kv_heads * group_ + piece % group_, chunk = piece / group_;
    const Index begin = chunks_.begin(chunk, p_.queries), end = chunks_.begin(chunk + 1, p_.queries);
    coming.add(call_.forward.q, b, h, begin, end);
    coming.add(call_.dout, b, h, begin, end);
    coming.add(call_.out, b, h, begin, end);
    coming.add(call_.dq, b, h, begin, end);
  }

  void add_keys(Coming& coming, Index group, Index part, Index parts) const noexcept {
    const Index b = group / p_.kv_heads, kv = group % p_.kv_heads;
    const Index begin = p_.keys * part / parts, end = p_.keys * (part + 1) / parts;
    coming.add(call_.forward.k, b, kv, begin, end);
    coming.add(call_.forward.v, b, kv, begin, end);
    coming.add(call_.dk, b, kv, begin, end);
    coming.add(call_.dv, b, kv, begin, end);
  }

  bool keys_finite(Index b, Index kv) const noexcept {
    const TensorView<const T>& k = call_.forward.k;
    return p_.keys == 0 || p_.dim == 0 ||
           rows_finite(&k(b, kv, 0, 0), k.length_stride, k.dim_stride, p_.keys, p_.dim);
  }

  void add_partial(Index head, Index chunk, const T* partial) noexcept {
    const Index b = head / p_.kv_heads, kv = head % p_.kv_heads;
    const TensorView<T>&dk = call_.dk, &dv = call_.dv;
    if (p_.keys == 0) return;
    add_partial_rows(&dk(b, kv, 0, 0), dk.length_stride, dk.dim_stride, partial, key_stride_, p_.keys, p_.dim,
                     chunk > 0);
    add_partial_rows(&dv(b, kv, 0, 0), dv.length_stride, dv.dim_stride,
                     partial + Scratch<T>::padded(p_.keys * key_stride_), value_stride_, p_.keys, p_.value_dim,
                     chunk > 0);
  }

  const BackwardCall<T>& call_;
  const Problem& p_;
  const ParameterSums<T>& sums_;
  Chunks<T> chunks_;
  const Index group_, first_key_;  // query heads per key head
  bool batch_in_turn_ = false, heads_in_turn_ = false, by_chunk_ = false;
  Index groups_ = 0, slots_ = 0, key_stride_ = 0, value_stride_ = 0;
  Index partial_size_ = 0, partials_at_ = 0, slot_bytes_ = 0, bytes_ = 0;
  std::byte* memory_ = nullptr;
  T* partials_memory_ = nullptr;
};

/// Runs a call and then finish(sums), for what is a policy's but not a score modifier's.
template <Scalar T, class Run, class Finish>
void run_backward_call(const BackwardCall<T>& call, Workspace& workspace, const Run& executor, Index concurrency,
                       Finish finish) {
  const Problem& p = call.forward.problem;
  ParameterSums<T> sums(call, p.batch, p.batch * p.keys);
  BackwardWorker<T> worker(call, sums, concurrency);
  ByteCount count;
  count.add(1, worker.bytes());
  const Index sums_at = count.add(1, sums.bytes());
  std::byte* const memory = workspace.reserve(static_cast<std::size_t>(count.bytes()));
  sums.begin(memory + sums_at);
  worker.run(memory, executor);
  worker.add_by_key();
  sums.add_numbers();
  finish(sums);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
