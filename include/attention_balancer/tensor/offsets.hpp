#pragma once
// Where sequences begin that lie one after the other.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "attention_balancer/core/error.hpp"
#include "attention_balancer/tensor/shape.hpp"

namespace attention_balancer {
namespace detail {

/// Where sequences that lie one after the other begin, and where the last one ends. Borrows the numbers, but
/// for a braced list.
class Offsets {
 public:
  Offsets(std::span<const Index> offsets) noexcept : wide_(offsets) {}
  Offsets(std::span<const std::int32_t> offsets) noexcept : narrow_(offsets) {}
  Offsets(const char* name, std::initializer_list<Index> offsets) : copied_(static_cast<Index>(offsets.size())) {
    if (copied_ > most_copied)
      fail<ShapeError>(std::string(name) + " braced list length", copied_, "be at most " + std::to_string(most_copied));
    std::copy(offsets.begin(), offsets.end(), copy_);
  }

  Index size() const noexcept { return copied_ + static_cast<Index>(wide_.size() + narrow_.size()); }
  Index begin(Index sequence) const noexcept {
    const auto at = static_cast<std::size_t>(sequence);
    return copied_ > 0 ? copy_[at] : narrow_.empty() ? wide_[at] : static_cast<Index>(narrow_[at]);
  }
  Index length(Index sequence) const noexcept { return begin(sequence + 1) - begin(sequence); }

  /// Throws ShapeError unless there is one at least, and they do not decrease, in [0, length].
  void check(const char* name, Index length) const {
    auto of = [name](const std::string& part) { return name + part; };  // only of what is wrong: it allocates
    if (size() < 1) fail<ShapeError>(of(" number of offsets"), size(), "be at least 1");
    Index least = 0;
    for (Index i = 0; i < size(); ++i) {
      if (begin(i) < least || begin(i) > length)
        fail<ShapeError>(of(" offset " + std::to_string(i)), begin(i),
                         "be in [" + std::to_string(least) + ", " + std::to_string(length) + "]");
      least = begin(i);
    }
  }

  template <class F>
  void borrowed(const char* name, F f) const {
    if (!wide_.empty()) f(layout(name, wide_));
    if (!narrow_.empty()) f(layout(name, narrow_));
  }

 private:
  static constexpr Index most_copied = 16;
  Index copy_[most_copied] = {};
  Index copied_ = 0;
  std::span<const Index> wide_;
  std::span<const std::int32_t> narrow_;
};

}  // namespace detail
}  // namespace attention_balancer
