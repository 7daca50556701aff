// What the evidence promises by itself: conservation of mass, exact exposure, the kinds of query weights.

#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;

template <class T>
double sum(std::span<const T> values) {
  double total = 0;
  for (const T x : values) total += static_cast<double>(x);
  return total;
}

}  // namespace

TEMPLATE_TEST_CASE("mass is conserved", "[evidence]", float, double) {
  using T = TestType;
  const double eps = std::numeric_limits<T>::epsilon();
  support::Random random(21);
  support::Table table;
  // Causal with more queries than keys leaves rows empty.
  for (const auto& [queries, keys] : {std::pair<Index, Index>{1, 1}, {7, 100}, {100, 60}, {257, 300}, {500, 129}}) {
    const support::Shape s{2, 4, 2, queries, keys, 16, 4};
    const support::Inputs<T> in(s, random, support::Family::uniform, 3);
    support::Tensor<T> out(Layout::bhsd, 2, 4, queries, 4);
    std::vector<T> u;
    for (Index i = 0; i < queries; ++i) u.push_back(static_cast<T>(i % 5 == 0 ? 0 : random.unit() * 3));
    const std::vector<T> logits{T(0.5), T(-1), -std::numeric_limits<T>::infinity(), T(4)};
    for (const auto& weights : {ab::QueryWeights::all(), ab::QueryWeights::last(9), ab::QueryWeights::of(u),
                                ab::QueryWeights::range(0, 1 + queries / 2), ab::QueryWeights::decayed(0.9)}) {
      table.begin(s.text() + " weights of kind " + std::to_string(static_cast<int>(weights.kind())));
      ab::Evidence<T> evidence;
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Causal{}, ab::normalize::Sink(logits),
                    ab::observe(evidence, weights));
      for (Index b = 0; b < 2; ++b)
        for (Index h = 0; h < 4; ++h) {
          double seeing = 0, all = 0;
          for (Index i = 0; i < queries; ++i) {
            const double weight = weights.template weight<double>(i, queries);
            all += weight;
            if (i >= queries - keys) seeing += weight;
          }
          // Over all rows: an empty one gives everything to the sink, if there is one.
          const double sink = static_cast<double>(evidence.sink_mass(b, h));
          const bool has_sink = std::isfinite(logits[static_cast<std::size_t>(h)]);
          table.column("mass and sink mass").compare(sum(evidence.mass(b, h)) + sink, has_sink ? all : seeing,
                                                     64 * eps * all, h);
          table.column("empty rows").equal(static_cast<double>(evidence.empty_rows(b, h)),
                                           static_cast<double>(std::max(Index(0), queries - keys)), h);
          if (!has_sink) table.column("no sink").equal(sink, 0, h);
          auto exposure = table.column("exposure");
          for (Index j = 0; j < keys; ++j) {
            double seen = 0;
            for (Index i = 0; i < queries; ++i)
              if (j <= i + keys - queries) seen += weights.template weight<double>(i, queries);
            exposure.compare(static_cast<double>(evidence.exposure(b, h)[static_cast<std::size_t>(j)]), seen,
                             weights.kind() < ab::QueryWeights::Kind::decayed ? 0 : 64 * eps * seen, j);
          }
        }
    }
  }
  table.report();
}

TEMPLATE_TEST_CASE("a share of the sink and of the keys add up in every row", "[evidence]", float, double) {
  using T = TestType;
  support::Random random(22);
  const support::Shape s{1, 1, 1, 40, 70, 8, 3};
  const support::Inputs<T> in(s, random);
  const std::vector<T> logits{T(1)};
  for (Index i = 0; i < 40; ++i) {
    std::vector<T> one(40, T(0));
    one[static_cast<std::size_t>(i)] = T(1);
    ab::Evidence<T> evidence;
    ab::attention_evidence(in.q.view(), in.k.view(), ab::normalize::Sink(logits),
                           ab::observe(evidence, ab::QueryWeights::of(one)));
    const double p_sink = static_cast<double>(evidence.sink_mass(0, 0));
    CHECK(sum(evidence.mass(0, 0)) + p_sink == Approx(1));
    CHECK(p_sink == Approx(std::exp(1 - static_cast<double>(evidence.lse(0, 0)[static_cast<std::size_t>(i)]))));
  }
}

TEMPLATE_TEST_CASE("query weights", "[evidence]", float, double) {
  using T = TestType;
  support::Random random(23);
  const support::Shape s{1, 2, 1, 100, 150, 8, 3};
  const support::Inputs<T> in(s, random);
  ab::Evidence<T> all, other;
  auto observe = [&](ab::Evidence<T>& target, const ab::QueryWeights& weights) {
    ab::attention_evidence(in.q.view(), in.k.view(), ab::observe(target, weights));
  };
  observe(all, ab::QueryWeights::all());

  SECTION("last of at least all of them is all") {
    for (const Index count : {Index(100), Index(1000), std::numeric_limits<Index>::max()}) {
      observe(other, ab::QueryWeights::last(count));
      CHECK(support::same_bits(all, other));
    }
  }
  SECTION("weights of one are all, whatever their type") {
    const std::vector<float> floats(100, 1.0f);
    const std::vector<double> doubles(100, 1.0);
    observe(other, ab::QueryWeights::of(floats));
    CHECK(support::same_bits(all, other));
    observe(other, ab::QueryWeights::of(doubles));
    CHECK(support::same_bits(all, other));
  }
  SECTION("a range, one query and a decay are the weights that they name") {
    std::vector<double> given(100, 0.0);
    std::fill(given.begin() + 20, given.begin() + 90, 1.0);
    ab::Evidence<T> same;
    observe(other, ab::QueryWeights::range(20, 90));
    observe(same, ab::QueryWeights::of(given));
    CHECK(support::same_bits(other, same));
    observe(other, ab::QueryWeights::range(60, 100));
    observe(same, ab::QueryWeights::last(40));
    CHECK(support::same_bits(other, same));
    std::fill(given.begin(), given.end(), 0.0);
    given[7] = 1;
    observe(other, ab::QueryWeights::only(7));
    observe(same, ab::QueryWeights::of(given));
    CHECK(support::same_bits(other, same));
    for (std::size_t i = 0; i < 100; ++i) given[i] = std::pow(0.75, 99.0 - static_cast<double>(i));
    observe(other, ab::QueryWeights::decayed(0.75));
    observe(same, ab::QueryWeights::of(given));
    CHECK(support::same_bits(other, same));
    observe(other, ab::QueryWeights::decayed(1));
    CHECK(support::same_bits(other, all));
  }
  SECTION("last of none counts nothing, but has masses") {
    observe(other, ab::QueryWeights::last(0));
    CHECK(other.has_mass());
    CHECK(sum(other.mass(0, 1)) == 0);
    CHECK(sum(other.exposure(0, 1)) == 0);
    CHECK(other.lse(0, 0)[7] == Approx(static_cast<double>(all.lse(0, 0)[7])));
  }
  SECTION("none has no masses") {
    observe(other, ab::QueryWeights::none());
    CHECK_FALSE(other.has_mass());
    CHECK(other.mass(0, 0).empty());
    CHECK(other.exposure(0, 1).empty());
    CHECK(other.sink_mass(0, 0) == T(0));
    CHECK(other.keys() == 150);
    REQUIRE(other.lse(0, 1).size() == 100);
    for (std::size_t i = 0; i < 100; ++i) {
      CHECK(other.lse(0, 1)[i] == Approx(static_cast<double>(all.lse(0, 1)[i])));
      CHECK(other.entropy(0, 1)[i] == Approx(static_cast<double>(all.entropy(0, 1)[i])));
    }
  }
  SECTION("bad weights") {
    using Catch::Matchers::ContainsSubstring;
    CHECK_THROWS_AS(ab::QueryWeights::last(-1), ab::InputError);
    CHECK_THROWS_AS(ab::QueryWeights::range(-1, 4), ab::InputError);
    CHECK_THROWS_AS(ab::QueryWeights::range(4, 4), ab::InputError);
    CHECK_THROWS_AS(ab::QueryWeights::only(-1), ab::InputError);
    for (const double bad : {0.0, -0.5, 1.5, std::nan("")})
      CHECK_THROWS_WITH(ab::QueryWeights::decayed(bad), ContainsSubstring("(0, 1]"));
    CHECK_THROWS_AS(observe(other, ab::QueryWeights::only(100)), ab::ShapeError);
    CHECK_THROWS_WITH(observe(other, ab::QueryWeights::range(3, 101)), ContainsSubstring("q.length = 100"));
    CHECK(other.batch() == 0);  // nothing was written
    for (const double bad : {-1.0, -1e-300, std::nan(""), HUGE_VAL}) {
      const std::vector<double> weights{1, 2, bad};
      CHECK_THROWS_WITH(ab::QueryWeights::of(weights), ContainsSubstring("weight 2"));
      CHECK_THROWS_AS(ab::QueryWeights::of(weights), ab::InputError);
    }
  }
}

TEST_CASE("evidence is overwritten and speaks of the last call", "[evidence]") {
  support::Random random(24);
  ab::Evidence<float> evidence;
  CHECK(evidence.batch() == 0);
  CHECK_THROWS_AS(evidence.mass(0, 0), ab::ShapeError);
  for (const support::Shape& s :
       {support::Shape{2, 2, 1, 50, 60, 4, 4}, {1, 1, 1, 3, 5, 4, 4}, {1, 4, 4, 90, 10, 4, 4}}) {
    const support::Inputs<float> in(s, random);
    ab::Evidence<float> fresh;
    ab::attention_evidence(in.q.view(), in.k.view(), ab::observe(evidence));
    ab::attention_evidence(in.q.view(), in.k.view(), ab::observe(evidence));
    ab::attention_evidence(in.q.view(), in.k.view(), ab::observe(fresh));
    CHECK(support::same_bits(evidence, fresh));
    CHECK(evidence.batch() == s.batch);
    CHECK(evidence.heads() == s.heads);
    CHECK(evidence.queries() == s.queries);
    CHECK(evidence.keys() == s.keys);
    CHECK_THROWS_AS(evidence.mass(s.batch, 0), ab::ShapeError);
    CHECK_THROWS_AS(evidence.lse(0, s.heads), ab::ShapeError);
    CHECK_THROWS_AS(evidence.sink_mass(-1, 0), ab::ShapeError);
  }
}
