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

/// Whether both launches are left out of the same steps.
bool runTogether(LaunchOp a, LaunchOp b) {
  return a.getRunFromAttr() == b.getRunFromAttr() && a.getRunBelowAttr() == b.getRunBelowAttr();
}

/// How many launches at the front of `links` are a gemm and what reads its rows: the scores of a router, its choice,
/// and lists of it; or a head and its argmax. None if calibration has to find the route.
size_t chainAt(MutableArrayRef<Link> links, bool watched) {
  auto *gemm = std::get_if<GemmSpec>(&links[0].spec);
  auto *route = links.size() < 2 || watched ? nullptr : std::get_if<moec::RouteSpec>(&links[1].spec);
  auto *argmax = links.size() < 2 ? nullptr : std::get_if<moec::ArgmaxSpec>(&links[1].spec);
  if (!gemm || (!route && !argmax) || gemm->routing != moec::Routing::None || gemm->batch != 1 ||
      gemm->rows != (route ? route->rows : argmax->rows) || !runTogether(links[0].launch, links[1].launch) ||
      !areSame(links[0].arg(links[0].launch.getWrites().back()), links[1].arg(0)))
    return 0;
  if (argmax)
    return 2;
  Value chosen = links[1].launch.getArgs().back();
  size_t count = 2;
  while (count < links.size() && std::holds_alternative<moec::DispatchSpec>(links[count].spec) &&
         runTogether(links[0].launch, links[count].launch) && areSame(links[count].arg(0), chosen))
    ++count;
  return count;
}

bool areValues(MutableArrayRef<Link> links) {
  auto *combine = std::get_if<moec::MlaCombineSpec>(&links[0].spec);
  auto *values = links.size() < 2 ? nullptr : std::get_if<GemmSpec>(&links[1].spec);
  return combine && values && values->routing == moec::Routing::None && values->rows == moec::Rows::T &&
         values->batch == combine->heads && values->k == combine->latent &&
         areSame(links[0].launch.getArgs().back(), links[1].arg(0)) && runTogether(links[0].launch, links[1].launch);
}

struct FuseChainsPass : impl::FuseChainsPassBase<FuseChainsPass> {
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

  std::optional<Kernels> kernels;
  bool watched = false; ///< whether a route has to be found by its kind
};

LogicalResult FuseChainsPass::fuse(ProgramOp program) {
  std::vector<Link> links;
  for (auto launch : program.getOps<LaunchOp>()) {
    FailureOr<moec::KernelSpec> spec = kernels->specOf(launch);
    if (failed(spec))
      return failure();
    links.push_back({launch, std::move(*spec)});
  }
  moveMemoryUp(program);
  Value arrivals; // of all chains, which run one after another
  for (MutableArrayRef<Link> rest = links; !rest.empty();) {
    const bool values = areValues(rest);
    const size_t chain = values ? 2 : chainAt(rest, watched);
    if (chain) {
      std::vector<moec::KernelSpec> parts;
      SmallVector<LaunchOp> launches;
      for (const Link &link : rest.take_front(chain)) {
        parts.push_back(link.spec);
        launches.push_back(link.launch);
      }
      if (!values && !arrivals) {
        OpBuilder builder = OpBuilder::atBlockBegin(&program.getBody().front());
        int64_t blocks = llvm::divideCeil(program.getMaxTokens(), GemmSpec::tokenBlock);
        arrivals = BufferOp::create(builder, program.getLoc(), MemRefType::get({1 + blocks}, builder.getI32Type()),
                                    /*rows_per_token=*/1, /*per_row=*/false, /*kept=*/true, /*offset=*/IntegerAttr());
      }
      if (values)
        kernels->replace(launches, moec::MlaValuesSpec{std::move(parts)});
      else
        kernels->replace(launches, moec::GemmChainSpec{std::move(parts)}, arrivals);
      numJoined += chain - 1;
    }
    rest = rest.drop_front(std::max<size_t>(chain, 1));
  }
  return success();
}

} // namespace
} // namespace mlir::exec
