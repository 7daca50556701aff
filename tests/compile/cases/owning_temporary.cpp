// A view of a matrix that dies at the end of the statement.
// case 1: attention_balancer: tokens_in_rows borrows
// case 2: attention_balancer: tokens_in_columns borrows
// case 3: attention_balancer: tokens_in_rows borrows
#include <Eigen/Core>
#include <utility>

#include "attention_balancer/attention.hpp"

namespace ab = attention_balancer;

void f(Eigen::MatrixXf& m, const Eigen::MatrixXf& c, float* p) {
#if CASE == 0
  static_assert(std::is_same_v<decltype(ab::tokens_in_rows(m)), ab::TensorView<float>>);
  static_assert(std::is_same_v<decltype(ab::tokens_in_rows(c)), ab::TensorView<const float>>);
  // Maps and blocks are views themselves, so that a temporary of theirs does no harm.
  (void)ab::tokens_in_rows(Eigen::Map<Eigen::MatrixXf>(p, 2, 3));
  (void)ab::tokens_in_columns(m.leftCols(2));
#elif CASE == 1
  (void)ab::tokens_in_rows(Eigen::MatrixXf(2, 3));
#elif CASE == 2
  (void)ab::tokens_in_columns(std::move(m));
#elif CASE == 3
  (void)ab::tokens_in_rows((m * m).eval());
#endif
  (void)p, (void)m, (void)c;
}
