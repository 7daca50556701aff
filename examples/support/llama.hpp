#pragma once
// A language model of the Llama family: layers of attention with grouped queries and a gated feed-forward part, RMS
// norms before both, rotary positions (Touvron et al. 2023, 2302.13971). What it needs to know beside its weights is in
// its GGUF file; SmolLM2-135M-Instruct is the one that the example fetches.

#include <filesystem>
#include <functional>
#include <span>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "packed_matrix.hpp"

namespace example {

struct LlamaShape {
  Eigen::Index layers = 0, width = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  Eigen::Index context = 0;  // tokens that it was trained to look back
  double rotary_base = 0;
  float epsilon = 0;
};

class Gguf;

/// The weights. Any number of decoders may share them.
struct Llama {
  struct Layer {
    Eigen::RowVectorXf attention_norm, feed_forward_norm;
    PackedMatrix qkv, output, gate_up, down;  // qkv, gate_up: one below the other
  };

  LlamaShape shape;
  PackedMatrix words;  // embedding and, transposed, the last product
  Eigen::RowVectorXf output_norm;
  std::vector<Layer> layers;

  /// Throws FileError if the file holds another model, or none.
  explicit Llama(Gguf& file);
};

/// Turns pairs of neighbours, (2i, 2i + 1) of each head of `dim` features, by position * base^(-2i / dim): the scores
/// of rotated queries and keys then depend on the distance of their positions only (Su et al. 2021, 2104.09864).
class Rotary {
 public:
  Rotary(Eigen::Index dim, double base) : dim_(dim), base_(base) {}

  /// The positions of the rows to come.
  void set_positions(std::span<const attention_balancer::Index> positions);

  /// Rotates `heads` heads that lie side by side in each row, from column `first` on.
  void rotate(Matrix& rows, Eigen::Index first, Eigen::Index heads) const;

 private:
  Eigen::Index dim_;
  double base_;
  Matrix cosine_, sine_;  // [rows, dim / 2]
};

/// Called after the attention of each layer with what it observed.
using AfterAttention =
    std::function<void(Eigen::Index layer, const attention_balancer::Evidence<float>& evidence)>;

/// Several sequences in the course of being read or written, with their keys and values in one KvCache a layer, stored
/// as Stored. Every layer has seen the same tokens, but may have kept others.
template <attention_balancer::CacheStorage Stored>
class LlamaDecoder {
 public:
  using Cache = attention_balancer::KvCache<Stored>;

  /// Room for `capacity` tokens of `batch` sequences. `threads` 0 is all of them, where there is OpenMP.
  LlamaDecoder(const Llama& model, Eigen::Index batch, Eigen::Index capacity, int threads = 0);

  /// Reads n tokens of every sequence, ids [batch, n], and returns the logits of what comes next, [batch, vocabulary].
  /// Many tokens are a prompt, one is a step of decoding. Throws std::invalid_argument for an id that is out of range,
  /// for more tokens than the model's context, attention_balancer::BudgetError when the caches are full.
  const Matrix& read(std::span<const int> ids, const AfterAttention& after_attention = {});

  /// One a layer. Between two calls of `read` tokens may be evicted.
  std::vector<Cache>& caches() noexcept { return caches_; }
  const std::vector<Cache>& caches() const noexcept { return caches_; }

  /// Bytes of the keys and values that are held, in all layers; more may be reserved.
  std::size_t cache_bytes() const;

  double attention_seconds() const noexcept { return attention_seconds_; }

 private:
  void attend(Eigen::Index layer, const AfterAttention& after_attention);

  const Llama* model_;
  Executor executor_;
  std::vector<Cache> caches_;
  double attention_seconds_ = 0;

  // Scratch that lives from call to call.
  attention_balancer::Workspace workspace_;
  attention_balancer::Evidence<float> evidence_;
  Rotary rotary_;
  Matrix states_, normal_, qkv_, context_, gate_up_, active_, residual_, logits_;
};

}  // namespace example
