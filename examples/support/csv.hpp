#pragma once
// Numbers from a CSV file as people really write them: cleaned, and with a report of what was cleaned.

#include <cstddef>
#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

#include "eigen.hpp"
#include "errors.hpp"

namespace example {

struct CsvTable {
  Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> values;  // [rows, columns], finite
  std::vector<std::string> columns;  // names from the header line; "column 1", ... without one

  // What was found, and what was done about it.
  char separator = ',';
  bool has_header = false, trailing_separators = false;
  std::size_t blank_lines = 0, comment_lines = 0, decimal_commas = 0;
  std::vector<std::size_t> missing;  // per column: values that were not there and became the mean of the column
};

/// Reads a table of numbers. The separator is a tab or ; if the first line has one, else a comma. Blank lines
/// and lines that start with # are skipped; so is a separator at the end of every line. A first line without any
/// number is the header. Missing is an empty field, "?",
/// "-", NA, N/A, NaN or null in any case. With ; or tab, a comma inside a number is a decimal comma.
/// Throws FileError that names file, line and column for anything else that is not a finite number, for rows of
/// different lengths, and for a column without any value. `name` stands in the messages.
CsvTable read_csv(std::istream& stream, const std::string& name);
CsvTable read_csv(const std::filesystem::path& file);

/// One line per kind of cleaning that was done.
std::string describe(const CsvTable& table);

/// Shifts and scales each column to mean 0 and standard deviation 1; a constant column becomes 0.
/// Returns the number of constant columns.
std::size_t standardize(CsvTable& table);

}  // namespace example
