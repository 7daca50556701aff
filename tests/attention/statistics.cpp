// The statistics beside the mass: against the reference, and leave-one-out against what it means.

#include "support/catch.hpp"
#include "support/check.hpp"

namespace {

namespace evidence = ab::evidence;
using support::Index;
using support::Layout;

template <class T, evidence::Kind K, class... P>
void check_statistic(support::Table& table, const char* name, const support::Shape& s, double factor, double tolerance,
                     evidence::Statistic<K> statistic, const ab::QueryWeights& weights, P&&... policies) {
  table.begin(std::string(name) + ' ' + s.text());
  support::Random random(31);
  const support::Inputs<T> in(s, random, support::Family::uniform, factor);
  const support::Tensor<T> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  const support::Tensor<double> exact(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<T> got, plain;
  ab::Evidence<double> expected;
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies..., ab::observe(got, weights, statistic));
  ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), exact.view(), policies...,
                           ab::observe(expected, weights, statistic));
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies..., ab::observe(plain, weights));
  table.expect(support::same_bits(got, plain), "the rest of the evidence depends on the statistic");
  auto column = table.column(name);
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index j = 0; j < s.keys; ++j) {
        const auto at = static_cast<std::size_t>(j);
        const double x = expected.statistic(b, h)[at];
        column.compare(static_cast<double>(got.statistic(b, h)[at]), x, tolerance * (x + 1e-6),
                       (b * s.heads + h) * s.keys + j);
      }
}

}  // namespace

TEMPLATE_TEST_CASE("statistics agree with the reference", "[evidence]", float, double) {
  using T = TestType;
  const double eps = std::numeric_limits<T>::epsilon();
  support::Table table;
  const std::vector<T> logits{T(0.5), T(-1), T(2), T(4)};
  const std::vector<std::pair<support::Shape, double>> cases{
      {{2, 4, 2, 1, 1, 3, 2}, 2},      {{1, 4, 4, 7, 100, 16, 33}, 3},   {{1, 4, 1, 100, 60, 17, 16}, 3},
      {{1, 4, 2, 257, 300, 16, 7}, 3}, {{2, 4, 2, 130, 131, 32, 64}, 6},
  };
  for (const auto& [s, factor] : cases) {
    std::vector<T> u;
    for (Index i = 0; i < s.queries; ++i) u.push_back(T(i % 5 == 0 ? 0.0 : 0.25 * static_cast<double>(i % 7)));
    for (const auto& weights : {ab::QueryWeights::all(), ab::QueryWeights::last(9), ab::QueryWeights::of(u)}) {
      check_statistic<T>(table, "squares", s, factor, 2000 * eps, evidence::squares, weights, ab::mask::Causal{});
      check_statistic<T>(table, "maximum", s, factor, 2000 * eps, evidence::maximum, weights, ab::mask::Causal{},
                         ab::normalize::Sink(logits));
      // An output is off by a few eps; (1 - p) below 1 magnifies that.
      check_statistic<T>(table, "leave one out", s, factor, 2e4 * eps, evidence::leave_one_out, weights,
                         ab::mask::Window{40, 3});
    }
  }
}

TEST_CASE("leave-one-out is the squared change of the output", "[evidence]") {
  const support::Shape s{1, 2, 1, 20, 30, 8, 5};
  support::Random random(32);
  const support::Inputs<double> in(s, random, support::Family::uniform, 2);
  auto attend = [&](Index dropped) {
    support::Tensor<double> out(Layout::bhsd, 1, 2, 20, 5);
    std::vector<double> bias(30, 0.0);
    if (dropped >= 0) bias[static_cast<std::size_t>(dropped)] = -std::numeric_limits<double>::infinity();
    ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), ab::score::KeyBias(bias));
    return out.memory();
  };
  support::Tensor<double> out(Layout::bhsd, 1, 2, 20, 5);
  ab::Evidence<double> observed;
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(),
                ab::observe(observed, ab::QueryWeights::all(), evidence::leave_one_out));
  const auto whole = attend(-1);
  for (Index j = 0; j < 30; ++j) {
    const auto without = attend(j);
    for (std::size_t h = 0; h < 2; ++h) {
      double change = 0;
      for (std::size_t e = h * 100; e < (h + 1) * 100; ++e) change += (whole[e] - without[e]) * (whole[e] - without[e]);
      const double got = observed.statistic(0, static_cast<Index>(h))[static_cast<std::size_t>(j)];
      CHECK(std::abs(got - change) <= 1e-9 * (change + 1e-6));
    }
  }
}
