#pragma once
// A table in which every pair of choices meets: what breaks a kernel is nearly always one choice or two together.

#include <utility>
#include <vector>

#include "support/random.hpp"

namespace support {

/// Rows of choices; factor f takes the values 0 ... levels[f] - 1. Greedy, the same on every machine.
inline std::vector<std::vector<Index>> pairwise(const std::vector<Index>& levels, std::uint64_t seed = 1) {
  const std::size_t factors = levels.size();
  // open[f][g][a * levels[g] + b]: the pair (a, b) of the factors f < g has not met yet
  std::vector<std::vector<std::vector<char>>> open(factors);
  Index left = 0;
  for (std::size_t f = 0; f < factors; ++f) {
    open[f].resize(factors);
    for (std::size_t g = f + 1; g < factors; ++g) {
      open[f][g].assign(static_cast<std::size_t>(levels[f] * levels[g]), 1);
      left += levels[f] * levels[g];
    }
  }
  auto pair = [&](std::size_t f, std::size_t g, const std::vector<Index>& row) -> char& {
    return open[f][g][static_cast<std::size_t>(row[f] * levels[g] + row[g])];
  };
  Random random(seed);
  std::vector<std::vector<Index>> rows;
  while (left > 0) {
    std::vector<Index> best;
    Index most = 0;
    for (int attempt = 0; attempt < 40; ++attempt) {
      std::vector<Index> row(factors);
      for (std::size_t f = 0; f < factors; ++f) row[f] = random.below(levels[f]);
      // One pass over the factors: each takes the value that closes most pairs with the others as they stand.
      for (std::size_t f = 0; f < factors; ++f) {
        Index chosen = row[f], closed = -1;
        for (Index step = 0; step < levels[f]; ++step) {
          std::vector<Index> changed = row;
          changed[f] = (row[f] + step) % levels[f];
          Index count = 0;
          for (std::size_t g = 0; g < factors; ++g)
            if (g != f) count += g < f ? pair(g, f, changed) : pair(f, g, changed);
          if (count > closed) closed = count, chosen = changed[f];
        }
        row[f] = chosen;
      }
      Index count = 0;
      for (std::size_t f = 0; f < factors; ++f)
        for (std::size_t g = f + 1; g < factors; ++g) count += pair(f, g, row);
      if (count > most || best.empty()) most = count, best = row;
    }
    for (std::size_t f = 0; f < factors; ++f)
      for (std::size_t g = f + 1; g < factors; ++g) {
        left -= pair(f, g, best);
        pair(f, g, best) = 0;
      }
    rows.push_back(std::move(best));
  }
  return rows;
}

}  // namespace support
