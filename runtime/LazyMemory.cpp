// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/LazyMemory.h"

#include "runtime/Artifact.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace moec {

Result<LazyMemory> LazyMemory::allocate(uint64_t bytes, const std::string &what) {
  LazyMemory memory;
  if (bytes > uint64_t(std::numeric_limits<int64_t>::max()) - kReadableSlack)
    return Error{"cannot reserve " + std::to_string(bytes) + " bytes for " + what};
  void *base = ::mmap(nullptr, bytes + kReadableSlack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return Error{"cannot reserve " + std::to_string(bytes) + " bytes for " + what + ": " + std::strerror(errno)};
  memory.base = static_cast<std::byte *>(base);
  memory.length = bytes;
  memory.mapped = bytes + kReadableSlack;
  return memory;
}

LazyMemory::LazyMemory(LazyMemory &&other) noexcept
    : base(std::exchange(other.base, nullptr)), length(std::exchange(other.length, 0)),
      mapped(std::exchange(other.mapped, 0)) {}

LazyMemory &LazyMemory::operator=(LazyMemory &&other) noexcept {
  std::swap(base, other.base);
  std::swap(length, other.length);
  std::swap(mapped, other.mapped);
  return *this;
}

LazyMemory::~LazyMemory() {
  if (base)
    ::munmap(base, mapped);
}

void LazyMemory::clear(uint64_t offset, uint64_t size) const {
  assert(offset <= length && size <= length - offset);
  const uint64_t page = ::sysconf(_SC_PAGESIZE);
  const uint64_t end = offset + size;
  const uint64_t first = std::min(end, (offset + page - 1) / page * page);
  const uint64_t last = std::max(first, end / page * page);
  std::memset(base + offset, 0, first - offset);
  std::memset(base + last, 0, end - last);
  // Private anonymous pages read as zero after this.
  if (last > first && ::madvise(base + first, last - first, MADV_DONTNEED) != 0)
    std::memset(base + first, 0, last - first);
}

} // namespace moec
