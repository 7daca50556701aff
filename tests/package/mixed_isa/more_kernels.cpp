// Another file of the same kernels: found from the first, and not visible outside.
#include "kernels.hpp"

#include <attention_balancer/tensor/tensor_view.hpp>

/// Throws out of the object of its instruction set.
const char* refuse() {
  float x = 0;
  ab::bhsd(&x, -1, 1, 1, 1);
  throw ab::ShapeError("thrown by kernels");
}
