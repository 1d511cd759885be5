// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/WeightCopies.h"

#include "runtime/MachineRates.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Text.h"
#include "runtime/Topology.h"

#include <algorithm>
#include <cstring>

#include <sys/mman.h>

namespace moec {

Result<WeightPlacement> weightPlacementFromString(std::string_view name) {
  auto found = std::ranges::find(weightPlacementNames, name);
  if (found == weightPlacementNames.end())
    return Error{"weights are to be " + quote(name) + ", expected mapped, copied or replicated"};
  return static_cast<WeightPlacement>(found - weightPlacementNames.begin());
}

Result<WeightCopies> WeightCopies::make(const Artifact &artifact, WeightPlacement placement, ThreadPool &pool) {
  WeightCopies result;
  if (placement == WeightPlacement::Mapped)
    return result;
  const Topology &machine = Topology::machine();
  const int nodes = placement == WeightPlacement::Replicated ? machine.nodes() : 1;

  // One after the other, each in whole lines of the cache.
  constexpr uint64_t line = 64;
  uint64_t bytes = 0;
  for (const WeightInfo &weight : artifact.weights()) {
    result.offsets.push_back(bytes);
    bytes += (weight.tensor.bytes + kReadableSlack + line - 1) / line * line;
  }
  const std::string what = "copies of the weights of " + artifact.directory();
  const uint64_t available = availableMemory();
  uint64_t all = 0;
  if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(nodes), &all) || (available && all > available))
    return Error{what + " take " + std::to_string(bytes) + " bytes on each of " + std::to_string(nodes) +
                 (nodes == 1 ? " memory node, but " : " memory nodes, but ") + std::to_string(available) +
                 " bytes of memory are available"};

  for (int node = 0; node < nodes; ++node) {
    MOEC_TRY(LazyMemory memory, LazyMemory::allocate(bytes, what));
    ::madvise(memory.data(), bytes, MADV_HUGEPAGE);
    machine.bindMemory(memory.data(), bytes, nodes > 1 ? std::optional(node) : std::nullopt);
    result.copies.push_back(std::move(memory));
  }
  for (size_t i = 0; i < artifact.weights().size(); ++i) {
    const WeightInfo &weight = artifact.weights()[i];
    const uint64_t size = weight.tensor.bytes;
    pool.parallelFor(static_cast<int64_t>((size + hugePageBytes - 1) / hugePageBytes), [&](int64_t begin, int64_t end) {
      const uint64_t from = static_cast<uint64_t>(begin) * hugePageBytes;
      const uint64_t length = std::min(size, static_cast<uint64_t>(end) * hugePageBytes) - from;
      for (const LazyMemory &copy : result.copies)
        std::memcpy(copy.data() + result.offsets[i] + from, weight.data + from, length);
    });
  }
  return result;
}

} // namespace moec
