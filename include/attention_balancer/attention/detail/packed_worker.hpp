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

/// Runs a call by the kernel for its number of queries; `x`: its keys and values.
template <Scalar T, class Stored, class Run>
void run_call(const Call<T>& call, const KvView<Stored>& x, Evidence<T>* evidence, Workspace& workspace,
              const Run& executor, Index concurrency) {
  if (decodes(call))
    Decoder<T, Stored>(call, x, evidence, workspace, concurrency).run(executor);
  else
    Worker<T>(call, evidence, workspace, concurrency).run(executor);
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

/// The queries of one sequence in a call of its own, as its batch item.
template <Scalar T, class Packed>
Call<T> queries_of(const Call<T>& call, const Packed& offsets, Index s) noexcept {
  Call<T> one = call;
  one.problem.batch = 1;
  one.problem.queries = offsets.queries(s);
  one.first_batch = s;
  auto take = [&](auto& x) {
    if (x.data == nullptr) return;
    if (one.problem.queries > 0) x.data += offsets.query_begin(s) * x.length_stride;  // else there is no such row
    x.length = one.problem.queries;
  };
  take(one.q), take(one.out);
  return one;
}

/// Packed sequences as PackedWorker takes them: their keys and values in tensors.
template <Scalar T>
class TensorSequences {
 public:
  using Cached = T;
  using Following = typename SplitWork<T, T>::Following;

  TensorSequences(const Call<T>& call, const PackedSequences& offsets) noexcept
      : call_(call), offsets_(offsets), x_(kv_view_of(call)) {}

  Index count() const noexcept { return offsets_.sequences(); }
  Index queries(Index s) const noexcept { return offsets_.queries(s); }
  Index keys(Index s) const noexcept { return offsets_.keys(s); }

  /// A sequence as a call of its own, and its keys and values.
  struct One {
    Call<T> call;
    KvView<T> x;

    One(const TensorSequences& all, Index s) noexcept : call(queries_of(all.call_, all.offsets_, s)) {
      call.problem.keys = all.keys(s);
      for (TensorView<const T>* rows : {&call.k, &call.v}) {
        if (rows->data == nullptr) continue;
        if (call.problem.keys > 0) rows->data += all.offsets_.key_begin(s) * rows->length_stride;
        rows->length = call.problem.keys;
      }
      x = kv_view_of(call);
    }
  };

  /// The first keys that a worker reads of a sequence.
  Following first_keys(Index s, Index kv_head) const noexcept {
    const Index begin = offsets_.key_begin(s);
    return {&x_, 0, kv_head, begin, begin + std::min(Splits(keys(s)).length, keys(s))};
  }

 private:
  const Call<T>& call_;
  const PackedSequences& offsets_;
  const KvView<T> x_;
};

/// Runs each sequence as a call of its own. Sequences with a piece that would keep the last worker long run by
/// themselves, divided as any call is; of the others whole pieces are shared out, the longest first. A piece is a
/// head, or where few queries decode, the heads that share a key head.
template <Scalar T, class Sequences>
class PackedWorker {
  using One = typename Sequences::One;
  using Decoding = Decoder<T, typename Sequences::Cached>;

 public:
  /// `call`: that of all sequences.
  PackedWorker(const Call<T>& call, const Sequences& sequences, std::span<Evidence<T>> evidence,
               Workspace& workspace, Index concurrency)
      : call_(call),
        sequences_(sequences),
        evidence_(evidence),
        workspace_(workspace),
        concurrency_(std::max(Index(1), concurrency)) {
    const Index count = sequences.count();
    for (Index s = 0; s < count; ++s) {
      total_ += cost(s) * static_cast<double>(pieces(s));
      elements_ += Worker<T>::elements(problem_of(s));
    }
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
    const Index count = sequences_.count();
    // All memory first, so that what throws has written no result; each reserve below finds it.
    workspace_.reserve(static_cast<std::size_t>(order_bytes_ + slots_ * slot_bytes_));
    for (Index s = 0; s < count; ++s)
      if (runs_alone(s)) reserve_alone(s);
    if (!evidence_.empty()) {
      for (Index s = 0; s < count; ++s) EvidenceAccess::reserve(*evidence_of(s), evidence_shape(s));
      for (Index s = 0; s < count; ++s) EvidenceAccess::reshape(*evidence_of(s), evidence_shape(s));
    }

    for (Index s = 0; s < count; ++s) {
      if (!runs_alone(s)) continue;
      const One one(sequences_, s);
      run_call(one.call, one.x, evidence_of(s), workspace_, executor, concurrency_);
    }
    if (shared_ == 0) return;

    std::byte* const memory = workspace_.reserve(static_cast<std::size_t>(order_bytes_ + slots_ * slot_bytes_));
    Index* const order = reinterpret_cast<Index*>(memory);
    Index placed = 0;
    for (Index s = 0; s < count; ++s)
      if (sequences_.queries(s) > 0 && !alone(s)) order[placed++] = s;
    std::sort(order, order + shared_,
              [this](Index a, Index b) { return cost(a) > cost(b) || (cost(a) == cost(b) && a < b); });
    // Neighbours are often neighbours in memory: a few at a time, where that is not too much for one worker.
    const double few = shared_cost_ / (cost(order[0]) * 32 * static_cast<double>(slots_));
    const Index some = slots_ == 1 ? pieces_ : std::max(Index(1), static_cast<Index>(few));
    std::atomic<Index> next{0};
    executor.for_each(slots_, [&](Index slot) {
      std::byte* const scratch = memory + order_bytes_ + slot * slot_bytes_;
      Place at{order, 0};
      Index before = -1;  // the sequence that used the memory last
      for (Index first; (first = next.fetch_add(some, std::memory_order_relaxed)) < pieces_;) {
        const Index end = std::min(first + some, pieces_);
        for (Index item = first; item < end; ++item) {
          advance(at, item);
          // What the same worker is likely to take next.
          const Index likely = item + 1 < end ? item + 1 : next.load(std::memory_order_relaxed);
          Piece following;
          if (likely < pieces_) {
            Place then = at;
            advance(then, likely);
            following = {*then.sequence, likely - then.first_piece};
          }
          run_piece({*at.sequence, item - at.first_piece}, following, scratch, before == *at.sequence);
          before = *at.sequence;
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
    const One one(sequences_, s);
    if (!decodes(s)) return Worker<T>(one.call, evidence_of(s)).slot_bytes();
    return Decoding(one.call, one.x, evidence_of(s)).bytes();
  }

  EvidenceShape evidence_shape(Index s) {
    const One one(sequences_, s);
    if (!decodes(s) || sequences_.queries(s) == 0) return evidence_shape_of(one.call);
    return Decoding(one.call, one.x, evidence_of(s)).evidence_shape();
  }

  /// A sequence in the order that they are taken in, and the number of its first piece.
  struct Place {
    const Index* sequence;
    Index first_piece;
  };
  /// On to the sequence of a piece.
  void advance(Place& at, Index item) const noexcept {
    while (item - at.first_piece >= pieces(*at.sequence)) at.first_piece += pieces(*at.sequence++);
  }

  struct Piece {
    Index sequence = -1, number = 0;  // none, if negative
  };

  /// `following`: the piece that the same worker takes next, a guess. `again`: the piece before was of this sequence.
  void run_piece(const Piece& piece, const Piece& following, std::byte* memory, bool again) noexcept {
    const One one(sequences_, piece.sequence);
    if (decodes(piece.sequence)) {
      typename Sequences::Following keys{};
      if (following.sequence >= 0)
        keys = sequences_.first_keys(following.sequence,
                                     following.number * call_.problem.kv_heads / pieces(following.sequence));
      Decoding(one.call, one.x, evidence_of(piece.sequence)).run_group_in(memory, piece.number, keys);
      return;
    }
    Worker<T> worker(one.call, evidence_of(piece.sequence));
    if (!asks_for(following)) {
      worker.run_head_in(memory, piece.number, again, {});
    } else if (following.sequence == piece.sequence) {
      worker.run_head_in(memory, piece.number, again, {&worker, following.number});
    } else {
      const One after(sequences_, following.sequence);
      const Worker<T> next(after.call, nullptr);
      worker.run_head_in(memory, piece.number, again, {&next, following.number});
    }
  }

  /// Whether a piece of many queries is asked for while the one before is computed.
  bool asks_for(const Piece& piece) const noexcept {
    return piece.sequence >= 0 && !decodes(piece.sequence) &&
           Worker<T>::small_heads_come_from_memory(problem_of(piece.sequence), elements_);
  }

  Problem problem_of(Index s) const noexcept { return detail::problem_of(call_.problem, sequences_, s); }

  void reserve_alone(Index s) {
    const One one(sequences_, s);
    if (decodes(s))
      Decoding(one.call, one.x, evidence_of(s), workspace_, concurrency_);
    else
      Worker<T>(one.call, evidence_of(s), workspace_, concurrency_);
  }

  Evidence<T>* evidence_of(Index s) const noexcept {
    return evidence_.empty() ? nullptr : &evidence_[static_cast<std::size_t>(s)];
  }

  const Call<T>& call_;
  const Sequences& sequences_;
  std::span<Evidence<T>> evidence_;
  Workspace& workspace_;
  Index concurrency_;
  double total_ = 0, shared_cost_ = 0, elements_ = 0;
  Index shared_ = 0, pieces_ = 0;  // sequences that share the workers, and their pieces
  Index slots_ = 1, slot_bytes_ = 0, order_bytes_ = 0;
};

/// Runs a call on packed sequences, as run_call one: a function, so that one translation unit can compile it for
/// others.
template <Scalar T, class Sequences, class Run>
void run_sequences(const Call<T>& call, const Sequences& sequences, std::span<Evidence<T>> evidence,
                   Workspace& workspace, const Run& executor, Index concurrency) {
  PackedWorker<T, Sequences>(call, sequences, evidence, workspace, concurrency).run(executor);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
