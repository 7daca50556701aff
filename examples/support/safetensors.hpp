#pragma once
// Reader and writer of the safetensors format: u64 header length, JSON header, raw little-endian data.
// https://huggingface.co/docs/safetensors

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
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
  std::vector<float> floats(const std::string& name, const std::vector<std::uint64_t>& shape);

  /// The texts that the writer put beside the tensors.
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

  /// One of them; throws FileError if it is missing.
  const std::string& metadata(const std::string& key) const;

 private:
  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const;
  void parse(const std::string& header, std::uint64_t data_bytes);

  std::filesystem::path file_;
  std::ifstream stream_;
  std::uint64_t data_start_ = 0;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// A tensor to write: F32, row-major. Borrowed.
struct TensorToWrite {
  std::string name;
  std::vector<std::uint64_t> shape;
  std::span<const float> values;
};

/// Writes a whole file or nothing: an existing file is replaced only when the new one is complete. Throws
/// FileError, also for a tensor whose values do not fit its shape or whose name stands there twice.
void write_safetensors(const std::filesystem::path& file, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace example
