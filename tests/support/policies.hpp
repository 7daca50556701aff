#pragma once
// Every mask and score modifier of the library in one call, each of which a case may leave out: tables of
// combinations then cost the compiler one instantiation, not one per combination.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/check.hpp"

namespace support {

/// A mask or nothing.
template <class M>
struct MaybeMask {
  std::optional<M> mask = {};

  void validate(const ab::Problem& problem) const {
    if constexpr (requires(const M& m) { m.validate(problem); })
      if (mask) mask->validate(problem);
  }
  bool prefers_key_lanes() const {
    if constexpr (requires(const M& m) { m.prefers_key_lanes(); }) return mask && mask->prefers_key_lanes();
    return false;
  }
  ab::mask::Coverage classify(const ab::Rect& rect) const {
    return mask ? mask->classify(rect) : ab::mask::Coverage::full;
  }
  template <class S>
  auto visible(const ab::Site<S>& site) const {
    using Answer = decltype(site.key() == site.key());
    return mask ? static_cast<Answer>(mask->visible(site)) : Answer(site.key() == site.key());
  }
};

/// A score modifier or nothing.
template <class M>
struct MaybeModifier {
  std::optional<M> modifier = {};

  void validate(const ab::Problem& problem) const {
    if (modifier) modifier->validate(problem);
  }
  bool prefers_key_lanes() const {
    if constexpr (requires(const M& m) { m.prefers_key_lanes(); }) return modifier && modifier->prefers_key_lanes();
    return false;
  }
  using looks_up_as = MaybeModifier;
  const auto& looked_up() const
    requires requires(const M& m) { m.looked_up(); }
  {
    return modifier->looked_up();
  }
  template <class S>
    requires requires(const M& m, const S& x) { m.bend(x, x); }
  S bend(const S& score, const S& element) const {
    return modifier->bend(score, element);
  }
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    return modifier ? (*modifier)(score, site) : score;
  }
  template <class S>
  S pullback(const S& score, const S& gradient, const ab::Site<S>& site) const {
    return modifier ? modifier->pullback(score, gradient, site) : gradient;
  }
  template <class S>
  S parameter_gradient(const S& score, const S& gradient, const ab::Site<S>& site) const {
    return modifier ? modifier->parameter_gradient(score, gradient, site) : S(ab::simd::scalar_of<S>(0));
  }
};

template <class U>
struct Targets;

/// The choices of a case, with the memory that the policies borrow.
template <class T>
class PolicySet {
 public:
  explicit PolicySet(const Shape& shape) : shape_(shape) {
    const T none = -std::numeric_limits<T>::infinity();
    logits_.assign(static_cast<std::size_t>(shape.heads), none);
  }
  PolicySet(const PolicySet&) = delete;
  PolicySet& operator=(const PolicySet&) = delete;

  std::string name;
  Magnitudes magnitudes;

  void scale(double factor) {
    factor_ = static_cast<T>(factor), magnitudes.scale = factor;
    said("scale " + std::to_string(factor));
  }
  void softcap(double cap) {
    softcap_ = {ab::score::Softcap<T>{static_cast<T>(cap)}};
    magnitudes.added += cap;
    said("softcap");
  }
  void alibi() {
    slopes_ = ab::score::alibi_slopes<T>(shape_.heads);
    alibi_.modifier.emplace(slopes_);
    magnitudes.added += static_cast<double>(shape_.queries + shape_.keys);
    said("alibi");
  }
  /// Sizes of 1 broadcast; a share of the elements is -inf.
  void bias(Random& random, Layout layout, bool by_batch, bool by_head, bool by_query, bool by_key, double masked) {
    bias_values_.emplace(layout, by_batch ? shape_.batch : 1, by_head ? shape_.heads : 1, by_query ? shape_.queries : 1,
                         by_key ? shape_.keys : 1);
    bias_values_->fill([&](auto...) { return random.chance(masked) ? -HUGE_VAL : random.uniform(-2, 2); });
    bias_.modifier.emplace(bias_values_->view());
    magnitudes.added += 2;
    said("bias " + axes(by_batch, by_head, by_query, by_key) + (masked > 0 ? " with -inf" : ""));
  }
  void key_bias(Random& random, bool as_view, double masked) {
    key_bias_values_.emplace(Layout::unaligned, as_view ? shape_.batch : 1, as_view ? shape_.heads : 1, 1, shape_.keys);
    key_bias_values_->fill([&](auto...) { return random.chance(masked) ? -HUGE_VAL : random.uniform(-2, 2); });
    if (as_view)
      key_bias_.modifier.emplace(key_bias_values_->view());
    else
      key_bias_.modifier.emplace(
          std::span<const T>(key_bias_values_->view().data, static_cast<std::size_t>(shape_.keys)));
    magnitudes.added += 2;
    said(std::string("key bias") + (as_view ? " view" : " span") + (masked > 0 ? " with -inf" : ""));
  }
  void causal(ab::mask::Align align) {
    causal_ = {ab::mask::Causal{align}};
    said(align == ab::mask::Align::top_left ? "causal top left" : "causal bottom right");
  }
  void window(Index left, Index right) {
    window_ = {ab::mask::Window{left, right}};
    said("window " + std::to_string(left) + ' ' + std::to_string(right));
  }
  void lengths(Random& random, bool narrow) {
    for (Index b = 0; b < shape_.batch; ++b) {
      wide_.push_back(random.below(shape_.keys + 1));
      narrow_.push_back(static_cast<std::int32_t>(wide_.back()));
    }
    if (narrow)
      lengths_.mask.emplace(narrow_);
    else
      lengths_.mask.emplace(wide_);
    said(narrow ? "lengths int32" : "lengths");
  }
  void boolean(Random& random, Layout layout, bool by_batch, bool by_head, bool by_query, bool by_key, double visible) {
    boolean_values_.emplace(layout, by_batch ? shape_.batch : 1, by_head ? shape_.heads : 1,
                            by_query ? shape_.queries : 1, by_key ? shape_.keys : 1);
    // In runs, so that there are blocks that are skipped and blocks that are full.
    bool now = true;
    boolean_values_->fill([&](auto...) {
      if (random.chance(0.05)) now = random.chance(visible);
      return now ? 200 : 0;  // any byte but 0 is true
    });
    boolean_.mask.emplace(boolean_values_->view());
    said("boolean " + axes(by_batch, by_head, by_query, by_key));
  }
  void blocks(Random& random, Index query_block, Index key_block, bool by_head) {
    const Index rows = (shape_.queries + query_block - 1) / query_block;
    const Index columns = (shape_.keys + key_block - 1) / key_block;
    block_values_.emplace(Layout::unaligned, 1, by_head ? shape_.heads : 1, rows, columns);
    block_values_->fill([&](auto...) { return random.chance(0.6) ? 1 : 0; });
    blocks_.mask.emplace(block_values_->view(), query_block, key_block);
    said("blocks " + std::to_string(query_block) + 'x' + std::to_string(key_block));
  }
  void sinks(Random& random, bool some_off) {
    for (auto& logit : logits_) logit = static_cast<T>(random.uniform(-3, 3));
    if (some_off) logits_[0] = -std::numeric_limits<T>::infinity();
    magnitudes.added += 3;
    said("sinks");
  }

  /// f(policies...): the scale, all modifiers, all masks and the sinks.
  template <class F>
  void apply(F f) const {
    const double scale = 1 / std::sqrt(static_cast<double>(shape_.dim));
    f(ab::score::Scale<T>{factor_ != T(0) ? factor_ : static_cast<T>(scale)}, softcap_, alibi_, bias_, key_bias_,
      causal_, window_, lengths_, boolean_, blocks_, ab::normalize::Sink(logits_));
  }

  /// f(policies...) with a target for the gradient of each parameter.
  template <class Targets, class F>
  void apply_with(const Targets& to, F f) const {
    const double scale = 1 / std::sqrt(static_cast<double>(shape_.dim));
    f(ab::gradient(ab::score::Scale<T>{factor_ != T(0) ? factor_ : static_cast<T>(scale)}, to.scale.view()),
      ab::gradient(softcap_, to.softcap.view()), ab::gradient(alibi_, to.alibi.view()),
      ab::gradient(bias_, to.bias.view()), ab::gradient(key_bias_, to.key_bias.view()), causal_, window_, lengths_,
      boolean_, blocks_, ab::gradient(ab::normalize::Sink(logits_), to.sink.view()));
  }

  /// Moves every parameter by h times its element of `direction`.
  template <class U>
  void move(const Targets<U>& direction, double h) {
    auto add = [h](T& x, U d) { x += static_cast<T>(h * static_cast<double>(d)); };
    if (factor_ == T(0)) factor_ = static_cast<T>(1 / std::sqrt(static_cast<double>(shape_.dim)));
    add(factor_, direction.scale(0, 0, 0, 0));
    if (softcap_.modifier) add(softcap_.modifier->cap, direction.softcap(0, 0, 0, 0));
    for (std::size_t i = 0; i < slopes_.size(); ++i) add(slopes_[i], direction.alibi(0, static_cast<Index>(i), 0, 0));
    for (std::size_t i = 0; i < logits_.size(); ++i) add(logits_[i], direction.sink(0, static_cast<Index>(i), 0, 0));
    auto add_all = [&](const std::optional<Tensor<T>>& x, const Tensor<U>& d) {
      if (!x) return;
      const auto& v = x->view();
      for (Index b = 0; b < v.batch; ++b)
        for (Index i = 0; i < v.heads; ++i)
          for (Index j = 0; j < v.length; ++j)
            for (Index c = 0; c < v.dim; ++c) add(v(b, i, j, c), d(b, i, j, c));
    };
    add_all(bias_values_, direction.bias);
    add_all(key_bias_values_, direction.key_bias);
  }

  /// Sizes of the bias, or of the key bias; ones without it.
  std::array<Index, 4> bias_sizes() const { return sizes_of(bias_values_); }
  std::array<Index, 4> key_bias_sizes() const { return sizes_of(key_bias_values_); }

  void check(Table& table, const Inputs<T>& in, Layout out, const ab::QueryWeights& weights) const {
    apply([&](auto&&... policies) {
      support::check(table, name, shape_, in, out, weights, magnitudes, policies...);
    });
  }

  const Shape& shape() const { return shape_; }

 private:
  static std::array<Index, 4> sizes_of(const std::optional<Tensor<T>>& x) {
    if (!x) return {1, 1, 1, 1};
    return {x->view().batch, x->view().heads, x->view().length, x->view().dim};
  }
  static std::string axes(bool b, bool h, bool i, bool j) {
    return std::string(b ? "B" : "1") + (h ? "H" : "1") + (i ? "N" : "1") + (j ? "N" : "1");
  }
  void said(const std::string& what) { name += (name.empty() ? "" : ", ") + what; }

  Shape shape_;
  T factor_ = 0;
  std::vector<T> slopes_, logits_;
  std::vector<Index> wide_;
  std::vector<std::int32_t> narrow_;
  std::optional<Tensor<T>> bias_values_, key_bias_values_;
  std::optional<Tensor<unsigned char>> boolean_values_, block_values_;
  MaybeModifier<ab::score::Softcap<T>> softcap_;
  MaybeModifier<ab::score::Alibi<T>> alibi_;
  MaybeModifier<ab::score::Bias<T>> bias_;
  MaybeModifier<ab::score::KeyBias<T>> key_bias_;
  MaybeMask<ab::mask::Causal> causal_;
  MaybeMask<ab::mask::Window> window_;
  MaybeMask<ab::mask::KeyLengths> lengths_;
  MaybeMask<ab::mask::Boolean> boolean_;
  MaybeMask<ab::mask::Blocks> blocks_;
};

}  // namespace support
