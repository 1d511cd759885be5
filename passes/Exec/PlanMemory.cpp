// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Exec/Passes.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/MathExtras.h"

namespace mlir::exec {

#define GEN_PASS_DEF_PLANMEMORYPASS
#include "passes/Exec/Passes.h.inc"

namespace {

constexpr int64_t alignment = 64;
/// Readable bytes behind a buffer, as codegen/Common/KernelSpec.h promises to kernels.
constexpr int64_t slack = 128;

struct Block {
  BufferOp buffer;
  int64_t first, last; ///< launches, both included
  int64_t bytes = 0;   ///< with slack, a multiple of the alignment
  int64_t offset = 0;

  bool meets(const Block &other) const { return first <= other.last && other.first <= last; }
  int64_t end() const { return offset + bytes; }
};

/// The buffer behind a chain of views, if it is one.
BufferOp bufferOf(Value value) {
  while (auto view = value.getDefiningOp<ViewOp>())
    value = view.getSource();
  return value.getDefiningOp<BufferOp>();
}

/// The start of the smallest gap between `neighbours` that holds `bytes`, else the end of the last.
/// `neighbours` are in order of their offsets; they may overlap one another.
int64_t bestFit(ArrayRef<const Block *> neighbours, int64_t bytes) {
  int64_t best = -1, bestGap = 0, end = 0;
  for (const Block *neighbour : neighbours) {
    int64_t gap = neighbour->offset - end;
    if (gap >= bytes && (best < 0 || gap < bestGap)) {
      best = end;
      bestGap = gap;
    }
    end = std::max(end, neighbour->end());
  }
  return best < 0 ? end : best;
}

struct PlanMemoryPass : impl::PlanMemoryPassBase<PlanMemoryPass> {
  void runOnOperation() override {
    ProgramOp program = getOperation();
    FailureOr<SmallVector<Block>> blocks = collect(program);
    if (failed(blocks))
      return signalPassFailure();

    // Large blocks first: small ones find gaps between them. The order of the program breaks ties.
    SmallVector<Block *> order = llvm::map_to_vector(*blocks, [](Block &block) { return &block; });
    llvm::stable_sort(order, [](const Block *a, const Block *b) { return a->bytes > b->bytes; });
    SmallVector<const Block *> placed; // in order of their offsets
    int64_t arena = 0, unshared = 0;
    for (Block *block : order) {
      SmallVector<const Block *> neighbours =
          llvm::filter_to_vector(placed, [&](const Block *other) { return block->meets(*other); });
      block->offset = bestFit(neighbours, block->bytes);
      placed.insert(
          llvm::upper_bound(placed, block, [](const Block *a, const Block *b) { return a->offset < b->offset; }),
          block);
      arena = std::max(arena, block->end());
      unshared += block->bytes;
      block->buffer.setOffset(block->offset);
    }
    program.setArenaBytes(arena);
    bytesUnshared += unshared;
    bytesShared += arena;
  }

  FailureOr<SmallVector<Block>> collect(ProgramOp program) {
    llvm::MapVector<Operation *, Block> lives;
    int64_t time = 0;
    for (auto launch : program.getOps<LaunchOp>()) {
      for (Value arg : launch.getArgs())
        if (BufferOp buffer = bufferOf(arg))
          lives.try_emplace(buffer, Block{buffer, time, time}).first->second.last = time;
      ++time;
    }
    for (auto &[op, block] : lives)
      if (block.buffer.getKept()) {
        block.first = 0;
        block.last = time;
      }
    // Backwards, so that a view goes before what it views.
    for (Operation &op : llvm::make_early_inc_range(llvm::reverse(program.getBody().front())))
      if (isa<ViewOp, BufferOp>(op) && op.use_empty())
        op.erase();

    // Sums over all buffers must not overflow either.
    constexpr int64_t limit = int64_t(1) << 46;
    SmallVector<Block> blocks;
    for (auto &[op, block] : lives) {
      std::optional<int64_t> bytes = block.buffer.getBytes(program.getMaxTokens());
      if (!bytes || *bytes > limit)
        return block.buffer.emitOpError("of ") << block.buffer.getType() << " is larger than " << limit << " bytes for "
                                               << program.getMaxTokens() << " tokens";
      block.bytes = llvm::alignTo(*bytes + slack, alignment);
      blocks.push_back(block);
    }
    return blocks;
  }
};

} // namespace
} // namespace mlir::exec
