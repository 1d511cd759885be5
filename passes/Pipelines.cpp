// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Pipelines.h"

#include "passes/Conversion/MoeToExec/MoeToExec.h"
#include "passes/Exec/Passes.h"
#include "passes/Moe/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Transforms/Passes.h"

using namespace mlir;

void moe::buildMoePipeline(OpPassManager &pm, const MoePipelineOptions &options) {
  // A pass runs at the level it is added with, and above.
  auto from = [&](int64_t level, OpPassManager &manager, std::unique_ptr<Pass> pass) {
    if (options.level >= level)
      manager.addPass(std::move(pass));
  };
  // The fusions match on values: one value for one thing, no reshape between two others.
  from(1, pm, createCanonicalizerPass());
  from(1, pm, createCSEPass());
  OpPassManager &function = pm.nest<func::FuncOp>();
  // First, as it takes a plain linear for the up-projection of the context. There is no lowering of the plain form.
  from(0, function, createFuseMlaPass());
  // Over the attentions that the pass before made.
  from(0, function, createChooseMlaPass({options.mla}));
  // Before weights are rounded, so that products are rounded once.
  from(options.foldNorm ? 0 : 3, function,
       createFoldNormPass(
           {options.experts, options.attention, options.dense, options.head, options.overrides, options.rounding}));
  // What a weight is for shows in the plain ops that read it; weights in different formats are not joined then.
  from(0, function,
       createQuantizePass(
           {options.experts, options.attention, options.dense, options.head, options.overrides, options.rounding}));
  // Before residuals: a gate or up that adds one could no longer be joined.
  from(1, function, createFuseGateUpPass());
  // Before residuals: the shared expert is added by itself until then.
  from(2, function, createJoinSharedExpertPass());
  // Over the linears that are left, of which those that add a residual stay by themselves.
  from(2, function, createFuseProjectionsPass());
  from(1, function, createFuseResidualPass());
  // After moe-quantize, which tells the head by what comes after the gather.
  from(1, function, createTrimRowsPass());
  // After all passes that round otherwise, so that their proofs need not bear with entries that round the other way.
  if (options.cache != "f32")
    from(0, pm, createStoreCachePass({options.cache}));
}

void moe::buildLowerPipeline(OpPassManager &pm, const LowerPipelineOptions &options) {
  exec::MoeToExecPassOptions lowering;
  lowering.maxTokens = options.maxTokens;
  pm.addPass(exec::createMoeToExecPass(lowering));
  // Before rows are launched together, the rounding ones among them.
  pm.addPass(exec::createFuseRoundingPass());
  // Before memory is shared, which would tie rows of one buffer to rows of another.
  pm.addPass(exec::createFuseRowsPass());
  pm.addPass(exec::createFuseChainsPass());
  // After all launches exist: lives of buffers are read off their order.
  pm.nest<exec::ProgramOp>().addPass(exec::createPlanMemoryPass());
}

void moe::registerMoePipelines() {
  static const bool registered = [] { // MLIR takes each pipeline once
    registerMoecMoePasses();
    exec::registerMoecMoeToExecPasses();
    exec::registerMoecExecPasses();
    registerCanonicalizerPass();
    registerCSEPass();
    PassPipelineRegistration<MoePipelineOptions>(
        "moe-optimize",
        "Optimize a plain model: canonicalize, cse, the fusions of passes/Moe and its formats of weights",
        buildMoePipeline);
    PassPipelineRegistration<LowerPipelineOptions>(
        "moec-lower", "Lower an optimized model to launches on a memory plan", buildLowerPipeline);
    return true;
  }();
  (void)registered;
}
