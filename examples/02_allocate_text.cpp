// A text under a token budget: a sentence encoder reads it twice, once in full and once with only the tokens that
// its own attention asks for, and tells what that saved and what it cost.
//
//   allocate_text                        a text of our own, half of its tokens from layer 2 on
//   allocate_text page.txt --budget 30%
//   cat page.txt | allocate_text - --html page.html
//   allocate_text --help

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "support/allocation_page.hpp"
#include "support/command_line.hpp"
#include "support/output.hpp"
#include "support/progress.hpp"
#include "support/text_budget.hpp"

#ifndef ATTENTION_BALANCER_MODEL_DIR
#define ATTENTION_BALANCER_MODEL_DIR ""
#endif
#ifndef ATTENTION_BALANCER_EXAMPLE_DATA
#define ATTENTION_BALANCER_EXAMPLE_DATA "examples/data"
#endif

namespace ab = attention_balancer;

namespace {

struct Options {
  std::filesystem::path text = std::filesystem::path(ATTENTION_BALANCER_EXAMPLE_DATA) / "default.txt";
  std::filesystem::path model = ATTENTION_BALANCER_MODEL_DIR, html = "allocate_text.html", json;
  std::string budget = "0.5", queries = "cls", heads = "max";
  example::BudgetOptions run;
  unsigned seed = 1;
  int draws = 5, repeat = 0;
  std::size_t top = 15, tokens = 0;
  bool all = false, no_html = false;
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Turns the attention that a text pays to its tokens into a budget, and spends only that."};
  app.option_defaults()->always_capture_default();
  app.add_option("text", options.text, "text file in UTF-8; - is standard input");
  app.add_option("--model", options.model, "folder of all-MiniLM-L6-v2: model.safetensors and vocab.txt");
  app.add_option("--budget", options.budget, "tokens kept of each window: 0.5, 50% or 128");
  app.add_option("--from-layer", options.run.from_layer, "first layer that works on the kept tokens only, from 0");
  app.add_option("--layer", options.run.saliency_layer, "layer whose attention decides; -1 is the one before");
  app.add_option("--queries", options.queries, "whose attention counts: that of [CLS], or of all tokens")
      ->check(CLI::IsMember({"cls", "all"}));
  app.add_option("--heads", options.heads, "how the heads become one")->check(CLI::IsMember({"max", "mean"}));
  app.add_option("--window", options.run.window, "tokens of a window, the special ones included, at most 512");
  app.add_option("--first", options.tokens, "use only so many tokens of the text; 0 is all of them");
  app.add_option("--threads", options.run.threads, "of the encoder; 0 is all, 1 is steadiest to measure")
      ->check(CLI::Range(0, 4096));
  app.add_option("--seed", options.seed, "seed of the random tokens to compare with");
  app.add_option("--draws", options.draws, "how often to draw them")->check(CLI::Range(0, 1000));
  app.add_option("--repeat", options.repeat, "timed runs of each kind, the best counts; 0 chooses")
      ->check(CLI::Range(0, 1000));
  app.add_option("--top", options.top, "length of the table of shares");
  app.add_flag("--all", options.all, "print the share of every token, in the order of the text");
  app.add_option("--html", options.html, "page to write");
  app.add_flag("--no-html", options.no_html, "write no page");
  app.add_option("--json", options.json, "all results for other programs");
  example::parse(app, argc, argv);
  if (!options.no_html) example::check_folder(options.html);
  if (!options.json.empty()) example::check_folder(options.json);
  options.run.budget = example::Budget::parse(options.budget);
  options.run.from_all_queries = options.queries == "all";
  options.run.heads = options.heads == "max" ? ab::Heads::max : ab::Heads::mean;
  return options;
}

/// Runs everything that is compared. The times are those of the best of several runs, full and budgeted in turns,
/// so that whatever else the machine does hits both.
void compare(example::Comparison& result, example::TextBudget& budget, const Options& options) {
  constexpr double enough_seconds = 3;
  const std::size_t kinds = 3 + static_cast<std::size_t>(options.draws);
  example::Progress progress("windows encoded", result.windows * kinds);
  const auto step = [&] { progress.advance(); };

  result.full = budget.full(step);
  result.budgeted = budget.budgeted(result.allocation, step);
  result.first = budget.first(step);
  for (int draw = 0; draw < options.draws; ++draw)
    result.random.push_back(budget.random(options.seed + static_cast<unsigned>(draw), step));

  double spent = result.full.seconds + result.budgeted.seconds;
  const int most = options.repeat > 0 ? options.repeat : 20;
  for (int run = 1; run < most && (options.repeat > 0 || spent < enough_seconds); ++run) {
    example::Allocation ignored;
    const double full = budget.full().seconds, budgeted = budget.budgeted(ignored).seconds;
    result.full.seconds = std::min(result.full.seconds, full);
    result.budgeted.seconds = std::min(result.budgeted.seconds, budgeted);
    spent += full + budgeted;
  }
}

void print_shares(const example::Comparison& c, const Options& options) {
  const auto row = [&](std::size_t number, std::size_t i) {
    const auto& token = (*c.tokens)[i];
    const auto share = static_cast<double>(c.allocation.shares[i]);
    const int bar = static_cast<int>(
        30 * share / static_cast<double>(c.allocation.shares[example::largest_shares(c.allocation, 1)[0]]));
    std::printf("%6zu  %-18s %8.4f %% %7.2f  %-7s %.*s\n", number, c.pieces->piece(token.id).c_str(), 100 * share,
                share * static_cast<double>(c.tokens->size()), c.allocation.kept[i] ? "kept" : "dropped", bar,
                "##############################");
  };
  std::printf("\n%6s  %-18s %10s %7s\n", options.all ? "token" : "rank", "piece", "share", "x mean");
  if (options.all) {
    for (std::size_t i = 0; i < c.tokens->size(); ++i) row(i, i);
  } else {
    std::size_t rank = 0;
    for (const auto i : example::largest_shares(c.allocation, options.top)) row(++rank, i);
  }
}

void print_results(const example::Comparison& c) {
  std::printf("\nlayer   tokens  of full   attention GFLOP   dense GFLOP   keys attended\n");
  for (std::size_t l = 0; l < c.budgeted.layers.size(); ++l) {
    const auto& layer = c.budgeted.layers[l];
    std::printf("%5zu %8td %6.0f %% %17.4f %13.4f %15.1f\n", l, layer.tokens,
                100.0 * static_cast<double>(layer.tokens) / static_cast<double>(c.full.layers[l].tokens),
                layer.work.attention * 1e-9, layer.work.dense * 1e-9, layer.attended);
  }

  const auto run = [&](const char* name, const example::Run& r, bool timed) {
    std::printf("%-24s %7.4f", name, example::cosine(c.full, r));
    if (c.windows > 1) std::printf(" %10.4f", example::window_cosine(c.full, r));
    std::printf(" %9.3f + %7.3f %8.1f %%", r.work.attention * 1e-9, r.work.dense * 1e-9,
                100 * r.work.total() / c.full.work.total());
    if (timed) std::printf(" %9.2f ms %6.1f %%", 1e3 * r.seconds, 100 * r.seconds / c.full.seconds);
    std::printf("\n");
  };
  std::printf("\n%-24s %7s%s %19s %10s %12s\n", "tokens kept", "cosine", c.windows > 1 ? "  of windows" : "",
              "attention + dense", "of full", "time");
  run("all", c.full, true);
  run("by share", c.budgeted, true);
  run("the first", c.first, false);
  for (std::size_t draw = 0; draw < c.random.size(); ++draw)
    run(example::format("random, draw %zu", draw + 1).c_str(), c.random[draw], false);
  if (!c.random.empty()) {
    std::printf("%-24s %7.4f", "random, mean", c.mean_of_random(example::cosine));
    if (c.windows > 1) std::printf(" %10.4f", c.mean_of_random(example::window_cosine));
    std::printf("\n");
  }
}

std::string wrapped(const std::string& text, std::size_t columns) {
  std::string result;
  std::size_t line = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find_first_of(" \n", at), text.size());
    if (end > at) {
      if (line + (end - at) + 1 > columns) result += "\n", line = 0;
      result += (line > 0 ? " " : "  ") + text.substr(at, end - at);
      line += end - at + 2;
    }
    at = end + 1;
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  if (options.model.empty() || !std::filesystem::exists(options.model / "model.safetensors"))
    throw example::FileError("no model in \"" + options.model.string() +
                             "\": give the folder of all-MiniLM-L6-v2 with --model");
  const std::string text = example::read_text(options.text);
  if (!example::is_utf8(text))
    std::fprintf(stderr, "allocate_text: %s is not all UTF-8; what is not is left out\n", options.text.c_str());
  const example::WordPiece pieces(options.model / "vocab.txt");
  auto tokens = pieces.encode(text);
  if (options.tokens > 0 && options.tokens < tokens.size()) tokens.resize(options.tokens);

  example::MiniLm model(options.model);
  example::TextBudget budget(model, pieces, tokens, options.run);
  const auto name = options.text == "-" ? std::string("standard input") : options.text.filename().string();
  std::printf("%s: %zu bytes, %zu tokens, %zu window%s of at most %td\n", name.c_str(), text.size(), tokens.size(),
              budget.windows().size(), budget.windows().size() == 1 ? "" : "s", options.run.window);

  const std::string_view shown =
      tokens.empty() ? std::string_view(text)
                     : std::string_view(text).substr(0, options.tokens > 0 ? tokens.back().end : text.size());
  example::Comparison result{name, shown, &tokens, &pieces, budget.windows().size(), options.run, {},
                             {},   {},    {},      {}};
  compare(result, budget, options);

  print_shares(result, options);
  std::printf("\nkept %zu of %zu tokens:\n", result.kept(), tokens.size());
  const std::string kept = wrapped(example::kept_text(result), 100);
  constexpr std::size_t excerpt = 2000;
  const bool cut = !options.all && kept.size() > excerpt;
  std::printf("%s%s\n", kept.substr(0, cut ? kept.find_last_of(" \n", excerpt) : kept.npos).c_str(),
              cut ? "\n  (and so on; --all prints everything)" : "");
  print_results(result);

  if (!options.no_html) {
    example::write_text(options.html, example::allocation_page(result));
    std::printf("\nwrote %s\n", options.html.c_str());
  }
  if (!options.json.empty()) {
    example::write_text(options.json, example::allocation_json(result));
    std::printf("wrote %s\n", options.json.c_str());
  }
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "allocate_text: %s\n", error.what());
  return 1;
}
