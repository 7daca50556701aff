#pragma once
// The tokeniser of GPT-2 and its heirs: text is cut into words, numbers and the rest, and the bytes of each piece are
// merged pair by pair, the pair learned first before the others (Sennrich et al. 2016, 1508.07909). As the vocabulary
// of SmolLM wants it, every digit is a piece of its own.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "errors.hpp"

namespace example {

class BytePairs {
 public:
  /// `pieces`: the vocabulary, where an entry's index is its id, in the alphabet of GPT-2, which has a printable
  /// character for every byte. `merges`: "left right", the first learned first. Throws FileError when they do not fit
  /// together, naming the entry.
  BytePairs(const std::vector<std::string>& pieces, const std::vector<std::string>& merges);

  /// The ids of a text. Special tokens written in the text are ordinary text. Bytes that the vocabulary does not have,
  /// as some control characters, are left out. Never throws for any bytes.
  std::vector<int> encode(std::string_view text) const;

  /// The bytes that an id stands for. Throws std::out_of_range.
  const std::string& bytes(int id) const { return bytes_.at(static_cast<std::size_t>(id)); }

  /// The id of a special token such as <|im_end|>. Throws FileError if there is none.
  int special(const std::string& piece) const;

  int size() const noexcept { return static_cast<int>(bytes_.size()); }

 private:
  struct Merge {
    std::uint32_t rank;
    int id;
  };
  static std::uint64_t pair(int left, int right) noexcept {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
  }
  void encode_piece(std::string_view piece, std::vector<int>& ids) const;

  std::vector<std::string> bytes_;
  std::unordered_map<std::string, int> ids_;  // of the pieces as they stand in the file
  std::unordered_map<std::uint64_t, Merge> merges_;
  int of_byte_[256];  // -1 where the vocabulary has none
};

/// Where a text is cut before its bytes are merged: the ends of its pieces, ascending.
std::vector<std::size_t> piece_ends(std::string_view text);

}  // namespace example
