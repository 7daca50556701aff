#define ATTENTION_BALANCER_TEST_INSTANTIATE
#include "support/kernels.hpp"
