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

namespace attention_balancer::detail {

/// Which normaliser a call uses, without its type.
struct Normalization {
  enum class Kind { softmax, sparsemax, entmax15, top_k };
  Kind kind = Kind::softmax;
  Index k = 0;
};

/// Whether the whole strip of scores is needed at once.
constexpr bool is_sparse(const Normalization& x) noexcept { return x.kind != Normalization::Kind::softmax; }

}  // namespace attention_balancer::detail

namespace attention_balancer::normalize {
ATTENTION_BALANCER_BEGIN_ISA

/// exp(s) / sum exp(s): the default.
struct Softmax {
  constexpr attention_balancer::detail::Normalization normalization() const noexcept { return {}; }
};

/// max(0, s - tau), with tau such that they add up to 1: the projection onto the simplex. Most keys get exactly nothing
/// (Martins and Astudillo, arXiv 1602.02068). Takes no sink. What keys outside the support hold reaches nothing.
///
/// With it the evidence has tau in place of the lse, and `support`: how many keys each query gives weight to.
struct Sparsemax {
  constexpr attention_balancer::detail::Normalization normalization() const noexcept {
    return {attention_balancer::detail::Normalization::Kind::sparsemax, 0};
  }
};

/// max(0, (s - tau) / 2)^2, with tau such that they add up to 1: between softmax and sparsemax (Peters, Niculae and
/// Martins, arXiv 1905.05702, alpha 1.5). Otherwise as Sparsemax.
struct Entmax15 {
  constexpr attention_balancer::detail::Normalization normalization() const noexcept {
    return {attention_balancer::detail::Normalization::Kind::entmax15, 0};
  }
};

/// Softmax over the k largest visible scores of each query, of equal ones those of the lower keys; the others count as
/// masked, except that exposure counts them. The lse is that of the k; the evidence has `support` too. At least 1
/// (InputError); a query with fewer visible keys keeps them all.
struct TopK {
  Index k;

  void validate(const Problem&) const {
    if (k < 1) attention_balancer::detail::fail<InputError>("normalize::TopK k", k, "be at least 1");
  }
  constexpr attention_balancer::detail::Normalization normalization() const noexcept {
    return {attention_balancer::detail::Normalization::Kind::top_k, k};
  }
};

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
