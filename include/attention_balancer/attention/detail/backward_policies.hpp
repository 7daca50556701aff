#pragma once
// What attention_backward is told, and what of it is refused: policies at compile time, memory at run time.

#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_balancer/attention/detail/backward_call.hpp"
#include "attention_balancer/attention/policies.hpp"

namespace attention_balancer::detail {
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
  constexpr bool unobserved = observations_in<T, P...> == 0;
  static_assert(unobserved, "attention_balancer: attention_backward observes nothing: it is given the evidence");
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
  return any_policies_fit<T, P...>() && unobserved && pullbacks && parameters && scalars && once;
}

template <class T, class L>
inline constexpr bool is_lse_view = std::is_same_v<L, TensorView<T>> || std::is_same_v<L, TensorView<const T>>;
template <class T, class L>
inline constexpr bool is_evidence_list = std::is_same_v<L, std::vector<Evidence<T>>>;
template <class T, class U, std::size_t E>
inline constexpr bool is_evidence_list<T, std::span<U, E>> = std::is_same_v<std::remove_const_t<U>, Evidence<T>>;

/// Throws InputError if nothing was observed, and ShapeError unless this is the evidence of such a call.
template <Scalar T>
void check_evidence_sizes(const Evidence<T>& evidence, const Problem& p, Index sequence = -1) {
  // Only of what is wrong: it allocates.
  auto name = [sequence] { return sequence < 0 ? "evidence" : "evidence[" + std::to_string(sequence) + ']'; };
  if (evidence.heads() == 0) require_observed(evidence, name().c_str());
  auto check = [&](const char* size, Index was, const char* other, Index expected) {
    if (was != expected) require_equal((name() + size).c_str(), was, other, expected);
  };
  check(".batch()", evidence.batch(), "q.batch", p.batch);
  check(".heads()", evidence.heads(), "q.heads", p.heads);
  check(".queries()", evidence.queries(), "the queries", p.queries);
  check(".keys()", evidence.keys(), "the keys", p.keys);
}

/// The log-sum-exp of a call as a view [B, Hq, 1, Nq].
template <Scalar T>
TensorView<const T> lse_view(const Evidence<T>& evidence, const Problem& p) {
  check_evidence_sizes(evidence, p);
  return bhsd(evidence.lse().data(), p.batch, p.heads, Index(1), p.queries);
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

/// Throws ShapeError unless the views share no byte.
inline void require_apart(const Layout& output, const Layout& x) {
  if (may_overlap(output, check_layout(output), x, check_layout(x)))
    fail<ShapeError>(output.name, std::string("in the memory of ") + x.name,
                     "not overlap an input or another output");
}

/// Throws ShapeError if something that the call writes is read too, or is written twice.
template <Scalar T, class... P>
void check_overlaps(const BackwardCall<T>& call, std::span<const Evidence<T>> evidence, const P&... policies) {
  const Call<T>& forward = call.forward;
  const Layout written[] = {layout("dq", call.dq), layout("dk", call.dk), layout("dv", call.dv)};
  const Layout read[] = {layout("q", forward.q),  layout("k", forward.k),  layout("v", forward.v),
                         layout("out", call.out), layout("lse", call.lse), layout("dout", call.dout)};
  auto check_written = [&](const Layout& output, int index) {
    for (const Layout& x : read) require_apart(output, x);
    for (const Evidence<T>& e : evidence)
      require_apart(output, layout("lse", bhsd(e.lse(0, 0).data(), 1, forward.problem.heads, 1, e.queries())));
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
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
