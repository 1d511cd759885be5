// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// From recipes and a checkpoint to the packed weights of an artifact,
/// streaming: whatever the model's size, only tiles are in memory.

#ifndef MOEC_CODEGEN_WEIGHTS_MATERIALIZE_H
#define MOEC_CODEGEN_WEIGHTS_MATERIALIZE_H

#include "codegen/Weights/WeightSink.h"
#include "dialects/Formats/Feedback.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/TensorSource.h"

#include "mlir/IR/BuiltinAttributes.h"

#include <functional>
#include <string>
#include <vector>

namespace mlir::exec {
class WeightOp;
} // namespace mlir::exec

namespace moec {

/// One weight to be made: an `exec.weight`, free of its op.
struct WeightJob {
  std::string name;
  std::vector<std::string> sources;
  mlir::ArrayAttr recipe;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;

  static Result<WeightJob> from(mlir::exec::WeightOp op);
  int64_t bytes() const;
};

struct MaterializeOptions {
  unsigned threads = 1;
  /// Bounds tiles and mapped source pages together, in bytes.
  uint64_t maxMemory = 2ull << 30;
  /// What a calibration found, for weights that are rounded by it; or null.
  const MomentSource *moments = nullptr;
  /// Called now and then, from the thread that called `materialize`.
  std::function<void(uint64_t doneBytes, uint64_t totalBytes, const std::string &weight)> progress;
};

/// Makes every weight and writes it to `out`, whose weights are the jobs'
/// names, types and shapes in the same order, but for the bytes that are there
/// already. Each output byte is written once, and equals what
/// the reference interpreter's recipes give. On an error, `out` is unfinished.
Status materialize(const std::vector<WeightJob> &jobs, const TensorSource &from, WeightSink &out,
                   const MaterializeOptions &options);

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_MATERIALIZE_H
