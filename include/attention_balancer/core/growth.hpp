#pragma once
// Memory that grows with a sequence, a token at a time.

#include <algorithm>
#include <cstddef>
#include <vector>

namespace attention_balancer::detail {

/// Room for `size` elements, and where that is more than there was, for half as many again: what grows by one at a
/// time then allocates, and moves, a logarithmic number of times. The size stays. Throws std::bad_alloc.
template <class X>
void reserve_growing(std::vector<X>& x, std::size_t size) {
  if (size > x.capacity()) x.reserve(std::max(size, x.capacity() + x.capacity() / 2));
}

}  // namespace attention_balancer::detail
