// Eviction with a plan for each KV head: the cache, and all that is observed of it by head, move alike.

#include "attention_balancer/allocate/per_head.hpp"
#include "attention_balancer/execute/cache_budget.hpp"
#include "attention_balancer/saliency/accumulated.hpp"
#include "support/cache.hpp"
#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;
using support::part;
using support::Tensor;
using Plans = std::vector<ab::execute::TokenPlan>;

constexpr Index heads = 6, kv_heads = 2, tokens = 90;

template <class T>
std::vector<T> copy(std::span<const T> x) {
  return {x.begin(), x.end()};
}

/// What is kept of a row by the plan of its KV head, 0 behind it.
template <class T>
bool follows(std::span<const T> after, const std::vector<T>& before, const ab::execute::TokenPlan& plan) {
  for (std::size_t i = 0; i < after.size(); ++i) {
    const auto kept = plan.kept();
    if (after[i] != (i < kept.size() ? before[static_cast<std::size_t>(kept[i])] : T(0))) return false;
  }
  return static_cast<Index>(after.size()) >= plan.size();
}

/// `cache` holds the keys of `in`, as does `whole`.
template <class Cache, class... P>
void check_evicted(Cache& cache, const ab::KvCache<float>& whole, const support::Inputs<float>& in,
                   const P&... policies) {
  const Index batch = cache.batch();
  ab::Evidence<float> evidence;
  Tensor<float> out(Layout::bhsd, batch, heads, in.q.view().length, 7);
  ab::attention(in.q.view(), whole, out.view(), policies...,
                ab::observe(evidence, ab::QueryWeights::all(), ab::evidence::squares));
  const ab::Evidence<float> before = evidence;
  ab::saliency::Accumulated<float> accumulated(heads, 0.5);
  for (int i = 0; i < 2; ++i) accumulated.add(evidence, batch - 1);
  const auto sums = accumulated.sum(ab::EachHead{}), seen = accumulated.per_exposure(ab::EachHead{});

  const auto scores = ab::saliency::mass(evidence, ab::KvHeads{kv_heads, ab::Heads::sum}, batch - 1);
  Plans plans;
  for (Index h = 0; h < kv_heads; ++h) plans.push_back(ab::execute::token_budget(scores[h], 40, {0, 1 + h}));
  REQUIRE(!std::ranges::equal(plans[0].kept(), plans[1].kept()));
  ab::execute::evict(cache, batch - 1, plans, accumulated, evidence);

  CHECK(cache.length(batch - 1) == 40);
  CHECK(evidence.keys() == (batch == 1 ? 40 : tokens));
  const auto sums_after = accumulated.sum(ab::EachHead{}), seen_after = accumulated.per_exposure(ab::EachHead{});
  for (Index h = 0; h < heads; ++h) {
    INFO("head " << h);
    const auto& plan = plans[static_cast<std::size_t>(h / 3)];
    CHECK(follows(evidence.mass(batch - 1, h), copy(before.mass(batch - 1, h)), plan));
    CHECK(follows(evidence.statistic(batch - 1, h), copy(before.statistic(batch - 1, h)), plan));
    CHECK(follows(evidence.exposure(batch - 1, h), copy(before.exposure(batch - 1, h)), plan));
    CHECK(follows(sums_after[h], copy(sums[h]), plan));
    CHECK(follows(seen_after[h], copy(seen[h]), plan));
    for (Index i = 0; i < 40; ++i)
      CHECK(cache.position(batch - 1, h / 3, i) == plan.kept()[static_cast<std::size_t>(i)]);
    if (batch > 1) CHECK(support::same_bits(evidence.mass(0, h), before.mass(0, h)));
  }
  CHECK(accumulated.slots() == 40);
}

}  // namespace

TEST_CASE("evidence and cache follow the plan of each KV head", "[attention][cache]") {
  support::Random random(81);
  for (const Index batch : {1, 3})
    for (const Index queries : {1, 20}) {
      INFO("batch " << batch << " queries " << queries);
      const support::Inputs<float> in({batch, heads, kv_heads, queries, tokens, 16, 7}, random);
      auto run = [&](const auto&... policies) {
        ab::KvCache<float> whole(batch, kv_heads, tokens, 16, 7), cache(batch, kv_heads, tokens, 16, 7);
        ab::PagedKvCache<std::int8_t> paged(batch, kv_heads, 40, 8, 16, 7);
        whole.append(in.k.view(), in.v.view());
        cache.append(in.k.view(), in.v.view()), paged.append(in.k.view(), in.v.view());
        check_evicted(cache, whole, in, policies...);
        check_evicted(paged, whole, in, policies...);
        CHECK(paged.free_pages() == 40 - (batch - 1) * 12 - 5);
      };
      run();
      run(ab::mask::Window{50, 0});
    }
}

TEST_CASE("each head of an evicted cache attends to what its plan kept", "[attention][cache]") {
  support::Random random(82);
  const support::Inputs<float> in({1, heads, kv_heads, 1, tokens, 16, 7}, random);
  ab::KvCache<ab::bf16> cache(1, kv_heads, tokens, 16, 7);
  cache.append(in.k.view(), in.v.view());
  ab::Evidence<float> evidence;
  Tensor<float> out(Layout::bhsd, 1, heads, 1, 7), expected(Layout::bhsd, 1, heads, 1, 7);
  ab::attention(in.q.view(), cache, out.view(), ab::observe(evidence));
  // What top_k of rows gives are selections.
  const auto plans =
      ab::allocate::top_k(ab::saliency::mass(evidence, ab::KvHeads{kv_heads, ab::Heads::sum}), 33);
  ab::execute::evict(cache, 0, plans);
  ab::attention(in.q.view(), cache, out.view());
  for (Index h = 0; h < kv_heads; ++h) {
    ab::KvCache<ab::bf16> one(1, kv_heads, tokens, 16, 7);
    one.append(in.k.view(), in.v.view());
    ab::execute::evict(one, 0, ab::execute::TokenPlan(plans[static_cast<std::size_t>(h)]));
    ab::attention(in.q.view(), one, expected.view());
    for (Index g = 3 * h; g < 3 * h + 3; ++g)
      for (Index c = 0; c < 7; ++c) CHECK(out(0, g, 0, c) == expected(0, g, 0, c));
  }
}

TEST_CASE("the evidence of each of the packed queries follows its own sequence", "[attention][cache][packed]") {
  support::Random random(84);
  const std::vector<Index> lengths{tokens, 50}, offsets{0, 12, 13};
  const support::Inputs<float> in({2, heads, kv_heads, 13, tokens, 16, 7}, random);
  ab::KvCache<float> cache(2, kv_heads, tokens, 16, 7), other(2, kv_heads, tokens, 16, 7);
  for (Index b = 0; b < 2; ++b)
    for (auto* x : {&cache, &other}) {
      const Index n = lengths[static_cast<std::size_t>(b)];
      x->append(b, part(in.k.view(), b, 0, n), part(in.v.view(), b, 0, n));
    }
  std::vector<ab::Evidence<float>> evidence(2);
  Tensor<float> out(Layout::bhsd, 1, heads, 13, 7);
  ab::attention(part(in.q.view(), 0, 0, 13), cache, out.view(), ab::PackedQueries(offsets), ab::observe(evidence));
  for (Index b = 0; b < 2; ++b) {
    INFO("sequence " << b);
    ab::Evidence<float>& mine = evidence[static_cast<std::size_t>(b)];
    ab::Evidence<float> by_head = mine;
    const ab::Evidence<float> before = mine;
    const Index n = lengths[static_cast<std::size_t>(b)];
    const Plans plans{{n, {1, 4, 30}}, {n, {0, 2, 49}}};
    CHECK_THROWS_WITH(ab::execute::evict(cache, b, plans, evidence[static_cast<std::size_t>(1 - b)]),
                      Catch::Matchers::ContainsSubstring("evidence keys"));
    ab::execute::evict(other, b, plans[1], mine);
    ab::execute::evict(cache, b, plans, by_head);
    for (Index h = 0; h < heads; ++h) {
      CHECK(follows(mine.mass(0, h), copy(before.mass(0, h)), plans[1]));
      CHECK(follows(by_head.mass(0, h), copy(before.mass(0, h)), plans[static_cast<std::size_t>(h / 3)]));
    }
    CHECK(mine.keys() == 3);
    CHECK(by_head.keys() == 3);
  }
}

TEST_CASE("plans by head that do not fit are refused, and nothing is changed", "[attention][cache]") {
  using Catch::Matchers::ContainsSubstring;
  using ab::execute::TokenPlan;
  support::Random random(83);
  const support::Inputs<float> in({1, heads, kv_heads, 1, 10, 4, 4}, random), odd({1, 3, 1, 1, 10, 4, 4}, random);
  ab::KvCache<float> cache(1, kv_heads, 10, 4);
  cache.append(in.k.view(), in.v.view());
  Tensor<float> out(Layout::bhsd, 1, heads, 1, 4), odd_out(Layout::bhsd, 1, 3, 1, 4);
  ab::Evidence<float> evidence, of_odd, none;
  ab::attention(in.q.view(), cache, out.view(), ab::observe(evidence));
  ab::attention(in.q.view(), cache, out.view(), ab::observe(none, ab::QueryWeights::none()));
  ab::attention(odd.q.view(), odd.k.view(), odd.v.view(), odd_out.view(), ab::observe(of_odd));
  const ab::Evidence<float> before = evidence;
  ab::saliency::Accumulated<float> accumulated(heads), empty(heads), other(3);
  accumulated.add(evidence), other.add(of_odd);
  auto evict = [&](const Plans& plans, auto&... states) { ab::execute::evict(cache, 0, plans, states...); };
  const Plans good{{10, {1, 4}}, {10, {2, 9}}};
  CHECK_THROWS_WITH(evict({{10, {1, 4}}}),
                    ContainsSubstring("number of plans is 1, but must be the cache's kv_heads, 2"));
  CHECK_THROWS_AS(evict({}), ab::ShapeError);
  CHECK_THROWS_WITH(evict({{10, {1, 4}}, {10, {2}}}, evidence),
                    ContainsSubstring("number of tokens kept by the plan of head 1 is 1"));
  CHECK_THROWS_WITH(evict({{10, {1, 4}}, {9, {1, 4}}}, evidence),
                    ContainsSubstring("number of tokens of the plan of head 1 is 9"));
  CHECK_THROWS_WITH(evict(good, evidence, of_odd), ContainsSubstring("evidence heads is 3"));
  CHECK_THROWS_WITH(evict(good, evidence, other), ContainsSubstring("heads of a state is 3"));
  CHECK_THROWS_WITH(evict(good, evidence, empty), ContainsSubstring("slots of a state is 0"));
  CHECK_THROWS_WITH(evict(good, evidence, accumulated, evidence),
                    ContainsSubstring("state 3 is the same as state 1"));
  CHECK_THROWS_AS(ab::execute::evict(cache, 0, TokenPlan(10, {1}), evidence, evidence), ab::InputError);
  CHECK_THROWS_AS(ab::execute::evict(cache, 1, good, evidence), ab::ShapeError);
  const std::vector<Index> kept{1, 4, 2, 9}, uneven{1, 4, 2}, unsorted{1, 4, 9, 2};
  CHECK_THROWS_AS(accumulated.compact_by_head(kept, 4), ab::ShapeError);
  CHECK_THROWS_AS(accumulated.compact_by_head(kept, 0), ab::ShapeError);
  CHECK_THROWS_AS(accumulated.compact_by_head(uneven, 2), ab::ShapeError);
  CHECK_THROWS_AS(accumulated.compact_by_head(unsorted, 2), ab::InputError);
  CHECK(cache.length(0) == 10);
  CHECK(accumulated.slots() == 10);
  CHECK(support::same_bits(evidence, before));
  evict(good, evidence, accumulated, none);  // what has no mass has nothing by key
  CHECK(cache.length(0) == 2);
  CHECK(none.keys() == 10);
  // Nothing may be kept, where that is meant.
  evict({{2, {}}, {2, {}}}, evidence, accumulated);
  CHECK(cache.length(0) == 0);
  CHECK(evidence.keys() == 0);
  CHECK(accumulated.slots() == 0);
}
