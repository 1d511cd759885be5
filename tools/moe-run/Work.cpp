// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moe-run/Work.h"

#include <algorithm>

using namespace moec;

Work &Work::operator+=(const Work &other) {
  for (size_t unit = 0; unit < flops.size(); ++unit)
    flops[unit] += other.flops[unit];
  weightBytes += other.weightBytes;
  cacheBytes += other.cacheBytes;
  return *this;
}

StepContext StepContext::of(int64_t sequences, int64_t tokens, int64_t position) {
  const double count = static_cast<double>(tokens), before = static_cast<double>(position);
  const double pairs = count * before + count * (count + 1) / 2;
  return {static_cast<double>(sequences) * pairs, static_cast<double>(sequences) * (before + count)};
}

Work moec::workOf(const Artifact &artifact, const LaunchView &view, const StepContext &context) {
  using Kind = ArgInfo::Kind;
  const LaunchInfo &launch = artifact.launches()[view.launch];
  const WorkInfo &info = artifact.kernels()[launch.kernel].work;
  Work work;
  if (launch.tasks(view.tokens, view.rows) <= 0)
    return work;
  const auto tokens = static_cast<double>(view.tokens), rows = static_cast<double>(view.rows);

  double choices = 0, share = 1; // of the weights
  if (info.experts) {
    const auto *offsets = static_cast<const int32_t *>(view.args[info.experts->offsets]);
    const auto *active = static_cast<const int32_t *>(view.args[info.experts->active]);
    choices = offsets[info.experts->count];
    share = static_cast<double>(active[0]) / static_cast<double>(info.experts->count);
  }
  work.flops[static_cast<size_t>(info.unit)] =
      static_cast<double>(info.perToken) * tokens + static_cast<double>(info.perRow) * rows +
      static_cast<double>(info.perPair) * context.pairs + static_cast<double>(info.perEntry) * context.entries +
      static_cast<double>(info.perChoice) * choices;

  for (size_t i = 0; i < launch.args.size(); ++i) {
    const ArgInfo &arg = launch.args[i];
    if (arg.kind == Kind::Weight) {
      const double all = static_cast<double>(artifact.weights()[arg.index].tensor.bytes - arg.offset);
      work.weightBytes += info.tokenBytes ? std::min(all, tokens * static_cast<double>(*info.tokenBytes)) : all * share;
    } else if (arg.kind == Kind::Cache && !std::ranges::binary_search(launch.writes, i)) {
      const CacheInfo &cache = artifact.caches()[arg.index];
      work.cacheBytes += context.entries * static_cast<double>(cache.width * byteSize(cache.dtype));
    }
  }
  return work;
}
