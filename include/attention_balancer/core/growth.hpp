#pragma once
// Memory that grows with a sequence, a token at a time: by halves, so that it is allocated, and moved, a logarithmic
// number of times.

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

namespace attention_balancer::detail {

/// allocate(n) for half as many again as there were, `room`, where `size` is not more; where there is no memory for
/// that, for `size`. Throws std::bad_alloc.
template <class F>
void allocate_growing(std::size_t size, std::size_t room, F allocate) {
  const std::size_t grown = std::max(size, room + room / 2);
  try {
    return allocate(grown);
  } catch (const std::bad_alloc&) {
    if (grown == size) throw;
  }
  allocate(size);
}

/// Room for `size` elements, and more if there was not enough. The size stays. Throws std::bad_alloc.
template <class X>
void reserve_growing(std::vector<X>& x, std::size_t size) {
  if (size > x.capacity()) allocate_growing(size, x.capacity(), [&](std::size_t n) { x.reserve(n); });
}

}  // namespace attention_balancer::detail
