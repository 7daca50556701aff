#pragma once
// The executable specification: attention and its evidence in double, untiled, one query at a time, as the formulas
// read. The kernels are tested against it. It is slow and takes memory for one row of scores; nothing else uses it.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>
#include <vector>

#include "attention_balancer/attention/forward.hpp"
#include "attention_balancer/attention/gradients.hpp"

namespace attention_balancer::reference {
ATTENTION_BALANCER_BEGIN_ISA

namespace detail {

using namespace attention_balancer::detail;

/// What one query sees.
struct Row {
  Eigen::VectorXd p;   // [Nk] probabilities of the keys; of a masked key exactly 0
  Eigen::Array<bool, Eigen::Dynamic, 1> masked;  // [Nk] by a mask, by a score of -inf, or outside a sparse support
  Eigen::VectorXd slope;                         // [Nk] dp_j / ds_j = slope_j (1 - slope_j / sum of slopes), ...
  double slopes = 1;                             // ... the sum, with that of a sink
  double p_sink = 0, lse = 0, entropy = 0;
  Index support = 0;
  bool empty = false;
};

/// Softmax over the scores [Nk] and one sink logit (-inf: none).
inline Row softmax(const Eigen::VectorXd& scores, double sink) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  Row row;
  row.masked = scores.array() == -inf;
  row.empty = row.masked.all();
  row.support = scores.size() - row.masked.count();
  row.slope = Eigen::VectorXd::Zero(scores.size());
  double top = sink;
  for (const double s : scores)
    if (s > top) top = s;
  if (row.empty && top == -inf) {
    row.p = Eigen::VectorXd::Zero(scores.size());
    row.lse = -inf;
    return row;
  }
  if (top == -inf) top = 0;  // every visible score is not a number
  const Eigen::ArrayXd weights = row.masked.select(0.0, (scores.array() - top).exp());
  const double denominator = weights.sum() + std::exp(sink - top);
  row.p = row.masked.select(0.0, weights / denominator);
  row.slope = row.p;
  row.p_sink = sink == -inf ? 0.0 : std::exp(sink - top) / denominator;
  row.lse = top + std::log(denominator);
  // H = - sum p log p, with log p = s - top - log denominator; a term whose p is 0 is 0.
  auto term = [&](double p, double s) { return p == 0 ? 0.0 : p * (std::log(denominator) - (s - top)); };
  for (Eigen::Index j = 0; j < scores.size(); ++j) row.entropy += term(row.p[j], scores[j]);
  row.entropy += term(row.p_sink, sink);
  return row;
}

/// The visible scores, from the largest down.
inline std::vector<double> sorted(const Eigen::VectorXd& scores) {
  std::vector<double> x;
  for (const double s : scores)
    if (s != -std::numeric_limits<double>::infinity()) x.push_back(s);
  std::sort(x.begin(), x.end(), std::greater<>());
  return x;
}

/// Sparsemax, or entmax with alpha 1.5: p_j = max(0, (s_j - tau) / power)^power. tau is that of the largest number of
/// keys that all score more (Martins and Astudillo 2016, algorithm 1; Peters, Niculae and Martins 2019, algorithm 2).
inline Row project(const Eigen::VectorXd& scores, int power) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  Row row;
  row.masked = scores.array() == -inf;
  row.empty = row.masked.all();
  row.p = row.slope = Eigen::VectorXd::Zero(scores.size());
  row.lse = -inf;
  if (row.empty) return row;
  if ((scores.array() != scores.array() || scores.array() == inf).any()) {
    const double none = std::numeric_limits<double>::quiet_NaN();
    row.p = row.slope = row.masked.select(0.0, Eigen::ArrayXd::Constant(scores.size(), none));
    row.lse = row.entropy = row.slopes = none;
    row.support = scores.size() - row.masked.count();
    return row;
  }
  const auto x = sorted(scores);
  double tau = 0, sum = 0, squares = 0;
  for (std::size_t k = 1; k <= x.size(); ++k) {
    const double s = (x[k - 1] - x[0]) / power, n = static_cast<double>(k);
    sum += s, squares += s * s;
    const double mean = sum / n;
    // sparsemax: sum (s - tau) = 1. entmax: sum (s - tau)^2 = 1, the smaller root.
    const double next = power == 1 ? (sum - 1) / n : mean - std::sqrt(std::max(0.0, (1 - (squares - sum * mean)) / n));
    if (k > 1 && next >= s) break;
    tau = next;
  }
  row.slopes = 0;
  for (Eigen::Index j = 0; j < scores.size(); ++j) {
    const double w = (scores[j] - x[0]) / power - tau;
    row.masked[j] = !(w > 0);
    if (row.masked[j]) continue;
    row.p[j] = power == 1 ? w : w * w;
    row.slope[j] = power == 1 ? 1 : w;
    row.slopes += row.slope[j];
    row.entropy -= row.p[j] * std::log(row.p[j]);
    ++row.support;
  }
  row.lse = x[0] + power * tau;
  return row;
}

/// The scores with -inf for all but the k largest visible ones, of equals the first; as they are if one is no number.
inline Eigen::VectorXd top_k(Eigen::VectorXd scores, Index k) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  const auto x = sorted(scores);
  if ((scores.array() != scores.array() || scores.array() == inf).any() || static_cast<Index>(x.size()) <= k)
    return scores;
  const double least = x[static_cast<std::size_t>(k - 1)];
  Index ties = k - (scores.array() > least).count();
  for (double& s : scores)
    if (s < least || (s == least && ties-- <= 0)) s = -inf;
  return scores;
}

/// What the normaliser makes of the scores [Nk] and one sink logit (-inf: none).
inline Row normalize(const Eigen::VectorXd& scores, double sink, const Normalization& normalization) {
  const bool empty = (scores.array() == -std::numeric_limits<double>::infinity()).all();
  switch (normalization.kind) {
    case Normalization::Kind::sparsemax: return project(scores, 1);
    case Normalization::Kind::entmax15: return project(scores, 2);
    case Normalization::Kind::top_k: return softmax(empty ? scores : top_k(scores, normalization.k), sink);
    case Normalization::Kind::softmax: break;
  }
  return softmax(scores, sink);
}

/// Calls visit(batch, head, kv_head, query, seen, row) for every query; seen [Nk] is what the masks leave. Policies are
/// told that batch item 0 is first_batch.
template <class Q, class K, class Visit, class... P>
void for_each_row(const Problem& problem, Index first_batch, const TensorView<Q>& q, const TensorView<K>& k,
                  Visit visit, P&... policies) {
  const auto set = collect_policies<double>(policies...);
  const double scale = scale_of<double>(problem, policies...);
  auto sink = [&](Index head) {
    if constexpr (count_of<PolicyKind::sink, double, P...> > 0)
      return static_cast<double>(find_policy<PolicyKind::sink, double>(policies...).logit(head));
    else
      return -std::numeric_limits<double>::infinity();
  };
  Eigen::VectorXd scores(problem.keys);
  Eigen::Array<bool, Eigen::Dynamic, 1> seen(problem.keys);
  for (Index b = 0; b < problem.batch; ++b)
    for (Index h = 0; h < problem.heads; ++h) {
      const Index kv = h / (problem.heads / problem.kv_heads);
      for (Index i = 0; i < problem.queries; ++i) {
        for (Index j = 0; j < problem.keys; ++j) {
          double dot = 0;
          for (Index c = 0; c < problem.dim; ++c)
            dot += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, kv, j, c));
          const auto site = Site<double>::along_queries(first_batch + b, h, problem, i, j);
          scores[j] = set.bend_score(scale * dot, site);
          seen[j] = true;
          if constexpr (set.has_masks) seen[j] = set.visible(site);
          if (!seen[j]) scores[j] = -std::numeric_limits<double>::infinity();
        }
        visit(b, h, kv, i, seen, normalize(scores, sink(h), normalization_of<double>(policies...)));
      }
    }
}

template <evidence::Kind Statistic>
class Observer {
 public:
  Observer(const Observation<double, Statistic>& observation, const Problem& problem, bool sparse)
      : evidence_(*observation.target), weights_(observation.weights), problem_(problem), sparse_(sparse) {
    weights_.validate(problem.queries);
    EvidenceAccess::reshape(evidence_, problem.batch, problem.heads, problem.queries, problem.keys,
                            weights_.kind() != QueryWeights::Kind::none, Statistic, false, false, sparse);
  }

  /// `change(j)`: |v_j - o_i|^2, only called for leave-one-out.
  template <class Seen, class Change>
  void add(Index b, Index h, Index i, const Seen& seen, const Row& row, Change change) {
    const Index head = b * problem_.heads + h;
    EvidenceAccess::lse(evidence_, head)[i] = row.lse;
    EvidenceAccess::entropy(evidence_, head)[i] = row.entropy;
    if (sparse_) EvidenceAccess::support(evidence_, head)[i] = row.support;
    if (row.empty) ++*EvidenceAccess::empty_rows(evidence_, head);
    const double u = weights_.template weight<double>(i, problem_.queries);
    if (u == 0) return;
    *EvidenceAccess::sink_mass(evidence_, head) += u * row.p_sink;
    for (Index j = 0; j < problem_.keys; ++j) {
      if (!row.masked[j]) EvidenceAccess::mass(evidence_, head)[j] += u * row.p[j];
      if constexpr (Statistic != evidence::Kind::mass)
        if (!row.masked[j]) add_statistic(EvidenceAccess::statistic(evidence_, head)[j], u, row.p[j], change, j);
      if (seen[j]) EvidenceAccess::exposure(evidence_, head)[j] += u;
    }
  }

 private:
  template <class Change>
  static void add_statistic(double& statistic, double u, double p, Change change, Index j) {
    if constexpr (Statistic == evidence::Kind::squares) {
      statistic += u * p * p;
    } else if constexpr (Statistic == evidence::Kind::maximum) {
      if (statistic == statistic && !(u * p <= statistic)) statistic = u * p;  // not a number wins
    } else {
      if (p == 0) return;
      const double ratio = std::min(p / (1 - p), 1 / std::numeric_limits<double>::epsilon());
      statistic += u * ratio * ratio * (Statistic == evidence::Kind::squared_odds ? 1.0 : change(j));
    }
  }

  Evidence<double>& evidence_;
  QueryWeights weights_;
  const Problem& problem_;
  bool sparse_;
};

struct NoObserver {
  template <class... Any>
  void add(Any&&...) {}
};

/// Hands the rows to the observation, if there is one.
template <class... P>
auto observer(const Problem& problem, P&... policies) {
  if constexpr (count_of<PolicyKind::observation, double, P...> > 0) {
    using Observed = std::remove_cvref_t<decltype(find_policy<PolicyKind::observation, double>(policies...))>;
    static_assert(fits_scalar<double, Observed>, "attention_balancer: the reference writes Evidence<double>");
    return Observer(find_policy<PolicyKind::observation, double>(policies...), problem,
                    is_sparse(normalization_of<double>(policies...)));
  } else {
    return NoObserver{};
  }
}

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
      const auto& x = modifier.target();
      x(x.batch == 1 ? 0 : site.batch, x.heads == 1 ? 0 : site.head, x.length == 1 ? 0 : i, x.dim == 1 ? 0 : j) +=
          modifier.parameter_gradient(before, gradient, site);
    }
    return modifier.pullback(before, gradient, site);
  }
}

/// The element that belongs to batch item b, head h and position i in the evidence gradient of a kind; 0 without one.
template <PolicyKind Kind, class... P>
double evidence_gradient(Index b, Index h, Index i, const P&... policies) {
  if constexpr (count_of<Kind, double, const P...> > 0) {
    const auto& x = find_policy<Kind, double>(policies...).view();
    return static_cast<double>(x(x.batch == 1 ? 0 : b, x.heads == 1 ? 0 : h, 0, i));
  } else {
    return 0;
  }
}

template <class... P>
double mass_weight(Index i, const Problem& problem, const P&... policies) {
  if constexpr (count_of<PolicyKind::mass_gradient, double, const P...> > 0)
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

/// One call, or one packed sequence of it: values may have no data, and then nor has the output.
template <class Q, class K, class V, class O, class Observer, class... P>
void attend(const Problem& problem, Index first_batch, const TensorView<Q>& q, const TensorView<K>& k,
            const TensorView<V>& v, const TensorView<O>& out, Observer observer, P&... policies) {
  Eigen::VectorXd output(problem.value_dim);
  auto visit = [&](Index b, Index h, Index kv, Index i, const auto& seen, const Row& row) {
    for (Index c = 0; c < problem.value_dim; ++c) {
      double sum = 0;
      for (Index j = 0; j < problem.keys; ++j)
        if (!row.masked[j]) sum += row.p[j] * static_cast<double>(v(b, kv, j, c));
      out(b, h, i, c) = static_cast<O>(sum);
      output[c] = sum;
    }
    observer.add(b, h, i, seen, row, [&](Index j) {
      double square = 0;
      for (Index c = 0; c < problem.value_dim; ++c) {
        const double d = static_cast<double>(v(b, kv, j, c)) - output[c];
        square += d * d;
      }
      return square;
    });
  };
  for_each_row(problem, first_batch, q, k, visit, policies...);
}

/// The tokens [begin, begin + length) of a view.
template <class T>
TensorView<T> tokens(TensorView<T> x, Index begin, Index length) {
  if (x.data != nullptr) x.data += begin * x.length_stride;
  x.length = length;
  return x;
}

template <class Q, class K, class V, class O, class... P>
void attend_all(const Problem& problem, const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v,
                const TensorView<O>& out, P&... policies) {
  if constexpr (count_of<PolicyKind::sequences, double, P...> > 0) {
    const PackedSequences& sequences = find_policy<PolicyKind::sequences, double>(policies...);
    const Problem largest = packed_problem(problem, sequences);
    (validate_policy(policies, largest), ...);
    for (Index s = 0; s < sequences.sequences(); ++s) {
      Problem one = problem;
      one.queries = sequences.queries(s), one.keys = sequences.keys(s);
      const auto q_one = tokens(q, sequences.query_begin(s), one.queries);
      const auto k_one = tokens(k, sequences.key_begin(s), one.keys);
      const auto v_one = tokens(v, sequences.key_begin(s), one.keys);
      const auto out_one = tokens(out, sequences.query_begin(s), one.queries);
      if constexpr (count_of<PolicyKind::packed_observation, double, P...> > 0) {
        const auto& each = find_policy<PolicyKind::packed_observation, double>(policies...);
        require_equal("observe number of evidences", static_cast<Index>(each.targets.size()), "the packed sequences",
                      sequences.sequences());
        const Observation<double, std::remove_cvref_t<decltype(each)>::statistic> own{
            &each.targets[static_cast<std::size_t>(s)], each.weights};
        attend(one, s, q_one, k_one, v_one, out_one,
               Observer(own, one, is_sparse(normalization_of<double>(policies...))), policies...);
      } else {
        attend(one, s, q_one, k_one, v_one, out_one, NoObserver{}, policies...);
      }
    }
  } else {
    (validate_policy(policies, problem), ...);
    attend(problem, 0, q, k, v, out, observer(problem, policies...), policies...);
  }
}

}  // namespace detail

/// As attention_balancer::attention, in double whatever the scalars of the views are; it writes Evidence<double>.
template <class Q, class K, class V, class O, class... P>
void attention(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v, const TensorView<O>& out,
               P&&... policies) {
  const auto lq = detail::layout("q", q), lk = detail::layout("k", k), lv = detail::layout("v", v),
             lo = detail::layout("out", out);
  Problem problem = detail::check_queries_and_keys(lq, lk);
  detail::check_values_and_output(problem, lq, lk, lv, lo);
  detail::attend_all(problem, q, k, v, out, policies...);
}

/// As attention_balancer::attention_evidence, in double.
template <class Q, class K, class... P>
void attention_evidence(const TensorView<Q>& q, const TensorView<K>& k, P&&... policies) {
  const Problem problem = detail::check_queries_and_keys(detail::layout("q", q), detail::layout("k", k));
  detail::attend_all(problem, q, k, TensorView<const double>{}, TensorView<double>{}, policies...);
}

/// The gradients that attention_balancer::attention_backward computes, with the same policies, from the definition: the
/// forward pass is repeated, so that neither its output nor its lse is needed.
template <class Q, class K, class V, class DO, class DQ, class DK, class DV, class... P>
void attention_backward(const TensorView<Q>& q, const TensorView<K>& k, const TensorView<V>& v,
                        const TensorView<DO>& dout, const TensorView<DQ>& dq, const TensorView<DK>& dk,
                        const TensorView<DV>& dv, P&&... policies) {
  using detail::PolicyKind;
  Problem problem = detail::check_queries_and_keys(detail::layout("q", q), detail::layout("k", k));
  detail::check_values(problem, detail::layout("v", v));
  (detail::validate_policy(policies, problem), ...);
  detail::set_to_zero(dq), detail::set_to_zero(dk), detail::set_to_zero(dv);
  [[maybe_unused]] auto clear = [](const auto& policy) {
    if constexpr (requires { policy.target(); }) detail::set_to_zero(policy.target());
  };
  (clear(policies), ...);
  const auto set = detail::collect_policies<double>(policies...);
  const double scale = detail::scale_of<double>(problem, policies...);

  auto visit = [&](Index b, Index h, Index kv, Index i, const auto&, const detail::Row& row) {
    if (row.lse == -std::numeric_limits<double>::infinity()) return;
    const double of_lse = detail::evidence_gradient<PolicyKind::lse_gradient>(b, h, i, policies...);
    const double of_entropy = detail::evidence_gradient<PolicyKind::entropy_gradient>(b, h, i, policies...);
    const double u = detail::mass_weight(i, problem, policies...);
    // dL/dp of each key and of the sink; d entropy / dp = -log p - 1, whose 1 makes no difference after the softmax.
    auto log_p = [](double p) { return p == 0 ? 0.0 : std::log(p); };
    Eigen::VectorXd dp = Eigen::VectorXd::Zero(problem.keys);
    double delta = -of_lse;
    for (Index j = 0; j < problem.keys; ++j) {
      if (row.masked[j]) continue;
      for (Index c = 0; c < problem.value_dim; ++c)
        dp[j] += static_cast<double>(dout(b, h, i, c)) * static_cast<double>(v(b, kv, j, c));
      dp[j] += u * detail::evidence_gradient<PolicyKind::mass_gradient>(b, h, j, policies...) -
               of_entropy * log_p(row.p[j]);
      delta += row.slope[j] * dp[j];
    }
    const double dp_sink = -of_entropy * log_p(row.p_sink);
    delta = (delta + row.p_sink * dp_sink) / row.slopes;

    for (Index j = 0; j < problem.keys; ++j) {
      if (row.masked[j]) continue;
      double dot = 0;
      for (Index c = 0; c < problem.dim; ++c)
        dot += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, kv, j, c));
      const auto site = Site<double>::along_queries(b, h, problem, i, j);
      const double ds = detail::pull_back(set, scale * dot, row.slope[j] * (dp[j] - delta), site, i, j);
      for (Index c = 0; c < problem.dim; ++c) {
        dq(b, h, i, c) += static_cast<DQ>(ds * scale * static_cast<double>(k(b, kv, j, c)));
        dk(b, kv, j, c) += static_cast<DK>(ds * scale * static_cast<double>(q(b, h, i, c)));
      }
      for (Index c = 0; c < problem.value_dim; ++c)
        dv(b, kv, j, c) += static_cast<DV>(row.p[j] * static_cast<double>(dout(b, h, i, c)));
      [[maybe_unused]] auto add_to_scale = [&](const auto& policy) {
        using Policy = std::remove_cvref_t<decltype(policy)>;
        if constexpr (detail::kind_of<double, Policy> == PolicyKind::scale && requires { policy.target(); }) {
          const auto& x = policy.target();
          x(x.batch == 1 ? 0 : b, x.heads == 1 ? 0 : h, 0, 0) +=
              ds * dot * (scale / static_cast<double>(policy.factor));
        }
      };
      (add_to_scale(policies), ...);
    }
    [[maybe_unused]] auto add_to_sink = [&](const auto& policy) {
      using Policy = std::remove_cvref_t<decltype(policy)>;
      if constexpr (detail::kind_of<double, Policy> == PolicyKind::sink && requires { policy.target(); }) {
        const auto& x = policy.target();
        x(x.batch == 1 ? 0 : b, x.heads == 1 ? 0 : h, 0, 0) += row.p_sink * (dp_sink - delta);
      }
    };
    (add_to_sink(policies), ...);
  };
  detail::for_each_row(problem, 0, q, k, visit, policies...);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::reference
