// One program for several machines: its kernels are there once per instruction set, and it takes the best that the
// processor has. Forced with an argument, or with ATTENTION_BALANCER_ISA in the environment. The results agree; the
// times do not.
//
//   several_machines [sse2|avx2|avx512|neon64]

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <utility>
#include <vector>

#include "kernels.hpp"

namespace {

struct Result {
  std::vector<float> out, mass;
  double seconds;
};

Result run(const Kernels& chosen, const std::vector<float>& x, std::ptrdiff_t length, std::ptrdiff_t dim) {
  Result result{std::vector<float>(x.size()), std::vector<float>(static_cast<std::size_t>(length)), 1e9};
  for (int i = 0; i < 3; ++i) {  // the first call gets memory, and the clock settles
    const auto start = std::chrono::steady_clock::now();
    chosen.attend(x.data(), length, dim, result.out.data(), result.mass.data());
    result.seconds =
        std::min(result.seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return result;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference = std::max(difference, std::abs(a[i] - b[i]));
  return difference;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::ptrdiff_t length = 512, dim = 64;
  std::vector<float> x(static_cast<std::size_t>(length * dim));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.37f * static_cast<float>(i));

  const Kernels& chosen = kernels(argc > 1 ? argv[1] : "");
  const Result best = run(chosen, x, length, dim);
  std::printf("chosen: %s\n", chosen.isa());

  namespace ab = attention_balancer;
  bool agree = true;
  for (const auto& [name, isa] : {std::pair("sse2", ab::Isa::sse2),
                                  {"avx2", ab::Isa::avx2},
                                  {"avx512", ab::Isa::avx512},
                                  {"neon64", ab::Isa::neon64}}) {
    if (!ab::cpu_runs(isa)) {
      std::printf("%-7s not on this machine\n", name);
      continue;
    }
    const Result other = run(kernels(name), x, length, dim);
    const float difference =
        std::max(largest_difference(best.out, other.out), largest_difference(best.mass, other.mass));
    agree = agree && difference < 1e-3f;
    std::printf("%-7s %8.3f ms, differs by at most %.1e\n", name, 1e3 * other.seconds,
                static_cast<double>(difference));
  }
  return agree ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
