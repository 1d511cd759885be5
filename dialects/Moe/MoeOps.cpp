// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"

#include "mlir/IR/Builders.h"

using namespace mlir;
using namespace mlir::moe;

#define GET_OP_CLASSES
#include "dialects/Moe/MoeOps.cpp.inc"

LogicalResult WeightOp::verify() { return success(); }
LogicalResult EmbedOp::verify() { return success(); }
LogicalResult GatherRowsOp::verify() { return success(); }
LogicalResult LinearOp::verify() { return success(); }
LogicalResult GateUpOp::verify() { return success(); }
LogicalResult RmsNormOp::verify() { return success(); }
LogicalResult ReshapeOp::verify() { return success(); }
LogicalResult SplitOp::verify() { return success(); }
LogicalResult RopeOp::verify() { return success(); }
LogicalResult CacheAppendOp::verify() { return success(); }
LogicalResult CacheAppendOp::verifySymbolUses(SymbolTableCollection &) { return success(); }
LogicalResult AttentionOp::verify() { return success(); }
LogicalResult MlaAttentionOp::verify() { return success(); }
LogicalResult MlaAttentionOp::verifySymbolUses(SymbolTableCollection &) { return success(); }
LogicalResult RouteOp::verify() { return success(); }
LogicalResult ExpertsOp::verify() { return success(); }
