// Who runs the pieces, and what lies beside them, never changes a result by one bit.

#include <thread>

#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"

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

/// One thread per piece. Does not say how many it can run.
struct Threads {
  template <class F>
  void for_each(Index n, F&& f) const {
    std::vector<std::thread> team;
    for (Index i = 0; i < n; ++i) team.emplace_back([&f, i] { f(i); });
    for (auto& t : team) t.join();
  }
};

template <class T>
struct Result {
  Tensor<T> plain, out;
  ab::Evidence<T> evidence, alone;

  template <class... P>
  Result(const support::Shape& s, const support::Inputs<T>& in, const P&... policies)
      : plain(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim),
        out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim) {
    again(in, policies...);
  }
  template <class... P>
  void again(const support::Inputs<T>& in, P&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), plain.view(), policies...);
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies..., ab::observe(evidence));
    ab::attention_evidence(in.q.view(), in.k.view(), policies..., ab::observe(alone));
  }
  bool operator==(const Result& other) const {
    return support::same_bits(plain.view(), other.plain.view()) && support::same_bits(out.view(), other.out.view()) &&
           support::same_bits(evidence, other.evidence) && support::same_bits(alone, other.alone);
  }
};

template <class T, class... P>
void check_executors(support::Table& table, const support::Shape& s, const support::Inputs<T>& in,
                     const P&... policies) {
  const Result<T> once(s, in, policies...);
  table.begin(s.text());
  table.expect(Result<T>(s, in, policies...) == once, "another call");
  table.expect(Result<T>(s, in, policies..., ab::executor::Sequential{}) == once, "Sequential");
#if defined(_OPENMP)
  for (Index threads = 0; threads <= 8; threads += support::every(3))
    table.expect(Result<T>(s, in, policies..., support::openmp(threads)) == once,
                 "OpenMP, threads " + std::to_string(threads));
#endif
  for (Index pieces : {1, 2, 3, 7, 100})
    table.expect(Result<T>(s, in, policies..., Backwards{pieces}) == once,
                 "backwards, pieces " + std::to_string(pieces));
  table.expect(Result<T>(s, in, policies..., Threads{}) == once, "threads");
}

}  // namespace

TEMPLATE_TEST_CASE("any executor gives the same bits", "[attention][executor]", SCALARS) {
  using T = TestType;
  support::Table table;
  support::Random random(31);
  // One chunk, several, 16 and more blocks than chunks; few and many heads beside the workers.
  for (const support::Shape& s :
       {support::Shape{1, 1, 1, 1, 50, 8, 8}, {1, 1, 1, 300, 200, 8, 8}, {1, 2, 1, 1000, 130, 4, 4},
        {3, 4, 2, 120, 70, 8, 5}, {1, 16, 4, 100, 33, 8, 5}}) {
    const support::Inputs<T> in(s, random);
    check_executors(table, s, in);
    check_executors(table, s, in, ab::mask::Causal{});
  }
  table.report();
}

TEMPLATE_TEST_CASE("a workspace changes nothing", "[attention]", SCALARS) {
  using T = TestType;
  support::Random random(32);
  ab::Workspace workspace;
  for (const support::Shape& s :
       {support::Shape{2, 2, 1, 200, 300, 16, 16}, {1, 1, 1, 3, 3, 2, 2}, {1, 2, 2, 400, 500, 32, 8}}) {
    const support::Inputs<T> in(s, random);
    const Result<T> once(s, in);
    Result<T> with(s, in);
    with.again(in, workspace);
    CHECK(with == once);
    with.again(in, workspace);
    CHECK(with == once);
  }
}

TEMPLATE_TEST_CASE("a sequence alone or beside others gives the same bits", "[attention]", SCALARS) {
  using T = TestType;
  support::Random random(33);
  const support::Shape s{3, 4, 2, 150, 170, 12, 9};
  const support::Inputs<T> in(s, random);
  Tensor<T> all(Layout::bhsd, 3, 4, 150, 9), observed(Layout::bhsd, 3, 4, 150, 9), one(Layout::bhsd, 1, 1, 150, 9);
  ab::Evidence<T> evidence, of_one;
  ab::attention(in.q.view(), in.k.view(), in.v.view(), all.view(), ab::mask::Causal{}, support::openmp(4));
  ab::attention(in.q.view(), in.k.view(), in.v.view(), observed.view(), ab::mask::Causal{}, ab::observe(evidence),
                support::openmp(4));
  auto part = [](const ab::TensorView<T>& x, Index b, Index h) {
    auto y = x;
    y.data = &x(b, h, 0, 0), y.batch = y.heads = 1;
    return y;
  };
  support::Table table;
  for (Index b = 0; b < 3; ++b)
    for (Index h = 0; h < 4; ++h) {
      table.begin("batch " + std::to_string(b) + " head " + std::to_string(h));
      const auto q = part(in.q.view(), b, h), k = part(in.k.view(), b, h / 2), v = part(in.v.view(), b, h / 2);
      ab::attention(q, k, v, one.view(), ab::mask::Causal{});
      table.expect(support::same_bits(one.view(), part(all.view(), b, h)), "output");
      ab::attention(q, k, v, one.view(), ab::mask::Causal{}, ab::observe(of_one));
      table.expect(support::same_bits(one.view(), part(observed.view(), b, h)), "observed output");
      table.expect(support::same_bits(of_one.mass(0, 0), evidence.mass(b, h)), "mass");
      table.expect(support::same_bits(of_one.exposure(0, 0), evidence.exposure(b, h)), "exposure");
      table.expect(support::same_bits(of_one.lse(0, 0), evidence.lse(b, h)), "lse");
      table.expect(support::same_bits(of_one.entropy(0, 0), evidence.entropy(b, h)), "entropy");
    }
  table.report();
}

TEMPLATE_TEST_CASE("a layout changes nothing", "[attention]", SCALARS) {
  using T = TestType;
  support::Random random(34);
  const support::Shape s{2, 2, 2, 100, 140, 19, 21};
  const support::Inputs<T> in(s, random);
  const Result<T> once(s, in);
  for (Index l = 0; l < support::output_layouts; ++l) {
    const auto layout = static_cast<Layout>(l);
    support::Inputs<T> other(s, random, support::Family::uniform, 1, layout, layout, layout);
    other.q.fill([&](Index b, Index h, Index i, Index c) { return in.q(b, h, i, c); });
    other.k.fill([&](Index b, Index h, Index i, Index c) { return in.k(b, h, i, c); });
    other.v.fill([&](Index b, Index h, Index i, Index c) { return in.v(b, h, i, c); });
    INFO(name_of(layout));
    CHECK(Result<T>(s, other) == once);
    Tensor<T> out(layout, 2, 2, 100, 21);
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view());
    CHECK(support::same_bits(out.view(), once.plain.view()));
  }
}

TEMPLATE_TEST_CASE("blocks of queries that share the walk over far keys give the same bits", "[attention]",
                   SCALARS) {
  using T = TestType;
  support::Random random(35);
  // Keys and values beyond the second cache, and at least five blocks of queries in each of the sixteen chunks. A mask
  // that hides nothing makes each block walk alone.
  const Index queries = 240 * ab::simd::lanes<T> + 50, keys = 2100;
  const support::Shape s{1, 1, 1, queries, keys, 32, 32};
  const support::Inputs<T> in(s, random);
  Tensor<T> together(Layout::bhsd, 1, 1, queries, 32), alone(Layout::bhsd, 1, 1, queries, 32);
  ab::attention(in.q.view(), in.k.view(), in.v.view(), together.view());
  ab::attention(in.q.view(), in.k.view(), in.v.view(), alone.view(), ab::mask::KeyLengths{keys});
  CHECK(support::same_bits(together.view(), alone.view()));
  for (const auto& weights :
       {ab::QueryWeights::all(), ab::QueryWeights::last(queries / 2 + 7), ab::QueryWeights::none()}) {
    ab::Evidence<T> of_together, of_alone;
    ab::attention(in.q.view(), in.k.view(), in.v.view(), together.view(), ab::observe(of_together, weights));
    ab::attention(in.q.view(), in.k.view(), in.v.view(), alone.view(), ab::observe(of_alone, weights),
                  ab::mask::KeyLengths{keys});
    CHECK(support::same_bits(together.view(), alone.view()));
    CHECK(support::same_bits(of_together, of_alone));
  }
}

TEMPLATE_TEST_CASE("a head alone and among more than the caches hold gives the same bits", "[attention]", SCALARS) {
  using T = TestType;
  support::Random random(34);
  support::Table table;
  // Whole heads, and heads in chunks whose keys come by parts; grouped, and with features far apart.
  for (const Layout layout : {Layout::bhsd, Layout::bshd}) {
    const auto s = layout == Layout::bhsd ? support::Shape{5, 54, 54, 33, 33, 64, 60}
                                          : support::Shape{2, 66, 33, 130, 70, 64, 64};
    const support::Inputs<T> in(s, random, support::Family::uniform, 1, layout, layout, layout);
    const auto tensor = [&] {
      return Tensor<T>(layout, s.batch, s.heads, s.queries, s.value_dim);
    };
    Tensor<T> all = tensor(), observed = tensor(), shared = tensor();
    Tensor<T> one(Layout::bhsd, 1, 1, s.queries, s.value_dim);
    ab::Evidence<T> evidence, of_one;
    ab::attention(in.q.view(), in.k.view(), in.v.view(), all.view());
    ab::attention(in.q.view(), in.k.view(), in.v.view(), observed.view(), ab::observe(evidence));
#if defined(_OPENMP)
    ab::attention(in.q.view(), in.k.view(), in.v.view(), shared.view(), support::openmp(3));
#endif
    const auto part = [](const auto& x, Index b, Index h) {
      auto y = x;
      y.data = &x(b, h, 0, 0), y.batch = y.heads = 1;
      return y;
    };
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; h += 5) {
        table.begin(s.text() + ", batch " + std::to_string(b) + " head " + std::to_string(h));
        const Index kv = h / (s.heads / s.kv_heads);
        ab::attention(part(in.q.view(), b, h), part(in.k.view(), b, kv), part(in.v.view(), b, kv), one.view(),
                      ab::observe(of_one));
        table.expect(support::same_bits(one.view(), part(all.view(), b, h)), "output");
        table.expect(support::same_bits(one.view(), part(observed.view(), b, h)), "observed output");
#if defined(_OPENMP)
        table.expect(support::same_bits(one.view(), part(shared.view(), b, h)), "output of three threads");
#endif
        table.expect(std::ranges::equal(of_one.mass(0, 0), evidence.mass(b, h)), "mass");
      }
  }
  table.report();
}
