// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The tensors that a config asks for, in closed form, and the check of a checkpoint against them.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_INVENTORY_H
#define MOEC_FRONTENDS_HUGGINGFACE_INVENTORY_H

#include "frontends/HuggingFace/Checkpoint.h"
#include "frontends/HuggingFace/Config.h"

#include <map>
#include <string>
#include <vector>

namespace moec::hf {

/// One tensor, or the `members` tensors that `{e}` = 0 .. members-1 in the name stands for.
struct ExpectedTensor {
  enum class Kind : uint8_t {
    Plain,  ///< F32, F16 or BF16
    Linear, ///< the same, or FP8 with `<name>_scale_inv` where the config says so
  };

  std::string name;
  std::vector<int64_t> shape; ///< of one member
  Kind kind = Kind::Plain;
  int64_t members = 1;

  std::string member(int64_t index) const;
};

/// What the model itself needs, in the order of the forward pass. Its length grows with the layers only.
std::vector<ExpectedTensor> expectedTensors(const ModelConfig &config);
/// What its multi-token-prediction layers hold; set aside on import.
std::vector<ExpectedTensor> expectedMtpTensors(const ModelConfig &config);

/// `[ceil(rows / block), ceil(cols / block)]`.
std::vector<int64_t> scaleShape(const Fp8Config &fp8, const std::vector<int64_t> &weight);

struct TensorTotals {
  int64_t tensors = 0, elements = 0;
};
/// Tensors and elements of a complete checkpoint, MTP layers and FP8 scales included.
TensorTotals expectedTotals(const ModelConfig &config);

/// The outcome of a check: each expected tensor is there, with the right shape and a usable element type.
class Inventory {
public:
  /// Compares `table` with what `config` asks for; the first difference is the error. `directory` names the
  /// checkpoint where no file can be named. Rotary `inv_freq` buffers, MTP layers, a stored `lm_head` beside tied
  /// embeddings and the empty tensors of an absent shared expert are tolerated.
  static Result<Inventory> check(const ModelConfig &config, const TensorTable &table, const std::string &directory);
  /// As if each tensor were stored in `plain`, linear layers in FP8 where the config says so: IR without a checkpoint.
  static Inventory assume(const ModelConfig &config, DType plain);

  /// Element type of an expected tensor or family, by its name with `{e}`.
  DType dtype(const std::string &name) const;
  int64_t used() const { return numUsed; }
  int64_t setAside() const { return numSetAside; }

private:
  std::map<std::string, DType> dtypes;
  int64_t numUsed = 0, numSetAside = 0;
};

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_INVENTORY_H
