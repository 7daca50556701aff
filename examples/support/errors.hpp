#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace example {

/// A file that cannot be read, or that does not hold what it should. The message names the file and the place.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Training that cannot go on: a loss or a gradient that is not finite. The message says after which step.
struct TrainingError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// "[2, 3]", for the messages of what reads tensors.
inline std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (const auto size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

}  // namespace example
