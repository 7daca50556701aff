#include "training.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <sstream>

#include "errors.hpp"
#include "output.hpp"
#include "progress.hpp"
#include "safetensors.hpp"

namespace example {
namespace {

namespace ab = attention_balancer;

// The same numbers for the same purpose, epoch and step, whatever was drawn before: a resumed run meets them again.
Random random_of(unsigned seed, unsigned purpose, std::size_t epoch, std::size_t step = 0) {
  std::seed_seq sequence{seed, purpose, static_cast<unsigned>(epoch), static_cast<unsigned>(step)};
  return Random(sequence);
}
enum Purpose : unsigned { for_order = 1, for_step = 2, for_prediction = 3, for_draws = 4 };

std::vector<std::uint64_t> shape_of(const Rows<float>& matrix) {
  return {static_cast<std::uint64_t>(matrix.rows()), static_cast<std::uint64_t>(matrix.cols())};
}

std::span<const float> values_of(const Rows<float>& matrix) {
  return {matrix.data(), static_cast<std::size_t>(matrix.size())};
}

Rows<float> read_matrix(Safetensors& file, const std::string& name, const Rows<float>& like) {
  const auto values = file.floats(name, shape_of(like));
  return Eigen::Map<const Rows<float>>(values.data(), like.rows(), like.cols());
}

constexpr Eigen::Index largest_size = 1 << 24;  // of anything in a saved model

std::array<Eigen::Index*, 8> sizes_of(ClassifierShape& s) {
  return {&s.vocabulary, &s.features, &s.longest, &s.classes, &s.width, &s.heads, &s.hidden, &s.layers};
}

constexpr std::size_t epoch_columns = 6;
constexpr float floor_share = 0.2f, cap_share = 10.f;  // of an equal share

}  // namespace

std::vector<double> Prediction::correct(const Sequences& data) const {
  std::vector<double> right(classes.size());
  for (std::size_t i = 0; i < right.size(); ++i) right[i] = classes[i] == data.labels[i] ? 1 : 0;
  return right;
}

double Prediction::accuracy(const Sequences& data) const {
  const auto right = correct(data);
  return right.empty() ? 0 : std::accumulate(right.begin(), right.end(), 0.0) / static_cast<double>(right.size());
}

double Prediction::mean_loss() const {
  return losses.empty() ? 0
                        : std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
}

Prediction predict(Classifier<float>& model, const Sequences& data, const TokenBudget& budget, unsigned seed,
                   std::size_t batch_size) {
  Prediction result;
  auto random = random_of(seed, for_prediction, 0);
  std::vector<std::size_t> which(data.size());
  std::iota(which.begin(), which.end(), std::size_t{0});
  const Stopwatch watch;
  for (std::size_t at = 0; at < which.size(); at += batch_size) {
    const auto batch = make_batch<float>(
        data, std::span(which).subspan(at, std::min(batch_size, which.size() - at)), budget, random);
    const auto logits = model.forward(batch, budget);
    const auto loss = cross_entropy<float>(logits, batch.labels);
    for (Eigen::Index i = 0; i < logits.rows(); ++i) {
      Eigen::Index best = 0;
      logits.row(i).maxCoeff(&best);
      result.classes.push_back(static_cast<int>(best));
      result.losses.push_back(static_cast<double>(loss.losses[static_cast<std::size_t>(i)]));
    }
    result.kept += static_cast<double>(model.kept().size());
    result.tokens += static_cast<double>(batch.tokens);
  }
  result.seconds = watch.seconds();
  return result;
}

Training::Training(Classifier<float>& model, const Sequences& train, const Sequences& validation,
                   TrainingOptions options, Augment augment)
    : model_(model),
      train_(train),
      validation_(validation),
      options_(std::move(options)),
      augment_(std::move(augment)),
      adam_(model.parameters(), options_.adam) {
  const auto refuse = [](const std::string& what) { throw ab::InputError(what); };
  if (train.size() == 0 || validation.size() == 0)
    refuse("number of examples is " + std::to_string(train.size()) + " for training and " +
           std::to_string(validation.size()) + " for validation, but must be at least 1");
  if (options_.epochs < 0)
    refuse("number of epochs is " + std::to_string(options_.epochs) + ", but must not be negative");
  if (options_.batch < 1) refuse("size of a batch is 0, but must be at least 1");
  if (!(options_.adam.rate > 0) || !std::isfinite(options_.adam.rate))
    refuse(format("rate is %g, but must be positive and finite", options_.adam.rate));
  if (!(options_.adam.decay >= 0) || !std::isfinite(options_.adam.decay))
    refuse(format("decay is %g, but must be finite and not negative", options_.adam.decay));
  if (options_.parts.empty()) refuse("list of parts is empty, but must name at least one");
  if (!(options_.token_loss >= 0 && options_.token_loss < 1))
    refuse(format("token loss is %g, but must be in [0, 1)", options_.token_loss));
  if (!std::isfinite(options_.evidence.guide) || !std::isfinite(options_.evidence.entropy))
    refuse(format("weights of the loss on the evidence are %g and %g, but must be finite", options_.evidence.guide,
                  options_.evidence.entropy));
  for (const double part : options_.parts) (void)TokenBudget{options_.keep, part}.of(1);
  const auto classes = model.shape().classes;
  const auto check = [&](const Sequences& data, const char* name) {
    for (std::size_t i = 0; i < data.size(); ++i) {
      if (data.labels[i] < 0 || data.labels[i] >= classes)
        refuse(std::string("label of ") + name + " example " + std::to_string(i) + " is " +
               std::to_string(data.labels[i]) + ", but must be in [0, " + std::to_string(classes) + ")");
      if (data.length(i) < 1)
        refuse(std::string("length of ") + name + " example " + std::to_string(i) +
               " is 0, but must be at least 1");
    }
  };
  check(train, "training");
  check(validation, "validation");
  model.set_threads(options_.threads);
  last_losses_.assign(train.size(),
                      static_cast<float>(std::log(static_cast<double>(std::max<Eigen::Index>(classes, 2)))));
  if (options_.draw == Draw::balancer) {
    const auto n = static_cast<float>(train.size());
    balancer_.emplace(static_cast<ab::Index>(train.size()),
                      ab::allocate::Bounded<float>{.floor = floor_share / n, .cap = std::min(1.f, cap_share / n)},
                      ab::feedback::Leaky<float>{0.5f, static_cast<float>(options_.gain)});
  }
}

std::map<std::string, std::string> Training::identity() const {
  std::string parts;
  for (const double part : options_.parts) parts += format("%s%g", parts.empty() ? "" : " ", part);
  return {{"model", describe(model_.shape())},
          {"examples", std::to_string(train_.size()) + " and " + std::to_string(validation_.size())},
          {"epochs", std::to_string(options_.epochs)},
          {"batch", std::to_string(options_.batch)},
          {"adam", format("%g %g %g %g %g %g", options_.adam.rate, options_.adam.beta1, options_.adam.beta2,
                          options_.adam.epsilon, options_.adam.decay, options_.adam.clip)},
          {"warmup", format("%g", options_.warmup)},
          {"seed", std::to_string(options_.seed)},
          {"token loss", format("%g", options_.token_loss)},
          {"evidence", format("%g %g", options_.evidence.guide, options_.evidence.entropy)},
          {"budget", std::string(name_of(options_.keep)) + " " + parts},
          {"draw", options_.draw == Draw::uniform ? "uniform" : format("balancer %g", options_.gain)}};
}

// --- Checkpoints
// -----------------------------------------------------------------------------------------------------

void Training::save() const {
  auto& adam = const_cast<Adam<float>&>(adam_);
  std::vector<TensorToWrite> tensors;
  const auto& parameters = adam.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& p = *parameters[i];
    tensors.push_back({p.name, shape_of(p.value), values_of(p.value)});
    tensors.push_back({"adam.mean." + p.name, shape_of(p.value), values_of(adam.means()[i])});
    tensors.push_back({"adam.square." + p.name, shape_of(p.value), values_of(adam.squares()[i])});
    if (best_epoch_ != epoch_) tensors.push_back({"best." + p.name, shape_of(p.value), values_of(best_[i])});
  }
  std::vector<float> epochs;
  for (const auto& e : epochs_)
    for (const double x : {e.epoch, e.step, e.train_loss, e.validation_loss, e.validation_accuracy, e.seconds})
      epochs.push_back(static_cast<float>(x));
  tensors.push_back({"record.epochs", {epochs_.size(), epoch_columns}, epochs});
  tensors.push_back({"record.step_losses", {step_losses_.size()}, step_losses_});
  tensors.push_back({"record.last_losses", {last_losses_.size()}, last_losses_});
  if (balancer_) {
    const auto state = balancer_->state();
    tensors.push_back({"balancer.state", {state.size()}, state});
  }
  auto metadata = identity();
  metadata["epoch"] = std::to_string(epoch_);
  metadata["steps"] = std::to_string(adam.steps);
  metadata["best epoch"] = std::to_string(best_epoch_);
  write_safetensors(options_.checkpoint, tensors, metadata);
}

bool Training::resume() {
  std::error_code error;
  if (options_.checkpoint.empty() || !std::filesystem::exists(options_.checkpoint, error)) return false;
  try {
    read_checkpoint();
  } catch (const FileError& failure) {
    throw FileError(std::string(failure.what()) + "; without this file the training begins anew");
  }
  return true;
}

void Training::read_checkpoint() {
  Safetensors file(options_.checkpoint);
  const auto name = options_.checkpoint.string();
  check_identity(options_.checkpoint, file.metadata(), identity());
  const auto number = [&](const char* key) {
    const auto& text = file.metadata(key);
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != text.npos)
      throw FileError(name + ": \"" + key + "\" is \"" + text + "\", but must be a number");
    return std::stoi(text);
  };
  const int epoch = number("epoch"), steps = number("steps"), best_epoch = number("best epoch");

  // All is read before anything is changed.
  const auto& parameters = adam_.parameters();
  std::vector<Rows<float>> values, means, squares, best;
  for (const auto* p : parameters) {
    values.push_back(read_matrix(file, p->name, p->value));
    means.push_back(read_matrix(file, "adam.mean." + p->name, p->value));
    squares.push_back(read_matrix(file, "adam.square." + p->name, p->value));
    best.push_back(best_epoch == epoch ? values.back() : read_matrix(file, "best." + p->name, p->value));
    if (!values.back().allFinite() || !means.back().allFinite() || !squares.back().allFinite() ||
        !best.back().allFinite())
      throw FileError(name + ": \"" + p->name + "\" holds numbers that are not finite");
  }
  const auto records = file.floats("record.epochs", {static_cast<std::uint64_t>(epoch), epoch_columns});
  const auto step_losses = file.floats("record.step_losses", {static_cast<std::uint64_t>(steps)});
  const auto last_losses = file.floats("record.last_losses", {last_losses_.size()});
  if (balancer_) balancer_->restore(file.floats("balancer.state", {last_losses_.size()}), epoch);

  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i]->value = values[i];
  adam_.means() = std::move(means);
  adam_.squares() = std::move(squares);
  adam_.steps = steps;
  epoch_ = epoch;
  best_epoch_ = best_epoch;
  best_ = std::move(best);
  step_losses_ = step_losses;
  last_losses_ = last_losses;
  epochs_.clear();
  for (std::size_t i = 0; i + epoch_columns <= records.size(); i += epoch_columns)
    epochs_.push_back({records[i], records[i + 1], records[i + 2], records[i + 3], records[i + 4], records[i + 5]});
  seconds_ = epochs_.empty() ? 0 : epochs_.back().seconds;
}

// --- Epochs
// ----------------------------------------------------------------------------------------------------------

std::vector<std::size_t> Training::order_of_epoch(int epoch) {
  std::vector<std::size_t> order;
  if (balancer_) {
    if (epoch > 0) balancer_->update(last_losses_);
    // As often as its share says on average. units() would draw each exactly once: a floor of 0.2 draws is rounded
    // up to a whole one. Systematic sampling instead: one random offset, then an example at every whole number.
    auto offset = random_of(options_.seed, for_draws, static_cast<std::size_t>(epoch));
    double at = std::uniform_real_distribution<double>(0, 1)(offset);
    const auto shares = balancer_->shares();
    for (std::size_t i = 0; i < shares.size() && order.size() < train_.size(); ++i)
      for (at += static_cast<double>(shares[i]) * static_cast<double>(train_.size());
           at >= 1 && order.size() < train_.size(); --at)
        order.push_back(i);
    while (order.size() < train_.size()) order.push_back(order.size());
  } else {
    order.resize(train_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
  }
  auto random = random_of(options_.seed, for_order, static_cast<std::size_t>(epoch));
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

double Training::run_epoch(int epoch, const Sequences& data) {
  const auto order = order_of_epoch(epoch);
  const std::size_t batches = (order.size() + options_.batch - 1) / options_.batch;
  const double last_step = static_cast<double>(batches) * options_.epochs,
               warm = std::max(1.0, options_.warmup * last_step);
  std::optional<Progress> progress;
  if (options_.show_progress)
    progress.emplace("epoch " + std::to_string(epoch + 1) + " of " + std::to_string(options_.epochs) + ", examples",
                     order.size());
  double sum = 0;
  for (std::size_t b = 0; b < batches; ++b) {
    const auto which =
        std::span(order).subspan(b * options_.batch, std::min(options_.batch, order.size() - b * options_.batch));
    auto random = random_of(options_.seed, for_step, static_cast<std::size_t>(epoch), b);
    const TokenBudget budget{
        options_.keep,
        options_.parts[std::uniform_int_distribution<std::size_t>(0, options_.parts.size() - 1)(random)]};
    const auto batch = make_batch<float>(data, which, budget, random, options_.token_loss);
    const auto loss = cross_entropy<float>(model_.forward(batch, budget), batch.labels);
    if (!std::isfinite(loss.mean))
      throw TrainingError("the loss is not finite after step " + std::to_string(adam_.steps));
    model_.backward(loss.gradient, batch.labels, options_.evidence);
    const double done = static_cast<double>(adam_.steps);
    adam_.step(std::min({1.0, (done + 1) / warm, std::max(0.0, (last_step - done) / (last_step - warm))}));
    for (std::size_t i = 0; i < which.size(); ++i) last_losses_[which[i]] = loss.losses[i];
    sum += static_cast<double>(loss.mean) * static_cast<double>(which.size());
    step_losses_.push_back(loss.mean);
    if (progress) progress->advance(which.size());
  }
  return sum / static_cast<double>(order.size());
}

// Of the records, that start with epoch 1. The first of equals; as floats, which is what a checkpoint holds of
// them.
int Training::find_best() const {
  std::size_t best = 0;
  for (std::size_t i = 1; i < epochs_.size(); ++i) {
    const auto value = [&](std::size_t e) {
      return std::pair(static_cast<float>(epochs_[e].validation_accuracy),
                       -static_cast<float>(epochs_[e].validation_loss));
    };
    if (value(i) > value(best)) best = i;
  }
  return static_cast<int>(best) + 1;
}

int Training::take_best() {
  const auto& parameters = adam_.parameters();
  for (std::size_t i = 0; i < best_.size(); ++i) parameters[i]->value = best_[i];
  return best_epoch_;
}

void Training::run(const std::function<bool(const EpochRecord&)>& after_epoch) {
  while (epoch_ < options_.epochs) {
    Stopwatch watch;
    double loss = 0, seconds = 0;
    Prediction validation;
    try {
      loss = augment_ ? run_epoch(epoch_, augment_(epoch_)) : run_epoch(epoch_, train_);
      seconds = watch.seconds();
      validation = predict(model_, validation_,
                           {options_.keep, *std::max_element(options_.parts.begin(), options_.parts.end())});
      // The last step has not been followed by a loss that would tell.
      for (const auto* p : adam_.parameters())
        if (!p->value.allFinite())
          throw TrainingError(p->name + " is not finite after step " + std::to_string(adam_.steps));
      if (!std::isfinite(validation.mean_loss()))
        throw TrainingError("the validation loss is not finite after step " + std::to_string(adam_.steps));
    } catch (const TrainingError& error) {
      std::string what = error.what();
      if (!options_.checkpoint.empty())
        what += epoch_ > 0 ? "; " + options_.checkpoint.string() + " holds epoch " + std::to_string(epoch_)
                           : "; no epoch is done";
      throw TrainingError(what + ". A smaller rate may help");
    }
    seconds_ += seconds;
    ++epoch_;
    const EpochRecord record{static_cast<double>(epoch_), static_cast<double>(adam_.steps), loss,
                             validation.mean_loss(),      validation.accuracy(validation_), seconds_};
    epochs_.push_back(record);
    if (find_best() == epoch_) {
      best_epoch_ = epoch_;
      best_.clear();
      for (const auto* p : adam_.parameters()) best_.push_back(p->value);
    }
    if (!options_.checkpoint.empty()) save();
    if (after_epoch && !after_epoch(record)) return;
  }
}

// --- Models
// ----------------------------------------------------------------------------------------------------------

void save_model(const std::filesystem::path& file, Classifier<float>& model,
                const std::map<std::string, std::string>& metadata) {
  std::vector<TensorToWrite> tensors;
  for (const auto* p : model.parameters()) tensors.push_back({p->name, shape_of(p->value), values_of(p->value)});
  auto all = metadata;
  all["model"] = describe(model.shape());
  std::string sizes;
  auto shape = model.shape();
  for (const auto* size : sizes_of(shape)) sizes += format("%td ", *size);
  all["shape"] = sizes;
  write_safetensors(file, tensors, all);
}

SavedModel read_saved_model(const std::filesystem::path& file) {
  const Safetensors tensors(file);
  SavedModel saved;
  saved.metadata = tensors.metadata();
  std::istringstream stream(tensors.metadata("shape"));
  for (auto* size : sizes_of(saved.shape))
    if (!(stream >> *size) || *size < 0 || *size > largest_size)
      throw FileError(file.string() + ": \"shape\" is \"" + tensors.metadata("shape") + "\", but must be 8 sizes");
  return saved;
}

void check_identity(const std::filesystem::path& file, const std::map<std::string, std::string>& metadata,
                    const std::map<std::string, std::string>& identity) {
  for (const auto& [key, value] : identity) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) throw FileError(file.string() + ": \"" + key + "\" is missing in the metadata");
    if (found->second != value)
      throw FileError(file.string() + ": is of another run: \"" + key + "\" is \"" + found->second +
                      "\" there, but \"" + value + "\" here");
  }
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

void load_model(const std::filesystem::path& file, Classifier<float>& model) {
  Safetensors tensors(file);
  const auto parameters = model.parameters();
  std::vector<Rows<float>> values;
  for (const auto* p : parameters) {
    values.push_back(read_matrix(tensors, p->name, p->value));
    if (!values.back().allFinite())
      throw FileError(file.string() + ": \"" + p->name + "\" holds numbers that are not finite");
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i]->value = values[i];
}

}  // namespace example
