#pragma once
// The text encoder all-MiniLM-L6-v2: BERT with 6 layers of 12 heads, mean pooling, L2 norm. Eigen does the dense
// layers, attention_balancer the attention, straight on the rows of the fused projection.
// Model: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2

#include <filesystem>
#include <functional>
#include <span>
#include <vector>
#include "eigen.hpp"

#include "attention_balancer/attention.hpp"

namespace example {

using ab_index = attention_balancer::Index;

/// Floating point operations, a multiplication and an addition counting two.
struct Work {
  double attention = 0;  // QK^T and PV
  double dense = 0;      // projections and feed-forward

  double total() const noexcept { return attention + dense; }
  Work& operator+=(const Work& other) noexcept {
    attention += other.attention;
    dense += other.dense;
    return *this;
  }
};

class MiniLm {
 public:
  static constexpr int layers = 6;
  static constexpr ab_index heads = 12, width = 384, hidden = 1536, vocabulary = 30522, longest = 512;

  /// What the encoder carries from layer to layer: one row of states per token still in the game, and where in the
  /// sequence it came from. Whoever drops rows drops them from both.
  struct Tokens {
    Matrix states;                    // [n, width]
    std::vector<ab_index> positions;  // [n], ascending
  };

  /// Called after each layer with what it observed; may drop tokens, which the next layers then never see.
  using AfterLayer =
      std::function<void(int layer, const attention_balancer::Evidence<float>& evidence, Tokens& tokens)>;

  struct Encoding {
    Eigen::VectorXf embedding;  // [width], of length 1
    Work work;
  };

  /// Reads model.safetensors in this directory. Throws FileError.
  explicit MiniLm(const std::filesystem::path& directory);

  /// The work of one layer on n tokens.
  static Work layer_work(ab_index n) noexcept;

  /// Encodes token ids, [CLS] and [SEP] included, at most `longest` (std::invalid_argument).
  /// With `after_layer` every layer is observed, its queries weighted by the first n of `query_weights`; all count
  /// alike when there are none. `threads` 0 is all of them, where there is OpenMP.
  Encoding encode(std::span<const int> ids, const AfterLayer& after_layer = {},
                  std::span<const float> query_weights = {}, int threads = 1);

 private:
  // y = x W^T + b
  struct Dense {
    Matrix weight;  // [out, in]
    Eigen::RowVectorXf bias;
  };
  struct Norm {
    Eigen::RowVectorXf weight, bias;
  };
  struct Layer {
    Dense qkv, attention_output, intermediate, output;  // qkv: query, key and value one below the other
    Norm attention_norm, output_norm;
  };

  Matrix words_, positions_;
  Norm embedding_norm_;
  std::vector<Layer> layers_;

  // Scratch that lives from call to call, so that encoding allocates little.
  attention_balancer::Workspace workspace_;
  attention_balancer::Evidence<float> evidence_;
  Matrix qkv_, context_, residual_, activation_;
};

}  // namespace example
