// Attention with products of bf16: against the reference at the stated error, where the machine has them and where it
// has not.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"

// Compiled for a machine with such products and for one without, the same functions differ: they need two names.
static_assert(ab::simd::has_bf16_products == (std::string_view(ab::simd::isa) == "avx512bf16" ||
                                               std::string_view(ab::simd::isa) == "avx512fp16"));

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

float rounded(float x) { return static_cast<float>(ab::bf16(x)); }

/// Sequences of lengths of their own, of numbers that bf16 holds, in both kinds of cache.
struct Caches {
  ab::KvCache<ab::bf16> whole;
  ab::PagedKvCache<ab::bf16> paged;

  Caches(const support::Shape& s, const support::Inputs<float>& in, const std::vector<Index>& lengths)
      : whole(s.batch, s.kv_heads, s.keys, s.dim, s.value_dim),
        paged(s.batch, s.kv_heads, s.batch * (s.keys / 7 + 1), 7, s.dim, s.value_dim) {
    for (Index b = 0; b < s.batch; ++b) {
      if (lengths[static_cast<std::size_t>(b)] == 0) continue;
      auto part = [&](ab::TensorView<const float> x) {
        x.data = &x(b, 0, 0, 0);
        x.batch = 1, x.length = lengths[static_cast<std::size_t>(b)];
        return x;
      };
      whole.append(b, part(in.k.input()), part(in.v.input()));
      paged.append(b, part(in.k.input()), part(in.v.input()));
    }
  }
};

support::Inputs<float> inputs(const support::Shape& s, support::Random& random, bool round_queries) {
  support::Inputs<float> in(s, random, support::Family::log_normal, 0.5);
  auto round = [](Tensor<float>& x) {
    x.fill([&](Index b, Index h, Index i, Index c) { return rounded(x(b, h, i, c)); });
  };
  if (round_queries) round(in.q);
  round(in.k), round(in.v);
  return in;
}

}  // namespace

TEST_CASE("products of bf16 keep to their error", "[attention][cache][bf16]") {
  support::Table table;
  support::Random random(401);
  constexpr Index queries[] = {9, 16, 33, 50, 64, 97, 130}, keys[] = {1, 2, 15, 127, 129, 160, 161, 300, 517},
                  dims[] = {1, 2, 5, 16, 33, 40, 63, 64, 96};
  for (Index i = 0; i < 56; i += support::every(3)) {
    support::Shape s{i % 3 + 1,       i % 2 == 0 ? 4 : 3, i % 2 == 0 ? 2 : 1, queries[i % 7],
                     keys[i * 4 % 9], dims[i * 5 % 9],    dims[(i + 3) % 9]};
    const bool round_queries = i % 4 != 3, causal = i % 3 != 1;
    const auto in = inputs(s, random, round_queries);
    std::vector<Index> lengths(static_cast<std::size_t>(s.batch), s.keys);
    if (i % 5 == 2) lengths.back() = s.keys / 2;
    const Caches caches(s, in, lengths);
    table.begin(s.text() + (causal ? "causal " : "") + (round_queries ? "q of bf16" : "q of float"));

    // A power of two: queries of bf16 stay so.
    const ab::score::Scale<float> scale{0.25f};
    const ab::mask::Window window{-1, causal ? 0 : -1};
    const auto tensor = [&] { return Tensor<float>(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim); };
    Tensor<float> plain = tensor(), out = tensor(), other = tensor();
    ab::Evidence<float> evidence, of_other;
    const auto q = in.q.input();
    ab::attention(q, caches.whole, plain.view(), ab::Bf16Products{}, scale, window, ab::executor::Sequential{});
    ab::attention(q, caches.whole, out.view(), ab::Bf16Products{}, scale, window, ab::executor::Sequential{},
                  ab::observe(evidence));
#if defined(_OPENMP)
    const auto executor = support::openmp(3);
#else
    const ab::executor::Sequential executor;
#endif
    ab::attention(q, caches.paged, other.view(), ab::Bf16Products{}, scale, window, executor,
                  ab::observe(of_other));
    table.expect(support::same_bits(out.view(), other.view()), "paged: output");
    table.expect(support::same_bits(evidence, of_other), "paged: evidence");
    ab::attention(q, caches.paged, other.view(), ab::Bf16Products{}, scale, window, executor);
    table.expect(support::same_bits(plain.view(), other.view()), "paged: output, not observed");

    Tensor<double> expected(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
    ab::Evidence<double> truth;
    for (Index b = 0; b < s.batch; ++b) {
      // One by one: the reference takes no sequences of several lengths.
      support::Shape one = s;
      one.batch = 1, one.keys = lengths[static_cast<std::size_t>(b)];
      support::Inputs<float> of_one(one, random);
      of_one.q.fill([&](Index, Index h, Index j, Index c) { return in.q(b, h, j, c); });
      of_one.k.fill([&](Index, Index h, Index j, Index c) { return in.k(b, h, j, c); });
      of_one.v.fill([&](Index, Index h, Index j, Index c) { return in.v(b, h, j, c); });
      Tensor<double> exact(Layout::bhsd, 1, s.heads, s.queries, s.value_dim);
      ab::reference::attention(of_one.q.input(), of_one.k.input(), of_one.v.input(), exact.view(),
                               ab::score::Scale<double>{0.25}, window, ab::observe(truth));
      auto errors = support::logit_errors(one, of_one, {.scale = 0.25});
      const double rounding = 0x1p-8;
      if (!round_queries)  // e_i = 2^-8 A_i more, where logit_errors has eps (6 + D / 2) A_i
        for (double& e : errors)
          e *= 1 + rounding / (static_cast<double>(std::numeric_limits<float>::epsilon()) *
                               (6 + static_cast<double>(s.dim) / 2));
      auto column = table.column("output");
      Index row = 0;
      for (Index h = 0; h < s.heads; ++h)
        for (Index j = 0; j < s.queries; ++j, ++row) {
          const double r = std::expm1(2 * errors[static_cast<std::size_t>(row)]) + 1.01 * rounding;
          for (Index c = 0; c < s.value_dim; ++c) {
            double most = 0;
            for (Index l = 0; l < one.keys; ++l)
              most = std::max(most, std::fabs(static_cast<double>(of_one.v(0, h / (s.heads / s.kv_heads), l, c))));
            for (const Tensor<float>* x : {&plain, &out})
              column.compare(static_cast<double>((*x)(b, h, j, c)), exact(0, h, j, c), r * most + 1e-37, row);
          }
          const auto at = static_cast<std::size_t>(j);
          const double e = errors[static_cast<std::size_t>(row)], l = truth.lse(0, h)[at];
          table.column("lse").compare(static_cast<double>(evidence.lse(b, h)[at]), l,
                                      e + 3e-7 * (4 + 2 * std::fabs(l)), row);
        }
      auto mass = table.column("mass");
      const double r = std::expm1(2 * *std::max_element(errors.begin(), errors.end())) + 2e-6;
      for (Index h = 0; h < s.heads; ++h)
        for (Index j = 0; j < one.keys; ++j) {
          const double m = truth.mass(0, h)[static_cast<std::size_t>(j)];
          mass.compare(static_cast<double>(evidence.mass(b, h)[static_cast<std::size_t>(j)]), m, r * m + 1e-36, j);
        }
    }
  }
  table.report();
}

TEST_CASE("products of bf16 do not see what is hidden", "[attention][cache][bf16]") {
  support::Random random(402), again(402);
  const support::Shape s{1, 2, 1, 70, 301, 32, 17};
  const auto whole = inputs(s, random, true);
  auto in = inputs(s, again, true);
  const ab::score::Scale<float> scale{0.25f};
  // Query i sees the keys from i + 131 to i + 231: all from 20 on see the key 251, the last alone sees the key 300, and
  // none sees the first 131.
  const ab::mask::Window window{100, 0};
  struct Result {
    Tensor<float> plain{Layout::bhsd, 1, 2, 70, 17}, observed{Layout::bhsd, 1, 2, 70, 17};
    ab::Evidence<float> evidence;
  };
  auto run = [&] {
    const Caches caches(s, in, {s.keys});
    Result r;
    auto attend = [&](const Tensor<float>& out, auto... observed) {
      ab::attention(in.q.input(), caches.whole, out.view(), ab::Bf16Products{}, scale, window,
                    ab::executor::Sequential{}, observed...);
    };
    attend(r.plain), attend(r.observed, ab::observe(r.evidence));
    return r;
  };
  const Result clean = run();

  // What rows that see nothing bad must be within, whether their block rounds its weights or, for what it meets, not:
  // `rounded` is sum_j p_j |v_j|.
  Tensor<double> expected(Layout::bhsd, 1, 2, 70, 17), rounded(Layout::bhsd, 1, 2, 70, 17);
  support::Inputs<float> sizes = inputs(s, random, true);
  sizes.v.fill([&](Index b, Index h, Index j, Index c) { return std::fabs(in.v(b, h, j, c)); });
  const ab::score::Scale<double> exact_scale{0.25};
  ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), expected.view(), exact_scale, window);
  ab::reference::attention(in.q.input(), in.k.input(), sizes.v.input(), rounded.view(), exact_scale, window);
  const auto errors = support::logit_errors(s, in, {.scale = 0.25});
  double most = 0;
  for (const float x : sizes.v.memory()) most = std::max(most, static_cast<double>(x));

  support::Table table;
  // `sees(i)`: whether query i sees something bad, in a key or in a value, which leaves the evidence alone.
  auto check = [&](const std::string& name, bool in_key, auto sees) {
    table.begin(name);
    const Result got = run();
    auto column = table.column("output");
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < 70; ++i) {
        const double r = std::expm1(2 * errors[static_cast<std::size_t>(h * 70 + i)]);
        for (Index c = 0; c < 17; ++c)
          for (const float x : {got.plain(0, h, i, c), got.observed(0, h, i, c)})
            if (sees(i))
              table.expect(in_key ? std::isnan(x) : !std::isfinite(x), "a bad output");
            else
              column.compare(static_cast<double>(x), expected(0, h, i, c),
                             r * most + 1.01 * 0x1p-8 * rounded(0, h, i, c), i);
      }
    if (!in_key) return table.expect(support::same_bits(got.evidence, clean.evidence), "evidence");
    for (Index h = 0; h < 2; ++h) {
      auto compare = [&](const char* what, std::span<const float> x, std::span<const float> of_clean, auto bad) {
        for (std::size_t at = 0; at < x.size(); ++at)
          table.expect(bad(static_cast<Index>(at)) ? std::isnan(x[at]) : x[at] == of_clean[at],
                       what + (' ' + std::to_string(at)));
      };
      compare("lse", got.evidence.lse(0, h), clean.evidence.lse(0, h), sees);
      compare("entropy", got.evidence.entropy(0, h), clean.evidence.entropy(0, h), sees);
      compare("mass", got.evidence.mass(0, h), clean.evidence.mass(0, h), [&](Index j) {
        for (Index i = 0; i < 70; ++i)
          if (sees(i) && i + 131 <= j && j <= i + 231) return true;
        return false;
      });
      table.expect(support::same_bits(got.evidence.exposure(0, h), clean.evidence.exposure(0, h)), "exposure");
    }
  };
  const auto nobody = [](Index) { return false; };
  const auto from_20_on = [](Index i) { return i >= 20; };
  const auto the_last = [](Index i) { return i == 69; };
  check("clean", false, nobody);
  // With rows `keys` of x, otherwise as in `from`, all of them `bad`.
  const auto spoil = [](const Tensor<float>& x, const Tensor<float>& from, const std::vector<Index>& keys,
                        float bad) {
    x.fill([&](Index b, Index h, Index j, Index c) {
      return std::find(keys.begin(), keys.end(), j) == keys.end() ? from(b, h, j, c) : bad;
    });
  };
  constexpr float no_number = std::numeric_limits<float>::quiet_NaN(), infinite = ab::detail::infinity<float>;
  for (const float bad : {no_number, infinite}) {
    const std::string what = std::to_string(bad);
    spoil(in.v, whole.v, {5, 130}, bad);
    check(what + " in values that none sees", false, nobody);
    spoil(in.v, whole.v, {251, 300}, bad);
    check(what + " in values", false, from_20_on);
    spoil(in.v, whole.v, {300}, bad);
    check(what + " in the last value", false, the_last);
  }
  spoil(in.v, whole.v, {}, 0);
  spoil(in.k, whole.k, {5, 130}, no_number);
  check("keys that none sees", true, nobody);
  spoil(in.k, whole.k, {251}, no_number);
  check("a key", true, from_20_on);
  spoil(in.k, whole.k, {300}, no_number);
  check("the last key", true, the_last);
  table.report();
}

TEST_CASE("products of bf16 keep rows whose scores are huge", "[attention][cache][bf16]") {
  // The offset of such a row, times log2(e), is off by more than the range of exponents.
  const Index queries = 9, dim = 2;
  support::Table table;
  for (const Index keys : {1, 40}) {
    table.begin(std::to_string(keys) + " keys of the same bias");
    auto outputs = table.column("output"), lse = table.column("lse"), empty = table.column("empty rows");
    const auto count = static_cast<std::size_t>(keys * dim);
    const std::vector<float> q(static_cast<std::size_t>(queries * dim), 0.5f), k(count, 0.5f), v(count, 2.0f);
    ab::KvCache<ab::bf16> cache(1, 1, keys, dim, dim);
    cache.append(0, ab::bhsd(k.data(), 1, 1, keys, dim), ab::bhsd(v.data(), 1, 1, keys, dim));
    for (int step = 0; step < 108; ++step) {
      const float bias = -std::exp2(20.0f + static_cast<float>(step)) * (1 + 0.001f * static_cast<float>(step));
      const std::vector<float> biases(static_cast<std::size_t>(keys), bias);
      std::vector<float> out(q.size());
      ab::Evidence<float> evidence;
      ab::attention(ab::bhsd(q.data(), 1, 1, queries, dim), cache, ab::bhsd(out.data(), 1, 1, queries, dim),
                    ab::Bf16Products{}, ab::score::KeyBias<float>(biases),
                    ab::observe(evidence, ab::QueryWeights::none()));
      for (const float x : out) outputs.compare(static_cast<double>(x), 2, 0.02, step);
      const double least = static_cast<double>(bias);
      lse.compare(static_cast<double>(evidence.lse(0, 0)[0]), least, 5 - 1e-6 * least, step);
      empty.equal(static_cast<double>(evidence.empty_rows(0, 0)), 0, step);
    }
  }
  table.report();
}

TEST_CASE("products of bf16 leave alone what they are not for", "[attention][cache][bf16]") {
  support::Random random(403);
  const support::Shape few{1, 4, 2, 8, 300, 32, 17}, many{1, 4, 2, 20, 300, 32, 17};
  for (const support::Shape& s : {few, many}) {
    const auto in = inputs(s, random, false);
    const Caches caches(s, in, {s.keys});
    Tensor<float> with(Layout::bhsd, 1, 4, s.queries, 17), without(Layout::bhsd, 1, 4, s.queries, 17);
    ab::Evidence<float> e, f;
    const auto all = ab::QueryWeights::all();
    ab::attention(in.q.input(), caches.whole, with.view(), ab::Bf16Products{},
                  ab::observe(e, all, ab::evidence::leave_one_out));
    ab::attention(in.q.input(), caches.whole, without.view(), ab::observe(f, all, ab::evidence::leave_one_out));
    CHECK(support::same_bits(with.view(), without.view()));
    CHECK(support::same_bits(e, f));
  }
}

TEST_CASE("products of bf16 ask for the values that follow", "[attention][cache][bf16]") {
  // Null where this machine does not have them.
  for (const auto* products : {ab::detail::pair_products(), ab::detail::amx_products()}) {
    if (products == nullptr) continue;
    struct Asked {
      Index begin = 1000, end = 0;
    } asked;
    ab::detail::RowSource<float> source;
    source.cache = &asked;
    source.ask = [](const void* cache, bool, Index, Index, Index begin, Index end) {
      Asked& all = *static_cast<Asked*>(const_cast<void*>(cache));
      all.begin = std::min(all.begin, begin), all.end = std::max(all.end, end);
    };
    // 128 tokens of 16 features, from the 256th on, for a pack of queries.
    constexpr int lanes = ab::simd::lanes<float>;
    alignas(64) static float values[384 / 2 * 16], output[16 * lanes], pairs[64 * lanes];
    const ab::detail::Ahead<float> ahead{source, true, 0, 0, 256, 900, 2};
    ab::detail::Far far;
    far.rows = true;
    if (products[0].enter != nullptr) products[0].enter();
    products[0].add(pairs, values, 256, 128, 16, output, ab::detail::Onto::zero, nullptr, ahead.of(far));
    if (products[0].leave != nullptr) products[0].leave();
    CHECK(asked.begin == 384);
    CHECK(asked.end == 512);
  }
}

TEST_CASE("the environment keeps AMX off", "[attention][bf16]") {
  const char* const wanted = std::getenv("ATTENTION_BALANCER_AMX");
  if (wanted != nullptr && *wanted == '0') CHECK(ab::detail::amx_products() == nullptr);
}

#if defined(ATTENTION_BALANCER_AMX)

namespace {

/// What of the tiles the operating system would have to keep: bit 17 their configuration, 18 their data.
unsigned tiles_in_use() {
  unsigned state = 0, upper = 0;
  asm volatile("xgetbv" : "=a"(state), "=d"(upper) : "c"(1));
  return state & (1u << 17 | 1u << 18);
}

/// A modifier of a user whose own products end with what the ABI lets them.
struct ReleasesTiles {
  void validate(const ab::Problem&) const {}
  template <class S>
  S operator()(const S& score, const ab::Site<S>&) const {
    if (ab::may_use_amx()) asm volatile("tilerelease");
    return score;
  }
};

}  // namespace

TEST_CASE("products in AMX leave no tile behind", "[attention][cache][bf16]") {
  support::Random random(404);
  const support::Shape s{1, 2, 1, 70, 301, 32, 17};
  const auto in = inputs(s, random, true);
  const Caches caches(s, in, {s.keys});
  auto run = [&](const auto&... policies) {
    Tensor<float> out(Layout::bhsd, 1, 2, 70, 17);
    ab::attention(in.q.input(), caches.whole, out.view(), ab::Bf16Products{}, policies...);
    CHECK(tiles_in_use() == 0);
    return out;
  };
  CHECK(tiles_in_use() == 0);
  // The same scores, bent or not: where a window is tested lane by lane, and where not.
  const ab::mask::Window window{-1, 0};
  const Tensor<float> plain = run(ab::score::Softcap<float>(0)), released = run(ReleasesTiles{});
  CHECK(support::same_bits(plain.view(), released.view()));
  ab::Evidence<float> evidence, other;
  const Tensor<float> observed = run(ab::score::Softcap<float>(0), window, ab::observe(evidence)),
                      again = run(ReleasesTiles{}, window, ab::observe(other));
  CHECK(support::same_bits(observed.view(), again.view()));
  CHECK(support::same_bits(evidence, other));
}

#endif

#if defined(ATTENTION_BALANCER_BF16_PRODUCTS)

namespace {

/// Numbers that bf16 holds.
void fill(std::vector<float>& x, support::Random& random) {
  for (float& y : x) y = rounded(static_cast<float>(random.uniform(-1, 1)));
}

/// Has rows of a cache put where products expect them.
using Load = void(const ab::KvView<ab::bf16>&, Index batch, Index kv_head, Index begin, Index end, float* to);

/// One product against the sums of double: scores, what is added to the output, and nothing beside them written.
template <int V>
void check_products(support::Table& table, support::Random& random, const ab::detail::PairProducts<float>* of_packs,
                    Load* load_keys, Load* load_values) {
  constexpr Index n = ab::simd::lanes<float>, width = V * n;
  const ab::detail::PairProducts<float>& products = of_packs[V - 1];
  const ab::detail::PairLayout layout = products.layout;
  struct Case {
    Index first, count, dim;
  };
  for (const Case& c : {Case{0, 1, 1}, {0, 15, 31}, {16, 16, 32}, {0, 17, 33}, {48, 31, 64}, {16, 33, 65}, {0, 128, 64},
                        {112, 129, 17}, {16, 160, 48}, {128, 159, 128}, {32, 47, 97}}) {
    table.begin(std::to_string(V) + " packs, " + std::to_string(c.count) + " tokens from " + std::to_string(c.first) +
                " on, " + std::to_string(c.dim) + " features");
    const auto size = [](Index x) { return static_cast<std::size_t>(x); };
    const Index tokens = c.first + c.count;
    std::vector<float> q(size(c.dim * width)), k(size(tokens * c.dim)), v(k.size()), w(size(c.count * width));
    fill(q, random), fill(k, random), fill(v, random);
    for (float& y : w) y = rounded(static_cast<float>(random.unit()));
    // All aligned; a row more than asked for, filled with what must stay.
    constexpr float stays = 77;
    auto memory = [&](Index rows) {
      ab::Workspace space;
      float* const x = reinterpret_cast<float*>(space.reserve(size((rows + 16) * width) * sizeof(float)));
      std::fill_n(x, (rows + 16) * width, stays);
      return std::pair{std::move(space), x};
    };
    auto [query_space, queries] = memory(layout.query_rows(c.dim));
    auto [score_space, scores] = memory(c.count);
    auto [output_space, output] = memory(layout.value_rows(c.dim));
    auto [pair_space, pairs] = memory(ab::detail::longest_step);
    auto [weight_space, weights] = memory(c.count);
    std::copy(q.begin(), q.end(), queries), std::copy(w.begin(), w.end(), weights);

    ab::KvCache<ab::bf16> cache(1, 1, tokens, c.dim);
    cache.append(ab::bhsd<const float>(k.data(), 1, 1, tokens, c.dim),
                 ab::bhsd<const float>(v.data(), 1, 1, tokens, c.dim));
    std::vector<float> keys(size(layout.key_rows(tokens) * layout.key_stride(c.dim)), stays),
        values(size(layout.values_size(tokens, c.dim)) + 16, stays);
    const ab::KvView<ab::bf16> view = cache.view();
    load_keys(view, 0, 0, 0, tokens, keys.data());
    auto* const aligned = values.data() + (64 - reinterpret_cast<std::uintptr_t>(values.data()) % 64) % 64 / 4;
    load_values(view, 0, 0, 0, tokens, aligned);

    alignas(64) float top[width], shrink[width];
    std::fill_n(top, width, 0.5f), std::fill_n(shrink, width, 0.25f);
    if (products.enter != nullptr) products.enter();
    products.load(queries, c.dim);
    const Index stride = layout.key_stride(c.dim);
    products.score(queries, {keys.data() + c.first * stride, stride}, c.count, c.dim, scores, top, {});
    auto score = table.column("scores"), highest = table.column("top");
    for (Index i = 0; i < width; ++i) {
      double most = 0.5;
      for (Index j = 0; j < c.count; ++j) {
        double sum = 0, magnitude = 0;
        for (Index d = 0; d < c.dim; ++d) {
          const double product = static_cast<double>(q[size(d * width + i)]) *
                                 static_cast<double>(k[size((c.first + j) * c.dim + d)]);
          sum += product, magnitude += std::fabs(product);
        }
        score.compare(static_cast<double>(scores[j * width + i]), sum,
                      6e-8 * (2 + static_cast<double>(c.dim) / 2) * magnitude, j);
        most = std::max(most, static_cast<double>(scores[j * width + i]));
      }
      highest.equal(static_cast<double>(top[i]), most, i);
    }
    score.equal(static_cast<double>(scores[c.count * width]), static_cast<double>(stays), -1);

    float* const of_first = pairs + layout.pairs_before(c.first) * width;
    auto added = table.column("output");
    std::vector<double> expected(size(c.dim * width), 0), magnitudes(expected.size(), 0);
    for (const auto onto : {ab::detail::Onto::zero, ab::detail::Onto::output, ab::detail::Onto::shrunk_output}) {
      products.pair(weights, c.count, of_first);
      products.add(of_first, aligned, c.first, c.count, c.dim, output, onto, shrink, {});
      for (Index d = 0; d < c.dim; ++d)
        for (Index i = 0; i < width; ++i) {
          double &sum = expected[size(d * width + i)], &magnitude = magnitudes[size(d * width + i)];
          if (onto == ab::detail::Onto::shrunk_output) sum *= 0.25;
          for (Index j = 0; j < c.count; ++j) {
            const double product = static_cast<double>(w[size(j * width + i)]) *
                                   static_cast<double>(v[size((c.first + j) * c.dim + d)]);
            sum += product, magnitude += std::fabs(product);
          }
          added.compare(static_cast<double>(output[d * width + i]), sum,
                        6e-8 * (4 + static_cast<double>(c.count) / 2) * magnitude, d);
        }
    }
    added.equal(static_cast<double>(output[layout.value_rows(c.dim) * width]), static_cast<double>(stays), -1);
    if (products.leave != nullptr) products.leave();
  }
}

void check_products(const ab::detail::PairProducts<float>* of_packs, Load* load_keys, Load* load_values) {
  support::Table table;
  support::Random random(405);
  check_products<1>(table, random, of_packs, load_keys, load_values);
  check_products<2>(table, random, of_packs, load_keys, load_values);
  check_products<3>(table, random, of_packs, load_keys, load_values);
  table.report();
}

}  // namespace

TEST_CASE("products of pairs in AVX-512 are those of double", "[attention][cache][bf16]") {
  check_products(ab::detail::pair_products(), ab::detail::load_key_pairs, ab::detail::load_value_pairs);
}

#if defined(ATTENTION_BALANCER_AMX)
TEST_CASE("products in AMX are those of double", "[attention][cache][bf16]") {
  if (ab::detail::amx_products() == nullptr) return;  // not on this machine
  check_products(ab::detail::amx_products(), ab::detail::load_keys_for_amx, ab::detail::load_values_for_amx);
}
#endif

#endif
