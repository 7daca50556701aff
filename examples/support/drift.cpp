#include "drift.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "attention_balancer/balance.hpp"

namespace example {
namespace ab = attention_balancer;
namespace {

std::vector<double> softmax(std::vector<double> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& x : logits) sum += x = std::exp(x - largest);
  for (double& x : logits) x /= sum;
  return logits;
}

/// Runs a balancer over the demand. `signal(shares, seen)` is what its feedback takes.
template <class Feedback, class Signal>
DriftRun run_balancer(const DriftingDemand& demand, const DriftOptions& options, const Feedback& feedback,
                      const Signal& signal, const ab::apportion::Steady& how = {}) {
  ab::ResourceBalancer<double, ab::allocate::Proportional, Feedback> balancer(options.inputs, {}, feedback);
  DriftRun run;
  std::vector<ab::Index> before;
  for (int t = 0; t < demand.cycles(); ++t) {
    const auto units = balancer.units(options.units, how);
    double served = 0;
    for (std::size_t i = 0; i < units.size(); ++i)
      served += std::min(static_cast<double>(units[i]) / options.units, demand.truth(t)[i]);
    run.unserved.push_back(1 - served);
    run.moved.push_back(before.empty() ? 0
                                       : static_cast<double>(ab::apportion::moved(before, units)) / options.units);
    before = units;
    balancer.update(signal(balancer.shares(), demand.seen(t)));
  }
  return run;
}

std::vector<double> as_weights(std::span<const double>, const std::vector<double>& seen) { return seen; }

/// For Hedge: a loss that grows with the share and is the same for all where the shares are the weights. It is the
/// gradient of the convex cost sum r - w log(r + w), so that Hedge is mirror descent on that.
std::vector<double> as_losses(std::span<const double> shares, const std::vector<double>& seen) {
  const double sum = std::accumulate(seen.begin(), seen.end(), 0.0);
  std::vector<double> losses;
  for (std::size_t i = 0; i < seen.size(); ++i) losses.push_back(shares[i] / (shares[i] + seen[i] / sum));
  return losses;
}

/// For bias balancing: what an input has for each unit that it needs. Who has more than the mean is to get less.
std::vector<double> as_loads(std::span<const double> shares, const std::vector<double>& seen) {
  std::vector<double> loads;
  for (std::size_t i = 0; i < seen.size(); ++i) loads.push_back(shares[i] / seen[i]);
  return loads;
}

struct Unmoved {
  void operator()(std::span<double>, std::span<const double>) const {}
};

}  // namespace

DriftingDemand::DriftingDemand(const DriftOptions& options, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const auto n = static_cast<std::size_t>(options.inputs);
  std::vector<double> first(n), second(n), third(n), logits(n);
  for (auto* set : {&first, &second, &third})
    for (double& x : *set) x = options.contrast * normal(random);
  const double third_of = options.cycles / 3.0;
  for (int t = 0; t < options.cycles; ++t) {
    const int phase = t * phases / options.cycles;
    const double angle = std::clamp((t - third_of) / third_of, 0.0, 1.0) * 1.5707963267948966;
    for (std::size_t i = 0; i < n; ++i)
      logits[i] = phase == 2 ? third[i] : std::cos(angle) * first[i] + std::sin(angle) * second[i];
    truth_.push_back(softmax(logits));
    seen_.push_back(truth_.back());
    for (double& x : seen_.back()) x *= std::exp(options.noise * normal(random));
  }
}

const char* DriftingDemand::phase_name(int phase) {
  static constexpr const char* names[phases] = {"calm", "drift", "after the jump"};
  return names[phase];
}

double DriftRun::mean_unserved(int begin, int end) const {
  return std::accumulate(unserved.begin() + begin, unserved.begin() + end, 0.0) / std::max(1, end - begin);
}

double DriftRun::mean_moved() const {
  return std::accumulate(moved.begin(), moved.end(), 0.0) /
         static_cast<double>(std::max<std::size_t>(1, moved.size()));
}

std::vector<DriftRule> drift_rules() {
  using Demand = const DriftingDemand&;
  using Options = const DriftOptions&;
  namespace feedback = ab::feedback;
  const std::vector<double> rates{0.02, 0.05, 0.1, 0.2, 0.4};
  return {
      {"Leaky", "rate", rates,
       [](Demand d, Options o, double p) { return run_balancer(d, o, feedback::Leaky<double>{p}, as_weights); }},
      {"Leaky, held", "rate", rates,
       [](Demand d, Options o, double p) {
         return run_balancer(d, o, feedback::Leaky<double>{p}, as_weights,
                             {.hysteresis = 0.03, .churn = std::max(1, o.units / 20)});
       }},
      {"Ema", "rate", rates,
       [](Demand d, Options o, double p) { return run_balancer(d, o, feedback::Ema<double>{p}, as_weights); }},
      {"BiasBalancing",
       "step",
       {0.01, 0.02, 0.05, 0.1, 0.2},
       [](Demand d, Options o, double p) {
         return run_balancer(d, o, feedback::BiasBalancing<double>{p}, as_loads);
       }},
      {"Hedge",
       "horizon",
       {20, 60, 200, 600, 1500},
       [](Demand d, Options o, double p) {
         return run_balancer(d, o, feedback::Hedge<double>{static_cast<ab::Index>(p)}, as_losses);
       }},
      {"FixedShare",
       "alpha",
       {0.01, 0.05, 0.2, 0.5, 0.8},
       [](Demand d, Options o, double p) {
         return run_balancer(d, o, feedback::FixedShare{p, feedback::Plain<double>{}}, as_weights);
       }},
      {"uniform", "", {0}, [](Demand d, Options o, double) { return run_balancer(d, o, Unmoved{}, as_weights); }},
      {"Plain",
       "",
       {0},
       [](Demand d, Options o, double) { return run_balancer(d, o, feedback::Plain<double>{}, as_weights); }},
  };
}

double tuned(const DriftRule& rule, const DriftOptions& options, const std::vector<unsigned>& seeds) {
  double best = rule.candidates.at(0), least = std::numeric_limits<double>::infinity();
  if (rule.candidates.size() == 1) return best;
  for (const double candidate : rule.candidates) {
    double sum = 0;
    for (const unsigned seed : seeds) {
      const DriftingDemand demand(options, seed);
      sum += rule.run(demand, options, candidate).mean_unserved(0, demand.cycles());
    }
    if (sum < least) least = sum, best = candidate;
  }
  return best;
}

}  // namespace example
