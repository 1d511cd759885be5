// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Support.h"

#include <gmock/gmock.h>

#include <functional>
#include <map>
#include <tuple>

using namespace moec;
using namespace moec::hf;

namespace {

TEST(Inventory, CountsOfPublishedCheckpoints) {
  const std::pair<const char *, int64_t> published[] = {
      {"deepseek-v2-lite", 5291}, {"deepseek-v2", 29102}, {"deepseek-v3", 91991},       {"deepseek-v3-1", 91991},
      {"deepseek-v3-2", 92425},   {"kimi-k2", 139644},    {"deepseek-v4-flash", 69187}, {"deepseek-v4-pro", 145116},
  };
  for (auto [name, tensors] : published)
    EXPECT_EQ(expectedTotals(publishedConfig(name)).tensors, tensors) << name;
}

TEST(Inventory, ElementsOfPublishedCheckpoints) {
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v2-lite")).elements, 15706484224);
  EXPECT_NEAR(expectedTotals(publishedConfig("deepseek-v2")).elements, 235.74e9, 5e6);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3")).elements, 684531386000);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3-1")).elements, 684531386000);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3-2")).elements, 685396921376);
  EXPECT_EQ(expectedTotals(publishedConfig("kimi-k2")).elements, 1026470731056);
}

TEST(Inventory, BytesOfPublishedCheckpoints) {
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3")).bytes, 688574839360u);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v3-1")).bytes, 688574839360u);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v4-flash")).bytes, 159609485896u);
  EXPECT_EQ(expectedTotals(publishedConfig("deepseek-v4-pro")).bytes, 864704792696u);
  // Published to a tenth of a GiB.
  const double gib = 1 << 30;
  EXPECT_NEAR(expectedTotals(publishedConfig("deepseek-v3-2")).bytes / gib, 642.1, 0.05);
  EXPECT_NEAR(expectedTotals(publishedConfig("kimi-k2")).bytes / gib, 958.5, 0.05);
  // Every tensor of these two is bf16.
  for (const char *name : {"deepseek-v2-lite", "deepseek-v2"}) {
    TensorTotals totals = expectedTotals(publishedConfig(name));
    EXPECT_EQ(totals.bytes, 2 * static_cast<uint64_t>(totals.elements)) << name;
  }
}

/// How many elements of each type DeepSeek-V3 is published with.
TEST(Inventory, TypesOfDeepSeekV3) {
  ModelConfig config = publishedConfig("deepseek-v3");
  std::map<DType, int64_t> elements;
  for (const auto &list : {expectedTensors(config), expectedExtraTensors(config)})
    for (const ExpectedTensor &tensor : list) {
      if (tensor.stored.empty())
        elements[tensor.dtype] += tensor.totals().elements;
      for (const RequiredTensor &stored : tensor.stored)
        elements[stored.types.front()] += tensor.members * stored.shapes.front()[0] * stored.shapes.front()[1];
    }
  const std::map<DType, int64_t> published = {
      {DType::F8E4M3, 680571043840}, {DType::BF16, 3918786560}, {DType::F32, 41555600}};
  EXPECT_EQ(elements, published);
}

/// The sizes that the models are known by count neither MTP layers nor scales, and both codes in a byte of FP4.
TEST(Inventory, ParametersOfPublishedModels) {
  const std::tuple<const char *, double, double> published[] = {
      {"deepseek-v2-lite", 15.7e9, 0.05e9}, {"deepseek-v2", 236e9, 0.5e9},       {"deepseek-v3", 671e9, 0.5e9},
      {"kimi-k2", 1.03e12, 0.005e12},       {"deepseek-v4-flash", 284e9, 0.5e9}, {"deepseek-v4-pro", 1.6e12, 0.05e12},
  };
  for (auto [name, parameters, rounding] : published) {
    int64_t sum = 0;
    for (const auto &[part, totals] : expectedTotalsByPart(publishedConfig(name)))
      sum += part == Part::Mtp ? 0 : totals.parameters;
    EXPECT_NEAR(sum, parameters, rounding) << name;
  }
}

/// Each part of V3.2, written out once more with the numbers of its table.
TEST(Inventory, BytesByPart) {
  auto parts = expectedTotalsByPart(publishedConfig("deepseek-v3-2"));
  // An FP8 matrix with its scales.
  auto fp8 = [](uint64_t rows, uint64_t cols) { return rows * cols + (rows + 127) / 128 * ((cols + 127) / 128) * 4; };
  EXPECT_EQ(parts[Part::Embeddings].bytes, 129280u * 7168 * 2);
  EXPECT_EQ(parts[Part::Head].bytes, 129280u * 7168 * 2);
  EXPECT_EQ(parts[Part::Experts].bytes, 58 * 256 * 3 * fp8(2048, 7168));
  EXPECT_EQ(parts[Part::Experts].tensors, 58 * 256 * 3 * 2);
  EXPECT_EQ(parts[Part::SharedExperts].bytes, 58 * 3 * fp8(2048, 7168));
  EXPECT_EQ(parts[Part::Dense].bytes, 3 * 3 * fp8(18432, 7168));
  EXPECT_EQ(parts[Part::Router].bytes, 58u * 256 * (7168 * 2 + 4));
  EXPECT_EQ(parts[Part::Attention].bytes,
            61 * (fp8(1536, 7168) + fp8(24576, 1536) + fp8(576, 7168) + fp8(32768, 512) + fp8(7168, 16384)));
  EXPECT_EQ(parts[Part::Indexer].bytes, 61 * (fp8(8192, 1536) + fp8(128, 7168) + 2 * 128 * 4 + 64 * 7168 * 2));
  EXPECT_EQ(parts[Part::Norms].bytes, 4u * (61 * (2 * 7168 + 1536 + 512) + 7168));
  EXPECT_EQ(parts[Part::Mtp].tensors, 14 + 7 + 6 * 256 + 8 + 6);
  EXPECT_EQ(parts.size(), 10u);
  EXPECT_EQ(expectedTotalsByPart(publishedConfig("kimi-k2"))[Part::Buffers].elements, 61 * 56);
}

TEST(Inventory, PartsOfV4) {
  auto parts = expectedTotalsByPart(publishedConfig("deepseek-v4-flash"));
  EXPECT_EQ(parts[Part::HyperConnections].tensors, 43 * 6 + 3);
  EXPECT_EQ(parts[Part::Indexer].tensors, 21 * 7) << "layers of ratio 4";
  EXPECT_EQ(parts[Part::Experts].bytes, uint64_t{43} * 256 * 3 * (2048 * 4096 / 2 + 2048 * 4096 / 32));
  EXPECT_EQ(parts[Part::Experts].parameters, int64_t{43} * 256 * 3 * 2048 * 4096);
  EXPECT_EQ(parts[Part::Mtp].tensors, 21 + 2 + 6 * 256 + 6 + 10);
  EXPECT_EQ(parts.count(Part::Dense), 0u);
  for (const auto &[part, totals] : parts)
    EXPECT_NE(toString(part), "");
}

/// What `-Base` and dequantised checkpoints of V4 hold follows from their keys.
TEST(Inventory, ExpertsOfV4ByTheirStorage) {
  auto experts = [](const Json &patch) {
    Result<ModelConfig> config = ModelConfig::parse(patched(publishedJson("deepseek-v4-flash"), patch), "config.json");
    EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.message());
    return config.ok() ? expectedTotalsByPart(*config)[Part::Experts] : TensorTotals();
  };
  const uint64_t matrices = 43 * 256 * 3, values = 2048 * 4096;
  EXPECT_EQ(experts({{"expert_dtype", "fp8"}}).bytes, matrices * (values + values / (128 * 128)));
  EXPECT_EQ(experts({{"expert_dtype", "<absent>"}}).bytes, matrices * (values + values / (128 * 128)));
  EXPECT_EQ(experts({{"expert_dtype", "<absent>"}, {"quantization_config", "<absent>"}}).bytes, matrices * values * 2);
}

TEST(Inventory, DraftBlocksOfV4AreNotListed) {
  ModelConfig config = publishedConfig("deepseek-v4-flash");
  EXPECT_FALSE(expectedExtraTensors(config).empty());
  config.v4->hasDraftBlocks = true;
  EXPECT_TRUE(expectedExtraTensors(config).empty());
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
  for (const char *name : {"deepseek-v3", "deepseek-v4-pro"}) {
    ModelConfig config = publishedConfig(name);
    size_t length = expectedTensors(config).size();
    config.experts = 8192;
    EXPECT_EQ(expectedTensors(config).size(), length) << name;
  }
}

/// The largest config that is accepted, with a scale for each element: counts and bytes still fit.
TEST(Inventory, TotalsDoNotOverflow) {
  const int64_t width = 1 << 18;
  Json json = patched(publishedJson("deepseek-v3"),
                      {{"num_hidden_layers", 1024},
                       {"first_k_dense_replace", 0},
                       {"num_nextn_predict_layers", 64},
                       {"hidden_size", width},
                       {"vocab_size", 1 << 24},
                       {"intermediate_size", width},
                       {"moe_intermediate_size", width},
                       {"num_attention_heads", 1 << 12},
                       {"q_lora_rank", width},
                       {"kv_lora_rank", width},
                       {"qk_nope_head_dim", 1 << 12},
                       {"qk_rope_head_dim", 1 << 12},
                       {"v_head_dim", 1 << 12},
                       {"n_routed_experts", 1 << 13},
                       {"n_shared_experts", 256},
                       {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {1, 1}}}}});
  Result<ModelConfig> config = ModelConfig::parse(json, "config.json");
  ASSERT_TRUE(config.ok()) << config.message();
  double elements = 0, bytes = 0;
  for (const auto &list : {expectedTensors(*config), expectedExtraTensors(*config)})
    for (const ExpectedTensor &tensor : list) {
      double own = tensor.members;
      for (int64_t dim : tensor.shape)
        own *= dim;
      elements += own * (tensor.stored.empty() ? 1 : 2);
      bytes += own * (tensor.stored.empty() ? byteSize(tensor.dtype) : 1 + 4);
    }
  TensorTotals totals = expectedTotals(*config);
  EXPECT_DOUBLE_EQ(totals.elements, elements);
  EXPECT_DOUBLE_EQ(totals.bytes, bytes);
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

/// The same with V3.2's indexer.
ModelConfig smallV32Config() {
  return smallConfig({{"model_type", "deepseek_v32"}, {"index_n_heads", 2}, {"index_head_dim", 8}, {"index_topk", 16}});
}

/// V4 with three layers, one of each ratio, of which the first is hashed.
ModelConfig smallV4Config() {
  Json json = patched(publishedJson("deepseek-v4-flash"), {{"num_hidden_layers", 3},
                                                           {"compress_ratios", {0, 4, 128, 0}},
                                                           {"num_hash_layers", 1},
                                                           {"hidden_size", 64},
                                                           {"vocab_size", 50},
                                                           {"moe_intermediate_size", 32},
                                                           {"num_attention_heads", 4},
                                                           {"head_dim", 16},
                                                           {"qk_rope_head_dim", 4},
                                                           {"q_lora_rank", 20},
                                                           {"o_lora_rank", 8},
                                                           {"o_groups", 2},
                                                           {"n_routed_experts", 6},
                                                           {"index_head_dim", 8}});
  Result<ModelConfig> config = ModelConfig::parse(json, "config.json");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.message());
  return config.ok() ? *config : ModelConfig();
}

/// What a complete checkpoint of `config` holds.
TensorTable fullTable(const ModelConfig &config) {
  TensorTable table;
  for (const auto &list : {expectedTensors(config), expectedExtraTensors(config)})
    for (const ExpectedTensor &tensor : list)
      for (int64_t e = 0; e < tensor.members; ++e) {
        if (tensor.stored.empty())
          table[tensor.member(e)] = {tensor.dtype, tensor.shape, "m.safetensors"};
        for (const RequiredTensor &stored : tensor.stored)
          table[tensor.member(e, stored)] = {stored.types.front(), stored.shapes.front(), "m.safetensors"};
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
  EXPECT_EQ(inventory->stored("model.layers.1.mlp.experts.{e}.up_proj.weight").dtype, DType::F8E4M3);
  EXPECT_EQ(inventory->stored("model.norm.weight").dtype, DType::BF16);
}

TEST(Inventory, TheIndexerIsCheckedAndSetAside) {
  ModelConfig config = smallV32Config();
  TensorTable table = fullTable(config);
  Result<Inventory> inventory = Inventory::check(config, table, "dir");
  ASSERT_TRUE(inventory.ok()) << inventory.message();
  EXPECT_EQ(inventory->used(), 3 * 14 + 6 + 2 * (6 * 2 + 8) + 3);
  EXPECT_EQ(inventory->used() + inventory->setAside(), expectedTotals(config).tensors);
  EXPECT_EQ(inventory->stored("model.norm.weight").dtype, DType::F32);

  table["model.layers.2.self_attn.indexer.wq_b.weight"].shape = {16, 21};
  EXPECT_EQ(problem(config, table), "m.safetensors: tensor 'model.layers.2.self_attn.indexer.wq_b.weight' is [16, 21], "
                                    "but config.json asks for [16, 20]");
  table = fullTable(config);
  table.erase("model.layers.0.self_attn.indexer.k_norm.bias");
  EXPECT_EQ(problem(config, table), "dir: tensor 'model.layers.0.self_attn.indexer.k_norm.bias' is missing, expected "
                                    "BF16, F16 or F32 [8] from config.json");
  table = fullTable(config);
  table.erase("model.layers.1.self_attn.indexer.wk.weight_scale_inv");
  EXPECT_EQ(problem(config, table), "dir: tensor 'model.layers.1.self_attn.indexer.wk.weight_scale_inv' is missing, "
                                    "expected F32, F16, BF16, F8_E8M0 or U8 [1, 3] from config.json");
}

/// V4 is not imported, but its headers can be told from another model's.
TEST(Inventory, ChecksV4) {
  ModelConfig config = smallV4Config();
  TensorTable table = fullTable(config);
  EXPECT_EQ(static_cast<int64_t>(table.size()), expectedTotals(config).tensors);
  EXPECT_EQ(problem(config, table), "");
  table["layers.0.ffn.gate.tid2eid"].dtype = DType::I32;
  table["mtp.2.markov.weight"] = {DType::BF16, {3, 3}, "m.safetensors"};
  for (int e = 0; e < 6; ++e)
    table["layers.1.ffn.experts." + std::to_string(e) + ".w2.weight"].dtype = DType::U8;
  EXPECT_EQ(problem(config, table), "") << "other spellings, draft blocks";

  struct Case {
    std::function<void(TensorTable &)> edit;
    const char *message;
  };
  const Case cases[] = {
      {[](TensorTable &t) { t["layers.0.ffn.gate.tid2eid"].dtype = DType::F32; },
       "m.safetensors: tensor 'layers.0.ffn.gate.tid2eid' is F32, expected I64 or I32"},
      {[](TensorTable &t) { t["layers.2.ffn.experts.5.w1.weight"].dtype = DType::F8E4M3; },
       "m.safetensors: tensor 'layers.2.ffn.experts.5.w1.weight' is F8_E4M3, expected U8, I8, BF16, F16 or F32"},
      {[](TensorTable &t) { t["layers.2.ffn.experts.5.w1.scale"].shape = {1, 2}; },
       "m.safetensors: tensor 'layers.2.ffn.experts.5.w1.scale' is [1, 2], but config.json asks for [32, 2]"},
      {[](TensorTable &t) { t["layers.2.attn.wq_a.scale"].dtype = DType::F32; },
       "m.safetensors: tensor 'layers.2.attn.wq_a.scale' is F32, expected F8_E8M0 or U8"},
      {[](TensorTable &t) { t["layers.3.attn_norm.weight"] = t["norm.weight"]; },
       "m.safetensors: unexpected tensor 'layers.3.attn_norm.weight' (BF16 [64]), but config.json has "
       "'num_hidden_layers' 3 and 'num_nextn_predict_layers' 1"},
      {[](TensorTable &t) { t["layers.2.attn.indexer.weights_proj.weight"] = t["norm.weight"]; },
       "m.safetensors: unexpected tensor 'layers.2.attn.indexer.weights_proj.weight' (BF16 [64]), which a deepseek_v4 "
       "model of config.json does not have"},
  };
  for (const Case &c : cases) {
    TensorTable edited = fullTable(config);
    c.edit(edited);
    EXPECT_EQ(problem(config, edited), c.message);
  }
}

TEST(Inventory, QuantizationThatNoTensorFollows) {
  ModelConfig config = smallConfig();
  TensorTable table = fullTable(smallConfig({{"quantization_config", "<absent>"}}));
  EXPECT_EQ(problem(config, table),
            "config.json: 'quantization_config' declares fp8 e4m3 in blocks of 16x16, but no "
            "layer is stored so: 'model.layers.0.self_attn.q_a_proj.weight' in m.safetensors is BF16");
}

TEST(Inventory, AssumesWhatIsPublished) {
  ModelConfig config = publishedConfig("deepseek-v3-2");
  Inventory published = Inventory::assume(config), narrow = Inventory::assume(config, DType::F16);
  for (const Inventory *inventory : {&published, &narrow}) {
    EXPECT_EQ(inventory->used() + inventory->setAside(), 92425 - (14 + 7 + 6 * 256 + 8 + 6)) << "all but MTP";
    EXPECT_EQ(inventory->setAside(), 61 * 7);
    EXPECT_EQ(inventory->stored("model.layers.3.mlp.experts.{e}.up_proj.weight").dtype, DType::F8E4M3);
  }
  EXPECT_EQ(published.stored("model.layers.3.input_layernorm.weight").dtype, DType::F32);
  EXPECT_EQ(published.stored("model.layers.3.mlp.gate.weight").dtype, DType::BF16);
  EXPECT_EQ(narrow.stored("model.layers.3.input_layernorm.weight").dtype, DType::F16);
}

TEST(Inventory, ToleratesWhatChangesNothing) {
  ModelConfig config = smallConfig();
  TensorTable table = fullTable(config);
  table["model.layers.2.self_attn.rotary_emb.inv_freq"] = {DType::F32, {56}, "m"};
  table["model.layers.1.self_attn.q_a_proj.input_scale"] = {DType::F32, {1}, "m"};
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
       "dir: tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' is missing, expected F32, F16, BF16, "
       "F8_E8M0 or U8 [2, 3] from config.json"},
      {[&](TensorTable &t) { t[q].dtype = DType::BF16; },
       "m.safetensors: unexpected tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' (F32 [2, 3]), which a "
       "deepseek_v3 model of config.json does not have"},
      {[&](TensorTable &t) { t[q + "_scale_inv"].shape = {1, 3}; },
       "m.safetensors: tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' is [1, 3], but config.json asks for "
       "[2, 3]"},
      {[&](TensorTable &t) { t[q + "_scale_inv"].dtype = DType::I8; },
       "m.safetensors: tensor 'model.layers.1.self_attn.q_a_proj.weight_scale_inv' is I8, expected F32, F16, BF16, "
       "F8_E8M0 or U8"},
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
      {[&](TensorTable &t) { t["model.layers.1.mlp.experts.2.up_proj.input_scale"] = {DType::F32, {1}, "m"}; },
       "m: unexpected tensor 'model.layers.1.mlp.experts.2.up_proj.input_scale' (F32 [1]), which a deepseek_v3 model "
       "of "
       "config.json does not have"},
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
         t["model.layers.1.mlp.experts.gate_up_proj"] = {DType::F8E4M3, {2, 16, 40}, "m.safetensors"};
       },
       "dir: tensor 'model.layers.1.mlp.experts.0.gate_proj.weight' is missing, expected F8_E4M3, BF16, F16 or F32 "
       "[8, 40] from config.json; packed experts are read only as BF16, F16 or F32 [experts, rows, columns], and "
       "'model.layers.1.mlp.experts.gate_up_proj' is F8_E4M3 [2, 16, 40]"},
      {[&](TensorTable &t) {
         t[e1] = {DType::BF16, {9, 40}, "m.safetensors", "model.layers.1.mlp.experts.gate_up_proj"};
       },
       "m.safetensors: tensor 'model.layers.1.mlp.experts.1.up_proj.weight' in "
       "'model.layers.1.mlp.experts.gate_up_proj' is [9, 40], but config.json asks for [8, 40]"},
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
  ModelConfig config = smallConfig({{"n_routed_experts", 8192}, {"num_hidden_layers", 1024}});
  TensorTable table = fullTable(smallConfig());
  table["model.layers.1.mlp.gate.weight"].shape[0] = 8192;
  table["model.layers.1.mlp.gate.e_score_correction_bias"].shape[0] = 8192;
  EXPECT_EQ(problem(config, table), "dir: tensor 'model.layers.1.mlp.experts.2.gate_proj.weight' is missing, expected "
                                    "F8_E4M3, BF16, F16 or F32 [8, 40] from config.json");
}

} // namespace
