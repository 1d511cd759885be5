// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A directory for one test, gone with it.

#ifndef MOEC_TEST_RUNTIME_TEMPORARYDIRECTORY_H
#define MOEC_TEST_RUNTIME_TEMPORARYDIRECTORY_H

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace moec::test {

class TemporaryDirectory {
public:
  TemporaryDirectory() : root(testing::TempDir() + "moec-XXXXXX") {
    if (!::mkdtemp(root.data()))
      ADD_FAILURE() << "no temporary directory " << root;
  }
  TemporaryDirectory(const TemporaryDirectory &) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(root, ignored);
  }

  const std::string &path() const { return root; }
  std::string operator/(const std::string &name) const { return root + "/" + name; }
  /// Names of everything directly inside, sorted.
  std::vector<std::string> list() const {
    std::vector<std::string> names;
    for (const auto &entry : std::filesystem::directory_iterator(root))
      names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

private:
  std::string root;
};

} // namespace moec::test

#endif // MOEC_TEST_RUNTIME_TEMPORARYDIRECTORY_H
