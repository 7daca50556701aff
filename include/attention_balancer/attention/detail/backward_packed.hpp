#pragma once
// The division of the backward pass of packed sequences among workers.

#include <algorithm>
#include <atomic>
#include <span>

#include "attention_balancer/attention/detail/backward_worker.hpp"
#include "attention_balancer/attention/packed.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Runs each sequence as a call of its own. Those with a head that would keep the last worker long run by themselves,
/// divided as any call is; of the others whole heads are shared out, the longest first.
template <Scalar T>
class PackedBackward {
 public:
  /// `evidence`: one per sequence, or empty, where call.lse is [1, Hq, 1, all queries].
  PackedBackward(const BackwardCall<T>& call, const PackedSequences& sequences,
                 std::span<const Evidence<T>> evidence, Index concurrency)
      : call_(call),
        sequences_(sequences),
        evidence_(evidence),
        concurrency_(std::max(Index(1), concurrency)),
        sums_(call, sequences.sequences(), sequences.key_begin(sequences.sequences()) - sequences.key_begin(0)) {
    const Index count = sequences.sequences();
    // Sequences that add to the same rows of a parameter's gradient do so one after another.
    for (Index m = 0; m < call.modifiers; ++m)
      if (const TensorView<T>& target = call.targets[m]; target.data != nullptr && target.length > 1)
        in_turn_ = in_turn_ || (target.batch == 1 && count > 1);
    for (Index s = 0; s < count; ++s) {
      total_ += cost(s);
      elements_ += BackwardWorker<T>::elements(problem_of(s));
    }
    Index alone_bytes = 0, slot_bytes = 0;
    for (Index s = 0; s < count; ++s) {
      const BackwardCall<T> one = call_of(s);
      const BackwardWorker<T> worker(one, sums_, alone(s) ? concurrency_ : 1);
      if (alone(s)) {
        alone_bytes = std::max(alone_bytes, worker.bytes());
      } else {
        slot_bytes = std::max(slot_bytes, worker.slot_bytes());
        groups_ = worker.groups(), ++shared_;
      }
    }
    slot_bytes_ = (slot_bytes + 63) / 64 * 64;
    if (multiply_overflows(shared_, groups_)) throw std::bad_alloc();
    slots_ = std::clamp(shared_ * groups_, Index(1), concurrency_);
    ByteCount shared, all;
    shared.add(slots_, slot_bytes_);
    all.add(1, std::max(alone_bytes, shared.bytes()));
    order_at_ = all.add(shared_, static_cast<Index>(sizeof(Index)));
    sums_at_ = all.add(1, sums_.bytes());
    bytes_ = all.bytes();
  }

  Index bytes() const noexcept { return bytes_; }
  const ParameterSums<T>& sums() const noexcept { return sums_; }

  template <class Run>
  void run(std::byte* memory, const Run& executor) {
    const Index count = sequences_.sequences();
    sums_.begin(memory + sums_at_);
    for (Index s = 0; s < count; ++s)
      if (alone(s)) {
        const BackwardCall<T> one = call_of(s);
        worker_of(one, concurrency_).run(memory, executor);
      }

    Index* const order = reinterpret_cast<Index*>(memory + order_at_);
    Index placed = 0;
    for (Index s = 0; s < count; ++s)
      if (!alone(s)) order[placed++] = s;
    std::sort(order, order + shared_,
              [this](Index a, Index b) { return cost(a) > cost(b) || (cost(a) == cost(b) && a < b); });
    std::atomic<Index> next{0};
    if (shared_ > 0)
      executor.for_each(slots_, [&](Index slot) {
        for (Index item; (item = next.fetch_add(1, std::memory_order_relaxed)) < shared_ * groups_;)
          run_group(order, item, memory + slot * slot_bytes_);
      });
    for (Index s = 0; s < count; ++s) {
      const BackwardCall<T> one = call_of(s);
      worker_of(one, 1).add_by_key();
    }
    sums_.add_numbers();
  }

 private:
  /// Work in one head of a sequence: its scores, and what does not shrink with them.
  double cost(Index s) const noexcept {
    return (static_cast<double>(sequences_.queries(s)) + 4) * (static_cast<double>(sequences_.keys(s)) + 32);
  }

  /// Whether a sequence is divided among all workers by itself.
  bool alone(Index s) const noexcept {
    return in_turn_ || (concurrency_ > 1 && cost(s) * 8 * static_cast<double>(concurrency_) >
                                                total_ * static_cast<double>(call_.forward.problem.kv_heads));
  }

  /// Group `item` of the sequences that share the workers, in order.
  void run_group(const Index* order, Index item, std::byte* memory) const {
    const BackwardCall<T> one = call_of(order[item / groups_]);
    BackwardWorker<T> worker = worker_of(one, 1);
    const Index then = item + slots_;
    if (then >= shared_ * groups_ || worker.in_turn() ||
        !Worker<T>::small_heads_come_from_memory(problem_of(order[then / groups_]), elements_))
      return worker.run_group_in(memory, item % groups_, {});
    const BackwardCall<T> after = call_of(order[then / groups_]);
    const BackwardWorker<T> next = worker_of(after, 1);
    worker.run_group_in(memory, item % groups_, {&next, then % groups_});
  }

  Problem problem_of(Index s) const noexcept {
    return detail::problem_of(call_.forward.problem, sequences_, s);
  }

  BackwardWorker<T> worker_of(const BackwardCall<T>& one, Index concurrency) const {
    return {one, sums_, concurrency, sequences_.key_begin(one.forward.first_batch) - sequences_.key_begin(0)};
  }

  BackwardCall<T> call_of(Index s) const noexcept {
    BackwardCall<T> one = call_;
    Call<T>& forward = one.forward;
    forward.problem = problem_of(s);
    forward.first_batch = s;
    auto take = [](auto& x, Index begin, Index length) {
      if (x.data != nullptr) x.data += begin * x.length_stride;
      x.length = length;
    };
    const Index query = sequences_.query_begin(s), queries = sequences_.queries(s);
    const Index key = sequences_.key_begin(s), keys = sequences_.keys(s);
    take(forward.q, query, queries), take(one.out, query, queries), take(one.dout, query, queries);
    take(one.dq, query, queries);
    take(forward.k, key, keys), take(forward.v, key, keys), take(one.dk, key, keys), take(one.dv, key, keys);
    if (evidence_.empty()) {
      if (one.lse.data != nullptr) one.lse.data += query * one.lse.dim_stride;
      one.lse.dim = queries;
    } else {
      const Evidence<T>& e = evidence_[static_cast<std::size_t>(s)];
      one.lse = bhsd(e.lse(0, 0).data(), Index(1), forward.problem.heads, Index(1), queries);
    }
    return one;
  }

  const BackwardCall<T>& call_;
  const PackedSequences& sequences_;
  std::span<const Evidence<T>> evidence_;
  Index concurrency_;
  ParameterSums<T> sums_;
  bool in_turn_ = false;
  double total_ = 0, elements_ = 0;
  Index groups_ = 1, shared_ = 0, slots_ = 1, slot_bytes_ = 0, order_at_ = 0, sums_at_ = 0, bytes_ = 0;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
