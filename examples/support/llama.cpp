#include "llama.hpp"

#include <algorithm>
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

int likeliest(const Matrix& logits, Eigen::Index row) {
  Eigen::Index best = 0;
  logits.row(row).maxCoeff(&best);
  return static_cast<int>(best);
}

template <class Cache>
LlamaDecoder<Cache>::LlamaDecoder(const Llama& model, std::vector<Cache> caches, int threads)
    : model_(&model),
      executor_(executor_of(threads)),
      caches_(std::move(caches)),
      evidence_(static_cast<std::size_t>(caches_.front().batch())),
      rotary_(model.shape.head_dim, model.shape.rotary_base) {}

template <class Cache>
void LlamaDecoder<Cache>::begin(std::span<const int> ids, std::span<const Index> offsets,
                                std::span<const Index> asked) {
  const auto& s = model_->shape;
  const Cache& cache = caches_.front();
  const auto rows = static_cast<Index>(ids.size());
  if (rows == 0) throw std::invalid_argument("number of token ids is 0, but must be at least 1");
  if (offsets.size() != evidence_.size() + 1 || offsets.front() != 0 || offsets.back() != rows ||
      !std::is_sorted(offsets.begin(), offsets.end()))
    throw std::invalid_argument("offsets must ascend from 0 to the number of token ids, " + std::to_string(rows) +
                                ", and be one more than the " + std::to_string(evidence_.size()) + " sequences");
  for (const Index row : asked)
    if (row < 0 || row >= rows)
      throw std::invalid_argument("token asked for is " + std::to_string(row) + ", but must be in [0, " +
                                  std::to_string(rows) + ")");
  for (const int id : ids)
    if (id < 0 || id >= s.vocabulary)
      throw std::invalid_argument("token id is " + std::to_string(id) + ", but must be in [0, " +
                                  std::to_string(s.vocabulary) + ")");
  std::vector<Index> positions;
  for (Index b = 0; b < cache.batch(); ++b) {
    const auto at = static_cast<std::size_t>(b);
    for (Index i = 0; i < offsets[at + 1] - offsets[at]; ++i) positions.push_back(cache.seen(b) + i);
    if (!positions.empty() && positions.back() >= s.context)
      throw std::invalid_argument("number of tokens is above the model's context, " + std::to_string(s.context));
  }
  rotary_.set_positions(positions);
  states_.resize(rows, s.width);
  for (Index r = 0; r < rows; ++r)
    model_->words.row(ids[static_cast<std::size_t>(r)], {&states_(r, 0), static_cast<std::size_t>(s.width)});
}

template <class Cache>
void LlamaDecoder<Cache>::attend(Eigen::Index layer, std::span<const Index> offsets,
                                 const AfterAttention& after_attention) {
  const auto& s = model_->shape;
  Cache& cache = caches_[static_cast<std::size_t>(layer)];
  const Eigen::Index queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim;

  // In a row lie the queries, keys and values of a token.
  const auto view = [](Matrix& rows, Eigen::Index first, Index heads, Index dim) {
    return ab::TensorView<float>{&rows(0, first), 1, heads, rows.rows(), dim, rows.size(), dim, rows.cols(), 1};
  };
  rotary_.rotate(qkv_, 0, s.heads + s.kv_heads);
  cache.append(offsets, view(qkv_, queries, s.kv_heads, s.head_dim),
               view(qkv_, queries + keys, s.kv_heads, s.head_dim));

  context_.resize(qkv_.rows(), queries);
  const auto weights = after_attention ? ab::QueryWeights::all() : ab::QueryWeights::none();
  ab::attention(view(qkv_, 0, s.heads, s.head_dim), cache, view(context_, 0, s.heads, s.head_dim),
                ab::PackedQueries(offsets), ab::mask::Causal{}, executor_, workspace_,
                ab::observe(evidence_, weights));
  if (after_attention) after_attention(layer, evidence_);
}

template <class Cache>
const Matrix& LlamaDecoder<Cache>::read(std::span<const int> ids, std::span<const Index> offsets,
                                        std::span<const Index> asked, const AfterAttention& after_attention) {
  const auto& s = model_->shape;
  begin(ids, offsets, asked);
  for (Eigen::Index index = 0; index < s.layers; ++index) {
    const auto& layer = model_->layers[static_cast<std::size_t>(index)];
    rms_norm(states_, layer.attention_norm, s.epsilon, normal_);
    layer.qkv.multiply(normal_, qkv_, executor_);
    const Stopwatch watch;
    attend(index, offsets, after_attention);
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

  residual_.resize(static_cast<Eigen::Index>(asked.size()), s.width);
  for (std::size_t i = 0; i < asked.size(); ++i)
    residual_.row(static_cast<Eigen::Index>(i)) = states_.row(asked[i]);
  rms_norm(residual_, model_->output_norm, s.epsilon, normal_);
  model_->words.multiply(normal_, logits_, executor_);
  return logits_;
}

template <class Cache>
const Matrix& LlamaDecoder<Cache>::read(std::span<const int> ids, const AfterAttention& after_attention) {
  const Index batch = caches_.front().batch(), rows = static_cast<Index>(ids.size());
  if (rows % batch != 0)
    throw std::invalid_argument("number of token ids is " + std::to_string(rows) +
                                ", but must be a multiple of the " + std::to_string(batch) + " sequences");
  std::vector<Index> offsets{0}, last;
  for (Index b = 1; b <= batch; ++b) {
    offsets.push_back(b * (rows / batch));
    last.push_back(offsets.back() - 1);
  }
  return read(ids, offsets, last, after_attention);
}

template <class Cache>
std::size_t LlamaDecoder<Cache>::cache_bytes() const {
  std::size_t bytes = 0;
  for (const Cache& cache : caches_)
    for (Index b = 0; b < cache.batch(); ++b)
      bytes += static_cast<std::size_t>(cache.length(b)) * cache.token_bytes();
  return bytes;
}

template class LlamaDecoder<ab::KvCache<float>>;
template class LlamaDecoder<ab::KvCache<ab::bf16>>;
template class LlamaDecoder<ab::KvCache<ab::f16>>;
template class LlamaDecoder<ab::KvCache<std::int8_t>>;
template class LlamaDecoder<ab::PagedKvCache<float>>;

}  // namespace example
