#pragma once
// The division of packed sequences among workers.

#include <algorithm>
#include <atomic>
#include <new>
#include <span>

#include "attention_balancer/attention/decode.hpp"
#include "attention_balancer/attention/detail/worker.hpp"
#include "attention_balancer/attention/packed.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Runs a call by the kernel for its number of queries.
template <Scalar T, class Run>
void run_call(const Call<T>& call, Evidence<T>* evidence, Workspace& workspace, const Run& executor,
              Index concurrency) {
  if (decodes(call)) {
    const KvView<T> x = kv_view_of(call);
    Decoder<T, T>(call, x, evidence, workspace, concurrency).run(executor);
  } else {
    Worker<T>(call, evidence, workspace, concurrency).run(executor);
  }
}

/// The problem that fits every sequence, with a batch item for each. Throws ShapeError.
inline Problem packed_problem(const Problem& all, const PackedSequences& sequences) {
  require_equal("q.batch of packed sequences", all.batch, "one row of tokens", 1);
  sequences.check(all.queries, all.keys);
  Problem largest = all;
  largest.batch = sequences.sequences(), largest.queries = largest.keys = 0;
  for (Index s = 0; s < sequences.sequences(); ++s) {
    largest.queries = std::max(largest.queries, sequences.queries(s));
    largest.keys = std::max(largest.keys, sequences.keys(s));
  }
  return largest;
}

/// Runs each sequence as a call of its own. Sequences with a piece that would keep the last worker long run by
/// themselves, divided as any call is; of the others whole pieces are shared out, the longest first. A piece is a
/// head, or where few queries decode, the heads that share a key head.
template <Scalar T>
class PackedWorker {
 public:
  PackedWorker(const Call<T>& call, const PackedSequences& sequences, std::span<Evidence<T>> evidence,
               Workspace& workspace, Index concurrency)
      : call_(call),
        sequences_(sequences),
        evidence_(evidence),
        workspace_(workspace),
        concurrency_(std::max(Index(1), concurrency)) {
    const Index count = sequences.sequences();
    for (Index s = 0; s < count; ++s) total_ += cost(s) * static_cast<double>(pieces(s));
    for (Index s = 0; s < count; ++s) {
      if (sequences.queries(s) == 0 || alone(s)) continue;
      slot_bytes_ = std::max(slot_bytes_, piece_bytes(s));
      ++shared_;
      pieces_ += pieces(s);
      shared_cost_ += cost(s) * static_cast<double>(pieces(s));
    }
    if (multiply_overflows(shared_, call.problem.heads)) throw std::bad_alloc();
    slots_ = std::clamp(pieces_, Index(1), concurrency_);
    order_bytes_ = (shared_ * static_cast<Index>(sizeof(Index)) + 63) / 64 * 64;
    if (multiply_overflows(slots_, slot_bytes_) ||
        slots_ * slot_bytes_ > std::numeric_limits<Index>::max() - order_bytes_)
      throw std::bad_alloc();
  }

  template <class Run>
  void run(const Run& executor) {
    const Index count = sequences_.sequences();
    // All memory first, so that what throws has written no result; each reserve below finds it.
    workspace_.reserve(static_cast<std::size_t>(order_bytes_ + slots_ * slot_bytes_));
    for (Index s = 0; s < count; ++s)
      if (runs_alone(s)) reserve_alone(s);
    if (!evidence_.empty()) {
      for (Index s = 0; s < count; ++s) EvidenceAccess::reserve(*evidence_of(s), evidence_shape(s));
      for (Index s = 0; s < count; ++s) EvidenceAccess::reshape(*evidence_of(s), evidence_shape(s));
    }

    for (Index s = 0; s < count; ++s)
      if (runs_alone(s)) run_call(call_of(s), evidence_of(s), workspace_, executor, concurrency_);
    if (shared_ == 0) return;

    std::byte* const memory = workspace_.reserve(static_cast<std::size_t>(order_bytes_ + slots_ * slot_bytes_));
    Index* const order = reinterpret_cast<Index*>(memory);
    Index placed = 0;
    for (Index s = 0; s < count; ++s)
      if (sequences_.queries(s) > 0 && !alone(s)) order[placed++] = s;
    std::sort(order, order + shared_,
              [this](Index a, Index b) { return cost(a) > cost(b) || (cost(a) == cost(b) && a < b); });
    // Neighbours are often neighbours in memory: a few at a time, where that is not too much for one worker.
    const double few = shared_cost_ / (cost(order[0]) * 8 * static_cast<double>(slots_));
    const Index some = slots_ == 1 ? pieces_ : std::max(Index(1), static_cast<Index>(few));
    std::atomic<Index> next{0};
    executor.for_each(slots_, [&](Index slot) {
      std::byte* const scratch = memory + order_bytes_ + slot * slot_bytes_;
      const Index* sequence = order;
      Index first_piece = 0;  // of the sequence
      for (Index first; (first = next.fetch_add(some, std::memory_order_relaxed)) < pieces_;) {
        const Index end = std::min(first + some, pieces_);
        for (Index item = first; item < end; ++item) {
          while (item - first_piece >= pieces(*sequence)) first_piece += pieces(*sequence++);
          const bool last = item - first_piece + 1 == pieces(*sequence);
          run_piece(*sequence, item - first_piece, item + 1 == end ? -1 : last ? sequence[1] : *sequence, scratch);
        }
      }
    });
  }

 private:
  bool decodes(Index s) const noexcept {
    return sequences_.queries(s) <= decode_queries && !is_sparse(call_.normalization);
  }

  Index pieces(Index s) const noexcept { return decodes(s) ? call_.problem.kv_heads : call_.problem.heads; }

  /// Work in one piece of a sequence: its scores, and what does not shrink with them. Reading the keys and values
  /// for a few queries takes as long as the scores of many.
  double cost(Index s) const noexcept {
    const Index queries = sequences_.queries(s);
    const Index rows =
        decodes(s) ? std::max(queries * (call_.problem.heads / call_.problem.kv_heads), Index(16)) : queries;
    return static_cast<double>(queries == 0 ? 0 : rows) * (static_cast<double>(sequences_.keys(s)) + 32);
  }

  /// Whether a sequence is a call by itself: a piece of it is too much for one worker.
  bool alone(Index s) const noexcept {
    return concurrency_ > 1 && cost(s) * 8 * static_cast<double>(concurrency_) > total_;
  }
  bool runs_alone(Index s) const noexcept { return sequences_.queries(s) > 0 && alone(s); }

  Index piece_bytes(Index s) {
    const Call<T> one = call_of(s);
    if (!decodes(s)) return Worker<T>(one, evidence_of(s)).slot_bytes();
    const KvView<T> x = kv_view_of(one);
    return Decoder<T, T>(one, x, evidence_of(s)).bytes();
  }

  EvidenceShape evidence_shape(Index s) {
    const Call<T> one = call_of(s);
    if (!decodes(s) || sequences_.queries(s) == 0) return Worker<T>(one, evidence_of(s)).evidence_shape();
    const KvView<T> x = kv_view_of(one);
    return Decoder<T, T>(one, x, evidence_of(s)).evidence_shape();
  }

  /// `following`: the sequence of the piece that the same worker takes next, -1 if that is not known.
  void run_piece(Index s, Index piece, Index following, std::byte* memory) noexcept {
    const Call<T> one = call_of(s);
    if (!decodes(s)) return Worker<T>(one, evidence_of(s)).run_head_in(memory, piece);
    const KvView<T> x = kv_view_of(one);
    Decoder<T, T> decoder(one, x, evidence_of(s));
    if (following < 0) return decoder.run_group_in(memory, piece, {});
    if (following == s) return decoder.run_group_in(memory, piece, decoder.keys_of_group(piece + 1));
    const Call<T> other = call_of(following);
    const KvView<T> y = kv_view_of(other);
    decoder.run_group_in(memory, piece, Decoder<T, T>(other, y, nullptr).keys_of_group(0));
  }

  void reserve_alone(Index s) {
    const Call<T> one = call_of(s);
    if (decodes(s)) {
      const KvView<T> x = kv_view_of(one);
      Decoder<T, T>(one, x, evidence_of(s), workspace_, concurrency_);
    } else {
      Worker<T>(one, evidence_of(s), workspace_, concurrency_);
    }
  }

  Evidence<T>* evidence_of(Index s) const noexcept {
    return evidence_.empty() ? nullptr : &evidence_[static_cast<std::size_t>(s)];
  }

  Call<T> call_of(Index s) const noexcept {
    Call<T> one = call_;
    one.problem.batch = 1;
    one.problem.queries = sequences_.queries(s), one.problem.keys = sequences_.keys(s);
    one.first_batch = s;
    auto take = [](auto& x, Index begin, Index length) {
      if (x.data == nullptr) return;
      x.data += begin * x.length_stride;
      x.length = length;
    };
    take(one.q, sequences_.query_begin(s), one.problem.queries);
    take(one.out, sequences_.query_begin(s), one.problem.queries);
    take(one.k, sequences_.key_begin(s), one.problem.keys);
    take(one.v, sequences_.key_begin(s), one.problem.keys);
    return one;
  }

  const Call<T>& call_;
  const PackedSequences& sequences_;
  std::span<Evidence<T>> evidence_;
  Workspace& workspace_;
  Index concurrency_;
  double total_ = 0, shared_cost_ = 0;
  Index shared_ = 0, pieces_ = 0;  // sequences that share the workers, and their pieces
  Index slots_ = 1, slot_bytes_ = 0, order_bytes_ = 0;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
