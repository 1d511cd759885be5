// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_MOE_MOEDIALECT_H
#define MOEC_DIALECTS_MOE_MOEDIALECT_H

#include "dialects/Formats/Format.h"
#include "dialects/Formats/Groups.h"
#include "mlir/Bytecode/BytecodeOpInterface.h"

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/PatternMatch.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

namespace moec {
struct GgufType;
}

namespace mlir::moe {

/// The memory behind all `moe.cache` symbols; an effect names its symbol.
struct CacheResource : SideEffects::Resource::Base<CacheResource> {
  StringRef getName() final { return "moe.cache"; }
};

/// Some of a layer's experts are ascending numbers, none negative. Their count is the caller's to check.
LogicalResult checkMembers(function_ref<InFlightDiagnostic()> emitError, ArrayRef<int64_t> members);

} // namespace mlir::moe

#include "dialects/Moe/MoeDialect.h.inc"
#include "dialects/Moe/MoeEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Moe/MoeAttributes.h.inc"
#define GET_OP_CLASSES
#include "dialects/Moe/MoeOps.h.inc"

#endif // MOEC_DIALECTS_MOE_MOEDIALECT_H
