// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Detect.h"

#include "runtime/Support/Text.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace moec {

namespace {

using formats::Naming;

Error unsupported(const JsonObject &in, const std::string &key, const std::string &expected) {
  std::string found = in.has(key) ? describe(*in.json().find(key)) : "absent";
  return Error{in.field(key) + " is " + found + ", but only " + expected + " is supported"};
}

/// The string at `key`, or `otherwise`, which must be one of `known`.
Result<std::string> oneOf(const JsonObject &in, const std::string &key, const std::string &otherwise,
                          const std::vector<std::string> &known) {
  MOEC_TRY(std::string value, otherwise.empty() ? in.string(key) : in.stringOr(key, otherwise));
  if (std::find(known.begin(), known.end(), value) != known.end())
    return value;
  std::string expected;
  for (size_t i = 0; i < known.size(); ++i)
    expected += (i == 0 ? "" : i + 1 == known.size() ? " or " : ", ") + known[i];
  return unsupported(in, key, expected);
}

/// A group size: -1 means the whole row, which is 0 here.
Result<int64_t> groupSize(const JsonObject &in, const std::string &key) {
  MOEC_TRY(int64_t group, in.integer(key, -1, INT32_MAX));
  if (group == 0)
    return unsupported(in, key, "a positive group size, or -1 for whole rows,");
  return group == -1 ? 0 : group;
}

struct BlockSize {
  int64_t rows, cols;
};
Result<BlockSize> blockSize(const JsonObject &in, const std::string &key) {
  MOEC_TRY(const Json *block, in.array(key));
  auto fits = [](const Json &size) {
    return size.is_number_integer() && size >= 1 && size <= static_cast<int64_t>(INT32_MAX);
  };
  if (block->size() != 2 || !fits((*block)[0]) || !fits((*block)[1]))
    return unsupported(in, key, "two positive integers such as [128, 128]");
  return BlockSize{(*block)[0].get<int64_t>(), (*block)[1].get<int64_t>()};
}

/// Something that may only be absent, null or empty, since it changes what weights mean.
Status mustBeEmpty(const JsonObject &in, const std::string &key) {
  if (in.has(key) && !in.json().find(key)->empty())
    return Error{in.field(key) + " is given, but it changes what weights mean in a way that is not supported"};
  return success();
}

Result<Format> detectFp8(const JsonObject &in) {
  MOEC_TRY(std::string code, oneOf(in, "fmt", "e4m3", {"e4m3", "float8_e4m3fn"}));
  MOEC_TRY(std::string scales, oneOf(in, "scale_fmt", "float", {"float", "ue8m0"}));
  if (!in.has("weight_block_size"))
    return formats::fp8(0, 0, Naming::WeightScale, /*e8m0=*/false);
  MOEC_TRY(BlockSize block, blockSize(in, "weight_block_size"));
  // Published scales that are powers of two are F32 all the same, except where names are DeepSeek V4's.
  return formats::fp8(block.rows, block.cols, Naming::ScaleInv, /*e8m0=*/false);
}

Result<Format> detectGptq(const JsonObject &in) {
  MOEC_TRY(int64_t bits, in.integer("bits", 1, 32));
  if (bits != 4 && bits != 8)
    return unsupported(in, "bits", "4 or 8");
  MOEC_TRY(int64_t group, groupSize(in, "group_size"));
  MOEC_TRY(bool symmetric, in.booleanOr("sym", true));
  MOEC_TRY(bool actOrder, in.booleanOr("desc_act", false));
  MOEC_TRY(std::string version, oneOf(in, "checkpoint_format", "gptq", {"gptq", "gptq_v2"}));
  // Rules that leave modules out start with "-:"; the others give modules another format.
  if (in.has("dynamic")) {
    MOEC_TRY(JsonObject dynamic, in.object("dynamic"));
    for (const auto &[rule, value] : dynamic.json().items())
      if (!rule.starts_with("-:"))
        return Error{in.field("dynamic") + " holds the rule " + quote(rule) +
                     ", but only rules that leave modules out (-:) are supported"};
  }
  return formats::gptq(static_cast<int>(bits), group, symmetric, version == "gptq" ? 1 : 2, actOrder);
}

Result<Format> detectAwq(const JsonObject &in) {
  std::string bitsKey = in.has("w_bit") ? "w_bit" : "bits",
              groupKey = in.has("q_group_size") ? "q_group_size" : "group_size";
  MOEC_TRY(int64_t bits, in.integer(bitsKey, 1, 32));
  if (bits != 4)
    return unsupported(in, bitsKey, "4");
  MOEC_TRY(int64_t group, groupSize(in, groupKey));
  MOEC_TRY(std::string version, oneOf(in, "version", "gemm", {"gemm", "GEMM"}));
  MOEC_TRY(bool zeroPoint, in.booleanOr("zero_point", true));
  if (!zeroPoint)
    return unsupported(in, "zero_point", "true");
  return formats::awq(group);
}

/// One `config_groups` entry of compressed-tensors, whose files are in `format`.
Result<Format> detectGroup(const JsonObject &in, const std::string &format) {
  MOEC_TRY(int64_t bits, in.integerOr("num_bits", 1, 32, 8));
  MOEC_TRY(std::string type, oneOf(in, "type", "int", {"int", "float"}));
  MOEC_TRY(bool symmetric, in.booleanOr("symmetric", true));
  std::optional<int64_t> group;
  if (in.has("group_size")) {
    MOEC_TRY(group, groupSize(in, "group_size"));
  }
  std::string inferred = !group ? "tensor" : *group ? "group" : "channel";
  MOEC_TRY(std::string strategy,
           oneOf(in, "strategy", inferred, {"tensor", "channel", "group", "tensor_group", "block"}));
  if (!group && (strategy == "group" || strategy == "tensor_group"))
    return unsupported(in, "group_size", "a group size with the strategy " + strategy);

  struct Expected {
    const char *format, *type;
    std::vector<int64_t> bits;
    std::vector<std::string> strategies;
    int64_t group; ///< the only one, or 0
  };
  static const std::vector<Expected> table = {
      {"pack-quantized", "int", {4, 8}, {"channel", "group"}, 0},
      {"int-quantized", "int", {8}, {"tensor", "channel", "group"}, 0},
      {"float-quantized", "float", {8}, {"tensor", "channel", "group", "block"}, 0},
      {"nvfp4-pack-quantized", "float", {4}, {"tensor_group"}, 16},
      {"mxfp4-pack-quantized", "float", {4}, {"group"}, 32},
      {"mxfp8-quantized", "float", {8}, {"group"}, 32},
  };
  std::string wanted = format == "naive-quantized" ? type + "-quantized" : format;
  auto row = std::find_if(table.begin(), table.end(), [&](const Expected &e) { return e.format == wanted; });
  auto with = [&](const std::string &what) { return what + " with the format " + format; };
  if (row == table.end()) // the format was checked before this
    return unsupported(in, "type", with("int or float"));
  if (type != row->type)
    return unsupported(in, "type", with(row->type));
  if (std::find(row->bits.begin(), row->bits.end(), bits) == row->bits.end())
    return unsupported(in, "num_bits", with(row->bits.size() == 2 ? "4 or 8" : std::to_string(row->bits[0])));
  if (std::find(row->strategies.begin(), row->strategies.end(), strategy) == row->strategies.end()) {
    std::string expected;
    for (const std::string &name : row->strategies)
      expected += (expected.empty() ? "" : " or ") + name;
    return unsupported(in, "strategy", with(expected));
  }
  if (row->group && group != row->group)
    return unsupported(in, "group_size", with(std::to_string(row->group)));
  if (!symmetric && wanted != "pack-quantized")
    return unsupported(in, "symmetric", with("true"));

  bool actOrder = false;
  if (in.has("actorder") && in.json().find("actorder")->is_string()) {
    MOEC_TRY(std::string order, oneOf(in, "actorder", "static", {"group", "weight", "static", "dynamic"}));
    actOrder = order == "group" || order == "dynamic";
  } else {
    MOEC_TRY(actOrder, in.booleanOr("actorder", false));
  }
  if (actOrder && (wanted != "pack-quantized" || strategy != "group"))
    return unsupported(in, "actorder", "null or weight (except for int weights in packed groups)");

  int64_t rows = strategy == "tensor" ? 0 : 1;
  int64_t cols = strategy == "group" || strategy == "tensor_group" ? *group : 0;
  if (strategy == "block") {
    MOEC_TRY(BlockSize block, blockSize(in, "block_structure"));
    rows = block.rows;
    cols = block.cols;
  }
  if (wanted == "pack-quantized")
    return formats::packQuantized(static_cast<int>(bits), cols, symmetric, actOrder);
  if (wanted == "int-quantized")
    return formats::intQuantized(rows, cols);
  if (wanted == "float-quantized")
    return formats::fp8(rows, cols, Naming::WeightScale, /*e8m0=*/false);
  if (wanted == "nvfp4-pack-quantized")
    return formats::nvfp4(/*modelOpt=*/false);
  if (wanted == "mxfp4-pack-quantized")
    return formats::mxfp4(Naming::WeightScale);
  return formats::fp8(1, 32, Naming::WeightScale, /*e8m0=*/true);
}

Result<Format> detectCompressedTensors(const JsonObject &in) {
  static const std::vector<std::string> known = {"pack-quantized",  "int-quantized",        "float-quantized",
                                                 "naive-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
                                                 "mxfp8-quantized"};
  MOEC_CHECK(mustBeEmpty(in, "transform_config"));
  if (in.has("sparsity_config")) {
    MOEC_TRY(JsonObject sparsity, in.object("sparsity_config"));
    MOEC_TRY(std::string dense, oneOf(sparsity, "format", "dense", {"dense"}));
  }
  MOEC_TRY(JsonObject groups, in.object("config_groups"));
  std::optional<Format> result;
  for (const auto &[name, value] : groups.json().items()) {
    MOEC_TRY(JsonObject group, groups.object(name));
    if (!group.has("weights")) // only activations
      continue;
    MOEC_TRY(JsonObject weights, group.object("weights"));
    MOEC_TRY(std::string format, oneOf(group.has("format") ? group : in, "format", "", known));
    MOEC_TRY(Format found, detectGroup(weights, format));
    if (result && !(*result == found))
      return Error{in.field("config_groups") + " holds both " + result->name + " and " + found.name +
                   ", but only one format for all layers is supported"};
    result = found;
  }
  if (!result)
    return Error{in.field("config_groups") + " quantizes no weights"};
  return *result;
}

Result<Format> detectModelOpt(const JsonObject &in) {
  MOEC_TRY(std::string algorithm, oneOf(in, "quant_algo", "", {"NVFP4", "FP8"}));
  if (algorithm == "FP8")
    return formats::fp8(0, 0, Naming::WeightScale, /*e8m0=*/false);
  MOEC_TRY(int64_t group, in.integerOr("group_size", 1, INT32_MAX, 16));
  if (group != 16)
    return unsupported(in, "group_size", "16 with NVFP4");
  return formats::nvfp4(/*modelOpt=*/true);
}

} // namespace

Result<Format> detectFormat(const JsonObject &config) {
  MOEC_TRY(std::string method,
           oneOf(config, "quant_method", "", {"fp8", "gptq", "awq", "compressed-tensors", "modelopt", "modelopt_fp4"}));
  if (method == "fp8")
    return detectFp8(config);
  if (method == "gptq")
    return detectGptq(config);
  if (method == "awq")
    return detectAwq(config);
  if (method == "compressed-tensors")
    return detectCompressedTensors(config);
  return detectModelOpt(config);
}

} // namespace moec
