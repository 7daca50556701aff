#include "minilm.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "executor.hpp"
#include "safetensors.hpp"

namespace example {
namespace ab = attention_balancer;
namespace {

using Rows = Eigen::Index;

Matrix matrix(Safetensors& file, const std::string& name, ab::Index rows, ab::Index columns) {
  const auto values = file.floats(name, {static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns)});
  return Eigen::Map<const Matrix>(values.data(), rows, columns);
}

Eigen::RowVectorXf vector(Safetensors& file, const std::string& name, ab::Index size) {
  return row_of(file.floats(name, {static_cast<std::uint64_t>(size)}));
}

template <class Norm>
Norm norm(Safetensors& file, const std::string& name) {
  return {vector(file, name + ".weight", MiniLm::width), vector(file, name + ".bias", MiniLm::width)};
}

template <class Dense>
Dense dense(Safetensors& file, const std::string& name, ab::Index out, ab::Index in) {
  return {matrix(file, name + ".weight", out, in), vector(file, name + ".bias", out)};
}

// Each row to mean 0 and variance 1, then scaled and shifted.
template <class Norm>
void normalize(Matrix& x, const Norm& norm) {
  constexpr float eps = 1e-12f;
  for (Rows i = 0; i < x.rows(); ++i) {
    auto row = x.row(i).array();
    row -= row.mean();
    row *= 1.f / std::sqrt(row.square().mean() + eps);
    row = row * norm.weight.array() + norm.bias.array();
  }
}

template <class Dense>
void apply(const Matrix& x, const Dense& layer, Matrix& y) {
  y.noalias() = x * layer.weight.transpose();
  y.rowwise() += layer.bias;
}

// The exact GELU, x Phi(x), not its tanh approximation. Row by row: an expression of a row stays in the cache.
void gelu(Matrix& x) {
  constexpr float half_sqrt2 = 0.70710678f;
  for (Rows i = 0; i < x.rows(); ++i) {
    auto row = x.row(i).array();
    row = 0.5f * row * (1.f + (row * half_sqrt2).erf());
  }
}

}  // namespace

MiniLm::MiniLm(const std::filesystem::path& directory) {
  Safetensors file(directory / "model.safetensors");
  words_ = matrix(file, "embeddings.word_embeddings.weight", vocabulary, width);
  positions_ = matrix(file, "embeddings.position_embeddings.weight", longest, width);
  // There is one kind of token here, so its vector can be added to every position once.
  positions_.rowwise() +=
      Eigen::RowVectorXf(matrix(file, "embeddings.token_type_embeddings.weight", 2, width).row(0));
  embedding_norm_ = norm<Norm>(file, "embeddings.LayerNorm");

  for (int index = 0; index < layers; ++index) {
    const std::string at = "encoder.layer." + std::to_string(index) + ".";
    Layer layer;
    layer.qkv = {Matrix(3 * width, width), Eigen::RowVectorXf(3 * width)};
    Rows part = 0;
    for (const char* name : {"query", "key", "value"}) {
      const auto one = dense<Dense>(file, at + "attention.self." + name, width, width);
      layer.qkv.weight.middleRows(part * width, width) = one.weight;
      layer.qkv.bias.segment(part * width, width) = one.bias;
      ++part;
    }
    layer.attention_output = dense<Dense>(file, at + "attention.output.dense", width, width);
    layer.attention_norm = norm<Norm>(file, at + "attention.output.LayerNorm");
    layer.intermediate = dense<Dense>(file, at + "intermediate.dense", hidden, width);
    layer.output = dense<Dense>(file, at + "output.dense", width, hidden);
    layer.output_norm = norm<Norm>(file, at + "output.LayerNorm");
    layers_.push_back(std::move(layer));
  }
}

Work MiniLm::layer_work(ab_index n) noexcept {
  const auto tokens = static_cast<double>(n), features = static_cast<double>(width);
  return {.attention = 4 * tokens * tokens * features,
          .dense = 2 * tokens * features * (4 * features + 2 * static_cast<double>(hidden))};
}

MiniLm::Encoding MiniLm::encode(std::span<const int> ids, const AfterLayer& after_layer,
                                std::span<const float> query_weights, int threads) {
  const auto length = static_cast<ab_index>(ids.size());
  if (length < 1 || length > longest)
    throw std::invalid_argument("number of token ids is " + std::to_string(length) + ", but must be in [1, " +
                                std::to_string(longest) + "]");
  for (const int id : ids)
    if (id < 0 || id >= vocabulary)
      throw std::invalid_argument("token id is " + std::to_string(id) + ", but must be in [0, " +
                                  std::to_string(vocabulary) + ")");
  if (!query_weights.empty() && query_weights.size() < ids.size())
    throw std::invalid_argument("number of query weights is " + std::to_string(query_weights.size()) +
                                ", but must be at least the number of tokens, " + std::to_string(length));

  const Executor executor = executor_of(threads);
  Eigen::setNbThreads(threads);  // without OpenMP it has one
  Encoding result;
  Tokens tokens;
  tokens.states.resize(length, width);
  tokens.positions.resize(ids.size());
  std::iota(tokens.positions.begin(), tokens.positions.end(), ab_index{0});
  for (Rows i = 0; i < length; ++i)
    tokens.states.row(i) = words_.row(ids[static_cast<std::size_t>(i)]) + positions_.row(i);
  normalize(tokens.states, embedding_norm_);

  for (int index = 0; index < layers; ++index) {
    const Layer& layer = layers_[static_cast<std::size_t>(index)];
    Matrix& x = tokens.states;  // [n, width]
    const ab_index n = x.rows();
    result.work += layer_work(n);

    apply(x, layer.qkv, qkv_);  // [n, 3 * width]: q, k and v of a token side by side, heads inside each
    context_.resize(n, width);
    const auto q = ab::tokens_in_rows(qkv_.leftCols(width), heads);
    const auto k = ab::tokens_in_rows(qkv_.middleCols(width, width), heads);
    const auto v = ab::tokens_in_rows(qkv_.rightCols(width), heads);
    const auto out = ab::tokens_in_rows(context_, heads);
    if (after_layer) {
      const auto weights = query_weights.empty()
                               ? ab::QueryWeights::all()
                               : ab::QueryWeights::of(query_weights.first(static_cast<std::size_t>(n)));
      ab::attention(q, k, v, out, executor, workspace_, ab::observe(evidence_, weights));
    } else {
      ab::attention(q, k, v, out, executor, workspace_);
    }

    apply(context_, layer.attention_output, residual_);
    x += residual_;
    normalize(x, layer.attention_norm);
    apply(x, layer.intermediate, activation_);  // [n, hidden]
    gelu(activation_);
    apply(activation_, layer.output, residual_);
    x += residual_;
    normalize(x, layer.output_norm);

    if (after_layer) after_layer(index, evidence_, tokens);
  }
  result.embedding = tokens.states.colwise().mean().transpose();
  result.embedding.normalize();
  return result;
}

}  // namespace example
