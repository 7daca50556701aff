#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace example {

/// One curve, or one set of points. Where `low` and `high` are given they are drawn as a band about a curve and as
/// a bar at a point.
struct Series {
  std::string name;
  std::vector<double> x, y, low, high;  // as long as x; low and high may be empty
};

/// A place on the x axis that is marked by a line, and what begins there.
struct Mark {
  double x = 0;
  std::string label;
};

struct PlotPanel {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  std::vector<Mark> marks = {};
  bool points = false;  // symbols with their names beside them, instead of curves
  bool log_x = false, log_y = false;
  double height = 300;
  bool from_zero = false;  // the x axis begins at 0, so that panels of other first values stand in line
};

/// Draws panels below one another. A name has the same colour in every panel; the order of its first appearance
/// says which. SVG, without external resources. Throws FileError.
void write_plot(const std::filesystem::path& file, const std::string& title, const std::string& subtitle,
                const std::vector<PlotPanel>& panels);

}  // namespace example
