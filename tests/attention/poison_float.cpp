#include "support/poison.hpp"

TEST_CASE("not a number and infinity reach only who attends to them, in float", "[attention]") {
  support::check_poison_table<float>();
}
