#pragma once
// What reading memory costs at least: loads alone, over the very memory that a kernel reads, by as many threads. Which
// way of loading is the fastest depends on the core and on the cache that the memory lies in, so that the best of a few
// counts: in one stream or in four, plain or asking ahead.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

#include "attention_balancer/simd/pack.hpp"
#include "support/inputs.hpp"
#include "support/threads.hpp"

namespace bench {

namespace detail {

/// Floats that one step of read_all takes of a stream.
inline constexpr std::ptrdiff_t read_step = 8 * attention_balancer::simd::lanes<float>;

/// The sum of `count` floats, a multiple of `streams` steps, in so many streams side by side. What lies `Ahead` bytes
/// further is asked for, to the first cache (Cache = 1) or to the second one; nothing if Ahead is 0.
template <int streams, int Ahead, int Cache>
[[gnu::noinline]] float read_all(const float* data, std::ptrdiff_t count) {
  namespace simd = attention_balancer::simd;
  using Pack = simd::Pack<float>;
  const std::ptrdiff_t length = count / streams;
  Pack sums[8];
  for (Pack& sum : sums) sum = Pack(0.f);
  for (std::ptrdiff_t i = 0; i < length; i += read_step) {
    for (int s = 0; s < streams; ++s) {
      const float* const from = data + s * length + i;
      if constexpr (Ahead > 0) {
        ATTENTION_BALANCER_UNROLL
        for (int k = 0; k < read_step; k += 16) __builtin_prefetch(from + Ahead / 4 + k, 0, Cache == 1 ? 3 : 2);
      }
      ATTENTION_BALANCER_UNROLL
      for (int k = 0; k < 8; ++k) sums[k] = sums[k] + simd::load<Pack>(from + k * simd::lanes<float>);
    }
  }
  for (int k = 1; k < 8; ++k) sums[0] = sums[0] + sums[k];
  return simd::reduce_add(sums[0]);
}

}  // namespace detail

/// Times reading pieces of memory, all of them in one call, shared among threads by the executor of the kernels: none
/// waits for another whose core was taken away.
class Reads {
 public:
  struct Piece {
    const void* data;
    std::size_t bytes;
  };

  /// Reads all once, so that caches hold what they can. What is less than a few kilobytes at the end of a piece is not
  /// read.
  Reads(const std::vector<Piece>& memory, int threads) : threads_(threads) {
    const std::ptrdiff_t parts = threads == 1 ? 1 : 8 * threads;
    for (const Piece& piece : memory) {
      const auto* const first = static_cast<const float*>(piece.data);
      const std::ptrdiff_t steps = static_cast<std::ptrdiff_t>(piece.bytes / sizeof(float)) / step;
      for (std::ptrdiff_t i = 0; i < parts; ++i) {
        const std::ptrdiff_t begin = steps * i / parts, end = steps * (i + 1) / parts;
        if (end > begin) parts_.push_back({first + begin * step, (end - begin) * step});
      }
    }
    seconds_of(ways[0]);
  }

  /// Each way once, to be called in turn with what is compared.
  void time() {
    for (std::size_t w = 0; w < std::size(ways); ++w) times_[w].push_back(seconds_of(ways[w]));
  }

  /// Seconds for all of the memory: the median of the way that was fastest.
  double seconds() const {
    double least = median(times_[0]);
    for (const std::vector<double>& times : times_) least = std::min(least, median(times));
    return least;
  }

 private:
  using Read = float (*)(const float*, std::ptrdiff_t);
  static constexpr Read ways[] = {detail::read_all<1, 0, 0>, detail::read_all<4, 0, 0>,
                                  detail::read_all<1, 1024, 1>, detail::read_all<4, 2048, 2>};
  static constexpr std::ptrdiff_t step = 4 * detail::read_step;
  struct Part {
    const float* first;
    std::ptrdiff_t count;
  };

  double seconds_of(Read read) const {
    const auto start = std::chrono::steady_clock::now();
    team_of(threads_).for_each(static_cast<Index>(parts_.size()), [&](Index i) {
      const Part& part = parts_[static_cast<std::size_t>(i)];
      const float sum = read(part.first, part.count);
      asm volatile("" : : "m"(sum) : "memory");  // used, as far as the compiler knows
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  int threads_;
  std::vector<Part> parts_;
  std::vector<double> times_[std::size(ways)];
};

/// Seconds to read all of the memory once, where nothing is to be timed in turn with that.
inline double read_seconds(const std::vector<Reads::Piece>& memory, int threads, int rounds) {
  Reads reads(memory, threads);
  for (int i = 0; i < rounds; ++i) reads.time();
  return reads.seconds();
}

}  // namespace bench
