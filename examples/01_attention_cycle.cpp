// The cycle: 100 inputs attend to one another, the attention they receive becomes their share of a budget, the
// budget is spent on them, and the shares steer the attention of the next cycle.
//
//   attention_cycle                       100 random inputs of 128 features, 300 cycles, a table and a picture
//   attention_cycle --input data.csv      the inputs from a file, one per line
//   attention_cycle --help

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attention_balancer/attention_balancer.hpp"
#include "support/command_line.hpp"
#include "support/csv.hpp"
#include "support/cycle_picture.hpp"
#include "support/eigen.hpp"
#include "support/output.hpp"
#include "support/progress.hpp"

namespace ab = attention_balancer;

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Options {
  int inputs = 100, features = 128, cycles = 300, units = 0;
  unsigned seed = 1;
  float deviation = 0.3f, rate = 0.5f, gain = 0.5f;
  std::string rule = "both";
  std::filesystem::path input, output, picture = "attention_cycle.svg";
  bool standardize = false, no_picture = false;
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Shares of a budget by self-attention, fed back cycle after cycle."};
  app.option_defaults()->always_capture_default();
  app.add_option("--inputs", options.inputs, "number of random inputs")->check(CLI::Range(1, 100000));
  app.add_option("--features", options.features, "features of each random input")->check(CLI::Range(1, 100000));
  app.add_option("--deviation", options.deviation, "standard deviation of the random features")
      ->check(CLI::Range(0.0f, 1e6f));
  app.add_option("--seed", options.seed, "seed of the random inputs");
  app.add_option("--input", options.input, "CSV file of numbers instead: one input per line")
      ->excludes("--inputs")
      ->excludes("--features");
  app.add_flag("--standardize", options.standardize, "bring each column of the CSV file to mean 0, deviation 1");
  app.add_option("--cycles", options.cycles, "number of cycles")->check(CLI::Range(1, 1000000));
  app.add_option("--rule", options.rule, "how the weights change the shares")
      ->check(CLI::IsMember({"plain", "leaky", "both"}));
  app.add_option("--rate", options.rate, "rate of the leaky rule, in (0, 1]");
  app.add_option("--gain", options.gain, "gain of the leaky rule; below 1, or it does not settle");
  app.add_option("--units", options.units, "rows of attention to spend per cycle; twice the inputs if not given")
      ->check(CLI::Range(1, 100000000));
  app.add_option("--output", options.output,
                 "CSV file for share, units and result of each input after the last cycle");
  app.add_option("--picture", options.picture, "SVG file");
  app.add_flag("--no-picture", options.no_picture, "draw nothing");
  example::parse(app, argc, argv);
  if (!options.no_picture) example::check_folder(options.picture);
  if (!options.output.empty()) example::check_folder(options.output);
  return options;
}

/// [n, d] The inputs, one per row.
Matrix make_inputs(const Options& options) {
  if (!options.input.empty()) {
    auto table = example::read_csv(options.input);
    std::printf("%s: %s", options.input.c_str(), example::describe(table).c_str());
    if (options.standardize)
      if (const auto constant = example::standardize(table); constant > 0)
        std::printf("%zu constant columns became 0\n", constant);
    return table.values.cast<float>();
  }
  std::mt19937 generator(options.seed);
  std::normal_distribution<float> normal(0.f, 1.f);
  return Matrix::NullaryExpr(options.inputs, options.features,
                             [&] { return options.deviation * normal(generator); });
}

/// Spends the units: each is one row of attention, one query against all inputs, steered by the shares. An input of
/// u units is refined u times, each time with its last result as the query; one of none stays as it is.
/// Returns the rows spent.
ab::Index refine(const Matrix& x, std::span<const float> log_shares, const std::vector<ab::Index>& units,
                 ab::Workspace& workspace, Matrix& results) {
  ab::Index spent = 0;
  std::vector<Eigen::Index> rows;
  Matrix queries, refined;
  results = x;
  for (ab::Index round = 0;; ++round) {
    rows.clear();
    for (std::size_t i = 0; i < units.size(); ++i)
      if (units[i] > round) rows.push_back(static_cast<Eigen::Index>(i));
    if (rows.empty()) return spent;
    queries = results(rows, Eigen::all);
    refined.resize(queries.rows(), queries.cols());
    ab::attention(ab::tokens_in_rows(queries), ab::tokens_in_rows(x), ab::tokens_in_rows(x),
                  ab::tokens_in_rows(refined), ab::score::KeyBias{log_shares}, workspace);
    results(rows, Eigen::all) = refined;
    spent += queries.rows();
  }
}

struct Outcome {
  example::CycleHistory history;
  std::vector<ab::Index> units;
  Matrix results;  // [n, d]
};

/// An input counts as alive while it has at least a hundredth of an equal share.
std::size_t count_alive(const std::vector<float>& shares) {
  const float least = 0.01f / static_cast<float>(shares.size());
  return static_cast<std::size_t>(std::count_if(shares.begin(), shares.end(), [&](float s) { return s >= least; }));
}

void print_cycle(int cycle, const std::vector<float>& before, const std::vector<float>& shares,
                 const std::vector<ab::Index>& units) {
  const auto top = std::max_element(shares.begin(), shares.end()) - shares.begin();
  double change = 0;  // the part of the budget that changed hands
  for (std::size_t i = 0; i < shares.size(); ++i)
    change += std::abs(static_cast<double>(shares[i] - before[i])) / 2;
  std::printf("%7d %10.2f %7zu %9.4f %% of input %-4td %10.2e", cycle, example::effective_inputs(shares),
              count_alive(shares), 100 * static_cast<double>(shares[static_cast<std::size_t>(top)]), top, change);
  if (!units.empty())
    std::printf(" %8td %8td", *std::max_element(units.begin(), units.end()),
                std::count(units.begin(), units.end(), ab::Index{0}));
  std::printf("\n");
}

template <class Feedback>
Outcome run(const std::string& name, const Matrix& x, ab::Index total, int cycles, Feedback feedback) {
  ab::ResourceBalancer<float, ab::allocate::Proportional, Feedback> balancer(x.rows(), {}, feedback);
  std::printf("\n%s\n  cycle  effective   alive  largest share               change  its units   idle\n",
              name.c_str());
  ab::Evidence<float> evidence;
  ab::Workspace workspace;
  const auto inputs = ab::tokens_in_rows(x);  // [1, 1, n, d]
  example::Progress progress(name, static_cast<std::size_t>(cycles));

  Outcome outcome{{name, {}}, {}, {}};
  auto& history = outcome.history.shares;
  history.emplace_back(balancer.shares().begin(), balancer.shares().end());
  print_cycle(0, history[0], history[0], {});
  int next_printed = 1;
  ab::Index spent = 0;
  for (int cycle = 1; cycle <= cycles; ++cycle) {
    // Where does the attention go, when each key counts as much as its share?
    ab::attention_evidence(inputs, inputs, ab::score::KeyBias{balancer.log_shares()}, ab::observe(evidence),
                           workspace);
    // The attention an input received changes its share, and the share its part of the work.
    const auto shares = balancer.update(ab::saliency::mass(evidence));
    outcome.units = balancer.units(total);
    spent += refine(x, balancer.log_shares(), outcome.units, workspace, outcome.results);

    history.emplace_back(shares.begin(), shares.end());
    progress.advance();
    if (cycle == next_printed || cycle == cycles) {
      progress.hide();
      print_cycle(cycle, history[history.size() - 2], history.back(), outcome.units);
      // 1, 2, 5, 10, 20, 50, ...
      const bool five = std::to_string(next_printed)[0] == '2';
      if (cycle == next_printed) next_printed = five ? next_printed / 2 * 5 : next_printed * 2;
    }
  }
  std::printf("%zu of %td inputs alive after %d cycles; %td rows of attention spent, %td per cycle\n",
              count_alive(history.back()), x.rows(), cycles, spent, spent / cycles);
  return outcome;
}

void write_output(const std::filesystem::path& file, const std::vector<Outcome>& outcomes) {
  std::string csv = "rule,input,share,units";
  for (Eigen::Index c = 0; c < outcomes[0].results.cols(); ++c) csv += example::format(",result %td", c);
  csv += "\n";
  for (const auto& outcome : outcomes)
    for (Eigen::Index i = 0; i < outcome.results.rows(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      csv += example::format("\"%s\",%td,%.9g,%td", outcome.history.name.c_str(), i,
                             static_cast<double>(outcome.history.shares.back()[at]), outcome.units[at]);
      for (const float value : outcome.results.row(i)) csv += example::format(",%.9g", static_cast<double>(value));
      csv += "\n";
    }
  example::write_text(file, csv);
  std::printf("\nwrote %s\n", file.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  const Matrix x = make_inputs(options);
  const ab::Index total = options.units > 0 ? options.units : 2 * x.rows();
  std::printf("%td inputs of %td features, %d cycles, %td rows of attention to spend in each\n", x.rows(), x.cols(),
              options.cycles, total);

  const ab::feedback::Leaky<float> leaky{options.rate, options.gain};
  leaky.validate();  // before anything is printed
  std::vector<Outcome> outcomes;
  if (options.rule != "leaky")
    outcomes.push_back(run("Plain: r <- r w / Z", x, total, options.cycles, ab::feedback::Plain<float>{}));
  if (options.rule != "plain")
    outcomes.push_back(run(example::format("Leaky: rate %g, gain %g", static_cast<double>(options.rate),
                                           static_cast<double>(options.gain)),
                           x, total, options.cycles, leaky));

  if (!options.output.empty()) write_output(options.output, outcomes);
  if (!options.no_picture) {
    std::vector<example::CycleHistory> histories;
    for (const auto& outcome : outcomes) histories.push_back(outcome.history);
    example::write_cycle_picture(options.picture, histories);
    std::printf("\nwrote %s\n", options.picture.c_str());
  }
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "attention_cycle: %s\n", error.what());
  return 1;
}
