#include "support/llama.hpp"

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "files.hpp"
#include "gguf_file.hpp"
#include "support/byte_pairs.hpp"
#include "support/cache_keeper.hpp"
#include "support/catch.hpp"
#include "support/gguf.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using Eigen::Index;
using example::CacheRule;
using example::Llama;
using example::LlamaDecoder;
using example::Matrix;

namespace {

constexpr std::uint64_t width = 16, hidden = 24, heads = 4, kv_heads = 2, dim = 4, layers = 3, words = 20;

// A model of random weights.
files::GgufFile small_model() {
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
    const Eigen::VectorXf values = Eigen::VectorXf::Random(static_cast<Index>(size));
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

Llama load(const files::Folder& folder, const files::GgufFile& made) {
  example::Gguf file(folder.write("model.gguf", made.bytes()));
  return Llama(file);
}

double difference(const Matrix& a, const Matrix& b) {
  REQUIRE(a.rows() == b.rows());
  return static_cast<double>((a - b).cwiseAbs().maxCoeff());
}

const std::vector<int> some_ids{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};

}  // namespace

TEST_CASE("llama: scores of rotated vectors depend on the distance of their positions only") {
  example::Rotary rotary(8, 10000);
  const Matrix made = Matrix::Random(2, 16);
  const auto score = [&](ab::Index query, ab::Index key) {
    Matrix rows = made;
    rotary.set_positions(std::vector<ab::Index>{query, key});
    rotary.rotate(rows, 8, 1);
    CHECK(rows.leftCols(8) == made.leftCols(8));  // another head, left alone
    CHECK(rows.row(0).norm() == Approx(made.row(0).norm()));
    return static_cast<double>(rows.row(0).tail(8).dot(rows.row(1).tail(8)));
  };
  CHECK(score(0, 0) == Approx(static_cast<double>(made.row(0).tail(8).dot(made.row(1).tail(8)))));
  CHECK(score(7, 3) == Approx(score(4, 0)).epsilon(1e-4));
  CHECK(score(1007, 1003) == Approx(score(4, 0)).epsilon(1e-3));
  CHECK(std::abs(score(5, 0) - score(4, 0)) > 1e-3);
  // Neighbours turn together: the first pair by a radian a position.
  Matrix unit = Matrix::Zero(1, 8);
  unit(0, 0) = 1;
  rotary.set_positions(std::vector<ab::Index>{1});
  rotary.rotate(unit, 0, 1);
  CHECK(unit(0, 0) == Approx(std::cos(1.0)));
  CHECK(unit(0, 1) == Approx(std::sin(1.0)));
}

TEST_CASE("llama: a prompt at once, token by token, or beside others gives the same logits") {
  files::Folder folder;
  const Llama model = load(folder, small_model());
  LlamaDecoder<float> at_once(model, 1, 64);
  const Matrix expected = at_once.read(some_ids);
  CHECK(expected.cols() == static_cast<Index>(words));

  LlamaDecoder<float> steps(model, 1, 64);
  Matrix last;
  for (const int id : some_ids) last = steps.read({&id, 1});
  CHECK(difference(last, expected) < 1e-4);

  LlamaDecoder<float> beside(model, 2, 64);
  std::vector<int> both(some_ids.rbegin(), some_ids.rend());
  both.insert(both.end(), some_ids.begin(), some_ids.end());
  CHECK(difference(beside.read(both).bottomRows(1), expected) < 1e-4);
  CHECK(beside.caches().front().seen(1) == static_cast<ab::Index>(some_ids.size()));

  // The other storages lose little.
  CHECK(difference(LlamaDecoder<ab::f16>(model, 1, 64).read(some_ids), expected) < 0.05);
  CHECK(difference(LlamaDecoder<std::int8_t>(model, 1, 64).read(some_ids), expected) < 0.5);
}

TEST_CASE("llama: bad input") {
  files::Folder folder;
  const Llama model = load(folder, small_model());
  LlamaDecoder<float> decoder(model, 2, 40);
  CHECK_THROWS_WITH(decoder.read({}), ContainsSubstring("number of token ids is 0"));
  CHECK_THROWS_WITH(decoder.read(std::vector<int>{1, 2, 3}), ContainsSubstring("a multiple of the 2 sequences"));
  CHECK_THROWS_WITH(decoder.read(std::vector<int>{1, 20}), ContainsSubstring("token id is 20"));
  CHECK_THROWS_WITH(decoder.read(std::vector<int>(130, 1)), ContainsSubstring("context, 64"));
  CHECK_THROWS_AS(decoder.read(std::vector<int>(100, 1)), ab::BudgetError);

  files::GgufFile other;
  other.text("general.architecture", "mamba");
  CHECK_THROWS_WITH(load(folder, other), ContainsSubstring("is a mamba"));
  auto two = small_model();
  two.floats("output.weight", {1}, {1});
  CHECK_THROWS_WITH(load(folder, two), ContainsSubstring("output matrix of its own"));
}

TEST_CASE("cache keeper: every rule stays within its budget and keeps the first and the latest") {
  files::Folder folder;
  const Llama model = load(folder, small_model());
  for (const auto rule :
       {CacheRule::latest, CacheRule::random, CacheRule::attention, CacheRule::by_head, CacheRule::balanced}) {
    INFO(to_string(rule));
    example::CacheBudget budget;
    budget.rule = rule;
    budget.tokens = 16;
    budget.first = 2;
    example::CacheKeeper keeper(budget, model.shape, 2);
    LlamaDecoder<float> decoder(model, 2, keeper.capacity(60));
    const example::AfterAttention observe = keeper.observer();
    for (int i = 0; i < 60; ++i) {
      const std::vector<int> ids{i % 20, i * 7 % 20};
      decoder.read(ids, observe);
      Index held = 0;
      for (std::size_t layer = 0; layer < layers; ++layer) {
        held += decoder.caches()[layer].length(0);
        CHECK(decoder.caches()[layer].length(0) == decoder.caches()[layer].length(1));
        CHECK(decoder.caches()[layer].seen(0) == i + 1);
      }
      CHECK(held <= 16 * static_cast<Index>(layers));
      keeper.evict(decoder.caches());
    }
    for (const auto& cache : decoder.caches())
      for (Index head = 0; head < static_cast<Index>(kv_heads); ++head) {
        const auto last = cache.length(1) - 1;
        CHECK(cache.position(1, head, 0) == 0);
        CHECK(cache.position(1, head, 1) == 1);
        CHECK(cache.position(1, head, last) == 59);
        CHECK(cache.position(1, head, last - 1) == 58);
      }
    CHECK(std::accumulate(keeper.tokens_of_layers().begin(), keeper.tokens_of_layers().end(), Index{0}) ==
          16 * static_cast<Index>(layers));
  }
  example::CacheBudget small;
  small.rule = CacheRule::attention;
  small.tokens = 8;
  CHECK_THROWS_AS(example::CacheKeeper(small, model.shape, 1), ab::BudgetError);
}

TEST_CASE("llama: the language model knows the capital of France") {
  const auto path = files::language_model();
  if (!path) return;
  example::Gguf file(*path);
  const Llama model(file);
  const example::BytePairs pieces(file.texts("tokenizer.ggml.tokens"), file.texts("tokenizer.ggml.merges"));
  std::vector<int> ids{pieces.special("<|im_start|>")};
  for (const int id : pieces.encode("user\nWhat is the capital of France?")) ids.push_back(id);
  ids.push_back(pieces.special("<|im_end|>"));
  for (const int id : pieces.encode("\n")) ids.push_back(id);
  ids.push_back(pieces.special("<|im_start|>"));
  for (const int id : pieces.encode("assistant\n")) ids.push_back(id);
  LlamaDecoder<ab::bf16> decoder(model, 1, 64);
  std::string answer;
  const auto* logits = &decoder.read(ids);
  for (int i = 0; i < 7; ++i) {
    Index best = 0;
    logits->row(0).maxCoeff(&best);
    const int id = static_cast<int>(best);
    answer += pieces.bytes(id);
    logits = &decoder.read({&id, 1});
  }
  CHECK(answer == "The capital of France is Paris.");
}
