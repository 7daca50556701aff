#pragma once
// Evidence to one non-negative number per input (= key). Nothing is normalised here: that is what an allocation
// does.

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// How the query heads of one batch item become one number per key. Every query head counts the same; under GQA the
/// query heads that share a KV head are simply heads among the others.
enum class Heads {
  mean,  ///< the average over the heads: what the keys received on the whole
  max,   ///< the largest over the heads: a key that matters to one head matters
};

/// One query head alone, without any reduction: `saliency::mass(evidence, Head{3})`.
struct Head {
  Index index = 0;
};

namespace saliency {

using attention_balancer::Head;
using attention_balancer::Heads;

}  // namespace saliency

namespace detail {

/// Throws unless item `batch` of `evidence` carries mass.
template <Scalar T>
void check_evidence(const Evidence<T>& evidence, Index batch) {
  if (evidence.batch() == 0)
    fail<InputError>("evidence", "empty", "have been observed by a call of attention first");
  if (batch < 0 || batch >= evidence.batch())
    fail<ShapeError>("saliency batch", batch, "be in [0, batch = " + std::to_string(evidence.batch()) + ")");
  if (evidence.heads() == 0) fail<ShapeError>("evidence heads", Index(0), "be at least 1");
  if (!evidence.has_mass())
    fail<InputError>("evidence", "observed with QueryWeights::none()",
                     "carry mass: observe with other query weights");
}

/// One value per key of one head; `value(b, h)` returns that row as a callable over keys.
template <Scalar T, class Row>
std::vector<T> one_head(const Evidence<T>& evidence, Head head, Index batch, const Row& value) {
  check_evidence(evidence, batch);
  if (head.index < 0 || head.index >= evidence.heads())
    fail<ShapeError>("saliency head", head.index, "be in [0, heads = " + std::to_string(evidence.heads()) + ")");
  const auto row = value(batch, head.index);
  std::vector<T> result(static_cast<std::size_t>(evidence.keys()));
  for (std::size_t j = 0; j < result.size(); ++j) result[j] = static_cast<T>(row(j));
  return result;
}

template <Scalar T, class Row>
std::vector<T> over_heads(const Evidence<T>& evidence, Heads heads, Index batch, const Row& value) {
  check_evidence(evidence, batch);
  std::vector<double> reduced(static_cast<std::size_t>(evidence.keys()), 0.0);
  for (Index h = 0; h < evidence.heads(); ++h) {
    const auto row = value(batch, h);
    for (std::size_t j = 0; j < reduced.size(); ++j) {
      const double x = row(j);
      if (heads == Heads::mean)
        reduced[j] += x;
      else if (!(reduced[j] >= x) && reduced[j] == reduced[j])  // once NaN, always NaN: a maximum must not hide it
        reduced[j] = x;
    }
  }
  const double divisor = heads == Heads::mean ? static_cast<double>(evidence.heads()) : 1.0;
  std::vector<T> result(reduced.size());
  for (std::size_t j = 0; j < result.size(); ++j) result[j] = static_cast<T>(reduced[j] / divisor);
  return result;
}

template <Scalar T>
auto mass_row(const Evidence<T>& evidence) {
  return [&evidence](Index b, Index h) {
    return [mass = evidence.mass(b, h)](std::size_t j) { return static_cast<double>(mass[j]); };
  };
}

template <Scalar T>
auto statistic_row(const Evidence<T>& evidence) {
  return [&evidence](Index b, Index h) {
    return [statistic = evidence.statistic(b, h)](std::size_t j) { return static_cast<double>(statistic[j]); };
  };
}

template <Scalar T>
auto per_exposure_row(const Evidence<T>& evidence) {
  return [&evidence](Index b, Index h) {
    return [mass = evidence.mass(b, h), exposure = evidence.exposure(b, h)](std::size_t j) {
      // A key that no query could see has no evidence, not infinite evidence.
      return exposure[j] > T(0) ? static_cast<double>(mass[j]) / static_cast<double>(exposure[j]) : 0.0;
    };
  };
}

}  // namespace detail

namespace saliency {

/// [keys] The attention each key received, summed over the observed queries and reduced over the query heads of
/// item `batch`: H2O (2306.14048) with QueryWeights::all(), SnapKV (2404.14469) before its pooling with last(w),
/// TOVA (2401.06104) with last(1). Under a causal mask early keys are seen by more queries: see per_exposure. NaN
/// masses stay NaN. Throws InputError if the evidence is empty or without mass, ShapeError if `batch` is out of
/// range.
template <Scalar T>
std::vector<T> mass(const Evidence<T>& evidence, Heads heads = Heads::mean, Index batch = 0) {
  return detail::over_heads(evidence, heads, batch, detail::mass_row(evidence));
}

/// [keys] The same for one query head alone. Throws ShapeError if the head is out of range.
template <Scalar T>
std::vector<T> mass(const Evidence<T>& evidence, Head head, Index batch = 0) {
  return detail::one_head(evidence, head, batch, detail::mass_row(evidence));
}

/// [keys] Mass divided by exposure: the average weight that a key received from the queries that could see it, so
/// that early and late keys compare under a causal mask (the lifetime-normalised H2O). The division is done per
/// head, before the reduction. A key of exposure 0 gives 0. Throws as mass does.
template <Scalar T>
std::vector<T> per_exposure(const Evidence<T>& evidence, Heads heads = Heads::mean, Index batch = 0) {
  return detail::over_heads(evidence, heads, batch, detail::per_exposure_row(evidence));
}

/// [keys] The same for one query head alone.
template <Scalar T>
std::vector<T> per_exposure(const Evidence<T>& evidence, Head head, Index batch = 0) {
  return detail::one_head(evidence, head, batch, detail::per_exposure_row(evidence));
}

/// [keys] The statistic that was observed beside the mass (evidence::squares, maximum, leave_one_out), reduced over
/// the query heads; the mass if it was evidence::mass. Throws as mass does.
template <Scalar T>
std::vector<T> statistic(const Evidence<T>& evidence, Heads heads = Heads::mean, Index batch = 0) {
  return detail::over_heads(evidence, heads, batch, detail::statistic_row(evidence));
}

/// [keys] The same for one query head alone.
template <Scalar T>
std::vector<T> statistic(const Evidence<T>& evidence, Head head, Index batch = 0) {
  return detail::one_head(evidence, head, batch, detail::statistic_row(evidence));
}

}  // namespace saliency
}  // namespace attention_balancer
