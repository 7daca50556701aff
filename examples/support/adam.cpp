#include "adam.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"

namespace example {

template <class T>
Adam<T>::Adam(std::vector<Parameter<T>*> parameters, AdamOptions options)
    : parameters_(std::move(parameters)), options_(options) {
  for (const auto* p : parameters_) {
    means_.push_back(Rows<T>::Zero(p->value.rows(), p->value.cols()));
    squares_.push_back(Rows<T>::Zero(p->value.rows(), p->value.cols()));
  }
}

template <class T>
void Adam<T>::step(double schedule) {
  double norm2 = 0;
  for (const auto* p : parameters_) {
    const auto part = static_cast<double>(p->gradient.squaredNorm());
    if (!std::isfinite(part))
      throw TrainingError("the gradient of " + p->name + " is not finite after step " + std::to_string(steps));
    norm2 += part;
  }
  const double norm = std::sqrt(norm2);
  const T scale = static_cast<T>(options_.clip > 0 && norm > options_.clip ? options_.clip / norm : 1);

  ++steps;
  const double n = static_cast<double>(steps);
  const double correct1 = 1 - std::pow(options_.beta1, n), correct2 = 1 - std::pow(options_.beta2, n);
  const T beta1 = static_cast<T>(options_.beta1), beta2 = static_cast<T>(options_.beta2);
  const T rate = static_cast<T>(schedule * options_.rate / correct1);
  const T unbias = static_cast<T>(1 / std::sqrt(correct2)), epsilon = static_cast<T>(options_.epsilon);
  const T keep = static_cast<T>(1 - schedule * options_.rate * options_.decay);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    auto& p = *parameters_[i];
    // Piece by piece, each in the cache for all that is done to it: the table of an embedding is larger than that.
    constexpr Eigen::Index piece = 2048;
    const T shrink = p.decays ? keep : T(1);
    for (Eigen::Index at = 0; at < p.value.size(); at += piece) {
      const auto n_here = std::min(piece, p.value.size() - at);
      const auto part = [&](Rows<T>& matrix) {
        return Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>(matrix.data() + at, n_here);
      };
      auto value = part(p.value), gradient = part(p.gradient), mean = part(means_[i]), square = part(squares_[i]);
      mean = beta1 * mean + ((1 - beta1) * scale) * gradient;
      square = beta2 * square + ((1 - beta2) * scale * scale) * gradient.square();
      value = shrink * value - rate * mean / (square.sqrt() * unbias + epsilon);
      gradient.setZero();
    }
  }
}

template class Adam<float>;
template class Adam<double>;

}  // namespace example
