// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Exec/Launches.h"
#include "passes/Exec/Passes.h"

#include "mlir/IR/Builders.h"

using moec::DType;
using moec::Epilogue;
using moec::Routing;

namespace mlir::exec {

#define GEN_PASS_DEF_FUSEROUNDINGPASS
#include "passes/Exec/Passes.h.inc"

namespace {

/// Rows that a launch rounds, and what to.
struct Rounding {
  LaunchOp launch;
  DType to = DType::F32; ///< BF16 or U8
  int64_t offset = 0;    ///< of codes
  int64_t width = 0, xStride = 0, outStride = 0, rowsPerToken = 1;
  moec::Rows rows = moec::Rows::T;

  Value x() { return launch.getArgs()[0]; }
  Value out() { return launch.getArgs()[1]; }
  /// Of `columns` numbers as they are stored, in elements.
  int64_t storedWidth(int64_t columns) const {
    return to == DType::U8 ? moec::QuantizeRowsSpec::rowBytes(columns) : columns;
  }
  /// Whether a kernel may store `columns` of a row by themselves.
  bool cutsInto(int64_t columns) const { return to != DType::U8 || columns % moec::QuantizeRowsSpec::group == 0; }
};

template <class Spec> Rounding roundingOf(LaunchOp launch, const Spec &spec, DType to) {
  Rounding rounding{launch, to};
  rounding.width = spec.width;
  rounding.xStride = spec.xStride;
  rounding.outStride = spec.outStride;
  rounding.rowsPerToken = spec.rowsPerToken;
  rounding.rows = spec.rows;
  return rounding;
}

std::optional<Rounding> roundingOf(LaunchOp launch, const moec::KernelSpec &spec) {
  if (auto *cast = std::get_if<moec::CastRowsSpec>(&spec); cast && cast->to == DType::BF16)
    return roundingOf(launch, *cast, DType::BF16);
  auto *codes = std::get_if<moec::QuantizeRowsSpec>(&spec);
  if (!codes || codes->scaleCols != moec::QuantizeRowsSpec::group)
    return std::nullopt;
  Rounding rounding = roundingOf(launch, *codes, DType::U8);
  rounding.offset = codes->offset;
  return rounding;
}

/// A launch that would store rounded rows, and the spec with which it does.
struct Writer {
  LaunchOp launch;
  size_t arg; ///< that it writes rows through
  moec::KernelSpec spec;
};

// Each gives the spec of a kernel that stores rows as `rounding` would round them, if there is one.

std::optional<moec::KernelSpec> rounded(moec::GemmSpec spec, const Rounding &rounding) {
  const bool routed = spec.routing != Routing::None, heads = !routed && spec.batch > 1;
  if (spec.output != DType::F32 || spec.yStride != rounding.xStride || spec.rows != rounding.rows ||
      rounding.rowsPerToken != (routed ? spec.topk : 1) || !rounding.cutsInto(spec.n) ||
      rounding.width != (heads ? spec.batch * spec.n : spec.n) ||
      (heads && (spec.yBatch != spec.n || spec.epilogue == Epilogue::Add)))
    return std::nullopt;
  spec.output = rounding.to;
  spec.outputOffset = rounding.offset;
  spec.yStride = rounding.outStride;
  spec.yBatch = heads ? rounding.storedWidth(spec.n) : 0;
  return spec;
}

std::optional<moec::KernelSpec> rounded(moec::MlaExpandedSpec spec, const Rounding &rounding) {
  if (spec.output != DType::F32 || spec.outStride != rounding.xStride || rounding.rows != moec::Rows::T ||
      rounding.rowsPerToken != 1 || !rounding.cutsInto(spec.value) || rounding.width != spec.heads * spec.value ||
      (spec.heads > 1 && spec.outHead != spec.value))
    return std::nullopt;
  spec.output = rounding.to;
  spec.outputOffset = rounding.offset;
  spec.roundedStride = rounding.outStride;
  spec.roundedHead = rounding.storedWidth(spec.value);
  return spec;
}

template <class Spec> std::optional<moec::KernelSpec> rounded(const Spec &, const Rounding &) { return std::nullopt; }

bool startsAtRow(Value memory) {
  auto [strides, offset] = cast<MemRefType>(memory.getType()).getStridesAndOffset();
  return offset == 0;
}

struct FuseRoundingPass : impl::FuseRoundingPassBase<FuseRoundingPass> {
  void runOnOperation() override {
    kernels.emplace(getOperation());
    if (failed(kernels->rewritePrograms([&](ProgramOp program) { return fuse(program); })))
      signalPassFailure();
  }

  LogicalResult fuse(ProgramOp program);
  /// The launches that write what `rounding` reads; none if one of them, or anything else, needs it as it is.
  FailureOr<SmallVector<Writer>> writersFor(ProgramOp program, Rounding &rounding);
  void storeRounded(const Writer &writer, Rounding &rounding);

  std::optional<Kernels> kernels;
};

LogicalResult FuseRoundingPass::fuse(ProgramOp program) {
  moveMemoryUp(program);
  for (auto launch : llvm::make_early_inc_range(program.getOps<LaunchOp>())) {
    FailureOr<moec::KernelSpec> spec = kernels->specOf(launch);
    if (failed(spec))
      return failure();
    std::optional<Rounding> rounding = roundingOf(launch, *spec);
    if (!rounding || launch.getRunFrom() || launch.getRunBelow())
      continue;
    FailureOr<SmallVector<Writer>> writers = writersFor(program, *rounding);
    if (failed(writers))
      return failure();
    if (writers->empty())
      continue;
    for (const Writer &writer : *writers)
      storeRounded(writer, *rounding);
    launch.erase();
    ++numFused;
  }
  return success();
}

FailureOr<SmallVector<Writer>> FuseRoundingPass::writersFor(ProgramOp program, Rounding &rounding) {
  const SmallVector<Writer> none;
  Value from = sourceOf(rounding.x()), to = sourceOf(rounding.out());
  if (!from.getDefiningOp<BufferOp>() || !to.getDefiningOp<BufferOp>() || !startsAtRow(rounding.x()))
    return none;
  SmallVector<Writer> writers;
  for (auto launch : program.getOps<LaunchOp>()) {
    if (launch == rounding.launch)
      continue;
    SmallVector<size_t> touching;
    for (auto [index, arg] : llvm::enumerate(launch.getArgs())) {
      if (sourceOf(arg) == from)
        touching.push_back(index);
      if (sourceOf(arg) == to && launch->isBeforeInBlock(rounding.launch))
        return none;
    }
    if (touching.empty())
      continue;
    if (touching.size() != 1 || !llvm::is_contained(launch.getWrites(), static_cast<int64_t>(touching.front())) ||
        !launch->isBeforeInBlock(rounding.launch) || !startsAtRow(launch.getArgs()[touching.front()]))
      return none;
    FailureOr<moec::KernelSpec> spec = kernels->specOf(launch);
    if (failed(spec))
      return failure();
    std::optional<moec::KernelSpec> other = std::visit([&](const auto &s) { return rounded(s, rounding); }, *spec);
    if (!other)
      return none;
    writers.push_back({launch, touching.front(), std::move(*other)});
  }
  return writers;
}

void FuseRoundingPass::storeRounded(const Writer &writer, Rounding &rounding) {
  LaunchOp launch = writer.launch;
  OpBuilder builder(launch);
  SmallVector<Value> args(launch.getArgs());
  if (std::holds_alternative<moec::MlaExpandedSpec>(writer.spec))
    args.push_back(rounding.out());
  else
    args[writer.arg] = rounding.out();
  LaunchOp stored = kernels->launch(builder, writer.spec, args, {launch, rounding.launch});
  stored.setRunFromAttr(launch.getRunFromAttr());
  stored.setRunBelowAttr(launch.getRunBelowAttr());
  launch.erase();
}

} // namespace
} // namespace mlir::exec
