#include "support/backward_table.hpp"

TEST_CASE("the gradients through all score modifiers and masks are the reference's, in float",
          "[attention][backward]") {
  support::check_backward_table<float>();
}
