#pragma once
// How scores become weights.

#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/core/config.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/tensor/shape.hpp"

namespace attention_balancer::normalize {
ATTENTION_BALANCER_BEGIN_ISA

/// exp(s) / sum exp(s): the default.
struct Softmax {};

/// Attention sinks: one logit per query head that takes part in the denominator only (StreamingLLM, arXiv
/// 2309.17453; gpt-oss). Not changed by score modifiers. Borrows the logits; they must not be NaN or +inf
/// (InputError); -inf is no sink.
template <Scalar T>
class Sink {
 public:
  explicit Sink(std::span<const T> logits) noexcept : logits_(logits) {}
  explicit Sink(std::span<T> logits) noexcept : logits_(logits) {}
  explicit Sink(const std::vector<T>& logits) noexcept : logits_(logits) {}
  template <attention_balancer::detail::OwningTemporary R>
  explicit Sink(R&&) = delete;

  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("normalize::Sink", logits_));
  }

  /// The logit of a query head.
  T logit(Index head) const noexcept { return logits_[static_cast<std::size_t>(head)]; }

  void validate(const Problem& problem) const {
    if (static_cast<Index>(logits_.size()) != problem.heads)
      attention_balancer::detail::fail<ShapeError>("normalize::Sink number of logits", logits_.size(),
                                                   "equal the query heads = " + std::to_string(problem.heads));
    for (std::size_t h = 0; h < logits_.size(); ++h)
      if (!(logits_[h] < std::numeric_limits<T>::infinity()))
        attention_balancer::detail::fail<InputError>("normalize::Sink logit of head " + std::to_string(h), logits_[h],
                                                     "be finite or -inf");
  }

 private:
  std::span<const T> logits_;
};
template <class T, std::size_t N>
Sink(std::span<T, N>) -> Sink<std::remove_const_t<T>>;
template <class T>
Sink(const std::vector<T>&) -> Sink<T>;
template <class T, std::size_t N>
Sink(const std::array<T, N>&) -> Sink<T>;

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::normalize
