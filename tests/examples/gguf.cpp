#include "support/gguf.hpp"

#include <string>
#include <vector>

#include "files.hpp"
#include "gguf_file.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using example::BlockType;
using example::FileError;
using example::Gguf;
using files::bytes_of;
using files::GgufFile;

namespace {

// A half of 1, 0.5 and -2.
constexpr std::uint16_t one = 0x3c00, half = 0x3800, minus_two = 0xc000;

// d = 0.5, m = -2; byte i holds i low and 15 - i high.
std::string q4_1_block() {
  std::string block = bytes_of(half) + bytes_of(minus_two);
  for (int i = 0; i < 16; ++i) block += static_cast<char>(i | (15 - i) << 4);
  return block;
}

GgufFile good() {
  GgufFile file;
  file.text("name", "small");
  file.whole("size", 7);
  file.real("scale", 0.25f);
  file.pair("below", 5, bytes_of<std::int32_t>(-3));
  file.texts("words", {"a", "", "b c"});
  file.pair("numbers", 9, bytes_of<std::uint32_t>(5) + bytes_of<std::uint64_t>(2) + std::string(8, '\1'));
  file.floats("vector", {3}, {1, 2, 3});
  file.tensor("nibbles", 3, {32, 2}, q4_1_block() + q4_1_block());
  file.tensor("unknown", 99, {5}, "12345");
  return file;
}

}  // namespace

TEST_CASE("gguf: a good file") {
  files::Folder folder;
  Gguf file(folder.write("good", good().bytes()));
  CHECK(file.text("name") == "small");
  CHECK(file.whole("size") == 7);
  CHECK(file.real("scale") == 0.25);
  CHECK(file.real("below") == -3);
  CHECK(file.real("size") == 7);
  CHECK(file.texts("words") == std::vector<std::string>{"a", "", "b c"});
  CHECK(file.has("numbers"));
  CHECK(file.entries().size() == 3);
  CHECK(file.floats("vector", 3) == std::vector<float>{1, 2, 3});
  CHECK(file.floats("vector", 3) == std::vector<float>{1, 2, 3});  // and once more

  example::PackedMatrix matrix;
  file.append("nibbles", 2, 32, matrix);
  file.append("nibbles", 2, 32, matrix);
  CHECK(matrix.type == BlockType::q4_1);
  REQUIRE(matrix.rows == 4);
  std::vector<float> row(32);
  matrix.row(3, row);
  CHECK(row[0] == -2);    // 0.5 * 0 - 2
  CHECK(row[15] == 5.5);  // 0.5 * 15 - 2
  CHECK(row[16] == 5.5);  // high nibble of the first byte
  CHECK(row[31] == -2);
}

TEST_CASE("gguf: what is asked for must be there") {
  files::Folder folder;
  Gguf file(folder.write("good", good().bytes()));
  CHECK_THROWS_WITH(file.text("absent"), ContainsSubstring("good: \"absent\" is missing"));
  CHECK_THROWS_WITH(file.text("size"), ContainsSubstring("\"size\" is no text"));
  CHECK_THROWS_WITH(file.whole("below"), ContainsSubstring("\"below\" is no whole number"));
  CHECK_THROWS_WITH(file.texts("numbers"), ContainsSubstring("\"numbers\" is no array of texts"));
  CHECK_THROWS_WITH(file.floats("absent", 1), ContainsSubstring("tensor \"absent\": is missing"));
  CHECK_THROWS_WITH(file.floats("vector", 4), ContainsSubstring("has shape [3], but must have [4]"));
  example::PackedMatrix matrix;
  CHECK_THROWS_WITH(file.append("nibbles", 32, 2, matrix),
                    ContainsSubstring("has shape [32, 2], but must have [2, 32]"));
  file.append("nibbles", 2, 32, matrix);

  GgufFile other;
  other.floats("floats", {32, 1}, std::vector<float>(32));
  other.tensor("unknown", 99, {32, 1}, "12345");
  Gguf second(folder.write("other", other.bytes()));
  CHECK_THROWS_WITH(second.append("floats", 1, 32, matrix), ContainsSubstring("is F32, but must be Q4_1"));
  CHECK_THROWS_WITH(second.append("unknown", 1, 32, matrix), ContainsSubstring("is type 99"));
}

TEST_CASE("gguf: corrupt files say what is wrong") {
  files::Folder folder;
  const auto whole = good().bytes();
  const auto with = [](auto change) {
    GgufFile file;
    change(file);
    return file.bytes();
  };
  struct Case {
    std::string content, message;
  };
  const std::vector<Case> cases{
      {"", "truncated: the magic number"},
      {"GGML" + whole.substr(4), "does not begin with GGUF"},
      {"GGUF" + bytes_of<std::uint32_t>(2) + whole.substr(8), "is GGUF version 2, but must be 3"},
      {"GGUF" + bytes_of<std::uint32_t>(3) + bytes_of<std::uint64_t>(0) + bytes_of<std::uint64_t>(1) +
           bytes_of<std::uint64_t>(~std::uint64_t{0}),
       "truncated: the key of metadata 0 takes 18446744073709551615 bytes, but only 0 follow"},
      {with([](GgufFile& f) { f.pair("k", 13, ""); }), "\"k\" is of kind 13"},
      {with([](GgufFile& f) { f.pair("k", 9, bytes_of<std::uint32_t>(9) + bytes_of<std::uint64_t>(1)); }),
       "\"k\" is an array of kind 9"},
      {with([](GgufFile& f) { f.pair("k", 9, bytes_of<std::uint32_t>(8) + bytes_of(~std::uint64_t{0})); }),
       "\"k\" has 18446744073709551615 entries"},
      {with([](GgufFile& f) { f.whole("k", 1), f.whole("k", 2); }), "\"k\" stands twice"},
      {with([](GgufFile& f) { f.whole("general.alignment", 0); }), "\"general.alignment\" is 0"},
      {with([](GgufFile& f) { f.floats("t", {1}, {1}), f.floats("t", {1}, {1}); }), "tensor \"t\": stands twice"},
      {with([](GgufFile& f) {
         f.tensor("t", 0, {1, 1, 1, 1, 1}, "1234");
       }),
       "has 5 axes"},
      {with([](GgufFile& f) { f.tensor("t", 3, {33}, "1234"); }), "no whole blocks"},
      {with([](GgufFile& f) {
         f.tensor("t", 0, {~std::uint64_t{0}, 2}, "1234");
       }),
       "too large"},
      {with([](GgufFile& f) { f.tensor("t", 0, {9}, "1234"); }), "truncated: its data end at 0 + 36"},
  };
  for (const auto& c : cases) {
    INFO(c.message);
    const auto path = folder.write("corrupt", c.content);
    CHECK_THROWS_AS(Gguf(path), FileError);
    CHECK_THROWS_WITH(Gguf(path), ContainsSubstring(path.string()) && ContainsSubstring(c.message));
  }
  CHECK_THROWS_WITH(Gguf(folder.path() / "absent"), ContainsSubstring("cannot be opened"));
  CHECK_THROWS_WITH(Gguf(folder.path()), ContainsSubstring("cannot be opened"));

  SECTION("every truncation is an error") {
    GgufFile file;
    file.text("name", "small");
    file.texts("words", {"a", "b"});
    file.floats("last", {8}, std::vector<float>(8));
    const auto bytes = file.bytes();
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      INFO("first " << length << " of " << bytes.size() << " bytes");
      CHECK_THROWS_AS(Gguf(folder.write("part", bytes.substr(0, length))), FileError);
    }
  }
  SECTION("no single changed byte of the header makes it crash") {
    const auto header = good().header().size();
    for (std::size_t at = 0; at < header; ++at)
      for (const char byte : {'\0', '\7', '\xff'}) {
        std::string changed = whole;
        changed[at] = byte;
        try {
          Gguf file(folder.write("changed", changed));
          if (file.entries().contains("vector")) file.floats("vector", 3);
        } catch (const FileError&) {
        }
      }
  }
}

TEST_CASE("gguf: blocks become floats") {
  std::vector<float> values(64);
  SECTION("Q8_0: d q") {
    std::string blocks;
    for (const auto d : {one, half}) {
      blocks += bytes_of(d);
      for (int i = 0; i < 32; ++i) blocks += static_cast<char>(i % 2 == 0 ? -i - 1 : i * 4);
    }
    example::unpack(BlockType::q8_0, reinterpret_cast<const std::byte*>(blocks.data()), values);
    CHECK(values[0] == -1);
    CHECK(values[31] == 124);
    CHECK(values[32] == -0.5);
    CHECK(values[62] == -15.5);
    CHECK(values[63] == 62);
  }
  SECTION("Q4_1: d q + m, the low nibbles first") {
    const auto blocks = q4_1_block() + q4_1_block();
    example::unpack(BlockType::q4_1, reinterpret_cast<const std::byte*>(blocks.data()), values);
    for (std::size_t i = 0; i < 16; ++i) {
      CHECK(values[32 + i] == 0.5f * static_cast<float>(i) - 2);
      CHECK(values[48 + i] == 0.5f * static_cast<float>(15 - i) - 2);
    }
  }
}

TEST_CASE("gguf: products of a packed matrix are those of its floats") {
  for (const Eigen::Index rows : {1, 4, 66, 131})
    for (const Eigen::Index n : {1, 2, 3, 8}) {
      const Eigen::Index columns = 37;  // no whole number of lanes
      const example::Matrix weights = example::Matrix::Random(rows, columns),
                            x = example::Matrix::Random(n, columns);
      example::PackedMatrix packed{BlockType::f32, rows, columns, {}};
      const auto* bytes = reinterpret_cast<const std::byte*>(weights.data());
      packed.blocks.assign(bytes, bytes + weights.size() * static_cast<Eigen::Index>(sizeof(float)));
      example::Matrix y;
      packed.multiply(x, y, example::executor_of(2));
      REQUIRE(y.rows() == n);
      REQUIRE(y.cols() == rows);
      CHECK((y - x * weights.transpose()).cwiseAbs().maxCoeff() < 1e-5f);
    }
}
