#pragma once
// Reader of GGUF version 3, the format of llama.cpp: metadata, a list of tensors, and their data in blocks.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "errors.hpp"
#include "packed_matrix.hpp"

namespace example {

/// An open GGUF file. Metadata and the list of tensors are checked completely on opening; data is read tensor by
/// tensor.
class Gguf {
 public:
  struct Entry {
    std::uint32_t type = 0;            // a BlockType where this reader knows it
    std::vector<std::uint64_t> shape;  // as in the file: the features, which lie side by side, come first
    std::uint64_t begin = 0;           // bytes, from the start of the data
  };

  /// Throws FileError for anything that is no whole, consistent file: truncated, of another version, sizes that
  /// leave the file, a name that stands there twice.
  explicit Gguf(const std::filesystem::path& file);

  const std::map<std::string, Entry>& entries() const noexcept { return entries_; }

  bool has(const std::string& key) const { return metadata_.contains(key); }

  /// Metadata of this key. Throws FileError if it is missing or of another kind. Arrays of anything but texts are
  /// checked, but not kept.
  std::uint64_t whole(const std::string& key) const;
  double real(const std::string& key) const;
  const std::string& text(const std::string& key) const;
  const std::vector<std::string>& texts(const std::string& key) const;

  /// The vector `name`, which must be F32 of this size. Throws FileError.
  std::vector<float> floats(const std::string& name, Eigen::Index size);

  /// The matrix [rows, columns] below the ones in `target`, which must have as many columns and the same type; an
  /// empty target takes anything. Throws FileError.
  void append(const std::string& name, Eigen::Index rows, Eigen::Index columns, PackedMatrix& target);

 private:
  using Value = std::variant<std::monostate, std::uint64_t, double, std::string, std::vector<std::string>>;

  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void fail_tensor(const std::string& tensor, const std::string& what) const;
  void read(void* to, std::uint64_t bytes, const std::string& what);
  template <class T>
  T read(const std::string& what);
  std::string read_text(const std::string& what);
  Value read_value(std::uint32_t kind, const std::string& what);
  Value read_array(const std::string& what);
  void read_entries(std::uint64_t count);
  void check_entries();
  const Value& value(const std::string& key) const;
  const Entry& entry(const std::string& name, const std::vector<std::uint64_t>& shape) const;
  void read_data(const Entry& entry, void* to, std::uint64_t bytes);

  std::filesystem::path file_;
  std::ifstream stream_;
  std::uint64_t left_ = 0;        // bytes of the file that have not been read
  std::uint64_t data_start_ = 0;  // bytes
  std::map<std::string, Value> metadata_;
  std::map<std::string, Entry> entries_;
};

}  // namespace example
