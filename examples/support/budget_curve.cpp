#include "budget_curve.hpp"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <sstream>

#include "errors.hpp"
#include "output.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "statistics.hpp"

namespace example {
namespace {

// Adds a point: the mean of the runs and its interval.
void add(Series& series, double x, const std::vector<double>& runs, double unit = 1) {
  const auto estimate = bootstrap(runs);
  series.x.push_back(x);
  series.y.push_back(unit * estimate.mean);
  series.low.push_back(unit * estimate.low);
  series.high.push_back(unit * estimate.high);
}

constexpr double percent = 100;

// Of an epoch in the study of draws. The fields of a line in the model's file.
struct DrawRecord {
  double step, validation_loss, validation_accuracy, train_loss;
};

// The models of a study that are ready, one file a run.
class ReadyModels {
 public:
  explicit ReadyModels(const Study& study) : folder_(study.models), restart_(study.restart) {
    if (folder_.empty()) return;
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) throw FileError(folder_.string() + ": cannot be created: " + error.message());
    if (!restart_ && !std::filesystem::is_empty(folder_, error))
      std::printf("goes on with the models in %s (--restart begins anew)\n", folder_.c_str());
  }

  // Reads the model of this run if it is there, and what was noted in its epochs.
  bool load(const std::string& rule, const Training& training, Classifier<float>& model,
            std::vector<DrawRecord>* records = nullptr) const {
    const auto file = file_of(rule, training);
    std::error_code error;
    if (folder_.empty() || restart_ || !std::filesystem::exists(file, error)) return false;
    try {
      const auto saved = read_saved_model(file);
      check_identity(file, saved.metadata, training.identity());
      if (records) *records = records_of(file, saved, training);
      load_model(file, model);
    } catch (const FileError& failure) {
      throw FileError(std::string(failure.what()) + "; without " + folder_.string() + " the study begins anew");
    }
    return true;
  }

  void save(const std::string& rule, const Training& training, Classifier<float>& model,
            const std::vector<DrawRecord>& records = {}) const {
    if (folder_.empty()) return;
    auto metadata = training.identity();
    for (const auto& r : records)
      metadata["records"] +=
          format("%.17g %.17g %.17g %.17g\n", r.step, r.validation_loss, r.validation_accuracy, r.train_loss);
    save_model(file_of(rule, training), model, metadata);
  }

 private:
  std::filesystem::path file_of(const std::string& rule, const Training& training) const {
    std::string name;
    for (const char c : rule + " seed " + training.identity().at("seed")) {
      const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '.';
      if (plain || (!name.empty() && name.back() != '_')) name += plain ? c : '_';
    }
    return folder_ / (name + ".safetensors");
  }

  static std::vector<DrawRecord> records_of(const std::filesystem::path& file, const SavedModel& saved,
                                            const Training& training) {
    const auto found = saved.metadata.find("records");
    std::vector<DrawRecord> records;
    if (found != saved.metadata.end()) {
      std::istringstream stream(found->second);
      for (DrawRecord r{}; stream >> r.step >> r.validation_loss >> r.validation_accuracy >> r.train_loss;)
        records.push_back(r);
    }
    if (std::to_string(records.size()) != training.identity().at("epochs"))
      throw FileError(file.string() + ": holds the records of " + std::to_string(records.size()) +
                      " epochs, but must hold those of " + training.identity().at("epochs"));
    return records;
  }

  std::filesystem::path folder_;
  bool restart_;
};

}  // namespace

std::vector<BudgetRule> budget_rules(const EvidenceLoss& evidence, const std::vector<std::string>& names) {
  const std::vector<BudgetRule> all{
      {"all tokens", Keep::shares, evidence, true}, {"shares", Keep::shares, evidence},
      {"shares, no guide", Keep::shares, {}},       {"random", Keep::random, evidence},
      {"stride", Keep::stride, evidence},           {"prefix", Keep::prefix, evidence}};
  if (names.empty()) return all;
  std::string known;
  for (const auto& rule : all) known += (known.empty() ? "\"" : ", \"") + rule.name + "\"";
  std::vector<BudgetRule> chosen;
  for (const auto& name : names) {
    const auto found = std::find_if(all.begin(), all.end(), [&](const auto& rule) { return rule.name == name; });
    if (found == all.end())
      throw attention_balancer::InputError("rule is \"" + name + "\", but must be one of " + known);
    chosen.push_back(*found);
  }
  return chosen;
}

std::vector<BudgetPoint> run_budget_study(const Study& study, const std::vector<BudgetRule>& rules,
                                          const std::vector<double>& parts) {
  std::vector<BudgetPoint> points;
  for (std::size_t r = 0; r < rules.size(); ++r)
    for (const double part : rules[r].all ? std::vector<double>{1} : parts) points.push_back({r, part, {}, {}, {}});
  Progress progress(study.name + ", epochs of the budget study",
                    rules.size() * static_cast<std::size_t>(study.seeds * study.options.epochs));
  const ReadyModels ready(study);
  for (int seed = 1; seed <= study.seeds; ++seed)
    for (std::size_t r = 0; r < rules.size(); ++r) {
      auto options = study.options;
      options.seed = static_cast<unsigned>(seed);
      options.keep = rules[r].keep;
      options.evidence = rules[r].evidence;
      options.parts = rules[r].all ? std::vector<double>{1} : parts;
      options.show_progress = false;
      options.checkpoint.clear();
      Random random(static_cast<unsigned>(seed));
      Classifier<float> model(study.shape, random);
      Training training(model, *study.train, *study.validation, options,
                        study.augment ? study.augment(static_cast<unsigned>(seed)) : Training::Augment{});
      if (ready.load(rules[r].name, training, model)) {
        progress.advance(static_cast<std::size_t>(options.epochs));
      } else {
        training.run([&](const EpochRecord&) { return progress.advance(), true; });
        ready.save(rules[r].name, training, model);
      }
      for (auto& p : points) {
        if (p.rule != r) continue;
        Prediction best;
        for (int repeat = 0; repeat < 3; ++repeat) {
          auto prediction = predict(model, *study.test, {rules[r].keep, p.part}, static_cast<unsigned>(seed));
          if (repeat == 0 || prediction.seconds < best.seconds) best = std::move(prediction);
        }
        p.accuracy.push_back(best.accuracy(*study.test));
        p.kept.push_back(best.kept / best.tokens);
        p.seconds.push_back(best.seconds);
      }
    }
  return points;
}

void report_budget_study(const std::vector<BudgetPoint>& points, const std::vector<BudgetRule>& rules,
                         const Study& study, const std::filesystem::path& picture) {
  // Settings are chosen by the validation examples, in the place of those of the test.
  const char* examples = study.test == study.validation ? "validation" : "test";
  std::printf(
      "\n%s: accuracy against the tokens kept, mean of %d seeds and its 95 %% interval, and the difference to all "
      "tokens;\ntime is that of all %zu %s examples\n%-18s %8s %8s %27s %23s %10s\n",
      study.name.c_str(), study.seeds, study.test->size(), examples, "rule", "part", "kept", "accuracy",
      "difference", "time");
  const BudgetPoint* all = nullptr;
  for (const auto& p : points)
    if (rules[p.rule].all) all = &p;
  double lowest_kept = percent, lowest_time = std::numeric_limits<double>::infinity();  // percent, milliseconds
  for (const auto& p : points) {
    lowest_kept = std::min(lowest_kept, percent * bootstrap(p.kept).mean);
    lowest_time = std::min(lowest_time, 1e3 * bootstrap(p.seconds).mean);
  }
  PlotPanel tokens{
      "Accuracy against tokens kept", "% of the tokens", format("%s accuracy, %%", examples), {}, {}, false, true};
  PlotPanel time{"Accuracy against time",
                 format("milliseconds for all %s examples, one core", examples),
                 format("%s accuracy, %%", examples),
                 {},
                 {},
                 false,
                 true};
  for (std::size_t r = 0; r < rules.size(); ++r) {
    Series by_tokens{rules[r].name, {}, {}, {}, {}}, by_time = by_tokens;
    auto sorted = points;
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.part < b.part; });
    for (const auto& p : sorted) {
      if (p.rule != r) continue;
      add(by_tokens, percent * bootstrap(p.kept).mean, p.accuracy, percent);
      add(by_time, 1e3 * bootstrap(p.seconds).mean, p.accuracy, percent);
      const auto accuracy = bootstrap(p.accuracy);
      std::printf("%-18s %6.2f %% %6.1f %% %8.2f %% (%5.2f to %5.2f)", rules[r].name.c_str(), percent * p.part,
                  by_tokens.x.back(), percent * accuracy.mean, percent * accuracy.low, percent * accuracy.high);
      if (all && !rules[r].all) {
        const auto difference = paired_difference(p.accuracy, all->accuracy);
        std::printf(" %+6.2f (%+5.2f to %+5.2f)", percent * difference.mean, percent * difference.low,
                    percent * difference.high);
      } else {
        std::printf(" %23s", "");
      }
      std::printf(" %7.0f ms\n", by_time.x.back());
    }
    if (rules[r].all && !by_tokens.x.empty()) {
      // A level to compare with, as wide as the others.
      for (auto* series : {&by_tokens, &by_time})
        for (auto* column : {&series->y, &series->low, &series->high}) column->push_back(column->back());
      by_tokens.x.insert(by_tokens.x.begin(), lowest_kept);
      by_time.x.insert(by_time.x.begin(), lowest_time);
    }
    tokens.series.push_back(by_tokens);
    time.series.push_back(by_time);
  }
  write_plot(
      picture, study.name + ": fewer tokens, chosen by which rule?",
      format(
          "Each rule has models of its own, trained with the same loss under the same budgets; the first token is "
          "pinned. Mean of %d seeds, 95 %% interval.",
          study.seeds),
      {tokens, time});
  std::printf("wrote %s\n", picture.c_str());
}

void run_draw_study(const Study& study, const std::vector<double>& gains, const std::filesystem::path& picture) {
  struct Rule {
    std::string name;
    Draw draw;
    double gain;
  };
  std::vector<Rule> rules{{"uniform", Draw::uniform, 0}};
  for (const double gain : gains) rules.push_back({format("balancer, loss^%g", gain), Draw::balancer, gain});

  const auto epochs = static_cast<std::size_t>(study.options.epochs), seeds = static_cast<std::size_t>(study.seeds);
  Progress progress(study.name + ", epochs of the study of draws", rules.size() * seeds * epochs);
  const ReadyModels ready(study);
  PlotPanel validation_loss{"Loss on the validation examples", "steps", "cross-entropy, nats", {}},
      accuracy{"Accuracy on the validation examples", "steps", "validation accuracy, %", {}},
      train_loss{"Loss on all training examples", "steps", "cross-entropy, nats", {}};
  std::printf(
      "\n%s: examples drawn by the balancer against uniformly, mean of %d seeds and its 95 %% interval\n"
      "%-22s %5s %6s %25s %25s %25s\n",
      study.name.c_str(), study.seeds, "drawn", "epoch", "steps", "validation loss", "validation accuracy",
      "training loss");
  for (const auto& rule : rules) {
    std::vector<std::vector<double>> losses(epochs), accuracies(epochs), train_losses(epochs);
    std::vector<double> steps(epochs);
    for (std::size_t seed = 1; seed <= seeds; ++seed) {
      auto options = study.options;
      options.seed = static_cast<unsigned>(seed);
      options.draw = rule.draw;
      options.gain = rule.gain;
      options.show_progress = false;
      options.checkpoint.clear();
      Random random(static_cast<unsigned>(seed));
      Classifier<float> model(study.shape, random);
      Training training(model, *study.train, *study.validation, options,
                        study.augment ? study.augment(static_cast<unsigned>(seed)) : Training::Augment{});
      std::vector<DrawRecord> records;
      if (ready.load(rule.name, training, model, &records)) {
        progress.advance(epochs);
      } else {
        training.run([&](const EpochRecord& e) {
          records.push_back(
              {e.step, e.validation_loss, e.validation_accuracy, predict(model, *study.train, {}).mean_loss()});
          progress.advance();
          return true;
        });
        ready.save(rule.name, training, model, records);
      }
      for (std::size_t e = 0; e < epochs; ++e) {
        steps[e] = records[e].step;
        losses[e].push_back(records[e].validation_loss);
        accuracies[e].push_back(records[e].validation_accuracy);
        train_losses[e].push_back(records[e].train_loss);
      }
    }
    progress.hide();
    Series of_losses{rule.name, {}, {}, {}, {}}, of_accuracies = of_losses, of_train_losses = of_losses;
    for (std::size_t e = 0; e < epochs; ++e) {
      add(of_losses, steps[e], losses[e]);
      add(of_accuracies, steps[e], accuracies[e], percent);
      add(of_train_losses, steps[e], train_losses[e]);
      std::printf("%-22s %5zu %6.0f %8.4f (%.4f to %.4f) %6.2f %% (%5.2f to %5.2f) %8.4f (%.4f to %.4f)\n",
                  rule.name.c_str(), e + 1, steps[e], of_losses.y[e], of_losses.low[e], of_losses.high[e],
                  of_accuracies.y[e], of_accuracies.low[e], of_accuracies.high[e], of_train_losses.y[e],
                  of_train_losses.low[e], of_train_losses.high[e]);
      std::fflush(stdout);  // in a log a line of progress would stand in the midst of it otherwise
    }
    validation_loss.series.push_back(of_losses);
    accuracy.series.push_back(of_accuracies);
    train_loss.series.push_back(of_train_losses);
  }
  write_plot(picture, study.name + ": which examples to train on?",
             format("Every rule draws as many examples per epoch; the balancer's shares are within 0.2 and 10 "
                    "times the mean. "
                    "Mean of %d seeds with its 95 %% interval.",
                    study.seeds),
             {validation_loss, accuracy, train_loss});
  std::printf("wrote %s\n", picture.c_str());
}

void draw_training(const Training& training, const std::string& title, const std::filesystem::path& picture) {
  constexpr std::size_t window = 20;
  Series train{"training", {}, {}, {}, {}}, validation{"validation", {}, {}, {}, {}},
      accuracy{"validation", {}, {}, {}, {}};
  const auto& steps = training.step_losses();
  for (std::size_t at = 0; at + window <= steps.size(); at += window) {
    double sum = 0;
    for (std::size_t i = at; i < at + window; ++i) sum += static_cast<double>(steps[i]);
    train.x.push_back(static_cast<double>(at + window));
    train.y.push_back(sum / static_cast<double>(window));
  }
  for (const auto& e : training.epochs()) {
    validation.x.push_back(e.step), validation.y.push_back(e.validation_loss);
    accuracy.x.push_back(e.step), accuracy.y.push_back(percent * e.validation_accuracy);
  }
  PlotPanel losses{"Loss", "steps", "cross-entropy, nats", {train, validation}},
      accuracies{"Accuracy", "steps", "validation accuracy, %", {accuracy}};
  losses.from_zero = accuracies.from_zero = true;
  write_plot(picture, title,
             format("%zu epochs; the training loss is the mean of %zu steps", training.epochs().size(), window),
             {losses, accuracies});
}

}  // namespace example
