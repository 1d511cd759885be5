// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A layer whose experts are split into sets gives, interpreted and compiled, what the whole layer gives.

#include "dialects/Moe/MoeDialect.h"
#include "runtime/Model.h"
#include "tools/Driver/Compilation.h"

#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <numeric>

using namespace moec;
namespace moe = mlir::moe;

namespace {

/// Splits each `moe.experts` into a chain of them: one for the experts whose number `% sets` is 0, and so on.
struct SplitExperts final : mlir::PassWrapper<SplitExperts, mlir::OperationPass<mlir::ModuleOp>> {
  explicit SplitExperts(int64_t sets) : sets(sets) {}
  llvm::StringRef getArgument() const override { return "test-split-experts"; }

  void runOnOperation() override {
    llvm::SmallVector<moe::ExpertsOp> ops;
    getOperation().walk([&](moe::ExpertsOp op) { ops.push_back(op); });
    for (moe::ExpertsOp op : ops)
      split(op);
  }

  void split(moe::ExpertsOp op) {
    mlir::OpBuilder b(op);
    mlir::Value sum = op.getResidual();
    for (int64_t set = 0; set < sets; ++set) {
      llvm::SmallVector<int64_t> members;
      for (int64_t e = set; e < op.getGate().getType().getDimSize(0); e += sets)
        members.push_back(e);
      sum = moe::ExpertsOp::create(b, op.getLoc(), op.getType(), op.getX(), op.getWeights(), op.getExperts(),
                                   some(b, op.getGate(), members), some(b, op.getUp(), members),
                                   some(b, op.getDown(), members), sum, op.getActivationsAttr(),
                                   b.getDenseI64ArrayAttr(members));
    }
    op.replaceAllUsesWith(sum);
    op.erase();
  }

  mlir::Value some(mlir::OpBuilder &b, mlir::Value whole, llvm::ArrayRef<int64_t> members) {
    auto weight = whole.getDefiningOp<moe::WeightOp>();
    llvm::SmallVector<mlir::Attribute> recipe(weight.getRecipe().getValue());
    for (mlir::Attribute &step : recipe)
      if (mlir::isa<moe::StackAttr>(step))
        step = moe::StackAttr::get(b.getContext(), members);
    auto type = mlir::cast<mlir::RankedTensorType>(whole.getType());
    llvm::SmallVector<int64_t> shape(type.getShape());
    shape[0] = members.size();
    return moe::WeightOp::create(b, weight.getLoc(), type.clone(shape), weight.getSources(), b.getArrayAttr(recipe));
  }

  int64_t sets;
};

class ExpertSetsTest : public testing::TestWithParam<const char *> {
protected:
  struct Logits {
    std::vector<float> interpreted, together, oneByOne;
  };

  /// Logits of all tokens, from the interpreter and from the artifact: in one step and in steps of one token.
  Logits run(int64_t sets) {
    CompileOptions options;
    options.model = MOEC_TEST_DIR "/models/tiny-shakespeare";
    options.experts = GetParam();
    options.threads = 2;
    auto compilation = Compilation::open(options);
    Logits logits;
    auto steps = [&]() -> Status {
      MOEC_CHECK((*compilation)->run([&](mlir::PassManager &manager) {
        if (sets > 1)
          manager.addPass(std::make_unique<SplitExperts>(sets));
      }));
      MOEC_CHECK((*compilation)->optimize());
      MOEC_TRY(InterpretResult interpreted, (*compilation)->interpret(tokens, /*float64=*/false));
      logits.interpreted = std::move(interpreted.logits);
      MOEC_CHECK((*compilation)->lower());
      MOEC_CHECK((*compilation)->write(path));
      ModelOptions twoSlots;
      twoSlots.maxSlots = 2;
      MOEC_TRY(std::unique_ptr<Model> model, Model::load(path, twoSlots));
      int32_t count = tokens.size(), vocab = model->vocab();
      std::vector<int32_t> positions(count), slots(count, 0);
      std::iota(positions.begin(), positions.end(), 0);
      logits.together.resize(count * vocab);
      MOEC_CHECK(model->step(tokens, positions, slots, /*rows=*/positions, logits.together));
      logits.oneByOne.resize(count * vocab);
      std::vector<int32_t> row = {0}, slot = {1};
      for (int32_t t = 0; t < count; ++t)
        MOEC_CHECK(model->step({&tokens[t], 1}, {&positions[t], 1}, slot, row,
                               std::span(logits.oneByOne).subspan(t * vocab, vocab)));
      return success();
    };
    EXPECT_TRUE(compilation.ok()) << compilation.message();
    Status status = compilation.ok() ? steps() : success();
    EXPECT_TRUE(status.ok()) << status.message();
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
    return logits;
  }

  std::vector<int32_t> tokens = {17, 3, 250, 99, 4, 4, 180, 31, 77};
  std::string path = testing::TempDir() + "moec-expert-sets";
};

/// The largest difference, over the largest value.
double difference(const std::vector<float> &found, const std::vector<float> &expected) {
  EXPECT_EQ(found.size(), expected.size());
  double worst = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    worst = std::max<double>(worst, std::fabs(double(found[i]) - expected[i]));
    largest = std::max<double>(largest, std::fabs(expected[i]));
  }
  EXPECT_GT(largest, 0);
  return worst / largest;
}

TEST_P(ExpertSetsTest, GiveWhatTheWholeLayerGives) {
  Logits whole = run(1);
  // Two sets, and one for each expert: most of those have no token in a step of one.
  for (int64_t sets : {2, 16}) {
    Logits split = run(sets);
    EXPECT_LT(difference(split.interpreted, whole.interpreted), 2e-4) << sets << " sets";
    EXPECT_LT(difference(split.together, whole.together), 2e-4) << sets << " sets";
    EXPECT_TRUE(split.oneByOne == split.together) << "a token's bits depend on the tokens beside it";
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, ExpertSetsTest, testing::Values("keep", "int4"));

} // namespace
