// Attention to a cache, in every storage, contiguous and paged: against the reference on what the cache holds, what
// the cache holds against what it was given, and the same bits wherever it lies.

#include "attention_balancer/execute/cache_budget.hpp"
#include "support/cache.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"

namespace {

using support::Index;
using support::Layout;
using support::part;
using support::read_back;
using support::Tensor;

/// The largest error of a stored number.
template <class Stored>
double stored_error(double x, double scale) {
  if constexpr (std::is_same_v<Stored, ab::bf16>) return std::fabs(x) * 0x1p-8;
  if constexpr (std::is_same_v<Stored, ab::f16>) return std::max(std::fabs(x) * 0x1p-11, 0x1p-25);
  if constexpr (std::is_same_v<Stored, std::int8_t>) return scale * 0.5001;
  return 0 * (x + scale);
}

/// What CacheStorage says of the output: how far `expected`, of what the cache holds, is from that of what it was given.
template <class T>
void compare_with_given(support::Table& table, const support::Shape& s, const support::Inputs<T>& held,
                        const support::Inputs<T>& all, Index b, const Tensor<double>& expected) {
  const auto k = part(all.k.input(), b, 0, s.keys), v = part(all.v.input(), b, 0, s.keys);
  Tensor<double> truth(Layout::bhsd, 1, s.heads, s.queries, s.value_dim);
  ab::reference::attention(held.q.input(), k, v, truth.view(), ab::mask::Causal{});
  auto distance = [](T x, T y) { return std::fabs(static_cast<double>(x) - static_cast<double>(y)); };
  auto column = table.column("output of what was given");
  for (Index h = 0; h < s.heads; ++h) {
    const Index kv = h / (s.heads / s.kv_heads);
    double largest = 0, of_value = 0;
    for (Index j = 0; j < s.keys; ++j)
      for (Index c = 0; c < s.value_dim; ++c) {
        largest = std::max(largest, std::fabs(static_cast<double>(v(0, kv, j, c))));
        of_value = std::max(of_value, distance(held.v(0, kv, j, c), v(0, kv, j, c)));
      }
    for (Index i = 0; i < s.queries; ++i) {
      double d = 0;
      for (Index j = 0; j < s.keys; ++j) {
        double of_logit = 0;
        for (Index c = 0; c < s.dim; ++c)
          of_logit += distance(held.q(0, h, i, c), T(0)) * distance(held.k(0, kv, j, c), k(0, kv, j, c));
        d = std::max(d, of_logit / std::sqrt(static_cast<double>(s.dim)));
      }
      for (Index c = 0; c < s.value_dim; ++c)
        column.compare(expected(0, h, i, c), truth(0, h, i, c),
                       std::expm1(2 * d) * largest + of_value + 1e-12 * largest, i);
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("attention to a cache is the reference on what it holds", "[attention][cache]", float, double,
                   ab::bf16, ab::f16, std::int8_t) {
  using Stored = TestType;
  using T = typename ab::KvCache<Stored>::scalar;
  support::Table table;
  support::Random random(311);
  Index i = 0;
  for (const Index page_size : {1, 7, 16, 130}) {
    const Index dim = i % 2 == 0 ? 40 : 64, value_dim = i % 3 == 0 ? 19 : 32,
                queries = i == 0   ? 1
                          : i == 1 ? 8
                          : i == 2 ? 20
                                   : 3;
    ++i;
    const Index lengths[] = {700, 0, 131};
    ab::KvCache<Stored> cache(3, 2, 700, dim, value_dim);
    ab::PagedKvCache<Stored> paged(3, 2, 900 / page_size + 20, page_size, dim, value_dim);
    const support::Shape most{3, 6, 2, queries, 700, dim, value_dim};
    const support::Inputs<T> in(most, random, support::Family::log_normal, 0.5, Layout::bhsd, Layout::bshd,
                                Layout::columns);
    if constexpr (std::is_same_v<Stored, std::int8_t>)
      if (i % 2 == 0) cache.calibrate_channels(in.k.view()), paged.calibrate_channels(in.k.view());
    // In uneven steps, and sequence by sequence in turn, so that pages of the sequences alternate.
    for (Index from = 0; from < 700; from += 50)
      for (Index b = 0; b < 3; ++b) {
        const Index count = std::min(from + 50, lengths[b]) - from;
        if (count <= 0) continue;
        cache.append(b, part(in.k.view(), b, from, count), part(in.v.view(), b, from, count));
        paged.append(b, part(in.k.view(), b, from, count), part(in.v.view(), b, from, count));
      }

    Tensor<T> out(Layout::bhsd, 3, 6, queries, value_dim), other(Layout::bhsd, 3, 6, queries, value_dim);
    ab::Evidence<T> evidence, of_other, alone;
    ab::attention(in.q.view(), cache, out.view(), ab::mask::Causal{}, ab::observe(evidence));
#if defined(_OPENMP)
    ab::attention(in.q.view(), paged, other.view(), ab::mask::Causal{}, ab::observe(of_other),
                  support::openmp(3));
#else
    ab::attention(in.q.view(), paged, other.view(), ab::mask::Causal{}, ab::observe(of_other));
#endif
    table.begin("page size " + std::to_string(page_size) + " Nq " + std::to_string(queries));
    table.expect(support::same_bits(out.view(), other.view()), "paged: output");
    table.expect(support::same_bits(evidence, of_other), "paged: evidence");
    ab::attention_evidence(in.q.view(), paged, ab::mask::Causal{}, ab::observe(alone));
    table.expect(support::same_bits(evidence, alone), "evidence alone");
    const std::vector<Index> seqlens(std::begin(lengths), std::end(lengths));

    for (const Index b : {0, 2}) {
      const support::Shape s{1, 6, 2, queries, lengths[b], dim, value_dim};
      support::Inputs<T> held(s, random);
      held.q.fill([&](Index, Index h, Index q, Index c) { return in.q(b, h, q, c); });
      read_back(cache.view(), b, held.k, held.v);
      auto stored = table.column("stored key"), stored_value = table.column("stored value");
      for (Index h = 0; h < 2; ++h)
        for (Index j = 0; j < s.keys; ++j) {
          const auto x = cache.view();
          const double scale = x.key_scales.data ? static_cast<double>(x.key_scales(b, h, j, 0)) : 0;
          const double value_scale = x.value_scales.data ? static_cast<double>(x.value_scales(b, h, j, 0)) : 0;
          for (Index c = 0; c < dim; ++c) {
            const double channel = x.channel_scales ? static_cast<double>(x.channel_scales[h * dim + c]) : 1;
            const double k = static_cast<double>(in.k(b, h, j, c));
            stored.compare(static_cast<double>(held.k(0, h, j, c)), k, stored_error<Stored>(k, scale * channel), j);
          }
          for (Index c = 0; c < value_dim; ++c) {
            const double v = static_cast<double>(in.v(b, h, j, c));
            stored_value.compare(static_cast<double>(held.v(0, h, j, c)), v, stored_error<Stored>(v, value_scale),
                                 j);
          }
        }
      Tensor<double> expected(Layout::bhsd, 1, 6, queries, value_dim);
      ab::Evidence<double> truth;
      ab::reference::attention(held.q.input(), held.k.input(), held.v.input(), expected.view(), ab::mask::Causal{},
                               ab::observe(truth));
      // Scales and channel scales round once more than plain keys do: two roundings in a sum of D terms.
      auto errors = support::logit_errors(s, held, {});
      for (double& e : errors) e *= 1.1;
      Tensor<T> mine(Layout::bhsd, 1, 6, queries, value_dim);
      mine.fill([&](Index, Index h, Index q, Index c) { return out(b, h, q, c); });
      support::compare_output(table, "output", mine, expected, s, errors, held.v);
      compare_with_given(table, s, held, in, b, expected);
      const double r =
          std::expm1(2 * *std::max_element(errors.begin(), errors.end())) + 16 * std::numeric_limits<T>::epsilon();
      auto mass = table.column("mass");
      for (Index h = 0; h < 6; ++h)
        for (Index j = 0; j < 700; ++j) {
          const double m = j < s.keys ? truth.mass(0, h)[static_cast<std::size_t>(j)] : 0;
          mass.compare(static_cast<double>(evidence.mass(b, h)[static_cast<std::size_t>(j)]), m, r * m + 1e-37, j);
          table.expect(evidence.exposure(b, h)[static_cast<std::size_t>(j)] ==
                           static_cast<T>(j < s.keys ? truth.exposure(0, h)[static_cast<std::size_t>(j)] : 0),
                       "exposure");
        }
      // Alone in a view of its own.
      ab::KvView<Stored> one = paged.view();
      const auto table_of = paged.block_table(b);
      one.block_table = table_of, one.max_blocks = static_cast<Index>(table_of.size());
      one.lengths = std::span<const Index>(&seqlens[static_cast<std::size_t>(b)], 1);
      Tensor<T> single(Layout::bhsd, 1, 6, queries, value_dim);
      ab::attention(part(in.q.view(), b, 0, queries), one, single.view(), ab::mask::Causal{}, ab::observe(alone));
      table.expect(support::same_bits(single.view(), mine.view()), "alone: output");
    }
    for (Index h = 0; h < 6; ++h) table.expect(evidence.empty_rows(1, h) == queries, "the empty sequence");
  }
  table.report();
}

TEST_CASE("scales per channel keep what outlier channels cost all others", "[attention][cache]") {
  // As in language models: a few channels of the keys, the same for all tokens, are 20 times larger.
  support::Random random(316);
  for (const Index queries : {1, 20}) {
    const support::Shape s{1, 8, 2, queries, 300, 128, 16};
    const support::Inputs<float> in(s, random);
    for (Index h = 0; h < 2; ++h)
      for (Index j = 0; j < s.keys; ++j)
        for (const Index c : {Index(3), Index(30), 41 + h}) in.k(0, h, j, c) *= 20;
    // Values that int8 holds, so that all that is lost is lost by the keys.
    in.v.fill([&](auto...) { return random.unit() < 0.5 ? -1 : 1; });
    Tensor<double> expected(Layout::bhsd, 1, 8, queries, 16);
    ab::Evidence<double> truth;
    ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), expected.view(), ab::observe(truth));

    struct Errors {
      double output = 0, mass = 0;
    };
    // `prompt`: of how many tokens the channels are calibrated on.
    auto errors = [&](Index prompt) {
      ab::KvCache<std::int8_t> cache(1, 2, s.keys, 128, 16);
      if (prompt > 0) cache.calibrate_channels(part(in.k.view(), 0, 0, prompt));
      cache.append(in.k.view(), in.v.view());
      Tensor<float> out(Layout::bhsd, 1, 8, queries, 16);
      ab::Evidence<float> evidence;
      ab::attention(in.q.view(), cache, out.view(), ab::observe(evidence));
      Errors sum;
      for (Index h = 0; h < 8; ++h) {
        for (Index i = 0; i < queries; ++i)
          for (Index c = 0; c < 16; ++c)
            sum.output += std::fabs(static_cast<double>(out(0, h, i, c)) - expected(0, h, i, c));
        for (std::size_t j = 0; j < truth.mass(0, h).size(); ++j)
          sum.mass += std::fabs(static_cast<double>(evidence.mass(0, h)[j]) - truth.mass(0, h)[j]);
      }
      return sum;
    };
    const Errors with = errors(100), without = errors(0);
    INFO("Nq " << queries << ": output " << with.output << " and " << without.output << ", mass " << with.mass
               << " and " << without.mass);
    CHECK(with.output < without.output / 4);
    CHECK(with.mass < without.mass / 2.5);
  }
}

TEST_CASE("1 to 16 threads of any executor give the same bits over a paged cache", "[attention][cache][executor]") {
  support::Random random(317);
  support::Table table;
  // Decoding, with several splits of the keys, and a prompt of several chunks.
  for (const Index queries : {1, 70}) {
    const support::Shape s{2, 4, 2, queries, 700, 8, 4};
    const support::Inputs<float> in(s, random);
    ab::PagedKvCache<std::int8_t> cache(2, 2, 90, 16, 8, 4);
    cache.append(0, part(in.k.view(), 0, 0, 600), part(in.v.view(), 0, 0, 600));
    cache.append(1, part(in.k.view(), 1, 0, 700), part(in.v.view(), 1, 0, 700));
    Tensor<float> expected(Layout::bhsd, 2, 4, queries, 4), out(Layout::bhsd, 2, 4, queries, 4);
    ab::Evidence<float> truth, evidence;
    auto run = [&](const Tensor<float>& to, ab::Evidence<float>& e, const support::AnyExecutor& executor) {
      ab::attention(in.q.view(), cache, to.view(), ab::mask::Causal{}, ab::observe(e), executor);
    };
    run(expected, truth, {"Sequential", ab::executor::Sequential{}});
    for (Index threads = 1; threads <= 16; ++threads)
      for (const support::AnyExecutor& executor : support::executors_with(threads)) {
        table.begin("Nq " + std::to_string(queries) + ", " + executor.name + ", threads " + std::to_string(threads));
        run(out, evidence, executor);
        table.expect(support::same_bits(out.view(), expected.view()), "output");
        table.expect(support::same_bits(evidence, truth), "evidence");
      }
  }
  table.report();
}

TEMPLATE_TEST_CASE("evicting moves all that belongs to a slot", "[attention][cache]", float, std::int8_t) {
  using Stored = TestType;
  support::Random random(312);
  const support::Shape s{2, 4, 2, 1, 90, 16, 16};
  const support::Inputs<float> in(s, random);
  ab::KvCache<Stored> cache(2, 2, 100, 16);
  ab::PagedKvCache<Stored> paged(2, 2, 40, 8, 16);
  cache.append(in.k.view(), in.v.view());
  paged.append(in.k.view(), in.v.view());
  CHECK(paged.free_pages() == 40 - 2 * 12);
  Tensor<float> out(Layout::bhsd, 2, 4, 1, 16), other(Layout::bhsd, 2, 4, 1, 16);
  ab::Evidence<float> evidence;
  ab::attention(in.q.view(), cache, out.view(), ab::observe(evidence));
  const std::vector<float> mass(evidence.mass(1, 3).begin(), evidence.mass(1, 3).end());

  const auto plan = ab::execute::token_budget(mass, 40, {0, 1});
  std::vector<int> labels(90);
  for (int i = 0; i < 90; ++i) labels[static_cast<std::size_t>(i)] = i;
  ab::execute::evict(cache, 1, plan, evidence, labels);
  ab::execute::evict(paged, 1, plan);
  CHECK(cache.length(0) == 90);
  CHECK(cache.length(1) == 40);
  CHECK(cache.seen(1) == 90);
  CHECK(paged.free_pages() == 40 - 12 - 5);
  REQUIRE(labels.size() == 40);
  for (std::size_t i = 0; i < 40; ++i) {
    CHECK(labels[i] == plan.kept()[i]);
    CHECK(evidence.mass(1, 3)[i] == mass[static_cast<std::size_t>(plan.kept()[i])]);
    CHECK(cache.position(1, 1, static_cast<Index>(i)) == plan.kept()[i]);
    CHECK(paged.position(1, 1, static_cast<Index>(i)) == plan.kept()[i]);
  }
  CHECK(evidence.mass(1, 3)[40] == 0);

  // The same as a cache that never had the others, and appending goes on where the sequence was.
  ab::KvCache<Stored> fresh(2, 2, 100, 16);
  fresh.append(0, part(in.k.view(), 0, 0, 90), part(in.v.view(), 0, 0, 90));
  for (const Index j : plan.kept()) fresh.append(1, part(in.k.view(), 1, j, 1), part(in.v.view(), 1, j, 1));
  for (ab::KvCache<Stored>* c : {&cache, &fresh})
    c->append(1, part(in.k.view(), 0, 5, 2), part(in.v.view(), 0, 5, 2));
  paged.append(1, part(in.k.view(), 0, 5, 2), part(in.v.view(), 0, 5, 2));
  CHECK(cache.position(1, 0, 41) == 91);
  Tensor<float> expected(Layout::bhsd, 2, 4, 1, 16);
  ab::attention(in.q.view(), fresh, expected.view());
  ab::attention(in.q.view(), cache, out.view());
  ab::attention(in.q.view(), paged, other.view());
  CHECK(support::same_bits(out.view(), expected.view()));
  CHECK(support::same_bits(other.view(), expected.view()));

  // Whole pages are given back without moving a token.
  const std::vector<float> scores(90, 1.0f);
  const std::vector<Index> pins{11, 2, 0};
  const auto pages = ab::execute::page_budget(scores, 8, 3, {.pins = pins});
  CHECK(pages.size() == 8 + 8 + 2);
  const Index page = paged.block_table(0)[2], last = paged.block_table(0)[11];
  ab::execute::evict(paged, 0, pages);
  CHECK(paged.length(0) == 18);
  CHECK(paged.block_table(0)[1] == page);
  CHECK(paged.block_table(0)[2] == last);
  CHECK(paged.position(0, 0, 8) == 16);
  CHECK(paged.position(0, 0, 17) == 89);
  // A sequence may be held to fewer pages than there are: its table is that long.
  ab::PagedKvCache<Stored> narrow(2, 2, 40, 8, 16, 16, 3);
  CHECK(narrow.view().max_blocks == 3);
  CHECK(narrow.sequence_pages() == 3);
  narrow.append(1, part(in.k.view(), 1, 0, 20), part(in.v.view(), 1, 0, 20));
  CHECK_THROWS_AS(narrow.append(1, part(in.k.view(), 1, 0, 5), part(in.v.view(), 1, 0, 5)), ab::BudgetError);
  narrow.append(1, part(in.k.view(), 1, 20, 4), part(in.v.view(), 1, 20, 4));
  CHECK(narrow.length(1) == 24);
  CHECK(narrow.free_pages() == 37);

  // What a token more takes is known before it is appended.
  CHECK(narrow.pages_for(0) == 0);
  CHECK(narrow.pages_for(24) == 3);
  CHECK(narrow.pages_for(25) == 4);
  for (const Index n : {1, 7, 8, 1}) {
    const Index taken = narrow.pages_for(narrow.length(0) + n) - static_cast<Index>(narrow.block_table(0).size());
    const Index free = narrow.free_pages();
    narrow.append(0, part(in.k.view(), 0, 0, n), part(in.v.view(), 0, 0, n));
    CHECK(narrow.free_pages() == free - taken);
  }
  CHECK_THROWS_AS((ab::PagedKvCache<Stored>(2, 2, 40, 8, 16, 16, 41)), ab::ShapeError);

  // Heads may keep different tokens.
  const std::vector<Index> by_head{0, 5, 9, 1, 2, 17};
  paged.keep_by_head(0, by_head);
  CHECK(paged.length(0) == 3);
  CHECK(paged.position(0, 0, 1) == 5);
  CHECK(paged.position(0, 1, 2) == 89);
  paged.clear(0);
  CHECK(paged.seen(0) == 0);
}

TEST_CASE("a cache says what is wrong", "[attention][cache]") {
  support::Random random(313);
  const support::Shape s{1, 2, 2, 1, 10, 4, 4};
  const support::Inputs<float> in(s, random);
  CHECK_THROWS_AS((ab::KvCache<float>(0, 1, 1, 1)), ab::ShapeError);
  CHECK_THROWS_AS((ab::PagedKvCache<float>(1, 1, 1, 0, 1)), ab::ShapeError);
  CHECK_THROWS_AS((ab::KvCache<float>(1, 1, Index(1) << 60, 64)), ab::ShapeError);
  ab::KvCache<float> cache(1, 2, 15, 4);
  ab::PagedKvCache<float> paged(1, 2, 3, 5, 4);
  for (int i = 0; i < 2; ++i) {
    if (i == 1) {
      CHECK_THROWS_AS(cache.append(in.k.view(), in.v.view()), ab::BudgetError);
      CHECK_THROWS_AS(paged.append(in.k.view(), in.v.view()), ab::BudgetError);
      break;
    }
    cache.append(in.k.view(), in.v.view());
    paged.append(in.k.view(), in.v.view());
  }
  CHECK(cache.length(0) == 10);
  CHECK(paged.length(0) == 10);
  const std::vector<Index> twice{1, 1}, beyond{10};
  CHECK_THROWS_AS(cache.keep(0, twice), ab::InputError);
  CHECK_THROWS_AS(paged.keep(0, beyond), ab::InputError);
  CHECK_THROWS_AS(paged.keep_blocks(0, beyond), ab::InputError);
  CHECK_THROWS_AS(cache.length(1), ab::ShapeError);
  CHECK_THROWS_AS(ab::execute::evict(cache, 0, ab::execute::TokenPlan(9, {0})), ab::ShapeError);
  Tensor<float> out(Layout::bhsd, 1, 2, 1, 4);
  auto view = paged.view();
  const std::vector<std::int32_t> bad_table{0, 3, 1}, long_seq{16}, table{0, 1, 2}, negative{-1};
  auto attend = [&](const ab::KvView<float>& x) { ab::attention(in.q.view(), x, out.view()); };
  CHECK_NOTHROW(attend(ab::paged(view.keys, view.values, table, 3, view.lengths)));
  CHECK_THROWS_AS(attend(ab::paged(view.keys, view.values, bad_table, 3, view.lengths)), ab::ShapeError);
  CHECK_THROWS_AS(attend(ab::paged(view.keys, view.values, table, 3, long_seq)), ab::ShapeError);
  CHECK_THROWS_AS(attend(ab::paged(view.keys, view.values, table, 3, negative)), ab::ShapeError);
  CHECK_THROWS_AS(attend(ab::paged(view.keys, view.values, table, 2, view.lengths)), ab::ShapeError);
  // Tables and lengths that the caller may write, of a fixed number or not.
  std::int32_t blocks[] = {0, 1, 2};
  Index tokens[] = {1};
  CHECK_NOTHROW(attend(ab::paged(view.keys, view.values, std::span(blocks), 3, std::span(tokens))));
  view.lengths = std::span<Index>(tokens);
  CHECK_NOTHROW(attend(view));
  // A table without a page is a table: of sequences that have no tokens yet.
  const std::vector<std::int32_t> no_table, no_tokens{0, 0};
  Tensor<float> two_q(Layout::bhsd, 2, 2, 1, 4), two_out(Layout::bhsd, 2, 2, 1, 4);
  const ab::TensorView<const float> one_page = part(view.keys, 0, 0, view.keys.length);
  ab::attention(two_q.view(), ab::paged(one_page, one_page, no_table, 0, no_tokens), two_out.view());
  CHECK(two_out(1, 1, 0, 3) == 0);
  // Messages name the cache: there is no k, and its views count pages.
  CHECK_THROWS_WITH(ab::attention(two_q.view(), view, two_out.view()),
                    "cache.batch is 1, but must equal q.batch = 2");
  ab::TensorView<float> narrow = out.view();
  narrow.dim = 3;
  CHECK_THROWS_WITH(ab::attention(in.q.view(), view, narrow), "out.dim is 3, but must equal cache.values.dim = 4");
  // An output in the memory of the pool.
  const ab::TensorView<float> inside = ab::bhsd(const_cast<float*>(view.keys.data), 1, 2, 1, 4);
  CHECK_THROWS_AS(ab::attention(in.q.view(), view, inside), ab::ShapeError);
}

// A quotient of 1 and 1e-40 is beyond float: that key would be stored as not a number.
TEST_CASE("channels calibrated on next to nothing do not lose what comes later", "[attention][cache]") {
  support::Random random(315);
  const support::Inputs<float> in({1, 1, 1, 1, 6, 4, 3}, random);
  Tensor<float> tiny(Layout::bhsd, 1, 1, 1, 4), out(Layout::bhsd, 1, 1, 1, 3);
  Tensor<double> truth(Layout::bhsd, 1, 1, 1, 3);
  for (Index c = 0; c < 4; ++c) tiny(0, 0, 0, c) = c == 3 ? 0.0f : 1e-40f * static_cast<float>(c + 1);
  ab::KvCache<std::int8_t> cache(1, 1, 6, 4, 3);
  cache.calibrate_channels(tiny.view());
  cache.append(in.k.view(), in.v.view());
  ab::attention(in.q.view(), cache, out.view());
  ab::reference::attention(in.q.view(), in.k.view(), in.v.view(), truth.view());
  for (Index c = 0; c < 3; ++c)
    CHECK(static_cast<double>(out(0, 0, 0, c)) == Approx(truth(0, 0, 0, c)).margin(0.05));

  ab::KvCache<std::int8_t> other(1, 1, 6, 4, 3);
  for (const float bad : {0.0f, -1.0f, 1e-40f, 1e20f, std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()})
    CHECK_THROWS_AS(other.set_channel_scales(std::vector<float>{1, 1, bad, 1}), ab::InputError);
  CHECK_NOTHROW(other.set_channel_scales(std::vector<float>{1, 0x1p-64f, 0x1p64f, 1}));
}

TEST_CASE("keys and channel scales at their limits are stored within the stated error, or refused",
          "[attention][cache]") {
  for (const int channel : {-64, -32, 0, 32, 64})
    for (const int key : {-140, -100, -64, -60, 0, 60, 63, 64, 70, 96, 127}) {
      INFO("channel scale 2^" << channel << ", key 2^" << key);
      const std::vector<float> scales{std::exp2f(static_cast<float>(channel)), 1};
      const float k[] = {std::exp2f(static_cast<float>(key)), 0.25f}, v[] = {1};
      ab::KvCache<std::int8_t> cache(1, 1, 3, 2, 1);
      cache.set_channel_scales(scales);
      const auto keys = ab::bhsd(k, 1, 1, 1, 2), values = ab::bhsd(v, 1, 1, 1, 1);
      if (key - channel >= 128) {
        CHECK_THROWS_WITH(cache.append(keys, values), Catch::Matchers::ContainsSubstring(
                                                          "k of sequence 0, head 0, token 0, channel 0"));
        CHECK_THROWS_AS(cache.append(0, keys, values), ab::InputError);
        CHECK(cache.length(0) == 0);
        continue;
      }
      cache.append(keys, values);
      const auto x = cache.view();
      const double scale =
          std::max(std::max(static_cast<double>(k[0]) / static_cast<double>(scales[0]), 0.25) / 127, 0x1p-124);
      CHECK(static_cast<double>(x.key_scales(0, 0, 0, 0)) == Approx(scale));
      for (const Index c : {0, 1}) {
        const double s = static_cast<double>(scales[static_cast<std::size_t>(c)]);
        const double stored =
            static_cast<double>(x.keys(0, 0, 0, c)) * static_cast<double>(x.key_scales(0, 0, 0, 0)) * s;
        CHECK(std::fabs(stored - static_cast<double>(k[c])) <= 0.5001 * scale * s);
      }
    }

  // Not a number and infinity are not too large, but what they are.
  ab::KvCache<std::int8_t> cache(1, 1, 3, 2, 1);
  cache.set_channel_scales(std::vector<float>{0x1p-64f, 1});
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const float k[] = {bad, 1}, v[] = {1};
    CHECK_NOTHROW(cache.append(ab::bhsd(k, 1, 1, 1, 2), ab::bhsd(v, 1, 1, 1, 1)));
  }
  CHECK(std::isnan(cache.view().key_scales(0, 0, 1, 0)));

  // The largest number does not round up into infinity.
  ab::KvCache<std::int8_t> large(1, 1, 1, 1);
  const float largest[] = {std::numeric_limits<float>::max()};
  large.append(ab::bhsd(largest, 1, 1, 1, 1), ab::bhsd(largest, 1, 1, 1, 1));
  CHECK(std::isfinite(127 * large.view().value_scales(0, 0, 0, 0)));
  CHECK(large.view().values(0, 0, 0, 0) == 127);

  // A key of next to nothing is within the least scale of 0.
  ab::KvCache<std::int8_t> small(1, 1, 1, 2, 1);
  small.set_channel_scales(std::vector<float>{0x1p64f, 0x1p64f});
  const float k[] = {0x1p-62f, -0x1p-70f}, v[] = {1};
  small.append(ab::bhsd(k, 1, 1, 1, 2), ab::bhsd(v, 1, 1, 1, 1));
  CHECK(small.view().key_scales(0, 0, 0, 0) == 0x1p-124f);
  // Up to eight queries are multiplied by the channel scales: beyond the range of float they are not a number.
  for (const Index queries : {8, 9}) {
    std::vector<float> q(static_cast<std::size_t>(2 * queries), 0x1p64f), out(static_cast<std::size_t>(queries));
    ab::attention(ab::bhsd(q.data(), 1, 1, queries, 2), small, ab::bhsd(out.data(), 1, 1, queries, 1),
                  ab::score::Scale{1});
    CHECK(std::isnan(out[0]) == (queries == 8));
    q.assign(q.size(), 0x1p60f);
    ab::attention(ab::bhsd(q.data(), 1, 1, queries, 2), small, ab::bhsd(out.data(), 1, 1, queries, 1),
                  ab::score::Scale{1});
    CHECK(out[0] == 1);
  }
}

TEMPLATE_TEST_CASE("two parts merge into the whole", "[attention][merge]", SCALARS) {
  using T = TestType;
  support::Random random(314);
  const support::Shape s{2, 4, 2, 3, 100, 8, 5};
  const support::Inputs<T> in(s, random);
  auto keys = [](ab::TensorView<T> x, Index first, Index count) {
    x.data += first * x.length_stride, x.length = count;
    return x;
  };
  for (const Index cut : {0, 1, 60, 100}) {
    INFO("cut at " << cut);
    Tensor<T> o1(Layout::bhsd, 2, 4, 3, 5), o2(Layout::bhsd, 2, 4, 3, 5), both(Layout::columns, 2, 4, 3, 5);
    Tensor<double> whole(Layout::bhsd, 2, 4, 3, 5);
    ab::Evidence<T> e1, e2, merged;
    ab::Evidence<double> truth;
    const auto weights = ab::QueryWeights::only(1);
    ab::attention(in.q.view(), keys(in.k.view(), 0, cut), keys(in.v.view(), 0, cut), o1.view(),
                  ab::observe(e1, weights, ab::evidence::squares));
    ab::attention(in.q.view(), keys(in.k.view(), cut, 100 - cut), keys(in.v.view(), cut, 100 - cut), o2.view(),
                  ab::observe(e2, weights, ab::evidence::squares));
    ab::reference::attention(in.q.view(), in.k.view(), in.v.view(), whole.view(),
                             ab::observe(truth, weights, ab::evidence::squares));
    CHECK_THROWS_AS(ab::merge(o1.view(), e1, o2.view(), e2, both.view(), merged), ab::InputError);
    CHECK_THROWS_WITH(ab::merge(o1.view(), e1, o2.view(), ab::Evidence<T>(), both.view(), merged),
                      Catch::Matchers::ContainsSubstring("second evidence is empty, but must have been observed"));
    ab::merge(o1.view(), e1, o2.view(), e2, both.view(), merged, 1);
    std::vector<T> lse(24);
    const double eps = 64 * static_cast<double>(std::numeric_limits<T>::epsilon());
    for (Index b = 0; b < 2; ++b)
      for (Index h = 0; h < 4; ++h) {
        for (std::size_t i = 0; i < 3; ++i) {
          CHECK(static_cast<double>(merged.lse(b, h)[i]) == Approx(truth.lse(b, h)[i]).epsilon(eps));
          CHECK(static_cast<double>(merged.entropy(b, h)[i]) == Approx(truth.entropy(b, h)[i]).epsilon(eps));
        }
        for (std::size_t j = 0; j < 100; ++j) {
          CHECK(static_cast<double>(merged.mass(b, h)[j]) == Approx(truth.mass(b, h)[j]).epsilon(eps));
          CHECK(static_cast<double>(merged.statistic(b, h)[j]) == Approx(truth.statistic(b, h)[j]).epsilon(eps));
          CHECK(static_cast<double>(merged.exposure(b, h)[j]) == truth.exposure(b, h)[j]);
        }
        for (Index i = 0; i < 3; ++i)
          for (Index c = 0; c < 5; ++c)
            CHECK(static_cast<double>(both(b, h, i, c)) == Approx(whole(b, h, i, c)).epsilon(eps).margin(eps));
      }
    ab::merge(o1.view(), e1.lse(), o2.view(), e2.lse(), o1.view(), lse);  // in place
    CHECK(o1(1, 3, 2, 4) == both(1, 3, 2, 4));
    CHECK(lse[23] == merged.lse(1, 3)[2]);
  }
}
