#include "kernels.hpp"

static int twice(int x) { return 2 * x; }

ATTENTION_BALANCER_DEFINE_KERNELS(kernels, Kernels) = {twice};
