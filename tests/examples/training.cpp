#include "support/training.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "files.hpp"
#include "support/budget_curve.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/output.hpp"
#include "support/safetensors.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using example::Classifier;
using example::ClassifierShape;
using example::Keep;
using example::Random;
using example::Sequences;
using example::Training;
using example::TrainingOptions;

namespace {

const ClassifierShape shape{
    .vocabulary = 12, .longest = 9, .classes = 3, .width = 8, .heads = 2, .hidden = 8, .layers = 1};

// The class is told by one word among others.
Sequences sequences(std::size_t count, unsigned seed) {
  Sequences data;
  Random random(seed);
  for (std::size_t i = 0; i < count; ++i) {
    const int label = static_cast<int>(i % 3);
    std::vector<int> ids{0};
    for (int j = 0; j < 7; ++j) ids.push_back(std::uniform_int_distribution<int>(4, 11)(random));
    ids[std::uniform_int_distribution<std::size_t>(1, 7)(random)] = 1 + label;
    data.ids.push_back(ids);
    data.labels.push_back(label);
  }
  return data;
}

struct Run {
  Sequences train = sequences(60, 1), validation = sequences(30, 2);
  Random random{1};
  Classifier<float> model{shape, random};
  Training training;

  explicit Run(const TrainingOptions& options) : training(model, train, validation, options) {}
};

TrainingOptions options_with(const std::filesystem::path& checkpoint, example::Draw draw = example::Draw::uniform) {
  TrainingOptions options;
  options.epochs = 6;
  options.batch = 8;
  options.adam.rate = 0.01;
  options.parts = {1, 0.5};
  options.evidence = {0.5, 0.01};
  options.draw = draw;
  options.checkpoint = checkpoint;
  options.show_progress = false;
  return options;
}

void stop_after(Training& training, double epoch) {
  training.run([&](const example::EpochRecord& e) { return e.epoch < epoch; });
}

}  // namespace

TEST_CASE("training: learns which word tells the class, under a budget") {
  TrainingOptions options = options_with({});
  options.epochs = 60;
  options.parts = {1, 0.5, 0.25};
  options.token_loss = 0;
  Run run(options);
  run.training.run();
  CHECK(example::predict(run.model, run.validation, {}).accuracy(run.validation) > 0.9);
  const auto few = example::predict(run.model, run.validation, {Keep::shares, 0.25});
  CHECK(few.accuracy(run.validation) > 0.7);  // by chance the word is kept in 2 of 7 cases, which gives 0.52
  CHECK(few.kept == 30 * 3);
  CHECK(few.tokens == 30 * 8);
}

TEST_CASE("training: interrupted and resumed, the bits of one go") {
  for (const auto draw : {example::Draw::uniform, example::Draw::balancer}) {
    files::Folder folder;
    Run whole(options_with(folder.path() / "whole", draw));
    whole.training.run();
    const auto checkpoint = folder.path() / "checkpoint";
    {
      Run first(options_with(checkpoint, draw));
      CHECK_FALSE(first.training.resume());
      stop_after(first.training, 3);
    }
    Run second(options_with(checkpoint, draw));
    REQUIRE(second.training.resume());
    CHECK(second.training.epochs().size() == 3);
    second.training.run();
    CHECK(second.training.epochs().size() == 6);
    CHECK(second.training.step_losses() == whole.training.step_losses());
    CHECK(second.training.take_best() == whole.training.take_best());
    for (std::size_t i = 0; i < whole.model.parameters().size(); ++i)
      CHECK(whole.model.parameters()[i]->value == second.model.parameters()[i]->value);
  }
}

TEST_CASE("training: the model of the best epoch, by validation, also after an interruption") {
  files::Folder folder;
  auto options = options_with(folder.path() / "checkpoint");
  options.epochs = 9;
  options.adam.rate = 0.1;  // high enough that the last epoch is not the best one
  options.parts = {1};
  Run run(options);
  std::vector<std::vector<double>> losses;
  run.training.run([&](const example::EpochRecord&) {
    return losses.push_back(example::predict(run.model, run.validation, {}).losses), true;
  });
  int best = 0;
  for (int e = 1; e < 9; ++e) {
    const auto &a = run.training.epochs()[static_cast<std::size_t>(e)],
               &b = run.training.epochs()[static_cast<std::size_t>(best)];
    if (a.validation_accuracy > b.validation_accuracy ||
        (a.validation_accuracy == b.validation_accuracy && a.validation_loss < b.validation_loss))
      best = e;
  }
  REQUIRE(best < 8);
  CHECK(run.training.take_best() == best + 1);
  CHECK(example::predict(run.model, run.validation, {}).losses == losses[static_cast<std::size_t>(best)]);

  Run again(options);
  REQUIRE(again.training.resume());
  CHECK(again.training.take_best() == best + 1);
  CHECK(example::predict(again.model, again.validation, {}).losses == losses[static_cast<std::size_t>(best)]);
}

TEST_CASE("training: the balancer draws other examples than each once, from the second epoch on") {
  Run uniform(options_with({})), drawn(options_with({}, example::Draw::balancer));
  uniform.training.run();
  drawn.training.run();
  const auto &a = uniform.training.step_losses(), &b = drawn.training.step_losses();
  REQUIRE(a.size() == b.size());
  CHECK_FALSE(std::equal(a.begin() + 8, a.end(), b.begin() + 8));
}

TEST_CASE("training: what is held out") {
  const auto data = sequences(20, 1);
  const auto [rest, held] = example::hold_out(data, 0.25, 1);
  CHECK(rest.size() == 15);
  CHECK(held.size() == 5);
  auto all = rest.ids;
  all.insert(all.end(), held.ids.begin(), held.ids.end());
  auto before = data.ids;
  std::sort(all.begin(), all.end());
  std::sort(before.begin(), before.end());
  CHECK(all == before);
  CHECK(example::hold_out(data, 0.25, 1).second.ids == held.ids);
  CHECK(example::hold_out(data, 1e-9, 1).second.size() == 1);
  CHECK(example::hold_out(data, 0.9999, 1).first.size() == 1);

  Sequences patches;
  patches.tokens = 2;
  patches.labels = {0, 1, 2};
  patches.features.resize(6, 1);
  patches.features << 0, 1, 10, 11, 20, 21;
  const auto [two, one] = example::hold_out(patches, 0.4, 3);
  REQUIRE(two.features.rows() == 4);
  REQUIRE(one.features.rows() == 2);
  for (const auto* part : {&two, &one})
    for (std::size_t i = 0; i < part->size(); ++i)
      CHECK(part->features(static_cast<Eigen::Index>(2 * i + 1), 0) ==
            static_cast<float>(10 * part->labels[i] + 1));

  for (const double part : {0., 1., -1., std::nan("")})
    CHECK_THROWS_WITH(example::hold_out(data, part, 1), ContainsSubstring("but must be in (0, 1)"));
  CHECK_THROWS_WITH(example::hold_out(sequences(1, 1), 0.5, 1), ContainsSubstring("number of examples is 1"));
}

TEST_CASE("training: a checkpoint of another run, another shape, or cut short is refused") {
  files::Folder folder;
  const auto checkpoint = folder.path() / "checkpoint";
  {
    Run first(options_with(checkpoint));
    stop_after(first.training, 2);
  }
  const auto whole = example::read_text(checkpoint);
  const auto refused = [&](const TrainingOptions& options, const char* why) {
    Run run(options);
    const auto before = run.model.parameters()[0]->value;
    CHECK_THROWS_WITH(run.training.resume(), ContainsSubstring(why));
    CHECK(run.model.parameters()[0]->value == before);
    CHECK(run.training.epochs().empty());
  };
  auto other = options_with(checkpoint);
  other.adam.rate = 0.02;
  refused(other, "is of another run: \"adam\" is \"0.01 ");
  refused(other, "; without this file the training begins anew");

  Random random(1);
  auto wide_shape = shape;
  wide_shape.width = 16;
  Classifier<float> wide(wide_shape, random);
  const auto train = sequences(60, 1), test = sequences(30, 2);
  Training training(wide, train, test, options_with(checkpoint));
  CHECK_THROWS_WITH(training.resume(), ContainsSubstring("width 8") && ContainsSubstring("width 16"));

  for (const std::size_t size : {std::size_t{0}, std::size_t{5}, std::size_t{300}, whole.size() - 1}) {
    folder.write("checkpoint", whole.substr(0, size));
    INFO(size);
    refused(options_with(checkpoint), size < 8 ? "is " : "trunc");
    CHECK(example::read_text(checkpoint).size() == size);
  }
  // The header tells another shape of one tensor.
  auto bent = whole;
  const auto at = bent.find("\"shape\":[12,8]");
  REQUIRE(at != bent.npos);
  bent.replace(at, 14, "\"shape\":[8,12]");
  folder.write("checkpoint", bent);
  refused(options_with(checkpoint), "has shape [8, 12], but must have [12, 8]");
}

TEST_CASE("training: a loss that is not a number stops it, and the last good checkpoint stays") {
  files::Folder folder;
  const auto checkpoint = folder.path() / "checkpoint";
  Run run(options_with(checkpoint));
  stop_after(run.training, 2);
  const auto good = example::read_text(checkpoint);
  run.model.parameters()[0]->value(5, 0) = std::numeric_limits<float>::quiet_NaN();
  try {
    run.training.run();
    FAIL("no error");
  } catch (const example::TrainingError& error) {
    CHECK_THAT(error.what(), ContainsSubstring("is not finite after step 1"));
    CHECK_THAT(error.what(), ContainsSubstring("checkpoint holds epoch 2"));
  }
  CHECK(example::read_text(checkpoint) == good);
  Run again(options_with(checkpoint));
  CHECK(again.training.resume());

  // After the last step of an epoch, and only where the loss does not look: a word of the validation alone.
  Run last(options_with(checkpoint));
  for (auto& ids : last.train.ids)
    for (int& id : ids) id = id == 11 ? 10 : id;
  REQUIRE(last.training.resume());
  last.model.parameters()[0]->value(11, 0) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(last.training.run(), ContainsSubstring("words is not finite after step"));
  CHECK(example::read_text(checkpoint) == good);
}

TEST_CASE("training: bad input") {
  const auto train = sequences(9, 1);
  auto test = sequences(6, 2);
  Random random(1);
  Classifier<float> model(shape, random);
  const auto refused = [&](const Sequences& a, const Sequences& b, TrainingOptions options, const char* why) {
    CHECK_THROWS_WITH(Training(model, a, b, options), ContainsSubstring(why));
  };
  auto options = options_with({});
  test.labels[4] = 3;
  refused(train, test, options, "label of validation example 4 is 3, but must be in [0, 3)");
  test.labels[4] = -1;
  refused(train, test, options, "label of validation example 4 is -1, but must be in [0, 3)");
  test.labels[4] = 1;
  auto empty = train;
  empty.ids[7].clear();
  refused(empty, test, options, "length of training example 7 is 0");
  refused(Sequences{}, test, options, "number of examples is 0 for training");
  refused(train, Sequences{}, options, "and 0 for validation");
  options.parts = {0.5, 1.5};
  refused(train, test, options, "part of the tokens is 1.5");
  options.parts = {};
  refused(train, test, options, "list of parts is empty");
  options = options_with({});
  options.batch = 0;
  refused(train, test, options, "size of a batch is 0");
  options.batch = 1;
  for (const double rate : {0., -1., std::nan(""), std::numeric_limits<double>::infinity()}) {
    options.adam.rate = rate;
    refused(train, test, options, "but must be positive and finite");
  }
  options.adam.rate = 0.01;
  options.adam.decay = std::nan("");
  refused(train, test, options, "decay is nan");
  options.adam.decay = 0;
  options.token_loss = 1;
  refused(train, test, options, "token loss is 1");
}

TEST_CASE("training: a saved model comes back") {
  files::Folder folder;
  const auto file = folder.path() / "model.safetensors";
  Random random(1);
  Classifier<float> model(shape, random), other(shape, random);
  example::save_model(file, model, {{"classes", "a\nb\nc"}});
  const auto saved = example::read_saved_model(file);
  CHECK(saved.shape == shape);
  CHECK(example::lines_of(saved.metadata.at("classes")) == std::vector<std::string>{"a", "b", "c"});
  example::load_model(file, other);
  for (std::size_t i = 0; i < model.parameters().size(); ++i)
    CHECK(model.parameters()[i]->value == other.parameters()[i]->value);

  auto narrow = shape;
  narrow.hidden = 4;
  Classifier<float> smaller(narrow, random);
  CHECK_THROWS_WITH(example::load_model(file, smaller), ContainsSubstring("but must have [4, 8]"));
  model.parameters()[2]->value(0, 0) = std::numeric_limits<float>::infinity();
  example::save_model(file, model, {});
  CHECK_THROWS_WITH(example::load_model(file, other), ContainsSubstring("not finite"));
}

TEST_CASE("training: which tokens a batch keeps") {
  Sequences data;
  data.ids = {{0, 1, 2, 3, 4, 5, 6, 7, 8}, {0, 9}, {0}};
  data.labels = {0, 1, 2};
  Random random(1);
  const std::vector<std::size_t> all{2, 0, 1};
  const auto places = [&](Keep keep, double part) {
    const auto batch = example::make_batch<float>(data, all, {keep, part}, random);
    CHECK(batch.tokens == 12);
    CHECK(batch.labels == std::vector<int>{2, 0, 1});
    CHECK(batch.ids.size() == static_cast<std::size_t>(batch.segments.rows()));
    return batch.positions;
  };
  CHECK(places(Keep::prefix, 0.25) == std::vector<int>{0, 0, 1, 2, 0, 1});
  CHECK(places(Keep::stride, 0.25) == std::vector<int>{0, 0, 3, 7, 0, 1});
  CHECK(places(Keep::stride, 1).size() == 12);
  CHECK(places(Keep::shares, 0.25).size() == 12);  // the classifier drops them
  const auto some = places(Keep::random, 0.25);
  CHECK(some.size() == 6);
  CHECK(std::is_sorted(some.begin() + 1, some.begin() + 4));
  CHECK(example::TokenBudget{Keep::shares, 1e-9}.of(9) == 2);
  CHECK(example::TokenBudget{Keep::shares, 1e-9}.of(1) == 1);
  CHECK_THROWS_AS(places(Keep::prefix, 0), ab::BudgetError);
  CHECK_THROWS_AS(places(Keep::prefix, std::nan("")), ab::BudgetError);
  const auto lossy = example::make_batch<float>(data, all, {}, random, 0.999);
  CHECK(lossy.segments.count() == 3);
  CHECK(lossy.segments.length(0) >= 1);
}

TEST_CASE("training: the studies of budgets and draws, in small") {
  files::Folder folder;
  const auto train = sequences(30, 1), validation = sequences(9, 3), test = sequences(15, 2);
  auto options = options_with({});
  options.epochs = 2;
  const example::Study study{shape, &train, &validation, &test, options, {}, 2, "Small"};
  const auto rules = example::budget_rules({0.5, 0.1});
  const auto points = example::run_budget_study(study, rules, {1, 0.5});
  REQUIRE(points.size() == 11);
  CHECK(std::count_if(points.begin(), points.end(), [&](const auto& p) { return rules[p.rule].all; }) == 1);
  for (const auto& p : points) {
    CHECK(p.accuracy.size() == 2);
    CHECK(p.kept[0] == Approx(p.part == 1 ? 1.0 : 5.0 / 8));
  }
  example::report_budget_study(points, rules, study, folder.path() / "budget.svg");
  example::run_draw_study(study, {1}, folder.path() / "draw.svg");
  for (const char* name : {"budget.svg", "draw.svg"}) {
    const auto svg = example::read_text(folder.path() / name);
    CHECK_THAT(svg, ContainsSubstring("</svg>"));
    CHECK(svg.find("nan") == svg.npos);
  }
}

TEST_CASE("training: a study that was interrupted goes on with the models that are ready") {
  files::Folder folder;
  const auto train = sequences(30, 1), validation = sequences(9, 3), test = sequences(15, 2);
  auto options = options_with({});
  options.epochs = 2;
  example::Study study{shape, &train, &validation, &test, options, {}, 2, "Small"};
  const auto rules = example::budget_rules({0.5, 0.1}, {"all tokens", "shares"});
  const auto accuracies = [&](const std::vector<example::BudgetPoint>& points) {
    std::vector<double> all;
    for (const auto& p : points) all.insert(all.end(), p.accuracy.begin(), p.accuracy.end());
    return all;
  };
  const auto whole = accuracies(example::run_budget_study(study, rules, {1, 0.5}));
  study.models = folder.path() / "budget";
  CHECK(accuracies(example::run_budget_study(study, rules, {1, 0.5})) == whole);
  const auto first = study.models / "all_tokens_seed_1.safetensors",
             last = study.models / "shares_seed_2.safetensors";
  const auto model = example::read_text(last);
  REQUIRE(std::filesystem::remove(last));
  CHECK(accuracies(example::run_budget_study(study, rules, {1, 0.5})) == whole);
  CHECK(example::read_text(last) == model);
  // What is there is not trained again.
  Random random(7);
  Classifier<float> other(shape, random);
  example::save_model(first, other, example::read_saved_model(first).metadata);
  const auto replaced = example::read_text(first);
  (void)example::run_budget_study(study, rules, {1, 0.5});
  CHECK(example::read_text(first) == replaced);
  study.restart = true;
  CHECK(accuracies(example::run_budget_study(study, rules, {1, 0.5})) == whole);
  CHECK(example::read_text(first) != replaced);
  study.restart = false;
  study.options.adam.rate = 0.02;
  CHECK_THROWS_WITH(example::run_budget_study(study, rules, {1, 0.5}),
                    ContainsSubstring("all_tokens_seed_1.safetensors: is of another run: \"adam\" is \"0.01 ") &&
                        ContainsSubstring("budget the study begins anew"));
  folder.write("budget/all_tokens_seed_1.safetensors", replaced.substr(0, replaced.size() - 1));
  CHECK_THROWS_WITH(example::run_budget_study(study, rules, {1, 0.5}), ContainsSubstring("trunc"));
  study.models = first / "folder";
  CHECK_THROWS_WITH(example::run_budget_study(study, rules, {1, 0.5}), ContainsSubstring("cannot be created"));
  study.options.adam.rate = 0.01;

  study.models = folder.path() / "draw";
  example::run_draw_study(study, {0.5}, folder.path() / "whole.svg");
  const auto drawn = study.models / "balancer_loss_0.5_seed_1.safetensors";
  REQUIRE(std::filesystem::remove(study.models / "uniform_seed_2.safetensors"));
  REQUIRE(std::filesystem::exists(drawn));
  example::run_draw_study(study, {0.5}, folder.path() / "resumed.svg");
  CHECK(example::read_text(folder.path() / "resumed.svg") == example::read_text(folder.path() / "whole.svg"));
  auto saved = example::read_saved_model(drawn);
  saved.metadata["records"] = saved.metadata["records"].substr(0, saved.metadata["records"].find('\n'));
  example::save_model(drawn, other, saved.metadata);
  CHECK_THROWS_WITH(example::run_draw_study(study, {0.5}, folder.path() / "resumed.svg"),
                    ContainsSubstring("holds the records of 1 epochs, but must hold those of 2"));
}
