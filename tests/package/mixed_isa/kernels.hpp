#pragma once
#include <attention_balancer/attention/evidence.hpp>
#include <attention_balancer/core/dispatch.hpp>
#include <vector>

namespace ab = attention_balancer;

template <class T>
using Attend = void(const std::vector<T>& x, ab::Index length, ab::Index dim, std::vector<T>& out,
                    ab::Evidence<T>& evidence);

struct Kernels {
  const char* (*isa)();
  Attend<float>* floats;
  Attend<double>* doubles;
  const char* (*refuse)();
};

ATTENTION_BALANCER_DECLARE_KERNELS(kernels, Kernels)
