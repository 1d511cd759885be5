// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Import.h"
#include "Support.h"
#include "runtime/Support/Safetensors.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/Verifier.h"
#include "llvm/Support/raw_ostream.h"

#include <gmock/gmock.h>

#include <map>

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
                            "[#moe.dequant<fp8 128x128, f32>] : tensor<80x256xf32>"));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.layers.1.mlp.experts.{e}.down_proj.weight\", "
                            "\"model.layers.1.mlp.experts.{e}.down_proj.weight_scale_inv\"] recipe "
                            "[#moe.dequant<fp8 128x128, f32>, #moe.stack<16>] : tensor<16x256x64xf32>"));
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
  EXPECT_THAT(v31, HasSubstr("[#moe.dequant<fp8 128x128, bf16>, #moe.stack<256>] : tensor<256x7168x2048xbf16>"))
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

/// Nothing of the indexer reaches the module, and the context ends where it would begin to matter.
TEST_F(Import, V32IsDense) {
  ModelConfig config = publishedConfig("deepseek-v3-2");
  Inventory inventory = Inventory::assume(config);
  std::string ir = import(config, inventory);
  EXPECT_THAT(ir, HasSubstr("max_context = 2048 : i64"));
  EXPECT_THAT(ir, HasSubstr("type = \"deepseek_v32\""));
  EXPECT_THAT(ir, Not(HasSubstr("indexer")));
  EXPECT_THAT(ir, HasSubstr("moe.weight [\"model.norm.weight\"] : tensor<7168xf32>"));
  EXPECT_EQ(count(ir, "moe.attention"), 61u);
  EXPECT_THAT(import(config, inventory, {.maxContext = 100}), HasSubstr("max_context = 100 : i64"));
  EXPECT_EQ(import(config, inventory, {.maxContext = 2049}),
            "error: a context of 2049 tokens is asked for, but config.json has 'index_topk' 2048: beyond that many "
            "tokens attention is sparse, which is not built yet");
  EXPECT_EQ(import(config, inventory, {.maxContext = 163841}),
            "error: a context of 163841 tokens is asked for, but config.json has 'max_position_embeddings' 163840");
}

/// tiny-shakespeare with indexers beside its own tensors is the same program, but for its name and its context.
TEST_F(Import, V32FromACheckpoint) {
  const std::string plain = MOEC_TEST_DIR "/models/tiny-shakespeare";
  ScratchDir dir;
  Result<Json> json = readJsonFile(plain + "/config.json");
  ASSERT_TRUE(json.ok()) << json.message();
  Json edited = patched(*json, {{"model_type", "deepseek_v32"},
                                {"num_nextn_predict_layers", 0},
                                {"index_n_heads", 2},
                                {"index_head_dim", 32},
                                {"index_topk", 200}});
  dir.write("config.json", edited.dump());
  std::filesystem::create_symlink(plain + "/model.safetensors", dir / "model-00001-of-00002.safetensors");
  Result<ModelConfig> config = ModelConfig::load(dir.path());
  ASSERT_TRUE(config.ok()) << config.message();
  std::vector<TensorSpec> specs;
  for (const ExpectedTensor &tensor : expectedTensors(*config))
    if (tensor.part == Part::Indexer)
      specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  ASSERT_EQ(specs.size(), 4u * 5);
  Result<SafetensorsWriter> writer = SafetensorsWriter::create(dir / "model-00002-of-00002.safetensors", specs);
  ASSERT_TRUE(writer.ok()) << writer.message();
  ASSERT_TRUE(writer->finish().ok());
  dir.write("model.safetensors.index.json",
            R"({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", ")" + specs[0].name +
                R"(": "model-00002-of-00002.safetensors"}})");

  Result<SourceModel> model = SourceModel::open(dir.path());
  ASSERT_TRUE(model.ok()) << model.message();
  std::string ir = import(model->config, model->inventory), expected = importDirectory("tiny-shakespeare");
  EXPECT_THAT(ir, HasSubstr("max_context = 200 : i64"));
  // After the line of the module's own attributes.
  EXPECT_EQ(ir.substr(ir.find("moe.cache @")), expected.substr(expected.find("moe.cache @")));
}

/// tiny-shakespeare as transformers 5 would pack it is the same program over the same bytes.
TEST_F(Import, PackedExpertsFromACheckpoint) {
  const std::string plain = MOEC_TEST_DIR "/models/tiny-shakespeare";
  ScratchDir dir;
  dir.write("config.json", readText(plain + "/config.json"));
  Result<SourceModel> apart = SourceModel::open(plain);
  ASSERT_TRUE(apart.ok()) << apart.message();
  std::vector<TensorSpec> specs;
  std::map<std::string, std::vector<std::string>> parts; ///< what each packed tensor holds, in order
  for (const ExpectedTensor &tensor : expectedTensors(apart->config)) {
    const DType dtype = apart->inventory.stored(tensor.name).dtype;
    size_t hole = tensor.name.find("{e}.");
    if (hole == std::string::npos) {
      specs.push_back({tensor.name, dtype, tensor.shape});
      parts[tensor.name] = {tensor.name};
      continue;
    }
    const std::string prefix = tensor.name.substr(0, hole);
    const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
    if (tensor.name.ends_with("gate_proj.weight"))
      specs.push_back({prefix + "gate_up_proj", dtype, {tensor.members, 2 * rows, cols}});
    else if (tensor.name.ends_with("down_proj.weight"))
      specs.push_back({prefix + "down_proj", dtype, {tensor.members, rows, cols}});
    else
      continue;
    for (int64_t e = 0; e < tensor.members; ++e) {
      const std::string expert = prefix + std::to_string(e) + ".";
      if (tensor.name.ends_with("gate_proj.weight")) {
        parts[specs.back().name].push_back(expert + "gate_proj.weight");
        parts[specs.back().name].push_back(expert + "up_proj.weight");
      } else {
        parts[specs.back().name].push_back(expert + "down_proj.weight");
      }
    }
  }
  Result<SafetensorsWriter> writer = SafetensorsWriter::create(dir / "model.safetensors", specs);
  ASSERT_TRUE(writer.ok()) << writer.message();
  auto bytesOf = [](const SourceModel &model, const std::string &name) {
    Result<TensorView> view = model.checkpoint.tensor(name);
    EXPECT_TRUE(view.ok()) << name;
    size_t size = byteSize(view->dtype);
    for (int64_t dim : view->shape)
      size *= dim;
    return std::string(reinterpret_cast<const char *>(view->data), size);
  };
  for (const auto &[name, members] : parts) {
    std::string bytes;
    for (const std::string &member : members)
      bytes += bytesOf(*apart, member);
    ASSERT_TRUE(writer->write(name, 0, bytes.data(), bytes.size()).ok());
  }
  ASSERT_TRUE(writer->finish().ok());

  Result<SourceModel> packed = SourceModel::open(dir.path());
  ASSERT_TRUE(packed.ok()) << packed.message();
  packed->config.name = apart->config.name;
  EXPECT_EQ(import(packed->config, packed->inventory), import(apart->config, apart->inventory));
  for (const ExpectedTensor &tensor : expectedTensors(apart->config))
    for (int64_t e = 0; e < tensor.members; ++e)
      EXPECT_EQ(bytesOf(*packed, tensor.member(e)), bytesOf(*apart, tensor.member(e))) << tensor.member(e);
}

TEST_F(Import, V4IsRefused) {
  ModelConfig config = publishedConfig("deepseek-v4-pro");
  EXPECT_EQ(import(config, Inventory::assume(config)),
            "error: config.json: 'model_type' is 'deepseek_v4', which needs what is not built yet: hyper-connections "
            "('hc_mult'), compressed attention with a window and sinks ('compress_ratios'), hash routing "
            "('num_hash_layers') and FP4 experts ('expert_dtype')");
  ScratchDir dir;
  dir.write("config.json", publishedJson("deepseek-v4-flash").dump());
  Result<SourceModel> model = SourceModel::open(dir.path());
  ASSERT_FALSE(model.ok()) << "before any shard is looked for";
  EXPECT_THAT(model.message(), HasSubstr("which needs what is not built yet: hyper-connections"));
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
