// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/StringExtras.h"

namespace mlir::moe {

#define GEN_PASS_DEF_STORECACHEPASS
#include "passes/Moe/Passes.h.inc"

const std::vector<std::string> &cacheFormats() {
  static const std::vector<std::string> formats = {"f32", "bf16", "int8", "fp8"};
  return formats;
}

namespace {

struct StoreCachePass final : impl::StoreCachePassBase<StoreCachePass> {
  using Base::Base;

  void runOnOperation() override {
    if (!llvm::is_contained(cacheFormats(), format)) {
      getOperation()->emitError("format of caches is '")
          << format << "', expected one of " << llvm::join(cacheFormats(), ", ");
      return signalPassFailure();
    }
    SmallVector<std::pair<CacheOp, Attribute>> changes;
    for (CacheOp cache : getOperation().getOps<CacheOp>()) {
      FailureOr<Attribute> wanted = formatOf(cache);
      if (failed(wanted))
        return signalPassFailure();
      if (cache.getFormatAttr() != *wanted)
        changes.emplace_back(cache, *wanted);
    }
    for (auto [cache, wanted] : changes)
      cache.setFormatAttr(wanted);
    numStored += changes.size();
  }

private:
  /// Null for f32.
  FailureOr<Attribute> formatOf(CacheOp cache) {
    MLIRContext *context = &getContext();
    if (format == "f32")
      return Attribute();
    if (format == "bf16")
      return Attribute(TypeAttr::get(BFloat16Type::get(context)));
    std::optional<SymbolTable::UseRange> uses = SymbolTable::getSymbolUses(cache, getOperation());
    if (!uses || uses->empty())
      return cache.getFormatAttr(); // nobody says what of an entry is a latent
    int64_t latent = 0;
    for (SymbolTable::SymbolUse use : *uses) {
      Value first;
      if (auto append = dyn_cast<CacheAppendOp>(use.getUser()))
        first = append.getParts().front();
      else if (auto attention = dyn_cast<MlaAttentionOp>(use.getUser()))
        first = attention.getLatent();
      else
        return use.getUser()->emitOpError("uses ")
               << use.getSymbolRef() << " in a way that says nothing of its latents";
      int64_t width = cast<RankedTensorType>(first.getType()).getDimSize(1);
      if (latent && width != latent)
        return use.getUser()->emitOpError("stores latents of ")
               << width << " channels in " << use.getSymbolRef() << ", where others store some of " << latent;
      latent = width;
    }
    return Attribute(CacheCodesAttr::get(context, format == "int8" ? CodeFormat::Int8 : CodeFormat::F8E4M3, latent));
  }
};

} // namespace
} // namespace mlir::moe
