// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the tensors of a quantized weight stand for, element by element.

#ifndef MOEC_DIALECTS_MOE_REFERENCE_DEQUANT_H
#define MOEC_DIALECTS_MOE_REFERENCE_DEQUANT_H

#include "dialects/Moe/Reference/Recipe.h"

namespace mlir::moe::reference {

/// Element `i` of bytes that hold F32, F16, BF16, F8E4M3, F8E8M0 or U8 (read as F8E8M0).
float load(moec::DType dtype, const std::byte *data, size_t i);

/// The matrix in the tensors `names`, in the order that `#moe.dequant` has. Fails with a sentence that names the
/// tensor, what was found and what was expected: shapes and types, codes and scales that no weight may have.
moec::Result<StoredTensor> dequantize(DequantAttr step, llvm::ArrayRef<std::string> names,
                                      const moec::TensorSource &source);

} // namespace mlir::moe::reference

#endif // MOEC_DIALECTS_MOE_REFERENCE_DEQUANT_H
