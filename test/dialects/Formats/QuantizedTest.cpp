// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Quantized layers: files of the packages that define the formats, every code
/// against arithmetic written here, random rectangles, and what is refused.

#include "dialects/Formats/Detect.h"
#include "dialects/Formats/StoredMatrix.h"
#include "runtime/Support/Safetensors.h"
#include "test/dialects/Formats/MemoryTensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <random>

using namespace moec;
using namespace moec::test;
using formats::Naming;
using testing::AllOf;
using testing::HasSubstr;

namespace {

std::vector<float> readAll(const StoredMatrix &matrix) {
  std::vector<float> values(matrix.rows * matrix.cols);
  Status status = matrix.read(0, matrix.rows, 0, matrix.cols, values.data());
  EXPECT_TRUE(status) << status.message();
  return values;
}

/// The sentence with which opening or reading all of layer `m` ends, or "".
std::string problem(const Format &format, const TensorSource &from, int64_t out, int64_t in) {
  auto matrix = openQuantized(format, {"m"}, out, in, from);
  if (!matrix)
    return matrix.message();
  std::vector<float> values(out * in);
  Status status = (*matrix)->read(0, out, 0, in, values.data());
  return status ? "" : status.message();
}

std::unique_ptr<StoredMatrix> open(const Format &format, const TensorSource &from, int64_t out, int64_t in) {
  auto matrix = openQuantized(format, {"m"}, out, in, from);
  EXPECT_TRUE(matrix) << matrix.message();
  return std::move(*matrix);
}

//===----------------------------------------------------------------------===//
// Files of other tools
//===----------------------------------------------------------------------===//

struct Fixture {
  MemoryTensors tensors;
  Format format;
  std::vector<float> expected;
  int64_t out = 0, in = 0;
};

void load(const std::string &path, Fixture &fixture) {
  auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file) << file.message();
  for (const auto &[name, info] : file->tensors())
    fixture.tensors.tensors[name] = {
        info.dtype, info.shape, {reinterpret_cast<const char *>(file->data(info)), static_cast<size_t>(info.bytes)}};
  Stored expected = std::move(fixture.tensors.tensors.extract("m.expected").mapped());
  fixture.out = expected.shape[0];
  fixture.in = expected.shape[1];
  fixture.expected.resize(fixture.out * fixture.in);
  std::memcpy(fixture.expected.data(), expected.bytes.data(), expected.bytes.size());

  auto json = parseJson(file->metadata().at("quantization_config"), "config");
  ASSERT_TRUE(json) << json.message();
  auto object = JsonObject::from(*json, "config");
  ASSERT_TRUE(object) << object.message();
  auto format = detectFormat(*object);
  ASSERT_TRUE(format) << format.message();
  fixture.format = *format;
}

std::vector<std::string> fixturePaths() {
  std::vector<std::string> paths;
  for (const auto &entry : std::filesystem::directory_iterator(MOEC_TEST_DIR "/dialects/Formats/fixtures"))
    if (entry.path().extension() == ".safetensors")
      paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

class Fixtures : public testing::TestWithParam<std::string> {
protected:
  void SetUp() override { load(GetParam(), fixture); }
  Fixture fixture;
};

TEST_P(Fixtures, DecodeAsTheirPackageDoes) {
  auto matrix = open(fixture.format, fixture.tensors, fixture.out, fixture.in);
  std::vector<float> values = readAll(*matrix);
  // The packages round the scale of an NVFP4 group to F32 before the product; here the product alone is rounded.
  bool exact = fixture.format.globalScale.empty();
  for (size_t i = 0; i < values.size(); ++i)
    if (exact)
      ASSERT_EQ(values[i], fixture.expected[i]) << i;
    else
      ASSERT_NEAR(values[i], fixture.expected[i], std::abs(values[i]) * 0x1p-22) << i;
}

TEST_P(Fixtures, AnyRectangleIsThatPartOfTheWhole) {
  auto matrix = open(fixture.format, fixture.tensors, fixture.out, fixture.in);
  std::vector<float> whole = readAll(*matrix);
  std::mt19937 random(3);
  auto below = [&](int64_t limit) { return static_cast<int64_t>(random() % limit); };
  for (int round = 0; round < 200; ++round) {
    int64_t row = below(fixture.out), rows = below(fixture.out - row + 1);
    int64_t col = below(fixture.in), cols = below(fixture.in - col + 1);
    std::vector<float> part(rows * cols + 1, 12345.0f);
    ASSERT_TRUE(matrix->read(row, rows, col, cols, part.data()));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        ASSERT_EQ(part[r * cols + c], whole[(row + r) * fixture.in + col + c]);
    ASSERT_EQ(part.back(), 12345.0f) << "written beyond the end";
  }
}

TEST_P(Fixtures, EachTensorIsNeededInItsTypeAndShape) {
  for (const RequiredTensor &tensor : requiredTensors(fixture.format, fixture.out, fixture.in)) {
    std::string name = "m." + tensor.suffix;
    auto found = fixture.tensors.tensors.find(name);
    if (found == fixture.tensors.tensors.end()) {
      EXPECT_TRUE(tensor.optional) << name;
      continue;
    }
    Stored kept = found->second;
    found->second.dtype = DType::F64;
    EXPECT_THAT(problem(fixture.format, fixture.tensors, fixture.out, fixture.in),
                HasSubstr("tensor '" + name + "' is F64, expected "));
    found->second = kept;
    found->second.shape = {1, 2, 3};
    EXPECT_THAT(problem(fixture.format, fixture.tensors, fixture.out, fixture.in),
                HasSubstr("tensor '" + name + "' is [1, 2, 3], expected ["));
    fixture.tensors.tensors.erase(name);
    if (!tensor.optional) {
      EXPECT_THAT(problem(fixture.format, fixture.tensors, fixture.out, fixture.in),
                  AllOf(HasSubstr("layer 'm' is "), HasSubstr("and needs '" + name + "', but there is no tensor")));
    }
    fixture.tensors.tensors[name] = kept;
  }
  EXPECT_EQ(problem(fixture.format, fixture.tensors, fixture.out, fixture.in), "");
  // Another shape of the layer than the stored one never passes.
  EXPECT_NE(problem(fixture.format, fixture.tensors, fixture.out + 8, fixture.in), "");
  EXPECT_NE(problem(fixture.format, fixture.tensors, fixture.out, fixture.in + 8), "");
}

TEST_P(Fixtures, ReleasedRowsCoverTheCodesOnce) {
  auto matrix = open(fixture.format, fixture.tensors, fixture.out, fixture.in);
  for (int64_t row = 0; row < fixture.out; row += 3) {
    matrix->release(row, std::min<int64_t>(3, fixture.out - row));
    // Rows that share pages with others go with the last one.
    EXPECT_EQ(fixture.tensors.released.empty(), fixture.format.packing.inMajor && row + 3 < fixture.out);
  }
  int64_t at = 0;
  for (auto [offset, bytes] : fixture.tensors.released) {
    EXPECT_EQ(offset, at);
    at += bytes;
  }
  EXPECT_EQ(at, static_cast<int64_t>(fixture.tensors.tensors.at("m." + fixture.format.codes).bytes.size()));
}

INSTANTIATE_TEST_SUITE_P(Formats, Fixtures, testing::ValuesIn(fixturePaths()), [](const auto &info) {
  std::string name = std::filesystem::path(info.param).stem();
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(FixtureFiles, AreThere) { EXPECT_EQ(fixturePaths().size(), 22u); }

//===----------------------------------------------------------------------===//
// Every code
//===----------------------------------------------------------------------===//

/// OFP8 E4M3 by its definition; not for the NaN codes.
double e4m3(int code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  double magnitude = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return code & 128 ? -magnitude : magnitude;
}

double e2m1(int code) {
  int exponent = code >> 1 & 3, mantissa = code & 1;
  double magnitude = exponent ? std::ldexp(2 + mantissa, exponent - 2) : 0.5 * mantissa;
  return code & 8 ? -magnitude : magnitude;
}

TEST(Codes, Fp8TimesEveryExponent) {
  // Row = scale, column = code; 448 * 2^(247 - 127) is beyond f32.
  MemoryTensors tensors;
  std::vector<int> codes;
  for (int code = 0; code < 256; ++code)
    if ((code & 127) != 127)
      codes.push_back(code);
  Stored weight{DType::F8E4M3, {247, 254}, ""}, scale{DType::F8E8M0, {247, 1}, ""};
  for (int row = 0; row < 247; ++row) {
    scale.bytes += static_cast<char>(row);
    for (int code : codes)
      weight.bytes += static_cast<char>(code);
  }
  tensors.tensors = {{"m.weight", weight}, {"m.weight_scale", scale}};
  Format format = formats::fp8(1, 0, Naming::WeightScale, /*e8m0=*/true);
  std::vector<float> values = readAll(*open(format, tensors, 247, 254));
  for (int row = 0; row < 247; ++row)
    for (int i = 0; i < 254; ++i)
      ASSERT_EQ(values[row * 254 + i], static_cast<float>(std::ldexp(e4m3(codes[i]), row - 127))) << row << " " << i;

  Stored &exponents = tensors.tensors["m.weight_scale"];
  exponents.bytes[5] = static_cast<char>(247);
  EXPECT_THAT(problem(format, tensors, 247, 254), HasSubstr("the weight of 'm' at [5, 120] is too large for F32"));
  exponents.bytes[5] = static_cast<char>(255);
  EXPECT_THAT(problem(format, tensors, 247, 254), HasSubstr("'m.weight_scale' holds the scale nan at [5, 0]"));
  exponents.bytes[5] = 127;
  for (int code : {0x7f, 0xff}) {
    tensors.tensors["m.weight"].bytes[7 * 254 + 30] = static_cast<char>(code);
    EXPECT_THAT(problem(format, tensors, 247, 254), HasSubstr("'m.weight' holds a NaN at [7, 30]"));
  }
}

TEST(Codes, Fp8BlocksOfAnySize) {
  // Ragged last blocks as in a 576-row kv_a, and blocks larger than the matrix.
  std::mt19937 random(5);
  for (auto [out, in, rows, cols] : std::vector<std::array<int64_t, 4>>{
           {576, 300, 128, 128}, {70, 33, 32, 32}, {5, 7, 1, 3}, {3, 1000, 128, 512}, {9, 9, 0, 0}, {1, 1, 128, 128}}) {
    for (auto type : {DType::F32, DType::F16, DType::BF16}) {
      int64_t gridRows = rows ? (out + rows - 1) / rows : 1, gridCols = cols ? (in + cols - 1) / cols : 1;
      Stored weight{DType::F8E4M3, {out, in}, ""}, scale{type, {gridRows, gridCols}, ""};
      std::vector<double> scales;
      for (int64_t i = 0; i < out * in; ++i)
        weight.bytes += static_cast<char>(random() % 127 | (random() % 2) << 7);
      for (int64_t i = 0; i < gridRows * gridCols; ++i) {
        auto value = std::uniform_real_distribution<float>(0.001f, 2.0f)(random);
        std::vector<uint16_t> half = {type == DType::F16 ? floatToF16(value) : floatToBf16(value)};
        if (type == DType::F16)
          value = f16ToFloat(half[0]);
        if (type == DType::BF16)
          value = bf16ToFloat(half[0]);
        scale.bytes += type == DType::F32 ? bytesOf<float>({value}) : bytesOf(half);
        scales.push_back(value);
      }
      MemoryTensors tensors;
      tensors.tensors = {{"m.weight", weight}, {"m.weight_scale_inv", scale}};
      Format format = formats::fp8(rows, cols, Naming::ScaleInv, /*e8m0=*/false);
      std::vector<float> values = readAll(*open(format, tensors, out, in));
      for (int64_t i = 0; i < out; ++i)
        for (int64_t j = 0; j < in; ++j) {
          double by = scales[(rows ? i / rows : 0) * gridCols + (cols ? j / cols : 0)];
          ASSERT_EQ(values[i * in + j],
                    static_cast<float>(e4m3(static_cast<unsigned char>(weight.bytes[i * in + j])) * by));
        }
    }
  }
}

TEST(Codes, Fp4TimesEveryExponent) {
  for (Naming naming : {Naming::Scale, Naming::WeightScale}) {
    // Row = scale; the 32 columns hold every code once in a low and once in a high nibble.
    Stored weight{naming == Naming::Scale ? DType::I8 : DType::U8, {253, 16}, std::string(253 * 16, '\0')};
    Stored scale{DType::U8, {253, 1}, ""};
    for (int row = 0; row < 253; ++row) {
      scale.bytes += static_cast<char>(row);
      for (int col = 0; col < 32; ++col)
        putBits(weight.bytes, (row * 32 + col) * 4, 4, col * 5 / 2);
    }
    std::string codes = naming == Naming::Scale ? "m.weight" : "m.weight_packed";
    std::string scales = naming == Naming::Scale ? "m.scale" : "m.weight_scale";
    MemoryTensors tensors;
    tensors.tensors = {{codes, weight}, {scales, scale}};
    std::vector<float> values = readAll(*open(formats::mxfp4(naming), tensors, 253, 32));
    for (int row = 0; row < 253; ++row)
      for (int col = 0; col < 32; ++col)
        ASSERT_EQ(values[row * 32 + col], static_cast<float>(std::ldexp(e2m1(col * 5 / 2 & 15), row - 127)));
    tensors.tensors[scales].bytes[9] = static_cast<char>(255);
    EXPECT_THAT(problem(formats::mxfp4(naming), tensors, 253, 32), HasSubstr("holds the scale nan at [9, 0]"));
  }
}

TEST(Codes, Nvfp4TimesEveryScale) {
  // Row = local scale 1 .. 126, 16 columns = every code.
  for (bool modelOpt : {false, true})
    for (float global : {1.0f, 3.0f, 0.7f, 2688.0f, 1e-4f}) {
      Stored weight{DType::U8, {126, 8}, std::string(126 * 8, '\0')}, scale{DType::F8E4M3, {126, 1}, ""};
      for (int row = 0; row < 126; ++row) {
        scale.bytes += static_cast<char>(row + 1);
        for (int col = 0; col < 16; ++col)
          putBits(weight.bytes, (row * 16 + col) * 4, 4, col);
      }
      MemoryTensors tensors;
      tensors.tensors = {
          {modelOpt ? "m.weight" : "m.weight_packed", weight},
          {"m.weight_scale", scale},
          {modelOpt ? "m.weight_scale_2" : "m.weight_global_scale", {DType::F32, {1}, bytesOf<float>({global})}}};
      std::vector<float> values = readAll(*open(formats::nvfp4(modelOpt), tensors, 126, 16));
      for (int row = 0; row < 126; ++row)
        for (int col = 0; col < 16; ++col) {
          long double exact = e2m1(col) * e4m3(row + 1);
          exact = modelOpt ? exact * global : exact / global;
          ASSERT_EQ(values[row * 16 + col], static_cast<float>(exact)) << row << " " << col << " " << global;
        }
    }
}

/// The nibble of each of eight columns in an AWQ word.
const int nibble[] = {0, 4, 1, 5, 2, 6, 3, 7};

/// How an integer format lays out its codes and zero points, as plain formulas.
struct IntegerCase {
  const char *name;
  Format format;
  int bits;
  /// Bit of code [row, col] of a matrix [out, in].
  std::function<int64_t(int64_t row, int64_t col, int64_t out, int64_t in)> codeBit;
  /// Bit of the zero point of row `row`; there is one group.
  std::function<int64_t(int64_t row)> zeroBit;
  int storedLess = 0; ///< a zero point is stored less this
  const char *codes, *zeros, *scales;
  bool inMajor;
};

TEST(Codes, EveryIntegerWithEveryZeroPoint) {
  auto gptqCode = [](int bits) {
    return [bits](int64_t row, int64_t col, int64_t out, int64_t) {
      int64_t perWord = 32 / bits;
      return (col / perWord * out + row) * 32 + col % perWord * bits;
    };
  };
  auto inOrder = [](int bits) { return [bits](int64_t row) { return row * bits; }; };
  auto packedCode = [](int bits) {
    return [bits](int64_t row, int64_t col, int64_t, int64_t in) { return row * in * bits + col * bits; };
  };
  std::vector<IntegerCase> cases = {
      {"gptq v1", formats::gptq(4, 0, false, 1, false), 4, gptqCode(4), inOrder(4), 1, "qweight", "qzeros", "scales",
       true},
      {"gptq v2", formats::gptq(4, 0, false, 2, false), 4, gptqCode(4), inOrder(4), 0, "qweight", "qzeros", "scales",
       true},
      {"gptq int8 v1", formats::gptq(8, 0, false, 1, false), 8, gptqCode(8), inOrder(8), 1, "qweight", "qzeros",
       "scales", true},
      {"awq", formats::awq(0), 4,
       [](int64_t row, int64_t col, int64_t out, int64_t) {
         return (col * out / 8 + row / 8) * 32 + nibble[row % 8] * 4;
       },
       [](int64_t row) { return row / 8 * 32 + nibble[row % 8] * 4; }, 0, "qweight", "qzeros", "scales", true},
      {"pack-quantized int4", formats::packQuantized(4, 0, false, false), 4, packedCode(4), inOrder(4), 0,
       "weight_packed", "weight_zero_point", "weight_scale", false},
      {"pack-quantized int8", formats::packQuantized(8, 0, false, false), 8, packedCode(8), inOrder(8), 0,
       "weight_packed", "weight_zero_point", "weight_scale", false},
  };
  for (const IntegerCase &c : cases) {
    SCOPED_TRACE(c.name);
    int64_t n = 1 << c.bits; // rows are zero points, columns are codes
    std::vector<int64_t> codeShape = c.format.packing.shape(n, n);
    Stored codes{DType::I32, codeShape, std::string(n * n * c.bits / 8, '\0')};
    Stored zeros{DType::I32,
                 c.inMajor ? std::vector<int64_t>{1, n * c.bits / 32} : std::vector<int64_t>{n * c.bits / 32, 1},
                 std::string(n * c.bits / 8, '\0')};
    Stored scales{DType::F16, c.inMajor ? std::vector<int64_t>{1, n} : std::vector<int64_t>{n, 1}, ""};
    std::vector<uint16_t> halves;
    for (int64_t row = 0; row < n; ++row) {
      halves.push_back(floatToF16(0.01f * static_cast<float>(row + 1)));
      putBits(zeros.bytes, c.zeroBit(row), c.bits, static_cast<unsigned>(row - c.storedLess));
      for (int64_t col = 0; col < n; ++col)
        putBits(codes.bytes, c.codeBit(row, col, n, n), c.bits, static_cast<unsigned>(col));
    }
    scales.bytes = bytesOf(halves);
    MemoryTensors tensors;
    tensors.tensors = {{std::string("m.") + c.codes, codes},
                       {std::string("m.") + c.zeros, zeros},
                       {std::string("m.") + c.scales, scales},
                       {"m.weight_shape", {DType::I64, {2}, bytesOf<int64_t>({n, n})}}};
    std::vector<float> values = readAll(*open(c.format, tensors, n, n));
    for (int64_t row = 0; row < n; ++row)
      for (int64_t col = 0; col < n; ++col)
        ASSERT_EQ(values[row * n + col], static_cast<float>(col - row) * f16ToFloat(halves[row])) << row << " " << col;
  }
}

TEST(Codes, EverySymmetricInteger) {
  for (int bits : {4, 8}) {
    int64_t n = 1 << bits;
    Stored packed{DType::I32, {1, n * bits / 32}, std::string(n * bits / 8, '\0')};
    for (int64_t col = 0; col < n; ++col)
      putBits(packed.bytes, col * bits, bits, static_cast<unsigned>(col));
    MemoryTensors tensors;
    tensors.tensors = {{"m.weight_packed", packed},
                       {"m.weight_scale", {DType::BF16, {1, 1}, bytesOf<uint16_t>({floatToBf16(0.75f)})}},
                       {"m.weight_shape", {DType::I32, {2}, bytesOf<int32_t>({1, static_cast<int32_t>(n)})}}};
    std::vector<float> values = readAll(*open(formats::packQuantized(bits, 0, true, false), tensors, 1, n));
    for (int64_t col = 0; col < n; ++col)
      ASSERT_EQ(values[col], 0.75f * static_cast<float>(col - n / 2));
  }
  Stored weight{DType::I8, {1, 256}, ""};
  for (int code = 0; code < 256; ++code)
    weight.bytes += static_cast<char>(code);
  MemoryTensors tensors;
  tensors.tensors = {{"m.weight", weight}, {"m.weight_scale", {DType::F32, {1}, bytesOf<float>({0.5f})}}};
  std::vector<float> values = readAll(*open(formats::intQuantized(1, 0), tensors, 1, 256));
  for (int code = 0; code < 256; ++code)
    ASSERT_EQ(values[code], 0.5f * static_cast<float>(code < 128 ? code : code - 256));
}

TEST(Codes, RowsLongerThanAStripe) {
  // Side by side, rows are read in stripes of columns.
  int64_t out = 16, in = 1000, group = 24;
  int64_t groups = (in + group - 1) / group;
  for (bool isAwq : {false, true}) {
    std::vector<int64_t> shape = isAwq ? std::vector<int64_t>{in, out / 8} : std::vector<int64_t>{in / 8, out};
    Stored codes{DType::I32, shape, std::string(out * in / 2, '\0')};
    Stored zeros{DType::I32, {groups, out / 8}, std::string(groups * out / 2, '\0')};
    std::vector<float> scales, expected(out * in);
    for (int64_t i = 0; i < groups * out; ++i)
      scales.push_back(0.5f * static_cast<float>(1 + i % 7));
    for (int64_t row = 0; row < out; ++row)
      for (int64_t col = 0; col < in; ++col) {
        int64_t code = (row * 5 + col * 3 + col / 16) % 16;
        int64_t bit = isAwq ? (col * 2 + row / 8) * 32 + nibble[row % 8] * 4 : (col / 8 * out + row) * 32 + col % 8 * 4;
        putBits(codes.bytes, bit, 4, static_cast<unsigned>(code));
        expected[row * in + col] = static_cast<float>(code) * scales[col / group * out + row];
      }
    MemoryTensors tensors;
    tensors.tensors = {
        {"m.qweight", codes}, {"m.qzeros", zeros}, {"m.scales", {DType::F32, {groups, out}, bytesOf(scales)}}};
    Format format = isAwq ? formats::awq(group) : formats::gptq(4, group, false, 2, false);
    auto matrix = open(format, tensors, out, in);
    EXPECT_EQ(readAll(*matrix), expected);
    std::vector<float> part(7 * 700);
    ASSERT_TRUE(matrix->read(3, 7, 250, 700, part.data()));
    for (int64_t r = 0; r < 7; ++r)
      for (int64_t c = 0; c < 700; ++c)
        ASSERT_EQ(part[r * 700 + c], expected[(r + 3) * in + c + 250]);
  }
}

TEST(Codes, GroupIndexOfCompressedTensors) {
  MemoryTensors tensors;
  tensors.tensors = {{"m.weight_packed", {DType::I32, {1, 1}, bytesOf<uint32_t>({0x99999999})}},
                     {"m.weight_scale", {DType::F32, {1, 2}, bytesOf<float>({1.0f, 10.0f})}},
                     {"m.weight_g_idx", {DType::I32, {8}, bytesOf<int32_t>({0, 1, 1, 0, 1, 0, 0, 1})}},
                     {"m.weight_shape", {DType::I64, {2}, bytesOf<int64_t>({1, 8})}}};
  Format format = formats::packQuantized(4, 4, true, /*actOrder=*/true);
  EXPECT_THAT(readAll(*open(format, tensors, 1, 8)), testing::ElementsAre(1, 10, 10, 1, 10, 1, 1, 10));
  for (int32_t group : {-1, 2, 1 << 30}) {
    std::memcpy(tensors.tensors["m.weight_g_idx"].bytes.data() + 12, &group, 4);
    EXPECT_EQ(problem(format, tensors, 1, 8),
              "tensor 'm.weight_g_idx' holds the group " + std::to_string(group) + " at [3], but there are 2 groups");
  }
}

//===----------------------------------------------------------------------===//
// What is refused
//===----------------------------------------------------------------------===//

TEST(Refused, ScalesThatAreNone) {
  const float infinity = std::numeric_limits<float>::infinity();
  MemoryTensors tensors;
  tensors.tensors = {{"m.weight", {DType::F8E4M3, {2, 2}, std::string("\x38\x00\x00\xb8", 4)}},
                     {"m.weight_scale", {DType::F32, {2, 1}, bytesOf<float>({1, 2})}}};
  Format format = formats::fp8(1, 0, Naming::WeightScale, false);
  EXPECT_THAT(readAll(*open(format, tensors, 2, 2)), testing::ElementsAre(1, 0, 0, -2));
  auto with = [&](float scale) {
    tensors.tensors["m.weight_scale"].bytes = bytesOf<float>({1, scale});
    return problem(format, tensors, 2, 2);
  };
  EXPECT_EQ(with(-0.5f), "tensor 'm.weight_scale' holds the scale -0.5 at [1, 0], expected a positive number");
  EXPECT_THAT(with(infinity), HasSubstr("holds the scale inf at [1, 0]"));
  EXPECT_THAT(with(std::numeric_limits<float>::quiet_NaN()), HasSubstr("nan at [1, 0]"));
  EXPECT_EQ(with(0), "tensor 'm.weight_scale' holds the scale 0 for the weight at [1, 1] (group 0 of its row), whose "
                     "code is not zero");
  // A group of nothing but zeros may have any scale, 0 too; either sign of zero.
  tensors.tensors["m.weight"].bytes[3] = static_cast<char>(0x80);
  EXPECT_EQ(with(0), "");
}

TEST(Refused, GlobalScalesThatAreNone) {
  for (bool modelOpt : {false, true})
    for (float global : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
      std::string name = modelOpt ? "m.weight_scale_2" : "m.weight_global_scale";
      MemoryTensors tensors;
      tensors.tensors = {{modelOpt ? "m.weight" : "m.weight_packed", {DType::U8, {1, 8}, std::string(8, '\x11')}},
                         {"m.weight_scale", {DType::F8E4M3, {1, 1}, "\x38"}},
                         {name, {DType::F32, {}, bytesOf<float>({global})}}};
      EXPECT_THAT(problem(formats::nvfp4(modelOpt), tensors, 1, 16),
                  AllOf(HasSubstr("tensor '" + name + "' holds "), HasSubstr(", expected a positive number")));
    }
}

TEST(Refused, ZeroPointsThatAreNotSymmetric) {
  MemoryTensors tensors;
  tensors.tensors = {{"m.qweight", {DType::I32, {1, 8}, std::string(32, '\0')}},
                     {"m.qzeros", {DType::I32, {1, 1}, bytesOf<uint32_t>({0x77777777})}},
                     {"m.scales", {DType::F16, {1, 8}, bytesOf(std::vector<uint16_t>(8, floatToF16(1)))}}};
  for (int version : {1, 2}) { // whatever is declared
    Format format = formats::gptq(4, 0, /*symmetric=*/true, version, false);
    for (uint32_t zeros : {0x77777777u, 0x88888888u}) {
      tensors.tensors["m.qzeros"].bytes = bytesOf<uint32_t>({zeros});
      EXPECT_THAT(readAll(*open(format, tensors, 8, 8)), testing::Each(-8.0f));
    }
    tensors.tensors["m.qzeros"].bytes = bytesOf<uint32_t>({0x77778777});
    EXPECT_THAT(problem(format, tensors, 8, 8), HasSubstr("'m.qzeros' holds differing zero points, but the layer is "
                                                          "declared symmetric"));
    tensors.tensors["m.qzeros"].bytes = bytesOf<uint32_t>({0});
    EXPECT_EQ(problem(format, tensors, 8, 8),
              "tensor 'm.qzeros' begins with the zero point 0, but the zero points of a symmetric layer are stored as "
              "7 or 8");
  }
}

TEST(Refused, ShapesThatDiffer) {
  MemoryTensors tensors;
  tensors.tensors = {{"m.weight_packed", {DType::I32, {1, 1}, bytesOf<uint32_t>({0})}},
                     {"m.weight_scale", {DType::F32, {1, 1}, bytesOf<float>({1})}},
                     {"m.weight_shape", {DType::I64, {2}, bytesOf<int64_t>({1, 7})}}};
  Format format = formats::packQuantized(4, 0, true, false);
  EXPECT_EQ(problem(format, tensors, 1, 7), "");
  EXPECT_EQ(problem(format, tensors, 1, 8), "tensor 'm.weight_shape' holds [1, 7], expected [1, 8]");
  for (auto [out, in] : std::vector<std::pair<int64_t, int64_t>>{{0, 8}, {8, 0}, {-1, 8}, {8, int64_t{1} << 31}})
    EXPECT_THAT(problem(format, tensors, out, in), HasSubstr("both dimensions must lie in 1 to 2147483647"));
}

} // namespace
