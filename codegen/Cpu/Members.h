// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Which of the router's choices a kernel over some of the experts takes.

#ifndef MOEC_CODEGEN_CPU_MEMBERS_H
#define MOEC_CODEGEN_CPU_MEMBERS_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// From the number of an expert to its place among `members` (ascending, none negative), by a table on the kernel's
/// stack. Without members each number is its own place.
class MemberTable {
public:
  /// The greatest number that a member may have: bounds the table.
  static constexpr int64_t maxMember = 8191;

  /// Emits the table. `other` is the place of experts that are no members.
  MemberTable(KernelBuilder &b, llvm::ArrayRef<int64_t> members, int32_t other);

  /// The place (i64) of an expert (i32, not negative).
  Val placeOf(Val expert) const;

private:
  KernelBuilder &b;
  int64_t size = 0; ///< entries in use: one for each number up to the last member, then one for all beyond; 0: no table
  Ptr table;
};

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_MEMBERS_H
