// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Every step of a recipe against its definition, element by element, and what recipes refuse.

#include "moe_reference_common.h"

#include "mlir/AsmParser/AsmParser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

using namespace mlir::moe::reference;
using moec::DType;
using moec::test::MapSource;
using moec::test::Random;
using testing::ElementsAre;

namespace {

class MoeReferenceRecipe : public testing::Test {
protected:
  MoeReferenceRecipe() { context.loadDialect<mlir::moe::MoeDialect>(); }

  moec::Result<StoredTensor> evaluate(const std::string &sources, const std::string &recipe) {
    auto parse = [&](const std::string &text) {
      return mlir::cast<mlir::ArrayAttr>(mlir::parseAttribute(text, &context));
    };
    return evaluateRecipe(parse(sources), parse(recipe), source);
  }
  Tensor<float> values(const std::string &sources, const std::string &recipe) {
    auto result = evaluate(sources, recipe);
    EXPECT_TRUE(result) << result.message();
    return result ? result->values : Tensor<float>();
  }
  std::string message(const std::string &sources, const std::string &recipe) {
    auto result = evaluate(sources, recipe);
    return result ? "no error" : result.message();
  }

  /// A tensor [.., rows, cols] whose element i is i + start: exact up to 2^24.
  void addCounting(const std::string &name, std::vector<int64_t> shape, float start = 0) {
    Tensor<float> tensor(std::move(shape));
    for (size_t i = 0; i < tensor.data.size(); ++i)
      tensor.data[i] = i + start;
    source.add(name, tensor);
  }
  /// Random e4m3 bytes, without NaN.
  std::vector<uint8_t> addFp8(Random &random, const std::string &name, std::vector<int64_t> shape) {
    std::vector<uint8_t> bytes(Tensor<float>::count(shape));
    for (uint8_t &byte : bytes)
      byte = random.below(2) * 128 + random.below(127);
    source.add(name, DType::F8E4M3, std::move(shape), bytes);
    return bytes;
  }

  static Tensor<float> positive(Random &random, std::vector<int64_t> shape) {
    Tensor<float> tensor = random.tensor<float>(std::move(shape));
    for (float &value : tensor.data)
      value = std::abs(value) + 0x1p-20f;
    return tensor;
  }

  mlir::MLIRContext context;
  MapSource source;
};

TEST_F(MoeReferenceRecipe, PlainTensorsAreWidenedExactly) {
  source.add("bf16", DType::BF16, {3}, std::vector<uint16_t>{0x3F80, 0xC049, 0x0001});
  source.add("f16", DType::F16, {3}, std::vector<uint16_t>{0x3C00, 0xC248, 0x0001});
  source.add("f8", DType::F8E4M3, {4}, std::vector<uint8_t>{0x38, 0x7E, 0x01, 0xFE});
  source.add("f32", DType::F32, {}, std::vector<float>{0.1f});
  EXPECT_THAT(values(R"(["bf16"])", "[]").data, ElementsAre(1, -3.140625f, 0x1p-133f));
  EXPECT_THAT(values(R"(["f16"])", "[]").data, ElementsAre(1, -3.140625f, 0x1p-24f));
  EXPECT_THAT(values(R"(["f8"])", "[]").data, ElementsAre(1, 448, 0x1p-9f, -448));
  EXPECT_EQ(values(R"(["f32"])", "[]"), Tensor<float>({}, {0.1f}));
}

TEST_F(MoeReferenceRecipe, BytesComeBackAsTheyWere) {
  std::vector<uint8_t> f8;
  for (int code = 0; code < 256; ++code)
    if ((code & 127) != 127)
      f8.push_back(code);
  source.add("f8", DType::F8E4M3, {int64_t(f8.size())}, f8);
  source.add("bf16", DType::BF16, {3}, std::vector<uint16_t>{0x3F81, 0x8000, 0xFF80});
  source.add("f16", DType::F16, {3}, std::vector<uint16_t>{0x3C01, 0x8001, 0xFC00});
  source.add("f32", DType::F32, {2}, std::vector<float>{0.1f, -0.0f});
  for (const char *name : {"f8", "bf16", "f16", "f32"}) {
    auto tensor = evaluate("[\"" + std::string(name) + "\"]", "[]");
    ASSERT_TRUE(tensor);
    std::vector<std::byte> bytes = toBytes(*tensor);
    auto view = source.tensor(name);
    ASSERT_EQ(tensor->dtype, view->dtype);
    ASSERT_EQ(bytes.size(), tensor->values.data.size() * moec::byteSize(view->dtype));
    EXPECT_EQ(std::memcmp(bytes.data(), view->data, bytes.size()), 0) << name;
  }
}

TEST_F(MoeReferenceRecipe, DequantMultipliesByTheScaleOfTheBlock) {
  // Blocks of 2 x 3 over 3 x 4: the last row and column of blocks are partial. 0x38 is 1, 0x40 is 2.
  source.add("q", DType::F8E4M3, {3, 4},
             std::vector<uint8_t>{0x38, 0x38, 0x38, 0x40, 0x38, 0x38, 0x40, 0x38, 0xB8, 0x38, 0x38, 0x38});
  source.add("s", DType::F32, {2, 2}, std::vector<float>{10, 20, 30, 0.1f});
  EXPECT_EQ(values(R"(["q", "s"])", "[#moe.dequant<fp8 2x3, f32>]"),
            Tensor<float>({3, 4}, {10, 10, 10, 40, 10, 10, 20, 20, -30, 30, 30, 0.1f}));
}

TEST_F(MoeReferenceRecipe, DequantOfRaggedBlocks) {
  Random random(11);
  std::vector<uint8_t> q = addFp8(random, "q", {130, 200});
  Tensor<float> scales = positive(random, {2, 2});
  source.add("s", scales);
  Tensor<float> expected({130, 200});
  for (int i = 0; i < 130; ++i)
    for (int j = 0; j < 200; ++j)
      expected.row(i)[j] = moec::f8e4m3ToFloat(q[i * 200 + j]) * scales.row(i / 128)[j / 128];
  EXPECT_EQ(values(R"(["q", "s"])", "[#moe.dequant<fp8 128x128, f32>]"), expected);
}

TEST_F(MoeReferenceRecipe, DequantOfBlocks) {
  // Q8_0: an F16 scale, here 1/2 and then -2, and 32 signed bytes.
  std::vector<uint8_t> bytes;
  std::vector<float> expected;
  for (uint8_t high : {0x38, 0xC0}) {
    bytes.insert(bytes.end(), {0, high});
    for (int i = 0; i < 32; ++i) {
      bytes.push_back(static_cast<uint8_t>(i - 16));
      expected.push_back((i - 16) * (high == 0x38 ? 0.5f : -2.0f));
    }
  }
  source.add("b", DType::U8, {1, 68}, bytes);
  EXPECT_EQ(values(R"(["b"])", "[#moe.dequant<gguf_q8_0, f32>]"), Tensor<float>({1, 64}, expected));
  EXPECT_EQ(message(R"(["b"])", "[#moe.dequant<gguf_q4_0, f32>]"),
            "tensor 'b' is U8 [1, 68], expected U8 and rows of Q4_0 blocks of 18 bytes");
  bytes[1] = 0x7C;
  source.add("b", DType::U8, {2, 34}, bytes);
  EXPECT_EQ(message(R"(["b"])", "[#moe.dequant<gguf_q8_0, f32>]"), "'b' at [0, 0] is not finite");
}

TEST_F(MoeReferenceRecipe, DequantRoundsOnce) {
  // 1.5 * scale lies 2^-24 above a tie of bf16; rounded to f32 first it would be that tie, and then 1.
  source.add("q", DType::F8E4M3, {1, 2}, std::vector<uint8_t>{0x3C, 0xBC});
  source.add("s", DType::F32, {1, 1}, std::vector<float>{0x1.56aaacp-1f});
  EXPECT_THAT(values(R"(["q", "s"])", "[#moe.dequant<fp8 128x128, bf16>]").data, ElementsAre(1.0078125f, -1.0078125f));
  source.add("s", DType::F32, {1, 1}, std::vector<float>{0x1.56aaaap-1f}); // 2^-25 below
  EXPECT_THAT(values(R"(["q", "s"])", "[#moe.dequant<fp8 128x128, bf16>]").data, ElementsAre(1, -1));
}

TEST_F(MoeReferenceRecipe, CastRoundsToNearestEven) {
  source.add("x", DType::F32, {4}, std::vector<float>{1.00390625f, 1.01171875f, 3.0e38f, -1e6f});
  auto bf16 = evaluate(R"(["x"])", "[#moe.cast<bf16>]");
  ASSERT_TRUE(bf16);
  EXPECT_EQ(bf16->dtype, DType::BF16);
  EXPECT_THAT(bf16->values.data, ElementsAre(1, 1.015625f, 0x1.c4p127f, -999424));
  EXPECT_THAT(values(R"(["x"])", "[#moe.cast<f16>]").data, ElementsAre(1.00390625f, 1.01171875f, INFINITY, -INFINITY));
  EXPECT_THAT(values(R"(["x"])", "[#moe.cast<f32>]").data, ElementsAre(1.00390625f, 1.01171875f, 3.0e38f, -1e6f));
}

TEST_F(MoeReferenceRecipe, StackMakesOneTensorOfAFamily) {
  for (int e = 0; e < 12; ++e)
    addCounting("experts." + std::to_string(e) + ".w", {2, 3}, 100 * e);
  Tensor<float> stacked = values(R"(["experts.{e}.w"])", "[#moe.stack<12>]");
  EXPECT_EQ(stacked.shape, (std::vector<int64_t>{12, 2, 3}));
  EXPECT_EQ(stacked.row(11, 1)[2], 1105);
  EXPECT_EQ(stacked.row(2, 0)[1], 201);
  Tensor<float> some = values(R"(["experts.{e}.w"])", "[#moe.stack<[2, 11]>]");
  EXPECT_EQ(some, Tensor<float>({2, 2, 3}, {200, 201, 202, 203, 204, 205, 1100, 1101, 1102, 1103, 1104, 1105}));
}

TEST_F(MoeReferenceRecipe, StackOfDequantizedExperts) {
  Random random(12);
  std::vector<std::vector<uint8_t>> q;
  std::vector<Tensor<float>> scales;
  for (int e = 0; e < 3; ++e) {
    q.push_back(addFp8(random, "e" + std::to_string(e) + ".w", {3, 5}));
    scales.push_back(positive(random, {2, 2}));
    source.add("e" + std::to_string(e) + ".s", scales.back());
  }
  Tensor<float> stacked = values(R"(["e{e}.w", "e{e}.s"])", "[#moe.dequant<fp8 2x4, f32>, #moe.stack<3>]");
  ASSERT_EQ(stacked.shape, (std::vector<int64_t>{3, 3, 5}));
  for (int e = 0; e < 3; ++e)
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 5; ++j)
        EXPECT_EQ(stacked.row(e, i)[j], moec::f8e4m3ToFloat(q[e][i * 5 + j]) * scales[e].row(i / 2)[j / 4]);
}

TEST_F(MoeReferenceRecipe, HeadRowsTransposePad) {
  addCounting("kv_b", {6, 2}); // two heads of three rows
  EXPECT_EQ(values(R"(["kv_b"])", "[#moe.head_rows<2, 1, 3>]"), Tensor<float>({2, 2, 2}, {2, 3, 4, 5, 8, 9, 10, 11}));
  EXPECT_EQ(values(R"(["kv_b"])", "[#moe.head_rows<2, 0, 1>]"), Tensor<float>({2, 1, 2}, {0, 1, 6, 7}));
  EXPECT_EQ(values(R"(["kv_b"])", "[#moe.head_rows<2, 1, 3>, #moe.transpose]"),
            Tensor<float>({2, 2, 2}, {2, 4, 3, 5, 8, 10, 9, 11}));
  addCounting("m", {2, 3});
  EXPECT_EQ(values(R"(["m"])", "[#moe.transpose]"), Tensor<float>({3, 2}, {0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(values(R"(["m"])", "[#moe.pad<5>]"), Tensor<float>({2, 5}, {0, 1, 2, 0, 0, 3, 4, 5, 0, 0}));
  EXPECT_EQ(values(R"(["m"])", "[#moe.pad<3>]"), Tensor<float>({2, 3}, {0, 1, 2, 3, 4, 5}));
}

TEST_F(MoeReferenceRecipe, ScaleColumnsMultipliesEachByItsElement) {
  source.add("g", Tensor<float>({3}, {2, -0.5, 0}));
  addCounting("m", {2, 3}, 1);
  const std::string step = R"(#moe.scale_columns<"g">)";
  EXPECT_EQ(values(R"(["m"])", "[" + step + "]"), Tensor<float>({2, 3}, {2, -1, 0, 8, -2.5, 0}));
  // Of each member of a family, stacked or not yet, and of each tensor that is joined.
  addCounting("e0", {1, 3}, 1);
  addCounting("e1", {1, 3}, 4);
  for (const std::string &recipe : {"[" + step + ", #moe.stack<2>]", "[#moe.stack<2>, " + step + "]"})
    EXPECT_EQ(values(R"(["e{e}"])", recipe), Tensor<float>({2, 1, 3}, {2, -1, 0, 8, -2.5, 0}));
  EXPECT_EQ(values(R"(["e0", "e1"])", "[" + step + ", #moe.concat<[1, 1]>]"),
            Tensor<float>({2, 3}, {2, -1, 0, 8, -2.5, 0}));
  // Two numbers of 16 bits have a product that bf16 could not hold.
  source.add("g16", DType::BF16, {1}, std::vector<uint16_t>{moec::floatToBf16(1.0078125f)});
  source.add("m16", DType::BF16, {1, 1}, std::vector<uint16_t>{moec::floatToBf16(1.0078125f)});
  EXPECT_EQ(values(R"(["m16"])", R"([#moe.scale_columns<"g16">])"), Tensor<float>({1, 1}, {1.01568603515625f}));
}

TEST_F(MoeReferenceRecipe, ColumnsReshapeSum) {
  addCounting("m", {2, 6});
  EXPECT_EQ(values(R"(["m"])", "[#moe.columns<1, 4>]"), Tensor<float>({2, 3}, {1, 2, 3, 7, 8, 9}));
  EXPECT_EQ(values(R"(["m"])", "[#moe.reshape<[2, 6], [2, 3, 2]>]"),
            Tensor<float>({2, 3, 2}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(
      values(R"(["m"])", "[#moe.reshape<[2, 6], [2, 3, 2]>, #moe.columns<1, 2>, #moe.reshape<[2, 3, 1], [2, 3]>]"),
      Tensor<float>({2, 3}, {1, 3, 5, 7, 9, 11}));
  addCounting("n", {2, 2}, 100);
  addCounting("o", {2, 2}, 1000);
  EXPECT_EQ(values(R"(["n", "o"])", "[#moe.sum]"), Tensor<float>({2, 2}, {1100, 1102, 1104, 1106}));
  // By twos, so that sums can be added and joined.
  EXPECT_EQ(values(R"(["n", "o", "n", "n"])", "[#moe.sum, #moe.sum]"), Tensor<float>({2, 2}, {1300, 1304, 1308, 1312}));
  EXPECT_EQ(values(R"(["n", "o", "n", "n"])", "[#moe.sum, #moe.concat<[2, 2]>]"),
            Tensor<float>({4, 2}, {1100, 1102, 1104, 1106, 200, 202, 204, 206}));
}

TEST_F(MoeReferenceRecipe, AppendPutsSlicesOfAMatrixBehindAStack) {
  addCounting("e0", {2, 2});
  addCounting("e1", {2, 2}, 10);
  addCounting("tall", {4, 2}, 20);
  addCounting("wide", {2, 4}, 30);
  EXPECT_EQ(values(R"(["e{e}", "tall"])", "[#moe.stack<2>, #moe.append<rows, 2>]"),
            Tensor<float>({4, 2, 2}, {0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 24, 25, 26, 27}));
  EXPECT_EQ(values(R"(["e{e}", "wide"])", "[#moe.stack<[1]>, #moe.append<columns, 2>]"),
            Tensor<float>({3, 2, 2}, {10, 11, 12, 13, 30, 31, 34, 35, 32, 33, 36, 37}));
  // By twos, as gate and up are packed.
  Tensor<float> gate = values(R"(["e{e}", "tall"])", "[#moe.stack<2>, #moe.append<rows, 2>, #moe.pack_panels<2>]");
  Tensor<float> both =
      values(R"(["e{e}", "tall", "e{e}", "tall"])", "[#moe.stack<2>, #moe.append<rows, 2>, #moe.pack_panels<4>]");
  ASSERT_EQ(both.shape, (std::vector<int64_t>{4, 1, 2, 4}));
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(both.data[i], gate.data[i / 4 * 2 + i % 2]);
}

TEST_F(MoeReferenceRecipe, ConcatPutsRowsBelowRows) {
  addCounting("a", {2, 3});
  addCounting("b", {1, 3}, 6);
  addCounting("c", {3, 3}, 9);
  Tensor<float> expected({6, 3});
  for (int i = 0; i < 18; ++i)
    expected.data[i] = i;
  EXPECT_EQ(values(R"(["a", "b", "c"])", "[#moe.concat<[2, 1, 3]>]"), expected);
}

TEST_F(MoeReferenceRecipe, ConcatOfWhatWasQuantizedKeepsTheCodesOfEach) {
  // Each part has scales of its own, be they of blocks of rows or of the whole matrix.
  Random random(5);
  source.add("a", random.tensor<float>({20, 64}));
  source.add("b", random.tensor<float>({12, 64}));
  for (const char *format : {"int4, group = 32, scale = f16", "f8e4m3, group = 32, scale = f32 rows 16",
                             "f4e2m1, group = 16, scale = f8E4M3FN"}) {
    std::string step = "#moe.quantize<" + std::string(format) + ">";
    std::vector<float> expected = values(R"(["a"])", "[" + step + "]").data;
    for (float value : values(R"(["b"])", "[" + step + "]").data)
      expected.push_back(value);
    EXPECT_EQ(values(R"(["a", "b"])", "[" + step + ", #moe.concat<[20, 12]>]").data, expected) << format;
    // Both have whole panels of 4 rows.
    std::string pack = ", #moe.pack_groups<4>]";
    std::vector<float> panels = values(R"(["a"])", "[" + step + pack).data;
    for (float byte : values(R"(["b"])", "[" + step + pack).data)
      panels.push_back(byte);
    EXPECT_EQ(values(R"(["a", "b"])", "[" + step + ", #moe.concat<[20, 12]>" + pack).data, panels) << format;
  }
}

TEST_F(MoeReferenceRecipe, PackPanels) {
  addCounting("w", {3, 2}, 1); // rows 1 2, 3 4, 5 6
  EXPECT_EQ(values(R"(["w"])", "[#moe.pack_panels<2>]"), Tensor<float>({1, 2, 2, 2}, {1, 3, 2, 4, 5, 0, 6, 0}));
  addCounting("up", {3, 2}, 11);
  // A panel: two rows of the first, the same two of the second.
  EXPECT_EQ(values(R"(["w", "up"])", "[#moe.pack_panels<4>]"),
            Tensor<float>({1, 2, 2, 4}, {1, 3, 11, 13, 2, 4, 12, 14, 5, 0, 15, 0, 6, 0, 16, 0}));
  // Columns two by two; a last one is alone.
  addCounting("odd", {3, 3}, 1); // rows 1 2 3, 4 5 6, 7 8 9
  EXPECT_EQ(values(R"(["odd"])", "[#moe.pack_panels<2, 2>]"),
            Tensor<float>({1, 2, 3, 2}, {1, 2, 4, 5, 3, 6, 7, 8, 0, 0, 9, 0}));
}

TEST_F(MoeReferenceRecipe, PackPanelsOfStackedPairsHasEveryElementInItsPlace) {
  constexpr int64_t experts = 3, n = 37, k = 5, width = 32;
  for (int e = 0; e < experts; ++e) {
    addCounting("g" + std::to_string(e), {n, k}, 1 + e * n * k);
    addCounting("u" + std::to_string(e), {n, k}, 10001 + e * n * k);
  }
  Tensor<float> packed = values(R"(["g{e}", "u{e}"])", "[#moe.stack<3>, #moe.pack_panels<32>]");
  ASSERT_EQ(packed.shape, (std::vector<int64_t>{experts, 3, k, width}));
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t p = 0; p < 3; ++p)
      for (int64_t c = 0; c < k; ++c)
        for (int64_t lane = 0; lane < width; ++lane) {
          int64_t row = p * 16 + lane % 16;
          float expected = row < n ? (lane < 16 ? 1 : 10001) + (e * n + row) * k + c : 0;
          ASSERT_EQ(packed.data[((e * 3 + p) * k + c) * width + lane], expected);
        }
}

TEST_F(MoeReferenceRecipe, PackedScalesLieBesideTheirPanels) {
  // What panels and scales say together is the dequantized
  // weight, lane by lane.
  constexpr int64_t batch = 2, n = 21, k = 11, cols = 3, width = 16;
  Random random(13);
  for (std::string name : {"0.g", "1.g", "0.u", "1.u"}) {
    addFp8(random, name, {n, k});
    source.add(name + ".s", positive(random, {6, 4}));
  }
  for (bool pair : {false, true}) {
    std::string weights = pair ? R"(["{e}.g", "{e}.u"])" : R"(["{e}.g"])";
    std::string scales = pair ? R"(["{e}.g.s", "{e}.u.s"])" : R"(["{e}.g.s"])";
    std::string dequant = "[#moe.dequant<fp8 4x3, f32>, #moe.stack<2>]";
    std::vector<Tensor<float>> dequantized = {values(R"(["{e}.g", "{e}.g.s"])", dequant),
                                              values(R"(["{e}.u", "{e}.u.s"])", dequant)};
    auto panels = evaluate(weights, "[#moe.stack<2>, #moe.pack_panels<16>]");
    ASSERT_TRUE(panels) << panels.message();
    EXPECT_EQ(panels->dtype, DType::F8E4M3);
    Tensor<float> packed = values(scales, "[#moe.stack<2>, #moe.pack_block_scales<16, 21, 4>]");
    int64_t lanes = pair ? width / 2 : width, numPanels = pair ? 3 : 2;
    ASSERT_EQ(panels->values.shape, (std::vector<int64_t>{batch, numPanels, k, width}));
    ASSERT_EQ(packed.shape, (std::vector<int64_t>{batch, numPanels, 4, width}));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t p = 0; p < numPanels; ++p)
        for (int64_t c = 0; c < k; ++c)
          for (int64_t lane = 0; lane < width; ++lane) {
            float weight = panels->values.data[((b * numPanels + p) * k + c) * width + lane];
            float scale = packed.data[((b * numPanels + p) * 4 + c / cols) * width + lane];
            int64_t row = p * lanes + lane % lanes;
            if (row < n)
              ASSERT_EQ(weight * scale, dequantized[lane / lanes].row(b, row)[c]);
            else
              ASSERT_EQ(scale, 0);
          }
  }
}

TEST_F(MoeReferenceRecipe, RefusalsAreSentences) {
  addCounting("m", {4, 6});
  addCounting("n", {3, 6});
  addCounting("v", {4});
  addCounting("e0", {2, 2});
  addCounting("e1", {2, 3});
  addCounting("t0", {2, 2});
  addCounting("t1", {2, 2});
  source.add("i", DType::I64, {1}, std::vector<int64_t>{1});
  source.add("q", DType::F8E4M3, {4, 6}, std::vector<uint8_t>(24));
  source.add("s16", DType::BF16, {1, 1}, std::vector<uint16_t>{0});

  EXPECT_EQ(message(R"(["absent"])", "[]"), "tensor 'absent' is not in the checkpoint");
  EXPECT_EQ(message(R"(["i"])", "[]"), "tensor 'i' is I64, expected F32, F16, BF16, F8_E4M3 or F8_E8M0");
  EXPECT_EQ(message("[]", "[]"), "a weight needs at least one source");
  EXPECT_EQ(message("[1]", "[]"), "source 1 : i64 of a weight is no string");
  EXPECT_EQ(message(R"(["m", "n"])", "[]"), "the recipe leaves 2 tensors, expected 1");
  EXPECT_EQ(message(R"(["m"])", "[7]"), "the recipe step 7 : i64 is not known");
  EXPECT_EQ(message(R"(["e{e}"])", "[]"), "source 'e{e}' is a family, but the recipe has no "
                                          "#moe.stack");
  EXPECT_EQ(message(R"(["m", "n"])", "[#moe.concat<[4, 4]>]"),
            "#moe.concat<[4, 4]>: 'n' is F32 [3, 6], expected F32 [4, 6]");
  EXPECT_EQ(message(R"(["v", "v"])", "[#moe.concat<[4, 4]>]"),
            "#moe.concat<[4, 4]>: 'v' is F32 [4], expected F32 [4, 4]");
  EXPECT_EQ(message(R"(["m"])", "[#moe.columns<4, 7>]"),
            "#moe.columns<4, 7>: 'm' is [4, 6], which has no such columns");
  EXPECT_EQ(message(R"(["n"])", "[#moe.reshape<[4, 6], [4, 2, 3]>]"), "#moe.reshape<[4, 6], [4, 2, 3]>: 'n' is [3, 6]");
  EXPECT_EQ(message(R"(["m", "n"])", "[#moe.sum]"), "#moe.sum: 'n' is [3, 6], expected [4, 6]");
  EXPECT_EQ(message(R"(["m", "n", "m"])", "[#moe.sum]"), "#moe.sum takes tensors by twos, but the recipe has 3");
  EXPECT_EQ(message(R"(["t{e}", "t{e}"])", "[#moe.sum, #moe.stack<2>]"),
            "#moe.sum: 't{e}' is a family, expected it to be stacked first");
  EXPECT_EQ(message(R"(["m"])", R"([#moe.scale_columns<"v">])"),
            "#moe.scale_columns<\"v\">: 'm' is [4, 6], but is scaled by [4]");
  EXPECT_EQ(message(R"(["m"])", R"([#moe.scale_columns<"n">])"),
            "#moe.scale_columns<\"n\">: 'm' is [4, 6], but is scaled by [3, 6]");
  EXPECT_EQ(message(R"(["m"])", R"([#moe.scale_columns<"absent">])"), "tensor 'absent' is not in the checkpoint");
  addCounting("s0", {4, 3});
  EXPECT_EQ(message(R"(["s{e}", "m"])", "[#moe.stack<1>, #moe.append<rows, 2>]"),
            "#moe.append<rows, 2>: 'm' is [4, 6], expected [8, 3] for matrices of [4, 3]");
  EXPECT_EQ(message(R"(["s{e}", "m"])", "[#moe.stack<1>, #moe.append<columns, 3>]"),
            "#moe.append<columns, 3>: 'm' is [4, 6], expected [4, 9] for matrices of [4, 3]");
  EXPECT_EQ(message(R"(["s{e}", "v"])", "[#moe.stack<1>, #moe.append<rows, 1>]"),
            "#moe.append<rows, 1>: 'v' is [4], expected [4, 3] for matrices of [4, 3]");
  EXPECT_EQ(message(R"(["m"])", "[#moe.concat<[4, 3]>]"), "#moe.concat<[4, 3]> takes 2 tensors, but the recipe has 1");
  EXPECT_EQ(message(R"(["m"])", "[#moe.stack<2>]"), "#moe.stack<2> finds no source with '{e}' in its name");
  EXPECT_EQ(message(R"(["e{e}"])", "[#moe.stack<2>]"), "#moe.stack<2>: 'e{e}' is F32 [2, 3] for {e} = 1, "
                                                       "expected F32 [2, 2] as for {e} = 0");
  EXPECT_EQ(message(R"(["t{e}"])", "[#moe.stack<3>]"), "tensor 't2' is not in the checkpoint");
  EXPECT_EQ(message(R"(["t{e}"])", "[#moe.stack<[1, 7]>]"), "tensor 't7' is not in the checkpoint");
  EXPECT_EQ(message(R"(["t{e}"])", "[#moe.pack_panels<2>, #moe.stack<2>]"),
            "#moe.pack_panels<2>: 't{e}' is a family, expected "
            "it to be stacked first");
  EXPECT_EQ(message(R"(["m"])", "[#moe.dequant<fp8 2x2, f32>]"),
            "a weight takes 2 tensors of the checkpoint, but the recipe has 1");
  EXPECT_EQ(message(R"(["m", "n"])", "[#moe.dequant<fp8 2x2, f32>]"), "tensor 'm' is F32, expected F8_E4M3");
  EXPECT_EQ(message(R"(["q", "n"])", "[#moe.dequant<fp8 4x5, f32>]"), "tensor 'n' is [3, 6], expected [1, 2]");
  EXPECT_EQ(message(R"(["t{e}", "m"])", "[#moe.dequant<fp8 2x2, f32>, #moe.stack<2>]"),
            "'m' does not go with 't{e}': only one is a family");
  EXPECT_EQ(message(R"(["m"])", "[#moe.head_rows<3, 0, 1>]"), "#moe.head_rows<3, 0, 1>: 'm' is [4, 6], expected "
                                                              "[heads * rows, columns] with end <= rows");
  EXPECT_EQ(message(R"(["m"])", "[#moe.head_rows<2, 0, 3>]"), "#moe.head_rows<2, 0, 3>: 'm' is [4, 6], expected "
                                                              "[heads * rows, columns] with end <= rows");
  EXPECT_EQ(message(R"(["v"])", "[#moe.transpose]"), "#moe.transpose: 'v' is [4], expected at least 2 "
                                                     "dimensions");
  EXPECT_EQ(message(R"(["m"])", "[#moe.pad<5>]"), "#moe.pad<5>: 'm' is [4, 6], its last dimension "
                                                  "cannot be padded to this size");
  EXPECT_EQ(message(R"(["m"])", "[#moe.pad<1099511627776>]"), "#moe.pad<1099511627776>: 'm' would become [4, "
                                                              "1099511627776], more than 2^36 elements");
  EXPECT_EQ(message(R"(["v"])", "[#moe.pack_panels<2>]"), "#moe.pack_panels<2>: 'v' is [4], expected rank 2 or 3");
  EXPECT_EQ(message(R"(["m", "m"])", "[#moe.pack_panels<3>]"), "#moe.pack_panels<3> takes two tensors, but its "
                                                               "width is odd");
  EXPECT_EQ(message(R"(["m", "n"])", "[#moe.pack_panels<2>]"), "#moe.pack_panels<2>: 'n' is F32 [3, 6], expected "
                                                               "F32 [4, 6] as 'm'");
  EXPECT_EQ(message(R"(["m", "m", "m"])", "[#moe.pack_panels<2>]"),
            "#moe.pack_panels<2> takes one or two tensors, but the "
            "recipe has 3");
  EXPECT_EQ(message(R"(["m"])", "[#moe.pack_block_scales<32, 100, 128>]"),
            "#moe.pack_block_scales<32, 100, 128>: 'm' has 4 blocks "
            "of rows, expected one for every 128 of 100 rows");
}

/// The definition of `quantize<int4>` for one group, written another way: in long double, by trying every code.
void expectQuantized(const std::vector<float> &x, float scale, const float *values) {
  float inverse = std::isfinite(1 / scale) ? 1 / scale : 0;
  for (size_t i = 0; i < x.size(); ++i) {
    long double target = static_cast<long double>(x[i]) * inverse;
    int best = -8;
    for (int code = -8; code <= 7; ++code) {
      long double now = std::abs(target - code), before = std::abs(target - best);
      if (now < before || (now == before && code % 2 == 0))
        best = code;
    }
    EXPECT_EQ(values[i], best * scale) << "element " << i << " is " << x[i];
  }
}

TEST_F(MoeReferenceRecipe, QuantizeUsesAllSixteenCodes) {
  // The largest is 16, so the scale is -2 and the codes are x / -2.
  std::vector<float> x(32);
  for (int i = 0; i < 32; ++i)
    x[i] = i - 15.0f;
  source.add("w", Tensor<float>({1, 32}, x));
  auto result = evaluate(R"(["w"])", "[#moe.quantize<int4, group = 32, scale = f16>]");
  ASSERT_TRUE(result) << result.message();
  EXPECT_EQ(result->quantized->scales.data, std::vector<float>{-2});
  EXPECT_EQ(result->quantized->codes.data.back(), -8);
  EXPECT_EQ(result->quantized->codes.data.front(), 7); // 7.5 rounds to 8, which there is not
  EXPECT_EQ(result->quantized->codes.data[14], 0);     // 0.5 to even
  EXPECT_EQ(result->quantized->codes.data[12], 2);     // 1.5 to even
  expectQuantized(x, -2, result->values.data.data());
}

TEST_F(MoeReferenceRecipe, QuantizeTakesTheNegativeOfTwoExtremes) {
  std::vector<float> x(32, 0.0f);
  x[3] = 4;
  x[20] = -4;
  source.add("w", Tensor<float>({1, 32}, x));
  auto result = evaluate(R"(["w"])", "[#moe.quantize<int4, group = 32, scale = bf16>]");
  ASSERT_TRUE(result) << result.message();
  EXPECT_EQ(result->quantized->scales.data, std::vector<float>{0.5f});
  EXPECT_EQ(result->values.data[3], 3.5f);
  EXPECT_EQ(result->values.data[20], -4);
}

TEST_F(MoeReferenceRecipe, QuantizeOfRandomGroups) {
  Random random(7);
  for (std::string type : {"f16", "bf16"})
    for (int64_t group : {32, 64, 96, 128}) {
      Tensor<float> x({3, 2 * group});
      for (float &value : x.data)
        value = static_cast<float>(random.real());
      source.add("w", x);
      auto result =
          evaluate(R"(["w"])", "[#moe.quantize<int4, group = " + std::to_string(group) + ", scale = " + type + ">]");
      ASSERT_TRUE(result) << result.message();
      ASSERT_EQ(result->quantized->scales.shape, (std::vector<int64_t>{3, 2}));
      for (int g = 0; g < 6; ++g) {
        std::vector<float> part(&x.data[g * group], &x.data[g * group] + group);
        float most =
            *std::max_element(part.begin(), part.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
        float scale = result->quantized->scales.data[g];
        EXPECT_EQ(scale, type == "f16" ? moec::f16ToFloat(moec::floatToF16(most / -8))
                                       : moec::bf16ToFloat(moec::floatToBf16(most / -8)));
        expectQuantized(part, scale, &result->values.data[g * group]);
      }
    }
}

TEST_F(MoeReferenceRecipe, QuantizeOfZerosAndOfWhatIsTooSmallForItsScale) {
  std::vector<float> x(64, 0.0f);
  x[40] = 1e-9f; // 1e-9 / 8 is nothing in f16
  source.add("w", Tensor<float>({1, 64}, x));
  auto result = evaluate(R"(["w"])", "[#moe.quantize<int4, group = 32, scale = f16>]");
  ASSERT_TRUE(result) << result.message();
  EXPECT_EQ(result->values.data, std::vector<float>(64, 0.0f));
  EXPECT_FALSE(std::signbit(result->quantized->scales.data[0]));
}

TEST_F(MoeReferenceRecipe, QuantizeRefusesWhatHasNoScale) {
  std::vector<float> x(32, 1.0f);
  x[5] = 6e5f;
  source.add("w", Tensor<float>({1, 32}, x));
  EXPECT_THAT(message(R"(["w"])", "[#moe.quantize<int4, group = 32, scale = f16>]"),
              testing::HasSubstr("'w' holds 600000.000000, too large for scales in F16"));
  x[5] = NAN;
  source.add("w", Tensor<float>({1, 32}, x));
  EXPECT_THAT(message(R"(["w"])", "[#moe.quantize<int4, group = 32, scale = bf16>]"),
              testing::HasSubstr("'w' holds nan, expected numbers"));
  EXPECT_THAT(message(R"(["w"])", "[#moe.quantize<int4, group = 64, scale = bf16>]"),
              testing::HasSubstr("'w' has rows of 32, expected whole groups of 64"));
}

TEST_F(MoeReferenceRecipe, FormatsOfCodes) {
  // Each format on values whose codes can be told by hand.
  std::vector<float> x(32, 0.0f);
  auto quantized = [&](const std::string &format) {
    source.add("w", Tensor<float>({1, 32}, x));
    return evaluate(R"(["w"])", "[#moe.quantize<" + format + ">]");
  };
  x[0] = -3.0f, x[1] = 4.5f, x[2] = 0.6f;
  auto zero = quantized("int4_zero, group = 32, scale = f16");
  ASSERT_TRUE(zero.ok());
  EXPECT_EQ(zero->quantized->scales.data[0], 0.5f); // (4.5 + 3) / 15
  EXPECT_EQ(zero->quantized->zeros.data[0], 6);
  EXPECT_EQ(zero->quantized->codes.data[0], 0);
  EXPECT_EQ(zero->quantized->codes.data[1], 15);
  EXPECT_EQ(zero->quantized->codes.data[3], 6);
  EXPECT_EQ(zero->values.data[2], 0.5f);

  x[0] = -127.0f, x[1] = 63.5f, x[2] = 0.5f;
  auto bytes = quantized("int8, group = 32, scale = f32");
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(bytes->quantized->scales.data[0], 1);
  EXPECT_EQ(bytes->quantized->codes.data[0], -127);
  EXPECT_EQ(bytes->quantized->codes.data[1], 64); // to even
  EXPECT_EQ(bytes->quantized->codes.data[2], 0);  // to even

  x[0] = 900.0f, x[1] = -250.0f, x[2] = 0.001f;
  auto power = quantized("int4, group = 32, scale = f8E8M0FNU");
  ASSERT_TRUE(power.ok());
  EXPECT_EQ(power->quantized->scales.data[0], 128); // 900 / 7.5 = 120, rounded up
  EXPECT_EQ(power->values.data[0], 7 * 128);
  EXPECT_EQ(power->values.data[1], -2 * 128);

  x[0] = 5.9f, x[1] = -2.5f, x[2] = 5.0f;
  auto mxfp4 = quantized("f4e2m1, group = 32, scale = f8E8M0FNU");
  ASSERT_TRUE(mxfp4.ok());
  EXPECT_EQ(mxfp4->quantized->scales.data[0], 1); // 2^(2 - 2)
  EXPECT_EQ(mxfp4->values.data[0], 6);
  EXPECT_EQ(mxfp4->values.data[1], -2); // between 2 and 3, to the even code
  EXPECT_EQ(mxfp4->values.data[2], 4);  // between 4 and 6, to the even code

  x[0] = 6 * 448.0f, x[20] = 6 * 2.0f;
  auto nvfp4 = quantized("f4e2m1, group = 16, scale = f8E4M3FN");
  ASSERT_TRUE(nvfp4.ok());
  EXPECT_EQ(nvfp4->quantized->globals.data[0], 1);
  EXPECT_EQ(nvfp4->quantized->scales.data, (std::vector<float>{448, 2}));
  EXPECT_EQ(nvfp4->values.data[20], 12);
  EXPECT_EQ(nvfp4->values.data[1], 0);
}

TEST_F(MoeReferenceRecipe, ScalesOfBlocks) {
  // 3 rows in blocks of 2 x 32: the last block has one row.
  Tensor<float> x({3, 32});
  x.data[5] = 448, x.data[32 + 6] = 224, x.data[64 + 7] = 4.48f;
  source.add("w", x);
  auto result = evaluate(R"(["w"])", "[#moe.quantize<f8e4m3, group = 32, scale = f32 rows 2>]");
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->quantized->scales.data, (std::vector<float>{1, 1, 4.48f / 448}));
  EXPECT_EQ(result->values.data[32 + 6], 224);
}

TEST_F(MoeReferenceRecipe, PackGroupsPutsEachCodeInItsNibble) {
  // Row r, column c holds code (r + c) % 16 - 8 with scale 2^-r; column 0 of row 8 has the -8 that fixes the scale...
  // so every row gets one by hand.
  Tensor<float> x({9, 64});
  auto codeAt = [](int64_t row, int64_t column) { return column % 32 == 0 ? -8 : (row + column) % 16 - 8; };
  for (int64_t r = 0; r < 9; ++r)
    for (int64_t c = 0; c < 64; ++c)
      x.data[r * 64 + c] = std::ldexp(static_cast<float>(codeAt(r, c)), -static_cast<int>(r));
  source.add("w", x);
  auto packed = values(R"(["w"])", "[#moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<8>]");
  ASSERT_EQ(packed.shape, (std::vector<int64_t>{1, 2, 2 * (8 * 2 + 32 * 4)}));
  for (int64_t panel = 0; panel < 2; ++panel)
    for (int64_t g = 0; g < 2; ++g) {
      const float *bytes = packed.row(0) + (panel * 2 + g) * (16 + 128);
      for (int64_t lane = 0; lane < 8; ++lane) {
        int64_t row = panel * 8 + lane;
        auto scale = static_cast<uint16_t>(bytes[2 * lane] + 256 * bytes[2 * lane + 1]);
        EXPECT_EQ(moec::f16ToFloat(scale), row < 9 ? std::ldexp(1.0f, -static_cast<int>(row)) : 0.0f);
        for (int64_t c = 0; c < 32; ++c) {
          auto byte = static_cast<int>(bytes[16 + (c % 16 / 4 * 8 + lane) * 4 + c % 4]);
          EXPECT_EQ((c < 16 ? byte & 15 : byte >> 4) - 8, row < 9 ? codeAt(row, g * 32 + c) : 0)
              << "row " << row << ", column " << g * 32 + c;
        }
      }
    }
}

TEST_F(MoeReferenceRecipe, PackGroupsOfGateAndUpAndOfStackedExperts) {
  Random random(3);
  for (const char *name : {"0.g", "1.g", "0.u", "1.u"}) {
    Tensor<float> x({6, 32});
    for (float &value : x.data)
      value = static_cast<float>(random.real());
    source.add(name, x);
  }
  std::string quantize = "#moe.quantize<int4, group = 32, scale = bf16>";
  // Stacked before or after it was quantized: the same.
  auto both = values(R"(["{e}.g", "{e}.u"])", "[#moe.stack<2>, " + quantize + ", #moe.pack_groups<8>]");
  EXPECT_EQ(both, values(R"(["{e}.g", "{e}.u"])", "[" + quantize + ", #moe.stack<2>, #moe.pack_groups<8>]"));
  ASSERT_EQ(both.shape, (std::vector<int64_t>{2, 2, 8 * 2 + 32 * 4}));
  // The upper half of a panel's lanes is what `up` alone has in panels of half the width.
  auto up = values(R"(["1.u"])", "[" + quantize + ", #moe.pack_groups<4>]");
  for (int64_t lane = 0; lane < 4; ++lane)
    for (int64_t q = 0; q < 4; ++q)
      for (int64_t j = 0; j < 4; ++j)
        EXPECT_EQ(both.row(1)[16 + (q * 8 + 4 + lane) * 4 + j], up.row(0)[8 + (q * 4 + lane) * 4 + j]);
  EXPECT_THAT(message(R"(["0.g"])", "[#moe.pack_groups<8>]"), testing::HasSubstr("'0.g' is not quantized"));
}

} // namespace
