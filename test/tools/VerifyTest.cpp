// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// `moec verify` on the trained model of the tree: passes that are right hold, and the mistakes that implementations of
/// DeepSeek's models have really made are caught, with the pass and the op named.

#include "tools/Driver/Verify.h"

#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "frontends/HuggingFace/Checkpoint.h"
#include "passes/Pipelines.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Safetensors.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include <unistd.h>

using namespace moec;
using testing::HasSubstr;
namespace moe = mlir::moe;

namespace {

/// Does something to each `Op` of a module, under the name of a pass.
template <typename Op> struct EachOp final : mlir::PassWrapper<EachOp<Op>, mlir::OperationPass<mlir::ModuleOp>> {
  EachOp(llvm::StringRef name, std::function<void(Op)> edit) : name(name.str()), edit(std::move(edit)) {}
  llvm::StringRef getArgument() const override { return name; }
  void runOnOperation() override {
    this->getOperation().walk([&](Op op) { edit(op); });
  }

  std::string name;
  std::function<void(Op)> edit;
};

class VerifyTest : public testing::Test {
protected:
  VerifyTest() {
    options.compile.model = MOEC_TEST_DIR "/models/tiny-shakespeare";
    options.count = 12;
  }

  /// The report on a pipeline with a pass that edits each `Op`, before the fusions or after them.
  template <typename Op> VerifyReport editing(const char *name, bool fusedBefore, std::function<void(Op)> edit) {
    options.pipeline = [&](mlir::OpPassManager &manager) {
      if (fusedBefore)
        moe::buildMoePipeline(manager, {});
      manager.addPass(std::make_unique<EachOp<Op>>(name, edit));
      if (!fusedBefore)
        moe::buildMoePipeline(manager, {});
    };
    auto report = verify(options);
    EXPECT_TRUE(report.ok()) << report.message();
    return report.ok() ? *report : VerifyReport();
  }

  void expectCaught(const VerifyReport &report, const std::string &pass, const std::string &op) {
    ASSERT_NE(report.breach(), nullptr) << report.text();
    EXPECT_EQ(report.breach()->name, pass);
    EXPECT_GT(report.breach()->maxAbs, 0);
    const std::string &divergence = report.breach()->divergence;
    size_t before = divergence.find("\n  before: ");
    ASSERT_NE(before, std::string::npos) << divergence;
    EXPECT_THAT(divergence.substr(0, before), HasSubstr(op));
    EXPECT_THAT(divergence.substr(before), HasSubstr(op));
    EXPECT_THAT(report.text(), HasSubstr("first difference after " + pass));
  }

  VerifyOptions options;
};

TEST_F(VerifyTest, PassesAndArtifactHold) {
  auto report = verify(options);
  ASSERT_TRUE(report.ok()) << report.message();
  EXPECT_EQ(report->breach(), nullptr) << report->text();
  std::vector<std::string> names;
  for (const VerifyStep &step : report->steps)
    names.push_back(step.name);
  EXPECT_THAT(names,
              testing::ElementsAre("moe-fuse-mla", "moe-choose-mla", "moe-fuse-gate-up", "moe-join-shared-expert",
                                   "moe-fuse-projections", "moe-fuse-residual", "moe-trim-rows", "artifact"));
  EXPECT_THAT(report->unchanged, testing::ElementsAre("canonicalize", "cse", "moe-quantize"));
  for (const VerifyStep &step : report->steps) {
    // The tokens are too few for the expanded form, and the shared expert is as wide as a routed one.
    if (step.name != "moe-choose-mla" && step.name != "moe-join-shared-expert") {
      EXPECT_EQ(step.proof == Proof::Exact, step.maxAbs == 0) << step.name;
    }
    EXPECT_EQ(step.sameTop, 1) << step.name;
  }
}

TEST_F(VerifyTest, AnotherFormatIsMeasured) {
  options.compile.experts = "int4";
  auto report = verify(options);
  ASSERT_TRUE(report.ok()) << report.message();
  EXPECT_EQ(report->breach(), nullptr) << report->text();
  auto step = std::ranges::find(report->steps, "moe-quantize", &VerifyStep::name);
  ASSERT_NE(step, report->steps.end());
  EXPECT_EQ(step->proof, Proof::Formats);
  EXPECT_GT(step->maxAbs, kRoundingBound);
  EXPECT_GT(step->kldMean, 0);
  EXPECT_EQ(report->steps.back().name, "artifact") << "and the artifact is compared with the new model";
}

TEST_F(VerifyTest, RouterWithoutItsBias) {
  VerifyReport report =
      editing<moe::RouteOp>("test-no-bias", false, [](moe::RouteOp op) { op.getBiasMutable().clear(); });
  ASSERT_NE(report.breach(), nullptr) << report.text();
  EXPECT_EQ(report.breach()->name, "test-no-bias");
  EXPECT_THAT(report.breach()->divergence, HasSubstr("moe.route"));
}

/// Writes the model without its dense first layer: what was layer 1 is layer 0, and has experts.
Status writeWithoutDenseLayer(const std::string &model, const std::string &out) {
  const std::string layers = "model.layers.";
  MOEC_TRY(Json config, readJsonFile(model + "/config.json"));
  const auto count = config["num_hidden_layers"].get<int64_t>();
  config["num_hidden_layers"] = count - 1;
  config["first_k_dense_replace"] = config["num_nextn_predict_layers"] = 0;
  MOEC_TRY(hf::Checkpoint from, hf::Checkpoint::open(model));
  std::map<std::string, std::string> names; // new to old
  std::vector<TensorSpec> specs;
  for (const auto &[name, tensor] : from.tensors()) {
    std::string renamed = name;
    if (name.starts_with(layers)) {
      size_t end = name.find('.', layers.size());
      int64_t layer = std::stoll(name.substr(layers.size(), end - layers.size()));
      if (layer == 0 || layer == count)
        continue;
      renamed = layers + std::to_string(layer - 1) + name.substr(end);
    }
    names[renamed] = name;
    specs.push_back({renamed, tensor.dtype, tensor.shape});
  }
  std::filesystem::create_directories(out);
  MOEC_TRY(auto writer, SafetensorsWriter::create(out + "/model.safetensors", specs));
  for (const auto &[renamed, name] : names) {
    MOEC_TRY(TensorView view, from.tensor(name));
    MOEC_CHECK(writer.write(renamed, 0, view.data, from.tensors().at(name).bytes()));
  }
  MOEC_CHECK(writer.finish());
  return writeFile(out + "/config.json", config.dump());
}

TEST_F(VerifyTest, RouterWhoseBiasLeaksIntoTheWeights) {
  // DeepSeek-V3's bias steers the choice of experts and must not scale what they give. Here it is added to the logits,
  // as a row of a table that every token looks up by its slot, 0; the table is the bias of layer 0, stacked once.
  std::string model = testing::TempDir() + "/moec-verify-leak-" + std::to_string(::getpid());
  ASSERT_TRUE(writeWithoutDenseLayer(options.compile.model, model).ok());
  options.compile.model = model;
  auto leak = [](moe::RouteOp op) {
    auto bias = op.getBias() ? op.getBias().getDefiningOp<moe::WeightOp>() : moe::WeightOp();
    ASSERT_TRUE(bias);
    const std::string layer = "layers.0.", family = "layers." + std::string(moe::kFamilyMarker) + ".";
    std::string name = mlir::cast<mlir::StringAttr>(bias.getSources()[0]).str();
    size_t place = name.find(layer);
    if (place == std::string::npos)
      return;
    mlir::OpBuilder builder(op);
    mlir::Location loc = op.getLoc();
    auto type = bias.getType();
    auto table =
        moe::WeightOp::create(builder, loc, mlir::RankedTensorType::get({1, type.getDimSize(0)}, type.getElementType()),
                              builder.getStrArrayAttr({name.replace(place, layer.size(), family)}),
                              builder.getArrayAttr({moe::StackAttr::get(op.getContext(), 1)}));
    mlir::Value slots = op->getParentOfType<mlir::func::FuncOp>().getArgument(2);
    auto row = moe::EmbedOp::create(builder, loc, op.getLogits().getType(), table, slots);
    op.getLogitsMutable().assign(moe::AddOp::create(builder, loc, op.getLogits(), row));
  };
  for (bool fusedBefore : {false, true}) {
    VerifyReport report = editing<moe::RouteOp>("test-leaky-bias", fusedBefore, leak);
    ASSERT_NE(report.breach(), nullptr) << report.text();
    EXPECT_EQ(report.breach()->name, "test-leaky-bias");
    EXPECT_GT(report.breach()->maxAbs, 1e-3);
    // The bias itself is known nowhere else: its lookup is the first op that has no like.
    EXPECT_THAT(report.breach()->divergence, HasSubstr("layers.0.mlp.route: "));
    EXPECT_THAT(report.text(), HasSubstr("first difference after test-leaky-bias"));
  }
  std::filesystem::remove_all(model);
}

TEST_F(VerifyTest, UnmaskedGroups) {
  auto edit = [](moe::RouteOp op) { op.setTopkGroups(op.getGroups()); };
  expectCaught(editing<moe::RouteOp>("test-all-groups", false, edit), "test-all-groups", "moe.route");
  expectCaught(editing<moe::RouteOp>("test-all-groups", true, edit), "test-all-groups", "moe.route");
}

TEST_F(VerifyTest, ForgottenSquareInTheSoftmaxScale) {
  // YaRN with factor 4: m = 0.1 ln 4 + 1, and the scale has m^2.
  auto forget = [](auto op) {
    double m = 0.1 * std::log(4.0) + 1;
    op.setScaleAttr(mlir::FloatAttr::get(op.getScaleAttr().getType(), op.getScale().convertToDouble() / (m * m)));
  };
  expectCaught(editing<moe::AttentionOp>("test-scale", false, forget), "test-scale", "moe.attention");
  expectCaught(editing<moe::MlaAttentionOp>("test-scale", true, forget), "test-scale", "moe.mla_attention");
}

TEST_F(VerifyTest, RopePairsSwapped) {
  // Of the queries alone: those of both would cancel out.
  auto swap = [](moe::RopeOp op) {
    if (op.getX().getType().getRank() != 3)
      return;
    llvm::SmallVector<float> frequencies(op.getRope().getInvFreq().asArrayRef());
    std::swap(frequencies[0], frequencies[1]);
    op.setRopeAttr(moe::RopeAttr::get(op.getContext(), mlir::DenseF32ArrayAttr::get(op.getContext(), frequencies),
                                      op.getRope().getFactor()));
  };
  expectCaught(editing<moe::RopeOp>("test-rope", false, swap), "test-rope", "moe.rope");
}

TEST_F(VerifyTest, ALastBitIsEnoughForAnExactPass) {
  auto nudge = [](moe::RmsNormOp op) {
    double eps = op.getEps().convertToDouble();
    op.setEpsAttr(mlir::FloatAttr::get(op.getEpsAttr().getType(), eps * 1.01));
  };
  VerifyReport report = editing<moe::RmsNormOp>("test-eps", false, nudge);
  expectCaught(report, "test-eps", "moe.rms_norm");
  EXPECT_LT(report.breach()->maxAbs, 1e-2);
}

TEST_F(VerifyTest, TokensOutsideTheVocabulary) {
  options.tokens = {1, 1280};
  auto report = verify(options);
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.message(), "token 1280 is not in the vocabulary of 1280");
}

} // namespace
