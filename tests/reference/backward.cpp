// The gradients against torch's autograd: golden/backward_golden.csv, whose generator lies beside it. The reference
// and the double kernel alike.

#include "support/backward.hpp"
#include "support/golden.hpp"

using support::Case;
using support::Index;
using support::Tensor;

namespace {

/// What a case asks for, in double.
struct Policies {
  support::MaybeModifier<ab::score::Softcap<double>> softcap;
  support::MaybeModifier<ab::score::Alibi<double>> alibi;
  support::MaybeModifier<ab::score::Bias<double>> bias;
  support::MaybeModifier<ab::score::KeyBias<double>> key_bias;
  support::MaybeMask<ab::mask::Causal> causal;
  support::MaybeMask<ab::mask::KeyLengths> lengths;
  std::vector<Index> length_values;
  std::vector<double> sinks, u;
  double scale;

  Policies(const Case& c, Index heads, Index queries, Index dim) {
    sinks.assign(static_cast<std::size_t>(heads), -HUGE_VAL);
    u.assign(static_cast<std::size_t>(queries), 1);
    if (c.has("softcap")) softcap.modifier.emplace(ab::score::Softcap<double>{c["softcap"][0]});
    if (c.has("slopes")) alibi.modifier.emplace(c["slopes"]);
    if (c.has("bias")) bias.modifier.emplace(support::view_of(c["bias"], c["bias_sizes"]));
    if (c.has("key_bias")) key_bias.modifier.emplace(c["key_bias"]);
    if (c.has("causal")) causal.mask.emplace();
    if (c.has("lengths")) {
      for (const double n : c["lengths"]) length_values.push_back(static_cast<Index>(n));
      lengths.mask.emplace(length_values);
    }
    if (c.has("sinks")) sinks = c["sinks"];
    if (c.has("weights")) u = c["weights"];
    scale = c.has("scale") ? c["scale"][0] : 1 / std::sqrt(static_cast<double>(dim));
  }
};

std::vector<double> divided_or_zero(const Case& c, const char* array, Index size) {
  return c.has(array) ? support::divided(c[array]) : std::vector<double>(static_cast<std::size_t>(size), 0.0);
}

}  // namespace

TEST_CASE("gradients are what torch's autograd computes", "[reference][backward]") {
  const auto cases = support::read_golden("backward_golden.csv");
  REQUIRE(cases.size() > 15);
  support::Table table;
  for (const Case& c : cases) {
    const auto s = [&](std::size_t i) { return static_cast<Index>(c["sizes"].at(i)); };
    const Index B = s(0), Hq = s(1), Hkv = s(2), Nq = s(3), Nk = s(4), D = s(5), Dv = s(6);
    const auto q = support::divided(c["q"]), k = support::divided(c["k"]), v = support::divided(c["v"]),
               dout = support::divided(c["dout"]), dlse = divided_or_zero(c, "dlse", B * Hq * Nq),
               dentropy = divided_or_zero(c, "dentropy", B * Hq * Nq),
               dmass = divided_or_zero(c, "dmass", B * Hq * Nk);
    const auto vq = ab::bhsd(q.data(), B, Hq, Nq, D), vk = ab::bhsd(k.data(), B, Hkv, Nk, D),
               vv = ab::bhsd(v.data(), B, Hkv, Nk, Dv), vdout = ab::bhsd(dout.data(), B, Hq, Nq, Dv);
    const Policies p(c, Hq, Nq, D);
    const ab::evidence::LseGradient lse(ab::bhsd(dlse.data(), B, Hq, 1, Nq));
    const ab::evidence::EntropyGradient entropy(ab::bhsd(dentropy.data(), B, Hq, 1, Nq));
    const ab::evidence::MassGradient mass(ab::bhsd(dmass.data(), B, Hq, 1, Nk), ab::QueryWeights::of(p.u));

    Tensor<double> out(support::Layout::bhsd, B, Hq, Nq, Dv);
    ab::Evidence<double> observed;
    ab::attention(vq, vk, vv, out.view(), p.softcap, p.alibi, p.bias, p.key_bias, p.causal, p.lengths,
                  ab::score::Scale<double>{p.scale}, ab::normalize::Sink(p.sinks), ab::observe(observed));

    const bool biased = c.has("bias");
    auto axis = [&](std::size_t i) { return biased ? static_cast<Index>(c["bias_sizes"].at(i)) : Index(1); };
    for (const bool kernel : {false, true}) {
      table.begin(c.name + (kernel ? ", kernel" : ", reference"));
      Tensor<double> dq(support::Layout::bhsd, B, Hq, Nq, D), dk(support::Layout::bhsd, B, Hkv, Nk, D),
          dv(support::Layout::bhsd, B, Hkv, Nk, Dv),
          dbias(support::Layout::bhsd, axis(0), axis(1), axis(2), axis(3));
      std::vector<double> dslopes(static_cast<std::size_t>(Hq)), dsinks(dslopes),
          dkey_bias(static_cast<std::size_t>(Nk));
      double dscale = 7, dsoftcap = 7;
      const auto scale = ab::gradient(ab::score::Scale<double>{p.scale}, dscale);
      const auto softcap = ab::gradient(p.softcap, dsoftcap);
      const auto alibi = ab::gradient(p.alibi, ab::bhsd(dslopes.data(), 1, Hq, 1, 1));
      const auto bias = ab::gradient(p.bias, dbias.view());
      const auto key_bias = ab::gradient(p.key_bias, ab::bhsd(dkey_bias.data(), 1, 1, 1, Nk));
      const auto sinks = ab::gradient(ab::normalize::Sink(p.sinks), dsinks);
      if (kernel)
        ab::attention_backward(vq, vk, vv, out.view(), observed, vdout, dq.view(), dk.view(), dv.view(), scale,
                               softcap, alibi, bias, key_bias, p.causal, p.lengths, sinks, lse, entropy, mass);
      else
        ab::reference::attention_backward(vq, vk, vv, vdout, dq.view(), dk.view(), dv.view(), scale, softcap, alibi,
                                          bias, key_bias, p.causal, p.lengths, sinks, lse, entropy, mass);
      auto compare = [&](const char* array, const std::vector<double>& got) {
        if (!c.has(array)) return;
        table.expect(got.size() == c[array].size(), std::string("size of ") + array);
        auto column = table.column(array);
        for (std::size_t i = 0; i < got.size(); ++i)
          column.compare(got[i], c[array][i], 1e-13 * std::max(1.0, std::fabs(c[array][i])), static_cast<Index>(i));
      };
      compare("dq", dq.memory()), compare("dk", dk.memory()), compare("dv", dv.memory());
      compare("dscale", {dscale}), compare("dsoftcap", {dsoftcap}), compare("dslopes", dslopes);
      compare("dbias", dbias.memory()), compare("dkey_bias", dkey_bias), compare("dsinks", dsinks);
    }
  }
  table.report();
}
