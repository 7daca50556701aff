#pragma once
// An executor for tests of who may run the pieces: in order, from the last to the first, a thread for each, or those of
// OpenMP. One type for all, so that the kernels' callers are compiled once.

#include <functional>
#include <thread>
#include <vector>

#include "attention_balancer/core/types.hpp"
#include "attention_balancer/executor/openmp.hpp"

namespace support {

struct Anybody {
  enum Kind { in_order, backwards, threads, open_mp };
  Kind kind = in_order;
  attention_balancer::Index pieces = 1;

  attention_balancer::Index concurrency() const { return pieces; }
  void for_each(attention_balancer::Index n, const std::function<void(attention_balancer::Index)>& f) const {
#if defined(_OPENMP)
    if (kind == open_mp) return attention_balancer::executor::OpenMp{pieces}.for_each(n, f);
#endif
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
