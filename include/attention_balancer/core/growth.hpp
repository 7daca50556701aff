#pragma once
// Memory that grows with a sequence, a token at a time: by halves, so that it is allocated, and moved, a logarithmic
// number of times.

#include <algorithm>
#include <cstddef>
#include <vector>

namespace attention_balancer::detail {

/// What to make room for where `size` is more than the room that there was.
constexpr std::size_t grown(std::size_t size, std::size_t room) noexcept { return std::max(size, room + room / 2); }

/// Room for `size` elements, and more if there was not enough. The size stays. Throws std::bad_alloc.
template <class X>
void reserve_growing(std::vector<X>& x, std::size_t size) {
  if (size > x.capacity()) x.reserve(grown(size, x.capacity()));
}

}  // namespace attention_balancer::detail
