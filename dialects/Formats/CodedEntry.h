// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Where the parts of a cache entry lie that is stored as `#moe.cache_codes` says.

#ifndef MOEC_DIALECTS_FORMATS_CODEDENTRY_H
#define MOEC_DIALECTS_FORMATS_CODEDENTRY_H

#include <cstdint>

namespace moec {

/// In bytes: the codes of the latent, a scale (f32) for each group of them, the rope part in bf16. Scales begin at a
/// multiple of 4, entries at one of 16. DeepSeek's 512 + 64 elements take 656 bytes, those of FlashMLA's FP8 cache.
struct CodedEntry {
  int64_t latent = 0, rope = 0;

  /// Latent elements that share a scale; the last group may have fewer.
  static constexpr int64_t group = 128;
  int64_t groups() const { return (latent + group - 1) / group; }
  int64_t scalesAt() const { return roundUp(latent, 4); }
  int64_t ropeAt() const { return scalesAt() + 4 * groups(); }
  /// From one entry to the next.
  int64_t stride() const { return roundUp(ropeAt() + 2 * rope, 16); }

private:
  static constexpr int64_t roundUp(int64_t bytes, int64_t multiple) {
    return (bytes + multiple - 1) / multiple * multiple;
  }
};

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_CODEDENTRY_H
