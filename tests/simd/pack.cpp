// The pack facade, the same for packs and for scalars.

#include <vector>

#include "attention_balancer/simd/pack.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

namespace simd = attention_balancer::simd;

template <class S>
struct Lanes {
  using T = simd::scalar_of<S>;
  static constexpr int n = simd::lanes_of<S>;
  alignas(64) T at[n];

  Lanes() = default;
  explicit Lanes(const S& x) { simd::store_aligned(at, x); }
  S pack() const { return simd::load_aligned<S>(at); }
};

template <class S>
void check_pack() {
  using T = simd::scalar_of<S>;
  constexpr int n = simd::lanes_of<S>;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  support::Random random(121);

  SECTION("load and store at any place") {
    std::vector<T> memory(static_cast<std::size_t>(3 * n + 2)), copy(memory.size(), T(-1));
    for (auto& x : memory) x = static_cast<T>(random.unit());
    for (int offset = 0; offset <= n; ++offset) {
      simd::store(copy.data() + offset + 1, simd::load<S>(memory.data() + offset));
      for (int l = 0; l < n; ++l)
        CHECK(copy[static_cast<std::size_t>(offset + 1 + l)] == memory[static_cast<std::size_t>(offset + l)]);
    }
    CHECK(copy[0] == T(-1));
    CHECK(copy[static_cast<std::size_t>(2 * n + 1)] == T(-1));
  }
  SECTION("iota") {
    const Lanes<S> x(simd::iota<S>(T(5)));
    for (int l = 0; l < n; ++l) CHECK(x.at[l] == T(5 + l));
    // Exact up to where the scalar is.
    const T far = sizeof(T) == 4 ? T((1 << 24) - n) : T((1LL << 53) - n);
    const Lanes<S> y(simd::iota<S>(far));
    for (int l = 0; l < n; ++l) CHECK(y.at[l] - far == T(l));
  }
  SECTION("fma") {
    Lanes<S> a, b, c;
    for (int l = 0; l < n; ++l) {
      a.at[l] = static_cast<T>(random.uniform(-2, 2)), b.at[l] = static_cast<T>(random.uniform(-2, 2));
      c.at[l] = static_cast<T>(random.uniform(-2, 2));
    }
    const Lanes<S> r(simd::fma(a.pack(), b.pack(), c.pack()));
    for (int l = 0; l < n; ++l)
      CHECK(std::fabs(r.at[l] - std::fma(a.at[l], b.at[l], c.at[l])) <= 4 * std::numeric_limits<T>::epsilon());
#if defined(__FMA__) || defined(__aarch64__)
    // One rounding: (1 + e)^2 - (1 + 2 e) is e^2, which a rounded product loses.
    const T e = std::numeric_limits<T>::epsilon();
    const Lanes<S> one(simd::fma(S(1 + e), S(1 + e), S(-(1 + 2 * e))));
    for (const T x : one.at) CHECK(x == e * e);
#endif
  }
  SECTION("select takes lane by lane") {
    Lanes<S> x, limit;
    for (int l = 0; l < n; ++l) x.at[l] = T(l), limit.at[l] = T(n / 2);
    const Lanes<S> r(simd::select(x.pack() < limit.pack(), S(T(1)), S(T(2))));
    for (int l = 0; l < n; ++l) CHECK(r.at[l] == T(l < n / 2 ? 1 : 2));
    const Lanes<S> of_nan(simd::select(S(nan) == S(nan), S(T(1)), S(nan)));
    for (const T v : of_nan.at) CHECK(std::isnan(v));
  }
  SECTION("max and min are the second where either is not a number") {
    const T values[] = {T(0), T(1), T(-1), inf, -inf, nan, std::numeric_limits<T>::denorm_min()};
    for (const T a : values)
      for (const T b : values) {
        INFO(a << ' ' << b);
        auto check = [](const Lanes<S>& r, T expected) {
          for (const T x : r.at) CHECK((x == expected || (std::isnan(x) && std::isnan(expected))));
        };
        check(Lanes<S>(simd::max(S(a), S(b))), a > b ? a : b);
        check(Lanes<S>(simd::min(S(a), S(b))), a < b ? a : b);
      }
  }
  SECTION("any") {
    for (int l = 0; l < n; ++l) {
      Lanes<S> x(S(T(0)));
      x.at[l] = T(1);
      CHECK(simd::any(x.pack() == S(T(1))));
      CHECK_FALSE(simd::any(x.pack() == S(T(2))));
      x.at[l] = nan;
      CHECK(simd::any(x.pack() == S(T(0))) == (n > 1));
    }
  }
  SECTION("all") {
    for (int l = 0; l < n; ++l) {
      Lanes<S> x(S(T(1)));
      CHECK(simd::all(x.pack() == S(T(1))));
      x.at[l] = nan;
      CHECK_FALSE(simd::all(x.pack() == S(T(1))));
    }
  }
  SECTION("the first lanes, and nothing behind them") {
    for (int count = 1; count <= n; ++count) {
      T memory[n + 2];
      for (T& x : memory) x = T(7);
      for (int l = 0; l < count; ++l) memory[l + 1] = T(l + 1);
      const Lanes<S> x(simd::load_first<S>(memory + 1, count));
      for (int l = 0; l < n; ++l) CHECK(x.at[l] == T(l < count ? l + 1 : 0));
      for (T& y : memory) y = T(9);
      simd::store_first(memory + 1, x.pack(), count);
      for (int l = -1; l < n + 1; ++l) CHECK(memory[l + 1] == T(l >= 0 && l < count ? l + 1 : 9));
    }
  }
  SECTION("bytes") {
    unsigned char memory[n];
    for (int l = 0; l < n; ++l) memory[l] = static_cast<unsigned char>(l % 2 == 0 ? 255 - l : l);
    const Lanes<S> x(simd::load_bytes<S>(memory));
    for (int l = 0; l < n; ++l) CHECK(x.at[l] == static_cast<T>(memory[l]));
  }
  SECTION("comparisons with what is no number") {
    CHECK_FALSE(simd::any(S(nan) == S(nan)));
    CHECK_FALSE(simd::any(S(nan) < S(T(1))));
    CHECK_FALSE(simd::any(S(nan) >= S(T(1))));
  }
  SECTION("sums") {
    S rows[n];
    T expected[n];
    Lanes<S> all;
    for (int i = 0; i < n; ++i) {
      T sum(0);
      for (int l = 0; l < n; ++l) all.at[l] = T(random.below(1000)), sum += all.at[l];
      rows[i] = all.pack(), expected[i] = sum;
      CHECK(simd::reduce_add(rows[i]) == sum);
    }
    const Lanes<S> sums(simd::reduce_each(rows, [](const S& a, const S& b) { return a + b; }));
    for (int i = 0; i < n; ++i) CHECK(sums.at[i] == expected[i]);
  }
  SECTION("transpose") {
    S rows[n];
    for (int i = 0; i < n; ++i) rows[i] = simd::iota<S>(T(100 * i));
    simd::transpose(rows);
    for (int i = 0; i < n; ++i) {
      const Lanes<S> row(rows[i]);
      for (int l = 0; l < n; ++l) CHECK(row.at[l] == T(100 * l + i));
    }
  }
}

}  // namespace

TEST_CASE("packs of float", "[simd]") { check_pack<simd::Pack<float>>(); }
TEST_CASE("packs of double", "[simd]") { check_pack<simd::Pack<double>>(); }
TEST_CASE("float is a pack of one lane", "[simd]") { check_pack<float>(); }
TEST_CASE("double is a pack of one lane", "[simd]") { check_pack<double>(); }
