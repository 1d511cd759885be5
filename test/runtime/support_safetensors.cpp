// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Json.h"
#include "runtime/Support/Safetensors.h"
#include "test/runtime/TemporaryDirectory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <string>
#include <thread>

using namespace moec;
using moec::test::TemporaryDirectory;

namespace {

/// A file with that header and `dataBytes` bytes of data.
std::string fileOf(const std::string &header, size_t dataBytes) {
  uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + std::string(dataBytes, 'd');
}

/// A file whose header claims to have `length` bytes.
std::string fileClaiming(uint64_t length, const std::string &rest) {
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + rest;
}

/// The entry of one tensor.
std::string entry(const std::string &name, const std::string &dtype, const std::string &shape,
                  const std::string &offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

struct Broken {
  const char *name;
  std::string file;
  std::string message; ///< after "m.safetensors: "
};

std::vector<Broken> corpus() {
  auto one = [](const std::string &fields, size_t bytes = 8) { return fileOf("{\"a.b\":" + fields + "}", bytes); };
  std::string manyDims = "[1";
  for (int i = 0; i < 64; ++i)
    manyDims += ",1";
  manyDims += "]";
  return {
      {"EmptyFile", "", "has 0 bytes, expected at least the 8 of a header length"},
      {"SevenBytes", "1234567", "has 7 bytes, expected at least the 8 of a header length"},
      {"LengthOverCap", fileClaiming(100000001, "{}"),
       "says its header has 100000001 bytes, expected at most 100000000"},
      {"LengthAllOnes", fileClaiming(~uint64_t{0}, "{}"),
       "says its header has 18446744073709551615 bytes, expected at most 100000000"},
      {"LengthOverFile", fileClaiming(3, "{}"), "says its header has 3 bytes, but only 2 follow"},
      {"NoHeader", fileClaiming(0, ""), "its header starts with '', expected '{'"},
      {"HeaderIsArray", fileOf("[]", 0), "its header starts with '[]', expected '{'"},
      {"HeaderStartsBlank", fileOf(" {}", 0), "its header starts with ' {}', expected '{'"},
      {"HeaderCut", fileOf("{\"a\":{", 0), "line 1, column 7: the JSON text ends too early"},
      {"HeaderTrailing", fileOf("{}{}", 0), "line 1, column 3: not valid JSON at the end of '{}{'"},
      {"HeaderNul", fileOf(std::string("{}\0", 3), 0), "holds a NUL byte at offset 2, expected JSON text"},
      {"NameNotUtf8", fileOf("{\"\xff\":0}", 0), "line 1, column 3: not valid JSON at the end of '{\"\\xff'"},
      {"TensorIsNumber", one("3"), "tensor 'a.b' is 3, expected an object"},
      {"TensorIsNull", one("null"), "tensor 'a.b' is null, expected an object"},
      {"TensorIsArray", one("[{}]"), "tensor 'a.b' is an array, expected an object"},
      {"MetadataIsArray", fileOf("{\"__metadata__\":[]}", 0),
       "__metadata__ is an array, expected an object of strings"},
      {"MetadataNumber", fileOf("{\"__metadata__\":{\"k\":1}}", 0), "metadata 'k' is 1, expected a string"},
      {"MetadataNested", fileOf("{\"__metadata__\":{\"k\":{}}}", 0), "metadata 'k' is an object, expected a string"},
      {"MetadataKeyTwice", fileOf("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0), "metadata 'k' is given twice"},
      {"MetadataTwice", fileOf("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "__metadata__ is given twice"},
      {"TensorTwice",
       fileOf("{" + entry("a.b", "U8", "[4]", "[0,4]") + "," + entry("a.b", "U8", "[4]", "[4,8]") + "}", 8),
       "tensor 'a.b' is given twice"},
      {"NoFields", one("{}"), "tensor 'a.b' has no dtype"},
      {"NoShape", one(R"({"dtype":"F32","data_offsets":[0,8]})"), "tensor 'a.b' has no shape"},
      {"NoOffsets", one(R"({"dtype":"F32","shape":[2]})"), "tensor 'a.b' has no data_offsets"},
      {"FieldTwice", one(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dtype twice"},
      {"FieldUnknown", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1]})"),
       "tensor 'a.b' has the unknown field 'strides', expected dtype, shape and data_offsets"},
      {"DtypeUnknown", one(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dtype 'F31', expected one of F64, F32, F16, BF16, F8_E4M3, F8_E8M0, I64, I32, I16, I8, U8, "
       "BOOL"},
      {"DtypeNumber", one(R"({"dtype":32,"shape":[2],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dtype 32, expected a string"},
      {"DtypeArray", one(R"({"dtype":["F32"],"shape":[2],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dtype an array, expected a string"},
      {"ShapeString", one(R"({"dtype":"F32","shape":"2","data_offsets":[0,8]})"),
       "tensor 'a.b' has shape the string '2', expected an array"},
      {"ShapeNegative", one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dimension -2, expected an integer from 0 to 2^63 - 1"},
      {"ShapeFraction", one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dimension '2.0', expected an integer from 0 to 2^63 - 1"},
      {"ShapeNested", one(R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dimension an array, expected an integer from 0 to 2^63 - 1"},
      {"ShapeOverInt64", one(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       "tensor 'a.b' has dimension 9223372036854775808, expected an integer from 0 to 2^63 - 1"},
      {"ShapeProductOverflows", one(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
       "tensor 'a.b' is U8 [4294967296, 4294967296], more bytes than a file can hold"},
      {"ShapeTimesDtypeOverflows", one(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]})", 0),
       "tensor 'a.b' is F64 [2305843009213693952], more bytes than a file can hold"},
      {"ShapeOverflowsBesideZero", one(R"({"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})", 0),
       "tensor 'a.b' is U8 [0, 4294967296, 4294967296], more bytes than a file can hold"},
      {"ShapeTooDeep", one("{\"dtype\":\"U8\",\"shape\":" + manyDims + ",\"data_offsets\":[0,1]}", 1),
       "tensor 'a.b' has more than 64 dimensions"},
      {"OffsetsOne", one(R"({"dtype":"F32","shape":[2],"data_offsets":[8]})"),
       "tensor 'a.b' has 1 data_offsets, expected two"},
      {"OffsetsThree", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})"),
       "tensor 'a.b' has more than two data_offsets"},
      {"OffsetNegative", one(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})"),
       "tensor 'a.b' has data offset -8, expected an integer from 0 to 2^64 - 1"},
      {"OffsetsBackwards", one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
       "tensor 'a.b' has data_offsets [8, 0], expected a range within the file's 8 bytes of data"},
      {"OffsetsBeyondFile", one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,16]})"),
       "tensor 'a.b' has data_offsets [8, 16], expected a range within the file's 8 bytes of data"},
      {"OffsetsWrapAround", one(R"({"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,0]})"),
       "tensor 'a.b' has data_offsets [18446744073709551608, 0], expected a range within the file's 8 bytes of data"},
      {"BytesDisagree", one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
       "tensor 'a.b' has data_offsets [0, 8], which is 8 bytes, expected 12 for F32 [3]"},
      {"FileCut", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 7),
       "tensor 'a.b' has data_offsets [0, 8], expected a range within the file's 7 bytes of data"},
      {"Overlap", fileOf("{" + entry("x", "U8", "[6]", "[0,6]") + "," + entry("y", "U8", "[4]", "[4,8]") + "}", 8),
       "tensor 'y' starts at data offset 4 and overlaps tensor 'x', which ends at 6"},
      {"SamePlace", fileOf("{" + entry("x", "U8", "[4]", "[0,4]") + "," + entry("y", "U8", "[4]", "[0,4]") + "}", 4),
       "tensor 'y' starts at data offset 0 and overlaps tensor 'x', which ends at 4"},
      {"EmptyInsideAnother",
       fileOf("{" + entry("x", "U8", "[4]", "[0,4]") + "," + entry("y", "U8", "[0]", "[2,2]") + "}", 4),
       "tensor 'y' starts at data offset 2 and overlaps tensor 'x', which ends at 4"},
      {"Hole", fileOf("{" + entry("x", "U8", "[2]", "[0,2]") + "," + entry("y", "U8", "[4]", "[4,8]") + "}", 8),
       "tensor 'y' starts at data offset 4, expected 2, where the tensors before it end"},
      {"HoleAtTheStart", fileOf("{" + entry("x", "U8", "[4]", "[4,8]") + "}", 8),
       "tensor 'x' starts at data offset 4, expected 0, where the tensors before it end"},
      {"DataUnclaimed", fileOf("{" + entry("x", "U8", "[4]", "[0,4]") + "}", 8),
       "has 8 bytes of data, but its tensors cover 4"},
  };
}

class BrokenSafetensors : public testing::TestWithParam<Broken> {};
void PrintTo(const Broken &broken, std::ostream *out) { *out << broken.name; }

TEST_P(BrokenSafetensors, IsRefusedInOneSentence) {
  Result<SafetensorsHeader> header = SafetensorsHeader::parse(GetParam().file, "m.safetensors");
  ASSERT_FALSE(header);
  EXPECT_EQ(header.message(), "m.safetensors: " + GetParam().message);

  TemporaryDirectory dir;
  std::string path = dir / "m.safetensors";
  ASSERT_TRUE(writeFile(path, GetParam().file));
  Result<SafetensorsFile> file = SafetensorsFile::open(path);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.message(), path + ": " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Corpus, BrokenSafetensors, testing::ValuesIn(corpus()),
                         [](const auto &info) { return info.param.name; });

TEST(Safetensors, EveryCutOfAGoodFileIsRefused) {
  std::string file = fileOf("{" + entry("x", "U8", "[2]", "[0,2]") + "," + entry("y", "BF16", "[3]", "[2,8]") + "}", 8);
  ASSERT_TRUE(SafetensorsHeader::parse(file, "m"));
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_FALSE(SafetensorsHeader::parse(std::string_view(file).substr(0, size), "m")) << size;
}

TEST(Safetensors, ReadsScalarsEmptyTensorsAndMetadata) {
  std::string header = R"({"__metadata__":{"format":"pt","é":""},)" + entry("scalar", "F32", "[]", "[0,4]") + "," +
                       entry("last", "I64", "[1,1]", "[4,12]") + "," + entry("e0", "F32", "[0,7]", "[4,4]") + "," +
                       entry("e1", "U8", "[7,0]", "[12,12]") + "}   ";
  std::string bytes = fileOf(header, 12);
  Result<SafetensorsHeader> parsed = SafetensorsHeader::parse(bytes, "m");
  ASSERT_TRUE(parsed) << parsed.message();
  EXPECT_EQ(parsed->metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"é", ""}}));
  ASSERT_EQ(parsed->tensors.size(), 4u);
  uint64_t begin = 8 + header.size();
  const TensorInfo &scalar = parsed->tensors.at("scalar");
  EXPECT_EQ(scalar.dtype, DType::F32);
  EXPECT_TRUE(scalar.shape.empty());
  EXPECT_EQ(scalar.elements(), 1);
  EXPECT_EQ(scalar.begin, begin);
  EXPECT_EQ(scalar.bytes, 4u);
  EXPECT_EQ(parsed->tensors.at("last").begin, begin + 4);
  EXPECT_EQ(parsed->tensors.at("last").shape, (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(parsed->tensors.at("e0").elements(), 0);
  EXPECT_EQ(parsed->tensors.at("e0").bytes, 0u);
  EXPECT_TRUE(SafetensorsHeader::parse(fileOf("{}", 0), "m"));
}

TEST(Safetensors, ReadsTheCheckedInModels) {
  Result<SafetensorsFile> file =
      SafetensorsFile::open(MOEC_TEST_DIR "/models/tiny-shakespeare-fp8/model-00001-of-00002.safetensors");
  ASSERT_TRUE(file) << file.message();
  size_t fp8 = 0;
  for (const auto &[name, info] : file->tensors()) {
    ASSERT_LE(info.begin + info.bytes, file->mapping().size());
    fp8 += info.dtype == DType::F8E4M3;
  }
  EXPECT_GT(fp8, 0u);
}

TEST(Safetensors, ManyTensorsTakeNoQuadraticTime) {
  std::string header = "{";
  const int count = 200000;
  for (int i = 0; i < count; ++i)
    header += (i ? "," : "") +
              entry("t" + std::to_string(i), "U8", "[1]", "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]");
  Result<SafetensorsHeader> parsed = SafetensorsHeader::parse(fileOf(header + "}", count), "m");
  ASSERT_TRUE(parsed) << parsed.message();
  EXPECT_EQ(parsed->tensors.size(), static_cast<size_t>(count));
}

//===----------------------------------------------------------------------===//
// Writer
//===----------------------------------------------------------------------===//

TEST(SafetensorsWriter, WhatItWritesReadsBack) {
  TemporaryDirectory dir;
  std::string path = dir / "w.safetensors";
  std::vector<TensorSpec> specs = {{"z", DType::F32, {2, 3}},
                                   {"a \"quoted\" é", DType::BF16, {}},
                                   {"empty", DType::F8E4M3, {0, 128}},
                                   {"m", DType::U8, {5}}};
  auto writer = SafetensorsWriter::create(path, specs, {{"made by", "a test"}});
  ASSERT_TRUE(writer) << writer.message();
  const float z[6] = {1, 2, 3, 4, 5, 6};
  const uint16_t a = 0x3f80;
  // Out of order, in parts.
  ASSERT_TRUE(writer->write("m", 2, "cde", 3));
  ASSERT_TRUE(writer->write("z", 12, z + 3, 12));
  ASSERT_TRUE(writer->write(specs[1].name, 0, &a, 2));
  ASSERT_TRUE(writer->write("z", 0, z, 12));
  ASSERT_TRUE(writer->write("m", 0, "ab", 2));
  ASSERT_TRUE(writer->write("empty", 0, nullptr, 0));
  EXPECT_FALSE(std::filesystem::exists(path));
  Status finished = writer->finish();
  ASSERT_TRUE(finished) << finished.message();
  EXPECT_EQ(dir.list(), std::vector<std::string>{"w.safetensors"});

  Result<SafetensorsFile> file = SafetensorsFile::open(path);
  ASSERT_TRUE(file) << file.message();
  EXPECT_EQ(file->metadata().at("made by"), "a test");
  ASSERT_EQ(file->tensors().size(), 4u);
  uint64_t at = 4096;
  for (const TensorSpec &spec : specs) {
    const TensorInfo &info = file->tensors().at(spec.name);
    EXPECT_EQ(info.dtype, spec.dtype);
    EXPECT_EQ(info.shape, spec.shape);
    EXPECT_EQ(info.begin, at) << spec.name;
    EXPECT_EQ(writer->tensors().at(spec.name).begin, info.begin);
    at += info.bytes;
  }
  EXPECT_EQ(std::memcmp(file->data(file->tensors().at("z")), z, 24), 0);
  EXPECT_EQ(std::memcmp(file->data(file->tensors().at(specs[1].name)), &a, 2), 0);
  EXPECT_EQ(std::memcmp(file->data(file->tensors().at("m")), "abcde", 5), 0);
}

TEST(SafetensorsWriter, DataStartsAtAPageWhateverTheHeaderLength) {
  TemporaryDirectory dir;
  // Around the lengths where the header grows by a page.
  for (size_t nameLength : {1u, 2000u, 4000u, 4015u, 4016u, 4017u, 4018u, 4019u, 4020u, 4021u, 4100u, 9000u}) {
    std::string name(nameLength, 'n');
    auto writer = SafetensorsWriter::create(dir / "w", {{name, DType::U8, {1}}});
    ASSERT_TRUE(writer) << writer.message();
    ASSERT_TRUE(writer->write(name, 0, "x", 1));
    ASSERT_TRUE(writer->finish());
    auto file = SafetensorsFile::open(dir / "w");
    ASSERT_TRUE(file) << file.message();
    uint64_t begin = file->tensors().at(name).begin;
    EXPECT_EQ(begin % 4096, 0u);
    EXPECT_LT(begin, nameLength + 4096 + 100);
  }
}

TEST(SafetensorsWriter, ThreadsFillDisjointRanges) {
  TemporaryDirectory dir;
  const size_t threads = 4, perThread = 100000;
  auto writer = SafetensorsWriter::create(dir / "w", {{"t", DType::I32, {threads * perThread}}});
  ASSERT_TRUE(writer) << writer.message();
  std::vector<std::thread> pool;
  for (size_t t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      std::vector<int32_t> part(perThread);
      std::iota(part.begin(), part.end(), static_cast<int32_t>(t * perThread));
      for (size_t i = 0; i < perThread; i += 1000) {
        Status status = writer->write("t", (t * perThread + i) * 4, part.data() + i, 4000);
        EXPECT_TRUE(status) << status.message();
      }
    });
  for (std::thread &thread : pool)
    thread.join();
  ASSERT_TRUE(writer->finish());
  auto file = SafetensorsFile::open(dir / "w");
  ASSERT_TRUE(file) << file.message();
  auto *values = reinterpret_cast<const int32_t *>(file->data(file->tensors().at("t")));
  for (size_t i = 0; i < threads * perThread; ++i)
    ASSERT_EQ(values[i], static_cast<int32_t>(i));
}

TEST(SafetensorsWriter, LeavesNothingWhenNotFinished) {
  TemporaryDirectory dir;
  {
    auto writer = SafetensorsWriter::create(dir / "w", {{"t", DType::U8, {4}}});
    ASSERT_TRUE(writer) << writer.message();
    ASSERT_TRUE(writer->write("t", 0, "abcd", 4));
  }
  EXPECT_TRUE(dir.list().empty());
}

TEST(SafetensorsWriter, RefusesBadSpecsAndWrites) {
  TemporaryDirectory dir;
  std::string path = dir / "w";
  auto problem = [&](const std::vector<TensorSpec> &specs, const std::map<std::string, std::string> &metadata = {}) {
    auto writer = SafetensorsWriter::create(path, specs, metadata);
    return writer ? "(no error)" : writer.message();
  };
  EXPECT_EQ(problem({{"t", DType::U8, {1}}, {"t", DType::U8, {1}}}),
            path + ": tensor 't' cannot be written, its name is taken");
  EXPECT_EQ(problem({{"__metadata__", DType::U8, {1}}}),
            path + ": tensor '__metadata__' cannot be written, its name is taken");
  EXPECT_EQ(problem({{"t", DType::F32, {2, -1}}}), path + ": tensor 't' cannot be written as F32 [2, -1]");
  EXPECT_EQ(problem({{"t", DType::F32, {int64_t{1} << 61}}}),
            path + ": tensor 't' cannot be written as F32 [2305843009213693952]");
  EXPECT_EQ(problem({{"\xff", DType::F32, {1}}}), path + ": a tensor name or metadata entry is not UTF-8");
  EXPECT_EQ(problem({}, {{"k", "\xff"}}), path + ": a tensor name or metadata entry is not UTF-8");

  auto writer = SafetensorsWriter::create(path, {{"t", DType::U8, {4}}});
  ASSERT_TRUE(writer) << writer.message();
  EXPECT_EQ(writer->write("u", 0, "", 0).message(), path + ": has no tensor 'u'");
  EXPECT_EQ(writer->write("t", 2, "abc", 3).message(),
            path + ": tensor 't' has 4 bytes, but 3 are written at offset 2");
  EXPECT_EQ(writer->write("t", ~uint64_t{0}, "ab", 2).message(),
            path + ": tensor 't' has 4 bytes, but 2 are written at offset 18446744073709551615");
}

} // namespace
