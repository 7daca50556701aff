#pragma once
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// Scratch memory that calls can share: pass it as an lvalue to `attention`, and from the second call of a shape
/// nothing allocates. It only grows. One call at a time may use it. Not copyable.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Workspace(Workspace&& other) noexcept = default;
  Workspace& operator=(Workspace&& other) noexcept = default;

  /// Bytes held.
  std::size_t capacity() const noexcept { return own_.capacity + beside_.capacity; }

  /// Memory for `bytes` bytes, aligned to a cache line; its content is not kept. Throws std::bad_alloc.
  std::byte* reserve(std::size_t bytes) { return own_.reserve(bytes); }

  /// The same, apart from what reserve returns: for what must last while that is used.
  std::byte* reserve_beside(std::size_t bytes) { return beside_.reserve(bytes); }

  static constexpr std::align_val_t alignment{64};

 private:
  struct Free {
    void operator()(std::byte* p) const noexcept { ::operator delete(p, alignment); }
  };
  struct Piece {
    std::unique_ptr<std::byte, Free> memory;
    std::size_t capacity = 0;

    Piece() = default;
    Piece(Piece&& other) noexcept : memory(std::move(other.memory)), capacity(std::exchange(other.capacity, 0)) {}
    Piece& operator=(Piece&& other) noexcept {
      memory = std::move(other.memory);
      capacity = std::exchange(other.capacity, 0);
      return *this;
    }
    std::byte* reserve(std::size_t bytes) {
      if (bytes > capacity) {
        memory.reset();  // free first: both at once would double the peak
        capacity = 0;
        memory.reset(static_cast<std::byte*>(::operator new(bytes, alignment)));
        capacity = bytes;
      }
      return memory.get();
    }
  };
  Piece own_, beside_;
};

}  // namespace attention_balancer
