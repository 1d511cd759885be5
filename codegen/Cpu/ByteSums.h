// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Sums of products of bytes, in integers, by what instructions for them a CPU has.

#ifndef MOEC_CODEGEN_CPU_BYTESUMS_H
#define MOEC_CODEGEN_CPU_BYTESUMS_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// A sum for each of kLanes lanes. Exact as long as it fits into 32 bits, so that the order of products is free.
class ByteSums {
public:
  /// `start` (i32) and, when they have been added, products of which one side is at most `largest`, below 256.
  ByteSums(Val start, int64_t largest) : sums(start), largest(largest) {}

  /// Adds to lane l the products of the four bytes of word l of `a`, unsigned and at most `largest`, and those of word
  /// l of `b`, signed; both are i32.
  void add(Val a, Val b);
  /// All that was added (i32).
  Val total();

private:
  Val sums;
  int64_t largest;
  Val pairs;           ///< of products, two to a lane, that wait to be added: i16
  int64_t waiting = 0; ///< how many were summed up there
};

/// Each byte of `words` (i32), which must be below 16, replaced by that entry of `table`, which has 16.
Val lookUpBytes(Val words, llvm::ArrayRef<uint8_t> table);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_BYTESUMS_H
