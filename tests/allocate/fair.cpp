#include "attention_balancer/allocate/fair.hpp"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace ab = attention_balancer;
namespace allocate = ab::allocate;
using ab::Index;
using Catch::Matchers::ContainsSubstring;

TEMPLATE_TEST_CASE("dominant_resource: the example of its authors", "", SCALARS) {
  using V = std::vector<TestType>;
  const auto plan = allocate::dominant_resource(V{1, 4, 3, 1}, V{9, 18});
  CHECK(plan.tasks[0] == Approx(3));
  CHECK(plan.tasks[1] == Approx(2));
  CHECK(plan.share[0] == Approx(2.0 / 3));
  CHECK(plan.share[1] == Approx(2.0 / 3));
  CHECK(plan.used[0] == Approx(9));
  CHECK(plan.used[1] == Approx(14));
  CHECK(plan.held_by == std::vector<Index>{0, 0});
}

TEST_CASE("dominant_resource: weights, caps, and who goes on") {
  using V = std::vector<double>;
  // One resource: weighted max-min.
  CHECK(allocate::dominant_resource(V{1, 1, 1}, V{12}, V{1, 2, 3}).tasks == V{2, 4, 6});
  CHECK(allocate::dominant_resource(V{1, 1, 1}, V{12}, V{}, V{1, 100, 100}).tasks == V{1, 5.5, 5.5});
  CHECK(allocate::dominant_resource(V{1, 1, 1}, V{12}, V{}, V{1, 2, 3}).held_by == std::vector<Index>{-1, -1, -1});
  // User 0 is stopped by resource 0, user 1 goes on with resource 1.
  const auto plan = allocate::dominant_resource(V{1, 0, 0, 1, 1, 0}, V{10, 10});
  CHECK(plan.tasks == V{5, 10, 5});
  CHECK(plan.held_by == std::vector<Index>{0, 1, 0});
  CHECK(plan.used == V{10, 10});
  CHECK(allocate::dominant_resource(V{1, 1}, V{4}, V{0, 1}).tasks == V{0, 4});
  const auto starved = allocate::dominant_resource(V{1, 1, 1, 0}, V{4, 0});
  CHECK(starved.tasks == V{0, 4});
  CHECK(starved.held_by == std::vector<Index>{1, 0});
  CHECK(allocate::dominant_resource(V{}, V{4}).tasks.empty());
  const double inf = std::numeric_limits<double>::infinity();
  CHECK(allocate::dominant_resource(V{1, 1}, V{4}, V{}, V{inf, 1}).tasks == V{3, 1});
}

TEST_CASE("dominant_resource is what small steps give") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const auto users = std::uniform_int_distribution<std::size_t>(1, 6)(random);
    const auto resources = std::uniform_int_distribution<std::size_t>(1, 4)(random);
    std::vector<double> demands(users * resources), capacities(resources), weights(users), caps(users);
    for (double& d : demands) d = std::uniform_int_distribution<int>(0, 4)(random);
    for (std::size_t i = 0; i < users; ++i) demands[i * resources] += 1;
    for (double& c : capacities) c = std::uniform_int_distribution<int>(5, 30)(random);
    for (double& w : weights) w = std::uniform_int_distribution<int>(1, 3)(random);
    for (double& c : caps) c = std::uniform_int_distribution<int>(0, 6)(random);
    const auto plan = allocate::dominant_resource(demands, capacities, weights, caps);

    std::vector<double> left = capacities, tasks(users, 0.0);
    std::vector<bool> stopped(users, false);
    constexpr double step = 1e-4;
    for (int k = 0; k < 20000; ++k)
      for (std::size_t i = 0; i < users; ++i) {
        if (stopped[i]) continue;
        double dominant = 0;
        for (std::size_t r = 0; r < resources; ++r)
          dominant = std::max(dominant, demands[i * resources + r] / capacities[r]);
        const double more = step * weights[i] / dominant;
        stopped[i] = tasks[i] + more > caps[i];
        for (std::size_t r = 0; r < resources; ++r)
          stopped[i] = stopped[i] || demands[i * resources + r] * more > left[r];
        if (stopped[i]) continue;
        tasks[i] += more;
        for (std::size_t r = 0; r < resources; ++r) left[r] -= demands[i * resources + r] * more;
      }
    CAPTURE(demands, capacities, weights, caps, plan.tasks, tasks);
    for (std::size_t i = 0; i < users; ++i) CHECK(std::abs(plan.tasks[i] - tasks[i]) < 0.1);
    for (std::size_t r = 0; r < resources; ++r) CHECK(plan.used[r] <= capacities[r] * (1 + 1e-12));
    for (std::size_t i = 0; i < users; ++i) {
      CHECK(plan.tasks[i] <= caps[i]);
      // Nobody could have more without somebody of no larger dominant share having less.
      const Index by = plan.held_by[i];
      if (by < 0)
        CHECK(plan.tasks[i] == caps[i]);
      else
        CHECK(plan.used[std::size_t(by)] == Approx(capacities[std::size_t(by)]));
    }
  }
}

TEST_CASE("dominant_resource names what is wrong") {
  using V = std::vector<double>;
  CHECK_THROWS_WITH(allocate::dominant_resource(V{1, 1, 0, 0}, V{9, 18}),
                    "demand of user 1 is 0 for every resource, but must be above 0 for one");
  CHECK_THROWS_WITH(allocate::dominant_resource(V{1, -1}, V{9, 18}),
                    "demand of user 0 for resource 1 is -1, but must be finite and not negative");
  CHECK_THROWS_WITH(allocate::dominant_resource(V{1, 1}, V{9, -1}),
                    "capacity of resource 1 is -1, but must be finite and not negative");
  CHECK_THROWS_AS(allocate::dominant_resource(V{1, 1, 1}, V{9, 18}), ab::ShapeError);
  CHECK_THROWS_AS(allocate::dominant_resource(V{1, 1}, V{}), ab::ShapeError);
  CHECK_THROWS_AS(allocate::dominant_resource(V{1, 1}, V{9, 18}, V{1, 1}), ab::ShapeError);
  CHECK_THROWS_AS(allocate::dominant_resource(V{1, 1}, V{9, 18}, V{-1}), ab::InputError);
  CHECK_THROWS_WITH(allocate::dominant_resource(V{1, 1}, V{9, 18}, V{}, V{-1}),
                    ContainsSubstring("cap of user 0 is -1"));
}

TEST_CASE("dominant_resource: numbers as large and as small as they come") {
  using V = std::vector<double>;
  // Sums of demands, of weights and of tasks would overflow, or vanish; shares are the same as of ones.
  V weights(4, 1e308);  // not as a list: g++ 12 fills {x, x, x, 0} with x for AVX-512
  weights[3] = 0;
  for (const double scale : {1e-300, 1e-30, 1e30, 1e308}) {
    CAPTURE(scale);
    const auto plan = allocate::dominant_resource(V(4, scale), V{scale}, weights);
    for (int i = 0; i < 3; ++i) CHECK(plan.tasks[std::size_t(i)] == Approx(1.0 / 3));
    CHECK(plan.tasks[3] == 0.0);
    CHECK(plan.used[0] == Approx(scale));
  }
  const auto capped = allocate::dominant_resource(V{1, 1}, V{1}, V{1, 1e-300}, V{0.25, 1e308});
  CHECK(capped.tasks[0] == 0.25);
  CHECK(capped.tasks[1] == Approx(0.75));
  const auto nothing = allocate::dominant_resource(V{1e308, -0.0, 1, 1}, V{1e-300, 1}, V{0, 1});
  CHECK(nothing.share[0] == 0.0);
  CHECK(nothing.tasks[1] == Approx(1e-300));
  // What double cannot hold is an error, and no infinite tasks.
  CHECK_THROWS_WITH(allocate::dominant_resource(V{1e308, 1}, V{1e-308}), ContainsSubstring("weight of user 0"));
  CHECK_THROWS_AS(allocate::dominant_resource(V{1, 5e-324}, V{1e300}), ab::InputError);
  CHECK_THROWS_AS(allocate::dominant_resource(V{1, 1}, V{1}, V{1, 1e-310}), ab::InputError);
  CHECK_THROWS_AS(allocate::dominant_resource(V{std::nan("")}, V{1}), ab::InputError);
}
