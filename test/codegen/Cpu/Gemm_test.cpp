// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"
#include "dialects/Formats/Groups.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace moec::cpu {
namespace {

/// A weight tensor [batch, rows, k] as stored values (what the kernel sees, as double) and as bytes in panels.
struct Weights {
  std::vector<double> values;
  Array<uint8_t> bytes;
  Array<float> scales;
};

uint32_t encode(DType type, float value) {
  switch (type) {
  case DType::BF16:
    return floatToBf16(value);
  case DType::F16:
    return floatToF16(value);
  case DType::F8E4M3:
    return floatToF8e4m3(value);
  default: {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
  }
  }
}

double decode(DType type, uint32_t bits) {
  switch (type) {
  case DType::BF16:
    return bf16ToFloat(bits);
  case DType::F16:
    return f16ToFloat(bits);
  case DType::F8E4M3:
    return f8e4m3ToFloat(bits);
  default: {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  }
}

/// Where row `r` of a matrix is in its panels: the panel and the place within. With Swiglu, rows 0 .. n are the
/// gate's and rows n .. 2n the up projection's.
std::pair<int64_t, int64_t> place(const GemmSpec &spec, int64_t r) {
  if (spec.epilogue != Epilogue::Swiglu)
    return {r / kPanelWidth, r % kPanelWidth};
  int64_t half = kPanelWidth / 2, up = r >= spec.n, row = r - up * spec.n;
  return {row / half, row % half + up * half};
}

int64_t scaleBlocks(const GemmSpec &spec) {
  return spec.scaleCols ? (spec.k + spec.scaleCols - 1) / spec.scaleCols : 0;
}

/// Random codes, scales and zero points, laid out as `#moe.pack_groups` says.
Weights makeGroups(const GemmSpec &spec, Random &random) {
  GroupFormat format = spec.format();
  int64_t rows = spec.n * (spec.epilogue == Epilogue::Swiglu ? 2 : 1), groups = format.groups(spec.k);
  int64_t panelBytes = format.panelBytes(kPanelWidth, spec.k);
  Weights w{std::vector<double>(spec.batch * rows * spec.k), Array<uint8_t>(spec.batch * spec.panels() * panelBytes),
            Array<float>(0)};
  for (int64_t b = 0; b < spec.batch; ++b)
    for (int64_t r = 0; r < rows; ++r) {
      RowCodes row;
      if (format.hasGlobal())
        row.global = 0.01f;
      for (int64_t g = 0; g < groups; ++g) {
        float scale = std::exp2(std::clamp(random.normal(), -5.0f, 5.0f));
        if (format.codes == CodeKind::Int4 && spec.groupScale != DType::F8E8M0 && random.integer(0, 1))
          scale = -scale;
        if (spec.groupScale == DType::F8E8M0)
          scale = std::exp2(std::round(std::log2(scale)));
        else
          scale = static_cast<float>(decode(spec.groupScale, encode(spec.groupScale, scale)));
        row.scales.push_back(scale);
        if (format.hasZeros())
          row.zeros.push_back(random.integer(0, 15));
      }
      for (int64_t c = 0; c < spec.k; ++c) {
        auto code = static_cast<uint8_t>(random.integer(0, format.bits() == 4 ? 15 : 255));
        if (format.codes == CodeKind::F8E4M3 && (code & 0x7F) == 0x7F)
          code ^= 1; // no NaN
        row.codes.push_back(code);
        double value = codeValue(format.codes, code);
        if (format.hasZeros())
          value -= row.zeros[c / format.group];
        w.values[(b * rows + r) * spec.k + c] = value * row.scales[c / format.group] * row.global;
      }
      auto [panel, lane] = place(spec, r);
      placeRow(format, row, kPanelWidth, lane,
               reinterpret_cast<std::byte *>(&w.bytes[(b * spec.panels() + panel) * panelBytes]));
    }
  return w;
}

Weights makeWeights(const GemmSpec &spec, Random &random) {
  if (spec.group)
    return makeGroups(spec, random);
  int64_t rows = spec.n * (spec.epilogue == Epilogue::Swiglu ? 2 : 1), size = byteSize(spec.weight);
  Weights w{std::vector<double>(spec.batch * rows * spec.k),
            Array<uint8_t>(spec.batch * spec.panels() * spec.k * kPanelWidth * size),
            Array<float>(spec.batch * spec.panels() * scaleBlocks(spec) * kPanelWidth)};
  for (int64_t b = 0; b < spec.batch; ++b)
    for (int64_t r = 0; r < rows; ++r) {
      auto [panel, lane] = place(spec, r);
      int64_t position = b * spec.panels() + panel;
      for (int64_t block = 0; block < scaleBlocks(spec); ++block)
        w.scales[(position * scaleBlocks(spec) + block) * kPanelWidth + lane] = std::exp2(random.normal()) * 0.01f;
      for (int64_t k = 0; k < spec.k; ++k) {
        uint32_t bits = encode(spec.weight, random.normal(spec.weight == DType::F8E4M3 ? 10.0f : 0.5f));
        int64_t at = position * spec.k * kPanelWidth + inPanel(spec.weight, spec.k, k, lane);
        std::memcpy(&w.bytes[at * size], &bits, size);
        double value = decode(spec.weight, bits);
        if (spec.scaleCols)
          value *= w.scales[(position * scaleBlocks(spec) + k / spec.scaleCols) * kPanelWidth + lane];
        w.values[(b * rows + r) * spec.k + k] = value;
      }
    }
  return w;
}

/// Rows of x, as the kernel reads them and as what they stand for.
struct Inputs {
  Array<uint8_t> bytes;
  std::vector<float> values;
  int64_t rowBytes, rowValues;

  const float *row(int64_t t) const { return values.data() + t * rowValues; }
};

Inputs makeInputs(const GemmSpec &spec, int64_t rows, Random &random) {
  if (spec.input == DType::BF16) {
    Inputs x{Array<uint8_t>(rows * spec.xStride * 2), random.normals(rows * spec.xStride), spec.xStride * 2,
             spec.xStride};
    for (size_t i = 0; i < x.values.size(); ++i) {
      uint16_t bits = floatToBf16(x.values[i]);
      x.values[i] = bf16ToFloat(bits);
      std::memcpy(&x.bytes[2 * i], &bits, 2);
    }
    return x;
  }
  if (spec.input == DType::F32) {
    Inputs x{Array<uint8_t>(rows * spec.xStride * 4), random.normals(rows * spec.xStride), spec.xStride * 4,
             spec.xStride};
    if (x.bytes.size() != 0)
      std::memcpy(x.bytes.data(), x.values.data(), x.bytes.size());
    return x;
  }
  constexpr int64_t group = QuantizeRowsSpec::group;
  Inputs x{Array<uint8_t>(rows * spec.xStride), std::vector<float>(rows * spec.k), spec.xStride, spec.k};
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t g = 0; g < spec.k / group; ++g) {
      uint8_t *record = &x.bytes[t * spec.xStride + g * QuantizeRowsSpec::recordBytes];
      float scale = std::exp2(random.normal());
      int32_t sum = 0;
      for (int64_t i = 0; i < group; ++i) {
        int64_t code = random.integer(-127, 127);
        record[i] = code;
        sum -= GemmSpec::offsetOf(spec.codes) * code;
        x.values[t * spec.k + g * group + i] = scale * code;
      }
      std::memcpy(record + QuantizeRowsSpec::scaleAt, &scale, 4);
      std::memcpy(record + QuantizeRowsSpec::sumAt, &sum, 4);
    }
  return x;
}

struct Sum {
  double value = 0, error = 0;
};

/// x . w with a bound on the error of f32: one rounding of at most 2^-24 of the absolute sum per step.
Sum dot(const float *x, const double *w, int64_t k) {
  Sum sum;
  for (int64_t i = 0; i < k; ++i) {
    sum.value += x[i] * w[i];
    sum.error += std::fabs(x[i] * w[i]);
  }
  sum.error *= std::ldexp(double(k + 8), -24);
  return sum;
}

/// y of one row and output, without the residual.
Sum expectedOutput(const GemmSpec &spec, const Weights &w, int64_t batch, int64_t n, const float *x) {
  bool swiglu = spec.epilogue == Epilogue::Swiglu;
  const double *matrix = w.values.data() + batch * spec.n * (swiglu ? 2 : 1) * spec.k;
  Sum sum = dot(x, matrix + n * spec.k, spec.k);
  if (!swiglu)
    return sum;
  Sum up = dot(x, matrix + (spec.n + n) * spec.k, spec.k);
  double gate = sum.value / (1 + std::exp(-sum.value));
  // The derivative of silu is below 1.1; exp, sum, division and product round four times.
  return {gate * up.value, std::fabs(up.value) * 1.1 * sum.error + std::fabs(gate) * up.error +
                               std::fabs(gate * up.value) * std::ldexp(6.0, -24)};
}

/// Runs a spec without routing and compares everything. Activations have spare columns.
void checkPlain(Kernels &kernels, size_t index, const GemmSpec &spec, int64_t tokens, Random &random) {
  SCOPED_TRACE("n " + std::to_string(spec.n) + " k " + std::to_string(spec.k) + " tokens " + std::to_string(tokens) +
               " weight " + std::string(toString(spec.weight)));
  Weights w = makeWeights(spec, random);
  Inputs x = makeInputs(spec, tokens, random);
  Array<float> residual(random.normals(tokens * std::max<int64_t>(spec.residualStride, 1)));
  Array<float> y(tokens * spec.yStride, kUntouched);
  std::vector<Buffer *> args = {&x.bytes, &w.bytes};
  if (spec.scaleCols)
    args.push_back(&w.scales);
  if (spec.epilogue == Epilogue::Add)
    args.push_back(&residual);
  args.push_back(&y);
  moe_step step{spec.rows == Rows::T ? tokens : 1, spec.rows == Rows::R ? tokens : 0, 0};
  kernels.run(index, args, step, kernels.gridOf(index, step));

  std::vector<bool> owned(y.count());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t b = 0; b < spec.batch; ++b)
      for (int64_t n = 0; n < spec.n; ++n) {
        Sum expected = expectedOutput(spec, w, b, n, x.row(t) + b * spec.xBatch);
        if (spec.epilogue == Epilogue::Add)
          expected.value += residual[t * spec.residualStride + b * spec.yBatch + n];
        size_t at = t * spec.yStride + b * spec.yBatch + n;
        owned[at] = true;
        ASSERT_TRUE(near(y[at], expected.value, expected.error + std::fabs(expected.value) * 1e-7))
            << "row " << t << " batch " << b << " output " << n;
      }
  for (size_t i = 0; i < y.count(); ++i)
    ASSERT_TRUE(owned[i] || y[i] == kUntouched) << "element " << i << " is nobody's";

  // Each row alone gives the same bits.
  std::vector<float> together(y.begin(), y.end());
  std::fill(y.begin(), y.end(), kUntouched);
  moe_step single{1, 1, 0};
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<void *> alone = {x.bytes.begin() + t * x.rowBytes, w.bytes.data()};
    if (spec.scaleCols)
      alone.push_back(w.scales.data());
    if (spec.epilogue == Epilogue::Add)
      alone.push_back(residual.begin() + t * spec.residualStride);
    alone.push_back(y.begin() + t * spec.yStride);
    kernels.runOnce(index, alone, single, kernels.gridOf(index, single));
  }
  EXPECT_EQ(std::memcmp(together.data(), y.data(), y.size()), 0) << "a row alone has other bits";
}

GemmSpec plain(DType weight, int64_t n, int64_t k, int64_t scaleCols = 0) {
  GemmSpec spec;
  spec.weight = weight;
  spec.n = n;
  spec.k = k;
  spec.scaleCols = scaleCols;
  spec.xStride = k + 3;
  spec.yStride = n + 5;
  return spec;
}

GemmSpec grouped(int64_t n, int64_t k, int64_t group, DType scale = DType::F16, CodeKind codes = CodeKind::Int4) {
  GemmSpec spec = plain(DType::U8, n, k);
  spec.group = group;
  spec.codes = codes;
  spec.groupScale = scale;
  return spec;
}

/// The same weights against rows of codes.
GemmSpec ofCodes(GemmSpec spec) {
  spec.input = DType::U8;
  spec.xStride = QuantizeRowsSpec::rowBytes(spec.k) + 4;
  return spec;
}

TEST(Gemm, PlainOfEveryFormat) {
  std::vector<KernelSpec> specs;
  for (DType type : {DType::F32, DType::BF16, DType::F16, DType::F8E4M3})
    for (auto [n, k] : {std::pair{1, 1}, {31, 17}, {32, 64}, {48, 100}, {65, 33}})
      specs.push_back(plain(type, n, k));
  specs.push_back(plain(DType::F8E4M3, 40, 300, 128));
  specs.push_back(plain(DType::F8E4M3, 64, 256, 128));
  specs.push_back(plain(DType::F8E4M3, 33, 50, 16));
  specs.push_back(plain(DType::F8E4M3, 5, 7, 128));
  Kernels kernels(specs);
  Random random(1);
  // Below, at and above the tiles of all levels and the token block of 64.
  for (size_t i = 0; i < specs.size(); ++i)
    for (int64_t tokens : {1, 2, 5, 6, 7, 8, 15, 64, 67})
      checkPlain(kernels, i, std::get<GemmSpec>(specs[i]), tokens, random);
}

TEST(Gemm, GroupsOfCodes) {
  std::vector<KernelSpec> specs;
  for (DType scale : {DType::F16, DType::BF16})
    for (auto [n, k, group] : {std::tuple{1, 32, 32}, {31, 96, 32}, {32, 128, 128}, {48, 192, 64}, {65, 192, 96}})
      specs.push_back(grouped(n, k, group, scale));
  for (auto [codes, scale, group] : {std::tuple{CodeKind::Int4, DType::F8E8M0, 32},
                                     {CodeKind::Int4Zero, DType::F16, 64},
                                     {CodeKind::Int4Zero, DType::BF16, 32},
                                     {CodeKind::F4E2M1, DType::F8E8M0, 32},
                                     {CodeKind::F4E2M1, DType::F8E4M3, 16}})
    for (auto [n, k] : {std::pair{31, 64}, {65, 192}})
      specs.push_back(grouped(n, k, group, scale, codes));
  // Of bytes the last group may be smaller, and end within a word.
  for (CodeKind codes : {CodeKind::Int8, CodeKind::F8E4M3})
    for (auto [n, k, group] : {std::tuple{1, 1, 1}, {31, 18, 128}, {32, 128, 128}, {48, 202, 64}, {65, 100, 100}})
      specs.push_back(grouped(n, k, group, DType::F32, codes));
  GemmSpec add = grouped(50, 64, 32);
  add.epilogue = Epilogue::Add;
  add.residualStride = 59;
  GemmSpec swiglu = grouped(24, 128, 64);
  swiglu.epilogue = Epilogue::Swiglu;
  GemmSpec heads = grouped(24, 64, 32);
  heads.batch = 5;
  heads.xBatch = 67;
  heads.xStride = 5 * 67 + 2;
  heads.yBatch = 27;
  heads.yStride = 5 * 27 + 1;
  specs.insert(specs.end(), {add, swiglu, heads});
  Kernels kernels(specs);
  Random random(6);
  for (size_t i = 0; i < specs.size(); ++i)
    for (int64_t tokens : {1, 2, 3, 4, 5, 7, 8, 15, 64, 67})
      checkPlain(kernels, i, std::get<GemmSpec>(specs[i]), tokens, random);
}

TEST(Gemm, CodesAgainstCodes) {
  std::vector<KernelSpec> specs;
  for (auto [n, k, group] : {std::tuple{1, 32, 32}, {31, 96, 32}, {32, 128, 128}, {48, 192, 64}, {65, 192, 96}}) {
    specs.push_back(ofCodes(grouped(n, k, group)));
    specs.push_back(ofCodes(grouped(n, k, group, DType::F8E8M0)));
    specs.push_back(ofCodes(grouped(n, k, group, DType::F16, CodeKind::Int4Zero)));
    specs.push_back(ofCodes(grouped(n, k, group, DType::F8E8M0, CodeKind::F4E2M1)));
    specs.push_back(ofCodes(grouped(n, k, group, DType::F32, CodeKind::Int8)));
    specs.push_back(ofCodes(grouped(n, k, k, DType::F32, CodeKind::Int8)));
  }
  GemmSpec add = ofCodes(grouped(50, 64, 32));
  add.epilogue = Epilogue::Add;
  add.residualStride = 59;
  GemmSpec swiglu = ofCodes(grouped(24, 128, 64, DType::F32, CodeKind::Int8));
  swiglu.epilogue = Epilogue::Swiglu;
  GemmSpec logits = ofCodes(grouped(70, 64, 32));
  logits.rows = Rows::R;
  specs.insert(specs.end(), {add, swiglu, logits});
  Kernels kernels(specs);
  Random random(7);
  // Below, at and above the tiles of all levels and the token block.
  for (size_t i = 0; i < specs.size(); ++i)
    for (int64_t tokens : {1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 64, 67})
      checkPlain(kernels, i, std::get<GemmSpec>(specs[i]), tokens, random);
}

TEST(Gemm, Bf16AgainstBf16) {
  std::vector<KernelSpec> specs;
  auto ofBf16 = [](GemmSpec spec) {
    spec.input = DType::BF16;
    spec.xStride = spec.k + 2 + spec.k % 2;
    return spec;
  };
  for (auto [n, k] : {std::pair{1, 1}, {31, 17}, {32, 64}, {48, 100}, {65, 33}, {33, 96}})
    specs.push_back(ofBf16(plain(DType::BF16, n, k)));
  GemmSpec add = ofBf16(plain(DType::BF16, 50, 34));
  add.epilogue = Epilogue::Add;
  add.residualStride = 59;
  GemmSpec swiglu = ofBf16(plain(DType::BF16, 24, 128));
  swiglu.epilogue = Epilogue::Swiglu;
  specs.insert(specs.end(), {add, swiglu});
  for (Kernels::Pairs pairs : Kernels::allPairs()) {
    Kernels kernels(specs, pairs);
    Random random(9);
    for (size_t i = 0; i < specs.size(); ++i)
      for (int64_t tokens : {1, 2, 3, 7, 8, 13, 14, 15, 29, 64, 67})
        checkPlain(kernels, i, std::get<GemmSpec>(specs[i]), tokens, random);
  }
}

TEST(Gemm, Epilogues) {
  std::vector<KernelSpec> specs;
  for (DType type : {DType::BF16, DType::F8E4M3})
    for (auto [n, k] : {std::pair{8, 20}, {16, 64}, {50, 33}}) {
      GemmSpec add = plain(type, n, k, type == DType::F8E4M3 ? 16 : 0);
      add.epilogue = Epilogue::Add;
      add.residualStride = n + 9;
      GemmSpec swiglu = plain(type, n, k, type == DType::F8E4M3 ? 16 : 0);
      swiglu.epilogue = Epilogue::Swiglu;
      specs.insert(specs.end(), {add, swiglu});
    }
  Kernels kernels(specs);
  Random random(2);
  for (size_t i = 0; i < specs.size(); ++i)
    for (int64_t tokens : {1, 3, 21, 70})
      checkPlain(kernels, i, std::get<GemmSpec>(specs[i]), tokens, random);
}

TEST(Gemm, BatchAndRowsOfLogits) {
  GemmSpec heads = plain(DType::BF16, 24, 40);
  heads.batch = 5;
  heads.xBatch = 41;
  heads.xStride = 5 * 41 + 2;
  heads.yBatch = 27;
  heads.yStride = 5 * 27 + 1;
  GemmSpec logits = plain(DType::BF16, 70, 32);
  logits.rows = Rows::R;
  Kernels kernels({heads, logits});
  Random random(3);
  for (int64_t tokens : {1, 9, 66}) {
    checkPlain(kernels, 0, heads, tokens, random);
    checkPlain(kernels, 1, logits, tokens, random);
  }
}

/// A kernel that stores rounded rows gives the bytes that a kernel of its own gives of the rows of f32.
TEST(Gemm, RoundsWhatItStores) {
  GemmSpec linear = ofCodes(grouped(64, 64, 32));
  GemmSpec residual = linear;
  residual.epilogue = Epilogue::Add;
  residual.residualStride = 65;
  GemmSpec gateUp = ofCodes(grouped(96, 64, 32, DType::F16, CodeKind::Int4Zero));
  gateUp.epilogue = Epilogue::Swiglu;
  GemmSpec heads = plain(DType::BF16, 64, 40);
  heads.batch = 3;
  heads.xBatch = 41;
  heads.xStride = 3 * 41;
  heads.yBatch = 64;
  heads.yStride = 3 * 64;
  GemmSpec experts = gateUp;
  experts.batch = 5;
  experts.topk = 2;
  experts.routing = Routing::Gather;
  GemmSpec scattered = ofCodes(grouped(64, 64, 32));
  scattered.batch = 5;
  scattered.topk = 2;
  scattered.routing = Routing::Scatter;
  GemmSpec narrow = plain(DType::BF16, 50, 34); // as bf16 alone
  narrow.epilogue = Epilogue::Swiglu;

  std::vector<KernelSpec> specs;
  for (auto [spec, output] : {std::pair{linear, DType::U8},
                              {residual, DType::U8},
                              {gateUp, DType::U8},
                              {heads, DType::U8},
                              {experts, DType::U8},
                              {scattered, DType::BF16},
                              {narrow, DType::BF16}}) {
    const bool routed = spec.routing != Routing::None;
    const int64_t width = routed ? spec.n : spec.n * spec.batch;
    GemmSpec rounding = spec;
    rounding.output = output;
    if (output == DType::U8) {
      rounding.outputOffset = 8;
      rounding.yStride = QuantizeRowsSpec::rowBytes(width) + 3;
      rounding.yBatch = QuantizeRowsSpec::rowBytes(spec.n);
    }
    auto rows = [&](auto rows) {
      rows.width = width;
      rows.xStride = spec.yStride;
      rows.outStride = rounding.yStride;
      rows.rowsPerToken = routed ? spec.topk : 1;
      return rows;
    };
    QuantizeRowsSpec codes;
    codes.offset = 8;
    specs.insert(specs.end(), {spec, rounding});
    specs.push_back(output == DType::U8 ? KernelSpec(rows(codes)) : KernelSpec(rows(CastRowsSpec{})));
  }
  Kernels kernels(specs);
  Random random(9);
  for (size_t index = 0; index < specs.size(); index += 3)
    for (int64_t tokens : {1, 3, 17, 66}) {
      const GemmSpec &spec = std::get<GemmSpec>(specs[index]), &rounding = std::get<GemmSpec>(specs[index + 1]);
      SCOPED_TRACE(symbolFor(specs[index + 1]) + " of " + std::to_string(tokens));
      const int64_t rows = spec.routing == Routing::None ? tokens : tokens * spec.topk;
      std::vector<int32_t> chosen;
      for (int64_t t = 0; t < tokens && spec.routing != Routing::None; ++t)
        for (int32_t e : random.permutation(spec.batch))
          if (std::ssize(chosen) < (t + 1) * spec.topk)
            chosen.push_back(e);
      ExpertLists lists = sortByExpert(chosen, spec.batch);
      Array<int32_t> offsets(lists.offsets), active(lists.active), order(lists.order);
      Weights w = makeWeights(spec, random);
      Inputs x = makeInputs(spec, spec.routing == Routing::Gather ? tokens : rows, random);
      Array<float> residual(random.normals(rows * std::max<int64_t>(spec.residualStride, 1)));
      Array<float> y(rows * spec.yStride, kUntouched);
      Array<uint8_t> expected(rows * rounding.yStride * byteSize(rounding.output)), found(expected.count());
      const moe_step step{tokens, 1, 0};
      auto multiply = [&](size_t kernel, Buffer &to) {
        std::vector<Buffer *> args = {&x.bytes, &w.bytes};
        if (spec.epilogue == Epilogue::Add)
          args.push_back(&residual);
        args.push_back(&to);
        if (spec.routing != Routing::None)
          args.insert(args.end(), {&offsets, &active, &order});
        kernels.run(kernel, args, step, kernels.gridOf(kernel, step));
      };
      multiply(index, y);
      kernels.run(index + 2, {&y, &expected}, step, kernels.gridOf(index + 2, step));
      multiply(index + 1, found);
      EXPECT_EQ(std::memcmp(expected.data(), found.data(), expected.size()), 0);
    }
}

TEST(Gemm, NoTasks) {
  Kernels kernels({plain(DType::BF16, 32, 32)});
  kernels.runOnce(0, {nullptr, nullptr, nullptr}, {0, 0, 0}, 0);
}

TEST(Gemm, Experts) {
  GemmSpec up = plain(DType::BF16, 40, 48);
  up.batch = 7;
  up.topk = 3;
  up.routing = Routing::Gather;
  up.epilogue = Epilogue::Swiglu;
  GemmSpec down = plain(DType::F8E4M3, 50, 40, 16);
  down.batch = 7;
  down.topk = 3;
  down.routing = Routing::Scatter;
  GemmSpec upCodes = grouped(40, 64, 32);
  upCodes.batch = 7;
  upCodes.topk = 3;
  upCodes.routing = Routing::Gather;
  upCodes.epilogue = Epilogue::Swiglu;
  GemmSpec downCodes = grouped(50, 64, 64, DType::F32, CodeKind::Int8);
  downCodes.batch = 7;
  downCodes.topk = 3;
  downCodes.routing = Routing::Scatter;
  std::vector<KernelSpec> specs = {up, down, upCodes, ofCodes(upCodes), ofCodes(downCodes), up};
  std::get<GemmSpec>(specs.back()).input = DType::BF16;
  std::get<GemmSpec>(specs.back()).xStride = 50;
  for (GemmSpec spec : {up, down}) {
    spec.rows = Rows::R;
    specs.push_back(spec);
  }
  for (Kernels::Pairs pairs : Kernels::allPairs()) {
    Kernels kernels(specs, pairs);
    Random random(4);
    for (size_t index = 0; index < specs.size(); ++index)
      for (int64_t tokens : {0, 1, 2, 10, 50}) {
        const GemmSpec &spec = std::get<GemmSpec>(specs[index]);
        std::vector<int32_t> chosen;
        // Expert 2 gets nothing, so that lists have a gap.
        for (int64_t t = 0; t < tokens; ++t)
          for (int32_t e : random.permutation(7))
            if (e != 2 && int64_t(chosen.size()) < (t + 1) * spec.topk)
              chosen.push_back(e);
        ExpertLists lists = sortByExpert(chosen, spec.batch);
        bool gather = spec.routing == Routing::Gather;
        Weights w = makeWeights(spec, random);
        Inputs x = makeInputs(spec, gather ? tokens : tokens * spec.topk, random);
        Array<float> y(tokens * spec.topk * spec.yStride, kUntouched);
        Array<int32_t> offsets(lists.offsets), active(lists.active), order(lists.order);
        std::vector<Buffer *> args = {&x.bytes, &w.bytes};
        if (spec.scaleCols)
          args.push_back(&w.scales);
        args.insert(args.end(), {&y, &offsets, &active, &order});
        moe_step step = stepOf(spec.rows, tokens);
        kernels.run(index, args, step, kernels.gridOf(index, step));
        for (size_t i = 0; i < lists.order.size(); ++i) {
          int32_t entry = lists.order[i];
          int64_t from = gather ? entry / spec.topk : i, to = gather ? i : entry;
          for (int64_t n = 0; n < spec.yStride; ++n) {
            Sum expected{kUntouched, 0};
            if (n < spec.n)
              expected = expectedOutput(spec, w, chosen[entry], n, x.row(from));
            ASSERT_TRUE(near(y[to * spec.yStride + n], expected.value, expected.error)) << "entry " << entry;
          }
        }
      }
  }
}

/// Every code of every narrow format, against the conversions of runtime/Support.
TEST(Gemm, ReadsEveryCode) {
  for (DType type : {DType::F8E4M3, DType::BF16, DType::F16}) {
    int64_t codes = int64_t(1) << (8 * byteSize(type));
    // One input of 1: the outputs are the weights.
    GemmSpec spec = plain(type, codes, 1);
    Kernels kernels({spec});
    Array<uint8_t> weights(codes * byteSize(type));
    for (int64_t code = 0; code < codes; ++code)
      std::memcpy(&weights[code * byteSize(type)], &code, byteSize(type));
    Array<float> x(spec.xStride, 1.0f), y(spec.yStride, kUntouched);
    moe_step step{1, 0, 0};
    kernels.run(0, {&x, &weights, &y}, step, kernels.gridOf(0, step));
    for (int64_t code = 0; code < codes; ++code)
      ASSERT_TRUE(near(y[code], decode(type, code), 0)) << toString(type) << " code " << code;
  }
}

TEST(Gemm, InfinityAndNaNStayInTheirRow) {
  GemmSpec spec = plain(DType::BF16, 32, 32);
  Kernels kernels({spec});
  Random random(5);
  Weights w = makeWeights(spec, random);
  Array<float> x(random.normals(9 * spec.xStride)), y(9 * spec.yStride, kUntouched);
  x[2 * spec.xStride + 3] = std::numeric_limits<float>::infinity();
  x[7 * spec.xStride + 31] = std::numeric_limits<float>::quiet_NaN();
  moe_step step{9, 0, 0};
  kernels.run(0, {&x, &w.bytes, &y}, step, kernels.gridOf(0, step));
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t n = 0; n < spec.n; ++n) {
      float found = y[t * spec.yStride + n];
      if (t == 7)
        EXPECT_TRUE(std::isnan(found));
      else if (t == 2)
        EXPECT_TRUE(std::isinf(found) || w.values[n * spec.k + 3] == 0);
      else
        EXPECT_TRUE(std::isfinite(found));
    }
}

} // namespace
} // namespace moec::cpu
