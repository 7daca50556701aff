// Matrices of Eigen as tensors: either storage order, Map, Ref, Block, fixed sizes; many heads.

#include "support/check.hpp"

#include <Eigen/Core>

namespace {

using support::Index;

template <class T, int Order>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Order>;

/// softmax(Q K^T / sqrt(D)) V for one head, with Eigen.
template <class T>
Eigen::MatrixXd truth(const Eigen::MatrixX<T>& q, const Eigen::MatrixX<T>& k, const Eigen::MatrixX<T>& v) {
  const Eigen::MatrixXd p = ((q * k.transpose()).template cast<double>() / std::sqrt(static_cast<double>(q.cols())))
                                .array()
                                .exp();
  return p.array().rowwise().sum().inverse().matrix().asDiagonal() * (p * v.template cast<double>());
}

template <class Got>
bool close(const Got& got, const Eigen::MatrixXd& expected) {
  return (got.template cast<double>() - expected).cwiseAbs().maxCoeff() < 1e-5;
}

template <class T>
Eigen::MatrixX<T> random_matrix(support::Random& random, Index rows, Index columns) {
  Eigen::MatrixX<T> m(rows, columns);
  for (Index c = 0; c < columns; ++c)
    for (Index r = 0; r < rows; ++r) m(r, c) = static_cast<T>(random.uniform(-1, 1));
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("tokens in rows and in columns", "[tensor][matrix]", SCALARS) {
  using T = TestType;
  support::Random random(61);
  for (const auto& [queries, keys, dim, value_dim] :
       {std::array<Index, 4>{1, 1, 1, 1}, {5, 40, 7, 3}, {100, 33, 16, 17}, {49, 130, 8, 40}}) {
    const Eigen::MatrixX<T> q = random_matrix<T>(random, queries, dim), k = random_matrix<T>(random, keys, dim),
                            v = random_matrix<T>(random, keys, value_dim);
    const Eigen::MatrixXd expected = truth<T>(q, k, v);
    {
      Eigen::MatrixX<T> out(queries, value_dim);
      ab::attention(ab::tokens_in_rows(q), ab::tokens_in_rows(k), ab::tokens_in_rows(v), ab::tokens_in_rows(out));
      CHECK(close(out, expected));
    }
    {
      const Matrix<T, Eigen::RowMajor> rq = q, rk = k, rv = v;
      Matrix<T, Eigen::RowMajor> out(queries, value_dim);
      ab::attention(ab::tokens_in_rows(rq), ab::tokens_in_rows(rk), ab::tokens_in_rows(rv), ab::tokens_in_rows(out));
      CHECK(close(out, expected));
    }
    {
      const Eigen::MatrixX<T> tq = q.transpose(), tk = k.transpose();
      const Matrix<T, Eigen::RowMajor> tv = v.transpose();
      Matrix<T, Eigen::RowMajor> out(value_dim, queries);
      ab::attention(ab::tokens_in_columns(tq), ab::tokens_in_columns(tk), ab::tokens_in_columns(tv),
                    ab::tokens_in_columns(out));
      CHECK(close(out.transpose(), expected));
    }
    {
      // Blocks, Refs and Maps with strides; what they leave out stays as it was.
      Eigen::MatrixX<T> all(keys + queries + 3, dim + 5);
      all.setConstant(T(9e5));
      all.block(2, 3, keys, dim) = k;
      all.block(keys + 2, 1, queries, dim) = q;
      Eigen::Ref<Eigen::MatrixX<T>, 0, Eigen::OuterStride<>> rq = all.block(keys + 2, 1, queries, dim);
      const auto bk = all.block(2, 3, keys, dim);
      std::vector<T> memory(static_cast<std::size_t>(2 * keys * value_dim), T(9e5));
      Eigen::Map<Matrix<T, Eigen::RowMajor>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> mv(
          memory.data(), keys, value_dim, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(2 * value_dim, 2));
      mv = v;
      Eigen::MatrixX<T> out(queries + 2, value_dim + 2);
      out.setConstant(T(-1));
      ab::attention(ab::tokens_in_rows(rq), ab::tokens_in_rows(bk), ab::tokens_in_rows(mv),
                    ab::tokens_in_rows(out.block(1, 1, queries, value_dim)));
      CHECK(close(out.block(1, 1, queries, value_dim), expected));
      CHECK((out.row(0).array() == T(-1)).all());
      CHECK((out.row(queries + 1).array() == T(-1)).all());
      CHECK((out.col(0).array() == T(-1)).all());
      CHECK((out.col(value_dim + 1).array() == T(-1)).all());
    }
  }
}

TEST_CASE("matrices of fixed size and arrays", "[tensor][matrix]") {
  support::Random random(62);
  const Eigen::Matrix<float, 6, 4> q = random_matrix<float>(random, 6, 4);
  const Eigen::Matrix<float, 9, 4, Eigen::RowMajor> k = random_matrix<float>(random, 9, 4);
  const Eigen::ArrayXXf v = random_matrix<float>(random, 9, 3).array();
  Eigen::Matrix<float, 6, 3> out;
  ab::attention(ab::tokens_in_rows(q), ab::tokens_in_rows(k), ab::tokens_in_rows(v), ab::tokens_in_rows(out));
  CHECK(close(out, truth<float>(q, k, v.matrix())));
}

TEST_CASE("heads of a matrix lie beside one another", "[tensor][matrix]") {
  support::Random random(63);
  const Eigen::MatrixXf q = random_matrix<float>(random, 20, 12), k = random_matrix<float>(random, 30, 6),
                        v = random_matrix<float>(random, 30, 10);
  Eigen::MatrixXf out(20, 20), turned(20, 20);
  ab::attention(ab::tokens_in_rows(q, 4), ab::tokens_in_rows(k, 2), ab::tokens_in_rows(v, 2),
                ab::tokens_in_rows(out, 4));
  for (Index h = 0; h < 4; ++h) {
    const Eigen::MatrixXf qh = q.middleCols(3 * h, 3), kh = k.middleCols(3 * (h / 2), 3),
                          vh = v.middleCols(5 * (h / 2), 5);
    CHECK(close(out.middleCols(5 * h, 5), truth<float>(qh, kh, vh)));
  }
  const Eigen::MatrixXf tq = q.transpose(), tk = k.transpose(), tv = v.transpose();
  ab::attention(ab::tokens_in_columns(tq, 4), ab::tokens_in_columns(tk, 2), ab::tokens_in_columns(tv, 2),
                ab::tokens_in_columns(turned, 4));
  CHECK(close(turned.transpose(), out.cast<double>()));

  using Catch::Matchers::ContainsSubstring;
  CHECK_THROWS_WITH(ab::tokens_in_rows(q, 5), ContainsSubstring("tokens_in_rows"));
  CHECK_THROWS_AS(ab::tokens_in_rows(q, 0), ab::ShapeError);
  CHECK_THROWS_AS(ab::tokens_in_columns(tq, 7), ab::ShapeError);
  CHECK_THROWS_AS(ab::tokens_in_columns(tq, -2), ab::ShapeError);
}

TEST_CASE("views", "[tensor]") {
  std::vector<double> memory(2 * 3 * 5 * 7);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<double>(i);
  const auto x = ab::bhsd(memory.data(), 2, 3, 5, 7);
  CHECK(x(1, 2, 3, 4) == ((1 * 3 + 2) * 5 + 3) * 7 + 4);
  CHECK(x.size() == 210);
  const auto y = ab::bshd(memory.data(), 2, 5, 3, 7);  // the arguments follow the memory
  CHECK(y.length == 5);
  CHECK(y.heads == 3);
  CHECK(y(1, 2, 3, 4) == ((1 * 5 + 3) * 3 + 2) * 7 + 4);
  const ab::TensorView<const double> constant = y;
  CHECK(&constant(0, 1, 2, 3) == &y(0, 1, 2, 3));
  static_assert(std::is_trivially_copyable_v<ab::TensorView<double>>);
}
