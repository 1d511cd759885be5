// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Explain.h"
#include "tools/Driver/Text.h"

#include <algorithm>
#include <map>

using namespace moec;

namespace {

std::string escaped(const std::string &text) {
  std::string result;
  for (char c : text)
    switch (c) {
    case '&':
      result += "&amp;";
      break;
    case '<':
      result += "&lt;";
      break;
    case '>':
      result += "&gt;";
      break;
    case '"':
      result += "&quot;";
      break;
    default:
      result += c;
    }
  return result;
}

std::string bytesText(const Json &bytes) { return sizeText(bytes.get<uint64_t>()); }

constexpr const char *style = R"(
:root { color-scheme: light dark; --line: #8884; --faint: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; }
tfoot td { font-weight: bold; }
code { font-size: .9em; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: .5rem 0; }
svg { width: 100%; height: auto; }
svg rect { stroke: Canvas; stroke-width: .3; }
svg rect:hover { stroke: CanvasText; stroke-width: 1.5; }
svg line { stroke: var(--faint); }
svg text { fill: CanvasText; font-size: 11px; }
.note { color: var(--faint); }
)";

/// Builds one page, section by section.
class Page {
public:
  explicit Page(const Json &report) : report(report) {}

  std::string build() {
    const std::string name = escaped(report["model"].value("name", std::string()));
    html = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
           "<meta name=\"viewport\" content=\"width=device-width\">\n<title>" +
           name + ": how it was compiled</title>\n<style>" + style + "</style>\n</head>\n<body>\n<h1>" + name +
           "</h1>\n";
    summary();
    parts();
    fusions();
    memory();
    weights();
    launches();
    return html + "</body>\n</html>\n";
  }

private:
  /// A column is a heading, and how to tell a row's cell.
  struct Column {
    std::string heading;
    std::string (*cell)(const Json &row);
    bool isNumber = false;
  };

  void heading(const std::string &text) { html += "<h2>" + text + "</h2>\n"; }
  void paragraph(const std::string &text) { html += "<p>" + text + "</p>\n"; }

  void row(const std::vector<Column> &columns, const Json &data) {
    html += "<tr>";
    for (const Column &column : columns)
      html += (column.isNumber ? "<td class=\"number\">" : "<td>") + escaped(column.cell(data)) + "</td>";
    html += "</tr>\n";
  }

  void table(const std::vector<Column> &columns, const Json &rows, const Json *total = nullptr) {
    html += "<table>\n<thead><tr>";
    for (const Column &column : columns)
      html += (column.isNumber ? "<th class=\"number\">" : "<th>") + column.heading + "</th>";
    html += "</tr></thead>\n<tbody>\n";
    for (const Json &data : rows)
      row(columns, data);
    html += "</tbody>\n";
    if (total) {
      html += "<tfoot>";
      row(columns, *total);
      html += "</tfoot>\n";
    }
    html += "</table>\n";
  }

  void foldedTable(const std::string &caption, const std::vector<Column> &columns, const Json &rows) {
    html += "<details>\n<summary>" + caption + "</summary>\n";
    table(columns, rows);
    html += "</details>\n";
  }

  void summary() {
    const Json &memory = report["memory"], &total = report["total"];
    paragraph(escaped(report["compiler"].get<std::string>()) + ", for " + escaped(report["target"].get<std::string>()) +
              ": weights " + bytesText(memory["weights"]) + " (checkpoint " + bytesText(total["checkpoint_bytes"]) +
              "), arena " + bytesText(memory["arena"]) + " for " + std::to_string(memory["max_tokens"].get<int64_t>()) +
              " tokens a run, cache " + bytesText(memory["cache_per_token"]) + " a token in " +
              escaped(memory["cache_type"].get<std::string>()) + ".");
    paragraph("Passes: <code>" + escaped(report["passes"].get<std::string>()) + "</code>");
  }

  void parts() {
    heading("Layers");
    paragraph("Operations are those of one decode step with " + std::to_string(report["context"].get<int64_t>()) +
              " tokens in the cache: products with weights, of the experts that a token is routed to, and attention.");
    table({{"", [](const Json &part) { return part["name"].get<std::string>(); }},
           {"checkpoint", [](const Json &part) { return bytesText(part["checkpoint_bytes"]); }, true},
           {"artifact", [](const Json &part) { return bytesText(part["bytes"]); }, true},
           {"operations as imported", [](const Json &part) { return countText(part["flops_before"]); }, true},
           {"optimized", [](const Json &part) { return countText(part["flops_after"]); }, true}},
          report["parts"], &report["total"]);
  }

  void fusions() {
    heading("Fusions");
    Json fused = Json::array(), left = Json::array();
    for (const Json &fusion : report["fusions"])
      (fusion["fused"].get<bool>() ? fused : left).push_back(fusion);
    const auto op = [](const Json &fusion) { return fusion["op"].get<std::string>(); };
    const auto pass = [](const Json &fusion) { return fusion["pass"].get<std::string>(); };
    const auto text = [](const Json &fusion) { return fusion["text"].get<std::string>(); };
    if (left.empty())
      paragraph("No candidate was left alone.");
    else
      table({{"left alone", op}, {"by", pass}, {"because", text}}, left);
    foldedTable(std::to_string(fused.size()) + " fused", {{"op", op}, {"by", pass}, {"", text}}, fused);
  }

  /// The memory plan: launches from left to right, the arena from top to bottom.
  void memory() {
    heading("Memory plan");
    const Json &buffers = report["buffers"];
    const size_t launches = std::max<size_t>(report["launches"].size(), 1);
    const auto arena = static_cast<double>(std::max<uint64_t>(report["memory"]["arena"].get<uint64_t>(), 1));
    constexpr double width = 1000, height = 420, left = 70, top = 10;
    const double perLaunch = width / static_cast<double>(launches), perByte = height / arena;
    char text[256];
    paragraph("Each box is a buffer, from its first to its last launch; " + std::to_string(buffers.size()) +
              " buffers share " + bytesText(report["memory"]["arena"]) + ".");
    html += "<svg viewBox=\"0 0 1080 460\" role=\"img\" aria-label=\"buffers over launches\">\n";
    for (const Json &buffer : buffers) {
      const auto first = buffer["first_launch"].get<size_t>(), last = buffer["last_launch"].get<size_t>();
      const std::string name = buffer["name"];
      std::snprintf(
          text, sizeof text, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"hsl(%u 55%% 55%%)\">",
          left + perLaunch * static_cast<double>(first), top + perByte * buffer["offset"].get<double>(),
          perLaunch * static_cast<double>(last - first + 1), perByte * buffer["bytes"].get<double>(), hueOf(name));
      html += text + ("<title>" + escaped(name)) + ": " + bytesText(buffer["bytes"]) + " at " +
              std::to_string(buffer["offset"].get<uint64_t>()) + ", launches " + std::to_string(first) + " to " +
              std::to_string(last) + "</title></rect>\n";
    }
    std::snprintf(text, sizeof text,
                  "<line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\"/><line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\"/>\n",
                  left, top, left, top + height, left, top + height, left + width, top + height);
    html += text;
    std::snprintf(text, sizeof text,
                  "<text x=\"0\" y=\"20\">0</text><text x=\"0\" y=\"%g\">%s</text><text x=\"%g\" y=\"450\">launch "
                  "0</text><text x=\"%g\" y=\"450\" text-anchor=\"end\">%zu</text>\n</svg>\n",
                  top + height, sizeText(static_cast<uint64_t>(arena)).c_str(), left, left + width, launches - 1);
    html += text;
  }

  /// Buffers of the same use in other layers have the same colour.
  unsigned hueOf(const std::string &name) {
    std::string use;
    for (char c : name)
      if (c < '0' || c > '9')
        use += c;
    return static_cast<unsigned>(hues.try_emplace(use, hues.size() * 137 % 360).first->second);
  }

  void weights() {
    heading("Formats of weights");
    Json reasons = Json::array();
    for (const Json &weight : report["weights"]) {
      auto same = std::ranges::find_if(reasons, [&](const Json &row) { return row["reason"] == weight["reason"]; });
      if (same == reasons.end())
        reasons.push_back({{"reason", weight["reason"]}, {"weights", 1}, {"bytes", weight["bytes"]}});
      else
        *same = {{"reason", weight["reason"]},
                 {"weights", (*same)["weights"].get<int64_t>() + 1},
                 {"bytes", (*same)["bytes"].get<uint64_t>() + weight["bytes"].get<uint64_t>()}};
    }
    const Column reason = {"why", [](const Json &row) { return row["reason"].get<std::string>(); }};
    const Column bytes = {"bytes", [](const Json &row) { return bytesText(row["bytes"]); }, true};
    table({reason,
           {"weights", [](const Json &row) { return std::to_string(row["weights"].get<int64_t>()); }, true},
           bytes},
          reasons);
    foldedTable(std::to_string(report["weights"].size()) + " weights",
                {{"weight", [](const Json &row) { return row["name"].get<std::string>(); }},
                 {"stored as", [](const Json &row) { return row["type"].get<std::string>(); }},
                 bytes,
                 reason},
                report["weights"]);
  }

  void launches() {
    heading("Launches");
    foldedTable(std::to_string(report["launches"].size()) + " launches",
                {{"op", [](const Json &row) { return row["label"].get<std::string>(); }},
                 {"kernel", [](const Json &row) { return row["kernel"].get<std::string>(); }}},
                report["launches"]);
  }

  const Json &report;
  std::string html;
  std::map<std::string, size_t> hues;
};

} // namespace

std::string moec::reportHtml(const Json &report) { return Page(report).build(); }
