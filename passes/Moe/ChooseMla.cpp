// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Analysis/Cost.h"
#include "passes/Moe/Passes.h"

#include "mlir/Interfaces/FunctionInterfaces.h"

#include <cmath>

namespace mlir::moe {

#define GEN_PASS_DEF_CHOOSEMLAPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// The least number of tokens in a run that pays for expanding the context; nothing if none does.
///
/// A head attends n tokens to a long context of S entries, with L, R, N, V the widths of latent, rope part, key and
/// value (DeepSeek-V2, arXiv:2405.04434, sec. 2.1), in multiply-adds:
///   absorbed: n S (2L + R)                   scores over [latent | rope], sums of latents
///   expanded: S L (N + V) + n S (N + R + V)  keys and values of each entry once, then plain attention
/// What absorbing n queries and outputs takes, n L (N + V), is small beside S. A prompt without a context before it
/// would gain from fewer tokens on, but little in all. Both kernels reach the same rate of multiply-adds, so these need
/// no weights: for V2-Lite's widths the formula says 171, and kernels on AVX-512 broke even between 128 and 192
/// tokens after 1024 and 2048 others.
std::optional<int64_t> breakEven(MlaAttentionOp op) {
  auto key = static_cast<double>(op.getWUk().getType().getDimSize(1));
  auto value = static_cast<double>(op.getWUv().getType().getDimSize(1));
  auto latent = static_cast<double>(op.getWUk().getType().getDimSize(2));
  auto rope = static_cast<double>(op.getRopeKey().getType().getDimSize(1));
  double saved = absorbedPairFlops(latent, rope) - expandedPairFlops(key, rope, value);
  if (saved <= 0)
    return std::nullopt;
  return static_cast<int64_t>(std::ceil(2 * latent * (key + value) / saved));
}

struct ChooseMlaPass final : impl::ChooseMlaPassBase<ChooseMlaPass> {
  using Base::Base;

  void runOnOperation() override {
    if (mla != "auto" && mla != "absorbed" && mla != "expanded") {
      getOperation()->emitError("mla is '") << mla << "', expected auto, absorbed or expanded";
      return signalPassFailure();
    }
    getOperation()->walk([&](MlaAttentionOp op) {
      std::optional<int64_t> from;
      if (mla == "expanded")
        from = 1;
      else if (mla == "auto")
        from = breakEven(op);
      op.setExpandedFrom(from);
      if (from)
        ++numExpanded;
      else
        ++numAbsorbed;
    });
  }
};

} // namespace
} // namespace mlir::moe
