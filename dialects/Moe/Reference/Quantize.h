// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What codes and scales hold of a tensor: `#moe.quantize`, on whole tensors in memory.

#ifndef MOEC_DIALECTS_MOE_REFERENCE_QUANTIZE_H
#define MOEC_DIALECTS_MOE_REFERENCE_QUANTIZE_H

#include "dialects/Moe/Reference/Recipe.h"

#include <string>
#include <vector>

namespace mlir::moe::reference {

/// Rounds each matrix of a tensor [.., N, K]; `memberOfMatrix` says which member of the family `name` it is. Errors
/// name the tensor, what was found and what was expected.
moec::Result<StoredTensor> quantize(QuantizeAttr step, const std::string &name, const StoredTensor &in,
                                    llvm::function_ref<int64_t(int64_t matrix)> memberOfMatrix,
                                    const moec::MomentSource *moments);

/// How a step says what is wrong with the tensor `name`: "#moe.stack<2>: 'name' problem".
moec::Error stepError(Attribute step, const std::string &name, const std::string &problem);

/// A group of a latent as a cache of `#moe.cache_codes` stores it.
struct CachedGroup {
  std::vector<float> codes; ///< what each of them stands for before its scale
  float scale = 0;
};
CachedGroup cachedGroup(CodeFormat codes, llvm::ArrayRef<float> x);

/// The byte that stores a code, which is told by what it stands for.
int byteOf(CodeFormat codes, float value);

} // namespace mlir::moe::reference

#endif // MOEC_DIALECTS_MOE_REFERENCE_QUANTIZE_H
