// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the machine can do at most, measured: bytes it reads from memory and
/// products it sums in a second. Other work on the machine makes figures lower.

#ifndef MOEC_RUNTIME_MACHINERATES_H
#define MOEC_RUNTIME_MACHINERATES_H

#include "runtime/Artifact.h"
#include "runtime/Support/Result.h"
#include "runtime/ThreadPool.h"

#include <cstdint>

namespace moec {

/// Bytes of this machine's memory; 0 if it does not tell.
uint64_t machineMemory();
/// What of it programs may still take without pushing others out, in bytes; 0 if the system does not say.
uint64_t availableMemory();

/// Memory that no cache holds and that is read from end to end, one contiguous stretch for each thread.
class ReadProbe {
public:
  /// Takes and fills a GiB, or more if threads are many, or less if memory is little.
  static Result<ReadProbe> create(ThreadPool &pool);
  ReadProbe(ReadProbe &&other) noexcept;
  ReadProbe &operator=(ReadProbe &&) = delete;
  ~ReadProbe();

  /// Bytes/s of the best of several passes within about `seconds`.
  double measure(ThreadPool &pool, double seconds) const;

private:
  ReadProbe(uint64_t *words, uint64_t bytes) : words(words), bytes(bytes) {}

  uint64_t *words;
  uint64_t bytes;
};

/// Operations/s of all threads of the pool, a multiplication and an addition being two, in the best of several passes
/// within about `seconds`; 0 where the machine has no instruction for the unit: AVX2 or AVX-512 for f32,
/// AVX512-BF16 (`vdpbf16ps`) and AVX512-VNNI or AVX-VNNI (`vpdpbusd`) for the others, or tiles of AMX; on Arm FMLA,
/// BFMMLA and SDOT.
double measureArithmetic(ThreadPool &pool, WorkUnit unit, double seconds);

} // namespace moec

#endif // MOEC_RUNTIME_MACHINERATES_H
