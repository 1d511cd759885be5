// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The passes of passes/Moe keep what a program computes: the model of moe-optimize.mlir through the interpreter,
/// before and after each of them, over steps that fill a prompt, decode, mix sequences and go back.

#include "test/dialects/moe_reference_common.h"

#include "dialects/Moe/Recipe.h"
#include "dialects/Moe/Reference/Interpreter.h"
#include "passes/Moe/Passes.h"
#include "passes/Pipelines.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/Passes.h"

#include <gtest/gtest.h>

#include <cmath>

using namespace mlir;
using namespace mlir::moe;
using moec::test::MapSource;
using moec::test::Random;
using moec::test::Tensor;

namespace {

/// Distance of each pair to the size of the numbers.
double relativeError(const std::vector<double> &found, const std::vector<double> &expected) {
  EXPECT_EQ(found.size(), expected.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    error = std::max(error, std::abs(found[i] - expected[i]));
    size = std::max(size, std::abs(expected[i]));
  }
  return error / size;
}

class PassesTest : public testing::Test {
protected:
  PassesTest() {
    context.loadDialect<MoeDialect, func::FuncDialect>();
    plain = parseSourceFile<ModuleOp>(MOEC_TEST_DIR "/passes/moe-optimize.mlir", &context);
    Random random(/*seed=*/7);
    plain->walk([&](WeightOp op) {
      std::string name = cast<StringAttr>(op.getSources()[0]).str();
      std::vector<int64_t> shape(op.getType().getShape());
      size_t marker = name.find("{e}");
      if (marker == std::string::npos)
        return weights.add(name, random.tensor<float>(shape));
      std::vector<int64_t> each(shape.begin() + 1, shape.end());
      for (int64_t e = 0; e < shape[0]; ++e)
        weights.add(std::string(name).replace(marker, 3, std::to_string(e)), random.tensor<float>(each));
    });
  }

  /// The logits of all steps, one after another.
  std::vector<double> run(ModuleOp module, InterpreterOptions::Precision precision) {
    InterpreterOptions options;
    options.precision = precision;
    Interpreter interpreter(module, weights, options);
    std::vector<double> all;
    auto step = [&](std::vector<int32_t> tokens, std::vector<int32_t> positions, std::vector<int32_t> slots,
                    std::vector<int32_t> rows) {
      FailureOr<Tensor<double>> logits = interpreter.run(tokens, positions, slots, rows);
      ASSERT_TRUE(succeeded(logits));
      all.insert(all.end(), logits->data.begin(), logits->data.end());
    };
    step({1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}, {0, 1, 2, 3, 4});
    step({6}, {5}, {0}, {0});
    step({60, 7, 61, 62}, {0, 6, 1, 2}, {3, 0, 3, 3}, {3, 1});
    step({9, 10}, {3, 4}, {0, 0}, {1, 0}); // back to position 3: entries are replaced
    return all;
  }

  /// `module` gives the logits of `plain` but for rounding: of `bound` at most in double precision, and not none.
  void expectRoundedAlone(ModuleOp module, double bound) {
    using Precision = InterpreterOptions::Precision;
    std::vector<double> expected = run(*plain, Precision::F64), found = run(module, Precision::F64);
    EXPECT_NE(found, expected);
    EXPECT_LT(relativeError(found, expected), bound);
    EXPECT_LT(relativeError(run(module, Precision::F32), expected), 1e-4);
  }

  OwningOpRef<ModuleOp> joined() {
    return optimized([](PassManager &manager) {
      manager.addNestedPass<func::FuncOp>(createFuseGateUpPass());
      manager.addNestedPass<func::FuncOp>(createJoinSharedExpertPass());
    });
  }

  OwningOpRef<ModuleOp> optimized(function_ref<void(PassManager &)> build) {
    OwningOpRef<ModuleOp> module = plain->clone();
    PassManager manager(&context);
    build(manager);
    EXPECT_TRUE(succeeded(manager.run(*module)));
    return module;
  }

  template <typename OpTy> static int count(ModuleOp module) {
    int number = 0;
    module.walk([&](OpTy) { ++number; });
    return number;
  }

  MLIRContext context;
  OwningOpRef<ModuleOp> plain;
  MapSource weights;
};

TEST_F(PassesTest, FuseMlaChangesOnlyRounding) {
  // The test's model has a reshape too many for the pass alone: the whole pipeline brings it into form.
  OwningOpRef<ModuleOp> module = optimized([](PassManager &manager) { buildMoePipeline(manager, {}); });
  ASSERT_EQ(count<MlaAttentionOp>(*module), 1);
  ASSERT_EQ(count<CacheAppendOp>(*module), 0);
  // Sums of at most 48 products in another order: a few hundred roundings of 1e-16 at worst.
  expectRoundedAlone(*module, 1e-13);
}

TEST_F(PassesTest, EachFormOfLatentAttentionChangesOnlyRounding) {
  using Precision = InterpreterOptions::Precision;
  std::vector<double> expected = run(*plain, Precision::F64);
  auto withForm = [&](const std::string &mla) {
    OwningOpRef<ModuleOp> module = optimized([&](PassManager &manager) {
      MoePipelineOptions options;
      options.mla = mla;
      buildMoePipeline(manager, options);
    });
    return run(*module, Precision::F64);
  };
  std::vector<double> absorbed = withForm("absorbed"), expanded = withForm("expanded");
  EXPECT_LT(relativeError(absorbed, expected), 1e-13);
  EXPECT_LT(relativeError(expanded, expected), 1e-13);
  EXPECT_NE(absorbed, expanded);
}

TEST_F(PassesTest, OtherFusionsKeepEveryBit) {
  OwningOpRef<ModuleOp> module = optimized([](PassManager &manager) {
    manager.addNestedPass<func::FuncOp>(createFuseGateUpPass());
    manager.addNestedPass<func::FuncOp>(createFuseResidualPass());
  });
  ASSERT_EQ(count<GateUpOp>(*module), 1);
  ASSERT_EQ(count<AddOp>(*module), 1);
  EXPECT_EQ(run(*module, InterpreterOptions::Precision::F32), run(*plain, InterpreterOptions::Precision::F32));
}

TEST_F(PassesTest, ASharedExpertAsWideAsARoutedOneJoinsThemToTheBit) {
  OwningOpRef<ModuleOp> module = joined();
  ASSERT_EQ(count<GateUpOp>(*module), 0);
  module->walk([&](ExpertsOp op) { EXPECT_EQ(op.getShared(), 1u); });
  EXPECT_EQ(run(*module, InterpreterOptions::Precision::F32), run(*plain, InterpreterOptions::Precision::F32));
}

TEST_F(PassesTest, ASharedExpertTwiceAsWideChangesOnlyRounding) {
  // The same model with half of the routed experts' width.
  plain->walk([&](Operation *op) {
    auto weight = dyn_cast<WeightOp>(op);
    if (!weight || !isFamily(cast<StringAttr>(weight.getSources()[0])))
      return;
    auto type = weight.getType();
    SmallVector<int64_t> shape(type.getShape());
    bool down = shape[1] == 16;
    shape[down ? 2 : 1] = 6;
    weight.getResult().setType(RankedTensorType::get(shape, type.getElementType()));
    Random random(/*seed=*/down ? 8 : 9);
    for (int64_t e = 0; e < shape[0]; ++e)
      weights.add(memberOf(cast<StringAttr>(weight.getSources()[0]), e), random.tensor<float>({shape[1], shape[2]}));
  });
  OwningOpRef<ModuleOp> module = joined();
  module->walk([&](ExpertsOp op) { EXPECT_EQ(op.getShared(), 2u); });
  // A sum of 12 products in two parts, of a handful of such sums.
  expectRoundedAlone(*module, 1e-14);
}

TEST_F(PassesTest, FoldedNormsChangeOnlyRounding) {
  OwningOpRef<ModuleOp> module =
      optimized([](PassManager &manager) { manager.addNestedPass<func::FuncOp>(createFoldNormPass()); });
  int folded = 0;
  module->walk([&](RmsNormOp op) { folded += !op.getWeight(); });
  EXPECT_GE(folded, 2);
  // In double precision, what is rounded is the product of a weight and the norm's: by 2^-24 of itself.
  expectRoundedAlone(*module, 1e-6);
}

TEST_F(PassesTest, OpsOnWeightsBecomeWeightsToTheBit) {
  // Each linear's weight is cut out of the heads of two tensors, and added up.
  Random random(/*seed=*/11);
  plain->walk([&](LinearOp linear) {
    auto type = cast<RankedTensorType>(linear.getWeight().getType());
    const int64_t rows = type.getDimSize(0), half = type.getDimSize(1) / 2;
    std::string name = cast<StringAttr>(linear.getWeight().getDefiningOp<WeightOp>().getSources()[0]).str();
    OpBuilder b(linear);
    SmallVector<Value> flat;
    for (const char *which : {".a", ".b"}) {
      weights.add(name + which, random.tensor<float>({rows, 2 * half + 2}));
      auto wide = WeightOp::create(b, linear.getLoc(), type.clone({rows, 2 * half + 2}),
                                   b.getStrArrayAttr({name + which}), b.getArrayAttr({}));
      auto heads = ReshapeOp::create(b, linear.getLoc(), type.clone({rows, 2, half + 1}), wide);
      auto parts =
          SplitOp::create(b, linear.getLoc(), TypeRange{type.clone({rows, 2, 1}), type.clone({rows, 2, half})}, heads);
      flat.push_back(ReshapeOp::create(b, linear.getLoc(), type, parts.getParts()[1]));
    }
    linear.getWeightMutable().assign(AddOp::create(b, linear.getLoc(), type, flat[0], flat[1]).getResult());
  });
  OwningOpRef<ModuleOp> module = optimized([](PassManager &manager) { manager.addPass(createCanonicalizerPass()); });
  module->walk([&](LinearOp linear) { EXPECT_TRUE(linear.getWeight().getDefiningOp<WeightOp>()); });
  EXPECT_EQ(run(*module, InterpreterOptions::Precision::F32), run(*plain, InterpreterOptions::Precision::F32));
}

TEST_F(PassesTest, RowsThatNobodyAsksForChangeNoBit) {
  OwningOpRef<ModuleOp> module =
      optimized([](PassManager &manager) { manager.addNestedPass<func::FuncOp>(createTrimRowsPass()); });
  // From the attention's result and from the residual stream; all after that runs for some rows of the step.
  ASSERT_EQ(count<GatherRowsOp>(*module), 2);
  EXPECT_EQ(run(*module, InterpreterOptions::Precision::F32), run(*plain, InterpreterOptions::Precision::F32));
}

} // namespace
