// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The codes of a block's rows, made when they are asked for.

#ifndef MOEC_CODEGEN_WEIGHTS_QUANTIZER_H
#define MOEC_CODEGEN_WEIGHTS_QUANTIZER_H

#include "codegen/Weights/Block.h"
#include "dialects/Formats/Feedback.h"
#include "dialects/Formats/Groups.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace moec {

/// Quantizes the matrices of a block. What the rows of a matrix share (its largest element, scales of blocks, what a
/// calibration says) is found when its first row is asked for, and dropped two matrices later. Thread-safe.
class Quantizer {
public:
  /// `source` is the tensor that the block is made from, a family if it has several matrices; `members` says which of
  /// the family they are, and `appended` which are none of it: those are rounded to nearest. The block must outlive
  /// this; `moments` may be null if `step` rounds to nearest.
  static Result<std::unique_ptr<Quantizer>> open(mlir::moe::QuantizeAttr step, std::string source,
                                                 std::vector<int64_t> members, AppendedMatrices appended,
                                                 const Block &block, const MomentSource *moments);

  const GroupFormat &format() const { return groups; }
  /// Bytes that the rows of a matrix share.
  int64_t sharedBytes() const;
  /// Rows `[row, row + count)` of a matrix.
  Status quantize(int64_t batch, int64_t row, int64_t count, RowCodes *out) const;
  /// A row of zeros of the matrix.
  Result<RowCodes> zeros(int64_t batch) const;

private:
  struct Shared;

  Quantizer(mlir::moe::QuantizeAttr step, std::string source, std::vector<int64_t> members, AppendedMatrices appended,
            const Block &block, const MomentSource *moments)
      : step(step), groups(step.getFormat()), source(std::move(source)), members(std::move(members)),
        appended(std::move(appended)), block(block), moments(moments) {}

  /// Which member of the family a matrix is.
  int64_t memberAt(int64_t batch) const { return members.empty() ? batch : members[batch]; }
  std::string nameOf(int64_t batch) const;
  Result<std::shared_ptr<const Shared>> sharedOf(int64_t batch) const;
  Result<std::shared_ptr<const Shared>> makeShared(int64_t batch) const;

  mlir::moe::QuantizeAttr step;
  GroupFormat groups;
  std::string source;
  std::vector<int64_t> members;
  AppendedMatrices appended;
  const Block &block;
  const MomentSource *moments;

  struct Entry;
  mutable std::mutex mutex;
  mutable std::map<int64_t, std::shared_ptr<Entry>> entries; ///< by matrix
};

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_QUANTIZER_H
