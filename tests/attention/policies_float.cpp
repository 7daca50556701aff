#include "support/policy_table.hpp"

TEST_CASE("all score modifiers and masks together are the reference, in float", "[attention]") {
  support::check_policy_table<float>();
}
