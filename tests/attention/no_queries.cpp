// A step without any token, or a batch without an item, is a call that does nothing: what it may write is written, and
// what is wrong with it is still refused.

#include "attention_balancer/attention/merge.hpp"
#include "support/anybody.hpp"
#include "support/cache.hpp"
#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;
using Catch::Matchers::ContainsSubstring;

constexpr Index heads = 4, kv_heads = 2, keys = 5, dim = 3, value_dim = 7;

/// Tensors of so many batch items and queries: what has no elements has no memory either.
template <class T>
struct Nobody {
  Index batch, queries;
  Tensor<T> q{Layout::bhsd, batch, heads, queries, dim}, k{Layout::bshd, batch, kv_heads, keys, dim},
      v{Layout::bhsd, batch, kv_heads, keys, value_dim}, out{Layout::bhsd, batch, heads, queries, value_dim};

  Nobody(Index items, Index of_each) : batch(items), queries(of_each) {
    for (auto* x : {&q, &k, &v}) x->fill([](auto...) { return std::nan(""); });  // nobody looks
  }
};

/// An Evidence of something else, which the call overwrites.
template <class T>
ab::Evidence<T> used_evidence() {
  const std::vector<T> numbers{1, 2, 3, 4};
  const auto x = ab::bhsd(numbers.data(), 2, 1, 2, 1);
  ab::Evidence<T> evidence;
  ab::attention_evidence(x, x, ab::observe(evidence));
  return evidence;
}

template <class T>
void check_nothing(const ab::Evidence<T>& e, Index batch, Index queries, Index of_keys) {
  CHECK(e.batch() == batch);
  CHECK(e.heads() == heads);
  CHECK(e.queries() == queries);
  CHECK(e.keys() == of_keys);
  CHECK(e.has_mass());
  for (Index b = 0; b < batch; ++b)
    for (Index h = 0; h < heads; ++h) {
      for (const auto& row : {e.mass(b, h), e.exposure(b, h), e.statistic(b, h)}) {
        CHECK(static_cast<Index>(row.size()) == of_keys);
        CHECK(std::count(row.begin(), row.end(), T(0)) == of_keys);
      }
      CHECK(e.lse(b, h).empty());
      CHECK(e.entropy(b, h).empty());
      CHECK(e.support(b, h).empty());
      CHECK(e.sink_mass(b, h) == 0);
      CHECK(e.empty_rows(b, h) == 0);
    }
}

}  // namespace

TEST_CASE("attention of no queries", "[attention][empty]") {
  using T = float;
  const std::vector<T> bias(keys, T(1)), sinks(heads, T(2));
  for (const auto& sizes : {std::pair<Index, Index>{2, 0}, {0, 3}, {0, 0}, {0, 40}}) {
    const Index batch = sizes.first, queries = sizes.second;
    INFO("batch " << batch << " queries " << queries);
    const Nobody<T> x(batch, queries);
    const std::vector<Index> lengths(static_cast<std::size_t>(batch), 2);
    ab::Workspace workspace;
    auto check = [&](auto statistic, const auto&... policies) {
      auto evidence = used_evidence<T>();
      ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), policies..., workspace);
      ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), policies...,
                    ab::observe(evidence, ab::QueryWeights::all(), statistic));
      check_nothing(evidence, batch, queries, keys);
      ab::Evidence<double> expected;
      ab::reference::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), policies...,
                               ab::observe(expected, ab::QueryWeights::all(), statistic));
      check_nothing(expected, batch, queries, keys);
    };
    check(ab::evidence::mass);
    check(ab::evidence::leave_one_out, ab::mask::Causal{}, ab::mask::KeyLengths(lengths), ab::score::KeyBias(bias));
    check(ab::evidence::maximum, ab::normalize::Sink(sinks), ab::score::Softcap{T(3)}, ab::mask::Window{2, 2});
    check(ab::evidence::squares, ab::normalize::Sparsemax{});

    auto evidence = used_evidence<T>();
    ab::attention_evidence(x.q.view(), x.k.view(), ab::observe(evidence, ab::QueryWeights::last(3)));
    check_nothing(evidence, batch, queries, keys);
    // The weights of a query among those that there are none of.
    if (queries == 0) ab::attention_evidence(x.q.view(), x.k.view(), ab::observe(evidence, ab::QueryWeights::only(0)));
    ab::attention_evidence(x.q.view(), x.k.view(), ab::observe(evidence, ab::QueryWeights::none()));
    CHECK(!evidence.has_mass());
    CHECK(evidence.queries() == queries);
  }
}

TEST_CASE("no queries and no keys", "[attention][empty]") {
  const auto x = ab::bhsd(static_cast<float*>(nullptr), 1, heads, 0, dim);
  ab::Evidence<float> evidence;
  ab::attention(x, x, x, x, ab::mask::Causal{}, ab::observe(evidence));
  check_nothing(evidence, 1, 0, 0);
}

TEST_CASE("what is wrong with a call of no queries is refused", "[attention][empty][bad input]") {
  for (const auto& sizes : {std::pair<Index, Index>{2, 0}, {0, 3}}) {
    const Index batch = sizes.first, queries = sizes.second;
    INFO("batch " << batch << " queries " << queries);
    const Nobody<float> x(batch, queries);
    auto q = x.q.view(), k = x.k.view(), v = x.v.view(), out = x.out.view();
    auto refuses = [&](const char* words, const auto&... policies) {
      auto evidence = used_evidence<float>();
      const auto before = evidence;
      CHECK_THROWS_WITH(ab::attention(q, k, v, out, policies..., ab::observe(evidence)), ContainsSubstring(words));
      CHECK(support::same_bits(evidence, before));
    };
    refuses("mask::Window left is -7", ab::mask::Window{-7});
    refuses("score::Scale factor is inf", ab::score::Scale{std::numeric_limits<float>::infinity()});
    SECTION("batch of k") { k.batch = 1, refuses("k.batch is 1"); }
    SECTION("features") { k.dim = 2, refuses("k.dim is 2"); }
    SECTION("no features") { q.dim = k.dim = 0, refuses("q.dim is 0"); }
    SECTION("no values") { v.dim = out.dim = 0, refuses("v.dim is 0"); }
    SECTION("no heads") { q.heads = 0, refuses("q.heads is 0"); }
    SECTION("heads") { k.heads = v.heads = 3, refuses("q.heads is 4"); }
    SECTION("length of out") { out.length = queries + 1, out.data = k.data, refuses("out.length is"); }
    SECTION("negative") { q.length = -1, refuses("q.length is -1"); }
  }
  const Nobody<float> x(2, 0);
  ab::Evidence<float> evidence;
  const std::vector<float> weights(3, 1.f);
  CHECK_THROWS_WITH(ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(),
                                  ab::observe(evidence, ab::QueryWeights::of(weights))),
                    ContainsSubstring("number of weights is 3, but must equal q.length = 0"));
}

TEMPLATE_TEST_CASE("a step of no tokens over a cache", "[attention][cache][empty]", float, std::int8_t) {
  using Stored = TestType;
  using T = typename ab::KvCache<Stored>::scalar;
  const Nobody<T> x(2, 0);
  Tensor<T> k(Layout::bhsd, 2, kv_heads, 3, dim), v(Layout::bhsd, 2, kv_heads, 3, value_dim);
  support::Random random(91);
  for (auto* some : {&k, &v}) some->fill(random, support::Family::uniform);
  auto step = [&](auto& cache) {
    const auto none = support::part(k.view(), 0, 0, 0);
    const auto no_values = support::part(v.view(), 0, 0, 0);
    const std::vector<Index> offsets{0, 0, 0};
    for (const Index length : {0, 3}) {
      if (length > 0) cache.append(k.view(), v.view());
      cache.append(ab::bhsd(static_cast<T*>(nullptr), 2, kv_heads, 0, dim),
                   ab::bhsd(static_cast<T*>(nullptr), 2, kv_heads, 0, value_dim));
      cache.append(1, none, no_values);
      cache.append(offsets, none, no_values);
      CHECK((cache.length(0) == length && cache.length(1) == length && cache.seen(1) == length));
      auto evidence = used_evidence<T>();
      ab::attention(x.q.view(), cache, x.out.view(), ab::mask::Causal{}, ab::observe(evidence));
      check_nothing(evidence, 2, 0, length);
      auto alone = used_evidence<T>();
      ab::attention_evidence(x.q.view(), cache, ab::observe(alone));
      check_nothing(alone, 2, 0, length);

      const auto q = ab::bhsd(static_cast<T*>(nullptr), 1, heads, 0, dim);
      const auto out = ab::bhsd(static_cast<T*>(nullptr), 1, heads, 0, value_dim);
      std::vector<ab::Evidence<T>> each(2, used_evidence<T>());
      ab::attention(q, cache, out, ab::PackedQueries(offsets), ab::mask::Causal{}, ab::observe(each));
      for (const auto& e : each) check_nothing(e, 1, 0, length);
    }
  };
  ab::KvCache<Stored> whole(2, kv_heads, 4, dim, value_dim);
  ab::PagedKvCache<Stored> paged(2, kv_heads, 4, 2, dim, value_dim);
  step(whole), step(paged);

  // All sequences have left.
  auto view = paged.view();
  const std::vector<Index> nothing;
  view.lengths = nothing, view.block_table = nothing;
  const Nobody<T> gone(0, 1);
  auto evidence = used_evidence<T>();
  ab::attention(gone.q.view(), view, gone.out.view(), ab::observe(evidence));
  check_nothing(evidence, 0, 1, 0);
  const std::vector<std::int32_t> offsets{0};
  std::vector<ab::Evidence<T>> none;
  ab::attention(ab::bhsd(static_cast<T*>(nullptr), 1, heads, 0, dim), view,
                ab::bhsd(static_cast<T*>(nullptr), 1, heads, 0, value_dim), ab::PackedQueries(offsets),
                ab::mask::Causal{}, ab::observe(none));
}

TEST_CASE("packed sequences of nothing", "[attention][packed][empty]") {
  using T = double;
  const Nobody<T> x(1, 0);
  const std::vector<Index> none{0}, no_queries{0, 0, 0}, some_keys{0, 0, keys};
  ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), ab::PackedSequences(none, none));
  ab::reference::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), ab::PackedSequences(none, none));
  std::vector<ab::Evidence<T>> nobody, each(2, used_evidence<T>());
  ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), ab::PackedSequences(none, none),
                ab::mask::Causal{}, ab::observe(nobody));
  const ab::PackedSequences packed(no_queries, some_keys);
  ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), packed, ab::mask::Causal{}, ab::observe(each),
                support::Anybody{support::Anybody::threads, 2});
  check_nothing(each[0], 1, 0, 0);
  check_nothing(each[1], 1, 0, keys);
  // Tokens of no sequence.
  Tensor<T> q(Layout::bhsd, 1, heads, 6, dim), out(Layout::bhsd, 1, heads, 6, value_dim);
  q.fill([](auto...) { return std::nan(""); });
  const auto before = out.memory();
  ab::attention(q.view(), x.k.view(), x.v.view(), out.view(), ab::PackedSequences(none, none));
  CHECK(out.memory() == before);
}

namespace {

/// Gradients, with numbers that are to be overwritten.
template <class T>
struct Gradients {
  Tensor<T> dq, dk, dv;

  explicit Gradients(const Nobody<T>& x)
      : dq(Layout::bhsd, x.batch, heads, x.queries, dim),
        dk(Layout::bshd, x.batch, kv_heads, keys, dim),
        dv(Layout::bhsd, x.batch, kv_heads, keys, value_dim) {
    for (auto* g : {&dk, &dv}) g->fill([](auto...) { return 77; });
  }
  static Index count(const Tensor<T>& x, T value) {
    const auto memory = x.memory();
    return static_cast<Index>(std::count(memory.begin(), memory.end(), value));
  }
  bool all(T value) const {
    return count(dk, value) == dk.view().size() && count(dv, value) == dv.view().size();
  }
};

}  // namespace

TEST_CASE("gradients of no queries are 0", "[attention][backward][empty]") {
  using T = double;
  for (const auto& sizes : {std::pair<Index, Index>{2, 0}, {0, 3}, {0, 100}}) {
    const Index batch = sizes.first, queries = sizes.second;
    INFO("batch " << batch << " queries " << queries);
    const Nobody<T> x(batch, queries);
    std::vector<T> bias(keys, T(1)), of_bias(keys, T(77)), of_sinks(heads, T(77)), sinks(heads, T(1));
    const std::vector<T> whole(100, T(1));
    std::vector<T> of_whole(100, T(77));
    T of_scale(77);
    ab::Evidence<T> evidence;
    ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), ab::observe(evidence));
    auto run = [&](const auto& lse, auto... policies) {
      const Gradients<T> g(x);
      ab::attention_backward(x.q.view(), x.k.view(), x.v.view(), x.out.view(), lse, x.out.view(), g.dq.view(),
                             g.dk.view(), g.dv.view(), policies...);
      CHECK(g.all(T(0)));
    };
    run(ab::bhsd(static_cast<const T*>(nullptr), batch, heads, 1, queries), ab::mask::Causal{});
    const Gradients<T> reference(x);
    ab::reference::attention_backward(x.q.view(), x.k.view(), x.v.view(), x.out.view(), reference.dq.view(),
                                      reference.dk.view(), reference.dv.view(), ab::mask::Causal{});
    CHECK(reference.all(T(0)));
    run(evidence, ab::gradient(ab::score::KeyBias(bias), of_bias),
        ab::gradient(ab::normalize::Sink(sinks), of_sinks), ab::gradient(ab::score::Scale{T(2)}, of_scale));
    CHECK(std::count(of_bias.begin(), of_bias.end(), T(0)) == keys);
    CHECK(std::count(of_sinks.begin(), of_sinks.end(), T(0)) == heads);
    CHECK(of_scale == 0);
    // A bias of as many rows as there are queries, none, is not written, wherever it is said to be.
    const auto rows = ab::bhsd(whole.data(), 1, 1, 0, keys);
    if (queries == 0)
      run(evidence, ab::gradient(ab::score::Bias(rows), ab::bhsd(of_whole.data(), 1, 1, 0, keys)),
          support::Anybody{support::Anybody::threads, 3}, ab::normalize::Sparsemax{});
    CHECK(std::count(of_whole.begin(), of_whole.end(), T(77)) == 100);
  }
}

TEST_CASE("gradients of packed sequences of nothing", "[attention][backward][packed][empty]") {
  using T = double;
  const Nobody<T> x(1, 0);
  const std::vector<Index> none{0}, no_queries{0, 0}, some_keys{1, keys};
  const std::vector<ab::Evidence<T>> nobody;
  const Gradients<T> untouched(x), some(x);
  T of_scale(77);
  ab::attention_backward(x.q.view(), x.k.view(), x.v.view(), x.out.view(), nobody, x.out.view(), untouched.dq.view(),
                         untouched.dk.view(), untouched.dv.view(), ab::PackedSequences(none, none),
                         ab::gradient(ab::score::Scale{T(2)}, of_scale));
  CHECK(untouched.all(T(77)));
  CHECK(of_scale == 0);
  std::vector<ab::Evidence<T>> each(1);
  const ab::PackedSequences packed(no_queries, some_keys);
  ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), packed, ab::observe(each));
  ab::attention_backward(x.q.view(), x.k.view(), x.v.view(), x.out.view(), each, x.out.view(), some.dq.view(),
                         some.dk.view(), some.dv.view(), packed, support::Anybody{support::Anybody::threads, 2});
  CHECK(some.count(some.dk, T(0)) == kv_heads * (keys - 1) * dim);
  CHECK(some.count(some.dv, T(0)) == kv_heads * (keys - 1) * value_dim);
  CHECK(some.count(some.dk, T(77)) == kv_heads * dim);
}

TEST_CASE("parts of no queries merge to no queries", "[attention][merge][empty]") {
  const Nobody<float> x(2, 0);
  ab::Evidence<float> first, second, merged = used_evidence<float>();
  for (auto* e : {&first, &second})
    ab::attention(x.q.view(), x.k.view(), x.v.view(), x.out.view(), ab::observe(*e));
  ab::merge<float>(x.out.view(), first, x.out.view(), second, x.out.view(), merged);
  check_nothing(merged, 2, 0, 2 * keys);
  ab::merge(x.out.view(), std::span<const float>(), x.out.view(), std::span<const float>(), x.out.view(),
            std::span<float>());
}
