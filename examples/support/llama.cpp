#include "llama.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

#include "gguf.hpp"
#include "progress.hpp"

namespace example {
namespace ab = attention_balancer;
namespace {

// Each row to a mean square of 1, then scaled.
void rms_norm(const Matrix& x, const Eigen::RowVectorXf& weight, float epsilon, Matrix& y) {
  y.resize(x.rows(), x.cols());
  for (Eigen::Index i = 0; i < x.rows(); ++i)
    y.row(i) =
        x.row(i).cwiseProduct(weight) / std::sqrt(x.row(i).squaredNorm() / static_cast<float>(x.cols()) + epsilon);
}

LlamaShape shape_of(const Gguf& file) {
  if (const auto& architecture = file.text("general.architecture"); architecture != "llama")
    throw FileError("the model is a " + architecture + ", but must be a llama");
  const auto size = [&](const std::string& key) {
    const auto value = file.whole("llama." + key);
    if (value < 1 || value > 1'000'000)
      throw FileError("\"llama." + key + "\" is " + std::to_string(value) + ", but must be in [1, 1000000]");
    return static_cast<Eigen::Index>(value);
  };
  LlamaShape s;
  s.layers = size("block_count");
  s.width = size("embedding_length");
  s.hidden = size("feed_forward_length");
  s.heads = size("attention.head_count");
  s.kv_heads = size("attention.head_count_kv");
  s.head_dim = size("rope.dimension_count");
  s.vocabulary = static_cast<Eigen::Index>(file.texts("tokenizer.ggml.tokens").size());
  s.context = size("context_length");
  s.rotary_base = file.real("llama.rope.freq_base");
  s.epsilon = static_cast<float>(file.real("llama.attention.layer_norm_rms_epsilon"));
  if (s.heads % s.kv_heads != 0 || s.head_dim % 2 != 0)
    throw FileError("the heads, " + std::to_string(s.heads) + " of " + std::to_string(s.head_dim) +
                    " features, do not fit their " + std::to_string(s.kv_heads) + " key heads or have no pairs");
  return s;
}

}  // namespace

Llama::Llama(Gguf& file) : shape(shape_of(file)) {
  const auto& s = shape;
  file.append("token_embd.weight", s.vocabulary, s.width, words);
  output_norm = row_of(file.floats("output_norm.weight", s.width));
  if (file.entries().contains("output.weight"))
    throw FileError("the model has an output matrix of its own; this reader knows those that share the embedding");
  for (Eigen::Index index = 0; index < s.layers; ++index) {
    const std::string at = "blk." + std::to_string(index) + ".";
    Layer layer;
    layer.attention_norm = row_of(file.floats(at + "attn_norm.weight", s.width));
    layer.feed_forward_norm = row_of(file.floats(at + "ffn_norm.weight", s.width));
    file.append(at + "attn_q.weight", s.heads * s.head_dim, s.width, layer.qkv);
    file.append(at + "attn_k.weight", s.kv_heads * s.head_dim, s.width, layer.qkv);
    file.append(at + "attn_v.weight", s.kv_heads * s.head_dim, s.width, layer.qkv);
    file.append(at + "attn_output.weight", s.width, s.heads * s.head_dim, layer.output);
    file.append(at + "ffn_gate.weight", s.hidden, s.width, layer.gate_up);
    file.append(at + "ffn_up.weight", s.hidden, s.width, layer.gate_up);
    file.append(at + "ffn_down.weight", s.width, s.hidden, layer.down);
    layers.push_back(std::move(layer));
  }
}

void Rotary::set_positions(std::span<const ab::Index> positions) {
  cosine_.resize(static_cast<Eigen::Index>(positions.size()), dim_ / 2);
  sine_.resizeLike(cosine_);
  for (Eigen::Index i = 0; i < dim_ / 2; ++i) {
    const double speed = std::pow(base_, -2.0 * static_cast<double>(i) / static_cast<double>(dim_));
    for (Eigen::Index row = 0; row < cosine_.rows(); ++row) {
      const double angle = speed * static_cast<double>(positions[static_cast<std::size_t>(row)]);
      cosine_(row, i) = static_cast<float>(std::cos(angle));
      sine_(row, i) = static_cast<float>(std::sin(angle));
    }
  }
}

void Rotary::rotate(Matrix& rows, Eigen::Index first, Eigen::Index heads) const {
  for (Eigen::Index row = 0; row < rows.rows(); ++row)
    for (Eigen::Index head = 0; head < heads; ++head) {
      float* x = &rows(row, first + head * dim_);
      for (Eigen::Index i = 0; i < dim_ / 2; ++i) {
        const float even = x[2 * i], odd = x[2 * i + 1], c = cosine_(row, i), s = sine_(row, i);
        x[2 * i] = even * c - odd * s;
        x[2 * i + 1] = even * s + odd * c;
      }
    }
}

template <ab::CacheStorage Stored>
LlamaDecoder<Stored>::LlamaDecoder(const Llama& model, Eigen::Index batch, Eigen::Index capacity, int threads)
    : model_(&model), executor_(executor_of(threads)), rotary_(model.shape.head_dim, model.shape.rotary_base) {
  for (Eigen::Index i = 0; i < model.shape.layers; ++i)
    caches_.emplace_back(batch, model.shape.kv_heads, capacity, model.shape.head_dim);
}

template <ab::CacheStorage Stored>
void LlamaDecoder<Stored>::attend(Eigen::Index layer, const AfterAttention& after_attention) {
  const auto& s = model_->shape;
  Cache& cache = caches_[static_cast<std::size_t>(layer)];
  const Eigen::Index queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim;
  const ab::Index batch = cache.batch(), n = qkv_.rows() / batch;

  // The rows of a sequence follow one another; in a row lie its queries, keys and values.
  const auto view = [&](Matrix& rows, Eigen::Index first, ab::Index heads) {
    const ab::Index row = rows.cols();
    return ab::TensorView<float>{&rows(0, first), batch, heads, n, s.head_dim, n * row, s.head_dim, row, 1};
  };
  rotary_.rotate(qkv_, 0, s.heads + s.kv_heads);
  cache.append(view(qkv_, queries, s.kv_heads), view(qkv_, queries + keys, s.kv_heads));

  context_.resize(qkv_.rows(), queries);
  const auto weights = after_attention ? ab::QueryWeights::all() : ab::QueryWeights::none();
  ab::attention(view(qkv_, 0, s.heads), cache, view(context_, 0, s.heads), ab::mask::Causal{}, executor_,
                workspace_, ab::observe(evidence_, weights));
  if (after_attention) after_attention(layer, evidence_);
}

template <ab::CacheStorage Stored>
const Matrix& LlamaDecoder<Stored>::read(std::span<const int> ids, const AfterAttention& after_attention) {
  const auto& s = model_->shape;
  const Cache& first = caches_.front();
  const ab::Index batch = first.batch(), rows = static_cast<ab::Index>(ids.size()), n = rows / batch;
  if (rows == 0 || rows % batch != 0)
    throw std::invalid_argument("number of token ids is " + std::to_string(rows) +
                                ", but must be a multiple of the " + std::to_string(batch) + " sequences");
  std::vector<ab::Index> positions;
  for (ab::Index b = 0; b < batch; ++b)
    for (ab::Index i = 0; i < n; ++i) positions.push_back(first.seen(b) + i);
  states_.resize(rows, s.width);
  for (ab::Index r = 0; r < rows; ++r) {
    const int id = ids[static_cast<std::size_t>(r)];
    if (id < 0 || id >= s.vocabulary)
      throw std::invalid_argument("token id is " + std::to_string(id) + ", but must be in [0, " +
                                  std::to_string(s.vocabulary) + ")");
    if (positions[static_cast<std::size_t>(r)] >= s.context)
      throw std::invalid_argument("number of tokens is above the model's context, " + std::to_string(s.context));
    model_->words.row(id, {&states_(r, 0), static_cast<std::size_t>(s.width)});
  }
  rotary_.set_positions(positions);

  for (Eigen::Index index = 0; index < s.layers; ++index) {
    const auto& layer = model_->layers[static_cast<std::size_t>(index)];
    rms_norm(states_, layer.attention_norm, s.epsilon, normal_);
    layer.qkv.multiply(normal_, qkv_, executor_);
    const Stopwatch watch;
    attend(index, after_attention);
    attention_seconds_ += watch.seconds();
    layer.output.multiply(context_, residual_, executor_);
    states_ += residual_;

    rms_norm(states_, layer.feed_forward_norm, s.epsilon, normal_);
    layer.gate_up.multiply(normal_, gate_up_, executor_);
    const auto gate = gate_up_.leftCols(s.hidden).array();
    active_ = gate / (1.f + (-gate).exp()) * gate_up_.rightCols(s.hidden).array();
    layer.down.multiply(active_, residual_, executor_);
    states_ += residual_;
  }

  // Only the last token of each sequence has a successor that is asked for.
  residual_.resize(batch, s.width);
  for (ab::Index b = 0; b < batch; ++b) residual_.row(b) = states_.row((b + 1) * n - 1);
  rms_norm(residual_, model_->output_norm, s.epsilon, normal_);
  model_->words.multiply(normal_, logits_, executor_);
  return logits_;
}

template <ab::CacheStorage Stored>
std::size_t LlamaDecoder<Stored>::cache_bytes() const {
  std::size_t bytes = 0;
  for (const Cache& cache : caches_) {
    ab::Index tokens = 0;
    for (ab::Index b = 0; b < cache.batch(); ++b) tokens += cache.length(b);
    bytes += cache.bytes() / static_cast<std::size_t>(cache.batch() * cache.capacity()) *
             static_cast<std::size_t>(tokens);
  }
  return bytes;
}

template class LlamaDecoder<float>;
template class LlamaDecoder<ab::bf16>;
template class LlamaDecoder<ab::f16>;
template class LlamaDecoder<std::int8_t>;

}  // namespace example
