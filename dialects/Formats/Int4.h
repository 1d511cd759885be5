// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Packed int4: rows of values quantized in groups and laid into panels, for the widest vectors that the machine has.
/// Whatever those are, the bits are the same.

#ifndef MOEC_DIALECTS_FORMATS_INT4_H
#define MOEC_DIALECTS_FORMATS_INT4_H

#include "runtime/Support/DType.h"
#include "runtime/Support/Result.h"

#include <array>
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

/// What will be read when four rows are quantized: it is asked for bit by bit meanwhile, so that memory works while the
/// core does. Asking for everything at once fills the few places that wait for memory, and the core with them.
struct ReadAhead {
  std::array<const std::byte *, kInt4Rows> rows{};
  int64_t bytesPerColumn = 0; ///< 0: nothing is asked for
};

/// Quantizes four rows of `cols` values, a multiple of the group, as `#moe.quantize<int4>` says, and puts them into
/// lanes `lane` .. `lane + 3` of a panel, `lane` a multiple of 4, as `#moe.pack_groups` says. Row r is at `values + r *
/// stride` and has the alignment of a float; `out` is where the first group begins. False if a scale is not finite, be
/// it because a value is not or because it is too large for the scale's type; what was written is then of no use.
bool packInt4(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane, std::byte *out,
              const ReadAhead &ahead = {});

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
