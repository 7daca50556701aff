#include "bag_of_words.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "adam.hpp"
#include "words.hpp"

namespace example {

BagOfWords::BagOfWords(const std::vector<std::string>& texts, const std::vector<int>& labels, Eigen::Index classes,
                       BagOptions options, const std::function<void()>& after_epoch) {
  const auto vocabulary = Vocabulary::learn(texts, options.least, options.most);
  for (const auto& word : vocabulary.words()) ids_.emplace(word, static_cast<Eigen::Index>(ids_.size()));
  std::vector<std::size_t> containing(ids_.size(), 0);
  for (const auto& text : texts) {
    const auto words = words_of_text(text);
    for (const auto& word : std::set<std::string>(words.begin(), words.end()))
      if (const auto found = ids_.find(word); found != ids_.end())
        ++containing[static_cast<std::size_t>(found->second)];
  }
  for (const auto count : containing)
    rarity_.push_back(static_cast<float>(
        std::log((1.0 + static_cast<double>(texts.size())) / (1.0 + static_cast<double>(count))) + 1));

  std::vector<Features> all;
  for (const auto& text : texts) all.push_back(features(text));
  Parameter<float> weights("weights", static_cast<Eigen::Index>(ids_.size()) + 1, classes);
  Adam<float> adam({&weights}, {.rate = options.rate, .decay = options.decay, .clip = 0});
  std::vector<std::size_t> order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  Random random(options.seed);
  const auto batches = (order.size() + options.batch - 1) / options.batch;
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    for (std::size_t b = 0; b < batches; ++b) {
      const std::size_t begin = b * options.batch, size = std::min(options.batch, order.size() - begin);
      Rows<float> logits = weights.value.bottomRows(1).replicate(static_cast<Eigen::Index>(size), 1);
      std::vector<int> batch_labels;
      for (std::size_t i = 0; i < size; ++i) {
        for (const auto& [word, x] : all[order[begin + i]])
          logits.row(static_cast<Eigen::Index>(i)) += x * weights.value.row(word);
        batch_labels.push_back(labels[order[begin + i]]);
      }
      const auto loss = cross_entropy<float>(logits, batch_labels);
      for (std::size_t i = 0; i < size; ++i)
        for (const auto& [word, x] : all[order[begin + i]])
          weights.gradient.row(word) += x * loss.gradient.row(static_cast<Eigen::Index>(i));
      weights.gradient.bottomRows(1) += loss.gradient.colwise().sum();
      const double done = static_cast<double>(epoch) * static_cast<double>(batches) + static_cast<double>(b);
      adam.step(1 - done / (static_cast<double>(options.epochs) * static_cast<double>(batches)));
    }
    if (after_epoch) after_epoch();
  }
  weights_ = weights.value;
}

BagOfWords::Features BagOfWords::features(const std::string& text) const {
  std::map<Eigen::Index, int> counts;
  for (const auto& word : words_of_text(text))
    if (const auto found = ids_.find(word); found != ids_.end()) ++counts[found->second];
  Features result;
  double squares = 0;
  for (const auto& [word, count] : counts) {
    const float x =
        static_cast<float>(1 + std::log(static_cast<double>(count))) * rarity_[static_cast<std::size_t>(word)];
    squares += static_cast<double>(x) * static_cast<double>(x);
    result.emplace_back(word, x);
  }
  for (auto& entry : result) entry.second /= static_cast<float>(std::sqrt(squares));
  return result;
}

std::vector<int> BagOfWords::predict(const std::vector<std::string>& texts) const {
  std::vector<int> classes;
  for (const auto& text : texts) {
    Eigen::RowVectorXf logits = weights_.bottomRows(1);
    for (const auto& [word, x] : features(text)) logits += x * weights_.row(word);
    Eigen::Index best = 0;
    logits.maxCoeff(&best);
    classes.push_back(static_cast<int>(best));
  }
  return classes;
}

}  // namespace example
