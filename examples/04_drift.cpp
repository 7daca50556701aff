// Demands that drift, with a known optimum: how much of them does each feedback leave unserved, and how many units
// does it move to follow them?
//
//   drift                     16 inputs, 1500 cycles, 10 seeds: a table and a picture
//   drift --noise 1 --seeds 30
//   drift --help

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "support/command_line.hpp"
#include "support/drift.hpp"
#include "support/output.hpp"
#include "support/plot.hpp"
#include "support/progress.hpp"
#include "support/statistics.hpp"

namespace {

struct Options {
  example::DriftOptions drift;
  int seeds = 10, tuning_seeds = 5;
  unsigned seed = 1;
  std::filesystem::path picture = "drift.svg", output;
  bool no_picture = false;
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Regret and churn of every feedback on demands that drift."};
  app.option_defaults()->always_capture_default();
  app.add_option("--inputs", options.drift.inputs, "number of inputs")->check(CLI::Range(2, 10000));
  app.add_option("--cycles", options.drift.cycles, "calm, drift, jump: a third each")
      ->check(CLI::Range(30, 1000000));
  app.add_option("--units", options.drift.units, "units to divide in each cycle")->check(CLI::Range(1, 100000000));
  app.add_option("--contrast", options.drift.contrast, "deviation of the logarithms of the demands")
      ->check(CLI::Range(0.0, 10.0));
  app.add_option("--noise", options.drift.noise, "deviation of the logarithms of what is seen about what is")
      ->check(CLI::Range(0.0, 10.0));
  app.add_option("--seeds", options.seeds,
                 "number of demands to average over, at least 5 for intervals that say something")
      ->check(CLI::Range(1, 1000));
  app.add_option("--seed", options.seed, "the first of them");
  app.add_option("--tuning-seeds", options.tuning_seeds, "other demands, for which each rule chooses its parameter")
      ->check(CLI::Range(1, 1000));
  app.add_option("--picture", options.picture, "SVG file");
  app.add_flag("--no-picture", options.no_picture, "draw nothing");
  app.add_option("--output", options.output, "CSV file: regret and churn of each rule, seed and phase");
  example::parse(app, argc, argv);
  if (!options.no_picture) example::check_folder(options.picture);
  if (!options.output.empty()) example::check_folder(options.output);
  return options;
}

struct Result {
  const example::DriftRule* rule;
  double parameter;
  std::vector<example::DriftRun> runs;  // one per seed

  std::vector<double> unserved(int begin, int end) const {
    std::vector<double> values;
    for (const auto& run : runs) values.push_back(100 * run.mean_unserved(begin, end));
    return values;
  }
  std::vector<double> moved() const {
    std::vector<double> values;
    for (const auto& run : runs) values.push_back(100 * run.mean_moved());
    return values;
  }
};

/// The mean over the seeds and over `window` cycles, thinned to what can be drawn, with its interval.
example::Series curve(const Result& result, int cycles, int window) {
  example::Series series{result.rule->name, {}, {}, {}, {}};
  for (int t = 0; t < cycles; t += std::max(1, cycles / 250)) {
    const int begin = std::max(0, t - window + 1);
    const auto estimate = example::bootstrap(result.unserved(begin, t + 1));
    series.x.push_back(t);
    series.y.push_back(estimate.mean), series.low.push_back(estimate.low), series.high.push_back(estimate.high);
  }
  return series;
}

void draw(const Options& options, const std::vector<Result>& results, const example::DriftingDemand& demand) {
  const int cycles = options.drift.cycles;
  example::Progress progress("picture", results.size());
  example::PlotPanel regret{"Demand left unserved, over the cycles", "cycle", "% of the demand", {}};
  for (int phase = 0; phase < demand.phases; ++phase)
    regret.marks.push_back({static_cast<double>(demand.phase_begin(phase)), demand.phase_name(phase)});
  regret.log_y = true;
  regret.height = 380;
  example::PlotPanel trade{"Regret against churn, over all cycles",
                           "% of the units moved per cycle (0.01: none)",
                           "% of the demand unserved",
                           {}};
  trade.points = trade.log_x = trade.log_y = true;
  trade.height = 320;
  for (const auto& result : results) {
    regret.series.push_back(curve(result, cycles, std::max(1, cycles / 100)));
    const auto all = example::bootstrap(result.unserved(0, cycles));
    const double moved = std::max(0.01, example::bootstrap(result.moved()).mean);
    trade.series.push_back({result.rule->name, {moved}, {all.mean}, {all.low}, {all.high}});
    progress.advance();
  }
  example::write_plot(
      options.picture, "Drifting demands: what each feedback leaves unserved",
      example::format("%d inputs, %d units a cycle, noise %g; mean of %d seeds with 95 %% bootstrap "
                      "intervals. The optimum is 0.",
                      options.drift.inputs, options.drift.units, options.drift.noise, options.seeds),
      {regret, trade});
}

void write_output(const Options& options, const std::vector<Result>& results,
                  const example::DriftingDemand& demand) {
  std::string csv = "rule,parameter,seed,phase,unserved_percent,moved_percent\n";
  for (const auto& result : results)
    for (std::size_t s = 0; s < result.runs.size(); ++s)
      for (int phase = 0; phase < demand.phases; ++phase)
        csv += example::format(
            "\"%s\",%g,%u,%s,%.6f,%.6f\n", result.rule->name.c_str(), result.parameter,
            options.seed + static_cast<unsigned>(s), demand.phase_name(phase),
            100 * result.runs[s].mean_unserved(demand.phase_begin(phase), demand.phase_begin(phase + 1)),
            100 * result.runs[s].mean_moved());
  example::write_text(options.output, csv);
  std::printf("\nwrote %s\n", options.output.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  const auto rules = example::drift_rules();
  std::printf(
      "%d inputs, %d units in each of %d cycles, %d seeds. Unserved is what of the demand got no unit, in %%;\n"
      "the optimum, known here, leaves nothing. Each rule takes the best of its parameters on %d other seeds.\n",
      options.drift.inputs, options.drift.units, options.drift.cycles, options.seeds, options.tuning_seeds);

  std::vector<example::DriftingDemand> demands;
  for (int s = 0; s < options.seeds; ++s)
    demands.emplace_back(options.drift, options.seed + static_cast<unsigned>(s));
  std::vector<unsigned> tuning;
  for (int s = 0; s < options.tuning_seeds; ++s) tuning.push_back(options.seed + 100000 + static_cast<unsigned>(s));

  std::vector<Result> results;
  {
    example::Progress progress("rules", rules.size());
    for (const auto& rule : rules) {
      Result result{&rule, example::tuned(rule, options.drift, tuning), {}};
      for (const auto& demand : demands) result.runs.push_back(rule.run(demand, options.drift, result.parameter));
      results.push_back(std::move(result));
      progress.advance();
    }
  }

  const auto& demand = demands[0];
  std::printf("\n%-14s %-14s", "rule", "parameter");
  for (int phase = 0; phase < demand.phases; ++phase) std::printf(" %14s", demand.phase_name(phase));
  std::printf("   %-22s %-24s %8s\n", "all, 95 % interval", "more than Leaky", "moved");
  for (const auto& result : results) {
    const auto parameter = result.rule->parameter.empty()
                               ? std::string("-")
                               : example::format("%s %g", result.rule->parameter.c_str(), result.parameter);
    std::printf("%-14s %-14s", result.rule->name.c_str(), parameter.c_str());
    for (int phase = 0; phase < demand.phases; ++phase)
      std::printf(
          " %14.2f",
          example::bootstrap(result.unserved(demand.phase_begin(phase), demand.phase_begin(phase + 1))).mean);
    const auto all = example::bootstrap(result.unserved(0, demand.cycles()));
    const auto more =
        example::paired_difference(result.unserved(0, demand.cycles()), results[0].unserved(0, demand.cycles()));
    std::printf("   %-22s", example::format("%.2f [%.2f, %.2f]", all.mean, all.low, all.high).c_str());
    std::printf(" %-24s %6.2f %%\n",
                &result == results.data()
                    ? ""
                    : example::format("%+.2f [%+.2f, %+.2f]", more.mean, more.low, more.high).c_str(),
                example::bootstrap(result.moved()).mean);
  }

  // What the numbers say, whatever they are.
  const auto last = [&](const char* name) -> const Result& {
    return *std::find_if(results.begin(), results.end(), [&](const auto& r) { return r.rule->name == name; });
  };
  const int jump = demand.phase_begin(2), end = demand.cycles();
  const auto lost =
      example::paired_difference(last("Plain").unserved(jump, end), last("uniform").unserved(jump, end));
  const auto calm = [&](const char* name) {
    return example::bootstrap(last(name).unserved(0, demand.phase_begin(1))).mean;
  };
  std::printf(
      "\nThe plain rule gives all to one winner: in the calm it leaves %.1f %% unserved, no feedback at all %.1f "
      "%%. ",
      calm("Plain"), calm("uniform"));
  if (lost.low > 0)
    std::printf(
        "After the jump it\nis the wrong winner, and leaves %.1f points more unserved than no feedback: what was "
        "learnt has to be unlearnt for\n"
        "as long.\n",
        lost.mean);
  else
    std::printf("After the jump it is\nnot surely worse than no feedback (%+.1f points [%+.1f, %+.1f]).\n",
                lost.mean, lost.low, lost.high);
  std::printf(
      "Fixed share keeps the losers of the plain rule alive and so follows, but a winner still takes most: it "
      "finds the best\n"
      "input, not a division. Hedge divides here only because its losses grow with the shares.\n");
  const auto held = example::paired_difference(last("Leaky, held").unserved(0, end), results[0].unserved(0, end));
  const double held_moved = example::bootstrap(last("Leaky, held").moved()).mean,
               moved = example::bootstrap(results[0].moved()).mean;
  std::printf(
      "Holding on to the plan (hysteresis 3 %%, churn 5 %%) moves %.2f instead of %.2f %% of the units a cycle, "
      "for %+.2f\n"
      "points of demand.\n",
      held_moved, moved, held.mean);

  if (!options.output.empty()) write_output(options, results, demand);
  if (!options.no_picture) {
    draw(options, results, demand);
    std::printf("\nwrote %s\n", options.picture.c_str());
  }
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "drift: %s\n", error.what());
  return 1;
}
