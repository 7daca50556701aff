// Runs the kernels of every instruction set that this machine has, compares their results, and checks which of them
// are chosen. Usage: consumer [instruction set that must be the best here]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "kernels.hpp"

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

template <class T>
double largest_difference(Attend<T>* a, Attend<T>* b) {
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
  return static_cast<double>(difference);
}

bool refused(std::string_view isa) {
  try {
    kernels(isa);
  } catch (const ab::InputError& error) {
    std::printf("%s\n", error.what());
    return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  unsetenv("ATTENTION_BALANCER_ISA");
  const Kernels& plain = kernels("sse2");
  std::string_view best;
  for (const auto& [name, isa] : {ab::detail::NamedIsa{"sse2", ab::Isa::sse2},
                                  {"avx2", ab::Isa::avx2},
                                  {"avx512", ab::Isa::avx512},
                                  {"avx512bf16", ab::Isa::avx512bf16}}) {
    if (!ab::cpu_runs(isa)) {
      expect(refused(name), "what this machine cannot run is refused");
      continue;
    }
    best = name;
    const Kernels& forced = kernels(name);
    expect(forced.isa() == name, "the instruction set asked for is the one that ran");
    const double f = largest_difference(plain.floats, forced.floats),
                 d = largest_difference(plain.doubles, forced.doubles);
    std::printf("%s: differs from sse2 by %.1e in float and %.1e in double\n", forced.isa(), f, d);
    expect(f < 1e-5 && d < 1e-13, "all give the same result");
    try {
      forced.refuse();
      expect(false, "it throws");
    } catch (const ab::ShapeError&) {  // by its type, though it was thrown in an object with names of its own
    }
    setenv("ATTENTION_BALANCER_ISA", forced.isa(), 1);
    expect(kernels().isa() == name, "the environment chooses");
    expect(&kernels("sse2") == &plain, "an argument outranks the environment");
    unsetenv("ATTENTION_BALANCER_ISA");
  }
  expect(kernels().isa() == best, "the best is chosen");
  expect(argc < 2 || best == argv[1], "the best is what this machine was said to have");
  expect(refused("avx3"), "an unknown name is refused");
  setenv("ATTENTION_BALANCER_ISA", "neon64", 1);
  expect(refused(""), "an environment that asks for what was not built is refused");
  std::printf("chosen: %.*s\n", static_cast<int>(best.size()), best.data());
  return failures;
}
