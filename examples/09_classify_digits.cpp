// Handwritten digits as sequences of 16 patches of 7 x 7 pixels, classified by attention trained from random
// weights; and which of the patches a token budget keeps.
//
//   sh examples/train.sh               fetches the data and runs all of it
//   classify_digits                    trains, or goes on where it was interrupted
//   classify_digits --budget-curve     accuracy against the patches kept, beside random, stride and prefix
//   classify_digits --draw-curve       training examples drawn by the balancer against uniformly

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "support/budget_curve.hpp"
#include "support/dataset.hpp"
#include "support/output.hpp"
#include "support/statistics.hpp"
#include "support/training.hpp"

namespace {

struct Options {
  std::filesystem::path data = "build/data/mnist_5k.csv", output = "build";
  int epochs = 60, layers = 2, heads = 4, threads = 1, seeds = 5, width = 64, hidden = 128;
  unsigned seed = 1;
  double rate = 2e-3, decay = 0.05, guide = 0.1, entropy = 0.005;
  std::vector<std::string> rules;
  std::vector<double> parts{1, 0.75, 0.5, 0.375}, gains{0.5, 1};
  bool restart = false, budget_curve = false, draw_curve = false, tune = false;
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Trains a small classifier of handwritten digits from random weights."};
  app.option_defaults()->always_capture_default();
  app.add_option("--data", options.data, "mnist_5k.csv, which examples/train.sh fetches");
  app.add_option("--output", options.output, "folder for model, checkpoint and pictures");
  app.add_option("--epochs", options.epochs)->check(CLI::Range(1, 100000));
  app.add_option("--width", options.width)->check(CLI::Range(1, 4096));
  app.add_option("--hidden", options.hidden)->check(CLI::Range(1, 16384));
  app.add_option("--layers", options.layers)->check(CLI::Range(0, 64));
  app.add_option("--heads", options.heads)->check(CLI::Range(1, 1024));
  app.add_option("--rate", options.rate, "of Adam");
  app.add_option("--decay", options.decay, "of weights");
  app.add_option("--guide", options.guide,
                 "where budgets are compared: weight of the loss that guides the saliency");
  app.add_option("--entropy", options.entropy, "where budgets are compared: weight of the entropy of the saliency");
  app.add_option("--threads", options.threads, "0 is all")->check(CLI::Range(0, 4096));
  app.add_option("--seed", options.seed, "of weights and order; the split is always the same");
  app.add_option("--seeds", options.seeds, "runs of each kind for the curves")->check(CLI::Range(1, 1000));
  app.add_option("--parts", options.parts, "of the patches, for the curve");
  app.add_option("--rules", options.rules, "of the curve of budgets, by their names in it; all if none is named");
  app.add_option("--gains", options.gains, "of the balancer that draws examples: by loss ^ gain");
  app.add_flag("--restart", options.restart, "begin anew where there is a checkpoint, or models of a curve");
  app.add_flag("--budget-curve", options.budget_curve, "compare budgets instead");
  app.add_flag("--draw-curve", options.draw_curve, "compare ways to draw examples instead");
  app.add_flag("--tune", options.tune, "the curve of budgets on the validation digits, to choose settings by");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  example::check_folder(options.output / "file");
  return options;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  Eigen::setNbThreads(options.threads);
  if (!std::filesystem::exists(options.data))
    throw example::FileError("no " + options.data.string() + ": run `sh examples/train.sh` to fetch it");
  const auto digits = example::read_digits(options.data);
  std::vector<std::size_t> order(digits.labels.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  example::Random split(1);
  std::shuffle(order.begin(), order.end(), split);
  // A fifth to test, a tenth of the rest for validation: by it the best epoch is chosen.
  const auto tests = static_cast<std::ptrdiff_t>(order.size() / 5),
             validations = (static_cast<std::ptrdiff_t>(order.size()) - tests) / 10;
  const auto first_train = order.begin() + tests + validations;
  const std::vector<std::size_t> test_images(order.begin(), order.begin() + tests),
      validation_images(order.begin() + tests, first_train), train_images(first_train, order.end());
  const auto train = example::patches_of(digits, train_images),
             validation = example::patches_of(digits, validation_images),
             test = example::patches_of(digits, test_images);
  std::printf("%zu digits to train on, %zu for validation, %zu to test, 16 patches of 7 x 7 pixels each\n",
              train.size(), validation.size(), test.size());

  // Every epoch sees every image shifted by up to 2 pixels, another way each time.
  const auto augment_for = [&](unsigned seed) -> example::Training::Augment {
    return [&, seed](int epoch) {
      std::seed_seq sequence{seed, static_cast<unsigned>(epoch)};
      example::Random random(sequence);
      return example::patches_of(digits, train_images, &random);
    };
  };
  const example::ClassifierShape shape{.features = 49,
                                       .longest = 17,
                                       .classes = 10,
                                       .width = options.width,
                                       .heads = options.heads,
                                       .hidden = options.hidden,
                                       .layers = options.layers};
  example::TrainingOptions training_options;
  training_options.epochs = options.epochs;
  training_options.adam.rate = options.rate;
  training_options.adam.decay = options.decay;
  training_options.token_loss = 0;
  training_options.threads = options.threads;
  training_options.seed = options.seed;

  if (options.budget_curve || options.draw_curve) {
    example::Study study{
        shape,       &train,        &validation, options.tune ? &validation : &test, training_options,
        augment_for, options.seeds, "Digits"};
    study.restart = options.restart;
    if (options.budget_curve) {
      study.models = options.output / "classify_digits_budget";
      const auto rules = example::budget_rules({options.guide, options.entropy}, options.rules);
      example::report_budget_study(example::run_budget_study(study, rules, options.parts), rules, study,
                                   options.output / "classify_digits_budget.svg");
    }
    if (options.draw_curve) {
      study.models = options.output / "classify_digits_draw";
      example::run_draw_study(study, options.gains, options.output / "classify_digits_draw.svg");
    }
    example::check_printed();
    return 0;
  }

  training_options.checkpoint = options.output / "classify_digits.checkpoint.safetensors";
  example::Random random(options.seed);
  example::Classifier<float> model(shape, random);
  example::Training training(model, train, validation, training_options, augment_for(options.seed));
  if (!options.restart && training.resume())
    std::printf("goes on after epoch %zu (--restart begins anew)\n", training.epochs().size());
  std::printf("%5s %8s %14s %16s %20s %9s\n", "epoch", "steps", "training loss", "validation loss",
              "validation accuracy", "time");
  const auto print = [&](const example::EpochRecord& e) {
    const int epoch = static_cast<int>(e.epoch);
    if (epoch % std::max(1, options.epochs / 10) == 0 || epoch == options.epochs)
      std::printf("%5d %8.0f %14.4f %16.4f %18.2f %% %7.1f s\n", epoch, e.step, e.train_loss, e.validation_loss,
                  100 * e.validation_accuracy, e.seconds);
    std::fflush(stdout);
    return true;
  };
  for (const auto& e : training.epochs()) print(e);
  training.run(print);
  std::printf("the model is that of epoch %d\n", training.take_best());

  const auto model_file = options.output / "classify_digits.safetensors",
             picture = options.output / "classify_digits.svg";
  example::save_model(model_file, model, {});
  example::draw_training(training, "Digits: a classifier trained from random weights", picture);
  std::printf("wrote %s and %s\n\n", model_file.c_str(), picture.c_str());
  const auto accuracy = example::bootstrap(example::predict(model, test, {}).correct(test));
  std::printf("test accuracy %.2f %% (%.2f to %.2f) of %zu digits\n", 100 * accuracy.mean, 100 * accuracy.low,
              100 * accuracy.high, test.size());
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "classify_digits: %s\n", error.what());
  return 1;
}
