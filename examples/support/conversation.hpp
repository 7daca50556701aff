#pragma once
#include <string>
#include <vector>

#include "byte_pairs.hpp"

namespace example {

/// What SmolLM2-Instruct was told in training when nothing else was.
inline constexpr const char* default_system =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/// A question as the model was trained to see it (ChatML), up to where it answers.
std::vector<int> conversation(const BytePairs& pieces, const std::string& system, const std::string& question);

}  // namespace example
