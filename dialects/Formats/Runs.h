// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What making weights does to every single element, over runs of them and for
/// the widest vectors that the machine has. Whatever those are, the bits are the same.

#ifndef MOEC_DIALECTS_FORMATS_RUNS_H
#define MOEC_DIALECTS_FORMATS_RUNS_H

#include "runtime/Support/DType.h"

#include <array>
#include <cstddef>
#include <cstdint>

namespace moec {

/// `out[i] = float(data[i])`, exactly, for F32, F16, BF16, F8E4M3, and F8E8M0, as which U8 is read. `data` may have any
/// alignment. False if a code of F8E4M3 is NaN; a number stands in its place then.
bool widen(DType type, const std::byte *data, float *out, int64_t count);

/// `out[i] = float(data[i]) * scales[(first + i) / group]`, rounded once, for F8E4M3; `first` lies in the first group.
/// False as above.
bool scaleF8E4M3(const std::byte *data, const float *scales, int64_t group, int64_t first, float *out, int64_t count);

/// Rows as they are stored, some bytes apart; columns follow each other.
struct StoredRows {
  DType type = DType::F32; ///< or BF16 or F8E4M3
  const std::byte *data = nullptr;
  int64_t stride = 0; ///< bytes from a row to the next
  /// Of F8E4M3: the code of column c times `scales[(first + c) / scaleCols]` is the value, in every row.
  int64_t scaleCols = 1, first = 0;
  std::array<float, 64> scales; ///< 2^-110 to 2^110, as many as the columns need

  static StoredRows of(const float *values, int64_t cols) {
    StoredRows rows;
    rows.data = reinterpret_cast<const std::byte *>(values);
    rows.stride = cols * static_cast<int64_t>(sizeof(float));
    return rows;
  }
};

/// `value` rounded once to F32, F16 or BF16, to nearest even, and widened to f32 again.
float roundOnce(DType type, double value);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_RUNS_H
