// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Exec/Launches.h"
#include "passes/Exec/Passes.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"

using moec::GemmSpec;

namespace mlir::exec {

#define GEN_PASS_DEF_FUSECHAINSPASS
#include "passes/Exec/Passes.h.inc"

namespace {

struct Link {
  LaunchOp launch;
  moec::KernelSpec spec;

  Value arg(size_t index) { return launch.getArgs()[index]; }
};

/// Whether both arguments are the same elements.
bool areSame(Value a, Value b) { return a == b || (sourceOf(a) == sourceOf(b) && a.getType() == b.getType()); }

/// How many launches at the front of `links` are a gemm and what reads its rows: the scores of a router, its choice,
/// and lists of it; or a head and its argmax. None if calibration has to find the route.
size_t chainAt(MutableArrayRef<Link> links, bool watched) {
  auto *gemm = std::get_if<GemmSpec>(&links[0].spec);
  auto *route = links.size() < 2 || watched ? nullptr : std::get_if<moec::RouteSpec>(&links[1].spec);
  auto *argmax = links.size() < 2 ? nullptr : std::get_if<moec::ArgmaxSpec>(&links[1].spec);
  if (!gemm || (!route && !argmax) || gemm->routing != moec::Routing::None || gemm->batch != 1 ||
      gemm->rows != (route ? route->rows : argmax->rows) ||
      !areSame(links[0].arg(links[0].launch.getWrites().back()), links[1].arg(0)))
    return 0;
  if (argmax)
    return 2;
  Value chosen = links[1].launch.getArgs().back();
  size_t count = 2;
  while (count < links.size() && std::holds_alternative<moec::DispatchSpec>(links[count].spec) &&
         areSame(links[count].arg(0), chosen))
    ++count;
  return count;
}

bool areValues(MutableArrayRef<Link> links) {
  auto *combine = std::get_if<moec::MlaCombineSpec>(&links[0].spec);
  auto *values = links.size() < 2 ? nullptr : std::get_if<GemmSpec>(&links[1].spec);
  return combine && values && values->routing == moec::Routing::None && values->rows == moec::Rows::T &&
         values->batch == combine->heads && values->k == combine->latent &&
         areSame(links[0].launch.getArgs().back(), links[1].arg(0)) &&
         links[0].launch.getRunBelowAttr() == links[1].launch.getRunBelowAttr();
}

struct FuseChainsPass : impl::FuseChainsPassBase<FuseChainsPass> {
  void runOnOperation() override {
    kernels.emplace(getOperation());
    if (failed(kernels->rewritePrograms([&](ProgramOp program) { return fuse(program); })))
      signalPassFailure();
  }

  LogicalResult fuse(ProgramOp program);
  void launchTogether(MutableArrayRef<Link> links, const moec::KernelSpec &spec, ValueRange moreArgs = {});

  std::optional<Kernels> kernels;
};

LogicalResult FuseChainsPass::fuse(ProgramOp program) {
  std::vector<Link> links;
  for (auto launch : program.getOps<LaunchOp>()) {
    FailureOr<moec::KernelSpec> spec = kernels->specOf(launch);
    if (failed(spec))
      return failure();
    links.push_back({launch, std::move(*spec)});
  }
  FailureOr<bool> watched = kernels->mayBeWatched();
  if (failed(watched))
    return failure();
  moveMemoryUp(program);
  Value arrivals; // of all chains, which run one after another
  for (MutableArrayRef<Link> rest = links; !rest.empty();) {
    size_t count = 1;
    if (areValues(rest)) {
      count = 2;
      launchTogether(rest.take_front(count), moec::MlaValuesSpec{{rest[0].spec, rest[1].spec}});
    } else if (size_t chain = chainAt(rest, *watched)) {
      count = chain;
      if (!arrivals) {
        OpBuilder builder(rest[0].launch);
        int64_t blocks = llvm::divideCeil(program.getMaxTokens(), GemmSpec::tokenBlock);
        arrivals = BufferOp::create(builder, program.getLoc(), MemRefType::get({1 + blocks}, builder.getI32Type()),
                                    /*rows_per_token=*/1, /*per_row=*/false, /*kept=*/true, /*offset=*/IntegerAttr());
        moveMemoryUp(program);
      }
      moec::GemmChainSpec spec;
      for (const Link &link : rest.take_front(count))
        spec.parts.push_back(link.spec);
      launchTogether(rest.take_front(count), spec, arrivals);
    }
    rest = rest.drop_front(count);
  }
  return success();
}

void FuseChainsPass::launchTogether(MutableArrayRef<Link> links, const moec::KernelSpec &spec, ValueRange moreArgs) {
  SmallVector<LaunchOp> launches = llvm::map_to_vector(links, [](const Link &link) { return link.launch; });
  SmallVector<Value> args;
  for (LaunchOp launch : launches)
    llvm::append_range(args, launch.getArgs());
  llvm::append_range(args, moreArgs);
  OpBuilder builder(launches.front());
  kernels->launch(builder, spec, args, launches).setRunBelowAttr(launches.front().getRunBelowAttr());
  for (LaunchOp launch : launches)
    launch.erase();
  numJoined += launches.size() - 1;
}

} // namespace
} // namespace mlir::exec
