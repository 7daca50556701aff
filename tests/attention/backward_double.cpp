#include "support/backward_table.hpp"

TEST_CASE("the gradients through all score modifiers and masks are the reference's, in double",
          "[attention][backward]") {
  support::check_backward_table<double>();
}
