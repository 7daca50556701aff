#pragma once
// Demands that drift, and what each feedback makes of them.

#include <functional>
#include <string>
#include <vector>

namespace example {

struct DriftOptions {
  int inputs = 16, cycles = 1500, units = 1000;
  double contrast = 1.0;  // standard deviation of the logits of the demands
  double noise = 0.5;     // standard deviation of the logarithm of what is observed about the truth
};

/// What the inputs need, cycle by cycle, as parts of one budget; and what is seen of it. The first third is calm;
/// in the second the demands move smoothly to others; at the beginning of the last they jump, and are calm again.
class DriftingDemand {
 public:
  DriftingDemand(const DriftOptions& options, unsigned seed);

  int cycles() const noexcept { return static_cast<int>(truth_.size()); }
  /// [inputs] The truth, adding up to 1: the division that leaves nothing unserved.
  const std::vector<double>& truth(int cycle) const { return truth_[static_cast<std::size_t>(cycle)]; }
  /// [inputs] Weights as a balancer sees them after the cycle: the truth times log-normal noise.
  const std::vector<double>& seen(int cycle) const { return seen_[static_cast<std::size_t>(cycle)]; }

  static constexpr int phases = 3;
  static const char* phase_name(int phase);
  /// The first cycle of a phase; that of phase 3 is the end.
  int phase_begin(int phase) const noexcept { return cycles() * phase / phases; }

 private:
  std::vector<std::vector<double>> truth_, seen_;
};

/// What a rule did, cycle by cycle, all decided before the cycle's demand was seen.
struct DriftRun {
  std::vector<double> unserved;  // the part of the demand that got no unit: 1 - sum min(units / total, truth)
  std::vector<double> moved;     // the part of the units that changed hands from the cycle before

  double mean_unserved(int begin, int end) const;
  double mean_moved() const;
};

/// A feedback with the parameter that it leaves to the user.
struct DriftRule {
  std::string name, parameter;  // parameter: what the numbers are, empty if there is none
  std::vector<double> candidates;
  std::function<DriftRun(const DriftingDemand&, const DriftOptions&, double parameter)> run;
};

/// Leaky first, to which the others are compared; then the others, Plain and the static division.
std::vector<DriftRule> drift_rules();

/// The candidate with the least unserved over the demands of these seeds.
double tuned(const DriftRule& rule, const DriftOptions& options, const std::vector<unsigned>& seeds);

}  // namespace example
