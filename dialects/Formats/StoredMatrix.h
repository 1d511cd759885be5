// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Any rectangle of a stored matrix as f32, whatever its format.

#ifndef MOEC_DIALECTS_FORMATS_STOREDMATRIX_H
#define MOEC_DIALECTS_FORMATS_STOREDMATRIX_H

#include "dialects/Formats/Format.h"
#include "runtime/Support/TensorSource.h"

#include <memory>

namespace moec {

/// A logical matrix `[rows, cols]`, that is `[out, in]` of a linear layer, decoded when read. Thread-safe.
class StoredMatrix {
public:
  virtual ~StoredMatrix() = default;
  /// Writes rows `[row, row + numRows)`, columns `[col, col + numCols)`, which
  /// must lie inside, to `out`, row-major and dense. Each value is exact or
  /// rounded once to f32. Fails on what no weight may be: see `open`.
  virtual Status read(int64_t row, int64_t numRows, int64_t col, int64_t numCols, float *out) const = 0;
  /// Says that the bytes of these rows are not needed soon.
  virtual void release(int64_t row, int64_t numRows) const = 0;

  int64_t rows = 0, cols = 0;
  DType dtype = DType::F32; ///< see Format::valueType
};

/// The linear layer `layer`, `[out, in]`, in `format`. `from` must outlive the result and is asked for
/// `<layer>.<suffix>`; nothing but the global scale and the stored shape is read here, so that
/// opening costs the same for every size. Errors: a tensor that is missing, or of another type or shape; a stored
/// shape that differs; a global scale that is not a positive number; zero points that do not fit a symmetric format.
/// Errors of `read`: an FP8 code that is NaN; a scale that is negative, not a number or infinite, or zero over codes
/// that are not; a group index or a zero point that cannot be; a product too large for f32.
Result<std::unique_ptr<StoredMatrix>> openQuantized(const Format &format, const std::string &layer, int64_t out,
                                                    int64_t in, const TensorSource &from);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_STOREDMATRIX_H
