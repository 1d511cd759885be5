// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Artifact.h"
#include "runtime/Model.h"
#include "test/runtime/model_tiny.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

using namespace moec;
using namespace moec::test;
using testing::HasSubstr;

namespace {

class ArtifactFiles : public testing::Test {
protected:
  void SetUp() override { tiny.write(dir.path()); }
  /// Why the artifact cannot be loaded.
  std::string refusal() {
    auto model = Model::load(dir.path());
    return model.ok() ? "accepted" : model.message();
  }
  std::string weights() const { return dir.path() + "/weights-00001.safetensors"; }
  std::string code() const { return dir.path() + "/code/x86-64.so"; }

  TemporaryDirectory dir;
  TinyArtifact tiny;
};

TEST_F(ArtifactFiles, AreReadAsWritten) {
  Artifact artifact = take(Artifact::open(dir.path()));
  EXPECT_EQ(artifact.compiler(), "by hand");
  EXPECT_EQ(artifact.target(), "cpu");
  EXPECT_EQ(artifact.model().type, "tiny");
  EXPECT_EQ(artifact.model().vocab, 11);
  EXPECT_EQ(artifact.model().maxContext, 200);
  EXPECT_EQ(artifact.model().bos, 0);
  EXPECT_EQ(artifact.model().eos, (std::vector<int64_t>{1}));
  EXPECT_EQ(artifact.pagesPerSlot(), 4);
  EXPECT_EQ(artifact.maxTokens(), 50);
  ASSERT_EQ(artifact.code().size(), 1u);
  EXPECT_EQ(artifact.code()[0].level, "x86-64");
  ASSERT_EQ(artifact.caches().size(), 1u);
  EXPECT_EQ(artifact.caches()[0].pageBytes, 6u * 4 * 64);
  ASSERT_EQ(artifact.launches().size(), 5u);
  EXPECT_EQ(artifact.launches()[4].label, "head");
  EXPECT_EQ(artifact.launches()[4].writes, (std::vector<size_t>{3}));
  EXPECT_EQ(artifact.launches()[4].args[2].offset, 24u);
  EXPECT_EQ(artifact.launches()[4].tasks(50, 13), 143);
  EXPECT_EQ(artifact.launches()[1].tasks(50, 0), 50);
  EXPECT_OK(artifact.verifyWeights());
}

TEST_F(ArtifactFiles, NoBosAndNoEosAreFine) {
  tiny.manifest["model"]["bos"] = nullptr;
  tiny.manifest["model"].erase("eos");
  tiny.writeManifest(dir.path());
  Artifact artifact = take(Artifact::open(dir.path()));
  EXPECT_EQ(artifact.model().bos, -1);
  EXPECT_TRUE(artifact.model().eos.empty());
}

TEST_F(ArtifactFiles, CachesOfCodesHaveBytes) {
  tiny.manifest["program"]["caches"][0] = {{"name", "kv.0"}, {"dtype", "U8"}, {"width", 656}, {"codes", "fp8"}};
  tiny.writeManifest(dir.path());
  Artifact artifact = take(Artifact::open(dir.path()));
  EXPECT_EQ(artifact.caches()[0].codes, "fp8");
  EXPECT_EQ(artifact.caches()[0].pageBytes, 656u * 64);
}

TEST_F(ArtifactFiles, ChangedWeightsAreFoundWhenAsked) {
  std::fstream file(weights(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.put('x');
  file.close();
  Artifact artifact = take(Artifact::open(dir.path()));
  EXPECT_THAT(artifact.verifyWeights().message(), HasSubstr("weights-00001.safetensors: has the hash "));
}

TEST_F(ArtifactFiles, CorruptCodeIsNotLoaded) {
  std::fstream file(code(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(0x40);
  file.put('x');
  file.close();
  EXPECT_THAT(refusal(), HasSubstr("code/x86-64.so: has the hash "));
}

TEST_F(ArtifactFiles, CodeThatIsNoElfIsASentence) {
  EXPECT_OK(writeFile(code(), "hello"));
  tiny.manifest["code"][0]["bytes"] = 5;
  tiny.manifest["code"][0]["xxh3"] = xxh3Hex("hello", 5);
  tiny.writeManifest(dir.path());
  EXPECT_THAT(refusal(), HasSubstr("code/x86-64.so: cannot be loaded: "));
}

TEST_F(ArtifactFiles, MissingAndShortFilesAreNamed) {
  std::filesystem::resize_file(weights(), 5000);
  EXPECT_THAT(refusal(), HasSubstr("weights-00001.safetensors: has 5000 bytes, but the manifest says "));
  std::filesystem::remove(weights());
  EXPECT_THAT(refusal(), HasSubstr("weights-00001.safetensors: No such file"));
  std::filesystem::remove(code());
  EXPECT_THAT(refusal(), HasSubstr("code/x86-64.so: No such file"));
  std::filesystem::remove(dir.path() + "/manifest.json");
  EXPECT_EQ(refusal(), dir.path() + ": holds no manifest.json, expected an artifact made by moec compile");
  EXPECT_EQ(Artifact::open(dir.path() + "/nothing").message(),
            dir.path() + "/nothing: is not a directory, expected an artifact made by moec compile");
}

TEST_F(ArtifactFiles, WeightsThatTheProgramNamesMustBeThere) {
  SafetensorsWriter writer = take(SafetensorsWriter::create(weights(), {{"table", DType::F32, {11, 6}}}));
  EXPECT_OK(writer.finish());
  tiny.manifest["weights"][0]["bytes"] = std::filesystem::file_size(weights());
  tiny.writeManifest(dir.path());
  EXPECT_THAT(refusal(), HasSubstr("launches[0]: args[2]: 'weight' is 'tail', which is in no file of weights"));
}

TEST_F(ArtifactFiles, WeightsInTwoFilesAreRefused) {
  std::filesystem::copy_file(weights(), dir.path() + "/more.safetensors");
  Json second = tiny.manifest["weights"][0];
  second["file"] = "more.safetensors";
  tiny.manifest["weights"].push_back(second);
  tiny.writeManifest(dir.path());
  EXPECT_THAT(refusal(), HasSubstr("more.safetensors: 'both' is also in another file of weights"));
}

TEST_F(ArtifactFiles, SourcesOfWeightsAreNames) {
  auto refusalOf = [&](const char *sources) {
    tiny.manifest["sources"] = Json::parse(sources);
    tiny.writeManifest(dir.path());
    return refusal();
  };
  EXPECT_EQ(refusalOf(R"({"table": ["a.weight", "b.{e}.weight"], "tail": []})"), "accepted");
  const Artifact artifact = take(Artifact::open(dir.path()));
  for (const WeightInfo &weight : artifact.weights())
    EXPECT_EQ(weight.sources, weight.name == "table" ? (std::vector<std::string>{"a.weight", "b.{e}.weight"})
                                                     : std::vector<std::string>{});
  EXPECT_THAT(refusalOf(R"({"chair": ["a.weight"]})"), HasSubstr("'sources.chair' is in no file of weights"));
  EXPECT_THAT(refusalOf(R"({"table": "a.weight"})"), HasSubstr("'sources.table' is the string 'a.weight', expected"));
  EXPECT_THAT(refusalOf(R"({"table": ["a", 3]})"), HasSubstr("'sources.table' has 3, expected names of tensors"));
  EXPECT_THAT(refusalOf("[]"), HasSubstr("'sources' is an array of 0 elements, expected an object"));
}

TEST_F(ArtifactFiles, LinksToOutsideAreRefused) {
  TemporaryDirectory other;
  std::filesystem::rename(weights(), other.path() + "/w");
  std::filesystem::create_symlink(other.path() + "/w", weights());
  EXPECT_THAT(refusal(), HasSubstr("'file' is 'weights-00001.safetensors', a link to outside the artifact"));
  std::filesystem::remove(weights());
  std::filesystem::create_symlink(weights(), weights());
  EXPECT_THAT(refusal(), HasSubstr("Too many levels of symbolic links"));
  std::filesystem::remove(weights());
  std::filesystem::create_directory(weights());
  EXPECT_THAT(refusal(), HasSubstr("is not a regular file"));
}

TEST_F(ArtifactFiles, AnArtifactMayItselfBeALink) {
  TemporaryDirectory other;
  std::filesystem::create_directory_symlink(dir.path(), other.path() + "/link");
  EXPECT_OK(Artifact::open(other.path() + "/link"));
}

/// One change of the manifest and what the refusal says. No value: the field is removed.
struct Mutation {
  const char *pointer;
  const char *value;
  const char *says;
};

class HostileManifest : public testing::TestWithParam<Mutation> {};

TEST(ArtifactTest, LaunchesHaveOneBoundOnRuns) {
  struct Case {
    Json from, below;
    const char *says;
  };
  const Case cases[] = {{0, nullptr, "run_from"},
                        {-1, nullptr, "run_from"},
                        {1.5, nullptr, "run_from"},
                        {"4", nullptr, "run_from"},
                        {4294967296, nullptr, "run_from"},
                        {nullptr, 0, "run_below"},
                        {nullptr, 1e30, "run_below"},
                        {nullptr, Json::array(), "run_below"},
                        {2, 2, "launches[2] has both 'run_from' and 'run_below'"}};
  for (const Case &c : cases) {
    TemporaryDirectory dir;
    TinyArtifact tiny;
    Json &launch = tiny.manifest["program"]["launches"][2];
    if (!c.from.is_null())
      launch["run_from"] = c.from;
    if (!c.below.is_null())
      launch["run_below"] = c.below;
    tiny.write(dir.path());
    auto artifact = Artifact::open(dir.path());
    ASSERT_FALSE(artifact.ok()) << launch.dump();
    EXPECT_THAT(artifact.message(), HasSubstr(c.says));
    EXPECT_THAT(artifact.message(), testing::StartsWith(dir.path()));
  }
}

TEST_P(HostileManifest, IsRefusedWithASentence) {
  TemporaryDirectory dir;
  TinyArtifact tiny;
  tiny.writeFiles(dir.path());
  const Json::json_pointer pointer(GetParam().pointer);
  ASSERT_TRUE(tiny.manifest.contains(pointer)) << "the manifest has no " << GetParam().pointer;
  if (GetParam().value)
    tiny.manifest[pointer] = Json::parse(GetParam().value);
  else
    tiny.manifest[pointer.parent_pointer()].erase(pointer.back());
  tiny.writeManifest(dir.path());
  auto model = Model::load(dir.path());
  ASSERT_FALSE(model.ok()) << GetParam().pointer;
  EXPECT_THAT(model.message(), HasSubstr(GetParam().says));
  EXPECT_THAT(model.message(), testing::StartsWith(dir.path()));
  EXPECT_THAT(model.message(), testing::Not(HasSubstr("\n")));
}

constexpr const char *gone = nullptr;
// Sentences about types and missing fields are the JSON reader's: here it counts that the field is named.
INSTANTIATE_TEST_SUITE_P(
    Header, HostileManifest,
    testing::Values(Mutation{"/format", "\"zip\"", "'format' is 'zip', expected 'moec-artifact'"},
                    Mutation{"/format", gone, "format"}, Mutation{"/version", "2", "has format version 2"},
                    Mutation{"/version", "\"1\"", "version"}, Mutation{"/version", "1e300", "version"},
                    Mutation{"/abi", "7", "has code for kernel ABI 7, but this runtime has ABI 1"},
                    Mutation{"/target", gone, "target"}, Mutation{"/target", "\"ascend\"", "target 'ascend'"},
                    Mutation{"/model", "[]", "model"}, Mutation{"/model/vocab", "0", "vocab"},
                    Mutation{"/model/vocab", "99999999999999999999", "vocab"},
                    Mutation{"/model/hidden", "-1", "hidden"}, Mutation{"/model/max_context", "0", "max_context"},
                    Mutation{"/model/max_context", "1e18", "max_context"}, Mutation{"/model/bos", "11", "bos"},
                    Mutation{"/model/bos", "0.5", "bos"}, Mutation{"/model/eos", "[11]", "'eos' has 11"},
                    Mutation{"/model/eos", "[18446744073709551615]", "'eos' has 18446744073709551615"},
                    Mutation{"/model/eos", "[null]", "'eos' has null"}, Mutation{"/model/eos", "3", "eos"}));
INSTANTIATE_TEST_SUITE_P(
    Files, HostileManifest,
    testing::Values(Mutation{"/code", "[]", "'code' is empty"}, Mutation{"/code", "{}", "code"},
                    Mutation{"/code/0", "7", "code[0]"}, Mutation{"/code/0/level", "3", "level"},
                    Mutation{"/code/0/level", "\"avr\"", "has code for 'avr'"},
                    Mutation{"/code/0/bytes", "3", "but the manifest says 3"}, Mutation{"/code/0/bytes", "-3", "bytes"},
                    Mutation{"/code/0/bytes", gone, "bytes"},
                    Mutation{"/code/0/xxh3", "\"0123456789abcdef\"", "but the manifest says 0123456789abcdef"},
                    Mutation{"/code/0/xxh3", "\"12\"", "'xxh3' is '12', expected 16 lower-case hex digits"},
                    Mutation{"/code/0/file", "\"/etc/passwd\"", "'file' is '/etc/passwd', expected a path inside"},
                    Mutation{"/code/0/file", "\"../x.so\"", "expected a path inside the artifact"},
                    Mutation{"/code/0/file", "\"code/../../x.so\"", "expected a path inside the artifact"},
                    Mutation{"/code/0/file", "\"\"", "expected a path inside the artifact"},
                    Mutation{"/code/0/file", "\"code\"", "is not a regular file"},
                    Mutation{"/code/0/file", "\"a\\u0000b\"", "expected a path inside the artifact"},
                    Mutation{"/weights/0/file", "\"../w\"", "expected a path inside the artifact"},
                    Mutation{"/weights/0/file", "\"code/x86-64.so\"", "but the manifest says"},
                    Mutation{"/weights/0/bytes", "1", "but the manifest says 1"},
                    Mutation{"/weights/0/xxh3", "\"0123456789ABCDEF\"", "lower-case hex"},
                    Mutation{"/kernels/0/symbol", "\"nothing\"", "has no kernel 'nothing', which the manifest names"},
                    Mutation{"/kernels/0/symbol", "\"\"", "which is no symbol"},
                    Mutation{"/kernels/0/symbol", "\"tiny_embed\\u0000\"", "which is no symbol"},
                    Mutation{"/kernels/0/kind", gone, "kind"}, Mutation{"/kernels/0/spec", "3", "spec"},
                    Mutation{"/kernels/0/work", "3", "work"},
                    Mutation{"/kernels/0/work", R"({"unit": "i4"})", "is 'i4', expected one of f32, bf16, int8"},
                    Mutation{"/kernels/0/work", R"({"flops": {"token": -1}})", "token"},
                    Mutation{"/kernels/0/work", R"({"flops": {"choice": 8}})", "but no 'experts'"},
                    Mutation{"/kernels/0/work", R"({"experts": {"count": 8, "offsets": 3, "active": 4}})",
                             "has as argument 4 no buffer of 36 bytes"},
                    Mutation{"/kernels/0/work", R"({"experts": {"count": 8, "offsets": 0, "active": 3}})",
                             "has as argument 0 no buffer of 36 bytes"},
                    Mutation{"/kernels/0/work", R"({"experts": {"count": 300, "offsets": 3, "active": 3}})",
                             "has as argument 3 no buffer of 1204 bytes, where the work of its kernel 'tiny_embed'"}));
INSTANTIATE_TEST_SUITE_P(
    Memory, HostileManifest,
    testing::Values(
        Mutation{"/program", gone, "program"}, Mutation{"/program/max_tokens", "0", "max_tokens"},
        Mutation{"/program/max_tokens", "51",
                 "buffers[0]: 'bytes' is 1200, but shape [\"T\",6] of F32 takes up to 1224"},
        Mutation{"/program/max_tokens", "99999999999", "max_tokens"},
        Mutation{"/program/arena_bytes", "3247", "buffers[1] ends at byte 3248, but the arena has 3247"},
        Mutation{"/program/arena_bytes", "-1", "arena_bytes"},
        Mutation{"/program/arena_bytes", "9223372036854775807", "arena_bytes"},
        Mutation{"/program/caches/0/dtype", "\"F33\"", "'dtype' is 'F33', which is no element type"},
        Mutation{"/program/caches/0/width", "0", "width"}, Mutation{"/program/caches/0/width", "1e30", "width"},
        Mutation{"/program/caches/0/dtype", "\"U8\"", "'dtype' is U8, but entries in codes, and no others, are U8"},
        Mutation{"/program/caches/0", R"({"name": "kv", "dtype": "F32", "width": 6, "codes": "int8"})",
                 "'dtype' is F32, but entries in codes, and no others, are U8"},
        Mutation{"/program/caches/0", R"({"name": "kv", "dtype": "U8", "width": 24, "codes": "int4"})",
                 "'codes' is 'int4', expected int8 or fp8"},
        Mutation{"/program/caches/0", R"({"name": "kv", "dtype": "U8", "width": 24, "codes": 8})", "codes"},
        Mutation{"/program/caches/0", R"({"name": "kv", "dtype": "U8", "width": 67108865, "codes": "fp8"})", "width"},
        Mutation{"/program/caches/0/name", gone, "name"}, Mutation{"/program/buffers/0/offset", "-8", "offset"},
        Mutation{"/program/buffers/0/offset", "4096", "buffers[0] ends at byte 5296, but the arena has 4096"},
        Mutation{"/program/buffers/0/offset", "9223372036854775807", "offset"},
        Mutation{"/program/buffers/0/bytes", "1199", "'bytes' is 1199"},
        Mutation{"/program/buffers/0/shape", "[\"T\", 4611686018427387903, 16]", "which is too large"},
        Mutation{"/program/buffers/0/shape", "[\"T\", 18446744073709551615]", "which is too large"},
        Mutation{"/program/buffers/0/shape", "[\"T\", -9223372036854775808]", "which is too small"},
        Mutation{"/program/buffers/0/shape", "[[\"+\", \"T\", -2]]", "which may be negative"},
        Mutation{"/program/buffers/0/shape", "[\"U\"]", "expected an integer, \"T\", \"R\" or [op, a, b]"},
        Mutation{"/program/buffers/0/shape", "6", "shape"}, Mutation{"/program/buffers/0/dtype", "3", "dtype"}));
INSTANTIATE_TEST_SUITE_P(
    Launches, HostileManifest,
    testing::Values(
        Mutation{"/program/launches/0/kernel", "5", "kernel"}, Mutation{"/program/launches/0/kernel", "-1", "kernel"},
        Mutation{"/program/launches/0/grid", "[]", "'grid' is empty"},
        Mutation{"/program/launches/0/grid", "3", "grid"},
        Mutation{"/program/launches/0/grid", "[[\"*\", \"T\", 4611686018427387903]]", "overflows for some step"},
        Mutation{"/program/launches/0/grid", "[[\"+\", 4611686018427387903, 4611686018427387903]]", "overflows"},
        Mutation{"/program/launches/0/grid", "[4294967296]", "which may be 4294967296 tasks"},
        Mutation{"/program/launches/0/grid", "[[\"ceildiv\", \"T\", 0]]", "divides by a value that may be 0"},
        Mutation{"/program/launches/0/grid", "[[\"mod\", \"T\", \"R\"]]", "divides by a value that may be 0"},
        Mutation{"/program/launches/0/grid", "[[\"floordiv\", \"T\", -4]]", "divides by a value that may be -4"},
        Mutation{"/program/launches/0/grid", "[[\"/\", \"T\", 4]]", "has the operator '/'"},
        Mutation{"/program/launches/0/grid", "[[\"+\", \"T\"]]", "expected an integer"},
        Mutation{"/program/launches/0/grid", "[1.5]", "expected an integer"},
        Mutation{"/program/launches/0/grid",
                 "[[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,"
                 "[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,[\"+\",1,1]]]]]]]]]]]]]]]]]]",
                 "nests deeper than 16"},
        Mutation{"/program/launches/0/args/0", "{}", "has 0 of 'input', 'output'"},
        Mutation{"/program/launches/0/args/0", "{\"buffer\": 0, \"cache\": 0}", "has 2 of 'input', 'output'"},
        Mutation{"/program/launches/0/args/0/input", "\"logits\"", "'input' is 'logits'"},
        Mutation{"/program/launches/0/args/0", "{\"output\": \"tokens\"}", "'output' is 'tokens'"},
        Mutation{"/program/launches/0/args/0", "{\"input\": \"tokens\", \"offset\": 4}", "'offset' is 4"},
        Mutation{"/program/launches/0/args/1/weight", "\"none\"", "'weight' is 'none', which is in no file"},
        Mutation{"/program/launches/0/args/1", "{\"weight\": \"table\", \"offset\": 264}", "expected less than 264"},
        Mutation{"/program/launches/0/args/3/buffer", "2", "buffer"},
        Mutation{"/program/launches/0/args/3/buffer", "-1", "buffer"},
        Mutation{"/program/launches/0/args/3", "{\"buffer\": 0, \"offset\": 1200}", "expected less than 1200"},
        Mutation{"/program/launches/0/args/3", "{\"buffer\": 0, \"offset\": -4}", "offset"},
        Mutation{"/program/launches/1/args/4/cache", "1", "cache"},
        Mutation{"/program/launches/1/args/4", "{\"cache\": 0, \"offset\": 24}", "expected less than 24"},
        Mutation{"/program/launches/0/writes", "[4]", "'writes' has 4, expected positions of the 4 arguments"},
        Mutation{"/program/launches/0/writes", "[-1]", "'writes' has -1"},
        Mutation{"/program/launches/0/writes", "[1]", "argument 1 is read-only"},
        Mutation{"/program/launches/0/writes", "[0]", "argument 0 is read-only"},
        Mutation{"/program/launches/0/writes", "[3, 3]", "expected ascending positions"},
        Mutation{"/program/launches/0/writes", gone, "writes"},
        Mutation{"/program/launches/0", "null", "launches[0]"}));

/// Without the fsync of writeFile, which thousands of manifests would wait for.
void overwrite(const std::string &path, const std::string &text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

/// Every value of `json`, containers too.
void collect(const Json &json, const Json::json_pointer &at, std::vector<Json::json_pointer> &found) {
  if (!at.empty())
    found.push_back(at);
  if (json.is_object())
    for (const auto &[key, value] : json.items())
      collect(value, at / key, found);
  else if (json.is_array())
    for (size_t i = 0; i < json.size(); ++i)
      collect(json[i], at / i, found);
}

TEST(ManifestSweep, EveryFieldWithEveryOddValueIsAcceptedOrASentence) {
  TemporaryDirectory dir;
  TinyArtifact tiny;
  tiny.write(dir.path());
  const Json odd = Json::parse(R"([null, true, -1, 0, 1, 2147483648, 9223372036854775807, 18446744073709551615, -1e300,
                                   "", "T", "../..", [], {}, [[]], [{}], ["+", "T", 1]])");
  std::vector<Json::json_pointer> fields;
  collect(tiny.manifest, Json::json_pointer(), fields);
  int refused = 0;
  for (const Json::json_pointer &field : fields)
    for (const Json &value : odd) {
      Json manifest = tiny.manifest;
      manifest[field] = value;
      overwrite(dir.path() + "/manifest.json", manifest.dump());
      auto artifact = Artifact::open(dir.path());
      if (artifact.ok())
        continue;
      ++refused;
      EXPECT_THAT(artifact.message(), testing::StartsWith(dir.path())) << field << " = " << value;
      EXPECT_THAT(artifact.message(), testing::Not(HasSubstr("\n"))) << field << " = " << value;
    }
  // Names, labels and the compiler's version are free; nearly all else is not.
  EXPECT_GT(refused, static_cast<int>(fields.size() * odd.size() * 3 / 4));
}

TEST(ManifestSweep, NoPrefixOfAManifestIsOne) {
  TemporaryDirectory dir;
  TinyArtifact tiny;
  tiny.write(dir.path());
  const std::string text = tiny.manifest.dump();
  for (size_t size = 0; size < text.size(); size += 13) {
    overwrite(dir.path() + "/manifest.json", text.substr(0, size));
    auto artifact = Artifact::open(dir.path());
    ASSERT_FALSE(artifact.ok()) << size << " bytes";
    EXPECT_THAT(artifact.message(), HasSubstr("manifest.json"));
  }
}

TEST(ManifestText, BrokenJsonIsASentence) {
  for (const char *text : {"", "{", "[]", "null", "{\"format\": \"moec-artifact\"", "{\"a\": NaN}", "\xff\xfe"}) {
    TemporaryDirectory dir;
    EXPECT_OK(writeFile(dir.path() + "/manifest.json", text));
    auto artifact = Artifact::open(dir.path());
    ASSERT_FALSE(artifact.ok()) << text;
    EXPECT_THAT(artifact.message(), HasSubstr("manifest.json"));
  }
}

TEST(GridExpressions, FollowTheirDefinition) {
  const struct {
    const char *json;
    int64_t (*value)(int64_t T, int64_t R);
  } cases[] = {
      {"7", [](int64_t, int64_t) -> int64_t { return 7; }},
      {R"(["ceildiv", "T", 8])", [](int64_t T, int64_t) { return (T + 7) / 8; }},
      {R"(["floordiv", ["+", "T", -20], 8])",
       [](int64_t T, int64_t) { return T >= 20 ? (T - 20) / 8 : -((20 - T + 7) / 8); }},
      {R"(["ceildiv", ["+", "T", -20], 8])",
       [](int64_t T, int64_t) { return T >= 20 ? (T - 20 + 7) / 8 : -((20 - T) / 8); }},
      {R"(["mod", ["+", "R", ["*", -1, "T"]], 5])", [](int64_t T, int64_t R) { return ((R - T) % 5 + 5) % 5; }},
      {R"(["floordiv", 100, ["+", "R", 1]])", [](int64_t, int64_t R) { return 100 / (R + 1); }},
      {R"(["*", ["*", "T", "R"], ["+", 2, 3]])", [](int64_t T, int64_t R) { return T * R * 5; }},
  };
  for (const auto &[json, value] : cases) {
    GridExpr expr = take(GridExpr::parse(Json::parse(json), 40, "grid"));
    for (int64_t T = 1; T <= 40; ++T)
      for (int64_t R = 0; R <= 40; ++R) {
        ASSERT_EQ(expr.evaluate(T, R), value(T, R)) << json << " at T = " << T << ", R = " << R;
        ASSERT_LE(expr.least(), value(T, R)) << json;
        ASSERT_GE(expr.most(), value(T, R)) << json;
      }
  }
}

} // namespace
