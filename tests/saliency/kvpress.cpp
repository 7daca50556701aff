// What is kept, key by key, against kvpress 0.5.5 (golden/kvpress.txt, whose generator lies beside it), and where
// kvpress differs from the papers.
#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

#include "attention_balancer/attention.hpp"
#include "saliency/compositions.hpp"
#include "support/catch.hpp"
#include "support/kernels.hpp"

namespace {

namespace ab = attention_balancer;
namespace saliency = ab::saliency;
using ab::Index;
using composition::Setting;
using Kept = std::vector<Index>;

constexpr Index query_heads = 4, kv_heads = 2, keys = 96, dim = 8, window = 8, sinks = 4, future = 32, layers = 4;

struct Golden {
  std::map<std::string, std::vector<double>> tensors;
  std::map<std::string, Kept> kept;  // by "press ratio row"

  Golden() {
    const std::string path = std::string(ATTENTION_BALANCER_TEST_DATA) + "/kvpress.txt";
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot read " + path);
    for (std::string line; std::getline(file, line);) {
      const auto colon = line.find(" : ");
      if (line.empty() || line[0] == '#' || colon == std::string::npos) continue;
      std::istringstream name(line.substr(0, colon)), numbers(line.substr(colon + 3));
      std::string kind, first;
      name >> kind >> first;
      if (kind == "tensor") {
        for (double x; numbers >> x;) tensors[first].push_back(x);
      } else {
        Kept& of_case = kept[line.substr(5, colon - 5)];
        for (Index j; numbers >> j;) of_case.push_back(j);
      }
    }
  }
};

const Golden& golden() {
  static const Golden data;
  return data;
}

template <class T>
struct Layer {
  std::vector<T> numbers[4];
  ab::TensorView<const T> q, k, v, wo;

  Layer() {
    int i = 0;
    for (const char* name : {"q", "k", "v", "wo"}) {
      for (const double x : golden().tensors.at(name)) numbers[i].push_back(static_cast<T>(x));
      ++i;
    }
    q = ab::bhsd<const T>(numbers[0].data(), 1, query_heads, keys, dim);
    k = ab::bhsd<const T>(numbers[1].data(), 1, kv_heads, keys, dim);
    v = ab::bhsd<const T>(numbers[2].data(), 1, kv_heads, keys, dim);
    constexpr Index outputs = query_heads * dim;  // a Linear of PyTorch
    wo = {numbers[3].data(), 1, query_heads, dim, outputs, 0, dim, 1, outputs};
  }

  template <class Statistic = ab::evidence::Statistic<ab::evidence::Kind::mass>>
  ab::Evidence<T> observed(ab::QueryWeights weights, Statistic statistic = {}) const {
    ab::Evidence<T> evidence;
    ab::attention_evidence(q, k, ab::mask::Causal{}, ab::observe(evidence, weights, statistic));
    return evidence;
  }
};

/// The press kept what the selections, one per KV head, keep.
void check(const char* press, const char* ratio, const composition::Selections& ours) {
  for (std::size_t r = 0; r < ours.size(); ++r) {
    const std::string name = std::string(press) + ' ' + ratio + ' ' + std::to_string(r);
    INFO(name);
    REQUIRE(golden().kept.count(name) == 1);
    CHECK(Kept(ours[r].kept().begin(), ours[r].kept().end()) == golden().kept.at(name));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("the keys that kvpress keeps", "[saliency][golden]", SCALARS) {
  using T = TestType;
  const Layer<T> layer;
  const auto last = layer.observed(ab::QueryWeights::last(1)),
             recent = layer.observed(ab::QueryWeights::last(window)), all = layer.observed(ab::QueryWeights::all());
  for (const auto& [ratio, budget] : {std::pair<const char*, Index>{"0.5", 48}, {"0.75", 24}}) {
    const Setting s{keys, budget, kv_heads, window};
    const auto both = [](const auto& selection) { return composition::Selections{selection, selection}; };
    check("snapkv", ratio, composition::snap_kv(recent, s));
    check("adakv", ratio, composition::ada_kv(recent, s));
    check("knorm", ratio, composition::knorm(layer.k, s));
    check("keydiff", ratio, composition::key_diff(layer.k, s));
    check("streaming_llm", ratio, both(composition::streaming_llm(s)));

    // ObservedAttention is H2O normalised by the lifetime, without recent keys.
    saliency::Accumulated<T> state(query_heads);
    state.add(all);
    check("observed", ratio, composition::h2o_per_exposure(state, {keys, budget, kv_heads, 0}));

    saliency::QueryStatistics queries(layer.q, sinks);
    queries.rotate(saliency::average_rotation(dim, keys, future));
    check("expected_attention", ratio, composition::expected_attention(queries, layer.k, layer.v, s));

    const auto scores = saliency::observation_window(recent, {.length = window}, ab::KvHeads{kv_heads});
    check("criticalkv", ratio, composition::critical_kv(scores, saliency::projected_norms(layer.v, layer.wo), s));

    const auto squares = layer.observed(ab::QueryWeights::last(window), ab::evidence::squares);
    check("cake", ratio, composition::cake(squares, 200.0 * window / (window - 1), s));

    // TOVA is what the paper says: the last key competes. kvpress always keeps it.
    const auto tova = composition::tova(last, s);
    check("tova", ratio,
          both(ab::allocate::top_k(saliency::mass(last), budget,
                                   {.pins = ab::allocate::sinks_and_recent(keys, 0, 1)})));
    CHECK(tova.size() == budget);
  }
}

TEST_CASE("kvpress rounds PyramidKV layer by layer, ours adds up", "[saliency][golden]") {
  const Layer<float> layer;
  const auto recent = layer.observed(ab::QueryWeights::last(window));
  for (const auto& [ratio, budget] : {std::pair<const char*, Index>{"0.5", 48}, {"0.75", 24}}) {
    // With the budgets that kvpress gave the layers, the same keys.
    for (Index l = 0; l < layers; ++l) {
      const auto& kept = golden().kept.at("pyramidkv " + std::string(ratio) + ' ' + std::to_string(l));
      const auto ours = composition::snap_kv(recent, {keys, std::ssize(kept), kv_heads, window});
      CHECK(Kept(ours[0].kept().begin(), ours[0].kept().end()) == kept);
    }
    // With ours, as many as the paper says and no other number: the window on top of a line from max to min, and
    // the budget B on average exactly.
    Index total = 0, before = keys;
    for (Index l = 0; l < layers; ++l) {
      const auto ours = composition::pyramid_kv(recent, l, layers, {keys, budget, kv_heads, window});
      CHECK(ours[0].size() <= before);
      before = ours[0].size();
      total += before;
    }
    CHECK(total == layers * budget);
  }
}
