#pragma once
// A language model of random weights.

#include <numeric>
#include <string>
#include <vector>

#include "files.hpp"
#include "gguf_file.hpp"
#include "support/gguf.hpp"
#include "support/llama.hpp"

namespace small {

inline constexpr std::uint64_t width = 16, hidden = 32, heads = 4, kv_heads = 2, dim = 4, layers = 3, words = 20;

inline files::GgufFile model() {
  files::GgufFile file;
  file.text("general.architecture", "llama");
  for (const auto& [key, value] : {std::pair("block_count", layers), std::pair("context_length", std::uint64_t{64}),
                                   std::pair("embedding_length", width), std::pair("feed_forward_length", hidden),
                                   std::pair("attention.head_count", heads), std::pair("rope.dimension_count", dim),
                                   std::pair("attention.head_count_kv", kv_heads)})
    file.whole(std::string("llama.") + key, static_cast<std::uint32_t>(value));
  file.real("llama.rope.freq_base", 100);
  file.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.texts("tokenizer.ggml.tokens", std::vector<std::string>(words, "x"));
  std::srand(1);
  const auto add = [&](const std::string& name, const std::vector<std::uint64_t>& shape) {
    const auto size = std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, std::multiplies<>());
    const Eigen::VectorXf values = Eigen::VectorXf::Random(static_cast<Eigen::Index>(size));
    file.floats(name, shape, {values.data(), values.data() + values.size()});
  };
  add("token_embd.weight", {width, words});
  add("output_norm.weight", {width});
  for (std::uint64_t layer = 0; layer < layers; ++layer) {
    const auto at = "blk." + std::to_string(layer) + ".";
    add(at + "attn_norm.weight", {width});
    add(at + "ffn_norm.weight", {width});
    add(at + "attn_q.weight", {width, heads * dim});
    add(at + "attn_k.weight", {width, kv_heads * dim});
    add(at + "attn_v.weight", {width, kv_heads * dim});
    add(at + "attn_output.weight", {heads * dim, width});
    add(at + "ffn_gate.weight", {width, hidden});
    add(at + "ffn_up.weight", {width, hidden});
    add(at + "ffn_down.weight", {hidden, width});
  }
  return file;
}

inline example::Llama load(const files::Folder& folder, const files::GgufFile& made) {
  example::Gguf file(folder.write("model.gguf", made.bytes()));
  return example::Llama(file);
}

}  // namespace small
