#pragma once
// One program for several machines: kernels that CMake's attention_balancer_add_kernels compiled once per
// instruction set, chosen when the program runs. Standard library only.
//
//   // kernels.hpp: what the kernels offer, as a table of functions
//   struct Kernels { void (*attend)(const float* x, float* out); };
//   ATTENTION_BALANCER_DECLARE_KERNELS(kernels, Kernels)
//
//   // kernels.cpp, compiled once per instruction set
//   static void attend(const float* x, float* out) { ... ab::attention(...) ... }
//   ATTENTION_BALANCER_DEFINE_KERNELS(kernels, Kernels) = {attend};
//
//   // anywhere
//   kernels().attend(x, out);        // the best that this machine runs; ATTENTION_BALANCER_ISA in the environment
//   kernels("avx2").attend(x, out);  // names another, and so does an argument
//
// `kernels` is the name of the CMake target too. examples/07_several_machines is a program of this kind.

#include <cstdlib>
#include <string>
#include <string_view>

#include "attention_balancer/core/config.hpp"
#include "attention_balancer/core/cpu.hpp"
#include "attention_balancer/core/error.hpp"

namespace attention_balancer::detail {

/// One compilation of a table, as the generated source lists them; the last has no table.
struct BuiltKernels {
  const char* isa;
  const void* table;
};

ATTENTION_BALANCER_BEGIN_ISA

/// The table for the instruction set `wanted`; if empty, for the one that the environment names; if it names none,
/// for the most demanding that this machine runs. Throws InputError where there is none, or this machine cannot run
/// it.
inline const void* choose_kernels(const BuiltKernels* built, std::string_view wanted) {
  std::string_view source = "the instruction set asked for";
  if (wanted.empty())
    if (const char* named = std::getenv("ATTENTION_BALANCER_ISA"); named != nullptr && *named != '\0') {
      wanted = named;
      source = "the environment's ATTENTION_BALANCER_ISA";
    }
  auto runs = [](const BuiltKernels& kernels) {
    for (const NamedIsa& known : named_isas)
      if (known.name == kernels.isa) return cpu_runs(known.isa);
    return false;
  };
  const void* chosen = nullptr;  // they are listed from the least demanding on
  for (const BuiltKernels* kernels = built; kernels->table != nullptr; ++kernels)
    if ((wanted.empty() || wanted == kernels->isa) && runs(*kernels)) chosen = kernels->table;
  if (chosen != nullptr) return chosen;
  std::string names;
  for (const BuiltKernels* kernels = built; kernels->table != nullptr; ++kernels)
    names +=
        (names.empty() ? "" : ", ") + std::string(kernels->isa) + (runs(*kernels) ? "" : " (not on this machine)");
  fail<InputError>(source, wanted.empty() ? "none" : wanted,
                   "be one of those that were built and run here: " + names);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail

/// Declares `const Table& name(std::string_view isa = {})`, at namespace scope outside of namespaces: the table of
/// the kernels of the CMake target `name`. An empty isa leaves the choice to the environment and the machine, which
/// is asked at each call: keep the reference.
#define ATTENTION_BALANCER_DECLARE_KERNELS(name, Table)                                                          \
  extern "C" const ::attention_balancer::detail::BuiltKernels ATTENTION_BALANCER_JOIN(attention_balancer_built_, \
                                                                                      name)[];                   \
  [[maybe_unused]] static const Table& name(std::string_view isa = {}) {                                         \
    return *static_cast<const Table*>(::attention_balancer::detail::choose_kernels(                              \
        ATTENTION_BALANCER_JOIN(attention_balancer_built_, name), isa));                                         \
  }

/// Defines the table of the instruction set that the file is compiled for, once in the sources of the target
/// `name`.
#define ATTENTION_BALANCER_DEFINE_KERNELS(name, Table)                                                        \
  extern "C" const Table ATTENTION_BALANCER_JOIN(ATTENTION_BALANCER_JOIN(attention_balancer_table_, name##_), \
                                                 ATTENTION_BALANCER_KERNELS_ISA);                             \
  [[gnu::used]] constexpr Table ATTENTION_BALANCER_JOIN(                                                      \
      ATTENTION_BALANCER_JOIN(attention_balancer_table_, name##_), ATTENTION_BALANCER_KERNELS_ISA)
