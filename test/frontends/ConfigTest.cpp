// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Support.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <tuple>

using namespace moec;
using namespace moec::hf;
using testing::ElementsAre;
using testing::HasSubstr;
using Router = ModelConfig::Router;

namespace {

Result<ModelConfig> parse(const Json &json) { return ModelConfig::parse(json, "config.json"); }

ModelConfig good(const Json &json) {
  Result<ModelConfig> config = parse(json);
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.message());
  return config.ok() ? *config : ModelConfig();
}

TEST(Config, V2LiteHasNoQueryLoraAndAPlainRouter) {
  ModelConfig config = publishedConfig("deepseek-v2-lite");
  EXPECT_EQ(config.qLoraRank, 0);
  EXPECT_EQ(config.router, Router::SoftmaxGreedy);
  EXPECT_EQ(config.groups, 1);
  EXPECT_FALSE(config.normalize);
  EXPECT_EQ(config.routedScale, 1.0);
  EXPECT_EQ(config.sharedExperts, 2);
  EXPECT_EQ(config.moeLayers(), 26);
  EXPECT_FALSE(config.isMoe[0]);
  EXPECT_FALSE(config.quantization.has_value());
  EXPECT_EQ(config.bos, 100000);
  EXPECT_THAT(config.eos, ElementsAre(100001));
}

TEST(Config, V2ChoosesAmongTheBestExpertsOfGroups) {
  ModelConfig config = publishedConfig("deepseek-v2");
  EXPECT_EQ(config.router, Router::SoftmaxGrouped);
  EXPECT_EQ(config.groups, 8);
  EXPECT_EQ(config.topkGroups, 3);
  EXPECT_EQ(config.routedScale, 16.0);
  EXPECT_EQ(config.qLoraRank, 1536);
}

TEST(Config, V3IsSigmoidFp8WithOneMtpLayer) {
  ModelConfig config = publishedConfig("deepseek-v3");
  EXPECT_EQ(config.router, Router::SigmoidGrouped);
  EXPECT_EQ(config.groups, 8);
  EXPECT_EQ(config.topkGroups, 4);
  EXPECT_TRUE(config.normalize);
  EXPECT_EQ(config.routedScale, 2.5);
  EXPECT_EQ(config.moeLayers(), 58);
  EXPECT_EQ(config.mtpLayers, 1);
  ASSERT_TRUE(config.quantization.has_value());
  EXPECT_EQ(config.quantization->format, formats::fp8(128, 128, formats::Naming::ScaleInv, /*e8m0=*/false));
  EXPECT_FALSE(config.quantization->powerOfTwoScales);
  EXPECT_TRUE(publishedConfig("deepseek-v3-1").quantization->powerOfTwoScales);
}

TEST(Config, KimiAndMoonlightHaveOneGroup) {
  ModelConfig kimi = publishedConfig("kimi-k2");
  EXPECT_EQ(kimi.router, Router::SigmoidGrouped);
  EXPECT_EQ(kimi.groups, 1);
  EXPECT_EQ(kimi.topkGroups, 1);
  ModelConfig moonlight = publishedConfig("moonlight-16b");
  EXPECT_EQ(moonlight.qLoraRank, 0);
  EXPECT_EQ(moonlight.rope.type, RopeConfig::Type::Plain);
  EXPECT_EQ(moonlight.rope.theta, 50000.0);
  EXPECT_EQ(moonlight.rmsEps, 1e-5);
}

TEST(Config, V32IsDenseUpToWhatItsIndexerPicks) {
  ModelConfig config = publishedConfig("deepseek-v3-2");
  ASSERT_TRUE(config.indexer.has_value());
  EXPECT_EQ(config.indexer->heads, 64);
  EXPECT_EQ(config.indexer->headDim, 128);
  EXPECT_EQ(config.longestContext(), 2048);
  EXPECT_TRUE(config.importable().ok());
  EXPECT_EQ(good(patched(publishedJson("deepseek-v3-2"), {{"max_position_embeddings", 1000}})).longestContext(), 1000);
  EXPECT_EQ(publishedConfig("deepseek-v3").longestContext(), 163840);
  // A stray key does not make an indexer.
  EXPECT_FALSE(good(patched(publishedJson("deepseek-v3"), {{"index_topk", 2048}})).indexer.has_value());
}

TEST(Config, V4IsDescribedButNotImportable) {
  for (auto [name, csa, hca] : {std::tuple{"deepseek-v4-flash", 21, 20}, std::tuple{"deepseek-v4-pro", 30, 31}}) {
    ModelConfig config = publishedConfig(name);
    ASSERT_TRUE(config.v4.has_value());
    EXPECT_EQ(static_cast<int64_t>(config.v4->ratios.size()), config.layers);
    EXPECT_EQ(std::count(config.v4->ratios.begin(), config.v4->ratios.end(), 4), csa) << name;
    EXPECT_EQ(std::count(config.v4->ratios.begin(), config.v4->ratios.end(), 128), hca) << name;
    EXPECT_EQ(config.moeLayers(), config.layers);
    EXPECT_EQ(config.router, Router::SqrtSoftplus);
    EXPECT_EQ(config.importable().message(),
              "config.json: 'model_type' is 'deepseek_v4', which needs what is not built yet: hyper-connections "
              "('hc_mult'), compressed attention with a window and sinks ('compress_ratios'), hash routing "
              "('num_hash_layers') and FP4 experts ('expert_dtype')");
  }
  ModelConfig base =
      good(patched(publishedJson("deepseek-v4-flash"), {{"expert_dtype", "fp8"}, {"num_hash_layers", 0}}));
  EXPECT_THAT(base.missing(), ElementsAre("hyper-connections ('hc_mult')",
                                          "compressed attention with a window and sinks ('compress_ratios')"));
  EXPECT_TRUE(good(patched(publishedJson("deepseek-v4-flash"), {{"dspark_block_size", 5}})).v4->hasDraftBlocks);
}

TEST(Config, TheTypeOfPlainTensors) {
  Json base = publishedJson("deepseek-v2-lite");
  EXPECT_EQ(good(base).dtype, DType::BF16);
  EXPECT_EQ(good(patched(base, {{"torch_dtype", "float32"}})).dtype, DType::F32);
  EXPECT_EQ(good(patched(base, {{"torch_dtype", "<absent>"}})).dtype, DType::BF16);
  EXPECT_EQ(good(patched(base, {{"dtype", "float16"}})).dtype, DType::F16) << "the newer key wins";
}

TEST(Config, BothSpellingsOfRopeParametersAreOne) {
  Json legacy = publishedJson("deepseek-v3");
  Json dict = legacy["rope_scaling"];
  dict.erase("type");
  dict["rope_type"] = "yarn";
  dict["rope_theta"] = 12345.0;
  Json renamed = patched(legacy, {{"rope_scaling", "<absent>"},
                                  {"rope_theta", "<absent>"},
                                  {"rope_parameters", dict},
                                  {"torch_dtype", "<absent>"},
                                  {"dtype", "bfloat16"}});
  ModelConfig a = good(patched(legacy, {{"rope_theta", 12345.0}})), b = good(renamed);
  for (const ModelConfig *config : {&a, &b}) {
    EXPECT_EQ(config->rope.type, RopeConfig::Type::Yarn);
    EXPECT_EQ(config->rope.theta, 12345.0);
    EXPECT_EQ(config->rope.factor, 40.0);
    EXPECT_EQ(config->rope.originalMaxPositions, 4096);
    EXPECT_EQ(config->rope.mscaleAllDim, 1.0);
  }
}

TEST(Config, YarnFillsInWhatIsAbsentAsTransformersDoes) {
  ModelConfig config =
      good(patched(publishedJson("deepseek-v3"),
                   {{"max_position_embeddings", 2048}, {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 8.0}}}}));
  EXPECT_EQ(config.rope.originalMaxPositions, 2048);
  EXPECT_EQ(config.rope.betaFast, 32.0);
  EXPECT_EQ(config.rope.betaSlow, 1.0);
  EXPECT_TRUE(config.rope.truncate);
  config = good(patched(
      publishedJson("deepseek-v3"),
      {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", nullptr}, {"original_max_position_embeddings", 4096}}}}));
  EXPECT_EQ(config.rope.factor, 163840.0 / 4096);
}

TEST(Config, PlainRopeInItsThreeSpellings) {
  Json base = publishedJson("deepseek-v3");
  for (const Json &patch :
       {Json{{"rope_scaling", nullptr}}, Json{{"rope_scaling", "<absent>"}},
        Json{{"rope_scaling", nullptr}, {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}}})
    EXPECT_EQ(good(patched(base, patch)).rope.type, RopeConfig::Type::Plain) << patch;
}

TEST(Config, RouterKeysMayBeMissing) {
  ModelConfig v3 =
      good(patched(publishedJson("deepseek-v3"), {{"scoring_func", "<absent>"}, {"topk_method", "<absent>"}}));
  EXPECT_EQ(v3.router, Router::SigmoidGrouped);
  ModelConfig v2 =
      good(patched(publishedJson("deepseek-v2-lite"), {{"scoring_func", "<absent>"}, {"topk_method", "<absent>"}}));
  EXPECT_EQ(v2.router, Router::SoftmaxGreedy);
  EXPECT_EQ(good(patched(publishedJson("deepseek-v2-lite"), {{"topk_method", "gready"}})).router,
            Router::SoftmaxGreedy);
  EXPECT_EQ(good(patched(publishedJson("deepseek-v3"), {{"n_group", nullptr}, {"topk_group", nullptr}})).groups, 1);
}

TEST(Config, V2NormalisesOrScalesAndV3DoesBoth) {
  ModelConfig v2 = good(patched(publishedJson("deepseek-v2"), {{"norm_topk_prob", true}}));
  EXPECT_TRUE(v2.normalize);
  EXPECT_EQ(v2.routedScale, 1.0);
  v2 = good(patched(publishedJson("deepseek-v2"), {{"norm_topk_prob", true}, {"num_experts_per_tok", 1}}));
  EXPECT_FALSE(v2.normalize);
  EXPECT_EQ(v2.routedScale, 16.0);
  ModelConfig v3 = good(patched(publishedJson("deepseek-v3"), {{"num_experts_per_tok", 1}}));
  EXPECT_TRUE(v3.normalize);
  EXPECT_EQ(v3.routedScale, 2.5);
}

TEST(Config, MoeLayersByPeriodByListOrNotAtAll) {
  Json base = patched(publishedJson("deepseek-v3"), {{"num_hidden_layers", 5}, {"first_k_dense_replace", 1}});
  EXPECT_THAT(good(patched(base, {{"moe_layer_freq", 2}})).isMoe, ElementsAre(false, false, true, false, true));
  EXPECT_THAT(good(patched(base, {{"moe_layer_freq", {0, 1, 0, 1, 1}}})).isMoe,
              ElementsAre(false, true, false, true, true));
  EXPECT_THAT(good(patched(base, {{"n_routed_experts", nullptr}})).isMoe, testing::Each(false));
  EXPECT_EQ(good(patched(base, {{"first_k_dense_replace", 9}})).moeLayers(), 0);
}

TEST(Config, AbsentQueryLoraIsNullOrZero) {
  EXPECT_EQ(good(patched(publishedJson("deepseek-v3"), {{"q_lora_rank", 0}})).qLoraRank, 0);
  EXPECT_EQ(good(patched(publishedJson("deepseek-v3"), {{"q_lora_rank", "<absent>"}})).qLoraRank, 0);
}

TEST(Config, NoSharedExpertsIsNullOrZero) {
  EXPECT_EQ(good(patched(publishedJson("deepseek-v3"), {{"n_shared_experts", nullptr}})).sharedExperts, 0);
  EXPECT_EQ(good(patched(publishedJson("deepseek-v3"), {{"n_shared_experts", 0}})).sharedExperts, 0);
}

TEST(Config, GenerationConfigHasTheLastWordOnTokens) {
  Json generation = {{"eos_token_id", {1, 7}}};
  Result<ModelConfig> config =
      ModelConfig::parse(publishedJson("deepseek-v3"), "config.json", &generation, "generation_config.json");
  ASSERT_TRUE(config.ok()) << config.message();
  EXPECT_EQ(config->bos, 0);
  EXPECT_THAT(config->eos, ElementsAre(1, 7));
  generation = {{"eos_token_id", {1, 129280}}};
  config = ModelConfig::parse(publishedJson("deepseek-v3"), "config.json", &generation, "generation_config.json");
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.message(), "generation_config.json: 'eos_token_id' holds 129280, but tokens are integers from 0 to "
                              "129279");
}

TEST(Config, TheModelIsNamedAfterItsDirectory) {
  Result<ModelConfig> config = ModelConfig::load(MOEC_TEST_DIR "/models/tiny-shakespeare/");
  ASSERT_TRUE(config.ok()) << config.message();
  EXPECT_EQ(config->name, "tiny-shakespeare");
  EXPECT_THAT(config->eos, ElementsAre(1));
}

struct Bad {
  const char *label;
  const char *base;
  Json patch;
  const char *message; ///< the whole sentence
};

class BadConfig : public testing::TestWithParam<Bad> {};

TEST_P(BadConfig, IsRefusedByASentence) {
  const Bad &bad = GetParam();
  Result<ModelConfig> config = parse(patched(publishedJson(bad.base), bad.patch));
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.message(), bad.message);
}

Json yarnWith(const char *key, Json value) {
  return {{"rope_scaling", patched(publishedJson("deepseek-v3")["rope_scaling"], {{key, value}})}};
}
Json fp8With(const char *key, Json value) {
  return {{"quantization_config", patched(publishedJson("deepseek-v3")["quantization_config"], {{key, value}})}};
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadConfig,
    testing::Values(
        Bad{"V32WithoutIndexer",
            "deepseek-v3",
            {{"model_type", "deepseek_v32"}},
            "config.json: 'index_n_heads' is missing, expected an integer from 1 to 4096"},
        Bad{"V32WithoutQueryLatent",
            "deepseek-v3-2",
            {{"q_lora_rank", nullptr}},
            "config.json: 'q_lora_rank' is absent, but the indexer of deepseek_v32 reads the query latent"},
        Bad{"V32NarrowIndexer",
            "deepseek-v3-2",
            {{"index_head_dim", 32}},
            "config.json: 'index_head_dim' is 32, but 'qk_rope_head_dim' of its channels rotate: 64"},
        Bad{"V32ZeroTopk",
            "deepseek-v3-2",
            {{"index_topk", 0}},
            "config.json: 'index_topk' is 0, expected an integer from 1 to 2147483648"},
        Bad{"V4NoRatios",
            "deepseek-v4-flash",
            {{"compress_ratios", "<absent>"}},
            "config.json: 'compress_ratios' is missing, expected an array"},
        Bad{"V4FewRatios",
            "deepseek-v4-flash",
            {{"compress_ratios", {0, 0, 4}}},
            "config.json: 'compress_ratios' lists 3 layers, but 'num_hidden_layers' is 43"},
        Bad{"V4OddRatio",
            "deepseek-v4-flash",
            {{"num_hidden_layers", 3}, {"compress_ratios", {0, 2, 4}}},
            "config.json: 'compress_ratios' holds 2, expected 0, 4 or 128 for each layer"},
        Bad{"V4HugeRatio",
            "deepseek-v4-flash",
            {{"num_hidden_layers", 3}, {"compress_ratios", {0, 18446744073709551615u, 4}}},
            "config.json: 'compress_ratios' holds 18446744073709551615, expected 0, 4 or 128 for each layer"},
        Bad{"V4Groups",
            "deepseek-v4-flash",
            {{"o_groups", 7}},
            "config.json: 'o_groups' is 7, which does not divide the 64 heads of 'num_attention_heads'"},
        Bad{"V4Head",
            "deepseek-v4-flash",
            {{"head_dim", 32}},
            "config.json: 'head_dim' is 32, but 'qk_rope_head_dim' is 64"},
        Bad{"V4Sigmoid",
            "deepseek-v4-flash",
            {{"scoring_func", "sigmoid"}},
            "config.json: 'scoring_func' is 'sigmoid', but deepseek_v4 routers score with sqrtsoftplus"},
        Bad{"V4Greedy",
            "deepseek-v4-flash",
            {{"topk_method", "greedy"}},
            "config.json: 'topk_method' is 'greedy', but deepseek_v4 routers choose by noaux_tc"},
        Bad{"V4Experts",
            "deepseek-v4-flash",
            {{"expert_dtype", "fp6"}},
            "config.json: 'expert_dtype' is 'fp6', but only fp4 and fp8 are known"},
        Bad{"V4Ragged",
            "deepseek-v4-flash",
            {{"moe_intermediate_size", 2040}},
            "config.json: 'moe_intermediate_size' is 2040, but FP4 experts have one scale for each 32 elements of a "
            "row"},
        Bad{"V4HashLayers",
            "deepseek-v4-flash",
            {{"num_hash_layers", 44}},
            "config.json: 'num_hash_layers' is 44, expected an integer from 0 to 43"},
        Bad{"Llama",
            "deepseek-v3",
            {{"model_type", "llama"}},
            "config.json: 'model_type' is 'llama', but only deepseek_v2, deepseek_v3, deepseek_v32 and kimi_k2 are "
            "supported"},
        Bad{"NoType",
            "deepseek-v3",
            {{"model_type", "<absent>"}},
            "config.json: 'model_type' is missing, expected a string"},
        Bad{"NoHidden",
            "deepseek-v3",
            {{"hidden_size", "<absent>"}},
            "config.json: 'hidden_size' is missing, expected an integer from 1 to 262144"},
        Bad{"ZeroHidden",
            "deepseek-v3",
            {{"hidden_size", 0}},
            "config.json: 'hidden_size' is 0, expected an integer from 1 to 262144"},
        Bad{"FloatHidden",
            "deepseek-v3",
            {{"hidden_size", 7168.5}},
            "config.json: 'hidden_size' is 7168.5, expected an integer from 1 to 262144"},
        Bad{"HugeLayers",
            "deepseek-v3",
            {{"num_hidden_layers", 1000000000000}},
            "config.json: 'num_hidden_layers' is 1000000000000, expected an integer from 1 to 1024"},
        Bad{"NegativeExperts",
            "deepseek-v3",
            {{"n_routed_experts", -1}},
            "config.json: 'n_routed_experts' is -1, expected an integer from 0 to 8192"},
        Bad{"NegativeQueryLora",
            "deepseek-v3",
            {{"q_lora_rank", -5}},
            "config.json: 'q_lora_rank' is -5, expected an integer from 0 to 262144"},
        Bad{"OddRope",
            "deepseek-v3",
            {{"qk_rope_head_dim", 63}},
            "config.json: 'qk_rope_head_dim' is 63, but channels rotate in pairs, so it must be even"},
        Bad{"TopkTooLarge",
            "deepseek-v3",
            {{"num_experts_per_tok", 257}},
            "config.json: 'num_experts_per_tok' is 257, but 'n_routed_experts' is 256"},
        Bad{"GroupsDoNotDivide",
            "deepseek-v3",
            {{"n_group", 7}},
            "config.json: 'n_group' is 7, which does not divide the 256 experts of 'n_routed_experts'"},
        Bad{"TooManyGroups", "deepseek-v3", {{"topk_group", 9}}, "config.json: 'topk_group' is 9, but 'n_group' is 8"},
        Bad{"NoTopkGroup",
            "deepseek-v3",
            {{"topk_group", nullptr}},
            "config.json: 'topk_group' is null, expected an integer from 1 to 8192"},
        Bad{"GroupsTooSmallForTopk",
            "deepseek-v3",
            {{"n_group", 128}, {"topk_group", 3}},
            "config.json: 'num_experts_per_tok' is 8, but the 3 groups of 'topk_group' hold only 6 experts"},
        Bad{"LonelyExperts",
            "deepseek-v3",
            {{"n_group", 256}, {"topk_group", 16}},
            "config.json: 'n_group' is 256, which leaves one expert in a group, but noaux_tc scores a group by its two "
            "best experts"},
        Bad{"NoGroups", "deepseek-v3", {{"n_group", "<absent>"}}, "config.json: 'n_group' is missing"},
        Bad{"NoNormalize", "deepseek-v3", {{"norm_topk_prob", "<absent>"}}, "config.json: 'norm_topk_prob' is missing"},
        Bad{"NoFirstDense",
            "deepseek-v3",
            {{"first_k_dense_replace", "<absent>"}},
            "config.json: 'first_k_dense_replace' is missing"},
        Bad{"V3Softmax",
            "deepseek-v3",
            {{"scoring_func", "softmax"}},
            "config.json: 'scoring_func' is 'softmax', but deepseek_v3 routers score with sigmoid"},
        Bad{"V2Noaux",
            "deepseek-v2",
            {{"topk_method", "noaux_tc"}},
            "config.json: 'topk_method' is 'noaux_tc', but deepseek_v2 routers choose by greedy or "
            "group_limited_greedy"},
        Bad{"V3Greedy",
            "deepseek-v3",
            {{"topk_method", "greedy"}},
            "config.json: 'topk_method' is 'greedy', but deepseek_v3 routers choose by noaux_tc"},
        Bad{"ZeroScale",
            "deepseek-v3",
            {{"routed_scaling_factor", 0.0}},
            "config.json: 'routed_scaling_factor' is 0, expected a number above 0 and at most 1e6"},
        Bad{"TextScale",
            "deepseek-v3",
            {{"routed_scaling_factor", "2.5"}},
            "config.json: 'routed_scaling_factor' is the string '2.5', expected a number"},
        Bad{"NegativeEps",
            "deepseek-v3",
            {{"rms_norm_eps", -1e-6}},
            "config.json: 'rms_norm_eps' is -1e-06, expected a number above 0 and at most 1"},
        Bad{"FreqListLength",
            "deepseek-v3",
            {{"moe_layer_freq", {0, 1}}},
            "config.json: 'moe_layer_freq' lists 2 layers, but 'num_hidden_layers' is 61"},
        Bad{"FreqListValues",
            "deepseek-v3",
            {{"num_hidden_layers", 2}, {"moe_layer_freq", {0, 2}}},
            "config.json: 'moe_layer_freq' holds 2, expected 0 or 1 for each layer"},
        Bad{"Bias",
            "deepseek-v3",
            {{"attention_bias", true}},
            "config.json: 'attention_bias' is true, but projections with biases are not supported"},
        Bad{"Gelu",
            "deepseek-v3",
            {{"hidden_act", "gelu"}},
            "config.json: 'hidden_act' is 'gelu', but only silu is supported"},
        Bad{"HalfSplit",
            "deepseek-v3",
            {{"rope_interleave", false}},
            "config.json: 'rope_interleave' is false, but only weights stored for interleaved rotary pairs are "
            "supported"},
        Bad{"Theta",
            "deepseek-v3",
            {{"rope_theta", 1.0}},
            "config.json: 'rope_theta' is 1, expected a number above 1 and at most 1e15"},
        Bad{"Longrope", "deepseek-v3", yarnWith("type", "longrope"),
            "config.json: 'rope_scaling.rope_type' is 'longrope', but only default, linear and yarn are supported"},
        Bad{"RopeTypesDiffer", "deepseek-v3", yarnWith("rope_type", "linear"),
            "config.json: 'rope_scaling.rope_type' is 'linear', but 'type' is 'yarn'"},
        Bad{"SmallFactor", "deepseek-v3", yarnWith("factor", 0.5),
            "config.json: 'rope_scaling.factor' is 0.5, expected a number from 1 to 1e6"},
        Bad{"DerivedFactor", "deepseek-v3",
            patched(yarnWith("factor", nullptr), Json{{"max_position_embeddings", 2048}}),
            "config.json: 'rope_scaling.factor' follows from 'max_position_embeddings' as 0.5, expected a number from "
            "1 to 1e6"},
        Bad{"Betas", "deepseek-v3", yarnWith("beta_fast", 0.5),
            "config.json: 'rope_scaling.beta_slow' is 1 and 'beta_fast' is 0.5, expected 0 < beta_slow <= beta_fast <= "
            "1e6"},
        Bad{"NegativeMscale", "deepseek-v3", yarnWith("mscale_all_dim", -1.0),
            "config.json: 'rope_scaling.mscale_all_dim' is -1, expected a number from 0 to 100"},
        Bad{"PartialRotary", "deepseek-v3", yarnWith("partial_rotary_factor", 0.5),
            "config.json: 'rope_scaling.partial_rotary_factor' is 0.5, but only 1 is supported"},
        Bad{"UnknownMethod", "deepseek-v3", fp8With("quant_method", "hqq"),
            "config.json: 'quantization_config.quant_method' is the string 'hqq', but only fp8, gptq, awq, "
            "compressed-tensors, modelopt or modelopt_fp4 is supported"},
        Bad{"GptqWithoutBits", "deepseek-v3", fp8With("quant_method", "gptq"),
            "config.json: 'quantization_config.bits' is missing, expected an integer from 1 to 32"},
        Bad{"E5m2", "deepseek-v3", fp8With("fmt", "e5m2"),
            "config.json: 'quantization_config.fmt' is the string 'e5m2', but only e4m3 or float8_e4m3fn is supported"},
        Bad{"ScaleFormat", "deepseek-v3", fp8With("scale_fmt", "e8m7"),
            "config.json: 'quantization_config.scale_fmt' is the string 'e8m7', but only float or ue8m0 is supported"},
        Bad{"ZeroBlock", "deepseek-v3", fp8With("weight_block_size", {128, 0}),
            "config.json: 'quantization_config.weight_block_size' is an array of 2 elements, but only two positive "
            "integers such as [128, 128] is supported"},
        Bad{"V4InGptq",
            "deepseek-v4-flash",
            {{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}}}},
            "config.json: 'quantization_config.quant_method' stands for gptq int4 in groups of 128, but deepseek_v4 "
            "models are fp8"},
        Bad{"Eos",
            "deepseek-v3",
            {{"eos_token_id", "</s>"}},
            "config.json: 'eos_token_id' is the string '</s>', expected an integer from 0 to 129279"},
        Bad{"HostileName",
            "deepseek-v3",
            {{"model_type", "a\x1b[2J\n"}},
            "config.json: 'model_type' is 'a\\x1b[2J\\x0a', but only deepseek_v2, deepseek_v3, deepseek_v32 and "
            "kimi_k2 are supported"}),
    [](const testing::TestParamInfo<Bad> &info) { return info.param.label; });

TEST(Config, NonFiniteAndMalformedFilesAreRefused) {
  ScratchDir dir;
  for (const char *value : {"NaN", "Infinity", "1e999", "-1e999"}) {
    std::string text = publishedJson("deepseek-v3").dump();
    size_t at = text.find("\"rms_norm_eps\":") + 15;
    text.replace(at, text.find(',', at) - at, value);
    dir.write("config.json", text);
    Result<ModelConfig> config = ModelConfig::load(dir.path());
    ASSERT_FALSE(config.ok()) << value;
    EXPECT_THAT(config.message(), HasSubstr(dir / "config.json"));
  }
  dir.write("config.json", "[1, 2]");
  EXPECT_THAT(ModelConfig::load(dir.path()).message(), HasSubstr("config.json"));
  std::filesystem::remove(dir / "config.json");
  EXPECT_THAT(ModelConfig::load(dir.path()).message(), HasSubstr("config.json"));
  std::filesystem::create_symlink("config.json", dir / "config.json");
  EXPECT_THAT(ModelConfig::load(dir.path()).message(), HasSubstr("config.json"));
}

} // namespace
