#define ATTENTION_BALANCER_TEST_INSTANTIATE_CHECKS
#include "support/check.hpp"
