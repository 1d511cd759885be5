// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Any rectangle of a stored matrix as f32, whatever its format.

#ifndef MOEC_DIALECTS_FORMATS_STOREDMATRIX_H
#define MOEC_DIALECTS_FORMATS_STOREDMATRIX_H

#include "dialects/Formats/Format.h"
#include "dialects/Formats/Runs.h"
#include "runtime/Support/TensorSource.h"

#include <array>
#include <memory>
#include <string>
#include <vector>

namespace moec {

/// A logical matrix `[rows, cols]`, that is `[out, in]` of a linear layer, decoded when read. Thread-safe.
class StoredMatrix {
public:
  virtual ~StoredMatrix() = default;
  /// Writes rows `[row, row + numRows)`, columns `[col, col + numCols)`, which
  /// must lie inside, to `out`, row-major and dense. Each value is exact or
  /// rounded once to f32. Fails on what no weight may be: see `open`.
  virtual Status read(int64_t row, int64_t numRows, int64_t col, int64_t numCols, float *out) const = 0;
  /// The codes of a rectangle, row-major, and of each row the bits of the scales of its groups, where scales have two
  /// bytes and groups are of one row; columns are whole groups. Fails as `read` does.
  virtual Status readCodes(int64_t row, int64_t numRows, int64_t col, int64_t numCols, uint8_t *codes,
                           uint16_t *scales) const {
    return Error{"codes of this format cannot be read"};
  }
  /// Where rows `[row, row + numRows)` lie from column `col` on, if they are FP8 with nothing but scales, which they
  /// share and of which none could make a value of `dtype` inexact or infinite. For how many of the `numCols` columns
  /// that is said; 0: it is not so.
  virtual int64_t storedRows(int64_t row, int64_t numRows, int64_t col, int64_t numCols, StoredRows &out) const {
    return 0;
  }
  /// Says that the bytes of these rows are not needed soon.
  virtual void release(int64_t row, int64_t numRows) const = 0;

  int64_t rows = 0, cols = 0;
  DType dtype = DType::F32; ///< what holds every value exactly, or what values are rounded to
};

/// What a stored matrix is made from: names in the order of `requiredTensors`, without those of optional tensors that
/// are absent, or the layer's own name, to which suffixes are put.
struct StoredNames {
  std::string layer;
  std::vector<std::string> tensors = {}; ///< empty: `<layer>.<suffix>`
};

/// The linear layer `[out, in]` in `format`. `from` must outlive the result and is asked for the tensors of `names`;
/// nothing but the global scale and the stored shape is read here, so that opening costs the same for every size.
/// Errors: a tensor that is missing, or of another type or shape; a stored shape that differs; a global scale that is
/// not a positive number; zero points that do not fit a symmetric format. Errors of `read`: an FP8 code that is NaN; a
/// scale that is negative, not a number or infinite, or zero over codes that are not; a group index or a zero point
/// that cannot be; a product too large for f32. Values are rounded once to `type`, F32, BF16 or F16.
Result<std::unique_ptr<StoredMatrix>> openQuantized(const Format &format, const StoredNames &names, int64_t out,
                                                    int64_t in, const TensorSource &from, DType type = DType::F32);

/// The logical shape `[out, in]` of what is packed as a tensor of `shape`: whole words along both.
std::array<int64_t, 2> logicalShape(const Packing &packing, const std::vector<int64_t> &shape);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_STOREDMATRIX_H
