// Users bring score modifiers, masks and executors of their own: function objects and generic lambdas.

#include <atomic>
#include <utility>

#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;

/// Every other key, and the query's own.
struct EveryOther {
  ab::mask::Coverage classify(const ab::Rect&) const { return ab::mask::Coverage::partial; }
  template <class S>
  auto visible(const ab::Site<S>& site) const {
    using T = ab::simd::scalar_of<S>;
    const S half = site.gather([](Index, Index j) { return static_cast<T>(j % 2); });
    const auto even = half == S(T(0)), own = site.key() == site.query();
    return even | own;
  }
};

/// Distance decay by the facade's functions, with the batch item and the head. Its bytes may be moved, not copied.
struct Decay {
  explicit Decay(double r) : rate(r) {}
  Decay(Decay&&) = default;
  double rate;
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    using T = ab::simd::scalar_of<S>;
    const S distance = ab::simd::abs(site.query() - site.key());
    const S factor(static_cast<T>(rate) * static_cast<T>(site.head + 2 * site.batch + 1) / static_cast<T>(site.keys));
    return score + ab::simd::select(distance > S(T(10)), S(T(0)) - factor * distance, ab::simd::tanh(distance)) +
           ab::simd::exp(S(T(0)) - ab::simd::max(distance, S(T(1))));
  }
};

/// Looks things up lane by lane.
struct LookUp {
  const std::vector<float>* by_query;
  const std::vector<float>* by_key;
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    return score + site.gather([&](Index i, Index j) {
      return (*by_query)[static_cast<std::size_t>(i)] * (*by_key)[static_cast<std::size_t>(j)];
    });
  }
  // Refuses calls that do not fit.
  void validate(const ab::Problem& problem) const {
    if (problem.queries != static_cast<Index>(by_query->size()) || problem.keys != static_cast<Index>(by_key->size()))
      throw ab::ShapeError("LookUp does not fit");
  }
};

/// Counts its calls, which a copy of it would not, and cannot be copied.
struct Counting {
  mutable std::atomic<Index> calls{0};
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    ++calls;
    return score + site.key() * S(ab::simd::scalar_of<S>(0.01));
  }
};

/// Can be made of anything.
struct OfAnything {
  float step = 0;
  explicit OfAnything(float s) : step(s) {}
  template <class X>
  OfAnything(const X&) {}
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    return score + S(static_cast<ab::simd::scalar_of<S>>(step)) * site.key();
  }
};

/// Makes something else of the elements than what it derives from.
template <class T>
struct HalfBias : ab::score::Bias<T> {
  using ab::score::Bias<T>::Bias;
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    return (score + ab::score::Bias<T>::operator()(score, site)) * S(ab::simd::scalar_of<S>(0.5));
  }
};

struct OneByOne {
  mutable Index calls = 0;
  template <class F>
  void for_each(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) ++calls, f(i);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("policies of a user's own", "[attention][extension]", SCALARS) {
  using T = TestType;
  support::Table table;
  support::Random random(81);
  for (const support::Shape& s : {support::Shape{2, 2, 1, 70, 150, 8, 8}, {1, 1, 1, 3, 5, 2, 2}}) {
    const support::Inputs<T> in(s, random);
    std::vector<float> a, b;
    for (Index i = 0; i < s.queries; ++i) a.push_back(static_cast<float>(random.uniform(-1, 1)));
    for (Index j = 0; j < s.keys; ++j) b.push_back(static_cast<float>(random.uniform(-1, 1)));
    const auto all = ab::QueryWeights::all();
    support::check(table, "mask", s, in, Layout::bhsd, all, {}, EveryOther{});
    support::check(table, "modifiers", s, in, Layout::bhsd, all, {0, 8}, Decay{3}, LookUp{&a, &b});
    support::check(table, "lambda", s, in, Layout::bhsd, all, {0, 8}, ab::score::Softcap{2},
                   [](const auto& score, const auto&) { return score + score; }, EveryOther{}, ab::mask::Causal{});
    const Counting counting;
    support::check(table, "counting", s, in, Layout::bhsd, all, {0, 8}, counting);
    CHECK(counting.calls > 0);
    support::check(table, "made of anything", s, in, Layout::bhsd, all, {0, 8}, OfAnything(0.02f));
    std::vector<T> bias(static_cast<std::size_t>(s.queries * s.keys));
    for (T& x : bias) x = static_cast<T>(random.uniform(-2, 2));
    support::check(table, "half a bias", s, in, Layout::bhsd, all, {0, 8},
                   HalfBias<T>(ab::bhsd(std::as_const(bias).data(), 1, 1, s.queries, s.keys)));
    CHECK_THROWS_AS(
        ab::attention(in.k.view(), in.k.view(), in.k.view(), ab::TensorView<T>(in.q.view()), LookUp{&a, &b}),
        ab::ShapeError);
    OneByOne executor;
    support::Tensor<T> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim),
        same(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), executor);
    ab::attention(in.q.view(), in.k.view(), in.v.view(), same.view());
    CHECK(executor.calls > 0);
    CHECK(support::same_bits(out.view(), same.view()));
  }
  table.report();
}

TEST_CASE("score modifiers apply in the order given, the scale first", "[attention][score]") {
  support::Table table;
  support::Random random(82);
  const support::Shape s{1, 2, 1, 20, 30, 8, 8};
  const support::Inputs<float> in(s, random, support::Family::uniform, 3);
  std::vector<float> bias;
  for (Index j = 0; j < 30; ++j) bias.push_back(static_cast<float>(random.uniform(-3, 3)));
  const auto all = ab::QueryWeights::all();
  const ab::score::KeyBias key_bias(bias);
  const ab::score::Softcap<float> cap{1.5f};
  const ab::score::Scale<float> scale{0.9f}, other{0.5f};
  support::check(table, "cap, bias", s, in, Layout::bhsd, all, {0.9, 5}, cap, key_bias, scale);
  support::check(table, "bias, cap", s, in, Layout::bhsd, all, {0.9, 5}, key_bias, scale, cap);
  support::check(table, "scales multiply", s, in, Layout::bhsd, all, {0.45, 5}, scale, cap, other);
  table.report();

  // And the formulas, without the library's own reference.
  std::vector<float> out(1);
  const std::vector<float> q{1}, k{0.5f, 2}, v{1, 0}, b{3, -1};
  const auto vq = ab::bhsd(q.data(), 1, 1, 1, 1), vk = ab::bhsd(k.data(), 1, 1, 2, 1),
             vv = ab::bhsd(v.data(), 1, 1, 2, 1);
  const auto vo = ab::bhsd(out.data(), 1, 1, 1, 1);
  auto first = [](double s0, double s1) { return 1 / (1 + std::exp(s1 - s0)); };
  const ab::score::KeyBias kb(b);
  ab::attention(vq, vk, vv, vo, cap, kb, ab::score::Scale{2});
  CHECK(out[0] == Approx(first(1.5 * std::tanh(1 / 1.5) + 3, 1.5 * std::tanh(4 / 1.5) - 1)));
  ab::attention(vq, vk, vv, vo, kb, cap, ab::score::Scale{2});
  CHECK(out[0] == Approx(first(1.5 * std::tanh(4 / 1.5), 1.5 * std::tanh(3 / 1.5))));
  ab::attention(vq, vk, vv, vo, ab::score::Softcap{0}, ab::score::Scale{2});
  CHECK(out[0] == Approx(first(1, 4)));
}
