#pragma once
// What a small network is made of, each with its gradient: linear, layer norm, feed-forward, embedding,
// cross-entropy. Eigen does the dense algebra. A layer keeps what its backward pass needs from its last forward
// pass, so that a pair of calls belongs together; gradients of parameters add up until Adam has used them.
//
// A batch is packed: the tokens of all its sequences in one matrix, one row each, and Segments that tell where each
// sequence starts. T is float, or double where gradients are checked.

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "eigen.hpp"

namespace example {

template <class T>
using Rows = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

using Random = std::mt19937_64;

/// A matrix that is learned. `decays` tells Adam whether weight decay applies: to weights, not to biases and
/// scales.
template <class T>
struct Parameter {
  std::string name;
  Rows<T> value, gradient;
  bool decays = true;

  Parameter(std::string parameter_name, Eigen::Index rows, Eigen::Index columns, bool decay = true)
      : name(std::move(parameter_name)),
        value(Rows<T>::Zero(rows, columns)),
        gradient(Rows<T>::Zero(rows, columns)),
        decays(decay) {}

  /// Random-normal values.
  void draw(Random& random, double deviation);
};

/// Where the sequences of a packed batch start: sequence b is rows [starts[b], starts[b + 1]).
struct Segments {
  std::vector<Eigen::Index> starts{0};

  std::size_t count() const noexcept { return starts.size() - 1; }
  Eigen::Index begin(std::size_t b) const { return starts[b]; }
  Eigen::Index length(std::size_t b) const { return starts[b + 1] - starts[b]; }
  Eigen::Index rows() const noexcept { return starts.back(); }
  void add(Eigen::Index length) { starts.push_back(starts.back() + length); }
};

/// y = x W^T + b. x [n, in], y [n, out].
template <class T>
class Linear {
 public:
  /// Weights of variance gain / in; a bias of zero.
  Linear(const std::string& name, Eigen::Index in, Eigen::Index out, Random& random, double gain = 1);

  Rows<T> forward(const Rows<T>& x);
  Rows<T> backward(const Rows<T>& dy);
  /// The same without the gradient of x, for the first layer.
  void backward_parameters(const Rows<T>& dy);

  Parameter<T> weight, bias;

 private:
  Rows<T> x_;
};

/// Each row to mean 0 and variance 1, then scaled and shifted (Ba et al. 2016, 1607.06450).
template <class T>
class LayerNorm {
 public:
  LayerNorm(const std::string& name, Eigen::Index width);

  Rows<T> forward(const Rows<T>& x);
  Rows<T> backward(const Rows<T>& dy);

  Parameter<T> weight, bias;

 private:
  Rows<T> normal_;                               // [n, width]
  Eigen::Matrix<T, Eigen::Dynamic, 1> inverse_;  // [n] one over the standard deviation
};

/// Two linear layers with a ReLU between them.
template <class T>
class FeedForward {
 public:
  FeedForward(const std::string& name, Eigen::Index width, Eigen::Index hidden, Random& random);

  Rows<T> forward(const Rows<T>& x);
  Rows<T> backward(const Rows<T>& dy);

  Linear<T> first, second;

 private:
  Rows<T> active_;  // [n, hidden] after the ReLU
};

/// A row of a table for each id.
template <class T>
class Embedding {
 public:
  Embedding(const std::string& name, Eigen::Index entries, Eigen::Index width, Random& random, double deviation);

  /// [ids, width]. Throws ab::InputError naming the first id that is out of range.
  Rows<T> forward(std::span<const int> ids);
  void backward(const Rows<T>& dy);

  Parameter<T> table;

 private:
  std::vector<int> ids_;
};

/// The loss -log softmax(logits)[label] of each row, and its gradient.
template <class T>
struct CrossEntropy {
  std::vector<T> losses;  // [n]
  Rows<T> gradient;       // [n, classes] of the weighted sum of the losses divided by n
  T mean = 0;             // that sum divided by n
  std::size_t correct = 0;
};

/// logits [n, classes], labels [n] in [0, classes), weights [n] or none for 1 each. Throws ab::InputError naming
/// the row whose label is out of range.
template <class T>
CrossEntropy<T> cross_entropy(const Rows<T>& logits, std::span<const int> labels, std::span<const T> weights = {});

/// Softmax of each row.
template <class T>
Rows<T> softmax_rows(const Rows<T>& logits);

}  // namespace example
