// The weights of a real encoder in 3 bits on average: how much less does its output suffer when the bits go where
// they save most, than when all features get the same?
//
//   bits                          query, key and value of five layers of all-MiniLM-L6-v2, a text of our own
//   bits --text page.txt --bits 2
//   bits --help

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "support/command_line.hpp"
#include "support/output.hpp"
#include "support/plot.hpp"
#include "support/progress.hpp"
#include "support/statistics.hpp"
#include "support/weight_bits.hpp"

#ifndef ATTENTION_BALANCER_MODEL_DIR
#define ATTENTION_BALANCER_MODEL_DIR ""
#endif
#ifndef ATTENTION_BALANCER_EXAMPLE_DATA
#define ATTENTION_BALANCER_EXAMPLE_DATA "examples/data"
#endif

namespace ab = attention_balancer;
using ab::Index;
using ab::execute::Levels;
using example::BitRule;

namespace {

constexpr BitRule rules[] = {BitRule::uniform, BitRule::saliency, BitRule::marginal, BitRule::measured};

struct Options {
  std::filesystem::path text = std::filesystem::path(ATTENTION_BALANCER_EXAMPLE_DATA) / "default.txt";
  std::filesystem::path model = ATTENTION_BALANCER_MODEL_DIR, picture = "bits.svg", output;
  double average = 3;
  Index most = 8;
  std::string levels = "centred";
  bool no_picture = false;
};

const std::map<std::string, Levels> levels_by_name{
    {"asymmetric", Levels::asymmetric}, {"symmetric", Levels::symmetric}, {"centred", Levels::centred}};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Bits of weight matrices, divided among the input features by several rules."};
  app.option_defaults()->always_capture_default();
  app.add_option("--text", options.text,
                 "text file in UTF-8 that the encoder reads, half to calibrate, half to measure");
  app.add_option("--model", options.model, "folder of all-MiniLM-L6-v2: model.safetensors and vocab.txt");
  app.add_option("--bits", options.average, "average per weight")->check(CLI::Range(0.0, 8.0));
  app.add_option("--most", options.most, "no feature gets more")->check(CLI::Range(1, 16));
  app.add_option("--levels", options.levels, "of the quantiser, for the picture and the table by matrix")
      ->check(CLI::IsMember({"asymmetric", "symmetric", "centred"}));
  app.add_option("--picture", options.picture, "SVG file");
  app.add_flag("--no-picture", options.no_picture, "draw nothing");
  app.add_option("--output", options.output, "CSV file: the error of each matrix, rule and average");
  example::parse(app, argc, argv);
  if (!options.no_picture) example::check_folder(options.picture);
  if (!options.output.empty()) example::check_folder(options.output);
  return options;
}

/// log10 of the output error of each matrix: errors differ by factors, and so are averaged.
std::vector<double> log_errors(const std::vector<example::BitCase>& cases, BitRule rule, double average, Index most,
                               Levels levels) {
  std::vector<double> result;
  for (const auto& one : cases) {
    const auto bits = example::allot_bits(one, rule, average, most, levels);
    // An error of zero has no logarithm; none is, below 16 bits, but a matrix of zeros would be.
    result.push_back(std::log10(std::max(1e-300, example::output_error(one, bits, levels))));
  }
  return result;
}

std::string percent(const example::Estimate& log_error) {
  return example::format("%.3g %% [%.3g, %.3g]", 100 * std::pow(10, log_error.mean),
                         100 * std::pow(10, log_error.low), 100 * std::pow(10, log_error.high));
}

void print_spread(const example::BitCase& one, const Options& options) {
  std::printf("\nFeatures of %s by the bits that they get:\n%-14s", one.name.c_str(), "bits");
  for (Index b = 0; b <= options.most; ++b) std::printf(" %5td", b);
  std::printf("\n");
  for (const auto rule : rules) {
    const auto bits =
        example::allot_bits(one, rule, options.average, options.most, levels_by_name.at(options.levels));
    std::printf("%-14s", example::to_string(rule));
    for (Index b = 0; b <= options.most; ++b) std::printf(" %5td", std::count(bits.begin(), bits.end(), b));
    std::printf("\n");
  }
}

void draw(const Options& options, const std::vector<example::BitCase>& cases,
          const std::vector<example::Series>& curves) {
  example::PlotPanel errors{"Error of the output over the average number of bits", "bits per weight, on average",
                            "% of the squared output", curves};
  errors.log_y = true;
  errors.height = 360;
  const auto& one = cases[cases.size() / 2];
  example::PlotPanel given{"Bits of each input feature of " + one.name + ", at " +
                               example::format("%g", options.average) + " on average",
                           "sensitivity of the feature: mean square of its input times variance of its weights",
                           "bits",
                           {}};
  given.points = given.log_x = true;
  given.height = 280;
  const auto sensitivity = one.sensitivity();
  for (const auto rule : rules) {
    if (rule == BitRule::measured) continue;
    const auto bits =
        example::allot_bits(one, rule, options.average, options.most, levels_by_name.at(options.levels));
    example::Series series{example::to_string(rule), sensitivity, {}, {}, {}};
    for (const Index b : bits) series.y.push_back(static_cast<double>(b));
    given.series.push_back(std::move(series));
  }
  example::write_plot(
      options.picture, "Bits where they save most: the weights of a sentence encoder",
      example::format("%zu matrices of 384 x 384 of all-MiniLM-L6-v2, geometric mean with 95 %% bootstrap "
                      "intervals; quantised with %s levels per input feature",
                      cases.size(), options.levels.c_str()),
      {errors, given});
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  if (options.model.empty() || !std::filesystem::exists(options.model / "model.safetensors"))
    throw example::FileError("no model in \"" + options.model.string() +
                             "\": give the folder of all-MiniLM-L6-v2 with --model");
  if (options.average > static_cast<double>(options.most))
    throw ab::BudgetError("--bits is more than --most: no division reaches it");
  const auto cases = example::encoder_bit_cases(options.model, example::read_text(options.text));
  std::printf(
      "%zu matrices of %td x %td, %td tokens to measure on. Error: squared difference of the layer's output on "
      "them,\n"
      "as a part of its square; geometric mean over the matrices with a 95 %% bootstrap interval.\n",
      cases.size(), cases[0].weight.rows(), cases[0].weight.cols(), cases[0].inputs.rows());

  std::printf("\n%g bits on average\n%-14s", options.average, "rule");
  for (const auto& [name, levels] : levels_by_name) std::printf(" %-28s", name.c_str());
  std::printf("\n");
  for (const auto rule : rules) {
    std::printf("%-14s", example::to_string(rule));
    for (const auto& [name, levels] : levels_by_name)
      std::printf(
          " %-28s",
          percent(example::bootstrap(log_errors(cases, rule, options.average, options.most, levels))).c_str());
    std::printf("\n");
  }

  // The same errors in pairs: each matrix against itself.
  const Levels levels = levels_by_name.at(options.levels);
  const auto uniform = log_errors(cases, BitRule::uniform, options.average, options.most, levels);
  std::printf("\nAgainst uniform, matrix by matrix, with %s levels:\n", options.levels.c_str());
  for (const auto rule : rules) {
    if (rule == BitRule::uniform) continue;
    const auto ratio =
        example::paired_difference(log_errors(cases, rule, options.average, options.most, levels), uniform);
    std::printf("%-14s %.3f [%.3f, %.3f] times its error%s\n", example::to_string(rule), std::pow(10, ratio.mean),
                std::pow(10, ratio.low), std::pow(10, ratio.high),
                ratio.high < 0  ? ""
                : ratio.low > 0 ? ": worse"
                                : ": no difference that can be told");
  }
  print_spread(cases[cases.size() / 2], options);

  example::check_printed();
  if (options.no_picture && options.output.empty()) return 0;
  std::string csv = "matrix,rule,average_bits,error\n";
  std::vector<example::Series> curves;
  {
    example::Progress progress("averages", 6 * std::size(rules));
    for (const auto rule : rules) {
      example::Series curve{example::to_string(rule), {}, {}, {}, {}};
      for (int average = 1; average <= std::min<Index>(6, options.most); ++average) {
        const auto errors = log_errors(cases, rule, average, options.most, levels);
        const auto mean = example::bootstrap(errors);
        curve.x.push_back(average);
        curve.y.push_back(100 * std::pow(10, mean.mean));
        curve.low.push_back(100 * std::pow(10, mean.low)), curve.high.push_back(100 * std::pow(10, mean.high));
        for (std::size_t i = 0; i < cases.size(); ++i)
          csv += example::format("\"%s\",\"%s\",%d,%.6g\n", cases[i].name.c_str(), example::to_string(rule),
                                 average, std::pow(10, errors[i]));
        progress.advance();
      }
      curves.push_back(std::move(curve));
    }
  }
  if (!options.output.empty()) {
    example::write_text(options.output, csv);
    std::printf("\nwrote %s\n", options.output.c_str());
  }
  if (!options.no_picture) {
    draw(options, cases, curves);
    std::printf("\nwrote %s\n", options.picture.c_str());
  }
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "bits: %s\n", error.what());
  return 1;
}
