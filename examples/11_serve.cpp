// Many questions at once to a language model: SmolLM2-135M-Instruct with the keys and values of all sequences in the
// pages of one cache a layer. Each step reads a piece of every prompt and a token of every answer in one pass.
//
//   sh examples/fetch_model.sh SmolLM2-135M-Instruct   downloads the model once (93 MB)
//   serve                                              a few questions, at once and one after another
//   serve "What is a fugue?" "Name three colours."     those questions
//   serve --pages 24 --rule balanced                   with fewer pages than they would fill
//   serve --perplexity                                 how well texts are predicted that share too few pages
//
// Where pages run short, the attention that the cached tokens receive says how many of them each sequence may hold.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/byte_pairs.hpp"
#include "support/command_line.hpp"
#include "support/conversation.hpp"
#include "support/language_model.hpp"
#include "support/output.hpp"
#include "support/perplexity.hpp"
#include "support/progress.hpp"
#include "support/server.hpp"
#include "support/statistics.hpp"

namespace {

using Eigen::Index;

struct Options {
  std::vector<std::string> prompts{"What is the capital of France?",
                                   "Name three colours.",
                                   "Write one sentence about the sea.",
                                   "Why is the sky blue?",
                                   "What is 2 + 2?",
                                   "Give me a title for a story about a lighthouse keeper and a whale.",
                                   "Which planet is the largest?",
                                   "Translate \"good morning\" into French."};
  std::string system = example::default_system;
  example::PageRule rule = example::PageRule::reserved;
  std::filesystem::path model = ATTENTION_BALANCER_LANGUAGE_MODEL;
  // On every Debian system, and the same on all.
  std::vector<std::filesystem::path> texts{
      "/usr/share/common-licenses/Artistic",   "/usr/share/common-licenses/GPL-3",
      "/usr/share/common-licenses/Apache-2.0", "/usr/share/common-licenses/CC0-1.0",
      "/usr/share/common-licenses/LGPL-2.1",   "/usr/share/common-licenses/MPL-2.0",
      "/usr/share/common-licenses/GPL-1",      "/usr/share/common-licenses/GFDL-1.3"};
  Index tokens = 64, rounds = 8;
  std::vector<Index> lengths{48, 64, 96, 128, 192, 256, 384, 512};
  std::vector<double> parts{0.5, 1.0 / 3};
  example::ServerRoom room;
  int threads = 0;
  bool perplexity = false;
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Answers several questions at once with a small language model, and says what that gains."};
  app.option_defaults()->always_capture_default();
  app.add_option("prompts", options.prompts, "what to ask");
  app.add_option("--system", options.system, "what the model is told before it is asked");
  app.add_option("--model", options.model, "the GGUF file of SmolLM2-135M-Instruct");
  app.add_option("--tokens", options.tokens, "that an answer may have")->check(CLI::Range(1, 2048));
  auto* perplexity =
      app.add_option("--perplexity", options.texts,
                     "measure how well these texts are predicted instead, with fewer pages than they fill");
  perplexity->expected(0, 64);
  app.add_option("--rounds", options.rounds, "of as many texts as there are lengths, from other places")
      ->check(CLI::Range(1, 64));
  app.add_option("--lengths", options.lengths, "of their prompts, in tokens")->check(CLI::Range(1, 1900));
  app.add_option("--parts", options.parts, "of the pages that all texts would fill")->check(CLI::Range(0.01, 1.0));
  app.add_option("--sequences", options.room.sequences, "served at once")->check(CLI::Range(1, 256));
  app.add_option("--pages", options.room.pages, "that all sequences share")->check(CLI::Range(1, 65536));
  app.add_option("--rule", options.rule, "what happens to sequences when pages run short")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, example::PageRule>{{"reserved", example::PageRule::reserved},
                                                   {"latest", example::PageRule::latest},
                                                   {"equal", example::PageRule::equal},
                                                   {"balanced", example::PageRule::balanced}}));
  app.add_option("--page-size", options.room.page_size, "tokens of a page")->check(CLI::Range(1, 1024));
  app.add_option("--piece", options.room.piece, "tokens of a prompt that a step reads")->check(CLI::Range(1, 2048));
  app.add_option("--threads", options.threads, "0 is all")->check(CLI::Range(0, 4096));
  example::parse(app, argc, argv);
  options.perplexity = perplexity->count() > 0;
  return options;
}

struct Run {
  std::vector<std::vector<int>> answers;
  example::ServerCounts counts;
  double seconds = 0, attention_seconds = 0;
  Index evicted = 0;
  std::vector<Index> pages_of_each;
};

Run serve(const Options& options, const example::ServerRoom& room, const example::Llama& model,
          const example::BytePairs& pieces) {
  const int end = pieces.special("<|im_end|>");
  Run run;
  run.answers.resize(options.prompts.size());
  example::Server server(model, room, {options.rule}, options.threads);
  for (std::size_t i = 0; i < options.prompts.size(); ++i)
    server.add({example::conversation(pieces, options.system, options.prompts[i]), options.tokens,
                [&answer = run.answers[i], end](const example::Matrix& logits, Index row) -> std::optional<int> {
                  const int next = example::likeliest(logits, row);
                  if (next == end) return {};
                  answer.push_back(next);
                  return next;
                }});
  const example::Stopwatch watch;
  while (server.step()) {
  }
  run.seconds = watch.seconds();
  run.attention_seconds = server.decoder().attention_seconds();
  run.counts = server.counts();
  run.evicted = server.keeper().evicted();
  run.pages_of_each = server.keeper().pages_of_each();
  return run;
}

void print(const char* name, const Run& run) {
  const auto& counts = run.counts;
  std::printf(
      "%-20s %4td steps, read %td, wrote %td tokens; at most %td sequences, %td pages; %.1f %% in attention\n",
      name, counts.steps, counts.read, counts.written, counts.most_sequences, counts.most_pages,
      100 * run.attention_seconds / run.seconds);
}

void answer(const Options& options, const example::Llama& model, const example::BytePairs& pieces) {
  const Run together = serve(options, options.room, model, pieces);
  example::ServerRoom one = options.room;
  one.sequences = 1;
  const Run in_turn = serve(options, one, model, pieces);

  std::size_t same = 0;
  for (std::size_t i = 0; i < options.prompts.size(); ++i) {
    std::printf("> %s\n", options.prompts[i].c_str());
    for (const int id : together.answers[i]) std::fputs(pieces.bytes(id).c_str(), stdout);
    std::printf("\n\n");
    same += together.answers[i] == in_turn.answers[i];
  }
  print("at once", together);
  print("one after another", in_turn);
  std::printf("%zu of %zu answers are the same, token by token; at once %.2f times as many tokens a second\n", same,
              options.prompts.size(), in_turn.seconds / together.seconds);
  if (together.evicted == 0) return;
  std::printf("pages ran short: %td tokens evicted", together.evicted);
  if (!together.pages_of_each.empty()) std::printf("; pages of each when they did last:");
  for (const Index pages : together.pages_of_each) std::printf(" %td", pages);
  std::printf("\n");
}

// Round r of texts: one of each length, from files that change places with the round, at places of their own.
std::vector<example::Continuation> texts_of(const Options& options, const std::vector<std::vector<int>>& files,
                                            Index round) {
  std::vector<example::Continuation> texts;
  for (std::size_t i = 0; i < options.lengths.size(); ++i) {
    const auto file = (i + static_cast<std::size_t>(round)) % files.size();
    const auto& ids = files[file];
    const Index length = options.lengths[i], spare = static_cast<Index>(ids.size()) - length - options.tokens;
    if (spare < 0)
      throw std::invalid_argument(options.texts[file].string() + " has " + std::to_string(ids.size()) +
                                  " tokens, but must have at least " + std::to_string(length + options.tokens));
    const auto begin = ids.begin() + spare * (2 * round + 1) / (2 * options.rounds), middle = begin + length;
    texts.push_back({{begin, middle}, {middle, middle + options.tokens}});
  }
  return texts;
}

void measure(const Options& options, const example::Llama& model, const example::BytePairs& pieces) {
  std::vector<std::vector<int>> files;
  for (const auto& path : options.texts) files.push_back(pieces.encode(example::read_text(path)));
  example::ServerRoom room = options.room;
  room.sequences = static_cast<Index>(options.lengths.size());
  Index all = 0;
  for (const Index length : options.lengths) all += room.pages_of(length + options.tokens - 1);

  std::printf(
      "%td rounds of %zu texts at once, %td to %td tokens read by pieces of %td and %td predicted\n"
      "all fill %td pages of %td tokens\n\n",
      options.rounds, options.lengths.size(), std::ranges::min(options.lengths), std::ranges::max(options.lengths),
      room.piece, options.tokens, all, room.page_size);
  std::printf("%-30s %10s   %-24s %9s %8s\n", "pages", "perplexity", "to all pages [95 %]", "shortages", "evicted");

  struct Row {
    std::vector<double> losses;  // [rounds]
    Index shortages = 0, evicted = 0;
    std::vector<Index> pages_of_each;  // of the last round
  };
  const auto run = [&](example::PageRule rule, Index pages) {
    Row row;
    room.pages = pages;
    for (Index round = 0; round < options.rounds; ++round) {
      const auto served =
          example::measure_served(model, texts_of(options, files, round), room, {rule}, options.threads);
      row.losses.push_back(std::accumulate(served.losses.begin(), served.losses.end(), 0.0) /
                           static_cast<double>(served.losses.size()));
      row.shortages += served.shortages;
      row.evicted += served.evicted;
      row.pages_of_each = served.pages_of_each;
    }
    return row;
  };
  const auto change = [](const Row& row, const Row& other) {
    const auto difference = example::paired_difference(row.losses, other.losses);
    std::printf("   x %.3f [%.3f, %.3f]", std::exp(difference.mean), std::exp(difference.low),
                std::exp(difference.high));
  };
  const auto print_row = [&](const std::string& name, const Row& row, const Row& whole) {
    std::printf("%-30s %10.2f", name.c_str(), std::exp(example::bootstrap(row.losses).mean));
    change(row, whole);
    std::printf(" %9td %8td\n", row.shortages, row.evicted);
    std::fflush(stdout);
  };
  const Row whole = run(example::PageRule::reserved, all);
  print_row("all", whole, whole);
  for (const double part : options.parts) {
    const auto pages = static_cast<Index>(std::lround(part * static_cast<double>(all)));
    std::printf("%td pages\n", pages);
    std::vector<Row> rows;
    for (const auto rule : {example::PageRule::latest, example::PageRule::equal, example::PageRule::balanced}) {
      rows.push_back(run(rule, pages));
      print_row(std::string("  ") + to_string(rule), rows.back(), whole);
    }
    std::printf("%-41s", "  balanced beside equal");
    change(rows[2], rows[1]);
    std::printf("\n%-41s", "  balanced beside first and latest");
    change(rows[2], rows[0]);
    std::printf("\n  pages of each, equal  ");
    for (const Index each : rows[1].pages_of_each) std::printf(" %3td", each);
    std::printf("\n  pages of each, balanced");
    for (const Index each : rows[2].pages_of_each) std::printf(" %3td", each);
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  const example::LanguageModel language = example::open_language_model(options.model);
  if (options.perplexity)
    measure(options, language.model, language.pieces);
  else
    answer(options, language.model, language.pieces);
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "serve: %s\n", error.what());
  return 1;
}
