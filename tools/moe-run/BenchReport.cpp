// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moe-run/Bench.h"

#include "runtime/Support/Json.h"

#include <algorithm>
#include <cstdio>

using namespace moec;

namespace {

constexpr double giga = 1e9;

//===----------------------------------------------------------------------===//
// JSON
//===----------------------------------------------------------------------===//

Json toJson(const Spread &spread) {
  return {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}};
}

/// null where it is not known.
Json known(double value) { return value > 0 ? Json(value) : Json(); }

Json toJson(const BenchLimits &limits) {
  Json json = {{"threads", limits.threads}, {"bandwidth", toJson(limits.bandwidth)}};
  for (WorkUnit unit : workUnits) {
    const Spread &rate = limits.arithmetic[static_cast<size_t>(unit)];
    json[std::string(toString(unit))] = rate.most > 0 ? toJson(rate) : Json();
  }
  return json;
}

Json toJson(const ProfileEntry &entry, bool hasWork) {
  Json json = {{"launches", entry.launches}, {"seconds", entry.seconds}};
  if (hasWork)
    json.update({{"bytes", entry.work.bytes()}, {"flops", entry.work.allFlops()}});
  return json;
}

Json toJson(const Profile &profile, bool hasWork) {
  Json kinds = Json::array(), kernels = Json::array();
  for (const auto &[kind, entry] : profile.kinds) {
    kinds.push_back({{"kind", kind}});
    kinds.back().update(toJson(entry, hasWork));
  }
  for (const auto &[symbol, entry] : profile.kernels) {
    kernels.push_back({{"kernel", symbol}, {"kind", entry.kind}});
    kernels.back().update(toJson(entry, hasWork));
  }
  return {{"seconds", profile.seconds}, {"kinds", std::move(kinds)}, {"kernels", std::move(kernels)}};
}

Json toJson(const BenchReport &report, const BenchTest &test) {
  const Spread rate = test.rate();
  const BenchLimits &limits = report.limits[test.limits];
  Json json = {{"test", test.name()},
               {"threads", limits.threads},
               {"prompt", test.prompt},
               {"predict", test.decode},
               {"depth", test.depth},
               {"sequences", test.sequences},
               {"tokens_per_second", rate.median},
               {"least", rate.least},
               {"most", rate.most},
               {"seconds", test.seconds}};
  const double tokens = static_cast<double>(test.tokens());
  if (report.hasWork) {
    json["weight_bytes_per_token"] = test.work.weightBytes / tokens;
    json["cache_bytes_per_token"] = test.work.cacheBytes / tokens;
    for (WorkUnit unit : workUnits)
      json["flops_per_token"][std::string(toString(unit))] = test.work.flops[static_cast<size_t>(unit)] / tokens;
    json["bandwidth_share"] = test.work.bytes() / tokens * rate.median / limits.bandwidth.most;
    json["arithmetic_share"] = known(report.arithmeticSeconds(test.work, limits) / tokens * rate.median);
    json["limit_tokens_per_second"] = tokens / report.leastSeconds(test.work, limits);
  }
  if (report.hasProfile)
    json["profile"] = toJson(test.profile, report.hasWork);
  return json;
}

//===----------------------------------------------------------------------===//
// Tables
//===----------------------------------------------------------------------===//

/// Three digits that count.
std::string number(double value) {
  char text[32];
  const char *format = value >= 99.95 ? "%.0f" : value >= 9.995 ? "%.1f" : value >= 0.9995 ? "%.2f" : "%.3f";
  std::snprintf(text, sizeof text, format, value);
  return text;
}
std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, share < 0.0995 ? "%.1f %%" : "%.0f %%", 100 * share);
  return text;
}
std::string dashIfZero(double value, std::string text) { return value > 0 ? text : "-"; }

std::string limitsTable(const BenchReport &report, TableStyle style) {
  Table table({"best measured between tests", "threads", "read, GB/s", "f32, GFLOP/s", "bf16, GFLOP/s", "int8, GOP/s"});
  for (const BenchLimits &limits : report.limits) {
    std::vector<std::string> row = {"this machine", std::to_string(limits.threads),
                                    number(limits.bandwidth.most / giga)};
    for (const Spread &rate : limits.arithmetic)
      row.push_back(dashIfZero(rate.most, number(rate.most / giga)));
    table.add(std::move(row));
  }
  return table.text(style);
}

std::string testsTable(const BenchReport &report, TableStyle style) {
  std::vector<std::string> head = {"test", "threads", "tok/s", "least to most"};
  if (report.hasWork)
    head.insert(head.end(), {"MB a token", "GB/s", "of read", "GFLOP/s", "of arithmetic", "limit, tok/s"});
  Table table(head);
  for (const BenchTest &test : report.tests) {
    const Spread rate = test.rate();
    const BenchLimits &limits = report.limits[test.limits];
    std::vector<std::string> row = {test.name(), std::to_string(limits.threads), number(rate.median),
                                    number(rate.least) + " to " + number(rate.most)};
    if (report.hasWork) {
      const double tokens = static_cast<double>(test.tokens()), perSecond = rate.median / tokens;
      const double busy = report.arithmeticSeconds(test.work, limits) * perSecond;
      row.insert(row.end(), {number(test.work.bytes() / tokens / 1e6), number(test.work.bytes() * perSecond / giga),
                             percent(test.work.bytes() * perSecond / limits.bandwidth.most),
                             number(test.work.allFlops() * perSecond / giga), dashIfZero(busy, percent(busy)),
                             number(tokens / report.leastSeconds(test.work, limits))});
    }
    table.add(std::move(row));
  }
  return table.text(style);
}

/// The most costly first.
std::string profileTable(const BenchReport &report, const BenchTest &test,
                         const std::map<std::string, ProfileEntry> &entries, const char *what, TableStyle style) {
  const BenchLimits &limits = report.limits[test.limits];
  std::vector<std::string> head = {what, "launches", "ms", "of the time"};
  if (report.hasWork)
    head.insert(head.end(), {"GB/s", "GFLOP/s", "of the limit"});
  Table table(head);
  std::vector<std::pair<std::string, const ProfileEntry *>> sorted;
  for (const auto &[name, entry] : entries)
    sorted.emplace_back(name, &entry);
  std::ranges::stable_sort(sorted, std::greater(), [](const auto &entry) { return entry.second->seconds; });
  for (const auto &[name, entry] : sorted) {
    std::vector<std::string> row = {name, std::to_string(entry->launches), number(entry->seconds * 1e3),
                                    percent(entry->seconds / test.profile.seconds)};
    if (report.hasWork) {
      const Work &work = entry->work;
      const double share = report.leastSeconds(work, limits) / entry->seconds;
      row.insert(row.end(), {dashIfZero(work.bytes(), number(work.bytes() / entry->seconds / giga)),
                             dashIfZero(work.allFlops(), number(work.allFlops() / entry->seconds / giga)),
                             dashIfZero(work.allFlops(), percent(share))});
    }
    table.add(std::move(row));
  }
  return table.text(style);
}

} // namespace

std::string moec::toJson(const BenchReport &report) {
  Json json = {{"artifact", report.artifact},
               {"model", {{"name", report.model.name}, {"type", report.model.type}, {"layers", report.model.layers}}},
               {"device", report.device},
               {"machine", {{"cpu", report.cpu}, {"cores", report.cores}}},
               {"repetitions", report.repetitions},
               {"limits", Json::array()},
               {"results", Json::array()}};
  for (const BenchLimits &limits : report.limits)
    json["limits"].push_back(::toJson(limits));
  for (const BenchTest &test : report.tests)
    json["results"].push_back(::toJson(report, test));
  return json.dump(1) + "\n";
}

std::string moec::toText(const BenchReport &report, TableStyle style) {
  std::string text = report.model.name + " (" + report.model.type + ", " + std::to_string(report.model.layers) +
                     " layers), " + report.device + " on " + report.cpu + ", " + std::to_string(report.cores) +
                     (report.cores == 1 ? " core" : " cores") + "; medians of " + std::to_string(report.repetitions) +
                     "\n\n";
  text += limitsTable(report, style) + "\n" + testsTable(report, style);
  if (!report.hasWork)
    text += "\nThe artifact does not say how much its kernels read and compute; compile it again to see shares of the "
            "machine's limits.\n";
  if (!report.hasProfile)
    return text;
  for (const BenchTest &test : report.tests) {
    const int threads = report.limits[test.limits].threads;
    text += "\n" + std::string(style == TableStyle::Markdown ? "#### " : "") + test.name() + ", " +
            std::to_string(threads) + (threads == 1 ? " thread: " : " threads: ") + number(test.profile.seconds * 1e3) +
            " ms in one more run\n\n";
    text += profileTable(report, test, test.profile.kinds, "kind", style) + "\n" +
            profileTable(report, test, test.profile.kernels, "kernel", style);
  }
  return text;
}
