#pragma once
// The executable specification: attention, its evidence and its gradients in double, untiled, one query at a time, as the
// formulas read. The kernels are tested against it. It is slow and takes memory for one row of scores; nothing else uses
// it.

#include "attention_balancer/attention/reference_backward.hpp"
#include "attention_balancer/attention/reference_forward.hpp"
