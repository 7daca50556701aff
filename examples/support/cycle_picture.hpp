#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace example {

/// How the shares developed under one rule.
struct CycleHistory {
  std::string name;
  std::vector<std::vector<float>> shares;  // [cycles + 1][inputs], the start first; each adds up to 1
};

/// The number of equally served inputs that would be as uneven: exp of the entropy of the shares.
double effective_inputs(const std::vector<float>& shares);

/// Draws the shares of each rule as bands over the cycles and, below, the effective number of inputs of all of
/// them. SVG, without external resources. Throws FileError.
void write_cycle_picture(const std::filesystem::path& file, const std::vector<CycleHistory>& rules);

}  // namespace example
