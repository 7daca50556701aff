// Leave-one-out of keys that take nearly all of a query, where 1 - p and v - o have lost their bits: the kernels
// against the reference, which adds up the others.

#include "support/check.hpp"
#include "support/options.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

constexpr auto leave_one_out = ab::evidence::leave_one_out;

/// Queries that each have one key, of two, whose score is above all others by 0.5 to 300: whose share is from a half
/// to all but 1e-130.
template <class T>
support::Inputs<T> with_dominant_keys(const support::Shape& s, support::Random& random, Layout k = Layout::bhsd,
                                      Layout v = Layout::bhsd) {
  support::Inputs<T> in(s, random, support::Family::uniform, 1, Layout::bhsd, k, v);
  constexpr double gaps[] = {0.5, 20, 5.4, 5.6, 300, 8, 40, 12, 60, 200, 16.5, 80, 88, 30, 100, 150};
  const double to_score = std::sqrt(static_cast<double>(s.dim));
  for (Index b = 0; b < s.batch; ++b) {
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i)
        for (Index c = 0; c < 2; ++c)
          in.q(b, h, i, c) =
              static_cast<T>((i + h) % 2 == c ? gaps[static_cast<std::size_t>(3 * h + i) % 16] * to_score : 0);
    for (Index h = 0; h < s.kv_heads; ++h)
      for (Index j = 0; j < s.keys; ++j)
        for (Index c = 0; c < 2; ++c)
          in.k(b, h, j, c) = static_cast<T>(j == (c == 0 ? s.keys / 2 : s.keys - 1) ? 1 : 0);
  }
  return in;
}

/// The statistic of the keys, relative to itself and to the values.
template <class T, class... P>
void check_left_out(support::Table& table, const char* name, const support::Shape& s, const support::Inputs<T>& in,
                    const ab::QueryWeights& weights, const P&... policies) {
  table.begin(std::string(name) + ' ' + s.text());
  Tensor<double> expected(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  Tensor<T> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> truth;
  ab::Evidence<T> evidence;
  const auto q = in.q.input(), k = in.k.input(), v = in.v.input();
  ab::reference::attention(q, k, v, expected.view(), policies..., ab::observe(truth, weights, leave_one_out));
  ab::attention(q, k, v, out.view(), policies..., ab::observe(evidence, weights, leave_one_out));
  double total = 0;
  for (Index i = 0; i < s.queries; ++i) total += weights.template weight<double>(i, s.queries);
  const double eps = std::numeric_limits<T>::epsilon();
  auto column = table.column("leave one out");
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index j = 0; j < s.keys; ++j) {
        const auto at = static_cast<std::size_t>(j);
        const double right = truth.statistic(b, h)[at];
        column.compare(static_cast<double>(evidence.statistic(b, h)[at]), right,
                       300 * eps * (right + 1e-3 * total * static_cast<double>(s.value_dim)), j);
      }
}

}  // namespace

TEMPLATE_TEST_CASE("leave-one-out of a key that takes nearly all is the reference", "[evidence][statistic]",
                   SCALARS) {
  using T = TestType;
  support::Table table;
  support::Random random(301);
  // Blocks of one pack, two and three, and several of them; few queries, several splits of keys; heads that share keys.
  for (const support::Shape& s : {support::Shape{1, 1, 1, 9, 2, 2, 1},
                                  {1, 2, 1, 16, 5, 3, 7},
                                  {2, 4, 2, 49, 100, 8, 7},
                                  {1, 2, 1, 100, 33, 16, 17},
                                  {1, 1, 1, 300, 257, 5, 33},
                                  {1, 1, 1, 1, 1, 2, 3},
                                  {2, 6, 2, 1, 300, 8, 19},
                                  {1, 6, 2, 5, 1300, 7, 16},
                                  {1, 2, 1, 8, 9000, 4, 3}}) {
    const auto in = with_dominant_keys<T>(s, random);
    const auto turned = with_dominant_keys<T>(s, random, Layout::columns, Layout::reversed_dims);
    Tensor<unsigned char> sees(Layout::bhsd, 1, 1, s.queries, s.keys);
    // All keys, none, the dominant one alone, with a second one, or most.
    sees.fill([&](Index, Index, Index i, Index j) {
      const Index dominant = i % 2 == 0 ? s.keys / 2 : s.keys - 1;
      const bool seen[] = {true, false, j == dominant, j == dominant || j == 0, j % 3 != 1};
      return seen[i / 2 % 5] ? 1 : 0;
    });
    std::vector<T> sinks;
    for (Index h = 0; h < s.heads; ++h) sinks.push_back(h % 2 == 0 ? T(3) : -std::numeric_limits<T>::infinity());
    const auto all = ab::QueryWeights::all(), some = ab::QueryWeights::decayed(0.9);
    check_left_out(table, "plain", s, in, all);
    check_left_out(table, "decayed", s, turned, some);
    check_left_out(table, "masked", s, turned, all, ab::mask::Boolean{sees.view()});
    check_left_out(table, "masked, with sinks", s, in, some, ab::mask::Boolean{sees.view()},
                   ab::normalize::Sink<T>{sinks});
    check_left_out(table, "sparsemax", s, in, all, ab::normalize::Sparsemax{});
    check_left_out(table, "top 3", s, in, all, ab::normalize::TopK{3});
  }
  table.report();
}

TEMPLATE_TEST_CASE("without the only key the output is zero", "[evidence][statistic]", SCALARS) {
  using T = TestType;
  support::Random random(302);
  for (const Index queries : {Index(3), Index(40)}) {
    const support::Shape s{1, 1, 1, queries, queries, 4, 5};
    const support::Inputs<T> in(s, random);
    Tensor<T> out(Layout::bhsd, 1, 1, queries, 5);
    ab::Evidence<T> evidence;
    const std::vector<T> sinks{T(-50)};
    // Each query sees the key of its own number, and a sink that it hardly notices.
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Window{0, 0},
                  ab::normalize::Sink<T>{sinks}, ab::observe(evidence, ab::QueryWeights::all(), leave_one_out));
    for (Index j = 0; j < queries; ++j) {
      double square = 0;
      for (Index c = 0; c < 5; ++c)
        square += static_cast<double>(in.v(0, 0, j, c)) * static_cast<double>(in.v(0, 0, j, c));
      CHECK(static_cast<double>(evidence.statistic(0, 0)[static_cast<std::size_t>(j)]) ==
            Approx(square).epsilon(1e-5));
    }
  }
}

TEMPLATE_TEST_CASE("dominant keys: what is not seen or does not count reaches no leave-one-out",
                   "[evidence][statistic]", SCALARS) {
  using T = TestType;
  support::Random random(303);
  for (const Index queries : {Index(6), Index(60)}) {
    const support::Shape s{1, 2, 1, queries, 200, 4, 6};
    const auto in = with_dominant_keys<T>(s, random);
    Tensor<T> out(Layout::bhsd, 1, 2, queries, 6);
    // The last 40 keys are hidden from all, keys below 100 from the second half of the queries, which alone counts.
    Tensor<unsigned char> sees(Layout::bhsd, 1, 1, queries, 200);
    sees.fill(
        [&](Index, Index, Index i, Index j) { return (j < 100 && i < queries / 2) || (j >= 100 && j < 160); });
    auto run = [&](ab::Evidence<T>& evidence) {
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Boolean{sees.view()},
                    ab::observe(evidence, ab::QueryWeights::last(queries / 2), leave_one_out));
    };
    ab::Evidence<T> clean, touched;
    run(clean);
    CHECK(clean.statistic(0, 0)[100] > T(0.1));
    for (const T bad : {std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN()}) {
      in.v(0, 0, 180, 1) = in.v(0, 0, 20, 2) = bad;
      in.k(0, 0, 180, 1) = bad;
      run(touched);
      for (Index h = 0; h < 2; ++h) CHECK(support::same_bits(clean.statistic(0, h), touched.statistic(0, h)));
      in.k(0, 0, 180, 1) = T(0);
    }
  }
}

TEMPLATE_TEST_CASE("leave-one-out of packed sequences and of caches is that of each alone", "[evidence][statistic]",
                   SCALARS) {
  using T = TestType;
  support::Random random(304);
  const support::Shape s{1, 2, 1, 90, 400, 8, 9};
  const auto in = with_dominant_keys<T>(s, random);
  Tensor<T> out(Layout::bhsd, 1, 2, 90, 9), alone(Layout::bhsd, 1, 2, 90, 9);
  const std::vector<Index> queries{0, 4, 90}, keys{0, 150, 400};  // the last key of each takes much, or nothing
  std::vector<ab::Evidence<T>> each(2);
  ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::PackedSequences(queries, keys),
                ab::observe(each, ab::QueryWeights::all(), leave_one_out));
  ab::KvCache<T> cache(1, 1, 250, 8, 9);
  for (std::size_t i = 0; i < 2; ++i) {
    auto tokens = [](auto view, Index begin, Index end) {
      view.data += begin * view.length_stride;
      view.length = end - begin;
      return view;
    };
    const auto q = tokens(in.q.view(), queries[i], queries[i + 1]);
    const auto k = tokens(in.k.view(), keys[i], keys[i + 1]), v = tokens(in.v.view(), keys[i], keys[i + 1]);
    ab::Evidence<T> one, cached;
    ab::attention(q, k, v, tokens(alone.view(), queries[i], queries[i + 1]),
                  ab::observe(one, ab::QueryWeights::all(), leave_one_out));
    cache.clear(0);
    cache.append(0, k, v);
    ab::attention(q, cache, tokens(alone.view(), queries[i], queries[i + 1]),
                  ab::observe(cached, ab::QueryWeights::all(), leave_one_out));
    CHECK(support::same_bits(each[i], one));
    CHECK(support::same_bits(cached, one));
  }
}
