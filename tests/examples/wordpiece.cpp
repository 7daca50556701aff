#include "support/wordpiece.hpp"

#include <cstddef>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "files.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using example::WordPiece;

namespace {

std::vector<std::string> pieces_of(const WordPiece& pieces, std::string_view text) {
  std::vector<std::string> result;
  for (const auto& token : pieces.encode(text)) result.push_back(pieces.piece(token.id));
  return result;
}

const char* const small_vocabulary =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\naffable\n,\na\n##b\n\xe4\xb8\xad\n";

}  // namespace

TEST_CASE("wordpiece: the longest piece first") {
  files::Folder folder;
  const WordPiece pieces(folder.write("vocab.txt", small_vocabulary));
  REQUIRE(pieces.size() == 12);
  REQUIRE(pieces_of(pieces, "Unaffable, affable") ==
          std::vector<std::string>{"un", "##aff", "##able", ",", "affable"});
  REQUIRE(pieces_of(pieces, "unx abb") == std::vector<std::string>{"[UNK]", "a", "##b", "##b"});
  REQUIRE(pieces_of(pieces,
                    "a\xe4\xb8\xad"
                    "a") == std::vector<std::string>{"a", "\xe4\xb8\xad", "a"});
  // A word of 100 characters still counts, one of 101 does not.
  REQUIRE(pieces.encode("a" + std::string(99, 'b')).size() == 100);
  REQUIRE(pieces_of(pieces, "a" + std::string(100, 'b')) == std::vector<std::string>{"[UNK]"});
}

TEST_CASE("wordpiece: offsets are bytes of the text, accents included") {
  files::Folder folder;
  const WordPiece pieces(folder.write("vocab.txt", small_vocabulary));
  const std::string text =
      " \xc3\xa1 A\xcc\x81,\xc3\xa1"
      "b";  // a with accent, A and an accent, comma, ab with accent
  const auto tokens = pieces.encode(text);
  REQUIRE(tokens.size() == 5);
  const std::vector<std::pair<std::size_t, std::size_t>> expected{{1, 3}, {4, 7}, {7, 8}, {8, 10}, {10, 11}};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    REQUIRE(tokens[i].begin == expected[i].first);
    REQUIRE(tokens[i].end == expected[i].second);
  }
}

TEST_CASE("wordpiece: bytes that are not UTF-8 are left out") {
  files::Folder folder;
  const WordPiece pieces(folder.write("vocab.txt", small_vocabulary));
  REQUIRE(example::is_utf8("caf\xc3\xa9"));
  REQUIRE_FALSE(example::is_utf8("caf\xe9"));
  REQUIRE(pieces_of(pieces,
                    "\xff"
                    "a\xc3\xe4\xb8"
                    "b\xc0\x80\xed\xa0\x80\xf5 ") == std::vector<std::string>{"a", "##b"});

  std::mt19937 generator(3);
  for (int round = 0; round < 2000; ++round) {
    std::string noise(static_cast<std::size_t>(round % 40), '\0');
    for (char& byte : noise) byte = static_cast<char>(generator());
    std::size_t begin = 0;
    for (const auto& token : pieces.encode(noise)) {
      REQUIRE(token.begin >= begin);
      REQUIRE(token.begin < token.end);
      REQUIRE(token.end <= noise.size());
      begin = token.begin;
    }
  }
}

TEST_CASE("wordpiece: what is no vocabulary says so") {
  files::Folder folder;
  REQUIRE_THROWS_WITH(WordPiece(folder.path() / "absent"), ContainsSubstring("absent: cannot be opened"));
  REQUIRE_THROWS_WITH(WordPiece(folder.write("v", "")), ContainsSubstring("[CLS] is missing"));
  REQUIRE_THROWS_WITH(WordPiece(folder.write("v", "[CLS]\n[SEP]\na\n")), ContainsSubstring("[UNK] is missing"));
  REQUIRE_THROWS_WITH(WordPiece(folder.write("v", "[CLS]\na\na\n")),
                      ContainsSubstring("line 3: \"a\" stands there twice"));
}

TEST_CASE("wordpiece: agrees with the tokenizers library") {
  const auto model = files::model();
  if (!model) return;
  const WordPiece pieces(*model / "vocab.txt");
  for (const auto& row : files::golden("minilm_tokens.json")) {
    const auto text = row.at("text").get<std::string>();
    INFO(text);
    std::vector<int> ids;
    std::vector<std::size_t> begin, end;
    for (const auto& token : pieces.encode(text)) {
      ids.push_back(token.id);
      begin.push_back(token.begin);
      end.push_back(token.end);
    }
    CHECK(ids == row.at("ids").get<std::vector<int>>());
    CHECK(begin == row.at("begin").get<std::vector<std::size_t>>());
    CHECK(end == row.at("end").get<std::vector<std::size_t>>());
  }
}
