// Decoding with products of integers: against the reference at the stated error, where the machine has them and where
// it has not.

#include "support/anybody.hpp"
#include "support/cache.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/options.hpp"

namespace {

using support::Anybody;
using support::Index;
using support::Layout;
using support::part;
using support::Tensor;

constexpr float no_number = std::numeric_limits<float>::quiet_NaN();

/// Sequences of lengths of their own in both kinds of cache.
struct Caches {
  ab::KvCache<std::int8_t> whole;
  ab::PagedKvCache<std::int8_t> paged;

  Caches(const support::Shape& s, const support::Inputs<float>& in, const std::vector<Index>& lengths,
         bool channels)
      : whole(s.batch, s.kv_heads, s.keys, s.dim, s.value_dim),
        paged(s.batch, s.kv_heads, s.batch * (s.keys / 7 + 1), 7, s.dim, s.value_dim) {
    if (channels) whole.calibrate_channels(in.k.input()), paged.calibrate_channels(in.k.input());
    // In turn, so that pages of the sequences alternate.
    for (Index from = 0; from < s.keys; from += 50)
      for (Index b = 0; b < s.batch; ++b) {
        const Index some = std::min(from + 50, lengths[static_cast<std::size_t>(b)]) - from;
        if (some <= 0) continue;
        const auto k = part(in.k.input(), b, from, some), v = part(in.v.input(), b, from, some);
        whole.append(b, k, v), paged.append(b, k, v);
      }
  }
};

/// What a sequence means, and what the rounding of a row may cost.
struct Held {
  support::Shape shape;
  support::Inputs<float> in;
  ab::KvView<std::int8_t> x;
  Index b;

  Held(const support::Shape& s, const support::Inputs<float>& from, const ab::KvView<std::int8_t>& view,
       Index batch, support::Random& random)
      : shape(one(s, view.length(batch))), in(shape, random), x(view), b(batch) {
    in.q.fill([&](Index, Index h, Index i, Index c) { return from.q(b, h, i, c); });
    support::read_back(x, b, in.k, in.v);
  }

  static support::Shape one(support::Shape s, Index keys) {
    s.batch = 1, s.keys = keys;
    return s;
  }

  Index kv_head(Index h) const { return h / (shape.heads / shape.kv_heads); }

  /// The most that a score of a row is off by, as IntegerProducts says it.
  double score_error(Index h, Index i, double scale) const {
    double largest = 0, most = 0;
    auto channel = [&](Index c) {
      return x.channel_scales ? static_cast<double>(x.channel_scales[kv_head(h) * shape.dim + c]) : 1.0;
    };
    for (Index c = 0; c < shape.dim; ++c)
      largest = std::max(largest, std::fabs(scale * static_cast<double>(in.q(0, h, i, c)) * channel(c)));
    for (Index j = 0; j < shape.keys; ++j) {
      double sum = 0;
      for (Index c = 0; c < shape.dim; ++c)
        sum += std::fabs(static_cast<double>(in.k(0, kv_head(h), j, c))) / channel(c);
      most = std::max(most, sum);
    }
    return 0.504 * largest / 32767 * most;
  }

  /// The most that feature c of the output is off by because of weights that were rounded, where the row's
  /// probabilities are p.
  double value_error(Index h, Index c, const std::vector<double>& p) const {
    double error = 0;
    for (Index from = 0; from < shape.keys; from += 128) {
      double most = 0, sum = 0;
      for (Index j = from; j < std::min(from + 128, shape.keys); ++j) {
        const double scale = static_cast<double>(x.value_scales(b, kv_head(h), j, 0));
        most = std::max(most, p[static_cast<std::size_t>(j)] * scale);
        if (scale > 0) sum += std::fabs(static_cast<double>(in.v(0, kv_head(h), j, c))) / scale;
      }
      error += 0.504 * most / 32767 * sum;
    }
    return error;
  }
};

}  // namespace

TEST_CASE("products of integers keep to their error", "[attention][cache][int8]") {
  support::Table table;
  support::Random random(411);
  constexpr Index groups[] = {1, 2, 3, 4, 5, 8}, queries[] = {1, 1, 2, 4, 8},
                  keys[] = {1, 2, 127, 129, 160, 301, 700, 1500}, dims[] = {1, 3, 16, 31, 40, 64, 96, 130, 600};
  for (Index i = 0; i < 54; i += support::every(5)) {
    support::Shape s{i % 3 + 1,       groups[i % 6] * 2, 2, queries[i * 3 % 5], keys[i * 3 % 8],
                     dims[i * 5 % 9], dims[(i + 3) % 9]};
    const bool causal = i % 3 != 1, channels = i % 4 == 2;
    support::Inputs<float> in(s, random, i % 2 == 0 ? support::Family::log_normal : support::Family::uniform, 0.5);
    std::vector<Index> lengths(static_cast<std::size_t>(s.batch), s.keys);
    if (i % 5 == 2) lengths.back() = s.keys / 2;
    const Caches caches(s, in, lengths, channels);
    table.begin(s.text() + (causal ? "causal " : "") + (channels ? "channels" : ""));

    const double scale = 1 / std::sqrt(static_cast<double>(s.dim));
    const ab::mask::Window window{-1, causal ? 0 : -1};
    const std::vector<float> logits(static_cast<std::size_t>(s.heads), 0.5f);
    const ab::normalize::Sink<float> sink(logits);
    const auto tensor = [&](Index batch) {
      return Tensor<float>(Layout::bhsd, batch, s.heads, s.queries, s.value_dim);
    };
    Tensor<float> plain = tensor(s.batch), out = tensor(s.batch), other = tensor(s.batch);
    ab::Evidence<float> evidence, of_other;
    const auto run = [&](const auto& cache, const Tensor<float>& to, auto... policies) {
      ab::attention(in.q.input(), cache, to.view(), ab::IntegerProducts{}, window, sink, policies...);
    };
    run(caches.whole, plain);
    run(caches.whole, out, ab::observe(evidence));
    for (const Index pieces : {2, 7}) {
      run(caches.paged, other, Anybody{Anybody::backwards, pieces}, ab::observe(of_other));
      table.expect(support::same_bits(out.view(), other.view()), "paged: output");
      table.expect(support::same_bits(evidence, of_other), "paged: evidence");
    }
    run(caches.paged, other, Anybody{Anybody::threads, 3});
    table.expect(support::same_bits(plain.view(), other.view()), "paged: output, not observed");

    for (Index b = 0; b < s.batch; ++b) {
      const Held held(s, in, caches.whole.view(), b, random);
      const support::Shape& one = held.shape;
      Tensor<double> exact(Layout::bhsd, 1, s.heads, s.queries, s.value_dim);
      ab::Evidence<double> truth;
      auto reference = [&](const auto& weights) {
        ab::reference::attention(held.in.q.input(), held.in.k.input(), held.in.v.input(), exact.view(), window,
                                 sink, ab::observe(truth, weights));
      };
      auto errors = support::logit_errors(one, held.in, {.added = 0.5});
      auto column = table.column("output");
      for (Index i_query = 0; i_query < s.queries; ++i_query) {
        reference(ab::QueryWeights::only(i_query));  // the mass of one query is its probabilities
        for (Index h = 0; h < s.heads; ++h) {
          const Index row = h * s.queries + i_query;
          double& e = errors[static_cast<std::size_t>(row)];
          // Scales round once more than plain keys do.
          e = 1.1 * e + held.score_error(h, i_query, scale);
          const std::vector<double> p(truth.mass(0, h).begin(), truth.mass(0, h).end());
          double most = 0;
          for (Index c = 0; c < s.value_dim; ++c)
            for (Index j = 0; j < one.keys; ++j)
              most = std::max(most, std::fabs(static_cast<double>(held.in.v(0, held.kv_head(h), j, c))));
          const double r = std::expm1(2 * e) + 3e-6;
          for (Index c = 0; c < s.value_dim; ++c)
            for (const Tensor<float>* x : {&plain, &out})
              column.compare(static_cast<double>((*x)(b, h, i_query, c)), exact(0, h, i_query, c),
                             r * most + (1 + r) * held.value_error(h, c, p) + 1e-33, row);
        }
      }
      reference(ab::QueryWeights::all());
      if (b > 0) continue;  // the evidence of the others is that of a batch
      ab::Evidence<float> alone;
      const auto first = caches.whole.view();
      support::Inputs<float> q(one, random);
      q.q.fill([&](Index, Index h, Index j, Index c) { return in.q(0, h, j, c); });
      Tensor<float> of_alone = tensor(1);
      ab::attention(q.q.input(), ab::detail::sequence_of(first, 0), of_alone.view(), ab::IntegerProducts{}, window,
                    sink, ab::observe(alone));
      support::compare_evidence(table, alone, truth, one, errors, ab::QueryWeights::all());
      bool same = true;
      for (Index h = 0; h < s.heads; ++h)
        for (Index j = 0; j < s.queries; ++j)
          for (Index c = 0; c < s.value_dim; ++c)
            same = same && support::same_bits(static_cast<double>(of_alone(0, h, j, c)),
                                              static_cast<double>(out(0, h, j, c)));
      table.expect(same, "alone: output");
    }
  }
  table.report();
}

TEST_CASE("products of integers hold the largest sums", "[attention][cache][int8]") {
  // Scores are compared by themselves: a single key has its score as lse.
  support::Table table;
  for (const Index dim : {1, 16, 511, 512, 513, 1024, 1100})
    for (const Index rows : {1, 2, 3, 4}) {
      table.begin("D " + std::to_string(dim) + " rows " + std::to_string(rows));
      const std::vector<std::int8_t> bytes(static_cast<std::size_t>(200 * dim), std::int8_t(-128));
      const std::vector<float> scales(200, 0.01f);
      ab::KvView<std::int8_t> x;
      x.keys = x.values = ab::bhsd(bytes.data(), 1, 1, 200, dim);
      x.key_scales = x.value_scales = ab::bhsd(scales.data(), 1, 1, 200, 1);
      Tensor<float> q(Layout::bhsd, 1, rows, 1, dim), out(Layout::bhsd, 1, rows, 1, dim);
      q.fill([](Index, Index h, Index, Index) { return h % 2 == 0 ? 3.0f : -3.0f; });
      ab::Evidence<float> evidence;
      ab::attention(q.view(), x, out.view(), ab::IntegerProducts{}, ab::observe(evidence));
      auto lse = table.column("lse"), value = table.column("value");
      for (Index h = 0; h < rows; ++h) {
        const double score = (h % 2 == 0 ? -3.84 : 3.84) * std::sqrt(static_cast<double>(dim));
        // Integers lose nothing on the way; floats may lose a rounding with each feature.
        const double lost = ab::simd::has_integer_products ? 1e-6 : 1e-6 + 6e-8 * static_cast<double>(dim);
        lse.compare(static_cast<double>(evidence.lse(0, h)[0]), score + std::log(200.0),
                    lost * std::fabs(score) + 1e-5, h);
        for (Index c = 0; c < dim; ++c) value.compare(static_cast<double>(out(0, h, 0, c)), -1.28, 1e-5, h);
      }
    }
  table.report();
}

TEST_CASE("products of integers do not see what is hidden", "[attention][cache][int8]") {
  support::Random random(412);
  const support::Shape s{1, 6, 2, 3, 301, 37, 45};
  const support::Inputs<float> in(s, random, support::Family::uniform);
  const ab::mask::Window window{-1, 0};
  const Caches caches(s, in, {s.keys}, false);
  const ab::KvView<std::int8_t> clean = caches.whole.view();
  std::vector<float> key_scales(clean.key_scales.data, clean.key_scales.data + 2 * 301),
      value_scales(clean.value_scales.data, clean.value_scales.data + 2 * 301);
  ab::KvView<std::int8_t> x = clean;
  x.key_scales.data = key_scales.data(), x.value_scales.data = value_scales.data();
  const auto run = [&](const ab::KvView<std::int8_t>& view, const Tensor<float>& q, ab::Evidence<float>& evidence) {
    Tensor<float> out(Layout::bhsd, 1, 6, 3, 45);
    ab::attention(q.input(), view, out.view(), ab::IntegerProducts{}, window, ab::observe(evidence));
    return out;
  };
  ab::Evidence<float> before, after;
  const Tensor<float> expected = run(clean, in.q, before);
  // A row keeps its bits whatever the rows beside it meet.
  const auto same = [&](const Tensor<float>& out, Index h, Index i) {
    for (Index c = 0; c < 45; ++c)
      if (!support::same_bits(static_cast<double>(out(0, h, i, c)), static_cast<double>(expected(0, h, i, c))))
        return false;
    return true;
  };

  // Query i sees the keys up to i + 298: the last key is that of the last query alone.
  for (const float bad : {no_number, std::numeric_limits<float>::infinity()}) {
    value_scales[300] = bad;
    const Tensor<float> out = run(x, in.q, after);
    for (Index h = 0; h < 6; ++h)
      for (Index i = 0; i < 3; ++i) {
        INFO("value scale " << bad << " head " << h << " query " << i);
        CHECK((h < 3 && i == 2 ? !std::isfinite(out(0, h, i, 3)) : same(out, h, i)));
      }
    CHECK(support::same_bits(before, after));
  }
  value_scales[300] = clean.value_scales.data[300];
  key_scales[300] = no_number;
  {
    const Tensor<float> out = run(x, in.q, after);
    for (Index h = 0; h < 6; ++h)
      for (Index i = 0; i < 3; ++i) {
        INFO("key scale, head " << h << " query " << i);
        CHECK((h < 3 && i == 2 ? std::isnan(out(0, h, i, 3)) : same(out, h, i)));
      }
    CHECK(std::isnan(after.lse(0, 0)[2]));
    CHECK(support::same_bits(after.lse(0, 3), before.lse(0, 3)));
  }
  key_scales[300] = clean.key_scales.data[300];

  // A query that is not finite is its row's alone.
  for (const float bad :
       {no_number, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    Tensor<float> q(Layout::bhsd, 1, 6, 3, 37);
    q.fill([&](Index, Index h, Index i, Index c) { return in.q(0, h, i, c); });
    q(0, 1, 1, 36) = bad;
    const Tensor<float> out = run(x, q, after);
    for (Index h = 0; h < 6; ++h)
      for (Index i = 0; i < 3; ++i) {
        INFO("query " << bad << " head " << h << " query " << i);
        CHECK((h == 1 && i == 1 ? std::isnan(out(0, h, i, 44)) : same(out, h, i)));
      }
  }
}

TEST_CASE("products of integers of nothing and of next to nothing", "[attention][cache][int8]") {
  support::Random random(413);
  const support::Shape s{1, 4, 2, 1, 200, 24, 16};
  support::Inputs<float> in(s, random, support::Family::uniform);
  const auto run = [&](auto... policies) {
    const Caches caches(s, in, {s.keys}, false);
    Tensor<float> out(Layout::bhsd, 1, 4, 1, 16);
    ab::attention(in.q.input(), caches.whole, out.view(), policies...);
    return out;
  };
  const auto is_zero = [&](const Tensor<float>& out) {
    for (Index h = 0; h < 4; ++h)
      for (Index c = 0; c < 16; ++c)
        if (out(0, h, 0, c) != 0) return false;
    return true;
  };
  const std::vector<Index> none{0};
  CHECK(is_zero(run(ab::IntegerProducts{}, ab::mask::KeyLengths(none))));
  support::Random again(413);
  const support::Inputs<float> before(s, again, support::Family::uniform);
  const auto refill = [&](float of_queries, float of_values) {
    in.q.fill([&](Index, Index h, Index i, Index c) { return before.q(0, h, i, c) * of_queries; });
    in.v.fill([&](Index, Index h, Index j, Index c) { return before.v(0, h, j, c) * of_values; });
  };
  for (const float factor : {0.0f, 1e-20f, 1e-37f, 1e-44f}) {
    refill(factor, 1);
    const Tensor<float> with = run(ab::IntegerProducts{}), without = run();
    for (Index h = 0; h < 4; ++h)
      for (Index c = 0; c < 16; ++c) {
        INFO("queries times " << factor);
        CHECK(std::fabs(with(0, h, 0, c) - without(0, h, 0, c)) <= 2e-3f);
      }
    refill(1, factor);
    const Tensor<float> tiny = run(ab::IntegerProducts{}), exact = run();
    for (Index h = 0; h < 4; ++h)
      for (Index c = 0; c < 16; ++c) {
        INFO("values times " << factor);
        CHECK(std::fabs(tiny(0, h, 0, c) - exact(0, h, 0, c)) <= 2e-3f * factor + 1e-33f);
      }
  }
}

TEST_CASE("products of integers leave alone what they are not for", "[attention][cache][int8]") {
  support::Random random(414);
  const support::Shape few{1, 4, 2, 8, 300, 32, 17}, many{1, 4, 2, 20, 300, 32, 17};
  for (const support::Shape& s : {few, many}) {
    const support::Inputs<float> in(s, random, support::Family::uniform);
    const Caches caches(s, in, {s.keys}, false);
    Tensor<float> with(Layout::bhsd, 1, 4, s.queries, 17), without(Layout::bhsd, 1, 4, s.queries, 17);
    ab::Evidence<float> e, f;
    const auto compare = [&](auto statistic) {
      const auto all = ab::QueryWeights::all();
      ab::attention(in.q.input(), caches.whole, with.view(), ab::IntegerProducts{}, ab::observe(e, all, statistic));
      ab::attention(in.q.input(), caches.whole, without.view(), ab::observe(f, all, statistic));
      return support::same_bits(with.view(), without.view()) && support::same_bits(e, f);
    };
    CHECK(compare(ab::evidence::leave_one_out));
    CHECK(compare(ab::evidence::squares) == (s.queries > 8 || !ab::simd::has_integer_products));
  }
}
