// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How fusions run, and tell what they did.

#ifndef MOEC_PASSES_MOE_FUSION_H
#define MOEC_PASSES_MOE_FUSION_H

#include "mlir/IR/PatternMatch.h"

namespace mlir::moe {

/// Says of the op at `loc` in `root` that `pass` fused it, and how, or left it, and why, in a phrase: a passed or a
/// missed remark that is named "fusion".
void remarkFusion(Operation *root, Location loc, StringRef pass, bool fused, const Twine &text);

enum class Traversal { BottomUp, TopDown };

/// Applies `patterns` until none matches; nothing is folded, which is canonicalize's.
///
/// Each op that was replaced gets a passed remark with the op it went into, each one that a pattern left a missed
/// remark with the reason that the pattern gave to `notifyMatchFailure`, in a phrase. Both are named "fusion", have
/// the pass as their category and lie where the op comes from.
LogicalResult applyFusions(Operation *root, RewritePatternSet patterns, StringRef pass,
                           Traversal traversal = Traversal::BottomUp);

} // namespace mlir::moe

#endif // MOEC_PASSES_MOE_FUSION_H
