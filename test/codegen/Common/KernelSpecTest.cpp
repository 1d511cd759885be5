// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Common/KernelSpec.h"

#include "mlir/AsmParser/AsmParser.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/MLIRContext.h"

#include <gtest/gtest.h>

#include <set>

using namespace mlir;
using namespace moec;

namespace {

/// One spec of each kind; every field differs from its default.
std::vector<KernelSpec> oneOfEach() {
  GemmSpec gemm;
  gemm.weight = DType::F8E4M3;
  gemm.n = 100;
  gemm.k = 64;
  gemm.batch = 8;
  gemm.scaleCols = 128;
  gemm.output = DType::U8;
  gemm.outputOffset = 8;
  gemm.xStride = 65;
  gemm.xBatch = 3;
  gemm.yStride = 101;
  gemm.yBatch = 5;
  gemm.residualStride = 102;
  gemm.epilogue = Epilogue::Swiglu;
  gemm.routing = Routing::Scatter;
  gemm.topk = 2;
  gemm.rows = Rows::R;
  GemmSpec scores, values;
  scores.n = 16;
  scores.k = 256;
  values.n = 24;
  values.k = 64;
  values.batch = 4;
  RouteSpec route;
  route.experts = 16;
  route.topk = 4;
  route.groups = 8;
  route.topkGroups = 2;
  route.sigmoid = route.groupTop2Sum = route.normalize = route.bias = true;
  route.scale = 2.5;
  route.logitsStride = 17;
  route.shared = 3;
  route.rows = Rows::R;
  return {
      EmbedSpec{DType::F16, 256, 260},
      GatherRowsSpec{256, 257, 258},
      RmsNormSpec{256, 257, 258, 1e-6, Rows::R, false},
      gemm,
      RopeAnglesSpec{{1.0f, 0.1f, 1e-3f}, 1.25},
      RopeSpec{4, 32, 128, 33, 256, 64},
      CacheAppendSpec{64, 16, 80, 96, 97, DType::BF16, CacheCodes::Int8},
      MlaAttentionSpec{4, 64, 16, 80, 320, 81, 256, 65, 0.1, 9, DType::BF16, CacheCodes::F8E4M3},
      MlaCombineSpec{4, 64, 256, 65, 9},
      MlaExpandedSpec{DType::F16,       4,         32, 64,  16, 24, 80, 130, 33, 68, 17, 100, 25, 0.1, 9, DType::BF16,
                      CacheCodes::Int8, DType::U8, 8,  330, 40},
      route,
      DispatchSpec{2, 4, {0, 15}, Rows::R},
      CombineSpec{4, 256, 257, 258, 259, true, {0, 15}, Rows::R},
      ArgmaxSpec{40, Rows::T},
      ElementwiseSpec{true, 256, 257, 258, 259, Rows::R},
      FakeQuantizeSpec{CodeKind::F8E4M3, 256, 128, 257, 258, 6, Rows::R},
      QuantizeRowsSpec{256, 64, 257, 330, 8, 6, Rows::R},
      CastRowsSpec{DType::BF16, 256, 257, 258, 6, Rows::R},
      RowsSpec{{RmsNormSpec{256, 257, 258, 1e-6, Rows::R}, CastRowsSpec{DType::BF16, 256, 258, 259, 1, Rows::R}}},
      GemmChainSpec{{scores, route, DispatchSpec{19, 7, {}, Rows::R}}},
      MlaValuesSpec{{MlaCombineSpec{4, 64, 256, 65, 9}, values}}};
}

class KernelSpecTest : public ::testing::Test {
protected:
  MLIRContext context;
  std::string message;
  ScopedDiagnosticHandler handler{&context, [this](Diagnostic &diagnostic) {
                                    message = diagnostic.str();
                                    return mlir::success();
                                  }};

  FailureOr<KernelSpec> read(StringRef kind, DictionaryAttr attr) {
    return fromAttr(kind, attr, [&] { return emitError(UnknownLoc::get(&context)); });
  }
};

TEST_F(KernelSpecTest, EveryKindSurvivesTextAndBack) {
  std::set<std::string> kinds;
  for (const KernelSpec &spec : oneOfEach()) {
    StringRef kind = kindOf(spec);
    kinds.insert(kind.str());
    DictionaryAttr attr = toAttr(spec, &context);
    std::string text;
    llvm::raw_string_ostream(text) << attr;
    auto parsed = dyn_cast_or_null<DictionaryAttr>(parseAttribute(text, &context));
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(parsed, attr) << text;
    FailureOr<KernelSpec> back = read(kind, parsed);
    ASSERT_TRUE(succeeded(back)) << message;
    EXPECT_EQ(back->index(), spec.index());
    EXPECT_EQ(toAttr(*back, &context), attr) << text;
    // A spec whose fields all differ from the defaults would otherwise hide a field that is never read.
    for (NamedAttribute entry : attr) {
      SmallVector<NamedAttribute> others;
      for (NamedAttribute other : attr)
        if (other.getName() != entry.getName())
          others.push_back(other);
      EXPECT_TRUE(failed(read(kind, DictionaryAttr::get(&context, others))));
      EXPECT_EQ(message, ("spec of a " + kind + " kernel lacks '" + entry.getName().getValue() + "'").str());
    }
  }
  EXPECT_EQ(kinds.size(), std::variant_size_v<KernelSpec>);
}

TEST_F(KernelSpecTest, FieldsComeBackWithTheirValues) {
  FailureOr<KernelSpec> gemm = read("gemm", toAttr(oneOfEach()[3], &context));
  ASSERT_TRUE(succeeded(gemm));
  const auto &spec = std::get<GemmSpec>(*gemm);
  EXPECT_EQ(spec.weight, DType::F8E4M3);
  EXPECT_EQ(spec.n, 100);
  EXPECT_EQ(spec.yBatch, 5);
  EXPECT_EQ(spec.epilogue, Epilogue::Swiglu);
  EXPECT_EQ(spec.routing, Routing::Scatter);
  EXPECT_EQ(spec.rows, Rows::R);
  FailureOr<KernelSpec> angles = read("rope_angles", toAttr(oneOfEach()[4], &context));
  ASSERT_TRUE(succeeded(angles));
  EXPECT_EQ(std::get<RopeAnglesSpec>(*angles).invFreq, (std::vector<float>{1.0f, 0.1f, 1e-3f}));
  EXPECT_EQ(std::get<RopeAnglesSpec>(*angles).factor, 1.25);
}

TEST_F(KernelSpecTest, SymbolsTellTheMainParameters) {
  GemmSpec gemm;
  gemm.n = 1280;
  gemm.k = 256;
  gemm.epilogue = Epilogue::Add;
  EXPECT_EQ(symbolFor(gemm), "gemm_bf16_n1280_k256_add");
  std::vector<std::string> symbols;
  for (const KernelSpec &spec : oneOfEach())
    symbols.push_back(symbolFor(spec));
  EXPECT_EQ(symbols, (std::vector<std::string>{
                         "embed_f16_d256",
                         "gather_rows_d256",
                         "rms_norm_d256_plain_rows",
                         "gemm_f8e4m3_n100_k64_e8_scatter_swiglu_to8_rows",
                         "rope_angles_d6",
                         "rope_h4_d32",
                         "cache_append_c64_r16_int8",
                         "mla_attention_h4_c64_r16_fp8",
                         "mla_combine_h4_c64",
                         "mla_expanded_f16_h4_k32_v24_c64_r16_int8_to8",
                         "route_sigmoid_e16_top4_shared3_rows",
                         "dispatch_e2_top4_members_rows",
                         "combine_top4_d256_add_members_rows",
                         "argmax_c40",
                         "swiglu_d256_rows",
                         "fake_quantize_f8e4m3_d256_rows",
                         "quantize_rows_d256_plus8_rows",
                         "cast_rows_bf16_d256_rows",
                         "rms_norm_d256_rows_and_cast_rows_bf16_d256_rows",
                         "gemm_bf16_n16_k256_and_route_sigmoid_e16_top4_shared3_rows_and_dispatch_e19_top7_rows",
                         "mla_combine_h4_c64_and_gemm_bf16_n24_k64_h4"}));
}

/// A cache of bf16 is told from one of codes that is read as bf16.
TEST_F(KernelSpecTest, SymbolsOfCaches) {
  CacheAppendSpec append{64, 16, 80, 96, 97};
  EXPECT_EQ(symbolFor(append), "cache_append_c64_r16");
  append.cache = DType::BF16;
  EXPECT_EQ(symbolFor(append), "cache_append_c64_r16_bf16");
  append.codes = CacheCodes::F8E4M3;
  EXPECT_EQ(symbolFor(append), "cache_append_c64_r16_fp8");
}

TEST_F(KernelSpecTest, WrongDictionariesAreRefused) {
  Builder builder(&context);
  auto with = [&](DictionaryAttr attr, StringRef key, Attribute value) {
    NamedAttrList list(attr);
    list.set(key, value);
    return list.getDictionary(&context);
  };
  DictionaryAttr dispatch = toAttr(DispatchSpec{16, 4}, &context);
  EXPECT_TRUE(failed(read("dispach", dispatch)));
  EXPECT_TRUE(StringRef(message).starts_with("'dispach' is no kind of kernel; there are embed, gather_rows"))
      << message;
  EXPECT_TRUE(failed(read("dispatch", with(dispatch, "topk", builder.getI32IntegerAttr(4)))));
  EXPECT_EQ(message, "'topk' of a dispatch kernel is 4 : i32, expected an i64 that is not negative");
  EXPECT_TRUE(failed(read("dispatch", with(dispatch, "topk", builder.getI64IntegerAttr(-1)))));
  EXPECT_EQ(message, "'topk' of a dispatch kernel is -1 : i64, expected an i64 that is not negative");
  EXPECT_TRUE(failed(read("dispatch", with(dispatch, "width", builder.getI64IntegerAttr(1)))));
  EXPECT_EQ(message, "spec of a dispatch kernel has an unknown key 'width'");
  for (std::vector<int64_t> members : {std::vector<int64_t>{3, 3}, {4, 3}, {-1, 3}}) {
    EXPECT_TRUE(failed(read("dispatch", with(dispatch, "members", builder.getDenseI64ArrayAttr(members)))));
    EXPECT_TRUE(StringRef(message).ends_with("expected an array of ascending i64, none negative")) << message;
  }
  // One part; parts within parts; no dictionary.
  auto parts = [&](std::vector<KernelSpec> specs) { return toAttr(RowsSpec{std::move(specs)}, &context); };
  RowsSpec pair{{RmsNormSpec{}, CastRowsSpec{}}};
  for (DictionaryAttr rows : {parts({RmsNormSpec{}}), parts({RmsNormSpec{}, pair}),
                              with(parts({}), "parts", builder.getStrArrayAttr({"a", "b"}))}) {
    EXPECT_TRUE(failed(read("rows", rows)));
    EXPECT_TRUE(StringRef(message).ends_with("expected an array of two or more {kind, spec} of kernels without parts"))
        << message;
  }
  DictionaryAttr append = toAttr(CacheAppendSpec{}, &context);
  EXPECT_TRUE(failed(read("cache_append", with(append, "codes", builder.getStringAttr("int4")))));
  EXPECT_EQ(message, "'codes' of a cache_append kernel is \"int4\", expected one of \"none\" \"int8\" \"fp8\"");
  DictionaryAttr norm = toAttr(RmsNormSpec{}, &context);
  EXPECT_TRUE(failed(read("rms_norm", with(norm, "rows", builder.getStringAttr("S")))));
  EXPECT_EQ(message, "'rows' of a rms_norm kernel is \"S\", expected one of \"T\" \"R\"");
  EXPECT_TRUE(failed(read("rms_norm", with(norm, "eps", builder.getF64FloatAttr(NAN)))));
  EXPECT_TRUE(StringRef(message).ends_with("expected a finite f64")) << message;
  DictionaryAttr angles = toAttr(RopeAnglesSpec{{1.0f}, 1}, &context);
  EXPECT_TRUE(failed(read("rope_angles", with(angles, "inv_freq", builder.getDenseF64ArrayAttr({1.0})))));
  EXPECT_TRUE(StringRef(message).ends_with("expected an array of finite f32")) << message;
  DictionaryAttr add = toAttr(ElementwiseSpec{}, &context);
  EXPECT_TRUE(failed(read("elementwise", with(add, "swiglu", builder.getI64IntegerAttr(1)))));
  EXPECT_TRUE(StringRef(message).ends_with("expected a bool")) << message;
}

} // namespace
