#pragma once
// One row of scores to probabilities, in double, as the formulas read: the part of the executable specification that
// knows the normalisers.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "attention_balancer/softmax/normalizers.hpp"

namespace attention_balancer::reference {
ATTENTION_BALANCER_BEGIN_ISA

namespace detail {

using namespace attention_balancer::detail;

/// What one query sees.
struct Row {
  Eigen::VectorXd p;                             // [Nk] probabilities of the keys; of a masked key exactly 0
  Eigen::Array<bool, Eigen::Dynamic, 1> masked;  // [Nk] by a mask, by a score of -inf, or outside a sparse support
  Eigen::VectorXd slope;                         // [Nk] dp_j / ds_j = slope_j (1 - slope_j / sum of slopes), ...
  double slopes = 1;                             // ... the sum, with that of a sink
  double p_sink = 0, lse = 0, entropy = 0;
  Index support = 0;
  bool empty = false;
  Index dominant = -1;     // the key with p > 1/2, if there is one
  Eigen::VectorXd others;  // [Nk] what the probabilities are without it; all 0 if nothing else is seen
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
    const double next =
        power == 1 ? (sum - 1) / n : mean - std::sqrt(std::max(0.0, (1 - (squares - sum * mean)) / n));
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

/// Finds the dominant key of a row.
inline void find_dominant(Row& row) {
  for (Eigen::Index j = 0; j < row.p.size(); ++j)
    if (row.p[j] > 0.5) row.dominant = j;
}

/// Softmax, and the same without its dominant key: from the scores, since 1 - p says little of the others.
inline Row leave_out(const Eigen::VectorXd& scores, double sink) {
  Row row = softmax(scores, sink);
  find_dominant(row);
  if (row.dominant < 0) return row;
  Eigen::VectorXd less = scores;
  less[row.dominant] = -std::numeric_limits<double>::infinity();
  row.others = softmax(less, sink).p;
  return row;
}

/// The same of probabilities that come from no exponentials: the others share what is left.
inline Row leave_out_weights(Row row) {
  find_dominant(row);
  if (row.dominant < 0) return row;
  row.others = row.p;
  row.others[row.dominant] = 0;
  if (const double rest = row.others.sum(); rest > 0) row.others /= rest;
  return row;
}

/// What the normaliser makes of the scores [Nk] and one sink logit (-inf: none).
inline Row normalize(const Eigen::VectorXd& scores, double sink, const Normalization& normalization) {
  const bool empty = (scores.array() == -std::numeric_limits<double>::infinity()).all();
  switch (normalization.kind) {
    case Normalization::Kind::sparsemax: return leave_out_weights(project(scores, 1));
    case Normalization::Kind::entmax15: return leave_out_weights(project(scores, 2));
    case Normalization::Kind::top_k: return leave_out(empty ? scores : top_k(scores, normalization.k), sink);
    case Normalization::Kind::softmax: break;
  }
  return leave_out(scores, sink);
}

}  // namespace detail

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::reference
