#pragma once
// Golden data: lines `case,array,v0 v1 v2 ...`, made by the script of the same name in tests/golden.

#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_balancer/tensor/tensor_view.hpp"

namespace support {

namespace ab = attention_balancer;
using ab::Index;

struct Case {
  std::string name;
  std::map<std::string, std::vector<double>> arrays;

  bool has(const std::string& array) const { return arrays.count(array) != 0; }
  const std::vector<double>& operator[](const std::string& array) const {
    const auto at = arrays.find(array);
    if (at == arrays.end()) throw std::runtime_error(name + " has no " + array);
    return at->second;
  }
};

inline std::vector<Case> read_golden(const std::string& csv) {
  const std::string path = std::string(ATTENTION_BALANCER_TEST_DATA) + '/' + csv;
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<Case> cases;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    // The name of a case may contain commas: the last two belong to the format.
    const auto second = line.rfind(','), first = line.rfind(',', second - 1);
    const std::string name = line.substr(0, first), array = line.substr(first + 1, second - first - 1);
    if (cases.empty() || cases.back().name != name) cases.push_back({name, {}});
    std::vector<double>& values = cases.back().arrays[array];
    std::istringstream numbers(line.substr(second + 1));
    for (std::string number; numbers >> number;) values.push_back(std::stod(number));
  }
  return cases;
}

inline ab::TensorView<const double> view_of(const std::vector<double>& values, const std::vector<double>& sizes) {
  auto size = [&](std::size_t axis) { return static_cast<Index>(sizes.at(axis)); };
  return ab::bhsd(values.data(), size(0), size(1), size(2), size(3));
}

inline std::vector<double> divided(std::vector<double> values) {
  for (auto& x : values) x /= 64;
  return values;
}

}  // namespace support
