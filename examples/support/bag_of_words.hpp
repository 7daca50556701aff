#pragma once
// The yardstick without attention: multinomial logistic regression on the words of a text, their order ignored.

#include <functional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "layers.hpp"

namespace example {

struct BagOptions {
  std::size_t least = 2, most = 50000;  // occurrences that a word needs; words
  int epochs = 30;
  std::size_t batch = 64;
  double rate = 0.02, decay = 1e-6;
  unsigned seed = 1;
};

/// Features: (1 + log count) times log(texts / texts with the word), each text of length 1. Learned by Adam.
class BagOfWords {
 public:
  /// `after_epoch` is called after each epoch. Throws ab::InputError for a label out of range.
  BagOfWords(const std::vector<std::string>& texts, const std::vector<int>& labels, Eigen::Index classes,
             BagOptions options = {}, const std::function<void()>& after_epoch = {});

  /// The most probable class of each text.
  std::vector<int> predict(const std::vector<std::string>& texts) const;

  std::size_t words() const noexcept { return ids_.size(); }

 private:
  using Features = std::vector<std::pair<Eigen::Index, float>>;  // of one text
  Features features(const std::string& text) const;

  std::unordered_map<std::string, Eigen::Index> ids_;
  std::vector<float> rarity_;
  Rows<float> weights_;  // [words + 1, classes], the bias last
};

}  // namespace example
