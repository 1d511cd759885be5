// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The tensors that a config asks for, in closed form, and the check of a checkpoint against them.
///
/// Names, shapes and element types are those of the published checkpoints, so that counts and bytes follow from a
/// config alone: `docs/deepseek-models.md`, sections 3.2 and 3.4.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_INVENTORY_H
#define MOEC_FRONTENDS_HUGGINGFACE_INVENTORY_H

#include "frontends/HuggingFace/Checkpoint.h"
#include "frontends/HuggingFace/Config.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace moec::hf {

/// What a tensor is for.
enum class Part : uint8_t {
  Embeddings,
  Attention,        ///< projections, V4's compressors and sinks; not the norms between them
  Indexer,          ///< of V3.2 and V4, with its own norms and compressor
  Dense,            ///< feed-forward networks of dense layers
  Router,           ///< gate, selection bias, V4's table of experts by token
  Experts,          ///< routed; of `n_routed_experts` a token uses `num_experts_per_tok`
  SharedExperts,    ///< used by every token
  Norms,            ///< of the residual stream and of latents
  HyperConnections, ///< of V4
  Head,
  Mtp,     ///< everything of the multi-token-prediction layers
  Buffers, ///< what a program computes itself: the `inv_freq` of Kimi-K2
};
/// "embeddings", "shared experts", ...
std::string_view toString(Part part);

/// How many tensors there are and what they hold, scales included.
struct TensorTotals {
  int64_t tensors = 0;
  int64_t elements = 0;   ///< as stored: one packed byte is one
  int64_t parameters = 0; ///< learnt numbers: two to a byte of FP4; neither scales nor tables nor buffers
  uint64_t bytes = 0;

  TensorTotals &operator+=(const TensorTotals &other);
};

/// One weight, or the `members` weights that `{e}` = 0 .. members-1 in the name stands for. A quantised one lies in
/// several tensors, which are called after its module.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape; ///< of one member, in weights
  Part part = Part::Attention;
  DType dtype = DType::BF16; ///< in the published checkpoint, if it is plain
  int64_t members = 1;
  /// The tensors of one member if it is quantised, the codes first; empty if the config says that it is plain.
  std::vector<RequiredTensor> stored = {};

  /// The names of member `index`: of the plain weight, and of one of its tensors if it is quantised.
  std::string member(int64_t index) const;
  std::string member(int64_t index, const RequiredTensor &tensor) const { return memberOf(nameOf(tensor), index); }
  /// The same with `{e}`.
  std::string nameOf(const RequiredTensor &tensor) const;
  /// Of all members as the config says that they are stored.
  TensorTotals totals() const;

private:
  static std::string memberOf(const std::string &name, int64_t index);
};

/// What the model itself needs, in the order of the forward pass. Its length grows with the layers only.
std::vector<ExpectedTensor> expectedTensors(const ModelConfig &config);
/// What the published checkpoint holds besides: multi-token-prediction layers, Kimi-K2's rotary buffers. Set aside on
/// import, and no checkpoint must have them. V4's DSpark blocks are not listed.
std::vector<ExpectedTensor> expectedExtraTensors(const ModelConfig &config);

/// A complete checkpoint by part, extras included; parts that the model lacks are absent.
std::map<Part, TensorTotals> expectedTotalsByPart(const ModelConfig &config);
/// The sum of all parts.
TensorTotals expectedTotals(const ModelConfig &config);

/// How a weight is stored.
struct StoredAs {
  DType dtype = DType::F32; ///< of the plain weight, or of the codes
  bool quantised = false;
  bool indexed = false;     ///< a group index lies beside the codes
  DType scale = DType::F32; ///< what scales are stored as
  /// The blocks of a GGUF file that hold it by themselves, else null.
  const GgufType *blocks = nullptr;

  bool operator==(const StoredAs &) const = default;
};

/// The outcome of a check: each expected tensor is there, with the right shape and a usable element type.
class Inventory {
public:
  /// Compares `table` with what `config` asks for; the first difference is the error, and so is a
  /// `quantization_config` that no tensor follows. `directory` names the checkpoint where no file can be named. Rotary
  /// `inv_freq` buffers, MTP layers, a stored `lm_head` beside tied embeddings and the empty tensors of an absent
  /// shared expert are tolerated.
  static Result<Inventory> check(const ModelConfig &config, const TensorTable &table, const std::string &directory);
  /// As if each tensor were stored as published, or those that are not quantised in `plain`: IR without a checkpoint.
  static Inventory assume(const ModelConfig &config, std::optional<DType> plain = std::nullopt);

  /// How an expected weight or family is stored, by its name with `{e}`.
  const StoredAs &stored(const std::string &name) const;
  int64_t used() const { return numUsed; }
  /// Tensors that the imported module does not read, the checked ones of an indexer among them.
  int64_t setAside() const { return numSetAside; }

private:
  std::map<std::string, StoredAs> weights;
  int64_t numUsed = 0, numSetAside = 0;
};

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_INVENTORY_H
