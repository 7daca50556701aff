#pragma once
// Collects what went wrong in a whole table of comparisons and prints all of it at once.

#include <cmath>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>

#include "support/catch.hpp"

namespace support {

class Table {
 public:
  /// One quantity of one case; every element is compared, the worst one is shown.
  class Column {
   public:
    Column(Table& table, std::string name) : table_(table), name_(std::move(name)) {}
    Column(const Column&) = delete;
    Column& operator=(const Column&) = delete;
    ~Column() { table_.close(*this); }

    /// Both not a number, the same infinity, or no further apart than `bound`.
    void compare(double got, double expected, double bound, long long place) {
      ++compared_;
      double ratio;
      if (std::isnan(expected) || std::isnan(got))
        ratio = std::isnan(expected) && std::isnan(got) ? 0 : HUGE_VAL;
      else if (std::isinf(expected) || std::isinf(got))
        ratio = got == expected ? 0 : HUGE_VAL;
      else
        ratio = got == expected ? 0 : std::fabs(got - expected) / bound;  // a bound of 0 asks for equality
      if (!(ratio <= 1)) ++failed_;
      if (!(ratio <= worst_)) worst_ = ratio, got_ = got, expected_ = expected, bound_ = bound, place_ = place;
    }
    void equal(double got, double expected, long long place) { compare(got, expected, 0, place); }
    double worst() const { return worst_; }

   private:
    friend class Table;
    Table& table_;
    std::string name_;
    long long compared_ = 0, failed_ = 0, place_ = -1;
    double worst_ = 0, got_ = 0, expected_ = 0, bound_ = 0;
  };

  /// Names the case that the next columns belong to.
  void begin(std::string name) { case_ = std::move(name); }

  Column column(std::string name) { return Column(*this, std::move(name)); }

  /// A failure that is no comparison of numbers.
  void fail(const std::string& what) {
    ++failures_;
    if (failures_ <= most_rows) text_ << "  " << case_ << " | " << what << '\n';
  }
  void expect(bool holds, const std::string& what) {
    ++comparisons_;
    if (!holds) fail(what);
  }

  /// Reports everything to Catch. Call it once, at the end of the test.
  void report() {
    if (failures_ > 0) std::cout << text_.str() << std::flush;  // Catch would wrap the lines of the table
    INFO("rows of the table above");
    CHECK(failures_ == 0);
    CHECK(comparisons_ > 0);
  }

  long long failures() const { return failures_; }
  std::string text() const { return text_.str(); }
  /// The largest error as a share of its bound.
  double worst() const { return worst_; }

 private:
  static constexpr long long most_rows = 200;

  void close(const Column& column) {
    comparisons_ += column.compared_;
    if (column.worst_ > worst_) worst_ = column.worst_;
    if (column.failed_ == 0) return;
    ++failures_;
    if (failures_ > most_rows) return;
    text_ << "  " << case_ << " | " << column.name_ << ": " << column.failed_ << " of " << column.compared_
          << ", worst at " << column.place_ << std::setprecision(9) << ": got " << column.got_ << ", expected "
          << column.expected_ << ", bound " << std::setprecision(3) << column.bound_ << '\n';
  }

  std::string case_;
  std::ostringstream text_;
  long long failures_ = 0, comparisons_ = 0;
  double worst_ = 0;
};

}  // namespace support
