#pragma once
// Reader of the safetensors format: u64 header length, JSON header, raw little-endian data.
// https://huggingface.co/docs/safetensors

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "errors.hpp"

namespace example {

/// An open safetensors file. The header is checked completely on opening; data is read tensor by tensor.
class Safetensors {
 public:
  struct Entry {
    std::string dtype;
    std::vector<std::uint64_t> shape;
    std::uint64_t begin = 0, end = 0;  // bytes, from the start of the data
  };

  /// Throws FileError for anything that is not a whole, consistent file: truncated, header past the end, offsets
  /// that leave the file, overlap or do not fit dtype and shape.
  explicit Safetensors(const std::filesystem::path& file);

  const std::map<std::string, Entry>& entries() const noexcept { return entries_; }

  /// The tensor `name`, which must be F32 of this shape: row-major values. Throws FileError.
  std::vector<float> floats(const std::string& name, std::initializer_list<std::uint64_t> shape);

 private:
  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const;
  void parse(const std::string& header, std::uint64_t data_bytes);

  std::filesystem::path file_;
  std::ifstream stream_;
  std::uint64_t data_start_ = 0;
  std::map<std::string, Entry> entries_;
};

}  // namespace example
