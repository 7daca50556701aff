#pragma once
// Attention as a layer that learns: the kernels of the library on the packed sequences of a batch.

#include <memory>
#include <string>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/workspace.hpp"
#include "layers.hpp"

namespace example {

/// Multi-head attention (Vaswani et al. 2017, 1706.03762): of a sequence to itself, or to a memory of another
/// length.
template <class T>
class MultiHeadAttention {
 public:
  /// width must be a multiple of heads: ab::ShapeError.
  MultiHeadAttention(const std::string& name, Eigen::Index width, Eigen::Index heads, Random& random);

  /// x [rows of queries, width] attends to `memory` [rows of keys, width], each sequence to the one of its number.
  /// A memory that is x itself gives self-attention. Throws ab::ShapeError if the numbers of sequences differ.
  Rows<T> forward(const Rows<T>& x, const Segments& queries, const Rows<T>& memory, const Segments& keys);
  Rows<T> forward(const Rows<T>& x, const Segments& segments) { return forward(x, segments, x, segments); }

  /// The gradient of x; that of the memory is returned through `dmemory`, or, without it, added to that of x.
  Rows<T> backward(const Rows<T>& dy, Rows<T>* dmemory = nullptr);

  Linear<T> query, key_value, output;

  int threads = 1;

 private:
  Eigen::Index heads_;
  Segments queries_, keys_;
  Rows<T> q_, kv_, context_;  // [rows, width], [rows, 2 width] with keys before values, [rows, width]
  std::vector<attention_balancer::Evidence<T>> evidence_;  // of each sequence, for the log-sum-exp
  std::vector<std::unique_ptr<attention_balancer::Workspace>> workspaces_;
};

/// One learned query looks at each sequence: the attention that a token receives from it is the weight of the
/// token. No values and no output, the evidence is the result; it learns through the gradient of the mass and the
/// entropy.
template <class T>
class Saliency {
 public:
  Saliency(const std::string& name, Eigen::Index width, Random& random);

  /// x [rows, width].
  void forward(const Rows<T>& x, const Segments& segments);

  /// [rows, width] what the last forward pass looked at.
  const Rows<T>& inputs() const noexcept { return x_; }
  /// [rows] the weight of each token: adds up to 1 in each sequence.
  const Eigen::Matrix<T, Eigen::Dynamic, 1>& mass() const noexcept { return mass_; }
  /// [sequences] entropy of the weights in nats.
  const std::vector<T>& entropy() const noexcept { return entropy_; }

  /// dmass [rows], dentropy [sequences]. Returns the gradient of x.
  Rows<T> backward(const Eigen::Matrix<T, Eigen::Dynamic, 1>& dmass, const std::vector<T>& dentropy);

  Parameter<T> query;

 private:
  Segments segments_;
  Rows<T> x_;
  Eigen::Matrix<T, Eigen::Dynamic, 1> mass_;
  std::vector<T> entropy_;
  std::vector<attention_balancer::Evidence<T>> evidence_;
  attention_balancer::Workspace workspace_;
};

}  // namespace example
