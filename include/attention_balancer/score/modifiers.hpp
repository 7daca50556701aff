#pragma once
// The score modifiers of the field. All apply to the scaled logit, in the order in which they are given.

#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/score/concepts.hpp"
#include "attention_balancer/simd/math.hpp"

namespace attention_balancer::score {

namespace detail {

/// The scalar a number deduces to: itself if floating point, double if an integer.
template <class N>
using number = std::conditional_t<std::is_integral_v<N>, double, N>;

using attention_balancer::detail::fail;

ATTENTION_BALANCER_BEGIN_ISA

/// score + bias, where a bias of -inf masks whatever the score is: not a number plus -inf would not.
template <class S>
ATTENTION_BALANCER_INLINE S add_bias(const S& score, const S& bias) noexcept {
  const S none(-std::numeric_limits<simd::scalar_of<S>>::infinity());
  return simd::select(bias == none, none, score + bias);
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// The factor that the dot products are multiplied by, instead of 1 / sqrt(D). Applies first wherever it stands;
/// several multiply. Must be finite (InputError).
template <Scalar T>
struct Scale {
  T factor;

  template <class N>
    requires std::is_arithmetic_v<N>
  constexpr Scale(N f) noexcept : factor(static_cast<T>(f)) {}

  void validate(const Problem&) const {
    if (!std::isfinite(factor)) detail::fail<InputError>("score::Scale factor", factor, "be finite");
  }
};
template <class N>
Scale(N) -> Scale<detail::number<N>>;

/// softcap * tanh(score / softcap); 0 switches it off (Gemma 2, arXiv 2408.00118).
template <Scalar T>
struct Softcap {
  T cap;

  template <class N>
    requires std::is_arithmetic_v<N>
  constexpr Softcap(N c) noexcept : cap(static_cast<T>(c)) {}

  void validate(const Problem&) const {
    if (!(cap >= T(0)) || !std::isfinite(cap))
      detail::fail<InputError>("score::Softcap cap", cap, "be finite and not negative");
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& score, const Site<S>&) const {
    using scalar = simd::scalar_of<S>;
    if (cap == T(0)) return score;
    return S(static_cast<scalar>(cap)) * simd::tanh(score * S(scalar(1) / static_cast<scalar>(cap)));
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S pullback(const S& score, const S& gradient, const Site<S>&) const {
    using scalar = simd::scalar_of<S>;
    if (cap == T(0)) return gradient;
    const S t = simd::tanh(score * S(scalar(1) / static_cast<scalar>(cap)));
    return gradient * (S(scalar(1)) - t * t);
  }
  /// Of the cap: tanh(x) - x (1 - tanh(x)^2) for x = score / cap; 0 where the cap is off.
  template <class S>
  ATTENTION_BALANCER_INLINE S parameter_gradient(const S& score, const S& gradient, const Site<S>&) const {
    using scalar = simd::scalar_of<S>;
    if (cap == T(0)) return S(scalar(0));
    const S x = score * S(scalar(1) / static_cast<scalar>(cap)), t = simd::tanh(x), slope = S(scalar(1)) - t * t;
    // Of an infinite score too the slope is 0.
    return gradient * (t - simd::select(slope == S(scalar(0)), S(scalar(0)), x * slope));
  }
};
template <class N>
Softcap(N) -> Softcap<detail::number<N>>;

/// Attention with linear biases: adds -slope * |i + Nk - Nq - j|, one slope per query head (arXiv 2108.12409), which
/// must be finite (InputError). Borrows the slopes.
template <Scalar T>
class Alibi {
 public:
  explicit Alibi(std::span<const T> slopes) noexcept : slopes_(slopes) {}
  explicit Alibi(std::span<T> slopes) noexcept : slopes_(slopes) {}
  explicit Alibi(const std::vector<T>& slopes) noexcept : slopes_(slopes) {}
  template <attention_balancer::detail::OwningTemporary R>
  explicit Alibi(R&&) = delete;

  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("score::Alibi", slopes_));
  }

  void validate(const Problem& problem) const {
    if (static_cast<Index>(slopes_.size()) != problem.heads)
      detail::fail<ShapeError>("score::Alibi number of slopes", slopes_.size(),
                               "equal the query heads = " + std::to_string(problem.heads));
    for (std::size_t h = 0; h < slopes_.size(); ++h)
      if (!std::isfinite(slopes_[h]))
        detail::fail<InputError>("score::Alibi slope of head " + std::to_string(h), slopes_[h], "be finite");
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& score, const Site<S>& site) const {
    using scalar = simd::scalar_of<S>;
    const S slope(static_cast<scalar>(slopes_[static_cast<std::size_t>(site.head)]));
    const S offset(static_cast<scalar>(site.keys - site.queries));
    return score - slope * simd::abs(site.query() + offset - site.key());
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S pullback(const S&, const S& gradient, const Site<S>&) const {
    return gradient;
  }
  /// Of the slope of the head.
  template <class S>
  ATTENTION_BALANCER_INLINE S parameter_gradient(const S&, const S& gradient, const Site<S>& site) const {
    const S offset(static_cast<simd::scalar_of<S>>(site.keys - site.queries));
    return S(simd::scalar_of<S>(0)) - gradient * simd::abs(site.query() + offset - site.key());
  }

 private:
  std::span<const T> slopes_;
};
template <class T, std::size_t N>
Alibi(std::span<T, N>) -> Alibi<std::remove_const_t<T>>;
template <class T>
Alibi(const std::vector<T>&) -> Alibi<T>;
template <class T, std::size_t N>
Alibi(const std::array<T, N>&) -> Alibi<T>;

/// The slopes of the ALiBi paper for `heads` heads: 2^(-8 k / n) for the largest power of two n <= heads, then every
/// other one of the series for 2 n. Throws ShapeError if heads < 1.
template <Scalar T = float>
std::vector<T> alibi_slopes(Index heads) {
  if (heads < 1) detail::fail<ShapeError>("alibi_slopes heads", heads, "be at least 1");
  Index power = 1;
  while (power * 2 <= heads) power *= 2;
  std::vector<T> slopes;
  for (Index k = 1; k <= power; ++k)
    slopes.push_back(static_cast<T>(std::exp2(-8.0 * static_cast<double>(k) / static_cast<double>(power))));
  for (Index k = 1; static_cast<Index>(slopes.size()) < heads; k += 2)
    slopes.push_back(static_cast<T>(std::exp2(-4.0 * static_cast<double>(k) / static_cast<double>(power))));
  return slopes;
}

/// Adds an element of a view [B or 1, Hq or 1, Nq or 1, Nk or 1]; an axis of size 1 serves all. An additive mask is
/// a bias: -inf there masks. Borrows the view.
template <Scalar T>
class Bias {
 public:
  explicit Bias(TensorView<const T> view) noexcept : view_(view) {}
  explicit Bias(TensorView<T> view) noexcept : view_(view) {}

  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("score::Bias", view_));
  }

  void validate(const Problem& problem) const {
    attention_balancer::detail::check_broadcast(attention_balancer::detail::layout("score::Bias", view_), problem);
  }
  bool prefers_key_lanes() const noexcept { return attention_balancer::detail::lies_along_keys(view_); }
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& score, const Site<S>& site) const {
    return bend(score, site.at(view_));
  }
  using looks_up_as = Bias;
  /// What the score becomes, of the element of the view that belongs to it.
  template <class S>
  ATTENTION_BALANCER_INLINE S bend(const S& score, const S& element) const {
    return detail::add_bias(score, element);
  }
  /// The view, which kernels that have several scores in hand read by rows.
  const TensorView<const T>& looked_up() const noexcept { return view_; }
  template <class S>
  ATTENTION_BALANCER_INLINE S pullback(const S&, const S& gradient, const Site<S>&) const {
    return gradient;
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S parameter_gradient(const S&, const S& gradient, const Site<S>&) const {
    return gradient;
  }

 private:
  TensorView<const T> view_;
};
template <class T>
Bias(TensorView<T>) -> Bias<std::remove_const_t<T>>;

/// Adds one number per key: the feedback input. With log-shares it multiplies each key's weight by its share before
/// normalising, which is also ToMe's proportional attention (arXiv 2210.09461). A span of Nk serves every batch item
/// and head; a view is [B or 1, Hq or 1, 1, Nk]. Borrows what it is given. -inf masks the key.
template <Scalar T>
class KeyBias {
 public:
  explicit KeyBias(std::span<const T> bias) noexcept
      : view_(bhsd(bias.data(), 1, 1, 1, static_cast<Index>(bias.size()))) {}
  explicit KeyBias(std::span<T> bias) noexcept : KeyBias(std::span<const T>(bias)) {}
  explicit KeyBias(const std::vector<T>& bias) noexcept : KeyBias(std::span<const T>(bias)) {}
  template <attention_balancer::detail::OwningTemporary R>
  explicit KeyBias(R&&) = delete;
  explicit KeyBias(TensorView<const T> view) noexcept : view_(view) {}
  explicit KeyBias(TensorView<T> view) noexcept : view_(view) {}

  template <class F>
  void borrowed(F f) const {
    f(attention_balancer::detail::layout("score::KeyBias", view_));
  }

  void validate(const Problem& problem) const {
    using namespace attention_balancer::detail;
    require_equal("score::KeyBias length", view_.dim, "k.length", problem.keys);
    require_equal("score::KeyBias view length", view_.length, "one row per head", 1);
    check_broadcast(layout("score::KeyBias", view_), problem);
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S operator()(const S& score, const Site<S>& site) const {
    return detail::add_bias(score, site.at(view_));
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S pullback(const S&, const S& gradient, const Site<S>&) const {
    return gradient;
  }
  template <class S>
  ATTENTION_BALANCER_INLINE S parameter_gradient(const S&, const S& gradient, const Site<S>&) const {
    return gradient;
  }

 private:
  TensorView<const T> view_;
};
template <class T>
KeyBias(TensorView<T>) -> KeyBias<std::remove_const_t<T>>;
template <class T, std::size_t N>
KeyBias(std::span<T, N>) -> KeyBias<std::remove_const_t<T>>;
template <class T>
KeyBias(const std::vector<T>&) -> KeyBias<T>;
template <class T, std::size_t N>
KeyBias(const std::array<T, N>&) -> KeyBias<T>;

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::score
