#pragma once
// attention and attention_evidence: checks, policies, and the division of the work among workers.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <type_traits>

#include "attention_balancer/attention/detail/packed_worker.hpp"
#include "attention_balancer/attention/policies.hpp"
#include "attention_balancer/core/cpu.hpp"
#include "attention_balancer/core/workspace.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The multiply-adds of a call if everything is seen. A key that few queries see counts as if more did: reading it
/// takes as long.
inline double work_of(const Problem& p) noexcept {
  constexpr double fewest = 4;
  const double kv_heads = static_cast<double>(p.kv_heads);
  const double rows = std::max(static_cast<double>(p.heads) / kv_heads * static_cast<double>(p.queries), fewest);
  return static_cast<double>(p.batch) * kv_heads * rows * static_cast<double>(p.keys) *
         static_cast<double>(p.dim + p.value_dim);
}

/// The same of sequences with queries(s) and keys(s) each. `one`: the problem of any.
template <class Queries, class Keys>
double work_of(Problem one, Index sequences, Queries queries, Keys keys) noexcept {
  one.batch = 1;
  double work = 0;
  for (Index s = 0; s < sequences; ++s) {
    one.queries = queries(s), one.keys = keys(s);
    if (one.queries > 0) work += work_of(one);
  }
  return work;
}

/// How many threads a call of so many multiply-adds may take.
template <Executor E>
Index concurrency_of(const E& executor, double work) {
  Index threads = 1;
  if constexpr (requires { static_cast<Index>(executor.concurrency()); })
    threads = static_cast<Index>(executor.concurrency());
  else
    threads = Index(processors());
  if constexpr (requires { static_cast<double>(executor.grain); })
    if (const double grain = static_cast<double>(executor.grain);
        grain > 0 && work < grain * static_cast<double>(threads))
      threads = static_cast<Index>(work / grain);
  return std::max(Index(1), threads);
}

/// The scale and the sink of the policies. Throws InputError if they are not numbers of T.
template <Scalar T, class... P>
void take_scale_and_sink(Call<T>& call, P&... policies) {
  call.scale = scale_of<T>(call.problem, policies...);
  if (!std::isfinite(call.scale))
    fail<InputError>("score::Scale factor", call.scale, "be finite in the tensors' scalar");
  if constexpr (count_of<PolicyKind::sink, T, P...> > 0) {
    auto& sink = find_policy<PolicyKind::sink, T>(policies...);
    using Sink = std::remove_reference_t<decltype(sink)>;
    call.sinks = &sink;
    for (Index h = 0; h < call.problem.heads; ++h)
      if (!(static_cast<T>(sink.logit(h)) < infinity<T>))
        fail<InputError>("normalize::Sink logit of head " + std::to_string(h), sink.logit(h),
                         "be finite in the tensors' scalar, or -inf");
    call.sink_logit = [](const void* s, Index head) {
      return static_cast<T>(static_cast<const Sink*>(s)->logit(head));
    };
  }
}

/// run(workspace, executor, concurrency) with those of the policies, or those that stand in for them, for a call of so
/// much `work`.
template <Scalar T, class Run, class... P>
void with_executor_and_workspace([[maybe_unused]] double work, Run run, P&... policies) {
  auto with = [&](Workspace& workspace) {
    if constexpr (count_of<PolicyKind::executor, T, P...> > 0) {
      const auto& executor = find_policy<PolicyKind::executor, T>(policies...);
      run(workspace, executor, concurrency_of(executor, work));
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

/// Throws if the evidence is where the query weights are.
template <Scalar T>
void check_evidence(const Evidence<T>& evidence, const QueryWeights& weights) {
  const auto [data, bytes] = weights.borrowed();
  if (EvidenceAccess::holds(evidence, data, bytes))
    fail<ShapeError>("QueryWeights::of", "in the memory of the evidence",
                     "be copied first: the call overwrites the evidence");
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
    check_evidence(*evidence, call.weights);
  }
  (check_borrowed(policies, call.out, evidence), ...);
  if (call.problem.batch == 0 || call.problem.queries == 0) {  // their tensors may have no data: nobody computes
    if (evidence != nullptr) EvidenceAccess::reshape(*evidence, evidence_shape_of(call));
    return;
  }

  with_executor_and_workspace<T>(
      work_of(call.problem),
      [&](Workspace& workspace, const auto& executor, Index concurrency) {
        run(workspace, executor, concurrency, evidence);
      },
      policies...);
}

/// The same for sequences that `offsets` name, with keys(s) each, and an Evidence of its own. `largest`: the problem
/// that fits each, with a batch item for each.
template <Scalar T, class Packed, class Keys, class Run, class... P>
void run_packed(Call<T>& call, const Packed& offsets, Keys keys, const Problem& largest, Run run, P&... policies) {
  check_positions(largest, std::numeric_limits<T>::digits);
  (validate_policy(policies, largest), ...);

  const auto set = collect_policies<T>(policies...);
  call.policies = policy_calls<T>(set);
  take_scale_and_sink(call, policies...);
  call.normalization = normalization_of<T>(policies...);

  std::span<Evidence<T>> evidence;
  if constexpr (count_of<PolicyKind::packed_observation, T, P...> > 0) {
    const auto& observation = find_policy<PolicyKind::packed_observation, T>(policies...);
    evidence = observation.targets;
    call.weights = observation.weights;
    call.statistic = observation.statistic;
    require_equal("observe number of evidences", static_cast<Index>(evidence.size()), "the packed sequences",
                  largest.batch);
    for (Index s = 0; s < largest.batch; ++s)
      if (offsets.queries(s) > 0) call.weights.validate(offsets.queries(s));
    for (const Evidence<T>& e : evidence) {
      check_evidence(e, call.weights);
      (check_borrowed(policies, call.out, &e), ...);
    }
  } else {
    (check_borrowed(policies, call.out, static_cast<const Evidence<T>*>(nullptr)), ...);
  }
  auto queries = [&](Index s) { return offsets.queries(s); };
  with_executor_and_workspace<T>(
      work_of(largest, largest.batch, queries, keys),
      [&](Workspace& workspace, const auto& executor, Index concurrency) {
        run(workspace, executor, concurrency, evidence);
      },
      policies...);
}

template <Scalar T, class... P>
void run_attention(Call<T>& call, P&... policies) {
  if constexpr (count_of<PolicyKind::sequences, T, P...> > 0) {
    const PackedSequences& offsets = find_policy<PolicyKind::sequences, T>(policies...);
    run_packed(
        call, offsets, [&](Index s) { return offsets.keys(s); }, packed_problem(call.problem, offsets),
        [&](Workspace& workspace, const auto& executor, Index concurrency, std::span<Evidence<T>> evidence) {
          const TensorSequences<T> sequences(call, offsets);
          run_sequences(call, sequences, evidence, workspace, executor, concurrency);
        },
        policies...);
  } else {
    run_with_policies(
        call,
        [&](Workspace& workspace, const auto& executor, Index concurrency, Evidence<T>* evidence) {
          const KvView<T> x = kv_view_of(call);
          run_call(call, x, evidence, workspace, executor, concurrency);
        },
        policies...);
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// out = softmax(mask(modifiers(scale * Q K^T))) V, exact, in memory linear in the lengths.
///
/// Shapes: q [B, Hq, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv], out [B, Hq, Nq, Dv]; Hq a multiple of Hkv, query
/// head h attends to key head h / (Hq / Hkv). Any strides. B, Nq and Nk may be 0; all else is at least 1. Without
/// queries there is no output, and the evidence is that of nobody: mass and exposure of every key 0.
///
/// Policies come in any number and order: score modifiers (applied in the order given, score::Scale first; without
/// one the scale is 1 / sqrt(D)), masks (they intersect), a normaliser (default normalize::Softmax), a normalize::Sink,
/// an executor (default executor::Sequential), observe(evidence), a Workspace, and PackedSequences.
///
/// A query that sees no key gets 0. What is masked never reaches a result, not even as NaN. What is seen does, however
/// small its weight: a value that is infinite makes its feature of the output infinite, and NaN where the weight is too
/// small for T.
///
/// Logits may be as large as T holds, save where softmax has more than eight queries a head and no score modifiers:
/// there they are multiplied by log2(e), which spares it a multiplication for each weight, and beyond 0.69 of the
/// largest number of T they count as infinite. A positive one makes its query NaN, a negative one is as if masked.
/// (To find them and start again would make the bits of a query depend on those beside it.)
///
/// Accuracy, with eps the epsilon of T: a logit of query i is off by at most e_i = eps (6 + D / 2) A_i, A_i the largest
/// |scale| sum_c |q_ic k_jc|, and by 6 eps of what modifiers and a sink add. With r_i = exp(2 e_i) - 1 + 16 eps outputs
/// are off by at most r_i of the largest |v|, masses by the largest r_i of themselves and by 8 Nq w, lse by
/// e_i + eps (4 + 2 |lse|), entropy by (4 + 2 log(Nk + 1)) (e_i + 4 eps). w is 2^-110 in float and 2^-1000 in double:
/// weights below it, of the largest of their query, may count as 0. In numbers, for 300 to 1000 keys, D 32 to 128 and
/// scores as large as 1: outputs 16 eps of sum_j p_ij |v_j|, masses 32 eps of themselves, lse 16 eps of the larger of
/// |lse| and 1, entropy 128 eps; as large as 10: 128, 128, 32 and 128 eps; 30: 512, 512, 16 and 512 eps; 10^4: 1000,
/// 1000, 16 and 1000 eps.
/// eps is 1.2e-7 in float, 2.2e-16 in double.
///
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
      constexpr bool observed = detail::observations_in<T, P...> == 1;
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
