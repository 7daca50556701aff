// Queries of many sequences, of different numbers, in one call over a cache: the results of each sequence alone, bit by
// bit, and of the reference.

#include "support/anybody.hpp"
#include "support/cache.hpp"
#include "support/check.hpp"
#include "support/options.hpp"

namespace {

using support::Anybody;
using support::Index;
using support::Layout;
using support::part;
using support::Tensor;

struct Sizes {
  Index queries, keys;
};

constexpr Index heads = 6, kv_heads = 2, dim = 20, value_dim = 17;

/// Sequences in both kinds of cache and each in one of its own. What is beyond their lengths is not a number.
template <class Stored>
struct Ragged {
  using T = typename ab::KvCache<Stored>::scalar;
  std::vector<Index> offsets;
  std::vector<std::int32_t> narrow;
  Index count, longest;
  Tensor<T> q, k, v;
  ab::KvCache<Stored> whole;
  ab::PagedKvCache<Stored> paged;
  std::vector<ab::KvCache<Stored>> alone;

  Ragged(const std::vector<Sizes>& sizes, Index page_size)
      : offsets(offsets_of(sizes)),
        narrow(offsets.begin(), offsets.end()),
        count(static_cast<Index>(sizes.size())),
        longest(longest_of(sizes)),
        q(Layout::bshd, 1, heads, offsets.back() + 3, dim),
        k(Layout::bhsd, count, kv_heads, longest + 3, dim),
        v(Layout::bshd, count, kv_heads, longest + 3, value_dim),
        whole(count, kv_heads, longest + 3, dim, value_dim),
        paged(count, kv_heads, count * ((longest + 3) / page_size + 1), page_size, dim, value_dim) {
    support::Random random(71);
    for (auto* x : {&q, &k, &v}) x->fill(random, support::Family::uniform, 2);
    for (Index b = 0; b < count; ++b) alone.emplace_back(1, kv_heads, longest, dim, value_dim);
    if constexpr (std::is_same_v<Stored, std::int8_t>) {
      whole.calibrate_channels(k.view()), paged.calibrate_channels(k.view());
      for (auto& one : alone) one.calibrate_channels(k.view());
    }
    Tensor<T> bad_k(Layout::bhsd, count, kv_heads, longest + 3, dim),
        bad_v(Layout::bhsd, count, kv_heads, longest + 3, value_dim);
    for (auto* x : {&bad_k, &bad_v}) x->fill([](auto...) { return std::nan(""); });
    whole.append(bad_k.view(), bad_v.view()), paged.append(bad_k.view(), bad_v.view());
    for (Index b = 0; b < count; ++b) whole.clear(b), paged.clear(b);
    // In turn, so that pages of the sequences alternate.
    for (Index from = 0; from < longest; from += 50)
      for (Index b = 0; b < count; ++b) {
        const Index some = std::min(from + 50, sizes[static_cast<std::size_t>(b)].keys) - from;
        if (some <= 0) continue;
        const auto ks = part(k.view(), b, from, some);
        const auto vs = part(v.view(), b, from, some);
        whole.append(b, ks, vs), paged.append(b, ks, vs), alone[static_cast<std::size_t>(b)].append(ks, vs);
      }
  }

  Index queries(Index s) const { return begin(s + 1) - begin(s); }
  Index begin(Index s) const { return offsets[static_cast<std::size_t>(s)]; }
  Tensor<T> output() const {
    Tensor<T> out(Layout::bhsd, 1, heads, q.view().length, value_dim);
    out.fill([](auto...) { return 77; });
    return out;
  }
  /// The queries, or outputs, of sequence s.
  template <class U>
  ab::TensorView<U> of(const Tensor<U>& x, Index s) const {
    return part(x.view(), 0, begin(s), queries(s));
  }

 private:
  /// With tokens of no sequence before the first.
  static std::vector<Index> offsets_of(const std::vector<Sizes>& sizes) {
    std::vector<Index> offsets{2};
    for (const Sizes& s : sizes) offsets.push_back(offsets.back() + s.queries);
    return offsets;
  }
  static Index longest_of(const std::vector<Sizes>& sizes) {
    Index most = 0;
    for (const Sizes& s : sizes) most = std::max(most, s.keys);
    return most;
  }
};

// Prompts by the piece, single queries, none, and without keys; few and many keys; eight queries decode, nine do not.
const std::vector<Sizes> mixed{{1, 40}, {0, 17}, {20, 300}, {8, 0}, {9, 131}, {3, 700}, {40, 25},
                               {12, 0}, {1, 1},  {64, 130}, {8, 8}, {0, 0},   {1, 257}, {10, 9}};

/// Everything that must be what each sequence is alone. These policies are the same for every batch item.
template <class Stored, class... P>
void check_alone(support::Table& table, const std::string& name, const Ragged<Stored>& x, const P&... policies) {
  using T = typename Ragged<Stored>::T;
  std::vector<Tensor<T>> plain, observed;
  std::vector<ab::Evidence<T>> expected(static_cast<std::size_t>(x.count));
  for (Index s = 0; s < x.count; ++s) {
    const Index n = std::max(x.queries(s), Index(1));
    for (auto* outputs : {&plain, &observed}) outputs->emplace_back(Layout::bhsd, 1, heads, n, value_dim);
    if (x.queries(s) == 0) continue;
    const auto& cache = x.alone[static_cast<std::size_t>(s)];
    ab::attention(x.of(x.q, s), cache, plain.back().view(), policies...);
    ab::attention(x.of(x.q, s), cache, observed.back().view(), policies...,
                  ab::observe(expected[static_cast<std::size_t>(s)]));
  }
  auto compare = [&](const std::string& what, const Tensor<T>& out, const std::vector<Tensor<T>>& each) {
    for (Index s = 0; s < x.count; ++s)
      if (x.queries(s) > 0)
        table.expect(support::same_bits(x.of(out, s), each[static_cast<std::size_t>(s)].view()),
                     what + ", sequence " + std::to_string(s));
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < out.view().length; ++i)
        if (i < x.offsets.front() || i >= x.offsets.back())
          table.expect(out(0, h, i, 3) == T(77), what + ", tokens of no sequence");
  };
  auto compare_evidence = [&](const std::string& what, const std::vector<ab::Evidence<T>>& evidence) {
    for (Index s = 0; s < x.count; ++s) {
      const auto& e = evidence[static_cast<std::size_t>(s)];
      table.expect(e.batch() == 1 && e.heads() == heads && e.queries() == x.queries(s) &&
                       e.keys() == x.alone[static_cast<std::size_t>(s)].length(0),
                   what + ", sizes of sequence " + std::to_string(s));
      if (x.queries(s) > 0)
        table.expect(support::same_bits(e, expected[static_cast<std::size_t>(s)]),
                     what + " of sequence " + std::to_string(s));
      else
        for (const T mass : e.mass(0, 0)) table.expect(mass == T(0), what + ", no queries");
    }
  };
  auto run = [&](const std::string& who, const auto& cache, const ab::PackedQueries& packed, const auto& executor) {
    table.begin(name + ' ' + who);
    Tensor<T> out = x.output(), other = x.output();
    std::vector<ab::Evidence<T>> evidence(expected.size()), only(expected.size());
    ab::Workspace workspace;
    ab::attention(x.q.view(), cache, out.view(), packed, policies..., executor, workspace);
    compare("output", out, plain);
    ab::attention(x.q.view(), cache, other.view(), policies..., ab::observe(evidence), packed, executor, workspace);
    compare("observed output", other, observed);
    compare_evidence("evidence", evidence);
    ab::attention_evidence(x.q.view(), cache, packed, policies..., ab::observe(only), executor);
    compare_evidence("evidence alone", only);
  };
  const ab::PackedQueries wide(x.offsets), narrow(x.narrow);
  run("whole", x.whole, wide, Anybody{});
  run("paged", x.paged, narrow, Anybody{});
  for (const Index pieces : {2, 7}) {
    run("backwards, " + std::to_string(pieces), x.whole, narrow, Anybody{Anybody::backwards, pieces});
    run("backwards, paged, " + std::to_string(pieces), x.paged, wide, Anybody{Anybody::backwards, pieces});
  }
  for (const Index pieces : {3, 16})
    run("threads, " + std::to_string(pieces), x.paged, wide, Anybody{Anybody::threads, pieces});
  for (const Index threads : {2, 16})
    run("OpenMp, " + std::to_string(threads), x.whole.view(), wide, Anybody{Anybody::open_mp, threads});
}

}  // namespace

TEMPLATE_TEST_CASE("queries of many sequences over a cache are those of each alone", "[attention][cache][packed]",
                   STORAGES) {
  support::Table table;
  const Ragged<TestType> all(mixed, 7);
  check_alone(table, "plain", all);
  check_alone(table, "causal", all, ab::mask::Causal{}, ab::score::Softcap{5});
  // A sequence that would keep the last worker long, and one that is by itself.
  const Ragged<TestType> uneven({{1, 20}, {150, 400}, {2, 9}}, 16);
  check_alone(table, "uneven", uneven, ab::mask::Window{60, 0});
  const Ragged<TestType> few({{1, 3000}, {4, 60}}, 130);
  check_alone(table, "few", few, ab::mask::Causal{}, ab::score::Softcap{5});
  const Ragged<TestType> single({{30, 50}}, 1);
  check_alone(table, "single", single);
  table.report();
}

TEMPLATE_TEST_CASE("queries of many sequences over a cache are the reference on what it holds",
                   "[attention][cache][packed]", STORAGES) {
  using T = typename ab::KvCache<TestType>::scalar;
  support::Table table;
  const Ragged<TestType> x(mixed, 16);
  const std::vector<T> logits(static_cast<std::size_t>(heads), T(0.5));
  Tensor<T> out = x.output();
  std::vector<ab::Evidence<T>> evidence(static_cast<std::size_t>(x.count));
  ab::attention(x.q.view(), x.paged, out.view(), ab::PackedQueries(x.offsets), ab::mask::Causal{},
                ab::normalize::Sink(logits), ab::observe(evidence), Anybody{Anybody::threads, 2});
  for (Index s = 0; s < x.count; ++s) {
    const support::Shape shape{1, heads, kv_heads, x.queries(s), x.paged.length(s), dim, value_dim};
    if (shape.queries == 0) continue;
    table.begin("sequence " + std::to_string(s));
    support::Random random(72);
    support::Inputs<T> held(shape, random);
    held.q.fill([&](Index, Index h, Index i, Index c) { return x.q(0, h, x.begin(s) + i, c); });
    support::read_back(x.paged.view(), s, held.k, held.v);
    Tensor<double> exact(Layout::bhsd, 1, heads, shape.queries, value_dim);
    ab::Evidence<double> truth;
    ab::reference::attention(held.q.input(), held.k.input(), held.v.input(), exact.view(), ab::mask::Causal{},
                             ab::normalize::Sink(logits), ab::observe(truth));
    // Scales and channel scales round once more than plain keys do.
    auto errors = support::logit_errors(shape, held, {.added = 0.5});
    for (double& e : errors) e *= 1.1;
    Tensor<T> mine(Layout::bhsd, 1, heads, shape.queries, value_dim);
    mine.fill([&](Index, Index h, Index i, Index c) { return out(0, h, x.begin(s) + i, c); });
    support::compare_output(table, "output", mine, exact, shape, errors, held.v);
    support::compare_evidence(table, evidence[static_cast<std::size_t>(s)], truth, shape, errors,
                              ab::QueryWeights::all());
  }
  table.report();
}

TEST_CASE("policies of packed queries are told the sequence", "[attention][cache][packed]") {
  const Ragged<float> x({{12, 10}, {3, 30}, {0, 8}, {9, 21}}, 4);
  const std::vector<Index> k_offsets{0, 10, 40, 48, 69}, lengths{10, 7, 8, 20};
  Tensor<float> k(Layout::bhsd, 1, kv_heads, 69, dim), v(Layout::bhsd, 1, kv_heads, 69, value_dim),
      bias(Layout::bhsd, 4, heads, 12, 30);
  support::Random random(73);
  bias.fill(random, support::Family::uniform);
  auto gather = [&](const Tensor<float>& from, const Tensor<float>& to) {
    to.fill([&](Index, Index h, Index j, Index c) {
      const Index s = std::upper_bound(k_offsets.begin(), k_offsets.end(), j) - k_offsets.begin() - 1;
      return from(s, h, j - k_offsets[static_cast<std::size_t>(s)], c);
    });
  };
  gather(x.k, k), gather(x.v, v);
  Tensor<float> out = x.output(), expected = x.output();
  std::vector<ab::Evidence<float>> evidence(4), of_tensors(4);
  const auto weights = ab::QueryWeights::last(2);
  auto compare = [&](const auto& statistic) {
    ab::attention(x.q.view(), k.view(), v.view(), expected.view(), ab::PackedSequences(x.offsets, k_offsets),
                  ab::score::Bias(bias.view()), ab::mask::KeyLengths(lengths),
                  ab::observe(of_tensors, weights, statistic));
    for (const Index pieces : {1, 2, 50}) {
      ab::attention(x.q.view(), x.paged, out.view(), ab::PackedQueries(x.offsets), ab::score::Bias(bias.view()),
                    ab::mask::KeyLengths(lengths), ab::observe(evidence, weights, statistic),
                    Anybody{Anybody::threads, pieces});
      CHECK(support::same_bits(out.view(), expected.view()));
      for (std::size_t s = 0; s < 4; ++s) CHECK(support::same_bits(evidence[s], of_tensors[s]));
    }
  };
  compare(ab::evidence::leave_one_out);
  compare(ab::evidence::squares);
}

TEST_CASE("packed queries multiply in bf16 as each sequence does", "[attention][cache][packed][bf16]") {
  support::Table table;
  const Ragged<ab::bf16> x(mixed, 7);
  check_alone(table, "pairs", x, ab::Bf16Products{}, ab::mask::Causal{});
  table.report();
}

TEST_CASE("packed queries multiply in integers as each sequence does", "[attention][cache][packed][int8]") {
  support::Table table;
  const Ragged<std::int8_t> x(mixed, 7);
  check_alone(table, "integers", x, ab::IntegerProducts{}, ab::mask::Causal{}, ab::score::Softcap{5});
  table.report();
}

// A worker keeps the converted rows of a key head for the query heads that share it: here two sequences have as many.
TEST_CASE("rows that were converted for one sequence are not taken for the next", "[attention][cache][packed]") {
  support::Random random(74);
  const support::Inputs<float> in({2, 4, 1, 24, 40, 8, 5}, random);
  const std::vector<Index> offsets{0, 12, 24};
  ab::KvCache<ab::bf16> both(2, 1, 40, 8, 5), alone(1, 1, 40, 8, 5);
  both.append(in.k.view(), in.v.view());
  Tensor<float> out(Layout::bhsd, 1, 4, 24, 5), one(Layout::bhsd, 1, 4, 12, 5);
  ab::attention(part(in.q.view(), 0, 0, 24), both, out.view(), ab::PackedQueries(offsets));
  for (const Index s : {0, 1}) {
    alone.clear(0);
    alone.append(part(in.k.view(), s, 0, 40), part(in.v.view(), s, 0, 40));
    ab::attention(part(in.q.view(), 0, 12 * s, 12), alone, one.view());
    CHECK(support::same_bits(part(out.view(), 0, 12 * s, 12), one.view()));
  }
}

TEST_CASE("tokens of many sequences are appended in one call, or none of them", "[cache][packed]") {
  const Ragged<float> x({{2, 9}, {0, 0}, {1, 13}, {30, 4}}, 5);
  const std::vector<std::int32_t> offsets{1, 10, 10, 23, 27};
  Tensor<float> k(Layout::bshd, 1, kv_heads, 28, dim), v(Layout::bhsd, 1, kv_heads, 28, value_dim);
  const auto fill = [&](const Tensor<float>& to, const Tensor<float>& from) {
    to.fill([&](Index, Index h, Index j, Index c) {
      const Index s = std::upper_bound(offsets.begin(), offsets.end(), j) - offsets.begin() - 1;
      return s < 0 || s > 3 ? 0 : from(s, h, j - offsets[static_cast<std::size_t>(s)], c);
    });
  };
  fill(k, x.k), fill(v, x.v);
  Tensor<float> expected = x.output(), out = x.output();
  ab::attention(x.q.view(), x.whole, expected.view(), ab::PackedQueries(x.offsets));
  const std::vector<Index> wide(offsets.begin(), offsets.end());
  const auto check = [&](auto cache) {
    cache.append(offsets, k.view(), v.view());
    ab::attention(x.q.view(), cache, out.view(), ab::PackedQueries(x.offsets));
    CHECK(support::same_bits(out.view(), expected.view()));
    // The first sequence would have room, the third has not.
    CHECK_THROWS_AS(cache.append(wide, k.view(), v.view()), ab::BudgetError);
    for (const Index s : {0, 1, 2, 3}) CHECK(cache.length(s) == x.whole.length(s));
    CHECK_THROWS_AS(cache.append(std::vector<Index>{0, 3, 2, 5, 28}, k.view(), v.view()), ab::ShapeError);
    CHECK_THROWS_AS(cache.append(std::vector<Index>{0, 1, 2, 3, 29}, k.view(), v.view()), ab::ShapeError);
    CHECK_THROWS_AS(cache.append(std::vector<Index>{0, 1, 2}, k.view(), v.view()), ab::ShapeError);
    CHECK(cache.seen(0) == 9);
    const std::size_t rows = static_cast<std::size_t>(kv_heads * (dim + value_dim));
    CHECK(cache.token_bytes() == rows * sizeof(float));
  };
  check(ab::KvCache<float>(4, kv_heads, 18, dim, value_dim));
  check(ab::PagedKvCache<float>(4, kv_heads, 8, 5, dim, value_dim));
}

TEST_CASE("packed queries take views of any kind", "[attention][cache][packed]") {
  const Ragged<float> x({{2, 20}, {11, 20}, {1, 20}}, 5);
  Tensor<float> expected = x.output(), out = x.output();
  const ab::PackedQueries packed(x.offsets);
  ab::attention(x.q.view(), x.whole, expected.view(), packed);
  // Without lengths all sequences have the length of the pages.
  ab::KvView<float> view = x.whole.view();
  view.lengths = {}, view.keys.length = view.values.length = 20;
  ab::attention(x.q.view(), view, out.view(), packed);
  CHECK(support::same_bits(out.view(), expected.view()));
  // Two sequences in the same pages.
  const auto pages = x.paged.view();
  std::vector<std::int32_t> table;
  for (const Index s : {0, 0, 2})
    for (const Index page : x.paged.block_table(s)) table.push_back(static_cast<std::int32_t>(page));
  const std::vector<std::int32_t> lengths{20, 13, 20};
  const auto shared = ab::paged(pages.keys, pages.values, table, 4, lengths);
  out = x.output();
  ab::attention(x.q.view(), shared, out.view(), packed, ab::mask::Causal{});
  auto whole = x.whole.view();
  for (const Index s : {0, 1, 2}) {
    Tensor<float> one(Layout::bhsd, 1, heads, x.queries(s), value_dim);
    const Index from = s == 1 ? 0 : s, keys = s == 1 ? 13 : 20;
    ab::attention(x.of(x.q, s), part(whole.keys, from, 0, keys), part(whole.values, from, 0, keys), one.view(),
                  ab::mask::Causal{});
    CHECK(support::same_bits(x.of(out, s), one.view()));
  }
}

TEST_CASE("sequences without a query leave empty evidence and nothing else", "[attention][cache][packed]") {
  const Ragged<float> x({{0, 20}, {0, 0}, {0, 5}}, 5);
  Tensor<float> out = x.output();
  std::vector<ab::Evidence<float>> evidence(3);
  for (const Index pieces : {1, 4}) {
    ab::attention(x.q.view(), x.paged, out.view(), ab::PackedQueries(x.offsets), ab::observe(evidence),
                  Anybody{Anybody::threads, pieces});
    for (std::size_t s = 0; s < 3; ++s) {
      CHECK(evidence[s].queries() == 0);
      CHECK(evidence[s].keys() == x.paged.length(static_cast<Index>(s)));
      for (const float mass : evidence[s].mass(0, heads - 1)) CHECK(mass == 0);
    }
  }
  const auto memory = out.memory();
  CHECK(std::all_of(memory.begin(), memory.end(), [](float y) { return y == 77; }));
}

TEST_CASE("offsets in braces are copied", "[attention][cache][packed]") {
  const Ragged<float> x({{2, 20}, {3, 5}}, 5);
  Tensor<float> expected = x.output(), out = x.output(), of_tensors = x.output();
  ab::attention(x.q.view(), x.whole, expected.view(), ab::PackedQueries(x.offsets));
  const ab::PackedQueries packed({2, 4, 7});
  ab::attention(x.q.view(), x.whole, out.view(), packed);
  CHECK(out.memory() == expected.memory());
  ab::KvCache<float> cache(2, kv_heads, 25, dim, value_dim);
  const auto k = part(x.k.view(), 0, 0, 23), v = part(x.v.view(), 0, 0, 23);
  cache.append({0, 20, 23}, k, v);
  CHECK((cache.length(0) == 20 && cache.length(1) == 3));
  ab::attention(x.q.view(), cache, expected.view(), packed);
  const ab::PackedSequences sequences({2, 4, 7}, {0, 20, 23});
  ab::attention(x.q.view(), k, v, of_tensors.view(), sequences);
  CHECK(of_tensors.memory() == expected.memory());
  CHECK(sequences.sequences() == 2);
  CHECK_THROWS_WITH(ab::PackedQueries({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}),
                    Catch::Matchers::ContainsSubstring("PackedQueries braced list length is 17"));
}

TEST_CASE("packed queries that do not fit are refused", "[attention][cache][packed][shape]") {
  const Ragged<float> x({{2, 20}, {11, 5}}, 5);
  using Offsets = std::vector<Index>;
  using Catch::Matchers::ContainsSubstring;
  const Offsets good{0, 2, 13};
  Tensor<float> out = x.output();
  auto run = [&](const Offsets& offsets) {
    ab::attention(x.q.view(), x.whole, out.view(), ab::PackedQueries(offsets));
  };
  CHECK_THROWS_WITH(run(Offsets{0, 2, 5, 13}),
                    ContainsSubstring("PackedQueries number of sequences is 3, but must equal cache.batch = 2"));
  CHECK_THROWS_WITH(run(Offsets{0, 13}), ContainsSubstring("PackedQueries number of sequences is 1"));
  CHECK_THROWS_WITH(run(Offsets{}), ContainsSubstring("PackedQueries number of offsets is 0"));
  CHECK_THROWS_WITH(run(Offsets{5}), ContainsSubstring("PackedQueries number of sequences is 0"));
  CHECK_THROWS_WITH(run(Offsets{0, 2, 19}), ContainsSubstring("PackedQueries offset 2 is 19"));
  CHECK_THROWS_WITH(run(Offsets{0, 3, 2}), ContainsSubstring("PackedQueries offset 2 is 2"));
  CHECK_THROWS_WITH(run(Offsets{-1, 3, 4}), ContainsSubstring("PackedQueries offset 0 is -1"));
  constexpr Index huge = std::numeric_limits<Index>::max();
  CHECK_THROWS_AS(run(Offsets{std::numeric_limits<Index>::min(), 0, huge}), ab::ShapeError);
  CHECK_THROWS_AS(run(Offsets{0, huge, huge}), ab::ShapeError);
  const ab::PackedQueries packed(good);
  Tensor<float> two(Layout::bhsd, 2, heads, 13, dim), two_out(Layout::bhsd, 2, heads, 13, value_dim);
  CHECK_THROWS_WITH(ab::attention(two.view(), x.whole, two_out.view(), packed),
                    ContainsSubstring("q.batch of packed queries is 2"));
  std::vector<ab::Evidence<float>> one(1), both(2);
  CHECK_THROWS_WITH(ab::attention(x.q.view(), x.whole, out.view(), packed, ab::observe(one)),
                    ContainsSubstring("observe number of evidences is 1"));
  const std::vector<float> weights(2, 1.f);
  CHECK_THROWS_WITH(
      ab::attention(x.q.view(), x.whole, out.view(), packed, ab::observe(both, ab::QueryWeights::of(weights))),
      ContainsSubstring("number of weights is 2, but must equal q.length = 11"));
  // No sequences at all.
  auto none = x.paged.view();
  none.lengths = std::span<const Index>(), none.block_table = std::span<const Index>();
  CHECK_THROWS_WITH(ab::attention(x.q.view(), none, out.view(), packed), ContainsSubstring("cache.batch = 0"));
  // Outputs in the memory of the queries, of the offsets, and of the keys.
  CHECK_THROWS_WITH(ab::attention(part(x.q.view(), 0, 0, 13), x.whole,
                                  ab::TensorView<float>{&x.q(0, 0, 0, 0), 1, heads, 13, value_dim, 0, dim,
                                                        heads * dim, 1},
                                  packed),
                    ContainsSubstring("in the memory of q"));
  std::vector<std::int32_t> place(static_cast<std::size_t>(heads * 18 * value_dim), 0);
  std::copy_n(x.narrow.begin(), 3, place.begin());
  const auto inside = ab::bhsd(reinterpret_cast<float*>(place.data()), 1, heads, 18, value_dim);
  CHECK_THROWS_WITH(ab::attention(x.q.view(), x.whole, inside,
                                  ab::PackedQueries(std::span<const std::int32_t>(place.data(), 3))),
                    ContainsSubstring("in the memory of PackedQueries"));
  const auto keys = x.whole.view().keys;
  CHECK_THROWS_WITH(ab::attention(x.q.view(), x.whole,
                                  ab::bhsd(const_cast<float*>(keys.data), 1, heads, 18, value_dim), packed),
                    ContainsSubstring("in the memory of cache.keys"));
  const auto memory = out.memory();
  CHECK(std::all_of(memory.begin(), memory.end(), [](float y) { return y == 77; }));
  CHECK(both[0].batch() == 0);
  CHECK_NOTHROW(ab::attention(x.q.view(), x.whole, out.view(), ab::PackedQueries(std::span<const Index>(good)),
                              ab::observe(both)));
  CHECK(both[1].queries() == 11);
}
