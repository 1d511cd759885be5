// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A whole artifact made by hand, so that the runtime is tested without the
/// compiler: its kernels are model_kernels.c, built beside the tests.

#ifndef MOEC_TEST_RUNTIME_MODEL_TINY_H
#define MOEC_TEST_RUNTIME_MODEL_TINY_H

#include "runtime/Hash.h"
#include "runtime/KernelAbi.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Safetensors.h"
#include "test/runtime/TemporaryDirectory.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace moec::test {

template <typename T> T take(Result<T> result) {
  if (!result.ok()) {
    ADD_FAILURE() << result.message();
    std::abort();
  }
  return std::move(*result);
}

#define EXPECT_OK(expr)                                                                                                \
  do {                                                                                                                 \
    auto status = (expr);                                                                                              \
    EXPECT_TRUE(status.ok()) << status.message();                                                                      \
  } while (false)

/// The artifact of the tiny model; change `manifest`, then `write`.
struct TinyArtifact {
  static constexpr int64_t D = 6, V = 11, tail = 37;
  static constexpr int64_t maxTokens = 50;

  Json manifest;
  std::vector<float> table, head;

  explicit TinyArtifact(int64_t maxContext = 200) {
    for (int64_t i = 0; i < V * D; ++i) {
      table.push_back(static_cast<float>(i * 37 % 101 - 50) / 7);
      head.push_back(static_cast<float>(i * 53 % 97 - 48) / 9);
    }
    Json program = Json::parse(R"({
      "max_tokens": 50, "arena_bytes": 4096,
      "caches": [{"name": "kv.0", "dtype": "F32", "width": 6}],
      "buffers": [{"name": "x", "dtype": "F32", "shape": ["T", 6], "offset": 0, "bytes": 1200},
                  {"name": "y", "dtype": "F32", "shape": ["T", ["*", 2, 3]], "offset": 2048, "bytes": 1200}],
      "launches": [
        {"kernel": 0, "label": "embed", "grid": ["T"], "writes": [3],
         "args": [{"input": "tokens"}, {"weight": "table"}, {"weight": "tail"}, {"buffer": 0}]},
        {"kernel": 1, "label": "append", "grid": [["ceildiv", ["*", "T", 8], 8], 1000], "writes": [4],
         "args": [{"buffer": 0}, {"input": "positions"}, {"input": "slots"}, {"input": "page_table"}, {"cache": 0}]},
        {"kernel": 2, "label": "mix", "grid": [["*", "T", 2]], "writes": [4],
         "args": [{"input": "positions"}, {"input": "slots"}, {"input": "page_table"}, {"cache": 0}, {"buffer": 1}]},
        {"kernel": 3, "label": "clear", "grid": ["R"], "writes": [0], "args": [{"output": "logits"}]},
        {"kernel": 4, "label": "head", "grid": [["+", ["*", "R", 10], ["mod", "R", 1000]]], "writes": [3],
         "args": [{"buffer": 1}, {"input": "rows"}, {"weight": "both", "offset": 24}, {"output": "logits"}]}
      ]})");
    manifest = Json{{"format", "moec-artifact"}, {"version", 1}, {"abi", MOE_ABI_VERSION}, {"compiler", "by hand"}};
    manifest["model"] = Json{{"type", "tiny"}, {"name", "tiny"}, {"vocab", V},
                             {"hidden", D},    {"layers", 1},    {"max_context", maxContext},
                             {"bos", 0},       {"eos", {1}}};
    manifest["target"] = "cpu";
    for (const char *symbol : {"tiny_embed", "tiny_append", "tiny_mix", "tiny_clear", "tiny_head"})
      manifest["kernels"].push_back(Json{{"symbol", symbol}, {"kind", "test"}, {"spec", Json::object()}});
    manifest["kernels"][0]["work"] = Json{{"token_bytes", D * 4}};
    manifest["program"] = program;
  }

  /// Has the program give tokens as well.
  void addArgmax() {
    manifest["kernels"].push_back(Json{{"symbol", "tiny_argmax"}, {"kind", "test"}, {"spec", Json::object()}});
    manifest["program"]["launches"].push_back(
        Json::parse(R"({"kernel": 5, "label": "argmax", "grid": ["R"], "writes": [3],
      "args": [{"buffer": 1}, {"input": "rows"}, {"weight": "both", "offset": 24}, {"output": "argmax"}]})"));
  }
  /// Writes code and weights to `dir` and describes them in the manifest.
  void writeFiles(const std::string &dir) {
    std::filesystem::create_directories(dir + "/code");
    const std::string code = dir + "/code/x86-64.so", weights = dir + "/weights-00001.safetensors";
    std::filesystem::copy_file(TINY_KERNELS, code, std::filesystem::copy_options::overwrite_existing);
    // `both` has a row in front of the head, to be skipped by an offset; `tail` fills the file up to a page's end.
    std::vector<TensorSpec> specs = {{"table", DType::F32, {V, D}}, {"both", DType::F32, {V + 1, D}}};
    const int64_t used = (V * D + (V + 1) * D + tail) * 4;
    specs.push_back({"pad", DType::U8, {(used + 4095) / 4096 * 4096 - used}});
    specs.push_back({"tail", DType::F32, {tail}});
    SafetensorsWriter writer = take(SafetensorsWriter::create(weights, specs));
    EXPECT_OK(writer.write("table", 0, table.data(), table.size() * 4));
    EXPECT_OK(writer.write("both", D * 4, head.data(), head.size() * 4));
    EXPECT_OK(writer.finish());
    auto describe = [](const std::string &path) {
      return Json{{"bytes", std::filesystem::file_size(path)}, {"xxh3", take(xxh3HexOfFile(path))}};
    };
    Json codeEntry = {{"level", "x86-64"}, {"file", "code/x86-64.so"}};
    codeEntry.update(describe(code));
    Json weightsEntry = {{"file", "weights-00001.safetensors"}};
    weightsEntry.update(describe(weights));
    manifest["code"] = Json::array({codeEntry});
    manifest["weights"] = Json::array({weightsEntry});
  }
  void writeManifest(const std::string &dir) const { EXPECT_OK(writeFile(dir + "/manifest.json", manifest.dump(1))); }
  void write(const std::string &dir) {
    writeFiles(dir);
    writeManifest(dir);
  }

  /// Letters, both halves of "é" and two special tokens; for a chat model two of the letters are the tags of turns.
  static void writeTokenizer(const std::string &dir, bool chat = false) {
    const std::string f = chat ? "<｜User｜>" : "f", g = chat ? "<｜Assistant｜>" : "g";
    Json vocab = {{"<s>", 0}, {"</s>", 1}, {"a", 2}, {"b", 3}, {"c", 4}, {"d", 5},
                  {"e", 6},   {f, 7},      {g, 8},   {"Ã", 9}, {"©", 10}};
    Json added = Json::array();
    for (const auto &[content, id] : vocab.items())
      if (content.starts_with("<"))
        added.push_back({{"id", id},
                         {"content", content},
                         {"special", id < 2},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", false}});
    Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
    Json post = Json::parse(R"({"type": "TemplateProcessing", "pair": [],
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}})");
    Json tokenizer = {{"version", "1.0"},
                      {"added_tokens", added},
                      {"normalizer", nullptr},
                      {"pre_tokenizer", bytes},
                      {"post_processor", post},
                      {"decoder", bytes},
                      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
    EXPECT_OK(writeFile(dir + "/tokenizer.json", tokenizer.dump()));
    if (chat)
      EXPECT_OK(writeFile(dir + "/tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})"));
  }

  /// The logits [tokens, V] that the model gives to a sequence, from the definition.
  std::vector<float> reference(const std::vector<int32_t> &tokens) const {
    std::vector<float> logits;
    for (size_t t = 0; t < tokens.size(); ++t) {
      float y[D] = {};
      for (int64_t d = 0; d < D; ++d)
        for (size_t j = 0; j <= t; ++j)
          y[d] += table[tokens[j] * D + d] / static_cast<float>(1 + t - j);
      for (int64_t v = 0; v < V; ++v) {
        float sum = 0;
        for (int64_t d = 0; d < D; ++d)
          sum += y[d] * head[v * D + d];
        logits.push_back(sum);
      }
    }
    return logits;
  }
};

} // namespace moec::test

#endif // MOEC_TEST_RUNTIME_MODEL_TINY_H
