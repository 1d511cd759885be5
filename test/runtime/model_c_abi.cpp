// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/runtime/model_tiny.h"

#include <gtest/gtest.h>

extern "C" int test_c_abi(const char *artifact);

namespace {

TEST(CAbi, AnsweredAProgramInC) {
  moec::test::TemporaryDirectory dir;
  moec::test::TinyArtifact artifact;
  artifact.manifest["model"]["eos"] = moec::Json::array();
  artifact.write(dir.path());
  moec::test::TinyArtifact::writeTokenizer(dir.path());
  EXPECT_EQ(test_c_abi(dir.path().c_str()), 0);
}

} // namespace
