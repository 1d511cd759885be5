// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A whole trained model through the interpreter, against the logits and the text of an independent forward pass.
/// The program is written out here, apart from the importer, in the plain form and in the fused one.

#include "moe_reference_common.h"

#include "dialects/Moe/Reference/Interpreter.h"
#include "runtime/Support/Safetensors.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

using namespace mlir::moe;
using moec::DType;
using moec::SafetensorsFile;
using moec::test::Tensor;

namespace {

/// The tensors of some safetensors files.
class Files final : public moec::TensorSource {
public:
  void add(const std::string &path) {
    auto file = SafetensorsFile::open(std::string(MOEC_TEST_DIR "/models/") + path);
    ASSERT_TRUE(file) << file.message();
    files.push_back(std::move(*file));
  }
  moec::Result<moec::TensorView> tensor(const std::string &name) const override {
    for (const SafetensorsFile &file : files)
      if (auto it = file.tensors().find(name); it != file.tensors().end())
        return moec::TensorView{it->second.dtype, it->second.shape, file.data(it->second)};
    return moec::Error{"tensor '" + name + "' is in no file"};
  }
  template <typename T> std::vector<T> values(const std::string &name) const {
    auto view = tensor(name);
    EXPECT_TRUE(view) << view.message();
    std::vector<T> result(Tensor<T>::count(view->shape));
    std::memcpy(result.data(), view->data, result.size() * sizeof(T));
    return result;
  }

private:
  std::vector<SafetensorsFile> files;
};

/// tiny-shakespeare's program, from the numbers of its config.json.
class ModelText {
public:
  ModelText(const Files &files, bool fused) : files(files), fused(fused) {}

  std::string build() {
    std::string embedding = weight("model.embed_tokens.weight", {vocabulary, hidden});
    std::string x =
        op("moe.embed %tokens in " + embedding + " : tensor<?xi32>, " + typeOf(embedding) + " -> " + rows(hidden),
           rows(hidden));
    for (int64_t layer = 0; layer < layers; ++layer)
      x = block("model.layers." + std::to_string(layer), layer, x);
    x = op("moe.gather_rows " + x + "[%rows] : " + rows(hidden) + ", tensor<?xi32> -> " + rows(hidden), rows(hidden));
    std::string logits = linear(norm(x, hidden, "model.norm.weight"), "lm_head.weight", vocabulary, hidden);

    std::string caches;
    for (int64_t layer = 0; layer < layers; ++layer)
      caches += "moe.cache @kv." + std::to_string(layer) + " width " + std::to_string(rank + rotary) + "\n";
    return rope() + caches +
           "func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, "
           "%rows: tensor<?xi32>) -> " +
           rows(vocabulary) + " {\n" + body + "return " + logits + " : " + rows(vocabulary) + "\n}\n";
  }

private:
  static constexpr int64_t vocabulary = 1280, hidden = 256, layers = 4, heads = 8, queryRank = 128, rank = 64,
                           nope = 32, rotary = 16, value = 32, dense = 640, inner = 64, experts = 16;

  static std::string rows(int64_t width) { return "tensor<?x" + std::to_string(width) + "xf32>"; }
  static std::string perHead(int64_t width) {
    return "tensor<?x" + std::to_string(heads) + "x" + std::to_string(width) + "xf32>";
  }
  const std::string &typeOf(const std::string &value) { return types.at(value); }

  /// Appends an op. `results` follows its first result's name, as `:2` or `:2, %positions`.
  std::string op(const std::string &text, const std::string &type, const std::string &results = "") {
    std::string name = "%v" + std::to_string(next++);
    body += name + results + " = " + text + "\n";
    types[name] = type;
    return name;
  }

  /// A weight by name; FP8 ones are dequantized. `steps` are appended to the recipe, `family` stacks experts.
  std::string weight(const std::string &name, std::vector<int64_t> shape, std::string steps = "", bool family = false) {
    std::string first = name;
    if (size_t at = first.find("{e}"); at != std::string::npos)
      first.replace(at, 3, "0");
    bool fp8 = files.tensor(first)->dtype == DType::F8E4M3;
    std::vector<std::string> recipe;
    if (fp8)
      recipe.push_back("#moe.dequant<fp8 128x128, f32>");
    if (family)
      recipe.push_back("#moe.stack<" + std::to_string(experts) + ">");
    if (!steps.empty())
      recipe.push_back(steps);
    std::string text = "moe.weight [\"" + name + "\"" + (fp8 ? ", \"" + name + "_scale_inv\"]" : "]") + " recipe [";
    for (size_t i = 0; i < recipe.size(); ++i)
      text += (i ? ", " : "") + recipe[i];
    std::string type = "tensor<";
    for (int64_t dim : shape)
      type += std::to_string(dim) + "x";
    DType stored = files.tensor(first)->dtype;
    type += stored == DType::BF16 ? "bf16>" : "f32>";
    return op(text + "] : " + type, type);
  }

  std::string linear(const std::string &x, const std::string &name, int64_t out, int64_t in,
                     const std::string &residual = "") {
    std::string w = weight(name, {out, in});
    if (fused && !residual.empty())
      return op("moe.linear " + x + ", " + w + " add " + residual + " : " + rows(out) + " : " + rows(in) + ", " +
                    typeOf(w) + " -> " + rows(out),
                rows(out));
    std::string y =
        op("moe.linear " + x + ", " + w + " : " + rows(in) + ", " + typeOf(w) + " -> " + rows(out), rows(out));
    return residual.empty() ? y : add(residual, y);
  }
  std::string add(const std::string &a, const std::string &b) {
    return op("moe.add " + a + ", " + b + " : " + rows(hidden), rows(hidden));
  }
  std::string norm(const std::string &x, int64_t width, const std::string &name) {
    std::string w = weight(name, {width});
    return op("moe.rms_norm " + x + ", " + w + " eps 1.0e-6 : " + rows(width) + ", " + typeOf(w) + " -> " + rows(width),
              rows(width));
  }
  std::string reshape(const std::string &x, const std::string &from, const std::string &to) {
    return op("moe.reshape " + x + " : " + from + " -> " + to, to);
  }
  std::pair<std::string, std::string> split(const std::string &x, const std::string &from, const std::string &a,
                                            const std::string &b) {
    std::string both = op("moe.split " + x + " : " + from + " -> " + a + ", " + b, "", ":2");
    return {both + "#0", both + "#1"};
  }
  std::string rotate(const std::string &x, const std::string &type) {
    return op("moe.rope " + x + " at %positions by #rope : " + type + ", tensor<?xi32> -> " + type, type);
  }

  /// YaRN with factor 4 over 256 positions, both betas as in config.json.
  static std::string rope() {
    auto correction = [](double turns) {
      return rotary * std::log(256 / (2 * M_PI * turns)) / (2 * std::log(10000.0));
    };
    double low = std::max(std::floor(correction(32)), 0.0), high = std::min(std::ceil(correction(1)), rotary - 1.0);
    std::string text = "#rope = #moe.rope<factor = 1.0, inv_freq = [";
    for (int64_t i = 0; i < rotary / 2; ++i) {
      double theta = std::pow(10000.0, -2.0 * i / rotary), ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
      char number[40];
      std::snprintf(number, sizeof(number), "%.9e", theta * (1 - ramp) + theta / 4 * ramp);
      text += (i ? ", " : "") + std::string(number);
    }
    return text + "]>\n";
  }

  std::string attention(const std::string &prefix, int64_t layer, const std::string &x, const std::string &residual) {
    std::string index = ", tensor<?xi32>, tensor<?xi32>";
    std::string cq =
        norm(linear(x, prefix + "q_a_proj.weight", queryRank, hidden), queryRank, prefix + "q_a_layernorm.weight");
    std::string q = linear(cq, prefix + "q_b_proj.weight", heads * (nope + rotary), queryRank);
    auto [qn, qr] = split(reshape(q, rows(heads * (nope + rotary)), perHead(nope + rotary)), perHead(nope + rotary),
                          perHead(nope), perHead(rotary));
    qr = rotate(qr, perHead(rotary));
    std::string kvA = linear(x, prefix + "kv_a_proj_with_mqa.weight", rank + rotary, hidden);
    auto [c, kr] = split(kvA, rows(rank + rotary), rows(rank), rows(rotary));
    c = norm(c, rank, prefix + "kv_a_layernorm.weight");
    kr = rotate(kr, rows(rotary));

    double m = 0.1 * std::log(4.0) + 1;
    char scale[40];
    std::snprintf(scale, sizeof(scale), "%.17e", m * m / std::sqrt(double(nope + rotary)));
    std::string cache = "@kv." + std::to_string(layer), kvB = prefix + "kv_b_proj.weight", o;
    if (fused) {
      std::string both = std::to_string(heads) + ", ", end = std::to_string(nope + value) + ">";
      std::string uk = weight(kvB, {heads, nope, rank}, "#moe.head_rows<" + both + "0, " + std::to_string(nope) + ">");
      std::string uv = weight(kvB, {heads, value, rank}, "#moe.head_rows<" + both + std::to_string(nope) + ", " + end);
      o = op("moe.mla_attention " + cache + " query(" + qn + ", " + qr + ") entry(" + c + ", " + kr + ") up(" + uk +
                 ", " + uv + ") at(%positions, %slots) scale " + scale + " : (" + perHead(nope) + ", " +
                 perHead(rotary) + ", " + rows(rank) + ", " + rows(rotary) + ", " + typeOf(uk) + ", " + typeOf(uv) +
                 index + ") -> " + perHead(value),
             perHead(value));
    } else {
      std::string at = "%positions" + std::to_string(layer), in = "%slots" + std::to_string(layer);
      std::string context =
          op("moe.cache_append " + cache + "(" + c + ", " + kr + ") at %positions, %slots : (" + rows(rank) + ", " +
                 rows(rotary) + ")" + index + " -> (" + rows(rank) + ", " + rows(rotary) + ")" + index,
             "", ":2, " + at + ", " + in);
      std::string kv = linear(context + "#0", kvB, heads * (nope + value), rank);
      auto [kn, v] = split(reshape(kv, rows(heads * (nope + value)), perHead(nope + value)), perHead(nope + value),
                           perHead(nope), perHead(value));
      o = op("moe.attention query(" + qn + ", " + qr + ") key(" + kn + ", " + context + "#1) value(" + v +
                 ") at(%positions, %slots) context(" + at + ", " + in + ") scale " + scale + " : (" + perHead(nope) +
                 ", " + perHead(rotary) + ", " + perHead(nope) + ", " + rows(rotary) + ", " + perHead(value) + index +
                 index + ") -> " + perHead(value),
             perHead(value));
    }
    return linear(reshape(o, perHead(value), rows(heads * value)), prefix + "o_proj.weight", hidden, heads * value,
                  residual);
  }

  std::string ffn(const std::string &prefix, int64_t width, const std::string &x, const std::string &residual) {
    std::string h;
    if (fused) {
      std::string g = weight(prefix + "gate_proj.weight", {width, hidden}),
                  u = weight(prefix + "up_proj.weight", {width, hidden});
      h = op("moe.gate_up " + x + ", " + g + ", " + u + " : " + rows(hidden) + ", " + typeOf(g) + ", " + typeOf(u) +
                 " -> " + rows(width),
             rows(width));
    } else {
      std::string g = linear(x, prefix + "gate_proj.weight", width, hidden),
                  u = linear(x, prefix + "up_proj.weight", width, hidden);
      h = op("moe.swiglu " + g + ", " + u + " : " + rows(width), rows(width));
    }
    return linear(h, prefix + "down_proj.weight", hidden, width, residual);
  }

  std::string moe(const std::string &prefix, const std::string &x, const std::string &residual) {
    std::string logits = linear(x, prefix + "gate.weight", experts, hidden);
    std::string bias = weight(prefix + "gate.e_score_correction_bias", {experts});
    std::string routed = op("moe.route sigmoid topk(4) " + logits + " bias(" + bias + " : " + typeOf(bias) +
                                ") {groups = 4, topk_groups = 2, group_score = #moe.group_score<top2_sum>, "
                                "normalize = true, scale = 2.5} : " +
                                rows(experts) + " -> " + rows(4) + ", tensor<?x4xi32>",
                            "", ":2");
    auto expertWeight = [&](const std::string &name, int64_t out, int64_t in) {
      return weight(prefix + "experts.{e}." + name + ".weight", {experts, out, in}, "", /*family=*/true);
    };
    std::string g = expertWeight("gate_proj", inner, hidden), u = expertWeight("up_proj", inner, hidden),
                d = expertWeight("down_proj", hidden, inner);
    std::string shared = ffn(prefix + "shared_experts.", inner, x, fused ? residual : "");
    std::string y =
        op("moe.experts " + x + " route(" + routed + "#0, " + routed + "#1) ffn(" + g + ", " + u + ", " + d + ")" +
               (fused ? " add " + shared + " : " + rows(hidden) : "") + " : " + rows(hidden) + ", " + rows(4) +
               ", tensor<?x4xi32>, " + typeOf(g) + ", " + typeOf(u) + ", " + typeOf(d) + " -> " + rows(hidden),
           rows(hidden));
    return fused ? y : add(residual, add(y, shared));
  }

  std::string block(const std::string &prefix, int64_t layer, std::string x) {
    x = attention(prefix + ".self_attn.", layer, norm(x, hidden, prefix + ".input_layernorm.weight"), x);
    std::string n = norm(x, hidden, prefix + ".post_attention_layernorm.weight");
    return layer == 0 ? ffn(prefix + ".mlp.", dense, n, x) : moe(prefix + ".mlp.", n, x);
  }

  const Files &files;
  bool fused;
  std::string body;
  std::map<std::string, std::string> types;
  int next = 0;
};

class MoeReferenceModel : public testing::Test {
protected:
  MoeReferenceModel() { context.loadDialect<MoeDialect, mlir::func::FuncDialect>(); }

  mlir::OwningOpRef<mlir::ModuleOp> parse(const Files &files, bool fused) {
    auto module = mlir::parseSourceString<mlir::ModuleOp>(ModelText(files, fused).build(), &context);
    EXPECT_TRUE(module);
    return module;
  }
  static std::vector<int32_t> range(int64_t begin, int64_t end) {
    std::vector<int32_t> result(end - begin);
    std::iota(result.begin(), result.end(), begin);
    return result;
  }
  static InterpreterOptions options(InterpreterOptions::Precision precision) { return {precision, 256u << 20}; }

  /// All logits of the reference's tokens.
  Tensor<double> logits(const Files &files, bool fused, InterpreterOptions::Precision precision) {
    auto module = parse(files, fused);
    if (!module)
      return Tensor<double>();
    Interpreter interpreter(*module, files, options(precision));
    auto tokens = files.values<int32_t>("tokens");
    auto positions = range(0, tokens.size());
    auto result = interpreter.run(tokens, positions, std::vector<int32_t>(tokens.size()), positions);
    EXPECT_TRUE(mlir::succeeded(result));
    return mlir::succeeded(result) ? *result : Tensor<double>();
  }
  static double largestDifference(const Tensor<double> &a, const std::vector<float> &b) {
    EXPECT_EQ(a.data.size(), b.size());
    double largest = a.data.size() == b.size() ? 0 : INFINITY;
    for (size_t i = 0; i < std::min(a.data.size(), b.size()); ++i)
      largest = std::max(largest, std::abs(a.data[i] - b[i]));
    return largest;
  }

  mlir::MLIRContext context;
};

using Precision = InterpreterOptions::Precision;

TEST_F(MoeReferenceModel, LogitsEqualAnIndependentForwardPass) {
  Files files;
  files.add("tiny-shakespeare/model.safetensors");
  files.add("tiny-shakespeare/reference.safetensors");
  std::vector<float> expected = files.values<float>("logits");
  // Logits of order 10; the reference's own f32 sums are worth about 1e-5.
  EXPECT_LT(largestDifference(logits(files, false, Precision::F32), expected), 1e-4);
  EXPECT_LT(largestDifference(logits(files, true, Precision::F32), expected), 1e-4);
  EXPECT_LT(largestDifference(logits(files, false, Precision::F64), expected), 1e-4);
}

TEST_F(MoeReferenceModel, LogitsFromFp8EqualAnIndependentForwardPass) {
  Files files;
  files.add("tiny-shakespeare-fp8/model-00001-of-00002.safetensors");
  files.add("tiny-shakespeare-fp8/model-00002-of-00002.safetensors");
  files.add("tiny-shakespeare-fp8/reference.safetensors");
  std::vector<float> expected = files.values<float>("logits");
  EXPECT_LT(largestDifference(logits(files, false, Precision::F32), expected), 1e-4);
  EXPECT_LT(largestDifference(logits(files, true, Precision::F64), expected), 1e-4);
}

TEST_F(MoeReferenceModel, GreedyTextEqualsAnIndependentForwardPass) {
  Files files;
  files.add("tiny-shakespeare/model.safetensors");
  files.add("tiny-shakespeare/reference.safetensors");
  auto module = parse(files, /*fused=*/true);
  ASSERT_TRUE(module);
  Interpreter interpreter(*module, files, options(Precision::F32));
  auto greedy = files.values<int32_t>("greedy");
  size_t prompt = files.values<int32_t>("tokens").size();
  ASSERT_EQ(greedy.size(), prompt + 64);

  std::vector<int32_t> step(greedy.begin(), greedy.begin() + prompt), text = step;
  while (text.size() < greedy.size()) {
    auto positions = range(text.size() - step.size(), text.size());
    auto result = interpreter.run(step, positions, std::vector<int32_t>(step.size(), 3), {int32_t(step.size() - 1)});
    ASSERT_TRUE(mlir::succeeded(result));
    step = {int32_t(std::max_element(result->data.begin(), result->data.end()) - result->data.begin())};
    text.push_back(step[0]);
  }
  EXPECT_EQ(text, greedy);
}

TEST_F(MoeReferenceModel, PlainAndFusedAgreeOverRaggedSteps) {
  Files files;
  files.add("tiny-shakespeare/model.safetensors");
  auto plainModule = parse(files, false), fusedModule = parse(files, true);
  ASSERT_TRUE(plainModule && fusedModule);
  Interpreter plain(*plainModule, files, options(Precision::F64)), fused(*fusedModule, files, options(Precision::F64));
  struct Step {
    std::vector<int32_t> tokens, positions, slots, rows;
  };
  for (const Step &step : {Step{{0, 17, 300, 0, 1279, 42}, {0, 1, 2, 0, 1, 3}, {4, 4, 4, 1, 1, 4}, {5, 4}},
                           Step{{7, 8}, {4, 2}, {4, 1}, {0, 1, 0}}, Step{{9, 10, 11}, {3, 0, 1}, {1, 0, 0}, {}}}) {
    auto a = plain.run(step.tokens, step.positions, step.slots, step.rows);
    auto b = fused.run(step.tokens, step.positions, step.slots, step.rows);
    ASSERT_TRUE(mlir::succeeded(a) && mlir::succeeded(b));
    ASSERT_EQ(a->shape, (std::vector<int64_t>{int64_t(step.rows.size()), 1280}));
    EXPECT_LT(largestDifference(*a, std::vector<float>(b->data.begin(), b->data.end())), 1e-5);
    for (size_t i = 0; i < a->data.size(); ++i)
      ASSERT_NEAR(a->data[i], b->data[i], 1e-10);
  }
}

} // namespace
