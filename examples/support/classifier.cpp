#include "classifier.hpp"

#include <numeric>

#include "attention_balancer/balance.hpp"

namespace example {
namespace {

namespace ab = attention_balancer;

const ClassifierShape& checked(const ClassifierShape& shape) {
  const auto at_least_one = [](const char* what, Eigen::Index size) {
    if (size < 1)
      throw ab::ShapeError(std::string(what) + " is " + std::to_string(size) + ", but must be at least 1");
  };
  at_least_one("longest sequence", shape.longest);
  at_least_one("number of classes", shape.classes);
  at_least_one("width", shape.width);
  at_least_one("hidden width", shape.hidden);
  if ((shape.vocabulary > 0) == (shape.features > 0))
    throw ab::ShapeError("the tokens must be either words or features: vocabulary is " +
                         std::to_string(shape.vocabulary) + ", features " + std::to_string(shape.features));
  return shape;
}

constexpr double word_deviation = 0.5, position_deviation = 0.1;

}  // namespace

std::string describe(const ClassifierShape& s) {
  return std::to_string(s.vocabulary) + " words, " + std::to_string(s.features) + " features, " +
         std::to_string(s.longest) + " positions, " + std::to_string(s.classes) + " classes, width " +
         std::to_string(s.width) + ", " + std::to_string(s.heads) + " heads, hidden " + std::to_string(s.hidden) +
         ", " + std::to_string(s.layers) + " layers";
}

template <class T>
Classifier<T>::Classifier(const ClassifierShape& shape, Random& random)
    : shape_(checked(shape)),
      positions_("positions", shape.longest, shape.width, random, position_deviation),
      saliency_norm_("saliency.norm", shape.width),
      saliency_("saliency", shape.width, random),
      last_norm_("last_norm", shape.width),
      pooled_norm_("pooled_norm", shape.width),
      head_("head", shape.width, shape.classes, random),
      guide_("guide", shape.width, shape.classes, random) {
  if (shape.vocabulary > 0)
    words_.emplace("words", shape.vocabulary, shape.width, random, word_deviation);
  else
    features_.emplace("features", shape.features, shape.width, random);
  for (Eigen::Index l = 0; l < shape.layers; ++l) {
    const auto name = "layers." + std::to_string(l);
    layers_.push_back({LayerNorm<T>(name + ".attention_norm", shape.width),
                       MultiHeadAttention<T>(name + ".attention", shape.width, shape.heads, random),
                       LayerNorm<T>(name + ".feed_norm", shape.width),
                       FeedForward<T>(name + ".feed", shape.width, shape.hidden, random)});
  }
}

template <class T>
std::vector<Parameter<T>*> Classifier<T>::parameters() {
  std::vector<Parameter<T>*> all;
  const auto add = [&](auto&... parameter) { (all.push_back(&parameter), ...); };
  if (words_) add(words_->table);
  if (features_) add(features_->weight, features_->bias);
  add(positions_.table, saliency_norm_.weight, saliency_norm_.bias, saliency_.query);
  for (auto& l : layers_)
    add(l.attention_norm.weight, l.attention_norm.bias, l.attention.query.weight, l.attention.query.bias,
        l.attention.key_value.weight, l.attention.key_value.bias, l.attention.output.weight,
        l.attention.output.bias, l.feed_norm.weight, l.feed_norm.bias, l.feed.first.weight, l.feed.first.bias,
        l.feed.second.weight, l.feed.second.bias);
  add(last_norm_.weight, last_norm_.bias, pooled_norm_.weight, pooled_norm_.bias, head_.weight, head_.bias,
      guide_.weight, guide_.bias);
  return all;
}

template <class T>
void Classifier<T>::set_threads(int threads) {
  for (auto& layer : layers_) layer.attention.threads = threads;
}

template <class T>
double Classifier<T>::mean_entropy() const {
  const auto& entropy = saliency_.entropy();
  return entropy.empty() ? 0
                         : static_cast<double>(std::accumulate(entropy.begin(), entropy.end(), T(0))) /
                               static_cast<double>(entropy.size());
}

// Fills kept_ and kept_segments_.
template <class T>
void Classifier<T>::choose(const Segments& segments, const TokenBudget& budget) {
  kept_.clear();
  kept_segments_ = Segments{};
  for (std::size_t b = 0; b < segments.count(); ++b) {
    const auto begin = segments.begin(b), length = segments.length(b);
    const auto count = budget.keep == Keep::shares ? budget.of(length) : length;
    if (count == length) {
      for (Eigen::Index j = 0; j < length; ++j) kept_.push_back(begin + j);
    } else {
      ab::ResourceBalancer<T> balancer(length);
      const auto shares = balancer.update({saliency_.mass().data() + begin, static_cast<std::size_t>(length)});
      const auto plan = ab::execute::token_budget(shares, count, {0});
      for (const auto j : plan.kept()) kept_.push_back(begin + j);
    }
    kept_segments_.add(count);
  }
}

template <class T>
Rows<T> Classifier<T>::forward(const Batch<T>& batch, const TokenBudget& budget) {
  segments_ = batch.segments;
  Rows<T> x = words_ ? words_->forward(batch.ids) : features_->forward(batch.features);  // [rows, width]
  x += positions_.forward(batch.positions);
  saliency_.forward(saliency_norm_.forward(x), segments_);
  choose(segments_, budget);
  if (static_cast<Eigen::Index>(kept_.size()) < x.rows()) x = Rows<T>(x(kept_, Eigen::all));

  for (auto& layer : layers_) {  // x [kept rows, width]
    x += layer.attention.forward(layer.attention_norm.forward(x), kept_segments_);
    x += layer.feed.forward(layer.feed_norm.forward(x));
  }
  states_ = last_norm_.forward(x);
  Rows<T> pooled = Rows<T>::Zero(static_cast<Eigen::Index>(segments_.count()), shape_.width);
  for (std::size_t b = 0; b < segments_.count(); ++b)
    for (Eigen::Index j = kept_segments_.begin(b); j < kept_segments_.begin(b + 1); ++j)
      pooled.row(static_cast<Eigen::Index>(b)) +=
          saliency_.mass()[kept_[static_cast<std::size_t>(j)]] * states_.row(j);
  return head_.forward(pooled_norm_.forward(pooled));
}

// [sequences, width] of the normalised embeddings of all tokens, by their weights.
template <class T>
Rows<T> Classifier<T>::guide_mean() const {
  Rows<T> mean(static_cast<Eigen::Index>(segments_.count()), shape_.width);
  for (std::size_t b = 0; b < segments_.count(); ++b)
    mean.row(static_cast<Eigen::Index>(b)) =
        saliency_.mass().segment(segments_.begin(b), segments_.length(b)).transpose() *
        saliency_.inputs().middleRows(segments_.begin(b), segments_.length(b));
  return mean;
}

template <class T>
T Classifier<T>::evidence_loss(std::span<const int> labels, const EvidenceLoss& evidence) {
  const T entropy = static_cast<T>(evidence.entropy * mean_entropy());
  if (evidence.guide == 0) return entropy;
  return entropy + static_cast<T>(evidence.guide) * cross_entropy<T>(guide_.forward(guide_mean()), labels).mean;
}

template <class T>
void Classifier<T>::backward(const Rows<T>& dlogits, std::span<const int> labels, const EvidenceLoss& evidence) {
  const Rows<T> dpooled = pooled_norm_.backward(head_.backward(dlogits));
  Eigen::Matrix<T, Eigen::Dynamic, 1> dmass = Eigen::Matrix<T, Eigen::Dynamic, 1>::Zero(segments_.rows());
  Rows<T> d(states_.rows(), shape_.width);
  for (std::size_t b = 0; b < segments_.count(); ++b)
    for (Eigen::Index j = kept_segments_.begin(b); j < kept_segments_.begin(b + 1); ++j) {
      const auto row = kept_[static_cast<std::size_t>(j)];
      const auto dp = dpooled.row(static_cast<Eigen::Index>(b));
      dmass[row] = dp.dot(states_.row(j));
      d.row(j) = saliency_.mass()[row] * dp;
    }
  d = last_norm_.backward(d);
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
    d += layer->feed_norm.backward(layer->feed.backward(d));
    d += layer->attention_norm.backward(layer->attention.backward(d));
  }

  Rows<T> dmean;  // [sequences, width]
  if (evidence.guide != 0) {
    const auto loss = cross_entropy<T>(guide_.forward(guide_mean()), labels);
    dmean = guide_.backward(static_cast<T>(evidence.guide) * loss.gradient);
    for (std::size_t b = 0; b < segments_.count(); ++b)
      dmass.segment(segments_.begin(b), segments_.length(b)) +=
          saliency_.inputs().middleRows(segments_.begin(b), segments_.length(b)) *
          dmean.row(static_cast<Eigen::Index>(b)).transpose();
  }
  const std::vector<T> dentropy(segments_.count(),
                                static_cast<T>(evidence.entropy / static_cast<double>(segments_.count())));
  Rows<T> dx = saliency_.backward(dmass, dentropy);  // [rows, width]
  if (evidence.guide != 0)
    for (std::size_t b = 0; b < segments_.count(); ++b)
      dx.middleRows(segments_.begin(b), segments_.length(b)) +=
          saliency_.mass().segment(segments_.begin(b), segments_.length(b)) *
          dmean.row(static_cast<Eigen::Index>(b));
  dx = saliency_norm_.backward(dx);
  for (std::size_t j = 0; j < kept_.size(); ++j) dx.row(kept_[j]) += d.row(static_cast<Eigen::Index>(j));
  positions_.backward(dx);
  if (words_)
    words_->backward(dx);
  else
    features_->backward_parameters(dx);
}

template class Classifier<float>;
template class Classifier<double>;

}  // namespace example
