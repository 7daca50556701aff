// A language model that answers, and what it costs it to remember less: SmolLM2-135M-Instruct, 30 layers of attention
// with 9 query and 3 key heads, whose keys and values live in this library's caches.
//
//   sh examples/fetch_model.sh SmolLM2-135M-Instruct   downloads the model once (93 MB)
//   language_model "What is the capital of France?"
//   language_model --perplexity FILE                   how well it predicts a text, by what its caches hold
//
// With a budget, the attention that each cached token received decides who stays: the loop that the library is for.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "support/byte_pairs.hpp"
#include "support/command_line.hpp"
#include "support/conversation.hpp"
#include "support/language_model.hpp"
#include "support/output.hpp"
#include "support/perplexity.hpp"
#include "support/progress.hpp"
#include "support/statistics.hpp"

namespace {

namespace ab = attention_balancer;
using Eigen::Index;
using example::CacheRule;

struct Options {
  std::string prompt = "What is the capital of France?";
  std::string system = example::default_system;
  std::string cache = "float";
  std::filesystem::path model = ATTENTION_BALANCER_LANGUAGE_MODEL;
  // On every Debian system, and the same on all.
  std::filesystem::path text = "/usr/share/common-licenses/GPL-3";
  Index tokens = 200, budget = 0, windows = 6, length = 256;
  std::vector<double> parts{0.5, 0.25};
  double decay = 1, latest = 0.5;
  int threads = 0;
  bool perplexity = false;
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Answers a question with a small language model, or measures what its cache may lose."};
  app.option_defaults()->always_capture_default();
  app.add_option("prompt", options.prompt, "what to ask");
  app.add_option("--system", options.system, "what the model is told before it is asked");
  app.add_option("--model", options.model, "the GGUF file of SmolLM2-135M-Instruct");
  app.add_option("--cache", options.cache, "how keys and values are stored")
      ->check(CLI::IsMember({"float", "bf16", "f16", "int8"}));
  app.add_option("--tokens", options.tokens, "that an answer may have")->check(CLI::Range(1, 8192));
  app.add_option("--budget", options.budget, "tokens that a cache may hold while it answers; 0 is all")
      ->check(CLI::Range(0, 8192));
  auto* perplexity =
      app.add_option("--perplexity", options.text, "measure how well this text is predicted instead");
  perplexity->expected(0, 1);
  app.add_option("--windows", options.windows, "stretches of the text, read side by side")
      ->check(CLI::Range(1, 256));
  app.add_option("--length", options.length, "tokens of each")->check(CLI::Range(64, 8191));
  app.add_option("--parts", options.parts, "of its tokens that a cache may hold")->check(CLI::Range(0.01, 1.0));
  app.add_option("--decay", options.decay, "of the attention received, per token")->check(CLI::Range(0.01, 1.0));
  app.add_option("--latest", options.latest, "part of a budget that is for the latest tokens")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--threads", options.threads, "0 is all")->check(CLI::Range(0, 4096));
  example::parse(app, argc, argv);
  options.perplexity = perplexity->count() > 0;
  return options;
}

// Calls f with a value of the type that the cache stores.
template <class F>
void with_storage(const std::string& name, F f) {
  if (name == "bf16") return f(ab::bf16{});
  if (name == "f16") return f(ab::f16{});
  if (name == "int8") return f(std::int8_t{});
  return f(float{});
}

example::CacheBudget budget_of(const Options& options, CacheRule rule, Index tokens) {
  example::CacheBudget budget;
  budget.rule = rule;
  budget.tokens = tokens;
  budget.latest = options.latest;
  budget.decay = options.decay;
  return budget;
}

template <class Stored>
void answer(const Options& options, const example::Llama& model, const example::BytePairs& pieces) {
  const auto ids = example::conversation(pieces, options.system, options.prompt);
  const auto prompt = static_cast<Index>(ids.size());
  const auto rule = options.budget > 0 ? CacheRule::by_head : CacheRule::all;
  example::CacheKeeper keeper(budget_of(options, rule, options.budget), model.shape, 1);
  const Index capacity = std::max(prompt, keeper.capacity(prompt + options.tokens));
  example::LlamaDecoder decoder(model, example::caches_of<ab::KvCache<Stored>>(model.shape, 1, capacity),
                                options.threads);
  const example::AfterAttention observe = keeper.observer();

  const example::Stopwatch reading;
  int next = example::likeliest(decoder.read(ids, observe), 0);
  const double read_seconds = reading.seconds(), read_attention = decoder.attention_seconds();

  const int end = pieces.special("<|im_end|>");
  const example::Stopwatch writing;
  Index written = 0;
  while (next != end && written < options.tokens) {
    const auto& bytes = pieces.bytes(next);
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    std::fflush(stdout);
    ++written;
    keeper.evict(decoder.caches());
    next = example::likeliest(decoder.read({&next, 1}, observe), 0);
  }
  const double seconds = writing.seconds(), attention = decoder.attention_seconds() - read_attention;
  std::printf("\n\nread %td tokens, %.0f a second; wrote %td, %.1f a second, %.1f %% of the time in attention\n",
              prompt, static_cast<double>(prompt) / read_seconds, written, static_cast<double>(written) / seconds,
              written > 0 ? 100 * attention / seconds : 0.0);
  const auto& cache = decoder.caches().front();
  std::printf("caches of %s: %td of %td tokens in each of %td layers, %.2f MB\n", options.cache.c_str(),
              cache.length(0), cache.seen(0), model.shape.layers, static_cast<double>(decoder.cache_bytes()) / 1e6);
}

void print_row(const std::string& name, const example::PerplexityRun& run, const example::PerplexityRun& whole) {
  const auto change = example::paired_difference(run.losses, whole.losses);
  std::printf("%-22s %10.2f   x %.3f [%.3f, %.3f] %8.1f MB   x %.2f %6.1f %%\n", name.c_str(), run.perplexity(),
              std::exp(change.mean), std::exp(change.low), std::exp(change.high),
              static_cast<double>(run.cache_bytes) / 1e6, run.seconds / whole.seconds,
              100 * run.attention_seconds / run.seconds);
  std::fflush(stdout);
}

void measure(const Options& options, const example::Llama& model, const example::BytePairs& pieces) {
  const auto ids = pieces.encode(example::read_text(options.text));
  const auto windows = example::windows_of(ids, options.windows, options.length);
  std::printf("%td windows of %td tokens of %s, decoded token by token\n\n", windows.count, windows.length,
              options.text.c_str());
  std::printf("%-22s %10s   %-24s %8s   %-6s %s\n", "cache", "perplexity", "to float [95 %]", "held", "time",
              "attention");
  const auto whole = example::measure_perplexity<float>(model, windows, {}, options.threads);
  print_row("float, everything", whole, whole);
  for (const char* storage : {"bf16", "f16", "int8"})
    with_storage(storage, [&]<class Stored>(Stored) {
      print_row(storage, example::measure_perplexity<Stored>(model, windows, {}, options.threads), whole);
    });
  for (const double part : options.parts) {
    std::printf("%g of the tokens\n", part);
    for (const auto rule :
         {CacheRule::latest, CacheRule::random, CacheRule::attention, CacheRule::by_head, CacheRule::balanced}) {
      const auto budget =
          budget_of(options, rule, std::lround(part * static_cast<double>(options.length)));
      const auto run = example::measure_perplexity<float>(model, windows, budget, options.threads);
      print_row(std::string("  ") + to_string(rule), run, whole);
      if (rule != CacheRule::balanced) continue;
      std::printf("    layers hold");
      for (const Index tokens : run.tokens_of_layers) std::printf(" %td", tokens);
      std::printf("\n");
    }
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  const example::LanguageModel language = example::open_language_model(options.model);
  if (options.perplexity)
    measure(options, language.model, language.pieces);
  else
    with_storage(options.cache, [&]<class Stored>(Stored) { answer<Stored>(options, language.model, language.pieces); });
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "language_model: %s\n", error.what());
  return 1;
}
