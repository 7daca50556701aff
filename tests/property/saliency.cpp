// What holds of every saliency: it follows its keys, conserves what it sums, and is no less than nothing.
#include <algorithm>
#include <numeric>

#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/balance.hpp"
#include "property/property.hpp"

namespace ab = attention_balancer;
namespace saliency = ab::saliency;
using ab::Index;
using ab::detail::EvidenceAccess;
using property::holds;

namespace {

constexpr Index heads = 4, kv_heads = 2, dim = 3;

/// Evidence of four query heads over a few keys, and their keys and values: from a table [keys, features].
template <class T>
struct Case {
  static constexpr std::size_t features = heads * 3 + kv_heads * 2 * dim;
  std::vector<std::vector<double>> table;  // [keys]
  ab::Evidence<T> evidence;
  std::vector<T> keys, values;

  static std::vector<std::vector<double>> make() {
    const std::size_t n = property::in_range(0, 40) == 0 ? 0 : property::size();
    std::vector<std::vector<double>> rows(n);
    if (n <= 60) {
      for (auto& row : rows)
        for (const int x : property::as_many(features, -50, 51)) row.push_back(x / 16.0);
    } else {
      const auto all = property::as_many(n * features, -50, 51);  // from a seed: one draw, not n
      for (std::size_t i = 0; i < all.size(); ++i) rows[i / features].push_back(all[i] / 16.0);
    }
    if (property::coin()) {  // masses and statistics from 1e-30 to 1e30
      const auto exponents = property::as_many(n, -30, 31);
      for (std::size_t j = 0; j < n; ++j)
        for (std::size_t h = 0; h < heads; ++h)
          for (const std::size_t at : {3 * h, 3 * h + 2}) rows[j][at] *= std::pow(10.0, exponents[j]);
    }
    return rows;
  }

  Case(const std::vector<std::vector<double>>& rows, ab::evidence::Kind kind) : table(rows) {
    const auto n = static_cast<Index>(rows.size());
    EvidenceAccess::reshape(evidence, {1, heads, 1, n, true, kind});
    for (Index h = 0; h < heads; ++h)
      for (Index j = 0; j < n; ++j) {
        const double* x = rows[static_cast<std::size_t>(j)].data() + h * 3;
        EvidenceAccess::mass(evidence, h)[j] = static_cast<T>(std::fabs(x[0]));
        EvidenceAccess::exposure(evidence, h)[j] = static_cast<T>(std::fabs(x[1]));
        if (kind != ab::evidence::Kind::mass)
          EvidenceAccess::statistic(evidence, h)[j] = static_cast<T>(std::fabs(x[2]));
      }
    for (int which = 0; which < 2; ++which)
      for (Index h = 0; h < kv_heads; ++h)
        for (Index j = 0; j < n; ++j)
          for (Index c = 0; c < dim; ++c)
            (which == 0 ? keys : values)
                .push_back(static_cast<T>(rows[static_cast<std::size_t>(j)][static_cast<std::size_t>(
                    heads * 3 + (which * kv_heads + h) * dim + c)]));
  }

  ab::TensorView<const T> view(const std::vector<T>& x) const {
    return ab::bhsd<const T>(x.data(), 1, kv_heads, static_cast<Index>(table.size()), dim);
  }

  /// Every saliency that asks for no order among the keys.
  std::vector<std::vector<T>> all(const saliency::QueryStatistics& queries) const {
    std::vector<std::vector<T>> results;
    for (const auto how : {ab::Heads::mean, ab::Heads::max, ab::Heads::sum}) {
      results.push_back(saliency::mass(evidence, how));
      results.push_back(saliency::per_exposure(evidence, how));
      results.push_back(saliency::statistic(evidence, how));
      if (evidence.statistic_kind() == ab::evidence::Kind::squares)
        results.push_back(saliency::mean_and_variance(evidence, 3, how));
      else
        results.push_back(saliency::leave_one_out(evidence, how));
      results.push_back(saliency::value_weighted(evidence, view(values), saliency::Norm::l1, how));
      results.push_back(saliency::key_norm(view(keys), how));
      results.push_back(saliency::key_difference(view(keys), how));
      results.push_back(saliency::expected_attention(queries, view(keys), view(values), how, {.sinks = 0}));
    }
    return results;
  }
};

saliency::QueryStatistics statistics() {
  static const std::vector<double> q = [] {
    std::vector<double> x;
    for (int i = 0; i < heads * 5 * dim; ++i) x.push_back(std::sin(i * 1.7));
    return x;
  }();
  return saliency::QueryStatistics(ab::bhsd(q.data(), 1, heads, 5, dim));
}

template <class T>
bool close(T a, T b) {
  return std::fabs(a - b) <= 64 * std::numeric_limits<T>::epsilon() * (1 + std::fabs(a));
}

}  // namespace

TEMPLATE_TEST_CASE("saliency: follows its keys, and none is negative", "[property]", SCALARS) {
  using T = TestType;
  const auto queries = statistics();
  holds(
      "permuted keys, permuted saliency",
      [&] {
        const auto rows = Case<T>::make();
        const auto kind = property::coin() ? ab::evidence::Kind::squares : ab::evidence::Kind::leave_one_out;
        std::vector<std::size_t> order(rows.size());
        std::iota(order.begin(), order.end(), std::size_t(0));
        const auto keys = property::as_many(rows.size(), 0, 1000);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return keys[a] < keys[b]; });
        std::vector<std::vector<double>> permuted;
        for (const std::size_t j : order) permuted.push_back(rows[j]);
        const auto one = Case<T>(rows, kind).all(queries), other = Case<T>(permuted, kind).all(queries);
        for (std::size_t s = 0; s < one.size(); ++s) {
          PROPERTY(one[s].size() == rows.size());
          for (std::size_t j = 0; j < rows.size(); ++j) {
            PROPERTY(close(other[s][j], one[s][order[j]]));
            PROPERTY(one[s][j] >= T(0));
          }
        }
      },
      600);
}

TEMPLATE_TEST_CASE("saliency: reductions conserve", "[property]", SCALARS) {
  using T = TestType;
  holds("sums, means and maxima of heads and of groups agree", [] {
    const Case<T> c(Case<T>::make(), ab::evidence::Kind::squares);
    const auto each = saliency::mass(c.evidence, ab::EachHead{}),
               groups = saliency::mass(c.evidence, ab::KvHeads{kv_heads}),
               most = saliency::mass(c.evidence, ab::KvHeads{kv_heads, ab::Heads::max});
    const auto sum = saliency::mass(c.evidence, ab::Heads::sum), mean = saliency::mass(c.evidence),
               max = saliency::mass(c.evidence, ab::Heads::max);
    long double total = 0;
    for (Index h = 0; h < heads; ++h) total += property::sum(c.evidence.mass(0, h));
    PROPERTY(std::fabs(static_cast<double>(property::sum(sum) - total)) <=
             1e2 * property::epsilon<T>() * static_cast<double>(total));
    PROPERTY(each.rows() == heads && groups.rows() == kv_heads);
    for (std::size_t j = 0; j < mean.size(); ++j) {
      PROPERTY(mean[j] <= max[j]);
      PROPERTY(max[j] <= sum[j]);
      PROPERTY(close(mean[j], (groups[0][j] + groups[1][j]) / 2));
      PROPERTY(max[j] == std::max(most[0][j], most[1][j]));
    }
    PROPERTY(saliency::reduce(each, ab::Heads::max) == max);
  });
  holds("pooling smooths, and adds nothing", [] {
    const Case<T> c(Case<T>::make(), ab::evidence::Kind::squares);
    const auto x = saliency::mass(c.evidence);
    const Index width = 2 * property::in_range<Index>(0, 30) + 1;
    const auto average = saliency::average_pool(x, width), max = saliency::max_pool(x, width);
    PROPERTY(property::sum(average) <= property::sum(x) * (1 + 1e2L * property::epsilon<T>()));
    for (std::size_t j = 0; j < x.size(); ++j) {
      PROPERTY(max[j] >= x[j]);
      PROPERTY(average[j] <= max[j] * T(1.0001));
      PROPERTY(average[j] >= T(0));
    }
  });
}

TEMPLATE_TEST_CASE("saliency: evicting slots and adding evidence commute", "[property]", SCALARS) {
  using T = TestType;
  holds("what is left is as if the others had never been", [] {
    const auto rows = Case<T>::make();
    const auto keep = property::as_many(rows.size(), 0, 2);
    std::vector<Index> kept;
    std::vector<std::vector<double>> left;
    for (std::size_t j = 0; j < rows.size(); ++j)
      if (keep[j]) kept.push_back(static_cast<Index>(j)), left.push_back(rows[j]);
    const Case<T> whole(rows, ab::evidence::Kind::mass), part(left, ab::evidence::Kind::mass);
    const double decay = property::in_range(1, 5) / 4.0;
    saliency::Accumulated<T> before(heads, decay), after(heads, decay), never(heads, decay);
    before.add(whole.evidence);
    before.compact(kept);
    before.add(part.evidence);
    after.add(whole.evidence), after.add(whole.evidence), after.compact(kept);
    never.add(part.evidence), never.add(part.evidence);
    PROPERTY(before.sum(ab::EachHead{}) == after.sum(ab::EachHead{}));
    PROPERTY(before.per_exposure(ab::EachHead{}) == never.per_exposure(ab::EachHead{}));
    PROPERTY(before.slots() == static_cast<Index>(kept.size()));
    saliency::Ema<T> one(0.25), two(0.25);
    const auto x = saliency::mass(whole.evidence), y = saliency::mass(part.evidence);
    one.update(x), one.compact(kept), one.update(y);
    two.update(y), two.update(y);
    PROPERTY(std::ranges::equal(one.values(), two.values()));
  });
}
