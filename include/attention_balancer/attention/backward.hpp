#pragma once
// attention_backward: the gradients of attention and of its evidence, from its output and its log-sum-exp.

#include <array>
#include <limits>
#include <span>
#include <type_traits>

#include "attention_balancer/attention/detail/backward_packed.hpp"
#include "attention_balancer/attention/detail/backward_policies.hpp"
#include "attention_balancer/attention/detail/backward_worker.hpp"
#include "attention_balancer/attention/forward.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Everything after the shape checks. `evidence`: that of each packed sequence, or empty, where call.lse is there.
template <Scalar T, class... P>
void run_backward(BackwardCall<T>& call, std::span<const Evidence<T>> evidence, P&... policies) {
  constexpr bool packed = count_of<PolicyKind::sequences, T, P...> == 1;
  Call<T>& forward = call.forward;
  Problem problem = forward.problem;
  if constexpr (packed) problem = packed_problem(problem, find_policy<PolicyKind::sequences, T>(policies...));
  check_positions(problem, std::numeric_limits<T>::digits);
  (validate_policy(policies, problem), ...);

  const auto set = collect_policies<T>(policies...);
  using Set = std::remove_const_t<decltype(set)>;
  forward.normalization = normalization_of<T>(policies...);
  if constexpr (has_sparse<std::remove_cvref_t<P>...>) {
    forward.policies = policy_calls<T>(set);
  } else {
    forward.policies.policies = &set;
    forward.policies.has_modifiers = Set::has_modifiers;
    forward.policies.has_masks = Set::has_masks;
    if constexpr (Set::has_masks)
      forward.policies.classify = [](const void* s, const Rect& rect) {
        return static_cast<const Set*>(s)->classify(rect);
      };
  }
  if constexpr (Set::has_modifiers || Set::has_masks) call.derive = &Derivatives<T, Set>::run;
  take_scale_and_sink(forward, policies...);

  std::array<TensorView<T>, std::tuple_size_v<decltype(set.modifiers)> + 1> targets{};
  std::apply(
      [&](const auto&... modifier) {
        [[maybe_unused]] auto take = [&](const auto& m) {
          if constexpr (is_gradient<std::remove_cvref_t<decltype(m)>>)
            if (m.target().size() > 0)  // of no query there is no row
              targets[static_cast<std::size_t>(call.modifiers)] = m.target();
          ++call.modifiers;
        };
        (take(modifier), ...);
      },
      set.modifiers);
  call.targets = targets.data();

  [[maybe_unused]] auto take = [&](const auto& policy) {
    using Policy = std::remove_cvref_t<decltype(policy)>;
    constexpr PolicyKind kind = kind_of<T, Policy>;
    if constexpr (kind == PolicyKind::lse_gradient) call.lse_gradient = policy.view();
    if constexpr (kind == PolicyKind::entropy_gradient) call.entropy_gradient = policy.view();
    if constexpr (kind == PolicyKind::mass_gradient)
      call.mass_gradient = policy.view(), call.weights = policy.weights();
    if constexpr (kind == PolicyKind::sink && is_gradient<Policy>) call.wants_sink = true;
    if constexpr (kind == PolicyKind::scale && is_gradient<Policy>) call.wants_scale = true;
    if constexpr ((kind == PolicyKind::sink || kind == PolicyKind::scale) && is_gradient<Policy>)
      if (policy.target().length > 1 || policy.target().dim > 1)
        fail<ShapeError>("gradient target", "over queries or keys",
                         "be [B or 1, Hq or 1, 1, 1] for a scale or sinks");
  };
  (take(policies), ...);

  check_overlaps(call, evidence, policies...);

  // The gradients of what is a policy's but no score modifier's.
  auto finish = [&](const ParameterSums<T>& sums) {
    [[maybe_unused]] auto add = [&](const auto& policy) {
      using Policy = std::remove_cvref_t<decltype(policy)>;
      if constexpr (is_gradient<Policy> && kind_of<T, Policy> == PolicyKind::sink) sums.add_sink(policy.target());
      if constexpr (is_gradient<Policy> && kind_of<T, Policy> == PolicyKind::scale) {
        double others = 1;  // several scales multiply
        [[maybe_unused]] auto multiply = [&](const auto& other) {
          if constexpr (kind_of<T, decltype(other)> == PolicyKind::scale)
            if (static_cast<const void*>(&other) != static_cast<const void*>(&policy))
              others *= static_cast<double>(other.factor);
        };
        (multiply(policies), ...);
        sums.add_scale(policy.target(), others);
      }
    };
    (add(policies), ...);
  };
  auto run = [&](Workspace& workspace, const auto& executor, Index concurrency) {
    if constexpr (packed) {
      PackedBackward<T> worker(call, find_policy<PolicyKind::sequences, T>(policies...), evidence, concurrency);
      worker.run(workspace.reserve(static_cast<std::size_t>(worker.bytes())), executor);
      finish(worker.sums());
    } else {
      run_backward_call(call, workspace, executor, concurrency, finish);
    }
  };
  double work = 2.5;  // times that of the forward call: five products for two
  if constexpr (packed) {
    const auto& sequences = find_policy<PolicyKind::sequences, T>(policies...);
    work *= work_of(
        call.forward.problem, sequences.sequences(), [&](Index s) { return sequences.queries(s); },
        [&](Index s) { return sequences.keys(s); });
  } else {
    work *= work_of(call.forward.problem);
  }
  with_executor_and_workspace<T>(work, run, policies...);
}

/// Checks of the tensors, and the call.
template <Scalar T, class L, class... P>
void check_and_run_backward(const TensorView<const T>& q, const TensorView<const T>& k,
                            const TensorView<const T>& v, const TensorView<const T>& out, const L& lse,
                            const TensorView<const T>& dout, const TensorView<T>& dq, const TensorView<T>& dk,
                            const TensorView<T>& dv, P&... policies) {
  const auto lq = layout("q", q), lk = layout("k", k), lv = layout("v", v), lo = layout("out", out);
  Problem problem = check_queries_and_keys(lq, lk);
  check_values(problem, lv);
  check_output_sizes(problem, lv, lo);
  check_layout(lo);
  require_shape(layout("dout", dout), lo);
  require_shape(layout("dq", dq), lq);
  require_shape(layout("dk", dk), lk);
  require_shape(layout("dv", dv), lv);
  check_no_self_overlap(layout("dq", dq));
  check_no_self_overlap(layout("dk", dk));
  check_no_self_overlap(layout("dv", dv));

  BackwardCall<T> call;
  call.forward = {problem, q, k, v, {}};
  call.out = out;
  call.dout = dout;
  call.dq = dq, call.dk = dk, call.dv = dv;
  std::span<const Evidence<T>> evidence;
  if constexpr (is_evidence_list<T, L>) {
    const auto& sequences = find_policy<PolicyKind::sequences, T>(policies...);
    packed_problem(problem, sequences);  // checks the offsets
    evidence = lse;
    require_equal("number of evidences", static_cast<Index>(evidence.size()), "the packed sequences",
                  sequences.sequences());
    for (Index s = 0; s < sequences.sequences(); ++s) {
      Problem one = problem;
      one.queries = sequences.queries(s), one.keys = sequences.keys(s);
      check_evidence_sizes(evidence[static_cast<std::size_t>(s)], one, s);
    }
  } else {
    call.lse = lse_view(lse, problem);
  }
  run_backward<T>(call, evidence, policies...);
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// The gradients of a loss with respect to q, k and v, from dout, that with respect to the output of attention(q,
/// k, v, out, policies...): P is recomputed from `lse`, block by block, in memory linear in the lengths.
///
/// q, k, v and the policies are those of the forward call; out is what it wrote; `lse` is the Evidence that it
/// observed (QueryWeights::none() is enough) or a view of its log-sum-exp [B, Hq, 1, Nq]. dout has the shape of
/// out; dq, dk and dv, those of q, k and v, are overwritten; the gradients of grouped query heads are added up in
/// their key head.
///
/// Policies beyond those of the forward call, in any order:
/// - gradient(policy, target) in the policy's stead writes the gradient of its parameter too;
/// - evidence::LseGradient, EntropyGradient and MassGradient are gradients with respect to the evidence: a loss may
///   say where the attention should go. The last two cost another pass over the scores.
///
/// With PackedSequences the tensors are those of the packed forward call; `lse` is a span or vector with the
/// Evidence of each sequence, or a view [1, Hq, 1, all queries]; evidence gradients and targets are [sequences or 1,
/// ...], as long as the longest sequence. Each sequence gets the bits that it gets alone, but for the gradient of a
/// bias per key to a single key: alone it is a number, which is summed in double. Tokens of no sequence are neither
/// read nor written.
///
/// P is recomputed to a relative error of about |lse| epsilon, as the scores are: where a score is 1e4 in float, to
/// one part in a thousand.
///
/// Score modifiers need a pullback (see ScoreModifier). The bits are the same for any executor and number of
/// threads. What is masked gets no gradient and gives none, not even as NaN; a query that sees no key gets 0, and
/// so do keys and parameters where there is no query.
/// Throws as attention does, all before anything is written.
/// Source: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 4; Dao, FlashAttention-2, arXiv 2307.08691.
template <class Q, class K, class V, class O, class L, class DO, class DQ, class DK, class DV, class... P>
void attention_backward(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v,
                        const TensorView<O>& out, const L& lse, const TensorView<DO>& dout,
                        const TensorView<DQ>& dq, const TensorView<DK>& dk, const TensorView<DV>& dv,
                        P&&... policies) {
  using T = std::remove_const_t<DQ>;
  constexpr bool packed = detail::count_of<detail::PolicyKind::sequences, T, P...> != 0;
  constexpr bool list = detail::is_evidence_list<T, L>;
  constexpr bool known = std::is_same_v<L, Evidence<T>> || detail::is_lse_view<T, L> || list;
  static_assert(
      known,
      "attention_balancer: attention_backward takes the Evidence of the forward call or a view of its lse, with "
      "the scalar type of the tensors");
  constexpr bool per_sequence = !known || detail::is_lse_view<T, L> || list == packed;
  static_assert(
      per_sequence,
      "attention_balancer: attention_backward takes one Evidence, or with PackedSequences a span or vector "
      "of one Evidence each");
  constexpr bool evidence = known && per_sequence;
  constexpr bool scalars = Scalar<T> && std::is_same_v<std::remove_const_t<Q>, T> &&
                           std::is_same_v<std::remove_const_t<K>, T> && std::is_same_v<std::remove_const_t<V>, T> &&
                           std::is_same_v<std::remove_const_t<O>, T> &&
                           std::is_same_v<std::remove_const_t<DO>, T> &&
                           std::is_same_v<std::remove_const_t<DK>, T> && std::is_same_v<std::remove_const_t<DV>, T>;
  static_assert(scalars, "attention_balancer: the tensors and their gradients must all be float or all be double");
  constexpr bool mutables = !std::is_const_v<DQ> && !std::is_const_v<DK> && !std::is_const_v<DV>;
  static_assert(mutables, "attention_balancer: dq, dk and dv must be views of mutable elements");
  if constexpr (evidence && scalars && mutables)
    if constexpr (detail::backward_policies_fit<T, P...>())
      detail::check_and_run_backward<T>(q, k, v, out, lse, dout, dq, dk, dv, policies...);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer
