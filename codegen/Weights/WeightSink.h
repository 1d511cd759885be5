// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Where the materializer puts what it makes.

#ifndef MOEC_CODEGEN_WEIGHTS_WEIGHTSINK_H
#define MOEC_CODEGEN_WEIGHTS_WEIGHTSINK_H

#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>

namespace moec {

/// Takes weights by number, each in pieces.
class WeightSink {
public:
  virtual ~WeightSink() = default;
  /// Bytes of the weight with this index that are there already, from its begin.
  virtual uint64_t present(size_t weight) const = 0;
  /// Takes `size` bytes of a weight, `offset` bytes from its begin. Thread-safe.
  virtual Status write(size_t weight, uint64_t offset, const void *data, uint64_t size) = 0;
  /// Says that the first `bytes` of this weight, and all weights before it, are written.
  virtual Status advance(size_t weight, uint64_t bytes) = 0;
};

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_WEIGHTSINK_H
