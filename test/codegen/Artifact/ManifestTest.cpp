// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Artifact/Manifest.h"
#include "codegen/Artifact/KernelWork.h"

#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/MoeDialect.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

using namespace mlir;
using namespace moec;

namespace {

/// A program of two launches that has each kind of argument but a cache that nothing uses.
constexpr StringLiteral program = R"mlir(
module attributes {moe.model = {type = "deepseek_v3", layers = 2 : i64, eos = [1, 2], tied = false, theta = 1.0e4}} {
  exec.cache @kv.0 width 80 of f32
  exec.cache @kv.1 width 80 of f32
  exec.weight @w ["experts.{e}.w"] recipe [#moe.stack<4>, #moe.pack_panels<32>] : memref<4x2x8x32xbf16>
  exec.kernel @embed "embed" {table = "f32", width = 8, out_stride = 8}
  exec.kernel @gemm "gemm" {weight = "bf16", n = 40, k = 8, batch = 4, scale_cols = 0, group = 0, group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 8, x_batch = 0,
    y_stride = 40, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "gather", topk = 2, rows = "T"}
  exec.kernel @append "cache_append" {latent = 6, rope = 2, width = 80, latent_stride = 8, rope_stride = 8, cache = "f32", codes = "none"}
  exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
      %pages: memref<?x?xi32>, %logits: memref<?x40xf32>) max_tokens 16 attributes {arena_bytes = 8192 : i64} {
    %x = exec.buffer {offset = 0} : memref<?x8xf32> loc("x")
    %y = exec.buffer {offset = 640, rows_per_token = 2} : memref<?x40xf32>
    %lists = exec.buffer {offset = 7680} : memref<5xi32>
    %picked = exec.buffer {offset = 7808, per_row} : memref<?xi32>
    %w = exec.weight_ref @w : memref<4x2x8x32xbf16>
    %cache = exec.cache_ref @kv.1 : memref<?x64x80xf32>
    %latent = exec.view %x : memref<?x8xf32> to memref<?x6xf32, strided<[8, 1]>>
    %key = exec.view %x : memref<?x8xf32> to memref<?x2xf32, strided<[8, 1], offset: 6>>
    exec.launch @append(%latent, %key, %positions, %slots, %pages, %cache) grid affine_map<(T, R) -> (T)> writes [5]
      {label = "layers.1.append"} : memref<?x6xf32, strided<[8, 1]>>, memref<?x2xf32, strided<[8, 1], offset: 6>>,
      memref<?xi32>, memref<?xi32>, memref<?x?xi32>, memref<?x64x80xf32>
    exec.launch @gemm(%x, %w, %y, %lists, %lists, %picked) grid affine_map<(T, R) -> (8, T * 4)> writes [2]
      : memref<?x8xf32>, memref<4x2x8x32xbf16>, memref<?x40xf32>, memref<5xi32>, memref<5xi32>, memref<?xi32>
  }
}
)mlir";

class ManifestTest : public ::testing::Test {
protected:
  ManifestTest() { context.loadDialect<exec::ExecDialect, moe::MoeDialect>(); }

  MLIRContext context;
  std::string message;
  ScopedDiagnosticHandler handler{&context, [this](Diagnostic &diagnostic) {
                                    message = diagnostic.str();
                                    return mlir::success();
                                  }};

  /// `program` with the first `from` replaced.
  OwningOpRef<ModuleOp> parse(StringRef from = "", StringRef to = "") {
    std::string text = program.str();
    if (!from.empty()) {
      size_t at = text.find(from.str());
      EXPECT_NE(at, std::string::npos) << from.str();
      text.replace(at, from.size(), to.str());
    }
    OwningOpRef<ModuleOp> module = parseSourceString<ModuleOp>(text, &context);
    EXPECT_TRUE(module) << message;
    return module;
  }

  void expectRefusal(StringRef from, StringRef to, StringRef sentence) {
    OwningOpRef<ModuleOp> module = parse(from, to);
    ASSERT_TRUE(module);
    message.clear();
    EXPECT_TRUE(failed(buildManifestProgram(*module)));
    EXPECT_NE(message.find(sentence.str()), std::string::npos) << message;
  }
};

TEST_F(ManifestTest, AProgramBecomesItsParts) {
  OwningOpRef<ModuleOp> module = parse();
  ASSERT_TRUE(module);
  FailureOr<Json> json = buildManifestProgram(*module);
  ASSERT_TRUE(succeeded(json)) << message;
  EXPECT_EQ((*json)["model"],
            Json::parse(R"({"eos": [1, 2], "layers": 2, "theta": 10000.0, "tied": false, "type": "deepseek_v3"})"));
  ASSERT_EQ((*json)["kernels"].size(), 3u);
  EXPECT_EQ((*json)["kernels"][0],
            Json::parse(R"({"symbol": "embed", "kind": "embed", "spec": {"out_stride": 8, "table": "f32", "width": 8},
                      "work": {"token_bytes": 32}})"));
  EXPECT_EQ((*json)["kernels"][1]["work"], Json::parse(R"({"unit": "f32", "flops": {"choice": 640},
                                                           "experts": {"count": 4, "offsets": 3, "active": 4}})"));
  EXPECT_FALSE((*json)["kernels"][2].contains("work"));
  EXPECT_EQ((*json)["sources"], Json::parse(R"({"w": ["experts.{e}.w"]})"));
  EXPECT_EQ((*json)["program"], Json::parse(R"({
    "max_tokens": 16, "arena_bytes": 8192,
    "caches": [{"name": "kv.0", "dtype": "F32", "width": 80}, {"name": "kv.1", "dtype": "F32", "width": 80}],
    "buffers": [
      {"name": "x.0", "dtype": "F32", "shape": ["T", 8], "offset": 0, "bytes": 512},
      {"name": "buffer.1", "dtype": "F32", "shape": [["*", "T", 2], 40], "offset": 640, "bytes": 5120},
      {"name": "buffer.2", "dtype": "I32", "shape": [5], "offset": 7680, "bytes": 20},
      {"name": "buffer.3", "dtype": "I32", "shape": ["R"], "offset": 7808, "bytes": 64}],
    "launches": [
      {"kernel": 2, "label": "layers.1.append", "grid": ["T"], "writes": [5],
       "args": [{"buffer": 0}, {"buffer": 0, "offset": 24}, {"input": "positions"}, {"input": "slots"},
                {"input": "page_table"}, {"cache": 1}]},
      {"kernel": 1, "label": "", "grid": [8, ["*", "T", 4]], "writes": [2],
       "args": [{"buffer": 0}, {"weight": "w"}, {"buffer": 1}, {"buffer": 2}, {"buffer": 2}, {"buffer": 3}]}]
  })"));
}

TEST_F(ManifestTest, LaunchesMustFitTheirKernels) {
  expectRefusal("%lists, %lists, %picked) grid affine_map<(T, R) -> (8, T * 4)> writes [2]\n"
                "      : memref<?x8xf32>, memref<4x2x8x32xbf16>, memref<?x40xf32>, memref<5xi32>, ",
                "%lists, %picked) grid affine_map<(T, R) -> (8, T * 4)> writes [2]\n"
                "      : memref<?x8xf32>, memref<4x2x8x32xbf16>, memref<?x40xf32>, ",
                "passes 5 arguments to a gemm kernel that takes 6");
  expectRefusal("weight = \"bf16\"", "weight = \"f16\"", "passes BF16 as 'w' of a gemm kernel that takes F16");
  expectRefusal("(8, T * 4)> writes [2]", "(8, T * 4)> writes [0, 2]",
                "says that it writes array<i64: 0, 2>, but its kernel writes array<i64: 2>");
  expectRefusal("(8, T * 4)", "(T)", "but its kernel asks for affine_map<(d0, d1) -> (8, d0 * 4)>");
  expectRefusal("topk = 2", "top_k = 2", "spec of a gemm kernel lacks 'topk'");
}

TEST_F(ManifestTest, ModulesMustBeComplete) {
  expectRefusal(" attributes {arena_bytes = 8192 : i64}", "", "has no memory plan; run exec-plan-memory first");
  expectRefusal("moe.model", "moe.madel", "module has no dictionary 'moe.model'");
  expectRefusal("tied = false", "tied = f32", "attribute f32 has no form in a manifest");
  OwningOpRef<ModuleOp> empty = parseSourceString<ModuleOp>("module {}", &context);
  EXPECT_TRUE(failed(buildManifestProgram(*empty)));
  EXPECT_EQ(message, "module has 0 exec.program, expected one");
}

TEST(KernelWork, SaysWhatIsMultiplied) {
  GemmSpec gemm;
  MlaAttentionSpec attention;
  MlaExpandedSpec expanded;
  EXPECT_EQ(workOf(gemm)["unit"], "f32");
  EXPECT_EQ(workOf(attention)["unit"], "f32");
  gemm.input = attention.cache = expanded.cache = DType::BF16;
  EXPECT_EQ(workOf(gemm)["unit"], "bf16");
  EXPECT_EQ(workOf(attention)["unit"], "bf16");
  EXPECT_EQ(workOf(expanded)["unit"], "bf16");
  gemm.input = DType::U8;
  EXPECT_EQ(workOf(gemm)["unit"], "int8");
}

} // namespace
