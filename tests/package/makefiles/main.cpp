#include "kernels.hpp"

int main() { return kernels("scalar").twice(3) == 6 && kernels("sse2").twice(4) == 8 ? 0 : 1; }
