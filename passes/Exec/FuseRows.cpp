// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Exec/Launches.h"
#include "passes/Exec/Passes.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallPtrSet.h"

namespace mlir::exec {

#define GEN_PASS_DEF_FUSEROWSPASS
#include "passes/Exec/Passes.h.inc"

namespace {

/// Launches that become one, or one that stays.
struct Unit {
  SmallVector<LaunchOp> launches;
  std::vector<moec::KernelSpec> specs; ///< empty: does not work on rows
  SmallPtrSet<Value, 8> touched, written;
};

/// Whether each task of a launch over rows has its own part of `memory`.
bool hasRows(Value memory) {
  auto buffer = memory.getDefiningOp<BufferOp>();
  return buffer && cast<MemRefType>(buffer.getType()).isDynamicDim(0);
}

struct FuseRowsPass : impl::FuseRowsPassBase<FuseRowsPass> {
  void runOnOperation() override {
    kernels.emplace(getOperation());
    FailureOr<bool> mayBeWatched = kernels->mayBeWatched();
    if (failed(mayBeWatched))
      return signalPassFailure();
    watched = *mayBeWatched;
    if (failed(kernels->rewritePrograms([&](ProgramOp program) { return fuse(program); })))
      signalPassFailure();
  }

  LogicalResult fuse(ProgramOp program);
  FailureOr<Unit> unitOf(LaunchOp launch);
  Value memoryOf(Value arg);

  DenseMap<Attribute, Value> caches; ///< by name, the first mention in the program
  std::optional<Kernels> kernels;
  bool watched = false; ///< whether a combine has to be found by its kind
};

/// What an argument is a part of, the same value for the same memory.
Value FuseRowsPass::memoryOf(Value arg) {
  arg = sourceOf(arg);
  if (auto cache = arg.getDefiningOp<CacheRefOp>())
    return caches.try_emplace(cache.getCacheAttr(), arg).first->second;
  return arg;
}

FailureOr<Unit> FuseRowsPass::unitOf(LaunchOp launch) {
  Unit unit;
  unit.launches.push_back(launch);
  for (auto [index, arg] : llvm::enumerate(launch.getArgs())) {
    Value memory = memoryOf(arg);
    unit.touched.insert(memory);
    if (llvm::is_contained(launch.getWrites(), index))
      unit.written.insert(memory);
  }
  FailureOr<moec::KernelSpec> spec = kernels->specOf(launch);
  if (failed(spec))
    return failure();
  bool leftAlone = watched && std::holds_alternative<moec::CombineSpec>(*spec);
  if (moec::worksOnRows(*spec) && !leftAlone && !launch.getRunFrom() && !launch.getRunBelow())
    unit.specs.push_back(std::move(*spec));
  return unit;
}

/// Memory that one of two units writes and the other one touches.
SmallVector<Value> sharedMemory(const Unit &a, const Unit &b) {
  SmallVector<Value> shared;
  for (Value memory : a.touched)
    if (b.touched.contains(memory) && (a.written.contains(memory) || b.written.contains(memory)))
      shared.push_back(memory);
  return shared;
}

bool mayJoin(Unit &before, Unit &unit) {
  return !before.specs.empty() && before.launches.front().getGrid() == unit.launches.front().getGrid() &&
         llvm::all_of(sharedMemory(before, unit), hasRows);
}

LogicalResult FuseRowsPass::fuse(ProgramOp program) {
  caches.clear();
  std::vector<Unit> units;
  for (auto launch : program.getOps<LaunchOp>()) {
    FailureOr<Unit> unit = unitOf(launch);
    if (failed(unit))
      return failure();
    Unit *joined = nullptr;
    if (!unit->specs.empty())
      for (Unit &before : llvm::reverse(units)) {
        if (mayJoin(before, *unit)) {
          joined = &before;
          break;
        }
        if (!sharedMemory(before, *unit).empty())
          break;
      }
    if (!joined) {
      units.push_back(std::move(*unit));
      continue;
    }
    joined->launches.append(unit->launches);
    joined->specs.push_back(std::move(unit->specs.front()));
    joined->touched.insert_range(unit->touched);
    joined->written.insert_range(unit->written);
    ++numJoined;
  }
  // Launches move up: what their arguments are has to be said before.
  moveMemoryUp(program);
  for (const Unit &unit : units)
    if (unit.launches.size() > 1)
      kernels->replace(unit.launches, moec::RowsSpec{unit.specs});
  return success();
}

} // namespace
} // namespace mlir::exec
