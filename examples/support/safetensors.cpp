#include "safetensors.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "output.hpp"

namespace example {

static_assert(std::endian::native == std::endian::little, "the data of a safetensors file is little-endian");

namespace {

constexpr std::uint64_t largest_header = 100'000'000;  // the limit of the format itself
constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();

// Bytes of one element; 0 for a type that this reader does not know.
std::uint64_t element_bytes(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> bytes{
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},     {"I32", 4},     {"I16", 2}, {"I8", 1},
      {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1},   {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}};
  const auto found = bytes.find(dtype);
  return found == bytes.end() ? 0 : found->second;
}

std::string size_text(std::uint64_t bytes) { return std::to_string(bytes) + " bytes"; }

}  // namespace

void Safetensors::fail(const std::string& what) const { throw FileError(file_.string() + ": " + what); }

void Safetensors::fail(const std::string& tensor, const std::string& what) const {
  fail("tensor \"" + tensor + "\": " + what);
}

Safetensors::Safetensors(const std::filesystem::path& file) : file_(file), stream_(file, std::ios::binary) {
  std::error_code error;
  if (!stream_ || std::filesystem::is_directory(file, error)) fail("cannot be opened");
  const std::uint64_t size = std::filesystem::file_size(file, error);
  if (error) fail("its size is unknown: " + error.message());
  if (size < 8) fail("is " + size_text(size) + " long, but the length of the header alone takes 8");

  std::uint64_t header_bytes = 0;
  stream_.read(reinterpret_cast<char*>(&header_bytes), 8);
  if (!stream_) fail("cannot be read");
  if (header_bytes > size - 8)
    fail("the header is said to be " + size_text(header_bytes) + " long, but only " + size_text(size - 8) +
         " follow: truncated, or no safetensors file");
  if (header_bytes > largest_header)
    fail("the header is said to be " + size_text(header_bytes) + " long, more than the format allows (" +
         size_text(largest_header) + ")");

  std::string header(header_bytes, '\0');
  stream_.read(header.data(), static_cast<std::streamsize>(header_bytes));
  if (!stream_) fail("cannot be read");
  data_start_ = 8 + header_bytes;
  parse(header, size - data_start_);
}

void Safetensors::parse(const std::string& header, std::uint64_t data_bytes) {
  using nlohmann::json;
  // The library keeps the last of two equal keys; here they would hide one tensor behind another.
  std::set<std::string> names;
  const auto once = [&](int depth, json::parse_event_t event, json& value) {
    if (depth == 1 && event == json::parse_event_t::key && !names.insert(value.get<std::string>()).second)
      fail(value.get<std::string>(), "stands twice in the header");
    return true;
  };
  json root;
  try {
    root = json::parse(header, once);
  } catch (const json::exception& e) {
    fail(std::string("the header is not JSON: ") + e.what());
  }
  if (!root.is_object()) fail("the header is not a JSON object");

  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      if (value.is_object())
        for (const auto& [key, text] : value.items())
          if (text.is_string()) metadata_[key] = text.get<std::string>();
      continue;
    }
    Entry entry;
    try {
      entry.dtype = value.at("dtype").get<std::string>();
      for (const auto& length : value.at("shape")) {
        if (!length.is_number_unsigned()) fail(name, "the shape holds " + length.dump());
        entry.shape.push_back(length.get<std::uint64_t>());
      }
      const auto& offsets = value.at("data_offsets");
      if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
        fail(name, "data_offsets are " + offsets.dump() + ", but must be [begin, end]");
      entry.begin = offsets[0].get<std::uint64_t>();
      entry.end = offsets[1].get<std::uint64_t>();
    } catch (const json::exception& e) {
      fail(name, std::string("is not described by dtype, shape and data_offsets: ") + e.what());
    }

    const auto offsets = "data_offsets [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "]";
    if (entry.begin > entry.end) fail(name, offsets + " run backwards");
    if (entry.end > data_bytes)
      fail(name, offsets + " end past the " + size_text(data_bytes) + " of data: truncated file?");
    std::uint64_t bytes = element_bytes(entry.dtype);
    if (bytes == 0) fail(name, "the dtype \"" + entry.dtype + "\" is not known");
    for (const auto length : entry.shape) {
      if (length != 0 && bytes > largest / length) fail(name, "shape " + shape_text(entry.shape) + " is too large");
      bytes *= length;
    }
    if (entry.end - entry.begin != bytes)
      fail(name, offsets + " hold " + size_text(entry.end - entry.begin) + ", but " + entry.dtype + " " +
                     shape_text(entry.shape) + " takes " + size_text(bytes));
    entries_.emplace(name, std::move(entry));
  }

  // The format allows neither overlaps nor holes.
  std::vector<std::pair<const Entry*, const std::string*>> order;
  for (const auto& [name, entry] : entries_) order.emplace_back(&entry, &name);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  std::uint64_t end = 0;
  for (const auto& [entry, name] : order) {
    if (entry->begin != end)
      fail(*name, "its data starts at " + std::to_string(entry->begin) + ", but the tensor before it ends at " +
                      std::to_string(end));
    end = entry->end;
  }
  if (end != data_bytes)
    fail("holds " + size_text(data_bytes) + " of data, but its tensors take " + size_text(end));
}

std::vector<float> Safetensors::floats(const std::string& name, const std::vector<std::uint64_t>& shape) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail(name, "is missing");
  const Entry& entry = found->second;
  if (entry.dtype != "F32") fail(name, "is " + entry.dtype + ", but must be F32");
  if (!std::equal(entry.shape.begin(), entry.shape.end(), shape.begin(), shape.end()))
    fail(name, "has shape " + shape_text(entry.shape) + ", but must have " + shape_text(shape));

  std::vector<float> values((entry.end - entry.begin) / sizeof(float));
  stream_.clear();
  stream_.seekg(static_cast<std::streamoff>(data_start_ + entry.begin));
  stream_.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(entry.end - entry.begin));
  if (!stream_) fail(name, "cannot be read");
  return values;
}

const std::string& Safetensors::metadata(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) fail("\"" + key + "\" is missing in the metadata");
  return found->second;
}

void write_safetensors(const std::filesystem::path& file, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const auto refuse = [&](const TensorToWrite& tensor, const std::string& what) {
    throw FileError(file.string() + ": tensor \"" + tensor.name + "\": " + what);
  };
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t end = 0;
  for (const auto& tensor : tensors) {
    std::uint64_t size = 1;
    for (const auto length : tensor.shape) size *= length;
    if (size != tensor.values.size())
      refuse(tensor, "has " + std::to_string(tensor.values.size()) + " values, but the shape " +
                         shape_text(tensor.shape) + " takes " + std::to_string(size));
    if (header.contains(tensor.name) || tensor.name == "__metadata__")
      refuse(tensor, "cannot have that name twice");
    const auto begin = end;
    end += size * sizeof(float);
    header[tensor.name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the data is aligned
  const std::uint64_t length = text.size();
  std::string content(reinterpret_cast<const char*>(&length), 8);
  content += text;
  content.reserve(content.size() + end);
  for (const auto& tensor : tensors)
    content.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size_bytes());
  write_text(file, content);
}

}  // namespace example
