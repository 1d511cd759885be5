// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Packed int4: rows of values quantized in groups and laid into panels, for the widest vectors that the machine has.
/// Whatever those are, the bits are the same.

#ifndef MOEC_DIALECTS_FORMATS_INT4_H
#define MOEC_DIALECTS_FORMATS_INT4_H

#include "dialects/Formats/Runs.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace moec {

/// How `packInt4` quantizes and where it puts what.
struct Int4Panel {
  int64_t width = 32;       ///< lanes of a panel: a multiple of 4
  int64_t group = 32;       ///< columns that share a scale: a multiple of 32
  DType scale = DType::F16; ///< or BF16
  int64_t groupBytes() const { return width * 2 + width * group / 2; }
};

/// Rows that are quantized side by side.
inline constexpr int64_t kInt4Rows = 4;

/// Whether `packInt4` reads rows that are stored so: F32, BF16, and F8E4M3 whose scales are those of whole groups.
bool canPackInt4(const Int4Panel &panel, const StoredRows &rows);

/// Quantizes four rows of `cols` values, a multiple of the group, as `#moe.quantize<int4>` says, and puts them into
/// lanes `lane` .. `lane + 3` of a panel, `lane` a multiple of 4, as `#moe.pack_groups` says; `out` is where the first
/// group begins. False if a scale is not finite, be it because a value is not or because it is too large for the
/// scale's type; what was written is then of no use.
///
/// `next`, unless null, is where four rows of the same stride will be read from next. They are asked for bit by bit, so
/// that memory works while the core does: asking for everything at once fills the few places that wait for memory, and
/// the core with them.
bool packInt4(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
              const std::byte *next = nullptr);

/// Puts four rows of `cols` codes, plus 8, and the bits of their scales into lanes `lane` .. `lane + 3`, as `packInt4`
/// does with those that it makes.
void placeInt4(const Int4Panel &panel, const uint8_t *codes, const uint16_t *scales, int64_t cols, int64_t lane,
               std::byte *out);

/// What the code in lane `lane`, column `col` of groups that begin at `packed` stands for.
float int4Value(const Int4Panel &panel, const std::byte *packed, int64_t lane, int64_t col);

/// Why `packInt4` failed on these values.
Error scaleError(const std::string &tensor, DType scale, const float *values, int64_t count);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_INT4_H
