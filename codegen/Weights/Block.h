// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Recipes, evaluated lazily: a recipe's logical steps become a tree of blocks,
/// and any rectangle of the result can be read without making the rest.

#ifndef MOEC_CODEGEN_WEIGHTS_BLOCK_H
#define MOEC_CODEGEN_WEIGHTS_BLOCK_H

#include "dialects/Formats/Feedback.h"
#include "dialects/Formats/Runs.h"
#include "dialects/Moe/MoeDialect.h"
#include "runtime/Support/TensorSource.h"

#include "mlir/IR/BuiltinAttributes.h"

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moec {

/// Part of one matrix of a batch: rows `[row, row + rows)`, columns `[col, col + cols)`.
struct Rect {
  int64_t batch = 0;
  int64_t row = 0, rows = 0;
  int64_t col = 0, cols = 0;
};

/// A tensor seen as `[batch, rows, cols]`, whose elements are computed when read.
/// A vector is one row; a matrix is a batch of one. Thread-safe.
class Block {
public:
  virtual ~Block() = default;
  /// Writes the elements of `rect` to `out`, row-major and dense. Every stored
  /// format here widens to f32 exactly. Fails on values that no weight may have
  /// (NaN codes in FP8 data, scales that are not finite).
  virtual Status read(const Rect &rect, float *out) const = 0;
  /// The int4 codes of `rect`, plus 8, and the bits of the scales of each row's groups, where the block is stored so;
  /// columns are whole groups.
  virtual Status readCodes(const Rect &rect, uint8_t *codes, uint16_t *scales) const {
    return Error{"a tensor holds no codes"};
  }
  /// Where `rect` lies in the checkpoint, if its rows lie there some bytes apart, and share their scales; else false.
  virtual bool storedRows(const Rect &rect, StoredRows &out) const { return false; }
  /// Says that the sources of these rows are not needed soon.
  virtual void release(int64_t batch, int64_t row, int64_t rows) const = 0;

  int64_t batch = 1, rows = 1, cols = 1;
  int rank = 2;             ///< dimensions of the tensor: 1, 2 or 3
  DType dtype = DType::F32; ///< the element type that holds every value exactly
};

/// The tensor that the last matrices of a batch are slices of.
struct AppendedMatrices {
  int64_t from = std::numeric_limits<int64_t>::max(); ///< the first of them
  std::string name;
};

/// Rows of a block that are made from one tensor, or family of tensors.
struct BlockPart {
  const Block *block;             ///< these rows alone
  std::string name;               ///< of the tensor; the first of those of a stored weight
  int64_t row;                    ///< where they begin
  AppendedMatrices appended = {}; ///< to a family
};

/// What a recipe gives before its last, target-specific packing step.
struct RecipeBlocks {
  /// One, or two that are packed side by side (gate, up).
  std::vector<std::unique_ptr<Block>> blocks;
  /// The packing step, or null.
  mlir::Attribute pack;
  /// How `pack_groups` quantizes the blocks, which hold the values before; null for other steps.
  mlir::moe::QuantizeAttr quantize;
  /// They are stored so, and hold codes.
  bool hasCodes = false;
  /// Of each block, in order: its parts, which are quantized by themselves. One is the block, if nothing joined it.
  std::vector<std::vector<BlockPart>> parts;
  /// Which members of families the matrices are; empty: all.
  std::vector<int64_t> members;
};

/// Builds the tree for `recipe` over `sources`. Errors name the tensor, its shape and what the step expects.
/// `moments` may be null where no step rounds by them.
Result<RecipeBlocks> buildRecipe(const std::vector<std::string> &sources, mlir::ArrayAttr recipe,
                                 const TensorSource &from, const MomentSource *moments);

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_BLOCK_H
