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

/// A format's name, with options after colons in any order:
///   keep               what is stored
///   f32, bf16, f16; bf16:a16 also rounds activations to bf16
///   int8               one f32 scale for each output; activations int8, one scale for each token; with :a32 one
///                      for 32 columns of it, as ggml's Q8_0 has it
///   fp8                e4m3 with one f32 scale for 128 x 128 weights; activations e4m3, a scale for 128 of a token
///   int4               groups of 32 columns with an f16 scale; :g64, :g128, :bf16, :e8m0, :zero (a zero point); :a32
///                      rounds activations to int8, one scale for 32 columns of a token
///   mxfp4, nvfp4       e2m1 in groups of 32 and 16; mxfp4:a32 as int4:a32
/// With :weights, int8 and fp8 leave activations as they are.
class WeightFormat {
public:
  /// Keeps what is stored.
  WeightFormat() = default;
  static moec::Result<WeightFormat> parse(llvm::StringRef name);

  bool isKeep() const { return !quantizes && element.empty(); }
  bool operator==(const WeightFormat &) const = default;
  /// The step at the end of a recipe that gives this format to a matrix of rows of `cols`; null for `keep`. Rows of
  /// fp8 weights share scales, which are not searched: `importance` rounds them to nearest.
  Attribute step(MLIRContext *context, int64_t cols, Rounding rounding) const;
  /// What a projection with such weights rounds its inputs of `cols` columns to; null: nothing.
  Attribute activations(MLIRContext *context, int64_t cols) const;

private:
  static constexpr int64_t fp8Block = 128;

  llvm::StringRef element; ///< "f32", "bf16", "f16": of weights that are not quantized
  bool quantizes = false;
  bool roundsActivations = false;
  CodeFormat codes = CodeFormat::Int4;
  int64_t group = 32;          ///< columns; 0: the row
  int64_t activationGroup = 0; ///< likewise
  enum class Scale : uint8_t { F16, BF16, F32, E8M0, E4M3 } scale = Scale::F16;
};

} // namespace mlir::moe

#endif // MOEC_PASSES_MOE_WEIGHTFORMAT_H
