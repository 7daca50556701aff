#pragma once
// A small transformer that classifies sequences under a token budget.
//
//   embed -> saliency -> ResourceBalancer -> keep as many tokens as the budget says -> layers -> pool -> classes
//
// One learned query looks at all tokens. The attention that they receive from it becomes their shares of the
// budget, the tokens with the largest shares go through the layers, and their shares weight them in the mean that
// is classified. A token that was dropped gives no gradient, so that the saliency would not learn what it should
// have kept: a loss on the evidence does that. The mean of all embeddings by their weights, before any token is
// dropped, must tell the class as well (the guide), and the entropy of the weights must be low.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention_layer.hpp"
#include "sequences.hpp"

namespace example {

struct ClassifierShape {
  Eigen::Index vocabulary = 0;  // words, or
  Eigen::Index features = 0;    // features of a token
  Eigen::Index longest = 0;     // positions
  Eigen::Index classes = 0;
  Eigen::Index width = 64, heads = 4, hidden = 128, layers = 1;

  bool operator==(const ClassifierShape&) const = default;
};

/// The loss on the evidence: weights of its two terms.
struct EvidenceLoss {
  double guide = 0;    // of the cross-entropy of the weighted mean of all embeddings
  double entropy = 0;  // of the mean entropy of the weights, in nats
};

/// Text for a checkpoint, and for a message that compares two.
std::string describe(const ClassifierShape& shape);

template <class T>
class Classifier {
 public:
  /// Random-normal weights. Throws ab::ShapeError for sizes that make no sense.
  Classifier(const ClassifierShape& shape, Random& random);

  /// Logits [sequences, classes]. The rule `shares` drops tokens here; make_batch has done it for the others.
  Rows<T> forward(const Batch<T>& batch, const TokenBudget& budget);

  /// Adds to the gradients of the parameters: of a loss with this gradient, and of the loss on the evidence.
  void backward(const Rows<T>& dlogits, std::span<const int> labels = {}, const EvidenceLoss& evidence = {});

  /// The loss on the evidence of the last forward pass.
  T evidence_loss(std::span<const int> labels, const EvidenceLoss& evidence);

  std::vector<Parameter<T>*> parameters();
  const ClassifierShape& shape() const noexcept { return shape_; }
  void set_threads(int threads);

  /// Of the last forward pass: rows that went through the layers, in which row of the batch each was; weight of
  /// each row of the batch; mean entropy of the weights.
  const std::vector<Eigen::Index>& kept() const noexcept { return kept_; }
  const Eigen::Matrix<T, Eigen::Dynamic, 1>& mass() const noexcept { return saliency_.mass(); }
  double mean_entropy() const;

 private:
  struct Layer {
    LayerNorm<T> attention_norm;
    MultiHeadAttention<T> attention;
    LayerNorm<T> feed_norm;
    FeedForward<T> feed;
  };

  void choose(const Segments& segments, const TokenBudget& budget);
  Rows<T> guide_mean() const;

  ClassifierShape shape_;
  std::optional<Embedding<T>> words_;
  std::optional<Linear<T>> features_;
  Embedding<T> positions_;
  LayerNorm<T> saliency_norm_;
  Saliency<T> saliency_;
  std::vector<Layer> layers_;
  LayerNorm<T> last_norm_, pooled_norm_;
  Linear<T> head_, guide_;

  // What backward needs from forward.
  Segments segments_, kept_segments_;
  std::vector<Eigen::Index> kept_;
  Rows<T> states_;  // [kept rows, width] normalised, before the pooling
};

}  // namespace example
