#pragma once
// Training a Classifier: epochs, the budget of each step, which examples are drawn, checkpoints, and the record of
// it all.

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "adam.hpp"
#include "attention_balancer/balance.hpp"
#include "classifier.hpp"

namespace example {

/// How the examples of an epoch are drawn. There are as many draws as examples, whatever the rule.
enum class Draw {
  uniform,   // each once, in random order
  balancer,  // as often as its share of a ResourceBalancer says on average, that is fed with the last losses
};

struct TrainingOptions {
  int epochs = 10;
  std::size_t batch = 32;
  AdamOptions adam;
  double warmup = 0.05;     // part of the steps in which the rate rises; it falls linearly afterwards
  unsigned seed = 1;        // of order, budgets and lost tokens
  double token_loss = 0.1;  // probability that a token is left out of an example
  EvidenceLoss evidence;    // added to the loss of the classes
  Keep keep = Keep::shares;
  std::vector<double> parts{1.0};  // of the tokens; each step draws one of them
  Draw draw = Draw::uniform;
  double gain = 1;  // of the balancer's feedback: examples are drawn by loss ^ gain
  int threads = 1;
  std::filesystem::path checkpoint;  // written after every epoch; none if empty
  bool show_progress = true;
};

/// What is known at the end of an epoch.
struct EpochRecord {
  double epoch, step;  // how many so far
  double train_loss;   // mean over the examples drawn, while the weights changed
  double validation_loss, validation_accuracy;
  double seconds;  // of training so far, without the validation
};

struct Prediction {
  std::vector<int> classes;  // the most probable one of each example
  std::vector<double> losses;
  double seconds = 0;
  double kept = 0, tokens = 0;  // of all examples, the pinned ones included

  /// 1 for each example whose class is right, 0 for the others.
  std::vector<double> correct(const Sequences& data) const;
  double accuracy(const Sequences& data) const;
  double mean_loss() const;
};

/// The classes of all examples under a budget. Nothing is learned.
Prediction predict(Classifier<float>& model, const Sequences& data, const TokenBudget& budget, unsigned seed = 1,
                   std::size_t batch = 32);

class Training {
 public:
  /// Called at the start of an epoch for its examples, if they change from epoch to epoch: as many as in `train`,
  /// with the same labels.
  using Augment = std::function<Sequences(int epoch)>;

  /// Model and data must outlive it. Nothing is learned from `validation`: it tells which epoch was the best.
  /// Throws ab::InputError for options that make no sense and for labels out of range.
  Training(Classifier<float>& model, const Sequences& train, const Sequences& validation, TrainingOptions options,
           Augment augment = {});

  /// Continues from the checkpoint if there is one; then the epochs are those that a run in one go would have had.
  /// Without a call of it the checkpoint is replaced after the first epoch.
  /// Throws FileError if the file is no checkpoint of this model and these options; nothing has changed then.
  bool resume();

  /// The epochs that are left; `after_epoch` may return false to stop there. Throws TrainingError if a loss, a
  /// gradient or a weight is not finite; the checkpoint is then the one of the last good epoch.
  void run(const std::function<bool(const EpochRecord&)>& after_epoch = {});

  /// Gives the model the weights that it had after the best epoch: that of the highest validation accuracy, of the
  /// lowest validation loss where it is equal. Returns that epoch, 0 if there was none. For after the last one.
  int take_best();

  const std::vector<EpochRecord>& epochs() const noexcept { return epochs_; }
  const std::vector<float>& step_losses() const noexcept { return step_losses_; }
  Adam<float>& adam() noexcept { return adam_; }
  /// What tells this run from another: a checkpoint is refused where it differs.
  std::map<std::string, std::string> identity() const;

 private:
  void save() const;
  void read_checkpoint();
  int find_best() const;
  std::vector<std::size_t> order_of_epoch(int epoch);
  double run_epoch(int epoch, const Sequences& data);

  Classifier<float>& model_;
  const Sequences& train_;
  const Sequences& validation_;
  TrainingOptions options_;
  Augment augment_;
  Adam<float> adam_;
  int epoch_ = 0;  // done so far
  double seconds_ = 0;
  int best_epoch_ = 0;
  std::vector<Rows<float>> best_;  // the weights after it
  std::vector<EpochRecord> epochs_;
  std::vector<float> step_losses_;
  std::vector<float> last_losses_;  // of each example
  using Balancer = attention_balancer::ResourceBalancer<float, attention_balancer::allocate::Bounded<float>,
                                                        attention_balancer::feedback::Leaky<float>>;
  std::optional<Balancer> balancer_;
};

/// The parameters of a model as a safetensors file.
void save_model(const std::filesystem::path& file, Classifier<float>& model,
                const std::map<std::string, std::string>& metadata);

/// What save_model wrote beside the parameters.
struct SavedModel {
  ClassifierShape shape;
  std::map<std::string, std::string> metadata;
};

/// Throws FileError if the file is no model.
SavedModel read_saved_model(const std::filesystem::path& file);

/// Throws FileError for what is in a file beside the parameters, if it is missing or other than `identity`.
void check_identity(const std::filesystem::path& file, const std::map<std::string, std::string>& metadata,
                    const std::map<std::string, std::string>& identity);

/// Reads the parameters back. Throws FileError if the file is no model of this shape; the model is then unchanged.
void load_model(const std::filesystem::path& file, Classifier<float>& model);

/// The lines of a text of lines.
std::vector<std::string> lines_of(const std::string& text);

}  // namespace example
