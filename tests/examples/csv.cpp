#include "support/csv.hpp"

#include <sstream>
#include <string>

#include "files.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using example::CsvTable;

namespace {

CsvTable read(const std::string& text) {
  std::istringstream stream(text);
  return example::read_csv(stream, "table.csv");
}

}  // namespace

TEST_CASE("csv: separators, header, comments, blank lines") {
  for (const char* text : {"x,y\n1,2.5\n\n# a comment, ignored\n-3e1,+4\n",
                           "x;y\r\n1;2.5\r\n \r\n#c\r\n-3e1;+4\r\n", "\xEF\xBB\xBFx\ty\n1\t2,5\n\n#c\n-30\t4"}) {
    const auto table = read(text);
    INFO(text);
    REQUIRE(table.has_header);
    REQUIRE(table.columns == std::vector<std::string>{"x", "y"});
    REQUIRE(table.values.rows() == 2);
    REQUIRE(table.values(0, 0) == 1);
    REQUIRE(table.values(0, 1) == 2.5);
    REQUIRE(table.values(1, 0) == -30);
    REQUIRE(table.values(1, 1) == 4);
    REQUIRE(table.comment_lines == 1);
    REQUIRE(table.blank_lines == 1);
  }
}

TEST_CASE("csv: missing values become the mean of their column, and it is told") {
  const auto table = read("a,b\n1,NA\n,2\n3,n/a\n?,4\n-,NaN\n");
  REQUIRE(table.missing == std::vector<std::size_t>{3, 3});
  REQUIRE(table.values(1, 0) == 2);
  REQUIRE(table.values(0, 1) == 3);
  REQUIRE(table.values.allFinite());
  REQUIRE_THAT(example::describe(table), ContainsSubstring("3 missing in \"a\" became the mean of that column"));
}

TEST_CASE("csv: decimal commas, quotes, a separator at the end of each line") {
  const auto table = read("1,5;\" 2,25 \";\n3;4;\n");
  REQUIRE(table.separator == ';');
  REQUIRE(table.values.cols() == 2);
  REQUIRE(table.values(0, 0) == 1.5);
  REQUIRE(table.values(0, 1) == 2.25);
  REQUIRE(table.decimal_commas == 2);
  REQUIRE(table.trailing_separators);
  REQUIRE(read("\"a,b\",c\n1,2\n").columns == std::vector<std::string>{"a,b", "c"});
  REQUIRE(read("\"say \"\"x\"\"\"\n1\n").columns == std::vector<std::string>{"say \"x\""});
}

TEST_CASE("csv: errors name the file, the line and the column") {
  REQUIRE_THROWS_WITH(read("a,b\n1,2\n3,x4\n"), ContainsSubstring("table.csv: line 3, column 2 (b): \"x4\""));
  REQUIRE_THROWS_WITH(read("1,2\n\n3\n"),
                      ContainsSubstring("line 3: has 1 fields, but the lines before it have 2"));
  REQUIRE_THROWS_WITH(read("1,2\n3,4,5\n"), ContainsSubstring("line 2: has 3 fields"));
  REQUIRE_THROWS_WITH(read("1,inf\n"), ContainsSubstring("\"inf\" is not a finite number"));
  REQUIRE_THROWS_WITH(read("1,1e999\n"), ContainsSubstring("\"1e999\" is not a finite number"));
  REQUIRE_THROWS_WITH(read("1,0x10\n"), ContainsSubstring("\"0x10\""));
  REQUIRE_THROWS_WITH(read("1;1,234.5\n"), ContainsSubstring("\"1,234.5\""));
  REQUIRE_THROWS_WITH(read("name,1\n"), ContainsSubstring("line 1, column 1: \"name\""));
  REQUIRE_THROWS_WITH(read("1,\"2\n"), ContainsSubstring("line 1: a quote is opened and not closed"));
  REQUIRE_THROWS_WITH(read("a,b\n1,\n2,NA\n"), ContainsSubstring("column 2 (b) has no value"));
  REQUIRE_THROWS_WITH(read(""), ContainsSubstring("holds no line of numbers"));
  REQUIRE_THROWS_WITH(read("# only\n\n"), ContainsSubstring("holds no line of numbers"));
  REQUIRE_THROWS_WITH(read("a,b\n"), ContainsSubstring("holds no line of numbers"));
  files::Folder folder;
  REQUIRE_THROWS_WITH(example::read_csv(folder.path() / "absent.csv"),
                      ContainsSubstring("absent.csv: cannot be opened"));
  REQUIRE_THROWS_WITH(example::read_csv(folder.path()), ContainsSubstring("cannot be opened"));
}

TEST_CASE("csv: standardize") {
  auto table = read("1,5,0.1\n2,5,0.1\n3,5,0.1\n");
  REQUIRE(example::standardize(table) == 2);
  REQUIRE(table.values.col(0).mean() == Approx(0).margin(1e-12));
  REQUIRE(table.values.col(0).squaredNorm() == Approx(3));
  REQUIRE(table.values.col(1).isZero());
  REQUIRE(table.values.col(2).isZero());
}
