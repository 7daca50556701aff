// The other translation unit: the same headers, and the reference with Eigen.
#include <attention_balancer/attention_balancer.hpp>
#include <attention_balancer/reference.hpp>
#include <Eigen/Core>
#include <numeric>
#include <vector>
#if defined(CONSUMER_HAS_TBB)
#include <attention_balancer/executor/tbb.hpp>
#endif

namespace ab = attention_balancer;

double shares_of_other(const std::vector<float>& x, ab::Index length, ab::Index dim) {
  const Eigen::MatrixXd tokens =
      Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(x.data(), length, dim)
          .cast<double>();
  Eigen::MatrixXd out(length, dim);
  ab::Evidence<double> evidence;
  const auto view = ab::tokens_in_rows(tokens);
#if defined(CONSUMER_HAS_TBB)
  const ab::executor::Tbb executor{2};
#else
  const ab::executor::Sequential executor;
#endif
  ab::attention(view, view, view, ab::tokens_in_rows(out), ab::mask::Causal{}, executor, ab::observe(evidence));
  ab::ResourceBalancer<double> balancer(length);
  const auto shares = balancer.update(ab::saliency::mass(evidence));
  return std::accumulate(shares.begin(), shares.end(), 0.0);
}
