#include "wordpiece.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <string>

namespace example {
namespace {

constexpr std::size_t longest_word = 100;  // characters; a longer word is one unknown token

// One character of the cleaned text and where it comes from.
struct Character {
  utf8proc_int32_t code;
  std::size_t begin, end;
};

// The next character of the text and its bytes; -1 and one byte where it is not UTF-8.
utf8proc_int32_t next(std::string_view text, std::size_t at, std::size_t& bytes) noexcept {
  utf8proc_int32_t code = -1;
  const auto read = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                     static_cast<utf8proc_ssize_t>(text.size() - at), &code);
  bytes = read > 0 ? static_cast<std::size_t>(read) : 1;
  return read > 0 ? code : -1;
}

bool is_space(utf8proc_int32_t code) noexcept {
  if (code == ' ' || (code >= '\t' && code <= '\r') || code == 0x85) return true;
  const auto category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

// What cleaning removes: NUL, the replacement character, and controls other than tab and line ends.
bool is_removed(utf8proc_int32_t code) noexcept {
  if (code == '\t' || code == '\n' || code == '\r') return false;
  if (code <= 0 || code == 0xFFFD) return true;
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO: return true;
    default: return false;
  }
}

// CJK ideographs stand alone as words. Kana and Hangul do not. These are BERT's ranges.
bool is_ideograph(utf8proc_int32_t code) noexcept {
  struct Range {
    utf8proc_int32_t first, last;
  };
  static constexpr std::array<Range, 8> ranges{{{0x4E00, 0x9FFF},
                                                {0x3400, 0x4DBF},
                                                {0x20000, 0x2A6DF},
                                                {0x2A700, 0x2B73F},
                                                {0x2B740, 0x2B81F},
                                                {0x2B820, 0x2CEAF},
                                                {0xF900, 0xFAFF},
                                                {0x2F800, 0x2FA1F}}};
  return std::any_of(ranges.begin(), ranges.end(), [&](Range r) { return code >= r.first && code <= r.last; });
}

// All of ASCII that is neither letter, digit nor space counts, also what Unicode calls a symbol ($, +, ~).
bool is_punctuation(utf8proc_int32_t code) noexcept {
  if (code < 128)
    return code > ' ' && code < 127 && !(code >= '0' && code <= '9') && !(code >= 'A' && code <= 'Z') &&
           !(code >= 'a' && code <= 'z');
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return true;
    default: return false;
  }
}

// Words and punctuation, each a run of characters; lower-case and without accents.
std::vector<std::vector<Character>> words_of(std::string_view text) {
  std::vector<std::vector<Character>> words;
  bool open = false;  // does the last word go on?
  const auto append = [&](Character character, bool alone) {
    if (!open || alone) words.emplace_back();
    words.back().push_back(character);
    open = !alone;
  };

  std::size_t bytes = 0;
  for (std::size_t at = 0; at < text.size(); at += bytes) {
    const auto code = next(text, at, bytes);
    if (is_removed(code)) continue;
    if (is_space(code)) {
      open = false;
      continue;
    }
    const bool ideograph = is_ideograph(code);
    if (ideograph) open = false;

    std::array<utf8proc_int32_t, 8> parts{};  // the longest canonical decomposition has 4
    int boundary = 0;
    auto count = utf8proc_decompose_char(code, parts.data(), static_cast<utf8proc_ssize_t>(parts.size()),
                                         UTF8PROC_DECOMPOSE, &boundary);
    if (count < 1 || count > static_cast<utf8proc_ssize_t>(parts.size())) parts[0] = code, count = 1;
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      const auto part = parts[static_cast<std::size_t>(i)];
      if (utf8proc_category(part) == UTF8PROC_CATEGORY_MN) {
        // An accent of its own belongs to the letter before it: highlighting a token then takes both.
        if (!words.empty() && words.back().back().end == at) words.back().back().end = at + bytes;
        continue;
      }
      const auto lower = utf8proc_tolower(part);
      append({lower, at, at + bytes}, is_punctuation(lower));
    }
    if (ideograph) open = false;
  }
  return words;
}

}  // namespace

WordPiece::WordPiece(const std::filesystem::path& vocabulary) {
  std::ifstream stream(vocabulary, std::ios::binary);
  std::error_code error;
  if (!stream || std::filesystem::is_directory(vocabulary, error))
    throw FileError(vocabulary.string() + ": cannot be opened");
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!ids_.emplace(line, static_cast<int>(pieces_.size())).second)
      throw FileError(vocabulary.string() + ": line " + std::to_string(pieces_.size() + 1) + ": \"" + line +
                      "\" stands there twice");
    pieces_.push_back(line);
  }
  const auto special = [&](const char* piece) {
    const auto found = ids_.find(std::string_view(piece));
    if (found == ids_.end())
      throw FileError(vocabulary.string() + ": " + piece + " is missing: no BERT vocabulary");
    return found->second;
  };
  cls_ = special("[CLS]");
  sep_ = special("[SEP]");
  unknown_ = special("[UNK]");
}

std::vector<Token> WordPiece::encode(std::string_view text) const {
  std::vector<Token> tokens;
  std::string bytes, candidate;
  std::vector<std::size_t> starts;  // of each character of the word, in bytes; and its end
  for (const auto& word : words_of(text)) {
    const Token whole{unknown_, word.front().begin, word.back().end};
    if (word.size() > longest_word) {
      tokens.push_back(whole);
      continue;
    }
    bytes.clear();
    starts.assign(1, 0);
    for (const auto& character : word) {
      std::array<utf8proc_uint8_t, 4> utf8{};
      const auto length = utf8proc_encode_char(character.code, utf8.data());
      bytes.append(reinterpret_cast<const char*>(utf8.data()), static_cast<std::size_t>(length));
      starts.push_back(bytes.size());
    }

    const std::size_t first_token = tokens.size();
    for (std::size_t from = 0; from < word.size();) {
      std::size_t to = word.size();
      int id = -1;
      for (; to > from && id < 0; --to) {
        candidate.assign(from == 0 ? "" : "##").append(bytes, starts[from], starts[to] - starts[from]);
        if (const auto found = ids_.find(std::string_view(candidate)); found != ids_.end()) id = found->second;
      }
      if (id < 0) {  // no piece fits: the whole word is unknown
        tokens.resize(first_token, whole);
        tokens.push_back(whole);
        break;
      }
      ++to;  // the loop went one past the match
      tokens.push_back({id, word[from].begin, word[to - 1].end});
      from = to;
    }
  }
  return tokens;
}

bool is_utf8(std::string_view text) noexcept {
  std::size_t bytes = 0;
  for (std::size_t at = 0; at < text.size(); at += bytes)
    if (next(text, at, bytes) < 0) return false;
  return true;
}

}  // namespace example
