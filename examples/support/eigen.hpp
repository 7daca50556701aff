#pragma once
// Eigen, without what g++ 12 warns about inside its own AVX-512 headers (GCC bug 105593).

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <Eigen/Core>
#include <unsupported/Eigen/SpecialFunctions>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <vector>

namespace example {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline Eigen::RowVectorXf row_of(const std::vector<float>& x) {
  return Eigen::Map<const Eigen::RowVectorXf>(x.data(), static_cast<Eigen::Index>(x.size()));
}

}  // namespace example
