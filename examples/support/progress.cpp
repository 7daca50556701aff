#include "progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace example {
namespace {

constexpr double silent_seconds = 0.5, redraw_seconds = 0.1, log_seconds = 5;

}  // namespace

Progress::Progress(std::string label, std::size_t total)
    : label_(std::move(label)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      next_(terminal_ ? silent_seconds : log_seconds) {}

Progress::~Progress() { hide(); }

void Progress::hide() {
  if (terminal_ && drawn_ > 0) std::fprintf(stderr, "\r%*s\r", static_cast<int>(drawn_), "");
  drawn_ = 0;
}

void Progress::advance(std::size_t steps) {
  done_ = std::min(done_ + steps, total_);
  const double now = watch_.seconds();
  if (now < next_) return;
  next_ = now + (terminal_ ? redraw_seconds : log_seconds);
  const double left = done_ > 0 ? now * static_cast<double>(total_ - done_) / static_cast<double>(done_) : 0;
  char line[160];
  const int written =
      std::snprintf(line, sizeof line, "%s: %zu of %zu, %.0f s left", label_.c_str(), done_, total_, left);
  const auto length = std::min(static_cast<std::size_t>(std::max(written, 0)), sizeof line - 1);
  if (terminal_) {
    std::fprintf(stderr, "\r%-*s", static_cast<int>(std::max(length, drawn_)), line);
    std::fflush(stderr);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
  drawn_ = length;
}

}  // namespace example
