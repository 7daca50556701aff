// Scores that are finite and huge, bounds that are huge, and memory that a call would overwrite while it reads it.

#include <array>

#include "support/catch.hpp"
#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;

constexpr float most = std::numeric_limits<float>::max();

/// Output, mass, lse and entropy of one head without masks, against the reference.
template <class... P>
void check_extreme(const char* name, double tolerance, P&&... policies) {
  INFO(name);
  const support::Shape s{1, 1, 1, 300, 300, 4, 4};
  support::Random random(41);
  const support::Inputs<float> in(s, random);
  const support::Tensor<float> out(Layout::bhsd, 1, 1, 300, 4);
  const support::Tensor<double> exact(Layout::bhsd, 1, 1, 300, 4);
  ab::Evidence<float> got;
  ab::Evidence<double> expected;
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies..., ab::observe(got));
  ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), exact.view(), policies..., ab::observe(expected));
  double worst = 0, worst_entropy = 0, worst_mass = 0;
  auto distance = [](double a, double b) { return a == b ? 0 : std::isfinite(a) ? std::abs(a - b) : 1e30; };
  for (Index i = 0; i < 300; ++i) {
    const auto at = static_cast<std::size_t>(i);
    for (Index c = 0; c < 4; ++c)
      worst = std::max(worst, distance(static_cast<double>(out(0, 0, i, c)), exact(0, 0, i, c)));
    worst_mass = std::max(worst_mass, distance(static_cast<double>(got.mass(0, 0)[at]), expected.mass(0, 0)[at]));
    worst_entropy =
        std::max(worst_entropy, distance(static_cast<double>(got.entropy(0, 0)[at]), expected.entropy(0, 0)[at]));
    const double lse = expected.lse(0, 0)[at];
    CHECK(distance(static_cast<double>(got.lse(0, 0)[at]), lse) <= 1e-5 + 3e-7 * std::abs(lse));
  }
  CHECK(worst <= tolerance);
  CHECK(worst_mass <= 300 * tolerance);
  CHECK(worst_entropy <= 20 * tolerance);
  CHECK(got.empty_rows(0, 0) == expected.empty_rows(0, 0));
  CHECK(std::abs(static_cast<double>(got.sink_mass(0, 0)) - expected.sink_mass(0, 0)) <= 300 * tolerance);
}

/// A mask whose answer is one for all lanes.
struct OneHead {
  ab::mask::Coverage classify(const ab::Rect&) const { return ab::mask::Coverage::partial; }
  template <class S>
  bool visible(const ab::Site<S>& site) const {
    return site.head == 0;
  }
};

}  // namespace

TEST_CASE("huge finite scores do not overflow", "[attention]") {
  std::vector<float> left(300, 0.f), all(300, -most), far(300, -1e10f);
  std::fill(left.begin(), left.begin() + 200, -most);
  check_extreme("padding of the least float at the left", 1e-5, ab::score::KeyBias(left));
  check_extreme("the least float everywhere", 1e-5, ab::score::KeyBias(all));
  check_extreme("far below everywhere: such a score has no fraction left in float", 0.1, ab::score::KeyBias(far));
  for (const float logit : {1e6f, 1e10f, most, -1e10f, -most}) {
    const std::vector<float> logits{logit};
    check_extreme("a sink", 1e-5, ab::normalize::Sink(logits));
  }
}

TEST_CASE("huge window bounds are no bounds", "[mask]") {
  constexpr Index huge = std::numeric_limits<Index>::max();
  check_extreme("both", 1e-5, ab::mask::Window{huge, huge});
  check_extreme("left", 1e-5, ab::mask::Window{huge, 3});
  check_extreme("right", 1e-5, ab::mask::Window{3, huge});
}

TEST_CASE("what the call overwrites cannot be borrowed", "[shape]") {
  std::vector<float> x(40, 1.f), y(40, 0.f);
  const auto in = ab::bhsd(x.data(), 1, 1, 10, 4), out = ab::bhsd(y.data(), 1, 1, 10, 4);
  ab::Evidence<float> evidence;
  ab::attention(in, in, in, out, ab::observe(evidence));
  const std::vector<float> before(evidence.mass(0, 0).begin(), evidence.mass(0, 0).end());
  CHECK_THROWS_AS(ab::attention(in, in, in, out, ab::score::KeyBias(evidence.mass(0, 0)), ab::observe(evidence)),
                  ab::ShapeError);
  CHECK_THROWS_AS(ab::attention_evidence(in, in, ab::observe(evidence, ab::QueryWeights::of(evidence.lse(0, 0)))),
                  ab::ShapeError);
  CHECK_THROWS_AS(ab::attention(in, in, in, out, ab::score::Bias(ab::bhsd(y.data(), 1, 1, 1, 10))), ab::ShapeError);
  CHECK(std::equal(before.begin(), before.end(), evidence.mass(0, 0).begin()));
  CHECK_NOTHROW(ab::attention(in, in, in, out, ab::score::KeyBias(evidence.mass(0, 0))));
}

TEST_CASE("views interleaved in one buffer", "[shape]") {
  // Rows of [q | k | v | out], each with four heads of eight features: apart, although their memory is interleaved.
  constexpr Index length = 6, heads = 4, dim = 8, row = 4 * heads * dim;
  std::vector<float> x(length * row, 0.5f);
  auto part = [&](Index p, Index dim_stride) {
    float* first = x.data() + p * heads * dim + (dim_stride < 0 ? dim - 1 : 0);
    return ab::TensorView<float>{first, 1, heads, length, dim, 0, dim, row, dim_stride};
  };
  CHECK_NOTHROW(ab::attention(part(0, 1), part(1, 1), part(2, 1), part(3, 1)));
  CHECK_NOTHROW(ab::attention(part(0, 1), part(1, -1), part(2, 1), part(3, -1)));
  CHECK_THROWS_AS(ab::attention(part(0, 1), part(1, 1), part(2, 1), part(2, 1)), ab::ShapeError);
  // A sliding window over one signal overlaps itself, and this output.
  std::vector<float> signal(600, 0.25f);
  const ab::TensorView<float> window{signal.data(), 1, 1, 8, 8, 0, 0, 1, 1};
  const ab::TensorView<float> apart{signal.data() + 15, 1, 1, 8, 8, 0, 0, 64, 1};
  const ab::TensorView<float> within{signal.data() + 8, 1, 1, 8, 8, 0, 0, 64, 1};
  CHECK_NOTHROW(ab::attention(window, window, window, apart));
  CHECK_THROWS_AS(ab::attention(window, window, window, within), ab::ShapeError);
}

TEST_CASE("broadcast views of absurd sizes are refused", "[shape]") {
  float x = 1;
  ab::Evidence<float> evidence;
  const Index big = Index(1) << 58;
  const ab::TensorView<float> wide{&x, 1, 1, 1, big, 0, 0, 0, 0};
  CHECK_THROWS_AS(ab::attention_evidence(wide, wide, ab::observe(evidence)), ab::ShapeError);
  const ab::TensorView<float> many{&x, Index(1) << 30, Index(1) << 20, 1, 1, 0, 0, 0, 1};
  CHECK_THROWS_AS(ab::attention_evidence(many, many, ab::observe(evidence)), ab::ShapeError);
  const ab::TensorView<float> back{&x, 1, 1, 1, 1, 0, 0, std::numeric_limits<Index>::min(), 1};
  CHECK_THROWS_AS(ab::attention_evidence(back, back, ab::observe(evidence)), ab::ShapeError);
}

TEST_CASE("policies of what users have", "[score]") {
  std::vector<float> x(40, 1.f), y(40, 0.f);
  const auto in = ab::bhsd(x.data(), 1, 1, 10, 4), out = ab::bhsd(y.data(), 1, 1, 10, 4);
  const std::array<float, 1> slopes{0.5f}, logits{1.f};
  const int cap = 5;
  const ab::mask::KeyLengths lengths{7};  // copied: nothing dangles
  CHECK_NOTHROW(ab::attention(in, in, in, out, ab::score::Alibi(slopes), ab::normalize::Sink(logits),
                              ab::score::Softcap(cap), ab::score::Scale{1}, lengths));
  CHECK_THROWS_AS(ab::attention(in, in, in, out, ab::score::Scale{1e300}), ab::InputError);
  const std::vector<double> too_large{1e300};
  CHECK_THROWS_AS(ab::attention(in, in, in, out, ab::normalize::Sink(too_large)), ab::InputError);
  const std::array<float, 1> no_slope{std::numeric_limits<float>::quiet_NaN()};
  CHECK_THROWS_AS(ab::attention(in, in, in, out, ab::score::Alibi(no_slope)), ab::InputError);
  CHECK_NOTHROW(ab::attention(in, in, in, out, OneHead{}));
}
