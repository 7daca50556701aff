#include "support/policy_table.hpp"

TEST_CASE("all score modifiers and masks together are the reference, in double", "[attention]") {
  support::check_policy_table<double>();
}
