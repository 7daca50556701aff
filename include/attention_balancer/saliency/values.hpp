#pragma once
// Saliency that asks what a key would bring, besides how much it is looked at: the norms of the values.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/saliency/reducers.hpp"
#include "attention_balancer/tensor/shape.hpp"

namespace attention_balancer {

namespace saliency {

enum class Norm { l1, l2 };

}  // namespace saliency

namespace detail {

/// Throws ShapeError unless the view can be read and has item `batch`.
template <class V>
void check_batch_of(const char* name, const TensorView<V>& x, Index batch) {
  static_assert(Scalar<std::remove_const_t<V>>, "attention_balancer: a saliency reads views of float or double");
  static_cast<void>(check_layout(layout(name, x)));
  if (batch < 0 || batch >= x.batch)
    fail<ShapeError>("saliency batch", batch,
                     "be in [0, " + std::string(name) + ".batch = " + std::to_string(x.batch) + ")");
  if (x.heads < 1) fail<ShapeError>(std::string(name) + ".heads", x.heads, "be at least 1");
}

/// |x| of a row, in double; also where its squares would overflow or vanish.
template <class V>
double row_norm(const TensorView<V>& x, Index b, Index h, Index j, saliency::Norm norm) {
  auto sum_of = [&](auto term) {
    double sum = 0;
    for (Index c = 0; c < x.dim; ++c) sum += term(std::fabs(static_cast<double>(x(b, h, j, c))));
    return sum;
  };
  if (norm == saliency::Norm::l1) return sum_of([](double e) { return e; });
  const double squares = sum_of([](double e) { return e * e; });
  if (squares > 1e-280 && squares < std::numeric_limits<double>::infinity()) return std::sqrt(squares);
  double most = 0;
  sum_of([&](double e) { return most = e > most ? e : most; });
  if (most == 0 || squares != squares || most == std::numeric_limits<double>::infinity())
    return squares == squares ? most : squares;
  return most * std::sqrt(sum_of([&](double e) { return e / most * (e / most); }));
}

}  // namespace detail

namespace saliency {

/// [Hkv, Nk] The norms of the rows of a view [B, Hkv, Nk, D], values or keys, of item `batch`. Summed in double.
/// Throws ShapeError if the view cannot be read or has no such item.
template <class V>
Rows<std::remove_const_t<V>> norms(const TensorView<V>& x, Norm norm = Norm::l2, Index batch = 0) {
  detail::check_batch_of("x", x, batch);
  Rows<std::remove_const_t<V>> result(x.heads, x.length);
  for (Index h = 0; h < x.heads; ++h)
    for (Index j = 0; j < x.length; ++j)
      result[h][static_cast<std::size_t>(j)] =
          static_cast<std::remove_const_t<V>>(detail::row_norm(x, batch, h, j, norm));
  return result;
}

/// [Hkv, Nk] |W^T v| of each value in the L1 norm: what it does to the layer's output, averaged over the query
/// heads that share it (CriticalKV, 2502.03805). `values` is [B, Hkv, Nk, Dv], `projection` [1, Hq, Dv, E], the
/// rows of the output projection that belong to each query head. Where the projection lies as PyTorch's Linear [E,
/// Hq * Dv] keeps it, that is TensorView<const float>{w, 1, Hq, Dv, E, 0, Dv, 1, Hq * Dv}. O(Hq Nk Dv E). Throws
/// ShapeError if the shapes do not fit.
template <class V, class W>
Rows<std::remove_const_t<V>> projected_norms(const TensorView<V>& values, const TensorView<W>& projection,
                                             Index batch = 0) {
  using T = std::remove_const_t<V>;
  detail::check_batch_of("values", values, batch);
  detail::check_batch_of("projection", projection, 0);
  if (projection.heads % values.heads != 0)
    detail::fail<ShapeError>("projection.heads", projection.heads,
                             "be a multiple of values.heads = " + std::to_string(values.heads));
  if (projection.length != values.dim)
    detail::fail<ShapeError>("projection.length", projection.length,
                             "equal values.dim = " + std::to_string(values.dim));
  const Index group = projection.heads / values.heads, dim = values.dim, outputs = projection.dim;
  std::vector<double> weight(static_cast<std::size_t>(dim) * static_cast<std::size_t>(outputs)),
      output(static_cast<std::size_t>(outputs));
  std::vector<double> sums(static_cast<std::size_t>(values.length));
  Rows<T> result(values.heads, values.length);
  for (Index kv = 0; kv < values.heads; ++kv) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (Index h = kv * group; h < (kv + 1) * group; ++h) {
      for (Index c = 0; c < dim; ++c)
        for (Index e = 0; e < outputs; ++e)
          weight[static_cast<std::size_t>(c * outputs + e)] = static_cast<double>(projection(0, h, c, e));
      for (Index j = 0; j < values.length; ++j) {
        std::fill(output.begin(), output.end(), 0.0);
        for (Index c = 0; c < dim; ++c) {
          const double v = static_cast<double>(values(batch, kv, j, c));
          const double* row = weight.data() + c * outputs;
          for (Index e = 0; e < outputs; ++e) output[static_cast<std::size_t>(e)] += v * row[e];
        }
        for (const double x : output) sums[static_cast<std::size_t>(j)] += std::fabs(x);
      }
    }
    for (std::size_t j = 0; j < sums.size(); ++j)
      result[kv][j] = static_cast<T>(sums[j] / static_cast<double>(group));
  }
  return result;
}

/// [keys] Mass times the norm of the value, per query head before the reduction: with Norm::l1 VATP (2406.12335;
/// pin the sinks), with Norm::l2 and QueryWeights::only(0) the score of ATS (2111.15667). `values` is [B, Hkv, Nk,
/// Dv]. Throws ShapeError if the values do not fit the evidence, and otherwise as mass does.
template <Scalar T, class V, detail::HeadReduction Over = Heads>
detail::Reduced<T, Over> value_weighted(const Evidence<T>& evidence, const TensorView<V>& values,
                                        Norm norm = Norm::l1, Over over = {}, Index batch = 0) {
  detail::check_evidence(evidence, batch);
  detail::check_batch_of("values", values, batch);
  if (values.length != evidence.keys())
    detail::fail<ShapeError>("values.length", values.length, "equal the keys, " + std::to_string(evidence.keys()));
  if (evidence.heads() % values.heads != 0)
    detail::fail<ShapeError>("values.heads", values.heads,
                             "divide the query heads, " + std::to_string(evidence.heads()));
  const auto sizes = norms(values, norm, batch);
  const Index group = evidence.heads() / values.heads;
  return detail::reduce_heads<T>(evidence.heads(), evidence.keys(), over, [&](Index h) {
    return [mass = evidence.mass(batch, h), size = sizes[h / group]](std::size_t j) {
      // What nobody sees brings nothing, whatever lies there.
      return mass[j] == T(0) ? 0.0 : static_cast<double>(mass[j]) * static_cast<double>(size[j]);
    };
  });
}

/// [Hkv, Nk] (score + epsilon) * norm, entry by entry: the second stage of CriticalKV (2502.03805), with norms from
/// projected_norms. Its first stage keeps the better half of the budget by the score alone: pin those. Throws
/// ShapeError if the sizes differ, InputError unless epsilon is finite and not negative.
template <Scalar T>
Rows<T> norm_weighted(const Rows<T>& scores, const Rows<T>& norms, double epsilon = 1e-4) {
  if (norms.rows() != scores.rows())
    detail::fail<ShapeError>("rows of the norms", norms.rows(),
                             "equal those of the scores, " + std::to_string(scores.rows()));
  if (norms.length() != scores.length())
    detail::fail<ShapeError>("length of the norms", norms.length(),
                             "equal that of the scores, " + std::to_string(scores.length()));
  if (!(epsilon >= 0) || !std::isfinite(epsilon))
    detail::fail<InputError>("epsilon", epsilon, "be finite and not negative");
  Rows<T> result(scores.rows(), scores.length());
  for (std::size_t i = 0; i < result.values().size(); ++i)
    result.values()[i] = static_cast<T>((static_cast<double>(scores.values()[i]) + epsilon) *
                                        static_cast<double>(norms.values()[i]));
  return result;
}

}  // namespace saliency
}  // namespace attention_balancer
