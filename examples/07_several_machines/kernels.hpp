#pragma once
// What the kernels offer the rest of the program: plain functions on plain memory, so that main.cpp needs no kernel
// header.

#include <attention_balancer/core/dispatch.hpp>
#include <cstddef>

struct Kernels {
  /// Name of the instruction set.
  const char* (*isa)();

  /// Self-attention of `length` inputs of `dim` features, row by row: out [length, dim], and the attention that
  /// each input received, mass [length].
  void (*attend)(const float* x, std::ptrdiff_t length, std::ptrdiff_t dim, float* out, float* mass);
};

/// kernels() are those for this machine, kernels("avx2") those for AVX2.
ATTENTION_BALANCER_DECLARE_KERNELS(kernels, Kernels)
