// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How people name the formats that weights can be stored in.

#ifndef MOEC_PASSES_MOE_WEIGHTFORMAT_H
#define MOEC_PASSES_MOE_WEIGHTFORMAT_H

#include "dialects/Moe/MoeDialect.h"
#include "runtime/Support/Result.h"

#include "llvm/ADT/StringRef.h"

namespace mlir::moe {

/// `keep`, `f32`, `bf16`, `f16`, or `int4` with options after colons: `int4:g64:bf16` has groups of 64 columns and
/// bf16 scales; groups of 32, 64 or 128, 32 where none is named, and f16 or bf16 scales, f16 where none is named.
class WeightFormat {
public:
  /// Keeps what is stored.
  WeightFormat() = default;
  static moec::Result<WeightFormat> parse(llvm::StringRef name);

  bool isKeep() const { return !quantizes && element.empty(); }
  /// Columns of a row must be a multiple of this.
  int64_t columnMultiple() const { return quantizes ? group : 1; }
  /// The step at the end of a recipe that gives this format; null for `keep`.
  Attribute step(MLIRContext *context) const;

private:
  llvm::StringRef element; ///< "f32", "bf16", "f16": of weights that are not quantized
  bool quantizes = false;  ///< int4
  int64_t group = 32;
  bool bf16Scales = false;
};

} // namespace mlir::moe

#endif // MOEC_PASSES_MOE_WEIGHTFORMAT_H
