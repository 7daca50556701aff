#pragma once
// The backward kernel against `reference`, each gradient held against a bound that follows from the forward's.
//
// With e the largest error of a logit (see check.hpp), l the largest |lse| and r = 4 expm1(2 e + 4 eps (2 + l)) +
// 64 eps, a probability is off by r relatively, and with G the largest gradient of a weight and n the number of
// terms
//     dv      |error| <= r * n * max |dout|            dq, dk    |error| <= r * 2 G * n * |scale| * max |k or q|
// and so on for the parameters. The double kernel is as far below that as the scalar allows.

#include "support/policies.hpp"

namespace support {

/// Targets of all parameters' gradients.
template <class U>
struct Targets {
  Tensor<U> scale, softcap, alibi, bias, key_bias, sink;

  template <class T>
  explicit Targets(const PolicySet<T>& set, Layout layout = Layout::bhsd)
      : scale(Layout::bhsd, 1, 1, 1, 1),
        softcap(Layout::bhsd, 1, 1, 1, 1),
        alibi(layout, 1, set.shape().heads, 1, 1),
        bias(layout, set.bias_sizes()[0], set.bias_sizes()[1], set.bias_sizes()[2], set.bias_sizes()[3]),
        key_bias(layout, set.key_bias_sizes()[0], set.key_bias_sizes()[1], 1, set.key_bias_sizes()[3]),
        sink(layout, 1, set.shape().heads, 1, 1) {}
};

template <class U>
struct Gradients {
  Tensor<U> q, k, v;
  explicit Gradients(const Shape& s, Layout layout = Layout::bhsd)
      : q(layout, s.batch, s.heads, s.queries, s.dim),
        k(layout, s.batch, s.kv_heads, s.keys, s.dim),
        v(layout, s.batch, s.kv_heads, s.keys, s.value_dim) {}
};

/// Gradients that come in: of the output and, if `evidence`, of lse, entropy and mass.
template <class T>
struct Upstream {
  Tensor<T> out, lse, entropy, mass;
  std::vector<T> u;

  Upstream(const Shape& s, Random& random, bool evidence, Layout layout = Layout::bhsd)
      : out(layout, s.batch, s.heads, s.queries, s.value_dim),
        lse(Layout::bhsd, s.batch, s.heads, 1, s.queries),
        entropy(Layout::bhsd, 1, s.heads, 1, s.queries),
        mass(Layout::columns, s.batch, 1, 1, s.keys) {
    out.fill(random, Family::uniform);
    for (const auto* x : {&lse, &entropy, &mass})
      x->fill([&](auto...) { return evidence ? random.uniform(-1, 1) : 0; });
    for (Index i = 0; i < s.queries; ++i) u.push_back(static_cast<T>(i % 4 == 0 ? 0 : random.unit()));
  }
};

template <class T>
double largest(const ab::TensorView<T>& x) {
  double most = 0;
  for (Index b = 0; b < x.batch; ++b)
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.length; ++i)
        for (Index c = 0; c < x.dim; ++c)
          if (const double a = std::fabs(static_cast<double>(x(b, h, i, c))); std::isfinite(a))
            most = std::max(most, a);
  return most;
}

template <class T>
void compare_views(Table& table, const char* name, const Tensor<T>& got, const Tensor<double>& expected,
                   double bound) {
  auto column = table.column(name);
  const auto& x = expected.view();
  Index place = 0;
  for (Index b = 0; b < x.batch; ++b)
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.length; ++i)
        for (Index c = 0; c < x.dim; ++c)
          column.compare(static_cast<double>(got(b, h, i, c)), expected(b, h, i, c), bound, place++);
  table.expect(got.gaps_untouched(), std::string("wrote beside ") + name);
}

/// The forward call, observed, then the backward one, with and without evidence gradients as `evidence` says.
template <class T>
void check_backward(Table& table, const PolicySet<T>& set, const Inputs<T>& in, const Upstream<T>& up,
                    bool evidence, Layout layout) {
  const Shape& s = set.shape();
  table.begin(set.name + (evidence ? ", evidence " : " ") + s.text());
  Tensor<T> out(layout, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<T> observed;
  set.apply([&](auto&&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies...,
                  ab::observe(observed, ab::QueryWeights::none()));
  });

  Gradients<T> got(s, layout);
  Gradients<double> expected(s);
  Targets<T> parameters(set, layout);
  Targets<double> expected_parameters(set);
  const ab::evidence::LseGradient lse(up.lse.view());
  const ab::evidence::EntropyGradient entropy(up.entropy.view());
  const ab::evidence::MassGradient mass(up.mass.view(), ab::QueryWeights::of(up.u));
  // One list of policies for all: without evidence the gradients are zero, and their kernels run all the same.
  set.apply_with(expected_parameters, [&](auto&&... policies) {
    ab::reference::attention_backward(in.q.view(), in.k.view(), in.v.view(), up.out.view(), expected.q.view(),
                                      expected.k.view(), expected.v.view(), policies..., lse, entropy, mass);
  });
  set.apply_with(parameters, [&](auto&&... policies) {
    if (evidence)
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), observed, up.out.view(),
                             got.q.view(), got.k.view(), got.v.view(), mass, policies..., lse, entropy);
    else
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), observed, up.out.view(),
                             got.q.view(), got.k.view(), got.v.view(), policies...);
  });

  const double eps = std::numeric_limits<T>::epsilon();
  const auto errors = logit_errors(s, in, set.magnitudes);
  double l = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (const T x : observed.lse(b, h))
        if (std::isfinite(x)) l = std::max(l, std::fabs(static_cast<double>(x)));
  const double e = *std::max_element(errors.begin(), errors.end());
  const double r = 4 * std::expm1(2 * e + 4 * eps * (2 + l)) + 64 * eps;
  const double dout = largest(up.out.view());
  const double G = 1 + static_cast<double>(s.value_dim) * dout * largest(in.v.view()) +
                   (evidence ? 2 + 2 * (l + set.magnitudes.added + 5) : 0);
  const double scale =
      set.magnitudes.scale != 0 ? std::fabs(set.magnitudes.scale) : 1 / std::sqrt(static_cast<double>(s.dim));
  const double per_key = static_cast<double>(s.queries * (s.heads / s.kv_heads));
  const double rows = static_cast<double>(s.batch * s.heads * s.queries);
  compare_views(table, "dq", got.q, expected.q, r * 2 * G * scale * largest(in.k.view()));
  compare_views(table, "dk", got.k, expected.k, r * 2 * G * scale * per_key * largest(in.q.view()));
  compare_views(table, "dv", got.v, expected.v, r * dout * per_key);
  compare_views(table, "dscale", parameters.scale, expected_parameters.scale,
                r * 2 * G * rows * static_cast<double>(s.dim) * largest(in.q.view()) * largest(in.k.view()));
  compare_views(table, "dsoftcap", parameters.softcap, expected_parameters.softcap, r * 2 * G * rows);
  compare_views(table, "dalibi", parameters.alibi, expected_parameters.alibi,
                r * 2 * G * rows * static_cast<double>(s.queries + s.keys));
  compare_views(table, "dbias", parameters.bias, expected_parameters.bias, r * 2 * G * rows);
  compare_views(table, "dkey_bias", parameters.key_bias, expected_parameters.key_bias, r * 2 * G * rows);
  compare_views(table, "dsink", parameters.sink, expected_parameters.sink, r * 2 * G * rows);
}

}  // namespace support
