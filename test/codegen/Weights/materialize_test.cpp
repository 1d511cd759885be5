// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The streaming materializer against the reference interpreter's recipes: every
/// byte, whatever the shapes, threads and memory.

#include "codegen/Weights/Materialize.h"
#include "codegen/Weights/WeightFiles.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Reference/Recipe.h"

#include "mlir/AsmParser/AsmParser.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/MLIRContext.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>

using namespace moec;
using testing::HasSubstr;

namespace {

/// Tensors in memory, filled with random bits that are numbers.
class RandomSource final : public TensorSource {
public:
  void add(const std::string &name, DType dtype, std::vector<int64_t> shape) {
    Entry &entry = entries[name];
    int64_t count = 1;
    for (int64_t dim : shape)
      count *= dim;
    entry.bytes.resize(count * byteSize(dtype));
    for (int64_t i = 0; i < count; ++i) {
      float value = std::normal_distribution<float>(0, 1)(random);
      uint16_t half = dtype == DType::BF16 ? floatToBf16(value) : floatToF16(value);
      uint8_t byte = floatToF8e4m3(value);
      const void *from = dtype == DType::F32      ? static_cast<const void *>(&value)
                         : dtype == DType::F8E4M3 ? static_cast<const void *>(&byte)
                                                  : static_cast<const void *>(&half);
      std::memcpy(&entry.bytes[i * byteSize(dtype)], from, byteSize(dtype));
    }
    entry.view = {dtype, std::move(shape), entry.bytes.data()};
  }
  /// Positive numbers.
  void addScales(const std::string &name, std::vector<int64_t> shape, DType dtype = DType::F32) {
    add(name, dtype, std::move(shape));
    for (size_t i = byteSize(dtype) - 1; i < bytes(name).size(); i += byteSize(dtype))
      bytes(name)[i] &= std::byte(0x7F);
  }
  /// Integers: the given ones, or random bits.
  template <class Int = int32_t>
  void addWords(const std::string &name, DType dtype, std::vector<int64_t> shape, std::vector<Int> words = {}) {
    Entry &entry = entries[name];
    size_t count = 1;
    for (int64_t dim : shape)
      count *= dim;
    while (words.size() < count)
      words.push_back(static_cast<Int>(random()));
    entry.bytes.resize(count * sizeof(Int));
    std::memcpy(entry.bytes.data(), words.data(), entry.bytes.size());
    entry.view = {dtype, std::move(shape), entry.bytes.data()};
  }
  std::vector<std::byte> &bytes(const std::string &name) { return entries.at(name).bytes; }

  Result<TensorView> tensor(const std::string &name) const override {
    auto found = entries.find(name);
    if (found == entries.end())
      return Error{"tensor '" + name + "' is absent"};
    return found->second.view;
  }

private:
  struct Entry {
    std::vector<std::byte> bytes;
    TensorView view;
  };
  std::map<std::string, Entry> entries;
  std::mt19937 random{7};
};

class MaterializeTest : public testing::Test {
protected:
  MaterializeTest() {
    context.loadDialect<mlir::moe::MoeDialect, mlir::exec::ExecDialect>();
    directory = std::filesystem::temp_directory_path() / ("moec-weights-" + std::to_string(getpid()));
    std::filesystem::create_directories(directory);
  }
  ~MaterializeTest() override {
    std::filesystem::remove_all(directory);
    std::filesystem::remove(directory.string() + ".notes");
  }

  mlir::ArrayAttr recipe(const std::string &text) {
    return mlir::cast<mlir::ArrayAttr>(mlir::parseAttribute(text, &context));
  }

  WeightJob job(std::vector<std::string> sources, const std::string &steps, DType dtype, std::vector<int64_t> shape) {
    return {"w", std::move(sources), recipe(steps), dtype, std::move(shape)};
  }

  /// A journal of a fingerprint of its own, so that nothing there counts.
  Result<Journal> openJournal() {
    return Journal::open(directory.string() + ".notes", directory, std::to_string(++journals));
  }

  /// The bytes of the weight as the materializer writes them.
  Result<std::vector<std::byte>> make(const WeightJob &job, unsigned threads = 1, uint64_t memory = 1 << 30) {
    MOEC_TRY(Journal journal, openJournal());
    MOEC_TRY(auto files, WeightFiles::open(directory, {{job.name, job.dtype, job.shape}}, 1 << 30, journal));
    MaterializeOptions options;
    options.threads = threads;
    options.maxMemory = memory;
    options.moments = moments;
    MOEC_CHECK(materialize({job}, source, *files, options));
    MOEC_TRY(auto entries, files->finish());
    MOEC_TRY(auto file, SafetensorsFile::open(directory / entries.front().file));
    const TensorInfo &info = file.tensors().at(job.name);
    return std::vector<std::byte>(file.data(info), file.data(info) + info.bytes);
  }

  void expectSame(std::vector<std::string> sources, const std::string &steps) {
    std::vector<mlir::Attribute> names;
    for (const std::string &name : sources)
      names.push_back(mlir::StringAttr::get(&context, name));
    auto defined =
        mlir::moe::reference::evaluateRecipe(mlir::ArrayAttr::get(&context, names), recipe(steps), source, moments);
    ASSERT_TRUE(defined.ok()) << defined.message();
    WeightJob made = job(sources, steps, defined->dtype, defined->values.shape);
    for (unsigned threads : {1u, 3u}) {
      auto bytes = make(made, threads);
      ASSERT_TRUE(bytes.ok()) << bytes.message();
      EXPECT_EQ(*bytes, toBytes(*defined)) << steps << " on " << threads << " threads";
    }
  }

  const MomentSource *moments = nullptr;
  mlir::MLIRContext context;
  RandomSource source;
  std::filesystem::path directory;
  int journals = 0;
};

TEST_F(MaterializeTest, PlainTensorsOfEachType) {
  for (DType dtype : {DType::F32, DType::F16, DType::BF16, DType::F8E4M3}) {
    source.add("vector", dtype, {77});
    source.add("matrix", dtype, {101, 33});
    source.add("cube", dtype, {3, 37, 5});
    expectSame({"vector"}, "[]");
    expectSame({"matrix"}, "[]");
    expectSame({"cube"}, "[]");
  }
}

TEST_F(MaterializeTest, VectorsAreWidenedAndPadded) {
  source.add("norm", DType::BF16, {60});
  expectSame({"norm"}, "[#moe.cast<f32>, #moe.pad<64>]");
}

TEST_F(MaterializeTest, PanelsOfOneMatrix) {
  // Whole panels, ragged panels, fewer rows than a panel, more columns than a tile.
  for (auto shape : std::vector<std::vector<int64_t>>{{64, 40}, {70, 513}, {5, 1}, {33, 1030}}) {
    source.add("a", DType::BF16, shape);
    expectSame({"a"}, "[#moe.pack_panels<32>]");
    expectSame({"a"}, "[#moe.pack_panels<32, 2>]");
    expectSame({"a"}, "[#moe.pack_panels<16, 3>]");
  }
}

TEST_F(MaterializeTest, PanelsOfGateAndUp) {
  source.add("gate", DType::F32, {20, 60});
  source.add("up", DType::F32, {20, 60});
  expectSame({"gate", "up"}, "[#moe.pack_panels<32>]");
  expectSame({"gate", "up"}, "[#moe.pack_panels<32, 2>]");
}

TEST_F(MaterializeTest, PanelsOfExperts) {
  for (int e = 0; e < 3; ++e)
    for (const char *name : {"gate", "up"})
      source.add(name + std::to_string(e), DType::F8E4M3, {40, 24});
  expectSame({"gate{e}"}, "[#moe.stack<3>, #moe.pack_panels<32>]");
  expectSame({"gate{e}", "up{e}"}, "[#moe.stack<3>, #moe.pack_panels<32>]");
}

TEST_F(MaterializeTest, FamilyOfTwoDigits) {
  for (int e = 0; e < 12; ++e)
    source.add("x." + std::to_string(e) + ".w", DType::BF16, {2, 3});
  expectSame({"x.{e}.w"}, "[#moe.stack<12>]");
}

TEST_F(MaterializeTest, SomeMembersOfAFamily) {
  // The others need not exist, nor be alike.
  for (int e : {2, 7, 11})
    source.add("x." + std::to_string(e) + ".w", DType::BF16, {40, 24});
  source.add("x.3.w", DType::F32, {1, 1});
  expectSame({"x.{e}.w"}, "[#moe.stack<[2, 7, 11]>]");
  expectSame({"x.{e}.w"}, "[#moe.stack<[7]>, #moe.pack_panels<32>]");
}

TEST_F(MaterializeTest, ColumnsReshapesAndSums) {
  source.add("m", DType::F32, {70, 1200}); // more than one tile of columns
  source.add("n", DType::BF16, {70, 1200});
  for (const std::string last : {"", ", #moe.pack_panels<32>"}) {
    expectSame({"m"}, "[#moe.columns<3, 603>" + last + "]");
    expectSame({"m"}, "[#moe.reshape<[70, 1200], [70, 25, 48]>" + last + "]");
    // Rows that lie in several of the input's, and the way back to a matrix.
    expectSame({"m"}, "[#moe.reshape<[70, 1200], [70, 25, 48]>, #moe.reshape<[70, 25, 48], [70, 16, 75]>" + last + "]");
    expectSame({"n"}, "[#moe.reshape<[70, 1200], [70, 25, 48]>, #moe.columns<5, 25>, "
                      "#moe.reshape<[70, 25, 20], [70, 500]>" +
                          last + "]");
    expectSame({"m", "n"}, "[#moe.sum" + last + "]");
    expectSame({"m", "n", "n", "m"}, "[#moe.sum, #moe.sum" + last + "]");
    expectSame({"m", "n", "n", "n"}, "[#moe.sum, #moe.concat<[70, 70]>" + last + "]");
  }
  expectSame({"m"}, "[#moe.columns<16, 1040>, #moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>]");
  expectSame({"m", "n"}, "[#moe.sum, #moe.quantize<int8, group = 48, scale = f32>, #moe.pack_panels<32>]");
  source.add("k", DType::F32, {40, 1200});
  EXPECT_EQ(make(job({"m"}, "[#moe.columns<1000, 1201>]", DType::F32, {70, 201})).message(),
            "tensor 'm' is [70, 1200], which has no columns [1000, 1201)");
  EXPECT_EQ(make(job({"k"}, "[#moe.reshape<[70, 1200], [70, 25, 48]>]", DType::F32, {70, 25, 48})).message(),
            "tensor 'k' is [40, 1200], but should be reshaped as [70, 1200]");
  EXPECT_EQ(make(job({"m", "k"}, "[#moe.sum]", DType::F32, {70, 1200})).message(),
            "tensor 'k' is [40, 1200], but should be added to 'm', which is [70, 1200]");
}

TEST_F(MaterializeTest, ScaledColumns) {
  source.add("g", DType::BF16, {1100});
  source.add("short", DType::F32, {64});
  source.add("wide", DType::BF16, {70, 1100}); // more than one tile of columns
  expectSame({"wide"}, R"([#moe.scale_columns<"g">])");
  expectSame({"wide"}, R"([#moe.scale_columns<"g">, #moe.pack_panels<32>])");
  for (int e = 0; e < 3; ++e)
    for (const char *part : {".gate", ".up"})
      source.add("e." + std::to_string(e) + part, DType::BF16, {40, 64});
  source.add("s.gate", DType::BF16, {80, 64});
  source.add("s.up", DType::BF16, {80, 64});
  // Codes are of the products, of experts and of what is appended to them, as of matrices that are joined.
  auto tooFew = make(job({"wide"}, R"([#moe.scale_columns<"short">])", DType::F32, {70, 1100}));
  EXPECT_EQ(tooFew.message(), "tensor 'short' is [64], but scales the columns of 'wide', which is [70, 1100]");
  auto matrix = make(job({"s.up"}, R"([#moe.scale_columns<"s.gate">])", DType::F32, {80, 64}));
  EXPECT_EQ(matrix.message(), "tensor 's.gate' is [80, 64], but scales the columns of 's.up', which is [80, 64]");
  const std::string scaled = R"(#moe.scale_columns<"short">, )";
  for (std::string quantize :
       {"#moe.quantize<int4, group = 32, scale = f16>", "#moe.quantize<int8, group = 64, scale = f32>",
        "#moe.quantize<f4e2m1, group = 16, scale = f8E4M3FN>"}) {
    expectSame({"e.{e}.gate", "e.{e}.up"}, "[#moe.stack<3>, " + scaled + quantize + ", #moe.pack_groups<32>]");
    expectSame({"s.gate", "s.up"}, "[" + scaled + quantize + ", #moe.concat<[80, 80]>, #moe.pack_groups<32>]");
    expectSame({"s.gate"}, "[" + scaled + quantize + "]");
  }
  expectSame({"e.{e}.gate", "s.gate", "e.{e}.up", "s.up"},
             "[#moe.stack<3>, #moe.append<rows, 2>, " + scaled +
                 "#moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>]");
}

TEST_F(MaterializeTest, BlocksAreDequantised) {
  // 576 rows, as kv_a has them: the last block is partial both ways.
  source.add("q", DType::F8E4M3, {576, 200});
  source.addScales("s", {5, 2});
  expectSame({"q", "s"}, "[#moe.dequant<fp8 128x128, f32>]");
  expectSame({"q", "s"}, "[#moe.dequant<fp8 128x128, bf16>, #moe.pack_panels<32>]");
}

TEST_F(MaterializeTest, DequantisedProductsAreRoundedOnce) {
  // 9/8 * scale lies just above a tie of bf16, and f32 rounds it to that tie: rounding twice would go down.
  float scale = 0;
  for (int tie = 0; scale == 0; ++tie) {
    ASSERT_LT(tie, 128);
    double middle = 1 + (2 * tie + 1) / 256.0;
    auto candidate = static_cast<float>(middle / 1.125);
    if (1.125 * candidate > middle && static_cast<float>(1.125 * candidate) == middle && tie % 2 == 0)
      scale = candidate;
  }
  source.add("q", DType::F8E4M3, {1, 1});
  source.bytes("q")[0] = static_cast<std::byte>(floatToF8e4m3(1.125f));
  source.addScales("s", {1, 1});
  std::memcpy(source.bytes("s").data(), &scale, sizeof(float));
  expectSame({"q", "s"}, "[#moe.dequant<fp8 1x1, bf16>]");
}

TEST_F(MaterializeTest, BlocksOfGguf) {
  // Bytes at random, with the scales of blocks where infinities and NaN would be made finite.
  struct Case {
    const char *format;
    int64_t elements, bytes;
    std::vector<int64_t> scales; ///< the high bytes of a block's F16 numbers
  };
  const Case cases[] = {{"gguf_q8_0", 32, 34, {1}},
                        {"gguf_q4_0", 32, 18, {1}},
                        {"gguf_q4_k", 256, 144, {1, 3}},
                        {"gguf_q6_k", 256, 210, {209}}};
  for (const Case &each : cases) {
    for (const std::string name : {"b", "e0", "e1", "e2"}) {
      int64_t rows = 70, size = 2 * each.bytes;
      source.add(name, DType::U8, {rows, size});
      for (int64_t block = 0; block < 2 * rows; ++block)
        for (int64_t scale : each.scales)
          source.bytes(name)[block * each.bytes + scale] &= std::byte{0xBF};
    }
    std::string step = "#moe.dequant<" + std::string(each.format) + ", f32>";
    expectSame({"b"}, "[" + step + "]");
    expectSame({"e{e}"}, "[" + step + ", #moe.stack<3>, #moe.pack_panels<32>]");
    expectSame({"b"}, "[" + step + ", #moe.head_rows<7, 3, 9>, #moe.transpose, #moe.pack_panels<32>]");
    source.add("s", DType::U8, {1, each.bytes + 1});
    auto refused = make(job({"s"}, "[" + step + "]", DType::F32, {1, each.elements}));
    EXPECT_THAT(refused.message(),
                HasSubstr("tensor 's' is U8 [1, " + std::to_string(each.bytes + 1) + "], expected U8 and rows of "));
    source.add("s", DType::U8, {1, each.bytes});
    for (int64_t scale : each.scales)
      source.bytes("s")[scale] = std::byte{0x7E};
    refused = make(job({"s"}, "[" + step + "]", DType::F32, {1, each.elements}));
    EXPECT_THAT(refused.message(), HasSubstr("tensor 's' holds a value that is not finite at [0, "));
  }
}

TEST_F(MaterializeTest, GroupsOfCodes) {
  // Whole panels, ragged ones, fewer rows than are quantized at a time, more columns than a tile.
  for (auto shape : std::vector<std::vector<int64_t>>{{64, 64}, {70, 640}, {3, 128}, {33, 1152}})
    for (DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      source.add("a", dtype, shape);
      expectSame({"a"}, "[#moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>]");
      expectSame({"a"}, "[#moe.quantize<int4, group = 64, scale = bf16>, #moe.pack_groups<16>]");
      // The values alone, as a target without a kernel for the codes would take them.
      expectSame({"a"}, "[#moe.quantize<int4, group = 32, scale = f16>, #moe.cast<bf16>, #moe.pack_panels<32>]");
      expectSame({"a"}, "[#moe.quantize<int4, group = 64, scale = bf16>, #moe.transpose]");
    }
  source.add("heads", DType::BF16, {4 * 24, 128});
  expectSame({"heads"},
             "[#moe.quantize<int4, group = 128, scale = f16>, #moe.head_rows<4, 8, 24>, #moe.pack_groups<32>]");
}

TEST_F(MaterializeTest, EveryFormatOfCodes) {
  const char *formats[] = {"int4, group = 32, scale = f8E8M0FNU",      "int4_zero, group = 64, scale = f16",
                           "int4_zero, group = 32, scale = bf16",      "f4e2m1, group = 32, scale = f8E8M0FNU",
                           "f4e2m1, group = 16, scale = f8E4M3FN",     "int8, group = 192, scale = f32",
                           "f8e4m3, group = 128, scale = f32 rows 128"};
  for (auto shape : std::vector<std::vector<int64_t>>{{64, 192}, {150, 192}, {3, 64}})
    for (const char *format : formats) {
      source.add("a", DType::F32, shape);
      source.add("b", DType::BF16, shape);
      std::fill_n(source.bytes("a").begin(), 64 * 4, std::byte(0)); // whole groups of zeros
      std::string step = "#moe.quantize<" + std::string(format) + ">";
      expectSame({"a"}, "[" + step + ", #moe.pack_groups<32>]");
      expectSame({"a"}, "[" + step + ", #moe.transpose]");
      source.add("a", DType::BF16, shape);
      expectSame({"a", "b"}, "[" + step + ", #moe.pack_groups<32>]");
    }
  // Rows of bytes that end within a word and within a group.
  source.add("c", DType::F32, {40, 202});
  expectSame({"c"}, "[#moe.quantize<int8, group = 202, scale = f32>, #moe.pack_groups<32>]");
  expectSame({"c"}, "[#moe.quantize<f8e4m3, group = 128, scale = f32 rows 128>, #moe.pack_groups<32>]");
}

/// Inputs that differ from member to member.
class RandomMoments final : public MomentSource {
public:
  Status check(const std::string &, int64_t cols) const override {
    columns = cols;
    return success();
  }
  Result<SecondMoment> moment(const std::string &source, int64_t member) const override {
    std::mt19937 random(static_cast<unsigned>(std::hash<std::string>()(source) + member));
    SecondMoment moment(columns);
    std::vector<float> x(columns);
    for (int t = 0; t < 50; ++t) {
      for (float &value : x)
        value = std::normal_distribution<float>(0, 1)(random) + x[0] / 2;
      moment.add(x.data(), 0.5f);
    }
    return moment;
  }
  Result<std::vector<float>> importance(const std::string &source, int64_t member) const override {
    MOEC_TRY(SecondMoment all, moment(source, member));
    return all.diagonal();
  }

private:
  mutable int64_t columns = 0;
};

TEST_F(MaterializeTest, RoundedByACalibration) {
  static const RandomMoments inputs;
  moments = &inputs;
  for (int e = 0; e < 3; ++e)
    for (const char *name : {"gate", "up"})
      source.add(name + std::to_string(e), DType::BF16, {40, 96});
  for (const char *rounding : {"importance", "feedback"})
    for (const char *format : {"int4, group = 32, scale = f16", "int4_zero, group = 32, scale = bf16",
                               "int8, group = 96, scale = f32", "f4e2m1, group = 16, scale = f8E4M3FN"}) {
      std::string step = "#moe.quantize<" + std::string(format) + " rounding " + rounding + ">";
      expectSame({"gate{e}", "up{e}"}, "[#moe.stack<3>, " + step + ", #moe.pack_groups<32>]");
      expectSame({"gate{e}"}, "[#moe.stack<[0, 2]>, " + step + ", #moe.pack_groups<32>]");
      expectSame({"gate{e}"}, "[#moe.stack<[1]>, " + step + "]");
      expectSame({"gate{e}"}, "[" + step + ", #moe.stack<[1, 2]>]");
      expectSame({"gate1"}, "[" + step + ", #moe.pack_panels<32>]");
    }
  source.add("blocks", DType::BF16, {150, 192});
  expectSame({"blocks"},
             "[#moe.quantize<f8e4m3, group = 128, scale = f32 rows 128 rounding feedback>, #moe.pack_groups<32>]");
}

TEST_F(MaterializeTest, RoundedByNoCalibration) {
  source.add("a", DType::F32, {8, 64});
  EXPECT_THAT(make(job({"a"}, "[#moe.quantize<int4, group = 64, scale = f16 rounding feedback>, #moe.pack_groups<32>]",
                       DType::U8, {1, 1, 1088}))
                  .message(),
              HasSubstr("tensor 'a' is to be rounded by what a calibration found, but there is none"));
}

TEST_F(MaterializeTest, GroupsOfFp8Experts) {
  for (int e = 0; e < 3; ++e)
    for (const char *name : {"gate", "up"}) {
      source.add(name + std::to_string(e), DType::F8E4M3, {40, 192});
      source.addScales(name + std::to_string(e) + ".s", {3, 2});
    }
  std::string recipe = "[#moe.dequant<fp8 16x128, f32>, #moe.stack<3>, "
                       "#moe.quantize<int4, group = 64, scale = f16>, #moe.pack_groups<32>]";
  expectSame({"gate{e}", "gate{e}.s"}, recipe);
  expectSame({"gate{e}", "gate{e}.s", "up{e}", "up{e}.s"}, recipe);
}

TEST_F(MaterializeTest, CodesThatAreKept) {
  // 40 rows of 128: compressed-tensors and symmetric GPTQ, each as values and as the codes that they are.
  for (int e = 0; e < 3; ++e) {
    std::string name = "e" + std::to_string(e);
    source.addWords(name + ".c", DType::I32, {40, 128 / 8});
    source.addScales(name + ".s", {40, 4}, DType::BF16);
    source.addWords(name + ".h", DType::I64, {2}, std::vector<int64_t>{40, 128});
  }
  std::string packed = "#moe.dequant<packed 1x32 bits 4 scale bf16, f32>, #moe.stack<3>";
  expectSame({"e{e}.c", "e{e}.s", "e{e}.h"}, "[" + packed + ", #moe.pack_panels<32>]");
  expectSame({"e{e}.c", "e{e}.s", "e{e}.h"}, "[" + packed + ", #moe.pack_groups<32>]");
  expectSame({"e{e}.c", "e{e}.s", "e{e}.h", "e{e}.c", "e{e}.s", "e{e}.h"}, "[" + packed + ", #moe.pack_groups<32>]");
  source.addWords("g.c", DType::I32, {128 / 8, 40});
  source.addScales("g.s", {2, 40}, DType::F16);
  source.addWords("g.z", DType::I32, {2, 40 / 8}, std::vector<int32_t>(10, 0x77777777));
  for (const char *last : {"#moe.pack_panels<32>", "#moe.pack_groups<32>"})
    expectSame({"g.c", "g.s", "g.z"},
               "[#moe.dequant<gptq 1x64 bits 4 symmetric scale f16, f32>, " + std::string(last) + "]");
}

TEST_F(MaterializeTest, GroupsThatCannotBe) {
  source.add("a", DType::F32, {8, 96});
  std::string steps = "[#moe.quantize<int4, group = 64, scale = f16>, #moe.pack_groups<32>]";
  EXPECT_THAT(make(job({"a"}, steps, DType::U8, {1, 1, 1088})).message(),
              HasSubstr("tensor 'a' has rows of 96, which are no whole groups of 64"));
  source.add("b", DType::F32, {8, 64});
  float huge = 1e6f, nan = NAN;
  std::memcpy(&source.bytes("b")[4 * (5 * 64 + 3)], &huge, sizeof(float));
  EXPECT_THAT(make(job({"b"}, steps, DType::U8, {1, 1, 1088})).message(),
              HasSubstr("tensor 'b' holds 1e+06, which is too large for int4 codes with scales in F16"));
  std::memcpy(&source.bytes("b")[4 * (5 * 64 + 3)], &nan, sizeof(float));
  EXPECT_THAT(make(job({"b"}, steps, DType::U8, {1, 1, 1088})).message(),
              HasSubstr("tensor 'b' holds nan, but weights must be numbers"));
}

TEST_F(MaterializeTest, SlicesBehindExperts) {
  // Experts of 40 x 128 and 128 x 64, and a matrix of twice the rows or columns.
  for (int e = 0; e < 3; ++e) {
    source.add("g" + std::to_string(e), DType::BF16, {40, 128});
    source.add("d" + std::to_string(e), DType::BF16, {128, 64});
  }
  source.add("gs", DType::BF16, {80, 128});
  source.add("ds", DType::BF16, {128, 128});
  source.add("one", DType::BF16, {40, 128});
  std::string byRows = "#moe.stack<3>, #moe.append<rows, 2>", byColumns = "#moe.stack<3>, #moe.append<columns, 2>";
  expectSame({"g{e}", "gs"}, "[" + byRows + "]");
  expectSame({"d{e}", "ds"}, "[" + byColumns + "]");
  expectSame({"g{e}", "one"}, "[#moe.stack<[0, 2]>, #moe.append<rows, 1>, #moe.pack_panels<32>]");
  expectSame({"g{e}", "gs", "g{e}", "gs"}, "[" + byRows + ", #moe.pack_panels<32>]");
  expectSame({"d{e}", "ds"}, "[" + byColumns + ", #moe.cast<f32>, #moe.pack_panels<32>]");
  for (const char *format :
       {"int4, group = 32, scale = f16", "int4_zero, group = 64, scale = bf16", "int8, group = 64, scale = f32",
        "f4e2m1, group = 16, scale = f8E4M3FN", "f8e4m3, group = 64, scale = f32 rows 40"}) {
    std::string quantize = ", #moe.quantize<" + std::string(format) + ">";
    expectSame({"g{e}", "gs", "g{e}", "gs"}, "[" + byRows + quantize + ", #moe.pack_groups<32>]");
    expectSame({"d{e}", "ds"}, "[" + byColumns + quantize + ", #moe.pack_groups<32>]");
    expectSame({"d{e}", "ds"}, "[" + byColumns + quantize + "]");
  }
  source.add("long", DType::BF16, {81, 128});
  EXPECT_THAT(make(job({"g{e}", "long"}, "[" + byRows + "]", DType::BF16, {5, 40, 128})).message(),
              HasSubstr("tensor 'long' is [81, 128] BF16, but should be appended to 'g{e}' as [80, 128] BF16"));
  // Who holds what no weight may be, a slice or a member, is said.
  std::string int4 = ", #moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>]";
  std::fill_n(source.bytes("gs").begin() + 2 * 128 * 50, 2, std::byte(0xff));
  EXPECT_THAT(make(job({"g{e}", "gs"}, "[" + byRows + int4, DType::U8, {5, 2, 2304})).message(),
              HasSubstr("tensor 'gs' holds"));
}

TEST_F(MaterializeTest, StoredSlicesBehindExperts) {
  for (int e = 0; e < 2; ++e) {
    std::string name = "e" + std::to_string(e);
    source.add(name, DType::F8E4M3, {32, 64});
    source.addScales(name + ".s", {2, 2});
    source.addWords("p" + name, DType::I32, {40, 64 / 8});
    source.addScales("p" + name + ".s", {40, 2}, DType::BF16);
    source.addWords("p" + name + ".h", DType::I64, {2}, std::vector<int64_t>{40, 64});
  }
  source.add("s", DType::F8E4M3, {32, 128});
  source.addScales("s.s", {2, 4});
  std::string append = ", #moe.stack<2>, #moe.append<columns, 2>, ";
  expectSame({"e{e}", "e{e}.s", "s", "s.s"}, "[#moe.dequant<fp8 16x32, bf16>" + append + "#moe.pack_panels<32>]");
  expectSame({"e{e}", "s"}, "[#moe.stack<2>, #moe.append<columns, 2>, #moe.pack_panels<32>]");
  expectSame({"e{e}.s", "s.s"}, "[#moe.stack<2>, #moe.append<columns, 2>, #moe.pack_block_scales<32, 32, 16>]");
  source.addWords("ps", DType::I32, {40, 128 / 8});
  source.addScales("ps.s", {40, 4}, DType::BF16);
  source.addWords("ps.h", DType::I64, {2}, std::vector<int64_t>{40, 128});
  for (const char *last : {"#moe.pack_panels<32>]", "#moe.pack_groups<32>]"})
    expectSame({"pe{e}", "pe{e}.s", "pe{e}.h", "ps", "ps.s", "ps.h"},
               "[#moe.dequant<packed 1x32 bits 4 scale bf16, f32>" + append + last);
  // Half a group belongs to each slice.
  source.addWords("pt", DType::I32, {40, 64 / 8});
  source.addScales("pt.s", {40, 1}, DType::BF16);
  source.addWords("pt.h", DType::I64, {2}, std::vector<int64_t>{40, 64});
  for (int e = 0; e < 2; ++e) {
    std::string name = "h" + std::to_string(e);
    source.addWords(name, DType::I32, {40, 32 / 8});
    source.addScales(name + ".s", {40, 1}, DType::BF16);
    source.addWords(name + ".h", DType::I64, {2}, std::vector<int64_t>{40, 32});
  }
  EXPECT_THAT(make(job({"h{e}", "h{e}.s", "h{e}.h", "pt", "pt.s", "pt.h"},
                       "[#moe.dequant<packed 1x64 bits 4 scale bf16, f32>" + append + "#moe.pack_groups<32>]",
                       DType::U8, {4, 2, 576}))
                  .message(),
              HasSubstr("tensor 'pt' is cut after 32 columns, within a group of 64"));
}

TEST_F(MaterializeTest, HeadsCutAcrossBlocks) {
  // 3 heads of 12 + 10 rows: head boundaries fall inside the blocks of 16 rows.
  source.add("q", DType::F8E4M3, {66, 40});
  source.addScales("s", {5, 3});
  std::string dequant = "#moe.dequant<fp8 16x16, f32>";
  expectSame({"q", "s"}, "[" + dequant + ", #moe.head_rows<3, 0, 12>, #moe.transpose, #moe.pack_panels<32>]");
  expectSame({"q", "s"}, "[" + dequant + ", #moe.head_rows<3, 12, 22>, #moe.pack_panels<32>]");
}

TEST_F(MaterializeTest, RowsOfSeveralTensors) {
  // Parts begin within panels, groups of four rows and blocks.
  source.add("a", DType::BF16, {150, 192});
  source.add("b", DType::BF16, {7, 192});
  source.add("c", DType::BF16, {35, 192});
  std::string join = "#moe.concat<[150, 7, 35]>";
  expectSame({"a", "b", "c"}, "[" + join + "]");
  expectSame({"a", "b", "c"}, "[" + join + ", #moe.pack_panels<32>]");
  expectSame({"a", "b", "c"}, "[" + join + ", #moe.cast<f32>, #moe.transpose, #moe.pack_panels<32>]");
  expectSame({"a", "b", "c"}, "[" + join + ", #moe.head_rows<3, 40, 60>, #moe.pack_panels<32>]");
  static const RandomMoments inputs;
  moments = &inputs;
  for (const char *format :
       {"int4, group = 32, scale = f16", "int4, group = 64, scale = f8E8M0FNU", "int4_zero, group = 32, scale = bf16",
        "f4e2m1, group = 16, scale = f8E4M3FN", "int8, group = 192, scale = f32",
        "f8e4m3, group = 128, scale = f32 rows 128", "f8e4m3, group = 128, scale = f32 rows 128 rounding feedback",
        "int4, group = 32, scale = f16 rounding importance", "int4_zero, group = 64, scale = f16 rounding feedback"}) {
    std::string quantize = "#moe.quantize<" + std::string(format) + ">";
    expectSame({"a", "b", "c"}, "[" + quantize + ", " + join + "]");
    expectSame({"a", "b", "c"}, "[" + quantize + ", " + join + ", #moe.pack_groups<32>]");
    expectSame({"a", "b", "c"}, "[" + join + ", " + quantize + ", #moe.pack_groups<32>]");
  }
}

TEST_F(MaterializeTest, StoredRowsOfSeveralTensors) {
  source.add("q", DType::F8E4M3, {64, 64});
  source.addScales("q.s", {2, 2});
  source.add("k", DType::F8E4M3, {40, 64});
  source.addScales("k.s", {2, 2});
  expectSame({"q", "q.s", "k", "k.s"}, "[#moe.dequant<fp8 32x32, bf16>, #moe.concat<[64, 40]>, #moe.pack_panels<32>]");
  expectSame({"q", "k"}, "[#moe.concat<[64, 40]>, #moe.pack_panels<32>]");
  expectSame({"q.s", "k.s"}, "[#moe.concat<[2, 2]>, #moe.pack_block_scales<32, 104, 32>]");
  for (int64_t rows : {42, 11}) {
    std::string name = "c" + std::to_string(rows);
    source.addWords(name, DType::I32, {rows, 128 / 8});
    source.addScales(name + ".s", {rows, 4}, DType::BF16);
    source.addWords(name + ".h", DType::I64, {2}, std::vector<int64_t>{rows, 128});
  }
  for (const char *last : {"#moe.pack_panels<32>", "#moe.pack_groups<32>"})
    expectSame({"c42", "c42.s", "c42.h", "c11", "c11.s", "c11.h"},
               "[#moe.dequant<packed 1x32 bits 4 scale bf16, f32>, #moe.concat<[42, 11]>, " + std::string(last) + "]");
  source.addScales("bad", {2, 2});
  float infinity = std::numeric_limits<float>::infinity();
  std::memcpy(&source.bytes("bad")[3 * sizeof(float)], &infinity, sizeof(float));
  auto packed = make(
      job({"q.s", "bad"}, "[#moe.concat<[2, 2]>, #moe.pack_block_scales<32, 104, 32>]", DType::F32, {1, 4, 2, 32}));
  EXPECT_THAT(packed.message(), HasSubstr("tensor 'bad' holds the scale inf at [1, 1], expected a positive number"));
  auto shapes = make(job({"q", "k"}, "[#moe.concat<[64, 41]>]", DType::F8E4M3, {105, 64}));
  EXPECT_THAT(shapes.message(), HasSubstr("tensor 'k' is [40, 64] F8_E4M3, but should be joined as [41, 64] F8_E4M3"));
}

TEST_F(MaterializeTest, ScalesBesidePanels) {
  source.addScales("s", {2, 3}); // 200 rows in blocks of 128
  expectSame({"s"}, "[#moe.pack_block_scales<32, 200, 128>]");
  source.addScales("t", {7, 3}); // 200 rows in blocks of 32, gate and up
  source.addScales("u", {7, 3});
  expectSame({"t", "u"}, "[#moe.pack_block_scales<32, 200, 32>]");
  for (int e = 0; e < 2; ++e)
    source.addScales("v" + std::to_string(e), {7, 3});
  expectSame({"v{e}"}, "[#moe.stack<2>, #moe.pack_block_scales<32, 200, 32>]");
}

TEST_F(MaterializeTest, SaysWhatIsWrong) {
  source.add("q", DType::F8E4M3, {64, 64});
  source.addScales("s", {3, 1});
  auto shape = make(job({"q", "s"}, "[#moe.dequant<fp8 32x64, f32>]", DType::F32, {64, 64}));
  ASSERT_FALSE(shape.ok());
  EXPECT_THAT(shape.message(), HasSubstr("tensor 's' is [3, 1], expected [2, 1]"));

  auto expected = make(job({"q"}, "[]", DType::F8E4M3, {64, 65}));
  ASSERT_FALSE(expected.ok());
  EXPECT_THAT(expected.message(), HasSubstr("[64, 65]"));

  auto absent = make(job({"nowhere"}, "[]", DType::F32, {1}));
  ASSERT_FALSE(absent.ok());
  EXPECT_THAT(absent.message(), HasSubstr("nowhere"));

  source.bytes("q")[70] = std::byte(0xFF);
  auto nan = make(job({"q"}, "[]", DType::F8E4M3, {64, 64}));
  ASSERT_FALSE(nan.ok());
  EXPECT_THAT(nan.message(), testing::AllOf(HasSubstr("'q'"), HasSubstr("NaN"), HasSubstr("[1, 6]")));
}

TEST_F(MaterializeTest, ScaleMustBeFinite) {
  source.add("q", DType::F8E4M3, {8, 8});
  source.addScales("s", {1, 1});
  float infinity = std::numeric_limits<float>::infinity();
  std::memcpy(source.bytes("s").data(), &infinity, sizeof(float));
  auto result = make(job({"q", "s"}, "[#moe.dequant<fp8 8x8, f32>]", DType::F32, {8, 8}));
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.message(), HasSubstr("tensor 's' holds the scale inf at [0, 0]"));
  auto packed = make(job({"s"}, "[#moe.pack_block_scales<32, 8, 8>]", DType::F32, {1, 1, 1, 32}));
  ASSERT_FALSE(packed.ok());
  EXPECT_THAT(packed.message(), HasSubstr("tensor 's' holds the scale inf at [0, 0], expected a positive number"));
  // Blocks of one row are scales too.
  auto rows = make(job({"s"}, "[#moe.pack_block_scales<32, 1, 1>]", DType::F32, {1, 1, 1, 32}));
  ASSERT_FALSE(rows.ok());
  EXPECT_THAT(rows.message(), HasSubstr("tensor 's' holds the scale inf at [0, 0], expected a positive number"));
}

TEST_F(MaterializeTest, WeightsFillFilesInOrder) {
  std::vector<WeightJob> jobs;
  std::vector<TensorSpec> specs;
  // 100, 100 and 56 bytes fit a file of 256; 300 go alone, and the file after them has room for 256.
  for (int64_t rows : {100, 100, 56, 1, 300, 0, 256, 1}) {
    std::string name = "t" + std::to_string(jobs.size());
    source.add(name, DType::F8E4M3, {rows, 1});
    jobs.push_back({name, {name}, recipe("[]"), DType::F8E4M3, {rows, 1}});
    specs.push_back({name, DType::F8E4M3, {rows, 1}});
  }
  auto journal = openJournal();
  ASSERT_TRUE(journal.ok()) << journal.message();
  auto files = WeightFiles::open(directory, specs, 256, *journal);
  ASSERT_TRUE(files.ok()) << files.message();
  ASSERT_TRUE(materialize(jobs, source, **files, {}).ok());
  auto entries = (*files)->finish();
  ASSERT_TRUE(entries.ok()) << entries.message();
  std::vector<std::vector<std::string>> found;
  for (const WeightFileEntry &entry : *entries) {
    auto file = SafetensorsFile::open(directory / entry.file);
    ASSERT_TRUE(file.ok()) << file.message();
    EXPECT_EQ(entry.bytes, file->mapping().size());
    found.emplace_back();
    for (const auto &[name, info] : file->tensors()) {
      found.back().push_back(name);
      EXPECT_EQ(std::vector<std::byte>(file->data(info), file->data(info) + info.bytes), source.bytes(name));
    }
  }
  using Names = std::vector<std::string>;
  EXPECT_THAT(found,
              testing::ElementsAre(Names{"t0", "t1", "t2"}, Names{"t3"}, Names{"t4"}, Names{"t5", "t6"}, Names{"t7"}));
}

/// Knows which pieces of one weight have come.
class CountingSink final : public WeightSink {
public:
  explicit CountingSink(std::function<void(CountingSink &, uint64_t offset)> beforeWrite)
      : beforeWrite(std::move(beforeWrite)) {}
  uint64_t present(size_t) const override { return 0; }
  Status write(size_t, uint64_t offset, const void *, uint64_t size) override {
    beforeWrite(*this, offset);
    std::lock_guard lock(mutex);
    pieces[offset] = size;
    changed.notify_all();
    return success();
  }
  Status advance(size_t, uint64_t bytes) override {
    std::lock_guard lock(mutex);
    uint64_t end = 0;
    for (auto piece = pieces.find(0); piece != pieces.end(); piece = pieces.find(end))
      end += piece->second;
    EXPECT_LE(bytes, end) << "what was not written is noted";
    advanced.push_back(bytes);
    return success();
  }
  void waitFor(size_t count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return pieces.size() >= count; });
  }

  std::map<uint64_t, uint64_t> pieces; ///< sizes by offset
  std::vector<uint64_t> advanced;

private:
  std::function<void(CountingSink &, uint64_t offset)> beforeWrite;
  std::mutex mutex;
  std::condition_variable changed;
};

TEST_F(MaterializeTest, WhatIsNotedIsWrittenFromTheBeginning) {
  constexpr int64_t rows = 24 << 10, bytes = rows * 4096; // 96 MiB, in pieces of 128 KiB
  source.addWords("a", DType::F32, {rows, 1024}, std::vector<int32_t>(rows * 1024));
  // The first piece comes after two thirds of the others.
  CountingSink sink([](CountingSink &sink, uint64_t offset) {
    if (offset == 0)
      sink.waitFor(512);
  });
  MaterializeOptions options;
  options.threads = 2;
  ASSERT_TRUE(materialize({job({"a"}, "[]", DType::F32, {rows, 1024})}, source, sink, options).ok());
  ASSERT_GE(sink.advanced.size(), 2u);
  EXPECT_GE(sink.advanced.front(), uint64_t{64} << 20);
  EXPECT_TRUE(std::ranges::is_sorted(sink.advanced));
  EXPECT_EQ(sink.advanced.back(), static_cast<uint64_t>(bytes));
}

TEST_F(MaterializeTest, ProgressThatThrowsEndsAllThreads) {
  constexpr int64_t rows = 64 << 10;
  source.addWords("a", DType::F32, {rows, 8}, std::vector<int32_t>(rows * 8));
  CountingSink sink([](CountingSink &, uint64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
  MaterializeOptions options;
  options.threads = 3;
  options.progress = [](uint64_t, uint64_t, const std::string &) { throw std::runtime_error("enough"); };
  EXPECT_THROW((void)materialize({job({"a"}, "[]", DType::F32, {rows, 8})}, source, sink, options), std::runtime_error);
  EXPECT_LT(sink.pieces.size(), static_cast<size_t>(rows / 32));
}

TEST_F(MaterializeTest, MemoryIsBounded) {
  source.add("a", DType::F32, {64, 4096});
  auto result = make(job({"a"}, "[#moe.pack_panels<32>]", DType::F32, {1, 2, 4096, 32}), 4, 100000);
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.message(), HasSubstr("--max-memory"));
}

} // namespace
