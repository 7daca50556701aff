#pragma once
// Our own tokeniser for training from scratch: whole words, and a vocabulary learned from the training texts.

#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace example {

/// Lower-case words: runs of ASCII letters, digits, apostrophes inside, and bytes above 127. Each digit becomes
/// "0", so that numbers share words by their length. Markup such as <br /> is left out.
std::vector<std::string> words_of_text(std::string_view text);

class Vocabulary {
 public:
  static constexpr int whole = 0;    // stands for the whole text, first in every sequence
  static constexpr int unknown = 1;  // a word that is not in the vocabulary

  /// The words that occur at least `least` times in the texts, the most frequent first, at most `most` of them.
  static Vocabulary learn(const std::vector<std::string>& texts, std::size_t least, std::size_t most);

  /// The words in the order of their ids, without the two special ones. Throws ab::InputError if one stands there
  /// twice.
  explicit Vocabulary(std::vector<std::string> words);

  /// The ids of a text, `whole` first, at most `longest` in all. Throws ab::InputError if it has no word.
  std::vector<int> encode(std::string_view text, std::size_t longest) const;

  const std::vector<std::string>& words() const noexcept { return words_; }
  /// Number of ids, the special ones included.
  int size() const noexcept { return static_cast<int>(words_.size()) + 2; }

 private:
  std::vector<std::string> words_;
  std::unordered_map<std::string, int> ids_;
};

}  // namespace example
