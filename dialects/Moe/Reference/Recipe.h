// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a recipe means: its steps on whole tensors in memory, the obvious way.
/// The streaming materializer must give the same bytes.

#ifndef MOEC_DIALECTS_MOE_REFERENCE_RECIPE_H
#define MOEC_DIALECTS_MOE_REFERENCE_RECIPE_H

#include "dialects/Formats/Feedback.h"
#include "dialects/Moe/Reference/Reference.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/TensorSource.h"

#include <cstddef>
#include <optional>
#include <vector>

namespace mlir::moe::reference {

/// What the values of a quantized tensor are made of: `(codes - zeros) * scales * globals`.
struct Codes {
  QuantizeAttr format;
  Tensor<float> codes;   ///< what each code stands for by itself, in the tensor's shape
  Tensor<float> scales;  ///< of each row, one for each group of the last dimension
  Tensor<float> zeros;   ///< likewise
  Tensor<float> globals; ///< one for each row

  /// Zeros for a tensor of `shape`, global scales of 1.
  Codes(QuantizeAttr format, const std::vector<int64_t> &shape);
  /// All of the tensors, in the order above.
  static constexpr Tensor<float> Codes::*parts[] = {&Codes::codes, &Codes::scales, &Codes::zeros, &Codes::globals};
};

/// A tensor as it is stored: values of `dtype` (F32, F16, BF16, F8E4M3 or U8), each held exactly in a float.
struct StoredTensor {
  moec::DType dtype = moec::DType::F32;
  Tensor<float> values;
  std::optional<Codes> quantized = std::nullopt;
};

/// Evaluates the recipe of a `moe.weight` or `exec.weight`.
///
/// The steps work on a list of tensors, at first the sources in order. A source whose name holds `{e}` is a family of
/// as many tensors as the recipe's first `stack` says; the steps before that act on each member.
///   dequant            the first step: the sources of each stored weight become one tensor, rounded once
///   stack              each family becomes one tensor; other tensors are left
///   append             of each two tensors, a stack and a matrix, makes a stack that ends with slices of the matrix
///   sum                makes one tensor of each two
///   head_rows, columns, reshape, transpose, cast, scale_columns, pad, quantize      act on each tensor
///   concat             makes one tensor of the whole list
///   pack_panels, pack_block_scales, pack_groups    make one tensor of the whole list of one or two
/// In the end one tensor must be left. What a step's own verifier promises is taken for granted; what its tensors must
/// be is checked. Fails with a sentence that names the tensor or step, what was found and what
/// was expected. No tensor may have more than 2^36 elements.
/// `moments` is what a calibration found, for codes that are rounded by it: there the step only says what codes stand
/// for, and which are chosen is left to `dialects/Formats/Feedback.h`.
moec::Result<StoredTensor> evaluateRecipe(ArrayAttr sources, ArrayAttr recipe, const moec::TensorSource &source,
                                          const moec::MomentSource *moments = nullptr);

/// The bytes of `tensor` in its own dtype, little-endian, as safetensors stores them.
std::vector<std::byte> toBytes(const StoredTensor &tensor);

} // namespace mlir::moe::reference

#endif // MOEC_DIALECTS_MOE_REFERENCE_RECIPE_H
