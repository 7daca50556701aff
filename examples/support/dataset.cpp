#include "dataset.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csv.hpp"
#include "output.hpp"

namespace example {
namespace {

[[noreturn]] void fail(const std::filesystem::path& file, std::size_t line, const std::string& what) {
  throw FileError(file.string() + ": line " + std::to_string(line) + ": " + what);
}

}  // namespace

Texts read_tab(const std::filesystem::path& file) {
  const std::string all = read_text(file);
  Texts result;
  std::size_t number = 0;
  for (std::size_t at = 0; at < all.size();) {
    const auto end = std::min(all.find('\n', at), all.size());
    std::string line = all.substr(at, end - at);
    at = end + 1;
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (number == 1 && line != "Category\tText") fail(file, 1, "is no header \"Category<tab>Text\"");
    if (number <= 3 || line.empty()) continue;
    const auto tab = line.find('\t');
    if (tab == line.npos || line.find('\t', tab + 1) != line.npos)
      fail(file, number, "must be a category and a text with a tab between");
    if (tab == 0) fail(file, number, "has no category");
    auto text = line.substr(tab + 1);
    if (text.find_first_not_of(" \"") == text.npos) fail(file, number, "has no text");
    result.labels.push_back(line.substr(0, tab));
    result.texts.push_back(std::move(text));
  }
  if (result.texts.empty()) fail(file, number, "ends, and there was no text");
  return result;
}

Texts read_text_csv(const std::filesystem::path& file, const std::string& text_column,
                    const std::string& label_column) {
  const std::string all = read_text(file);
  Texts result;
  std::vector<std::string> fields(1), header;
  std::size_t line = 1, row_line = 1, text_at = 0, label_at = 0;
  const auto finish_row = [&] {
    if (header.empty()) {
      header = fields;
      const auto find = [&](const std::string& name) {
        const auto found = std::find(header.begin(), header.end(), name);
        if (found == header.end()) fail(file, 1, "there is no column \"" + name + "\"");
        return static_cast<std::size_t>(found - header.begin());
      };
      text_at = find(text_column);
      label_at = find(label_column);
    } else if (fields.size() > 1 || !fields[0].empty()) {
      if (fields.size() != header.size())
        fail(file, row_line,
             "has " + std::to_string(fields.size()) + " fields, but the header has " +
                 std::to_string(header.size()));
      if (fields[text_at].find_first_not_of(" \t\r\n") == std::string::npos) fail(file, row_line, "has no text");
      if (fields[label_at].empty()) fail(file, row_line, "has no label");
      result.texts.push_back(std::move(fields[text_at]));
      result.labels.push_back(std::move(fields[label_at]));
    }
    fields.assign(1, "");
    row_line = line;
  };
  bool quoted = false;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const char c = all[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"')
        fields.back() += c;
      else if (i + 1 < all.size() && all[i + 1] == '"')
        fields.back() += all[++i];
      else
        quoted = false;
    } else if (c == '"' && fields.back().empty()) {
      quoted = true;
    } else if (c == ',') {
      fields.emplace_back();
    } else if (c == '\n') {
      finish_row();
    } else if (c != '\r') {
      fields.back() += c;
    }
  }
  if (quoted) fail(file, row_line, "a quote is opened and not closed");
  finish_row();
  if (result.texts.empty()) fail(file, line, "ends, and there was no text");
  return result;
}

LabelledTexts number_classes(Texts train, Texts test) {
  LabelledTexts result;
  result.classes = train.labels;
  std::sort(result.classes.begin(), result.classes.end());
  result.classes.erase(std::unique(result.classes.begin(), result.classes.end()), result.classes.end());
  if (result.classes.size() < 2)
    throw FileError("the training texts have " + std::to_string(result.classes.size()) +
                    " classes, but must have at least 2");
  const auto number = [&](const std::vector<std::string>& labels, const char* part) {
    std::vector<int> numbers;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      const auto found = std::lower_bound(result.classes.begin(), result.classes.end(), labels[i]);
      if (found == result.classes.end() || *found != labels[i])
        throw FileError(std::string(part) + " text " + std::to_string(i) + " has the label \"" + labels[i] +
                        "\", which no training text has");
      numbers.push_back(static_cast<int>(found - result.classes.begin()));
    }
    return numbers;
  };
  result.train_labels = number(train.labels, "training");
  result.test_labels = number(test.labels, "test");
  result.train = std::move(train.texts);
  result.test = std::move(test.texts);
  return result;
}

std::pair<Texts, Texts> split(Texts all, double test_part, unsigned seed) {
  std::vector<std::size_t> order(all.texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  Random random(seed);
  std::shuffle(order.begin(), order.end(), random);
  const auto tests = static_cast<std::size_t>(std::lround(test_part * static_cast<double>(order.size())));
  std::pair<Texts, Texts> parts;
  for (std::size_t i = 0; i < order.size(); ++i) {
    auto& part = i < tests ? parts.second : parts.first;
    part.texts.push_back(std::move(all.texts[order[i]]));
    part.labels.push_back(std::move(all.labels[order[i]]));
  }
  return parts;
}

namespace {

constexpr Eigen::Index side = 28, patch = 7, per_side = side / patch;

}  // namespace

Digits read_digits(const std::filesystem::path& file) {
  const auto table = read_csv(file);
  const auto rows = table.values.rows();
  if (table.values.cols() != side * side + 1)
    throw FileError(file.string() + ": has " + std::to_string(table.values.cols()) +
                    " columns, but must have 784 pixels and a digit");
  for (std::size_t column = 0; column < table.missing.size(); ++column)
    if (table.missing[column] > 0)
      throw FileError(file.string() + ": " + std::to_string(table.missing[column]) + " missing in \"" +
                      table.columns[column] + "\", but every pixel and every digit must be there");
  Digits digits;
  for (Eigen::Index i = 0; i < rows; ++i) {
    const double label = table.values(i, side * side);
    if (!(label >= 0 && label <= 9) || label != std::floor(label))
      fail(file, static_cast<std::size_t>(i + 1), format("the digit is %g, but must be in 0 to 9", label));
    digits.labels.push_back(static_cast<int>(label));
    for (Eigen::Index j = 0; j < side * side; ++j)
      if (!(table.values(i, j) >= 0 && table.values(i, j) <= 255))
        fail(file, static_cast<std::size_t>(i + 1),
             format("pixel %td is %g, but must be in 0 to 255", j + 1, table.values(i, j)));
  }
  digits.pixels = (table.values.leftCols(side * side) / 255).cast<float>();
  return digits;
}

Sequences patches_of(const Digits& digits, const std::vector<std::size_t>& which, Random* shifts) {
  Sequences result;
  result.tokens = per_side * per_side + 1;
  result.features = Rows<float>::Zero(static_cast<Eigen::Index>(which.size()) * result.tokens, patch * patch);
  std::uniform_int_distribution<Eigen::Index> shift(-2, 2);
  for (std::size_t i = 0; i < which.size(); ++i) {
    const auto image = digits.pixels.row(static_cast<Eigen::Index>(which[i]));
    const Eigen::Index down = shifts ? shift(*shifts) : 0, right = shifts ? shift(*shifts) : 0;
    for (Eigen::Index y = 0; y < side; ++y)
      for (Eigen::Index x = 0; x < side; ++x) {
        const auto from_y = y - down, from_x = x - right;
        if (from_y < 0 || from_y >= side || from_x < 0 || from_x >= side) continue;
        const auto token = 1 + y / patch * per_side + x / patch;
        result.features(static_cast<Eigen::Index>(i) * result.tokens + token, y % patch * patch + x % patch) =
            image[from_y * side + from_x];
      }
    result.labels.push_back(digits.labels[which[i]]);
  }
  return result;
}

}  // namespace example
