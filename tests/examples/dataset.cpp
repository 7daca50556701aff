#include "support/dataset.hpp"

#include <string>
#include <vector>

#include "attention_balancer/core/error.hpp"
#include "files.hpp"
#include "support/bag_of_words.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/words.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using Strings = std::vector<std::string>;

TEST_CASE("dataset: tables of Orange") {
  files::Folder folder;
  const std::string head = "Category\tText\nd\tstring\nclass\t\n\n";
  const auto good = example::read_tab(folder.write("good.tab", head + "a\tone two \nb\tthree\r\n"));
  CHECK(good.labels == Strings{"a", "b"});
  CHECK(good.texts == Strings{"one two ", "three"});
  const auto refused = [&](const std::string& text, const char* why) {
    CHECK_THROWS_WITH(example::read_tab(folder.write("bad.tab", text)), ContainsSubstring(why));
  };
  refused("a\tb\n", "bad.tab: line 1: is no header");
  refused(head + "a\tx\na b\n", "line 6: must be a category and a text");
  refused(head + "a\tx\ty\n", "line 5: must be a category and a text");
  refused(head + "\tx\n", "line 5: has no category");
  refused(head + "a\tx\nb\t \n", "line 6: has no text");
  refused(head, "there was no text");
  refused("", "there was no text");
  CHECK_THROWS_WITH(example::read_tab(folder.path() / "absent"), ContainsSubstring("cannot be opened"));
}

TEST_CASE("dataset: texts in a CSV file") {
  files::Folder folder;
  const auto read = [&](const std::string& text) {
    return example::read_text_csv(folder.write("texts.csv", text), "text", "label");
  };
  const auto good = read("id,text,label\n1,\"a, \"\"b\"\"\nc\",x\r\n2,plain,y");
  CHECK(good.texts == Strings{"a, \"b\"\nc", "plain"});
  CHECK(good.labels == Strings{"x", "y"});
  CHECK_THROWS_WITH(read("text,class\na,b\n"), ContainsSubstring("line 1: there is no column \"label\""));
  CHECK_THROWS_WITH(read("text,label\n\"a\nb\",x\nc\n"), ContainsSubstring("line 4: has 1 fields"));
  CHECK_THROWS_WITH(read("text,label\n  ,x\n"), ContainsSubstring("line 2: has no text"));
  CHECK_THROWS_WITH(read("text,label\na,\n"), ContainsSubstring("line 2: has no label"));
  CHECK_THROWS_WITH(read("text,label\n\"a,b\n"), ContainsSubstring("line 2: a quote is opened"));
  CHECK_THROWS_WITH(read("text,label\n"), ContainsSubstring("there was no text"));
}

TEST_CASE("dataset: classes and splits") {
  const auto data = example::number_classes({{"p", "q", "r"}, {"b", "a", "b"}}, {{"s"}, {"b"}});
  CHECK(data.classes == Strings{"a", "b"});
  CHECK(data.train_labels == std::vector<int>{1, 0, 1});
  CHECK(data.test_labels == std::vector<int>{1});
  CHECK_THROWS_WITH(example::number_classes({{"p", "q"}, {"b", "a"}}, {{"s"}, {"c"}}),
                    ContainsSubstring("test text 0 has the label \"c\", which no training text has"));
  CHECK_THROWS_WITH(example::number_classes({{"p"}, {"b"}}, {{"s"}, {"b"}}), ContainsSubstring("1 classes"));
  example::Texts ten;
  for (int i = 0; i < 10; ++i) ten.texts.push_back(std::to_string(i)), ten.labels.push_back("x");
  const auto [train, test] = example::split(ten, 0.3, 1);
  CHECK(train.texts.size() == 7);
  CHECK(test.texts.size() == 3);
  CHECK(example::split(ten, 0.3, 1).second.texts == test.texts);
}

TEST_CASE("dataset: digits and their patches") {
  files::Folder folder;
  const auto line = [](int pixel, const char* value, const char* label) {
    std::string text;
    for (int i = 0; i < 784; ++i) text += (i == pixel ? std::string(value) : "0") + ",";
    return text + label + "\n";
  };
  // Row 8, column 3: patch (1, 0), and in it row 1, column 3.
  const auto digits =
      example::read_digits(folder.write("digits.csv", line(8 * 28 + 3, "255", "7") + line(0, "51", "0")));
  CHECK(digits.labels == std::vector<int>{7, 0});
  const auto patches = example::patches_of(digits, {1, 0});
  CHECK(patches.labels == std::vector<int>{0, 7});
  CHECK(patches.tokens == 17);
  REQUIRE(patches.features.rows() == 34);
  CHECK(patches.features(1, 0) == 0.2f);
  CHECK(patches.features(17 + 5, 7 + 3) == 1.f);
  CHECK(patches.features.sum() == Approx(1.2));
  example::Random random(1);
  CHECK(example::patches_of(digits, {0, 0, 0}, &random).features.sum() == Approx(3));  // moved, not lost

  const auto refused = [&](const std::string& text, const char* why) {
    CHECK_THROWS_WITH(example::read_digits(folder.write("bad.csv", text)), ContainsSubstring(why));
  };
  refused(line(0, "1", "10"), "line 1: the digit is 10, but must be in 0 to 9");
  refused(line(0, "1", "1") + line(0, "1", "1.5"), "line 2: the digit is 1.5");
  refused(line(0, "1", "1") + line(2, "256", "1"), "line 2: pixel 3 is 256, but must be in 0 to 255");
  refused(line(0, "-1", "1"), "line 1: pixel 1 is -1, but must be in 0 to 255");
  refused(line(0, "1", "1") + line(2, "NaN", "1"), "1 missing in \"column 3\"");
  refused(line(0, "1", "1") + line(2, "1", ""), "1 missing in \"column 785\"");
  refused("1,2\n", "has 2 columns");
}

TEST_CASE("dataset: words") {
  CHECK(example::words_of_text("Don't STOP -- it's 1984!<br />'quoted' x<5 caf\xc3\xa9") ==
        Strings{"don't", "stop", "it's", "0000", "quoted", "x", "0", "caf\xc3\xa9"});
  CHECK(example::words_of_text("").empty());
  CHECK(example::words_of_text(" .,;<b>").empty());
  CHECK(example::words_of_text(std::string("a\0b\xff", 4)) == Strings{"a", "b\xff"});
  const auto vocabulary = example::Vocabulary::learn({"b a b c", "c b d"}, 2, 10);
  CHECK(vocabulary.words() == Strings{"b", "c"});
  CHECK(vocabulary.size() == 4);
  CHECK(vocabulary.encode("C d B", 10) == std::vector<int>{0, 3, 1, 2});
  CHECK(vocabulary.encode("c d b", 3) == std::vector<int>{0, 3, 1});
  CHECK(example::Vocabulary::learn({"b a b c", "c b d"}, 1, 1).words() == Strings{"b"});
  for (const char* text : {"", " \n", "...", "<br />"})
    CHECK_THROWS_WITH(vocabulary.encode(text, 10), ContainsSubstring("but must have at least one word"));
  CHECK_THROWS_AS(example::Vocabulary({"a", "b", "a"}), ab::InputError);
}

TEST_CASE("dataset: the bag of words") {
  const Strings texts{"good film", "bad film", "good good story", "a bad story", "good", "bad"};
  const std::vector<int> labels{1, 0, 1, 0, 1, 0};
  int epochs = 0;
  const example::BagOfWords bag(texts, labels, 2, {.least = 1, .epochs = 20, .batch = 4}, [&] { ++epochs; });
  CHECK(epochs == 20);
  CHECK(bag.words() == 5);
  CHECK(bag.predict(texts) == labels);
  CHECK(bag.predict({"", "unseen", "story, good"})[2] == 1);
  CHECK_THROWS_AS(example::BagOfWords(texts, {1, 0, 2, 0, 1, 0}, 2), ab::InputError);
}
