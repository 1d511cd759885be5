// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Table.h"
#include "runtime/Support/Text.h"
#include "tools/Driver/Calibrate.h"
#include "tools/Driver/Text.h"

#include <algorithm>
#include <cstdio>

using namespace moec;

namespace {

/// Experts that saw too little.
struct Scarcity {
  int64_t experts = 0, of = 0, never = 0;
  int64_t tokensNeeded = 0; ///< of a text like this one, for each to see enough; more where `never` is not 0

  explicit Scarcity(const CalibrateReport &report) {
    for (const ExpertUse &layer : report.layers)
      for (int64_t count : layer.counts) {
        ++of;
        if (count >= CalibrateReport::enough)
          continue;
        ++experts;
        never += count == 0;
        const int64_t seen = std::max<int64_t>(count, 1);
        tokensNeeded = std::max(tokensNeeded, (report.tokens * CalibrateReport::enough + seen - 1) / seen);
      }
  }
};

std::string percent(int64_t count, int64_t tokens) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f %%", 100.0 * static_cast<double>(count) / static_cast<double>(tokens));
  return text;
}

/// "layer: 3 (17), 9 (101) and 4 more"; empty if all of the layer saw enough.
std::string scarceOf(const ExpertUse &layer) {
  constexpr int64_t shown = 8;
  std::string text;
  int64_t found = 0;
  for (size_t expert = 0; expert < layer.counts.size(); ++expert)
    if (layer.counts[expert] < CalibrateReport::enough && found++ < shown)
      text += (text.empty() ? "" : ", ") + std::to_string(expert) + " (" + std::to_string(layer.counts[expert]) + ")";
  if (found > shown)
    text += " and " + std::to_string(found - shown) + " more";
  return text.empty() ? text : layer.name + ": " + text;
}

} // namespace

std::string CalibrateReport::text() const {
  std::string result = output + ": " + sizeText(bytes) + " from " + std::to_string(tokens) + " tokens\n";
  if (layers.empty())
    return result;
  Table table({"experts of", "least chosen", "tokens", "share", "most chosen", "tokens", "share", "even share",
               "sensitivity", "tipping"});
  for (const ExpertUse &layer : layers) {
    auto [least, most] = std::ranges::minmax_element(layer.counts);
    table.add({layer.name, std::to_string(least - layer.counts.begin()), std::to_string(*least),
               percent(*least, tokens), std::to_string(most - layer.counts.begin()), std::to_string(*most),
               percent(*most, tokens), percent(layer.topk, static_cast<int64_t>(layer.counts.size())),
               layer.sensitivity ? numberText(*layer.sensitivity) : "",
               layer.tipping ? numberText(*layer.tipping) : ""});
  }
  result += "\n" + table.text() + "\n";

  const Scarcity scarce(*this);
  const std::string limit = std::to_string(enough);
  if (scarce.experts == 0)
    return result + "each expert saw " + limit + " tokens or more\n";
  result += std::to_string(scarce.experts) + " of " + std::to_string(scarce.of) + " experts saw fewer than " + limit +
            " tokens, too few to judge their weights by:\n";
  for (const ExpertUse &layer : layers)
    if (std::string line = scarceOf(layer); !line.empty())
      result += "  " + line + "\n";
  return result + "a text like this one would need " + (scarce.never ? "more than " : "about ") +
         std::to_string(scarce.tokensNeeded) + " tokens to give each of them " + limit + "\n";
}

Json CalibrateReport::json() const {
  const Scarcity scarce(*this);
  Json result = {{"output", output}, {"bytes", bytes},           {"tokens", tokens},
                 {"enough", enough}, {"scarce", scarce.experts}, {"never_chosen", scarce.never}};
  result["tokens_needed"] = std::max(scarce.tokensNeeded, tokens);
  result["layers"] = Json::array();
  for (const ExpertUse &layer : layers) {
    auto [least, most] = std::ranges::minmax_element(layer.counts);
    Json one = {{"experts", layer.name},
                {"topk", layer.topk},
                {"counts", layer.counts},
                {"least", {{"expert", least - layer.counts.begin()}, {"tokens", *least}}},
                {"most", {{"expert", most - layer.counts.begin()}, {"tokens", *most}}}};
    one["scarce"] = Json::array();
    for (size_t expert = 0; expert < layer.counts.size(); ++expert)
      if (layer.counts[expert] < enough)
        one["scarce"].push_back(expert);
    if (layer.sensitivity)
      one["sensitivity"] = *layer.sensitivity;
    if (layer.tipping)
      one["tipping"] = *layer.tipping;
    result["layers"].push_back(std::move(one));
  }
  return result;
}
