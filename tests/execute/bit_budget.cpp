#include "attention_balancer/execute/bit_budget.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "attention_balancer/execute/compact.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace execute = ab::execute;
using ab::Index;
using Catch::Matchers::ContainsSubstring;
using Bits = std::vector<Index>;
using execute::Levels;

namespace {

template <class T>
std::vector<T> there_and_back(const std::vector<T>& row, Index bits, Levels levels) {
  const auto n = static_cast<Index>(row.size());
  std::vector<T> back(row.size());
  execute::bit_budget(execute::rows(row.data(), 1, n), Bits{bits}, {.levels = levels})
      .restore(execute::rows(back.data(), 1, n));
  return back;
}

}  // namespace

TEMPLATE_TEST_CASE("the levels of each scheme", "", SCALARS) {
  using T = TestType;
  using V = std::vector<T>;
  const V x{-1, T(0.1), T(0.4), 3};
  CHECK(there_and_back(x, 0, Levels::asymmetric) == V{1, 1, 1, 1});
  CHECK(there_and_back(x, 1, Levels::asymmetric) == V{-1, -1, -1, 3});
  CHECK(there_and_back(x, 0, Levels::centred) == V{1, 1, 1, 1});
  CHECK(there_and_back(x, 1, Levels::centred) == V{0, 0, 0, 2});
  CHECK(there_and_back(x, 2, Levels::centred) == V{T(-0.5), T(0.5), T(0.5), T(2.5)});
  CHECK(there_and_back(x, 0, Levels::symmetric) == V{0, 0, 0, 0});
  CHECK(there_and_back(V{-1, 1, 1, 3}, 1, Levels::symmetric) == V{T(-1.5), T(1.5), T(1.5), T(1.5)});
  CHECK(there_and_back(x, 2, Levels::symmetric) == V{0, 0, 0, 3});
  CHECK(there_and_back(x, 3, Levels::symmetric) == V{-1, 0, 0, 3});
  const V constant{T(0.3), T(0.3)}, zero{0, 0};
  for (const auto levels : {Levels::asymmetric, Levels::centred})
    for (const Index bits : {0, 1, 5, 16}) CHECK(there_and_back(constant, bits, levels) == constant);
  for (const Index bits : {0, 1, 2, 16}) CHECK(there_and_back(zero, bits, Levels::symmetric) == zero);
}

TEMPLATE_TEST_CASE("groups, rows and what they cost", "", SCALARS) {
  using T = TestType;
  std::vector<T> x;
  for (int i = 0; i < 30; ++i) x.push_back(static_cast<T>(std::sin(i * i)));
  const auto view = execute::rows(x.data(), 3, 10);
  SECTION("per row") {
    const auto q = execute::bit_budget(view, Bits{2, 0, 5});
    CHECK(q.groups() == 1);
    CHECK(q.bits(2) == 5);
    CHECK(q.report().bits == 70);
    CHECK(q.report().bytes == 9 + 3 * 2 * Index(sizeof(T)));
  }
  SECTION("per group, the last one shorter") {
    const auto rows = execute::bit_budget(view, Bits{2, 0, 5}, {.group = 4});
    CHECK(rows.groups() == 3);
    CHECK(rows.bits(0, 2) == 2);
    const auto q =
        execute::bit_budget(view, Bits{1, 2, 3, 4, 5, 6, 7, 8, 9}, {.group = 4, .levels = Levels::symmetric});
    CHECK(q.bits(1, 2) == 6);
    CHECK(q.report().bits == 4 * (1 + 2 + 4 + 5 + 7 + 8) + 2 * (3 + 6 + 9));
    CHECK(q.report().bytes == (q.report().bits + 7) / 8 + 9 * Index(sizeof(T)));
    std::vector<T> back(30);
    q.restore(execute::rows(back.data(), 3, 10));
    double squared = 0, largest = 0;
    for (std::size_t i = 0; i < 30; ++i) {
      const double e = double(back[i]) - double(x[i]);
      squared += e * e, largest = std::max(largest, std::abs(e));
    }
    CHECK(q.report().squared_error == Approx(squared));
    CHECK(q.report().largest_error == largest);
    double sum = 0;
    for (Index row = 0; row < 3; ++row)
      for (Index g = 0; g < 3; ++g) sum += q.squared_error(row, g);
    CHECK(sum == Approx(squared));
    CHECK_THROWS_AS(q.bits(3), ab::ShapeError);
    CHECK_THROWS_AS(q.squared_error(0, 3), ab::ShapeError);
  }
  SECTION("any strides") {
    const ab::TensorView<T> columns{x.data(), 1, 1, 10, 3, 30, 30, 1, 10};  // the transpose
    const auto q = execute::bit_budget(columns, Bits(10, 16));
    std::vector<T> back(30);
    q.restore({back.data(), 1, 1, 10, 3, 30, 30, 1, 10});
    for (std::size_t i = 0; i < 30; ++i) CHECK(std::abs(double(back[i]) - double(x[i])) <= 2e-5);
  }
  SECTION("no rows or columns") {
    CHECK(execute::bit_budget(execute::rows(x.data(), 0, 4), Bits{}).report().bytes == 0);
    CHECK(execute::bit_budget(execute::rows(x.data(), 2, 0), Bits{}, {.group = 4}).report().bits == 0);
  }
}

TEMPLATE_TEST_CASE("bad bits and bad matrices", "", SCALARS) {
  using T = TestType;
  std::vector<T> x{1, 2, 3, 4, 5, 6};
  const auto view = execute::rows(x.data(), 2, 3);
  CHECK_THROWS_WITH(execute::bit_budget(view, Bits{1}), "number of bits allotted is 1, but must be 2, one per row");
  CHECK_THROWS_WITH(execute::bit_budget(view, Bits{1, 1, 1}, {.group = 2}),
                    ContainsSubstring("or 4, one per group"));
  CHECK_THROWS_WITH(execute::bit_budget(view, Bits{1, -1}), "bits of row 1 is -1, but must be in [0, 16]");
  CHECK_THROWS_WITH(execute::bit_budget(view, Bits{1, 1, 17, 1}, {.group = 2}),
                    ContainsSubstring("bits of row 1, group 0 is 17"));
  CHECK_THROWS_AS(execute::bit_budget(view, Bits{1, 1}, {.group = -1}), ab::ShapeError);
  CHECK_THROWS_AS(execute::bit_budget(ab::bhsd(x.data(), 1, 2, 1, 3), Bits{1}), ab::ShapeError);
  const auto q = execute::bit_budget(view, Bits{1, 1});
  CHECK_THROWS_WITH(q.restore(execute::rows(x.data(), 3, 2)),
                    "matrix to restore into is 3 x 2, but must be 2 x 3 as what was quantised");
  CHECK_THROWS_AS(q.restore(execute::rows(static_cast<T*>(nullptr), 2, 3)), ab::ShapeError);
  const T most = std::numeric_limits<T>::max() / 4;
  for (const auto levels : {Levels::asymmetric, Levels::symmetric, Levels::centred})
    for (const Index bits : {0, 1, 2, 8, 16}) {
      x = {-most, 0, most, most, most, T(0.99) * most};
      CHECK(execute::bit_budget(view, Bits{bits, bits}, {.levels = levels}).report().largest_error <=
            double(most) / std::max(1.0, std::ldexp(1.0, int(bits) - 2)));
    }
  x[2] = 2 * most;
  CHECK_THROWS_WITH(execute::bit_budget(view, Bits{1, 1}), ContainsSubstring("element 2 of row 0 is "));
  x[2] = 0;
  x[4] = std::numeric_limits<T>::quiet_NaN();
  CHECK_THROWS_WITH(execute::bit_budget(view, Bits{1, 1}),
                    ContainsSubstring("element 1 of row 1 is nan, but must be finite"));
}
