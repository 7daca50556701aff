#pragma once
// GGUF files made on the spot, byte by byte as the format's description says.

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace files {

template <class T>
std::string bytes_of(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::string gguf_text(const std::string& text) { return bytes_of<std::uint64_t>(text.size()) + text; }

/// Metadata and tensors, added one by one.
class GgufFile {
 public:
  void whole(const std::string& key, std::uint32_t value) { pair(key, 4, bytes_of(value)); }
  void real(const std::string& key, float value) { pair(key, 6, bytes_of(value)); }
  void text(const std::string& key, const std::string& value) { pair(key, 8, gguf_text(value)); }
  void texts(const std::string& key, const std::vector<std::string>& values) {
    std::string bytes = bytes_of<std::uint32_t>(8) + bytes_of<std::uint64_t>(values.size());
    for (const auto& value : values) bytes += gguf_text(value);
    pair(key, 9, bytes);
  }
  void pair(const std::string& key, std::uint32_t kind, const std::string& value) {
    metadata_ += gguf_text(key) + bytes_of(kind) + value;
    ++pairs_;
  }

  /// `shape`: the features first.
  void tensor(const std::string& name, std::uint32_t type, const std::vector<std::uint64_t>& shape,
              const std::string& data) {
    entries_ += gguf_text(name) + bytes_of(static_cast<std::uint32_t>(shape.size()));
    for (const auto size : shape) entries_ += bytes_of(size);
    entries_ += bytes_of(type) + bytes_of<std::uint64_t>(data_.size());
    data_ += data;
    data_.resize((data_.size() + 31) / 32 * 32, '\0');
    ++tensors_;
  }
  void floats(const std::string& name, const std::vector<std::uint64_t>& shape, const std::vector<float>& values) {
    std::string data(values.size() * sizeof(float), '\0');
    std::memcpy(data.data(), values.data(), data.size());
    tensor(name, 0, shape, data);
  }

  std::string header() const {
    return "GGUF" + bytes_of<std::uint32_t>(3) + bytes_of<std::uint64_t>(tensors_) +
           bytes_of<std::uint64_t>(pairs_) + metadata_ + entries_;
  }
  std::string bytes() const {
    std::string all = header();
    all.resize((all.size() + 31) / 32 * 32, '\0');
    return all + data_;
  }

 private:
  std::uint64_t pairs_ = 0, tensors_ = 0;
  std::string metadata_, entries_, data_;
};

}  // namespace files
