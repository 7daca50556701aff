#include "support/drift.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "files.hpp"
#include "support/catch.hpp"
#include "support/output.hpp"
#include "support/plot.hpp"
#include "support/statistics.hpp"

using Catch::Matchers::ContainsSubstring;

TEST_CASE("drift: the demands are calm, drift and jump") {
  const example::DriftOptions options{.inputs = 6, .cycles = 90};
  const example::DriftingDemand demand(options, 4), same(options, 4), other(options, 5);
  CHECK(demand.cycles() == 90);
  CHECK(demand.phase_begin(3) == 90);
  for (int t = 0; t < 90; ++t) {
    CHECK(std::accumulate(demand.truth(t).begin(), demand.truth(t).end(), 0.0) == Approx(1));
    for (const double w : demand.seen(t)) CHECK(w > 0);
  }
  CHECK(demand.truth(0) == demand.truth(29));
  CHECK(demand.truth(30) != demand.truth(45));
  CHECK(demand.truth(60) == demand.truth(89));
  CHECK(demand.truth(59) != demand.truth(60));
  CHECK(demand.seen(7) == same.seen(7));
  CHECK(demand.seen(7) != other.seen(7));
}

TEST_CASE("drift: what a run counts") {
  const example::DriftRun run{{0.4, 0.2, 0.3, 0.1}, {0, 0.2, 0, 0.2}};
  CHECK(run.mean_unserved(0, 4) == Approx(0.25));
  CHECK(run.mean_unserved(1, 3) == Approx(0.25));
  CHECK(run.mean_unserved(3, 4) == Approx(0.1));
  CHECK(run.mean_moved() == Approx(0.1));
}

TEST_CASE("drift: every rule follows, but for the two that do not") {
  const example::DriftOptions options{.inputs = 8, .cycles = 300, .units = 1000, .noise = 0.2};
  const example::DriftingDemand demand(options, 1);
  const auto rules = example::drift_rules();
  CHECK(rules[0].name == "Leaky");
  double uniform = 0, plain = 0;
  for (const auto& rule : rules) {
    const auto run = rule.run(demand, options, example::tuned(rule, options, {2, 3}));
    REQUIRE(run.unserved.size() == 300);
    for (const double u : run.unserved) CHECK((u >= -1e-9 && u <= 1));
    for (const double m : run.moved) CHECK((m >= 0 && m <= 1));
    const double last = run.mean_unserved(250, 300);
    if (rule.name == "uniform") {
      uniform = last;
      CHECK(run.mean_moved() == 0);
    }
    if (rule.name == "Plain") plain = last;
  }
  CHECK(plain > uniform);
  for (const auto& rule : rules)
    if (rule.name != "uniform" && rule.name != "Plain") {
      INFO(rule.name);
      CHECK(rule.run(demand, options, example::tuned(rule, options, {2, 3})).mean_unserved(250, 300) <
            0.75 * uniform);
    }
  // Held: at most 5 % of the units move at once.
  const auto held = std::find_if(rules.begin(), rules.end(), [](const auto& r) { return r.name == "Leaky, held"; });
  const auto run = held->run(demand, options, 0.4);
  CHECK(*std::max_element(run.moved.begin(), run.moved.end()) <= 0.05);
}

TEST_CASE("drift: the parameter is the best of its candidates") {
  const example::DriftOptions options{.inputs = 4, .cycles = 30};
  example::DriftRule rule{"r", "p", {3, 1, 2}, [](const auto&, const auto&, double p) {
                            return example::DriftRun{std::vector<double>(30, p), std::vector<double>(30, 0.0)};
                          }};
  CHECK(example::tuned(rule, options, {1}) == 1);
  rule.candidates = {7};
  CHECK(example::tuned(rule, options, {1}) == 7);
}

TEST_CASE("statistics: bootstrap intervals") {
  const std::vector<double> runs{1, 2, 3, 4, 5, 6, 7, 8};
  const auto e = example::bootstrap(runs);
  CHECK(e.mean == 4.5);
  // The standard error is 0.81: about twice that on either side.
  CHECK(e.low == Approx(4.5 - 1.6).margin(0.25));
  CHECK(e.high == Approx(4.5 + 1.6).margin(0.25));
  CHECK(example::bootstrap(runs).low == e.low);
  CHECK(example::bootstrap({3}).high == 3);
  CHECK_THROWS_AS(example::bootstrap({}), std::invalid_argument);
  const auto d = example::paired_difference({11, 22, 33}, {10, 21, 32});
  CHECK(d.mean == 1);
  CHECK(d.low == 1);
  CHECK(d.high == 1);
  CHECK_THROWS_AS(example::paired_difference({1, 2}, {1}), std::invalid_argument);
}

TEST_CASE("plot: curves, points and axes without a number that is none") {
  files::Folder folder;
  const auto path = folder.path() / "plot.svg";
  example::PlotPanel curves{
      "a < b",
      "cycle",
      "%",
      {{"one", {0, 1, 2}, {0.1, 0.5, 0.2}, {0, 0.4, 0.1}, {0.2, 0.6, 0.3}}, {"flat", {0, 2}, {0.3, 0.3}, {}, {}}}};
  curves.marks = {{1, "jump"}};
  example::PlotPanel points{"p", "x", "y", {{"one", {0.001, 10}, {5, 50}, {}, {}}, {"none", {0.0}, {1.0}, {}, {}}}};
  points.points = points.log_x = points.log_y = true;
  const example::PlotPanel empty{"nothing", "x", "y", {}},
      same{"one value", "x", "y", {{"c", {1, 1}, {2, 2}, {}, {}}}};
  example::write_plot(path, "title & more", "subtitle", {curves, points, empty, same});
  const auto svg = example::read_text(path);
  CHECK(svg.substr(0, 4) == "<svg");
  CHECK_THAT(svg,
             ContainsSubstring("a &lt; b") && ContainsSubstring("title &amp; more") && ContainsSubstring("jump"));
  CHECK(svg.find("nan") == svg.npos);
  CHECK(svg.find("inf") == svg.npos);
  CHECK_THROWS_WITH(example::write_plot(folder.path() / "no" / "plot.svg", "t", "s", {}),
                    ContainsSubstring("cannot be written"));
}
