#include "gguf.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string_view>
#include <utility>

namespace example {

static_assert(std::endian::native == std::endian::little, "a GGUF file is little-endian");

namespace {

constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();

// Kinds of metadata.
enum class Kind : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

// Bytes of a number; 0 for what is none.
std::uint64_t number_bytes(std::uint32_t kind) noexcept {
  using enum Kind;
  switch (static_cast<Kind>(kind)) {
    case u8:
    case i8:
    case boolean: return 1;
    case u16:
    case i16: return 2;
    case u32:
    case i32:
    case f32: return 4;
    case u64:
    case i64:
    case f64: return 8;
    default: return 0;
  }
}

// Bytes of a tensor in whole blocks; `largest` if they cannot be counted or its rows are no whole blocks.
std::uint64_t data_bytes(BlockType type, const std::vector<std::uint64_t>& shape) noexcept {
  const auto block = block_size(type);
  const auto values = static_cast<std::uint64_t>(block.values);
  std::uint64_t count = 1;
  for (const auto size : shape) {
    if (size > 0 && count > largest / 64 / size) return largest;
    count *= size;
  }
  return shape.empty() || shape[0] % values == 0 ? count / values * block.bytes : largest;
}

}  // namespace

void Gguf::fail(const std::string& what) const { throw FileError(file_.string() + ": " + what); }

void Gguf::fail_tensor(const std::string& tensor, const std::string& what) const {
  fail("tensor \"" + tensor + "\": " + what);
}

void Gguf::read(void* to, std::uint64_t bytes, const std::string& what) {
  if (bytes > left_)
    fail("truncated: " + what + " takes " + std::to_string(bytes) + " bytes, but only " + std::to_string(left_) +
         " follow");
  stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  if (!stream_) fail("cannot be read");
  left_ -= bytes;
}

template <class T>
T Gguf::read(const std::string& what) {
  T value{};
  read(&value, sizeof value, what);
  return value;
}

std::string Gguf::read_text(const std::string& what) {
  const auto size = read<std::uint64_t>("the length of " + what);
  if (size > left_) read(nullptr, size, what);  // says what is wrong, before the memory is asked for
  std::string text(size, '\0');
  read(text.data(), size, what);
  return text;
}

Gguf::Value Gguf::read_array(const std::string& what) {
  const auto kind = read<std::uint32_t>(what);
  const auto count = read<std::uint64_t>(what);
  const std::uint64_t least =
      kind == static_cast<std::uint32_t>(Kind::text) ? sizeof(std::uint64_t) : number_bytes(kind);
  if (least == 0) fail(what + " is an array of kind " + std::to_string(kind) + ", which this reader does not know");
  if (count > left_ / least)
    fail("truncated: " + what + " has " + std::to_string(count) + " entries, but only " + std::to_string(left_) +
         " bytes follow");
  if (kind != static_cast<std::uint32_t>(Kind::text)) {
    stream_.seekg(static_cast<std::streamoff>(count * least), std::ios::cur);
    left_ -= count * least;
    return {};
  }
  std::vector<std::string> texts;
  texts.reserve(count);
  for (std::uint64_t i = 0; i < count; ++i) texts.push_back(read_text(what));
  return texts;
}

Gguf::Value Gguf::read_value(std::uint32_t kind, const std::string& what) {
  const auto whole = [&](auto number) -> Value {
    if (number < 0) return static_cast<double>(number);
    return static_cast<std::uint64_t>(number);
  };
  using enum Kind;
  switch (static_cast<Kind>(kind)) {
    case u8:
    case boolean: return std::uint64_t{read<std::uint8_t>(what)};
    case u16: return std::uint64_t{read<std::uint16_t>(what)};
    case u32: return std::uint64_t{read<std::uint32_t>(what)};
    case u64: return read<std::uint64_t>(what);
    case i8: return whole(read<std::int8_t>(what));
    case i16: return whole(read<std::int16_t>(what));
    case i32: return whole(read<std::int32_t>(what));
    case i64: return whole(read<std::int64_t>(what));
    case f32: return static_cast<double>(read<float>(what));
    case f64: return read<double>(what);
    case Kind::text: return read_text(what);
    case array: return read_array(what);
    default: fail(what + " is of kind " + std::to_string(kind) + ", which this reader does not know");
  }
}

Gguf::Gguf(const std::filesystem::path& file) : file_(file), stream_(file, std::ios::binary) {
  std::error_code error;
  if (!stream_ || std::filesystem::is_directory(file, error)) fail("cannot be opened");
  const std::uint64_t size = left_ = std::filesystem::file_size(file, error);
  if (error) fail("its size is unknown: " + error.message());

  char magic[4];
  read(magic, sizeof magic, "the magic number");
  if (std::string_view(magic, sizeof magic) != "GGUF") fail("does not begin with GGUF: no GGUF file");
  const auto version = read<std::uint32_t>("the version");
  if (version != 3) fail("is GGUF version " + std::to_string(version) + ", but must be 3");
  const auto tensors = read<std::uint64_t>("the number of tensors");
  const auto pairs = read<std::uint64_t>("the number of metadata");
  for (std::uint64_t i = 0; i < pairs; ++i) {
    const auto key = read_text("the key of metadata " + std::to_string(i));
    const auto kind = read<std::uint32_t>("the kind of \"" + key + "\"");
    if (!metadata_.emplace(key, read_value(kind, "\"" + key + "\"")).second) fail("\"" + key + "\" stands twice");
  }
  read_entries(tensors);
  const std::uint64_t alignment = has("general.alignment") ? whole("general.alignment") : 32;
  if (alignment == 0 || alignment > 65536) fail("\"general.alignment\" is " + std::to_string(alignment));
  const std::uint64_t header = size - left_;
  data_start_ = (header + alignment - 1) / alignment * alignment;
  left_ = size - std::min(size, data_start_);
  check_entries();
}

void Gguf::read_entries(std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto name = read_text("the name of tensor " + std::to_string(i));
    const auto what = "the description of tensor \"" + name + "\"";
    Entry entry;
    const auto axes = read<std::uint32_t>(what);
    if (axes > 4) fail_tensor(name, "has " + std::to_string(axes) + " axes, but the format allows 4");
    for (std::uint32_t axis = 0; axis < axes; ++axis) entry.shape.push_back(read<std::uint64_t>(what));
    entry.type = read<std::uint32_t>(what);
    entry.begin = read<std::uint64_t>(what);
    if (!entries_.emplace(name, std::move(entry)).second) fail_tensor(name, "stands twice");
  }
}

// Types that this reader does not know may stand there, as long as nobody asks for them.
void Gguf::check_entries() {
  for (const auto& [name, entry] : entries_) {
    const auto type = static_cast<BlockType>(entry.type);
    if (block_size(type).values == 0) continue;
    const auto bytes = data_bytes(type, entry.shape);
    if (bytes == largest)
      fail_tensor(name, to_string(type) + " " + shape_text(entry.shape) + " is too large or no whole blocks");
    if (entry.begin > left_ || bytes > left_ - entry.begin)
      fail_tensor(name, "truncated: its data end at " + std::to_string(entry.begin) + " + " +
                            std::to_string(bytes) + ", but the file holds " + std::to_string(left_) +
                            " bytes of data");
  }
}

const Gguf::Value& Gguf::value(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) fail("\"" + key + "\" is missing");
  return found->second;
}

std::uint64_t Gguf::whole(const std::string& key) const {
  const auto* number = std::get_if<std::uint64_t>(&value(key));
  if (number == nullptr) fail("\"" + key + "\" is no whole number");
  return *number;
}

double Gguf::real(const std::string& key) const {
  if (const auto* number = std::get_if<double>(&value(key))) return *number;
  return static_cast<double>(whole(key));
}

const std::string& Gguf::text(const std::string& key) const {
  const auto* found = std::get_if<std::string>(&value(key));
  if (found == nullptr) fail("\"" + key + "\" is no text");
  return *found;
}

const std::vector<std::string>& Gguf::texts(const std::string& key) const {
  const auto* found = std::get_if<std::vector<std::string>>(&value(key));
  if (found == nullptr) fail("\"" + key + "\" is no array of texts");
  return *found;
}

const Gguf::Entry& Gguf::entry(const std::string& name, const std::vector<std::uint64_t>& shape) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail_tensor(name, "is missing");
  if (found->second.shape != shape)
    fail_tensor(name, "has shape " + shape_text(found->second.shape) + ", but must have " + shape_text(shape));
  return found->second;
}

void Gguf::read_data(const Entry& entry, void* to, std::uint64_t bytes) {
  stream_.clear();
  stream_.seekg(static_cast<std::streamoff>(data_start_ + entry.begin));
  stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  if (!stream_) fail("cannot be read");
}

std::vector<float> Gguf::floats(const std::string& name, Eigen::Index size) {
  const Entry& found = entry(name, {static_cast<std::uint64_t>(size)});
  const auto type = static_cast<BlockType>(found.type);
  if (type != BlockType::f32) fail_tensor(name, "is " + to_string(type) + ", but must be F32");
  std::vector<float> values(static_cast<std::size_t>(size));
  read_data(found, values.data(), values.size() * sizeof(float));
  return values;
}

void Gguf::append(const std::string& name, Eigen::Index rows, Eigen::Index columns, PackedMatrix& target) {
  const Entry& found = entry(name, {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)});
  const auto type = static_cast<BlockType>(found.type);
  if (block_size(type).values == 0)
    fail_tensor(name, "is " + to_string(type) + ", but this reader knows F32, Q4_1 and Q8_0 only");
  if (target.rows > 0 && (type != target.type || columns != target.columns))
    fail_tensor(name, "is " + to_string(type) + ", but must be " + to_string(target.type) + " as its neighbour");
  target.type = type;
  target.columns = columns;
  target.rows += rows;
  const auto before = target.blocks.size();
  const auto bytes = data_bytes(type, found.shape);
  target.blocks.resize(before + bytes);
  read_data(found, target.blocks.data() + before, bytes);
}

}  // namespace example
