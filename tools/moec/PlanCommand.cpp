// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moec/PlanCommand.h"

#include "passes/Moe/Passes.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Table.h"
#include "tools/Driver/CompileRate.h"
#include "tools/Driver/Text.h"
#include "tools/moec/PassFlags.h"

#include <CLI/CLI.hpp>

#include <array>
#include <cstdio>
#include <iostream>

using namespace moec;

//===----------------------------------------------------------------------===//
// For people
//===----------------------------------------------------------------------===//

namespace {

template <typename... Args> std::string format(const char *pattern, Args... args) {
  std::array<char, 128> text;
  std::snprintf(text.data(), text.size(), pattern, args...);
  return text.data();
}

/// "80 GB", as data sheets have it.
std::string gigabytesText(uint64_t bytes) { return format("%.0f GB", static_cast<double>(bytes) / 1e9); }

std::string rateText(double tokens, bool byMemory) {
  if (tokens <= 0)
    return "";
  return format(tokens < 10 ? "%.2f" : "%.0f", tokens) + (byMemory ? " (memory)" : " (arithmetic)");
}

std::string secondsText(double seconds) {
  return seconds < 120 ? format("%.1f s", seconds) : format("%.1f minutes", seconds / 60);
}

std::string ratesText(const Chip &chip) {
  return format("%.1f GB/s, ", chip.bandwidth / 1e9) + format("%.2f TFLOPS", chip.bf16 / 1e12);
}

void addPlace(Table &table, const PlanPlace &place) {
  table.add({place.chip.name, sizeText(place.weightBytes + place.cacheBytes + place.arenaBytes),
             gigabytesText(place.chip.memory), std::to_string(place.devices), place.fits ? "yes" : "no",
             rateText(place.decode, place.decodeByMemory), rateText(place.prefill, place.prefillByMemory)});
}

void print(const Plan &plan, std::ostream &out) {
  const hf::ModelConfig &config = plan.config;
  const PlanPart total = plan.total();
  out << config.name << " (" << config.type << "): " << countText(static_cast<double>(total.parameters))
      << " parameters, " << countText(static_cast<double>(total.activeParameters)) << " active for a token\n"
      << config.layers << " layers, hidden " << config.hidden << ", vocabulary " << config.vocab;
  if (config.experts)
    out << ", " << config.experts << " experts, " << config.topk << " a token";
  out << "\nfrom " << (plan.hasHeaders ? "config and headers" : "its config alone") << "\n";
  for (const std::string &reason : plan.unsupported)
    out << "not supported yet: " << reason << "\n";
  for (const PlanPart &part : plan.parts)
    if (!part.aside.empty())
      out << "left out: " << part.name << " (" << sizeText(part.checkpointBytes) << "): " << part.aside << "\n";

  const char *planned = plan.exactWeights ? "artifact" : "forecast";
  Table parts({"part", "parameters", "active", "checkpoint", planned, "read a token"});
  auto add = [&](const PlanPart &part) {
    parts.add({part.name, countText(static_cast<double>(part.parameters)),
               countText(static_cast<double>(part.activeParameters)), sizeText(part.checkpointBytes),
               sizeText(part.bytes), sizeText(part.activeBytes)});
  };
  for (const PlanPart &part : plan.parts)
    add(part);
  add(total);
  out << "\n" << parts.text() << "\n";

  const std::string exact = plan.exactMemory ? "" : " (forecast)";
  Table memory({"memory", "bytes", ""});
  auto bytes = [&](const std::string &what, uint64_t amount) {
    memory.add({what, std::to_string(amount), sizeText(amount)});
  };
  bytes(plan.exactWeights ? "weights" : "weights (forecast)", total.bytes);
  if (plan.arenaBytes)
    bytes("arena, " + std::to_string(plan.maxTokens) + " tokens a run" + exact, plan.arenaBytes);
  else
    memory.add({"arena: unknown, there is no program yet", "", ""});
  bytes("cache per token" + exact, plan.cacheBytesPerToken);
  bytes("cache of " + std::to_string(plan.context) + " tokens" + exact, plan.cacheBytes);
  bytes("compile reads", plan.readBytes);
  bytes("compile writes, and needs on disk", plan.writeBytes);
  out << memory.text() << "making the weights takes " << secondsText(plan.compileSeconds) << " at "
      << sizeText(plan.compileRate) << "/s of reading and writing (" << toString(plan.compileRateSource)
      << (plan.compileRateSource == RateSource::Assumed ? ", see --measure" : "") << "),\nthe code some seconds\n\n";

  const Chip &chip = plan.place.chip;
  if (chip.bandwidth > 0)
    out << chip.description << ": " << ratesText(chip) << "\n";
  else
    out << chip.description << ": rates unknown, --measure takes them\n";
  Table places({"where", "needs", "memory of one", "devices", "fits", "decode tokens/s", "prefill tokens/s"});
  addPlace(places, plan.place);
  for (const PlanPlace &place : plan.others)
    addPlace(places, place);
  out << places.text() << "needs: weights, cache of " << plan.context << " tokens and arena, in "
      << format("%.0f", 100 * PlanPlace::usable) << " % of the memory of all devices\n"
      << "tokens/s: at most, for one sequence; decode with the context full, prefill on the way there;\n"
      << "of memory and arithmetic what takes more time is named, and nothing else takes any\n";
}

//===----------------------------------------------------------------------===//
// For programs
//===----------------------------------------------------------------------===//

Json toJson(const PlanPart &part) {
  return {{"part", part.name},
          {"parameters", part.parameters},
          {"active_parameters", part.activeParameters},
          {"checkpoint_bytes", part.checkpointBytes},
          {"bytes", part.bytes},
          {"active_bytes", part.activeBytes},
          {"left_out", part.aside.empty() ? Json() : Json(part.aside)}};
}

Json toJson(const Chip &chip) {
  Json json = {{"name", chip.name}, {"description", chip.description}, {"memory", chip.memory}};
  json["bandwidth"] = chip.bandwidth > 0 ? Json(chip.bandwidth) : Json();
  json["arithmetic"] = chip.bf16 > 0 ? Json(chip.bf16) : Json();
  return json;
}

Json toJson(const PlanPlace &place) {
  Json json = toJson(place.chip);
  json["weight_bytes"] = place.weightBytes;
  json["cache_bytes"] = place.cacheBytes;
  json["arena_bytes"] = place.arenaBytes;
  json["devices"] = place.devices;
  json["fits"] = place.fits;
  auto rate = [&](const char *key, double tokens, bool byMemory) {
    json[key] =
        tokens > 0 ? Json{{"tokens_per_second", tokens}, {"bound_by", byMemory ? "memory" : "arithmetic"}} : Json();
  };
  rate("decode", place.decode, place.decodeByMemory);
  rate("prefill", place.prefill, place.prefillByMemory);
  return json;
}

Json toJson(const Plan &plan) {
  const hf::ModelConfig &config = plan.config;
  const PlanPart total = plan.total();
  Json json;
  json["model"] = {{"type", config.type},
                   {"name", config.name},
                   {"layers", config.layers},
                   {"hidden", config.hidden},
                   {"vocab", config.vocab},
                   {"experts", config.experts},
                   {"experts_per_token", config.topk},
                   {"max_positions", config.maxPositions}};
  json["from_headers"] = plan.hasHeaders;
  json["unsupported"] = plan.unsupported;
  json["parameters"] = {{"total", total.parameters}, {"active", total.activeParameters}};
  json["checkpoint"] = {{"tensors", plan.checkpointTensors}, {"bytes", total.checkpointBytes}};
  Json parts = Json::array();
  for (const PlanPart &part : plan.parts)
    parts.push_back(toJson(part));
  json["weights"] = {{"exact", plan.exactWeights},
                     {"experts", plan.experts.empty() ? Json() : Json(plan.experts)},
                     {"bytes", total.bytes},
                     {"active_bytes", total.activeBytes},
                     {"parts", std::move(parts)}};
  json["arena"] = {{"exact", plan.exactMemory},
                   {"max_tokens", plan.maxTokens},
                   {"bytes", plan.arenaBytes ? Json(plan.arenaBytes) : Json()}};
  json["cache"] = {{"exact", plan.exactMemory},
                   {"bytes_per_token", plan.cacheBytesPerToken},
                   {"context", plan.context},
                   {"bytes", plan.cacheBytes}};
  json["compile"] = {{"read_bytes", plan.readBytes},
                     {"write_bytes", plan.writeBytes},
                     {"rate", plan.compileRate},
                     {"rate_source", toString(plan.compileRateSource)},
                     {"seconds", plan.compileSeconds}};
  json["target"] = toJson(plan.place);
  json["chips"] = Json::array();
  for (const PlanPlace &place : plan.others)
    json["chips"].push_back(toJson(place));
  return json;
}

} // namespace

//===----------------------------------------------------------------------===//
// The command
//===----------------------------------------------------------------------===//

PlanCommand::PlanCommand(CLI::App &app)
    : command(app.add_subcommand("plan", "Say what a compile will need and what its result will do")) {
  command->add_option("MODEL_DIR", options.model,
                      "checkpoint directory, or a config.json; may be absent with --measure");
  command->add_option("--target", options.target, "cpu (this machine), or one of " + chipNames())
      ->capture_default_str();
  std::string formats;
  for (const WeightFormat &format : weightFormats())
    formats += (formats.empty() ? "" : ", ") + std::string(format.name);
  addPassOptions(*command, options.passes);
  command
      ->add_option("--experts", options.experts,
                   "how routed experts are stored: " + formats + " (default: as a compile does)")
      ->excludes("--pass-pipeline");
  command->add_option("--cache", options.cache, "format of cache entries on this machine: f32, bf16, int8 or fp8")
      ->check(CLI::IsMember(mlir::moe::cacheFormats()))
      ->excludes("--pass-pipeline")
      ->capture_default_str();
  command->add_option("--devices", options.devices, "devices that share the model (default: as many as hold it)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 20));
  command->add_option("--context", options.context, "tokens in the sequence (default: as a compile)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 31));
  command->add_option("--max-tokens", options.maxTokens, "tokens in one run of the program")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 16))
      ->capture_default_str();
  command->add_option("--disk-rate", diskRate,
                      "bytes a second that a compile reads and writes together (default: 1GiB, or as measured)");
  command->add_flag("--measure", options.measure,
                    "measure first: this machine's memory and arithmetic, and making weights in the working directory, "
                    "on 256 MiB of its disk; takes some seconds");
  command->add_flag("--json", json, "print JSON");
}

Status PlanCommand::run() {
  if (!diskRate.empty()) {
    MOEC_TRY(options.diskRate, parseSize(diskRate));
    if (options.diskRate == 0)
      return Error{"--disk-rate is 0, expected at least one byte a second"};
  }
  if (options.model.empty()) {
    if (!options.measure || options.target != "cpu")
      return Error{"give a checkpoint directory or a config.json, or --measure alone"};
    MOEC_TRY(Chip chip, measureThisMachine());
    MOEC_TRY(double rate, measureCompileRate("."));
    if (json)
      std::cout << Json{{"target", toJson(chip)}, {"compile", {{"rate", rate}}}}.dump(2) << "\n";
    else
      std::cout << chip.description << ": " << ratesText(chip) << "\na compile in this directory reads and writes "
                << sizeText(static_cast<uint64_t>(rate)) << "/s together\n";
    return success();
  }
  MOEC_TRY(Plan plan, makePlan(options));
  if (json)
    std::cout << toJson(plan).dump(2) << "\n";
  else
    print(plan, std::cout);
  return success();
}
