// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The arguments and the grid that follow from a kernel's spec: what the
/// comments of KernelSpec.h say, for programs to check.

#ifndef MOEC_CODEGEN_COMMON_KERNELSIGNATURE_H
#define MOEC_CODEGEN_COMMON_KERNELSIGNATURE_H

#include "codegen/Common/KernelSpec.h"

#include "mlir/IR/AffineMap.h"

namespace moec {

struct KernelArg {
  llvm::StringRef name;
  DType type;
  bool written = false; ///< else read
};

/// The arguments of a kernel, in order.
llvm::SmallVector<KernelArg> argumentsOf(const KernelSpec &spec);

/// The positions of those that are written.
llvm::SmallVector<int64_t> writtenArgsOf(const KernelSpec &spec);

/// `(T, R) -> (results)`: the number of tasks is the least result.
mlir::AffineMap gridOf(const KernelSpec &spec, mlir::MLIRContext *context);

} // namespace moec

#endif // MOEC_CODEGEN_COMMON_KERNELSIGNATURE_H
