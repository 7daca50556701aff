#include "language_model.hpp"

#include "gguf.hpp"

namespace example {

LanguageModel open_language_model(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path))
    throw FileError("no model in \"" + path.string() +
                    "\": `sh examples/fetch_model.sh SmolLM2-135M-Instruct` downloads it");
  Gguf file(path);
  return {Llama(file), BytePairs(file.texts("tokenizer.ggml.tokens"), file.texts("tokenizer.ggml.merges"))};
}

}  // namespace example
