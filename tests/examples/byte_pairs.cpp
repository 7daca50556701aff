#include "support/byte_pairs.hpp"

#include <string>
#include <vector>

#include "files.hpp"
#include "support/catch.hpp"
#include "support/gguf.hpp"

using Catch::Matchers::ContainsSubstring;
using example::BytePairs;
using example::FileError;

namespace {

using Texts = std::vector<std::string>;

Texts pieces_of(const std::string& text) {
  Texts pieces;
  std::size_t begin = 0;
  for (const auto end : example::piece_ends(text)) {
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  CHECK(begin == text.size());
  return pieces;
}

// "\u0120" is how GPT-2 writes a space.
const Texts vocabulary{"a",       "b",  "c",     "\u0120", "ab", "bc", "abc",
                       "\u0120a", "aa", "<end>", "d",      "e",  "n",  "\u010A"};

Texts tokens_of(const BytePairs& pieces, const std::string& text) {
  Texts tokens;
  for (const int id : pieces.encode(text)) tokens.push_back(pieces.bytes(id));
  return tokens;
}

}  // namespace

TEST_CASE("byte pairs: a text is cut as GPT-2 does, every digit by itself") {
  CHECK(pieces_of("").empty());
  CHECK(pieces_of("Hello world") == Texts{"Hello", " world"});
  CHECK(pieces_of("it's we'll 'quoted'") == Texts{"it", "'s", " we", "'ll", " '", "quoted", "'"});
  CHECK(pieces_of("in 1987, 42") == Texts{"in", " ", "1", "9", "8", "7", ",", " ", "4", "2"});
  CHECK(pieces_of("a   b") == Texts{"a", "  ", " b"});
  CHECK(pieces_of("a \n b\n") == Texts{"a", " \n", " b", "\n"});
  CHECK(pieces_of("a\nb  ") == Texts{"a", "\n", "b", "  "});
  CHECK(pieces_of("na\u00efve \u4f60\u597d!?") == Texts{"na\u00efve", " \u4f60\u597d", "!?"});
  CHECK(pieces_of("x\xff\xfey") == Texts{"x", "\xff\xfe", "y"});
}

TEST_CASE("byte pairs: the pair learned first is merged first") {
  const BytePairs early(vocabulary, {"a b", "b c", "ab c", "\u0120 a"});
  CHECK(tokens_of(early, "abc") == Texts{"abc"});
  CHECK(tokens_of(early, "abcab bc") == Texts{"abc", "ab", " ", "bc"});
  CHECK(tokens_of(early, "a a") == Texts{"a", " a"});
  const BytePairs late(vocabulary, {"b c", "a b", "ab c"});
  CHECK(tokens_of(late, "abc") == Texts{"a", "bc"});
  // From the left, and each byte once.
  CHECK(tokens_of(BytePairs(vocabulary, {"a a"}), "aaaaa") == Texts{"aa", "aa", "a"});
}

TEST_CASE("byte pairs: special tokens are not read from a text, and unknown bytes are left out") {
  const BytePairs pieces(vocabulary, {});
  CHECK(pieces.special("<end>") == 9);
  CHECK(pieces.bytes(9) == "<end>");
  CHECK(tokens_of(pieces, "<end>") == Texts{"e", "n", "d"});
  CHECK(tokens_of(pieces,
                  "a\x01\xff"
                  "b\n") == Texts{"a", "b", "\n"});
  CHECK_THROWS_WITH(pieces.special("<start>"), ContainsSubstring("<start> is missing"));
  CHECK_THROWS_AS(pieces.bytes(100), std::out_of_range);
  CHECK_THROWS_AS(pieces.bytes(-1), std::out_of_range);
  CHECK(pieces.encode(std::string(100000, 'a')).size() == 100000);
}

TEST_CASE("byte pairs: vocabularies that do not fit") {
  CHECK_THROWS_WITH(BytePairs({"a", "a"}, {}), ContainsSubstring("\"a\" stands there twice"));
  CHECK_THROWS_WITH(BytePairs({"a", "a b"}, {}), ContainsSubstring("entry 1") && ContainsSubstring("for no byte"));
  CHECK_THROWS_WITH(BytePairs(vocabulary, {"a b", "ab"}), ContainsSubstring("merge 1: \"ab\" is no pair"));
  CHECK_THROWS_WITH(BytePairs(vocabulary, {"a x"}), ContainsSubstring("merge 0: \"x\" is missing"));
  CHECK_THROWS_WITH(BytePairs(vocabulary, {"c a"}), ContainsSubstring("merge 0: \"ca\" is missing"));
}

TEST_CASE("byte pairs: the vocabulary of the language model") {
  const auto path = files::language_model();
  if (!path) return;
  example::Gguf file(*path);
  const BytePairs pieces(file.texts("tokenizer.ggml.tokens"), file.texts("tokenizer.ggml.merges"));
  CHECK(pieces.size() == 49152);
  CHECK(tokens_of(pieces, "The capital of France, 1987") ==
        Texts{"The", " capital", " of", " France", ",", " ", "1", "9", "8", "7"});
  for (const std::string text : {"na\u00efve \u4f60\u597d\n\n  int main() { return 0; }", "don't  stop\t!"}) {
    std::string again;
    for (const auto& token : tokens_of(pieces, text)) again += token;
    CHECK(again == text);
  }
}
