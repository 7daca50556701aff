#pragma once
// What the fragments of the README speak of without making it. Nothing is linked.

#include <cstdint>

#include "attention_balancer/attention_balancer.hpp"
#include "attention_balancer/executor/openmp.hpp"

namespace ab = attention_balancer;

namespace given {
extern ab::TensorView<float> q, k, v, out, dout, dq, dk, dv;
extern ab::Evidence<float> evidence;
extern ab::Workspace workspace;
extern const void *k16, *v16;
extern ab::Index n, heads, kv_heads, pages, dim;
}  // namespace given
