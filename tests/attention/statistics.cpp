// The statistics beside the mass, against the reference: second moments, maxima, squared odds, leave-one-out.

#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"

namespace {

using support::Index;
using support::Layout;

/// One statistic of one case. `loss`: how much of it is lost relative to r of support/check.hpp.
template <class T, class Statistic, class... P>
void check_statistic(support::Table& table, const char* name, Statistic statistic, double loss, const support::Shape& s,
                     const support::Inputs<T>& in, const ab::QueryWeights& weights, const P&... policies) {
  table.begin(std::string(name) + ' ' + s.text() + " weights of kind " +
              std::to_string(static_cast<int>(weights.kind())));
  support::Tensor<double> expected(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  support::Tensor<T> out(Layout::columns, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> truth;
  ab::Evidence<T> evidence, mass_only, threads;
  ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), expected.view(), policies...,
                           ab::observe(truth, weights, statistic));
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies...,
                ab::observe(evidence, weights, statistic));
  const auto errors = support::logit_errors(s, in, {});
  support::compare_output(table, "output", out, expected, s, errors, in.v);
  support::compare_evidence(table, evidence, truth, s, errors, weights);

  const double eps = std::numeric_limits<T>::epsilon();
  const double r = std::expm1(2 * *std::max_element(errors.begin(), errors.end())) + 16 * eps;
  auto column = table.column("statistic");
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      const auto got = evidence.statistic(b, h);
      const auto right = truth.statistic(b, h);
      table.expect(got.size() == right.size(), "length of the statistic");
      for (std::size_t j = 0; j < right.size(); ++j)
        column.compare(static_cast<double>(got[j]), right[j],
                       loss * r * right[j] + 1e3 * static_cast<double>(std::numeric_limits<T>::min()),
                       static_cast<Index>(j));
    }

  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies..., ab::observe(mass_only, weights));
  table.expect(support::same_bits_but_statistic(evidence, mass_only),
               "the rest of the evidence depends on the statistic");
#if defined(_OPENMP)
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies...,
                ab::observe(threads, weights, statistic), support::openmp(3));
  table.expect(support::same_bits(evidence, threads), "threads change its bits");
#endif
}

}  // namespace

TEMPLATE_TEST_CASE("statistics of the probabilities are the reference", "[evidence][statistic]", SCALARS) {
  using T = TestType;
  support::Table table;
  support::Random random(141);
  for (const support::Shape& s : {support::Shape{1, 1, 1, 1, 7, 4, 4},
                                  {2, 4, 2, 49, 100, 8, 7},
                                  {1, 2, 1, 100, 33, 16, 17},
                                  {1, 1, 1, 300, 257, 8, 33},
                                  {1, 2, 2, 17, 130, 3, 1}}) {
    const support::Inputs<T> in(s, random);
    std::vector<double> u;
    for (Index i = 0; i < s.queries; ++i) u.push_back(i % 3 == 0 ? 0 : random.unit());
    for (const auto& weights :
         {ab::QueryWeights::all(), ab::QueryWeights::last(5), ab::QueryWeights::of(u), ab::QueryWeights::none()}) {
      check_statistic(table, "squares", ab::evidence::squares, 2, s, in, weights, ab::mask::Causal{});
      check_statistic(table, "maximum", ab::evidence::maximum, 1, s, in, weights, ab::mask::Causal{});
      // p / (1 - p) and |v - o|^2 each lose where p is near 1: then v is nearly o.
      check_statistic(table, "squared odds", ab::evidence::squared_odds, 100, s, in, weights);
      check_statistic(table, "leave one out", ab::evidence::leave_one_out, 100, s, in, weights);
    }
    // Long queries and keys: most queries have a key with p >= 1/2.
    const support::Inputs<T> peaked(s, random, support::Family::uniform, 3);
    check_statistic(table, "leave one out, peaked", ab::evidence::leave_one_out, 1e4, s, peaked,
                    ab::QueryWeights::of(u));
  }
  table.report();
}

TEMPLATE_TEST_CASE("leave-one-out is the change of the output", "[evidence][statistic]", SCALARS) {
  using T = TestType;
  support::Random random(142);
  const support::Shape s{1, 1, 1, 20, 12, 4, 6}, less{1, 1, 1, 20, 11, 4, 6};
  const support::Inputs<T> in(s, random), without(less, random);
  ab::Evidence<T> evidence;
  support::Tensor<T> out(Layout::bhsd, 1, 1, 20, 6);
  support::Tensor<double> whole(Layout::bhsd, 1, 1, 20, 6), part(Layout::bhsd, 1, 1, 20, 6);
  ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(),
                ab::observe(evidence, ab::QueryWeights::all(), ab::evidence::leave_one_out));
  ab::reference::attention(in.q.view(), in.k.view(), in.v.view(), whole.view());
  for (Index dropped = 0; dropped < 12; ++dropped) {
    auto skip = [&](const support::Tensor<T>& x) {
      return [&](Index b, Index h, Index j, Index c) { return x(b, h, j < dropped ? j : j + 1, c); };
    };
    without.k.fill(skip(in.k));
    without.v.fill(skip(in.v));
    ab::reference::attention(in.q.view(), without.k.view(), without.v.view(), part.view());
    double change = 0;
    for (Index i = 0; i < 20; ++i)
      for (Index c = 0; c < 6; ++c)
        change += (whole(0, 0, i, c) - part(0, 0, i, c)) * (whole(0, 0, i, c) - part(0, 0, i, c));
    CHECK(static_cast<double>(evidence.statistic(0, 0)[static_cast<std::size_t>(dropped)]) ==
          Approx(change).epsilon(1e-4));
  }
}

TEMPLATE_TEST_CASE("what is masked reaches no statistic", "[evidence][statistic]", SCALARS) {
  using T = TestType;
  support::Random random(143);
  const support::Shape s{1, 1, 1, 60, 60, 4, 4};
  const support::Inputs<T> in(s, random);
  support::Tensor<T> out(Layout::bhsd, 1, 1, 60, 4);
  auto run = [&](auto statistic, ab::Evidence<T>& evidence) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Causal{}, ab::mask::KeyLengths{50},
                  ab::observe(evidence, ab::QueryWeights::last(30), statistic));
  };
  auto check = [&](auto statistic) {
    const T key = in.k(0, 0, 55, 0), value = in.v(0, 0, 55, 0), seen = in.v(0, 0, 40, 0), query = in.q(0, 0, 45, 0);
    ab::Evidence<T> clean, masked, touched;
    run(statistic, clean);
    in.k(0, 0, 55, 0) = in.v(0, 0, 55, 0) = std::numeric_limits<T>::quiet_NaN();
    run(statistic, masked);
    CHECK(support::same_bits(clean.statistic(0, 0), masked.statistic(0, 0)));
    in.k(0, 0, 55, 0) = key, in.v(0, 0, 55, 0) = value;

    // A query that is no number touches the keys up to its own.
    in.q(0, 0, 45, 0) = std::numeric_limits<T>::quiet_NaN();
    run(statistic, touched);
    for (std::size_t j = 0; j < 60; ++j) {
      INFO("key " << j);
      if (j <= 45)
        CHECK(std::isnan(touched.statistic(0, 0)[j]));
      else
        CHECK(touched.statistic(0, 0)[j] == clean.statistic(0, 0)[j]);
    }
    in.q(0, 0, 45, 0) = query, in.v(0, 0, 40, 0) = seen;
  };
  check(ab::evidence::squares);
  check(ab::evidence::maximum);
  check(ab::evidence::squared_odds);
  check(ab::evidence::leave_one_out);
}

TEMPLATE_TEST_CASE("leave-one-out of values that are infinite or as large as they can be", "[evidence][statistic]",
                   SCALARS) {
  using T = TestType;
  support::Random random(144);
  const support::Shape s{1, 1, 1, 40, 70, 4, 5};
  const support::Inputs<T> in(s, random);
  support::Tensor<T> out(Layout::bhsd, 1, 1, 40, 5);
  const T huge = std::sqrt(std::numeric_limits<T>::max());  // its square and its fourth power are not finite
  for (const T value : {std::numeric_limits<T>::infinity(), huge * T(2)}) {
    ab::Evidence<T> clean, touched;
    auto run = [&](ab::Evidence<T>& evidence) {
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Causal{ab::mask::Align::top_left},
                    ab::observe(evidence, ab::QueryWeights::last(20), ab::evidence::leave_one_out));
    };
    run(clean);
    const T before = in.v(0, 0, 35, 2);
    in.v(0, 0, 35, 2) = value;  // seen by the queries from 35 on
    run(touched);
    in.v(0, 0, 35, 2) = before;
    for (std::size_t j = 0; j < 70; ++j) {
      INFO("value " << value << " key " << j);
      const T got = touched.statistic(0, 0)[j];
      if (j == 35 || (j < 40 && std::isinf(value)))  // an infinite value makes the outputs so, from which all differ
        CHECK_FALSE(std::isfinite(got));
      else if (j < 40)
        CHECK(got > T(0));
      else
        CHECK(got == T(0));  // nobody sees it
    }
  }
}

TEMPLATE_TEST_CASE("an output that does not count reaches no leave-one-out", "[evidence][statistic]", SCALARS) {
  using T = TestType;
  support::Random random(145);
  const support::Inputs<T> in({1, 1, 1, 60, 60, 4, 4}, random);
  support::Tensor<T> out(Layout::bhsd, 1, 1, 60, 4);
  auto run = [&](ab::Evidence<T>& evidence) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Window{5, 0},
                  ab::observe(evidence, ab::QueryWeights::last(30), ab::evidence::leave_one_out));
  };
  ab::Evidence<T> clean, touched;
  run(clean);
  in.v(0, 0, 10, 0) = std::numeric_limits<T>::infinity();  // seen by queries 10 to 15, which do not count
  run(touched);
  CHECK(std::isinf(out(0, 0, 12, 0)));
  CHECK(support::same_bits(clean.statistic(0, 0), touched.statistic(0, 0)));
}

TEMPLATE_TEST_CASE("the largest odds are finite", "[evidence][statistic]", SCALARS) {
  // One key takes everything: p is 1, its odds are capped at 1 / epsilon.
  using T = TestType;
  support::Tensor<T> q(Layout::bhsd, 1, 1, 2, 1), k(Layout::bhsd, 1, 1, 3, 1), v(Layout::bhsd, 1, 1, 3, 2),
      out(Layout::bhsd, 1, 1, 2, 2);
  q.fill([](Index, Index, Index, Index) { return 100; });
  k.fill([](Index, Index, Index j, Index) { return j == 1 ? 100 : -100; });
  v.fill([](Index, Index, Index j, Index c) { return j * j + c; });
  ab::Evidence<T> evidence;
  const T most = 1 / std::numeric_limits<T>::epsilon();
  ab::attention(q.view(), k.view(), v.view(), out.view(),
                ab::observe(evidence, ab::QueryWeights::all(), ab::evidence::squared_odds));
  CHECK(evidence.statistic(0, 0)[1] == 2 * most * most);
  CHECK(evidence.statistic(0, 0)[0] == T(0));
  ab::attention(q.view(), k.view(), v.view(), out.view(),
                ab::observe(evidence, ab::QueryWeights::all(), ab::evidence::leave_one_out));
  CHECK(evidence.statistic(0, 0)[1] == Approx(4));  // the mean of the others is 1 off, for 2 queries and features
  CHECK(evidence.statistic(0, 0)[0] == T(0));
  CHECK(evidence.statistic(0, 0)[2] == T(0));
  CHECK(evidence.statistic_kind() == ab::evidence::Kind::leave_one_out);
}
