#include "layers.hpp"

#include <cmath>

#include "attention_balancer/core/error.hpp"

namespace example {
namespace {

namespace ab = attention_balancer;

}  // namespace

template <class T>
void Parameter<T>::draw(Random& random, double deviation) {
  std::normal_distribution<double> normal(0, deviation);
  for (Eigen::Index i = 0; i < value.size(); ++i) value.data()[i] = static_cast<T>(normal(random));
}

// --- Linear
// ----------------------------------------------------------------------------------------------------------

template <class T>
Linear<T>::Linear(const std::string& name, Eigen::Index in, Eigen::Index out, Random& random, double gain)
    : weight(name + ".weight", out, in), bias(name + ".bias", 1, out, false) {
  weight.draw(random, std::sqrt(gain / static_cast<double>(in)));
}

template <class T>
Rows<T> Linear<T>::forward(const Rows<T>& x) {
  x_ = x;
  Rows<T> y(x.rows(), weight.value.rows());
  y.noalias() = x * weight.value.transpose();
  y.rowwise() += bias.value.row(0);
  return y;
}

template <class T>
void Linear<T>::backward_parameters(const Rows<T>& dy) {
  weight.gradient.noalias() += dy.transpose() * x_;
  bias.gradient.row(0) += dy.colwise().sum();
}

template <class T>
Rows<T> Linear<T>::backward(const Rows<T>& dy) {
  backward_parameters(dy);
  Rows<T> dx(dy.rows(), weight.value.cols());
  dx.noalias() = dy * weight.value;
  return dx;
}

// --- LayerNorm
// -------------------------------------------------------------------------------------------------------

template <class T>
LayerNorm<T>::LayerNorm(const std::string& name, Eigen::Index width)
    : weight(name + ".weight", 1, width, false), bias(name + ".bias", 1, width, false) {
  weight.value.setOnes();
}

template <class T>
Rows<T> LayerNorm<T>::forward(const Rows<T>& x) {
  constexpr T eps = T(1e-5);
  normal_.resize(x.rows(), x.cols());
  inverse_.resize(x.rows());
  Rows<T> y(x.rows(), x.cols());
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    auto normal = normal_.row(i).array();
    normal = x.row(i).array() - x.row(i).mean();
    inverse_[i] = T(1) / std::sqrt(normal.square().mean() + eps);
    normal *= inverse_[i];
    y.row(i).array() = normal * weight.value.row(0).array() + bias.value.row(0).array();
  }
  return y;
}

template <class T>
Rows<T> LayerNorm<T>::backward(const Rows<T>& dy) {
  Rows<T> dx(dy.rows(), dy.cols());
  for (Eigen::Index i = 0; i < dy.rows(); ++i) {
    const auto normal = normal_.row(i).array();
    weight.gradient.row(0).array() += dy.row(i).array() * normal;
    auto d = dx.row(i).array();
    d = dy.row(i).array() * weight.value.row(0).array();
    const T mean = d.mean(), along = (d * normal).mean();
    d = (d - mean - normal * along) * inverse_[i];
  }
  bias.gradient.row(0) += dy.colwise().sum();
  return dx;
}

// --- FeedForward
// -----------------------------------------------------------------------------------------------------

template <class T>
FeedForward<T>::FeedForward(const std::string& name, Eigen::Index width, Eigen::Index hidden, Random& random)
    : first(name + ".first", width, hidden, random, 2), second(name + ".second", hidden, width, random) {}

template <class T>
Rows<T> FeedForward<T>::forward(const Rows<T>& x) {
  active_ = first.forward(x).cwiseMax(T(0));
  return second.forward(active_);
}

template <class T>
Rows<T> FeedForward<T>::backward(const Rows<T>& dy) {
  Rows<T> d = second.backward(dy);
  d.array() *= (active_.array() > T(0)).template cast<T>();
  return first.backward(d);
}

// --- Embedding
// -------------------------------------------------------------------------------------------------------

template <class T>
Embedding<T>::Embedding(const std::string& name, Eigen::Index entries, Eigen::Index width, Random& random,
                        double deviation)
    : table(name, entries, width) {
  table.draw(random, deviation);
}

template <class T>
Rows<T> Embedding<T>::forward(std::span<const int> ids) {
  const auto entries = table.value.rows();
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= entries)
      throw ab::InputError(table.name + ": id " + std::to_string(i) + " is " + std::to_string(ids[i]) +
                           ", but must be in [0, " + std::to_string(entries) + ")");
  ids_.assign(ids.begin(), ids.end());
  Rows<T> y(static_cast<Eigen::Index>(ids.size()), table.value.cols());
  for (std::size_t i = 0; i < ids.size(); ++i) y.row(static_cast<Eigen::Index>(i)) = table.value.row(ids[i]);
  return y;
}

template <class T>
void Embedding<T>::backward(const Rows<T>& dy) {
  for (std::size_t i = 0; i < ids_.size(); ++i) table.gradient.row(ids_[i]) += dy.row(static_cast<Eigen::Index>(i));
}

// --- Cross-entropy
// ---------------------------------------------------------------------------------------------------

template <class T>
Rows<T> softmax_rows(const Rows<T>& logits) {
  Rows<T> p(logits.rows(), logits.cols());
  for (Eigen::Index i = 0; i < p.rows(); ++i) {
    p.row(i) = (logits.row(i).array() - logits.row(i).maxCoeff()).exp();
    p.row(i) /= p.row(i).sum();
  }
  return p;
}

template <class T>
CrossEntropy<T> cross_entropy(const Rows<T>& logits, std::span<const int> labels, std::span<const T> weights) {
  const auto n = static_cast<std::size_t>(logits.rows());
  if (labels.size() != n)
    throw ab::ShapeError("number of labels is " + std::to_string(labels.size()) +
                         ", but must be that of the rows, " + std::to_string(n));
  if (!weights.empty() && weights.size() != n)
    throw ab::ShapeError("number of weights is " + std::to_string(weights.size()) +
                         ", but must be that of the rows, " + std::to_string(n));
  for (std::size_t i = 0; i < n; ++i)
    if (labels[i] < 0 || labels[i] >= logits.cols())
      throw ab::InputError("label of row " + std::to_string(i) + " is " + std::to_string(labels[i]) +
                           ", but must be in [0, " + std::to_string(logits.cols()) + ")");

  CrossEntropy<T> result;
  result.losses.resize(n);
  result.gradient.resize(logits.rows(), logits.cols());
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto row = logits.row(static_cast<Eigen::Index>(i));
    auto gradient = result.gradient.row(static_cast<Eigen::Index>(i));
    Eigen::Index best = 0;
    const T largest = row.maxCoeff(&best);
    gradient = (row.array() - largest).exp();
    const T total = gradient.sum();
    const T weight = weights.empty() ? T(1) : weights[i];
    // The logarithm of the sum, not of the quotient: that may have underflowed.
    result.losses[i] = std::log(total) + largest - row[labels[i]];
    gradient /= total;
    gradient[labels[i]] -= T(1);
    gradient *= weight / static_cast<T>(n);
    sum += static_cast<double>(weight) * static_cast<double>(result.losses[i]);
    result.correct += best == labels[i] ? 1 : 0;
  }
  result.mean = n > 0 ? static_cast<T>(sum / static_cast<double>(n)) : T(0);
  return result;
}

template struct Parameter<float>;
template struct Parameter<double>;
template class Linear<float>;
template class Linear<double>;
template class LayerNorm<float>;
template class LayerNorm<double>;
template class FeedForward<float>;
template class FeedForward<double>;
template class Embedding<float>;
template class Embedding<double>;
template Rows<float> softmax_rows(const Rows<float>&);
template Rows<double> softmax_rows(const Rows<double>&);
template CrossEntropy<float> cross_entropy(const Rows<float>&, std::span<const int>, std::span<const float>);
template CrossEntropy<double> cross_entropy(const Rows<double>&, std::span<const int>, std::span<const double>);

}  // namespace example
