// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The order of passes, and nothing else.

#ifndef MOEC_PASSES_PIPELINES_H
#define MOEC_PASSES_PIPELINES_H

#include "mlir/Pass/PassOptions.h"

namespace mlir {
class OpPassManager;
}

namespace mlir::moe {

/// The highest level of optimization.
inline constexpr int64_t kMaxOptimization = 3;

/// A level, the form of attention as `moe-choose-mla` names it, the format of caches as `moe-store-cache` does, and
/// formats of weights as `moe-quantize` does.
struct MoePipelineOptions : PassPipelineOptions<MoePipelineOptions> {
  Option<int64_t> level{*this, "level", llvm::cl::desc("Level of optimization, 0 to 3"), llvm::cl::init(2)};
  Option<std::string> mla{*this, "mla", llvm::cl::desc("Form of latent attention: auto, absorbed or expanded"),
                          llvm::cl::init("auto")};
  Option<std::string> cache{*this, "cache", llvm::cl::desc("Format of cache entries: f32, bf16, int8 or fp8"),
                            llvm::cl::init("f32")};
  Option<std::string> experts{*this, "experts", llvm::cl::desc("Format of routed experts"), llvm::cl::init("keep")};
  Option<std::string> attention{*this, "attention", llvm::cl::desc("Format of attention's projections"),
                                llvm::cl::init("keep")};
  Option<std::string> dense{*this, "dense", llvm::cl::desc("Format of feed-forward layers that every token takes"),
                            llvm::cl::init("keep")};
  Option<std::string> head{*this, "head", llvm::cl::desc("Format of the projection to logits"), llvm::cl::init("keep")};
  Option<std::string> overrides{*this, "overrides", llvm::cl::desc("Formats by name: lines of REGEX=FORMAT")};
  Option<std::string> rounding{*this, "rounding", llvm::cl::desc("How codes are chosen"), llvm::cl::init("nearest")};
  Option<bool> foldNorm{*this, "fold-norm", llvm::cl::desc("Multiply the weights of norms into those of projections"),
                        llvm::cl::init(false)};
};

/// Optimizes a model, as `moe-optimize`. Each level has the passes of those below it:
///
/// - 0: what lowering needs, that is latent attention over its cache in the asked form, and the asked formats of
///   caches and weights. Attention rounds otherwise than the plain form, formats make another model.
/// - 1: canonicalize, cse, the fusions of gate and up and of residuals, and only the rows asked for after the last
///   attention. Every bit stays as it is.
/// - 2: and projections of one input as one, which keeps every bit too, and the shared expert among the routed ones, of
///   which sums round otherwise if it is wider than they.
/// - 3: what takes long to compile, or changes more than the last bits of sums: the weights of norms are multiplied
///   into those of projections before these are rounded to their formats, at other levels if `foldNorm` asks for it.
///
/// A level that no pass begins at equals the one below it; `moec verify -O<level>` proves each.
/// In: a module of `moe` and `func`, in the plain form that importers give; `options.level` is 0 to 3.
/// Out: the same dialects; latent attention over its cache, projections and residuals fused, weights in the asked
/// formats.
void buildMoePipeline(OpPassManager &pm, const MoePipelineOptions &options);

struct LowerPipelineOptions : PassPipelineOptions<LowerPipelineOptions> {
  Option<int64_t> maxTokens{*this, "max-tokens", llvm::cl::desc("Most tokens, and most rows of logits, in one step"),
                            llvm::cl::init(512)};
};

/// Lowers an optimized model to its device program, as `moec-lower`.
/// In: what `buildMoePipeline` gives.
/// Out: `exec`; every buffer has its place in the arena.
void buildLowerPipeline(OpPassManager &pm, const LowerPipelineOptions &options);

/// Registers the pipelines and the passes they are made of, for command lines and textual pipelines. Once is
/// enough, more does no harm.
void registerMoePipelines();

} // namespace mlir::moe

#endif // MOEC_PASSES_PIPELINES_H
