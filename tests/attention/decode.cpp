// Few queries: the kernels whose lanes are features or rows, their splits of the keys and their merge, against the
// reference.

#include "attention_balancer/execute/cache_budget.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"
#include "support/policies.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

/// One sequence, or one group of heads, of a view.
template <class T>
ab::TensorView<T> part(ab::TensorView<T> x, Index b, Index h, Index heads) {
  if (x.length > 0) x.data = &x(b, h, 0, 0);
  x.batch = 1, x.heads = heads;
  return x;
}

struct Group {
  Index heads, kv_heads, queries;
};

/// Case number i against the reference, in layouts and with weights by its number. Of more than `many` keys none are
/// all the same: the reference adds up its rounding errors there.
template <class T>
void check_number(support::Table& table, support::Random& random, Index i, const support::Shape& s, Index many) {
  const auto k_layout = static_cast<Layout>(i % (s.keys > many ? support::output_layouts : support::input_layouts));
  const support::Inputs<T> in(s, random, support::Family::uniform, 2, Layout::bhsd, k_layout,
                              static_cast<Layout>(i / 3 % support::input_layouts));
  const ab::QueryWeights weights[] = {ab::QueryWeights::all(), ab::QueryWeights::last(1), ab::QueryWeights::none(),
                                      ab::QueryWeights::decayed(0.5)};
  support::check(table, "", s, in, static_cast<Layout>(i % support::output_layouts), weights[i % 4], {});
}

}  // namespace

TEMPLATE_TEST_CASE("few queries of any group and many keys are the reference", "[attention][decode]", float,
                   double) {
  using T = TestType;
  support::Table table;
  support::Random random(211);
  // Tiles of four rows, three, two and one; keys around a block of 128, a split of 512, and several splits.
  constexpr Group groups[] = {{1, 1, 1}, {2, 1, 1}, {3, 1, 1}, {9, 3, 1},
                              {5, 1, 2}, {4, 2, 7}, {2, 2, 8}, {12, 1, 3}};
  constexpr Index keys[] = {0, 1, 127, 128, 129, 511, 513, 1300, 9000};
  constexpr Index dims[] = {1, 5, 16, 40, 64, 72, 128};
  Index i = 0;
  for (const Group& g : groups)
    for (const Index nk : keys) {
      ++i;
      if (i % support::every(5) != 0) continue;
      const support::Shape s{
          1, g.heads, g.kv_heads, g.queries, nk, nk > 2000 ? 5 : dims[i % 7], nk > 2000 ? 9 : dims[i * 3 % 7]};
      check_number<T>(table, random, i, s, 1000);
    }
  table.report();
}

TEMPLATE_TEST_CASE("rows that fill packs are the reference", "[attention][decode]", float, double) {
  using T = TestType;
  support::Table table;
  support::Random random(215);
  // 8 to 128 rows: two packs of four lanes to eight of sixteen, whole and not; single queries of many heads as well.
  constexpr Group groups[] = {{8, 2, 2},  {5, 1, 3}, {4, 1, 4},  {7, 1, 3},  {6, 2, 8},  {29, 1, 1},
                              {31, 1, 1}, {4, 1, 8}, {10, 2, 8}, {46, 1, 1}, {15, 1, 4}, {16, 1, 8}};
  // Fewer keys than a tile, around one, a block of 128 and a split of 512, and several splits.
  constexpr Index keys[] = {0, 1, 5, 7, 13, 127, 130, 513, 1300};
  constexpr Index dims[] = {1, 5, 16, 41, 64, 72, 128};
  Index i = 0;
  for (const Group& g : groups)
    for (const Index nk : keys) {
      ++i;
      if (i % support::every(5) != 0) continue;
      const support::Shape s{1, g.heads, g.kv_heads, g.queries, nk, dims[i % 7], dims[i * 3 % 7]};
      check_number<T>(table, random, i, s, 500);
    }
  table.report();
}

TEMPLATE_TEST_CASE("rows that fill packs get the same bits wherever the keys lie", "[attention][decode][cache]",
                   float, double, ab::bf16, ab::f16) {
  using Stored = TestType;
  using T = typename ab::KvCache<Stored>::scalar;
  support::Random random(216);
  support::Table table;
  for (const Index page_size : {1, 5, 40}) {
    const support::Shape s{1, 8, 1, 4, 700, 37, 26};
    const support::Inputs<T> in(s, random);
    ab::KvCache<Stored> cache(1, 1, s.keys, s.dim, s.value_dim);
    ab::PagedKvCache<Stored> paged(1, 1, s.keys / page_size + 1, page_size, s.dim, s.value_dim);
    cache.append(in.k.view(), in.v.view());
    paged.append(in.k.view(), in.v.view());
    Tensor<T> k(Layout::bhsd, 1, 1, s.keys, s.dim), v(Layout::columns, 1, 1, s.keys, s.value_dim);
    const auto x = cache.view();
    k.fill([&](Index, Index, Index j, Index c) { return static_cast<T>(x.keys(0, 0, j, c)); });
    v.fill([&](Index, Index, Index j, Index c) { return static_cast<T>(x.values(0, 0, j, c)); });
    struct Result {
      Tensor<T> out;
      ab::Evidence<T> evidence;
    };
    const std::vector<T> sinks{T(-1), T(0), T(2), T(0.5), T(1), T(3), T(-2), T(4)};
    auto run = [&](const auto&... where) {
      Result r{Tensor<T>(Layout::bhsd, 1, s.heads, s.queries, s.value_dim), {}};
      ab::attention(in.q.view(), where..., r.out.view(), ab::mask::Causal{}, ab::normalize::Sink(sinks),
                    ab::observe(r.evidence, ab::QueryWeights::all(), ab::evidence::leave_one_out));
      return r;
    };
    table.begin("page size " + std::to_string(page_size));
    const Result plain = run(k.view(), v.view()), held = run(cache), in_pages = run(paged);
    table.expect(support::same_bits(plain.out.view(), held.out.view()), "cache: output");
    table.expect(support::same_bits(plain.evidence, held.evidence), "cache: evidence");
    table.expect(support::same_bits(plain.out.view(), in_pages.out.view()), "pages: output");
    table.expect(support::same_bits(plain.evidence, in_pages.evidence), "pages: evidence");
  }
  table.report();
}

TEMPLATE_TEST_CASE("few queries under all policies are the reference", "[attention][decode][mask]", float, double) {
  using T = TestType;
  support::Table table;
  support::Random random(212);
  for (Index i = 0; i < 48; i += support::every(5)) {
    // From 24 on with more heads, whose rows fill packs.
    const support::Shape s{
        i % 3 + 1, i < 24 ? 6 : 24, i % 2 == 0 ? 2 : 3, i % 8 + 1, i % 4 == 3 ? 1100 : 150 + i, 8, 7};
    support::PolicySet<T> set(s);
    if (i % 3 == 0) set.causal(i % 2 == 0 ? ab::mask::Align::bottom_right : ab::mask::Align::top_left);
    if (i % 4 == 1) set.window(100, i % 2 == 0 ? 0 : 3);
    if (i % 4 != 2) set.lengths(random, i % 2 == 0);
    if (i % 5 == 1) set.boolean(random, Layout::bhsd, true, true, true, true, 0.7);
    if (i % 5 == 2) set.blocks(random, 2, 40, false);
    if (i % 6 == 1) set.softcap(1.5);
    if (i % 4 == 0) set.alibi();
    if (i % 3 == 1) set.bias(random, Layout::columns, true, i % 2 == 0, true, true, 0.3);
    if (i % 5 == 4) set.key_bias(random, i % 2 == 0, 0.4);
    if (i % 3 == 2) set.sinks(random, i % 2 == 0);
    const support::Inputs<T> in(s, random);
    set.check(table, in, Layout::bhsd, i % 2 == 0 ? ab::QueryWeights::all() : ab::QueryWeights::last(2));
  }
  table.report();
}

TEMPLATE_TEST_CASE("what few queries do not see never reaches them", "[attention][decode][mask]", float, double) {
  using T = TestType;
  support::Random random(213);
  const Index heads = GENERATE(6, 32);  // rows that are few, and that fill packs
  const support::Shape s{2, heads, 2, 2, 1400, 20, 19};
  const support::Inputs<T> in(s, random);
  const std::vector<Index> lengths{1200, 600};
  struct Result {
    Tensor<T> out;
    ab::Evidence<T> evidence;
  };
  auto run = [&](auto statistic) {
    Result r{Tensor<T>(Layout::bhsd, 2, heads, 2, 19), {}};
    ab::attention(in.q.input(), in.k.input(), in.v.input(), r.out.view(), ab::mask::KeyLengths(lengths),
                  ab::mask::Window{700, 0}, ab::observe(r.evidence, ab::QueryWeights::all(), statistic));
    return r;
  };
  const Result squares = run(ab::evidence::squares), change = run(ab::evidence::leave_one_out);
  // Hidden keys and values of every kind: behind the length, and before the window.
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    for (Index h = 0; h < 2; ++h)
      for (Index c = 0; c < 19; ++c) {
        for (const Index j : {Index(1200), Index(1399), Index(10), Index(697)})
          in.k(0, h, j, c) = in.v(0, h, j, c) = bad;
        for (const Index j : {Index(600), Index(601), Index(690)}) in.k(1, h, j, c) = in.v(1, h, j, c) = bad;
      }
    const Result poisoned = run(ab::evidence::squares), moved = run(ab::evidence::leave_one_out);
    CHECK(support::same_bits(squares.out.view(), poisoned.out.view()));
    CHECK(support::same_bits(squares.evidence, poisoned.evidence));
    CHECK(support::same_bits(change.evidence, moved.evidence));
  }
  // One that the second query of a head sees and the first does not touches the second alone, and the masses it
  // has.
  in.v(0, 0, 698, 3) = std::numeric_limits<T>::quiet_NaN();
  in.k(0, 0, 698, 3) = T(0.5);
  const Result seen = run(ab::evidence::squares);
  CHECK(seen.out(0, 0, 0, 3) != seen.out(0, 0, 0, 3));
  CHECK(
      support::same_bits(static_cast<double>(seen.out(0, 0, 1, 3)), static_cast<double>(squares.out(0, 0, 1, 3))));
  CHECK(
      support::same_bits(static_cast<double>(seen.out(0, 5, 1, 3)), static_cast<double>(squares.out(0, 5, 1, 3))));
}

TEMPLATE_TEST_CASE("few queries get the same bits alone, beside others and by any executor",
                   "[attention][decode][executor]", float, double) {
  using T = TestType;
  support::Random random(214);
  support::Table table;
  for (const support::Shape& s : {support::Shape{3, 6, 2, 1, 1500, 24, 17},
                                  {2, 4, 4, 5, 700, 16, 16},
                                  {1, 3, 1, 2, 9000, 4, 4},
                                  {2, 32, 2, 2, 1500, 24, 17}}) {
    const support::Inputs<T> in(s, random);
    struct Result {
      Tensor<T> out;
      ab::Evidence<T> evidence;
    };
    ab::Workspace workspace;
    auto run = [&](const auto&... executor) {
      Result r{Tensor<T>(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim), {}};
      ab::attention(in.q.view(), in.k.view(), in.v.view(), r.out.view(), ab::mask::Causal{},
                    ab::observe(r.evidence), workspace, executor...);
      return r;
    };
    table.begin(s.text());
    const Result once = run();
    auto expect = [&](const Result& other, const std::string& what) {
      table.expect(support::same_bits(once.out.view(), other.out.view()), what + ": output");
      table.expect(support::same_bits(once.evidence, other.evidence), what + ": evidence");
    };
    expect(run(), "again");
#if defined(_OPENMP)
    for (Index threads = 1; threads <= 16; threads += threads < 4 ? 1 : 4)
      expect(run(support::openmp(threads)), "threads " + std::to_string(threads));
#endif
    // A head alone; where the rows of its group fill packs, with the others of the group.
    const Index group = s.heads / s.kv_heads, together = group * s.queries >= 8 ? group : 1;
    for (Index b = 0; b < s.batch; ++b)
      for (Index first = 0; first < s.heads; first += together) {
        Tensor<T> out(Layout::bhsd, 1, together, s.queries, s.value_dim);
        ab::Evidence<T> evidence;
        ab::attention(part(in.q.view(), b, first, together), part(in.k.view(), b, first / group, 1),
                      part(in.v.view(), b, first / group, 1), out.view(), ab::mask::Causal{},
                      ab::observe(evidence));
        table.expect(support::same_bits(out.view(), part(once.out.view(), b, first, together)), "alone: output");
        for (Index g = 0; g < together; ++g) {
          const Index h = first + g;
          table.expect(support::same_bits(evidence.mass(0, g), once.evidence.mass(b, h)), "alone: mass");
          table.expect(support::same_bits(evidence.exposure(0, g), once.evidence.exposure(b, h)),
                       "alone: exposure");
          table.expect(support::same_bits(evidence.lse(0, g), once.evidence.lse(b, h)), "alone: lse");
          table.expect(support::same_bits(evidence.entropy(0, g), once.evidence.entropy(b, h)), "alone: entropy");
        }
      }
  }
  table.report();
}
