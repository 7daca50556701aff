#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "text_budget.hpp"

namespace example {

/// All there is to tell about one text under a budget.
struct Comparison {
  std::string name;  // of the text
  std::string_view text;
  const std::vector<Token>* tokens;
  const WordPiece* pieces;
  std::size_t windows;
  BudgetOptions options;
  Allocation allocation;
  Run full, budgeted, first;
  std::vector<Run> random;

  std::size_t kept() const;
  double mean_of_random(double (*measure)(const Run& full, const Run& other)) const;
};

/// Indices of the tokens with the largest shares, the largest first.
std::vector<std::size_t> largest_shares(const Allocation& allocation, std::size_t count);

/// The kept tokens as text; a mark stands where others were dropped.
std::string kept_text(const Comparison& comparison);

/// One self-contained HTML page: the text as a heat map of its shares, the budget per layer, the comparison.
std::string allocation_page(const Comparison& comparison);

/// The same as JSON, for other programs.
std::string allocation_json(const Comparison& comparison);

}  // namespace example
