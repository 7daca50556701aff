#pragma once
// How much of a table a test walks through.

#include <cstdlib>

#include "attention_balancer/core/types.hpp"

namespace support {

/// Set ATTENTION_BALANCER_TEST_QUICK where the machine is slow, as under an emulator: big tables are thinned out.
inline bool quick() {
  const char* value = std::getenv("ATTENTION_BALANCER_TEST_QUICK");
  return value != nullptr && *value != '\0' && *value != '0';
}

/// Step through the rows of a table of which a slow machine sees every n-th.
inline attention_balancer::Index every(attention_balancer::Index n) { return quick() ? n : 1; }

}  // namespace support
