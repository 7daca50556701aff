#include "statistics.hpp"

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

namespace example {

Estimate bootstrap(const std::vector<double>& runs) {
  if (runs.empty()) throw std::invalid_argument("number of runs is 0, but must be at least 1");
  const auto n = runs.size();
  const double mean = std::accumulate(runs.begin(), runs.end(), 0.0) / static_cast<double>(n);
  if (n == 1) return {mean, mean, mean};
  constexpr std::size_t resamples = 10000;
  std::mt19937 random(1);
  std::vector<double> means(resamples);
  for (double& m : means) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += runs[random() % n];
    m = sum / static_cast<double>(n);
  }
  std::sort(means.begin(), means.end());
  return {mean, means[resamples / 40], means[resamples - 1 - resamples / 40]};
}

Estimate paired_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) throw std::invalid_argument("paired runs must be as many on both sides");
  std::vector<double> difference;
  for (std::size_t i = 0; i < a.size(); ++i) difference.push_back(a[i] - b[i]);
  return bootstrap(difference);
}

}  // namespace example
