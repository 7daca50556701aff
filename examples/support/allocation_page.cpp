#include "allocation_page.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "output.hpp"

namespace example {
namespace {

// Everything that a browser needs stands in the page. Colours are variables, so that dark is one more set of them.
constexpr const char* style = R"css(
:root{color-scheme:light dark;
--page:#fbfbfa;--card:#fff;--ink:#1d2126;--soft:#646b75;--faint:#868d97;--line:#e2e4e8;
--heat:234,122,20;--dense:#3b75af;--attention:#e08a2e;--saved:#e9ebef;--good:#2c7a4b}
@media(prefers-color-scheme:dark){:root{--page:#15181c;--card:#1d2126;--ink:#e8eaed;--soft:#a2a9b4;--faint:#7d8590;
--line:#333941;--heat:240,130,30;--dense:#6ba3d9;--attention:#f0a04b;--saved:#2c3138;--good:#6cc08b}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:980px;margin:0 auto;padding:36px 20px 64px}
h1{font-size:27px;line-height:1.25;margin:0 0 6px}h2{font-size:19px;margin:0 0 4px}
p{margin:0 0 14px}.soft{color:var(--soft);font-size:14.5px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 24px;margin-top:20px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin-top:22px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 18px}
.tile b{display:block;font-size:25px;line-height:1.3;white-space:nowrap}.tile span{color:var(--soft);font-size:14px}
.text{font:17px/2 Georgia,"DejaVu Serif",serif;white-space:pre-wrap;overflow-wrap:anywhere;margin:14px 0 0}
.t{background:rgba(var(--heat),var(--a));padding:3px 0;border-bottom:2px solid var(--ink)}
.d{background:rgba(var(--heat),calc(var(--a)*.6));padding:3px 0;color:var(--faint)}
.s{border-radius:3px 0 0 3px}
.legend{display:flex;flex-wrap:wrap;gap:8px 26px;align-items:center;color:var(--soft);font-size:14.5px}
.scale{display:inline-block;width:120px;height:12px;border-radius:3px;vertical-align:middle;margin:0 6px;
background:linear-gradient(90deg,rgba(var(--heat),0),rgba(var(--heat),.8))}
table{border-collapse:collapse;width:100%;font-size:15px;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:left;color:var(--soft);font-size:14px;
padding:6px 10px 6px 0;border-bottom:1px solid var(--line)}
td{padding:6px 10px 6px 0;border-bottom:1px solid var(--line)}tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap}.w{width:46%}
.bar{display:flex;height:18px;border-radius:4px;overflow:hidden;background:var(--saved)}
.bar i{display:block;height:100%}
.dense{background:var(--dense)}.attention{background:var(--attention)}.good{background:var(--good)}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;vertical-align:-1px;margin-right:7px}
.scroll{overflow-x:auto}code{font:14.5px ui-monospace,"DejaVu Sans Mono",monospace}
)css";

std::string tile(const std::string& value, const std::string& name) {
  return "<div class=\"tile\"><b>" + escaped(value) + "</b><span>" + escaped(name) + "</span></div>\n";
}

double gigaflop(double flop) { return flop * 1e-9; }

// The text with every token shaded by its share, dropped ones faded.
std::string heat_map(const Comparison& c) {
  const auto& shares = c.allocation.shares;
  // From the smallest share, left blank, to the one that only one token in twenty exceeds: outliers would leave the
  // rest pale.
  auto sorted = shares;
  const auto high = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() * 19 / 20);
  std::nth_element(sorted.begin(), high, sorted.end());
  const float least = *std::min_element(sorted.begin(), sorted.end());
  const auto shade = [&, deepest = *high](float share) {
    return deepest > least ? 0.8 * static_cast<double>(std::min(1.f, (share - least) / (deepest - least))) : 0.3;
  };

  std::string html = "<div class=\"text\">";
  std::size_t end = 0;
  for (std::size_t i = 0; i < c.tokens->size(); ++i) {
    const Token& token = (*c.tokens)[i];
    if (token.begin < end) continue;  // parts of one character: the first one stands for it
    html += escaped(c.text.substr(end, token.begin - end));
    const bool starts_word = token.begin > end || i == 0;
    html += format("<span class=\"%s%s\" style=\"--a:%.2f\" title=\"", c.allocation.kept[i] ? "t" : "d",
                   starts_word ? " s" : "", shade(shares[i]));
    html += escaped(c.pieces->piece(token.id)) +
            format(": %.3f %% of the budget, %.2f times the mean, %s\">", 100 * static_cast<double>(shares[i]),
                   static_cast<double>(shares[i]) * static_cast<double>(shares.size()),
                   c.allocation.kept[i] ? "kept" : "dropped");
    html += escaped(c.text.substr(token.begin, token.end - token.begin)) + "</span>";
    end = token.end;
  }
  return html + escaped(c.text.substr(std::min(end, c.text.size()))) + "</div>\n";
}

std::string layer_table(const Comparison& c) {
  double most = 0;
  for (const auto& layer : c.full.layers) most = std::max(most, layer.work.total());
  std::string html =
      "<div class=\"scroll\"><table><tr><th>Layer</th><th class=\"n\">Tokens</th><th class=\"n\">Keys attended</th>"
      "<th class=\"n\">GFLOP</th><th class=\"n\">of full</th><th class=\"w\">Work; the bar's length is the full "
      "run</th>"
      "</tr>\n";
  for (std::size_t l = 0; l < c.budgeted.layers.size(); ++l) {
    const auto& layer = c.budgeted.layers[l];
    const auto& full = c.full.layers[l];
    html += format(
        "<tr><td>%zu</td><td class=\"n\">%td</td><td class=\"n\">%.0f</td><td class=\"n\">%.3f</td>"
        "<td class=\"n\">%.0f&nbsp;%%</td><td class=\"w\"><div class=\"bar\" style=\"width:%.1f%%\">"
        "<i class=\"dense\" style=\"width:%.2f%%\"></i><i class=\"attention\" style=\"width:%.2f%%\"></i>"
        "</div></td></tr>\n",
        l, layer.tokens, layer.attended, gigaflop(layer.work.total()), 100 * layer.work.total() / full.work.total(),
        100 * full.work.total() / most, 100 * layer.work.dense / full.work.total(),
        100 * layer.work.attention / full.work.total());
  }
  return html + "</table></div>\n";
}

std::string comparison_table(const Comparison& c) {
  std::string html =
      "<div class=\"scroll\"><table><tr><th>Tokens kept</th><th class=\"n\">Cosine to the full run</th>" +
      std::string(c.windows > 1 ? "<th class=\"n\">of its windows, mean</th>" : "") +
      "<th class=\"w\"></th></tr>\n";
  const auto row = [&](const std::string& name, double whole, double windows, const std::string& more) {
    html += "<tr><td>" + escaped(name) + "</td><td class=\"n\">" + format("%.4f", whole) + escaped(more) + "</td>";
    if (c.windows > 1) html += format("<td class=\"n\">%.4f</td>", windows);
    html +=
        format("<td class=\"w\"><div class=\"bar\"><i class=\"good\" style=\"width:%.1f%%\"></i></div></td></tr>\n",
               100 * std::clamp(windows, 0.0, 1.0));
  };
  row("by share of the attention", cosine(c.full, c.budgeted), window_cosine(c.full, c.budgeted), "");
  row("the first ones", cosine(c.full, c.first), window_cosine(c.full, c.first), "");
  double low = 1, high = -1;
  for (const auto& run : c.random) {
    low = std::min(low, cosine(c.full, run));
    high = std::max(high, cosine(c.full, run));
  }
  if (!c.random.empty())
    row(format("random ones, mean of %zu", c.random.size()), c.mean_of_random(cosine),
        c.mean_of_random(window_cosine), format(" (%.3f to %.3f)", low, high));
  return html + "</table></div>\n";
}

std::string share_table(const Comparison& c) {
  std::string html =
      "<div class=\"scroll\"><table><tr><th class=\"n\">Rank</th><th>Token</th><th class=\"n\">Share</th>"
      "<th class=\"n\">Times the mean</th><th class=\"w\"></th></tr>\n";
  const auto top = largest_shares(c.allocation, 20);
  const auto largest = static_cast<double>(c.allocation.shares[top[0]]);
  for (std::size_t rank = 0; rank < top.size(); ++rank) {
    const auto share = static_cast<double>(c.allocation.shares[top[rank]]);
    html += format("<tr><td class=\"n\">%zu</td><td><code>", rank + 1) +
            escaped(c.pieces->piece((*c.tokens)[top[rank]].id)) +
            format(
                "</code></td><td class=\"n\">%.3f&nbsp;%%</td><td class=\"n\">%.2f</td><td class=\"w\"><div "
                "class=\"bar\"><i class=\"attention\" style=\"width:%.1f%%\"></i></div></td></tr>\n",
                100 * share, share * static_cast<double>(c.allocation.shares.size()), 100 * share / largest);
  }
  return html + "</table></div>\n";
}

}  // namespace

std::size_t Comparison::kept() const {
  return static_cast<std::size_t>(std::count(allocation.kept.begin(), allocation.kept.end(), char(1)));
}

double Comparison::mean_of_random(double (*measure)(const Run&, const Run&)) const {
  double sum = 0;
  for (const auto& run : random) sum += measure(full, run);
  return random.empty() ? 0 : sum / static_cast<double>(random.size());
}

std::vector<std::size_t> largest_shares(const Allocation& allocation, std::size_t count) {
  std::vector<std::size_t> order(allocation.shares.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::size_t a, std::size_t b) {
                      const float x = allocation.shares[a], y = allocation.shares[b];
                      return x != y ? x > y : a < b;
                    });
  order.resize(count);
  return order;
}

std::string kept_text(const Comparison& c) {
  std::string text;
  std::size_t end = 0;
  bool gap = false;
  for (std::size_t i = 0; i < c.tokens->size(); ++i) {
    const Token& token = (*c.tokens)[i];
    if (!c.allocation.kept[i]) {
      gap = true;
      continue;
    }
    if (token.begin < end) continue;
    if (gap)
      text += text.empty() ? "... " : " ... ";
    else if (token.begin > end && !text.empty())
      text += ' ';
    text += c.text.substr(token.begin, token.end - token.begin);
    end = token.end;
    gap = false;
  }
  return gap ? text + " ..." : text;
}

std::string allocation_page(const Comparison& c) {
  const double tokens = static_cast<double>(c.tokens->size()), kept = static_cast<double>(c.kept());
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">\n<title>" +
      escaped(c.name) + ": its attention as a budget</title>\n<style>" + style +
      "</style></head><body><main>\n<h1>" + escaped(c.name) + "</h1>\n<p class=\"soft\">" +
      format(
          "%zu tokens in %zu window%s of at most %td. Every layer was observed; from layer %d on, only "
          "the tokens with the largest shares of the attention went on.",
          c.tokens->size(), c.windows, c.windows == 1 ? "" : "s, overlapping by half,", c.options.window,
          c.options.from_layer) +
      "</p>\n";

  html +=
      "<div class=\"tiles\">" +
      tile(format("%zu of %zu", c.kept(), c.tokens->size()), format("tokens kept, %.0f %%", 100 * kept / tokens)) +
      tile(format("%.3f", cosine(c.full, c.budgeted)),
           c.windows == 1
               ? "cosine to the full embedding"
               : format("cosine to the full embedding; %.3f of its windows", window_cosine(c.full, c.budgeted))) +
      tile(format("%.0f %%", 100 * c.budgeted.work.total() / c.full.work.total()), "of the work") +
      tile(format("%.0f %%", 100 * c.budgeted.seconds / c.full.seconds),
           format("of the time (%.3g of %.3g s)", c.budgeted.seconds, c.full.seconds)) +
      "</div>\n";

  html +=
      "<section><h2>Where the budget goes</h2><p class=\"legend\"><span>share of the attention: little<span "
      "class=\"scale\"></span>much</span><span><span class=\"t\" style=\"--a:.3\">kept</span> tokens are "
      "underlined</span><span><span class=\"d\" style=\"--a:.1\">dropped</span> ones are faded</span></p>" +
      heat_map(c) + "</section>\n";

  html +=
      "<section><h2>Budget per layer</h2><p class=\"soft\"><span class=\"key dense\"></span>projections and "
      "feed-forward &emsp; <span class=\"key attention\"></span>attention &emsp; <span class=\"key\" "
      "style=\"background:var(--saved)\"></span>saved. Keys attended: how many tokens a query looks at, "
      "effectively.</p>" +
      layer_table(c) + "</section>\n";

  html += "<section><h2>The same budget, spent otherwise</h2>" + comparison_table(c) + "</section>\n";
  html += "<section><h2>Largest shares</h2>" + share_table(c) + "</section>\n";
  return html + "</main></body></html>\n";
}

std::string allocation_json(const Comparison& c) {
  using nlohmann::json;
  const auto run = [&](const Run& r) {
    json layers = json::array();
    for (const auto& layer : r.layers)
      layers.push_back(
          {{"tokens", layer.tokens}, {"attention_flop", layer.work.attention}, {"dense_flop", layer.work.dense}});
    return json{{"cosine", cosine(c.full, r)},
                {"window_cosine", window_cosine(c.full, r)},
                {"milliseconds", 1e3 * r.seconds},
                {"attention_flop", r.work.attention},
                {"dense_flop", r.work.dense},
                {"layers", std::move(layers)},
                {"embedding", std::vector<float>(r.embedding.begin(), r.embedding.end())}};
  };
  json root{{"text", c.name},      {"windows", c.windows},        {"kept", c.kept()},
            {"full", run(c.full)}, {"budgeted", run(c.budgeted)}, {"first", run(c.first)}};
  root["random"] = json::array();
  for (const auto& r : c.random) root["random"].push_back(run(r));
  root["tokens"] = json::array();
  for (std::size_t i = 0; i < c.tokens->size(); ++i) {
    const Token& token = (*c.tokens)[i];
    root["tokens"].push_back({{"piece", c.pieces->piece(token.id)},
                              {"begin", token.begin},
                              {"end", token.end},
                              {"share", c.allocation.shares[i]},
                              {"kept", c.allocation.kept[i] != 0}});
  }
  // The name may hold bytes that are not UTF-8.
  return root.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace example
