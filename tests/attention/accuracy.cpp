// The accuracy that is stated, in numbers, for each family of inputs that q, k and v are drawn from. Errors are those
// of the worst element, against `reference`: an output relative to sum_j p_ij |v_jc|, a mass relative to itself, lse
// relative to max(1, |lse|), entropy absolute.

#include <cstdio>
#include <cstdlib>

#include "support/check.hpp"
#include "support/options.hpp"

namespace {

using support::Family;
using support::Index;
using support::Layout;

struct Errors {
  double output = 0, observed = 0, mass = 0, lse = 0, entropy = 0;
};

template <class T>
Errors measure(const support::Shape& s, Family family, double factor, std::uint64_t seed) {
  support::Random random(seed);
  const support::Inputs<T> in(s, random, family, factor);
  support::Tensor<double> expected(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  support::Tensor<T> plain(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim),
      out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> truth;
  ab::Evidence<T> evidence;
  ab::reference::attention(in.q.input(), in.k.input(), in.v.input(), expected.view(), ab::observe(truth));
  ab::attention(in.q.input(), in.k.input(), in.v.input(), plain.view());
  ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), ab::observe(evidence));
  support::Tensor<T> magnitude(Layout::bhsd, s.batch, s.kv_heads, s.keys, s.value_dim);
  magnitude.fill([&](Index b, Index h, Index j, Index c) { return std::fabs(in.v(b, h, j, c)); });
  support::Tensor<double> most(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::reference::attention(in.q.input(), in.k.input(), magnitude.input(), most.view());
  Errors errors;
  auto raise = [](double& error, double by) {
    if (!(by <= error)) error = by;
  };
  for (Index h = 0; h < s.heads; ++h) {
    for (Index i = 0; i < s.queries; ++i) {
      for (Index c = 0; c < s.value_dim; ++c) {
        const double right = expected(0, h, i, c);
        raise(errors.output, std::fabs(static_cast<double>(plain(0, h, i, c)) - right) / most(0, h, i, c));
        raise(errors.observed, std::fabs(static_cast<double>(out(0, h, i, c)) - right) / most(0, h, i, c));
      }
      const auto at = static_cast<std::size_t>(i);
      raise(errors.lse, std::fabs(static_cast<double>(evidence.lse(0, h)[at]) - truth.lse(0, h)[at]) /
                            std::max(1.0, std::fabs(truth.lse(0, h)[at])));
      raise(errors.entropy, std::fabs(static_cast<double>(evidence.entropy(0, h)[at]) - truth.entropy(0, h)[at]));
    }
    for (std::size_t j = 0; j < static_cast<std::size_t>(s.keys); ++j) {
      const double right = truth.mass(0, h)[j];
      if (right > 1e-30) raise(errors.mass, std::fabs(static_cast<double>(evidence.mass(0, h)[j]) - right) / right);
    }
  }
  return errors;
}

/// Bounds in units of epsilon.
struct Row {
  Family family;
  double factor;
  Index length, dim;
  Errors bound;
};

// The scores are of magnitude 1 (uniform), 10 (uniform times 4), 30 (log-normal), 1e4 (Cauchy / 8) and 1e6 (Cauchy),
// and what is lost of them, eps times their magnitude, is lost of everything but lse.
constexpr Row rows[] = {
    {Family::uniform, 1.0, 300, 64, {8, 8, 16, 16, 64}},
    {Family::uniform, 1.0, 1000, 32, {16, 16, 32, 16, 128}},
    {Family::uniform, 4.0, 300, 128, {128, 128, 128, 32, 128}},
    {Family::log_normal, 1.0, 300, 64, {256, 256, 256, 16, 128}},
    {Family::log_normal, 1.0, 1000, 32, {512, 512, 512, 16, 512}},
    {Family::cauchy, 0.125, 300, 64, {1e3, 1e3, 1e3, 16, 1e3}},
    {Family::cauchy, 1.0, 300, 64, {1e5, 1e5, 1e5, 16, 1e3}},
};

}  // namespace

TEMPLATE_TEST_CASE("the stated accuracy holds for each family of inputs", "[attention][accuracy]", SCALARS) {
  using T = TestType;
  const double eps = std::numeric_limits<T>::epsilon();
  support::Table table;
  for (const Row& row : rows)
    for (std::uint64_t seed = 1; seed <= (support::quick() ? 1u : 2u); ++seed) {
      const support::Shape s{1, 1, 1, row.length, row.length, row.dim, row.dim};
      table.begin(std::string(name_of(row.family)) + " times " + std::to_string(row.factor) + ' ' + s.text());
      const Errors e = measure<T>(s, row.family, row.factor, seed);
      table.column("output").compare(e.output, 0, row.bound.output * eps, 0);
      table.column("observed output").compare(e.observed, 0, row.bound.observed * eps, 0);
      table.column("mass").compare(e.mass, 0, row.bound.mass * eps, 0);
      table.column("lse").compare(e.lse, 0, row.bound.lse * eps, 0);
      table.column("entropy").compare(e.entropy, 0, row.bound.entropy * eps, 0);
      if (std::getenv("ATTENTION_BALANCER_TEST_PRINT"))
        std::printf("%s %g %ld %ld: out %.3g obs %.3g mass %.3g lse %.3g entropy %.3g eps\n", name_of(row.family),
                    row.factor, static_cast<long>(row.length), static_cast<long>(row.dim), e.output / eps,
                    e.observed / eps, e.mass / eps, e.lse / eps, e.entropy / eps);
    }
  table.report();
}
