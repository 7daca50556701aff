#pragma once
// A text under a token budget: windows, the shares of its tokens, the runs to compare.

#include <array>
#include <functional>
#include <string_view>
#include <vector>

#include "attention_balancer/attention_balancer.hpp"
#include "minilm.hpp"
#include "wordpiece.hpp"

namespace example {

/// A part of the text, in tokens.
struct Window {
  std::size_t first, count;
};

/// Windows of at most `longest` tokens that overlap by half; the last one ends with the text. One if all fits.
std::vector<Window> windows_of(std::size_t tokens, std::size_t longest);

/// How many tokens of a window stay: so many, or a part of them. The two special tokens count.
struct Budget {
  double value = 0.5;
  bool is_count = false;

  /// Reads "0.5", "50%" or "128". Throws ab::InputError.
  static Budget parse(const std::string& text);

  ab_index of(ab_index tokens) const noexcept;
};

struct BudgetOptions {
  Budget budget;
  int from_layer = 2;                 // the first layer that works on the kept tokens only, counted from 0
  int saliency_layer = -1;            // whose attention decides; -1: the one before from_layer
  ab_index window = MiniLm::longest;  // tokens, [CLS] and [SEP] included
  bool from_all_queries = false;      // attention from all tokens, instead of from [CLS]
  attention_balancer::Heads heads = attention_balancer::Heads::max;
  int threads = 1;
};

/// What a layer did, over all windows.
struct LayerUse {
  ab_index tokens = 0;
  Work work;
  double attended = 0;  // keys that a query attends to effectively: exp of the mean entropy; 0 if not observed
};

/// One way to encode the text.
struct Run {
  Eigen::VectorXf embedding;             // [width], of length 1: the mean of the windows
  std::vector<Eigen::VectorXf> windows;  // the embedding of each
  Work work;
  double seconds = 0;
  std::array<LayerUse, MiniLm::layers> layers;
};

/// What each token of the text got.
struct Allocation {
  std::vector<float> shares;  // add up to 1
  std::vector<char> kept;     // in the last window that it was in
};

/// Cosine of the embeddings of the text.
double cosine(const Run& a, const Run& b);

/// Mean cosine of the embeddings of the windows. Over many windows the errors of random tokens cancel in the
/// embedding of the text; here they do not.
double window_cosine(const Run& a, const Run& b);

class TextBudget {
 public:
  /// Called after each window.
  using Step = std::function<void()>;

  /// The model and the tokens must outlive it. Throws ab::InputError for options that make no sense.
  TextBudget(MiniLm& model, const WordPiece& pieces, const std::vector<Token>& tokens, BudgetOptions options);

  const std::vector<Window>& windows() const noexcept { return windows_; }

  /// Everything in every layer, nothing observed.
  Run full(const Step& step = {});

  /// Observes every layer, turns the attention of one into shares, and keeps the tokens with the largest.
  Run budgeted(Allocation& allocation, const Step& step = {});

  /// The same budget for the first tokens, or for random ones.
  Run first(const Step& step = {});
  Run random(unsigned seed, const Step& step = {});

 private:
  using Scores = std::function<std::vector<float>(const Window&)>;  // one per token of the window

  Run over_windows(const Step& step, const std::function<MiniLm::Encoding(const Window&, Run&)>& encode);
  Run keep_highest(const Scores& scores, const Step& step);
  std::vector<int> ids_of(const Window& window) const;

  MiniLm& model_;
  const WordPiece& pieces_;
  const std::vector<Token>& tokens_;
  BudgetOptions options_;
  std::vector<Window> windows_;
};

}  // namespace example
