// What holds of the backward pass beyond its numbers: the same bits whoever runs it, what is not a number,
// modifiers of the user's own, memory, and what it refuses.

#include <thread>

#include "support/backward.hpp"
#include "support/executors.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

/// The pieces from the last to the first.
struct Backwards {
  Index pieces = 1;
  Index concurrency() const { return pieces; }
  template <class F>
  void for_each(Index n, F&& f) const {
    for (Index i = n; i-- > 0;) f(i);
  }
};

struct Threads {
  Index concurrency() const { return 5; }
  template <class F>
  void for_each(Index n, F&& f) const {
    std::vector<std::thread> team;
    for (Index i = 0; i < n; ++i) team.emplace_back([&f, i] { f(i); });
    for (auto& t : team) t.join();
  }
};

/// A call with gradients of a bias [1, 1, Nq, Nk], a key bias and slopes, all of which heads and batch items share.
template <class T>
struct Run {
  support::Gradients<T> gradients;
  Tensor<T> out, bias;
  std::vector<T> key_bias, slopes;
  ab::Evidence<T> evidence;

  template <class Given, class... P>
  Run(const support::Shape& s, const support::Inputs<T>& in, const support::Upstream<T>& up, const Given& given,
      Layout layout, bool shared, P&&... policies)
      : gradients(s, layout),
        out(layout, s.batch, s.heads, s.queries, s.value_dim),
        bias(layout, 1, 1, s.queries, s.keys),
        key_bias(static_cast<std::size_t>(s.keys)),
        slopes(static_cast<std::size_t>(s.heads)) {
    const auto q = in.q.view(), k = in.k.view(), v = in.v.view();
    ab::attention(q, k, v, out.view(), given.bias, given.key_bias, given.alibi, ab::mask::Causal{},
                  ab::observe(evidence, ab::QueryWeights::none()));
    const ab::evidence::EntropyGradient entropy(up.entropy.view());
    if (shared)
      ab::attention_backward(q, k, v, out.view(), evidence, up.out.view(), gradients.q.view(), gradients.k.view(),
                             gradients.v.view(), ab::gradient(given.bias, bias.view()),
                             ab::gradient(given.key_bias, key_bias), ab::gradient(given.alibi, slopes),
                             ab::mask::Causal{}, entropy, policies...);
    else
      ab::attention_backward(q, k, v, out.view(), evidence, up.out.view(), gradients.q.view(), gradients.k.view(),
                             gradients.v.view(), given.bias, ab::gradient(given.key_bias, key_bias),
                             ab::gradient(given.alibi, slopes), ab::mask::Causal{}, entropy, policies...);
  }
  bool operator==(const Run& x) const {
    auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return support::same_bits(std::span<const T>(a), std::span<const T>(b));
    };
    return support::same_bits(gradients.q.view(), x.gradients.q.view()) &&
           support::same_bits(gradients.k.view(), x.gradients.k.view()) &&
           support::same_bits(gradients.v.view(), x.gradients.v.view()) &&
           support::same_bits(bias.view(), x.bias.view()) && same(key_bias, x.key_bias) && same(slopes, x.slopes);
  }
};

template <class T>
struct Given {
  std::vector<T> biases, key_biases, slopes;
  ab::score::Bias<T> bias;
  ab::score::KeyBias<T> key_bias;
  ab::score::Alibi<T> alibi;

  Given(const support::Shape& s, support::Random& random)
      : biases(static_cast<std::size_t>(s.queries * s.keys)),
        key_biases(static_cast<std::size_t>(s.keys)),
        slopes(ab::score::alibi_slopes<T>(s.heads)),
        bias(ab::bhsd(biases.data(), 1, 1, s.queries, s.keys)),
        key_bias(key_biases),
        alibi(slopes) {
    for (auto* x : {&biases, &key_biases})
      for (auto& e : *x) e = static_cast<T>(random.uniform(-1, 1));
  }
};

/// Doubles positive scores, with a derivative.
struct Leaky {
  template <class S>
  S operator()(const S& score, const ab::Site<S>&) const {
    return ab::simd::select(score > S(ab::simd::scalar_of<S>(0)), score + score, score);
  }
  template <class S>
  S pullback(const S& before, const S& gradient, const ab::Site<S>&) const {
    return ab::simd::select(before > S(ab::simd::scalar_of<S>(0)), gradient + gradient, gradient);
  }
};

/// score * weight[key], with a derivative of the weights.
struct KeyWeights {
  std::vector<double>* weights;
  template <class S>
  S weight(const ab::Site<S>& site) const {
    return site.gather([&](Index, Index j) { return (*weights)[static_cast<std::size_t>(j)]; });
  }
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    return score * weight(site);
  }
  template <class S>
  S pullback(const S&, const S& gradient, const ab::Site<S>& site) const {
    return gradient * weight(site);
  }
  template <class S>
  S parameter_gradient(const S& before, const S& gradient, const ab::Site<S>&) const {
    return before * gradient;
  }
};

}  // namespace

TEST_CASE("gradients have the same bits for any executor, workspace and layout", "[attention][backward]") {
  using T = float;
  support::Table table;
  support::Random random(51);
  for (const support::Shape& s :
       {support::Shape{1, 1, 1, 1, 50, 8, 8}, {1, 2, 1, 900, 70, 4, 4}, {3, 4, 2, 200, 70, 8, 19}}) {
    const support::Inputs<T> in(s, random);
    const support::Upstream<T> up(s, random, true);
    const Given<T> given(s, random);
    for (const bool shared : {true, false}) {
      table.begin(s.text() + (shared ? "shared" : ""));
      const Run<T> once(s, in, up, given, Layout::bhsd, shared);
      for (Index pieces : {1, 2, 3, 8, 100})
        table.expect(Run<T>(s, in, up, given, Layout::bhsd, shared, Backwards{pieces}) == once,
                     "backwards, pieces " + std::to_string(pieces));
      table.expect(Run<T>(s, in, up, given, Layout::bhsd, shared, Threads{}) == once, "threads");
#if defined(_OPENMP)
      table.expect(Run<T>(s, in, up, given, Layout::bhsd, shared, support::openmp(3)) == once, "OpenMP");
#endif
      ab::Workspace workspace;
      for (int i = 0; i < 2; ++i)
        table.expect(Run<T>(s, in, up, given, Layout::bhsd, shared, workspace) == once, "workspace");
      for (const auto layout :
           {Layout::bshd, Layout::columns, Layout::unaligned, Layout::reversed, Layout::reversed_dims})
        table.expect(Run<T>(s, in, up, given, layout, shared) == once, std::string("layout ") + name_of(layout));
    }
  }
  table.report();
}

// The products with what the keys share are large, and their gradients cancel: only if the weights that the backward
// pass recomputes from lse are those of the forward pass but for a factor common to a query.
TEMPLATE_TEST_CASE("a part that all keys share costs the gradients of the queries no accuracy",
                   "[attention][backward]", SCALARS) {
  using T = TestType;
  support::Random random(219);
  support::Table table;
  // Many queries, and few, which decode: heads that share keys together, backward each by itself.
  for (const support::Shape& s : {support::Shape{1, 1, 1, 70, 100, 16, 16},
                                  {1, 6, 2, 1, 300, 16, 16},
                                  {1, 6, 2, 3, 100, 19, 16},
                                  {1, 1, 1, 6, 1, 16, 16},
                                  {1, 3, 1, 8, 700, 16, 16},
                                  {1, 8, 1, 4, 200, 19, 16}}) {
    const support::Inputs<T> in(s, random);
    const support::Upstream<T> up(s, random, false);
    // A logit of about 400 for every key.
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i) in.q(0, h, i, 0) = T(1);
    for (Index h = 0; h < s.kv_heads; ++h)
      for (Index j = 0; j < s.keys; ++j) in.k(0, h, j, 0) = T(1600);
    auto check = [&](const char* name, const auto&... policies) {
      table.begin(name + (' ' + s.text()));
      Tensor<T> out(Layout::bhsd, 1, s.heads, s.queries, s.value_dim);
      ab::Evidence<T> evidence;
      support::Gradients<T> got(s);
      support::Gradients<double> expected(s);
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies...,
                    ab::observe(evidence, ab::QueryWeights::none()));
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, up.out.view(), got.q.view(),
                             got.k.view(), got.v.view(), policies...);
      ab::reference::attention_backward(in.q.view(), in.k.view(), in.v.view(), up.out.view(), expected.q.view(),
                                        expected.k.view(), expected.v.view(), policies...);
      support::compare_views(table, "dq", got.q, expected.q, 5000 * std::numeric_limits<T>::epsilon());
    };
    check("no mask");
    check("causal", ab::mask::Causal{});
    check("softcap", ab::score::Softcap{T(1e6)});
  }
  table.report();
}

TEST_CASE("a batch item's gradients are those that it has alone", "[attention][backward]") {
  support::Random random(52);
  const support::Shape s{2, 2, 1, 150, 130, 8, 8}, alone{1, 2, 1, 150, 130, 8, 8};
  const support::Inputs<float> in(s, random);
  const support::Upstream<float> up(s, random, false);
  auto first = [](ab::TensorView<float> x) {
    x.batch = 1;
    return x;
  };
  Tensor<float> out(Layout::bhsd, 2, 2, 150, 8);
  ab::Evidence<float> evidence;
  support::Gradients<float> both(s), one(alone);
  ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::observe(evidence));
  ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, up.out.view(), both.q.view(),
                         both.k.view(), both.v.view(), Threads{});
  const auto lse = ab::bhsd(evidence.lse(0, 0).data(), 1, 2, 1, 150);  // a view of the lse serves as well
  ab::attention_backward(first(in.q.view()), first(in.k.view()), first(in.v.view()), first(out.view()), lse,
                         first(up.out.view()), one.q.view(), one.k.view(), one.v.view());
  CHECK(support::same_bits(one.q.view(), first(both.q.view())));
  CHECK(support::same_bits(one.k.view(), first(both.k.view())));
  CHECK(support::same_bits(one.v.view(), first(both.v.view())));
}

TEST_CASE("what is masked gets no gradient and gives none, not even as NaN", "[attention][backward][poison]") {
  const float bad[] = {std::nanf(""), HUGE_VALF, -HUGE_VALF};
  support::Random random(53);
  const support::Shape s{1, 2, 1, 70, 90, 8, 8};
  const support::Inputs<float> in(s, random);
  const support::Upstream<float> up(s, random, false);
  Tensor<float> out(Layout::bhsd, 1, 2, 70, 8);
  ab::Evidence<float> evidence;
  const ab::mask::KeyLengths lengths{60};
  auto run = [&](support::Gradients<float>& got) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), lengths, ab::observe(evidence));
    ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, up.out.view(), got.q.view(),
                           got.k.view(), got.v.view(), lengths);
  };
  support::Gradients<float> clean(s), got(s);
  run(clean);
  for (const float x : bad) {
    for (Index j = 60; j < 90; ++j) in.k(0, 0, j, 3) = in.v(0, 0, j, 2) = x;
    run(got);
    double worst = 0;  // not the same bits: another order of additions where something is not finite
    for (Index i = 0; i < 70; ++i)
      worst = std::max(worst, std::fabs(double(got.q(0, 1, i, 3)) - double(clean.q(0, 1, i, 3))));
    for (Index j = 0; j < 90; ++j)
      for (Index c = 0; c < 8; ++c)
        worst = std::max({worst, std::fabs(double(got.k(0, 0, j, c)) - double(clean.k(0, 0, j, c))),
                          std::fabs(double(got.v(0, 0, j, c)) - double(clean.v(0, 0, j, c)))});
    CHECK(worst < 1e-4);
    for (Index j = 60; j < 90; ++j) CHECK((got.k(0, 0, j, 0) == 0 && got.v(0, 0, j, 1) == 0));
  }

  // A query that is not a number reaches the keys that it sees, and no others; so does a gradient.
  for (const bool of_query : {true, false}) {
    const support::Inputs<float> fresh(s, random);
    (of_query ? fresh.q : up.out)(0, 0, 10, 1) = bad[0];
    ab::attention(fresh.q.view(), fresh.k.view(), fresh.v.view(), out.view(), ab::mask::Causal{},
                  ab::observe(evidence));
    ab::attention_backward(fresh.q.view(), fresh.k.view(), fresh.v.view(), out.view(), evidence, up.out.view(),
                           got.q.view(), got.k.view(), got.v.view(), ab::mask::Causal{});
    for (Index i = 0; i < 70; ++i) CHECK(std::isnan(got.q(0, 0, i, 0)) == (i == 10));
    for (Index j = 0; j < 90; ++j) {
      CHECK(std::isnan(got.k(0, 0, j, 0)) == (j <= 30));  // query 10 of 70 sees keys up to 30 of 90
      CHECK(std::isnan(got.v(0, 0, j, 1)) == (j <= 30));
    }
    CHECK(!std::isnan(got.q(0, 1, 10, 0)));
  }
}

TEST_CASE("modifiers of a user's own take part by their pullback", "[attention][backward][extension]") {
  support::Random random(54);
  const support::Shape s{2, 2, 1, 40, 30, 4, 4};
  const support::Inputs<double> in(s, random, support::Family::uniform, 2);
  const support::Upstream<double> up(s, random, false);
  std::vector<double> weights;
  for (Index j = 0; j < 30; ++j) weights.push_back(random.uniform(0.5, 2));
  Tensor<double> out(Layout::bhsd, 2, 2, 40, 4), dweights(Layout::columns, 1, 1, 1, 30),
      expected(Layout::bhsd, 1, 1, 1, 30);
  ab::Evidence<double> evidence;
  support::Gradients<double> got(s), exact(s);
  const KeyWeights by_key{&weights};
  auto forward = [&] {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), by_key, Leaky{}, ab::observe(evidence));
    double sum = 0;
    support::for_each_pair(out, up.out, [&](double a, double b) { sum += a * b; });
    return sum;
  };
  forward();
  ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, up.out.view(), got.q.view(),
                         got.k.view(), got.v.view(), ab::gradient(by_key, dweights.view()), Leaky{});
  ab::reference::attention_backward(in.q.view(), in.k.view(), in.v.view(), up.out.view(), exact.q.view(),
                                    exact.k.view(), exact.v.view(), ab::gradient(by_key, expected.view()), Leaky{});
  support::Table table;
  table.begin("modifiers of the user");
  support::compare_views(table, "dq", got.q, exact.q, 1e-12);
  support::compare_views(table, "dk", got.k, exact.k, 1e-12);
  support::compare_views(table, "dweights", dweights, expected, 1e-12);
  for (const std::size_t j : {0u, 7u, 29u}) {
    const double w = weights[j], h = 1e-6;
    weights[j] = w + h;
    const double after = forward();
    weights[j] = w - h;
    const double before = forward();
    weights[j] = w;
    table.column("by differences")
        .compare(dweights(0, 0, 0, static_cast<Index>(j)), (after - before) / (2 * h), 1e-7, 0);
  }
  table.report();
}

TEST_CASE("no keys, no gradients", "[attention][backward]") {
  const std::vector<double> q(12, 1), dout(6, 1);
  std::vector<double> out(6), dq(12, 7), logits{0.5}, dlogits(1, 7);
  const auto vq = ab::bhsd(q.data(), 1, 1, 3, 4);
  const auto none = ab::bhsd(static_cast<double*>(nullptr), 1, 1, 0, 4),
             no_values = ab::bhsd(static_cast<double*>(nullptr), 1, 1, 0, 2);
  const auto vo = ab::bhsd(out.data(), 1, 1, 3, 2);
  ab::Evidence<double> evidence;
  ab::attention(vq, none, no_values, vo, ab::normalize::Sink(logits), ab::observe(evidence));
  const std::vector<double> dlse{1, 2, 3};
  ab::attention_backward(vq, none, no_values, vo, evidence, ab::bhsd(dout.data(), 1, 1, 3, 2),
                         ab::bhsd(dq.data(), 1, 1, 3, 4), none, no_values,
                         ab::gradient(ab::normalize::Sink(logits), dlogits), ab::evidence::LseGradient(dlse));
  CHECK(dq == std::vector<double>(12, 0));
  CHECK(dlogits[0] == 6);  // the lse of a row without keys is the sink's logit

  // Contiguous heads of no keys are 0 apart.
  const auto rows = ab::bhsd(q.data(), 1, 2, 3, 2);
  const auto no_rows = ab::bhsd(dq.data(), 1, 2, 0, 2);
  std::vector<double> of_heads(12, 7);
  const auto to = ab::bhsd(of_heads.data(), 1, 2, 3, 2);
  ab::Evidence<double> of_two;
  ab::attention(rows, no_rows, no_rows, to, ab::observe(of_two));
  CHECK(of_heads == std::vector<double>(12, 0));
  of_heads.assign(12, 7);
  ab::attention_backward(rows, no_rows, no_rows, rows, of_two, rows, to, no_rows, no_rows);
  CHECK(of_heads == std::vector<double>(12, 0));
}

TEST_CASE("the backward pass refuses what does not fit before it writes", "[attention][backward][bad input]") {
  std::vector<float> memory(400, 0.5f), bias(15), target(15, 7);
  auto view = [&](Index at, Index length, Index dim) { return ab::bhsd(memory.data() + at, 1, 1, length, dim); };
  const auto q = view(0, 3, 4), k = view(20, 5, 4), v = view(40, 5, 2), out = view(60, 3, 2), dout = view(80, 3, 2),
             dq = view(100, 3, 4), dk = view(120, 5, 4), dv = view(140, 5, 2), lse = view(160, 1, 3);
  const ab::score::Bias b(ab::bhsd(bias.data(), 1, 1, 3, 5));
  ab::Evidence<float> evidence;
  CHECK_NOTHROW(ab::attention_backward(q, k, v, out, lse, dout, dq, dk, dv));
  std::fill(memory.begin() + 100, memory.begin() + 150, 7.f);
  auto refuses = [&](auto&&... arguments) {
    CHECK_THROWS_AS(ab::attention_backward(arguments...), ab::ShapeError);
    CHECK(std::all_of(memory.begin() + 100, memory.begin() + 150, [](float x) { return x == 7; }));
    CHECK(target[0] == 7);
  };
  CHECK_THROWS_AS(ab::attention_backward(q, k, v, out, evidence, dout, dq, dk, dv), ab::InputError);  // of nothing
  refuses(q, k, v, out, view(160, 3, 1), dout, dq, dk, dv);  // the lse lies along the last axis
  refuses(q, k, v, out, lse, view(80, 3, 3), dq, dk, dv);
  refuses(q, k, v, view(60, 3, 3), lse, dout, dq, dk, dv);
  refuses(q, k, v, out, lse, dout, view(100, 3, 3), dk, dv);
  refuses(q, k, v, out, lse, dout, dq, view(120, 4, 4), dv);
  refuses(q, k, v, out, lse, dout, dq, dk, view(140, 5, 3));
  refuses(q, k, v, out, lse, dout, q, dk, dv);                // over an input
  refuses(q, k, v, out, lse, dout, dq, view(104, 5, 4), dv);  // over another output
  refuses(q, k, v, out, lse, view(100, 3, 2), dq, dk, dv);    // over dout
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::gradient(b, ab::bhsd(memory.data() + 110, 1, 1, 3, 5)));
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::gradient(b, ab::bhsd(bias.data(), 1, 1, 3, 5)));
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::gradient(b, ab::bhsd(target.data(), 1, 1, 5, 3)));
  refuses(q, k, v, out, lse, dout, dq, dk, dv,
          ab::gradient(b, ab::bhsd(target.data(), 1, 1, 1, 5)));  // of another shape
  refuses(q, k, v, out, lse, dout, dq, dk, dv,
          ab::gradient(ab::score::Scale{1}, ab::bhsd(target.data(), 1, 1, 3, 5)));
  const std::vector<float> four(4);
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::evidence::LseGradient(four));
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::evidence::EntropyGradient(four));
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::evidence::MassGradient(four));
  const std::vector<float> five(5);
  refuses(q, k, v, out, lse, dout, dq, dk, dv, ab::evidence::MassGradient(five, ab::QueryWeights::of(four)));
  refuses(q, k, v, out, lse, dout, dq, dk, dv,
          ab::evidence::MassGradient(std::span<const float>(memory).subspan(122, 5)));
}
