// Policies borrow their numbers: a vector that dies at the end of the statement is refused.
// case 1: deleted
// case 2: deleted
// case 3: deleted
// case 4: deleted
// case 5: deleted
// case 6: deleted
// case 7: deleted
// case 8: deleted
// case 9: deleted
// case 10: deleted
#include <vector>

#include "attention_balancer/attention_balancer.hpp"

namespace ab = attention_balancer;

std::vector<float> numbers();
std::vector<ab::Index> lengths();

void f(const std::vector<float>& floats, const std::vector<double>& doubles, const std::vector<ab::Index>& counts) {
#if CASE == 0
  (void)ab::score::KeyBias(floats);
  (void)ab::score::KeyBias(doubles);
  (void)ab::score::Alibi(floats);
  (void)ab::normalize::Sink(floats);
  (void)ab::mask::KeyLengths(counts);
  (void)ab::QueryWeights::of(floats);
  (void)ab::QueryWeights::of(doubles);
  (void)ab::PackedSequences(counts, counts);
  (void)ab::PackedQueries(counts);
  (void)ab::PackedSequences({0, 4}, {0, 9});
  (void)ab::PackedQueries({0, 4});
#elif CASE == 1
  (void)ab::score::KeyBias<float>(numbers());
#elif CASE == 2
  (void)ab::score::Alibi<float>(numbers());
#elif CASE == 3
  (void)ab::normalize::Sink<float>(numbers());
#elif CASE == 4
  (void)ab::mask::KeyLengths(lengths());
#elif CASE == 5
  (void)ab::QueryWeights::of(numbers());
#elif CASE == 6
  (void)ab::QueryWeights::of(std::vector<double>{1, 2});
#elif CASE == 7
  (void)ab::PackedQueries(lengths());
#elif CASE == 8
  (void)ab::PackedSequences(counts, lengths());
#elif CASE == 9
  (void)ab::PackedSequences(counts, {0, 9});
#elif CASE == 10
  (void)ab::PackedSequences({0, 4}, counts);
#endif
  (void)floats, (void)doubles, (void)counts;
}
