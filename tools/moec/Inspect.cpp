// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moec/Inspect.h"

#include "runtime/Support/Table.h"
#include "runtime/Support/Text.h"
#include "tools/Driver/Text.h"

#include "llvm/ADT/StringRef.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <ostream>

using namespace moec;

namespace {

uint64_t weightBytes(const Artifact &artifact) {
  uint64_t bytes = 0;
  for (const WeightInfo &weight : artifact.weights())
    bytes += weight.tensor.bytes;
  return bytes;
}

/// Bytes of cache that one more token of a sequence takes.
uint64_t cacheBytesPerToken(const Artifact &artifact) {
  uint64_t bytes = 0;
  for (const CacheInfo &cache : artifact.caches())
    bytes += cache.width * byteSize(cache.dtype);
  return bytes;
}

/// What caches hold: "f32", "bf16", "fp8".
std::string cacheType(const Artifact &artifact) {
  if (artifact.caches().empty())
    return "";
  const CacheInfo &cache = artifact.caches().front();
  return cache.codes.empty() ? llvm::StringRef(toString(cache.dtype)).lower() : cache.codes;
}

/// The file's name inside the artifact.
std::string fileName(const Artifact &artifact, const CodeFile &file) {
  return std::filesystem::path(file.path).lexically_relative(artifact.directory()).string();
}

/// Where an argument points, as people name it.
std::string argText(const Artifact &artifact, const ArgInfo &arg) {
  std::string text;
  switch (arg.kind) {
  case ArgInfo::Kind::Tokens:
    return "tokens";
  case ArgInfo::Kind::Positions:
    return "positions";
  case ArgInfo::Kind::Slots:
    return "slots";
  case ArgInfo::Kind::Rows:
    return "rows";
  case ArgInfo::Kind::PageTable:
    return "page_table";
  case ArgInfo::Kind::Logits:
    return "logits";
  case ArgInfo::Kind::Argmax:
    return "argmax";
  case ArgInfo::Kind::Weight:
    text = "@" + artifact.weights()[arg.index].name;
    break;
  case ArgInfo::Kind::Cache:
    text = "cache " + artifact.caches()[arg.index].name;
    break;
  case ArgInfo::Kind::Buffer:
    text = "%" + artifact.buffers()[arg.index].name;
    break;
  }
  return arg.offset ? text + "+" + std::to_string(arg.offset) : text;
}

} // namespace

/// The length of a run of tokens that a launch asks for; empty if it always runs.
static std::string boundText(const LaunchInfo &launch) {
  if (launch.hasRunFrom())
    return ">= " + std::to_string(launch.runFrom);
  return launch.hasRunBelow() ? "< " + std::to_string(launch.runBelow) : "";
}

void moec::printArtifact(const Artifact &artifact, std::ostream &out) {
  const ModelInfo &model = artifact.model();
  int64_t tokens = artifact.maxTokens();
  out << artifact.directory() << ": " << model.name << " (" << model.type << "), " << model.layers << " layers, hidden "
      << model.hidden << ", vocabulary " << model.vocab << ", context " << model.maxContext << "\n"
      << "made by " << artifact.compiler() << " for " << artifact.target() << "\n\n";

  Table summary({"memory", "bytes", ""});
  summary.add({"weights", std::to_string(weightBytes(artifact)), sizeText(weightBytes(artifact))});
  summary.add({"arena, " + std::to_string(tokens) + " tokens a run", std::to_string(artifact.arenaBytes()),
               sizeText(artifact.arenaBytes())});
  uint64_t perToken = cacheBytesPerToken(artifact);
  summary.add({"cache per token, " + cacheType(artifact), std::to_string(perToken), sizeText(perToken)});
  summary.add(
      {"cache of a full context", std::to_string(perToken * model.maxContext), sizeText(perToken * model.maxContext)});
  out << summary.text() << "\n";

  Table code({"code", "file", "bytes", "xxh3"});
  for (const CodeFile &file : artifact.code())
    code.add({file.level, fileName(artifact, file), std::to_string(file.bytes), file.xxh3});
  out << code.text() << "\n";

  std::map<size_t, int64_t> uses;
  for (const LaunchInfo &launch : artifact.launches())
    ++uses[launch.kernel];
  Table kernels({"kernel", "kind", "launches"});
  for (size_t i = 0; i < artifact.kernels().size(); ++i)
    kernels.add({artifact.kernels()[i].symbol, artifact.kernels()[i].kind, std::to_string(uses[i])});
  out << kernels.text() << "\n";

  Table plan({"buffer", "type", "offset", "bytes"});
  for (const BufferInfo &buffer : artifact.buffers())
    plan.add({buffer.name, std::string(toString(buffer.dtype)), std::to_string(buffer.offset),
              std::to_string(buffer.bytes)});
  out << plan.text() << "\n";

  Table program(
      {"", "launch", "kernel", "tasks T=1", "T=" + std::to_string(tokens), "if a run has", "arguments (* written)"});
  for (size_t i = 0; i < artifact.launches().size(); ++i) {
    const LaunchInfo &launch = artifact.launches()[i];
    std::string args;
    for (size_t a = 0; a < launch.args.size(); ++a)
      args += (a ? ", " : "") + argText(artifact, launch.args[a]) +
              (std::ranges::binary_search(launch.writes, a) ? "*" : "");
    program.add({std::to_string(i), launch.label, artifact.kernels()[launch.kernel].symbol,
                 std::to_string(launch.tasks(1, 1)), std::to_string(launch.tasks(tokens, 1)), boundText(launch), args});
  }
  out << program.text() << "\n";

  Table weights({"weight", "type", "shape", "bytes"});
  for (const WeightInfo &weight : artifact.weights())
    weights.add({weight.name, std::string(toString(weight.tensor.dtype)), shapeToString(weight.tensor.shape),
                 std::to_string(weight.tensor.bytes)});
  out << weights.text();
}

std::string moec::artifactJson(const Artifact &artifact) {
  const ModelInfo &model = artifact.model();
  Json json;
  json["artifact"] = artifact.directory();
  json["compiler"] = artifact.compiler();
  json["target"] = artifact.target();
  json["model"] = {{"type", model.type},     {"name", model.name},     {"vocab", model.vocab},
                   {"hidden", model.hidden}, {"layers", model.layers}, {"max_context", model.maxContext},
                   {"bos", model.bos},       {"eos", model.eos}};
  json["memory"] = {{"weights", weightBytes(artifact)},
                    {"arena", artifact.arenaBytes()},
                    {"cache_per_token", cacheBytesPerToken(artifact)},
                    {"cache_type", cacheType(artifact)},
                    {"max_tokens", artifact.maxTokens()}};
  json["code"] = Json::array();
  for (const CodeFile &file : artifact.code())
    json["code"].push_back(
        {{"level", file.level}, {"file", fileName(artifact, file)}, {"bytes", file.bytes}, {"xxh3", file.xxh3}});
  json["kernels"] = Json::array();
  for (const KernelInfo &kernel : artifact.kernels())
    json["kernels"].push_back({{"symbol", kernel.symbol}, {"kind", kernel.kind}, {"spec", kernel.spec}});
  json["buffers"] = Json::array();
  for (const BufferInfo &buffer : artifact.buffers())
    json["buffers"].push_back(
        {{"name", buffer.name}, {"dtype", toString(buffer.dtype)}, {"offset", buffer.offset}, {"bytes", buffer.bytes}});
  json["launches"] = Json::array();
  for (const LaunchInfo &launch : artifact.launches()) {
    Json args = Json::array();
    for (const ArgInfo &arg : launch.args)
      args.push_back(argText(artifact, arg));
    Json entry = {{"label", launch.label}, {"kernel", artifact.kernels()[launch.kernel].symbol}, {"args", args}};
    if (launch.hasRunFrom())
      entry["run_from"] = launch.runFrom;
    if (launch.hasRunBelow())
      entry["run_below"] = launch.runBelow;
    json["launches"].push_back(std::move(entry));
  }
  json["weights"] = Json::array();
  for (const WeightInfo &weight : artifact.weights())
    json["weights"].push_back({{"name", weight.name},
                               {"dtype", toString(weight.tensor.dtype)},
                               {"shape", weight.tensor.shape},
                               {"bytes", weight.tensor.bytes},
                               {"sources", weight.sources}});
  return json.dump(2);
}
