// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Safetensors.h"
#include "test/fuzz/FuzzTarget.h"

#include <cstring>

using namespace moec;
using namespace moec::fuzz;

static void parse(std::string_view file) {
  Result<SafetensorsHeader> header = SafetensorsHeader::parse(file, "in");
  if (!header) {
    requireSentence(header.message(), "in");
    return;
  }
  uint64_t headerBytes;
  std::memcpy(&headerBytes, file.data(), 8);
  uint64_t begin = 8 + headerBytes, covered = 0;
  for (const auto &[name, info] : header->tensors) {
    require(info.begin >= begin && info.begin <= file.size() && info.bytes <= file.size() - info.begin,
            "tensors lie in the file's data");
    require(static_cast<uint64_t>(info.elements() * byteSize(info.dtype)) == info.bytes,
            "bytes are dtype times elements");
    covered += info.bytes;
  }
  require(covered == file.size() - begin, "tensors cover the data once");
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  std::string_view input(reinterpret_cast<const char *>(data), size);
  parse(input);
  // A mutation of the text seldom comes with the right length, so also take
  // all up to the last brace as the header and what follows as data.
  size_t brace = input.size() < 8 ? std::string_view::npos : input.rfind('}');
  if (brace == std::string_view::npos || brace < 8)
    return 0;
  uint64_t length = brace + 1 - 8;
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += input.substr(8);
  parse(file);
  return 0;
}
