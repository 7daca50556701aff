// Runs the kernels of every instruction set that this machine has, and compares their results.
#include <algorithm>
#include <attention_balancer/attention_balancer.hpp>
#include <cmath>
#include <cstdio>
#include <vector>

namespace ab = attention_balancer;

template <class T>
using Attend = void (*)(const std::vector<T>& x, ab::Index length, ab::Index dim, std::vector<T>& out,
                        ab::Evidence<T>& evidence);

#define DECLARE(ISA)                                                                                               \
  void attend_float_##ISA(const std::vector<float>&, ab::Index, ab::Index, std::vector<float>&,                   \
                          ab::Evidence<float>&);                                                                  \
  void attend_double_##ISA(const std::vector<double>&, ab::Index, ab::Index, std::vector<double>&,                \
                           ab::Evidence<double>&);
DECLARE(sse2)
DECLARE(avx2)
DECLARE(avx512)

template <class T>
T largest_difference(Attend<T> a, Attend<T> b) {
  const ab::Index length = 67, dim = 19;
  std::vector<T> x(static_cast<std::size_t>(length * dim)), first(x.size()), second(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<T>(i));
  ab::Evidence<T> first_evidence, second_evidence;
  a(x, length, dim, first, first_evidence);
  b(x, length, dim, second, second_evidence);
  T difference = 0;
  for (std::size_t i = 0; i < x.size(); ++i) difference = std::max(difference, std::abs(first[i] - second[i]));
  const auto p = first_evidence.mass(0, 0), q = second_evidence.mass(0, 0);
  for (std::size_t j = 0; j < p.size(); ++j) difference = std::max(difference, std::abs(p[j] - q[j]));
  return difference;
}

int main() {
  __builtin_cpu_init();
  int failures = 0;
  const auto compare = [&](const char* name, bool runs, Attend<float> floats, Attend<double> doubles) {
    if (!runs) {
      std::printf("%s: skipped, this machine does not have it\n", name);
      return;
    }
    const auto f = static_cast<double>(largest_difference(&attend_float_sse2, floats));
    const double d = largest_difference(&attend_double_sse2, doubles);
    std::printf("%s: differs from sse2 by %.1e in float and %.1e in double\n", name, f, d);
    if (!(f < 1e-5 && d < 1e-13)) ++failures;
  };
  compare("avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), &attend_float_avx2,
          &attend_double_avx2);
  compare("avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
          &attend_float_avx512, &attend_double_avx512);
  return failures;
}
