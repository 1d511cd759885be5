// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Config.h"
#include "frontends/HuggingFace/Inventory.h"
#include "frontends/HuggingFace/Rope.h"
#include "test/fuzz/FuzzTarget.h"

#include <cmath>

using namespace moec;
using namespace moec::fuzz;
using hf::ExpectedTensor;
using hf::ModelConfig;

static uint64_t product(uint64_t a, uint64_t b) {
  uint64_t result;
  require(!__builtin_mul_overflow(a, b, &result) && result <= INT64_MAX, "counts fit 63 bits");
  return result;
}

/// How many elements `members` tensors of one shape have.
static uint64_t elements(int64_t members, const std::vector<int64_t> &shape) {
  require(members >= 1, "a family has members");
  uint64_t count = members;
  for (int64_t dim : shape) {
    require(dim >= 1, "dimensions are positive");
    count = product(count, dim);
  }
  return count;
}

/// The totals of a config are the sum of its tensors, and no count of them overflows on the way.
static void checkTotals(const ModelConfig &config) {
  uint64_t tensors = 0, count = 0, bytes = 0;
  auto add = [&](int64_t members, const std::vector<int64_t> &shape, DType dtype) {
    const uint64_t own = elements(members, shape);
    tensors += members;
    require(!__builtin_add_overflow(count, own, &count) && count <= INT64_MAX, "elements fit 63 bits");
    uint64_t ownBytes;
    require(!__builtin_mul_overflow(own, static_cast<uint64_t>(byteSize(dtype)), &ownBytes) &&
                !__builtin_add_overflow(bytes, ownBytes, &bytes),
            "bytes fit 64 bits");
  };
  size_t listed = 0;
  for (const auto &list : {hf::expectedTensors(config), hf::expectedExtraTensors(config)}) {
    listed += list.size();
    for (const ExpectedTensor &tensor : list) {
      elements(tensor.members, tensor.shape);
      if (tensor.stored.empty())
        add(tensor.members, tensor.shape, tensor.dtype);
      for (const RequiredTensor &stored : tensor.stored)
        if (!stored.optional)
          add(tensor.members, stored.shapes.front(), stored.types.front());
    }
  }
  require(listed <= 64 * static_cast<size_t>(config.layers + config.mtpLayers + 1), "lists grow with layers only");
  const hf::TensorTotals totals = hf::expectedTotals(config);
  require(totals.tensors == static_cast<int64_t>(tensors) && totals.elements == static_cast<int64_t>(count) &&
              totals.bytes == bytes,
          "totals are the sum of the tensors");
  require(totals.parameters > 0, "a model has parameters");
}

static void checkConfig(const ModelConfig &config) {
  require(config.vocab >= 1 && config.hidden >= 1 && config.heads >= 1 && config.maxPositions >= 1,
          "sizes are positive");
  require(config.layers >= 1 && config.layers <= 1024 && config.mtpLayers >= 0 && config.mtpLayers <= 64,
          "layers are bounded");
  require(config.isMoe.size() == static_cast<size_t>(config.layers), "every layer is of a kind");
  require(config.moeLayers() == 0 || (config.topk >= 1 && config.topk <= config.experts),
          "a token chooses among the experts");
  require(config.groups >= 1 && config.topkGroups >= 1 && config.topkGroups <= config.groups, "groups are chosen");
  require(config.groups == 1 || config.experts % config.groups == 0, "groups are of one size");
  require(config.longestContext() >= 1 && config.longestContext() <= config.maxPositions, "some context can be used");
  require(config.rmsEps > 0 && std::isfinite(config.routedScale), "numbers are finite");
  if (config.v4)
    require(config.v4->ratios.size() == static_cast<size_t>(config.layers), "every layer has a ratio");
  require(config.importable().ok() == config.missing().empty(), "what lacks nothing is imported");
  if (Status status = config.importable(); !status)
    requireSentence(status.message(), "in");
  for (int64_t token : config.eos)
    require(token >= 0 && token < config.vocab, "tokens are of the vocabulary");

  const hf::RopeTable table = hf::makeRopeTable(config.rope, config.ropeDim);
  require(table.invFreq.size() == static_cast<size_t>(config.ropeDim / 2) && std::isfinite(table.factor),
          "each pair of channels rotates");
  for (float frequency : table.invFreq)
    require(std::isfinite(frequency) && frequency >= 0, "frequencies are finite");
  if (!config.v4) {
    const double scale = hf::softmaxScale(config);
    require(scale > 0 && std::isfinite(scale), "scores are scaled by a finite number");
  }
  checkTotals(config);
}

/// The bytes are config.json, and generation_config.json too.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Result<Json> json = parseJson({reinterpret_cast<const char *>(data), size}, "in");
  if (!json)
    return 0; // the target `json` looks at these
  Result<ModelConfig> config = ModelConfig::parse(*json, "in", &*json, "in");
  if (!config)
    requireSentence(config.message(), "in");
  else
    checkConfig(*config);
  return 0;
}
