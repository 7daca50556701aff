// The gradients through sparse normalisers: through the evidence too, by finite differences; and the same bits whoever
// computes them.

#include "support/anybody.hpp"
#include "support/backward.hpp"

namespace {

using support::Anybody;
using support::Index;
using support::Layout;
using support::Tensor;

/// Everything that a call has besides queries, keys and values. Sinks belong to top-k only.
template <class T>
struct Parameters {
  Tensor<T> key_bias, sinks;
  Parameters(const support::Shape& s, support::Random& random)
      : key_bias(Layout::bhsd, 1, s.heads, 1, s.keys), sinks(Layout::bhsd, 1, 1, 1, s.heads) {
    key_bias.fill(random, support::Family::uniform), sinks.fill(random, support::Family::uniform);
  }
};

/// call(policies...), with targets for their gradients.
template <class T, class N, class Call>
void with_policies(const Parameters<T>& given, const Parameters<T>& targets, const N& normalizer, Call call) {
  const auto softcap = ab::score::Softcap<T>{T(3)};
  const auto key_bias = ab::gradient(ab::score::KeyBias<T>(given.key_bias.view()), targets.key_bias.view());
  if constexpr (std::is_same_v<N, ab::normalize::TopK>) {
    const auto &x = given.sinks.view(), &y = targets.sinks.view();
    const auto size = static_cast<std::size_t>(x.dim);
    call(normalizer, softcap, key_bias, ab::mask::Causal{},
         ab::gradient(ab::normalize::Sink(std::span<const T>(x.data, size)), std::span<T>(y.data, size)));
  } else {
    call(normalizer, softcap, key_bias, ab::mask::Causal{});
  }
}

template <class T>
struct Result {
  support::Gradients<T> gradients;
  Parameters<T> parameters;
};

template <class T, class N>
void run(Result<T>& to, const support::Inputs<T>& in, const support::Upstream<T>& up, const Parameters<T>& given,
         const N& normalizer, const support::Shape& s, const Anybody& executor) {
  Tensor<T> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<T> evidence;
  with_policies(given, to.parameters, normalizer, [&](const auto&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies...,
                  ab::observe(evidence, ab::QueryWeights::none()));
    ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, up.out.view(),
                           to.gradients.q.view(), to.gradients.k.view(), to.gradients.v.view(), policies...,
                           ab::evidence::LseGradient(up.lse.view()),
                           ab::evidence::EntropyGradient(up.entropy.view()),
                           ab::evidence::MassGradient(up.mass.view(), ab::QueryWeights::of(up.u)), executor);
  });
}

template <class N>
double loss(const support::Inputs<double>& in, const support::Upstream<double>& up, const Parameters<double>& given,
            const N& normalizer, const support::Shape& s) {
  Tensor<double> out(Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  ab::Evidence<double> evidence;
  with_policies(given, given, normalizer, [&](const auto&... policies) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policies...,
                  ab::observe(evidence, ab::QueryWeights::of(up.u)));
  });
  double sum = 0;
  support::for_each_pair(out, up.out, [&](double a, double b) { sum += a * b; });
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(s.queries); ++i)
        sum += evidence.lse(b, h)[i] * up.lse(b, h, 0, static_cast<Index>(i)) +
               evidence.entropy(b, h)[i] * up.entropy(0, h, 0, static_cast<Index>(i));
      for (std::size_t j = 0; j < static_cast<std::size_t>(s.keys); ++j)
        sum += evidence.mass(b, h)[j] * up.mass(b, 0, 0, static_cast<Index>(j));
    }
  return sum;
}

/// Along random directions of all inputs and parameters at once, and of each alone.
template <class N>
void check_directions(support::Table& table, const std::string& name, const N& normalizer) {
  const support::Shape s{2, 4, 2, 9, 14, 5, 3};
  support::Random random(71);
  const support::Inputs<double> in(s, random, support::Family::uniform, 2);
  const support::Upstream<double> up(s, random, true);
  const Parameters<double> given(s, random);
  Parameters<double> targets(s, random);
  Result<double> result{support::Gradients<double>(s), std::move(targets)};
  run(result, in, up, given, normalizer, s, Anybody{});
  const std::pair<const Tensor<double>*, const Tensor<double>*> all[] = {
      {&in.q, &result.gradients.q},
      {&in.k, &result.gradients.k},
      {&in.v, &result.gradients.v},
      {&given.key_bias, &result.parameters.key_bias},
      {&given.sinks, &result.parameters.sinks}};
  const std::size_t parts = std::is_same_v<N, ab::normalize::TopK> ? 5 : 4;
  for (std::size_t which = 0; which <= parts; ++which) {
    table.begin(name + ", direction " + std::to_string(which));
    double expected = 0, size = 0;
    std::vector<std::vector<double>> directions;
    for (std::size_t i = 0; i < parts; ++i) {
      auto& direction = directions.emplace_back();
      support::for_each_pair(*all[i].first, *all[i].second, [&](double, double g) {
        const double d = which == i || which == parts ? random.uniform(-1, 1) : 0;
        direction.push_back(d), expected += g * d, size += std::fabs(g * d);
      });
    }
    auto at = [&](double step) {
      for (std::size_t i = 0; i < parts; ++i) {
        auto d = directions[i].begin();
        support::for_each_pair(*all[i].first, *all[i].first, [&](double& x, double&) { x += step * *d++; });
      }
      const double value = loss(in, up, given, normalizer, s);
      for (std::size_t i = 0; i < parts; ++i) {
        auto d = directions[i].begin();
        support::for_each_pair(*all[i].first, *all[i].first, [&](double& x, double&) { x -= step * *d++; });
      }
      return value;
    };
    constexpr double h = 1e-6;
    table.column("along a direction").compare((at(h) - at(-h)) / (2 * h), expected, 1e-7 + 1e-6 * size, 0);
  }
}

template <class T, class N>
void check_executors(support::Table& table, const std::string& name, const N& normalizer) {
  support::Random random(72);
  for (const support::Shape& s : {support::Shape{1, 1, 1, 400, 60, 4, 4}, {3, 4, 2, 70, 90, 8, 5}}) {
    table.begin(name + ' ' + s.text());
    const support::Inputs<T> in(s, random, support::Family::uniform, 2);
    const support::Upstream<T> up(s, random, true);
    const Parameters<T> given(s, random);
    auto with = [&](const Anybody& executor) {
      support::Random same(73);
      Result<T> result{support::Gradients<T>(s), Parameters<T>(s, same)};
      run(result, in, up, given, normalizer, s, executor);
      return result;
    };
    const auto once = with({});
    for (const Anybody& other :
         {Anybody{Anybody::backwards, 2}, {Anybody::backwards, 50}, {Anybody::threads, 3}, {Anybody::threads, 8}}) {
      const auto again = with(other);
      const std::string text = ", pieces " + std::to_string(other.pieces);
      auto same = [&](const char* what, const Tensor<T>& a, const Tensor<T>& b) {
        table.expect(support::same_bits(a.view(), b.view()), what + text);
      };
      same("dq", again.gradients.q, once.gradients.q), same("dk", again.gradients.k, once.gradients.k);
      same("dv", again.gradients.v, once.gradients.v);
      same("dkey_bias", again.parameters.key_bias, once.parameters.key_bias);
      same("dsinks", again.parameters.sinks, once.parameters.sinks);
    }
  }
}

}  // namespace

TEST_CASE("gradients through sparse normalisers and their evidence are what differences say",
          "[softmax][sparse][backward]") {
  support::Table table;
  check_directions(table, "sparsemax", ab::normalize::Sparsemax{});
  check_directions(table, "entmax15", ab::normalize::Entmax15{});
  for (const Index k : {1, 3, 100}) check_directions(table, "top-k", ab::normalize::TopK{k});
  table.report();
}

TEST_CASE("gradients through sparse normalisers have the same bits for any executor",
          "[softmax][sparse][backward]") {
  support::Table table;
  check_executors<float>(table, "sparsemax", ab::normalize::Sparsemax{});
  check_executors<double>(table, "entmax15", ab::normalize::Entmax15{});
  check_executors<float>(table, "top-k", ab::normalize::TopK{7});
  table.report();
}

TEST_CASE("a score of minus infinity is masked in a row that is not a number too", "[softmax][sparse][backward]") {
  const std::vector<float> q{HUGE_VALF, 1}, k{1, -1, 2, -2, -1}, v{1, 2, 3, 4, 5}, dout{1, 1};
  std::vector<float> out(2), dq(2), dk(5), dv(5);
  auto view = [](auto& x) { return ab::bhsd(x.data(), 1, 1, static_cast<Index>(x.size()), 1); };
  ab::Evidence<float> evidence;
  ab::attention(view(q), view(k), view(v), view(out), ab::normalize::TopK{1}, ab::observe(evidence));
  ab::attention_backward(view(q), view(k), view(v), view(out), evidence, view(dout), view(dq), view(dk), view(dv),
                         ab::normalize::TopK{1});
  CHECK((std::isnan(dq[0]) && dq[1] == 0));
  for (const std::size_t j : {0u, 2u}) CHECK((std::isnan(dk[j]) && std::isnan(dv[j])));
  for (const std::size_t j : {1u, 3u, 4u}) CHECK((dk[j] == 0 && dv[j] == 0));
}
