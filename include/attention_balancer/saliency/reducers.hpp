#pragma once
// Evidence to one non-negative number per input (= key). Nothing is normalised here: that is what an allocation
// does.
//
// Every one of them takes how the heads are reduced, Heads::mean by default: Heads::max or sum, Head{h} for one
// query head alone, EachHead{} for a row per query head, KvHeads{Hkv} for a row per KV head.

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/saliency/heads.hpp"

namespace attention_balancer {
namespace detail {

/// Throws unless there is an item `batch` of `evidence`.
template <Scalar T>
void check_observed(const Evidence<T>& evidence, Index batch) {
  require_observed(evidence, "evidence");
  if (batch < 0 || batch >= evidence.batch())
    fail<ShapeError>("saliency batch", batch, "be in [0, batch = " + std::to_string(evidence.batch()) + ")");
}

/// Throws unless item `batch` of `evidence` carries mass.
template <Scalar T>
void check_evidence(const Evidence<T>& evidence, Index batch) {
  check_observed(evidence, batch);
  if (!evidence.has_mass())
    fail<InputError>("evidence", "observed with QueryWeights::none()",
                     "carry mass: observe with other query weights");
}

/// Throws unless `evidence` carries the statistic.
template <Scalar T>
void check_statistic(const Evidence<T>& evidence, Index batch, evidence::Kind kind, const char* name) {
  check_evidence(evidence, batch);
  if (evidence.statistic_kind() != kind)
    fail<InputError>("evidence", "of another statistic", std::string("be observed with evidence::") + name);
}

/// A row of numbers of the evidence as a callable over keys.
template <Scalar T>
auto row_of(std::span<const T> values) {
  return [values](std::size_t j) { return static_cast<double>(values[j]); };
}

/// A key that no query could see has no evidence, not infinite evidence.
template <Scalar T>
double per_exposure(T sum, T exposure) {
  return exposure > T(0) ? static_cast<double>(sum) / static_cast<double>(exposure) : 0.0;
}

template <class = void>
void check_gamma(double gamma) {
  if (!(gamma >= 0) || !std::isfinite(gamma)) fail<InputError>("gamma", gamma, "be finite and not negative");
}

/// Mean and variance over the observed queries of the weights of one head.
template <Scalar T>
struct Moments {
  std::span<const T> mass, squares, exposure;

  Moments(const Evidence<T>& evidence, Index b, Index h)
      : mass(evidence.mass(b, h)), squares(evidence.statistic(b, h)), exposure(evidence.exposure(b, h)) {}

  double mean(std::size_t j) const { return per_exposure(mass[j], exposure[j]); }
  double variance(std::size_t j) const {
    const double difference = per_exposure(squares[j], exposure[j]) - mean(j) * mean(j);
    return difference < 0 ? 0.0 : difference;  // rounding; not a number stays so
  }
};

}  // namespace detail

namespace saliency {

/// [keys] The attention each key received, summed over the observed queries and reduced over the query heads of
/// item `batch`: H2O (2306.14048) with QueryWeights::all(), SnapKV (2404.14469) before its pooling with last(w),
/// TOVA (2401.06104) and FastV (2403.06764) with last(1), the CLS row of EViT (2202.07800) with only(0). Under a
/// causal mask early keys are seen by more queries: see per_exposure. NaN masses stay NaN. Throws InputError if the
/// evidence is empty or without mass, ShapeError if `batch` or the heads are out of range.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> mass(const Evidence<T>& evidence, Over over = {}, Index batch = 0) {
  detail::check_evidence(evidence, batch);
  return detail::reduce_heads<T>(evidence.heads(), evidence.keys(), over,
                                 [&](Index h) { return detail::row_of(evidence.mass(batch, h)); });
}

/// [keys] Mass divided by exposure: the average weight that a key received from the queries that could see it, so
/// that early and late keys compare under a causal mask (the lifetime-normalised H2O). The division is done per
/// head, before the reduction. A key of exposure 0 gives 0. Throws as mass does.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> per_exposure(const Evidence<T>& evidence, Over over = {}, Index batch = 0) {
  detail::check_evidence(evidence, batch);
  return detail::reduce_heads<T>(evidence.heads(), evidence.keys(), over, [&](Index h) {
    return [mass = evidence.mass(batch, h), exposure = evidence.exposure(batch, h)](std::size_t j) {
      return detail::per_exposure(mass[j], exposure[j]);
    };
  });
}

/// [keys] The statistic that was observed beside the mass (evidence::squares, maximum, squared_odds,
/// leave_one_out), reduced over the query heads; the mass if it was evidence::mass. Throws as mass does.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> statistic(const Evidence<T>& evidence, Over over = {}, Index batch = 0) {
  detail::check_evidence(evidence, batch);
  return detail::reduce_heads<T>(evidence.heads(), evidence.keys(), over,
                                 [&](Index h) { return detail::row_of(evidence.statistic(batch, h)); });
}

/// [keys] sum_i u_i (p_ij / (1 - p_ij))^2 |v_j - o_i|^2: the squared change of the output if the key were dropped,
/// exactly (DropKV), also where the key takes nearly all of a query; without the only key that a query sees, its output
/// is 0. In units of the output, so that heads compare, and the best-justified score for an eviction;
/// by default the sum over the heads, which is the change of all outputs together. Throws InputError unless it was
/// observed with evidence::leave_one_out, and otherwise as mass does.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> leave_one_out(const Evidence<T>& evidence, Over over, Index batch = 0) {
  detail::check_statistic(evidence, batch, evidence::Kind::leave_one_out, "leave_one_out");
  return statistic(evidence, over, batch);
}
template <Scalar T>
std::vector<T> leave_one_out(const Evidence<T>& evidence) {
  return leave_one_out(evidence, Heads::sum);
}

/// [keys] The variance over the observed queries of the weight that they gave the key: sum u p^2 / U - (sum u p /
/// U)^2, U the exposure, and 0 for a key of exposure 0. Throws InputError unless it was observed with
/// evidence::squares, and otherwise as mass does.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> variance(const Evidence<T>& evidence, Over over = {}, Index batch = 0) {
  detail::check_statistic(evidence, batch, evidence::Kind::squares, "squares");
  return detail::reduce_heads<T>(evidence.heads(), evidence.keys(), over, [&](Index h) {
    return [moments = detail::Moments<T>(evidence, batch, h)](std::size_t j) { return moments.variance(j); };
  });
}

/// [keys] mean_i p_ij + gamma * Var_i p_ij over the observed queries (CAKE, 2503.12491, before its pooling): keys
/// that the queries disagree about count more. The variance divides by the number W of queries; the authors' code
/// by W - 1 (torch.var), so that its gamma is ours times (W - 1) / W. Throws InputError unless gamma is finite and
/// not negative, and otherwise as variance does.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> mean_and_variance(const Evidence<T>& evidence, double gamma, Over over = {},
                                           Index batch = 0) {
  detail::check_gamma(gamma);
  detail::check_statistic(evidence, batch, evidence::Kind::squares, "squares");
  return detail::reduce_heads<T>(evidence.heads(), evidence.keys(), over, [&](Index h) {
    return [gamma, moments = detail::Moments<T>(evidence, batch, h)](std::size_t j) {
      return moments.mean(j) + gamma * moments.variance(j);
    };
  });
}

/// [queries] The entropy in nats of each query's distribution over the keys and its sink: how undecided an input
/// is. Reduced over the query heads. Needs no mass: QueryWeights::none() will do. Throws InputError if the evidence
/// is empty, ShapeError if `batch` or the heads are out of range.
template <Scalar T, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> entropy(const Evidence<T>& evidence, Over over = {}, Index batch = 0) {
  detail::check_observed(evidence, batch);
  return detail::reduce_heads<T>(evidence.heads(), evidence.queries(), over,
                                 [&](Index h) { return detail::row_of(evidence.entropy(batch, h)); });
}

}  // namespace saliency
}  // namespace attention_balancer
