// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Moe/Fusion.h"

#include "mlir/IR/Remarks.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"
#include "llvm/ADT/MapVector.h"

using namespace mlir;

namespace {

/// Keeps what is said of each op last: an op that is left at first may be fused later.
struct Outcomes final : RewriterBase::Listener {
  struct Outcome {
    bool fused;
    std::string text;
  };

  void notifyMatchFailure(Location loc, function_ref<void(Diagnostic &)> reason) override {
    Diagnostic diagnostic(loc, DiagnosticSeverity::Remark);
    reason(diagnostic);
    ofOps[loc] = {false, diagnostic.str()};
  }
  void notifyOperationReplaced(Operation *op, ValueRange replacement) override {
    Operation *into = replacement.empty() ? nullptr : replacement.front().getDefiningOp();
    ofOps[op->getLoc()] = {true, into ? "into " + into->getName().getStringRef().str() : "into a value"};
  }
  void notifyOperationErased(Operation *op) override {
    auto found = ofOps.find(op->getLoc());
    if (found != ofOps.end() && !found->second.fused)
      ofOps.erase(found);
  }

  llvm::MapVector<Location, Outcome> ofOps;
};

} // namespace

void moe::remarkFusion(Operation *root, Location loc, StringRef pass, bool fused, const Twine &text) {
  auto options = remark::RemarkOpts::name("fusion").category(pass);
  if (auto function = dyn_cast<SymbolOpInterface>(root))
    options = options.function(function.getName());
  if (fused)
    remark::passed(loc, options) << text.str();
  else
    remark::missed(loc, options) << text.str();
}

LogicalResult moe::applyFusions(Operation *root, RewritePatternSet patterns, StringRef pass, Traversal traversal) {
  Outcomes outcomes;
  GreedyRewriteConfig config;
  config.enableFolding(false)
      .setUseTopDownTraversal(traversal == Traversal::TopDown)
      .setRegionSimplificationLevel(GreedySimplifyRegionLevel::Disabled)
      .setListener(&outcomes);
  if (failed(applyPatternsGreedily(root, std::move(patterns), config)))
    return failure();
  for (const auto &[loc, outcome] : outcomes.ofOps)
    remarkFusion(root, loc, pass, outcome.fused, outcome.text);
  return success();
}
