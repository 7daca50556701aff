#pragma once
// attention_backward: the gradients of attention and of its evidence, from its output and its log-sum-exp.

#include <array>
#include <cmath>
#include <string>
#include <type_traits>
#include <utility>

#include "attention_balancer/attention/detail/backward_worker.hpp"
#include "attention_balancer/attention/policies.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

template <class T, class M>
inline constexpr bool has_target_of = true;
template <class T, class P, class U>
inline constexpr bool has_target_of<T, Gradient<P, U>> = std::is_same_v<T, U>;
template <class T, template <class> class G, class U>
inline constexpr bool has_target_of<T, G<U>> =
    !(is_of<G<U>, evidence::LseGradient> || is_of<G<U>, evidence::EntropyGradient> ||
      is_of<G<U>, evidence::MassGradient>) ||
    std::is_same_v<T, U>;

template <class T, class P>
inline constexpr bool differentiable =
    kind_of<T, P> != PolicyKind::modifier || Differentiable<std::remove_cvref_t<P>, T>;

template <class T, class P>
inline constexpr bool learnable = true;
template <class T, class P, class U>
inline constexpr bool learnable<T, Gradient<P, U>> = kind_of<T, P> != PolicyKind::modifier || Learnable<P, T>;

/// Whether the policies can be used together in a backward call on tensors of T; says why not.
template <class T, class... P>
consteval bool backward_policies_fit() {
  constexpr bool unobserved = count_of<PolicyKind::observation, T, P...> == 0;
  static_assert(unobserved, "attention_balancer: attention_backward observes nothing: it is given the evidence");
  constexpr bool padded = count_of<PolicyKind::sequences, T, P...> == 0;
  static_assert(padded, "attention_balancer: attention_backward takes no PackedSequences: call it once per sequence");
  constexpr bool pullbacks = (differentiable<T, P> && ...);
  static_assert(pullbacks,
                "attention_balancer: attention_backward needs the derivative of each score modifier: give it "
                "`S pullback(S before, S d_after, const Site<S>& site) const`");
  constexpr bool parameters = (learnable<T, std::remove_cvref_t<P>> && ...);
  static_assert(parameters,
                "attention_balancer: gradient() of a score modifier needs "
                "`S parameter_gradient(S before, S d_after, const Site<S>& site) const`");
  constexpr bool scalars = (has_target_of<T, std::remove_cvref_t<P>> && ...);
  static_assert(scalars, "attention_balancer: gradients must have the scalar type of the tensors");
  constexpr bool once = count_of<PolicyKind::lse_gradient, T, P...> <= 1 &&
                        count_of<PolicyKind::entropy_gradient, T, P...> <= 1 &&
                        count_of<PolicyKind::mass_gradient, T, P...> <= 1;
  static_assert(once,
                "attention_balancer: a call takes one gradient of the lse, one of the entropy and one of the mass");
  return any_policies_fit<T, P...>() && padded && unobserved && pullbacks && parameters && scalars && once;
}

/// The log-sum-exp of a call as a view [B, Hq, 1, Nq].
template <Scalar T>
TensorView<const T> lse_view(const Evidence<T>& evidence, const Problem& p) {
  require_equal("evidence.batch()", evidence.batch(), "q.batch", p.batch);
  require_equal("evidence.heads()", evidence.heads(), "q.heads", p.heads);
  require_equal("evidence.queries()", evidence.queries(), "q.length", p.queries);
  require_equal("evidence.keys()", evidence.keys(), "k.length", p.keys);
  return bhsd(evidence.lse(0, 0).data(), p.batch, p.heads, Index(1), p.queries);
}
template <class L>
TensorView<const L> lse_view(const TensorView<L>& lse, const Problem& p) {
  require_equal("lse.batch", lse.batch, "q.batch", p.batch);
  require_equal("lse.heads", lse.heads, "q.heads", p.heads);
  require_equal("lse.length", lse.length, "one row per head", 1);
  require_equal("lse.dim", lse.dim, "q.length", p.queries);
  check_layout(layout("lse", lse));
  return lse;
}

/// Calls f(layout) for everything that a policy reads, and g(layout) for everything that it has written.
template <class P, class F, class G>
void for_each_view(const P& policy, F f, G g) {
  if constexpr (requires { policy.borrowed(f); }) policy.borrowed(f);
  if constexpr (requires { policy.target(); }) g(layout("gradient target", policy.target()));
}

inline void require_apart(const Layout& output, const Layout& x) {
  if (may_overlap(output, check_layout(output), x, check_layout(x)))
    fail<ShapeError>(output.name, std::string("in the memory of ") + x.name,
                     "not overlap an input or another output");
}

/// Everything after the shape checks.
template <Scalar T, class... P>
void run_backward(BackwardCall<T>& call, P&... policies) {
  Call<T>& forward = call.forward;
  const Problem& problem = forward.problem;
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

  // Nothing that is written may be read, nor written twice.
  const Layout written[] = {layout("dq", call.dq), layout("dk", call.dk), layout("dv", call.dv)};
  const Layout read[] = {layout("q", forward.q),  layout("k", forward.k),  layout("v", forward.v),
                         layout("out", call.out), layout("lse", call.lse), layout("dout", call.dout)};
  auto check_written = [&](const Layout& output, int index) {
    for (const Layout& x : read) require_apart(output, x);
    for (int i = 0; i < 3; ++i)
      if (i < index) require_apart(output, written[i]);
    (for_each_view(
         policies, [&](const Layout& x) { require_apart(output, x); }, [](const Layout&) {}),
     ...);
  };
  for (int i = 0; i < 3; ++i) check_written(written[i], i);
  int place = 0;
  [[maybe_unused]] auto check_target = [&](const Layout& target) {
    check_written(target, 3);
    [[maybe_unused]] int other = 0;
    (for_each_view(
         policies, [](const Layout&) {},
         [&](const Layout& x) {
           if (other++ < place) require_apart(target, x);
         }),
     ...);
    ++place;
  };
  (for_each_view(
       policies, [](const Layout&) {}, check_target),
   ...);

  auto work = [&](Workspace& workspace, const auto& executor, Index concurrency) {
    BackwardWorker<T> worker(call, workspace, concurrency);
    worker.run(executor);
    [[maybe_unused]] auto add = [&](const auto& policy) {
      using Policy = std::remove_cvref_t<decltype(policy)>;
      if constexpr (is_gradient<Policy> && kind_of<T, Policy> == PolicyKind::sink) worker.add_sink(policy.target());
      if constexpr (is_gradient<Policy> && kind_of<T, Policy> == PolicyKind::scale) {
        double others = 1;  // several scales multiply
        [[maybe_unused]] auto multiply = [&](const auto& other) {
          if constexpr (kind_of<T, decltype(other)> == PolicyKind::scale)
            if (static_cast<const void*>(&other) != static_cast<const void*>(&policy))
              others *= static_cast<double>(other.factor);
        };
        (multiply(policies), ...);
        worker.add_scale(policy.target(), others);
      }
    };
    (add(policies), ...);
  };
  with_executor_and_workspace<T>(work, policies...);
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
  check_output_sizes(problem, lo);
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
  call.lse = lse_view(lse, problem);
  call.dout = dout;
  call.dq = dq, call.dk = dk, call.dv = dv;
  run_backward<T>(call, policies...);
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
/// say
///   where the attention should go. The last two cost another pass over the scores.
///
/// Score modifiers need a pullback (see ScoreModifier). The bits are the same for any executor and number of
/// threads. What is masked gets no gradient and gives none, not even as NaN; a query that sees no key gets 0.
/// Throws as attention does, all before anything is written.
/// Source: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 4; Dao, FlashAttention-2, arXiv 2307.08691.
template <class Q, class K, class V, class O, class L, class DO, class DQ, class DK, class DV, class... P>
void attention_backward(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v,
                        const TensorView<O>& out, const L& lse, const TensorView<DO>& dout,
                        const TensorView<DQ>& dq, const TensorView<DK>& dk, const TensorView<DV>& dv,
                        P&&... policies) {
  using T = std::remove_const_t<DQ>;
  constexpr bool evidence =
      std::is_same_v<L, Evidence<T>> || std::is_same_v<L, TensorView<T>> || std::is_same_v<L, TensorView<const T>>;
  static_assert(
      evidence,
      "attention_balancer: attention_backward takes the Evidence of the forward call or a view of its lse, with "
      "the scalar type of the tensors");
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
