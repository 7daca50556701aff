#include "support/layers.hpp"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "attention_balancer/core/error.hpp"
#include "support/adam.hpp"
#include "support/catch.hpp"
#include "support/classifier.hpp"
#include "support/errors.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using example::Parameter;
using example::Random;
using example::Segments;
using Matrix = example::Rows<double>;

namespace {

Matrix normal(Eigen::Index rows, Eigen::Index columns, unsigned seed) {
  Random random(seed);
  std::normal_distribution<double> draw;
  return Matrix::NullaryExpr(rows, columns, [&] { return draw(random); });
}

/// Each entry of `gradient` against a central difference of `loss` over the entry of `x` that it belongs to.
void check_gradient(const char* what, Matrix& x, const Matrix& gradient, const std::function<double()>& loss) {
  constexpr double h = 1e-5;
  REQUIRE(gradient.rows() == x.rows());
  REQUIRE(gradient.cols() == x.cols());
  double worst = 0;
  for (Eigen::Index i = 0; i < x.size(); ++i) {
    const double value = x.data()[i];
    x.data()[i] = value + h;
    const double above = loss();
    x.data()[i] = value - h;
    const double below = loss();
    x.data()[i] = value;
    const double difference = (above - below) / (2 * h);
    worst = std::max(worst, std::abs(difference - gradient.data()[i]) / (1 + std::abs(difference)));
  }
  INFO(what);
  CHECK(worst < 1e-7);
}

/// A layer with one input: `forward` on x, weighted by fixed numbers, against `backward`.
template <class Forward, class Backward>
void check_layer(Matrix x, const std::vector<Parameter<double>*>& parameters, Forward forward, Backward backward) {
  const Matrix y = forward(x);
  const Matrix c = normal(y.rows(), y.cols(), 99);
  const auto loss = [&] { return forward(x).cwiseProduct(c).sum(); };
  for (auto* p : parameters) p->gradient.setZero();
  const Matrix dx = backward(c);
  std::vector<Matrix> gradients;
  for (const auto* p : parameters) gradients.push_back(p->gradient);
  check_gradient("x", x, dx, loss);
  for (std::size_t i = 0; i < parameters.size(); ++i)
    check_gradient(parameters[i]->name.c_str(), parameters[i]->value, gradients[i], loss);
}

Segments segments_of(std::initializer_list<Eigen::Index> lengths) {
  Segments segments;
  for (const auto length : lengths) segments.add(length);
  return segments;
}

}  // namespace

TEST_CASE("layers: gradients of the dense layers against differences") {
  Random random(1);
  const Matrix x = normal(5, 6, 2);
  example::Linear<double> linear("linear", 6, 4, random);
  linear.bias.value.setRandom();
  check_layer(
      x, {&linear.weight, &linear.bias}, [&](const Matrix& v) { return linear.forward(v); },
      [&](const Matrix& d) { return linear.backward(d); });

  example::LayerNorm<double> norm("norm", 6);
  norm.weight.value = normal(1, 6, 3);
  check_layer(
      x, {&norm.weight, &norm.bias}, [&](const Matrix& v) { return norm.forward(v); },
      [&](const Matrix& d) { return norm.backward(d); });

  example::FeedForward<double> feed("feed", 6, 9, random);
  check_layer(
      x, {&feed.first.weight, &feed.first.bias, &feed.second.weight, &feed.second.bias},
      [&](const Matrix& v) { return feed.forward(v); }, [&](const Matrix& d) { return feed.backward(d); });
}

TEST_CASE("layers: gradients of attention to itself and to a memory, of packed sequences") {
  Random random(1);
  example::MultiHeadAttention<double> attention("attention", 6, 2, random);
  const std::vector<Parameter<double>*> parameters{&attention.query.weight,     &attention.query.bias,
                                                   &attention.key_value.weight, &attention.key_value.bias,
                                                   &attention.output.weight,    &attention.output.bias};
  const auto queries = segments_of({3, 1, 5}), keys = segments_of({2, 4, 1});
  for (const int threads : {1, 3}) {
    attention.threads = threads;
    check_layer(
        normal(9, 6, 2), parameters, [&](const Matrix& v) { return attention.forward(v, queries); },
        [&](const Matrix& d) { return attention.backward(d); });

    Matrix memory = normal(7, 6, 3), dmemory;
    const Matrix x = normal(9, 6, 4);
    check_layer(
        x, parameters, [&](const Matrix& v) { return attention.forward(v, queries, memory, keys); },
        [&](const Matrix& d) { return attention.backward(d, &dmemory); });
    check_layer(
        memory, {}, [&](const Matrix& v) { return attention.forward(x, queries, v, keys); },
        [&](const Matrix& d) { return attention.backward(d, &dmemory), dmemory; });
  }
  CHECK_THROWS_WITH(attention.forward(normal(9, 6, 2), queries, normal(6, 6, 2), segments_of({2, 4})),
                    ContainsSubstring("number of sequences of the memory is 2"));
  CHECK_THROWS_WITH(example::MultiHeadAttention<double>("attention", 6, 4, random),
                    ContainsSubstring("width is 6, but must be a multiple of the heads, 4"));
}

TEST_CASE("layers: gradients of the saliency through its mass and its entropy") {
  Random random(1);
  example::Saliency<double> saliency("saliency", 5, random);
  saliency.query.value = normal(1, 5, 7);
  const auto segments = segments_of({4, 1, 6});
  Matrix x = normal(11, 5, 2);
  const Eigen::VectorXd c = normal(11, 1, 3).col(0);
  const std::vector<double> e{0.7, -0.3, 1.1};
  const auto loss = [&] {
    saliency.forward(x, segments);
    double sum = saliency.mass().dot(c);
    for (std::size_t b = 0; b < e.size(); ++b) sum += e[b] * saliency.entropy()[b];
    return sum;
  };
  (void)loss();
  CHECK(saliency.mass().head(4).sum() == Approx(1));
  CHECK(saliency.mass()[4] == Approx(1));
  const Matrix dx = saliency.backward(c, e);
  const Matrix dquery = saliency.query.gradient;
  check_gradient("x", x, dx, loss);
  check_gradient("query", saliency.query.value, dquery, loss);
}

TEST_CASE("layers: cross-entropy and embedding") {
  Matrix logits = normal(4, 3, 1);
  logits(0, 0) = 900;  // exp of it overflows
  const std::vector<int> labels{2, 0, 1, 1};
  const std::vector<double> weights{0.5, 1, 2, 0};
  const auto result = example::cross_entropy<double>(logits, labels, weights);
  CHECK(result.losses[0] == Approx(900 - logits(0, 2)));
  check_gradient("logits", logits, result.gradient,
                 [&] { return example::cross_entropy<double>(logits, labels, weights).mean; });
  CHECK(example::softmax_rows(logits).rowwise().sum().isOnes());

  for (const int label : {-1, 3})
    CHECK_THROWS_WITH(example::cross_entropy<double>(logits, std::vector<int>{0, 1, label, 2}),
                      ContainsSubstring("label of row 2 is " + std::to_string(label) + ", but must be in [0, 3)"));
  CHECK_THROWS_AS(example::cross_entropy<double>(logits, std::vector<int>{0}), ab::ShapeError);
  CHECK_THROWS_AS(example::cross_entropy<double>(logits, labels, std::vector<double>{1}), ab::ShapeError);

  Random random(1);
  example::Embedding<double> words("words", 4, 3, random, 1);
  const std::vector<int> ids{2, 0, 2};
  CHECK(words.forward(ids).row(2) == words.table.value.row(2));
  const Matrix d = normal(3, 3, 5);
  words.backward(d);
  CHECK(words.table.gradient.row(2).isApprox(d.row(0) + d.row(2)));
  CHECK(words.table.gradient.row(1).isZero());
  for (const int id : {-1, 4})
    CHECK_THROWS_WITH(words.forward(std::vector<int>{0, id}),
                      ContainsSubstring("words: id 1 is " + std::to_string(id) + ", but must be in [0, 4)"));
}

TEST_CASE("layers: gradients of the whole classifier, under a budget too") {
  Random random(3);
  example::Classifier<double> model(
      {.vocabulary = 7, .longest = 6, .classes = 3, .width = 4, .heads = 2, .hidden = 5, .layers = 2}, random);
  example::Sequences data;
  data.ids = {{0, 3, 2, 6, 5, 3}, {0, 4}, {0, 1, 1, 5}};
  data.labels = {2, 0, 1};
  const std::vector<std::size_t> all{0, 1, 2};
  for (const double part : {1.0, 0.5}) {
    const example::TokenBudget budget{example::Keep::shares, part};
    const auto batch = example::make_batch<double>(data, all, budget, random);
    const example::EvidenceLoss evidence{0.7, 0.3};
    // Shares that are far apart, so that a small change does not change what is kept.
    for (auto* p : model.parameters())
      if (p->name == "saliency.query") p->value = 2 * normal(1, 4, 8);
    const auto loss = [&] {
      const auto logits = model.forward(batch, budget);
      return example::cross_entropy<double>(logits, batch.labels).mean +
             model.evidence_loss(batch.labels, evidence);
    };
    const auto logits = model.forward(batch, budget);
    CHECK(model.kept().size() == (part == 1 ? 12u : 9u));
    for (auto* p : model.parameters()) p->gradient.setZero();
    model.backward(example::cross_entropy<double>(logits, batch.labels).gradient, batch.labels, evidence);
    std::vector<Matrix> gradients;
    for (const auto* p : model.parameters()) gradients.push_back(p->gradient);
    for (std::size_t i = 0; i < gradients.size(); ++i)
      check_gradient(model.parameters()[i]->name.c_str(), model.parameters()[i]->value, gradients[i], loss);
  }
  CHECK_THROWS_AS(example::Classifier<float>({.vocabulary = 7, .longest = 6}, random), ab::ShapeError);
  CHECK_THROWS_AS(example::Classifier<float>({.longest = 6, .classes = 2}, random), ab::ShapeError);
}

TEST_CASE("layers: Adam") {
  Parameter<double> p("p", 1, 2);
  p.value << 1, -2;
  example::Adam<double> adam({&p},
                             {.rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 0, .decay = 0.5, .clip = 0});
  p.gradient << 3, -1;
  adam.step();
  // The first step is the rate in the direction of the sign, after the decay of rate * decay.
  CHECK(p.value(0) == Approx(1 * 0.95 - 0.1));
  CHECK(p.value(1) == Approx(-2 * 0.95 + 0.1));
  CHECK(p.gradient.isZero());
  const double before = p.value(0);
  p.gradient << 1, -1;
  adam.step(0.5);
  const double mean = (0.9 * 0.1 * 3 + 0.1 * 1) / (1 - 0.81), square = (0.99 * 0.01 * 9 + 0.01) / (1 - 0.9801);
  CHECK(p.value(0) == Approx(before * 0.975 - 0.05 * mean / std::sqrt(square)));

  example::Adam<double> clipped({&p}, {.clip = 1});
  p.gradient << 30, 40;
  clipped.step();
  CHECK(clipped.means()[0](0) == Approx(0.1 * 0.6));

  const Matrix kept = p.value;
  p.gradient << 1, std::nan("");
  CHECK_THROWS_AS(adam.step(), example::TrainingError);
  CHECK(p.value == kept);
}
