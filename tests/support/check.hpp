#pragma once
// A kernel against `reference`, with every error held against a stated bound.
//
// With eps = numeric_limits<T>::epsilon(), A_i the largest |scale| * sum_c |q_ic k_jc| over the keys j, and M the
// magnitude of what the score modifiers and the sink add, a logit of query i is off by at most
//     e_i = eps * ((6 + D / 2) * A_i + 6 * M),
// and with r_i = exp(2 e_i) - 1 + 16 eps, r = max r_i, the kernel promises
//     output     |error| <= r_i * max |v|
//     mass       |error| <= r * mass + (sum of u) * 8 * the least weight     (so does the sink mass)
//     exposure   exact for weights 0 and 1, else 16 eps relatively
//     lse        |error| <= e_i + eps * (4 + 2 |lse|)
//     entropy    |error| <= (4 + 2 log(Nk + 1)) * (e_i + 4 eps)
// These hold for every family of inputs; tests/attention/accuracy.cpp states numbers per family.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "attention_balancer/reference.hpp"
#include "support/cache_kernels.hpp"
#include "support/table.hpp"
#include "support/tensor.hpp"

namespace support {

struct Shape {
  Index batch = 1, heads = 1, kv_heads = 1, queries = 1, keys = 1, dim = 1, value_dim = 1;

  std::string text() const {
    auto part = [](const char* letters, Index n) { return std::string(letters) + std::to_string(n) + ' '; };
    return part("B", batch) + part("Hq", heads) + part("Hkv", kv_heads) + part("Nq", queries) + part("Nk", keys) +
           part("D", dim) + part("Dv", value_dim);
  }
};

template <class T>
struct Inputs {
  Tensor<T> q, k, v;

  Inputs(const Shape& s, Random& random, Family family = Family::uniform, double factor = 1,
         Layout q_layout = Layout::bhsd, Layout k_layout = Layout::bhsd, Layout v_layout = Layout::bhsd)
      : q(q_layout, s.batch, s.heads, s.queries, s.dim),
        k(k_layout, s.batch, s.kv_heads, s.keys, s.dim),
        v(v_layout, s.batch, s.kv_heads, s.keys, s.value_dim) {
    q.fill(random, family, factor);
    k.fill(random, family, factor);
    v.fill(random, family);
  }
};

/// What the bound needs to know beyond the tensors.
struct Magnitudes {
  double scale = 0;  // 0: 1 / sqrt(D)
  double added = 0;  // M
};

/// e_i of every query, [B, Hq, Nq]; elements that are not finite do not count.
template <class T>
std::vector<double> logit_errors(const Shape& s, const Inputs<T>& in, const Magnitudes& m) {
  const double eps = std::numeric_limits<T>::epsilon();
  const double scale = m.scale != 0 ? std::fabs(m.scale) : 1 / std::sqrt(static_cast<double>(s.dim));
  std::vector<double> errors;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i) {
        double largest = 0;
        for (Index j = 0; j < s.keys; ++j) {
          double sum = 0;
          for (Index c = 0; c < s.dim; ++c)
            sum += std::fabs(static_cast<double>(in.q(b, h, i, c)) *
                             static_cast<double>(in.k(b, h / (s.heads / s.kv_heads), j, c)));
          if (std::isfinite(sum)) largest = std::max(largest, sum);
        }
        errors.push_back(eps * ((6 + static_cast<double>(s.dim) / 2) * scale * largest + 6 * m.added));
      }
  return errors;
}

template <class T, class U>
void compare_output(Table& table, const char* name, const Tensor<T>& got, const Tensor<double>& expected,
                    const Shape& s, const std::vector<double>& errors, const Tensor<U>& v) {
  const double eps = std::numeric_limits<T>::epsilon();
  double most = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.kv_heads; ++h)
      for (Index j = 0; j < s.keys; ++j)
        for (Index c = 0; c < s.value_dim; ++c)
          if (const double x = std::fabs(static_cast<double>(v(b, h, j, c))); std::isfinite(x))
            most = std::max(most, x);
  auto column = table.column(name);
  Index row = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i, ++row) {
        const double r = std::expm1(2 * errors[static_cast<std::size_t>(row)]) + 16 * eps;
        for (Index c = 0; c < s.value_dim; ++c)
          column.compare(static_cast<double>(got(b, h, i, c)), expected(b, h, i, c), r * most,
                         row * s.value_dim + c);
      }
}

template <class T>
void compare_evidence(Table& table, const ab::Evidence<T>& got, const ab::Evidence<double>& expected, const Shape& s,
                      const std::vector<double>& errors, const ab::QueryWeights& weights) {
  const double eps = std::numeric_limits<T>::epsilon();
  double total = 0;
  bool zero_or_one = true;
  for (Index i = 0; i < s.queries; ++i) {
    const double u = weights.template weight<double>(i, s.queries);
    total += u;
    zero_or_one = zero_or_one && (u == 0 || u == 1);
  }
  const double largest = *std::max_element(errors.begin(), errors.end());
  const double r = std::expm1(2 * largest) + 16 * eps;
  const double tiny = total * 8 * std::ldexp(1.0, ab::simd::least_weight_exponent<T>);
  table.expect(got.batch() == s.batch && got.heads() == s.heads && got.queries() == s.queries && got.keys() == s.keys,
               "sizes of the evidence");
  table.expect(got.has_mass() == expected.has_mass(), "has_mass");
  auto mass = table.column("mass"), exposure = table.column("exposure"), lse = table.column("lse"),
       entropy = table.column("entropy"), sink = table.column("sink mass"), empty = table.column("empty rows");
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      const Index row = b * s.heads + h;
      table.expect(got.mass(b, h).size() == expected.mass(b, h).size(), "length of mass");
      for (std::size_t j = 0; j < expected.mass(b, h).size(); ++j) {
        const double m = expected.mass(b, h)[j], x = expected.exposure(b, h)[j];
        const auto place = row * s.keys + static_cast<Index>(j);
        mass.compare(static_cast<double>(got.mass(b, h)[j]), m, r * m + tiny, place);
        exposure.compare(static_cast<double>(got.exposure(b, h)[j]), x, zero_or_one ? 0 : 16 * eps * x, place);
      }
      for (Index i = 0; i < s.queries; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double e = errors[static_cast<std::size_t>(row * s.queries + i)];
        const double l = expected.lse(b, h)[at];
        lse.compare(static_cast<double>(got.lse(b, h)[at]), l, e + eps * (4 + 2 * std::fabs(l)), row * s.queries + i);
        entropy.compare(static_cast<double>(got.entropy(b, h)[at]), expected.entropy(b, h)[at],
                        (4 + 2 * std::log(static_cast<double>(s.keys) + 1)) * (e + 4 * eps), row * s.queries + i);
      }
      const double m = expected.sink_mass(b, h);
      sink.compare(static_cast<double>(got.sink_mass(b, h)), m, r * m + tiny, row);
      empty.equal(static_cast<double>(got.empty_rows(b, h)), static_cast<double>(expected.empty_rows(b, h)), row);
    }
}

inline bool same_bits(double a, double b) { return a == b ? std::signbit(a) == std::signbit(b) : a != a && b != b; }

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](T x, T y) { return same_bits(static_cast<double>(x), static_cast<double>(y)); });
}

/// Two pieces of evidence, bit by bit (any not-a-number is like any other), but for the statistic beside the mass.
template <class T>
bool same_bits_but_statistic(const ab::Evidence<T>& a, const ab::Evidence<T>& b) {
  if (a.batch() != b.batch() || a.heads() != b.heads() || a.has_mass() != b.has_mass()) return false;
  for (Index i = 0; i < a.batch(); ++i)
    for (Index h = 0; h < a.heads(); ++h)
      if (!same_bits(a.mass(i, h), b.mass(i, h)) || !same_bits(a.exposure(i, h), b.exposure(i, h)) ||
          !same_bits(a.lse(i, h), b.lse(i, h)) || !same_bits(a.entropy(i, h), b.entropy(i, h)) ||
          !same_bits(static_cast<double>(a.sink_mass(i, h)), static_cast<double>(b.sink_mass(i, h))) ||
          a.empty_rows(i, h) != b.empty_rows(i, h) ||
          !std::equal(a.support(i, h).begin(), a.support(i, h).end(), b.support(i, h).begin(), b.support(i, h).end()))
        return false;
  return true;
}

/// All of two pieces of evidence.
template <class T>
bool same_bits(const ab::Evidence<T>& a, const ab::Evidence<T>& b) {
  if (a.statistic_kind() != b.statistic_kind() || !same_bits_but_statistic(a, b)) return false;
  for (Index i = 0; i < a.batch(); ++i)
    for (Index h = 0; h < a.heads(); ++h)
      if (!same_bits(a.statistic(i, h), b.statistic(i, h))) return false;
  return true;
}

template <class T>
bool same_bits(const TensorView<T>& a, const TensorView<T>& b) {
  for (Index i = 0; i < a.batch; ++i)
    for (Index h = 0; h < a.heads; ++h)
      for (Index j = 0; j < a.length; ++j)
        for (Index c = 0; c < a.dim; ++c)
          if (!same_bits(static_cast<double>(a(i, h, j, c)), static_cast<double>(b(i, h, j, c)))) return false;
  return true;
}

// Compiled once for all tests, in check.cpp.
#if !defined(ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS)
#define ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS extern
#endif
#define ATTENTION_BALANCER_TEST_CHECKS(T)                                                                     \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS template std::vector<double> logit_errors(                       \
      const Shape&, const Inputs<T>&, const Magnitudes&);                                                     \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS template void compare_output(                                    \
      Table&, const char*, const Tensor<T>&, const Tensor<double>&, const Shape&, const std::vector<double>&, \
      const Tensor<T>&);                                                                                      \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS template void compare_evidence(                                  \
      Table&, const ab::Evidence<T>&, const ab::Evidence<double>&, const Shape&, const std::vector<double>&,  \
      const ab::QueryWeights&);                                                                               \
  ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS template bool same_bits(const ab::Evidence<T>&, const ab::Evidence<T>&)
ATTENTION_BALANCER_TEST_CHECKS(float);
ATTENTION_BALANCER_TEST_CHECKS(double);

/// Plain, observed and evidence alone, each against the reference.
template <class T, class... P>
void check(Table& table, const std::string& name, const Shape& s, const Inputs<T>& in, Layout out_layout,
           const ab::QueryWeights& weights, const Magnitudes& m, P&&... policies) {
  table.begin(name + ' ' + s.text());
  const auto q = in.q.input(), k = in.k.input(), v = in.v.input();
  Tensor<double> expected(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> expected_evidence;
  ab::reference::attention(q, k, v, expected.view(), policies..., ab::observe(expected_evidence, weights));
  const auto errors = logit_errors(s, in, m);

  Tensor<T> out(out_layout, s.batch, s.heads, s.queries, s.value_dim);
  ab::attention(q, k, v, out.view(), policies...);
  compare_output(table, "output", out, expected, s, errors, in.v);
  table.expect(out.gaps_untouched(), "wrote beside the output");

  Tensor<T> observed(out_layout, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<T> evidence, alone;
  ab::attention(q, k, v, observed.view(), policies..., ab::observe(evidence, weights));
  compare_output(table, "observed output", observed, expected, s, errors, in.v);
  compare_evidence(table, evidence, expected_evidence, s, errors, weights);

  ab::attention_evidence(q, k, policies..., ab::observe(alone, weights));
  table.expect(same_bits(evidence, alone), "attention_evidence differs from the evidence of attention");
}

}  // namespace support
