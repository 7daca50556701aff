// Packed sequences: the results of each sequence alone, bit by bit, and of the reference.

#include "support/anybody.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

/// Sequences of many kinds, one after the other, with tokens of no sequence around them.
struct Lengths {
  std::vector<Index> queries, keys;
  std::vector<std::int32_t> narrow_queries, narrow_keys;
  Index all_queries, all_keys;

  explicit Lengths(const std::vector<std::pair<Index, Index>>& sizes) : queries{2}, keys{1} {
    for (const auto& [q, k] : sizes) queries.push_back(queries.back() + q), keys.push_back(keys.back() + k);
    for (const Index x : queries) narrow_queries.push_back(static_cast<std::int32_t>(x));
    for (const Index x : keys) narrow_keys.push_back(static_cast<std::int32_t>(x));
    all_queries = queries.back() + 3, all_keys = keys.back() + 2;
  }
  Index count() const { return static_cast<Index>(queries.size()) - 1; }
};

template <class T>
ab::TensorView<T> tokens(ab::TensorView<T> x, Index begin, Index end) {
  x.data += begin * x.length_stride;
  x.length = end - begin;
  return x;
}

template <class T, class... P>
void check_packed(support::Table& table, const Lengths& lengths, Layout layout, const P&... policies) {
  constexpr Index heads = 4, kv_heads = 2, dim = 12, value_dim = 9;
  support::Random random(51);
  Tensor<T> q(layout, 1, heads, lengths.all_queries, dim), k(layout, 1, kv_heads, lengths.all_keys, dim),
      v(layout, 1, kv_heads, lengths.all_keys, value_dim),
      out(Layout::bshd, 1, heads, lengths.all_queries, value_dim);
  for (auto* x : {&q, &k, &v}) x->fill(random, support::Family::uniform, 2);
  out.fill([](auto...) { return 77; });
  Tensor<double> exact(Layout::bhsd, 1, heads, lengths.all_queries, value_dim);
  exact.fill([](auto...) { return 77; });

  const ab::PackedSequences packed(lengths.queries, lengths.keys);
  std::vector<ab::Evidence<T>> evidence(static_cast<std::size_t>(lengths.count())), alone = evidence;
  std::vector<ab::Evidence<double>> expected(evidence.size());
  Tensor<T> plain(Layout::bhsd, 1, heads, lengths.all_queries, value_dim);
  ab::Workspace workspace;
  ab::attention(q.view(), k.view(), v.view(), plain.view(), packed, policies...);
  ab::attention(q.view(), k.view(), v.view(), out.view(), policies..., ab::observe(evidence), workspace, packed);
  ab::attention_evidence(q.view(), k.view(), policies..., packed, ab::observe(alone));
  ab::reference::attention(q.view(), k.view(), v.view(), exact.view(), packed, policies..., ab::observe(expected));

  table.begin("sequences");
  auto near = table.column("output"), mass = table.column("mass"), lse = table.column("lse");
  const double bound = 4000 * static_cast<double>(std::numeric_limits<T>::epsilon());
  for (Index s = 0; s < lengths.count(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    const Index q0 = lengths.queries[at], q1 = lengths.queries[at + 1], k0 = lengths.keys[at],
                k1 = lengths.keys[at + 1];
    const auto& e = evidence[at];
    table.expect(e.queries() == q1 - q0 && e.keys() == k1 - k0 && e.heads() == heads && e.batch() == 1, "sizes");
    table.expect(support::same_bits(e, alone[at]), "evidence alone");
    if (q1 == q0) continue;
    for (Index h = 0; h < heads; ++h) {
      for (Index i = q0; i < q1; ++i)
        for (Index c = 0; c < value_dim; ++c)
          near.compare(static_cast<double>(plain(0, h, i, c)), exact(0, h, i, c), bound, i);
      for (std::size_t j = 0; j < static_cast<std::size_t>(k1 - k0); ++j)
        mass.compare(static_cast<double>(e.mass(0, h)[j]), expected[at].mass(0, h)[j],
                     bound * (1 + expected[at].mass(0, h)[j]), static_cast<Index>(j));
      for (std::size_t i = 0; i < static_cast<std::size_t>(q1 - q0); ++i)
        lse.compare(static_cast<double>(e.lse(0, h)[i]), expected[at].lse(0, h)[i],
                    bound * (1 + std::fabs(expected[at].lse(0, h)[i])), static_cast<Index>(i));
    }
    // Each alone. These policies are the same for every batch item.
    Tensor<T> one(Layout::bhsd, 1, heads, q1 - q0, value_dim);
    ab::Evidence<T> of_one;
    const auto qs = tokens(q.view(), q0, q1);
    const auto ks = tokens(k.view(), k0, k1);
    const auto vs = tokens(v.view(), k0, k1);
    ab::attention(qs, ks, vs, one.view(), policies...);
    table.expect(support::same_bits(one.view(), tokens(plain.view(), q0, q1)),
                 "alone, sequence " + std::to_string(s));
    ab::attention(qs, ks, vs, one.view(), policies..., ab::observe(of_one));
    table.expect(support::same_bits(one.view(), tokens(out.view(), q0, q1)),
                 "observed, sequence " + std::to_string(s));
    table.expect(support::same_bits(of_one, e), "evidence of sequence " + std::to_string(s));
  }
  auto untouched = [&](Index begin, Index end) {
    for (Index h = 0; h < heads; ++h)
      for (Index i = begin; i < end; ++i)
        for (Index c = 0; c < value_dim; ++c) table.expect(out(0, h, i, c) == T(77), "tokens of no sequence");
  };
  untouched(0, lengths.queries.front());
  untouched(lengths.queries.back(), lengths.all_queries);

  // Any number of threads, and offsets of either width.
  const ab::PackedSequences narrow(lengths.narrow_queries, lengths.narrow_keys);
  for (Index threads : {2, 3, 16}) {
    Tensor<T> again(Layout::bhsd, 1, heads, lengths.all_queries, value_dim);
    std::vector<ab::Evidence<T>> observed(evidence.size());
    ab::attention(q.view(), k.view(), v.view(), again.view(), policies..., narrow, ab::observe(observed),
                  support::openmp(threads));
    for (std::size_t s = 0; s < evidence.size(); ++s)
      table.expect(support::same_bits(observed[s], evidence[s]), "evidence with threads");
    const auto first = lengths.queries.front(), last = lengths.queries.back();
    table.expect(support::same_bits(tokens(again.view(), first, last), tokens(out.view(), first, last)), "threads");
    ab::attention(q.view(), k.view(), v.view(), again.view(), policies..., narrow, support::openmp(threads));
    table.expect(support::same_bits(tokens(again.view(), first, last), tokens(plain.view(), first, last)),
                 "threads, not observed");
  }
}

}  // namespace

TEMPLATE_TEST_CASE("packed sequences are each sequence alone", "[attention][packed]", SCALARS) {
  using T = TestType;
  support::Table table;
  const Lengths mixed({{20, 20}, {1, 40}, {0, 7}, {9, 0}, {300, 260}, {50, 130}, {0, 0}, {8, 8}, {17, 16}});
  const Lengths single({{40, 33}});
  for (const Lengths* lengths : {&mixed, &single})
    for (const Layout layout : {Layout::bshd, Layout::columns}) {
      check_packed<T>(table, *lengths, layout);
      check_packed<T>(table, *lengths, layout, ab::mask::Causal{}, ab::score::Softcap{5});
    }
  table.report();
}

TEMPLATE_TEST_CASE("many packed sequences that decode are each alone, in any company",
                   "[attention][packed][executor]", SCALARS) {
  using T = TestType;
  constexpr Index heads = 6, kv_heads = 2, dim = 20, value_dim = 17;
  // No keys, one, a block and a part, several splits, and one that is long beside the others.
  constexpr Index lengths[] = {40, 0, 300, 1, 700, 128, 5, 129, 2100};
  std::vector<Index> q_offsets{0}, k_offsets{0};
  for (Index s = 0; s < 40; ++s) {
    q_offsets.push_back(q_offsets.back() + (s == 11 ? 0 : 1 + s % 8));
    k_offsets.push_back(k_offsets.back() + lengths[s % 9]);
  }
  const auto count = q_offsets.size() - 1;
  support::Random random(54);
  Tensor<T> q(Layout::bshd, 1, heads, q_offsets.back(), dim), k(Layout::bhsd, 1, kv_heads, k_offsets.back(), dim),
      v(Layout::bshd, 1, kv_heads, k_offsets.back(), value_dim),
      expected(Layout::bhsd, 1, heads, q_offsets.back(), value_dim);
  for (auto* x : {&q, &k, &v}) x->fill(random, support::Family::log_normal, 1);
  const std::vector<T> logits(static_cast<std::size_t>(heads), T(0.5));

  support::Table table;
  auto check = [&](const auto&... policies) {
    std::vector<ab::Evidence<T>> alone(count);
    for (std::size_t s = 0; s < count; ++s) {
      if (q_offsets[s] == q_offsets[s + 1]) continue;
      ab::attention(
          tokens(q.view(), q_offsets[s], q_offsets[s + 1]), tokens(k.view(), k_offsets[s], k_offsets[s + 1]),
          tokens(v.view(), k_offsets[s], k_offsets[s + 1]), tokens(expected.view(), q_offsets[s], q_offsets[s + 1]),
          policies..., ab::observe(alone[s], ab::QueryWeights::all(), ab::evidence::leave_one_out));
    }
    auto run = [&](const std::string& name, const ab::PackedSequences& sequences, std::size_t first,
                   std::size_t some, const auto& executor) {
      table.begin(name);
      Tensor<T> out(Layout::bhsd, 1, heads, q_offsets.back(), value_dim);
      std::vector<ab::Evidence<T>> evidence(some);
      ab::attention(q.view(), k.view(), v.view(), out.view(), sequences, policies..., executor,
                    ab::observe(evidence, ab::QueryWeights::all(), ab::evidence::leave_one_out));
      const Index begin = q_offsets[first], end = q_offsets[first + some];
      table.expect(support::same_bits(tokens(out.view(), begin, end), tokens(expected.view(), begin, end)),
                   "observed output");
      for (std::size_t s = 0; s < some; ++s)
        if (q_offsets[first + s] < q_offsets[first + s + 1])
          table.expect(support::same_bits(evidence[s], alone[first + s]),
                       "evidence of sequence " + std::to_string(first + s));
      Tensor<T> plain(Layout::bhsd, 1, heads, q_offsets.back(), value_dim);
      ab::attention(q.view(), k.view(), v.view(), plain.view(), sequences, policies..., executor);
      table.expect(support::same_bits(plain.view(), out.view()), "output");
    };
    const ab::PackedSequences all(q_offsets, k_offsets);
    run("Sequential", all, 0, count, ab::executor::Sequential{});
    for (const Index pieces : {1, 2, 3, 7, 100}) {
      run("backwards, " + std::to_string(pieces), all, 0, count,
          support::Anybody{support::Anybody::backwards, pieces});
      run("threads, " + std::to_string(pieces), all, 0, count, support::Anybody{support::Anybody::threads, pieces});
    }
    for (const Index threads : {2, 3, 16})
      run("OpenMp, " + std::to_string(threads), all, 0, count, support::Anybody{support::Anybody::open_mp, threads});
#if defined(ATTENTION_BALANCER_HAS_TBB)
    for (const Index threads : {2, 3})
      run("Tbb, " + std::to_string(threads), all, 0, count, support::tbb(threads));
#endif
    // Fewer of them, so that other ones are too long for one worker.
    for (const auto& [first, some] : {std::pair<std::size_t, std::size_t>{0, 4}, {4, 5}, {9, 20}, {39, 1}}) {
      const std::vector<Index> part_q(q_offsets.begin() + static_cast<std::ptrdiff_t>(first),
                                      q_offsets.begin() + static_cast<std::ptrdiff_t>(first + some + 1)),
          part_k(k_offsets.begin() + static_cast<std::ptrdiff_t>(first),
                 k_offsets.begin() + static_cast<std::ptrdiff_t>(first + some + 1));
      run("part of them", ab::PackedSequences(part_q, part_k), first, some,
          support::Anybody{support::Anybody::threads, 2});
    }
  };
  check();
  check(ab::mask::Causal{}, ab::normalize::Sink(logits));
  table.report();
}

TEMPLATE_TEST_CASE("packed sequences of more than the caches hold are each alone", "[attention][packed]", SCALARS) {
  using T = TestType;
  constexpr Index heads = 6, kv_heads = 3, dim = 40, value_dim = 36, count = 120;
  // Some have no queries or no keys, some decode, some are cut into chunks, one is not small.
  std::vector<Index> q_offsets{0}, k_offsets{0};
  for (Index s = 0; s < count; ++s) {
    q_offsets.push_back(q_offsets.back() + (s == 31 ? 300 : s * 37 % 71));
    k_offsets.push_back(k_offsets.back() + (s == 31 ? 500 : s * 29 % 67));
  }
  support::Random random(55);
  Tensor<T> q(Layout::bshd, 1, heads, q_offsets.back(), dim), k(Layout::bhsd, 1, kv_heads, k_offsets.back(), dim),
      v(Layout::bshd, 1, kv_heads, k_offsets.back(), value_dim);
  for (auto* x : {&q, &k, &v}) x->fill(random, support::Family::uniform, 1);
  const ab::PackedSequences packed(q_offsets, k_offsets);
  const auto tensor = [&] { return Tensor<T>(Layout::bshd, 1, heads, q_offsets.back(), value_dim); };
  Tensor<T> plain = tensor(), observed = tensor(), of_threads = tensor();
  std::vector<ab::Evidence<T>> evidence(static_cast<std::size_t>(count));
  ab::attention(q.view(), k.view(), v.view(), plain.view(), packed);
  ab::attention(q.view(), k.view(), v.view(), observed.view(), packed, ab::observe(evidence));
  ab::attention(q.view(), k.view(), v.view(), of_threads.view(), packed, support::openmp(3));

  support::Table table;
  for (std::size_t s = 0; s < evidence.size(); ++s) {
    const Index begin = q_offsets[s], end = q_offsets[s + 1];
    if (begin == end) continue;
    table.begin("sequence " + std::to_string(s));
    Tensor<T> one(Layout::bhsd, 1, heads, end - begin, value_dim);
    ab::Evidence<T> alone;
    const auto attend = [&](const auto&... policies) {
      ab::attention(tokens(q.view(), begin, end), tokens(k.view(), k_offsets[s], k_offsets[s + 1]),
                    tokens(v.view(), k_offsets[s], k_offsets[s + 1]), one.view(), policies...);
    };
    attend();
    table.expect(support::same_bits(one.view(), tokens(plain.view(), begin, end)), "output");
    table.expect(support::same_bits(one.view(), tokens(of_threads.view(), begin, end)), "output of three threads");
    attend(ab::observe(alone));
    table.expect(support::same_bits(one.view(), tokens(observed.view(), begin, end)), "observed output");
    table.expect(support::same_bits(alone, evidence[s]), "evidence");
  }
  table.report();
}

TEST_CASE("what is not a number stays in its packed sequence", "[attention][packed]") {
  // All but the even ones, and the tokens of no sequence, become NaN.
  const Lengths lengths(
      {{70, 130}, {20, 40}, {1, 50}, {3, 300}, {9, 9}, {1, 1}, {40, 17}, {130, 200}, {12, 0}, {2, 5}, {33, 20}});
  constexpr Index heads = 4, kv_heads = 2, dim = 12, value_dim = 9;
  support::Random random(56);
  Tensor<float> q(Layout::bshd, 1, heads, lengths.all_queries, dim),
      k(Layout::bhsd, 1, kv_heads, lengths.all_keys, dim),
      v(Layout::bshd, 1, kv_heads, lengths.all_keys, value_dim);
  for (auto* x : {&q, &k, &v}) x->fill(random, support::Family::uniform, 2);
  const auto tensor = [&] { return Tensor<float>(Layout::bhsd, 1, heads, lengths.all_queries, value_dim); };
  Tensor<float> clean = tensor(), plain = tensor(), out = tensor();
  using Evidences = std::vector<ab::Evidence<float>>;
  Evidences clean_evidence(static_cast<std::size_t>(lengths.count())), evidence = clean_evidence;
  const ab::PackedSequences packed(lengths.queries, lengths.keys);
  ab::Workspace workspace;
  auto run = [&](const Tensor<float>& to, Evidences& e, Index pieces) {
    ab::attention(q.view(), k.view(), v.view(), to.view(), packed, ab::mask::Causal{}, workspace,
                  ab::observe(e, ab::QueryWeights::all(), ab::evidence::squares),
                  support::Anybody{support::Anybody::threads, pieces});
  };
  run(clean, clean_evidence, 1);

  constexpr float no_number = std::numeric_limits<float>::quiet_NaN();
  const auto poison = [&](const Tensor<float>& x, const std::vector<Index>& offsets) {
    x.fill([&](Index b, Index h, Index i, Index c) {
      const Index s = std::upper_bound(offsets.begin(), offsets.end(), i) - offsets.begin() - 1;
      return s >= 0 && s < lengths.count() && s % 2 == 0 ? x(b, h, i, c) : no_number;
    });
  };
  poison(q, lengths.queries), poison(k, lengths.keys), poison(v, lengths.keys);
  support::Table table;
  for (const Index pieces : {1, 2, 30}) {
    table.begin(std::to_string(pieces) + " pieces");
    run(out, evidence, pieces);
    ab::attention(q.view(), k.view(), v.view(), plain.view(), packed, ab::mask::Causal{}, workspace,
                  support::Anybody{support::Anybody::threads, pieces});
    for (std::size_t s = 0; s < evidence.size(); ++s) {
      const Index begin = lengths.queries[s], end = lengths.queries[s + 1];
      const std::string of = " of sequence " + std::to_string(s);
      if (s % 2 == 0) {
        const auto expected = tokens(clean.view(), begin, end);
        table.expect(support::same_bits(tokens(out.view(), begin, end), expected), "observed output" + of);
        table.expect(support::same_bits(tokens(plain.view(), begin, end), expected), "output" + of);
        table.expect(support::same_bits(evidence[s], clean_evidence[s]), "evidence" + of);
      } else {
        table.expect(std::isnan(out(0, 3, end - 1, 0)) && std::isnan(plain(0, 3, end - 1, 0)), "output" + of);
        table.expect(std::isnan(evidence[s].mass(0, 3)[0]), "mass" + of);
      }
    }
  }
  table.report();
}

TEST_CASE("policies of packed sequences are told the sequence", "[attention][packed]") {
  const std::vector<Index> q_offsets{0, 12, 15}, k_offsets{0, 10, 30};
  support::Random random(52);
  Tensor<float> q(Layout::bhsd, 1, 2, 15, 4), k(Layout::bhsd, 1, 2, 30, 4), v(Layout::bhsd, 1, 2, 30, 4),
      out(Layout::bhsd, 1, 2, 15, 4), bias(Layout::bhsd, 2, 1, 12, 20), one(Layout::bhsd, 1, 2, 3, 4);
  for (auto* x : {&q, &k, &v, &bias}) x->fill(random, support::Family::uniform);
  const ab::PackedSequences packed(q_offsets, k_offsets);
  ab::attention(q.view(), k.view(), v.view(), out.view(), packed, ab::score::Bias(bias.view()),
                ab::mask::KeyLengths{10, 7});
  auto second = bias.view();
  second.data = &bias(1, 0, 0, 0), second.batch = 1, second.length = 3;
  ab::attention(tokens(q.view(), 12, 15), tokens(k.view(), 10, 30), tokens(v.view(), 10, 30), one.view(),
                ab::score::Bias(second), ab::mask::KeyLengths{7});
  CHECK(support::same_bits(one.view(), tokens(out.view(), 12, 15)));
}

TEST_CASE("what few packed queries could see is counted by the masks of their sequence", "[attention][packed]") {
  const std::vector<Index> q_offsets{0, 2, 14, 15}, k_offsets{0, 20, 60, 90}, lengths{5, 20, 9};
  support::Random random(55);
  Tensor<float> q(Layout::bhsd, 1, 2, 15, 4), k(Layout::bhsd, 1, 2, 90, 4), v(Layout::bhsd, 1, 2, 90, 4),
      out(Layout::bhsd, 1, 2, 15, 4);
  for (auto* x : {&q, &k, &v}) x->fill(random, support::Family::uniform);
  std::vector<ab::Evidence<float>> evidence(3);
  ab::attention(q.view(), k.view(), v.view(), out.view(), ab::PackedSequences(q_offsets, k_offsets),
                ab::mask::KeyLengths(lengths), ab::observe(evidence));
  for (std::size_t s = 0; s < 3; ++s)
    for (Index h = 0; h < 2; ++h)
      for (Index j = 0; j < k_offsets[s + 1] - k_offsets[s]; ++j) {
        INFO("sequence " << s << " head " << h << " key " << j);
        const auto queries = static_cast<float>(j < lengths[s] ? q_offsets[s + 1] - q_offsets[s] : 0);
        CHECK(evidence[s].exposure(0, h)[static_cast<std::size_t>(j)] == queries);
      }
}

TEST_CASE("packed sequences that do not fit are refused", "[attention][packed][shape]") {
  support::Random random(53);
  Tensor<float> q(Layout::bhsd, 1, 1, 6, 2), k(Layout::bhsd, 1, 1, 8, 2), out(Layout::bhsd, 1, 1, 6, 2),
      two(Layout::bhsd, 2, 1, 6, 2), two_k(Layout::bhsd, 2, 1, 8, 2);
  for (auto* x : {&q, &k, &two, &two_k}) x->fill(random, support::Family::uniform);
  using Offsets = std::vector<Index>;
  auto run = [&](const Offsets& a, const Offsets& b) {
    ab::attention(q.view(), k.view(), k.view(), out.view(), ab::PackedSequences(a, b));
  };
  const Offsets good_q{0, 3, 6}, good_k{0, 4, 8};
  CHECK_NOTHROW(run(good_q, good_k));
  CHECK_THROWS_WITH(run(Offsets{0, 3, 7}, good_k),
                    Catch::Matchers::ContainsSubstring("PackedSequences queries offset 2 is 7"));
  CHECK_THROWS_WITH(run(good_q, Offsets{0, 5, 4}),
                    Catch::Matchers::ContainsSubstring("PackedSequences keys offset 2 is 4"));
  CHECK_THROWS_WITH(run(Offsets{-1, 3, 6}, good_k), Catch::Matchers::ContainsSubstring("offset 0 is -1"));
  CHECK_THROWS_WITH(run(Offsets{}, good_k), Catch::Matchers::ContainsSubstring("number of offsets is 0"));
  CHECK_THROWS_WITH(run(Offsets{0, 6}, good_k), Catch::Matchers::ContainsSubstring("number of key offsets is 3"));
  Tensor<float> two_out(Layout::bhsd, 2, 1, 6, 2);
  CHECK_THROWS_WITH(
      ab::attention(two.view(), two_k.view(), two_k.view(), two_out.view(), ab::PackedSequences(good_q, good_k)),
      Catch::Matchers::ContainsSubstring("q.batch of packed sequences is 2"));
  std::vector<ab::Evidence<float>> one(1);
  CHECK_THROWS_AS(ab::attention(q.view(), k.view(), k.view(), out.view(), ab::PackedSequences(good_q, good_k),
                                ab::observe(one)),
                  ab::ShapeError);
}
