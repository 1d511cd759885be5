// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Inventory.h"
#include "dialects/Formats/StoredMatrix.h"
#include "frontends/HuggingFace/GgufNames.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <optional>
#include <string_view>
#include <unordered_set>

using namespace moec;
using namespace moec::hf;

std::string_view hf::toString(Part part) {
  switch (part) {
  case Part::Embeddings:
    return "embeddings";
  case Part::Attention:
    return "attention";
  case Part::Indexer:
    return "indexer";
  case Part::Dense:
    return "dense";
  case Part::Router:
    return "router";
  case Part::Experts:
    return "experts";
  case Part::SharedExperts:
    return "shared experts";
  case Part::Norms:
    return "norms";
  case Part::HyperConnections:
    return "hyper-connections";
  case Part::Head:
    return "head";
  case Part::Mtp:
    return "mtp";
  case Part::Buffers:
    return "buffers";
  }
  return "";
}

/// What stands before "N." in the names of a layer's tensors.
static std::string_view layerPrefix(const ModelConfig &config) { return config.v4 ? "layers." : "model.layers."; }
static std::string layerName(const ModelConfig &config, int64_t layer) {
  return std::string(layerPrefix(config)) + std::to_string(layer) + ".";
}

std::string ExpectedTensor::memberOf(const std::string &name, int64_t index) {
  size_t hole = name.find("{e}");
  if (hole == std::string::npos)
    return name;
  return name.substr(0, hole) + std::to_string(index) + name.substr(hole + 3);
}

std::string ExpectedTensor::member(int64_t index) const { return memberOf(name, index); }

std::string ExpectedTensor::nameOf(const RequiredTensor &tensor) const {
  return name.substr(0, name.rfind('.') + 1) + tensor.suffix;
}

static int64_t countElements(const std::vector<int64_t> &shape) {
  int64_t count = 1;
  for (int64_t dim : shape)
    count *= dim;
  return count;
}

TensorTotals &TensorTotals::operator+=(const TensorTotals &other) {
  tensors += other.tensors;
  elements += other.elements;
  parameters += other.parameters;
  bytes += other.bytes;
  return *this;
}

TensorTotals ExpectedTensor::totals() const {
  const int64_t own = members * countElements(shape);
  const bool learnt = dtype != DType::I64 && part != Part::Buffers;
  if (stored.empty())
    return {members, own, learnt ? own : 0, static_cast<uint64_t>(own) * byteSize(dtype)};
  TensorTotals sum{0, 0, own, 0};
  for (const RequiredTensor &tensor : stored) {
    if (tensor.optional)
      continue;
    const int64_t elements = members * countElements(tensor.shapes.front());
    sum += {members, elements, 0, static_cast<uint64_t>(elements) * byteSize(tensor.types.front())};
  }
  return sum;
}

namespace {

/// Lists tensors in the order of the forward pass; each member function lists one subject. `prefix` ends in a dot.
class Lister {
public:
  /// With `all`, every tensor counts as that part.
  explicit Lister(const ModelConfig &config, std::optional<Part> all = std::nullopt) : config(config), all(all) {}

  std::vector<ExpectedTensor> take() { return std::move(list); }

  void tensor(Part part, std::string name, std::vector<int64_t> shape, DType dtype) {
    list.push_back({std::move(name), std::move(shape), all.value_or(part), dtype});
  }
  void plain(Part part, const std::string &name, std::vector<int64_t> shape) {
    tensor(part, name + ".weight", std::move(shape), config.dtype);
  }
  void norm(const std::string &name, int64_t width) {
    // V3.2 keeps the weights of norms in f32.
    tensor(Part::Norms, name + ".weight", {width}, config.type == "deepseek_v32" ? DType::F32 : config.dtype);
  }
  void linear(Part part, const std::string &name, int64_t rows, int64_t cols, int64_t members = 1) {
    ExpectedTensor result{name + ".weight", {rows, cols}, all.value_or(part), config.dtype, members};
    if (config.quantization)
      result.stored = requiredTensors(config.quantization->format, rows, cols);
    list.push_back(std::move(result));
  }

  void swiglu(Part part, const std::string &prefix, int64_t width, int64_t members = 1) {
    const int64_t hidden = config.hidden;
    linear(part, prefix + "gate_proj", width, hidden, members);
    linear(part, prefix + "up_proj", width, hidden, members);
    linear(part, prefix + "down_proj", hidden, width, members);
  }

  /// One layer of multi-head latent attention.
  void layer(int64_t index, bool isMoe) {
    const std::string prefix = layerName(config, index);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    const int64_t hidden = config.hidden, queries = config.heads * config.queryDim();
    norm(prefix + "input_layernorm", hidden);
    if (config.qLoraRank == 0) {
      linear(Part::Attention, attention + "q_proj", queries, hidden);
    } else {
      linear(Part::Attention, attention + "q_a_proj", config.qLoraRank, hidden);
      norm(attention + "q_a_layernorm", config.qLoraRank);
      linear(Part::Attention, attention + "q_b_proj", queries, config.qLoraRank);
    }
    linear(Part::Attention, attention + "kv_a_proj_with_mqa", config.kvLoraRank + config.ropeDim, hidden);
    norm(attention + "kv_a_layernorm", config.kvLoraRank);
    linear(Part::Attention, attention + "kv_b_proj", config.heads * (config.nopeDim + config.valueDim),
           config.kvLoraRank);
    linear(Part::Attention, attention + "o_proj", hidden, config.heads * config.valueDim);
    if (config.indexer)
      indexer(attention + "indexer.");
    norm(prefix + "post_attention_layernorm", hidden);
    if (!isMoe)
      return swiglu(Part::Dense, mlp, config.denseWidth);
    plain(Part::Router, mlp + "gate", {config.experts, hidden});
    if (config.router == ModelConfig::Router::SigmoidGrouped)
      tensor(Part::Router, mlp + "gate.e_score_correction_bias", {config.experts}, DType::F32);
    swiglu(Part::Experts, mlp + "experts.{e}.", config.expertWidth, config.experts);
    if (config.sharedExperts > 0)
      swiglu(Part::SharedExperts, mlp + "shared_experts.", config.sharedExperts * config.expertWidth);
  }

  /// The indexer of V3.2.
  void indexer(const std::string &prefix) {
    const IndexerConfig &shape = *config.indexer;
    linear(Part::Indexer, prefix + "wq_b", shape.heads * shape.headDim, config.qLoraRank);
    linear(Part::Indexer, prefix + "wk", shape.headDim, config.hidden);
    tensor(Part::Indexer, prefix + "k_norm.weight", {shape.headDim}, DType::F32);
    tensor(Part::Indexer, prefix + "k_norm.bias", {shape.headDim}, DType::F32);
    plain(Part::Indexer, prefix + "weights_proj", {shape.heads, config.hidden});
  }

  //===------------------------------------------------------------------===//
  // V4
  //===------------------------------------------------------------------===//

  /// One layer of V4, or the layer inside its MTP module (`ratio` 0, not hashed).
  void v4Layer(const std::string &prefix, int64_t ratio, bool hashed) {
    const V4Config &v4 = *config.v4;
    const std::string attention = prefix + "attn.";
    const int64_t hidden = config.hidden, queries = config.heads * v4.headDim, streams = v4.streams;
    const Part part = Part::Attention;
    for (const char *site : {"attn", "ffn"}) {
      norm(prefix + site + "_norm", hidden);
      // Weights into the sublayer and out of it, one for each stream, and a matrix between the streams.
      mixer(prefix + "hc_" + site, streams * (2 + streams), 3);
    }
    linear(part, attention + "wq_a", config.qLoraRank, hidden);
    norm(attention + "q_norm", config.qLoraRank);
    linear(part, attention + "wq_b", queries, config.qLoraRank);
    linear(part, attention + "wkv", v4.headDim, hidden);
    norm(attention + "kv_norm", v4.headDim);
    tensor(part, attention + "attn_sink", {config.heads}, DType::F32);
    linear(part, attention + "wo_a", v4.oGroups * v4.oLoraRank, queries / v4.oGroups);
    linear(part, attention + "wo_b", hidden, v4.oGroups * v4.oLoraRank);
    if (ratio > 0)
      compressor(part, attention + "compressor.", ratio, v4.headDim);
    if (ratio == overlapping) {
      const IndexerConfig &indexer = *config.indexer;
      linear(Part::Indexer, attention + "indexer.wq_b", indexer.heads * indexer.headDim, config.qLoraRank);
      plain(Part::Indexer, attention + "indexer.weights_proj", {indexer.heads, hidden});
      compressor(Part::Indexer, attention + "indexer.compressor.", ratio, indexer.headDim);
    }

    plain(Part::Router, prefix + "ffn.gate", {config.experts, hidden});
    if (hashed)
      tensor(Part::Router, prefix + "ffn.gate.tid2eid", {config.vocab, config.topk}, DType::I64);
    else
      tensor(Part::Router, prefix + "ffn.gate.bias", {config.experts}, DType::F32);
    const int64_t shared = config.sharedExperts * config.expertWidth;
    for (auto [name, isDown] : {std::pair{"w1", false}, std::pair{"w3", false}, std::pair{"w2", true}}) {
      v4Expert(prefix + "ffn.experts.{e}." + name, isDown ? hidden : config.expertWidth,
               isDown ? config.expertWidth : hidden);
      if (shared > 0)
        linear(Part::SharedExperts, prefix + "ffn.shared_experts." + name, isDown ? hidden : shared,
               isDown ? shared : hidden);
    }
  }

  void v4Expert(const std::string &name, int64_t rows, int64_t cols) {
    if (!config.v4->fp4Experts)
      return linear(Part::Experts, name, rows, cols, config.experts);
    list.push_back({name + ".weight",
                    {rows, cols},
                    all.value_or(Part::Experts),
                    config.dtype,
                    config.experts,
                    requiredTensors(formats::mxfp4(formats::Naming::Scale), rows, cols)});
  }

  /// Softmax-weighted sums of `ratio` tokens.
  void compressor(Part part, const std::string &prefix, int64_t ratio, int64_t headDim) {
    const int64_t channels = ratio == overlapping ? 2 * headDim : headDim;
    tensor(part, prefix + "ape", {ratio, channels}, DType::F32);
    plain(part, prefix + "wkv", {channels, config.hidden});
    plain(part, prefix + "wgate", {channels, config.hidden});
    plain(part, prefix + "norm", {headDim});
  }

  /// A hyper-connection with `outputs` mixing weights.
  void mixer(const std::string &prefix, int64_t outputs, int64_t scales) {
    tensor(Part::HyperConnections, prefix + "_fn", {outputs, config.v4->streams * config.hidden}, DType::F32);
    tensor(Part::HyperConnections, prefix + "_base", {outputs}, DType::F32);
    tensor(Part::HyperConnections, prefix + "_scale", {scales}, DType::F32);
  }

  /// From the residual streams to one: at the end of the model, and of its MTP module.
  void collapse(const std::string &prefix) {
    mixer(prefix + "hc_head", config.v4->streams, 1);
    norm(prefix + "norm", config.hidden);
  }

private:
  /// Windows of this many tokens overlap by half and are chosen by the indexer.
  static constexpr int64_t overlapping = 4;

  const ModelConfig &config;
  std::optional<Part> all;
  std::vector<ExpectedTensor> list;
};

} // namespace

static std::vector<ExpectedTensor> expectedV4Tensors(const ModelConfig &config) {
  Lister list(config);
  list.plain(Part::Embeddings, "embed", {config.vocab, config.hidden});
  for (int64_t layer = 0; layer < config.layers; ++layer)
    list.v4Layer(layerName(config, layer), config.v4->ratios[layer], layer < config.v4->hashLayers);
  list.collapse("");
  if (!config.tiedEmbeddings)
    list.plain(Part::Head, "head", {config.vocab, config.hidden});
  return list.take();
}

std::vector<ExpectedTensor> hf::expectedTensors(const ModelConfig &config) {
  if (config.v4)
    return expectedV4Tensors(config);
  Lister list(config);
  list.plain(Part::Embeddings, "model.embed_tokens", {config.vocab, config.hidden});
  for (int64_t layer = 0; layer < config.layers; ++layer)
    list.layer(layer, config.isMoe[layer]);
  list.norm("model.norm", config.hidden);
  if (!config.tiedEmbeddings)
    list.plain(Part::Head, "lm_head", {config.vocab, config.hidden});
  return list.take();
}

static std::vector<ExpectedTensor> expectedV4MtpTensors(const ModelConfig &config) {
  Lister list(config, Part::Mtp);
  for (int64_t index = 0; index < config.mtpLayers && !config.v4->hasDraftBlocks; ++index) {
    const std::string prefix = "mtp." + std::to_string(index) + ".";
    list.norm(prefix + "enorm", config.hidden);
    list.norm(prefix + "hnorm", config.hidden);
    list.linear(Part::Mtp, prefix + "e_proj", config.hidden, config.hidden);
    list.linear(Part::Mtp, prefix + "h_proj", config.hidden, config.hidden);
    list.v4Layer(prefix, /*ratio=*/0, /*hashed=*/false);
    list.collapse(prefix);
  }
  return list.take();
}

std::vector<ExpectedTensor> hf::expectedExtraTensors(const ModelConfig &config) {
  if (config.v4)
    return expectedV4MtpTensors(config);
  Lister list(config, Part::Mtp);
  for (int64_t layer = config.layers; layer < config.layers + config.mtpLayers; ++layer) {
    const std::string prefix = layerName(config, layer);
    list.plain(Part::Mtp, prefix + "embed_tokens", {config.vocab, config.hidden});
    list.norm(prefix + "enorm", config.hidden);
    list.norm(prefix + "hnorm", config.hidden);
    list.plain(Part::Mtp, prefix + "eh_proj", {config.hidden, 2 * config.hidden});
    list.layer(layer, config.experts > 0);
    list.norm(prefix + "shared_head.norm", config.hidden);
    list.plain(Part::Mtp, prefix + "shared_head.head", {config.vocab, config.hidden});
  }
  std::vector<ExpectedTensor> extras = list.take();
  // Kimi-K2's are those of a model whose heads rotate as a whole; nobody reads them.
  if (config.type == "kimi_k2")
    for (int64_t layer = 0; layer < config.layers; ++layer)
      extras.push_back({layerName(config, layer) + "self_attn.rotary_emb.inv_freq",
                        {config.hidden / config.heads / 2},
                        Part::Buffers,
                        DType::F32});
  return extras;
}

std::map<Part, TensorTotals> hf::expectedTotalsByPart(const ModelConfig &config) {
  std::map<Part, TensorTotals> parts;
  for (const auto &list : {expectedTensors(config), expectedExtraTensors(config)})
    for (const ExpectedTensor &tensor : list)
      parts[tensor.part] += tensor.totals();
  return parts;
}

TensorTotals hf::expectedTotals(const ModelConfig &config) {
  TensorTotals sum;
  for (const auto &[part, totals] : expectedTotalsByPart(config))
    sum += totals;
  return sum;
}

static bool isFloat(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16; }

namespace {

/// One comparison of a checkpoint's table with a config.
class Check {
public:
  Check(const ModelConfig &config, const TensorTable &table, const std::string &directory)
      : config(config), table(table), directory(directory) {}

  /// All members of a weight, which must be stored alike.
  Result<StoredAs> expect(const ExpectedTensor &tensor) {
    std::optional<StoredAs> first;
    for (int64_t index = 0; index < tensor.members; ++index) {
      Result<StoredAs> found = hasCodes(tensor, index)    ? expectQuantised(tensor, index)
                               : hasBlocks(tensor, index) ? expectBlocks(tensor, index)
                                                          : expectPlain(tensor, index);
      if (!found)
        return found;
      if (!first)
        first = *found;
      else if (!(*first == *found))
        return unlike(tensor, index, *found, tensor, *first, "the experts of a layer");
    }
    if (!tensor.stored.empty() && !first->quantised && !unquantised)
      unquantised = tensor.member(0);
    anyQuantised |= first->quantised;
    return *first;
  }

  /// Some layers may stay as they were; not all.
  Status expectQuantised() const {
    if (!unquantised || anyQuantised)
      return success();
    const StoredTensor &stored = table.at(*unquantised);
    return Error{config.path + ": 'quantization_config' declares " + config.quantization->format.name +
                 ", but no layer is stored so: " + quote(*unquantised) + " in " + std::string(stored.file) + " is " +
                 std::string(stored.typeName())};
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

  /// `found`, of member `index`, is not stored as the first member of `other` is, but `all` must be.
  Error unlike(const ExpectedTensor &tensor, int64_t index, const StoredAs &found, const ExpectedTensor &other,
               const StoredAs &first, const std::string &all) const {
    auto nameIn = [](const ExpectedTensor &tensor, int64_t member, const StoredAs &stored) {
      return stored.quantised ? tensor.member(member, tensor.stored.front()) : tensor.member(member);
    };
    const std::string name = nameIn(tensor, index, found), firstName = nameIn(other, 0, first);
    const StoredTensor &stored = table.at(name), &firstStored = table.at(firstName);
    const bool sameType = stored.typeName() == firstStored.typeName();
    return Error{std::string(stored.file) + ": " + nameOf(name, stored) + " is " + std::string(stored.typeName()) +
                 ", but " + quote(firstName) + " is " + std::string(firstStored.typeName()) +
                 (sameType ? " with other tensors beside it" : "") + "; " + all + " must be stored alike"};
  }

  int64_t numUsed() const { return static_cast<int64_t>(used.size()); }

private:
  static std::string nameOf(const std::string &name, const StoredTensor &stored) {
    return "tensor " + quote(name) + (stored.packedIn.empty() ? "" : " in " + quote(stored.packedIn));
  }

  static std::string describe(const StoredTensor &stored) {
    return std::string(stored.typeName()) + " " + shapeToString(stored.shape);
  }

  /// Does the table hold codes of this member, in a type that no plain weight has?
  bool hasCodes(const ExpectedTensor &tensor, int64_t index) const {
    if (tensor.stored.empty())
      return false;
    auto entry = table.find(tensor.member(index, tensor.stored.front()));
    return entry != table.end() && !isFloat(entry->second.dtype);
  }

  /// Is this member a matrix in blocks? Vectors never are.
  bool hasBlocks(const ExpectedTensor &tensor, int64_t index) const {
    auto entry = table.find(tensor.member(index));
    return entry != table.end() && entry->second.blocks && tensor.shape.size() == 2;
  }

  Result<StoredAs> expectBlocks(const ExpectedTensor &tensor, int64_t index) {
    const std::string name = tensor.member(index);
    MOEC_TRY(const StoredTensor *stored, find(tensor, name, {"", {table.at(name).dtype}, {tensor.shape}}));
    StoredAs result{stored->dtype};
    result.blocks = stored->blocks;
    return result;
  }

  Result<StoredAs> expectPlain(const ExpectedTensor &tensor, int64_t index) {
    const std::string name = tensor.member(index);
    // Whoever saves a checkpoint again may widen its tensors, and leave linear layers unquantised.
    std::vector<DType> types = {DType::BF16, DType::F16, DType::F32};
    if (tensor.dtype == DType::I64)
      types = {DType::I64, DType::I32};
    MOEC_TRY(const StoredTensor *stored, find(tensor, name, {"", types, {tensor.shape}}));
    return StoredAs{stored->dtype};
  }

  Result<StoredAs> expectQuantised(const ExpectedTensor &tensor, int64_t index) {
    StoredAs result{DType::F32, /*quantised=*/true};
    for (const RequiredTensor &required : tensor.stored) {
      const std::string name = tensor.member(index, required);
      if (required.optional && !table.count(name))
        continue;
      MOEC_TRY(const StoredTensor *stored, find(tensor, name, required));
      if (&required == &tensor.stored.front())
        result.dtype = stored->dtype;
      if (config.quantization && required.suffix == config.quantization->format.scale.suffix)
        result.scale = stored->dtype;
      result.indexed |= config.quantization && required.suffix == config.quantization->format.groupIndex;
    }
    if (config.quantization) {
      const Packing &packing = config.quantization->format.packing;
      const std::vector<int64_t> &shape = tensor.shape;
      const std::vector<int64_t> packed = packing.shape(shape[0], shape[1]);
      if (tensor.stored.front().shapes.front() == packed &&
          logicalShape(packing, packed) != std::array{shape[0], shape[1]})
        return Error{std::string(table.at(tensor.member(index, tensor.stored.front())).file) + ": weight " +
                     quote(tensor.member(index)) + " is " + shapeToString(shape) +
                     ", which does not fill whole words of " + config.quantization->format.name + " codes"};
    }
    return result;
  }

  /// The tensor `name`, with one of the shapes and types.
  Result<const StoredTensor *> find(const ExpectedTensor &tensor, const std::string &name,
                                    const RequiredTensor &required) {
    const std::string types = expectedTypes(tensor, required);
    auto entry = table.find(name);
    if (entry == table.end())
      return missing(tensor, name, required.shapes.front(), types);
    const StoredTensor &stored = entry->second;
    if (std::ranges::find(required.shapes, stored.shape) == required.shapes.end())
      return Error{std::string(stored.file) + ": " + nameOf(name, stored) + " is " + shapeToString(stored.shape) +
                   ", but " + config.path + " asks for " + shapeToString(required.shapes.front())};
    if (std::ranges::find(required.types, stored.dtype) == required.types.end()) {
      const bool undeclared = !config.quantization && !isFloat(stored.dtype) && !stored.blocks;
      return Error{std::string(stored.file) + ": " + nameOf(name, stored) + " is " + std::string(stored.typeName()) +
                   ", expected " + types +
                   (undeclared ? " (" + config.path + " has no 'quantization_config')" : std::string())};
    }
    used.insert(&stored);
    return &stored;
  }

  /// "F8_E4M3, BF16, F16 or F32"; a linear layer may be quantised or plain.
  static std::string expectedTypes(const ExpectedTensor &tensor, const RequiredTensor &required) {
    const bool isPlain = required.suffix.empty();
    if (tensor.stored.empty() || !(isPlain || &required == &tensor.stored.front()))
      return typesText(required.types);
    const RequiredTensor &codes = tensor.stored.front();
    if (tensor.nameOf(codes) != tensor.name)
      return typesText(required.types) + (isPlain ? ", or codes in " + quote(tensor.nameOf(codes)) + "," : "");
    std::vector<DType> types = codes.types;
    types.insert(types.end(), {DType::BF16, DType::F16, DType::F32});
    return typesText(types);
  }

  static std::string typesText(const std::vector<DType> &types) {
    std::string text;
    for (size_t i = 0; i < types.size(); ++i)
      text += (i == 0 ? "" : i + 1 == types.size() ? " or " : ", ") + std::string(toString(types[i]));
    return text;
  }

  Error missing(const ExpectedTensor &tensor, const std::string &name, const std::vector<int64_t> &shape,
                const std::string &types) const {
    std::string hint;
    if (std::optional<std::string> theirs = toGgufName(tensor.name);
        theirs && !table.empty() && table.begin()->second.file.ends_with(".gguf"))
      hint = "; a GGUF file calls it " + quote(*theirs);
    size_t experts = name.find(".mlp.experts.");
    if (experts != std::string::npos) {
      const std::string prefix = name.substr(0, experts) + ".mlp.experts.";
      for (const char *projection : {"gate_up_proj", "down_proj"})
        if (auto packed = table.find(prefix + projection); packed != table.end())
          hint = "; packed experts are read only as BF16, F16 or F32 [experts, rows, columns], and " +
                 quote(packed->first) + " is " + describe(packed->second);
    }
    return Error{directory + ": tensor " + quote(name) + " is missing, expected " + types + " " + shapeToString(shape) +
                 " from " + config.path + hint};
  }

  Error unexpected(const std::string &name, const StoredTensor &stored) const {
    std::string hint = "which a " + config.type + " model of " + config.path + " does not have";
    if (std::optional<int64_t> layer = layerOf(name); layer && *layer >= config.layers)
      hint = "but " + config.path + " has 'num_hidden_layers' " + std::to_string(config.layers) +
             " and 'num_nextn_predict_layers' " + std::to_string(config.mtpLayers);
    return Error{std::string(stored.file) + ": unexpected " + nameOf(name, stored) + " (" + describe(stored) + "), " +
                 hint};
  }

  /// `N` of `model.layers.N.…`.
  std::optional<int64_t> layerOf(std::string_view name) const {
    std::string_view prefix = layerPrefix(config);
    if (!name.starts_with(prefix))
      return std::nullopt;
    name.remove_prefix(prefix.size());
    int64_t layer = 0;
    auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    if (error != std::errc() || end == name.data() + name.size() || *end != '.')
      return std::nullopt;
    return layer;
  }

  bool isTolerated(std::string_view name, const StoredTensor &stored) const {
    if (config.quantization && isSetAside(name, config.quantization->format))
      return true;
    if (config.v4 && name.starts_with("mtp."))
      return true;
    if (name == (config.v4 ? "head.weight" : "lm_head.weight"))
      return config.tiedEmbeddings && stored.shape == std::vector<int64_t>{config.vocab, config.hidden};
    std::optional<int64_t> layer = layerOf(name);
    if (!layer || *layer < 0)
      return false;
    // Checkpoints re-saved without `num_nextn_predict_layers` may still hold the one layer of V3.
    if (*layer >= config.layers)
      return !config.v4 && *layer < config.layers + std::max<int64_t>(config.mtpLayers, 1);
    if (name.ends_with(".self_attn.rotary_emb.inv_freq"))
      return true;
    // transformers writes the shared expert of width 0 that its classes build.
    return config.sharedExperts == 0 && config.isMoe[*layer] &&
           name.find(".mlp.shared_experts.") != std::string_view::npos && countElements(stored.shape) == 0;
  }

  /// Whether it lies beside a layer and weights do not need it.
  bool isSetAside(std::string_view name, const Format &format) const {
    size_t dot = name.rfind('.');
    if (dot == std::string_view::npos ||
        std::ranges::find(format.setAside, name.substr(dot + 1)) == format.setAside.end())
      return false;
    return std::ranges::any_of(std::array<std::string, 2>{format.codes, "weight"}, [&](const std::string &suffix) {
      auto tensor = table.find(std::string(name.substr(0, dot + 1)) + suffix);
      return tensor != table.end() && used.count(&tensor->second);
    });
  }

  const ModelConfig &config;
  const TensorTable &table;
  const std::string &directory;
  std::unordered_set<const StoredTensor *> used;
  /// The first linear layer that could have been quantised and is not.
  std::optional<std::string> unquantised;
  bool anyQuantised = false;
};

/// Whether the imported module reads it: attention is dense.
bool isImported(const ExpectedTensor &tensor) { return tensor.part != Part::Indexer; }

} // namespace

Result<Inventory> Inventory::check(const ModelConfig &config, const TensorTable &table, const std::string &directory) {
  Inventory result;
  Check check(config, table, directory);
  const std::vector<ExpectedTensor> tensors = expectedTensors(config);
  const ExpectedTensor *gate = nullptr;
  for (const ExpectedTensor &tensor : tensors) {
    const int64_t before = check.numUsed();
    MOEC_TRY(StoredAs stored, check.expect(tensor));
    // Kernels multiply by both at once.
    if (tensor.name.ends_with(".experts.{e}.gate_proj.weight"))
      gate = &tensor;
    if (tensor.name.ends_with(".experts.{e}.up_proj.weight") && !(result.stored(gate->name) == stored))
      return check.unlike(tensor, 0, stored, *gate, result.stored(gate->name), "gate and up of a layer's experts");
    result.weights.emplace(tensor.name, stored);
    (isImported(tensor) ? result.numUsed : result.numSetAside) += check.numUsed() - before;
  }
  MOEC_CHECK(check.expectQuantised());
  MOEC_TRY(int64_t tolerated, check.sweep());
  result.numSetAside += tolerated;
  return result;
}

Inventory Inventory::assume(const ModelConfig &config, std::optional<DType> plain) {
  Inventory result;
  for (const ExpectedTensor &tensor : expectedTensors(config)) {
    StoredAs stored{plain.value_or(tensor.dtype)};
    if (!tensor.stored.empty())
      stored = {tensor.stored.front().types.front(), /*quantised=*/true};
    if (config.quantization)
      stored.indexed = stored.quantised && config.quantization->format.groupIndexRequired;
    if (config.quantization && config.quantization->format.element == Element::Unsigned) // as most files have them
      stored.scale = config.quantization->format.packing.inMajor ? DType::F16 : DType::BF16;
    result.weights.emplace(tensor.name, stored);
    (isImported(tensor) ? result.numUsed : result.numSetAside) += tensor.totals().tensors;
  }
  return result;
}

const StoredAs &Inventory::stored(const std::string &name) const {
  auto found = weights.find(name);
  assert(found != weights.end() && "only expected weights are stored");
  return found->second;
}
