// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a `quantization_config` declares, and what is refused.

#include "dialects/Formats/Detect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

using namespace moec;
using formats::Naming;
using testing::HasSubstr;

namespace {

Result<Format> detect(const std::string &text) {
  MOEC_TRY(Json json, parseJson(text, "config.json"));
  MOEC_TRY(JsonObject object, JsonObject::from(json, "config.json"));
  return detectFormat(object);
}

void expectFormat(const std::string &text, const Format &format) {
  SCOPED_TRACE(text);
  Result<Format> found = detect(text);
  ASSERT_TRUE(found) << found.message();
  EXPECT_EQ(found->name, format.name);
  EXPECT_TRUE(*found == format);
}

std::string refusal(const std::string &text) {
  Result<Format> found = detect(text);
  return found ? "accepted as " + found->name : found.message();
}

TEST(Detect, Fp8) {
  expectFormat(R"({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                   "weight_block_size": [128, 128], "scale_fmt": "ue8m0"})",
               formats::fp8(128, 128, Naming::ScaleInv, false));
  expectFormat(R"({"quant_method": "fp8", "weight_block_size": [32, 32]})",
               formats::fp8(32, 32, Naming::ScaleInv, false));
  expectFormat(R"({"quant_method": "fp8", "activation_scheme": "static"})",
               formats::fp8(0, 0, Naming::WeightScale, false));
  EXPECT_EQ(refusal(R"({"quant_method": "fp8", "fmt": "e5m2"})"),
            "config.json: 'fmt' is the string 'e5m2', but only e4m3 or float8_e4m3fn is supported");
  for (const char *size : {"[0, 128]", "[128]", "[1.5, 2]", "[128, 99999999999]", "[-1, 1]"})
    EXPECT_THAT(refusal(std::string(R"({"quant_method": "fp8", "weight_block_size": )") + size + "}"),
                HasSubstr("but only two positive integers such as [128, 128] is supported"));
}

TEST(Detect, Gptq) {
  expectFormat(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false})",
               formats::gptq(4, 128, true, 1, false));
  expectFormat(R"({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": false, "desc_act": true,
                   "checkpoint_format": "gptq_v2", "dynamic": {"-:.*gate": {}}})",
               formats::gptq(8, 0, false, 2, true));
  EXPECT_THAT(refusal(R"({"quant_method": "gptq", "bits": 3, "group_size": 128})"),
              HasSubstr("'bits' is 3, but only 4 or 8 is supported"));
  EXPECT_THAT(refusal(R"({"quant_method": "gptq", "bits": 4, "group_size": 0})"), HasSubstr("'group_size' is 0"));
  EXPECT_THAT(refusal(R"({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin"})"),
              HasSubstr("'checkpoint_format' is the string 'marlin', but only gptq or gptq_v2 is supported"));
  EXPECT_THAT(refusal(R"({"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"+:a": {"bits": 8}}})"),
              HasSubstr("'dynamic' holds the rule '+:a'"));
  EXPECT_THAT(refusal(R"({"quant_method": "gptq", "group_size": 64})"), HasSubstr("'bits'"));
}

TEST(Detect, Awq) {
  expectFormat(R"({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "GEMM"})",
               formats::awq(64));
  expectFormat(R"({"quant_method": "awq", "w_bit": 4, "q_group_size": -1})", formats::awq(0));
  EXPECT_THAT(refusal(R"({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"})"),
              HasSubstr("'version' is the string 'gemv', but only gemm or GEMM is supported"));
  EXPECT_THAT(refusal(R"({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": false})"),
              HasSubstr("'zero_point' is false, but only true is supported"));
  EXPECT_THAT(refusal(R"({"quant_method": "awq", "bits": 8, "group_size": 64})"),
              HasSubstr("'bits' is 8, but only 4 is supported"));
}

/// A compressed-tensors config with one group.
std::string compressed(const std::string &format, const std::string &weights, const std::string &more = "") {
  return R"({"quant_method": "compressed-tensors", "format": ")" + format +
         R"(", "config_groups": {"group_0": {"weights": {)" + weights + R"(}, "targets": ["Linear"]}})" + more + "}";
}

TEST(Detect, CompressedTensors) {
  expectFormat(compressed("pack-quantized",
                          R"("num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32)"),
               formats::packQuantized(4, 32, true, false));
  expectFormat(compressed("pack-quantized", R"("num_bits": 4, "group_size": 64, "actorder": "group")"),
               formats::packQuantized(4, 64, true, true));
  expectFormat(compressed("pack-quantized", R"("num_bits": 8, "group_size": -1, "symmetric": false)"),
               formats::packQuantized(8, 0, false, false));
  expectFormat(compressed("int-quantized", R"("num_bits": 8, "strategy": "channel")"), formats::intQuantized(1, 0));
  expectFormat(compressed("naive-quantized", R"("num_bits": 8, "type": "int")"), formats::intQuantized(0, 0));
  expectFormat(compressed("float-quantized", R"("type": "float", "strategy": "block", "block_structure": [64, 32])"),
               formats::fp8(64, 32, Naming::WeightScale, false));
  expectFormat(compressed("nvfp4-pack-quantized",
                          R"("num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16)"),
               formats::nvfp4(false));
  expectFormat(compressed("mxfp4-pack-quantized", R"("num_bits": 4, "type": "float", "group_size": 32)"),
               formats::mxfp4(Naming::WeightScale));
  expectFormat(compressed("mxfp8-quantized", R"("type": "float", "group_size": 32)"),
               formats::fp8(1, 32, Naming::WeightScale, true));
  // The format of a group goes before the one of the file; groups without weights do not count.
  expectFormat(R"({"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
                   "a": {"weights": {"num_bits": 8, "strategy": "channel"}, "format": "int-quantized"},
                   "b": {"weights": null, "input_activations": {}}}})",
               formats::intQuantized(1, 0));
}

TEST(Detect, CompressedTensorsRefused) {
  struct {
    const char *format, *weights, *expected;
  } cases[] = {
      {"marlin-24", R"("num_bits": 4)", "'format' is the string 'marlin-24', but only pack-quantized"},
      {"pack-quantized", R"("num_bits": 4)",
       "'config_groups.group_0.weights.strategy' is absent, but only channel or "
       "group with the format pack-quantized is supported"},
      {"pack-quantized", R"("num_bits": 3, "group_size": 32)", "num_bits' is 3, but only 4 or 8"},
      {"pack-quantized", R"("num_bits": 4, "type": "float", "group_size": 32)",
       "type' is the string 'float', but only int"},
      {"pack-quantized", R"("num_bits": 4, "strategy": "group")", "group_size' is absent"},
      {"pack-quantized", R"("num_bits": 4, "group_size": 0)", "group_size' is 0"},
      {"int-quantized", R"("num_bits": 8, "symmetric": false)", "symmetric' is false, but only true"},
      {"int-quantized", R"("num_bits": 4)", "num_bits' is 4, but only 8"},
      {"int-quantized", R"("num_bits": 8, "group_size": 32, "actorder": true)", "actorder' is true"},
      {"nvfp4-pack-quantized", R"("num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 32)",
       "group_size' is 32, but only 16"},
      {"mxfp4-pack-quantized", R"("num_bits": 4, "type": "int", "group_size": 32)", "type' is the string 'int'"},
      {"float-quantized", R"("type": "float", "strategy": "block")", "block_structure'"},
      {"float-quantized", R"("type": "posit")", "type' is the string 'posit', but only int or float"},
  };
  for (const auto &c : cases)
    EXPECT_THAT(refusal(compressed(c.format, c.weights)), HasSubstr(c.expected)) << c.format << " " << c.weights;

  std::string weights = R"("num_bits": 4, "group_size": 32)";
  EXPECT_THAT(refusal(compressed("pack-quantized", weights, R"(, "sparsity_config": {"format": "sparse-24-bitmask"})")),
              HasSubstr("'sparsity_config.format' is the string 'sparse-24-bitmask', but only dense"));
  EXPECT_THAT(refusal(compressed("pack-quantized", weights, R"(, "transform_config": {"config_groups": {}})")),
              HasSubstr("'transform_config' is given, but it changes what weights mean"));
  EXPECT_THAT(
      detect(compressed("pack-quantized", weights, R"(, "transform_config": {}, "sparsity_config": null)")).ok(), true);
  EXPECT_THAT(refusal(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
                          "a": {"weights": {"num_bits": 4, "group_size": 32}},
                          "b": {"weights": {"num_bits": 8, "group_size": 32}}}})"),
              HasSubstr("'config_groups' holds both pack-quantized int4 in groups of 32 and pack-quantized int8"));
  EXPECT_THAT(refusal(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}})"),
              HasSubstr("'config_groups' quantizes no weights"));
}

TEST(Detect, ModelOpt) {
  expectFormat(R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})", formats::nvfp4(true));
  expectFormat(R"({"quant_method": "modelopt", "quant_algo": "FP8"})", formats::fp8(0, 0, Naming::WeightScale, false));
  EXPECT_THAT(refusal(R"({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"})"),
              HasSubstr("'quant_algo' is the string 'W4A8_AWQ', but only NVFP4 or FP8"));
  EXPECT_THAT(refusal(R"({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32})"),
              HasSubstr("'group_size' is 32, but only 16 with NVFP4"));
}

TEST(Detect, OtherMethods) {
  EXPECT_EQ(refusal(R"({"quant_method": "bitsandbytes"})"),
            "config.json: 'quant_method' is the string 'bitsandbytes', but only fp8, gptq, awq, compressed-tensors, "
            "modelopt or modelopt_fp4 is supported");
  EXPECT_THAT(refusal("{}"), HasSubstr("'quant_method'"));
  EXPECT_THAT(refusal(R"({"quant_method": 7})"), HasSubstr("'quant_method'"));
}

} // namespace
