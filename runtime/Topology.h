// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Processors and memory nodes of this machine, as far as the process may use them.

#ifndef MOEC_RUNTIME_TOPOLOGY_H
#define MOEC_RUNTIME_TOPOLOGY_H

#include <cstdint>
#include <optional>
#include <vector>

struct hwloc_topology;
struct hwloc_bitmap_s;

namespace moec {

/// What hwloc finds. Where it finds nothing, one node with as many cores as the standard library counts.
class Topology {
public:
  /// Read when first asked for.
  static const Topology &machine();
  Topology(const Topology &) = delete;
  ~Topology();

  /// Physical cores in the affinity mask that the process had.
  int cores() const { return coreCount; }
  /// Memory nodes that have such cores; at least 1.
  int nodes() const { return static_cast<int>(nodeSets.size()); }
  /// That of the processor on which the caller is just now; below `nodes()`.
  int currentNode() const;

  // Both are wishes, without effect where the system does not grant them or there is one node only.

  /// Keeps the calling thread on the processors of a node.
  void bindThread(int node) const;
  /// Says where pages of this memory, not touched so far, are to be: on one node, or on all in turn.
  void bindMemory(void *base, uint64_t bytes, std::optional<int> node) const;

private:
  struct Node {
    hwloc_bitmap_s *processors, *memory; ///< owned
  };

  Topology();

  hwloc_topology *topology = nullptr;
  std::vector<Node> nodeSets;
  std::vector<int> nodeOfProcessor; ///< by the system's number of it
  int coreCount = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_TOPOLOGY_H
