#include "csv.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <fstream>
#include <istream>
#include <limits>
#include <string_view>

namespace example {
namespace {

constexpr double not_there = std::numeric_limits<double>::quiet_NaN();

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\r\v\f";
  const auto first = text.find_first_not_of(blanks);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

bool is_missing(std::string_view field) {
  std::string lower;
  for (const char c : field) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  constexpr std::array<std::string_view, 7> marks{"", "?", "-", "na", "n/a", "nan", "null"};
  return std::find(marks.begin(), marks.end(), lower) != marks.end();
}

bool parse_number(std::string_view field, double& value) {
  if (field.size() > 1 && field[0] == '+' && field[1] != '-') field.remove_prefix(1);
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  return error == std::errc{} && end == field.data() + field.size() && std::isfinite(value);
}

// Fields of one line; RFC 4180 quotes, except that a quoted field ends with its line.
std::vector<std::string> split(std::string_view line, char separator, const std::string& where) {
  std::vector<std::string> fields;
  std::string field;
  bool quoted = false, was_quoted = false;
  const auto finish = [&] {
    fields.emplace_back(was_quoted ? std::string_view(field) : trimmed(field));
    field.clear();
    was_quoted = false;
  };
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c != '"') {
        field += c;
      } else if (i + 1 < line.size() && line[i + 1] == '"') {
        field += c, ++i;
      } else {
        quoted = false;
      }
    } else if (c == separator) {
      finish();
    } else if (c == '"' && trimmed(field).empty()) {
      quoted = was_quoted = true;
      field.clear();
    } else if (!was_quoted || trimmed(std::string_view(&c, 1)).size() == 1) {
      field += c;
    }
  }
  if (quoted) throw FileError(where + ": a quote is opened and not closed");
  finish();
  return fields;
}

// A tab or a semicolon is never part of a number, a comma may be: "1,5;2,5".
char guess_separator(std::string_view line) {
  const auto outside_quotes = [&](char separator) {
    bool quoted = false;
    return std::any_of(line.begin(), line.end(), [&](char c) {
      if (c == '"') quoted = !quoted;
      return c == separator && !quoted;
    });
  };
  return outside_quotes('\t') ? '\t' : outside_quotes(';') ? ';' : ',';
}

}  // namespace

CsvTable read_csv(std::istream& stream, const std::string& name) {
  CsvTable table;
  std::vector<double> values;
  std::size_t width = 0, line_number = 0;
  bool first_content = true;
  std::vector<bool> named;  // columns that the header names

  for (std::string text; std::getline(stream, text);) {
    ++line_number;
    std::string_view line = text;
    if (line_number == 1 && line.substr(0, 3) == "\xEF\xBB\xBF") line.remove_prefix(3);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const auto content = trimmed(line);
    if (content.empty()) {
      ++table.blank_lines;
      continue;
    }
    if (content.front() == '#') {
      ++table.comment_lines;
      continue;
    }

    const std::string where = name + ": line " + std::to_string(line_number);
    if (first_content) table.separator = guess_separator(line);
    const auto fields = split(line, table.separator, where);
    if (first_content) {
      first_content = false;
      width = fields.size();
      table.missing.assign(width, 0);
      double ignored = 0;
      const bool some_number = std::any_of(fields.begin(), fields.end(),
                                           [&](const auto& field) { return parse_number(field, ignored); });
      const bool some_word = std::any_of(fields.begin(), fields.end(), [](const auto& field) {
        return std::any_of(field.begin(), field.end(),
                           [](char c) { return std::isalpha(static_cast<unsigned char>(c)); }) &&
               !is_missing(field);
      });
      for (std::size_t column = 0; column < width; ++column)
        table.columns.push_back("column " + std::to_string(column + 1));
      named.assign(width, false);
      table.has_header = some_word && !some_number;
      if (table.has_header) {
        for (std::size_t column = 0; column < width; ++column)
          if (!fields[column].empty()) table.columns[column] = fields[column], named[column] = true;
        continue;
      }
    }
    if (fields.size() != width)
      throw FileError(where + ": has " + std::to_string(fields.size()) + " fields, but the lines before it have " +
                      std::to_string(width));

    for (std::size_t column = 0; column < width; ++column) {
      std::string field(trimmed(fields[column]));
      double value = not_there;
      if (is_missing(field)) {
        ++table.missing[column];
      } else if (!parse_number(field, value)) {
        const auto comma = field.find(',');
        const bool decimal_comma = table.separator != ',' && comma != field.npos && field.find('.') == field.npos;
        if (decimal_comma) field[comma] = '.';
        if (!decimal_comma || !parse_number(field, value))
          throw FileError(where + ", column " + std::to_string(column + 1) +
                          (table.has_header ? " (" + table.columns[column] + ")" : "") + ": \"" + fields[column] +
                          "\" is not a finite number");
        ++table.decimal_commas;
      }
      values.push_back(value);
    }
  }
  if (stream.bad()) throw FileError(name + ": cannot be read");
  if (values.empty()) throw FileError(name + ": holds no line of numbers");

  const auto rows = static_cast<Eigen::Index>(values.size() / width);
  table.values = Eigen::Map<const decltype(table.values)>(values.data(), rows, static_cast<Eigen::Index>(width));
  // A separator at the end of every line makes one more column, of nothing.
  if (width > 1 && table.missing.back() == static_cast<std::size_t>(rows) && !named.back()) {
    --width;
    table.values.conservativeResize(Eigen::NoChange, static_cast<Eigen::Index>(width));
    table.columns.pop_back();
    table.missing.pop_back();
    table.trailing_separators = true;
  }
  for (std::size_t column = 0; column < width; ++column) {
    if (table.missing[column] == 0) continue;
    const auto present = static_cast<double>(static_cast<std::size_t>(rows) - table.missing[column]);
    if (present == 0)
      throw FileError(name + ": column " + std::to_string(column + 1) + " (" + table.columns[column] +
                      ") has no value in any line");
    auto cells = table.values.col(static_cast<Eigen::Index>(column));
    const double mean = cells.array().isNaN().select(0.0, cells.array()).sum() / present;
    cells = cells.array().isNaN().select(mean, cells.array());
  }
  return table;
}

CsvTable read_csv(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::error_code error;
  if (!stream || std::filesystem::is_directory(file, error)) throw FileError(file.string() + ": cannot be opened");
  return read_csv(stream, file.string());
}

std::string describe(const CsvTable& table) {
  const auto separator = table.separator == '\t' ? std::string("tab") : std::string{'"', table.separator, '"'};
  std::string text = std::to_string(table.values.rows()) + " rows of " + std::to_string(table.values.cols()) +
                     " numbers, separator " + separator +
                     (table.has_header ? ", with a header\n" : ", no header\n");
  if (table.blank_lines + table.comment_lines > 0)
    text += "skipped: " + std::to_string(table.blank_lines) + " blank and " + std::to_string(table.comment_lines) +
            " comment lines\n";
  if (table.trailing_separators) text += "dropped: the empty column after the last separator of each line\n";
  if (table.decimal_commas > 0)
    text += "numbers with a decimal comma: " + std::to_string(table.decimal_commas) + "\n";
  for (std::size_t column = 0; column < table.missing.size(); ++column)
    if (table.missing[column] > 0)
      text += std::to_string(table.missing[column]) + " missing in \"" + table.columns[column] +
              "\" became the mean of that column\n";
  return text;
}

std::size_t standardize(CsvTable& table) {
  std::size_t constant = 0;
  for (auto column : table.values.colwise()) {
    const double largest = column.cwiseAbs().maxCoeff();
    column.array() -= column.mean();
    const double deviation = std::sqrt(column.array().square().mean());
    // Rounding leaves a constant column a deviation of this order.
    if (deviation <= 1e-14 * largest || deviation == 0) {
      column.setZero();
      ++constant;
    } else {
      column /= deviation;
    }
  }
  return constant;
}

}  // namespace example
