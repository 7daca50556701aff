#include "text_budget.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "progress.hpp"

namespace example {
namespace ab = attention_balancer;
namespace {

constexpr std::size_t special_tokens = 2;  // [CLS] before and [SEP] after each window

// Entropy of the attention in nats, over all heads and queries.
double mean_entropy(const ab::Evidence<float>& evidence) {
  double sum = 0;
  for (ab::Index h = 0; h < evidence.heads(); ++h)
    for (const float entropy : evidence.entropy(0, h)) sum += static_cast<double>(entropy);
  return sum / static_cast<double>(evidence.heads() * evidence.queries());
}

}  // namespace

std::vector<Window> windows_of(std::size_t tokens, std::size_t longest) {
  std::vector<Window> windows;
  for (std::size_t first = 0;; first += longest / 2) {
    windows.push_back({first, std::min(longest, tokens - first)});
    if (first + longest >= tokens) return windows;
  }
}

Budget Budget::parse(const std::string& text) {
  Budget budget;
  const bool percent = !text.empty() && text.back() == '%';
  const char* const last = text.data() + text.size() - (percent ? 1 : 0);
  const auto [end, error] = std::from_chars(text.data(), last, budget.value);
  budget.is_count = !percent && text.find_first_not_of("0123456789") == text.npos;
  if (percent) budget.value /= 100;
  const double most = budget.is_count ? 1e9 : 1;
  if (text.empty() || error != std::errc{} || end != last || !(budget.value > 0) || budget.value > most)
    throw ab::InputError(
        "budget is \"" + text +
        "\", but must be a part in (0, 1] written with a point, a percentage, or a number of tokens");
  return budget;
}

ab_index Budget::of(ab_index tokens) const noexcept {
  const double all = static_cast<double>(tokens);
  if (is_count) return static_cast<ab_index>(std::min(value, all));
  // A part of a very short text would round to the special tokens alone.
  const auto least = std::min(tokens, static_cast<ab_index>(special_tokens) + 1);
  return std::max(least, static_cast<ab_index>(std::lround(value * all)));
}

double cosine(const Run& a, const Run& b) { return static_cast<double>(a.embedding.dot(b.embedding)); }

double window_cosine(const Run& a, const Run& b) {
  double sum = 0;
  for (std::size_t w = 0; w < a.windows.size(); ++w) sum += static_cast<double>(a.windows[w].dot(b.windows[w]));
  return sum / static_cast<double>(a.windows.size());
}

TextBudget::TextBudget(MiniLm& model, const WordPiece& pieces, const std::vector<Token>& tokens,
                       BudgetOptions options)
    : model_(model), pieces_(pieces), tokens_(tokens), options_(options) {
  const auto check = [](const char* what, ab_index value, ab_index least, ab_index most) {
    if (value < least || value > most)
      throw ab::InputError(std::string(what) + " is " + std::to_string(value) + ", but must be in [" +
                           std::to_string(least) + ", " + std::to_string(most) + "]");
  };
  check("first layer under the budget", options_.from_layer, 1, MiniLm::layers - 1);
  if (options_.saliency_layer < 0) options_.saliency_layer = options_.from_layer - 1;
  check("layer whose attention decides", options_.saliency_layer, 0, options_.from_layer - 1);
  check("window", options_.window, special_tokens + 2, MiniLm::longest);
  if (tokens_.empty()) throw ab::InputError("the text has no tokens, but must have at least one");
  windows_ = windows_of(tokens_.size(), static_cast<std::size_t>(options_.window) - special_tokens);
}

std::vector<int> TextBudget::ids_of(const Window& window) const {
  std::vector<int> ids{pieces_.cls()};
  for (std::size_t i = 0; i < window.count; ++i) ids.push_back(tokens_[window.first + i].id);
  ids.push_back(pieces_.sep());
  return ids;
}

Run TextBudget::over_windows(const Step& step, const std::function<MiniLm::Encoding(const Window&, Run&)>& encode) {
  Run run;
  run.embedding = Eigen::VectorXf::Zero(MiniLm::width);
  for (const auto& window : windows_) {
    const Stopwatch watch;
    const auto encoding = encode(window, run);
    run.seconds += watch.seconds();
    run.work += encoding.work;
    run.embedding += static_cast<float>(window.count) * encoding.embedding;
    run.windows.push_back(encoding.embedding);
    if (step) step();
  }
  run.embedding.normalize();
  for (auto& layer : run.layers)
    if (layer.attended > 0) layer.attended = std::exp(layer.attended / static_cast<double>(windows_.size()));
  return run;
}

Run TextBudget::full(const Step& step) {
  return over_windows(step, [&](const Window& window, Run& run) {
    const auto ids = ids_of(window);
    for (auto& layer : run.layers) {
      layer.tokens += static_cast<ab_index>(ids.size());
      layer.work += MiniLm::layer_work(static_cast<ab_index>(ids.size()));
    }
    return model_.encode(ids, {}, {}, options_.threads);
  });
}

Run TextBudget::budgeted(Allocation& allocation, const Step& step) {
  constexpr float unknown = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> log_shares(tokens_.size(), unknown);
  allocation.shares.assign(tokens_.size(), 0.f);
  allocation.kept.assign(tokens_.size(), 0);

  const auto run = over_windows(step, [&](const Window& window, Run& use) {
    const auto ids = ids_of(window);
    const std::size_t n = ids.size();

    // The special tokens take no part in the division: they stay anyway.
    std::vector<char> eligible(n, 1);
    eligible.front() = eligible.back() = 0;
    ab::ResourceBalancer balancer(static_cast<ab::Index>(n), ab::allocate::Bounded<float>{.eligible = eligible},
                                  ab::feedback::Leaky<float>{});

    // Tokens of the last window keep their log-share, new ones start at the mean of these.
    double known_sum = 0, known = 0;
    for (std::size_t i = 0; i < window.count; ++i)
      if (const float value = log_shares[window.first + i]; std::isfinite(value))
        known_sum += static_cast<double>(value), ++known;
    if (known > 0) {
      std::vector<float> state(n, static_cast<float>(known_sum / known));
      for (std::size_t i = 0; i < window.count; ++i)
        if (const float value = log_shares[window.first + i]; std::isfinite(value)) state[i + 1] = value;
      balancer.restore(state);
    }

    std::vector<float> queries(n, options_.from_all_queries ? 1.f : 0.f);
    queries.front() = 1.f;
    const auto after_layer = [&](int index, const ab::Evidence<float>& evidence, MiniLm::Tokens& tokens) {
      auto& layer = use.layers[static_cast<std::size_t>(index)];
      layer.tokens += evidence.keys();
      layer.work += MiniLm::layer_work(evidence.keys());
      layer.attended += mean_entropy(evidence);

      if (index == options_.saliency_layer) balancer.update(ab::saliency::mass(evidence, options_.heads));
      if (index == options_.from_layer - 1) {
        const auto plan = ab::execute::token_budget(
            balancer.shares(), options_.budget.of(static_cast<ab::Index>(n)), {0, static_cast<ab::Index>(n) - 1});
        plan.compact(tokens.states, tokens.positions);
      }
      if (index == MiniLm::layers - 1) {
        const auto kept_before = allocation.kept.begin() + static_cast<std::ptrdiff_t>(window.first);
        std::fill(kept_before, kept_before + static_cast<std::ptrdiff_t>(window.count), char(0));
        for (const ab::Index position : tokens.positions)
          if (eligible[static_cast<std::size_t>(position)]) kept_before[position - 1] = 1;
      }
    };
    auto encoding = model_.encode(ids, after_layer, queries, options_.threads);

    // The shares of a window add up to its part of the text.
    const float part = static_cast<float>(window.count) / static_cast<float>(tokens_.size());
    for (std::size_t i = 0; i < window.count; ++i) {
      log_shares[window.first + i] = balancer.log_shares()[i + 1];
      allocation.shares[window.first + i] = part * balancer.shares()[i + 1];
    }
    return encoding;
  });

  const double sum = std::accumulate(allocation.shares.begin(), allocation.shares.end(), 0.0);
  for (float& share : allocation.shares) share = static_cast<float>(static_cast<double>(share) / sum);
  return run;
}

Run TextBudget::keep_highest(const Scores& scores, const Step& step) {
  return over_windows(step, [&](const Window& window, Run& use) {
    const auto ids = ids_of(window);
    const auto n = static_cast<ab::Index>(ids.size());
    auto chosen = scores(window);
    chosen.insert(chosen.begin(), 0.f);
    chosen.push_back(0.f);
    return model_.encode(
        ids,
        [&](int index, const ab::Evidence<float>& evidence, MiniLm::Tokens& tokens) {
          auto& layer = use.layers[static_cast<std::size_t>(index)];
          layer.tokens += evidence.keys();
          layer.work += MiniLm::layer_work(evidence.keys());
          if (index == options_.from_layer - 1)
            ab::execute::token_budget(chosen, options_.budget.of(n), {0, n - 1})
                .compact(tokens.states, tokens.positions);
        },
        {}, options_.threads);
  });
}

Run TextBudget::first(const Step& step) {
  return keep_highest(
      [](const Window& window) {
        std::vector<float> scores(window.count);
        for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = -static_cast<float>(i);
        return scores;
      },
      step);
}

Run TextBudget::random(unsigned seed, const Step& step) {
  std::mt19937 generator(seed);
  return keep_highest(
      [&](const Window& window) {
        std::vector<float> scores(window.count);
        std::iota(scores.begin(), scores.end(), 0.f);
        std::shuffle(scores.begin(), scores.end(), generator);
        return scores;
      },
      step);
}

}  // namespace example
