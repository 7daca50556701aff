#pragma once
// An executor for tests of who may run the pieces: in order, from the last to the first, or a thread for each. One type
// for all, so that the kernels' callers are compiled once.

#include <thread>
#include <vector>

#include "attention_balancer/core/types.hpp"

namespace support {

struct Anybody {
  enum Kind { in_order, backwards, threads };
  Kind kind = in_order;
  attention_balancer::Index pieces = 1;

  attention_balancer::Index concurrency() const { return pieces; }
  template <class F>
  void for_each(attention_balancer::Index n, F&& f) const {
    std::vector<std::thread> team;
    for (attention_balancer::Index i = 0; i < n; ++i) {
      const auto piece = kind == backwards ? n - 1 - i : i;
      if (kind == threads)
        team.emplace_back([&f, piece] { f(piece); });
      else
        f(piece);
    }
    for (auto& t : team) t.join();
  }
};

}  // namespace support
