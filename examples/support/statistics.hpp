#pragma once
#include <vector>

namespace example {

/// A number measured in several runs, with a 95 % bootstrap interval (percentiles of the means of 10,000
/// resamples).
struct Estimate {
  double mean = 0, low = 0, high = 0;
};

/// The mean of the runs. One run has no interval: low and high are the mean then. Throws std::invalid_argument if
/// there are none. The same runs give the same interval: the resampling is seeded.
Estimate bootstrap(const std::vector<double>& runs);

/// The mean of a - b over runs that share their seed, entry by entry: what differs between runs anyway cancels.
/// Throws std::invalid_argument if there are not as many of both.
Estimate paired_difference(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace example
