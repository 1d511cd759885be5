// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/Members.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/MathExtras.h"

namespace moec::cpu {

MemberTable::MemberTable(KernelBuilder &b, llvm::ArrayRef<int64_t> members, int32_t other) : b(b) {
  if (members.empty())
    return;
  size = members.back() + 2;
  llvm::SmallVector<int32_t> places(llvm::alignTo(size, kLanes), other);
  for (auto [place, member] : llvm::enumerate(members))
    places[member] = place;
  table = b.scratch(b.i32, places.size());
  for (size_t i = 0; i < places.size(); i += kLanes)
    (table + i).store(b.constants(llvm::ArrayRef<int32_t>(places).slice(i, kLanes)));
}

Val MemberTable::placeOf(Val expert) const {
  Val number = b.convert(expert, b.i64);
  return size ? b.convert((table + b.min(number, b.cI64(size - 1))).load(), b.i64) : number;
}

} // namespace moec::cpu
