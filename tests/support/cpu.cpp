#include "support/cpu.hpp"

const char* support::isa_missing_to_tests() { return missing_isa(); }
