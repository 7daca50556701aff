#pragma once
#include <filesystem>

#include "byte_pairs.hpp"
#include "llama.hpp"

namespace example {

/// What one GGUF file holds: a model and the pieces of text that are its words.
struct LanguageModel {
  Llama model;
  BytePairs pieces;
};

/// Throws FileError if there is no such file, saying how to get it, or if it holds no model of the Llama family.
LanguageModel open_language_model(const std::filesystem::path& path);

}  // namespace example
