// The reference against torch: golden/attention_golden.csv, whose generator lies beside it.

#include "support/golden.hpp"
#include "support/policies.hpp"

using support::Case;
using support::divided;
using support::Index;
using support::view_of;

TEST_CASE("the reference is what torch computes", "[reference]") {
  const auto cases = support::read_golden("attention_golden.csv");
  REQUIRE(cases.size() > 30);
  support::Table table;
  for (const Case& c : cases) {
    const auto& sizes = c["sizes"];
    const auto s = [&](std::size_t i) { return static_cast<Index>(sizes.at(i)); };
    const Index B = s(0), Hq = s(1), Hkv = s(2), Nq = s(3), Nk = s(4), D = s(5), Dv = s(6);
    const auto q = divided(c["q"]), k = divided(c["k"]), v = divided(c["v"]);

    support::MaybeModifier<ab::score::Softcap<double>> softcap;
    support::MaybeModifier<ab::score::Alibi<double>> alibi;
    support::MaybeModifier<ab::score::Bias<double>> bias;
    support::MaybeModifier<ab::score::KeyBias<double>> key_bias;
    support::MaybeMask<ab::mask::Causal> causal;
    support::MaybeMask<ab::mask::Window> window;
    support::MaybeMask<ab::mask::KeyLengths> lengths;
    support::MaybeMask<ab::mask::Boolean> boolean;
    support::MaybeMask<ab::mask::Blocks> blocks;
    std::vector<Index> length_values;
    std::vector<unsigned char> booleans, block_booleans;
    std::vector<double> sinks(static_cast<std::size_t>(Hq), -HUGE_VAL);
    if (c.has("softcap")) softcap.modifier.emplace(ab::score::Softcap<double>{c["softcap"][0]});
    if (c.has("slopes")) alibi.modifier.emplace(c["slopes"]);
    if (c.has("bias")) bias.modifier.emplace(view_of(c["bias"], c["bias_sizes"]));
    if (c.has("key_bias")) key_bias.modifier.emplace(c["key_bias"]);
    if (c.has("causal_top_left")) causal.mask.emplace(ab::mask::Causal{ab::mask::Align::top_left});
    if (c.has("causal_bottom_right")) causal.mask.emplace(ab::mask::Causal{ab::mask::Align::bottom_right});
    if (c.has("window"))
      window.mask.emplace(ab::mask::Window{static_cast<Index>(c["window"][0]), static_cast<Index>(c["window"][1])});
    if (c.has("lengths")) {
      for (const double n : c["lengths"]) length_values.push_back(static_cast<Index>(n));
      lengths.mask.emplace(length_values);
    }
    auto bytes = [](const std::vector<double>& values) {
      std::vector<unsigned char> result;
      for (const double x : values) result.push_back(x != 0);
      return result;
    };
    auto axis = [&](const char* array, std::size_t i) { return static_cast<Index>(c[array].at(i)); };
    if (c.has("boolean")) {
      booleans = bytes(c["boolean"]);
      boolean.mask.emplace(ab::bhsd(booleans.data(), axis("boolean_sizes", 0), axis("boolean_sizes", 1),
                                    axis("boolean_sizes", 2), axis("boolean_sizes", 3)));
    }
    if (c.has("blocks")) {
      block_booleans = bytes(c["blocks"]);
      blocks.mask.emplace(ab::bhsd(block_booleans.data(), axis("block_sizes", 2), axis("block_sizes", 3),
                                   axis("block_sizes", 4), axis("block_sizes", 5)),
                          axis("block_sizes", 0), axis("block_sizes", 1));
    }
    if (c.has("sinks")) sinks = c["sinks"];
    const ab::score::Scale<double> scale{c.has("scale") ? c["scale"][0] : 1 / std::sqrt(static_cast<double>(D))};
    const auto weights = c.has("weights") ? ab::QueryWeights::of(c["weights"]) : ab::QueryWeights::all();

    support::Tensor<double> out(support::Layout::bhsd, B, Hq, Nq, Dv);
    ab::Evidence<double> evidence, alone;
    const auto vq = ab::bhsd(q.data(), B, Hq, Nq, D), vk = ab::bhsd(k.data(), B, Hkv, Nk, D),
               vv = ab::bhsd(v.data(), B, Hkv, Nk, Dv);
    ab::reference::attention(vq, vk, vv, out.view(), softcap, alibi, bias, key_bias, causal, window, lengths, boolean,
                             blocks, scale, ab::normalize::Sink(sinks), ab::observe(evidence, weights));
    ab::reference::attention_evidence(vq, vk, softcap, alibi, bias, key_bias, causal, window, lengths, boolean, blocks,
                                      scale, ab::normalize::Sink(sinks), ab::observe(alone, weights));

    table.begin(c.name);
    table.expect(support::same_bits(evidence, alone), "attention_evidence differs from the evidence of attention");
    auto compare = [&](const char* array, const std::vector<double>& got) {
      const auto& expected = c[array];
      table.expect(got.size() == expected.size(), std::string("size of ") + array);
      auto column = table.column(array);
      for (std::size_t i = 0; i < expected.size(); ++i)
        column.compare(got[i], expected[i], 4e-14 * std::max(1.0, std::fabs(expected[i])), static_cast<Index>(i));
    };
    std::vector<double> mass, exposure, lse, entropy, sink_mass, empty;
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < Hq; ++h) {
        auto append = [](std::vector<double>& to, std::span<const double> from) {
          to.insert(to.end(), from.begin(), from.end());
        };
        append(mass, evidence.mass(b, h)), append(exposure, evidence.exposure(b, h));
        append(lse, evidence.lse(b, h)), append(entropy, evidence.entropy(b, h));
        sink_mass.push_back(evidence.sink_mass(b, h));
        empty.push_back(static_cast<double>(evidence.empty_rows(b, h)));
      }
    compare("out", out.memory());
    compare("mass", mass);
    compare("exposure", exposure);
    compare("lse", lse);
    compare("entropy", entropy);
    compare("sink_mass", sink_mass);
    compare("empty", empty);
  }
  table.report();
}
