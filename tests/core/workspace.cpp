#include "attention_balancer/core/workspace.hpp"

#include <cstdint>
#include <type_traits>

#include "support/catch.hpp"

namespace ab = attention_balancer;

TEST_CASE("a workspace only grows", "[core][workspace]") {
  static_assert(!std::is_copy_constructible_v<ab::Workspace> && !std::is_copy_assignable_v<ab::Workspace>);
  static_assert(std::is_nothrow_move_constructible_v<ab::Workspace> &&
                std::is_nothrow_move_assignable_v<ab::Workspace>);
  ab::Workspace workspace;
  CHECK(workspace.capacity() == 0);
  std::byte* const first = workspace.reserve(1000);
  CHECK(workspace.capacity() >= 1000);
  CHECK(reinterpret_cast<std::uintptr_t>(first) % 64 == 0);
  CHECK(workspace.reserve(10) == first);
  CHECK(workspace.capacity() >= 1000);
  std::byte* const second = workspace.reserve(5000);
  CHECK(reinterpret_cast<std::uintptr_t>(second) % 64 == 0);

  ab::Workspace other(std::move(workspace));
  CHECK(other.reserve(5000) == second);
  CHECK(workspace.capacity() == 0);  // NOLINT: what a moved-from workspace is, is part of the promise
  CHECK(workspace.reserve(100) != nullptr);
  workspace = std::move(other);
  CHECK(workspace.reserve(5000) == second);
  CHECK(other.capacity() == 0);
}
