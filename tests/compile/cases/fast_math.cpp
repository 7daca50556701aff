// Minus infinity and not-a-number carry meaning here.
// case 1: attention_balancer needs NaN
#if CASE == 1
#define __FAST_MATH__ 1
#endif
// case 2: attention_balancer needs NaN
#if CASE == 2
#define __NO_SIGNED_ZEROS__ 1
#endif
#include "attention_balancer/core/config.hpp"
