// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moec/PassFlags.h"

#include "passes/Pipelines.h"

#include <CLI/CLI.hpp>

using namespace moec;

std::vector<CLI::Option *> moec::addPassOptions(CLI::App &command, PassOptions &options) {
  const char *group = "Passes";
  CLI::Option *level =
      command
          .add_option("-O", options.level,
                      "level of optimization. -O0: what is needed to run; -O1: and gate with up, sums with residuals, "
                      "only rows asked for; -O2: and projections of one input as one, shared experts with routed "
                      "ones; -O3: and --fold-norm")
          ->check(CLI::Range(int64_t(0), mlir::moe::kMaxOptimization))
          ->capture_default_str()
          ->group(group);
  CLI::Option *foldNorm =
      command
          .add_flag("--fold-norm", options.foldNorm,
                    "multiply the weights of norms into those of the projections after them, where these are f32 or "
                    "quantized to nearest")
          ->group(group);
  CLI::Option *pipeline =
      command
          .add_option("--pass-pipeline", options.pipeline,
                      "passes over the model in place of a level and of formats, as moe-opt takes them: "
                      "'builtin.module(cse,func.func(moe-fuse-mla))'")
          ->check([](const std::string &text) {
            Status status = PassOptions{.pipeline = text}.check();
            return status.ok() ? std::string() : status.message();
          })
          ->excludes(level)
          ->excludes(foldNorm)
          ->group(group);
  return {level, foldNorm, pipeline};
}
