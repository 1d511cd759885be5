// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Config.h"
#include "dialects/Formats/Detect.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

using namespace moec;
using namespace moec::hf;

namespace {

// Wider than any published model by a factor of ten, and small enough that element counts fit 63 bits and byte counts
// 64, scales included.
constexpr int64_t maxVocab = int64_t{1} << 24;
constexpr int64_t maxWidth = int64_t{1} << 18;
constexpr int64_t maxLayers = 1024;
constexpr int64_t maxHeads = 1 << 12;
constexpr int64_t maxHeadDim = 1 << 12;
constexpr int64_t maxExperts = 1 << 13;
constexpr int64_t maxPositionsLimit = int64_t{1} << 31;
constexpr int64_t maxMtpLayers = 64;

Error wrong(const JsonObject &object, const std::string &key, const std::string &what) {
  return Error{object.field(key) + " " + what};
}

/// Reads one config.json; each member function reads one subject.
class Reader {
public:
  Reader(JsonObject object, ModelConfig &config) : in(std::move(object)), out(config) {}

  Status read() {
    MOEC_CHECK(readType());
    MOEC_CHECK(readShape());
    if (isV4()) {
      MOEC_CHECK(readV4());
    } else {
      MOEC_CHECK(readLatentAttention());
      MOEC_CHECK(readExperts());
      MOEC_CHECK(readRope());
    }
    MOEC_CHECK(readStorage());
    MOEC_CHECK(readRefusals());
    MOEC_TRY(out.tiedEmbeddings, in.booleanOr("tie_word_embeddings", false));
    return readTokens(in);
  }

  /// `bos_token_id` and `eos_token_id` of config.json or generation_config.json; absent keys change nothing.
  Status readTokens(const JsonObject &from) {
    if (from.has("bos_token_id")) {
      MOEC_TRY(int64_t bos, from.integer("bos_token_id", 0, out.vocab - 1));
      out.bos = bos;
    }
    if (!from.has("eos_token_id"))
      return success();
    const Json &eos = from.json().at("eos_token_id");
    if (!eos.is_array()) {
      MOEC_TRY(int64_t token, from.integer("eos_token_id", 0, out.vocab - 1));
      out.eos = {token};
      return success();
    }
    std::vector<int64_t> tokens;
    for (const Json &entry : eos) {
      if (!entry.is_number_integer() || !inRange(entry, 0, out.vocab - 1))
        return wrong(from, "eos_token_id",
                     "holds " + describe(entry) + ", but tokens are integers from 0 to " +
                         std::to_string(out.vocab - 1));
      tokens.push_back(entry.get<int64_t>());
      if (tokens.size() > 256)
        return wrong(from, "eos_token_id", "lists more than 256 tokens");
    }
    out.eos = std::move(tokens);
    return success();
  }

private:
  static bool inRange(const Json &value, int64_t min, int64_t max) {
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(max))
      return false;
    int64_t number = value.get<int64_t>();
    return number >= min && number <= max;
  }
  bool isV2() const { return out.type == "deepseek_v2"; }
  bool isV4() const { return out.type == "deepseek_v4"; }

  Status readType() {
    MOEC_TRY(out.type, in.string("model_type"));
    for (const char *known : {"deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "kimi_k2"})
      if (out.type == known)
        return success();
    return wrong(in, "model_type",
                 "is " + quote(out.type) +
                     ", but only deepseek_v2, deepseek_v3, deepseek_v32 and kimi_k2 are supported");
  }

  Status readShape() {
    MOEC_TRY(out.vocab, in.integer("vocab_size", 1, maxVocab));
    MOEC_TRY(out.hidden, in.integer("hidden_size", 1, maxWidth));
    MOEC_TRY(out.layers, in.integer("num_hidden_layers", 1, maxLayers));
    MOEC_TRY(out.heads, in.integer("num_attention_heads", 1, maxHeads));
    MOEC_TRY(out.ropeDim, in.integer("qk_rope_head_dim", 2, maxHeadDim));
    if (out.ropeDim % 2 != 0)
      return wrong(in, "qk_rope_head_dim",
                   "is " + std::to_string(out.ropeDim) + ", but channels rotate in pairs, so it must be even");
    MOEC_TRY(out.maxPositions, in.integer("max_position_embeddings", 1, maxPositionsLimit));
    MOEC_TRY(out.mtpLayers,
             in.integerOr(in.has("num_mtp_layers") && !in.has("num_nextn_predict_layers") ? "num_mtp_layers"
                                                                                          : "num_nextn_predict_layers",
                          0, maxMtpLayers, 0));
    MOEC_TRY(out.rmsEps, in.numberOr("rms_norm_eps", 1e-6));
    if (!(out.rmsEps > 0 && out.rmsEps <= 1))
      return wrong(in, "rms_norm_eps", "is " + numberText(out.rmsEps) + ", expected a number above 0 and at most 1");
    return success();
  }

  Status readLatentAttention() {
    MOEC_TRY(out.qLoraRank, in.integerOr("q_lora_rank", 0, maxWidth, 0));
    MOEC_TRY(out.kvLoraRank, in.integer("kv_lora_rank", 1, maxWidth));
    MOEC_TRY(out.nopeDim, in.integer("qk_nope_head_dim", 1, maxHeadDim));
    MOEC_TRY(out.valueDim, in.integer("v_head_dim", 1, maxHeadDim));
    if (out.type != "deepseek_v32")
      return success();
    if (out.qLoraRank == 0)
      return wrong(in, "q_lora_rank", "is absent, but the indexer of deepseek_v32 reads the query latent");
    return readIndexer();
  }

  Status readIndexer() {
    IndexerConfig indexer;
    MOEC_TRY(indexer.heads, in.integer("index_n_heads", 1, maxHeads));
    MOEC_TRY(indexer.headDim, in.integer("index_head_dim", 1, maxHeadDim));
    MOEC_TRY(indexer.topk, in.integer("index_topk", 1, maxPositionsLimit));
    if (indexer.headDim < out.ropeDim)
      return wrong(in, "index_head_dim",
                   "is " + std::to_string(indexer.headDim) +
                       ", but 'qk_rope_head_dim' of its channels rotate: " + std::to_string(out.ropeDim));
    out.indexer = indexer;
    return success();
  }

  Status readV4() {
    V4Config v4;
    MOEC_TRY(out.qLoraRank, in.integer("q_lora_rank", 1, maxWidth));
    MOEC_TRY(v4.headDim, in.integer("head_dim", 2, maxHeadDim));
    if (v4.headDim < out.ropeDim)
      return wrong(in, "head_dim",
                   "is " + std::to_string(v4.headDim) + ", but 'qk_rope_head_dim' is " + std::to_string(out.ropeDim));
    MOEC_TRY(v4.oLoraRank, in.integer("o_lora_rank", 1, maxWidth));
    MOEC_TRY(v4.oGroups, in.integer("o_groups", 1, maxHeads));
    if (out.heads % v4.oGroups != 0)
      return wrong(in, "o_groups",
                   "is " + std::to_string(v4.oGroups) + ", which does not divide the " + std::to_string(out.heads) +
                       " heads of 'num_attention_heads'");
    MOEC_TRY(v4.streams, in.integer("hc_mult", 1, 64));
    MOEC_CHECK(readIndexer());
    MOEC_CHECK(readRatios(v4));

    // Without any dense layer.
    out.isMoe.assign(out.layers, true);
    MOEC_TRY(out.experts, in.integer("n_routed_experts", 1, maxExperts));
    MOEC_CHECK(readExpertShapes());
    MOEC_TRY(v4.hashLayers, in.integerOr("num_hash_layers", 0, out.layers, 0));
    MOEC_TRY(std::string scoring, in.stringOr("scoring_func", "sqrtsoftplus"));
    if (scoring != "sqrtsoftplus")
      return wrong(in, "scoring_func", "is " + quote(scoring) + ", but deepseek_v4 routers score with sqrtsoftplus");
    MOEC_TRY(std::string method, in.stringOr("topk_method", "noaux_tc"));
    if (method != "noaux_tc")
      return wrong(in, "topk_method", "is " + quote(method) + ", but deepseek_v4 routers choose by noaux_tc");
    out.router = ModelConfig::Router::SqrtSoftplus;
    MOEC_CHECK(readRouterWeights());

    MOEC_TRY(std::string storage, in.stringOr("expert_dtype", ""));
    if (!storage.empty() && storage != "fp4" && storage != "fp8")
      return wrong(in, "expert_dtype", "is " + quote(storage) + ", but only fp4 and fp8 are known");
    v4.fp4Experts = storage == "fp4";
    for (auto [key, width] :
         {std::pair{"hidden_size", out.hidden}, std::pair{"moe_intermediate_size", out.expertWidth}})
      if (v4.fp4Experts && width % V4Config::fp4Block != 0)
        return wrong(in, key,
                     "is " + std::to_string(width) + ", but FP4 experts have one scale for each " +
                         std::to_string(V4Config::fp4Block) + " elements of a row");
    v4.hasDraftBlocks = in.has("dspark_block_size");
    out.v4 = std::move(v4);
    return success();
  }

  /// `compress_ratios` goes on with the MTP layers; those entries are not kept. The schedule differs from model to
  /// model, so there is no default.
  Status readRatios(V4Config &v4) {
    MOEC_TRY(const Json *ratios, in.array("compress_ratios"));
    if (static_cast<int64_t>(ratios->size()) < out.layers)
      return wrong(in, "compress_ratios",
                   "lists " + std::to_string(ratios->size()) + " layers, but 'num_hidden_layers' is " +
                       std::to_string(out.layers));
    for (int64_t layer = 0; layer < out.layers; ++layer) {
      const Json &entry = (*ratios)[layer];
      int64_t ratio = entry.is_number_integer() && inRange(entry, 0, 128) ? entry.get<int64_t>() : -1;
      if (ratio != 0 && ratio != 4 && ratio != 128)
        return wrong(in, "compress_ratios", "holds " + describe(entry) + ", expected 0, 4 or 128 for each layer");
      v4.ratios.push_back(ratio);
    }
    return success();
  }

  Status readExperts() {
    MOEC_TRY(out.experts, in.integerOr("n_routed_experts", 0, maxExperts, 0));
    MOEC_CHECK(readMoeLayers());
    if (out.moeLayers() < out.layers) {
      MOEC_TRY(out.denseWidth, in.integer("intermediate_size", 1, maxWidth));
    }
    if (out.experts == 0 || (out.moeLayers() == 0 && out.mtpLayers == 0))
      return success();
    MOEC_CHECK(readExpertShapes());
    return readRouter();
  }

  Status readExpertShapes() {
    MOEC_TRY(out.expertWidth, in.integer("moe_intermediate_size", 1, maxWidth));
    MOEC_TRY(out.sharedExperts, in.integerOr("n_shared_experts", 0, 256, 0));
    MOEC_TRY(out.topk, in.integer("num_experts_per_tok", 1, maxExperts));
    if (out.topk > out.experts)
      return wrong(in, "num_experts_per_tok",
                   "is " + std::to_string(out.topk) + ", but 'n_routed_experts' is " + std::to_string(out.experts));
    return success();
  }

  Status readMoeLayers() {
    bool listed = in.json().contains("moe_layer_freq") && in.json().at("moe_layer_freq").is_array();
    out.isMoe.assign(out.layers, false);
    if (out.experts == 0)
      return success();
    // V3's classes default to 3 dense layers, V2's to 0: a default that depends on the reader is no default.
    if (!isV2() && !listed && !in.has("first_k_dense_replace"))
      return wrong(in, "first_k_dense_replace", "is missing");
    MOEC_TRY(int64_t firstMoe, in.integerOr("first_k_dense_replace", 0, maxLayers, 0));
    if (!listed) {
      MOEC_TRY(int64_t every, in.integerOr("moe_layer_freq", 1, maxLayers, 1));
      for (int64_t layer = firstMoe; layer < out.layers; ++layer)
        out.isMoe[layer] = layer % every == 0;
      return success();
    }
    const Json &list = in.json().at("moe_layer_freq");
    if (static_cast<int64_t>(list.size()) != out.layers)
      return wrong(in, "moe_layer_freq",
                   "lists " + std::to_string(list.size()) + " layers, but 'num_hidden_layers' is " +
                       std::to_string(out.layers));
    for (int64_t layer = 0; layer < out.layers; ++layer) {
      const Json &entry = list[layer];
      if (!entry.is_number_integer() || !inRange(entry, 0, 1))
        return wrong(in, "moe_layer_freq", "holds " + describe(entry) + ", expected 0 or 1 for each layer");
      out.isMoe[layer] = layer >= firstMoe && entry.get<int64_t>() == 1;
    }
    return success();
  }

  Status readRouter() {
    MOEC_TRY(std::string scoring, in.stringOr("scoring_func", isV2() ? "softmax" : "sigmoid"));
    MOEC_TRY(std::string method, in.stringOr("topk_method", isV2() ? "greedy" : "noaux_tc"));
    if (scoring != (isV2() ? "softmax" : "sigmoid"))
      return wrong(in, "scoring_func",
                   "is " + quote(scoring) + ", but " + out.type + " routers score with " +
                       (isV2() ? "softmax" : "sigmoid"));
    if (isV2()) {
      // DeepSeek's configuration class spells the default "gready".
      if (method == "greedy" || method == "gready")
        out.router = ModelConfig::Router::SoftmaxGreedy;
      else if (method == "group_limited_greedy")
        out.router = ModelConfig::Router::SoftmaxGrouped;
      else
        return wrong(in, "topk_method",
                     "is " + quote(method) + ", but deepseek_v2 routers choose by greedy or group_limited_greedy");
    } else {
      if (method != "noaux_tc")
        return wrong(in, "topk_method", "is " + quote(method) + ", but " + out.type + " routers choose by noaux_tc");
      out.router = ModelConfig::Router::SigmoidGrouped;
      // Missing keys would mean 8 groups, 2.5 and true to V3's classes: too far from neutral to assume.
      for (const char *key : {"n_group", "routed_scaling_factor", "norm_topk_prob"})
        if (!in.json().contains(key))
          return wrong(in, key, "is missing");
    }
    if (out.router != ModelConfig::Router::SoftmaxGreedy)
      MOEC_CHECK(readGroups());
    return readRouterWeights();
  }

  Status readRouterWeights() {
    MOEC_TRY(bool normalize, in.booleanOr("norm_topk_prob", false));
    MOEC_TRY(double scale, in.numberOr("routed_scaling_factor", 1.0));
    if (!(scale > 0 && scale <= 1e6))
      return wrong(in, "routed_scaling_factor",
                   "is " + numberText(scale) + ", expected a number above 0 and at most 1e6");
    out.normalize = normalize && !(isV2() && out.topk == 1);
    out.routedScale = isV2() && out.normalize ? 1.0 : scale;
    return success();
  }

  Status readGroups() {
    MOEC_TRY(out.groups, in.integerOr("n_group", 1, maxExperts, 1));
    if (out.groups == 1)
      return success();
    if (out.experts % out.groups != 0)
      return wrong(in, "n_group",
                   "is " + std::to_string(out.groups) + ", which does not divide the " + std::to_string(out.experts) +
                       " experts of 'n_routed_experts'");
    MOEC_TRY(out.topkGroups, in.integer("topk_group", 1, maxExperts));
    if (out.topkGroups > out.groups)
      return wrong(in, "topk_group",
                   "is " + std::to_string(out.topkGroups) + ", but 'n_group' is " + std::to_string(out.groups));
    int64_t groupSize = out.experts / out.groups;
    if (out.router == ModelConfig::Router::SigmoidGrouped && groupSize < 2)
      return wrong(in, "n_group",
                   "is " + std::to_string(out.groups) +
                       ", which leaves one expert in a group, but noaux_tc scores a "
                       "group by its two best experts");
    if (out.topkGroups * groupSize < out.topk)
      return wrong(in, "num_experts_per_tok",
                   "is " + std::to_string(out.topk) + ", but the " + std::to_string(out.topkGroups) +
                       " groups of 'topk_group' hold only " + std::to_string(out.topkGroups * groupSize) + " experts");
    return success();
  }

  /// Both spellings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`, where all keys are
  /// together. transformers lets a non-empty `rope_scaling` win.
  Status readRope() {
    RopeConfig &rope = out.rope;
    std::string key;
    for (const char *candidate : {"rope_parameters", "rope_scaling"})
      if (in.has(candidate) && !(in.json().at(candidate).is_object() && in.json().at(candidate).empty()))
        key = candidate;
    JsonObject dict = in;
    std::string type = "default";
    if (!key.empty()) {
      MOEC_TRY(dict, in.object(key));
      MOEC_TRY(std::string legacy, dict.stringOr("type", "default"));
      MOEC_TRY(type, dict.stringOr("rope_type", legacy));
      if (dict.has("type") && legacy != type)
        return wrong(dict, "rope_type", "is " + quote(type) + ", but 'type' is " + quote(legacy));
    }
    // `mrope`-like nesting by layer type does not exist in this family.
    MOEC_TRY(double partial, dict.numberOr("partial_rotary_factor", 1.0));
    if (partial != 1.0)
      return wrong(dict, "partial_rotary_factor", "is " + numberText(partial) + ", but only 1 is supported");

    MOEC_TRY(double theta, in.numberOr("rope_theta", 10000.0));
    MOEC_TRY(rope.theta, dict.numberOr("rope_theta", theta));
    if (!(rope.theta > 1 && rope.theta <= 1e15))
      return wrong(dict.has("rope_theta") ? dict : in, "rope_theta",
                   "is " + numberText(rope.theta) + ", expected a number above 1 and at most 1e15");
    if (type == "default")
      return success();
    if (type != "yarn" && type != "linear")
      return wrong(dict, "rope_type", "is " + quote(type) + ", but only default, linear and yarn are supported");
    rope.type = type == "yarn" ? RopeConfig::Type::Yarn : RopeConfig::Type::Linear;

    const JsonObject &original = in.has("original_max_position_embeddings") ? in : dict;
    MOEC_TRY(rope.originalMaxPositions,
             original.integerOr("original_max_position_embeddings", 1, maxPositionsLimit, out.maxPositions));
    bool derived = rope.type == RopeConfig::Type::Yarn && !dict.has("factor");
    if (derived) {
      rope.factor = static_cast<double>(out.maxPositions) / static_cast<double>(rope.originalMaxPositions);
    } else {
      MOEC_TRY(rope.factor, dict.number("factor"));
    }
    if (!(rope.factor >= 1 && rope.factor <= 1e6))
      return wrong(dict, "factor",
                   (derived ? "follows from 'max_position_embeddings' as " : "is ") + numberText(rope.factor) +
                       ", expected a number from 1 to 1e6");
    MOEC_CHECK(readScale(dict, "mscale_all_dim", rope.mscaleAllDim));
    if (rope.type == RopeConfig::Type::Linear)
      return success();
    MOEC_CHECK(readScale(dict, "mscale", rope.mscale));
    // 0 is "not given" in transformers.
    MOEC_TRY(rope.betaFast, dict.numberOr("beta_fast", 32.0));
    MOEC_TRY(rope.betaSlow, dict.numberOr("beta_slow", 1.0));
    rope.betaFast = rope.betaFast == 0 ? 32.0 : rope.betaFast;
    rope.betaSlow = rope.betaSlow == 0 ? 1.0 : rope.betaSlow;
    if (!(rope.betaSlow > 0 && rope.betaSlow <= rope.betaFast && rope.betaFast <= 1e6))
      return wrong(dict, "beta_slow",
                   "is " + numberText(rope.betaSlow) + " and 'beta_fast' is " + numberText(rope.betaFast) +
                       ", expected 0 < beta_slow <= beta_fast <= 1e6");
    MOEC_TRY(rope.truncate, dict.booleanOr("truncate", true));
    if (dict.has("attention_factor")) {
      MOEC_TRY(double factor, dict.number("attention_factor"));
      if (!(factor > 0 && factor <= 1e3))
        return wrong(dict, "attention_factor",
                     "is " + numberText(factor) + ", expected a number above 0 and at most 1000");
      rope.attentionFactor = factor;
    }
    return success();
  }

  static Status readScale(const JsonObject &dict, const char *key, double &scale) {
    MOEC_TRY(scale, dict.numberOr(key, 0.0));
    if (!(scale >= 0 && scale <= 100))
      return wrong(dict, key, "is " + numberText(scale) + ", expected a number from 0 to 100");
    return success();
  }

  Status readStorage() {
    MOEC_TRY(std::string dtype, in.stringOr(in.has("dtype") ? "dtype" : "torch_dtype", "bfloat16"));
    // Other names are left to the headers.
    if (dtype == "float32")
      out.dtype = DType::F32;
    else if (dtype == "float16")
      out.dtype = DType::F16;
    return readQuantization();
  }

  Status readQuantization() {
    if (!in.has("quantization_config"))
      return success();
    MOEC_TRY(JsonObject quant, in.object("quantization_config"));
    MOEC_TRY(Format format, detectFormat(quant));
    MOEC_TRY(std::string scales, quant.stringOr("scale_fmt", "float"));
    if (isV4()) { // its own names and scales
      if (format.element != Element::F8E4M3)
        return wrong(quant, "quant_method", "stands for " + format.name + ", but deepseek_v4 models are fp8");
      format = formats::fp8(format.scale.rows, format.scale.cols, formats::Naming::Scale, /*e8m0=*/true);
    }
    out.quantization = {std::move(format), scales == "ue8m0"};
    return success();
  }

  /// Keys that change the mathematics in ways that are not built.
  Status readRefusals() {
    for (const char *key : {"attention_bias", "mlp_bias"}) {
      MOEC_TRY(bool bias, in.booleanOr(key, false));
      if (bias)
        return wrong(in, key, "is true, but projections with biases are not supported");
    }
    MOEC_TRY(std::string act, in.stringOr("hidden_act", "silu"));
    if (act != "silu")
      return wrong(in, "hidden_act", "is " + quote(act) + ", but only silu is supported");
    MOEC_TRY(bool interleaved, in.booleanOr("rope_interleave", true));
    if (!interleaved && !isV2())
      return wrong(in, "rope_interleave",
                   "is false, but only weights stored for interleaved rotary pairs are supported");
    return success();
  }

  JsonObject in;
  ModelConfig &out;
};

} // namespace

int64_t ModelConfig::moeLayers() const { return std::count(isMoe.begin(), isMoe.end(), true); }

int64_t ModelConfig::longestContext() const { return indexer ? std::min(maxPositions, indexer->topk) : maxPositions; }

std::vector<std::string> ModelConfig::missing() const {
  if (!v4)
    return {};
  std::vector<std::string> parts = {"hyper-connections ('hc_mult')",
                                    "compressed attention with a window and sinks ('compress_ratios')"};
  if (v4->hashLayers > 0)
    parts.push_back("hash routing ('num_hash_layers')");
  if (v4->fp4Experts)
    parts.push_back("FP4 experts ('expert_dtype')");
  return parts;
}

Status ModelConfig::importable() const {
  std::vector<std::string> parts = missing();
  if (parts.empty())
    return success();
  std::string list;
  for (size_t i = 0; i < parts.size(); ++i)
    list += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
  return Error{path + ": 'model_type' is " + quote(type) + ", which needs what is not built yet: " + list};
}

Result<ModelConfig> ModelConfig::parse(const Json &config, const std::string &path, const Json *generation,
                                       const std::string &generationPath) {
  ModelConfig result;
  result.path = path;
  MOEC_TRY(JsonObject object, JsonObject::from(config, path));
  Reader reader(object, result);
  MOEC_CHECK(reader.read());
  if (generation) {
    MOEC_TRY(JsonObject tokens, JsonObject::from(*generation, generationPath));
    MOEC_CHECK(reader.readTokens(tokens));
  }
  return result;
}

Result<ModelConfig> ModelConfig::load(const std::string &directory) {
  namespace fs = std::filesystem;
  std::string path = directory + "/config.json", generationPath = directory + "/generation_config.json";
  MOEC_TRY(Json config, readJsonFile(path, 1 << 20));
  std::error_code ignored;
  bool hasGeneration = fs::exists(fs::symlink_status(generationPath, ignored));
  Json generation;
  if (hasGeneration) {
    MOEC_TRY(generation, readJsonFile(generationPath, 1 << 20));
  }
  MOEC_TRY(ModelConfig result, parse(config, path, hasGeneration ? &generation : nullptr, generationPath));
  fs::path absolute = fs::absolute(directory, ignored).lexically_normal();
  result.name = absolute.filename().empty() ? absolute.parent_path().filename() : absolute.filename();
  return result;
}
