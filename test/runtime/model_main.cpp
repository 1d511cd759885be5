// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// `tiny-artifact DIR [chat]`: writes the artifact of model_tiny.h, so that
/// tests of `moe-run` need no compiler.

#include "test/runtime/model_tiny.h"

#include <string_view>

int main(int argc, char **argv) {
  if (argc < 2)
    return 1;
  const bool chat = argc > 2 && std::string_view(argv[2]) == "chat";
  moec::test::TinyArtifact artifact(/*maxContext=*/300);
  if (!chat)
    artifact.manifest["model"]["eos"] = moec::Json::array();
  artifact.write(argv[1]);
  moec::test::TinyArtifact::writeTokenizer(argv[1], chat);
  return 0;
}
