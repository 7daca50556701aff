// What does a token budget save of a real encoder's time? 256 tokens of the default text of examples/allocate_text, half
// of them kept from layer 2 on, on one core; needs the model that examples/fetch_model.sh downloads.
//
// `x_full` is the time under the budget over that of the full run, interleaved with it; `work` is the same ratio of
// the multiply-adds, what the time would be if every one of them took equally long; `cosine` is between the embeddings.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>

#include "support/output.hpp"
#include "support/paired.hpp"
#include "support/text_budget.hpp"

namespace {

const std::filesystem::path folder = ATTENTION_BALANCER_MODEL_DIR;

void text_budget(benchmark::State& state) {
  try {
    const example::WordPiece pieces(folder / "vocab.txt");
    example::MiniLm model(folder);
    auto tokens =
        pieces.encode(example::read_text(std::filesystem::path(ATTENTION_BALANCER_EXAMPLE_DATA) / "default.txt"));
    const auto kept = attention_balancer::Index{state.range(0) / 2};
    tokens.resize(static_cast<std::size_t>(state.range(0) - 2));  // [CLS] and [SEP] come on top
    example::TextBudget budget(model, pieces, tokens, {});

    example::Allocation allocation;
    const auto full = budget.full(), budgeted = budget.budgeted(allocation);
    const double cosine = example::cosine(full, budgeted);
    if (budgeted.layers[2].tokens != kept || !(cosine > 0.9))
      throw std::runtime_error("the budget was not kept, or the embedding is another one");

    const auto time = bench::run_paired<float>(
        state, [&] { budget.budgeted(allocation); }, [&] { budget.full(); });
    state.counters["x_full"] = time.work / time.other;
    state.counters["work"] = static_cast<double>(budgeted.work.total()) / static_cast<double>(full.work.total());
    state.counters["cosine"] = cosine;
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}
BENCHMARK(text_budget)->ArgName("tokens")->Arg(256)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
  if (!std::filesystem::exists(folder / "model.safetensors")) {
    std::puts("text_budget is left out, as the model is not there: sh examples/fetch_model.sh downloads it");
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
