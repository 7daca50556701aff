// An executor of one's own: the threads that a program has anyway. Whatever has for_each(n, f) is one: it calls
// f(0) to f(n - 1), in any order and on any threads, and returns when all are done. The pool here starts its
// threads once; one of a library, such as BS::thread_pool or a job system, is wrapped the same way. Whoever
// computes, the bits are the same.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "attention_balancer/attention.hpp"

namespace ab = attention_balancer;

/// Threads that sleep until there is work. One for_each at a time, as one attention at a time uses a Workspace.
class Pool {
 public:
  explicit Pool(ab::Index threads) {
    for (ab::Index t = 1; t < threads; ++t) workers_.emplace_back([this] { work(); });  // the caller works too
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  /// How many pieces can run at once: attention cuts its work, and its memory, into no more.
  ab::Index concurrency() const noexcept { return static_cast<ab::Index>(workers_.size()) + 1; }

  /// f(0) ... f(n - 1). Nothing is allocated: the work is a pointer to f and how to call it.
  template <class F>
  void for_each(ab::Index n, F&& f) {
    call_ = [](void* function, ab::Index i) { (*static_cast<std::remove_reference_t<F>*>(function))(i); };
    function_ = const_cast<void*>(static_cast<const void*>(&f));
    next_ = 0;
    count_ = n;
    {
      const std::lock_guard lock(mutex_);
      busy_ = workers_.size();
      ++round_;
    }
    wake_.notify_all();
    take();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void take() {
    for (ab::Index i; (i = next_.fetch_add(1)) < count_;) call_(function_, i);
  }

  void work() {
    long seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
      }
      take();
      const std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  bool stopping_ = false;
  long round_ = 0;
  std::size_t busy_ = 0;
  void (*call_)(void*, ab::Index) = nullptr;
  void* function_ = nullptr;
  ab::Index count_ = 0;
  std::atomic<ab::Index> next_{0};
};

/// The executor: what is handed to attention is copied like any policy, so that it refers to the pool.
struct OnPool {
  /// Multiply-adds of attention that are worth one more thread: calls of less than two of these wake nobody.
  static constexpr ab::Index grain = ab::executor::default_grain;

  Pool* pool;
  ab::Index concurrency() const noexcept { return pool->concurrency(); }
  template <class F>
  void for_each(ab::Index n, F&& f) const {
    pool->for_each(n, f);
  }
};
static_assert(ab::Executor<OnPool>);

int main() try {
  const ab::Index heads = 8, length = 300, dim = 32;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(heads * length * dim)), alone(x.size()), shared(x.size());
  for (float& e : x) e = normal(random);
  const auto tokens = ab::bhsd(x.data(), 1, heads, length, dim);

  ab::Evidence<float> evidence;
  ab::attention(tokens, tokens, tokens, ab::bhsd(alone.data(), 1, heads, length, dim), ab::observe(evidence));
  const std::vector<float> mass(evidence.mass(0, 3).begin(), evidence.mass(0, 3).end());

  Pool pool(std::max(2, static_cast<int>(std::thread::hardware_concurrency())));
  ab::Workspace workspace;
  bool same = true;
  for (int call = 0; call < 100; ++call) {
    std::fill(shared.begin(), shared.end(), 0.f);
    ab::attention(tokens, tokens, tokens, ab::bhsd(shared.data(), 1, heads, length, dim), ab::observe(evidence),
                  OnPool{&pool}, workspace);
    same = same && std::memcmp(alone.data(), shared.data(), alone.size() * sizeof(float)) == 0 &&
           std::memcmp(mass.data(), evidence.mass(0, 3).data(), mass.size() * sizeof(float)) == 0;
  }
  std::printf("100 calls on %td threads of our own: %s\n", pool.concurrency(),
              same ? "the same bits as one thread, output and evidence" : "another result");
  return same ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
