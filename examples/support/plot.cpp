#include "plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "output.hpp"

namespace example {
namespace {

constexpr double width = 1200, left = 84, right = 210, top = 118, below = 62, gap = 52;

// Told apart without colour vision too: they differ in lightness.
constexpr std::array<const char*, 8> colours{"#c2410c", "#1d5fa8", "#3f7d20", "#7a3e9d",
                                             "#b8860b", "#0f766e", "#6b7280", "#be185d"};

struct Axis {
  double low = 0, high = 1, from = 0, to = 1;  // values, and where they lie on the page
  bool log = false;

  double at(double value) const {
    const auto place = [&](double v) { return log ? std::log10(v) : v; };
    return from + (to - from) * (place(value) - place(low)) / (place(high) - place(low));
  }

  std::vector<double> ticks() const {
    std::vector<double> values;
    if (log) {
      const bool few = std::log10(high / low) < 2.5;
      for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10)
        for (const double digit : {1., 2., 5.})
          if ((few || digit == 1) && digit * decade >= low * 0.999 && digit * decade <= high * 1.001)
            values.push_back(digit * decade);
      return values;
    }
    const double rough = (high - low) / 6, decade = std::pow(10, std::floor(std::log10(rough)));
    double step = 10 * decade;
    for (const double digit : {5., 2., 1.})
      if (digit * decade >= rough) step = digit * decade;
    for (double v = std::ceil(low / step - 1e-9) * step; v <= high + 1e-9 * step; v += step)
      values.push_back(std::abs(v) < 1e-9 * step ? 0 : v);
    return values;
  }
};

Axis axis_over(const PlotPanel& panel, bool of_x, double from, double to) {
  Axis axis{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(), from, to,
            of_x ? panel.log_x : panel.log_y};
  const auto take = [&](const std::vector<double>& values) {
    for (const double v : values)
      if (std::isfinite(v) && (!axis.log || v > 0))
        axis.low = std::min(axis.low, v), axis.high = std::max(axis.high, v);
  };
  for (const auto& series : panel.series) {
    take(of_x ? series.x : series.y);
    if (!of_x) take(series.low), take(series.high);
  }
  if (of_x && panel.from_zero) take({0});
  if (!(axis.low <= axis.high)) axis.low = axis.log ? 1 : 0, axis.high = axis.log ? 10 : 1;
  if (axis.log) {
    const double room = of_x && !panel.points ? 1 : std::pow(axis.high / axis.low, 0.06) * 1.02;
    axis.low /= room, axis.high *= room;
    if (axis.low == axis.high) axis.low /= 2, axis.high *= 2;
  } else {
    if (!of_x && axis.low > 0 && axis.low < 0.5 * axis.high) axis.low = 0;
    const double room = (axis.high - axis.low) * (of_x && !panel.points ? 0 : 0.06);
    if (axis.low != 0) axis.low -= room;
    axis.high += room;
    if (axis.low == axis.high) axis.low -= 0.5, axis.high += 0.5;
  }
  return axis;
}

std::string text(double x, double y, const std::string& style, const std::string& content) {
  return format("<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style.c_str()) + escaped(content) + "</text>\n";
}

// Names beside what they name, moved apart where they would lie on one another, and none below `lowest`.
void spread(std::vector<double>& y, double least, double lowest) {
  std::vector<std::size_t> order(y.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return y[a] < y[b]; });
  for (std::size_t k = 1; k < order.size(); ++k) y[order[k]] = std::max(y[order[k]], y[order[k - 1]] + least);
  for (std::size_t k = order.size(); k-- > 0; lowest = y[order[k]] - least)
    y[order[k]] = std::min(y[order[k]], lowest);
}

std::string draw(const PlotPanel& panel, double y0, std::vector<std::string>& names) {
  const double x1 = width - right, y1 = y0 + panel.height;
  const Axis x = axis_over(panel, true, left, x1), y = axis_over(panel, false, y1, y0);
  const auto colour = [&](const std::string& name) {
    auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) at = names.insert(names.end(), name);
    return colours[static_cast<std::size_t>(at - names.begin()) % colours.size()];
  };
  std::string svg = text(left, y0 - 12, "class=\"name\"", panel.title);
  for (const double v : y.ticks()) {
    svg += format("<path d=\"M%.1f %.1fH%.1f\" class=\"grid\"/>\n", left, y.at(v), x1);
    svg += text(left - 9, y.at(v) + 5, "class=\"label\" text-anchor=\"end\"", format("%g", v));
  }
  for (const double v : x.ticks()) {
    svg += format("<path d=\"M%.1f %.1fv6\" class=\"tick\"/>\n", x.at(v), y1);
    svg += text(x.at(v), y1 + 22, "class=\"label\" text-anchor=\"middle\"", format("%g", v));
  }
  svg += text((left + x1) / 2, y1 + 45, "class=\"label\" text-anchor=\"middle\"", panel.x_label);
  svg += format("<g transform=\"translate(22 %.1f) rotate(-90)\">", (y0 + y1) / 2) +
         text(0, 0, "class=\"label\" text-anchor=\"middle\"", panel.y_label) + "</g>\n";
  for (const auto& mark : panel.marks) {
    svg += format("<path d=\"M%.1f %.1fV%.1f\" class=\"mark\"/>\n", x.at(mark.x), y0, y1);
    svg += text(x.at(mark.x) + 6, y0 + 17, "class=\"label\"", mark.label);
  }
  svg += format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"frame\"/>\n", left, y0,
                x1 - left, panel.height);

  std::vector<double> label_y;
  for (const auto& series : panel.series) {
    const char* paint = colour(series.name);
    const auto drawn = [&](std::size_t i) {
      return std::isfinite(series.y[i]) && (!panel.log_y || series.y[i] > 0) && (!panel.log_x || series.x[i] > 0);
    };
    const bool band = series.low.size() == series.x.size() && series.high.size() == series.x.size();
    if (panel.points) {
      for (std::size_t i = 0; i < series.x.size(); ++i) {
        if (!drawn(i)) continue;
        if (band)
          svg += format("<path d=\"M%.1f %.1fV%.1f\" stroke=\"%s\" stroke-width=\"2\"/>\n", x.at(series.x[i]),
                        y.at(series.low[i]), y.at(series.high[i]), paint);
        svg += format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\" fill-opacity=\"0.75\"/>\n",
                      x.at(series.x[i]), y.at(series.y[i]), series.x.size() > 20 ? 4 : 6, paint);
      }
    } else {
      std::string upper, lower, line;
      for (std::size_t i = 0; i < series.x.size(); ++i) {
        if (!drawn(i)) continue;
        const double at = x.at(series.x[i]);
        line += format("%s%.1f %.1f", line.empty() ? "M" : "L", at, y.at(series.y[i]));
        if (!band) continue;
        upper += format("%s%.1f %.1f", upper.empty() ? "M" : "L", at, y.at(series.high[i]));
        lower = format("L%.1f %.1f", at, y.at(series.low[i])) + lower;
      }
      if (band && !upper.empty())
        svg += "<path d=\"" + upper + lower + "Z\" fill=\"" + paint + "\" fill-opacity=\"0.15\"/>\n";
      svg += "<path d=\"" + line + "\" class=\"curve\" stroke=\"" + paint + "\"/>\n";
    }
    std::size_t last = series.x.size();
    while (last > 0 && !drawn(last - 1)) --last;
    label_y.push_back(last > 0 ? y.at(series.y[last - 1]) : y1);
  }
  // The names stand at the right, as near to the ends of what they name as there is room.
  spread(label_y, 19, y1 + 8);
  for (std::size_t s = 0; s < panel.series.size(); ++s)
    svg += text(x1 + 12, label_y[s] + 5, format("class=\"name\" style=\"fill:%s\"", colour(panel.series[s].name)),
                panel.series[s].name);
  return svg;
}

}  // namespace

void write_plot(const std::filesystem::path& file, const std::string& title, const std::string& subtitle,
                const std::vector<PlotPanel>& panels) {
  double height = top;
  for (const auto& panel : panels) height += panel.height + below + gap;
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"system-ui, 'DejaVu Sans', "
      "sans-serif\">\n",
      width, height - gap);
  svg +=
      "<style>.frame{fill:none;stroke:#8a8f98}.tick{stroke:#8a8f98}.grid{stroke:#e3e6ea}.mark{stroke:#8a8f98;"
      "stroke-dasharray:5 4}.label{font-size:14px;fill:#4a5058}.name{font-size:15px;font-weight:600;fill:#1c2126}"
      ".title{font-size:24px;font-weight:600;fill:#1c2126}.curve{fill:none;stroke-width:2.5}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  svg += text(left, 44, "class=\"title\"", title) + text(left, 72, "class=\"label\"", subtitle);
  std::vector<std::string> names;
  double y = top;
  for (const auto& panel : panels) {
    svg += draw(panel, y, names);
    y += panel.height + below + gap;
  }
  write_text(file, svg + "</svg>\n");
}

}  // namespace example
