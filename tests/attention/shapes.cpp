// Any shape and any layout, without policies, against the reference.

#include "support/check.hpp"
#include "support/options.hpp"
#include "support/pairwise.hpp"

namespace {

using support::Index;
using support::Layout;

constexpr Index lengths[] = {1, 2, 7, 17, 48, 49, 100, 129, 257, 300};
constexpr Index dims[] = {1, 2, 3, 7, 16, 17, 32, 33, 64, 80, 128};
struct Heads {
  Index batch, heads, kv_heads;
};
constexpr Heads heads[] = {{1, 1, 1}, {2, 2, 2}, {1, 4, 2}, {2, 3, 1}};

template <class T, std::size_t N>
Index count(const T (&)[N]) {
  return static_cast<Index>(N);
}

}  // namespace

TEMPLATE_TEST_CASE("attention of any shape and layout is the reference", "[attention]", float, double) {
  using T = TestType;
  const auto rows = support::pairwise({count(lengths), count(lengths), count(dims), count(dims), count(heads),
                                       support::input_layouts, support::input_layouts, support::input_layouts,
                                       support::output_layouts, 4});
  support::Table table;
  support::Random random(1);
  for (std::size_t r = 0; r < rows.size(); r += static_cast<std::size_t>(support::every(8))) {
    const auto& row = rows[r];
    const Heads& h = heads[row[4]];
    const support::Shape shape{h.batch, h.heads, h.kv_heads, lengths[row[0]], lengths[row[1]], dims[row[2]],
                               dims[row[3]]};
    const auto q = static_cast<Layout>(row[5]), k = static_cast<Layout>(row[6]), v = static_cast<Layout>(row[7]),
               out = static_cast<Layout>(row[8]);
    const support::Inputs<T> in(shape, random, support::Family::uniform, 2, q, k, v);
    std::vector<double> u;
    for (Index i = 0; i < shape.queries; ++i) u.push_back(i % 3 == 0 ? 0 : random.unit());
    const ab::QueryWeights weights[] = {ab::QueryWeights::all(), ab::QueryWeights::last(10), ab::QueryWeights::of(u),
                                        ab::QueryWeights::none()};
    support::check(table,
                   std::string("q ") + name_of(q) + ", k " + name_of(k) + ", v " + name_of(v) + ", out " + name_of(out),
                   shape, in, out, weights[row[9]], {});
  }
  table.report();
}

TEMPLATE_TEST_CASE("every length of queries and of keys around the blocks is the reference", "[attention]", float,
                   double) {
  using T = TestType;
  support::Table table;
  support::Random random(2);
  // Blocks are of up to three packs of at most 16 queries, tiles of keys go down from 16 to 1, blocks of keys are 128.
  for (Index n = 1; n <= 200; n += support::every(13)) {
    const support::Shape by_queries{1, 1, 1, n, 21, 5, 6}, by_keys{1, 1, 1, 5, n, 4, 3}, by_dim{1, 1, 1, 5, 9, n, n};
    for (const auto& shape : {by_queries, by_keys, by_dim}) {
      const support::Inputs<T> in(shape, random, support::Family::uniform, 2);
      support::check(table, "", shape, in, Layout::bhsd, ab::QueryWeights::all(), {});
    }
  }
  table.report();
}

TEMPLATE_TEST_CASE("the diagonal of a causal mask may cross blocks anywhere", "[attention][mask]", float, double) {
  using T = TestType;
  support::Table table;
  support::Random random(4);
  for (Index n = 1; n <= 280; n += support::every(13)) {
    const support::Shape shape{1, 1, 1, 100, n, 2, 2};
    const support::Inputs<T> in(shape, random);
    const auto align = n % 2 == 0 ? ab::mask::Align::top_left : ab::mask::Align::bottom_right;
    support::check(table, "top left where Nk is even", shape, in, Layout::bhsd, ab::QueryWeights::all(), {},
                   ab::mask::Causal{align});
  }
  table.report();
}

TEMPLATE_TEST_CASE("without keys nothing is attended", "[attention]", float, double) {
  using T = TestType;
  support::Table table;
  support::Random random(3);
  for (Index n : {1, 17, 100}) {
    const support::Shape shape{2, 4, 2, n, 0, 8, 5};
    const support::Inputs<T> in(shape, random);
    const std::vector<T> logits{T(1), T(-2), -std::numeric_limits<T>::infinity(), T(0)};
    support::check(table, "no sink", shape, in, Layout::bshd, ab::QueryWeights::all(), {});
    support::check(table, "sink", shape, in, Layout::columns, ab::QueryWeights::last(3), {},
                   ab::normalize::Sink(logits));
  }
  table.report();

  // What the reference says is what is promised.
  support::Tensor<T> q(Layout::bhsd, 1, 1, 3, 2), k(Layout::bhsd, 1, 1, 0, 2), v(Layout::bhsd, 1, 1, 0, 4),
      out(Layout::bhsd, 1, 1, 3, 4);
  q.fill(random, support::Family::uniform);
  out.fill([](auto...) { return 7; });
  ab::Evidence<T> evidence;
  ab::attention(q.view(), k.view(), v.view(), out.view(), ab::observe(evidence));
  for (const T x : out.memory()) CHECK(x == T(0));
  CHECK(evidence.mass(0, 0).empty());
  CHECK(evidence.empty_rows(0, 0) == 3);
  CHECK(evidence.sink_mass(0, 0) == T(0));
  for (Index i = 0; i < 3; ++i) {
    CHECK(evidence.lse(0, 0)[static_cast<std::size_t>(i)] == -std::numeric_limits<T>::infinity());
    CHECK(evidence.entropy(0, 0)[static_cast<std::size_t>(i)] == T(0));
  }
}
