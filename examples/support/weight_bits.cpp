#include "weight_bits.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "minilm.hpp"
#include "safetensors.hpp"
#include "wordpiece.hpp"

namespace example {
namespace ab = attention_balancer;
using ab::Index;

std::vector<double> BitCase::sensitivity() const {
  std::vector<double> result;
  for (Eigen::Index i = 0; i < weight.rows(); ++i) {
    const auto row = weight.row(i).cast<double>().array();
    result.push_back(energy[static_cast<std::size_t>(i)] * (row - row.mean()).square().mean());
  }
  return result;
}

const char* to_string(BitRule rule) {
  switch (rule) {
    case BitRule::uniform: return "uniform";
    case BitRule::saliency: return "saliency only";
    case BitRule::marginal: return "marginal";
    case BitRule::measured: return "measured";
  }
  return "?";
}

namespace {

ab::TensorView<const float> view(const Matrix& m) {
  return ab::execute::rows(m.data(), m.rows(), m.cols());
}

/// Bit by bit to whoever gains most from one more: gain(i, b) is what row i with b bits gains.
template <class Gain>
std::vector<Index> greedy(std::size_t n, Index total, Index most, const Gain& gain) {
  if (total > most * static_cast<Index>(n))
    throw ab::BudgetError("total of the bits is " + std::to_string(total) + ", but must not exceed " +
                          std::to_string(most) + " for each of " + std::to_string(n) + " rows");
  std::vector<Index> bits(n, 0);
  for (; total > 0; --total) {
    std::size_t best = n;
    double gained = 0;
    for (std::size_t i = 0; i < n; ++i)
      if (bits[i] < most)
        if (const double g = gain(i, bits[i]); best == n || g > gained) best = i, gained = g;
    ++bits[best];
  }
  return bits;
}

/// The largest convex curve that is nowhere above these values, at the same places.
std::vector<double> convex_minorant(const std::vector<double>& values) {
  std::vector<std::size_t> hull;
  const auto slope = [&](std::size_t a, std::size_t b) {
    return (values[b] - values[a]) / static_cast<double>(b - a);
  };
  for (std::size_t b = 0; b < values.size(); ++b) {
    while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), b)) hull.pop_back();
    hull.push_back(b);
  }
  std::vector<double> curve(values);
  for (std::size_t k = 1; k < hull.size(); ++k)
    for (std::size_t b = hull[k - 1]; b < hull[k]; ++b)
      curve[b] = values[hull[k - 1]] + slope(hull[k - 1], hull[k]) * static_cast<double>(b - hull[k - 1]);
  return curve;
}

/// The greedy rule on what the quantiser really loses. That need not fall evenly: with its levels at the least and
/// the greatest element, 1 bit can lose more than none, and who looks one bit ahead would never give the first. So
/// the bits go by the convex curve below.
std::vector<Index> allot_measured(const BitCase& layer, Index total, Index most, ab::execute::Levels levels) {
  const auto n = static_cast<std::size_t>(layer.weight.rows());
  std::vector<std::vector<double>> error(n);  // [row][bits]
  for (Index b = 0; b <= most; ++b) {
    const auto q = ab::execute::bit_budget(view(layer.weight), std::vector<Index>(n, b), {.levels = levels});
    for (std::size_t i = 0; i < n; ++i)
      error[i].push_back(layer.energy[i] * q.squared_error(static_cast<Index>(i)));
  }
  for (auto& of_row : error) of_row = convex_minorant(of_row);
  return greedy(n, total, most, [&](std::size_t i, Index b) {
    const auto at = static_cast<std::size_t>(b);
    return error[i][at] - error[i][at + 1];
  });
}

}  // namespace

std::vector<Index> allot_bits(const BitCase& layer, BitRule rule, double average, Index most,
                              ab::execute::Levels levels) {
  const auto n = static_cast<std::size_t>(layer.weight.rows());
  const auto total = static_cast<Index>(std::llround(average * static_cast<double>(n)));
  const std::vector<Index> lower(n, 0), upper(n, most);
  switch (rule) {
    case BitRule::uniform: return ab::apportion::sainte_lague(std::vector<double>(n, 1.0), total, lower, upper);
    case BitRule::saliency: return ab::apportion::sainte_lague(layer.energy, total, lower, upper);
    case BitRule::marginal: return ab::apportion::bits(layer.sensitivity(), total, lower, upper);
    case BitRule::measured: return allot_measured(layer, total, most, levels);
  }
  return {};
}

double output_error(const BitCase& layer, std::span<const Index> bits, ab::execute::Levels levels) {
  Matrix restored(layer.weight.rows(), layer.weight.cols());
  ab::execute::bit_budget(view(layer.weight), bits, {.levels = levels})
      .restore(ab::execute::rows(restored.data(), restored.rows(), restored.cols()));
  restored -= layer.weight;
  const double error = (layer.inputs * restored).cast<double>().squaredNorm();
  return error / (layer.inputs * layer.weight).cast<double>().squaredNorm();
}

std::vector<BitCase> encoder_bit_cases(const std::filesystem::path& model, const std::string& text) {
  constexpr std::size_t window = 64;
  const auto width = MiniLm::width;
  const WordPiece pieces(model / "vocab.txt");
  std::vector<int> ids;
  for (const auto& token : pieces.encode(text)) ids.push_back(token.id);
  if (ids.size() < window + 1)
    throw FileError("the text has " + std::to_string(ids.size()) + " tokens, but must have more than " +
                    std::to_string(window) + ": some to calibrate on and others to measure on");

  // [layer]: inputs of layer + 1, to calibrate and to measure.
  std::vector<Matrix> calibration(MiniLm::layers), measured(MiniLm::layers);
  MiniLm encoder(model);
  for (std::size_t begin = 0, turn = 0; begin < ids.size(); begin += window, ++turn) {
    auto& into = turn % 2 == 0 ? calibration : measured;
    std::vector<int> framed{pieces.cls()};
    for (std::size_t i = begin; i < std::min(begin + window, ids.size()); ++i) framed.push_back(ids[i]);
    framed.push_back(pieces.sep());
    encoder.encode(framed, [&](int layer, const ab::Evidence<float>&, MiniLm::Tokens& tokens) {
      auto& all = into[static_cast<std::size_t>(layer)];
      const auto before = all.rows();
      all.conservativeResize(before + tokens.states.rows(), width);
      all.bottomRows(tokens.states.rows()) = tokens.states;
    });
  }

  Safetensors file(model / "model.safetensors");
  std::vector<BitCase> cases;
  for (int layer = 1; layer < MiniLm::layers; ++layer) {
    const auto& seen = calibration[static_cast<std::size_t>(layer - 1)];
    for (const char* name : {"query", "key", "value"}) {
      const auto side = static_cast<std::uint64_t>(width);
      const auto values = file.floats(
          "encoder.layer." + std::to_string(layer) + ".attention.self." + name + ".weight", {side, side});
      BitCase one;
      one.name = "layer " + std::to_string(layer) + " " + name;
      one.weight = Eigen::Map<const Matrix>(values.data(), width, width).transpose();
      for (Eigen::Index i = 0; i < width; ++i)
        one.energy.push_back(seen.col(i).cast<double>().squaredNorm() / static_cast<double>(seen.rows()));
      one.inputs = measured[static_cast<std::size_t>(layer - 1)];
      cases.push_back(std::move(one));
    }
  }
  return cases;
}

}  // namespace example
