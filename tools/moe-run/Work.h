// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How much a step of a program computes and reads, launch by launch.

#ifndef MOEC_TOOLS_MOERUN_WORK_H
#define MOEC_TOOLS_MOERUN_WORK_H

#include "runtime/Artifact.h"
#include "runtime/Device.h"

#include <array>
#include <cstdint>

namespace moec {

/// The least that has to be done, whatever the kernel does.
struct Work {
  std::array<double, std::size(workUnits)> flops{}; ///< by what is multiplied
  double weightBytes = 0;                           ///< read
  double cacheBytes = 0;                            ///< read

  double bytes() const { return weightBytes + cacheBytes; }
  double allFlops() const {
    double sum = 0;
    for (double part : flops)
      sum += part;
    return sum;
  }
  Work &operator+=(const Work &other);
};

/// How far the tokens of one step look back.
struct StepContext {
  double pairs = 0;   ///< of a token and an entry that it attends to, itself included
  double entries = 0; ///< of all sequences in the step, those of this step included

  /// For `sequences` runs of `tokens` each that begin at `position`.
  static StepContext of(int64_t sequences, int64_t tokens, int64_t position);
};

/// What the launch that `view` shows had to do. Experts are counted as they were chosen. `view` is of the artifact,
/// which says what work its kernels are.
Work workOf(const Artifact &artifact, const LaunchView &view, const StepContext &context);

} // namespace moec

#endif // MOEC_TOOLS_MOERUN_WORK_H
