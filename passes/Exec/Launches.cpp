// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Exec/Launches.h"

#include "codegen/Common/KernelSignature.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"

namespace mlir::exec {

static FailureOr<moec::KernelSpec> specOf(KernelOp kernel) {
  return moec::fromAttr(kernel.getKind(), kernel.getSpec(), [&] { return kernel.emitOpError() << "is not valid: "; });
}

FailureOr<moec::KernelSpec> Kernels::specOf(LaunchOp launch) {
  return exec::specOf(module.lookupSymbol<KernelOp>(launch.getKernel()));
}

FailureOr<bool> Kernels::mayBeWatched() {
  for (auto kernel : module.getOps<KernelOp>()) {
    FailureOr<moec::KernelSpec> spec = exec::specOf(kernel);
    if (failed(spec))
      return failure();
    if (auto *gemm = std::get_if<moec::GemmSpec>(&*spec); gemm && gemm->input != moec::DType::F32)
      return false;
  }
  return true;
}

LaunchOp Kernels::launch(OpBuilder &builder, const moec::KernelSpec &spec, ValueRange args,
                         ArrayRef<LaunchOp> launches) {
  MLIRContext *context = module.getContext();
  LaunchOp first = launches.front();
  StringAttr kind = builder.getStringAttr(moec::kindOf(spec));
  DictionaryAttr dictionary = moec::toAttr(spec, context);
  KernelOp &kernel = made[builder.getArrayAttr({kind, dictionary})];
  if (!kernel) {
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPoint(module.lookupSymbol(first.getKernel()));
    kernel = KernelOp::create(builder, first.getLoc(), moec::symbolFor(spec), kind, dictionary);
    SymbolTable(module).insert(kernel);
  }
  std::string label;
  for (LaunchOp launch : launches)
    if (launch.getLabel())
      label += (label.empty() ? "" : " + ") + launch.getLabel()->str();
  SmallVector<Location> locations = llvm::map_to_vector(launches, [](LaunchOp launch) { return launch.getLoc(); });
  return LaunchOp::create(builder, builder.getFusedLoc(locations), kernel.getSymName(), args,
                          moec::gridOf(spec, context), moec::writtenArgsOf(spec),
                          label.empty() ? StringAttr() : builder.getStringAttr(label),
                          /*run_from=*/IntegerAttr(), /*run_below=*/IntegerAttr());
}

void Kernels::replace(ArrayRef<LaunchOp> launches, const moec::KernelSpec &spec, ValueRange more) {
  SmallVector<Value> args;
  for (LaunchOp launch : launches)
    llvm::append_range(args, launch.getArgs());
  llvm::append_range(args, more);
  LaunchOp first = launches.front();
  OpBuilder builder(first);
  LaunchOp together = launch(builder, spec, args, launches);
  together.setRunFromAttr(first.getRunFromAttr());
  together.setRunBelowAttr(first.getRunBelowAttr());
  for (LaunchOp launch : launches)
    launch.erase();
}

LogicalResult Kernels::rewritePrograms(llvm::function_ref<LogicalResult(ProgramOp)> rewrite) {
  for (auto program : module.getOps<ProgramOp>())
    if (failed(rewrite(program)))
      return failure();
  for (auto kernel : llvm::make_early_inc_range(module.getOps<KernelOp>()))
    if (SymbolTable::symbolKnownUseEmpty(kernel, module))
      kernel.erase();
  return success();
}

Value sourceOf(Value arg) {
  while (auto view = arg.getDefiningOp<ViewOp>())
    arg = view.getSource();
  return arg;
}

void moveMemoryUp(ProgramOp program) {
  auto launches = program.getOps<LaunchOp>();
  if (launches.empty())
    return;
  Operation *first = *launches.begin();
  for (Operation &op : llvm::make_early_inc_range(llvm::make_range(first->getIterator(), first->getBlock()->end())))
    if (!isa<LaunchOp>(op))
      op.moveBefore(first);
}

} // namespace mlir::exec
