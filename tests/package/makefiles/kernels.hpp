#pragma once
#include "attention_balancer/core/dispatch.hpp"

struct Kernels {
  int (*twice)(int x);
};
ATTENTION_BALANCER_DECLARE_KERNELS(kernels, Kernels)
