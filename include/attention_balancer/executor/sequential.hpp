#pragma once
// Who runs the independent pieces of a call. An executor never changes a result, not by one bit.

#include <concepts>

#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace executor {

/// Multiply-adds of attention that take one core about 20 microseconds: twice as many, divided among two threads, take
/// as long as on one if the second has to be woken, and little more than half as long if it is awake.
inline constexpr Index default_grain = Index(1) << 19;

/// Runs everything in the calling thread: the default.
struct Sequential {
  Index concurrency() const noexcept { return 1; }

  template <class F>
  void for_each(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(i);
  }
};

}  // namespace executor

/// An executor calls f(0) ... f(n - 1), in any order and on any threads, and returns when all are done. It may have
/// `Index concurrency() const`: how many of them can run at once, at least 1 (absent: one per processor), and a number
/// `grain`: the multiply-adds of attention that are worth one more thread (absent: any are). A call of less than two
/// grains is one piece. Masks do not make a call smaller here.
template <class E>
concept Executor = requires(const E& e, void (*f)(Index)) { e.for_each(Index(1), f); };

}  // namespace attention_balancer
