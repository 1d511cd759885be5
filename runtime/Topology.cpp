// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Topology.h"

#include <algorithm>
#include <thread>

#include <hwloc.h>
#include <sched.h>

namespace moec {

const Topology &Topology::machine() {
  static const Topology topology;
  return topology;
}

Topology::Topology() {
  if (hwloc_topology_init(&topology) != 0)
    topology = nullptr;
  hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
  if (topology && hwloc_topology_load(topology) == 0) {
    if (hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_PROCESS) != 0)
      hwloc_bitmap_copy(allowed, hwloc_topology_get_allowed_cpuset(topology));
    auto forEach = [&](hwloc_obj_type_t type, auto &&each) {
      for (hwloc_obj_t object = nullptr; (object = hwloc_get_next_obj_by_type(topology, type, object));)
        if (hwloc_bitmap_intersects(object->cpuset, allowed))
          each(object);
    };
    forEach(HWLOC_OBJ_CORE, [&](hwloc_obj_t) { ++coreCount; });
    forEach(HWLOC_OBJ_NUMANODE, [&](hwloc_obj_t object) {
      Node node{hwloc_bitmap_dup(object->cpuset), hwloc_bitmap_dup(object->nodeset)};
      hwloc_bitmap_and(node.processors, node.processors, allowed);
      unsigned processor = 0;
      hwloc_bitmap_foreach_begin(processor, node.processors) {
        if (processor >= nodeOfProcessor.size())
          nodeOfProcessor.resize(processor + 1, 0);
        nodeOfProcessor[processor] = nodes();
      }
      hwloc_bitmap_foreach_end();
      nodeSets.push_back(node);
    });
  }
  hwloc_bitmap_free(allowed);
  if (coreCount < 1)
    coreCount = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  if (nodeSets.empty())
    nodeSets.push_back({nullptr, nullptr});
}

Topology::~Topology() {
  for (const Node &node : nodeSets) {
    hwloc_bitmap_free(node.processors);
    hwloc_bitmap_free(node.memory);
  }
  if (topology)
    hwloc_topology_destroy(topology);
}

int Topology::currentNode() const {
  if (nodes() == 1)
    return 0;
  const int processor = ::sched_getcpu();
  return processor >= 0 && static_cast<size_t>(processor) < nodeOfProcessor.size() ? nodeOfProcessor[processor] : 0;
}

void Topology::bindThread(int node) const {
  if (nodes() > 1)
    hwloc_set_cpubind(topology, nodeSets[node].processors, HWLOC_CPUBIND_THREAD);
}

void Topology::bindMemory(void *base, uint64_t bytes, std::optional<int> node) const {
  if (nodes() == 1)
    return;
  if (node) {
    hwloc_set_area_membind(topology, base, bytes, nodeSets[*node].memory, HWLOC_MEMBIND_BIND, HWLOC_MEMBIND_BYNODESET);
    return;
  }
  hwloc_bitmap_t all = hwloc_bitmap_alloc();
  for (const Node &one : nodeSets)
    hwloc_bitmap_or(all, all, one.memory);
  hwloc_set_area_membind(topology, base, bytes, all, HWLOC_MEMBIND_INTERLEAVE, HWLOC_MEMBIND_BYNODESET);
  hwloc_bitmap_free(all);
}

} // namespace moec
