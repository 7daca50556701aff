#pragma once
// The tokeniser of uncased BERT: clean, space out CJK, strip accents, lower-case, split on spaces and punctuation,
// then longest match first in the vocabulary (WordPiece; Devlin et al. 2019, 1810.04805).

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "errors.hpp"

namespace example {

/// A piece of the vocabulary, and the bytes [begin, end) of the original text that it stands for.
struct Token {
  int id;
  std::size_t begin, end;
};

class WordPiece {
 public:
  /// Reads vocab.txt: one piece per line, the line number is the id. Throws FileError when it is no vocabulary.
  explicit WordPiece(const std::filesystem::path& vocabulary);

  /// The tokens of a UTF-8 text, without [CLS] and [SEP]. Bytes that are not UTF-8 are left out like control
  /// characters are; special tokens written in the text are ordinary text. Never throws for any bytes.
  std::vector<Token> encode(std::string_view text) const;

  /// The piece with this id; continuations of a word start with "##". Throws std::out_of_range.
  const std::string& piece(int id) const { return pieces_.at(static_cast<std::size_t>(id)); }

  int size() const noexcept { return static_cast<int>(pieces_.size()); }
  int cls() const noexcept { return cls_; }
  int sep() const noexcept { return sep_; }
  int unknown() const noexcept { return unknown_; }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view piece) const noexcept { return std::hash<std::string_view>{}(piece); }
  };

  std::vector<std::string> pieces_;
  std::unordered_map<std::string, int, Hash, std::equal_to<>> ids_;
  int cls_ = 0, sep_ = 0, unknown_ = 0;
};

/// True when the whole text is UTF-8.
bool is_utf8(std::string_view text) noexcept;

}  // namespace example
