// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Import.h"
#include "Support.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/Verifier.h"
#include "llvm/Support/raw_ostream.h"

#include <gmock/gmock.h>

using namespace moec;
using namespace moec::hf;
using testing::HasSubstr;
using testing::Not;

namespace {

class Import : public testing::Test {
protected:
  mlir::MLIRContext context;

  std::string import(const ModelConfig &config, const Inventory &inventory, const ImportOptions &options = {},
                     bool locations = false) {
    std::string diagnostics;
    mlir::ScopedDiagnosticHandler handler(&context, [&](mlir::Diagnostic &diagnostic) {
      diagnostics += diagnostic.str();
      return mlir::success();
    });
    auto module = importModel(context, config, inventory, options);
    if (failed(module))
      return "error: " + diagnostics;
    EXPECT_TRUE(succeeded(mlir::verify(**module))) << diagnostics;
    std::string text;
    llvm::raw_string_ostream out(text);
    mlir::OpPrintingFlags flags;
    if (locations)
      flags.enableDebugInfo(true, false);
    (*module)->print(out, flags);
    return text;
  }

  std::string importDirectory(const std::string &name, bool locations = false) {
    Result<SourceModel> model = SourceModel::open(MOEC_TEST_DIR "/models/" + name);
    EXPECT_TRUE(model.ok()) << (model.ok() ? "" : model.message());
    return model.ok() ? import(model->config, model->inventory, {}, locations) : "";
  }

  std::string importAssumed(const ModelConfig &config) {
    return import(config, Inventory::assume(config, DType::BF16));
  }
};

size_t count(const std::string &text, const std::string &what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size()))
    ++n;
  return n;
}

TEST_F(Import, TinyShakespeare) {
  std::string ir = importDirectory("tiny-shakespeare");
  EXPECT_THAT(ir, HasSubstr("moe.model = {bos = 0 : i64, eos = [1], hidden = 256 : i64, layers = 4 : i64, max_context "
                            "= 1024 : i64, name = \"tiny-shakespeare\", type = \"deepseek_v3\", vocab = 1280 : i64}"));
  EXPECT_THAT(ir, HasSubstr("moe.cache @kv.0 width 80"));
  EXPECT_THAT(ir, HasSubstr("moe.cache @kv.3 width 80"));
  EXPECT_THAT(ir, HasSubstr("func.func @step("));
  EXPECT_THAT(ir, HasSubstr("-> tensor<?x1280xf32> {"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.0.self_attn.q_a_proj.weight\"] : tensor<128x256xbf16>"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.1.mlp.experts.{e}.gate_proj.weight\"] recipe "
                            "[#moe.stack<16>] : tensor<16x64x256xbf16>"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.1.mlp.gate.e_score_correction_bias\"] : tensor<16xf32>"));
  EXPECT_EQ(count(ir, "moe.cache_append"), 4u);
  EXPECT_EQ(count(ir, "moe.attention"), 4u);
  EXPECT_EQ(count(ir, "moe.route"), 3u);
  EXPECT_EQ(count(ir, "moe.experts"), 3u);
  EXPECT_EQ(count(ir, "moe.swiglu"), 4u) << "one dense layer, three shared experts";
  EXPECT_EQ(count(ir, "moe.gather_rows"), 1u);
  for (const char *attribute : {"moe.route sigmoid topk(4)", "top2_sum", " groups = 4 : i64", "topk_groups = 2 : i64",
                                "normalize = true", "scale = 2.500000e+00 : f64"})
    EXPECT_EQ(count(ir, attribute), 3u) << attribute;
  EXPECT_THAT(ir, Not(HasSubstr("layers.4."))) << "the MTP layer is set aside";
}

TEST_F(Import, TinyShakespeareFp8) {
  std::string ir = importDirectory("tiny-shakespeare-fp8");
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.0.self_attn.kv_a_proj_with_mqa.weight\", "
                            "\"model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv\"] recipe "
                            "[#moe.dequant_fp8_block<128x128, f32>] : tensor<80x256xf32>"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.1.mlp.experts.{e}.down_proj.weight\", "
                            "\"model.layers.1.mlp.experts.{e}.down_proj.weight_scale_inv\"] recipe "
                            "[#moe.dequant_fp8_block<128x128, f32>, #moe.stack<16>] : tensor<16x256x64xf32>"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"lm_head.weight\"] : tensor<1280x256xbf16>"));
}

TEST_F(Import, LocationsNameTheModules) {
  std::string ir = importDirectory("tiny-shakespeare", /*locations=*/true);
  for (const char *name : {"embed_tokens", "layers.0.self_attn.q_a_proj", "layers.3.self_attn.attention",
                           "layers.1.mlp.experts", "layers.2.mlp.route", "norm", "lm_head", "tokens", "slots"})
    EXPECT_THAT(ir, HasSubstr("loc(\"" + std::string(name) + "\")"));
}

TEST_F(Import, PublishedModelsWithoutTheirWeights) {
  std::string lite = importAssumed(publishedConfig("deepseek-v2-lite"));
  EXPECT_THAT(lite, HasSubstr("moe.weight [\"model.layers.0.self_attn.q_proj.weight\"] : tensor<3072x2048xbf16>"));
  EXPECT_THAT(lite, Not(HasSubstr("bias")));
  EXPECT_THAT(lite, HasSubstr("moe.route softmax topk(6)"));
  EXPECT_THAT(lite, HasSubstr("max_context = 32768 : i64"));

  std::string v2 = importAssumed(publishedConfig("deepseek-v2"));
  EXPECT_THAT(v2, HasSubstr("groups = 8 : i64"));
  EXPECT_THAT(v2, Not(HasSubstr("top2_sum"))) << "V2 scores a group by its best expert, the default";
  EXPECT_THAT(v2, HasSubstr("scale = 1.600000e+01 : f64"));

  std::string v31 = importAssumed(publishedConfig("deepseek-v3-1"));
  EXPECT_THAT(v31, HasSubstr("[#moe.dequant_fp8_block<128x128, bf16>, #moe.stack<256>] : tensor<256x7168x2048xbf16>"))
      << "power-of-two scales are exact in bf16";

  std::string kimi = importAssumed(publishedConfig("kimi-k2"));
  EXPECT_THAT(kimi, HasSubstr("tensor<384x2048x7168xf32>"));
  EXPECT_THAT(kimi, Not(HasSubstr("groups = ")));
}

TEST_F(Import, LatentNormsKeepTheirOwnEps) {
  std::string ir = importAssumed(publishedConfig("moonlight-16b"));
  EXPECT_EQ(count(ir, "eps 1.000000e-05"), 27u * 2 + 1);
  EXPECT_EQ(count(ir, "eps 9.9999999999999995E-7"), 27u) << "kv_a_layernorm";
}

TEST_F(Import, TheModuleDoesNotGrowWithExperts) {
  ModelConfig config = publishedConfig("deepseek-v3");
  config.groups = config.topkGroups = 1;
  config.experts = 10;
  size_t small = importAssumed(config).size();
  config.experts = 99;
  EXPECT_EQ(importAssumed(config).size(), small);
}

TEST_F(Import, TiedEmbeddingsAreOneWeight) {
  ModelConfig config = publishedConfig("moonlight-16b");
  config.tiedEmbeddings = true;
  std::string ir = importAssumed(config);
  EXPECT_THAT(ir, Not(HasSubstr("lm_head.weight")));
  EXPECT_EQ(count(ir, "\"model.embed_tokens.weight\""), 1u);
}

TEST_F(Import, ABiasStoredInBf16IsCast) {
  std::string ir = importAssumed(publishedConfig("moonlight-16b"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.1.mlp.gate.e_score_correction_bias\"] recipe "
                            "[#moe.cast<f32>] : tensor<64xf32>"));
}

TEST_F(Import, WithoutSharedExperts) {
  ModelConfig config = publishedConfig("moonlight-16b");
  config.sharedExperts = 0;
  std::string ir = importAssumed(config);
  EXPECT_EQ(count(ir, "moe.swiglu"), 1u);
  EXPECT_THAT(ir, Not(HasSubstr("shared_experts")));
}

TEST_F(Import, MaxContext) {
  ModelConfig config = publishedConfig("moonlight-16b");
  Inventory inventory = Inventory::assume(config, DType::F32);
  EXPECT_THAT(import(config, inventory), HasSubstr("max_context = 8192 : i64"));
  EXPECT_THAT(import(config, inventory, {.maxContext = 77}), HasSubstr("max_context = 77 : i64"));
  EXPECT_EQ(import(config, inventory, {.maxContext = 8193}),
            "error: a context of 8193 tokens is asked for, but config.json has 'max_position_embeddings' 8192");
}

} // namespace
