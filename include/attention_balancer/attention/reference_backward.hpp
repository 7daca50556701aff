#pragma once
// The gradients of attention and of its evidence in double, from the definition. See reference.hpp.

#include <Eigen/Core>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "attention_balancer/attention/gradients.hpp"
#include "attention_balancer/attention/reference_forward.hpp"

namespace attention_balancer::reference {
ATTENTION_BALANCER_BEGIN_ISA

namespace detail {

using namespace attention_balancer::detail;

/// The gradient of a score before modifier I and all after it, from that after the last one; what the score gives to
/// the gradients of the modifiers' parameters is added to their targets.
template <std::size_t I = 0, class Set>
double pull_back(const Set& set, double before, double gradient, const Site<double>& site, Index i, Index j) {
  if constexpr (I == std::tuple_size_v<decltype(set.modifiers)>) {
    return gradient;
  } else {
    const auto& modifier = std::get<I>(set.modifiers);
    const double after = modifier(before, site);
    gradient = pull_back<I + 1>(set, after, gradient, site, i, j);
    if constexpr (requires { modifier.target(); }) {
      broadcast_plane(modifier.target(), site.batch, site.head)(i, j) +=
          modifier.parameter_gradient(before, gradient, site);
    }
    return modifier.pullback(before, gradient, site);
  }
}

/// The element that belongs to batch item b, head h and position i in the evidence gradient of a kind; 0 without one.
template <PolicyKind Kind, class... P>
double evidence_gradient(Index b, Index h, Index i, const P&... policies) {
  if constexpr (count_of<Kind, double, const P...> != 0) {
    const auto& x = find_policy<Kind, double>(policies...).view();
    return static_cast<double>(broadcast_plane(x, b, h)(0, i));
  } else {
    return 0;
  }
}

template <class... P>
double mass_weight(Index i, const Problem& problem, const P&... policies) {
  if constexpr (count_of<PolicyKind::mass_gradient, double, const P...> != 0)
    return find_policy<PolicyKind::mass_gradient, double>(policies...)
        .weights()
        .template weight<double>(i, problem.queries);
  else
    return 0;
}

template <class X>
void set_to_zero(const X& view) {
  for (Index b = 0; b < view.batch; ++b)
    for (Index h = 0; h < view.heads; ++h)
      for (Index i = 0; i < view.length; ++i)
        for (Index c = 0; c < view.dim; ++c) view(b, h, i, c) = 0;
}

/// One call, or one packed sequence of it: adds to gradients that are 0.
template <class Q, class K, class V, class DO, class DQ, class DK, class DV, class... P>
void add_gradients(const Problem& problem, Index first_batch, const TensorView<Q>& q, const TensorView<K>& k,
                   const TensorView<V>& v, const TensorView<DO>& dout, const TensorView<DQ>& dq,
                   const TensorView<DK>& dk, const TensorView<DV>& dv, P&... policies) {
  const auto set = collect_policies<double>(policies...);
  const double scale = scale_of<double>(problem, policies...);

  auto visit = [&](Index b, Index h, Index kv, Index i, const auto&, const Row& row) {
    if (row.lse == -std::numeric_limits<double>::infinity()) return;
    const Index item = first_batch + b;
    const double of_lse = evidence_gradient<PolicyKind::lse_gradient>(item, h, i, policies...);
    const double of_entropy = evidence_gradient<PolicyKind::entropy_gradient>(item, h, i, policies...);
    const double u = mass_weight(i, problem, policies...);
    // dL/dp of each key and of the sink; d entropy / dp = -log p - 1, whose 1 makes no difference after the softmax.
    auto log_p = [](double p) { return p == 0 ? 0.0 : std::log(p); };
    Eigen::VectorXd dp = Eigen::VectorXd::Zero(problem.keys);
    double delta = -of_lse;
    for (Index j = 0; j < problem.keys; ++j) {
      if (row.masked[j]) continue;
      for (Index c = 0; c < problem.value_dim; ++c)
        dp[j] += static_cast<double>(dout(b, h, i, c)) * static_cast<double>(v(b, kv, j, c));
      dp[j] +=
          u * evidence_gradient<PolicyKind::mass_gradient>(item, h, j, policies...) - of_entropy * log_p(row.p[j]);
      delta += row.slope[j] * dp[j];
    }
    const double dp_sink = -of_entropy * log_p(row.p_sink);
    delta = (delta + row.p_sink * dp_sink) / row.slopes;

    for (Index j = 0; j < problem.keys; ++j) {
      if (row.masked[j]) continue;
      double dot = 0;
      for (Index c = 0; c < problem.dim; ++c)
        dot += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, kv, j, c));
      const auto site = Site<double>::along_queries(item, h, problem, i, j);
      const double ds = pull_back(set, scale * dot, row.slope[j] * (dp[j] - delta), site, i, j);
      for (Index c = 0; c < problem.dim; ++c) {
        dq(b, h, i, c) += static_cast<DQ>(ds * scale * static_cast<double>(k(b, kv, j, c)));
        dk(b, kv, j, c) += static_cast<DK>(ds * scale * static_cast<double>(q(b, h, i, c)));
      }
      for (Index c = 0; c < problem.value_dim; ++c)
        dv(b, kv, j, c) += static_cast<DV>(row.p[j] * static_cast<double>(dout(b, h, i, c)));
      [[maybe_unused]] auto add_to_scale = [&](const auto& policy) {
        using Policy = std::remove_cvref_t<decltype(policy)>;
        if constexpr (kind_of<double, Policy> == PolicyKind::scale && requires { policy.target(); }) {
          broadcast_plane(policy.target(), item, h)(0, 0) +=
              ds * dot * (scale / static_cast<double>(policy.factor));
        }
      };
      (add_to_scale(policies), ...);
    }
    [[maybe_unused]] auto add_to_sink = [&](const auto& policy) {
      using Policy = std::remove_cvref_t<decltype(policy)>;
      if constexpr (kind_of<double, Policy> == PolicyKind::sink && requires { policy.target(); }) {
        broadcast_plane(policy.target(), item, h)(0, 0) += row.p_sink * (dp_sink - delta);
      }
    };
    (add_to_sink(policies), ...);
  };
  for_each_row(problem, first_batch, q, k, visit, policies...);
}

}  // namespace detail

/// The gradients that attention_balancer::attention_backward computes, with the same policies, from the definition: the
/// forward pass is repeated, so that neither its output nor its lse is needed.
template <class Q, class K, class V, class DO, class DQ, class DK, class DV, class... P>
void attention_backward(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v,
                        const TensorView<DO>& dout, const TensorView<DQ>& dq, const TensorView<DK>& dk,
                        const TensorView<DV>& dv, P&&... policies) {
  using detail::PolicyKind, detail::set_to_zero, detail::tokens;
  Problem problem = detail::check_queries_and_keys(detail::layout("q", q), detail::layout("k", k));
  detail::check_values(problem, detail::layout("v", v));
  [[maybe_unused]] auto clear = [](const auto& policy) {
    if constexpr (requires { policy.target(); }) set_to_zero(policy.target());
  };
  if constexpr (detail::count_of<PolicyKind::sequences, double, P...> != 0) {
    const PackedSequences& sequences = detail::find_policy<PolicyKind::sequences, double>(policies...);
    const Problem largest = detail::packed_problem(problem, sequences);
    (detail::validate_policy(policies, largest), ...);
    (clear(policies), ...);
    for (Index s = 0; s < sequences.sequences(); ++s) {
      Problem one = problem;
      one.queries = sequences.queries(s), one.keys = sequences.keys(s);
      auto queries = [&](const auto& x) { return tokens(x, sequences.query_begin(s), one.queries); };
      auto keys = [&](const auto& x) { return tokens(x, sequences.key_begin(s), one.keys); };
      set_to_zero(queries(dq)), set_to_zero(keys(dk)), set_to_zero(keys(dv));
      detail::add_gradients(one, s, queries(q), keys(k), keys(v), queries(dout), queries(dq), keys(dk), keys(dv),
                            policies...);
    }
  } else {
    (detail::validate_policy(policies, problem), ...);
    (clear(policies), ...);
    set_to_zero(dq), set_to_zero(dk), set_to_zero(dv);
    detail::add_gradients(problem, 0, q, k, v, dout, dq, dk, dv, policies...);
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::reference
