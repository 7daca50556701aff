// The gradients of packed sequences: each sequence's alone, bit by bit, and the reference's.

#include "support/anybody.hpp"
#include "support/backward.hpp"

namespace {

using support::Anybody;
using support::Index;
using support::Layout;
using support::Tensor;

struct Offsets {
  std::vector<Index> queries{2}, keys{1};  // tokens of no sequence come first and last
  Index longest_queries = 0, longest_keys = 0;

  explicit Offsets(const std::vector<std::pair<Index, Index>>& sizes) {
    for (const auto& [q, k] : sizes) {
      queries.push_back(queries.back() + q), keys.push_back(keys.back() + k);
      longest_queries = std::max(longest_queries, q), longest_keys = std::max(longest_keys, k);
    }
  }
  Index count() const { return static_cast<Index>(queries.size()) - 1; }
  Index query(Index s) const { return queries[static_cast<std::size_t>(s)]; }
  Index key(Index s) const { return keys[static_cast<std::size_t>(s)]; }
  Index all_queries() const { return queries.back() + 3; }
  Index all_keys() const { return keys.back() + 2; }
};

template <class T>
ab::TensorView<T> tokens(ab::TensorView<T> x, Index begin, Index end) {
  x.data += begin * x.length_stride;
  x.length = end - begin;
  return x;
}

constexpr Index heads = 4, kv_heads = 2, dim = 12, value_dim = 9;

/// Inputs, policies and incoming gradients; `own` parameters for each sequence, or shared by all.
template <class T>
struct Given {
  Offsets at;
  bool own;
  Tensor<T> q, k, v, dout, bias, key_bias, dlse, dentropy, dmass;
  std::vector<T> slopes = ab::score::alibi_slopes<T>(heads), sinks{T(0.5), T(-1), T(2), -ab::detail::infinity<T>};

  Given(const Offsets& offsets, bool own_parameters, Layout layout)
      : at(offsets),
        own(own_parameters),
        q(layout, 1, heads, at.all_queries(), dim),
        k(layout, 1, kv_heads, at.all_keys(), dim),
        v(layout, 1, kv_heads, at.all_keys(), value_dim),
        dout(layout, 1, heads, at.all_queries(), value_dim),
        bias(Layout::bhsd, rows(), 1, at.longest_queries, at.longest_keys),
        key_bias(Layout::bhsd, rows(), own ? heads : 1, 1, at.longest_keys),
        dlse(Layout::bhsd, rows(), heads, 1, at.longest_queries),
        dentropy(Layout::bhsd, rows(), 1, 1, at.longest_queries),
        dmass(Layout::columns, rows(), 1, 1, at.longest_keys) {
    support::Random random(61);
    for (auto* x : {&q, &k, &v, &dout, &bias, &key_bias, &dlse, &dentropy, &dmass})
      x->fill(random, support::Family::uniform, 2);
  }
  Index rows() const { return own ? at.count() : 1; }
};

/// What a call writes: of all sequences (U double for the reference), or of sequence `only`.
template <class U>
struct Gradients {
  Tensor<U> q, k, v, bias, key_bias, slopes, sinks, scale;

  template <class T>
  Gradients(const Given<T>& g, Layout layout, Index rows, Index queries, Index keys, Index longest_queries,
            Index longest_keys)
      : q(layout, 1, heads, queries, dim),
        k(layout, 1, kv_heads, keys, dim),
        v(layout, 1, kv_heads, keys, value_dim),
        bias(Layout::bhsd, rows, 1, longest_queries, longest_keys),
        key_bias(Layout::bhsd, rows, g.own ? heads : 1, 1, longest_keys),
        slopes(Layout::bhsd, rows, heads, 1, 1),
        sinks(Layout::bhsd, rows, heads, 1, 1),
        scale(Layout::bhsd, rows, 1, 1, 1) {
    for (const auto* x : {&q, &k, &v, &bias, &key_bias, &slopes, &sinks, &scale})
      x->fill([](auto...) { return 77; });
  }
  template <class T>
  Gradients(const Given<T>& g, Layout layout)
      : Gradients(g, layout, g.rows(), g.at.all_queries(), g.at.all_keys(), g.at.longest_queries,
                  g.at.longest_keys) {}

  template <class F>
  void for_each(F f) const {
    f("dq", q), f("dk", k), f("dv", v), f("dbias", bias), f("dkey_bias", key_bias), f("dslopes", slopes);
    f("dsinks", sinks), f("dscale", scale);
  }
};

/// The sequence's part of a view with a row for each sequence: as many rows and columns as it has.
template <class T>
ab::TensorView<T> part(ab::TensorView<T> x, Index s, Index length, Index columns) {
  x.data += x.batch == 1 ? 0 : s * x.batch_stride;
  x.batch = 1;
  if (x.length > 1) x.length = length;
  if (x.dim > 1) x.dim = columns;
  return x;
}

/// call(policies...) with all of them, given as views and targets. A softmax has sinks.
template <bool Sinks, class T, class U, class Normalizer, class Call>
void with_policies(const ab::TensorView<T>& bias, const ab::TensorView<T>& key_bias, const std::vector<T>& slopes,
                   const std::vector<T>& sinks, const Gradients<U>& to, bool causal, const Normalizer& normalizer,
                   Call call) {
  support::MaybeMask<ab::mask::Causal> mask;
  if (causal) mask.mask.emplace();
  const auto b = ab::gradient(ab::score::Bias<T>(bias), to.bias.view());
  const auto kb = ab::gradient(ab::score::KeyBias<T>(key_bias), to.key_bias.view());
  const auto alibi = ab::gradient(ab::score::Alibi<T>(slopes), to.slopes.view());
  const auto scale = ab::gradient(ab::score::Scale<double>{0.3}, to.scale.view());
  if constexpr (Sinks)
    call(b, kb, alibi, scale, mask, normalizer, ab::gradient(ab::normalize::Sink(sinks), to.sinks.view()));
  else
    call(b, kb, alibi, scale, mask, normalizer);
}

template <class T, class Normalizer>
void check(support::Table& table, const std::string& name, const Given<T>& g, Layout layout, bool causal,
           const Normalizer& normalizer) {
  constexpr bool sinks = std::is_same_v<Normalizer, ab::normalize::Softmax>;
  const ab::PackedSequences packed(g.at.queries, g.at.keys);
  const auto u = ab::QueryWeights::last(5);
  const Index count = g.at.count();
  Tensor<T> out(Layout::bshd, 1, heads, g.at.all_queries(), value_dim),
      lse(Layout::columns, 1, heads, 1, g.at.all_queries());
  std::vector<ab::Evidence<T>> evidence(static_cast<std::size_t>(count));
  Gradients<T> got(g, layout);
  const ab::evidence::LseGradient dlse(g.dlse.view());
  const ab::evidence::EntropyGradient dentropy(g.dentropy.view());
  const ab::evidence::MassGradient dmass(g.dmass.view(), u);
  ab::Workspace workspace;
  auto run = [&](const Gradients<T>& to, const auto& evidences, Anybody::Kind kind, Index pieces) {
    with_policies<sinks>(
        g.bias.view(), g.key_bias.view(), g.slopes, g.sinks, to, causal, normalizer, [&](const auto&... policies) {
          ab::attention_backward(g.q.view(), g.k.view(), g.v.view(), out.view(), evidences, g.dout.view(),
                                 to.q.view(), to.k.view(), to.v.view(), packed, policies..., dlse, dentropy, dmass,
                                 Anybody{kind, pieces}, workspace);
        });
  };
  with_policies<sinks>(g.bias.view(), g.key_bias.view(), g.slopes, g.sinks, got, causal, normalizer,
                       [&](const auto&... policies) {
                         ab::attention(g.q.view(), g.k.view(), g.v.view(), out.view(), packed, policies...,
                                       ab::observe(evidence, ab::QueryWeights::none()));
                       });
  run(got, evidence, Anybody::in_order, 1);
  table.begin(name);

  // The reference.
  Gradients<double> exact(g, Layout::bhsd);
  with_policies<sinks>(g.bias.view(), g.key_bias.view(), g.slopes, g.sinks, exact, causal, normalizer,
                       [&](const auto&... policies) {
                         ab::reference::attention_backward(g.q.view(), g.k.view(), g.v.view(), g.dout.view(),
                                                           exact.q.view(), exact.k.view(), exact.v.view(), packed,
                                                           policies..., dlse, dentropy, dmass);
                       });
  std::vector<const Tensor<double>*> expected;
  exact.for_each([&](const char*, const Tensor<double>& x) { expected.push_back(&x); });
  std::size_t place = 0;
  got.for_each([&](const char* what, const Tensor<T>& x) {
    const Tensor<double>& y = *expected[place++];
    const double size = std::max(1.0, support::largest(y.view()));
    support::compare_views(table, what, x, y, size * (sizeof(T) == 8 ? 1e-11 : 2e-3));
  });

  // Another executor, as many workers as there are pieces and more, offsets of 32 bits, a view of the lse.
  for (Index s = 0; s < count; ++s)
    for (Index h = 0; h < heads; ++h)
      for (Index i = g.at.query(s); i < g.at.query(s + 1); ++i)
        lse(0, h, 0, i) =
            evidence[static_cast<std::size_t>(s)].lse(0, h)[static_cast<std::size_t>(i - g.at.query(s))];
  auto expect_same = [&](const Gradients<T>& other, const std::string& what) {
    std::vector<const Tensor<T>*> theirs;
    other.for_each([&](const char*, const Tensor<T>& x) { theirs.push_back(&x); });
    std::size_t i = 0;
    got.for_each([&](const char* of, const Tensor<T>& x) {
      table.expect(support::same_bits(x.view(), theirs[i++]->view()), what + ", " + of);
    });
  };
  for (const auto& [kind, pieces] : {std::pair{Anybody::backwards, Index(2)},
                                     {Anybody::backwards, Index(40)},
                                     {Anybody::threads, Index(3)},
                                     {Anybody::in_order, Index(7)}}) {
    Gradients<T> again(g, Layout::bhsd);
    if (pieces == 7)
      run(again, lse.view(), kind, pieces);
    else
      run(again, std::span<const ab::Evidence<T>>(evidence), kind, pieces);
    expect_same(again, "pieces " + std::to_string(pieces));
  }

  // Each sequence alone.
  for (Index s = 0; s < count && g.own; ++s) {
    const Index q0 = g.at.query(s), q1 = g.at.query(s + 1), k0 = g.at.key(s), k1 = g.at.key(s + 1);
    if (q0 == q1) {
      for (Index h = 0; h < kv_heads; ++h)
        for (Index j = k0; j < k1; ++j)
          table.expect(got.k(0, h, j, 0) == 0 && got.v(0, h, j, 1) == 0, "no queries");
      continue;
    }
    const auto cut = [&](const Tensor<T>& x) { return part(x.view(), s, q1 - q0, k1 - k0); };
    const auto bias = cut(g.bias), key_bias = cut(g.key_bias);
    auto of_lse = g.dlse.view(), of_entropy = g.dentropy.view();
    of_lse = part(of_lse, s, 1, q1 - q0), of_entropy = part(of_entropy, s, 1, q1 - q0);
    const ab::evidence::LseGradient one_lse(of_lse);
    const ab::evidence::EntropyGradient one_entropy(of_entropy);
    const ab::evidence::MassGradient one_mass(cut(g.dmass), u);
    Gradients<T> one(g, Layout::bhsd, 1, q1 - q0, k1 - k0, bias.length, key_bias.dim);
    if (k0 == k1) continue;  // there is no such bias
    with_policies<sinks>(bias, key_bias, g.slopes, g.sinks, one, causal, normalizer, [&](const auto&... policies) {
      ab::attention_backward(tokens(g.q.view(), q0, q1), tokens(g.k.view(), k0, k1), tokens(g.v.view(), k0, k1),
                             tokens(out.view(), q0, q1), evidence[static_cast<std::size_t>(s)],
                             tokens(g.dout.view(), q0, q1), one.q.view(), one.k.view(), one.v.view(), policies...,
                             one_lse, one_entropy, one_mass);
    });
    const std::string text = "sequence " + std::to_string(s) + " alone, ";
    table.expect(support::same_bits(one.q.view(), tokens(got.q.view(), q0, q1)), text + "dq");
    table.expect(support::same_bits(one.k.view(), tokens(got.k.view(), k0, k1)), text + "dk");
    table.expect(support::same_bits(one.v.view(), tokens(got.v.view(), k0, k1)), text + "dv");
    table.expect(support::same_bits(one.bias.view(), cut(got.bias)), text + "dbias");
    table.expect(support::same_bits(one.key_bias.view(), cut(got.key_bias)), text + "dkey_bias");
    table.expect(support::same_bits(one.slopes.view(), cut(got.slopes)), text + "dslopes");
    table.expect(support::same_bits(one.scale.view(), cut(got.scale)), text + "dscale");
    if (sinks) table.expect(support::same_bits(one.sinks.view(), cut(got.sinks)), text + "dsinks");
  }
}

}  // namespace

TEMPLATE_TEST_CASE("gradients of packed sequences are each sequence's alone", "[attention][packed][backward]",
                   SCALARS) {
  using T = TestType;
  support::Table table;
  const Offsets mixed({{20, 20}, {1, 40}, {0, 7}, {9, 0}, {300, 160}, {50, 130}, {0, 0}, {3, 5}}),
      single({{40, 33}});
  for (const bool own : {true, false}) {
    const std::string text = own ? "own parameters" : "shared parameters";
    const Given<T> g(mixed, own, own ? Layout::bshd : Layout::columns);
    check(table, text, g, Layout::bshd, false, ab::normalize::Softmax{});
    check(table, text + ", causal", g, Layout::columns, true, ab::normalize::Softmax{});
    if constexpr (sizeof(T) == 8)  // one is enough, and each takes its time to compile
      check(table, text + ", top-k", g, Layout::bshd, true, ab::normalize::TopK{6});
  }
  check(table, "one sequence", Given<T>(single, true, Layout::bhsd), Layout::bhsd, false, ab::normalize::Softmax{});
  table.report();
}

TEST_CASE("gradients that are not numbers stay in their packed sequence", "[attention][packed][backward]") {
  // All but the even ones, and the tokens of no sequence, become NaN.
  const Given<float> g(Offsets({{70, 130}, {20, 40}, {1, 50}, {3, 300}, {9, 9}, {40, 17}, {33, 20}}), false,
                       Layout::bshd);
  const ab::PackedSequences packed(g.at.queries, g.at.keys);
  Tensor<float> out(Layout::bshd, 1, heads, g.at.all_queries(), value_dim);
  std::vector<ab::Evidence<float>> evidence(static_cast<std::size_t>(g.at.count()));
  ab::Workspace workspace;
  auto run = [&](const Gradients<float>& to, Index pieces) {
    ab::attention(g.q.view(), g.k.view(), g.v.view(), out.view(), packed, ab::mask::Causal{},
                  ab::observe(evidence));
    ab::attention_backward(g.q.view(), g.k.view(), g.v.view(), out.view(), evidence, g.dout.view(), to.q.view(),
                           to.k.view(), to.v.view(), packed, ab::mask::Causal{}, workspace,
                           Anybody{Anybody::threads, pieces});
  };
  const Gradients<float> clean(g, Layout::bhsd), got(g, Layout::bhsd);
  run(clean, 1);
  const auto poison = [&](const Tensor<float>& x, const std::vector<Index>& offsets) {
    x.fill([&](Index b, Index h, Index i, Index c) {
      const Index s = std::upper_bound(offsets.begin(), offsets.end(), i) - offsets.begin() - 1;
      return s >= 0 && s < g.at.count() && s % 2 == 0 ? x(b, h, i, c) : std::numeric_limits<float>::quiet_NaN();
    });
  };
  poison(g.q, g.at.queries), poison(g.dout, g.at.queries), poison(g.k, g.at.keys), poison(g.v, g.at.keys);
  support::Table table;
  for (const Index pieces : {1, 2, 30}) {
    table.begin(std::to_string(pieces) + " pieces");
    run(got, pieces);
    for (Index s = 0; s < g.at.count(); ++s) {
      const Index q0 = g.at.query(s), q1 = g.at.query(s + 1), k0 = g.at.key(s), k1 = g.at.key(s + 1);
      const std::string of = " of sequence " + std::to_string(s);
      if (s % 2 == 0) {
        table.expect(support::same_bits(tokens(got.q.view(), q0, q1), tokens(clean.q.view(), q0, q1)), "dq" + of);
        table.expect(support::same_bits(tokens(got.k.view(), k0, k1), tokens(clean.k.view(), k0, k1)), "dk" + of);
        table.expect(support::same_bits(tokens(got.v.view(), k0, k1), tokens(clean.v.view(), k0, k1)), "dv" + of);
      } else {
        table.expect(
            std::isnan(got.q(0, 3, q1 - 1, 0)) && std::isnan(got.k(0, 1, k0, 0)) && std::isnan(got.v(0, 1, k0, 0)),
            "gradients" + of);
      }
    }
  }
  table.report();
}

TEST_CASE("the backward pass of packed sequences refuses what does not fit before it writes",
          "[attention][packed][backward][bad input]") {
  const std::vector<Index> q_offsets{0, 3, 6}, k_offsets{0, 4, 8}, past{0, 3, 7};
  const std::vector<float> in(64, 0.5f);
  std::vector<float> dq(12, 7), dk(16, 7), dv(16, 7), target(8, 7), out(12);
  auto view = [](auto& x, Index length, Index dims) { return ab::bhsd(x.data(), 1, 1, length, dims); };
  const auto q = view(in, 6, 2), k = view(in, 8, 2), dout = view(in, 6, 2);
  const auto vdq = view(dq, 6, 2), vdk = view(dk, 8, 2), vdv = view(dv, 8, 2), vout = view(out, 6, 2);
  const ab::PackedSequences packed(q_offsets, k_offsets);
  std::vector<ab::Evidence<float>> evidence(2);
  ab::attention(q, k, k, vout, packed, ab::observe(evidence));
  auto refuses = [&](const char* text, const auto& lse, auto&&... policies) {
    CHECK_THROWS_WITH(ab::attention_backward(q, k, k, vout, lse, dout, vdq, vdk, vdv, policies...),
                      Catch::Matchers::ContainsSubstring(text));
    for (const auto* x : {&dq, &dk, &dv, &target})
      CHECK(std::all_of(x->begin(), x->end(), [](float y) { return y == 7; }));
  };
  refuses("PackedSequences queries offset 2 is 7", evidence, ab::PackedSequences(past, k_offsets));
  auto wrong = evidence;
  std::swap(wrong[0], wrong[1]);
  wrong.pop_back();
  refuses("number of evidences is 1", wrong, packed);
  wrong.emplace_back();
  refuses("evidence[1] is empty, but must have been observed first", wrong, packed);
  refuses("lse.dim is 5", ab::bhsd(in.data(), 1, 1, 1, 5), packed);
  const std::vector<float> three(3), five(5);
  refuses("evidence::MassGradient", evidence, packed, ab::evidence::MassGradient(five));
  refuses("gradient target", evidence, packed,
          ab::gradient(ab::score::KeyBias(ab::bhsd(in.data(), 2, 1, 1, 4)), ab::bhsd(target.data(), 2, 1, 1, 3)));
  refuses("gradient target", evidence, packed,
          ab::gradient(ab::score::Scale{1}, ab::bhsd(target.data(), 3, 1, 1, 1)));
  // In the memory of an output.
  refuses("gradient target is in the memory", evidence, packed,
          ab::gradient(ab::score::Scale{1}, ab::bhsd(dq.data() + 3, 1, 1, 1, 1)));
  refuses("dq is in the memory", ab::bhsd(dq.data(), 1, 1, 1, 6), packed);
  CHECK_NOTHROW(ab::attention_backward(q, k, k, vout, evidence, dout, vdq, vdk, vdv, packed,
                                       ab::evidence::LseGradient(three)));
}

TEMPLATE_TEST_CASE("gradients of more small heads than the caches hold are those of each alone", "[backward][packed]",
                   SCALARS) {
  using T = TestType;
  constexpr Index features = 40, value_features = 36;
  std::vector<std::pair<Index, Index>> sizes;
  for (Index s = 0; s < 90; ++s) sizes.emplace_back(s == 31 ? 300 : s * 37 % 71, s == 31 ? 500 : s * 29 % 67);
  const Offsets at(sizes);
  support::Random random(62);
  const auto of_queries = [&](Index columns) { return Tensor<T>(Layout::bshd, 1, heads, at.all_queries(), columns); };
  const auto of_keys = [&](Index columns) { return Tensor<T>(Layout::bhsd, 1, kv_heads, at.all_keys(), columns); };
  Tensor<T> q = of_queries(features), dq = of_queries(features), out = of_queries(value_features),
            dout = of_queries(value_features), k = of_keys(features), dk = of_keys(features),
            v = of_keys(value_features), dv = of_keys(value_features);
  for (auto* x : {&q, &k, &v, &dout}) x->fill(random, support::Family::uniform, 1);
  std::vector<ab::Evidence<T>> evidence(sizes.size());
  const ab::PackedSequences packed(at.queries, at.keys);
  ab::attention(q.view(), k.view(), v.view(), out.view(), packed, ab::observe(evidence));

  support::Table table;
  for (const Index threads : {1, 3}) {
    ab::attention_backward(q.view(), k.view(), v.view(), out.view(), evidence, dout.view(), dq.view(), dk.view(),
                           dv.view(), packed, Anybody{Anybody::threads, threads});
    for (Index s = 0; s < at.count(); ++s) {
      table.begin(std::to_string(threads) + " threads, sequence " + std::to_string(s));
      const Index q0 = at.query(s), q1 = at.query(s + 1), k0 = at.key(s), k1 = at.key(s + 1);
      if (q0 == q1) continue;
      Tensor<T> dq_alone(Layout::bhsd, 1, heads, q1 - q0, features),
          dk_alone(Layout::bhsd, 1, kv_heads, k1 - k0, features),
          dv_alone(Layout::bhsd, 1, kv_heads, k1 - k0, value_features);
      ab::attention_backward(tokens(q.view(), q0, q1), tokens(k.view(), k0, k1), tokens(v.view(), k0, k1),
                             tokens(out.view(), q0, q1), evidence[static_cast<std::size_t>(s)],
                             tokens(dout.view(), q0, q1), dq_alone.view(), dk_alone.view(), dv_alone.view());
      table.expect(support::same_bits(dq_alone.view(), tokens(dq.view(), q0, q1)), "dq");
      table.expect(support::same_bits(dk_alone.view(), tokens(dk.view(), k0, k1)), "dk");
      table.expect(support::same_bits(dv_alone.view(), tokens(dv.view(), k0, k1)), "dv");
    }
  }

  // As a batch: heads of 48 queries and keys.
  constexpr Index batch = 60, length = 48;
  const auto batched = [&](const Tensor<T>& x, Index first) {
    auto view = tokens(x.view(), first, first + length);
    view.batch = batch, view.batch_stride = length * view.length_stride;
    return view;
  };
  REQUIRE(at.all_queries() > 2 + batch * length);
  REQUIRE(at.all_keys() > 1 + batch * length);
  ab::Evidence<T> all;
  ab::attention(batched(q, 2), batched(k, 1), batched(v, 1), batched(out, 2), ab::observe(all));
  ab::attention_backward(batched(q, 2), batched(k, 1), batched(v, 1), batched(out, 2), all, batched(dout, 2),
                         batched(dq, 2), batched(dk, 1), batched(dv, 1));
  for (Index b = 0; b < batch; b += 7) {
    table.begin("item " + std::to_string(b));
    const auto one = [&](const Tensor<T>& x, Index first) {
      return tokens(x.view(), first + b * length, first + (b + 1) * length);
    };
    Tensor<T> dq_alone(Layout::bhsd, 1, heads, length, features),
        dk_alone(Layout::bhsd, 1, kv_heads, length, features),
        dv_alone(Layout::bhsd, 1, kv_heads, length, value_features);
    const auto lse = ab::bhsd(all.lse(b, 0).data(), 1, heads, 1, length);
    ab::attention_backward(one(q, 2), one(k, 1), one(v, 1), one(out, 2), lse, one(dout, 2), dq_alone.view(),
                           dk_alone.view(), dv_alone.view());
    table.expect(support::same_bits(dq_alone.view(), one(dq, 2)), "dq");
    table.expect(support::same_bits(dk_alone.view(), one(dk, 1)), "dk");
    table.expect(support::same_bits(dv_alone.view(), one(dv, 1)), "dv");
  }
  table.report();
}
