#include "support/llama.hpp"

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "files.hpp"
#include "gguf_file.hpp"
#include "small_llama.hpp"
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

template <class Stored>
LlamaDecoder<ab::KvCache<Stored>> decoder_of(const Llama& model, Index batch, Index capacity) {
  return LlamaDecoder{model, example::caches_of<ab::KvCache<Stored>>(model.shape, batch, capacity)};
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
  const Llama model = small::load(folder, small::model());
  LlamaDecoder at_once = decoder_of<float>(model, 1, 64);
  const Matrix expected = at_once.read(some_ids);
  CHECK(expected.cols() == static_cast<Index>(small::words));

  LlamaDecoder steps = decoder_of<float>(model, 1, 64);
  Matrix last;
  for (const int id : some_ids) last = steps.read({&id, 1});
  CHECK(difference(last, expected) < 1e-4);

  LlamaDecoder beside = decoder_of<float>(model, 2, 64);
  std::vector<int> both(some_ids.rbegin(), some_ids.rend());
  both.insert(both.end(), some_ids.begin(), some_ids.end());
  CHECK(difference(beside.read(both).bottomRows(1), expected) < 1e-4);
  CHECK(beside.caches().front().seen(1) == static_cast<ab::Index>(some_ids.size()));

  // The other storages lose little.
  CHECK(difference(decoder_of<ab::f16>(model, 1, 64).read(some_ids), expected) < 0.05);
  CHECK(difference(decoder_of<std::int8_t>(model, 1, 64).read(some_ids), expected) < 0.5);
}

TEST_CASE("llama: sequences with numbers of tokens of their own have the bits that each has alone") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  const std::vector<std::vector<int>> texts{{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}, {2, 7}, {1, 8, 2, 8, 1, 8, 2}};
  // Pieces of up to five tokens: the second is read at once, waits, and goes on.
  const std::vector<std::vector<Index>> steps{{5, 2, 0}, {5, 0, 5}, {2, 1, 2}, {1, 1, 1}};
  LlamaDecoder together(model, example::caches_of<ab::PagedKvCache<float>>(model.shape, 3, 12, 4));
  std::vector<LlamaDecoder<ab::KvCache<float>>> alone;
  for (int s = 0; s < 3; ++s) alone.push_back(decoder_of<float>(model, 1, 20));
  std::vector<std::size_t> at(3, 0);
  for (const auto& numbers : steps) {
    std::vector<int> ids;
    std::vector<Index> offsets{0}, all;
    std::vector<Matrix> expected;
    for (std::size_t s = 0; s < 3; ++s) {
      std::vector<int> mine;
      for (Index i = 0; i < numbers[s]; ++i) mine.push_back(at[s] < texts[s].size() ? texts[s][at[s]++] : 11);
      ids.insert(ids.end(), mine.begin(), mine.end());
      offsets.push_back(static_cast<Index>(ids.size()));
      if (!mine.empty()) expected.push_back(alone[s].read(mine));
      if (!mine.empty()) all.push_back(offsets.back() - 1);
    }
    const Matrix& logits = together.read(ids, offsets, all);
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(logits.row(static_cast<Index>(i)) == expected[i].row(0));
  }
  CHECK(together.caches().front().seen(1) == 4);
  // Nothing asked for, and too many for the pages that are left: no layer has taken in more.
  CHECK(together.read(std::vector<int>{1}, std::vector<Index>{0, 0, 0, 1}, {}).rows() == 0);
  const auto bytes = together.cache_bytes();
  CHECK_THROWS_AS(together.read(std::vector<int>(30, 1), std::vector<Index>{0, 1, 2, 30}, {}), ab::BudgetError);
  CHECK(together.cache_bytes() == bytes);
}

TEST_CASE("llama: bad input") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  LlamaDecoder decoder = decoder_of<float>(model, 2, 40);
  CHECK_THROWS_WITH(decoder.read({}), ContainsSubstring("number of token ids is 0"));
  CHECK_THROWS_WITH(decoder.read(std::vector<int>{1, 2, 3}), ContainsSubstring("a multiple of the 2 sequences"));
  CHECK_THROWS_WITH(decoder.read(std::vector<int>{1, 20}), ContainsSubstring("token id is 20"));
  CHECK_THROWS_WITH(decoder.read(std::vector<int>(130, 1)), ContainsSubstring("context, 64"));
  CHECK_THROWS_AS(decoder.read(std::vector<int>(100, 1)), ab::BudgetError);
  const std::vector<int> three{1, 2, 3};
  CHECK_THROWS_WITH(decoder.read(three, std::vector<Index>{0, 2, 1}, {}), ContainsSubstring("offsets must ascend"));
  CHECK_THROWS_WITH(decoder.read(three, std::vector<Index>{0, 3}, {}), ContainsSubstring("the 2 sequences"));
  CHECK_THROWS_WITH(decoder.read(three, std::vector<Index>{0, 1, 3}, std::vector<Index>{3}),
                    ContainsSubstring("token asked for is 3"));

  files::GgufFile other;
  other.text("general.architecture", "mamba");
  CHECK_THROWS_WITH(small::load(folder, other), ContainsSubstring("is a mamba"));
  auto two = small::model();
  two.floats("output.weight", {1}, {1});
  CHECK_THROWS_WITH(small::load(folder, two), ContainsSubstring("output matrix of its own"));
}

TEST_CASE("cache keeper: every rule stays within its budget and keeps the first and the latest") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  for (const auto rule :
       {CacheRule::latest, CacheRule::random, CacheRule::attention, CacheRule::by_head, CacheRule::balanced}) {
    INFO(to_string(rule));
    example::CacheBudget budget;
    budget.rule = rule;
    budget.tokens = 16;
    budget.first = 2;
    example::CacheKeeper keeper(budget, model.shape, 2);
    LlamaDecoder decoder = decoder_of<float>(model, 2, keeper.capacity(60));
    const example::AfterAttention observe = keeper.observer();
    for (int i = 0; i < 60; ++i) {
      const std::vector<int> ids{i % 20, i * 7 % 20};
      decoder.read(ids, observe);
      Index held = 0;
      for (std::size_t layer = 0; layer < small::layers; ++layer) {
        held += decoder.caches()[layer].length(0);
        CHECK(decoder.caches()[layer].length(0) == decoder.caches()[layer].length(1));
        CHECK(decoder.caches()[layer].seen(0) == i + 1);
      }
      CHECK(held <= 16 * static_cast<Index>(small::layers));
      keeper.evict(decoder.caches());
    }
    for (const auto& cache : decoder.caches())
      for (Index head = 0; head < static_cast<Index>(small::kv_heads); ++head) {
        const auto last = cache.length(1) - 1;
        CHECK(cache.position(1, head, 0) == 0);
        CHECK(cache.position(1, head, 1) == 1);
        CHECK(cache.position(1, head, last) == 59);
        CHECK(cache.position(1, head, last - 1) == 58);
      }
    CHECK(std::accumulate(keeper.tokens_of_layers().begin(), keeper.tokens_of_layers().end(), Index{0}) ==
          16 * static_cast<Index>(small::layers));
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
  LlamaDecoder decoder = decoder_of<ab::bf16>(model, 1, 64);
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
