// Each score modifier against its formula, for scalars and for packs whose lanes are queries.

#include "support/check.hpp"

namespace {

using support::Index;

/// Applies `modifier` to scores of S at every place and compares with formula(score, b, h, i, j).
template <class S, class M, class F>
void check_modifier(support::Table& table, const char* kind, const ab::Problem& p, const M& modifier, F formula,
                    double bound) {
  using T = ab::simd::scalar_of<S>;
  constexpr int lanes = ab::simd::lanes_of<S>;
  auto column = table.column(kind);
  support::Random random(101);
  for (Index b = 0; b < p.batch; ++b)
    for (Index h = 0; h < p.heads; ++h)
      for (Index first = 0; first < p.queries; first += lanes) {
        auto site = ab::Site<S>::along_queries(b, h, p, first, 0);
        for (Index j = 0; j < p.keys; ++j) {
          site.move_to_key(j);
          alignas(64) T scores[lanes];
          for (auto& s : scores) s = static_cast<T>(random.uniform(-40, 40));
          alignas(64) T bent[lanes];
          ab::simd::store_aligned(bent, S(modifier(ab::simd::load_aligned<S>(scores), site)));
          for (int l = 0; l < lanes && first + l < p.queries; ++l) {
            const double expected = formula(static_cast<double>(scores[l]), b, h, first + l, j);
            column.compare(static_cast<double>(bent[l]), expected,
                           bound * static_cast<double>(std::numeric_limits<T>::epsilon()) * (1 + std::fabs(expected)),
                           (first + l) * p.keys + j);
          }
        }
      }
}

template <class M, class F>
void check_all(support::Table& table, const std::string& name, const ab::Problem& p, const M& modifier, F formula,
               double bound) {
  table.begin(name);
  check_modifier<float>(table, "float", p, modifier, formula, bound);
  check_modifier<double>(table, "double", p, modifier, formula, bound);
  check_modifier<ab::simd::Pack<float>>(table, "pack of float", p, modifier, formula, bound);
  check_modifier<ab::simd::Pack<double>>(table, "pack of double", p, modifier, formula, bound);
}

}  // namespace

TEST_CASE("score modifiers are their formulas", "[score]") {
  support::Table table;
  support::Random random(102);
  for (const auto& [queries, keys] : {std::pair<Index, Index>{1, 1}, {1, 9}, {37, 20}, {20, 37}}) {
    const ab::Problem p{2, 3, 1, queries, keys, 1, 1};
    for (const float cap : {0.5f, 30.0f, 50.0f})
      check_all(
          table, "softcap", p, ab::score::Softcap<float>{cap},
          [=](double s, Index, Index, Index, Index) {
            return static_cast<double>(cap) * std::tanh(s / static_cast<double>(cap));
          },
          8 * (1 + static_cast<double>(cap)));
    check_all(table, "no softcap", p, ab::score::Softcap{0},
              [](double s, Index, Index, Index, Index) { return s; }, 0);
    const std::vector<float> slopes{0.5f, 0.25f, -2.0f};
    check_all(
        table, "alibi", p, ab::score::Alibi(slopes),
        [&, nq = queries, nk = keys](double s, Index, Index h, Index i, Index j) {
          return s - static_cast<double>(slopes[static_cast<std::size_t>(h)]) *
                         std::fabs(static_cast<double>(i + nk - nq - j));
        },
        64);
    for (int axes = 0; axes < 16; ++axes)
      for (const auto layout : {support::Layout::bhsd, support::Layout::columns, support::Layout::reversed}) {
        support::Tensor<float> x(layout, axes & 1 ? 2 : 1, axes & 2 ? 3 : 1, axes & 4 ? queries : 1,
                                 axes & 8 ? keys : 1);
        x.fill([&](auto...) { return random.chance(0.1) ? -HUGE_VAL : random.uniform(-3, 3); });
        check_all(
            table, "bias " + std::to_string(axes) + ' ' + name_of(layout), p, ab::score::Bias(x.view()),
            [&](double s, Index b, Index h, Index i, Index j) {
              return s +
                     static_cast<double>(x(axes & 1 ? b : 0, axes & 2 ? h : 0, axes & 4 ? i : 0, axes & 8 ? j : 0));
            },
            64);
      }
    std::vector<double> bias;
    for (Index j = 0; j < keys; ++j) bias.push_back(random.uniform(-3, 3));
    check_all(table, "key bias", p, ab::score::KeyBias(bias),
              [&](double s, Index, Index, Index, Index j) { return s + bias[static_cast<std::size_t>(j)]; }, 64);
  }
  table.report();
}

TEST_CASE("numbers and ranges deduce their scalar", "[score]") {
  static_assert(std::is_same_v<decltype(ab::score::Scale{2}), ab::score::Scale<double>>);
  static_assert(std::is_same_v<decltype(ab::score::Scale{2.0f}), ab::score::Scale<float>>);
  static_assert(std::is_same_v<decltype(ab::score::Softcap{50.f}), ab::score::Softcap<float>>);
  std::vector<float> floats{1};
  const std::span<float> view(floats);
  static_assert(std::is_same_v<decltype(ab::score::Alibi(floats)), ab::score::Alibi<float>>);
  static_assert(std::is_same_v<decltype(ab::score::KeyBias(view)), ab::score::KeyBias<float>>);
  static_assert(std::is_same_v<decltype(ab::score::KeyBias(std::span<const float>(view))), ab::score::KeyBias<float>>);
  static_assert(std::is_same_v<decltype(ab::score::Bias(ab::bhsd(floats.data(), 1, 1, 1, 1))), ab::score::Bias<float>>);
  static_assert(std::is_same_v<decltype(ab::normalize::Sink(view)), ab::normalize::Sink<float>>);
  SUCCEED();
}

TEST_CASE("slopes of ALiBi", "[score]") {
  // arXiv 2108.12409: 8 heads start at 1/2 and halve; 12 heads are those of 8 and every other one of 16.
  const auto eight = ab::score::alibi_slopes<double>(8);
  REQUIRE(eight.size() == 8);
  for (std::size_t k = 0; k < 8; ++k) CHECK(eight[k] == Approx(std::pow(0.5, static_cast<double>(k + 1))));
  const auto twelve = ab::score::alibi_slopes<double>(12);
  REQUIRE(twelve.size() == 12);
  for (std::size_t k = 0; k < 8; ++k) CHECK(twelve[k] == Approx(eight[k]));
  for (std::size_t k = 0; k < 4; ++k) CHECK(twelve[8 + k] == Approx(std::pow(2.0, -0.5 - static_cast<double>(k))));
  CHECK(ab::score::alibi_slopes(1).size() == 1);
  CHECK(ab::score::alibi_slopes(1)[0] == Approx(1.0 / 256));
  CHECK_THROWS_AS(ab::score::alibi_slopes(0), ab::ShapeError);
}
