#include "support/text_budget.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "files.hpp"
#include "support/allocation_page.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using example::Budget;
using example::TextBudget;
using example::windows_of;

TEST_CASE("text budget: windows overlap by half and end with the text") {
  CHECK(windows_of(10, 10).size() == 1);
  CHECK(windows_of(1, 10).size() == 1);
  for (const std::size_t longest : std::vector<std::size_t>{2, 5, 10, 254, 510})
    for (std::size_t tokens = 1; tokens < 4 * longest; tokens += 1 + longest / 7) {
      const auto windows = windows_of(tokens, longest);
      INFO(tokens << " tokens in windows of " << longest);
      REQUIRE(windows.front().first == 0);
      REQUIRE(windows.back().first + windows.back().count == tokens);
      for (std::size_t w = 1; w < windows.size(); ++w) {
        REQUIRE(windows[w].first == windows[w - 1].first + longest / 2);
        REQUIRE(windows[w - 1].count == longest);
        REQUIRE(windows[w].count > longest - longest / 2 - (longest % 2));
      }
    }
}

TEST_CASE("text budget: parts, percentages and numbers") {
  CHECK(Budget::parse("0.5").of(256) == 128);
  CHECK(Budget::parse("25%").of(256) == 64);
  CHECK(Budget::parse("1.0").of(256) == 256);
  CHECK(Budget::parse("100").of(256) == 100);
  CHECK(Budget::parse("100").of(64) == 64);
  CHECK(Budget::parse("0.01").of(9) == 3);  // one token besides the special ones
  CHECK(Budget::parse("1%").of(2) == 2);
  for (const char* bad : {"", "%", "0", "0.0", "-0.5", "1.5", "101%", "half", "0.5x", "nan", "inf", "1e-1x"}) {
    INFO(bad);
    CHECK_THROWS_AS(Budget::parse(bad), ab::InputError);
    CHECK_THROWS_WITH(Budget::parse(bad), ContainsSubstring("budget is \"" + std::string(bad) + "\""));
  }
}

TEST_CASE("text budget: a text, its shares and what they save") {
  const auto folder = files::model();
  if (!folder) return;
  const example::WordPiece pieces(*folder / "vocab.txt");
  example::MiniLm model(*folder);
  const auto text = files::golden_row("minilm_encoder.json", "default").at("text").get<std::string>();
  auto tokens = pieces.encode(text);

  SECTION("256 tokens, half of them from layer 2 on") {
    tokens.resize(254);
    TextBudget budget(model, pieces, tokens, {});
    REQUIRE(budget.windows().size() == 1);
    example::Allocation allocation;
    const auto full = budget.full(), budgeted = budget.budgeted(allocation);
    CHECK(std::accumulate(allocation.shares.begin(), allocation.shares.end(), 0.0) == Approx(1).epsilon(1e-5));
    CHECK(*std::min_element(allocation.shares.begin(), allocation.shares.end()) > 0);
    CHECK(std::count(allocation.kept.begin(), allocation.kept.end(), char(1)) == 126);

    // Kept are the largest shares, and they are those of the golden run.
    auto kept = files::golden_row("minilm_encoder.json", "half").at("kept").get<std::vector<std::size_t>>();
    for (std::size_t i = 0; i < tokens.size(); ++i)
      CHECK((allocation.kept[i] != 0) == (std::find(kept.begin(), kept.end(), i + 1) != kept.end()));

    const double by_share = example::cosine(full, budgeted);
    CHECK(by_share == Approx(0.93209).margin(1e-4));
    CHECK(by_share > example::cosine(full, budget.first()));
    for (unsigned seed = 1; seed <= 5; ++seed) CHECK(by_share > example::cosine(full, budget.random(seed)));
    CHECK(example::cosine(full, full) == Approx(1));
    CHECK(budgeted.work.total() < 0.66 * full.work.total());
    CHECK(budgeted.layers[1].tokens == 256);
    CHECK(budgeted.layers[2].tokens == 128);
  }

  SECTION("the whole budget is the full run") {
    tokens.resize(40);
    example::BudgetOptions options;
    options.budget = Budget::parse("1.0");
    TextBudget budget(model, pieces, tokens, options);
    example::Allocation allocation;
    const auto full = budget.full(), budgeted = budget.budgeted(allocation);
    CHECK((full.embedding - budgeted.embedding).cwiseAbs().maxCoeff() < 1e-5f);
    CHECK(budgeted.work.total() == full.work.total());
    CHECK(std::count(allocation.kept.begin(), allocation.kept.end(), char(0)) == 0);
  }

  SECTION("windows: shares of the whole text, tokens that went before keep theirs in part") {
    tokens.resize(100);
    example::BudgetOptions options;
    options.window = 42;  // 40 of the text
    TextBudget budget(model, pieces, tokens, options);
    REQUIRE(budget.windows().size() == 4);
    example::Allocation allocation, again;
    std::size_t steps = 0;
    const auto budgeted = budget.budgeted(allocation, [&] { ++steps; });
    CHECK(steps == 4);
    CHECK(budgeted.windows.size() == 4);
    CHECK(budgeted.layers[0].tokens == 4 * 42);
    CHECK(std::accumulate(allocation.shares.begin(), allocation.shares.end(), 0.0) == Approx(1).epsilon(1e-5));
    CHECK(budgeted.embedding.norm() == Approx(1));
    budget.budgeted(again);
    CHECK(allocation.shares == again.shares);
    CHECK(allocation.kept == again.kept);

    // A token of two windows remembers the first: without it, its last window alone would decide.
    const std::vector<example::Token> tail(tokens.begin() + 60, tokens.end());
    TextBudget alone(model, pieces, tail, options);
    REQUIRE(alone.windows().size() == 1);
    example::Allocation fresh;
    alone.budgeted(fresh);
    std::vector<double> memory;  // logarithm of the share with memory over the one without
    for (std::size_t i = 0; i < 40; ++i)
      memory.push_back(std::log(static_cast<double>(allocation.shares[60 + i] / fresh.shares[i])));
    // New tokens started at the mean: as from a fresh start, up to a common factor.
    for (std::size_t i = 20; i < 40; ++i) CHECK(memory[i] == Approx(memory[20]).margin(1e-4));
    double largest = 0;
    for (std::size_t i = 0; i < 20; ++i) largest = std::max(largest, std::abs(memory[i] - memory[20]));
    CHECK(largest > 0.01);
  }

  SECTION("options that make no sense") {
    const auto with = [](auto change) {
      example::BudgetOptions options;
      change(options);
      return options;
    };
    const auto make = [&](const example::BudgetOptions& options) { TextBudget(model, pieces, tokens, options); };
    CHECK_THROWS_WITH(make(with([](auto& o) { o.from_layer = 0; })),
                      ContainsSubstring("is 0, but must be in [1, 5]"));
    CHECK_THROWS_WITH(make(with([](auto& o) { o.from_layer = 6; })),
                      ContainsSubstring("is 6, but must be in [1, 5]"));
    CHECK_THROWS_WITH(make(with([](auto& o) { o.saliency_layer = 2; })),
                      ContainsSubstring("is 2, but must be in [0, 1]"));
    CHECK_THROWS_WITH(make(with([](auto& o) { o.window = 513; })), ContainsSubstring("window is 513"));
    CHECK_THROWS_WITH(make(with([](auto& o) { o.window = 3; })), ContainsSubstring("window is 3"));
    tokens.clear();
    CHECK_THROWS_WITH(make({}), ContainsSubstring("no tokens"));
    tokens = pieces.encode("one two three");
    TextBudget budget(model, pieces, tokens, with([](auto& o) { o.budget = Budget::parse("1"); }));
    example::Allocation allocation;
    CHECK_THROWS_AS(budget.budgeted(allocation), ab::BudgetError);
  }
}

TEST_CASE("text budget: the page stands alone and escapes the text") {
  files::Folder folder;
  const example::WordPiece pieces(folder.write("vocab.txt", "[UNK]\n[CLS]\n[SEP]\n<\nscript\n>\n&\na\n"));
  const std::string text = "<script> & \"a\" \xff a";
  const auto tokens = pieces.encode(text);
  REQUIRE(tokens.size() == 8);

  example::Run run;
  run.embedding = Eigen::VectorXf::Unit(example::MiniLm::width, 0);
  run.windows = {run.embedding};
  run.work = {1e9, 2e9};
  run.seconds = 1;
  for (auto& layer : run.layers) layer = {10, {1e8, 2e8}, 3};
  example::Allocation allocation{std::vector<float>(8, 0.125f), {1, 0, 1, 0, 1, 0, 1, 0}};
  const example::Comparison comparison{"<name>", text, &tokens, &pieces, 1, {}, allocation, run, run, run, {run}};

  const auto page = example::allocation_page(comparison);
  CHECK(page.find("<script") == page.npos);
  CHECK(page.find("http") == page.npos);
  CHECK(page.find("src=") == page.npos);
  CHECK(page.find("url(") == page.npos);
  CHECK(page.find('\xff') == page.npos);
  CHECK_THAT(page, ContainsSubstring("<h1>&lt;name&gt;</h1>"));
  CHECK_THAT(page, ContainsSubstring(">script</span>"));
  CHECK_THAT(page, ContainsSubstring("&quot;"));
  CHECK(std::count(page.begin(), page.end(), '\n') > 20);

  CHECK(comparison.kept() == 4);
  CHECK(example::largest_shares(allocation, 3) == std::vector<std::size_t>{0, 1, 2});
  CHECK_THAT(example::kept_text(comparison), ContainsSubstring("< ... >"));
  const auto json = nlohmann::json::parse(example::allocation_json(comparison));
  CHECK(json.at("tokens").size() == 8);
  CHECK(json.at("tokens")[1].at("piece") == "script");
  CHECK(json.at("budgeted").at("cosine") == 1);
}
