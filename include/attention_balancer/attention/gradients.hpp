#pragma once
// What attention_backward is told beyond the tensors: where the gradients of a policy's parameters go, and the
// gradients that come in through the evidence.

#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/score/modifiers.hpp"
#include "attention_balancer/softmax/normalizers.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Whether the parameter of P is the one tensor that it borrows, with the axes of the scores.
template <class P>
inline constexpr bool is_bias = false;
template <class N>
inline constexpr bool is_bias<score::Bias<N>> = true;
template <class N>
inline constexpr bool is_bias<score::KeyBias<N>> = true;

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// A policy with the place for the gradient of its parameter: made by gradient(), used in the policy's stead, in
/// `attention` too, where it is the policy and nothing more.
template <class P, Scalar T>
class Gradient : public P {
 public:
  using policy_type = P;

  Gradient(const P& policy, const TensorView<T>& target) noexcept : P(policy), target_(target) {}

  const TensorView<T>& target() const noexcept { return target_; }

  void validate(const Problem& problem) const {
    if constexpr (requires(const P& p) { p.validate(problem); }) P::validate(problem);
    detail::check_broadcast(detail::layout("gradient target", target_), problem);
    detail::check_no_self_overlap(detail::layout("gradient target", target_));
    if constexpr (detail::is_bias<P>)
      P::borrowed([this](const detail::Layout& bias) {
        detail::require_shape(detail::layout("gradient target", target_), bias);
      });
  }

 private:
  TensorView<T> target_;
};

/// The policy, and where attention_backward writes the gradient of its parameter: `score::Bias` and `KeyBias` (the
/// bias), `Alibi` (the slopes), `Softcap` (the cap), `Scale` (the factor), `normalize::Sink` (the logits), or a
/// score modifier of the user's own with `S parameter_gradient(S before, S d_after, Site<S>) const`: what one score
/// gives.
///
/// target [B or 1, Hq or 1, Nq or 1, Nk or 1] is overwritten with the sum over each axis of which it has one
/// element only: give a Bias a target of its own shape. Borrows the target.
template <class P, Scalar T>
Gradient<P, T> gradient(const P& policy, const TensorView<T>& target) noexcept {
  return {policy, target};
}
/// One number per key: of a KeyBias given as a span, [Nk].
template <class N, Scalar T, std::size_t E>
Gradient<score::KeyBias<N>, T> gradient(const score::KeyBias<N>& policy, std::span<T, E> target) noexcept {
  return {policy, bhsd(target.data(), 1, 1, 1, static_cast<Index>(target.size()))};
}
/// One number per query head, [Hq].
template <class N, Scalar T, std::size_t E>
Gradient<score::Alibi<N>, T> gradient(const score::Alibi<N>& policy, std::span<T, E> target) noexcept {
  return {policy, bhsd(target.data(), 1, static_cast<Index>(target.size()), 1, 1)};
}
template <class N, Scalar T, std::size_t E>
Gradient<normalize::Sink<N>, T> gradient(const normalize::Sink<N>& policy, std::span<T, E> target) noexcept {
  return {policy, bhsd(target.data(), 1, static_cast<Index>(target.size()), 1, 1)};
}
template <class P, Scalar T>
auto gradient(const P& policy, std::vector<T>& target) noexcept {
  return gradient(policy, std::span<T>(target));
}
/// One number.
template <class P, Scalar T>
Gradient<P, T> gradient(const P& policy, T& target) noexcept {
  return {policy, bhsd(&target, 1, 1, 1, 1)};
}

ATTENTION_BALANCER_END_ISA

namespace evidence {
ATTENTION_BALANCER_BEGIN_ISA

/// The gradient of a loss with respect to something that the evidence says per position: a view
/// [B or 1, Hq or 1, 1, N], where an axis of size 1 serves all, or a span [N] that serves every batch item and
/// head. Borrows it.
template <Scalar T>
class PositionGradient {
 public:
  explicit PositionGradient(const TensorView<const T>& view) noexcept : view_(view) {}
  explicit PositionGradient(const TensorView<T>& view) noexcept : view_(view) {}
  explicit PositionGradient(std::span<const T> values) noexcept
      : view_(bhsd(values.data(), 1, 1, 1, static_cast<Index>(values.size()))) {}
  explicit PositionGradient(std::span<T> values) noexcept : PositionGradient(std::span<const T>(values)) {}
  explicit PositionGradient(const std::vector<T>& values) noexcept : PositionGradient(std::span<const T>(values)) {}
  template <attention_balancer::detail::OwningTemporary R>
  explicit PositionGradient(R&&) = delete;

  const TensorView<const T>& view() const noexcept { return view_; }

 protected:
  void check(const char* name, const Problem& problem, const char* what, Index length) const {
    using namespace attention_balancer::detail;
    const auto axis = [name](const char* of) { return std::string(name) + of; };
    require_equal(axis(".dim").c_str(), view_.dim, what, length);
    require_equal(axis(".length").c_str(), view_.length, "one row per head", 1);
    if (view_.batch != 1) require_equal(axis(".batch").c_str(), view_.batch, "1 or the batch", problem.batch);
    if (view_.heads != 1) require_equal(axis(".heads").c_str(), view_.heads, "1 or the query heads", problem.heads);
    check_layout(layout(name, view_));
  }

 private:
  TensorView<const T> view_;
};

/// d loss / d lse, N = Nq.
template <Scalar T>
class LseGradient : public PositionGradient<T> {
 public:
  using PositionGradient<T>::PositionGradient;
  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("evidence::LseGradient", this->view()));
  }
  void validate(const Problem& problem) const {
    this->check("evidence::LseGradient", problem, "q.length", problem.queries);
  }
};

/// d loss / d entropy, N = Nq. A negative one asks for attention that is spread more widely.
template <Scalar T>
class EntropyGradient : public PositionGradient<T> {
 public:
  using PositionGradient<T>::PositionGradient;
  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("evidence::EntropyGradient", this->view()));
  }
  void validate(const Problem& problem) const {
    this->check("evidence::EntropyGradient", problem, "q.length", problem.queries);
  }
};

/// d loss / d mass, N = Nk, of the mass as observed with these weights of the queries.
template <Scalar T>
class MassGradient : public PositionGradient<T> {
 public:
  template <class X>
  requires std::is_constructible_v<PositionGradient<T>, X> &&
      (!std::is_base_of_v<PositionGradient<T>, std::remove_cvref_t<X>>)explicit MassGradient(
          X&& gradient, QueryWeights weights = QueryWeights::all()) noexcept
      : PositionGradient<T>(std::forward<X>(gradient)), weights_(weights) {}

  const QueryWeights& weights() const noexcept { return weights_; }

  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("evidence::MassGradient", this->view()));
  }
  void validate(const Problem& problem) const {
    this->check("evidence::MassGradient", problem, "k.length", problem.keys);
    if (const Index given = weights_.size(); given >= 0)
      attention_balancer::detail::require_equal("QueryWeights::of number of weights", given, "q.length",
                                                problem.queries);
  }

 private:
  QueryWeights weights_;
};

template <class T>
LseGradient(const TensorView<T>&) -> LseGradient<std::remove_const_t<T>>;
template <class T, std::size_t E>
LseGradient(std::span<T, E>) -> LseGradient<std::remove_const_t<T>>;
template <class T>
LseGradient(const std::vector<T>&) -> LseGradient<T>;
template <class T>
EntropyGradient(const TensorView<T>&) -> EntropyGradient<std::remove_const_t<T>>;
template <class T, std::size_t E>
EntropyGradient(std::span<T, E>) -> EntropyGradient<std::remove_const_t<T>>;
template <class T>
EntropyGradient(const std::vector<T>&) -> EntropyGradient<T>;
template <class T>
MassGradient(const TensorView<T>&, QueryWeights = QueryWeights::all()) -> MassGradient<std::remove_const_t<T>>;
template <class T, std::size_t E>
MassGradient(std::span<T, E>, QueryWeights = QueryWeights::all()) -> MassGradient<std::remove_const_t<T>>;
template <class T>
MassGradient(const std::vector<T>&, QueryWeights = QueryWeights::all()) -> MassGradient<T>;

ATTENTION_BALANCER_END_ISA
}  // namespace evidence
}  // namespace attention_balancer
