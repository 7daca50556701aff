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

/// Called after the attention of each layer with what it observed of each sequence.
using AfterAttention =
    std::function<void(Eigen::Index layer, std::span<const attention_balancer::Evidence<float>> of_each)>;

/// The id of the largest number in a row of logits [., vocabulary].
int likeliest(const Matrix& logits, Eigen::Index row);

/// One cache a layer for `batch` sequences. `room`: the capacity of a KvCache, pages and page size of a PagedKvCache.
template <class Cache, class... Room>
std::vector<Cache> caches_of(const LlamaShape& shape, Eigen::Index batch, Room... room) {
  std::vector<Cache> caches;
  for (Eigen::Index i = 0; i < shape.layers; ++i)
    caches.emplace_back(batch, shape.kv_heads, room..., shape.head_dim);
  return caches;
}

/// Several sequences in the course of being read or written, with their keys and values in one cache a layer. Every
/// layer has seen the same tokens, but may have kept others.
template <class Cache>
class LlamaDecoder {
 public:
  using Index = attention_balancer::Index;

  /// `caches`: one a layer. `threads` 0 is all of them, where there is OpenMP.
  LlamaDecoder(const Llama& model, std::vector<Cache> caches, int threads = 0);

  /// Reads tokens of every sequence, as many as each has now, one sequence after the other: those of sequence s are
  /// [offsets[s], offsets[s + 1]) of the ids. Many tokens are a piece of a prompt, one is a step of decoding, and none
  /// leaves the sequence as it was. Returns the logits of what comes after each token in `asked`, indices into the ids:
  /// [asked, vocabulary].
  ///
  /// The logits of a sequence are those that it has alone, bit by bit, where the model's widths are multiples of 16:
  /// rows of whole cache lines are all added up in the same order.
  ///
  /// Throws std::invalid_argument for offsets that do not fit, an id or an index that is out of range, for more tokens
  /// than the model's context, attention_balancer::BudgetError when the caches are full, and has read nothing then.
  const Matrix& read(std::span<const int> ids, std::span<const Index> offsets, std::span<const Index> asked,
                     const AfterAttention& after_attention = {});

  /// The same with as many tokens of each, ids [batch, n]: logits of what comes after the last, [batch, vocabulary].
  const Matrix& read(std::span<const int> ids, const AfterAttention& after_attention = {});

  /// One a layer. Between two calls of `read` tokens may be evicted.
  std::vector<Cache>& caches() noexcept { return caches_; }
  const std::vector<Cache>& caches() const noexcept { return caches_; }

  /// Bytes of the keys and values that are held, in all layers; more may be reserved.
  std::size_t cache_bytes() const;

  double attention_seconds() const noexcept { return attention_seconds_; }

 private:
  void begin(std::span<const int> ids, std::span<const Index> offsets, std::span<const Index> asked);
  void attend(Eigen::Index layer, std::span<const Index> offsets, const AfterAttention& after_attention);

  const Llama* model_;
  Executor executor_;
  std::vector<Cache> caches_;
  double attention_seconds_ = 0;

  // Scratch that lives from call to call.
  attention_balancer::Workspace workspace_;
  std::vector<attention_balancer::Evidence<float>> evidence_;  // [batch]
  Rotary rotary_;
  Matrix states_, normal_, qkv_, context_, gate_up_, active_, residual_, logits_;
};

}  // namespace example
