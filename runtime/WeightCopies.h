// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Weights in memory of our own, in place of those of the page cache.

#ifndef MOEC_RUNTIME_WEIGHTCOPIES_H
#define MOEC_RUNTIME_WEIGHTCOPIES_H

#include "runtime/Artifact.h"
#include "runtime/LazyMemory.h"
#include "runtime/Support/Result.h"
#include "runtime/ThreadPool.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moec {

/// Where kernels read weights.
enum class WeightPlacement {
  Mapped,     ///< in the page cache, which holds them already on a warm start, and which processes share
  Copied,     ///< in huge pages of our own, on all memory nodes in turn
  Replicated, ///< the same on each memory node, read by the threads of that node
};

/// "mapped", "copied", "replicated", each in its place.
inline constexpr std::array<std::string_view, 3> weightPlacementNames = {"mapped", "copied", "replicated"};
Result<WeightPlacement> weightPlacementFromString(std::string_view name);

/// One copy of all weights for each memory node that has its own.
class WeightCopies {
public:
  /// None for mapped weights. Errors: what they take is not there.
  static Result<WeightCopies> make(const Artifact &artifact, WeightPlacement placement, ThreadPool &pool);

  /// How many there are: 0, 1, or one for each node.
  size_t count() const { return copies.size(); }
  /// A weight of `artifact.weights()`; kReadableSlack readable bytes follow.
  const std::byte *at(size_t copy, size_t weight) const { return copies[copy].data() + offsets[weight]; }

private:
  std::vector<LazyMemory> copies;
  std::vector<uint64_t> offsets; ///< of each weight
};

} // namespace moec

#endif // MOEC_RUNTIME_WEIGHTCOPIES_H
