#pragma once
#include <chrono>
#include <cstddef>
#include <string>

namespace example {

/// Seconds since construction.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// One line on standard error about a job of known length: redrawn in place on a terminal; in a log, one line every
/// few seconds. Jobs that take less than half a second stay silent.
class Progress {
 public:
  Progress(std::string label, std::size_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(std::size_t steps = 1);

  /// Takes the line off the terminal, for something else to be printed there.
  void hide();

 private:
  std::string label_;
  std::size_t total_, done_ = 0, drawn_ = 0;
  bool terminal_;
  double next_;
  Stopwatch watch_;
};

}  // namespace example
