#include "support/minilm.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "attention_balancer/balance.hpp"
#include "files.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using example::MiniLm;

namespace {

double largest_difference(const Eigen::VectorXf& values, const nlohmann::json& golden) {
  const auto expected = golden.get<std::vector<float>>();
  REQUIRE(values.size() == static_cast<Eigen::Index>(expected.size()));
  return static_cast<double>(
      (values - Eigen::Map<const Eigen::VectorXf>(expected.data(), values.size())).cwiseAbs().maxCoeff());
}

// The golden data agrees within 2e-7; the promise is 1e-4.
constexpr double tolerance = 5e-6;

}  // namespace

TEST_CASE("minilm: the embedding agrees with torch") {
  const auto folder = files::model();
  if (!folder) return;
  MiniLm model(*folder);
  for (const char* name : {"sentence", "one word", "accents", "default"}) {
    INFO(name);
    const auto row = files::golden_row("minilm_encoder.json", name);
    const auto encoding = model.encode(row.at("ids").get<std::vector<int>>());
    CHECK(largest_difference(encoding.embedding, row.at("embedding")) < tolerance);
  }
}

TEST_CASE("minilm: attention, kept tokens and embedding under a budget agree with torch") {
  const auto folder = files::model();
  if (!folder) return;
  MiniLm model(*folder);
  const auto row = files::golden_row("minilm_encoder.json", "half");
  const auto ids = row.at("ids").get<std::vector<int>>();
  const auto n = static_cast<ab::Index>(ids.size());
  REQUIRE(n == 256);

  SECTION("all queries count, every token stays") {
    const auto encoding = model.encode(ids, [&](int layer, const ab::Evidence<float>& evidence, MiniLm::Tokens&) {
      if (layer != 1) return;
      const auto expected = row.at("mass_of_all_queries").get<std::vector<float>>();
      const auto mass = ab::saliency::mass(evidence);
      for (std::size_t i = 0; i < mass.size(); ++i) CHECK(mass[i] == Approx(expected[i]).epsilon(1e-4));
    });
    CHECK(largest_difference(encoding.embedding, row.at("embedding")) < tolerance);
  }
  SECTION("the query [CLS] counts, half of the tokens stay from layer 2 on") {
    std::vector<float> queries(ids.size(), 0.f);
    queries[0] = 1;
    const auto encoding = model.encode(
        ids,
        [&](int layer, const ab::Evidence<float>& evidence, MiniLm::Tokens& tokens) {
          REQUIRE(evidence.keys() == (layer < 2 ? n : n / 2));
          if (layer != 1) return;
          const auto expected = row.at("mass_of_cls").get<std::vector<float>>();
          const auto mass = ab::saliency::mass(evidence, ab::Heads::max);
          for (std::size_t i = 0; i < mass.size(); ++i) CHECK(mass[i] == Approx(expected[i]).epsilon(1e-4));
          ab::execute::token_budget(mass, n / 2, {0, n - 1}).compact(tokens.states, tokens.positions);
          CHECK(tokens.positions == row.at("kept").get<std::vector<ab::Index>>());
        },
        queries);
    CHECK(largest_difference(encoding.embedding, row.at("budgeted")) < tolerance);
    const auto whole = MiniLm::layer_work(n), half = MiniLm::layer_work(n / 2);
    CHECK(encoding.work.dense == 2 * whole.dense + 4 * half.dense);
    CHECK(encoding.work.attention == 2 * whole.attention + 4 * half.attention);
  }
}

TEST_CASE("minilm: work") {
  // 2 tokens: 12 x 2 scores of 32 features and as much for the values; and 2 rows through 384 -> 1152, 384, 1536,
  // 384.
  const auto work = MiniLm::layer_work(2);
  CHECK(work.attention == 2 * 2 * (2 * 2 * 384));
  CHECK(work.dense == 2.0 * 2 * (384 * 1152 + 384 * 384 + 384 * 1536 + 1536 * 384));
}

TEST_CASE("minilm: bad input") {
  files::Folder empty;
  CHECK_THROWS_WITH(MiniLm(empty.path()), ContainsSubstring("model.safetensors: cannot be opened"));
  const auto folder = files::model();
  if (!folder) return;
  MiniLm model(*folder);
  CHECK_THROWS_WITH(model.encode(std::vector<int>{}), ContainsSubstring("number of token ids is 0"));
  CHECK_THROWS_WITH(model.encode(std::vector<int>(513, 101)), ContainsSubstring("number of token ids is 513"));
  CHECK_THROWS_WITH(model.encode(std::vector<int>{101, 30522}), ContainsSubstring("token id is 30522"));
  CHECK_THROWS_WITH(model.encode(std::vector<int>{101, -1}), ContainsSubstring("token id is -1"));
  const std::vector<float> one{1.f};
  CHECK_THROWS_WITH(model.encode(
                        std::vector<int>{101, 102}, [](int, const auto&, auto&) {}, one),
                    ContainsSubstring("number of query weights is 1"));

  // Half of the real file: the header is whole, the data is not.
  std::ifstream whole(*folder / "model.safetensors", std::ios::binary);
  std::string part(1'000'000, '\0');
  whole.read(part.data(), static_cast<std::streamsize>(part.size()));
  empty.write("model.safetensors", part);
  CHECK_THROWS_WITH(MiniLm(empty.path()), ContainsSubstring("truncated"));
}
