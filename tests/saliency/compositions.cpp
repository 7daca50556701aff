// Each published method, as its one line, keeps what its formula keeps when it is written out over the whole matrix
// of probabilities.
#include <algorithm>
#include <numeric>
#include <set>

#include "attention_balancer/attention.hpp"
#include "saliency/compositions.hpp"
#include "support/catch.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

namespace ab = attention_balancer;
namespace saliency = ab::saliency;
using ab::Index;
using composition::Setting;
using Kept = std::vector<Index>;
using Scores = std::vector<double>;  // [keys]

constexpr Index Hq = 4, Hkv = 2, n = 48, D = 6, Dv = 5, W = 8, group = Hq / Hkv;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// One layer with a causal mask: the tensors, and all that the formulas need.
struct Layer {
  std::vector<double> numbers[3];
  ab::TensorView<const double> q, k, v;
  std::vector<std::vector<Scores>> p;  // [Hq][n][n]

  explicit Layer(std::uint64_t seed) {
    support::Random random(seed);
    auto fill = [&](std::vector<double>& x, Index count, double scale) {
      for (Index i = 0; i < count; ++i) x.push_back(scale * random.normal());
    };
    fill(numbers[0], Hq * n * D, 1.5);
    fill(numbers[1], Hkv * n * D, 1.2);
    fill(numbers[2], Hkv * n * Dv, 1);
    q = ab::bhsd<const double>(numbers[0].data(), 1, Hq, n, D);
    k = ab::bhsd<const double>(numbers[1].data(), 1, Hkv, n, D);
    v = ab::bhsd<const double>(numbers[2].data(), 1, Hkv, n, Dv);
    p.assign(Hq, std::vector<Scores>(n, Scores(n, 0.0)));
    for (Index h = 0; h < Hq; ++h)
      for (Index i = 0; i < n; ++i) {
        double sum = 0;
        for (Index j = 0; j <= i; ++j) {
          double dot = 0;
          for (Index c = 0; c < D; ++c) dot += q(0, h, i, c) * k(0, h / group, j, c);
          sum += p[at(h)][at(i)][at(j)] = std::exp(dot / std::sqrt(double(D)));
        }
        for (double& x : p[at(h)][at(i)]) x /= sum;
      }
  }

  /// c_j = sum of f(p_ij, h, i, j) over the queries from `first` on.
  template <class F>
  Scores column(Index h, Index first, F f) const {
    Scores c(n, 0.0);
    for (Index i = first; i < n; ++i)
      for (Index j = 0; j < n; ++j) c[at(j)] += f(p[at(h)][at(i)][at(j)], i, j);
    return c;
  }
  Scores mass(Index h, Index first) const {
    return column(h, first, [](double x, Index, Index) { return x; });
  }

  template <class Statistic = ab::evidence::Statistic<ab::evidence::Kind::mass>>
  ab::Evidence<double> observed(ab::QueryWeights weights, Statistic statistic = {}) const {
    ab::Evidence<double> evidence;
    std::vector<double> out(at(Hq * n * Dv));
    ab::attention(q, k, v, ab::bhsd(out.data(), 1, Hq, n, Dv), ab::mask::Causal{},
                  ab::observe(evidence, weights, statistic));
    return evidence;
  }
};

Scores sum_of_group(Index kv, const auto& of_head) {
  Scores sum(n, 0.0);
  for (Index h = kv * group; h < (kv + 1) * group; ++h) {
    const Scores one = of_head(h);
    for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += one[j];
  }
  return sum;
}

/// The pins and the best others, `budget` in all.
Kept best(const Scores& scores, Index budget, const Kept& pins = {}) {
  Kept order(scores.size());
  std::iota(order.begin(), order.end(), Index(0));
  auto pinned = [&](Index j) { return std::find(pins.begin(), pins.end(), j) != pins.end(); };
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return pinned(a) != pinned(b) ? pinned(a) : scores[at(a)] > scores[at(b)];
  });
  order.resize(at(budget));
  std::sort(order.begin(), order.end());
  return order;
}

Kept positions(Index begin, Index end) {
  Kept all(at(end - begin));
  std::iota(all.begin(), all.end(), begin);
  return all;
}

Kept sinks_and_recent(Index sinks, Index recent) {
  Kept pins = positions(0, sinks);
  const Kept last = positions(n - recent, n);
  pins.insert(pins.end(), last.begin(), last.end());
  return pins;
}

Kept of(const ab::allocate::Selection& selection) { return {selection.kept().begin(), selection.kept().end()}; }

/// Average over 5 neighbours of the keys before the window, zeros beyond.
Scores pooled_before_window(const Scores& x) {
  Scores pooled(n, 0.0);
  for (Index j = 0; j < n - W; ++j)
    for (Index i = std::max(Index(0), j - 2); i <= std::min(n - W - 1, j + 2); ++i) pooled[at(j)] += x[at(i)] / 5;
  return pooled;
}

Scores snap_kv(const Layer& x, Index kv) {
  return sum_of_group(kv, [&](Index h) { return pooled_before_window(x.mass(h, n - W)); });
}

double norm(const ab::TensorView<const double>& x, Index h, Index j, int power) {
  double sum = 0;
  for (Index c = 0; c < x.dim; ++c) sum += std::pow(std::fabs(x(0, h, j, c)), power);
  return power == 1 ? sum : std::sqrt(sum);
}

constexpr std::uint64_t seeds = 12;

}  // namespace

TEST_CASE("composition: H2O, by the sum and by the lifetime, through prefill and decoding", "[composition]") {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Layer x(seed);
    saliency::Accumulated<double> state(Hq);
    auto step = [&](Index first, Index end) {  // queries [first, end) and all keys before `end`
      auto q = x.q, k = x.k;
      q.data += first * D, q.length = end - first, k.length = end;
      ab::Evidence<double> evidence;
      ab::attention_evidence(q, k, ab::mask::Causal{}, ab::observe(evidence));
      state.add(evidence);
    };
    step(0, 30);
    for (Index i = 30; i < n; ++i) step(i, i + 1);
    const Setting s{n, 20, Hkv, W};
    const auto sums = composition::h2o(state, s), averages = composition::h2o_per_exposure(state, s);
    for (Index kv = 0; kv < Hkv; ++kv) {
      CHECK(of(sums[at(kv)]) ==
            best(sum_of_group(kv, [&](Index h) { return x.mass(h, 0); }), 20, sinks_and_recent(0, W)));
      CHECK(of(averages[at(kv)]) == best(sum_of_group(kv,
                                                      [&](Index h) {
                                                        Scores c = x.mass(h, 0);
                                                        for (Index j = 0; j < n; ++j)
                                                          c[at(j)] /= static_cast<double>(n - j);
                                                        return c;
                                                      }),
                                         20, sinks_and_recent(0, W)));
    }
  }
}

TEST_CASE("composition: H2O with a budget all along, the state evicted with its slots", "[composition]") {
  // A cache of 16 slots: at every step the worst but the 4 most recent goes, and what is left goes on adding up.
  const Layer x(1);
  const Index budget = 16, recent = 4;
  saliency::Accumulated<double> state(Hq);
  Kept slots;  // the position in each slot
  std::vector<Scores> by_position(at(Hq), Scores(n, 0.0));
  Kept kept_positions;
  for (Index i = 0; i < n; ++i) {
    slots.push_back(i);
    std::vector<double> cache(at(Hkv * std::ssize(slots) * D));
    const auto k = ab::bhsd(cache.data(), 1, Hkv, std::ssize(slots), D);
    for (Index h = 0; h < Hkv; ++h)
      for (Index j = 0; j < std::ssize(slots); ++j)
        for (Index c = 0; c < D; ++c) k(0, h, j, c) = x.k(0, h, slots[at(j)], c);
    auto q = x.q;
    q.data += i * D, q.length = 1;
    ab::Evidence<double> evidence;
    ab::attention_evidence(q, k, ab::observe(evidence));
    state.add(evidence);

    // The same by position, with the softmax over the positions that are left.
    kept_positions.push_back(i);
    Scores total(n, 0.0);
    for (Index h = 0; h < Hq; ++h) {
      double sum = 0;
      Scores weight(n, 0.0);
      for (const Index j : kept_positions) sum += weight[at(j)] = x.p[at(h)][at(i)][at(j)];
      for (const Index j : kept_positions) by_position[at(h)][at(j)] += weight[at(j)] / sum;
    }
    if (std::ssize(slots) > budget) {
      for (const Index j : kept_positions)
        for (Index h = 0; h < Hq; ++h) total[at(j)] += by_position[at(h)][at(j)];
      const auto sums = state.sum(ab::Heads::sum);
      const auto selection =
          ab::allocate::top_k(sums, budget, {.pins = ab::allocate::sinks_and_recent(std::ssize(slots), 0, recent)});
      Index worst = kept_positions.front();
      for (Index r = 0; r < budget + 1 - recent; ++r)
        if (total[at(kept_positions[at(r)])] < total[at(worst)]) worst = kept_positions[at(r)];
      std::erase(kept_positions, worst);
      state.compact(selection.kept());
      Kept next;
      for (const Index slot : selection.kept()) next.push_back(slots[at(slot)]);
      slots = next;
    }
    REQUIRE(slots == kept_positions);
    CHECK(state.slots() == std::ssize(slots));
  }
}

TEST_CASE("composition: Scissorhands", "[composition]") {
  const Layer x(3);
  saliency::Accumulated<double> state(Hq, 1, saliency::Accumulate::persistence);
  for (Index i = 0; i < n; ++i) {
    auto q = x.q, k = x.k;
    q.data += i * D, q.length = 1, k.length = i + 1;
    ab::Evidence<double> evidence;
    ab::attention_evidence(q, k, ab::observe(evidence));
    state.add(evidence);
  }
  const auto kept = composition::scissorhands(state, {n, 20, Hkv, W});
  for (Index kv = 0; kv < Hkv; ++kv)
    CHECK(of(kept[at(kv)]) == best(sum_of_group(kv,
                                                [&](Index h) {
                                                  return x.column(h, 0, [](double p, Index i, Index) {
                                                    return p * static_cast<double>(i + 1) >= 1 ? 1.0 : 0.0;
                                                  });
                                                }),
                                   20, sinks_and_recent(0, W)));
}

TEST_CASE("composition: SnapKV, AdaKV, PyramidKV, CAKE", "[composition]") {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Layer x(seed);
    const Setting s{n, 20, Hkv, W};
    const auto recent = x.observed(ab::QueryWeights::last(W));
    const auto snap = composition::snap_kv(recent, s), ada = composition::ada_kv(recent, s);
    for (Index kv = 0; kv < Hkv; ++kv) CHECK(of(snap[at(kv)]) == best(snap_kv(x, kv), 20, sinks_and_recent(0, W)));

    // AdaKV: the window and the best floor(0.2 * 20) = 4 are sure in each head, 8 already by the window; the rest
    // is joint.
    Scores joint;
    Kept pins;
    for (Index kv = 0; kv < Hkv; ++kv) {
      const Scores one = snap_kv(x, kv);
      joint.insert(joint.end(), one.begin(), one.end());
      for (Index j = n - W; j < n; ++j) pins.push_back(kv * n + j);
    }
    Kept found;
    for (Index kv = 0; kv < Hkv; ++kv)
      for (const Index j : ada[at(kv)].kept()) found.push_back(kv * n + j);
    CHECK(found == best(joint, Hkv * 20, pins));

    // PyramidKV with beta 20 over 3 layers: the line of allocation 12 -/+ ... on average, the window on top.
    Index total = 0;
    for (Index l = 0; l < 3; ++l) {
      const auto kept = composition::pyramid_kv(recent, l, 3, s);
      const double low = 12.0 / 20, high = 24 - low, line = high - (high - low) * static_cast<double>(l) / 2;
      CHECK(std::fabs(static_cast<double>(kept[0].size() - W) - line) < 1);
      CHECK(of(kept[1]) == best(snap_kv(x, 1), kept[1].size(), sinks_and_recent(0, W)));
      total += kept[0].size();
    }
    CHECK(total == 3 * 20);

    const double gamma = 50;
    const auto squares = x.observed(ab::QueryWeights::last(W), ab::evidence::squares);
    const auto cake = composition::cake(squares, gamma, s);
    for (Index kv = 0; kv < Hkv; ++kv)
      CHECK(of(cake[at(kv)]) ==
            best(sum_of_group(kv,
                              [&](Index h) {
                                Scores mean = x.mass(h, n - W);
                                for (double& m : mean) m /= double(W);
                                Scores score = x.column(h, n - W, [&](double p, Index, Index j) {
                                  return gamma * (p - mean[at(j)]) * (p - mean[at(j)]) / double(W);
                                });
                                for (std::size_t j = 0; j < score.size(); ++j) score[j] += mean[j];
                                return pooled_before_window(score);
                              }),
                 20, sinks_and_recent(0, W)));
  }
}

TEST_CASE("composition: CAKE divides by dispersion and shift of every layer", "[composition]") {
  std::vector<double> entropy, variance;
  Scores weight;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const Layer x(seed);
    const auto evidence = x.observed(ab::QueryWeights::last(W), ab::evidence::squares);
    const auto rows = saliency::entropy(evidence, ab::Heads::sum);
    const auto spread = saliency::variance(evidence, ab::Heads::sum);
    entropy.push_back(std::accumulate(rows.end() - W, rows.end(), 0.0));
    variance.push_back(std::accumulate(spread.begin(), spread.end() - W, 0.0));
    double h = 0, v = 0;
    for (Index head = 0; head < Hq; ++head)
      for (Index j = 0; j < n; ++j) {
        double sum = 0, squares = 0;
        for (Index i = n - W; i < n; ++i) {
          const double p = x.p[at(head)][at(i)][at(j)];
          if (p > 0) h -= p * std::log(p);
          sum += p / double(W), squares += p * p / double(W);
        }
        if (j < n - W) v += squares - sum * sum;
      }
    CHECK(entropy.back() == Approx(h));
    CHECK(variance.back() == Approx(v));
    weight.push_back(std::pow(h, 1 / 1.6) * std::pow(v, 1 / 0.4));
  }
  const auto units = composition::cake_layers(entropy, variance, 5 * 25, {n, 25, Hkv, 1});
  CHECK(std::accumulate(units.begin(), units.end(), Index(0)) == 5 * 25);
  for (std::size_t a = 0; a < 5; ++a) {
    CHECK(units[a] >= 1);
    CHECK(units[a] <= n);
    for (std::size_t b = 0; b < 5; ++b)
      if (weight[a] > weight[b]) CHECK(units[a] >= units[b]);
  }
}

TEST_CASE("composition: TOVA, FastV, VATP, leave-one-out, CriticalKV", "[composition]") {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Layer x(seed);
    const Setting s{n, 20, Hkv, W};
    const auto last = x.observed(ab::QueryWeights::last(1)), all = x.observed(ab::QueryWeights::all());
    Scores of_last(n, 0.0);
    for (Index h = 0; h < Hq; ++h)
      for (Index j = 0; j < n; ++j) of_last[at(j)] += x.p[at(h)][n - 1][at(j)];
    CHECK(of(composition::tova(last, s)) == best(of_last, 20));
    // 5 tokens of text, 36 of an image, 7 of text.
    Kept text = positions(0, 5);
    const Kept question = positions(41, n);
    text.insert(text.end(), question.begin(), question.end());
    CHECK(of(composition::fast_v(last, text, 0.75)) == best(of_last, 9 + 12, text));

    const auto vatp = composition::vatp(all, x.v, s);
    const auto dropped =
        composition::leave_one_out(x.observed(ab::QueryWeights::last(W), ab::evidence::leave_one_out), s);
    std::vector<double> wo(at(Hq * Dv * 7));
    support::Random random(seed + 100);
    for (double& w : wo) w = random.normal();
    const auto projection = ab::bhsd<const double>(wo.data(), 1, Hq, Dv, 7);
    const auto scores =
        saliency::observation_window(x.observed(ab::QueryWeights::last(W)), {.length = W}, ab::KvHeads{Hkv});
    const auto critical = composition::critical_kv(scores, saliency::projected_norms(x.v, projection), s);
    for (Index kv = 0; kv < Hkv; ++kv) {
      CHECK(of(vatp[at(kv)]) == best(sum_of_group(kv,
                                                  [&](Index h) {
                                                    Scores c = x.mass(h, 0);
                                                    for (Index j = 0; j < n; ++j) c[at(j)] *= norm(x.v, kv, j, 1);
                                                    return c;
                                                  }),
                                     20, sinks_and_recent(4, W)));
      // What the outputs change by if key j is not there.
      CHECK(of(dropped[at(kv)]) == best(sum_of_group(kv,
                                                     [&](Index h) {
                                                       return x.column(h, n - W, [&](double p, Index i, Index j) {
                                                         double change = 0;
                                                         for (Index c = 0; c < Dv; ++c) {
                                                           double with = 0, without = 0;
                                                           for (Index m = 0; m < n; ++m) {
                                                             const double w =
                                                                 x.p[at(h)][at(i)][at(m)] * x.v(0, kv, m, c);
                                                             with += w;
                                                             if (m != j) without += w;
                                                           }
                                                           const double d = with - without / (1 - p);
                                                           change += d * d;
                                                         }
                                                         return change;
                                                       });
                                                     }),
                                        20));
      Scores second = snap_kv(x, kv);
      const Kept first = best(second, 10, sinks_and_recent(0, W));
      for (Index j = 0; j < n; ++j) {
        double size = 0;
        for (Index h = kv * group; h < (kv + 1) * group; ++h)
          for (Index e = 0; e < 7; ++e) {
            double y = 0;
            for (Index c = 0; c < Dv; ++c) y += projection(0, h, c, e) * x.v(0, kv, j, c);
            size += std::fabs(y) / double(group);
          }
        // The sum over the group and the window is W * group times the mean.
        second[at(j)] = (second[at(j)] / double(W * group) + 1e-4) * size;
      }
      CHECK(of(critical[at(kv)]) == best(second, 20, first));
    }
  }
}

TEST_CASE("composition: Knorm, KeyDiff, StreamingLLM, Quest, ExpectedAttention, ATS", "[composition]") {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Layer x(seed);
    const Setting s{n, 20, Hkv, W};
    CHECK(of(composition::streaming_llm(s)) == sinks_and_recent(4, 16));
    const auto knorm = composition::knorm(x.k, s), key_diff = composition::key_diff(x.k, s);
    saliency::QueryStatistics queries(x.q, 4);
    const auto expected = composition::expected_attention(queries, x.k, x.v, s);
    for (Index kv = 0; kv < Hkv; ++kv) {
      Scores shortness(n), difference(n, 0.0), anchor(D, 0.0);
      for (Index j = 0; j < n; ++j) {
        shortness[at(j)] = -norm(x.k, kv, j, 2);
        for (Index c = 0; c < D; ++c) anchor[at(c)] += x.k(0, kv, j, c) / norm(x.k, kv, j, 2);
      }
      for (Index j = 0; j < n; ++j)
        for (Index c = 0; c < D; ++c) difference[at(j)] -= x.k(0, kv, j, c) * anchor[at(c)] / norm(x.k, kv, j, 2);
      CHECK(of(knorm[at(kv)]) == best(shortness, 20));
      CHECK(of(key_diff[at(kv)]) == best(difference, 20));
      // E exp(q k / sqrt(D)) for the queries' mean and covariance, without the means' own formula: (q k) is a
      // number with a mean and a variance.
      CHECK(of(expected[at(kv)]) == best(sum_of_group(kv,
                                                      [&](Index h) {
                                                        Scores score(n, 0.0);
                                                        double sum = 0;
                                                        for (Index j = 4; j < n; ++j) {
                                                          double mean = 0, square = 0;
                                                          for (Index i = 4; i < n; ++i) {
                                                            double dot = 0;
                                                            for (Index c = 0; c < D; ++c)
                                                              dot += x.q(0, h, i, c) * x.k(0, kv, j, c);
                                                            mean += dot / (double(n - 4) * std::sqrt(double(D)));
                                                            square += dot * dot / (double(n - 4) * double(D));
                                                          }
                                                          sum += score[at(j)] =
                                                              std::exp(mean + (square - mean * mean) / 2);
                                                        }
                                                        for (Index j = 0; j < n; ++j)
                                                          score[at(j)] *= norm(x.v, kv, j, 2) / sum;
                                                        return score;
                                                      }),
                                         20, sinks_and_recent(4, 0)));
    }

    // Quest: pages of 5 keys, the last of 3, for the first query.
    const auto quest = composition::quest(x.q, x.k, Index(5), {n, 4, Hkv, W});
    REQUIRE(quest.size() == at(Hq));
    for (Index h = 0; h < Hq; ++h) {
      Scores bound;
      for (Index first = 0; first < n; first += 5) {
        double sum = 0, largest = -1e300;
        for (Index c = 0; c < D; ++c) {
          double most = -1e300;
          for (Index j = first; j < std::min(n, first + 5); ++j)
            most = std::max(most, x.q(0, h, 0, c) * x.k(0, h / group, j, c));
          sum += most;
        }
        for (Index j = first; j < std::min(n, first + 5); ++j) {
          double dot = 0;
          for (Index c = 0; c < D; ++c) dot += x.q(0, h, 0, c) * x.k(0, h / group, j, c);
          largest = std::max(largest, dot);
        }
        CHECK(sum >= largest - 1e-12);
        bound.push_back(sum);
      }
      CHECK(of(quest[at(h)]) == best(bound, 4));
    }

    // ATS looks from a CLS token at all tokens: no causal mask.
    ab::Evidence<double> evidence;
    ab::attention_evidence(x.q, x.k, ab::observe(evidence, ab::QueryWeights::only(0)));
    Scores cdf(n, 0.0);
    for (Index h = 0; h < Hq; ++h) {
      Scores p(n);
      double sum = 0;
      for (Index j = 0; j < n; ++j) {
        double dot = 0;
        for (Index c = 0; c < D; ++c) dot += x.q(0, h, 0, c) * x.k(0, h / group, j, c);
        sum += p[at(j)] = std::exp(dot / std::sqrt(double(D)));
      }
      for (Index j = 1; j < n; ++j) cdf[at(j)] += p[at(j)] / sum * norm(x.v, h / group, j, 2);
    }
    std::partial_sum(cdf.begin(), cdf.end(), cdf.begin());
    std::set<Index> drawn{0};
    for (int quantile = 0; quantile < 19; ++quantile) {
      const double level = cdf.back() * (quantile + 0.5) / 19;
      drawn.insert(std::lower_bound(cdf.begin() + 1, cdf.end(), level) - cdf.begin());
    }
    CHECK(of(composition::ats(evidence, x.v, s)) == Kept(drawn.begin(), drawn.end()));
  }
}

TEST_CASE("composition: EViT keeps what the CLS token looks at and fuses the rest", "[composition]") {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Layer x(seed);
    ab::Evidence<double> evidence;
    ab::attention_evidence(x.q, x.k, ab::observe(evidence, ab::QueryWeights::only(0)));
    const auto scores = saliency::mass(evidence);
    const auto plan = composition::evit(scores, 0.3, {n, 0, Hkv, 0});
    const Kept kept = best(scores, 1 + 15, {0});  // ceil(0.3 * 47)
    CHECK(plan.size() == 17);
    std::vector<double> tokens(at(n));
    for (Index j = 0; j < n; ++j) tokens[at(j)] = x.k(0, 0, j, 0);
    double weight = 0, fused = 0, total = 0;
    for (Index j = 0; j < n; ++j) {
      total += scores[at(j)];
      if (std::find(kept.begin(), kept.end(), j) != kept.end()) continue;
      weight += scores[at(j)];
      fused += scores[at(j)] * tokens[at(j)];
    }
    CHECK(total == Approx(1));
    const std::vector<double> before = tokens;
    plan.apply(tokens);
    std::size_t found = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const Index place = plan.kept()[i];
      if (std::find(kept.begin(), kept.end(), place) != kept.end()) {
        CHECK(tokens[i] == before[at(place)]);
        ++found;
      } else {
        CHECK(tokens[i] == Approx(fused / weight));
      }
    }
    CHECK(found == 16);
  }
}

TEST_CASE("composition: ToMe merges the pairs that are most alike, and a merged key counts as many",
          "[composition]") {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Layer x(seed);
    const Index r = 7;
    auto plan = composition::tome(x.k, r, {n, 0, Hkv, 0});
    CHECK(plan.size() == n - r);
    // Mean over the heads; even places look for odd ones; the CLS token is left alone.
    auto key = [&](Index j, Index c) { return (x.k(0, 0, j, c) + x.k(0, 1, j, c)) / 2; };
    auto cosine = [&](Index a, Index b) {
      double dot = 0, aa = 0, bb = 0;
      for (Index c = 0; c < D; ++c)
        dot += key(a, c) * key(b, c), aa += key(a, c) * key(a, c), bb += key(b, c) * key(b, c);
      return dot / std::sqrt(aa * bb);
    };
    std::vector<std::pair<double, Index>> edges;
    for (Index a = 2; a < n; a += 2) {
      double most = -2;
      for (Index b = 1; b < n; b += 2) most = std::max(most, cosine(a, b));
      edges.emplace_back(-most, a);
    }
    std::sort(edges.begin(), edges.end());
    Kept left;
    for (Index j = 0; j < n; ++j)
      if (std::none_of(edges.begin(), edges.begin() + r, [&](const auto& edge) { return edge.second == j; }))
        left.push_back(j);
    CHECK(Kept(plan.kept().begin(), plan.kept().end()) == left);
    const auto bias = plan.log_sizes<double>();
    double tokens = 0;
    for (const double b : bias) tokens += std::exp(b);
    CHECK(tokens == Approx(double(n)));
  }
}
