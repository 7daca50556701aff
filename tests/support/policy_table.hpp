#pragma once
// The pairwise table of all policies, for one scalar per test file so that both compile side by side.

#include "support/options.hpp"
#include "support/pairwise.hpp"
#include "support/policies.hpp"

namespace support {


/// Chooses what row `row` of the table says; see choices().
inline std::vector<Index> policy_choices() {
  // causal, window, lengths, boolean, blocks, softcap, alibi, bias, key bias, sinks, scale, shape, query weights, out
  return {3, 6, 3, 7, 4, 2, 2, 6, 4, 3, 3, 8, 4, output_layouts};
}

template <class T>
void choose(PolicySet<T>& set, Random& random, const std::vector<Index>& row) {
  using ab::mask::Align;
  if (row[0] > 0) set.causal(row[0] == 1 ? Align::bottom_right : Align::top_left);
  switch (row[1]) {
    case 1: set.window(3, 0); break;
    case 2: set.window(0, 20); break;
    case 3: set.window(16, -1); break;
    case 4: set.window(-1, 2); break;
    case 5: set.window(40, 40); break;
    default: break;
  }
  if (row[2] > 0) set.lengths(random, row[2] == 2);
  switch (row[3]) {
    case 1: set.boolean(random, Layout::bhsd, true, true, true, true, 0.8); break;
    case 2: set.boolean(random, Layout::columns, true, false, true, true, 0.5); break;
    case 3: set.boolean(random, Layout::bhsd, true, false, false, true, 0.7); break;
    case 4: set.boolean(random, Layout::unaligned, false, true, true, false, 0.7); break;
    case 5: set.boolean(random, Layout::reversed_dims, false, false, true, true, 0.6); break;
    case 6: set.boolean(random, Layout::bhsd, false, false, false, false, 1); break;
    default: break;
  }
  switch (row[4]) {
    case 1: set.blocks(random, 7, 5, false); break;
    case 2: set.blocks(random, 16, 32, true); break;
    case 3: set.blocks(random, 1, 64, false); break;
    default: break;
  }
  if (row[5] > 0) set.softcap(1.5);
  if (row[6] > 0) set.alibi();
  switch (row[7]) {
    case 1: set.bias(random, Layout::bhsd, true, true, true, true, 0); break;
    case 2: set.bias(random, Layout::columns, true, false, true, true, 0.3); break;
    case 3: set.bias(random, Layout::bhsd, false, true, false, true, 0.2); break;
    case 4: set.bias(random, Layout::reversed, false, false, true, false, 0); break;
    case 5: set.bias(random, Layout::reversed_dims, true, false, true, true, 0); break;
    default: break;
  }
  if (row[8] > 0) set.key_bias(random, row[8] == 2, row[8] == 3 ? 0.4 : 0);
  if (row[9] > 0) set.sinks(random, row[9] == 2);
  if (row[10] > 0) set.scale(row[10] == 1 ? 0.7 : -1.25);
}

inline Shape policy_shape(Index choice) {
  static constexpr Shape shapes[] = {{1, 1, 1, 1, 33, 4, 3},   {2, 2, 1, 17, 17, 8, 8},   {1, 4, 2, 49, 100, 3, 5},
                                     {2, 2, 2, 100, 49, 5, 7}, {1, 2, 2, 130, 300, 4, 4}, {3, 1, 1, 7, 257, 2, 1},
                                     {1, 2, 1, 257, 130, 6, 9}, {2, 1, 1, 300, 300, 3, 2}};
  return shapes[choice];
}

/// Runs the table; the rows are enough for each choice of one policy to meet each choice of every other.
template <class T>
void check_policy_table() {
  const auto rows = pairwise(policy_choices());
  Table table;
  Random random(4);
  for (std::size_t r = 0; r < rows.size(); r += static_cast<std::size_t>(every(4))) {
    const auto& row = rows[r];
    const Shape shape = policy_shape(row[11]);
    PolicySet<T> set(shape);
    choose(set, random, row);
    const Inputs<T> in(shape, random, Family::uniform, 2);
    std::vector<T> u;
    for (Index i = 0; i < shape.queries; ++i) u.push_back(static_cast<T>(i % 4 == 0 ? 0 : random.unit()));
    const ab::QueryWeights weights[] = {ab::QueryWeights::all(), ab::QueryWeights::last(20), ab::QueryWeights::of(u),
                                        ab::QueryWeights::none()};
    set.check(table, in, static_cast<Layout>(row[13]), weights[row[12]]);
  }
  // One policy at a time, whole: what a pair hides, as all that a window leaves, shows here.
  for (std::size_t factor = 0; factor < 11; ++factor)
    for (Index choice = 1; choice < policy_choices()[factor]; ++choice)
      for (Index s = 0; s < 8; s += every(3)) {
        std::vector<Index> row(policy_choices().size(), 0);
        row[factor] = choice;
        PolicySet<T> set(policy_shape(s));
        choose(set, random, row);
        const Inputs<T> in(set.shape(), random, Family::uniform, 2);
        set.check(table, in, Layout::bhsd, ab::QueryWeights::all());
      }
  table.report();
}

}  // namespace support
