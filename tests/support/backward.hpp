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

/// Targets of the gradients of all parameters.
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

template <class T, class U>
void compare_views(Table& table, const char* name, const Tensor<T>& got, const Tensor<U>& expected, double bound) {
  auto column = table.column(name);
  const auto& x = expected.view();
  Index place = 0;
  for (Index b = 0; b < x.batch; ++b)
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.length; ++i)
        for (Index c = 0; c < x.dim; ++c)
          column.compare(static_cast<double>(got(b, h, i, c)), static_cast<double>(expected(b, h, i, c)), bound,
                         place++);
  table.expect(got.gaps_untouched(), std::string("wrote beside ") + name);
}

/// The forward call, observed, then the backward one, with and without evidence gradients as `evidence` says.
template <class T>
void run_backward(const PolicySet<T>& set, const Inputs<T>& in, const Upstream<T>& up, bool evidence,
                  Tensor<T>& out, ab::Evidence<T>& observed, Gradients<T>& got, Targets<T>& parameters) {
  set.apply([&](auto&&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies...,
                  ab::observe(observed, ab::QueryWeights::none()));
  });
  const ab::evidence::LseGradient lse(up.lse.view());
  const ab::evidence::EntropyGradient entropy(up.entropy.view());
  const ab::evidence::MassGradient mass(up.mass.view(), ab::QueryWeights::of(up.u));
  set.apply_with(parameters, [&](auto&&... policies) {
    if (evidence)
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), observed, up.out.view(),
                             got.q.view(), got.k.view(), got.v.view(), mass, policies..., lse, entropy);
    else
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), observed, up.out.view(),
                             got.q.view(), got.k.view(), got.v.view(), policies...);
  });
}

/// The same by the reference, in double. One list of policies for all: without evidence their gradients are 0.
template <class T>
void run_reference_backward(const PolicySet<T>& set, const Inputs<T>& in, const Upstream<T>& up,
                            Gradients<double>& expected, Targets<double>& parameters) {
  const ab::evidence::LseGradient lse(up.lse.view());
  const ab::evidence::EntropyGradient entropy(up.entropy.view());
  const ab::evidence::MassGradient mass(up.mass.view(), ab::QueryWeights::of(up.u));
  set.apply_with(parameters, [&](auto&&... policies) {
    ab::reference::attention_backward(in.q.view(), in.k.view(), in.v.view(), up.out.view(), expected.q.view(),
                                      expected.k.view(), expected.v.view(), policies..., lse, entropy, mass);
  });
}

/// f(name, one, other) for each gradient of two runs.
template <class A, class B, class F>
void for_each_gradient(const Gradients<A>& x, const Targets<A>& of_x, const Gradients<B>& y, const Targets<B>& of_y,
                       F f) {
  f("dq", x.q, y.q), f("dk", x.k, y.k), f("dv", x.v, y.v);
  f("dscale", of_x.scale, of_y.scale), f("dsoftcap", of_x.softcap, of_y.softcap);
  f("dalibi", of_x.alibi, of_y.alibi), f("dbias", of_x.bias, of_y.bias);
  f("dkey_bias", of_x.key_bias, of_y.key_bias), f("dsink", of_x.sink, of_y.sink);
}

template <class T>
void check_backward(Table& table, const PolicySet<T>& set, const Inputs<T>& in, const Upstream<T>& up,
                    bool evidence, Layout layout) {
  const Shape& s = set.shape();
  table.begin(set.name + (evidence ? ", evidence " : " ") + s.text());
  Tensor<T> out(layout, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<T> observed;
  Gradients<T> got(s, layout);
  Gradients<double> expected(s);
  Targets<T> parameters(set, layout);
  Targets<double> expected_parameters(set);
  run_reference_backward(set, in, up, expected, expected_parameters);
  run_backward(set, in, up, evidence, out, observed, got, parameters);

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

/// What a query that sees no key holds, and what its output means to the loss, makes no difference to any gradient, not
/// even as a number that is not finite: to none of the reference's by a bit, to the kernel's as far as it adds up in
/// another order then.
template <class T>
void check_blind_rows(Table& table, const PolicySet<T>& set, Inputs<T>& in, Upstream<T>& up, bool evidence,
                      T poison) {
  const Shape& s = set.shape();
  table.begin("blind rows: " + set.name + (evidence ? ", evidence " : " ") + s.text());
  Tensor<T> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<T> observed;
  Gradients<T> clean(s), got(s);
  Gradients<double> expected(s), also(s);
  Targets<T> clean_parameters(set), parameters(set);
  Targets<double> expected_parameters(set), also_parameters(set);
  run_backward(set, in, up, evidence, out, observed, clean, clean_parameters);
  run_reference_backward(set, in, up, expected, expected_parameters);
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i) {
        bool blind = true;  // values are random: those that are attended to don't add up to 0
        for (Index c = 0; c < s.value_dim; ++c) blind = blind && out(b, h, i, c) == 0;
        if (!blind) continue;
        in.q(b, h, i, i % s.dim) = up.out(b, h, i, i % s.value_dim) = poison;
        const T lse = observed.lse(b, h)[static_cast<std::size_t>(i)];
        if (lse == -std::numeric_limits<T>::infinity()) up.lse(b, h, 0, i) = poison;  // that of a sink counts
      }
  run_backward(set, in, up, evidence, out, observed, got, parameters);
  run_reference_backward(set, in, up, also, also_parameters);
  for_each_gradient(got, parameters, clean, clean_parameters, [&](const char* name, const auto& x, const auto& y) {
    const double bound = 4096 * static_cast<double>(std::numeric_limits<T>::epsilon()) * (1 + largest(y.view()));
    compare_views(table, name, x, y, bound);
  });
  for_each_gradient(also, also_parameters, expected, expected_parameters,
                    [&](const char* name, const auto& x, const auto& y) {
                      compare_views(table, (std::string(name) + " of the reference").c_str(), x, y, 0);
                    });
}

/// The loss whose gradients Upstream holds.
inline double loss(const PolicySet<double>& set, const Inputs<double>& in, const Upstream<double>& up,
                   bool evidence) {
  const Shape& s = set.shape();
  Tensor<double> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> observed;
  set.apply([&](auto&&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies...,
                  ab::observe(observed, ab::QueryWeights::of(up.u)));
  });
  double sum = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      for (Index i = 0; i < s.queries; ++i) {
        for (Index c = 0; c < s.value_dim; ++c) sum += out(b, h, i, c) * up.out(b, h, i, c);
        const auto at = static_cast<std::size_t>(i);
        if (!evidence || !std::isfinite(observed.lse(b, h)[at])) continue;
        sum += observed.lse(b, h)[at] * up.lse(b, h, 0, i) + observed.entropy(b, h)[at] * up.entropy(0, h, 0, i);
      }
      if (evidence)
        for (Index j = 0; j < s.keys; ++j)
          sum += observed.mass(b, h)[static_cast<std::size_t>(j)] * up.mass(b, 0, 0, j);
    }
  return sum;
}

template <class F>
void for_each_pair(const Tensor<double>& a, const Tensor<double>& b, F f) {
  const auto& x = a.view();
  for (Index i = 0; i < x.batch; ++i)
    for (Index h = 0; h < x.heads; ++h)
      for (Index j = 0; j < x.length; ++j)
        for (Index c = 0; c < x.dim; ++c) f(a(i, h, j, c), b(i, h, j, c));
}

/// The derivative of the kernel's own forward pass along a random direction of all inputs and parameters at once,
/// by a central difference, against what the gradients say of it.
inline void check_direction(Table& table, PolicySet<double>& set, const Inputs<double>& in,
                            const Upstream<double>& up, bool evidence, Random& random) {
  const Shape& s = set.shape();
  Tensor<double> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> observed;
  Gradients<double> got(s), along(s);
  Targets<double> parameters(set), parameters_along(set);
  set.apply([&](auto&&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies..., ab::observe(observed));
  });
  set.apply_with(parameters, [&](auto&&... policies) {
    const ab::evidence::LseGradient lse(up.lse.view());
    const ab::evidence::EntropyGradient entropy(up.entropy.view());
    const ab::evidence::MassGradient mass(up.mass.view(), ab::QueryWeights::of(up.u));
    if (evidence)
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), observed, up.out.view(),
                             got.q.view(), got.k.view(), got.v.view(), mass, policies..., lse, entropy);
    else
      ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), observed, up.out.view(),
                             got.q.view(), got.k.view(), got.v.view(), policies...);
  });
  for (const auto* x : {&along.q, &along.k, &along.v, &parameters_along.scale, &parameters_along.softcap,
                        &parameters_along.bias, &parameters_along.key_bias, &parameters_along.sink})
    x->fill(random, Family::uniform);
  // A slope moves scores by as much as the distances.
  parameters_along.alibi.fill(random, Family::uniform, 1 / static_cast<double>(s.queries + s.keys));

  double expected = 0, size = 0;
  auto add = [&](double a, double b) { expected += a * b, size += std::fabs(a * b); };
  for_each_pair(got.q, along.q, add), for_each_pair(got.k, along.k, add), for_each_pair(got.v, along.v, add);
  for_each_pair(parameters.scale, parameters_along.scale, add);
  for_each_pair(parameters.softcap, parameters_along.softcap, add);
  for_each_pair(parameters.alibi, parameters_along.alibi, add),
      for_each_pair(parameters.bias, parameters_along.bias, add);
  for_each_pair(parameters.key_bias, parameters_along.key_bias, add);
  for_each_pair(parameters.sink, parameters_along.sink, add);

  constexpr double h = 1e-5;
  auto move = [&](double step) {
    auto by = [step](double& x, double d) { x += step * d; };
    for_each_pair(in.q, along.q, by), for_each_pair(in.k, along.k, by), for_each_pair(in.v, along.v, by);
    set.move(parameters_along, step);
  };
  move(h);
  const double after = loss(set, in, up, evidence);
  move(-2 * h);
  const double before = loss(set, in, up, evidence);
  move(h);
  table.column("along a direction").compare(expected, (after - before) / (2 * h), 1e-7 + 1e-6 * size, 0);
}

}  // namespace support
