#pragma once
// What the two training examples do beside training one model: accuracy against the tokens kept, and the loss of
// examples drawn by the balancer against drawing them uniformly.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "training.hpp"

namespace example {

/// A way to train and to spend the budget.
struct BudgetRule {
  std::string name;
  Keep keep;
  EvidenceLoss evidence;
  bool all = false;  // trained and tested with all tokens: what the others are compared to
};

/// The rules that are compared: all tokens, shares with and without the loss on the evidence, and the baselines.
/// All but that without have the same loss, so that they differ in nothing but the tokens that they keep.
/// Only those that are named, all if none is. Throws ab::InputError for a name that is not among them.
std::vector<BudgetRule> budget_rules(const EvidenceLoss& evidence, const std::vector<std::string>& names = {});

/// One point: a rule at a part of the tokens, over the seeds.
struct BudgetPoint {
  std::size_t rule;
  double part;
  std::vector<double> accuracy, kept, seconds;  // [seeds]; kept is a part of all tokens
};

struct Study {
  ClassifierShape shape;
  const Sequences* train;
  const Sequences* validation;  // followed while training
  const Sequences* test;        // looked at when a model is ready
  TrainingOptions options;      // of the training; rule, evidence, seed and parts are set per run
  std::function<Training::Augment(unsigned seed)> augment;  // or none
  int seeds = 5;
  std::string name;
  // Folder that gets the model of every run when it is ready; a run whose model is there is not trained again. None
  // if empty.
  std::filesystem::path models = {};
  bool restart = false;  // train again what is there
};

/// Trains one model per rule and seed, each step under a part drawn from `parts`, and tests it under each of them
/// as it is after its last epoch. The times are the best of three runs. Throws FileError if a model in the folder is
/// that of another run.
std::vector<BudgetPoint> run_budget_study(const Study& study, const std::vector<BudgetRule>& rules,
                                          const std::vector<double>& parts);

/// Prints the table with the differences to all tokens, seed by seed, and draws accuracy against the tokens kept
/// and against the time.
void report_budget_study(const std::vector<BudgetPoint>& points, const std::vector<BudgetRule>& rules,
                         const Study& study, const std::filesystem::path& picture);

/// Trains with examples drawn uniformly and drawn by the balancer at these gains; prints and draws the loss on the
/// validation examples against the steps. Throws FileError if a model in the folder is that of another run.
void run_draw_study(const Study& study, const std::vector<double>& gains, const std::filesystem::path& picture);

/// The charts of one training run: loss per step and per epoch, and accuracy per epoch.
void draw_training(const Training& training, const std::string& title, const std::filesystem::path& picture);

}  // namespace example
