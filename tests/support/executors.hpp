#pragma once
// Threads however small a call is: the tests want them to change nothing where they do share the work.

#include <functional>
#include <thread>
#include <vector>

#include "support/check.hpp"
#if defined(ATTENTION_BALANCER_HAS_TBB)
#include "attention_balancer/executor/tbb.hpp"
#endif

namespace support {

#if defined(_OPENMP)
inline ab::executor::OpenMp openmp(Index threads) { return {.threads = threads, .grain = 0}; }
#endif

#if defined(ATTENTION_BALANCER_HAS_TBB)
inline ab::executor::Tbb tbb(Index threads) { return {.threads = threads, .grain = 0}; }
#endif

/// A user's own: a thread per piece, that says how many it likes. Any order and any thread must do.
struct Threads {
  Index wanted = 1;
  Index concurrency() const { return wanted; }
  template <class F>
  void for_each(Index n, F&& f) const {
    std::vector<std::thread> team;
    for (Index i = n; i-- > 0;) team.emplace_back([&f, i] { f(i); });
    for (auto& t : team) t.join();
  }
};

/// Any executor behind one type, so that the kernels are compiled once for all of them.
struct AnyExecutor {
  const char* name;
  Index threads;
  Index grain = 0;
  std::function<void(Index, const std::function<void(Index)>&)> run;

  template <class E>
  AnyExecutor(const char* what, const E& executor)
      : name(what),
        threads(executor.concurrency()),
        run([executor](Index n, const std::function<void(Index)>& f) { executor.for_each(n, f); }) {
    static_assert(ab::Executor<E>);
  }
  Index concurrency() const { return threads; }
  template <class F>
  void for_each(Index n, F&& f) const {
    run(n, std::ref(f));
  }
};

inline std::vector<AnyExecutor> executors_with(Index threads) {
  std::vector<AnyExecutor> all{{"threads", Threads{threads}}};
#if defined(_OPENMP)
  all.emplace_back("OpenMp", openmp(threads));
#endif
#if defined(ATTENTION_BALANCER_HAS_TBB)
  all.emplace_back("Tbb", tbb(threads));
#endif
  return all;
}

}  // namespace support
