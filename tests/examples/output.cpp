#include "support/output.hpp"

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>

#include "files.hpp"
#include "support/catch.hpp"
#include "support/cycle_picture.hpp"

using Catch::Matchers::ContainsSubstring;

TEST_CASE("output: escaping") {
  CHECK(example::escaped("a<b>&\"c\"'\n\t") == "a&lt;b&gt;&amp;&quot;c&quot;'\n\t");
  CHECK(example::escaped("\xff\xc3") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(example::escaped(std::string("\0\x01\x7f", 3)).empty());
  CHECK(example::escaped("\xc3\xa9\xf0\x9f\x98\x80") == "\xc3\xa9\xf0\x9f\x98\x80");
  CHECK(example::format("%d %s", 5, "x") == "5 x");
  CHECK(example::format("%s", std::string(5000, 'y').c_str()).size() == 5000);
}

TEST_CASE("output: a whole file or none") {
  files::Folder folder;
  const auto path = folder.path() / "page.html";
  example::write_text(path, "first");
  example::write_text(path, "second");
  CHECK(example::read_text(path) == "second");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  CHECK_THROWS_WITH(example::write_text(folder.path() / "no" / "page.html", "x"),
                    ContainsSubstring("cannot be written"));
  CHECK_THROWS_WITH(example::check_folder(folder.path() / "no" / "page.html"),
                    ContainsSubstring("there is no folder"));
  example::check_folder(path);
  example::check_folder("page.html");
  CHECK_THROWS_WITH(example::read_text(folder.path() / "absent"), ContainsSubstring("absent: cannot be opened"));
  CHECK_THROWS_WITH(example::read_text(folder.path()), ContainsSubstring("cannot be opened"));
  example::write_text("/dev/null", "into a device");
}

TEST_CASE("output: what could not be printed is an error") {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> full(std::fopen("/dev/full", "w"), std::fclose);
  if (full == nullptr) return;  // no such device here
  CHECK_NOTHROW(example::check_printed(full.get()));
  std::fputs("shares", full.get());
  CHECK_THROWS_AS(example::check_printed(full.get()), example::FileError);
}

TEST_CASE("output: the picture of the cycles") {
  files::Folder folder;
  CHECK(example::effective_inputs({0.25f, 0.25f, 0.25f, 0.25f}) == Approx(4));
  CHECK(example::effective_inputs({1.f, 0.f}) == Approx(1));
  const example::CycleHistory one{"a < b", {{0.5f, 0.5f}, {0.25f, 0.75f}}};
  const auto path = folder.path() / "cycle.svg";
  example::write_cycle_picture(path, {one, one});
  const auto svg = example::read_text(path);
  CHECK_THAT(svg, ContainsSubstring("a &lt; b"));
  CHECK(svg.substr(0, 4) == "<svg");
  CHECK(svg.find("nan") == svg.npos);
  CHECK(svg.find("inf") == svg.npos);
}
