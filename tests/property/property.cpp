#include "property/property.hpp"

#include <rapidcheck.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <sstream>

#include "support/options.hpp"

namespace property {

void holds(const std::string& what, const std::function<void()>& property, int cases) {
  auto parameters = rc::detail::configuration().testParams;
  if (!std::getenv("RC_PARAMS")) {
    parameters.seed = 20240229;
    parameters.maxSuccess = support::quick() ? (cases + 3) / 4 : cases;
  }
  rc::detail::TestMetadata metadata;
  metadata.id = metadata.description = what;
  const auto result = rc::detail::checkTestable(property, metadata, parameters);
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  INFO(what << ": " << text.str());
  CHECK(result.template is<rc::detail::SuccessResult>());
}

void broken(const char* condition, const char* file, int line) {
  std::ostringstream text;
  text << file << ':' << line << ": " << condition;
  throw rc::detail::CaseResult(rc::detail::CaseResult::Type::Failure, text.str());
}

std::int64_t integer(std::int64_t low, std::int64_t high) { return *rc::gen::inRange(low, high); }

std::size_t size(std::size_t most) {
  const auto limit = static_cast<std::int64_t>(most);
  // Cases begin small and grow; here each is as likely to be a large one.
  if (*rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, 24)) < 23)
    return static_cast<std::size_t>(integer(1, std::min<std::int64_t>(limit, 60) + 1));
  // By magnitude first, so that each is as frequent, and then by ones, so that the smallest size is found.
  const double magnitude = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, 1001)) / 1000.0;
  const auto high = static_cast<std::int64_t>(std::pow(static_cast<double>(most), magnitude));
  return static_cast<std::size_t>(integer(high / 2 + 1, std::max(high, high / 2 + 1) + 1));
}

namespace {

template <class T>
T power_of_ten(int mantissa, int exponent) {
  return static_cast<T>(mantissa * std::pow(10.0, exponent));
}

/// The distribution of weight(), without RapidCheck.
template <class T>
T seeded_weight(std::mt19937& random) {
  const auto draw = [&](unsigned high) { return static_cast<int>(random() % high); };
  const int kind = draw(10);
  if (kind < 2) return T(0);
  if (kind < 5) return static_cast<T>(1 + draw(5));
  return power_of_ten<T>(1 + draw(9), draw(60) - 30);
}

}  // namespace

template <class T>
T weight() {
  const auto kind = integer(0, 10);
  if (kind < 2) return T(0);
  if (kind < 5) return static_cast<T>(integer(1, 6));
  const auto mantissa = static_cast<int>(integer(1, 10));
  return power_of_ten<T>(mantissa, static_cast<int>(integer(-30, 30)));
}

template <class T>
std::vector<T> weights(std::size_t n) {
  if (n <= 100) {
    const auto one = rc::gen::weightedOneOf<T>(
        {{2, rc::gen::just(T(0))},
         {3, rc::gen::map(rc::gen::inRange(1, 6), [](int x) { return static_cast<T>(x); })},
         {5, rc::gen::apply(power_of_ten<T>, rc::gen::inRange(1, 10), rc::gen::inRange(-30, 30))}});
    return *rc::gen::container<std::vector<T>>(n, one);
  }
  std::mt19937 random(static_cast<unsigned>(integer(0, 1 << 30)));
  std::vector<T> result(n);
  // All kinds at once, or one magnitude only: a few large weights hide what goes wrong with the others.
  const bool wide = coin();
  for (T& w : result) w = wide ? seeded_weight<T>(random) : static_cast<T>(1 + random() % 1000);
  return result;
}

std::vector<int> as_many(std::size_t n, int low, int high) {
  if (n <= 100) return *rc::gen::container<std::vector<int>>(n, rc::gen::inRange(low, high));
  std::mt19937 random(static_cast<unsigned>(integer(0, 1 << 30)));
  std::vector<int> result(n);
  for (int& x : result) x = low + static_cast<int>(random() % static_cast<unsigned>(high - low));
  return result;
}

std::vector<Index> order(std::size_t n) {
  std::vector<Index> result(n);
  std::iota(result.begin(), result.end(), Index(0));
  std::shuffle(result.begin(), result.end(), std::mt19937(static_cast<unsigned>(integer(0, 1 << 30))));
  return result;
}

template <class T>
bool rises_with(const std::vector<T>& weights, const std::vector<T>& x, const std::vector<bool>& mask) {
  std::vector<std::size_t> by_weight;
  for (std::size_t i = 0; i < weights.size(); ++i)
    if (mask.empty() || mask[i]) by_weight.push_back(i);
  std::sort(by_weight.begin(), by_weight.end(),
            [&](std::size_t a, std::size_t b) { return weights[a] < weights[b]; });
  for (std::size_t k = 1; k < by_weight.size(); ++k) {
    const std::size_t a = by_weight[k - 1], b = by_weight[k];
    if (weights[a] == weights[b] ? x[a] != x[b] : !(x[a] <= x[b])) return false;
  }
  return true;
}

template <class T>
std::size_t Problem<T>::eligible() const {
  return static_cast<std::size_t>(std::count(mask.begin(), mask.end(), true));
}

template <class T>
Problem<T> problem(std::size_t most) {
  Problem<T> p;
  p.common = coin();
  p.weights = property::weights<T>(size(most));
  const std::size_t n = p.weights.size();
  if (p.common && coin())
    p.mask.assign(n, true);
  else
    for (const int x : as_many(n, 0, 4)) p.mask.push_back(x > 0);
  p.mask[static_cast<std::size_t>(integer(0, static_cast<std::int64_t>(n)))] = true;
  const double m = static_cast<double>(p.eligible());
  auto low = as_many(n, 0, 11), high = as_many(n, 0, 11);
  if (p.common) {
    std::fill(low.begin(), low.end(), low[0]);
    std::fill(high.begin(), high.end(), high[0]);
  }
  for (std::size_t i = 0; i < n; ++i) {
    p.floors.push_back(static_cast<T>(low[i] / 10.0 / m));
    p.caps.push_back(static_cast<T>((1.0 + high[i] * high[i] / 20.0) / m));
  }
  return p;
}

template <class T>
void check_shares(const Problem<T>& p, const std::vector<T>& x) {
  PROPERTY(std::abs(static_cast<double>(sum(x) - 1)) <= static_cast<double>(p.eligible()) * epsilon<T>());
  for (std::size_t i = 0; i < x.size(); ++i)
    PROPERTY(p.mask[i] ? x[i] >= p.floors[i] && x[i] <= p.caps[i] : x[i] == T(0));
}

template float weight<float>();
template double weight<double>();
template std::vector<float> weights<float>(std::size_t);
template std::vector<double> weights<double>(std::size_t);
template bool rises_with<float>(const std::vector<float>&, const std::vector<float>&, const std::vector<bool>&);
template bool rises_with<double>(const std::vector<double>&, const std::vector<double>&, const std::vector<bool>&);
template struct Problem<float>;
template struct Problem<double>;
template Problem<float> problem<float>(std::size_t);
template Problem<double> problem<double>(std::size_t);
template void check_shares<float>(const Problem<float>&, const std::vector<float>&);
template void check_shares<double>(const Problem<double>&, const std::vector<double>&);

}  // namespace property
