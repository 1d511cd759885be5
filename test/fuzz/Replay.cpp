// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Runs a fuzz target over the files of its corpus, each also cut short at
/// every length and with single bytes changed, so that any compiler and every
/// test run covers what the fuzzer once found. A broken promise aborts.

#include "runtime/Support/File.h"
#include "test/fuzz/FuzzTarget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

std::vector<std::string> corpus() {
  std::vector<std::string> paths;
  for (const auto &entry : std::filesystem::directory_iterator(MOEC_FUZZ_CORPUS))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// Gives the target its own allocation of exactly that size, as libFuzzer
/// does: a read beyond the end is then seen by AddressSanitizer.
void run(std::string_view input) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[input.size()]);
  if (!input.empty())
    std::memcpy(copy.get(), input.data(), input.size());
  ASSERT_EQ(LLVMFuzzerTestOneInput(copy.get(), input.size()), 0);
}

class Replay : public testing::TestWithParam<std::string> {};

TEST_P(Replay, KeepsItsPromises) {
  moec::Result<std::string> read = moec::readFile(GetParam());
  ASSERT_TRUE(read) << read.message();
  std::string &content = *read;
  run(content);
  // Of large files only the start: all of it would take quadratic time.
  size_t cuts = std::min<size_t>(content.size(), 4096);
  for (size_t size = 0; size < cuts; ++size)
    run(std::string_view(content).substr(0, size));
  for (size_t i = 0; i < cuts; ++i)
    for (unsigned char other : {'"', '{', ']', ',', '9', '-', '\0', '\xff'}) {
      char kept = std::exchange(content[i], static_cast<char>(other));
      run(content);
      content[i] = kept;
    }
}

INSTANTIATE_TEST_SUITE_P(Corpus, Replay, testing::ValuesIn(corpus()), [](const auto &info) {
  std::string name = std::filesystem::path(info.param).filename();
  for (char &c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)))
      c = '_';
  return name;
});

} // namespace
