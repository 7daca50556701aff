#pragma once
// attention and attention_evidence: checks, policies, and the division of the work among workers.

#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <type_traits>

#include "attention_balancer/attention/decode.hpp"
#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/policies.hpp"
#include "attention_balancer/core/workspace.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// How the queries of a head are cut, by their own number only: results do not depend on who computes the chunks.
template <Scalar T>
struct Chunks {
  Index packs, blocks, count;

  explicit Chunks(Index queries) noexcept
      : packs((queries + simd::lanes<T> - 1) / simd::lanes<T>),
        blocks(std::max(Index(1), (packs + 1) / block_packs)),  // the last block takes up to 4 packs
        count(std::min(Index(16), blocks)) {}

  /// First query of chunk c; chunk `count` starts past the last one.
  Index begin(Index c, Index queries) const noexcept {
    return c == count ? queries : blocks * c / count * block_packs * simd::lanes<T>;
  }
};

/// Runs call's work items, at most `slots` at a time, each with scratch memory of its own.
template <Scalar T>
class Worker {
 public:
  /// Reserves the memory; nothing is written to the evidence before run.
  Worker(const Call<T>& call, Evidence<T>* evidence, Workspace& workspace, Index concurrency)
      : call_(call), evidence_(evidence), chunks_(call.problem.queries),
        heads_(call.problem.batch * call.problem.heads), with_mass_(evidence != nullptr && call.weights.kind() != QueryWeights::Kind::none) {
    const Problem& p = call.problem;
    slots_ = std::clamp(concurrency, Index(1), heads_ * chunks_.count);
    // Chunks of a head have partial masses of their own, to be added in order. With heads enough for everybody, a
    // worker takes whole heads and keeps one chunk's at a time; otherwise all are kept, 16 per head at most.
    by_chunk_ = evidence == nullptr || (chunks_.count > 1 && slots_ > 1 && heads_ < 2 * slots_);
    partials_kept_ = by_chunk_ && evidence != nullptr ? heads_ * chunks_.count : 0;
    columns_ = !with_mass_ ? 0 : call.statistic == evidence::Kind::mass ? 2 : 3;
    partial_size_ = Scratch<T>::padded(columns_ * p.keys + 2);
    Scratch<T> sizes;
    slot_bytes_ = sizes.carve(nullptr, p, whole_strip(), partial_size_);
    const Index kept_bytes = partial_size_ * static_cast<Index>(sizeof(T));
    if (multiply_overflows(slots_, slot_bytes_) || multiply_overflows(partials_kept_, kept_bytes) ||
        slots_ * slot_bytes_ > std::numeric_limits<Index>::max() - partials_kept_ * kept_bytes)
      throw std::bad_alloc();
    memory_ = workspace.reserve(static_cast<std::size_t>(slots_ * slot_bytes_ + partials_kept_ * kept_bytes));
  }

  template <class Run>
  void run(const Run& executor) {
    if (evidence_ != nullptr)
      EvidenceAccess::reshape(*evidence_, call_.problem.batch, call_.problem.heads, call_.problem.queries,
                              call_.problem.keys, with_mass_, call_.statistic, false, false, is_sparse(call_.normalization));
    share(executor, by_chunk_ ? heads_ * chunks_.count : heads_, [this](Index item, const Scratch<T>& scratch) {
      by_chunk_ ? run_chunk(item, scratch) : run_head(item, scratch);
    });
    if (partials_kept_ > 0) share(executor, heads_, [this](Index head, const Scratch<T>&) { add_kept(head); });
  }

 private:
  /// f(item, scratch) for all items, taken in order by whichever slot is free.
  template <class Run, class F>
  void share(const Run& executor, Index items, F f) {
    std::atomic<Index> next{0};
    executor.for_each(std::min(slots_, items), [&](Index slot) {
      Scratch<T> scratch;
      scratch.carve(memory_ + slot * slot_bytes_, call_.problem, whole_strip(), partial_size_);
      for (Index item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(item, scratch);
    });
  }

  bool whole_strip() const noexcept { return with_mass_ || is_sparse(call_.normalization); }

  void run_chunk(Index item, const Scratch<T>& scratch) noexcept {
    const Index head = item / chunks_.count;
    attend_chunk(head, item % chunks_.count, scratch, partials_kept_ > 0 ? kept(item) : nullptr);
  }

  void run_head(Index head, const Scratch<T>& scratch) noexcept {
    for (Index c = 0; c < chunks_.count; ++c) {
      attend_chunk(head, c, scratch, scratch.partial);
      add_partial(head, scratch.partial);
    }
  }

  void attend_chunk(Index head, Index chunk, const Scratch<T>& scratch, T* partial) noexcept {
    const Index queries = call_.problem.queries, keys = call_.problem.keys;
    EvidenceRows<T> rows;
    if (partial != nullptr) {
      std::fill_n(partial, columns_ * keys + 2, T(0));
      rows.lse = EvidenceAccess::lse(*evidence_, head);
      rows.entropy = EvidenceAccess::entropy(*evidence_, head);
      if (is_sparse(call_.normalization)) rows.support = EvidenceAccess::support(*evidence_, head);
      if (with_mass_) rows.mass = partial, rows.exposure = partial + keys;
      if (columns_ > 2) rows.statistic = partial + 2 * keys;
      rows.totals = partial + columns_ * keys;
    }
    attend_queries(call_, head / call_.problem.heads, head % call_.problem.heads, chunks_.begin(chunk, queries),
                   chunks_.begin(chunk + 1, queries), scratch, rows);
  }

  ATTENTION_BALANCER_NOINLINE void add_partial(Index head, const T* partial) noexcept {
    const Index keys = with_mass_ ? call_.problem.keys : 0;
    T *mass = EvidenceAccess::mass(*evidence_, head), *exposure = EvidenceAccess::exposure(*evidence_, head);
    for (Index j = 0; j < keys; ++j) mass[j] += partial[j];
    for (Index j = 0; j < keys; ++j) exposure[j] += partial[keys + j];
    if (columns_ > 2) {
      T* statistic = EvidenceAccess::statistic(*evidence_, head);
      const T* of_chunk = partial + 2 * keys;
      if (call_.statistic == evidence::Kind::maximum)
        for (Index j = 0; j < keys; ++j) statistic[j] = Larger{}(statistic[j], of_chunk[j]);
      else
        for (Index j = 0; j < keys; ++j) statistic[j] += of_chunk[j];
    }
    const T* totals = partial + columns_ * keys;
    *EvidenceAccess::sink_mass(*evidence_, head) += totals[0];
    *EvidenceAccess::empty_rows(*evidence_, head) += static_cast<Index>(totals[1]);
  }

  void add_kept(Index head) noexcept {
    for (Index c = 0; c < chunks_.count; ++c) add_partial(head, kept(head * chunks_.count + c));
  }

  T* kept(Index item) const noexcept {
    return reinterpret_cast<T*>(memory_ + slots_ * slot_bytes_) + item * partial_size_;
  }

  const Call<T>& call_;
  Evidence<T>* evidence_;
  Chunks<T> chunks_;
  Index heads_;
  bool with_mass_, by_chunk_;
  Index slots_, columns_, partials_kept_, partial_size_, slot_bytes_;
  std::byte* memory_;
};

template <Executor E>
Index concurrency_of(const E& executor) {
  if constexpr (requires { static_cast<Index>(executor.concurrency()); })
    return std::max(Index(1), static_cast<Index>(executor.concurrency()));
  else
    return std::max(Index(1), static_cast<Index>(std::thread::hardware_concurrency()));
}

/// The scale and the sink of the policies. Throws InputError if they are not numbers of T.
template <Scalar T, class... P>
void take_scale_and_sink(Call<T>& call, P&... policies) {
  call.scale = scale_of<T>(call.problem, policies...);
  if (!std::isfinite(call.scale)) fail<InputError>("score::Scale factor", call.scale, "be finite in the tensors' scalar");
  if constexpr (count_of<PolicyKind::sink, T, P...> > 0) {
    auto& sink = find_policy<PolicyKind::sink, T>(policies...);
    using Sink = std::remove_reference_t<decltype(sink)>;
    call.sinks = &sink;
    for (Index h = 0; h < call.problem.heads; ++h)
      if (!(static_cast<T>(sink.logit(h)) < infinity<T>))
        fail<InputError>("normalize::Sink logit of head " + std::to_string(h), sink.logit(h),
                         "be finite in the tensors' scalar, or -inf");
    call.sink_logit = [](const void* s, Index head) { return static_cast<T>(static_cast<const Sink*>(s)->logit(head)); };
  }
}

/// run(workspace, executor, concurrency) with those of the policies, or those that stand in for them.
template <Scalar T, class Run, class... P>
void with_executor_and_workspace(Run run, P&... policies) {
  auto with = [&](Workspace& workspace) {
    if constexpr (count_of<PolicyKind::executor, T, P...> > 0) {
      const auto& executor = find_policy<PolicyKind::executor, T>(policies...);
      run(workspace, executor, concurrency_of(executor));
    } else {
      run(workspace, executor::Sequential{}, Index(1));
    }
  };
  if constexpr (count_of<PolicyKind::workspace, T, P...> > 0) {
    with(find_policy<PolicyKind::workspace, T>(policies...));
  } else {
    Workspace own;
    with(own);
  }
}

/// Everything after the shape checks: `call` has its tensors and problem, the policies bring the rest. Then
/// run(workspace, executor, concurrency, evidence).
template <Scalar T, class Run, class... P>
void run_with_policies(Call<T>& call, Run run, P&... policies) {
  check_positions(call.problem, std::numeric_limits<T>::digits);
  (validate_policy(policies, call.problem), ...);

  const auto set = collect_policies<T>(policies...);
  call.policies = policy_calls<T>(set);
  take_scale_and_sink(call, policies...);
  call.normalization = normalization_of<T>(policies...);

  Evidence<T>* evidence = nullptr;
  if constexpr (count_of<PolicyKind::observation, T, P...> > 0) {
    const auto& observation = find_policy<PolicyKind::observation, T>(policies...);
    evidence = observation.target;
    call.weights = observation.weights;
    call.statistic = observation.statistic;
    call.weights.validate(call.problem.queries);
    const auto [weights, bytes] = call.weights.borrowed();
    if (EvidenceAccess::holds(*evidence, weights, bytes))
      fail<ShapeError>("QueryWeights::of", "in the memory of the evidence",
                       "be copied first: the call overwrites the evidence");
  }
  (check_borrowed(policies, call.out, evidence), ...);

  with_executor_and_workspace<T>(
      [&](Workspace& workspace, const auto& executor, Index concurrency) {
        run(workspace, executor, concurrency, evidence);
      },
      policies...);
}

template <Scalar T, class... P>
void run_attention(Call<T>& call, P&... policies) {
  run_with_policies(
      call,
      [&](Workspace& workspace, const auto& executor, Index concurrency, Evidence<T>* evidence) {
        if (call.problem.queries <= decode_queries && !is_sparse(call.normalization)) {
          const KvView<T> x = kv_view_of(call);
          Decoder<T, T>(call, x, evidence, workspace, concurrency).run(executor);
        } else {
          Worker<T>(call, evidence, workspace, concurrency).run(executor);
        }
      },
      policies...);
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// out = softmax(mask(modifiers(scale * Q K^T))) V, exact, in memory linear in the lengths.
///
/// Shapes: q [B, Hq, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv], out [B, Hq, Nq, Dv]; Hq a multiple of Hkv, query
/// head h attends to key head h / (Hq / Hkv). Nk may be 0; all else is at least 1. Any strides.
///
/// Policies come in any number and order: score modifiers (applied in the order given, score::Scale first; without
/// one the scale is 1 / sqrt(D)), masks (they intersect), a normaliser (default normalize::Softmax), a normalize::Sink,
/// an executor (default executor::Sequential), observe(evidence) and a Workspace.
///
/// A query that sees no key gets 0. What is masked never reaches a result, not even as NaN.
/// Throws ShapeError (sizes, strides, null data, an output that overlaps an input, lengths past the end), InputError
/// (policies with unusable numbers) and std::bad_alloc, all before anything is written.
/// Source: Dao et al., FlashAttention-2, arXiv 2307.08691; Milakov and Gimelshein, arXiv 1805.02867.
template <class Q, class K, class V, class O, class... P>
void attention(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v, const TensorView<O>& out,
               P&&... policies) {
  using T = std::remove_const_t<O>;
  constexpr bool scalars = std::is_same_v<std::remove_const_t<Q>, T> && std::is_same_v<std::remove_const_t<K>, T> &&
                           std::is_same_v<std::remove_const_t<V>, T> && Scalar<T>;
  static_assert(scalars, "attention_balancer: q, k, v and out must all be float or all be double");
  static_assert(!std::is_const_v<O>, "attention_balancer: out must be a view of mutable elements");
  if constexpr (scalars && !std::is_const_v<O>) {
    if constexpr (detail::policies_fit<T, P...>()) {
      const auto lq = detail::layout("q", q), lk = detail::layout("k", k), lv = detail::layout("v", v),
                 lo = detail::layout("out", out);
      Problem problem = detail::check_queries_and_keys(lq, lk);
      detail::check_values_and_output(problem, lq, lk, lv, lo);
      detail::Call<T> call{problem, q, k, v, out};
      detail::run_attention<T>(call, policies...);
    }
  }
}

/// The evidence of attention without values and without output: the policies as for `attention`, one of them
/// observe(evidence). Costs about half of it.
template <class Q, class K, class... P>
void attention_evidence(const TensorView<Q>& q, const TensorView<K>& k, P&&... policies) {
  using T = std::remove_const_t<Q>;
  constexpr bool scalars = std::is_same_v<std::remove_const_t<K>, T> && Scalar<T>;
  static_assert(scalars, "attention_balancer: q and k must both be float or both be double");
  if constexpr (scalars) {
    if constexpr (detail::policies_fit<T, P...>()) {
      constexpr bool observed = detail::count_of<detail::PolicyKind::observation, T, P...> == 1;
      static_assert(observed, "attention_balancer: attention_evidence needs observe(evidence)");
      constexpr bool values = (!detail::needs_values<std::remove_cvref_t<P>> && ...);
      static_assert(values, "attention_balancer: evidence::leave_one_out needs the values: observe it with attention");
      if constexpr (observed && values) {
        const Problem problem = detail::check_queries_and_keys(detail::layout("q", q), detail::layout("k", k));
        detail::Call<T> call{problem, q, k, {}, {}};
        detail::run_attention<T>(call, policies...);
      }
    }
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer
