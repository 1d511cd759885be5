// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What config.json says about a DeepSeek-architecture model, checked.
///
/// Where DeepSeek's published model code and the classes of `transformers` read a key differently, the choice is
/// written beside the field. Both agree on every published checkpoint.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_CONFIG_H
#define MOEC_FRONTENDS_HUGGINGFACE_CONFIG_H

#include "dialects/Formats/Format.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moec::hf {

/// Rotary embedding as config.json describes it.
struct RopeConfig {
  enum class Type : uint8_t { Plain, Linear, Yarn };

  Type type = Type::Plain;
  double theta = 10000.0;
  /// Context extension; >= 1, and 1 for `Plain`.
  double factor = 1.0;
  int64_t originalMaxPositions = 0;
  double betaFast = 32.0, betaSlow = 1.0;
  /// Absent and 0 are different for YaRN's attention factor only in DeepSeek's code; transformers, which we follow,
  /// treats both as absent.
  double mscale = 0.0, mscaleAllDim = 0.0;
  /// Replaces the factor derived from `mscale`. DeepSeek's code has no such key; transformers does.
  std::optional<double> attentionFactor;
  /// Round the correction range to whole dimensions.
  bool truncate = true;
};

/// How those linear layers are stored that are not plain; which ones those are, tensors tell.
struct QuantizationConfig {
  Format format;
  /// Scales are powers of two, so that a dequantised FP8 weight is exact in bf16.
  bool powerOfTwoScales = false;
};

/// The indexer of sparse attention: it picks the `topk` entries of the context that a token attends to.
struct IndexerConfig {
  int64_t heads = 0, headDim = 0, topk = 0;
};

/// What only deepseek_v4 has: one key that is also the value and is shared by all heads, compressed context, several
/// residual streams. Read so that its tensors can be listed; nothing of it is imported.
struct V4Config {
  int64_t headDim = 0;         ///< of queries and of the shared key; its last `ropeDim` channels rotate
  int64_t oLoraRank = 0;       ///< width of each group's part of the output latent
  int64_t oGroups = 1;         ///< groups of heads that are projected apart
  int64_t hashLayers = 0;      ///< the first layers, whose experts are looked up by token
  int64_t streams = 1;         ///< copies of the residual state (`hc_mult`)
  std::vector<int64_t> ratios; ///< tokens per compressed entry of each layer: 0 (none), 4 or 128; `layers` entries
  bool fp4Experts = false;     ///< two e2m1 codes to a byte, one e8m0 scale for each row of 32
  bool hasDraftBlocks = false; ///< DSpark blocks instead of one MTP layer; their tensors are not described anywhere
  static constexpr int64_t fp4Block = 32;
};

/// A DeepSeek-architecture model: multi-head latent attention (or V4's successor of it) and mixture-of-experts
/// feed-forward networks. Not every model that can be described can be imported: see `missing`.
struct ModelConfig {
  enum class Router : uint8_t {
    SoftmaxGreedy,  ///< deepseek_v2, plain top-k
    SoftmaxGrouped, ///< deepseek_v2, groups scored by their best expert
    SigmoidGrouped, ///< deepseek_v3, `noaux_tc`: selection bias, groups scored by their two best experts
    SqrtSoftplus,   ///< deepseek_v4: selection bias, no groups
  };

  std::string path; ///< the file this came from, for messages
  std::string type; ///< `model_type`
  std::string name; ///< the checkpoint directory's own name

  int64_t vocab = 0, hidden = 0, layers = 0, heads = 0;
  int64_t qLoraRank = 0; ///< 0: one full query projection
  int64_t kvLoraRank = 0, nopeDim = 0, ropeDim = 0, valueDim = 0;
  int64_t denseWidth = 0, expertWidth = 0;
  int64_t experts = 0; ///< 0: every layer is dense
  int64_t sharedExperts = 0, topk = 0;
  Router router = Router::SoftmaxGreedy;
  int64_t groups = 1, topkGroups = 1;
  /// The router's weights after selection. DeepSeek-V2 normalises *or* scales, V3 does both; the fields hold what is
  /// applied. (transformers' deepseek_v2 class ignores `norm_topk_prob` and always scales; we follow DeepSeek's code.)
  bool normalize = false;
  double routedScale = 1.0;
  /// Layer `l` is a mixture of experts; `layers` entries.
  std::vector<bool> isMoe;
  int64_t mtpLayers = 0; ///< stored as layers `layers` .. `layers + mtpLayers - 1`
  double rmsEps = 1e-6;
  /// The norms of the two latents: both public implementations leave their default in place, whatever `rms_norm_eps`
  /// says.
  static constexpr double latentEps = 1e-6;
  RopeConfig rope;
  int64_t maxPositions = 0;
  bool tiedEmbeddings = false;
  /// `dtype` or `torch_dtype`: of tensors that are not quantised. A prediction only: headers are the truth.
  DType dtype = DType::BF16;
  std::optional<QuantizationConfig> quantization;
  std::optional<IndexerConfig> indexer; ///< deepseek_v32 and deepseek_v4
  std::optional<V4Config> v4;           ///< deepseek_v4; latent ranks and head widths other than `ropeDim` are 0 then
  std::optional<int64_t> bos;
  std::vector<int64_t> eos;

  /// Reads `directory`/config.json, and generation_config.json beside it where there is one (its end-of-sequence
  /// tokens replace config.json's, as in transformers).
  static Result<ModelConfig> load(const std::string &directory);
  /// The same from parsed files. `path` names config.json in messages; `generation` may be null.
  static Result<ModelConfig> parse(const Json &config, const std::string &path, const Json *generation = nullptr,
                                   const std::string &generationPath = {});

  int64_t queryDim() const { return nopeDim + ropeDim; }
  int64_t moeLayers() const;

  /// The longest context that can be compiled: `max_position_embeddings`, and at most `index_topk` where an indexer
  /// chooses what is attended to. Up to there it chooses everything, so that dense attention is the same.
  int64_t longestContext() const;
  /// What this model needs and moec lacks, as noun phrases with the key that asks for it; empty if it can be imported.
  std::vector<std::string> missing() const;
  /// An error that names what is missing.
  Status importable() const;
};

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_CONFIG_H
