// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// From a checkpoint to a module of plain `moe` ops: what the paper writes, nothing fused.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_IMPORT_H
#define MOEC_FRONTENDS_HUGGINGFACE_IMPORT_H

#include "frontends/HuggingFace/Checkpoint.h"
#include "frontends/HuggingFace/Config.h"
#include "frontends/HuggingFace/Inventory.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"

#include <vector>

namespace moec::hf {

/// A checkpoint directory whose config is understood and whose tensors are the ones it asks for.
struct SourceModel {
  ModelConfig config;
  Checkpoint checkpoint;
  Inventory inventory;

  /// Reads config.json, generation_config.json and the headers of all shards; no tensor data.
  static Result<SourceModel> open(const std::string &directory);
};

struct ImportOptions {
  /// Longest context in tokens, at most `ModelConfig::longestContext`; 0 stands for that, at most 32768.
  int64_t maxContext = 0;
  /// The layers to build, in rising order; empty: all. What lies between two of them is left out: another, smaller
  /// model of the same parts.
  std::vector<int64_t> layers = {};
};

/// Builds the module:
///
/// - attribute `moe.model`: a dictionary of `type`, `name`, `vocab`, `hidden`, `layers` (those built), `max_context`,
/// `bos`
///   (i64, absent if unknown) and `eos` (array of i64);
/// - one `moe.cache @kv.<layer>` for each layer;
/// - `func.func @step(tokens, positions, slots: tensor<?xi32>, rows: tensor<?xi32>) -> tensor<?xVxf32>`.
///
/// Each op's location is a name such as "layers.3.self_attn.q_a_proj". Weights appear by name and recipe only; the size
/// of the module grows with the number of layers and with nothing else. Attention is dense: of V3.2 nothing of the
/// indexer is imported. Failures are emitted as diagnostics.
mlir::FailureOr<mlir::OwningOpRef<mlir::ModuleOp>> importModel(mlir::MLIRContext &context, const ModelConfig &config,
                                                               const Inventory &inventory,
                                                               const ImportOptions &options = {});

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_IMPORT_H
