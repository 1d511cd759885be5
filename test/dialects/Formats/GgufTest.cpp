// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// GGUF: the file of the gguf package, every code of every block, hostile headers.

#include "dialects/Formats/Gguf.h"
#include "test/dialects/Formats/MemoryTensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <random>
#include <unistd.h>

using namespace moec;
using namespace moec::test;
using testing::HasSubstr;

namespace {

const std::string fixture = MOEC_TEST_DIR "/dialects/Formats/fixtures/blocks.gguf";

std::vector<float> readAll(const StoredMatrix &matrix) {
  std::vector<float> values(matrix.rows * matrix.cols);
  Status status = matrix.read(0, matrix.rows, 0, matrix.cols, values.data());
  EXPECT_TRUE(status) << status.message();
  return values;
}

TEST(Gguf, DecodesAsItsPackageDoes) {
  auto file = GgufFile::open(fixture);
  ASSERT_TRUE(file) << file.message();
  EXPECT_EQ(file->header().tensors.size(), 14u);
  std::mt19937 random(11);
  for (const char *name : {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"}) {
    SCOPED_TRACE(name);
    auto stored = file->matrix(name), expected = file->matrix(std::string(name) + ".expected");
    ASSERT_TRUE(stored) << stored.message();
    ASSERT_TRUE(expected) << expected.message();
    const StoredMatrix &matrix = **stored;
    EXPECT_EQ(matrix.rows, std::string(name) == "Q8_0" ? 6 : 2); // that one is [2, 3, 64]
    std::vector<float> whole = readAll(matrix);
    EXPECT_EQ(whole, readAll(**expected));
    for (int round = 0; round < 100; ++round) {
      int64_t row = random() % matrix.rows, rows = random() % (matrix.rows - row + 1);
      int64_t col = random() % matrix.cols, cols = random() % (matrix.cols - col + 1);
      std::vector<float> part(rows * cols + 1, 12345.0f);
      ASSERT_TRUE(matrix.read(row, rows, col, cols, part.data()));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          ASSERT_EQ(part[r * cols + c], whole[(row + r) * matrix.cols + col + c]);
      ASSERT_EQ(part.back(), 12345.0f);
    }
    matrix.release(0, matrix.rows);
    EXPECT_EQ(readAll(matrix), whole);
  }
  EXPECT_THAT(file->matrix("absent").message(), HasSubstr("blocks.gguf: there is no tensor 'absent'"));
}

TEST(Gguf, Metadata) {
  auto file = GgufFile::open(fixture);
  ASSERT_TRUE(file) << file.message();
  const auto &metadata = file->header().metadata;
  EXPECT_EQ(std::get<std::string_view>(metadata.at("general.name")), "blocks");
  EXPECT_EQ(std::get<bool>(metadata.at("test.yes")), true);
  EXPECT_EQ(std::get<int64_t>(metadata.at("test.negative")), -5);
  EXPECT_EQ(std::get<double>(metadata.at("test.float")), 0.25);
  GgufArray numbers = std::get<GgufArray>(metadata.at("test.numbers"));
  EXPECT_EQ(numbers.type, GgufArray::Type::I32);
  EXPECT_EQ(numbers.count, 3u);
  EXPECT_EQ(numbers.bytes, bytesOf<int32_t>({1, 2, 3}));
  GgufArray words = std::get<GgufArray>(metadata.at("test.words"));
  EXPECT_EQ(words.count, 2u);
  EXPECT_EQ(words.bytes.size(), 2 * 8u + 6u);
}

//===----------------------------------------------------------------------===//
// Every code
//===----------------------------------------------------------------------===//

std::string half(float value) { return bytesOf<uint16_t>({floatToF16(value)}); }

std::vector<float> decode(uint32_t type, const std::string &block) {
  const GgufType *found = ggufType(type);
  EXPECT_NE(found, nullptr);
  EXPECT_EQ(static_cast<int64_t>(block.size()), found->bytes);
  std::vector<float> values(found->elements);
  found->decode(reinterpret_cast<const std::byte *>(block.data()), values.data());
  return values;
}

TEST(GgufCodes, Plain) {
  for (int code = 0; code < 65536; ++code) {
    std::string bytes = bytesOf<uint16_t>({static_cast<uint16_t>(code)});
    int exponent = code >> 10 & 31;
    if (exponent != 31) {
      double magnitude = exponent ? std::ldexp(1024 + (code & 1023), exponent - 25) : std::ldexp(code & 1023, -24);
      ASSERT_EQ(decode(1, bytes)[0], static_cast<float>(code & 0x8000 ? -magnitude : magnitude));
    }
    exponent = code >> 7 & 255;
    if (exponent != 255) {
      double magnitude = exponent ? std::ldexp(128 + (code & 127), exponent - 134) : std::ldexp(code & 127, -133);
      ASSERT_EQ(decode(30, bytes)[0], static_cast<float>(code & 0x8000 ? -magnitude : magnitude));
    }
  }
  EXPECT_EQ(decode(0, bytesOf<float>({-3.25f}))[0], -3.25f);
}

TEST(GgufCodes, Q80AndQ40) {
  for (float scale : {0.5f, -0.125f, 0.0f, 3.0f})
    for (int shift = 0; shift < 256; ++shift) {
      std::string bytes = half(scale), nibbles = half(scale) + std::string(16, '\0');
      for (int i = 0; i < 32; ++i) {
        bytes += static_cast<char>(i + shift);
        putBits(nibbles, 16 + i % 16 * 8 + i / 16 * 4, 4, static_cast<unsigned>(i + shift));
      }
      std::vector<float> q8 = decode(8, bytes), q4 = decode(2, nibbles);
      for (int i = 0; i < 32; ++i) {
        int code = (i + shift) % 256;
        ASSERT_EQ(q8[i], scale * static_cast<float>(code < 128 ? code : code - 256));
        ASSERT_EQ(q4[i], scale * static_cast<float>(code % 16 - 8));
      }
    }
}

TEST(GgufCodes, Q4K) {
  // Every scale and minimum in every group; every code at every place.
  for (int round = 0; round < 64 * 64; ++round) {
    std::string block = half(0.5f) + half(-0.25f) + std::string(140, '\0');
    std::array<int, 8> scale, minimum;
    for (int g = 0; g < 8; ++g) {
      scale[g] = (round + g * 9) % 64;
      minimum[g] = (round / 64 + g * 23) % 64;
      int64_t at = 4 * 8;
      if (g < 4) {
        putBits(block, at + g * 8, 6, scale[g]);
        putBits(block, at + (g + 4) * 8, 6, minimum[g]);
      } else {
        putBits(block, at + (g + 4) * 8, 4, scale[g]);
        putBits(block, at + (g - 4) * 8 + 6, 2, scale[g] >> 4);
        putBits(block, at + (g + 4) * 8 + 4, 4, minimum[g]);
        putBits(block, at + g * 8 + 6, 2, minimum[g] >> 4);
      }
    }
    auto code = [&](int i) { return (i + i / 16 + round) % 16; };
    for (int i = 0; i < 256; ++i)
      putBits(block, 16 * 8 + (i / 64 * 32 + i % 32) * 8 + i / 32 % 2 * 4, 4, code(i));
    std::vector<float> values = decode(12, block);
    for (int i = 0; i < 256; ++i)
      ASSERT_EQ(values[i],
                0.5f * static_cast<float>(scale[i / 32] * code(i)) + 0.25f * static_cast<float>(minimum[i / 32]))
          << round << " " << i;
  }
}

TEST(GgufCodes, Q6K) {
  for (int round = 0; round < 256; ++round) {
    std::string block(208, '\0');
    auto code = [&](int i) { return (i + i / 64 + round) % 64; };
    auto scale = [&](int i) { return static_cast<int8_t>(i / 16 * 16 + round); };
    for (int side = 0; side < 2; ++side)
      for (int i = 0; i < 32; ++i)
        for (int quarter = 0; quarter < 4; ++quarter) {
          int value = code(side * 128 + quarter * 32 + i);
          putBits(block, (side * 64 + (quarter & 1) * 32 + i) * 8 + (quarter >> 1) * 4, 4, value);
          putBits(block, (128 + side * 32 + i) * 8 + quarter * 2, 2, value >> 4);
        }
    for (int i = 0; i < 256; i += 16)
      block[192 + i / 16] = static_cast<char>(scale(i));
    std::vector<float> values = decode(14, block + half(-0.25f));
    for (int i = 0; i < 256; ++i)
      ASSERT_EQ(values[i], -0.25f * static_cast<float>(scale(i) * (code(i) - 32))) << round << " " << i;
  }
}

TEST(GgufCodes, OtherTypesAreNotKnown) {
  int known = 0;
  for (uint32_t id = 0; id < 300; ++id)
    known += ggufType(id) != nullptr;
  EXPECT_EQ(known, 7);
}

//===----------------------------------------------------------------------===//
// Hostile headers
//===----------------------------------------------------------------------===//

template <typename T> std::string number(T value) { return bytesOf<T>({value}); }
std::string text(const std::string &value) { return number<uint64_t>(value.size()) + value; }
std::string start(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
  return "GGUF" + number(version) + number(tensors) + number(pairs);
}
std::string tensor(const std::string &name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
  return text(name) + number<uint32_t>(dims.size()) + bytesOf(dims) + number(type) + number(offset);
}
/// `header`, padded, and so many bytes of data.
std::string padded(std::string header, size_t data) {
  header.resize((header.size() + 31) / 32 * 32);
  return header + std::string(data, '\0');
}
std::string problem(const std::string &file) {
  auto header = GgufHeader::parse(file, "in");
  return header ? "" : header.message();
}

TEST(GgufHeader, Accepted) {
  EXPECT_EQ(problem(start(0, 0)), "");
  EXPECT_EQ(problem(start(0, 0, 2)), "");
  std::string two = padded(start(2, 0) + tensor("a", {4, 2}, 0, 32) + tensor("b", {32}, 2, 0), 64);
  auto header = GgufHeader::parse(two, "in");
  ASSERT_TRUE(header) << header.message();
  EXPECT_EQ(header->tensors.at("a").shape, (std::vector<int64_t>{2, 4})); // outermost first
  EXPECT_EQ(header->tensors.at("a").bytes, 32u);
  EXPECT_EQ(header->tensors.at("b").bytes, 18u);
  EXPECT_EQ(header->tensors.at("a").begin, header->tensors.at("b").begin + 32);
  // Of a type that is not known nothing but the offset can be checked.
  EXPECT_EQ(problem(padded(start(1, 0) + tensor("a", {7}, 99, 0), 0)), "");
  std::string aligned = start(1, 1) + text("general.alignment") + number<uint32_t>(4) + number<uint32_t>(1) +
                        tensor("a", {1}, 0, 3) + std::string(7, '\0');
  EXPECT_EQ(problem(aligned), "");
}

TEST(GgufHeader, Refused) {
  const uint64_t huge = ~uint64_t{0};
  std::string key = text("k"), a = tensor("a", {4}, 0, 0);
  auto alignment = [&](uint32_t value) {
    return problem(start(0, 1) + text("general.alignment") + number<uint32_t>(4) + number(value));
  };
  struct {
    std::string file, expected;
  } cases[] = {
      {"", "ends within its first four bytes"},
      {"GGML" + std::string(60, '\0'), "does not begin with GGUF"},
      {start(0, 0, 1), "has version 1, but only versions 2 and 3 are read"},
      {start(0, 0, 4), "has version 4"},
      {start(0, 0, 3u << 24), "is big-endian"},
      {start(huge, 0), "says that it holds 18446744073709551615 tensors and 0 metadata, more than its size allows"},
      {start(0, huge), "more than its size allows"},
      {start(0, 1) + number(huge) + "kkkkkkkk", "ends within a metadata key"},
      {start(0, 1) + key + number<uint32_t>(13) + "        ", "gives the metadata 'k' the type 13"},
      {start(0, 1) + key + number<uint32_t>(7) + "\x02", "holds the boolean 2 in the metadata 'k'"},
      {start(0, 1) + key + number<uint32_t>(8) + number(huge), "ends within the metadata 'k'"},
      {start(0, 1) + key + number<uint32_t>(9) + number<uint32_t>(0) + number(huge), "ends within the metadata 'k'"},
      {start(0, 1) + key + number<uint32_t>(9) + number<uint32_t>(12) + number(huge / 8 + 1),
       "ends within the metadata"},
      {start(0, 1) + key + number<uint32_t>(9) + number<uint32_t>(8) + number(huge) + text("x"),
       "ends within the metadata"},
      {start(0, 1) + key + number<uint32_t>(9) + number<uint32_t>(9) + number<uint64_t>(1),
       "holds an array of elements of type 9"},
      {start(0, 2) + key + number<uint32_t>(0) + "x" + key + number<uint32_t>(0) + "y", "holds the metadata 'k' twice"},
      {padded(start(1, 0) + tensor("a", {}, 0, 0), 64), "gives the tensor 'a' 0 dimensions, expected 1 to 4"},
      {padded(start(1, 0) + tensor("a", {1, 1, 1, 1, 1}, 0, 0), 64), "5 dimensions"},
      {padded(start(1, 0) + tensor("a", {0}, 0, 0), 64), "a dimension of 0"},
      {padded(start(1, 0) + tensor("a", {huge}, 0, 0), 64), "a dimension of 18446744073709551615, which its size"},
      {padded(start(1, 0) + tensor("a", {500, 500, 500}, 0, 0), 64), "which its size does not allow"},
      {padded(start(1, 0) + tensor("a", {40}, 2, 0), 64), "stores the tensor 'a' as Q4_0 with rows of 40, which is no "
                                                          "multiple of 32"},
      {padded(start(1, 0) + tensor("a", {4}, 0, 8), 64), "the offset 8, which is no multiple of 32"},
      {padded(start(1, 0) + tensor("a", {4}, 0, 64), 64), "ends before the tensor 'a' does"},
      {padded(start(1, 0) + tensor("a", {4}, 0, huge - 31), 64), "ends before the tensor 'a' does"},
      {padded(start(1, 0) + a, 15), "ends before the tensor 'a' does"},
      {padded(start(2, 0) + a + a, 64), "holds the tensor 'a' twice"},
      {padded(start(2, 0) + a + tensor("b", {2}, 0, 0), 64), "stores the tensor 'b' and 'a' in the same bytes"},
      {padded(start(2, 0) + tensor("a", {16}, 0, 0) + tensor("b", {2}, 0, 32), 64), "'b' and 'a' in the same bytes"},
      {padded(start(2, 0) + tensor("a", {2}, 0, 32) + tensor("b", {16}, 0, 0), 64), "'b' and 'a' in the same bytes"},
  };
  for (const auto &c : cases) {
    std::string found = problem(c.file);
    EXPECT_TRUE(found.starts_with("in: ")) << found;
    EXPECT_THAT(found, HasSubstr(c.expected));
  }
  for (uint32_t value : {0u, 3u, 48u, 1u << 21, ~0u})
    EXPECT_THAT(alignment(value), HasSubstr("'general.alignment' that is no power of two up to 1048576"));
  EXPECT_THAT(problem(start(0, 1) + text("general.alignment") + number<uint32_t>(8) + text("32")),
              HasSubstr("'general.alignment'"));
}

class GgufOnDisk : public testing::Test {
protected:
  GgufOnDisk() : path(testing::TempDir() + "moec-" + std::to_string(::getpid()) + ".gguf") {}
  ~GgufOnDisk() override { std::filesystem::remove(path); }
  std::string path;
};

TEST_F(GgufOnDisk, RefusedTensors) {
  std::string content = padded(start(2, 0) + tensor("a", {2, 2}, 0, 0) + tensor("b", {32}, 99, 32), 0) +
                        bytesOf<float>({1, 2, 3, std::nanf("")}) + std::string(48, '\0');
  ASSERT_TRUE(writeFile(path, content));
  auto file = GgufFile::open(path);
  ASSERT_TRUE(file) << file.message();
  EXPECT_EQ(file->matrix("b").message(), path + ": tensor 'b' has the ggml type 99, but only F32, F16, Q4_0, Q8_0, "
                                                "Q4_K, Q6_K and BF16 are read");
  auto matrix = file->matrix("a");
  ASSERT_TRUE(matrix) << matrix.message();
  std::vector<float> values(4);
  EXPECT_TRUE((*matrix)->read(0, 1, 0, 2, values.data()));
  EXPECT_EQ((*matrix)->read(0, 2, 0, 2, values.data()).message(),
            path + ": tensor 'a' holds a value that is not finite at [1, 1]");
  EXPECT_THAT(GgufFile::open(path + ".absent").message(), HasSubstr("no such file"));
}

} // namespace
