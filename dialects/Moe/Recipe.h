// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Recipes, on types: what the steps of a weight's recipe decide without the
/// checkpoint. Ops that carry a recipe (`moe.weight`, `exec.weight`) verify it here.

#ifndef MOEC_DIALECTS_MOE_RECIPE_H
#define MOEC_DIALECTS_MOE_RECIPE_H

#include "runtime/Support/DType.h"

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypeInterfaces.h"
#include "mlir/IR/Diagnostics.h"

#include <optional>
#include <string>

namespace mlir::moe {

class StackAttr;

/// What a source's name holds if it stands for one tensor per expert.
inline constexpr llvm::StringLiteral kFamilyMarker = "{e}";

/// Whether a source stands for one tensor per expert.
bool isFamily(StringRef source);

/// The tensor that a source stands for, that of an expert if there is one for each.
std::string memberOf(StringRef source, int64_t expert);

/// The first step of `recipe` that stacks families, which says what their members are; null without one.
StackAttr stackOf(ArrayAttr recipe);

/// How weights of an element type are stored: f32, f16, bf16, f8E4M3FN, f8E8M0FNU, and i8 for packed bytes; none for
/// others.
std::optional<moec::DType> storedType(Type element);

/// Checks `sources` and `recipe` against each other and against the static type
/// `result`: (C1) to (C12) of `moe.weight`. `emitError` starts the one diagnostic.
LogicalResult verifyRecipe(ArrayAttr sources, ArrayAttr recipe, ShapedType result,
                           llvm::function_ref<InFlightDiagnostic()> emitError);

} // namespace mlir::moe

#endif // MOEC_DIALECTS_MOE_RECIPE_H
