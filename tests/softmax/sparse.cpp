// Sparsemax, entmax with alpha 1.5 and top-k: the weights, the evidence and the gradients, against the packages
// entmax and torch (golden/normalizers_golden.csv), and the kernels against the reference.

#include "support/backward.hpp"
#include "support/golden.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

/// Calls f with each normaliser, by name.
template <class F>
void for_each_normalizer(F f) {
  f("sparsemax", ab::normalize::Sparsemax{});
  f("entmax15", ab::normalize::Entmax15{});
  f("top 1", ab::normalize::TopK{1});
  f("top 5", ab::normalize::TopK{5});
}

template <class T>
void compare(support::Table& table, const char* name, std::span<const T> got, std::span<const double> expected,
             double bound) {
  table.expect(got.size() == expected.size(), std::string("size of ") + name);
  auto column = table.column(name);
  for (std::size_t i = 0; i < expected.size(); ++i)
    column.compare(static_cast<double>(got[i]), expected[i], bound, static_cast<Index>(i));
}

template <class T, class N, class... P>
void check(support::Table& table, const std::string& name, const support::Shape& s, const support::Inputs<T>& in,
           const N& normalizer, const P&... policies) {
  table.begin(name + ' ' + s.text());
  const auto q = in.q.view(), k = in.k.view(), v = in.v.view();
  Tensor<double> expected(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  Tensor<T> out(Layout::columns, s.batch, s.heads, s.queries, s.value_dim),
      plain(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> reference;
  ab::Evidence<T> evidence;
  ab::reference::attention(q, k, v, expected.view(), normalizer, policies..., ab::observe(reference));
  ab::attention(q, k, v, out.view(), policies..., normalizer, ab::observe(evidence));
  ab::attention(q, k, v, plain.view(), policies..., normalizer);
  table.expect(support::same_bits(out.view(), plain.view()), "observing changes the output");
  // Rounding moves a probability by about as much as it moves a score.
  const double eps = std::numeric_limits<T>::epsilon();
  const auto errors = support::logit_errors(s, in, {0, 8});
  const double e = 4 * *std::max_element(errors.begin(), errors.end()) + 64 * eps;
  auto column = table.column("output");
  Index place = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      for (Index i = 0; i < s.queries; ++i)
        for (Index c = 0; c < s.value_dim; ++c, ++place)
          column.compare(static_cast<double>(out(b, h, i, c)), expected(b, h, i, c), 8 * e, place);
      compare(table, "mass", evidence.mass(b, h), reference.mass(b, h), static_cast<double>(s.queries) * e);
      compare(table, "exposure", evidence.exposure(b, h), reference.exposure(b, h), 0);
      compare(table, "lse", evidence.lse(b, h), reference.lse(b, h), e);
      compare(table, "entropy", evidence.entropy(b, h), reference.entropy(b, h), 100 * e);
      table.expect(evidence.empty_rows(b, h) == reference.empty_rows(b, h), "empty rows");
      // In float a weight below the rounding of the scores may be there or not.
      Index differ = 0;
      for (std::size_t i = 0; i < evidence.support(b, h).size(); ++i)
        differ += evidence.support(b, h)[i] != reference.support(b, h)[i];
      table.expect(differ <= (sizeof(T) == 8 ? 0 : s.queries / 20),
                   "support: " + std::to_string(differ) + " differ");
    }

  support::Random random(5);
  const support::Upstream<T> up(s, random, true);
  const ab::evidence::LseGradient lse(up.lse.view());
  const ab::evidence::MassGradient mass(up.mass.view(), ab::QueryWeights::of(up.u));
  support::Gradients<double> exact(s);
  support::Gradients<T> got(s);
  ab::reference::attention_backward(q, k, v, up.out.view(), exact.q.view(), exact.k.view(), exact.v.view(),
                                    normalizer, policies..., lse, mass);
  ab::attention_backward(q, k, v, out.view(), evidence, up.out.view(), got.q.view(), got.k.view(), got.v.view(),
                         policies..., mass, normalizer, lse);
  if constexpr (sizeof(T) == 8) {
    const double bound = 1e-10 * static_cast<double>(s.queries);
    support::compare_views(table, "dq", got.q, exact.q, bound);
    support::compare_views(table, "dk", got.k, exact.k, bound);
    support::compare_views(table, "dv", got.v, exact.v, bound);
  } else {
    // Where a support differs so does the gradient: most elements agree.
    auto share = [&](const Tensor<T>& a, const Tensor<double>& x) {
      Index far = 0, all = 0;
      const auto& view = x.view();
      for (Index b = 0; b < view.batch; ++b)
        for (Index h = 0; h < view.heads; ++h)
          for (Index i = 0; i < view.length; ++i)
            for (Index c = 0; c < view.dim; ++c, ++all)
              far += !(std::fabs(static_cast<double>(a(b, h, i, c)) - x(b, h, i, c)) <
                       2e-4 * std::sqrt(static_cast<double>(s.queries)));
      return static_cast<double>(far) / static_cast<double>(std::max(Index(1), all));
    };
    table.expect(share(got.q, exact.q) < 0.05, "dq");
    table.expect(share(got.k, exact.k) < 0.05, "dk");
    table.expect(share(got.v, exact.v) < 0.05, "dv");
  }
}

}  // namespace

TEMPLATE_TEST_CASE("sparse normalisers are the reference's, forward and backward", "[softmax][sparse]", SCALARS) {
  using T = TestType;
  support::Table table;
  support::Random random(6);
  for (const support::Shape& s :
       {support::Shape{1, 1, 1, 1, 1, 3, 2}, {2, 2, 1, 70, 150, 8, 8}, {1, 2, 2, 33, 300, 4, 4}}) {
    const support::Inputs<T> in(s, random, support::Family::uniform, 2);
    std::vector<T> bias;
    for (Index j = 0; j < s.keys; ++j)
      bias.push_back(static_cast<T>(j % 5 == 3 ? -HUGE_VAL : random.uniform(-1, 1)));
    const ab::score::KeyBias key_bias(bias);
    for_each_normalizer([&](const std::string& name, const auto& normalizer) {
      for (const bool masked : {false, true}) {
        support::MaybeMask<ab::mask::Causal> causal;
        support::MaybeModifier<ab::score::KeyBias<T>> biased;
        if (masked) causal.mask.emplace(), biased.modifier.emplace(key_bias);
        check<T>(table, name + (masked ? " causal, biased" : ""), s, in, normalizer, causal, biased,
                 ab::score::Softcap<T>{T(20)});
      }
    });
  }
  table.report();
}

TEST_CASE("sparse normalisers are what entmax and torch compute", "[softmax][sparse]") {
  const auto cases = support::read_golden("normalizers_golden.csv");
  REQUIRE(cases.size() == 24);
  support::Table table;
  for (const support::Case& c : cases) {
    const auto s = [&](std::size_t i) { return static_cast<Index>(c["sizes"].at(i)); };
    const Index B = s(0), Hq = s(1), Hkv = s(2), Nq = s(3), Nk = s(4), D = s(5), Dv = s(6);
    const auto q = support::divided(c["q"]), k = support::divided(c["k"]), v = support::divided(c["v"]),
               dout = support::divided(c["dout"]);
    const auto vq = ab::bhsd(q.data(), B, Hq, Nq, D), vk = ab::bhsd(k.data(), B, Hkv, Nk, D),
               vv = ab::bhsd(v.data(), B, Hkv, Nk, Dv), vdout = ab::bhsd(dout.data(), B, Hq, Nq, Dv);
    support::MaybeMask<ab::mask::Causal> causal;
    if (c.has("causal")) causal.mask.emplace();
    const ab::score::Scale<double> scale{c["scale"][0]};
    const bool evident = c.has("weights");
    auto zeros = [](Index n) { return std::vector<double>(static_cast<std::size_t>(n)); };
    const auto dlse = evident ? support::divided(c["dthreshold"]) : zeros(B * Hq * Nq),
               dentropy = evident ? support::divided(c["dentropy"]) : zeros(B * Hq * Nq),
               dmass = evident ? support::divided(c["dmass"]) : zeros(B * Hq * Nk),
               u = evident ? c["weights"] : zeros(Nq);
    const ab::evidence::LseGradient of_lse(ab::bhsd(dlse.data(), B, Hq, 1, Nq));
    const ab::evidence::EntropyGradient of_entropy(ab::bhsd(dentropy.data(), B, Hq, 1, Nq));
    const ab::evidence::MassGradient of_mass(ab::bhsd(dmass.data(), B, Hq, 1, Nk), ab::QueryWeights::of(u));
    auto with = [&](const auto& normalizer) {
      for (const bool kernel : {false, true}) {
        table.begin(c.name + (kernel ? ", kernel" : ", reference"));
        Tensor<double> out(Layout::bhsd, B, Hq, Nq, Dv);
        support::Gradients<double> got({B, Hq, Hkv, Nq, Nk, D, Dv});
        ab::Evidence<double> evidence;
        if (kernel) {
          ab::attention(vq, vk, vv, out.view(), causal, scale, normalizer, ab::observe(evidence));
          ab::attention_backward(vq, vk, vv, out.view(), evidence, vdout, got.q.view(), got.k.view(), got.v.view(),
                                 causal, scale, normalizer, of_lse, of_entropy, of_mass);
        } else {
          ab::reference::attention(vq, vk, vv, out.view(), causal, scale, normalizer, ab::observe(evidence));
          ab::reference::attention_backward(vq, vk, vv, vdout, got.q.view(), got.k.view(), got.v.view(), causal,
                                            scale, normalizer, of_lse, of_entropy, of_mass);
        }
        auto compare_all = [&](const char* array, const std::vector<double>& x) {
          compare<double>(table, array, x, c[array], 1e-12);
        };
        std::vector<double> mass, threshold, entropy, support;
        for (Index b = 0; b < B; ++b)
          for (Index h = 0; h < Hq; ++h) {
            auto append = [](std::vector<double>& to, auto from) {
              for (const auto x : from) to.push_back(static_cast<double>(x));
            };
            append(mass, evidence.mass(b, h)), append(threshold, evidence.lse(b, h));
            append(entropy, evidence.entropy(b, h)), append(support, evidence.support(b, h));
          }
        compare_all("out", out.memory()), compare_all("mass", mass), compare_all("threshold", threshold);
        compare_all("entropy", entropy), compare_all("support", support);
        compare_all("dq", got.q.memory()), compare_all("dk", got.k.memory()), compare_all("dv", got.v.memory());
      }
    };
    if (c.has("sparsemax")) with(ab::normalize::Sparsemax{});
    if (c.has("entmax15")) with(ab::normalize::Entmax15{});
    if (c.has("top_k")) with(ab::normalize::TopK{static_cast<Index>(c["top_k"][0])});
  }
  table.report();
}

TEST_CASE("exact zeros stay exact, ties go to the lower key, and what has no weight reaches nothing",
          "[softmax][sparse]") {
  // One feature: the scores are the keys themselves.
  const std::vector<float> one{1, 1}, k{3, 1, 3, 3, 0.5f, -2};
  std::vector<float> v{1, 2, 4, 8, std::nanf(""), std::nanf("")}, out(2);
  const auto vq = ab::bhsd(one.data(), 1, 1, 2, 1), vk = ab::bhsd(k.data(), 1, 1, 6, 1);
  const auto vv = ab::bhsd(v.data(), 1, 1, 6, 1);
  const auto vo = ab::bhsd(out.data(), 1, 1, 2, 1);
  ab::Evidence<float> evidence;
  auto mass = [&](const auto& normalizer) {
    ab::attention(vq, vk, vv, vo, normalizer, ab::observe(evidence, ab::QueryWeights::last(1)));
    return std::vector<float>(evidence.mass(0, 0).begin(), evidence.mass(0, 0).end());
  };
  CHECK(mass(ab::normalize::TopK{2}) == std::vector<float>{0.5f, 0, 0.5f, 0, 0, 0});
  CHECK(out[0] == 2.5f);
  CHECK(evidence.lse(0, 0)[1] == Approx(3 + std::log(2.0)));
  CHECK(evidence.support(0, 0)[0] == 2);
  CHECK(mass(ab::normalize::TopK{1}) == std::vector<float>{1, 0, 0, 0, 0, 0});
  CHECK(evidence.entropy(0, 0)[0] == 0);
  const auto sparsemax = mass(ab::normalize::Sparsemax{});
  CHECK(sparsemax[0] == Approx(1 / 3.0));
  CHECK(std::vector<float>(sparsemax.begin() + 4, sparsemax.end()) == std::vector<float>{0, 0});
  CHECK(sparsemax[1] == 0);
  CHECK(out[0] == Approx(13 / 3.0));
  CHECK(evidence.support(0, 0)[0] == 3);
  CHECK(evidence.lse(0, 0)[0] == Approx(3 - 1 / 3.0));
  mass(ab::normalize::Entmax15{});
  CHECK(out[1] == Approx(13 / 3.0));
  CHECK(mass(ab::normalize::TopK{100})[5] > 0);
  CHECK(std::isnan(out[0]));  // now the values that are not numbers are attended to
  CHECK(evidence.support(0, 0)[0] == 6);
  CHECK_THROWS_AS(mass(ab::normalize::TopK{0}), ab::InputError);
  ab::attention(vq, vk, vk, vo, ab::observe(evidence));
  CHECK(evidence.support(0, 0).empty());
}

TEST_CASE("a score that is not a number makes its row so, whatever the normaliser", "[softmax][sparse]") {
  support::Random random(8);
  const support::Shape s{1, 1, 1, 40, 60, 4, 4};
  const support::Inputs<float> in(s, random);
  in.k(0, 0, 50, 2) = std::nanf("");
  Tensor<float> out(Layout::bhsd, 1, 1, 40, 4);
  ab::Evidence<float> evidence;
  support::Gradients<float> got(s);
  for_each_normalizer([&](const char* name, const auto& normalizer) {
    INFO(name);
    // With 40 queries of 60 keys, query i sees keys up to i + 20: those from 30 on see key 50.
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), normalizer, ab::mask::Causal{},
                  ab::observe(evidence));
    ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, in.q.view(), got.q.view(),
                           got.k.view(), got.v.view(), normalizer, ab::mask::Causal{});
    for (Index i = 0; i < 40; ++i) {
      INFO("query " << i);
      CHECK(std::isnan(out(0, 0, i, 0)) == (i >= 30));
      CHECK(std::isnan(got.q(0, 0, i, 1)) == (i >= 30));
    }
  });
}
