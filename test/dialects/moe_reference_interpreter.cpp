// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The interpreter: state over steps, plain against fused programs, observers, kept weights, and every refusal.

#include "moe_reference_common.h"

#include "dialects/Moe/Reference/Interpreter.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

using namespace mlir::moe;
using mlir::failed;
using mlir::succeeded;
using moec::test::IndexTensor;
using moec::test::MapSource;
using moec::test::Random;
using moec::test::Tensor;
using testing::ElementsAre;
using testing::HasSubstr;

namespace {

/// Counts what is read.
class CountingSource final : public moec::TensorSource {
public:
  explicit CountingSource(const MapSource &source) : source(source) {}
  moec::Result<moec::TensorView> tensor(const std::string &name) const override {
    ++reads[name];
    return source.tensor(name);
  }
  mutable std::map<std::string, int> reads;

private:
  const MapSource &source;
};

/// One layer: latent attention with two heads of 3 + 2 and 4 channels, a router and three experts, a shared FFN.
const char *const plainModel = R"mlir(
#rope = #moe.rope<factor = 1.0, inv_freq = [0.5]>
moe.cache @kv width 7
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>)
    -> tensor<?x9xf32> {
  %embed = moe.weight ["embed"] : tensor<9x6xf32>
  %g = moe.weight ["norm"] : tensor<6xf32>
  %x = moe.embed %tokens in %embed : tensor<?xi32>, tensor<9x6xf32> -> tensor<?x6xf32>
  %n = moe.rms_norm %x, %g eps 1.0e-6 : tensor<?x6xf32>, tensor<6xf32> -> tensor<?x6xf32>
  %q_w = moe.weight ["q"] : tensor<10x6xf32>
  %q = moe.linear %n, %q_w : tensor<?x6xf32>, tensor<10x6xf32> -> tensor<?x10xf32>
  %q3 = moe.reshape %q : tensor<?x10xf32> -> tensor<?x2x5xf32>
  %qs:2 = moe.split %q3 : tensor<?x2x5xf32> -> tensor<?x2x3xf32>, tensor<?x2x2xf32>
  %qr = moe.rope %qs#1 at %positions by #rope : tensor<?x2x2xf32>, tensor<?xi32> -> tensor<?x2x2xf32>
  %kv_a_w = moe.weight ["kv_a"] : tensor<7x6xf32>
  %kv_a = moe.linear %n, %kv_a_w : tensor<?x6xf32>, tensor<7x6xf32> -> tensor<?x7xf32>
  %cs:2 = moe.split %kv_a : tensor<?x7xf32> -> tensor<?x5xf32>, tensor<?x2xf32>
  %kr = moe.rope %cs#1 at %positions by #rope : tensor<?x2xf32>, tensor<?xi32> -> tensor<?x2xf32>
  %C:2, %cp, %cslots = moe.cache_append @kv(%cs#0, %kr) at %positions, %slots
      : (tensor<?x5xf32>, tensor<?x2xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x5xf32>, tensor<?x2xf32>), tensor<?xi32>, tensor<?xi32>
  %kv_b = moe.weight ["kv_b"] : tensor<14x5xf32>
  %kv = moe.linear %C#0, %kv_b : tensor<?x5xf32>, tensor<14x5xf32> -> tensor<?x14xf32>
  %kv3 = moe.reshape %kv : tensor<?x14xf32> -> tensor<?x2x7xf32>
  %kvs:2 = moe.split %kv3 : tensor<?x2x7xf32> -> tensor<?x2x3xf32>, tensor<?x2x4xf32>
  %o3 = moe.attention query(%qs#0, %qr) key(%kvs#0, %C#1) value(%kvs#1) at(%positions, %slots)
      context(%cp, %cslots) scale 0.4
      : (tensor<?x2x3xf32>, tensor<?x2x2xf32>, tensor<?x2x3xf32>, tensor<?x2xf32>, tensor<?x2x4xf32>, tensor<?xi32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x4xf32>
  %o = moe.reshape %o3 : tensor<?x2x4xf32> -> tensor<?x8xf32>
  %o_w = moe.weight ["o"] : tensor<6x8xf32>
  %a = moe.linear %o, %o_w : tensor<?x8xf32>, tensor<6x8xf32> -> tensor<?x6xf32>
  %x1 = moe.add %x, %a : tensor<?x6xf32>
  %router = moe.weight ["router"] : tensor<3x6xf32>
  %logits = moe.linear %x1, %router : tensor<?x6xf32>, tensor<3x6xf32> -> tensor<?x3xf32>
  %w, %e = moe.route softmax topk(2) %logits : tensor<?x3xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %gate = moe.weight ["gate.{e}"] recipe [#moe.stack<3>] : tensor<3x4x6xf32>
  %up = moe.weight ["up.{e}"] recipe [#moe.stack<3>] : tensor<3x4x6xf32>
  %down = moe.weight ["down.{e}"] recipe [#moe.stack<3>] : tensor<3x6x4xf32>
  %y = moe.experts %x1 route(%w, %e) ffn(%gate, %up, %down) : tensor<?x6xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<3x4x6xf32>, tensor<3x4x6xf32>, tensor<3x6x4xf32> -> tensor<?x6xf32>
  %g0 = moe.weight ["gate.0"] : tensor<4x6xf32>
  %u0 = moe.weight ["up.0"] : tensor<4x6xf32>
  %d0 = moe.weight ["down.0"] : tensor<6x4xf32>
  %sg = moe.linear %x1, %g0 : tensor<?x6xf32>, tensor<4x6xf32> -> tensor<?x4xf32>
  %su = moe.linear %x1, %u0 : tensor<?x6xf32>, tensor<4x6xf32> -> tensor<?x4xf32>
  %sh = moe.swiglu %sg, %su : tensor<?x4xf32>
  %sd = moe.linear %sh, %d0 : tensor<?x4xf32>, tensor<6x4xf32> -> tensor<?x6xf32>
  %s = moe.add %y, %sd : tensor<?x6xf32>
  %x2 = moe.add %x1, %s : tensor<?x6xf32>
  %last = moe.gather_rows %x2[%rows] : tensor<?x6xf32>, tensor<?xi32> -> tensor<?x6xf32>
  %out = moe.linear %last, %embed : tensor<?x6xf32>, tensor<9x6xf32> -> tensor<?x9xf32>
  return %out : tensor<?x9xf32>
}
)mlir";

/// The same with the ops that fusion makes.
const char *const fusedModel = R"mlir(
#rope = #moe.rope<factor = 1.0, inv_freq = [0.5]>
moe.cache @kv width 7
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>)
    -> tensor<?x9xf32> {
  %embed = moe.weight ["embed"] : tensor<9x6xf32>
  %g = moe.weight ["norm"] : tensor<6xf32>
  %x = moe.embed %tokens in %embed : tensor<?xi32>, tensor<9x6xf32> -> tensor<?x6xf32>
  %n = moe.rms_norm %x, %g eps 1.0e-6 : tensor<?x6xf32>, tensor<6xf32> -> tensor<?x6xf32>
  %q_w = moe.weight ["q"] : tensor<10x6xf32>
  %q = moe.linear %n, %q_w : tensor<?x6xf32>, tensor<10x6xf32> -> tensor<?x10xf32>
  %q3 = moe.reshape %q : tensor<?x10xf32> -> tensor<?x2x5xf32>
  %qs:2 = moe.split %q3 : tensor<?x2x5xf32> -> tensor<?x2x3xf32>, tensor<?x2x2xf32>
  %qr = moe.rope %qs#1 at %positions by #rope : tensor<?x2x2xf32>, tensor<?xi32> -> tensor<?x2x2xf32>
  %kv_a_w = moe.weight ["kv_a"] : tensor<7x6xf32>
  %kv_a = moe.linear %n, %kv_a_w : tensor<?x6xf32>, tensor<7x6xf32> -> tensor<?x7xf32>
  %cs:2 = moe.split %kv_a : tensor<?x7xf32> -> tensor<?x5xf32>, tensor<?x2xf32>
  %kr = moe.rope %cs#1 at %positions by #rope : tensor<?x2xf32>, tensor<?xi32> -> tensor<?x2xf32>
  %uk = moe.weight ["kv_b"] recipe [#moe.head_rows<2, 0, 3>] : tensor<2x3x5xf32>
  %uv = moe.weight ["kv_b"] recipe [#moe.head_rows<2, 3, 7>] : tensor<2x4x5xf32>
  %o3 = moe.mla_attention @kv query(%qs#0, %qr) entry(%cs#0, %kr) up(%uk, %uv) at(%positions, %slots) scale 0.4
      : (tensor<?x2x3xf32>, tensor<?x2x2xf32>, tensor<?x5xf32>, tensor<?x2xf32>, tensor<2x3x5xf32>, tensor<2x4x5xf32>,
         tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x4xf32>
  %o = moe.reshape %o3 : tensor<?x2x4xf32> -> tensor<?x8xf32>
  %o_w = moe.weight ["o"] : tensor<6x8xf32>
  %x1 = moe.linear %o, %o_w add %x : tensor<?x6xf32> : tensor<?x8xf32>, tensor<6x8xf32> -> tensor<?x6xf32>
  %router = moe.weight ["router"] : tensor<3x6xf32>
  %logits = moe.linear %x1, %router : tensor<?x6xf32>, tensor<3x6xf32> -> tensor<?x3xf32>
  %w, %e = moe.route softmax topk(2) %logits : tensor<?x3xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %g0 = moe.weight ["gate.0"] : tensor<4x6xf32>
  %u0 = moe.weight ["up.0"] : tensor<4x6xf32>
  %d0 = moe.weight ["down.0"] : tensor<6x4xf32>
  %sh = moe.gate_up %x1, %g0, %u0 : tensor<?x6xf32>, tensor<4x6xf32>, tensor<4x6xf32> -> tensor<?x4xf32>
  %s = moe.linear %sh, %d0 add %x1 : tensor<?x6xf32> : tensor<?x4xf32>, tensor<6x4xf32> -> tensor<?x6xf32>
  %gate = moe.weight ["gate.{e}"] recipe [#moe.stack<3>] : tensor<3x4x6xf32>
  %up = moe.weight ["up.{e}"] recipe [#moe.stack<3>] : tensor<3x4x6xf32>
  %down = moe.weight ["down.{e}"] recipe [#moe.stack<3>] : tensor<3x6x4xf32>
  %x2 = moe.experts %x1 route(%w, %e) ffn(%gate, %up, %down) add %s : tensor<?x6xf32> : tensor<?x6xf32>,
      tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x4x6xf32>, tensor<3x4x6xf32>, tensor<3x6x4xf32> -> tensor<?x6xf32>
  %last = moe.gather_rows %x2[%rows] : tensor<?x6xf32>, tensor<?xi32> -> tensor<?x6xf32>
  %out = moe.linear %last, %embed : tensor<?x6xf32>, tensor<9x6xf32> -> tensor<?x9xf32>
  return %out : tensor<?x9xf32>
}
)mlir";

class MoeReferenceInterpreter : public testing::Test {
protected:
  using Precision = InterpreterOptions::Precision;

  MoeReferenceInterpreter() : handler(&context, [this](mlir::Diagnostic &diagnostic) { message += diagnostic.str(); }) {
    context.loadDialect<MoeDialect, mlir::func::FuncDialect>();
    context.allowUnregisteredDialects();
    Random random(21);
    auto add = [&](const std::string &name, std::vector<int64_t> shape) {
      weights.add(name, random.tensor<float>(std::move(shape)));
    };
    add("embed", {9, 6});
    add("norm", {6});
    add("q", {10, 6});
    add("kv_a", {7, 6});
    add("kv_b", {14, 5});
    add("o", {6, 8});
    add("router", {3, 6});
    for (std::string e : {"0", "1", "2"}) {
      add("gate." + e, {4, 6});
      add("up." + e, {4, 6});
      add("down." + e, {6, 4});
    }
  }

  mlir::ModuleOp parse(const std::string &text) {
    modules.push_back(mlir::parseSourceString<mlir::ModuleOp>(text, &context));
    EXPECT_TRUE(modules.back()) << message;
    return *modules.back();
  }

  /// What calling @f with `arguments` says where it fails.
  std::string refusal(const std::string &text, std::vector<ReferenceValue> arguments) {
    mlir::ModuleOp module = parse(text);
    if (!module)
      return "does not parse";
    message.clear();
    Interpreter interpreter(module, weights);
    return failed(interpreter.call("f", std::move(arguments))) ? message : "no error";
  }
  static ReferenceValue real(std::vector<int64_t> shape) { return Tensor<double>(std::move(shape)); }
  static ReferenceValue index(std::vector<int32_t> values) {
    int64_t size = values.size();
    return IndexTensor({size}, std::move(values));
  }

  mlir::MLIRContext context;
  std::string message; ///< of all diagnostics so far
  mlir::ScopedDiagnosticHandler handler;
  MapSource weights;
  std::vector<mlir::OwningOpRef<mlir::ModuleOp>> modules;
};

TEST_F(MoeReferenceInterpreter, PlainAndFusedProgramsAgreeAndStepsMayBeCut) {
  Interpreter plain(parse(plainModel), weights, {.precision = Precision::F64});
  Interpreter fused(parse(fusedModel), weights, {.precision = Precision::F64});
  Interpreter cut(parse(plainModel), weights, {.precision = Precision::F64});
  auto whole = plain.run({1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}, {4, 2});
  auto wholeFused = fused.run({1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}, {4, 2});
  ASSERT_TRUE(succeeded(whole) && succeeded(wholeFused)) << message;
  ASSERT_EQ(whole->shape, (std::vector<int64_t>{2, 9}));
  for (int i = 0; i < 18; ++i)
    EXPECT_NEAR(whole->data[i], wholeFused->data[i], 1e-13);

  // The same sequence in another slot, in two steps beside another sequence.
  auto first = cut.run({8, 1, 2, 3}, {0, 0, 1, 2}, {1, 6, 6, 6}, {3});
  auto second = cut.run({4, 7, 5}, {3, 1, 4}, {6, 1, 6}, {2});
  ASSERT_TRUE(succeeded(first) && succeeded(second)) << message;
  EXPECT_EQ(std::vector<double>(whole->data.begin() + 9, whole->data.end()), first->data);
  EXPECT_EQ(std::vector<double>(whole->data.begin(), whole->data.begin() + 9), second->data);
}

TEST_F(MoeReferenceInterpreter, FloatIsCloseToDoubleAndRoundedToIt) {
  Interpreter single(parse(plainModel), weights), exact(parse(plainModel), weights, {.precision = Precision::F64});
  auto a = single.run({1, 2, 3}, {0, 1, 2}, {0, 0, 0}, {2}), b = exact.run({1, 2, 3}, {0, 1, 2}, {0, 0, 0}, {2});
  ASSERT_TRUE(succeeded(a) && succeeded(b)) << message;
  bool differs = false;
  for (int i = 0; i < 9; ++i) {
    EXPECT_EQ(a->data[i], double(float(a->data[i])));
    EXPECT_NEAR(a->data[i], b->data[i], 1e-5);
    differs |= a->data[i] != b->data[i];
  }
  EXPECT_TRUE(differs);
}

TEST_F(MoeReferenceInterpreter, NoTokensAndNoRowsAreAStep) {
  Interpreter interpreter(parse(plainModel), weights);
  auto none = interpreter.run({}, {}, {}, {});
  ASSERT_TRUE(succeeded(none)) << message;
  EXPECT_EQ(none->shape, (std::vector<int64_t>{0, 9}));
}

TEST_F(MoeReferenceInterpreter, ObserverSeesEveryOpInOrder) {
  Interpreter interpreter(parse(fusedModel), weights);
  std::vector<std::string> names;
  ReferenceValue experts, logits;
  interpreter.setObserver([&](mlir::Operation *op, mlir::ArrayRef<ReferenceValue> results) {
    names.push_back(op->getName().getStringRef().str());
    EXPECT_EQ(results.size(), op->getNumResults());
    if (mlir::isa<RouteOp>(op))
      experts = results[1];
    logits = results[0];
  });
  auto result = interpreter.run({1, 2}, {0, 1}, {0, 0}, {1});
  ASSERT_TRUE(succeeded(result)) << message;
  EXPECT_THAT(names, ElementsAre("moe.embed", "moe.rms_norm", "moe.linear", "moe.reshape", "moe.split", "moe.rope",
                                 "moe.linear", "moe.split", "moe.rope", "moe.mla_attention", "moe.reshape",
                                 "moe.linear", "moe.linear", "moe.route", "moe.gate_up", "moe.linear", "moe.experts",
                                 "moe.gather_rows", "moe.linear"));
  EXPECT_EQ(std::get<Tensor<double>>(logits), *result);
  EXPECT_EQ(std::get<IndexTensor>(experts).shape, (std::vector<int64_t>{2, 2}));
}

TEST_F(MoeReferenceInterpreter, WeightsAreDroppedOrKeptWithinABudget) {
  for (auto [bytes, embeds, routers] : {std::tuple{0, 4, 2}, {9 * 6 * 4, 1, 2}, {1 << 20, 1, 1}}) {
    CountingSource counting(weights);
    Interpreter interpreter(parse(plainModel), counting, {.keepWeightBytes = uint64_t(bytes)});
    for (int32_t position : {0, 1})
      ASSERT_TRUE(succeeded(interpreter.run({1}, {position}, {0}, {0}))) << message;
    EXPECT_EQ(counting.reads["embed"], embeds) << bytes; // used by two ops in each of two steps
    EXPECT_EQ(counting.reads["router"], routers) << bytes;
  }
}

TEST_F(MoeReferenceInterpreter, ResetForgetsTheCaches) {
  Interpreter interpreter(parse(plainModel), weights);
  ASSERT_TRUE(succeeded(interpreter.run({1}, {0}, {0}, {0})));
  ASSERT_TRUE(succeeded(interpreter.run({1}, {1}, {0}, {0})));
  interpreter.reset();
  EXPECT_TRUE(failed(interpreter.run({1}, {2}, {0}, {0})));
  EXPECT_THAT(message, HasSubstr("slot 0 reaches position 2, but position 0 was never given"));
}

/// To nearest even, in both precisions, the step's own entries too; what lies between goes to the even neighbour.
TEST_F(MoeReferenceInterpreter, CachesOfBf16RoundEntries) {
  mlir::ModuleOp module = parse(R"mlir(
moe.cache @kv width 2 of bf16
func.func @f(%a: tensor<?x1xf32>, %b: tensor<?x1xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x1xf32>, tensor<?x1xf32>) {
  %c:2, %cp, %cs = moe.cache_append @kv(%a, %b) at %p, %s
      : (tensor<?x1xf32>, tensor<?x1xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x1xf32>, tensor<?x1xf32>), tensor<?xi32>, tensor<?xi32>
  return %c#0, %c#1 : tensor<?x1xf32>, tensor<?x1xf32>
}
)mlir");
  for (Precision precision : {Precision::F32, Precision::F64}) {
    Interpreter interpreter(module, weights, {.precision = precision});
    auto parts =
        interpreter.call("f", {Tensor<double>({2, 1}, {1 + 0x1p-8, 1 + 3 * 0x1p-8}),
                               Tensor<double>({2, 1}, {-1 - 0x1.8p-8, 0x1p-100}), index({0, 1}), index({0, 0})});
    ASSERT_TRUE(mlir::succeeded(parts)) << message;
    EXPECT_EQ(std::get<Tensor<double>>((*parts)[0]).data, (std::vector<double>{1, 1 + 0x1p-6}));
    EXPECT_EQ(std::get<Tensor<double>>((*parts)[1]).data, (std::vector<double>{-1 - 0x1p-7, 0x1p-100}));
  }
}

/// Latents in groups of 128 of which the last one has 2 channels, each with its scale; the rope part in bf16.
TEST_F(MoeReferenceInterpreter, CachesOfCodesRoundGroups) {
  const std::string program = R"mlir(
moe.cache @kv width 131 of #moe.cache_codes<CODES, 130>
func.func @f(%a: tensor<?x130xf32>, %b: tensor<?x1xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x130xf32>, tensor<?x1xf32>) {
  %c:2, %cp, %cs = moe.cache_append @kv(%a, %b) at %p, %s
      : (tensor<?x130xf32>, tensor<?x1xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x130xf32>, tensor<?x1xf32>), tensor<?xi32>, tensor<?xi32>
  return %c#0, %c#1 : tensor<?x130xf32>, tensor<?x1xf32>
}
)mlir";
  const double infinity = std::numeric_limits<double>::infinity();
  struct Case {
    std::string codes;
    std::vector<double> first, last; ///< what a group of 128 begins with, and one of 2
    std::vector<double> expectedFirst, expectedLast;
  };
  const std::vector<Case> cases = {
      // Scales 1 and 2. Ties go to even codes.
      {"int8", {127, 0.5, -1.5, 2.5, 0}, {254, -3}, {127, 0, -2, 2, 0}, {254, -4}},
      {"f8e4m3", {448, 17, 19, -0.0, 0x1p-10, 0x1.8p-9}, {896, -34}, {448, 16, 20, 0, 0, 0x1p-8}, {896, -32}},
      // What is read is rounded to bf16: 127 * (1 + 2^-9), and 448 * (1 + 2^-9).
      {"int8", {127.248046875}, {0, 0}, {127}, {0, 0}},
      {"f8e4m3", {448.875}, {0, 0}, {448}, {0, 0}},
      // A group without numbers is lost, and no other.
      {"int8", {1, infinity, 3}, {127, 1}, {NAN, NAN, NAN, NAN}, {127, 1}},
      {"f8e4m3", {448, 1}, {NAN, 5}, {448, 1}, {NAN, NAN}},
      // Scales whose inverse is too large.
      {"int8", {0x1p-130}, {127, 1}, {0}, {127, 1}},
  };
  for (const Case &test : cases)
    for (Precision precision : {Precision::F32, Precision::F64}) {
      std::string text = program;
      text.replace(text.find("CODES"), 5, test.codes);
      Interpreter interpreter(parse(text), weights, {.precision = precision});
      Tensor<double> latent({1, 130});
      std::copy(test.first.begin(), test.first.end(), latent.data.begin());
      std::copy(test.last.begin(), test.last.end(), latent.data.begin() + 128);
      auto parts = interpreter.call("f", {latent, Tensor<double>({1, 1}, {1 + 3 * 0x1p-8}), index({0}), index({0})});
      ASSERT_TRUE(mlir::succeeded(parts)) << message;
      const std::vector<double> &read = std::get<Tensor<double>>((*parts)[0]).data;
      auto expect = [&](size_t at, double expected) {
        EXPECT_TRUE(read[at] == expected || (std::isnan(read[at]) && std::isnan(expected)))
            << test.codes << "[" << at << "] is " << read[at] << ", expected " << expected;
      };
      for (auto [i, expected] : llvm::enumerate(test.expectedFirst))
        expect(i, expected);
      for (auto [i, expected] : llvm::enumerate(test.expectedLast))
        expect(128 + i, expected);
      EXPECT_EQ(std::get<Tensor<double>>((*parts)[1]).data, (std::vector<double>{1 + 0x1p-6}));
    }
}

TEST_F(MoeReferenceInterpreter, RefusesBadSteps) {
  Interpreter interpreter(parse(plainModel), weights);
  auto refuse = [&](std::vector<int32_t> tokens, std::vector<int32_t> positions, std::vector<int32_t> slots,
                    std::vector<int32_t> rows) {
    message.clear();
    return failed(interpreter.run(tokens, positions, slots, rows)) ? message : "no error";
  };
  EXPECT_EQ(refuse({1, 2}, {0}, {0, 0}, {}), "a step has 2 tokens, but 1 positions and 2 slots");
  EXPECT_EQ(refuse({1}, {-1}, {0}, {}), "positions[0] of a step is -1, expected no negative value");
  EXPECT_EQ(refuse({1, 1}, {0, 1}, {0, -5}, {}), "slots[1] of a step is -5, expected no negative value");
  EXPECT_EQ(refuse({1, 9}, {0, 1}, {0, 0}, {}), "tokens[1] is 9, expected 0 <= tokens < 9");
  EXPECT_EQ(refuse({-1}, {0}, {0}, {}), "tokens[0] is -1, expected 0 <= tokens < 9");
  EXPECT_EQ(refuse({1}, {0}, {0}, {1}), "rows[0] is 1, expected 0 <= rows < 1");
  EXPECT_EQ(refuse({1}, {2147483647}, {0}, {}), "slot 0 reaches position 2147483647, but position 1 was never given");
  EXPECT_EQ(refuse({1, 1}, {1, 1}, {0, 0}, {}), "slot 0 has position 1 twice in one step");
  EXPECT_EQ(refuse({1}, {1}, {0}, {0}), "no error");
}

TEST_F(MoeReferenceInterpreter, NamesTheOpThatItDoesNotKnow) {
  EXPECT_EQ(refusal(R"(func.func @f(%x: tensor<?x2xf32>) -> tensor<?x2xf32> {
                         %y = "other.op"(%x) : (tensor<?x2xf32>) -> tensor<?x2xf32>
                         return %y : tensor<?x2xf32>
                       })",
                    {real({1, 2})}),
            "the reference interpreter does not know 'other.op'");
  EXPECT_EQ(refusal(R"(func.func @f() { "other.end"() : () -> () })", {}),
            "the reference interpreter does not know 'other.end'");
}

TEST_F(MoeReferenceInterpreter, RefusesFunctionsAndArgumentsThatDoNotFit) {
  std::string text = "func.func @f(%x: tensor<?x2xf32>, %i: tensor<?xi32>) { return }";
  EXPECT_EQ(refusal("func.func @g() { return }", {}), "has no function @f");
  EXPECT_EQ(refusal("func.func private @f()", {}), "has 0 blocks, but the reference interpreter runs functions of one");
  EXPECT_EQ(refusal(text, {real({1, 2})}), "takes 2 arguments, but 1 are given");
  EXPECT_EQ(refusal(text, {real({1, 3}), index({})}), "argument 0 is 'tensor<?x2xf32>', but reals [1, 3] are given");
  EXPECT_EQ(refusal(text, {real({1, 2}), real({1})}), "argument 1 is 'tensor<?xi32>', but reals [1] are given");
  EXPECT_EQ(refusal(text, {index({1}), index({1})}), "argument 0 is 'tensor<?x2xf32>', but integers [1] are given");
  EXPECT_EQ(refusal(text, {real({1, 2}), index({1})}), "no error");

  Interpreter noLogits(parse("func.func @step(%t: tensor<?xi32>, %p: tensor<?xi32>, %s: tensor<?xi32>, "
                             "%r: tensor<?xi32>) -> tensor<?xi32> { return %t : tensor<?xi32> }"),
                       weights);
  message.clear();
  EXPECT_TRUE(failed(noLogits.run({}, {}, {}, {})));
  EXPECT_EQ(message, "@step does not return one tensor of logits");
}

TEST_F(MoeReferenceInterpreter, RefusesWeightsThatAreNotWhatTheProgramSays) {
  auto linear = [](const std::string &source, const std::string &type) {
    return "func.func @f(%x: tensor<?x6xf32>) -> tensor<?x3xf32> {\n%w = moe.weight [\"" + source + "\"] : tensor<" +
           type + ">\n%y = moe.linear %x, %w : tensor<?x6xf32>, tensor<" + type +
           "> -> tensor<?x3xf32>\nreturn %y : tensor<?x3xf32>\n}";
  };
  EXPECT_EQ(refusal(linear("absent", "3x6xf32"), {real({1, 6})}), "tensor 'absent' is not in the checkpoint");
  EXPECT_EQ(refusal(linear("router", "3x6xbf16"), {real({1, 6})}),
            "is F32 [3, 6] in the checkpoint, but 'tensor<3x6xbf16>' in the program");
  EXPECT_EQ(refusal(linear("q", "3x6xf32"), {real({1, 6})}),
            "is F32 [10, 6] in the checkpoint, but 'tensor<3x6xf32>' in the program");
  EXPECT_EQ(refusal(linear("router", "3x6xf32"), {real({1, 6})}), "no error");
}

TEST_F(MoeReferenceInterpreter, RefusesSizesThatDisagreeAtRunTime) {
  EXPECT_EQ(refusal(R"(func.func @f(%x: tensor<?x2xf32>, %y: tensor<?x2xf32>) -> tensor<?x2xf32> {
                         %z = moe.add %x, %y : tensor<?x2xf32>
                         return %z : tensor<?x2xf32>
                       })",
                    {real({3, 2}), real({4, 2})}),
            "rhs is [4, 2], but lhs has 3 in place of its 4");
  std::string gather = R"(func.func @f(%x: tensor<?x2xf32>, %r: tensor<?xi32>) -> tensor<4x2xf32> {
                         %z = moe.gather_rows %x[%r] : tensor<?x2xf32>, tensor<?xi32> -> tensor<4x2xf32>
                         return %z : tensor<4x2xf32>
                       })";
  EXPECT_EQ(refusal(gather, {real({3, 2}), index({0})}), "gives [1, 2], but its type says 'tensor<4x2xf32>'");
  EXPECT_EQ(refusal(gather, {real({3, 2}), index({0, 1, 2, -1})}), "rows[3] is -1, expected 0 <= rows < 3");
  EXPECT_EQ(refusal(gather, {real({3, 2}), index({0, 1, 2, 0})}), "no error");
}

TEST_F(MoeReferenceInterpreter, RefusesExpertsThatDoNotExistAndQueriesThatSeeNothing) {
  EXPECT_EQ(refusal(R"(func.func @f(%x: tensor<?x6xf32>, %w: tensor<?x1xf32>, %e: tensor<?x1xi32>) -> tensor<?x6xf32> {
                         %g = moe.weight ["gate.{e}"] recipe [#moe.stack<3>] : tensor<3x4x6xf32>
                         %d = moe.weight ["down.{e}"] recipe [#moe.stack<3>] : tensor<3x6x4xf32>
                         %y = moe.experts %x route(%w, %e) ffn(%g, %g, %d) : tensor<?x6xf32>, tensor<?x1xf32>,
                           tensor<?x1xi32>, tensor<3x4x6xf32>, tensor<3x4x6xf32>, tensor<3x6x4xf32> -> tensor<?x6xf32>
                         return %y : tensor<?x6xf32>
                       })",
                    {real({1, 6}), real({1, 1}), IndexTensor({1, 1}, {3})}),
            "experts[0] is 3, expected 0 <= experts < 3");
  std::string attention = R"(
    func.func @f(%q: tensor<?x1x1xf32>, %k: tensor<?x1x1xf32>, %kr: tensor<?x1xf32>, %p: tensor<?xi32>,
                 %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) -> tensor<?x1x1xf32> {
      %y = moe.attention query(%q, %q) key(%k, %kr) value(%k) at(%p, %s) context(%cp, %cs) scale 1.0
        : (tensor<?x1x1xf32>, tensor<?x1x1xf32>, tensor<?x1x1xf32>, tensor<?x1xf32>, tensor<?x1x1xf32>, tensor<?xi32>,
           tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x1x1xf32>
      return %y : tensor<?x1x1xf32>
    })";
  auto arguments = [](int32_t slot) {
    return std::vector<ReferenceValue>{real({1, 1, 1}), real({2, 1, 1}), real({2, 1}), index({4}),
                                       index({slot}),   index({0, 5}),   index({2, 3})};
  };
  EXPECT_EQ(refusal(attention, arguments(2)), "no error");
  EXPECT_EQ(refusal(attention, arguments(3)), "query 0 (slot 3, position 4) sees no context row");
}

} // namespace
