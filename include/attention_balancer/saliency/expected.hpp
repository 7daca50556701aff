#pragma once
// Expected attention: what queries that have not come yet will look at, if they are distributed like those seen.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/saliency/heads.hpp"
#include "attention_balancer/saliency/values.hpp"
#include "attention_balancer/tensor/shape.hpp"

namespace attention_balancer {
namespace saliency {

/// Mean and covariance of the queries of each head, in double.
class QueryStatistics {
 public:
  /// Of the queries [first, Nq) of item `batch` of q [B, Hq, Nq, D]; the covariance divides by their number.
  /// Queries of a model with rotary positions are taken before the rotation, then rotate() is called. Throws
  /// ShapeError if the view does not fit or no query is left.
  template <class Q>
  explicit QueryStatistics(const TensorView<Q>& q, Index first = 0, Index batch = 0)
      : heads_(q.heads), dim_(q.dim) {
    detail::check_batch_of("q", q, batch);
    if (first < 0 || first >= q.length)
      detail::fail<ShapeError>("first query", first, "be in [0, q.length = " + std::to_string(q.length) + ")");
    mean_.resize(static_cast<std::size_t>(heads_ * dim_));
    covariance_.resize(static_cast<std::size_t>(heads_ * dim_ * dim_));
    const double count = static_cast<double>(q.length - first);
    std::vector<double> centred(static_cast<std::size_t>(dim_));
    for (Index h = 0; h < heads_; ++h) {
      double *mu = mean_.data() + h * dim_, *sigma = covariance_.data() + h * dim_ * dim_;
      for (Index i = first; i < q.length; ++i)
        for (Index c = 0; c < dim_; ++c) mu[c] += static_cast<double>(q(batch, h, i, c)) / count;
      for (Index i = first; i < q.length; ++i) {
        for (Index c = 0; c < dim_; ++c)
          centred[static_cast<std::size_t>(c)] = static_cast<double>(q(batch, h, i, c)) - mu[c];
        for (Index a = 0; a < dim_; ++a)
          for (Index c = 0; c < dim_; ++c)
            sigma[a * dim_ + c] +=
                centred[static_cast<std::size_t>(a)] * centred[static_cast<std::size_t>(c)] / count;
      }
    }
  }

  Index heads() const noexcept { return heads_; }
  Index dim() const noexcept { return dim_; }

  /// [dim] and [dim, dim] of query head h, in range.
  template <class = void>
  std::span<const double> mean(Index h) const noexcept {
    return std::span<const double>(mean_.data() + h * dim_, size());
  }
  template <class = void>
  std::span<const double> covariance(Index h) const noexcept {
    return std::span<const double>(covariance_.data() + h * dim_ * dim_, size() * size());
  }

  /// mean <- R mean and covariance <- R covariance R^T, for R [dim, dim] by rows, such as average_rotation. Throws
  /// ShapeError if its size differs.
  template <class = void>
  void rotate(std::span<const double> rotation) {
    if (rotation.size() != size() * size())
      detail::fail<ShapeError>("rotation size", rotation.size(),
                               "be dim * dim = " + std::to_string(size() * size()));
    const Index d = dim_;
    std::vector<double> turned(size() * size());
    for (Index h = 0; h < heads_; ++h) {
      double *mu = mean_.data() + h * d, *sigma = covariance_.data() + h * d * d;
      multiply(rotation.data(), mu, 1, 1, turned.data());
      std::copy_n(turned.data(), d, mu);
      multiply(rotation.data(), sigma, d, d, turned.data());  // R S
      for (Index r = 0; r < d; ++r)                           // row r of (R S) R^T is R times row r of R S
        multiply(rotation.data(), turned.data() + r * d, 1, 1, sigma + r * d);
    }
  }

 private:
  std::size_t size() const noexcept { return static_cast<std::size_t>(dim_); }

  /// out [dim, columns] = a [dim, dim] * b [dim, columns], rows of b `stride` apart
  template <class = void>
  void multiply(const double* a, const double* b, Index columns, Index stride, double* out) const {
    for (Index r = 0; r < dim_; ++r) {
      std::fill_n(out + r * columns, columns, 0.0);
      for (Index k = 0; k < dim_; ++k)
        for (Index c = 0; c < columns; ++c) out[r * columns + c] += a[r * dim_ + k] * b[k * stride + c];
    }
  }

  Index heads_, dim_;
  std::vector<double> mean_, covariance_;
};

/// [dim, dim] by rows: the mean of the rotary rotations (2104.09864, feature c paired with c + dim / 2, as Llama
/// does) at the `count` positions from `first` on. Throws ShapeError unless dim is even and positive, InputError
/// unless count >= 1 and base > 0.
template <class = void>
std::vector<double> average_rotation(Index dim, Index first, Index count, double base = 10000) {
  if (dim < 2 || dim % 2 != 0) detail::fail<ShapeError>("rotation dim", dim, "be even and at least 2");
  if (count < 1) detail::fail<InputError>("number of positions", count, "be at least 1");
  if (!(base > 0) || !std::isfinite(base)) detail::fail<InputError>("rotation base", base, "be finite and above 0");
  std::vector<double> rotation(static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim), 0.0);
  const Index half = dim / 2;
  for (Index c = 0; c < half; ++c) {
    const double frequency = std::pow(base, -2.0 * static_cast<double>(c) / static_cast<double>(dim));
    double cosine = 0, sine = 0;
    for (Index p = 0; p < count; ++p) {
      const double angle = (static_cast<double>(first) + static_cast<double>(p)) * frequency;
      cosine += std::cos(angle) / static_cast<double>(count);
      sine += std::sin(angle) / static_cast<double>(count);
    }
    const auto at = [&](Index r, Index k) -> double& { return rotation[static_cast<std::size_t>(r * dim + k)]; };
    at(c, c) = at(c + half, c + half) = cosine;
    at(c, c + half) = -sine;
    at(c + half, c) = sine;
  }
  return rotation;
}

/// How expected_attention scores.
struct Expected {
  Index sinks = 4;     ///< the first keys are not judged: they get 0 and are to be pinned
  double epsilon = 0;  ///< added to the expected attention before it is multiplied by |v|
};

/// [keys] (softmax_j(mu k_j / sqrt(D) + k_j^T Sigma k_j / (2 D)) + epsilon) * |v_j|_2: the attention that normally
/// distributed queries are expected to give, times the size of the value (ExpectedAttention, 2510.00636). `keys`
/// and `values` are [B, Hkv, Nk, D] and [B, Hkv, Nk, Dv], the statistics those of the queries of Hq heads; per
/// query head, then reduced. Throws ShapeError if the shapes do not fit, InputError unless sinks >= 0 and epsilon
/// is finite and not negative.
template <class K, class V, detail::HeadReduction Over = Heads>
detail::Reduced<std::remove_const_t<K>, Over> expected_attention(const QueryStatistics& queries,
                                                                 const TensorView<K>& keys,
                                                                 const TensorView<V>& values, Over over = {},
                                                                 Expected options = {}, Index batch = 0) {
  detail::check_batch_of("keys", keys, batch);
  detail::check_batch_of("values", values, batch);
  if (keys.dim != queries.dim())
    detail::fail<ShapeError>("keys.dim", keys.dim, "equal that of the queries, " + std::to_string(queries.dim()));
  if (queries.heads() % keys.heads != 0)
    detail::fail<ShapeError>("keys.heads", keys.heads,
                             "divide the query heads, " + std::to_string(queries.heads()));
  if (values.heads != keys.heads)
    detail::fail<ShapeError>("values.heads", values.heads, "equal keys.heads = " + std::to_string(keys.heads));
  if (values.length != keys.length)
    detail::fail<ShapeError>("values.length", values.length, "equal keys.length = " + std::to_string(keys.length));
  if (options.sinks < 0) detail::fail<InputError>("Expected sinks", options.sinks, "not be negative");
  if (!(options.epsilon >= 0) || !std::isfinite(options.epsilon))
    detail::fail<InputError>("Expected epsilon", options.epsilon, "be finite and not negative");
  const Index group = queries.heads() / keys.heads, dim = keys.dim, sinks = std::min(options.sinks, keys.length);
  return detail::reduce_heads<std::remove_const_t<K>>(queries.heads(), keys.length, over, [&](Index h) {
    const Index kv = h / group;
    const auto mu = queries.mean(h), sigma = queries.covariance(h);
    std::vector<double> score(static_cast<std::size_t>(keys.length), 0.0), k(static_cast<std::size_t>(dim));
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (Index j = sinks; j < keys.length; ++j) {
      for (Index c = 0; c < dim; ++c) k[static_cast<std::size_t>(c)] = static_cast<double>(keys(batch, kv, j, c));
      double linear = 0, quadratic = 0;
      for (std::size_t a = 0; a < k.size(); ++a) {
        double row = 0;
        for (std::size_t c = 0; c < k.size(); ++c) row += sigma[a * k.size() + c] * k[c];
        linear += mu[a] * k[a];
        quadratic += k[a] * row;
      }
      const double d = static_cast<double>(dim);
      score[static_cast<std::size_t>(j)] = linear / std::sqrt(d) + quadratic / (2 * d);
      top = std::max(top, score[static_cast<std::size_t>(j)]);
    }
    for (std::size_t j = static_cast<std::size_t>(sinks); j < score.size(); ++j)
      sum += score[j] = std::exp(score[j] - top);
    for (Index j = sinks; j < keys.length; ++j) {
      double& s = score[static_cast<std::size_t>(j)];
      s = (s / sum + options.epsilon) * detail::row_norm(values, batch, kv, j, Norm::l2);
    }
    return [score = std::move(score)](std::size_t j) { return score[j]; };
  });
}

}  // namespace saliency
}  // namespace attention_balancer
