#include "cycle_picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "output.hpp"

namespace example {
namespace {

constexpr double width = 1200, margin = 64, gap = 56, band_top = 118, band_height = 320, curve_height = 190;
constexpr int samples = 90;  // drawn points per curve

struct Panel {
  double left, top, width, height;
};

// Cycles on a logarithmic axis: most happens in the first ones.
double x_of(double cycle, double last, const Panel& panel) {
  return panel.left + panel.width * std::log1p(cycle) / std::log1p(last);
}

std::vector<std::size_t> sampled_cycles(std::size_t last) {
  std::vector<std::size_t> cycles;
  for (int i = 0; i <= samples; ++i) {
    const double cycle = std::expm1(std::log1p(static_cast<double>(last)) * i / samples);
    const auto rounded = static_cast<std::size_t>(std::lround(cycle));
    if (cycles.empty() || rounded > cycles.back()) cycles.push_back(rounded);
  }
  return cycles;
}

std::string text(double x, double y, const char* style, const std::string& content) {
  return format("<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style) + escaped(content) + "</text>\n";
}

std::string axis(const Panel& panel, double last) {
  std::string svg = format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"frame\"/>\n",
                           panel.left, panel.top, panel.width, panel.height);
  double previous = -100;
  for (const double cycle : {0., 1., 3., 10., 30., 100., 300., 1000., 3000., 10000., 30000., 100000.}) {
    if (cycle > last) break;
    const double x = x_of(cycle, last, panel);
    if (x - previous < 36) continue;
    previous = x;
    svg += format("<path d=\"M%.1f %.1fv6\" class=\"tick\"/>\n", x, panel.top + panel.height);
    svg += text(x, panel.top + panel.height + 21, "class=\"label\" text-anchor=\"middle\"", format("%.0f", cycle));
  }
  return svg + text(panel.left + panel.width / 2, panel.top + panel.height + 41,
                    "class=\"label\" text-anchor=\"middle\"", "cycle");
}

// One band per input, stacked; the input with the largest final share is highlighted.
std::string bands(const CycleHistory& rule, const Panel& panel) {
  const auto last = rule.shares.size() - 1;
  const auto cycles = sampled_cycles(last);
  const auto inputs = rule.shares[0].size();
  const auto winner = static_cast<std::size_t>(
      std::max_element(rule.shares.back().begin(), rule.shares.back().end()) - rule.shares.back().begin());

  std::vector<double> below(cycles.size(), 0);
  std::string svg;
  for (std::size_t input = 0; input < inputs; ++input) {
    std::string upper, lower;
    for (std::size_t c = 0; c < cycles.size(); ++c) {
      const double x = x_of(static_cast<double>(cycles[c]), static_cast<double>(last), panel);
      const auto y = [&](double share) { return panel.top + panel.height * (1 - std::min(share, 1.0)); };
      const double above = below[c] + static_cast<double>(rule.shares[cycles[c]][input]);
      upper += format("%s%.1f %.1f", c == 0 ? "M" : "L", x, y(above));
      lower = format("L%.1f %.1f", x, y(below[c])) + lower;
      below[c] = above;
    }
    // Neighbours differ in lightness, so that thin bands can be told apart without 100 colours.
    static constexpr std::array<const char*, 4> fills{"#2f6f9f", "#8bb8d6", "#4c8fbd", "#b9d6e8"};
    svg += "<path d=\"" + upper + lower + "Z\" fill=\"" +
           (input == winner ? "#e08214" : fills[input % fills.size()]) + "\"/>\n";
  }
  return svg;
}

}  // namespace

double effective_inputs(const std::vector<float>& shares) {
  double entropy = 0;
  for (const float share : shares)
    if (share > 0) entropy -= static_cast<double>(share) * std::log(static_cast<double>(share));
  return std::exp(entropy);
}

void write_cycle_picture(const std::filesystem::path& file, const std::vector<CycleHistory>& rules) {
  const double height = band_top + band_height + 2 * gap + curve_height + 72;
  const auto count = static_cast<double>(rules.size());
  const double band_width = (width - 2 * margin - (count - 1) * gap) / count;
  const auto inputs = rules.at(0).shares.at(0).size();

  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"system-ui, 'DejaVu Sans', "
      "sans-serif\">\n",
      width, height);
  svg +=
      "<style>.frame{fill:none;stroke:#8a8f98}.tick{stroke:#8a8f98}.grid{stroke:#e3e6ea}.label{font-size:14px;fill:"
      "#4a5058}.name{font-size:17px;font-weight:600;fill:#1c2126}.title{font-size:24px;font-weight:600;fill:#"
      "1c2126}"
      ".curve{fill:none;stroke-width:3}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  svg += text(margin, 44, "class=\"title\"",
              "One budget, " + std::to_string(inputs) + " inputs: their shares, cycle after cycle");
  svg +=
      text(margin, 70, "class=\"label\"",
           "Each band is one input; all bands together are the whole budget. The input that ends with the largest "
           "share is orange.");

  for (std::size_t r = 0; r < rules.size(); ++r) {
    const Panel panel{margin + static_cast<double>(r) * (band_width + gap), band_top, band_width, band_height};
    const auto last = static_cast<double>(rules[r].shares.size() - 1);
    svg += text(panel.left, panel.top - 12, "class=\"name\"", rules[r].name);
    svg += bands(rules[r], panel) + axis(panel, last);
    if (r > 0) continue;
    for (const int percent : {0, 50, 100})
      svg += text(panel.left - 8, panel.top + panel.height * (1 - percent / 100.0) + 5,
                  "class=\"label\" text-anchor=\"end\"", format("%d %%", percent));
  }

  static constexpr std::array<const char*, 4> colours{"#c2410c", "#1d5fa8", "#3f7d20", "#7a3e9d"};
  const Panel panel{margin, band_top + band_height + 2 * gap, width - 2 * margin, curve_height};
  double last = 1;
  for (const auto& rule : rules) last = std::max(last, static_cast<double>(rule.shares.size() - 1));
  const auto all = static_cast<double>(inputs);
  const auto y_of = [&](double value) { return panel.top + panel.height * (1 - value / (1.05 * all)); };
  svg += text(panel.left, panel.top - 12, "class=\"name\"", "Effective number of inputs (exp of the entropy)");
  for (const double part : {0.0, 0.5, 1.0}) {
    svg += format("<path d=\"M%.1f %.1fh%.1f\" class=\"grid\"/>\n", panel.left, y_of(part * all), panel.width);
    svg +=
        text(panel.left - 8, y_of(part * all) + 5, "class=\"label\" text-anchor=\"end\"", format("%g", part * all));
  }
  svg += axis(panel, last);
  double label_x = panel.left + panel.width;
  for (std::size_t r = rules.size(); r-- > 0;) {
    const char* colour = colours[r % colours.size()];
    std::string path;
    for (const auto cycle : sampled_cycles(rules[r].shares.size() - 1))
      path += format("%s%.1f %.1f", path.empty() ? "M" : "L", x_of(static_cast<double>(cycle), last, panel),
                     y_of(effective_inputs(rules[r].shares[cycle])));
    svg += format("<path d=\"%s\" class=\"curve\" stroke=\"%s\"/>\n", path.c_str(), colour);
    svg += text(label_x, panel.top - 12,
                format("class=\"name\" text-anchor=\"end\" style=\"fill:%s\"", colour).c_str(), rules[r].name);
    label_x -= 12 * static_cast<double>(rules[r].name.size()) + 10;
  }
  write_text(file, svg + "</svg>\n");
}

}  // namespace example
