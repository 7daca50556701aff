#include "byte_pairs.hpp"

#include <utf8proc.h>

#include <array>
#include <functional>
#include <queue>
#include <tuple>

namespace example {
namespace {

enum class Class { letter, number, space, other };

struct Character {
  utf8proc_int32_t code;  // -1 for a byte that is no UTF-8
  Class of;
  std::size_t end;
};

Class class_of(utf8proc_int32_t code) noexcept {
  if (code < 0) return Class::other;
  if ((code >= '\t' && code <= '\r') || code == 0x85) return Class::space;
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return Class::letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return Class::number;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return Class::space;
    default: return Class::other;
  }
}

std::vector<Character> characters_of(std::string_view text) {
  std::vector<Character> characters;
  for (std::size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = -1;
    const auto read = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                       static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (read <= 0) code = -1;
    at += read > 0 ? static_cast<std::size_t>(read) : 1;
    characters.push_back({code, class_of(code), at});
  }
  return characters;
}

// Characters of "'s", "'t", "'re", "'ve", "'m", "'ll" or "'d" at the start; 0 if there is none.
std::size_t contraction(const Character* c, std::size_t count) noexcept {
  if (count < 2 || c[0].code != '\'') return 0;
  const auto second = c[1].code;
  if (second == 's' || second == 't' || second == 'm' || second == 'd') return 2;
  const auto third = count > 2 ? c[2].code : 0;
  const bool three = ((second == 'r' || second == 'v') && third == 'e') || (second == 'l' && third == 'l');
  return three ? 3 : 0;
}

// Characters of the first piece of those that are left; no number is among the first `count`.
std::size_t first_piece(const Character* c, std::size_t count) noexcept {
  if (const auto size = contraction(c, count); size > 0) return size;
  const auto run = [&](std::size_t from) {
    std::size_t to = from;
    while (to < count && c[to].of == c[from].of) ++to;
    return to;
  };
  if (c[0].code == ' ' && count > 1 && c[1].of != Class::space) return run(1);
  if (c[0].of != Class::space) return run(0);
  // The last space of several goes to the word behind it.
  const auto spaces = run(0);
  return spaces < count && spaces > 1 ? spaces - 1 : spaces;
}

// The character that GPT-2 writes for a byte: itself where it is printable, else one from U+0100 on.
std::array<utf8proc_int32_t, 256> alphabet() {
  std::array<utf8proc_int32_t, 256> codes{};
  utf8proc_int32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    codes[static_cast<std::size_t>(byte)] = printable ? byte : next++;
  }
  return codes;
}

}  // namespace

std::vector<std::size_t> piece_ends(std::string_view text) {
  const auto characters = characters_of(text);
  std::vector<std::size_t> ends;
  for (std::size_t begin = 0; begin < characters.size();) {
    // Digits are cut out first: what stands before one ends there, so that its last space is not kept for the digit.
    std::size_t end = begin;
    while (end < characters.size() && characters[end].of != Class::number) ++end;
    while (begin < end) {
      begin += first_piece(characters.data() + begin, end - begin);
      ends.push_back(characters[begin - 1].end);
    }
    if (end < characters.size()) ends.push_back(characters[begin++].end);
  }
  return ends;
}

BytePairs::BytePairs(const std::vector<std::string>& pieces, const std::vector<std::string>& merges) {
  std::unordered_map<utf8proc_int32_t, char> byte_of;
  const auto codes = alphabet();
  for (std::size_t byte = 0; byte < codes.size(); ++byte) byte_of[codes[byte]] = static_cast<char>(byte);

  for (const auto& piece : pieces) {
    const auto id = static_cast<int>(bytes_.size());
    if (!ids_.emplace(piece, id).second) throw FileError("vocabulary: \"" + piece + "\" stands there twice");
    std::string bytes;
    for (const auto& character : characters_of(piece)) {
      const auto found = byte_of.find(character.code);
      if (found == byte_of.end())
        throw FileError("vocabulary: entry " + std::to_string(id) + ", \"" + piece +
                        "\", has a character that stands for no byte");
      bytes += found->second;
    }
    bytes_.push_back(std::move(bytes));
  }
  for (std::size_t byte = 0; byte < codes.size(); ++byte) {
    std::array<utf8proc_uint8_t, 4> utf8{};
    const auto length = utf8proc_encode_char(codes[byte], utf8.data());
    const auto found = ids_.find({reinterpret_cast<const char*>(utf8.data()), static_cast<std::size_t>(length)});
    of_byte_[byte] = found == ids_.end() ? -1 : found->second;
  }
  const auto id_of = [&](const std::string& piece, const std::string& where) {
    const auto found = ids_.find(piece);
    if (found == ids_.end()) throw FileError(where + ": \"" + piece + "\" is missing in the vocabulary");
    return found->second;
  };
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto where = "merge " + std::to_string(rank);
    const auto space = merges[rank].find(' ');
    if (space == std::string::npos) throw FileError(where + ": \"" + merges[rank] + "\" is no pair");
    const auto left = merges[rank].substr(0, space), right = merges[rank].substr(space + 1);
    // Of a pair that stands there twice the first counts.
    const int left_id = id_of(left, where), right_id = id_of(right, where);
    merges_.emplace(pair(left_id, right_id), Merge{static_cast<std::uint32_t>(rank), id_of(left + right, where)});
  }
}

int BytePairs::special(const std::string& piece) const {
  const auto found = ids_.find(piece);
  if (found == ids_.end()) throw FileError("vocabulary: " + piece + " is missing");
  return found->second;
}

void BytePairs::encode_piece(std::string_view piece, std::vector<int>& ids) const {
  // A list of tokens, of which a merge takes away the right one; and all pairs that may merge, the first learned, then
  // the leftmost, on top. A pair that has changed meanwhile is passed over.
  struct Token {
    int id;
    std::size_t before, behind;
  };
  constexpr auto none = std::string_view::npos;
  std::vector<Token> tokens;
  for (const char byte : piece)
    if (const int id = of_byte_[static_cast<unsigned char>(byte)]; id >= 0) tokens.push_back({id, none, none});
  for (std::size_t i = 1; i < tokens.size(); ++i) tokens[i].before = i - 1, tokens[i - 1].behind = i;
  using Candidate = std::tuple<std::uint32_t, std::size_t, int, int>;  // rank, place, left, right
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](std::size_t at) {
    if (at == none || tokens[at].behind == none) return;
    const int left = tokens[at].id, right = tokens[tokens[at].behind].id;
    if (const auto found = merges_.find(pair(left, right)); found != merges_.end())
      candidates.emplace(found->second.rank, at, left, right);
  };
  for (std::size_t i = 0; i < tokens.size(); ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, at, left, right] = candidates.top();
    candidates.pop();
    const auto behind = tokens[at].behind;
    if (tokens[at].id != left || behind == none || tokens[behind].id != right) continue;
    tokens[at].id = merges_.at(pair(left, right)).id;
    tokens[at].behind = tokens[behind].behind;
    if (tokens[at].behind != none) tokens[tokens[at].behind].before = at;
    tokens[behind].id = -1;
    consider(tokens[at].before);
    consider(at);
  }
  for (std::size_t at = tokens.empty() ? none : 0; at != none; at = tokens[at].behind) ids.push_back(tokens[at].id);
}

std::vector<int> BytePairs::encode(std::string_view text) const {
  std::vector<int> ids;
  std::size_t begin = 0;
  for (const auto end : piece_ends(text)) {
    encode_piece(text.substr(begin, end - begin), ids);
    begin = end;
  }
  return ids;
}

}  // namespace example
