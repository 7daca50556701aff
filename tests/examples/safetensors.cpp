#include "support/safetensors.hpp"

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "files.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using example::FileError;
using example::Safetensors;

namespace {

std::string bytes_of(std::uint64_t value) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &value, 8);
  return bytes;
}

std::string bytes_of(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string file(const std::string& header, const std::string& data) {
  return bytes_of(header.size()) + header + data;
}

const std::string two_tensors =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}})";
const std::string two_data = bytes_of({1, 2, 3, 4, 5, 6}) + std::string(8, '\0');

}  // namespace

TEST_CASE("safetensors: a good file") {
  files::Folder folder;
  Safetensors tensors(folder.write("good", file(two_tensors, two_data)));
  REQUIRE(tensors.entries().size() == 2);
  REQUIRE(tensors.floats("a", {2, 3}) == std::vector<float>{1, 2, 3, 4, 5, 6});
  REQUIRE(tensors.floats("a", {2, 3}).size() == 6);  // and once more

  Safetensors scalar(folder.write(
      "scalar", file(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", bytes_of(std::vector<float>{7}))));
  REQUIRE(scalar.floats("s", {}) == std::vector<float>{7});

  Safetensors none(folder.write("none", file(R"({"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]}} )", "")));
  REQUIRE(none.floats("e", {0, 5}).empty());
}

TEST_CASE("safetensors: what is asked for must be there") {
  files::Folder folder;
  Safetensors tensors(folder.write("good", file(two_tensors, two_data)));
  REQUIRE_THROWS_WITH(tensors.floats("c", {1}),
                      ContainsSubstring("good") && ContainsSubstring("\"c\": is missing"));
  REQUIRE_THROWS_WITH(tensors.floats("b", {1}), ContainsSubstring("\"b\": is I64, but must be F32"));
  REQUIRE_THROWS_WITH(tensors.floats("a", {3, 2}), ContainsSubstring("has shape [2, 3], but must have [3, 2]"));
  REQUIRE_THROWS_WITH(tensors.floats("a", {6}), ContainsSubstring("has shape [2, 3], but must have [6]"));
}

TEST_CASE("safetensors: corrupt files say what is wrong") {
  files::Folder folder;
  const auto one = [](const std::string& entry) { return "{\"a\":" + entry + "}"; };
  const std::string eight(8, 'x');

  struct Case {
    const char* what;
    std::string content, message;
  };
  const std::vector<Case> cases{
      {"empty", "", "is 0 bytes long"},
      {"shorter than the length", "1234", "is 4 bytes long"},
      {"header past the end", bytes_of(1000) + "{}", "said to be 1000 bytes long, but only 2 bytes follow"},
      {"huge header", bytes_of(~std::uint64_t{0}) + "{}", "but only 2 bytes follow"},
      {"not JSON", file("{\"a\":", ""), "not JSON"},
      {"not UTF-8", file("{\"\xff\":1}", ""), "not JSON"},
      {"not an object", file("[1,2]", ""), "not a JSON object"},
      {"entry of another kind", file(one("5"), ""), "\"a\": is not described by"},
      {"no dtype", file(one(R"({"shape":[1],"data_offsets":[0,4]})"), "1234"), "\"a\": is not described by"},
      {"no shape", file(one(R"({"dtype":"F32","data_offsets":[0,4]})"), "1234"), "\"a\": is not described by"},
      {"no offsets", file(one(R"({"dtype":"F32","shape":[1]})"), "1234"), "\"a\": is not described by"},
      {"negative size", file(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), "1234"),
       "shape holds -1"},
      {"broken size", file(one(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})"), "1234"),
       "shape holds 1.5"},
      {"unknown dtype", file(one(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})"), "1234"), "dtype \"F31\""},
      {"three offsets", file(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})"), "1234"),
       "data_offsets are [0,4,8]"},
      {"negative offset", file(one(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})"), "1234"),
       "data_offsets are [-4,0]"},
      {"offsets backwards", file(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), eight),
       "run backwards"},
      {"truncated data", file(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), "1234"),
       "end past the 4 bytes of data"},
      {"size does not fit", file(one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), eight),
       "hold 8 bytes, but F32 [3] takes 12 bytes"},
      {"size overflows",
       file(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"), eight), "is too large"},
      {"hole", file(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), eight), "starts at 4"},
      {"overlap",
       file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
            R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
            eight),
       "\"b\": its data starts at 4, but the tensor before it ends at 8"},
      {"left over", file(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"), eight),
       "holds 8 bytes of data, but its tensors take 4"},
      {"name twice",
       file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
            R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
            eight),
       "\"a\": stands twice"},
  };
  for (const auto& c : cases) {
    INFO(c.what);
    const auto path = folder.write("corrupt", c.content);
    REQUIRE_THROWS_AS(Safetensors(path), FileError);
    REQUIRE_THROWS_WITH(Safetensors(path), ContainsSubstring(path.string()) && ContainsSubstring(c.message));
  }
  REQUIRE_THROWS_WITH(Safetensors(folder.path() / "absent"), ContainsSubstring("cannot be opened"));
  REQUIRE_THROWS_WITH(Safetensors(folder.path()), ContainsSubstring("cannot be opened"));

  SECTION("every truncation of a good file is an error") {
    const std::string whole = file(two_tensors, two_data);
    for (std::size_t length = 0; length < whole.size(); ++length) {
      INFO("first " << length << " of " << whole.size() << " bytes");
      REQUIRE_THROWS_AS(Safetensors(folder.write("part", whole.substr(0, length))), FileError);
    }
  }
  SECTION("no single changed byte of the header makes it crash") {
    const std::string whole = file(two_tensors, two_data);
    for (std::size_t at = 0; at < 8 + two_tensors.size(); ++at)
      for (const char byte : {'\0', '"', '9', '{', '\xff'}) {
        std::string changed = whole;
        changed[at] = byte;
        try {
          Safetensors tensors(folder.write("changed", changed));
          for (const auto& [name, entry] : tensors.entries()) REQUIRE(entry.end <= two_data.size());
        } catch (const FileError&) {
        }
      }
  }
}

TEST_CASE("safetensors: what is written can be read") {
  files::Folder folder;
  const auto path = folder.path() / "written";
  const std::vector<float> a{1, 2, 3, 4, 5, 6}, b{7};
  example::write_safetensors(path, {{"a", {2, 3}, a}, {"b", {}, b}, {"none", {0, 4}, {}}},
                             {{"key", "v\"\n\xc3\xa9"}});
  Safetensors tensors(path);
  CHECK(tensors.entries().size() == 3);
  CHECK(tensors.floats("a", {2, 3}) == a);
  CHECK(tensors.floats("b", {}) == b);
  CHECK(tensors.floats("none", {0, 4}).empty());
  CHECK(tensors.metadata("key") == "v\"\n\xc3\xa9");
  CHECK_THROWS_WITH(tensors.metadata("other"), ContainsSubstring("\"other\" is missing in the metadata"));

  CHECK_THROWS_AS(example::write_safetensors(path, {{"a", {2, 2}, a}}), FileError);
  CHECK_THROWS_AS(example::write_safetensors(path, {{"a", {6}, a}, {"a", {6}, a}}), FileError);
  CHECK_THROWS_AS(example::write_safetensors(folder.path() / "no" / "file", {{"a", {6}, a}}), FileError);
  CHECK(Safetensors(path).floats("b", {}) == b);  // as it was
}
