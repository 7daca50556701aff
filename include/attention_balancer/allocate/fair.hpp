#pragma once
// Several resources at once: dominant-resource fairness by progressive filling.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/detail/water_filling.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace allocate {

/// What dominant_resource gives.
struct FairTasks {
  std::vector<double> tasks;   ///< [users] multiples of the demand that each user gets
  std::vector<double> share;   ///< [users] of the resource that the user needs most, in parts of its capacity
  std::vector<double> used;    ///< [resources] at most the capacity, to n * epsilon
  std::vector<Index> held_by;  ///< [users] the resource that ran out and stopped the user; -1 its own cap
};

}  // namespace allocate

namespace detail {

template <Scalar T>
allocate::FairTasks dominant_resource(std::span<const T> demands, std::span<const T> capacities,
                                      std::span<const T> weights, std::span<const T> caps) {
  const std::size_t resources = capacities.size();
  if (resources == 0) fail<ShapeError>("number of resources", Index(0), "be at least 1");
  if (demands.size() % resources != 0)
    fail<ShapeError>("size of the demands", demands.size(),
                     "be a multiple of the resources, " + std::to_string(resources));
  const std::size_t users = demands.size() / resources;
  if (!weights.empty()) check_size("weights", weights.size(), "users", users);
  if (!caps.empty()) check_size("caps", caps.size(), "users", users);
  // Weights, and demands with their capacity, are brought to about 1 by powers of two, so that no sum overflows.
  int of_weights = 0;
  static_cast<void>(std::frexp(weights.empty() ? 1.0 : largest_weight(weights), &of_weights));
  for (std::size_t r = 0; r < resources; ++r)
    if (!(capacities[r] >= T(0)) || !std::isfinite(capacities[r]))
      fail<InputError>("capacity of resource " + std::to_string(r), number(capacities[r]),
                       "be finite and not negative");
  const auto demand = [&](std::size_t i, std::size_t r) { return static_cast<double>(demands[i * resources + r]); };

  std::vector<int> of_capacity(resources, 0);
  std::vector<double> room(resources);
  for (std::size_t r = 0; r < resources; ++r)
    room[r] = std::frexp(static_cast<double>(capacities[r]), &of_capacity[r]);
  const auto part = [&](std::size_t i, std::size_t r) { return std::ldexp(demand(i, r), -of_capacity[r]); };

  // Per unit of the common level a user gets rate tasks: its weight over its dominant share per task.
  allocate::FairTasks result;
  result.tasks.assign(users, 0), result.share.assign(users, 0), result.held_by.assign(users, -1);
  result.used.assign(resources, 0);
  std::vector<double> rate(users, 0), dominant(users, 0), cap(users, std::numeric_limits<double>::infinity());
  std::vector<std::size_t> active;  // by the level at which they meet their caps
  for (std::size_t i = 0; i < users; ++i) {
    bool starved = false;
    for (std::size_t r = 0; r < resources; ++r) {
      const double d = demand(i, r), capacity = static_cast<double>(capacities[r]);
      if (!(d >= 0) || !std::isfinite(d))
        fail<InputError>("demand of user " + std::to_string(i) + " for resource " + std::to_string(r), number(d),
                         "be finite and not negative");
      if (d > 0 && !(capacity > 0) && !starved) starved = true, result.held_by[i] = static_cast<Index>(r);
      if (d > 0 && capacity > 0) dominant[i] = std::max(dominant[i], part(i, r) / room[r]);
    }
    if (!starved &&
        std::all_of(&demands[i * resources], &demands[i * resources] + resources, [](T d) { return d == T(0); }))
      fail<InputError>("demand of user " + std::to_string(i), "0 for every resource", "be above 0 for one");
    if (!caps.empty()) {
      cap[i] = static_cast<double>(caps[i]);
      if (!(cap[i] >= 0)) fail<InputError>("cap of user " + std::to_string(i), number(cap[i]), "not be negative");
    }
    const double weight = std::ldexp(weights.empty() ? 1.0 : static_cast<double>(weights[i]), -of_weights);
    if (starved || (!weights.empty() && weights[i] == T(0))) continue;
    rate[i] = weight / dominant[i];
    if (!std::isnormal(weight) || !std::isnormal(dominant[i]) || !std::isnormal(rate[i]))
      fail<InputError>("weight of user " + std::to_string(i) + " over its largest demand, relative to the capacity",
                       number(rate[i]), "be neither that small nor that large a number");
    active.push_back(i);
  }
  const auto meets_cap = [&](std::size_t i) { return cap[i] / rate[i]; };
  std::sort(active.begin(), active.end(), [&](std::size_t a, std::size_t b) {
    const double x = meets_cap(a), y = meets_cap(b);
    return x != y ? x < y : a < b;
  });

  // Each round finds the level at which the next resource runs out; whoever needs it stops there.
  std::vector<bool> gone(resources, false);
  double reached = 0;
  while (!active.empty()) {
    double level = std::numeric_limits<double>::infinity();
    std::vector<double> full_at(resources, level);
    for (std::size_t r = 0; r < resources; ++r) {
      if (gone[r]) continue;
      // In order of their caps users turn from growing to constant: the use is piecewise linear in the level.
      Sum constant;
      for (std::size_t i = 0; i < users; ++i)
        if (result.tasks[i] > 0) constant.add(part(i, r) * result.tasks[i]);
      std::vector<double> growing(active.size() + 1, 0);  // suffix sums, so that nothing is taken away
      for (std::size_t k = active.size(); k-- > 0;)
        growing[k] = growing[k + 1] + part(active[k], r) * rate[active[k]];
      for (std::size_t k = 0; k < active.size(); ++k) {
        if (!(growing[k] > 0)) break;  // nobody left who needs it
        const double at = (room[r] - constant.value()) / growing[k];
        if (at <= meets_cap(active[k])) {
          // Where another resource ran out at the same level, up to rounding, next to nothing is left of this one, or
          // less: nobody loses again what everybody has.
          full_at[r] = std::max(at, reached);
          break;
        }
        constant.add(part(active[k], r) * cap[active[k]]);
      }
      level = std::min(level, full_at[r]);
    }
    std::vector<std::size_t> still;
    for (const std::size_t i : active) {
      if (meets_cap(i) <= level) {
        result.tasks[i] = cap[i];
        continue;
      }
      Index holds = -1;
      for (std::size_t r = 0; r < resources && holds < 0; ++r)
        if (full_at[r] == level && demand(i, r) > 0) holds = static_cast<Index>(r);
      if (holds < 0) {
        still.push_back(i);
        continue;
      }
      result.tasks[i] = level * rate[i];
      result.held_by[i] = holds;
    }
    for (std::size_t r = 0; r < resources; ++r) gone[r] = gone[r] || full_at[r] == level;
    active.swap(still);
    reached = level;
  }
  for (std::size_t i = 0; i < users; ++i)
    if (result.tasks[i] > 0) result.share[i] = result.tasks[i] * dominant[i];
  for (std::size_t r = 0; r < resources; ++r) {
    Sum sum;
    for (std::size_t i = 0; i < users; ++i) sum.add(demand(i, r) * result.tasks[i]);
    result.used[r] = sum.value();
  }
  return result;
}

}  // namespace detail

namespace allocate {

/// Dominant-resource fairness (Ghodsi et al. 2011) by exact progressive filling. `demands` is [users, resources],
/// what one task of each user needs; `capacities` is [resources]. All dominant shares, the part that a user gets of
/// the resource of which it needs most, grow together, in proportion to `weights` if given, until a resource runs
/// out; who needs it stops, and the others go on. `caps`, if given, is the most tasks of each user. Nothing is
/// divided into whole tasks.
///
///     const std::vector<double> demands{1, 4,    // user 0: 1 CPU, 4 GB a task
///                                       3, 1};   // user 1
///     allocate::dominant_resource(demands, std::vector<double>{9, 18}).tasks;   // 3, 2
///
/// Weight zero gets nothing, as does who needs a resource of capacity zero. O(resources^2 users + users log users).
///
/// Throws ShapeError if sizes do not match; InputError, naming user and resource, if a number is NaN, infinite
/// (save a cap) or negative, if a user needs nothing at all, or if its weight over that need is beyond the
/// range of double.
template <class = void>
FairTasks dominant_resource(std::span<const float> demands, std::span<const float> capacities,
                            std::span<const float> weights = {}, std::span<const float> caps = {}) {
  return detail::dominant_resource(demands, capacities, weights, caps);
}
template <class = void>
FairTasks dominant_resource(std::span<const double> demands, std::span<const double> capacities,
                            std::span<const double> weights = {}, std::span<const double> caps = {}) {
  return detail::dominant_resource(demands, capacities, weights, caps);
}

}  // namespace allocate
}  // namespace attention_balancer
