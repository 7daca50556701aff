// An executor calls every piece once.

#include <atomic>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "support/catch.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

template <class E>
void check_every_piece(const E& executor) {
  static_assert(ab::Executor<E>);
  for (const Index n : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
    executor.for_each(n, [&](Index i) { ++calls[static_cast<std::size_t>(i)]; });
    Index once = 0;
    for (const auto& c : calls) once += c == 1 ? 1 : 0;
    CHECK(once == n);
  }
  CHECK(executor.concurrency() >= 1);
}

}  // namespace

TEST_CASE("every piece runs once", "[executor]") {
  check_every_piece(ab::executor::Sequential{});
  CHECK(ab::executor::Sequential{}.concurrency() == 1);
#if defined(_OPENMP)
  for (const Index threads : {0, 1, 2, 3, 8}) check_every_piece(ab::executor::OpenMp{threads});
  CHECK(ab::executor::OpenMp{3}.concurrency() == 3);
#endif
}

TEST_CASE("few pieces start few threads", "[executor]") {
#if defined(_OPENMP)
  int team = 0;
  ab::executor::OpenMp{64}.for_each(2, [&](Index i) {
    if (i == 0) team = omp_get_num_threads();
  });
  CHECK(team <= 2);
#endif
}
