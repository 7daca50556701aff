// Numbers at the edges: huge scores, infinities that come from the inputs themselves, denormal and huge values.

#include "support/check.hpp"
#include "support/options.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

template <class T>
constexpr T inf = std::numeric_limits<T>::infinity();
template <class T>
constexpr T nan_of = std::numeric_limits<T>::quiet_NaN();

/// One head, D = 1, scale 1: the scores are q_i * k_j, the values v_j [Nk, 1].
template <class T>
struct Line {
  std::vector<T> q, k, v, plain, out;  // plain: not observed
  ab::Evidence<T> evidence;

  template <class... P>
  void attend(P&&... policies) {
    const auto queries = static_cast<Index>(q.size()), keys = static_cast<Index>(k.size());
    plain.assign(q.size(), T(-1));
    out = plain;
    const auto vq = ab::bhsd(q.data(), 1, 1, queries, 1), vk = ab::bhsd(k.data(), 1, 1, keys, 1),
               vv = ab::bhsd(v.data(), 1, 1, keys, 1);
    ab::attention(vq, vk, vv, ab::bhsd(plain.data(), 1, 1, queries, 1), policies...);
    ab::attention(vq, vk, vv, ab::bhsd(out.data(), 1, 1, queries, 1), policies..., ab::observe(evidence));
  }

  /// The same, and observing changes nothing beyond rounding.
  template <class... P>
  void run(P&&... policies) {
    attend(policies...);
    support::Table table;
    auto column = table.column("observed output against plain output");
    for (std::size_t i = 0; i < out.size(); ++i)
      column.compare(out[i], plain[i], 64 * std::numeric_limits<T>::epsilon() * std::fabs(plain[i]),
                     static_cast<Index>(i));
    CHECK(column.worst() <= 1);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("however large the scores, the largest wins", "[attention]", SCALARS) {
  using T = TestType;
  const double eps = std::numeric_limits<T>::epsilon();
  const int most = sizeof(T) == 4 ? 37 : 307;
  support::Table table;
  for (const Index keys : {5, 40, 300})
    for (int exponent = 5; exponent <= most; exponent += exponent < 40 ? 1 : 20)
      for (const T sign : {T(1), T(-1)}) {
        table.begin(std::to_string(keys) + " scores of " + (sign > 0 ? "1e" : "-1e") + std::to_string(exponent));
        Line<T> line;
        // Scores sign * 10^exponent * (1 + j / keys): so far apart that only the largest has a weight.
        line.q = {T(1), T(1)};
        for (Index j = 0; j < keys; ++j) {
          line.k.push_back(sign * static_cast<T>(std::pow(10.0, exponent)) *
                           (T(1) + static_cast<T>(j) / static_cast<T>(keys)));
          line.v.push_back(static_cast<T>(j + 1));
        }
        line.attend();
        const std::size_t best = sign > 0 ? line.k.size() - 1 : 0;
        const double top = static_cast<double>(line.k[best]);
        table.column("plain output").equal(line.plain[0], line.v[best], 0);
        table.column("output").equal(line.out[0], line.v[best], 0);
        table.column("mass").equal(line.evidence.mass(0, 0)[best], 2, static_cast<Index>(best));
        table.column("empty rows").equal(static_cast<double>(line.evidence.empty_rows(0, 0)), 0, 0);
        table.column("entropy").compare(line.evidence.entropy(0, 0)[0], 0, 1e-30, 0);
        table.column("lse").compare(line.evidence.lse(0, 0)[0], top, std::fabs(top) * eps, 0);
      }
  table.report();
}

TEMPLATE_TEST_CASE("large scores share as the reference says", "[attention]", SCALARS) {
  using T = TestType;
  support::Table table;
  support::Random random(11);
  const std::vector<T> logits{T(3e3), T(-5)};
  for (const double scale : {1e2, 1e3, 1e4})
    for (const Index n : {7, 300, 100}) {
      if (n == 300 && support::quick()) continue;
      const support::Shape shape{1, 2, 1, n, n, 16, 8};
      support::Inputs<T> in(shape, random);
      // Scores up to `scale`, in steps that leave several keys within reach of the largest.
      in.k.fill([&](Index, Index, Index j, Index c) {
        return c == 0 ? scale * 4 * (1 - 1e-4 * static_cast<double>(j % 50)) : 0;
      });
      in.q.fill([&](Index, Index, Index i, Index c) { return c == 0 ? (i % 2 == 0 ? 1 : -1) : 0; });
      support::check(table, "scores of " + std::to_string(scale), shape, in, Layout::bhsd, ab::QueryWeights::all(), {});
      support::check(table, "with sinks, scores of " + std::to_string(scale), shape, in, Layout::bhsd,
                     ab::QueryWeights::all(), {0, 3e3}, ab::normalize::Sink(logits));
      support::check(table, "causal, scores of " + std::to_string(scale), shape, in, Layout::bhsd,
                     ab::QueryWeights::all(), {}, ab::mask::Causal{});
    }
  table.report();
}

TEMPLATE_TEST_CASE("a score of -inf is a mask, wherever it comes from", "[attention]", SCALARS) {
  using T = TestType;
  for (const Index keys : {2, 20, 200}) {
    Line<T> line;
    line.q = {T(1), T(1), T(2)};
    for (Index j = 0; j < keys; ++j) {
      const bool masked = j % 2 == 0;
      line.k.push_back(masked ? -inf<T> : T(0.5));  // the key itself makes the score infinite
      line.v.push_back(masked ? nan_of<T> : static_cast<T>(j));
    }
    line.run();
    CHECK(line.out[0] == Approx(static_cast<double>(keys) / 2));
    CHECK(line.evidence.mass(0, 0)[0] == T(0));
    CHECK(line.evidence.mass(0, 0)[1] == Approx(6.0 / static_cast<double>(keys)));
    CHECK(line.evidence.exposure(0, 0)[0] == T(3));  // exposure counts masks only
    CHECK(line.evidence.empty_rows(0, 0) == 0);

    for (auto& k : line.k) k = -inf<T>;
    line.run();
    CHECK(line.out[0] == T(0));
    CHECK(line.evidence.empty_rows(0, 0) == 3);
    CHECK(line.evidence.lse(0, 0)[0] == -inf<T>);
    CHECK(line.evidence.entropy(0, 0)[0] == T(0));
  }
}

TEMPLATE_TEST_CASE("a bias of -inf masks a key that is not a number", "[attention]", SCALARS) {
  using T = TestType;
  Line<T> line;
  line.q = {T(1), T(-1)};
  line.k = {nan_of<T>, T(1), inf<T>, T(1)};
  line.v = {nan_of<T>, T(2), inf<T>, T(4)};
  const std::vector<T> evicted{-inf<T>, T(0), -inf<T>, T(0)};
  line.run(ab::score::KeyBias(evicted));
  for (const std::size_t i : {0u, 1u}) {
    CHECK(line.out[i] == Approx(3));
    CHECK(line.evidence.entropy(0, 0)[i] == Approx(std::log(2.0)));
  }
  CHECK(line.evidence.mass(0, 0)[0] == T(0));
  CHECK(line.evidence.mass(0, 0)[2] == T(0));
  CHECK(line.evidence.mass(0, 0)[1] == Approx(1));
  line.run(ab::score::Bias(ab::bhsd(evicted.data(), 1, 1, 1, 4)));
  CHECK(line.out[0] == Approx(3));
  CHECK(line.evidence.mass(0, 0)[0] == T(0));
}

TEMPLATE_TEST_CASE("a row that is not a number touches every key that it sees", "[attention]", SCALARS) {
  using T = TestType;
  Line<T> line;
  line.q = {T(1)};
  line.k = {nan_of<T>, T(0), T(-5000), T(3), T(9)};  // the third weighs 0 beside the others, but it is seen
  line.v = {T(1), T(1), T(1), T(1), T(1)};
  line.run(ab::mask::KeyLengths{4});
  CHECK(std::isnan(line.out[0]));
  for (const std::size_t j : {0u, 1u, 2u, 3u}) {
    INFO("key " << j);
    CHECK(std::isnan(line.evidence.mass(0, 0)[j]));
  }
  CHECK(line.evidence.mass(0, 0)[4] == T(0));
  CHECK(line.evidence.sink_mass(0, 0) == T(0));  // there is no sink to be touched
  CHECK(line.evidence.empty_rows(0, 0) == 0);
}

TEMPLATE_TEST_CASE("tiny and huge elements are numbers like any other", "[attention]", SCALARS) {
  using T = TestType;
  const T tiny = std::numeric_limits<T>::denorm_min(), small = std::numeric_limits<T>::min(),
          huge = std::numeric_limits<T>::max();
  Line<T> line;
  line.q = {tiny, small, T(0)};
  line.k = {tiny, small, T(0), -tiny};
  line.v = {T(1), T(2), T(3), T(6)};
  line.run();
  for (const T x : line.out) CHECK(x == Approx(3));
  CHECK(line.evidence.entropy(0, 0)[0] == Approx(std::log(4.0)));

  line.v = {tiny * 64, tiny * 64, tiny * 64, tiny * 64};
  line.run();
  CHECK(std::fabs(line.out[0] - tiny * 64) <= tiny * 4);

  // The weighted sum is divided at the end, so values may be as large as the largest number by the number of keys.
  line.v = {huge / 8, huge / 8, -huge / 8, huge / 8};
  line.run();
  CHECK(line.out[0] / huge == Approx(1.0 / 16));
}

TEMPLATE_TEST_CASE("a scale is any finite number", "[attention]", SCALARS) {
  using T = TestType;
  const T huge = std::numeric_limits<T>::max();
  for (const T scale : {huge, huge / 2, -huge, std::numeric_limits<T>::min()}) {
    INFO("scale " << scale);
    Line<T> line;
    line.q.assign(20, T(0));
    line.q[1] = 1 / scale;
    line.k = {T(0), T(1)};
    line.v = {T(0), T(1)};
    line.run(ab::score::Scale{scale});
    CHECK(line.out[0] == Approx(0.5));
    CHECK(line.out[1] == Approx(1 / (1 + std::exp(-1.0))));
  }
}

TEMPLATE_TEST_CASE("logits times log2(e) leave the range of the scalar first, of many queries only", "[attention]",
                   SCALARS) {
  using T = TestType;
  const T huge = std::numeric_limits<T>::max();
  for (const std::size_t queries : {std::size_t(1), std::size_t(8), std::size_t(9), std::size_t(70)}) {
    INFO(queries << " queries");
    Line<T> line;
    line.q.assign(queries, T(0));
    line.v = {T(1), T(2)};
    // Within 0.69 all are right; the other queries are so in any case.
    for (const T part : {T(0.68), T(0.8)})
      for (const T sign : {T(1), T(-1)}) {
        INFO("logit " << sign * part << " of the largest");
        line.q.back() = sign;
        line.k = {part * huge, part * huge * T(0.99)};
        const bool right = queries <= 8 || part < T(0.69);
        line.attend();
        if (right) {
          CHECK(line.out.back() == (sign > 0 ? T(1) : T(2)));
          CHECK(line.evidence.lse(0, 0).back() / (sign * huge) == Approx(sign > 0 ? part : part * T(0.99)));
        } else if (sign > 0) {
          CHECK(std::isnan(line.out.back()));
        } else {
          CHECK(line.out.back() == T(0));
          CHECK(line.evidence.lse(0, 0).back() == -inf<T>);
        }
        CHECK(line.evidence.empty_rows(0, 0) == (right || sign > 0 ? 0 : 1));
        if (queries > 1) CHECK(line.out.front() == T(1.5));

        line.attend(ab::score::Softcap{T(0)});
        CHECK(line.out.back() == (sign > 0 ? T(1) : T(2)));
      }
  }
}

TEMPLATE_TEST_CASE("rows that see nothing", "[attention]", SCALARS) {
  using T = TestType;
  Line<T> line;
  for (int i = 0; i < 70; ++i) line.q.push_back(T(1));
  line.k = {T(1), T(2), T(3)};
  line.v = {T(4), T(4), T(4)};
  line.run(ab::mask::Causal{});  // queries 0 ... 66 stand before every key
  for (std::size_t i = 0; i < 70; ++i) {
    const bool empty = i < 67;
    if (!empty) {
      CHECK(line.out[i] == Approx(4));
      continue;
    }
    CHECK(line.out[i] == T(0));
    CHECK(line.evidence.lse(0, 0)[i] == -inf<T>);
    CHECK(line.evidence.entropy(0, 0)[i] == T(0));
  }
  CHECK(line.evidence.empty_rows(0, 0) == 67);
  CHECK(line.evidence.sink_mass(0, 0) == T(0));
  CHECK(line.evidence.exposure(0, 0)[0] == T(3));
  CHECK(line.evidence.exposure(0, 0)[2] == T(1));

  for (const T logit : {T(-2), T(0), T(7)}) {
    const std::vector<T> sink{logit};
    line.run(ab::mask::Causal{}, ab::normalize::Sink(sink));
    CHECK(line.out[0] == T(0));
    CHECK(line.evidence.lse(0, 0)[0] == Approx(logit));
    CHECK(line.evidence.entropy(0, 0)[0] == T(0));
    CHECK(line.evidence.empty_rows(0, 0) == 67);
    CHECK(line.evidence.sink_mass(0, 0) >= T(67) * (1 - std::numeric_limits<T>::epsilon()));
  }
  const std::vector<T> none{-inf<T>};
  line.run(ab::mask::Causal{}, ab::normalize::Sink(none));
  CHECK(line.evidence.lse(0, 0)[0] == -inf<T>);
  CHECK(line.evidence.sink_mass(0, 0) == T(0));

  // A window as wide as the index type is unbounded.
  const Index most = std::numeric_limits<Index>::max();
  for (const auto& window : {ab::mask::Window{most, -1}, ab::mask::Window{-1, most}, ab::mask::Window{most, most}}) {
    line.run(window);
    CHECK(line.out[0] == Approx(4));
    CHECK(line.out[69] == Approx(4));
    CHECK(line.evidence.empty_rows(0, 0) == 0);
  }
}

TEMPLATE_TEST_CASE("the zero of a row that sees nothing has no sign of the values", "[attention]", SCALARS) {
  using T = TestType;
  for (const Index keys : {1, 2, 3, 30})
    for (const T value : {T(4), T(-4)}) {
      Line<T> line;
      line.q.assign(70, T(1));
      line.k.assign(static_cast<std::size_t>(keys), T(1));
      line.v.assign(static_cast<std::size_t>(keys), value);
      line.run(ab::mask::Causal{});
      for (std::size_t i = 0; i < 70 - line.k.size(); ++i) {
        REQUIRE(support::same_bits(line.plain[i], T(0)));
        REQUIRE(support::same_bits(line.out[i], T(0)));
      }
      CHECK(line.out[69] == Approx(value));
    }
}

TEMPLATE_TEST_CASE("logits further apart than the largest number leave entropy and gradients numbers",
                   "[attention]", SCALARS) {
  using T = TestType;
  const T far = std::numeric_limits<T>::max() * T(0.6);
  const std::vector<T> sink{-far};
  for (const Index queries : {1, 16}) {
    INFO(queries << " queries");
    // One key of many stands above all others, which lie in other splits and blocks.
    Line<T> line;
    line.q.assign(static_cast<std::size_t>(queries), T(1));
    line.k.assign(1024, -far), line.v.assign(1024, T(1));
    line.k[700] = far, line.v[700] = T(3);
    line.attend(ab::score::Softcap{T(0)});
    CHECK(line.out[0] == 3);
    CHECK(line.evidence.entropy(0, 0)[0] == 0);

    line.k.assign(4, far), line.v = {T(1), T(2), T(3), T(4)};
    line.attend(ab::score::Softcap{T(0)}, ab::normalize::Sink(sink));
    CHECK(line.out[0] == Approx(2.5));
    CHECK(line.evidence.entropy(0, 0)[0] == Approx(std::log(4.0)));
    CHECK(line.evidence.sink_mass(0, 0) == 0);

    auto row = [](std::vector<T>& x) { return ab::bhsd(x.data(), 1, 1, static_cast<Index>(x.size()), 1); };
    std::vector<T> dout(line.q.size(), T(1)), dq(line.q.size()), dk(4), dv(4), of_entropy(line.q.size(), T(1));
    ab::attention_backward(row(line.q), row(line.k), row(line.v), row(line.out), line.evidence, row(dout), row(dq),
                           row(dk), row(dv), ab::score::Scale{T(1)}, ab::score::Softcap{T(0)},
                           ab::normalize::Sink(sink), ab::evidence::EntropyGradient(of_entropy));
    // A log-sum-exp of such logits has lost the log of the number of keys, and with it every p is 1.
    for (std::size_t j = 0; j < 4; ++j) {
      CHECK(dv[j] == Approx(static_cast<double>(queries)));
      CHECK(dk[j] == Approx(static_cast<double>(queries) * (static_cast<double>(j) - 1.5)));
    }
  }
}
