#pragma once
// Attention rollout: which inputs a query draws from through all layers, without any n x n matrix.

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/saliency/reducers.hpp"

namespace attention_balancer {
namespace saliency {

/// The rollout of one query, or of a mixture of queries, as a vector recurrence from the last layer to the first:
///
///     r_j <- residual * r_j + (1 - residual) * mean over heads of sum_i r_i p_ij
///
/// The sum is a mass whose query weights are the row so far, so that memory is linear where the product of the n x
/// n matrices of Abnar and Zuidema (2005.00928; residual 1/2) is quadratic, and every layer costs one call:
///
///     saliency::Rollout<float> rollout(n, 0);                   // from the CLS token
///     for (Index l = layers; l-- > 0;) {
///       ab::attention_evidence(q[l], k[l], ab::observe(evidence, rollout.weights()));
///       rollout.step(evidence);
///     }
///     rollout.row();                                            // [n] adds up to 1, less what went to sinks
template <Scalar T>
class Rollout {
 public:
  /// From one query. Throws ShapeError unless it is in [0, inputs), InputError unless residual is in [0, 1].
  Rollout(Index inputs, Index query, double residual = 0.5) : residual_(residual) {
    check_residual();
    if (query < 0 || query >= inputs)
      detail::fail<ShapeError>("Rollout query", query, "be in [0, inputs = " + std::to_string(inputs) + ")");
    row_.assign(static_cast<std::size_t>(inputs), T(0));
    row_[static_cast<std::size_t>(query)] = T(1);
  }

  /// From queries that count `weights` each, [inputs]; copied. Throws InputError unless they are finite and not
  /// negative and residual is in [0, 1].
  explicit Rollout(std::span<const T> weights, double residual = 0.5) : residual_(residual) {
    check_residual();
    static_cast<void>(QueryWeights::of(weights));  // the same must hold for them
    row_.assign(weights.begin(), weights.end());
  }

  /// The query weights for the next layer, from the last to the first. They borrow the row: observe with them
  /// before step is called.
  QueryWeights weights() const& { return QueryWeights::of(std::span<const T>(row_)); }
  QueryWeights weights() const&& = delete;

  /// Takes what item `batch` of a layer's attention was observed with weights(). Throws ShapeError if it has
  /// another number of queries or keys, and otherwise as mass does; then nothing changes.
  void step(const Evidence<T>& evidence, Index batch = 0) {
    detail::check_evidence(evidence, batch);
    const auto n = static_cast<Index>(row_.size());
    if (evidence.queries() != n)
      detail::fail<ShapeError>("evidence queries", evidence.queries(),
                               "equal those of the Rollout, " + std::to_string(n));
    if (evidence.keys() != n)
      detail::fail<ShapeError>("evidence keys", evidence.keys(), "equal the queries, " + std::to_string(n));
    const std::vector<T> received = mass(evidence, Heads::mean, batch);
    for (std::size_t j = 0; j < row_.size(); ++j)
      row_[j] = static_cast<T>(residual_ * static_cast<double>(row_[j]) +
                               (1 - residual_) * static_cast<double>(received[j]));
  }

  /// [inputs] The row so far: after the first layer, the saliency of the inputs.
  std::span<const T> row() const& noexcept { return row_; }
  std::span<const T> row() const&& = delete;

 private:
  void check_residual() const {
    if (!(residual_ >= 0 && residual_ <= 1))
      detail::fail<InputError>("Rollout residual", residual_, "be in [0, 1]");
  }

  double residual_;
  std::vector<T> row_;
};

}  // namespace saliency
}  // namespace attention_balancer
