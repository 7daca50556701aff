#pragma once
// Catch2 under one include: Debian 12 has 2.13, everyone else 3.

#if __has_include(<catch2/catch_test_macros.hpp>)

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <catch2/matchers/catch_matchers_all.hpp>

using Catch::Approx;

#else

#include <catch2/catch.hpp>

namespace Catch {
using Detail::Approx;  // where 3 has it
namespace Matchers {
// 3 has StartsWith, ContainsSubstring and EndsWith; 2 calls the middle one Contains.
inline auto ContainsSubstring(const std::string& text) { return Contains(text); }
}  // namespace Matchers
}  // namespace Catch

#endif

// The types of a TEMPLATE_TEST_CASE that is for each scalar. ATTENTION_BALANCER_FLOAT_TESTS makes them float alone, for
// presets whose time is dear; what is decisive for an instruction set names its types.
#if !defined(SCALARS)
#define SCALARS float, double
#endif
