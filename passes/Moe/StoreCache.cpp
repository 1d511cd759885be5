// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/BuiltinOps.h"

namespace mlir::moe {

#define GEN_PASS_DEF_STORECACHEPASS
#include "passes/Moe/Passes.h.inc"

namespace {

struct StoreCachePass final : impl::StoreCachePassBase<StoreCachePass> {
  using Base::Base;

  void runOnOperation() override {
    if (format != "f32" && format != "bf16") {
      getOperation()->emitError("format of caches is '") << format << "', expected f32 or bf16";
      return signalPassFailure();
    }
    std::optional<Type> element;
    if (format == "bf16")
      element = BFloat16Type::get(&getContext());
    for (CacheOp cache : getOperation().getOps<CacheOp>()) {
      if (cache.getElementType() == element)
        continue;
      cache.setElementTypeAttr(element ? TypeAttr::get(*element) : TypeAttr());
      ++numStored;
    }
  }
};

} // namespace
} // namespace mlir::moe
