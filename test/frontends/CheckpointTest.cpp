// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Checkpoint.h"
#include "Support.h"
#include "frontends/HuggingFace/GgufNames.h"
#include "runtime/Support/Text.h"

#include <gmock/gmock.h>

#include <cstring>
#include <tuple>

using namespace moec;
using namespace moec::hf;
using testing::AllOf;
using testing::HasSubstr;

namespace {

/// A safetensors file of F32 vectors of two elements, `first`, `first + 1`, ...
std::string shard(const std::vector<std::string> &names, float first = 0) {
  std::string header = "{", data;
  for (size_t i = 0; i < names.size(); ++i) {
    header += (i ? ",\"" : "\"") + names[i] + "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" +
              std::to_string(8 * i) + "," + std::to_string(8 * i + 8) + "]}";
    for (int k = 0; k < 2; ++k, ++first)
      data.append(reinterpret_cast<const char *>(&first), 4);
  }
  header += "}";
  uint64_t length = header.size();
  return std::string(reinterpret_cast<const char *>(&length), 8) + header + data;
}

std::string problem(const ScratchDir &dir) {
  Result<Checkpoint> checkpoint = Checkpoint::open(dir.path());
  return checkpoint.ok() ? "" : checkpoint.message();
}

TEST(Checkpoint, OneFile) {
  ScratchDir dir;
  dir.write("model.safetensors", shard({"a", "b"}));
  Result<Checkpoint> checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.message();
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
  Result<TensorView> view = checkpoint->tensor("b");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->shape, std::vector<int64_t>{2});
  float values[2];
  std::memcpy(values, view->data, sizeof(values));
  EXPECT_EQ(values[0], 2.0f);
  EXPECT_EQ(values[1], 3.0f);
  checkpoint->release(*view);
  std::memcpy(values, view->data, sizeof(values));
  EXPECT_EQ(values[0], 2.0f) << "released bytes come back";
  EXPECT_EQ(checkpoint->tensor("c").message(), dir.path() + ": the checkpoint has no tensor 'c'");
}

TEST(Checkpoint, ShardsByIndexThroughLinks) {
  ScratchDir dir;
  // The layout of the hub's cache: every file is a link to a blob.
  std::filesystem::create_directory(dir / "blobs");
  dir.write("blobs/1", shard({"a", "c"}));
  dir.write("blobs/2", shard({"b"}, 10));
  std::filesystem::create_symlink("blobs/1", dir / "one.safetensors");
  std::filesystem::create_symlink("blobs/2", dir / "two.safetensors");
  // The index forgets "c"; headers are the truth.
  dir.write("model.safetensors.index.json",
            R"({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  Result<Checkpoint> checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.message();
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  EXPECT_EQ(checkpoint->tensors().at("b").file, dir / "two.safetensors");
  Checkpoint moved = std::move(*checkpoint);
  EXPECT_EQ(moved.tensors().at("b").file, dir / "two.safetensors");
  float value;
  std::memcpy(&value, moved.tensor("b")->data, 4);
  EXPECT_EQ(value, 10.0f);
}

/// A safetensors file of tensors whose elements are 0, 1, 2, ... from the first tensor's first to the last one's last.
std::string counting(const std::vector<std::pair<std::string, std::vector<int64_t>>> &tensors,
                     const std::string &dtype = "F32") {
  std::string header = "{";
  size_t end = 0, size = dtype == "F32" ? 4 : 1;
  for (const auto &[name, shape] : tensors) {
    size_t begin = end, count = size;
    for (int64_t dim : shape)
      count *= dim;
    end = begin + count;
    header += (begin || header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"" + dtype +
              "\",\"shape\":" + shapeToString(shape) + ",\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(end) + "]}";
  }
  header += "}";
  uint64_t length = header.size();
  std::string bytes = std::string(reinterpret_cast<const char *>(&length), 8) + header;
  for (size_t i = 0; i < end / size; ++i) {
    float value = i;
    bytes.append(reinterpret_cast<const char *>(&value), size);
  }
  return bytes;
}

TEST(Checkpoint, PackedExpertsAreSeenApart) {
  ScratchDir dir;
  dir.write("model.safetensors", counting({{"x.experts.gate_up_proj", {2, 6, 2}}, {"x.experts.down_proj", {2, 2, 3}}}));
  Result<Checkpoint> checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.message();
  EXPECT_EQ(checkpoint->tensors().size(), 6u);
  EXPECT_EQ(checkpoint->tensors().at("x.experts.1.up_proj.weight").packedIn, "x.experts.gate_up_proj");
  Checkpoint moved = std::move(*checkpoint);
  const std::tuple<const char *, std::vector<int64_t>, float> members[] = {
      {"x.experts.0.gate_proj.weight", {3, 2}, 0},  {"x.experts.0.up_proj.weight", {3, 2}, 6},
      {"x.experts.1.gate_proj.weight", {3, 2}, 12}, {"x.experts.1.up_proj.weight", {3, 2}, 18},
      {"x.experts.0.down_proj.weight", {2, 3}, 24}, {"x.experts.1.down_proj.weight", {2, 3}, 30},
  };
  for (const auto &[name, shape, first] : members) {
    Result<TensorView> view = moved.tensor(name);
    ASSERT_TRUE(view.ok()) << view.message();
    EXPECT_EQ(view->dtype, DType::F32);
    EXPECT_EQ(view->shape, shape) << name;
    float values[6];
    std::memcpy(values, view->data, sizeof(values));
    for (int i = 0; i < 6; ++i)
      EXPECT_EQ(values[i], first + i) << name;
    moved.release(*view);
  }
  EXPECT_FALSE(moved.tensor("x.experts.down_proj").ok()) << "each byte has one name";
}

TEST(Checkpoint, OtherTensorsWithTheNamesOfPackedExperts) {
  ScratchDir dir;
  dir.write("model.safetensors", counting({{"a.experts.gate_up_proj", {2, 5, 2}},
                                           {"b.experts.gate_up_proj", {4, 2}},
                                           {"c.experts.gate_up_proj", {1099511627776, 0, 2}}}));
  Result<Checkpoint> checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.message();
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  dir.write("model.safetensors", counting({{"x.experts.gate_up_proj", {2, 4, 2}}}, "F8_E4M3"));
  checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.message();
  EXPECT_EQ(checkpoint->tensors().size(), 1u) << "FP8 needs scales";
}

TEST(Checkpoint, PackedExpertsThatAreAlsoStoredApart) {
  ScratchDir dir;
  dir.write("model.safetensors",
            counting({{"x.experts.gate_up_proj", {2, 6, 2}}, {"x.experts.1.up_proj.weight", {3, 2}}}));
  std::string path = dir / "model.safetensors";
  EXPECT_EQ(problem(dir),
            path + ": tensor 'x.experts.1.up_proj.weight' in 'x.experts.gate_up_proj' is also in " + path);
  dir.write("model.safetensors", counting({{"x.experts.down_proj", {1048577, 1, 1}}}));
  EXPECT_EQ(problem(dir), path + ": tensor 'x.experts.down_proj' is [1048577, 1, 1], but more than 1048576 packed "
                                 "experts are not supported");
}

TEST(Checkpoint, NamesOfGguf) {
  const std::pair<const char *, const char *> pairs[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
      {"blk.60.exp_probs_b.bias", "model.layers.60.mlp.gate.e_score_correction_bias"},
      {"blk.12.ffn_down_exps.weight", "model.layers.12.mlp.experts.{e}.down_proj.weight"},
  };
  for (const auto &[gguf, ours] : pairs) {
    EXPECT_EQ(fromGgufName(gguf), ours);
    EXPECT_EQ(toGgufName(ours), gguf);
  }
  for (const char *other : {"", "blk.", "blk.1", "blk..attn_q.weight", "blk.01.attn_q.weight", "blk.1.attn_q.bias",
                            "blk.-1.attn_q.weight", "attn_q.weight", "model.norm.weight", "blk.1.output.weight"})
    EXPECT_EQ(fromGgufName(other), std::nullopt) << other;
}

TEST(Checkpoint, NothingThere) {
  ScratchDir dir;
  EXPECT_EQ(problem(dir),
            dir.path() + ": holds neither model.safetensors nor model.safetensors.index.json nor a .gguf file");
  EXPECT_THAT(Checkpoint::open(dir / "absent").message(), HasSubstr("absent: is not a directory"));
  dir.write("file", "");
  EXPECT_THAT(Checkpoint::open(dir / "file").message(), HasSubstr("file: is not a directory"));
}

TEST(Checkpoint, NamesThatLeaveTheDirectory) {
  for (std::string name : {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\\\b",
                           "x\\u0000.safetensors", "\\u001b[31m"}) {
    ScratchDir dir;
    dir.write("model.safetensors.index.json", R"({"weight_map": {"a": ")" + name + R"("}})");
    EXPECT_EQ(problem(dir), dir / "model.safetensors.index.json" +
                                ": the file of tensor 'a' is not the name of a file beside the index, such as "
                                "model-00001-of-00002.safetensors")
        << name;
  }
}

TEST(Checkpoint, BrokenIndices) {
  const std::pair<const char *, const char *> cases[] = {
      {R"({"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}})", "'a' is given twice"},
      {R"({"weight_map": {"a": 3}})", "the file of tensor 'a' is not the name of a file"},
      {R"({"weight_map": {}})", "'weight_map' names no tensors"},
      {R"({"weight_map": []})", "'weight_map'"},
      {R"({})", "'weight_map' is missing"},
      {R"([])", "expected an object"},
      {R"({"weight_map": )", "ends too early"},
      {R"({"weight_map": {"a": "three.safetensors"}})", "three.safetensors: shard is absent"},
      {R"({"weight_map": {"z": "one.safetensors"}})", "one.safetensors: tensor 'z' is absent"},
      {R"({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}})",
       "one.safetensors: tensor 'b' is absent"},
      {R"({"weight_map": {"a": "one.safetensors", "d": "one-again.safetensors"}})", "is also in"},
  };
  for (auto [index, message] : cases) {
    ScratchDir dir;
    dir.write("one.safetensors", shard({"a"}));
    dir.write("one-again.safetensors", shard({"a", "d"}));
    dir.write("two.safetensors", shard({"b", "c"}));
    dir.write("model.safetensors.index.json", index);
    EXPECT_THAT(problem(dir), AllOf(HasSubstr(dir.path()), HasSubstr(message))) << index;
  }
}

TEST(Checkpoint, LinkLoopsAndOddFiles) {
  {
    ScratchDir dir;
    std::filesystem::create_symlink("model.safetensors", dir / "model.safetensors");
    EXPECT_THAT(problem(dir), HasSubstr(dir / "model.safetensors"));
  }
  {
    ScratchDir dir;
    std::filesystem::create_symlink("b", dir / "a");
    std::filesystem::create_symlink("a", dir / "b");
    dir.write("model.safetensors.index.json", R"({"weight_map": {"t": "a"}})");
    EXPECT_THAT(problem(dir), HasSubstr(dir / "a"));
  }
  {
    ScratchDir dir;
    std::filesystem::create_directory(dir / "model.safetensors");
    EXPECT_THAT(problem(dir), HasSubstr(dir / "model.safetensors"));
  }
}

TEST(Checkpoint, BrokenShards) {
  std::string good = shard({"a", "b"});
  uint64_t claim = 10'000'000'000;
  std::string huge = std::string(reinterpret_cast<const char *>(&claim), 8) + good.substr(8);
  std::string overlap = good;
  overlap.replace(overlap.find("[8,16]"), 6, "[7,15]");
  std::string far = good;
  far.replace(far.find("[8,16]"), 6, "[8,99]");
  for (const std::string &bytes : {std::string(), good.substr(0, 4), good.substr(0, 20),
                                   good.substr(0, good.size() - 1), good + "x", huge, overlap, far}) {
    ScratchDir dir;
    dir.write("model.safetensors", bytes);
    EXPECT_THAT(problem(dir), HasSubstr(dir / "model.safetensors"));
  }
}

} // namespace
