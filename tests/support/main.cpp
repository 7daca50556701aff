// The one main() of the test programs. Says so, instead of dying of an illegal instruction, when they were compiled
// for an instruction set that this machine lacks. What it was compiled for itself is of no account.

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdio>

#include "support/cpu.hpp"

int main(int argc, char** argv) {
  if (const char* missing = support::isa_missing_to_tests()) {
    std::fprintf(stderr, "these tests were compiled for %s, which this machine does not have\n", missing);
    return 1;
  }
  return Catch::Session().run(argc, argv);
}
