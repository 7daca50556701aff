#pragma once
// The bits of a weight matrix, divided among the input features, and what that does to what the matrix computes.

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/balance.hpp"
#include "eigen.hpp"

namespace example {

/// One dense layer with its real inputs.
struct BitCase {
  std::string name;
  Matrix weight;               // [in, out], a row per input feature: y = x * weight
  std::vector<double> energy;  // [in] mean square of each input feature over the calibration text
  Matrix inputs;               // [tokens, in] from other text, to measure on

  /// [in] What noise in a row does to the output, in proportion: energy * variance of the row.
  std::vector<double> sensitivity() const;
};

/// Who says how many bits each input feature gets.
enum class BitRule {
  uniform,   ///< all the same
  saliency,  ///< in proportion to the energy alone: an allocation, where a marginal utility is asked for
  marginal,  ///< one by one where a bit saves most, if each quarters the error: apportion::bits
  measured,  ///< one by one where a bit saves most, by the errors that the quantiser really makes
};

const char* to_string(BitRule rule);

/// The bits of each input feature: average * in of them in all, rounded, none above `most`.
std::vector<attention_balancer::Index> allot_bits(const BitCase& layer, BitRule rule, double average,
                                                  attention_balancer::Index most,
                                                  attention_balancer::execute::Levels levels);

/// Squared error of the layer's output on its inputs, as a part of the squared output.
double output_error(const BitCase& layer, std::span<const attention_balancer::Index> bits,
                    attention_balancer::execute::Levels levels);

/// The query, key and value layers of the encoder layers 1 to 5 of all-MiniLM-L6-v2 with what they get when the
/// encoder reads the text: the windows of 64 tokens in turns to calibrate and to measure. The first layer is left
/// out, because its inputs are embeddings. Throws FileError, also if the text has less than two windows.
std::vector<BitCase> encoder_bit_cases(const std::filesystem::path& model, const std::string& text);

}  // namespace example
