// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A loaded model: tokens in, logits out.

#ifndef MOEC_RUNTIME_MODEL_H
#define MOEC_RUNTIME_MODEL_H

#include "runtime/Artifact.h"
#include "runtime/Device.h"
#include "runtime/KvCache.h"
#include "runtime/Support/Result.h"
#include "runtime/WeightCopies.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

namespace moec {

struct ModelOptions {
  int threads = 0;      ///< 0: the physical cores available to the process
  int64_t maxSlots = 1; ///< sequences held at the same time
  /// CPU level to use, "v3" or "x86-64-v3"; unset: the environment's MOEC_CPU, else the best that runs here.
  std::optional<std::string> cpu;
  WeightPlacement weights = WeightPlacement::Mapped;
};

/// An artifact on a device with a cache. All calls are thread-safe; steps run
/// one at a time.
class Model {
public:
  static Result<std::unique_ptr<Model>> load(const std::string &directory, const ModelOptions &options = {});

  const Artifact &artifact() const { return files; }
  const ModelInfo &info() const { return files.model(); }
  int64_t vocab() const { return files.model().vocab; }
  int64_t maxContext() const { return files.model().maxContext; }
  int64_t maxSlots() const { return cache->maxSlots(); }
  /// Tokens that are best given to one step; a longer step is cut into such.
  int64_t maxTokens() const { return files.maxTokens(); }
  /// For people: "x86-64-v4, 8 threads".
  std::string deviceDescription() const { return device->description(); }

  /// Reads T >= 1 tokens and gives R rows of logits.
  ///
  /// Token t continues the sequence in `slots[t]` at `positions[t]`. Within
  /// one slot positions follow each other; the first is at most the slot's
  /// length. A lower one rewinds: what was there and later is forgotten.
  /// Tokens of several slots may be mixed in any way. Each row's bits depend
  /// on the sequence up to it alone: not on the cut into steps, the other
  /// rows, the slot or the number of threads.
  /// \param rows    R >= 0 indices below T, in any order, repeats allowed
  /// \param logits  out: f32 [R, vocab], row i for the token `rows[i]`
  /// Bad arguments give a sentence and change nothing.
  Status step(std::span<const int32_t> tokens, std::span<const int32_t> positions, std::span<const int32_t> slots,
              std::span<const int32_t> rows, std::span<float> logits);
  /// The same for who wants the likeliest token of each row alone: no logits are stored.
  /// \param argmax  out: [R], what `argmax` of runtime/Sampler.h gives for the row's logits
  Status stepArgmax(std::span<const int32_t> tokens, std::span<const int32_t> positions, std::span<const int32_t> slots,
                    std::span<const int32_t> rows, std::span<int32_t> argmax);

  /// For tools that look at, or change, what is computed on the way: see
  /// `LaunchView`. A step that is cut into several runs tells of each.
  void setObserver(LaunchObserver observer);
  void setTaskObserver(TaskObserver observer);

  /// Tokens held in a slot.
  Result<int64_t> length(int64_t slot) const;
  /// Forgets the tokens of a slot from `length` on (0: all), which is at most its length.
  Status truncate(int64_t slot, int64_t length);
  /// Cache pages of 64 tokens in use.
  int64_t usedPages() const;

private:
  explicit Model(Artifact artifact) : files(std::move(artifact)) {}
  Status checkSlot(int64_t slot) const;
  template <typename Result>
  Status run(std::span<const int32_t> tokens, std::span<const int32_t> positions, std::span<const int32_t> slots,
             std::span<const int32_t> rows, std::span<Result> results, int64_t width);
  template <typename Result>
  Status runPart(std::span<const int32_t> tokens, std::span<const int32_t> positions, std::span<const int32_t> slots,
                 int64_t first, std::span<const int32_t> rows, std::span<Result> results, int64_t width);

  Artifact files;
  std::unique_ptr<Device> device;
  std::unique_ptr<KvCache> cache;
  mutable std::mutex mutex;
};

} // namespace moec

#endif // MOEC_RUNTIME_MODEL_H
