// The reference refuses what the kernels refuse, and leaves evidence as it was.

#include "support/check.hpp"

TEST_CASE("the reference refuses what the kernels refuse", "[reference][bad input]") {
  std::vector<double> memory(100, 0.5);
  const auto q = ab::bhsd(memory.data(), 1, 2, 3, 4), k = ab::bhsd(memory.data() + 24, 1, 1, 5, 4),
             v = ab::bhsd(memory.data() + 44, 1, 1, 5, 2);
  auto out = ab::bhsd(memory.data() + 54, 1, 2, 3, 2);
  ab::Evidence<double> evidence;
  CHECK_NOTHROW(ab::reference::attention(q, k, v, out));
  const std::vector<double> three(3);
  CHECK_THROWS_AS(ab::reference::attention(q, k, v, q), ab::ShapeError);
  CHECK_THROWS_AS(ab::reference::attention(q, k, q, out), ab::ShapeError);
  CHECK_THROWS_AS(ab::reference::attention_evidence(q, v, ab::observe(evidence)), ab::ShapeError);
  CHECK_THROWS_AS(ab::reference::attention(q, k, v, out, ab::score::KeyBias(three), ab::observe(evidence)),
                  ab::ShapeError);
  CHECK(evidence.batch() == 0);
  CHECK_THROWS_AS(ab::reference::attention(q, k, v, out, ab::normalize::Sink(three)), ab::ShapeError);
  const std::vector<double> five(5);
  CHECK_THROWS_AS(ab::reference::attention(q, k, v, out, ab::observe(evidence, ab::QueryWeights::of(five))),
                  ab::ShapeError);
  CHECK(evidence.batch() == 0);
}
