#pragma once
#include <stdexcept>

namespace example {

/// A file that cannot be read, or that does not hold what it should. The message names the file and the place.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Training that cannot go on: a loss or a gradient that is not finite. The message says after which step.
struct TrainingError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace example
