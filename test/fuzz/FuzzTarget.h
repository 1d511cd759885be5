// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// One fuzz target: a function that libFuzzer calls with bytes of its own
/// making, and `Replay.cpp` with the files of the seed corpus. It aborts when
/// a promise is broken; sanitizers watch the rest.

#ifndef MOEC_TEST_FUZZ_FUZZTARGET_H
#define MOEC_TEST_FUZZ_FUZZTARGET_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

namespace moec::fuzz {

/// Aborts, and says why, unless `holds`.
inline void require(bool holds, const std::string &promise) {
  if (holds)
    return;
  std::fprintf(stderr, "broken promise: %s\n", promise.c_str());
  std::abort();
}

/// An error is one short line that starts with the name of what was read, and
/// no byte of it can drive a terminal.
inline void requireSentence(const std::string &message, const std::string &what) {
  require(message.starts_with(what + ": ") && message.size() > what.size() + 2, "error names the input: " + message);
  require(message.size() < 1500, "error is short");
  require(message.back() != '.' || message.ends_with("...'"), "error has no final period: " + message);
  for (unsigned char c : message)
    require(c >= 0x20 && c != 0x7f, "error holds no control character");
}

} // namespace moec::fuzz

#endif // MOEC_TEST_FUZZ_FUZZTARGET_H
