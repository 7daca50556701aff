#pragma once
// The pairwise table of all policies on their way back, for one scalar per test file.

#include "support/backward.hpp"
#include "support/policy_table.hpp"

namespace support {

template <class T>
void check_backward_table() {
  const auto rows = pairwise(policy_choices());
  Table table;
  Random random(14);
  for (std::size_t r = 0; r < rows.size(); r += static_cast<std::size_t>(every(4))) {
    const auto& row = rows[r];
    PolicySet<T> set(policy_shape(row[11]));
    choose(set, random, row);
    Inputs<T> in(set.shape(), random, Family::uniform, 2);
    const bool evidence = row[12] % 2 == 0;
    Upstream<T> up(set.shape(), random, evidence);
    check_backward(table, set, in, up, evidence, static_cast<Layout>(row[13]));
    constexpr T most = std::numeric_limits<T>::infinity();
    const T poison[] = {std::numeric_limits<T>::quiet_NaN(), most, -most};
    check_blind_rows(table, set, in, up, evidence, poison[r % 3]);
  }
  for (std::size_t factor = 0; factor < 11; ++factor)
    for (Index choice = 1; choice < policy_choices()[factor]; ++choice)
      for (Index s = 0; s < 8; s += every(3)) {
        std::vector<Index> row(policy_choices().size(), 0);
        row[factor] = choice;
        PolicySet<T> set(policy_shape(s));
        choose(set, random, row);
        const Inputs<T> in(set.shape(), random, Family::uniform, 2);
        const Upstream<T> up(set.shape(), random, false);
        check_backward(table, set, in, up, false, Layout::bhsd);
        if constexpr (sizeof(T) == 8) check_direction(table, set, in, up, false, random);
      }
  table.report();
}

}  // namespace support
