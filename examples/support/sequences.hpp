#pragma once
// Labelled sequences for a classifier, batches of them, and which of their tokens a batch keeps.

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "layers.hpp"

namespace example {

/// Examples of a data set: token ids, or rows of features, and a label each. Token 0 of every sequence is one that
/// stands for the whole: the id 0, a row of zeros.
struct Sequences {
  std::vector<std::vector<int>> ids;  // words: [examples][tokens]
  Rows<float> features;               // or features: [examples * tokens, width], all of the same length
  Eigen::Index tokens = 0;            // of an example with features
  std::vector<int> labels;            // [examples]

  std::size_t size() const noexcept { return labels.size(); }
  Eigen::Index length(std::size_t i) const {
    return ids.empty() ? tokens : static_cast<Eigen::Index>(ids[i].size());
  }
};

/// Splits off a part of the examples, at random: what is left, and what was held out, at least one of each. Throws
/// ab::InputError for less than two examples and a part outside of (0, 1).
std::pair<Sequences, Sequences> hold_out(const Sequences& data, double part, unsigned seed);

/// Which tokens of a sequence are worked on. Token 0 is pinned: every rule keeps it.
enum class Keep {
  shares,  // those with the largest shares of the attention, as the classifier's ResourceBalancer gives them
  random,  // any
  stride,  // evenly spaced ones
  prefix,  // the first ones
};

/// "shares", "random", "stride", "prefix".
const char* name_of(Keep keep);

struct TokenBudget {
  Keep keep = Keep::shares;
  double part = 1;  // of the tokens beside the pinned one, in (0, 1]

  /// How many of `tokens` tokens stay, the pinned one included: at least one more than that if there is one.
  Eigen::Index of(Eigen::Index tokens) const;
};

/// A packed batch.
template <class T>
struct Batch {
  Segments segments;
  std::vector<int> positions;  // [rows] place of the token in its sequence
  std::vector<int> ids;        // [rows], or
  Rows<T> features;            // [rows, width]
  std::vector<int> labels;     // [sequences]
  Eigen::Index tokens = 0;     // rows before a rule other than shares dropped some
};

/// Packs the examples `which`. Rules other than shares drop tokens here, before anything is computed of them. Every
/// token but the first is lost with probability `loss` beforehand, as a regulariser.
template <class T>
Batch<T> make_batch(const Sequences& data, std::span<const std::size_t> which, const TokenBudget& budget,
                    Random& random, double loss = 0);

}  // namespace example
