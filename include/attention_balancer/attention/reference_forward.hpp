#pragma once
// Attention and its evidence in double, untiled, one query at a time. See reference.hpp.

#include <Eigen/Core>
#include <algorithm>
#include <limits>
#include <type_traits>

#include "attention_balancer/attention/forward.hpp"
#include "attention_balancer/softmax/reference_row.hpp"

namespace attention_balancer::reference {
ATTENTION_BALANCER_BEGIN_ISA

namespace detail {

using namespace attention_balancer::detail;

/// Calls visit(batch, head, kv_head, query, seen, row) for every query; seen [Nk] is what the masks leave. Policies are
/// told that batch item 0 is first_batch.
template <class Q, class K, class Visit, class... P>
void for_each_row(const Problem& problem, Index first_batch, const TensorView<Q>& q, const TensorView<K>& k,
                  Visit visit, P&... policies) {
  const auto set = collect_policies<double>(policies...);
  const double scale = scale_of<double>(problem, policies...);
  auto sink = [&](Index head) {
    if constexpr (count_of<PolicyKind::sink, double, P...> != 0)
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

inline double squared_odds(double p) {
  const double ratio = std::min(p / (1 - p), 1 / std::numeric_limits<double>::epsilon());
  return ratio * ratio;
}

template <evidence::Kind Statistic>
class Observer {
 public:
  Observer(const Observation<double, Statistic>& observation, const Problem& problem, bool sparse)
      : evidence_(*observation.target), weights_(observation.weights), problem_(problem), sparse_(sparse) {
    weights_.validate(problem.queries);
    EvidenceAccess::reshape(evidence_,
                            {.batch = problem.batch, .heads = problem.heads, .queries = problem.queries,
                             .keys = problem.keys, .with_mass = weights_.kind() != QueryWeights::Kind::none,
                             .statistic = Statistic, .with_support = sparse});
  }

  /// `change(j)`: how much the output changes without key j, squared; only called for leave-one-out.
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
    } else if constexpr (Statistic == evidence::Kind::squared_odds) {
      statistic += u * squared_odds(p);
    } else if (p != 0) {
      statistic += u * change(j);
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
  if constexpr (count_of<PolicyKind::observation, double, P...> != 0) {
    using Observed = std::remove_cvref_t<decltype(find_policy<PolicyKind::observation, double>(policies...))>;
    static_assert(fits_scalar<double, Observed>, "attention_balancer: the reference writes Evidence<double>");
    return Observer(find_policy<PolicyKind::observation, double>(policies...), problem,
                    is_sparse(normalization_of<double>(policies...)));
  } else {
    return NoObserver{};
  }
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
      // The output without key j is o - p / (1 - p) (v - o); of a dominant key that would be the difference of
      // nearly equal numbers.
      const bool apart = j == row.dominant && output.allFinite();
      double square = 0;
      for (Index c = 0; c < problem.value_dim; ++c) {
        double other = apart ? 0 : output[c];
        for (Index l = 0; apart && l < problem.keys; ++l)
          if (l != j && !row.masked[l]) other += row.others[l] * static_cast<double>(v(b, kv, l, c));
        const double d = static_cast<double>(v(b, kv, j, c)) - other;
        square += d * d;
      }
      return square * (apart ? row.p[j] * row.p[j] : squared_odds(row.p[j]));
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
  constexpr bool keys = count_of<PolicyKind::packed_queries, double, P...> == 0;
  static_assert(keys, "attention_balancer: PackedQueries needs a cache, which the reference does not take");
  if constexpr (count_of<PolicyKind::sequences, double, P...> != 0) {
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
      if constexpr (count_of<PolicyKind::packed_observation, double, P...> != 0) {
        const auto& each = find_policy<PolicyKind::packed_observation, double>(policies...);
        require_equal("observe number of evidences", static_cast<Index>(each.targets.size()),
                      "the packed sequences", sequences.sequences());
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

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::reference
