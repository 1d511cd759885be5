// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Journal.h"
#include "codegen/Weights/WeightFiles.h"
#include "test/runtime/TemporaryDirectory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

using namespace moec;
using moec::test::TemporaryDirectory;
using testing::HasSubstr;

namespace {

class JournalTest : public testing::Test {
protected:
  JournalTest() { std::filesystem::create_directory(out()); }

  std::string out() const { return dir / "out"; }
  std::string notes() const { return dir / "notes"; }

  Journal open(const std::string &fingerprint = "f") {
    auto journal = Journal::open(notes(), out(), fingerprint);
    if (!journal.ok())
      ADD_FAILURE() << journal.message();
    return std::move(*journal);
  }

  /// Bytes of `name` that a new journal finds right, and their hash.
  std::pair<uint64_t, std::string> found(const std::string &name, const std::string &fingerprint = "f") {
    auto known = open(fingerprint).verify(name);
    if (!known.ok())
      ADD_FAILURE() << known.message();
    return {known->bytes, known->hash.hex()};
  }

  std::pair<uint64_t, std::string> prefix(uint64_t bytes) { return {bytes, xxh3Hex(text.data(), bytes)}; }

  /// A file of 3000 bytes, noted at 1000 and 2500.
  void fill() {
    Journal journal = open();
    ASSERT_TRUE(writeFile(out() + "/a", text).ok());
    KnownFile known{"a", 0, {}};
    for (uint64_t bytes : {1000, 2500})
      ASSERT_TRUE(journal.extend(known, bytes).ok());
    EXPECT_EQ(known.hash.hex(), xxh3Hex(text.data(), 2500));
  }

  void change(const std::string &path, const std::function<void(std::string &)> &edit) {
    std::string content = *readFile(path);
    edit(content);
    ASSERT_TRUE(writeFile(path, content).ok());
  }

  TemporaryDirectory dir;
  std::string text = [] {
    std::string text;
    for (int i = 0; text.size() < 3000; ++i)
      text += std::to_string(i);
    text.resize(3000);
    return text;
  }();
};

TEST_F(JournalTest, KnowsAFileUpToItsLastNote) {
  EXPECT_EQ(found("a"), prefix(0));
  fill();
  EXPECT_EQ(found("a"), prefix(2500));
  EXPECT_EQ(found("b"), prefix(0));
}

TEST_F(JournalTest, GoesOn) {
  fill();
  {
    Journal journal = open();
    auto known = journal.verify("a");
    ASSERT_TRUE(known.ok());
    ASSERT_TRUE(journal.extend(*known, 3000).ok());
  }
  EXPECT_EQ(found("a"), prefix(3000));
}

TEST_F(JournalTest, ComparesWhatIsThere) {
  fill();
  change(out() + "/a", [](std::string &content) { content[1000] ^= 1; });
  EXPECT_EQ(found("a"), prefix(1000));
  change(out() + "/a", [&](std::string &content) { content = text.substr(0, 2499); });
  EXPECT_EQ(found("a"), prefix(1000));
  change(out() + "/a", [&](std::string &content) { content = text, content[0] ^= 1; });
  EXPECT_EQ(found("a"), prefix(0));
  std::filesystem::remove(out() + "/a");
  EXPECT_EQ(found("a"), prefix(0));
}

TEST_F(JournalTest, EveryCutOfTheNotesIsAState) {
  fill();
  const std::string whole = *readFile(notes());
  size_t first = whole.find('\n') + 1, second = whole.find('\n', first) + 1;
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    ASSERT_TRUE(writeFile(notes(), whole.substr(0, cut)).ok());
    ASSERT_TRUE(writeFile(out() + "/a", text).ok()); // gone where no note speaks of it
    EXPECT_EQ(found("a"), prefix(cut == whole.size() ? 2500 : cut >= second ? 1000 : 0)) << "cut at " << cut;
  }
}

TEST_F(JournalTest, EveryDamagedByteIsSeen) {
  fill();
  const std::string whole = *readFile(notes());
  size_t last = whole.size() - 1;
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] ^= 4;
    ASSERT_TRUE(writeFile(notes(), damaged).ok());
    ASSERT_TRUE(writeFile(out() + "/a", text).ok());
    // Without its end the last line is one that was cut.
    EXPECT_EQ(found("a"), prefix(at == last ? 1000 : 0)) << "byte " << at;
  }
}

TEST_F(JournalTest, AnotherFingerprintStartsAfresh) {
  fill();
  EXPECT_EQ(found("a", "g"), prefix(0));
  EXPECT_FALSE(std::filesystem::exists(out() + "/a"));
  EXPECT_EQ(found("a"), prefix(0)) << "the old notes are gone";
}

TEST_F(JournalTest, RemovesWhatItDoesNotKnow) {
  fill();
  std::filesystem::create_directories(out() + "/folder/inner");
  ASSERT_TRUE(writeFile(out() + "/folder/inner/b", "b").ok());
  ASSERT_TRUE(writeFile(dir / "precious", "p").ok());
  std::filesystem::create_symlink("../precious", out() + "/link");
  std::filesystem::create_directory_symlink("..", out() + "/up");
  EXPECT_EQ(found("a"), prefix(2500));
  std::vector<std::string> names;
  for (const auto &entry : std::filesystem::directory_iterator(out()))
    names.push_back(entry.path().filename());
  EXPECT_THAT(names, testing::ElementsAre("a"));
  EXPECT_TRUE(std::filesystem::exists(dir / "precious"));
}

TEST_F(JournalTest, SaysWhenAFileIsTooShort) {
  fill();
  Journal journal = open();
  auto known = journal.verify("a");
  auto status = journal.extend(*known, 3001);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr("a: has 3000 bytes, but 3001 were written"));
}

TEST_F(JournalTest, WeightFilesGoOnInsideAWeight) {
  std::vector<TensorSpec> specs = {{"a", DType::U8, {2000}}, {"b", DType::U8, {1000}}, {"c", DType::U8, {500}}};
  std::vector<WeightFileEntry> expected;
  for (bool interrupted : {false, true}) {
    std::filesystem::remove(notes());
    auto run = [&](uint64_t upTo) {
      Journal journal = open();
      auto files = WeightFiles::open(out(), specs, 3000, journal);
      ASSERT_TRUE(files.ok()) << files.message();
      // a and b share a file, which is noted where it is whole: that makes c the one that is cut.
      EXPECT_EQ((*files)->present(1), interrupted && upTo > 2 ? 1000u : 0u);
      for (size_t i = 0; i < upTo; ++i) {
        uint64_t size = specs[i].shape[0];
        ASSERT_TRUE((*files)->write(i, 0, text.data(), size).ok());
        ASSERT_TRUE((*files)->advance(i, size).ok());
      }
      if (upTo < specs.size()) {
        for (int i = 0; i < 5000 && readFile(notes())->find("00001") == std::string::npos; ++i)
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return; // as a killed process does
      }
      auto entries = (*files)->finish();
      ASSERT_TRUE(entries.ok()) << entries.message();
      for (size_t i = 0; i < entries->size(); ++i)
        EXPECT_EQ((*entries)[i].xxh3, *xxh3HexOfFile(out() + "/" + (*entries)[i].file));
      if (!interrupted)
        expected = *entries;
      ASSERT_EQ(entries->size(), expected.size());
      for (size_t i = 0; i < entries->size(); ++i)
        EXPECT_EQ((*entries)[i].xxh3, expected[i].xxh3);
    };
    if (interrupted)
      run(2);
    run(3);
  }
}

} // namespace
