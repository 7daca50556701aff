#define ATTENTION_BALANCER_TEST_INSTANTIATE_CACHES
#include "support/cache_kernels.hpp"
