// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Inventory.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <unordered_set>

using namespace moec;
using namespace moec::hf;

using Kind = ExpectedTensor::Kind;

static const std::string layerPrefix = "model.layers.";

std::string ExpectedTensor::member(int64_t index) const {
  size_t hole = name.find("{e}");
  if (hole == std::string::npos)
    return name;
  return name.substr(0, hole) + std::to_string(index) + name.substr(hole + 3);
}

static void addSwiglu(std::vector<ExpectedTensor> &list, const std::string &prefix, int64_t hidden, int64_t width,
                      int64_t members = 1) {
  list.push_back({prefix + "gate_proj.weight", {width, hidden}, Kind::Linear, members});
  list.push_back({prefix + "up_proj.weight", {width, hidden}, Kind::Linear, members});
  list.push_back({prefix + "down_proj.weight", {hidden, width}, Kind::Linear, members});
}

static void addLayer(std::vector<ExpectedTensor> &list, const ModelConfig &config, int64_t layer, bool isMoe) {
  const std::string prefix = layerPrefix + std::to_string(layer) + ".", attention = prefix + "self_attn.";
  const int64_t hidden = config.hidden, queries = config.heads * config.queryDim();
  list.push_back({prefix + "input_layernorm.weight", {hidden}});
  if (config.qLoraRank == 0) {
    list.push_back({attention + "q_proj.weight", {queries, hidden}, Kind::Linear});
  } else {
    list.push_back({attention + "q_a_proj.weight", {config.qLoraRank, hidden}, Kind::Linear});
    list.push_back({attention + "q_a_layernorm.weight", {config.qLoraRank}});
    list.push_back({attention + "q_b_proj.weight", {queries, config.qLoraRank}, Kind::Linear});
  }
  list.push_back({attention + "kv_a_proj_with_mqa.weight", {config.kvLoraRank + config.ropeDim, hidden}, Kind::Linear});
  list.push_back({attention + "kv_a_layernorm.weight", {config.kvLoraRank}});
  list.push_back({attention + "kv_b_proj.weight",
                  {config.heads * (config.nopeDim + config.valueDim), config.kvLoraRank},
                  Kind::Linear});
  list.push_back({attention + "o_proj.weight", {hidden, config.heads * config.valueDim}, Kind::Linear});
  list.push_back({prefix + "post_attention_layernorm.weight", {hidden}});
  if (!isMoe)
    return addSwiglu(list, prefix + "mlp.", hidden, config.denseWidth);
  list.push_back({prefix + "mlp.gate.weight", {config.experts, hidden}});
  if (config.router == ModelConfig::Router::SigmoidGrouped)
    list.push_back({prefix + "mlp.gate.e_score_correction_bias", {config.experts}});
  addSwiglu(list, prefix + "mlp.experts.{e}.", hidden, config.expertWidth, config.experts);
  if (config.sharedExperts > 0)
    addSwiglu(list, prefix + "mlp.shared_experts.", hidden, config.sharedExperts * config.expertWidth);
}

std::vector<ExpectedTensor> hf::expectedTensors(const ModelConfig &config) {
  std::vector<ExpectedTensor> list;
  list.push_back({"model.embed_tokens.weight", {config.vocab, config.hidden}});
  for (int64_t layer = 0; layer < config.layers; ++layer)
    addLayer(list, config, layer, config.isMoe[layer]);
  list.push_back({"model.norm.weight", {config.hidden}});
  if (!config.tiedEmbeddings)
    list.push_back({"lm_head.weight", {config.vocab, config.hidden}});
  return list;
}

std::vector<ExpectedTensor> hf::expectedMtpTensors(const ModelConfig &config) {
  std::vector<ExpectedTensor> list;
  for (int64_t layer = config.layers; layer < config.layers + config.mtpLayers; ++layer) {
    const std::string prefix = layerPrefix + std::to_string(layer) + ".";
    list.push_back({prefix + "embed_tokens.weight", {config.vocab, config.hidden}});
    list.push_back({prefix + "enorm.weight", {config.hidden}});
    list.push_back({prefix + "hnorm.weight", {config.hidden}});
    list.push_back({prefix + "eh_proj.weight", {config.hidden, 2 * config.hidden}});
    addLayer(list, config, layer, config.experts > 0);
    list.push_back({prefix + "shared_head.norm.weight", {config.hidden}});
    list.push_back({prefix + "shared_head.head.weight", {config.vocab, config.hidden}});
  }
  return list;
}

std::vector<int64_t> hf::scaleShape(const Fp8Config &fp8, const std::vector<int64_t> &weight) {
  return {(weight[0] + fp8.rows - 1) / fp8.rows, (weight[1] + fp8.cols - 1) / fp8.cols};
}

static int64_t countElements(const std::vector<int64_t> &shape) {
  int64_t count = 1;
  for (int64_t dim : shape)
    count *= dim;
  return count;
}

TensorTotals hf::expectedTotals(const ModelConfig &config) {
  TensorTotals totals;
  std::vector<ExpectedTensor> all = expectedTensors(config);
  std::vector<ExpectedTensor> mtp = expectedMtpTensors(config);
  all.insert(all.end(), mtp.begin(), mtp.end());
  for (const ExpectedTensor &tensor : all) {
    totals.tensors += tensor.members;
    totals.elements += tensor.members * countElements(tensor.shape);
    if (tensor.kind == Kind::Linear && config.fp8) {
      totals.tensors += tensor.members;
      totals.elements += tensor.members * countElements(scaleShape(*config.fp8, tensor.shape));
    }
  }
  return totals;
}

static bool isFloat(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16; }

namespace {

/// One comparison of a checkpoint's table with a config.
class Check {
public:
  Check(const ModelConfig &config, const TensorTable &table, const std::string &directory)
      : config(config), table(table), directory(directory) {}

  Status expect(const ExpectedTensor &tensor, std::map<std::string, DType> &dtypes) {
    std::optional<DType> dtype;
    for (int64_t index = 0; index < tensor.members; ++index) {
      std::string name = tensor.member(index);
      MOEC_TRY(const StoredTensor *stored, find(name, tensor.shape, expectedTypes(tensor)));
      if (!isFloat(stored->dtype) && !(tensor.kind == Kind::Linear && config.fp8 && stored->dtype == DType::F8E4M3))
        return Error{std::string(stored->file) + ": tensor " + quote(name) + " is " +
                     std::string(toString(stored->dtype)) + ", expected " + expectedTypes(tensor) +
                     (stored->dtype == DType::F8E4M3 && !config.fp8
                          ? " (" + config.path + " has no 'quantization_config')"
                          : std::string())};
      if (!dtype)
        dtype = stored->dtype;
      else if (*dtype != stored->dtype)
        return Error{std::string(stored->file) + ": tensor " + quote(name) + " is " +
                     std::string(toString(stored->dtype)) + ", but '" + tensor.member(0) + "' is " +
                     std::string(toString(*dtype)) + "; the experts of a layer must be stored alike"};
      if (stored->dtype == DType::F8E4M3)
        MOEC_CHECK(expectScale(name + "_scale_inv", tensor.shape));
    }
    dtypes.emplace(tensor.name, *dtype);
    return success();
  }

  /// Counts what nothing asked for and may stay; the first other tensor is the error.
  Result<int64_t> sweep() const {
    int64_t tolerated = 0;
    for (const auto &[name, stored] : table) {
      if (used.count(&stored))
        continue;
      if (!isTolerated(name, stored))
        return unexpected(name, stored);
      ++tolerated;
    }
    return tolerated;
  }

  int64_t numUsed() const { return static_cast<int64_t>(used.size()); }

private:
  std::string expectedTypes(const ExpectedTensor &tensor) const {
    return tensor.kind == Kind::Linear && config.fp8 ? "F8_E4M3, BF16, F16 or F32" : "BF16, F16 or F32";
  }

  /// The tensor `name`, its shape checked.
  Result<const StoredTensor *> find(const std::string &name, const std::vector<int64_t> &shape,
                                    const std::string &types) {
    auto entry = table.find(name);
    if (entry == table.end())
      return missing(name, shape, types);
    if (entry->second.shape != shape)
      return Error{std::string(entry->second.file) + ": tensor " + quote(name) + " is " +
                   shapeToString(entry->second.shape) + ", but " + config.path + " asks for " + shapeToString(shape)};
    used.insert(&entry->second);
    return &entry->second;
  }

  Status expectScale(const std::string &name, const std::vector<int64_t> &weightShape) {
    std::vector<int64_t> shape = scaleShape(*config.fp8, weightShape);
    MOEC_TRY(const StoredTensor *stored, find(name, shape, "F32"));
    if (stored->dtype != DType::F32)
      return Error{std::string(stored->file) + ": tensor " + quote(name) + " is " +
                   std::string(toString(stored->dtype)) + ", expected F32"};
    return success();
  }

  Error missing(const std::string &name, const std::vector<int64_t> &shape, const std::string &types) const {
    std::string hint;
    size_t experts = name.find(".mlp.experts.");
    if (experts != std::string::npos && table.count(name.substr(0, experts) + ".mlp.experts.gate_up_proj"))
      hint = "; the experts are stored in one packed tensor, which is not supported: save the model with "
             "save_original_format=True";
    return Error{directory + ": tensor " + quote(name) + " is missing, expected " + types + " " + shapeToString(shape) +
                 " from " + config.path + hint};
  }

  Error unexpected(const std::string &name, const StoredTensor &stored) const {
    std::string hint = "which a " + config.type + " model of " + config.path + " does not have";
    if (std::optional<int64_t> layer = layerOf(name); layer && *layer >= config.layers)
      hint = "but " + config.path + " has 'num_hidden_layers' " + std::to_string(config.layers) +
             " and 'num_nextn_predict_layers' " + std::to_string(config.mtpLayers);
    return Error{std::string(stored.file) + ": unexpected tensor " + quote(name) + " (" +
                 std::string(toString(stored.dtype)) + " " + shapeToString(stored.shape) + "), " + hint};
  }

  /// `N` of `model.layers.N.…`.
  static std::optional<int64_t> layerOf(std::string_view name) {
    if (name.substr(0, layerPrefix.size()) != layerPrefix)
      return std::nullopt;
    name.remove_prefix(layerPrefix.size());
    int64_t layer = 0;
    auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    if (error != std::errc() || end == name.data() + name.size() || *end != '.')
      return std::nullopt;
    return layer;
  }

  bool isTolerated(std::string_view name, const StoredTensor &stored) const {
    auto endsWith = [&](std::string_view tail) {
      return name.size() > tail.size() && name.substr(name.size() - tail.size()) == tail;
    };
    if (name == "lm_head.weight")
      return config.tiedEmbeddings && stored.shape == std::vector<int64_t>{config.vocab, config.hidden};
    std::optional<int64_t> layer = layerOf(name);
    if (!layer || *layer < 0)
      return false;
    // Checkpoints re-saved without `num_nextn_predict_layers` may still hold the one layer of V3.
    if (*layer >= config.layers)
      return *layer < config.layers + std::max<int64_t>(config.mtpLayers, 1);
    if (endsWith(".self_attn.rotary_emb.inv_freq"))
      return true;
    // transformers writes the shared expert of width 0 that its classes build.
    return config.sharedExperts == 0 && config.isMoe[*layer] &&
           name.find(".mlp.shared_experts.") != std::string_view::npos && countElements(stored.shape) == 0;
  }

  const ModelConfig &config;
  const TensorTable &table;
  const std::string &directory;
  std::unordered_set<const StoredTensor *> used;
};

} // namespace

Result<Inventory> Inventory::check(const ModelConfig &config, const TensorTable &table, const std::string &directory) {
  Inventory result;
  Check check(config, table, directory);
  for (const ExpectedTensor &tensor : expectedTensors(config))
    MOEC_CHECK(check.expect(tensor, result.dtypes));
  MOEC_TRY(result.numSetAside, check.sweep());
  result.numUsed = check.numUsed();
  return result;
}

Inventory Inventory::assume(const ModelConfig &config, DType plain) {
  Inventory result;
  for (const ExpectedTensor &tensor : expectedTensors(config)) {
    bool fp8 = tensor.kind == Kind::Linear && config.fp8;
    result.dtypes.emplace(tensor.name, fp8 ? DType::F8E4M3 : plain);
    result.numUsed += tensor.members * (fp8 ? 2 : 1);
  }
  return result;
}

DType Inventory::dtype(const std::string &name) const {
  auto found = dtypes.find(name);
  assert(found != dtypes.end() && "only expected tensors have a type");
  return found->second;
}
