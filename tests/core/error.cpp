#include "attention_balancer/core/error.hpp"

#include "support/catch.hpp"

namespace ab = attention_balancer;

TEST_CASE("an error says what was wrong and what would be right", "[core]") {
  static_assert(std::is_base_of_v<std::invalid_argument, ab::ShapeError>);
  static_assert(std::is_base_of_v<std::invalid_argument, ab::BudgetError>);
  static_assert(std::is_base_of_v<std::invalid_argument, ab::InputError>);
  CHECK_THROWS_WITH(ab::detail::fail<ab::ShapeError>("k.dim", 3, "equal q.dim = 4"),
                    "k.dim is 3, but must equal q.dim = 4");
  CHECK_THROWS_WITH(ab::detail::fail<ab::InputError>("q.data", "null", "point to its elements"),
                    "q.data is null, but must point to its elements");
  CHECK_THROWS_WITH(ab::detail::fail<ab::InputError>("rate", -1e-9f, "not be negative"),
                    "rate is -1e-09, but must not be negative");
  CHECK_THROWS_WITH(ab::detail::fail<ab::InputError>("decay", 1 + 1e-12, "be in (0, 1]"),
                    "decay is 1.000000000001, but must be in (0, 1]");
  CHECK_THROWS_WITH(ab::detail::fail<ab::InputError>("cap", std::numeric_limits<double>::quiet_NaN(), "be finite"),
                    "cap is nan, but must be finite");
  CHECK_THROWS_AS(ab::detail::fail<ab::BudgetError>("floors", 2.0, "add up to 1 at most"), std::invalid_argument);
}
