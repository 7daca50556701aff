#pragma once
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "attention_balancer/core/growth.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// Scratch memory that calls can share: pass it as an lvalue to `attention`, and from the second call of a shape
/// nothing allocates. It only grows. One call at a time may use it. Not copyable.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Workspace(Workspace&& other) noexcept
      : memory_(std::move(other.memory_)), capacity_(std::exchange(other.capacity_, 0)) {}
  Workspace& operator=(Workspace&& other) noexcept {
    memory_ = std::move(other.memory_);
    capacity_ = std::exchange(other.capacity_, 0);
    return *this;
  }

  /// Bytes held.
  std::size_t capacity() const noexcept { return capacity_; }

  /// Memory for `bytes` bytes, aligned to a cache line; its content is not kept. Throws std::bad_alloc.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();  // free first: both at once would double the peak
      detail::allocate_growing(bytes, std::exchange(capacity_, 0), [&](std::size_t n) {
        memory_.reset(static_cast<std::byte*>(::operator new(n, alignment)));
        capacity_ = n;
      });
    }
    return memory_.get();
  }

  static constexpr std::align_val_t alignment{64};

 private:
  struct Free {
    void operator()(std::byte* p) const noexcept { ::operator delete(p, alignment); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t capacity_ = 0;
};

}  // namespace attention_balancer
