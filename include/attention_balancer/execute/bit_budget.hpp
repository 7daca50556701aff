#pragma once
// Whole bits per row or group of a matrix: quantised to what was allotted, packed, and back.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {

namespace execute {

/// Where the 2^b values lie that b bits can tell apart, between the least and the greatest of a group.
enum class Levels {
  /// Evenly from the least to the greatest, which both are met exactly: the usual round-to-nearest with scale and
  /// zero
  /// point. |error| <= range / 2 / (2^b - 1) for b >= 1; at 0 bits the middle, |error| <= range / 2.
  asymmetric,
  /// 2^b - 1 of them, evenly from -m to m for the greatest magnitude m, so that 0 is met exactly and no zero point
  /// is
  /// stored. |error| <= m / (2^b - 2) for b >= 2; 1 bit is the sign times the mean magnitude (arXiv 1603.05279) and
  /// 0
  /// bits are 0, |error| <= m.
  symmetric,
  /// The centres of 2^b equal cells: |error| <= range / 2^(b + 1) at any b, 0 bits included, as the rule that a bit
  /// more
  /// quarters the squared error has it.
  centred,
};

/// How bit_budget divides and rounds.
struct BitOptions {
  Index group = 0;  ///< columns that share a scale; the last may be shorter; 0: the whole row
  Levels levels = Levels::asymmetric;
};

/// What a quantisation costs and loses.
struct BitReport {
  Index bits = 0;            ///< of all codes together: sum of bits * columns over the groups
  Index bytes = 0;           ///< to store: packed codes, scales and zero points
  double squared_error = 0;  ///< summed over all elements
  double largest_error = 0;  ///< the largest magnitude
};

}  // namespace execute

namespace detail {

/// The most bits of a code.
inline constexpr Index most_bits = 16;

/// Numbers of 0 to 16 bits one after the other, least significant bit first.
class BitWriter {
 public:
  explicit BitWriter(std::vector<std::uint8_t>& bytes) noexcept : bytes_(bytes) {}
  template <class = void>
  void put(std::uint32_t code, Index bits) {
    held_ |= std::uint64_t{code} << count_;
    count_ += bits;
    for (; count_ >= 8; count_ -= 8, held_ >>= 8) bytes_.push_back(static_cast<std::uint8_t>(held_ & 255u));
  }
  template <class = void>
  void finish() {
    if (count_ > 0) bytes_.push_back(static_cast<std::uint8_t>(held_ & 255u));
  }

 private:
  std::vector<std::uint8_t>& bytes_;
  std::uint64_t held_ = 0;
  Index count_ = 0;
};

class BitReader {
 public:
  explicit BitReader(std::span<const std::uint8_t> bytes) noexcept : bytes_(bytes) {}
  std::uint32_t take(Index bits) noexcept {
    for (; count_ < bits; count_ += 8) held_ |= std::uint64_t{bytes_[at_++]} << count_;
    const auto code = static_cast<std::uint32_t>(held_ & ((std::uint64_t{1} << bits) - 1));
    held_ >>= bits;
    count_ -= bits;
    return code;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
  std::uint64_t held_ = 0;
  Index count_ = 0;
};

/// The levels of one group: value = origin + step * code, for codes 0 ... last. In T, so that what is stored is
/// what both directions use.
template <Scalar T>
struct Grid {
  T origin = T(0), step = T(0);
  std::uint32_t last = 0;

  T value(std::uint32_t code) const noexcept {
    const double at = static_cast<double>(code);
    return static_cast<T>(static_cast<double>(origin) + at * static_cast<double>(step));
  }
  std::uint32_t code(T x) const noexcept {
    if (last == 0 || !(step > T(0))) return 0;
    const double at = (static_cast<double>(x) - static_cast<double>(origin)) / static_cast<double>(step);
    return static_cast<std::uint32_t>(std::clamp(std::nearbyint(at), 0.0, static_cast<double>(last)));
  }
};

template <Scalar T>
Grid<T> make_grid(std::span<const T> x, Index bits, execute::Levels levels) {
  const auto [least, most] = std::minmax_element(x.begin(), x.end());
  const double low = static_cast<double>(*least), half = static_cast<double>(*most) / 2 - low / 2;
  const double cells = std::ldexp(1.0, static_cast<int>(bits));
  Grid<T> grid;
  grid.last = (std::uint32_t{1} << bits) - 1;
  const auto set = [&](double origin, double step) {
    grid.origin = static_cast<T>(origin), grid.step = static_cast<T>(step);
  };
  if (levels == execute::Levels::centred) {
    set(low + half / cells, 2 * (half / cells));
  } else if (levels == execute::Levels::asymmetric) {
    if (bits == 0)
      set(low + half, 0);
    else
      set(low, 2 * (half / (cells - 1)));
  } else {
    const double m = std::max(std::abs(low), std::abs(static_cast<double>(*most)));
    if (bits == 0) {
      set(0, 0);
    } else if (bits == 1) {
      double sum = 0;
      for (const T value : x) sum += std::abs(static_cast<double>(value)) / static_cast<double>(x.size());
      set(-sum, 2 * sum);
    } else {
      grid.last -= 1;  // an odd number of levels has one in the middle
      const T step = static_cast<T>(m / (cells / 2 - 1));
      set(-static_cast<double>(step) * (cells / 2 - 1), static_cast<double>(step));
    }
  }
  return grid;
}

}  // namespace detail

namespace execute {

/// A matrix in as many bits as each of its groups was allotted. Made by bit_budget.
template <Scalar T>
class QuantizedMatrix {
 public:
  /// Quantises; see bit_budget.
  QuantizedMatrix(TensorView<const T> matrix, std::span<const Index> bits, const BitOptions& options)
      : rows_(matrix.length), columns_(matrix.dim), levels_(options.levels) {
    check(matrix, bits, options);
    detail::BitWriter writer(codes_);
    std::vector<T> values;
    for (Index row = 0; row < rows_; ++row)
      for (Index g = 0; g < groups_; ++g) {
        const Index begin = g * group_, end = std::min(columns_, begin + group_), b = bits_of(row, g);
        values.clear();
        for (Index c = begin; c < end; ++c) values.push_back(matrix(0, 0, row, c));
        const auto grid = detail::make_grid(std::span<const T>(values), b, levels_);
        grids_.push_back(grid);
        double squared = 0;
        for (const T x : values) {
          const auto code = grid.code(x);
          writer.put(code, b);
          const double error = static_cast<double>(grid.value(code)) - static_cast<double>(x);
          squared += error * error;
          report_.largest_error = std::max(report_.largest_error, std::abs(error));
        }
        errors_.push_back(squared);
        report_.squared_error += squared;
        report_.bits += b * (end - begin);
      }
    writer.finish();
    const Index per_group = static_cast<Index>(sizeof(T)) * (levels_ == Levels::symmetric ? 1 : 2);
    report_.bytes = static_cast<Index>(codes_.size()) + per_group * static_cast<Index>(grids_.size());
  }

  Index rows() const noexcept { return rows_; }
  Index columns() const noexcept { return columns_; }

  /// Groups in a row.
  Index groups() const noexcept { return groups_; }

  /// The bits of one group.
  Index bits(Index row, Index group = 0) const {
    check_place(row, group);
    return bits_of(row, group);
  }

  /// The squared error of one group, summed over its elements.
  double squared_error(Index row, Index group = 0) const {
    check_place(row, group);
    return errors_[static_cast<std::size_t>(row * groups_ + group)];
  }

  /// What all of it costs and loses.
  const BitReport& report() const noexcept { return report_; }

  /// Writes the values that the codes stand for into a matrix [rows, columns]: the report told their errors
  /// exactly. Throws ShapeError if it is another.
  void restore(TensorView<T> matrix) const {
    check_matrix(matrix, "matrix to restore into");
    if (matrix.length != rows_ || matrix.dim != columns_)
      detail::fail<ShapeError>("matrix to restore into", shape(matrix.length, matrix.dim),
                               "be " + shape(rows_, columns_) + " as what was quantised");
    detail::BitReader reader(codes_);
    auto grid = grids_.begin();
    for (Index row = 0; row < rows_; ++row)
      for (Index g = 0; g < groups_; ++g, ++grid)
        for (Index c = g * group_; c < std::min(columns_, (g + 1) * group_); ++c)
          matrix(0, 0, row, c) = grid->value(reader.take(bits_of(row, g)));
  }

 private:
  static std::string shape(Index rows, Index columns) {
    return std::to_string(rows) + " x " + std::to_string(columns);
  }
  std::string place(Index row, Index group) const {
    return "row " + std::to_string(row) + (groups_ > 1 ? ", group " + std::to_string(group) : std::string());
  }
  Index bits_of(Index row, Index group) const noexcept {
    return bits_[static_cast<std::size_t>(row * groups_ + group)];
  }

  template <class U>
  static void check_matrix(const TensorView<U>& matrix, const char* what) {
    if (matrix.batch != 1 || matrix.heads != 1)
      detail::fail<ShapeError>("batch and heads of the " + std::string(what), std::max(matrix.batch, matrix.heads),
                               "be 1: make it by execute::rows or tokens_in_rows");
    if (matrix.length < 0 || matrix.dim < 0)
      detail::fail<ShapeError>(what, shape(matrix.length, matrix.dim), "not be negative");
    if (matrix.length > 0 && matrix.dim > 0 && !matrix.data)
      detail::fail<ShapeError>("data of the " + std::string(what), "null", "point at its elements");
  }
  void check_place(Index row, Index group) const {
    if (row < 0 || row >= rows_ || group < 0 || group >= groups_)
      detail::fail<ShapeError>(place(row, group), "outside", "be within " + shape(rows_, groups_));
  }
  void check(const TensorView<const T>& matrix, std::span<const Index> bits, const BitOptions& options) {
    check_matrix(matrix, "matrix to quantise");
    if (options.group < 0) detail::fail<ShapeError>("BitOptions group", options.group, "not be negative");
    group_ = options.group == 0 ? std::max(Index(1), columns_) : options.group;
    groups_ = (columns_ + group_ - 1) / group_;
    const Index all = rows_ * groups_, given = static_cast<Index>(bits.size());
    if (given != all && given != rows_)
      detail::fail<ShapeError>(
          "number of bits allotted", given,
          "be " + std::to_string(rows_) + ", one per row" +
              (groups_ > 1 ? ", or " + std::to_string(all) + ", one per group" : std::string()));
    for (Index row = 0; row < rows_; ++row)
      for (Index g = 0; g < groups_; ++g) {
        const Index b = bits[static_cast<std::size_t>(given == all ? row * groups_ + g : row)];
        if (b < 0 || b > detail::most_bits)
          detail::fail<BudgetError>("bits of " + place(row, g), b,
                                    "be in [0, " + std::to_string(detail::most_bits) + "]");
        bits_.push_back(b);
      }
    // A quarter of the largest number, so that no range, level or error leaves what T holds.
    constexpr T largest = std::numeric_limits<T>::max() / 4;
    for (Index row = 0; row < rows_; ++row)
      for (Index c = 0; c < columns_; ++c)
        if (const T x = matrix(0, 0, row, c); !(std::abs(x) <= largest))
          detail::fail<InputError>("element " + std::to_string(c) + " of row " + std::to_string(row),
                                   detail::number(x), "be finite, and no larger than " + detail::number(largest));
  }

  Index rows_ = 0, columns_ = 0, group_ = 1, groups_ = 0;
  Levels levels_ = Levels::asymmetric;
  std::vector<Index> bits_;
  std::vector<std::uint8_t> codes_;
  std::vector<detail::Grid<T>> grids_;
  std::vector<double> errors_;
  BitReport report_;
};

/// Quantises a matrix to the bits that its rows, or its groups of columns, were allotted: each group gets a scale
/// of its own (and a zero point) from its least and greatest element, and 2^bits levels. `bits` has one entry per
/// row, or one per group in row-major order, each in [0, 16]; 0 bits leave one value for the group, and they are
/// spent only where they are allotted.
///
///     const auto small = execute::bit_budget(execute::rows(w, n, d), bits, {.group = 64});
///     small.restore(execute::rows(w, n, d));       // back, with the error of small.report()
///
/// The matrix is a view with batch = heads = 1. Throws ShapeError if a size does not fit, BudgetError naming the
/// row and group if its bits are out of range, InputError naming the element if one is not finite, or above a
/// quarter of the largest number.
template <class = void>
QuantizedMatrix<float> bit_budget(TensorView<const float> matrix, std::span<const Index> bits,
                                  const BitOptions& options = {}) {
  return {matrix, bits, options};
}
template <class = void>
QuantizedMatrix<double> bit_budget(TensorView<const double> matrix, std::span<const Index> bits,
                                   const BitOptions& options = {}) {
  return {matrix, bits, options};
}

}  // namespace execute
}  // namespace attention_balancer
