// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Support.h"

#include <gmock/gmock.h>

using namespace moec;
using namespace moec::hf;

namespace {

TEST(Inventory, CountsOfPublishedCheckpoints) {
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v2-lite")).tensors, 5291);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v2")).tensors, 29102);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3")).tensors, 91991);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3-1")).tensors, 91991);
  // The upload holds one inv_freq of 56 elements for each of its 61 layers besides.
  TensorTotals kimi = expectedTotals(publishedConfig("kimi-k2"));
  EXPECT_EQ(kimi.tensors + 61, 139644);
  EXPECT_EQ(kimi.elements + 61 * 56, 1026470731056);
}

TEST(Inventory, ElementsOfPublishedCheckpoints) {
  EXPECT_NEAR(expectedTotals(publishedConfig("deepseek-v2-lite")).elements, 15.706e9, 0.5e6);
  EXPECT_NEAR(expectedTotals(publishedConfig("deepseek-v2")).elements, 235.74e9, 5e6);
  EXPECT_NEAR(expectedTotals(publishedConfig("deepseek-v3")).elements, 684.53e9, 5e6);
}

/// N (14) + 6 dense + (N - dense)(6 E + 8) + 3 + 6 MTP, with N = L + MTP: the census of an FP8 checkpoint.
TEST(Inventory, CountFormulaOfFp8Checkpoints) {
  for (int64_t mtp : {0, 1, 2})
    for (int64_t experts : {8, 64, 256}) {
      ModelConfig config = publishedConfig("deepseek-v3");
      config.mtpLayers = mtp;
      config.experts = experts;
      int64_t n = config.layers + mtp, dense = 3;
      EXPECT_EQ(expectedTotals(config).tensors, n * 14 + 6 * dense + (n - dense) * (6 * experts + 8) + 3 + 6 * mtp);
    }
}

TEST(Inventory, ItsLengthDoesNotGrowWithExperts) {
  ModelConfig config = publishedConfig("deepseek-v3");
  size_t length = expectedTensors(config).size();
  config.experts = 16384;
  EXPECT_EQ(expectedTensors(config).size(), length);
}

/// A model small enough to list: 3 layers (1 dense), 2 experts in FP8 of 16 x 16 blocks, one MTP layer.
ModelConfig smallConfig(const Json &patch = {}) {
  Json json = patched(publishedJson("deepseek-v3"),
                      {{"num_hidden_layers", 3},
                       {"first_k_dense_replace", 1},
                       {"hidden_size", 40},
                       {"vocab_size", 50},
                       {"intermediate_size", 24},
                       {"moe_intermediate_size", 8},
                       {"num_attention_heads", 3},
                       {"q_lora_rank", 20},
                       {"kv_lora_rank", 12},
                       {"qk_nope_head_dim", 6},
                       {"qk_rope_head_dim", 4},
                       {"v_head_dim", 5},
                       {"n_routed_experts", 2},
                       {"n_shared_experts", 1},
                       {"num_experts_per_tok", 1},
                       {"n_group", 1},
                       {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {16, 16}}}}});
  Result<ModelConfig> config = ModelConfig::parse(patched(json, patch), "config.json");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.message());
  return config.ok() ? *config : ModelConfig();
}

/// What a complete checkpoint of `config` holds.
TensorTable fullTable(const ModelConfig &config) {
  TensorTable table;
  std::vector<ExpectedTensor> all = expectedTensors(config);
  for (const ExpectedTensor &tensor : expectedMtpTensors(config))
    all.push_back(tensor);
  for (const ExpectedTensor &tensor : all)
    for (int64_t e = 0; e < tensor.members; ++e) {
      bool fp8 = config.fp8 && tensor.kind == ExpectedTensor::Kind::Linear;
      table[tensor.member(e)] = {fp8 ? DType::F8E4M3 : DType::BF16, tensor.shape, "m.safetensors"};
      if (fp8)
        table[tensor.member(e) + "_scale_inv"] = {DType::F32, scaleShape(*config.fp8, tensor.shape), "m.safetensors"};
    }
  return table;
}

std::string problem(const ModelConfig &config, const TensorTable &table) {
  Result<Inventory> inventory = Inventory::check(config, table, "dir");
  return inventory.ok() ? "" : inventory.message();
}

TEST(Inventory, AcceptsACompleteCheckpoint) {
  ModelConfig config = smallConfig();
  TensorTable table = fullTable(config);
  Result<Inventory> inventory = Inventory::check(config, table, "dir");
  ASSERT_TRUE(inventory.ok()) << inventory.message();
  EXPECT_EQ(static_cast<int64_t>(table.size()), expectedTotals(config).tensors);
  EXPECT_EQ(inventory->used() + inventory->setAside(), expectedTotals(config).tensors);
  EXPECT_EQ(inventory->used(), 3 * 14 + 6 + 2 * (6 * 2 + 8) + 3);
  EXPECT_EQ(inventory->dtype("model.layers.1.mlp.experts.{e}.up_proj.weight"), DType::F8E4M3);
  EXPECT_EQ(inventory->dtype("model.norm.weight"), DType::BF16);
}

TEST(Inventory, ToleratesWhatChangesNothing) {
  ModelConfig config = smallConfig();
  TensorTable table = fullTable(config);
  table["model.layers.2.self_attn.rotary_emb.inv_freq"] = {DType::F32, {56}, "m"};
  EXPECT_EQ(problem(config, table), "");
  std::erase_if(table, [](const auto &entry) { return entry.first.starts_with("model.layers.3."); });
  EXPECT_EQ(problem(config, table), "") << "MTP layers are optional";

  ModelConfig forgetful = smallConfig({{"num_nextn_predict_layers", "<absent>"}});
  EXPECT_EQ(problem(forgetful, fullTable(config)), "") << "an MTP layer that config.json does not mention";

  ModelConfig tied = smallConfig({{"tie_word_embeddings", true}});
  table = fullTable(tied);
  EXPECT_EQ(table.count("lm_head.weight"), 0u);
  EXPECT_EQ(problem(tied, table), "");
  table["lm_head.weight"] = {DType::BF16, {50, 40}, "m"};
  EXPECT_EQ(problem(tied, table), "");

  ModelConfig alone = smallConfig({{"n_shared_experts", 0}});
  table = fullTable(alone);
  EXPECT_EQ(problem(alone, table), "");
  table["model.layers.1.mlp.shared_experts.gate_proj.weight"] = {DType::BF16, {0, 40}, "m"};
  EXPECT_EQ(problem(alone, table), "") << "the empty shared expert of transformers";
}

TEST(Inventory, LinearLayersMayStayUnquantised) {
  ModelConfig config = smallConfig();
  TensorTable table = fullTable(config);
  table["model.layers.0.self_attn.o_proj.weight"].dtype = DType::BF16;
  table.erase("model.layers.0.self_attn.o_proj.weight_scale_inv");
  EXPECT_EQ(problem(config, table), "");
}

TEST(Inventory, NamesTheFirstDifference) {
  ModelConfig config = smallConfig();
  struct Case {
    std::function<void(TensorTable &)> edit;
    const char *message;
  };
  const std::string q = "model.layers.1.self_attn.q_a_proj.weight", e1 = "model.layers.1.mlp.experts.1.up_proj.weight";
  const Case cases[] = {
      {[&](TensorTable &t) { t.erase(q); },
       "dir: tensor 'model.layers.1.self_attn.q_a_proj.weight' is missing, expected F8_E4M3, BF16, F16 or F32 [20, 40] "
       "from config.json"},
      {[&](TensorTable &t) { t.erase(q + "_scale_inv"); },
       "dir: tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' is missing, expected F32 [2, 3] from "
       "config.json"},
      {[&](TensorTable &t) { t[q].dtype = DType::BF16; },
       "m.safetensors: unexpected tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' (F32 [2, 3]), which a "
       "deepseek_v3 model of config.json does not have"},
      {[&](TensorTable &t) { t[q + "_scale_inv"].shape = {1, 3}; },
       "m.safetensors: tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' is [1, 3], but config.json asks for "
       "[2, 3]"},
      {[&](TensorTable &t) { t[q + "_scale_inv"].dtype = DType::BF16; },
       "m.safetensors: tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' is BF16, expected F32"},
      {[&](TensorTable &t) { t[q].shape = {40, 20}; },
       "m.safetensors: tensor 'model.layers.1.self_attn.q_a_proj.weight' is [40, 20], but config.json asks for "
       "[20, 40]"},
      {[&](TensorTable &t) { t[q].dtype = DType::I8; },
       "m.safetensors: tensor 'model.layers.1.self_attn.q_a_proj.weight' is I8, expected F8_E4M3, BF16, F16 or F32"},
      {[&](TensorTable &t) { t["model.norm.weight"].dtype = DType::F8E4M3; },
       "m.safetensors: tensor 'model.norm.weight' is F8_E4M3, expected BF16, F16 or F32"},
      {[&](TensorTable &t) { t["model.norm.weight"].dtype = DType::F64; },
       "m.safetensors: tensor 'model.norm.weight' is F64, expected BF16, F16 or F32"},
      {[&](TensorTable &t) { t[e1].dtype = DType::BF16; },
       "m.safetensors: tensor 'model.layers.1.mlp.experts.1.up_proj.weight' is BF16, but "
       "'model.layers.1.mlp.experts.0.up_proj.weight' is F8_E4M3; the experts of a layer must be stored alike"},
      {[&](TensorTable &t) { t["model.layers.1.mlp.experts.2.up_proj.weight"] = t[e1]; },
       "m.safetensors: unexpected tensor 'model.layers.1.mlp.experts.2.up_proj.weight' (F8_E4M3 [8, 40]), which a "
       "deepseek_v3 model of config.json does not have"},
      {[&](TensorTable &t) { t["model.layers.4.input_layernorm.weight"] = t["model.norm.weight"]; },
       "m.safetensors: unexpected tensor 'model.layers.4.input_layernorm.weight' (BF16 [40]), but config.json has "
       "'num_hidden_layers' 3 and 'num_nextn_predict_layers' 1"},
      {[&](TensorTable &t) { t["model.layers.x.weight"] = t["model.norm.weight"]; },
       "m.safetensors: unexpected tensor 'model.layers.x.weight' (BF16 [40]), which a deepseek_v3 model of config.json "
       "does not have"},
      {[&](TensorTable &t) { t["model.layers.-1.self_attn.rotary_emb.inv_freq"] = t["model.norm.weight"]; },
       "m.safetensors: unexpected tensor 'model.layers.-1.self_attn.rotary_emb.inv_freq' (BF16 [40]), which a "
       "deepseek_v3 model of config.json does not have"},
      {[&](TensorTable &t) {
         for (int e : {0, 1})
           for (std::string p : {"gate", "up", "down"})
             t.erase("model.layers.1.mlp.experts." + std::to_string(e) + "." + p + "_proj.weight");
         t["model.layers.1.mlp.experts.gate_up_proj"] = {DType::BF16, {2, 16, 40}, "m.safetensors"};
       },
       "dir: tensor 'model.layers.1.mlp.experts.0.gate_proj.weight' is missing, expected F8_E4M3, BF16, F16 or F32 "
       "[8, 40] from config.json; the experts are stored in one packed tensor, which is not supported: save the model "
       "with save_original_format=True"},
  };
  for (const Case &c : cases) {
    TensorTable table = fullTable(config);
    c.edit(table);
    EXPECT_EQ(problem(config, table), c.message);
  }
}

TEST(Inventory, Fp8WithoutAConfigIsNamed) {
  ModelConfig config = smallConfig({{"quantization_config", "<absent>"}});
  EXPECT_EQ(problem(config, fullTable(smallConfig())),
            "m.safetensors: tensor 'model.layers.0.self_attn.q_a_proj.weight' is F8_E4M3, expected BF16, F16 or F32 "
            "(config.json has no 'quantization_config')");
}

/// A config may promise billions of tensors; the first one that is not there ends the search.
TEST(Inventory, AnAbsurdConfigFailsAtOnce) {
  ModelConfig config = smallConfig({{"n_routed_experts", 16384}, {"num_hidden_layers", 1024}});
  TensorTable table = fullTable(smallConfig());
  table["model.layers.1.mlp.gate.weight"].shape[0] = 16384;
  table["model.layers.1.mlp.gate.e_score_correction_bias"].shape[0] = 16384;
  EXPECT_EQ(problem(config, table), "dir: tensor 'model.layers.1.mlp.experts.2.gate_proj.weight' is missing, expected "
                                    "F8_E4M3, BF16, F16 or F32 [8, 40] from config.json");
}

} // namespace
