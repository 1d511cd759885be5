// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Model.h"

#include "runtime/Sampler.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <type_traits>
#include <vector>

namespace moec {

Result<std::unique_ptr<Model>> Model::load(const std::string &directory, const ModelOptions &options) {
  MOEC_TRY(Artifact artifact, Artifact::open(directory));
  std::unique_ptr<Model> model(new Model(std::move(artifact)));
  CpuDeviceOptions cpu;
  cpu.threads = options.threads;
  cpu.weights = options.weights;
  if (options.threads < 0)
    return Error{"number of threads is " + std::to_string(options.threads) + ", expected 0 (all cores) or more"};
  if (options.cpu)
    cpu.forcedLevel = *options.cpu;
  else if (const char *forced = std::getenv("MOEC_CPU"))
    cpu.forcedLevel = forced;
  MOEC_TRY(int64_t pages, KvCache::pagesFor(options.maxSlots, model->maxContext()));
  MOEC_TRY(model->device, createCpuDevice(model->files, cpu));
  MOEC_CHECK(model->device->reservePages(pages));
  model->cache = std::make_unique<KvCache>(options.maxSlots, model->maxContext(),
                                           [device = model->device.get()](int32_t page) { device->clearPage(page); });
  return model;
}

Status Model::checkSlot(int64_t slot) const {
  if (slot < 0 || slot >= maxSlots())
    return Error{"slot is " + std::to_string(slot) + ", expected 0 to " + std::to_string(maxSlots() - 1)};
  return success();
}

Result<int64_t> Model::length(int64_t slot) const {
  MOEC_CHECK(checkSlot(slot));
  std::lock_guard lock(mutex);
  return cache->length(slot);
}

Status Model::truncate(int64_t slot, int64_t length) {
  MOEC_CHECK(checkSlot(slot));
  std::lock_guard lock(mutex);
  if (length < 0 || length > cache->length(slot))
    return Error{"slot " + std::to_string(slot) + " holds " + std::to_string(cache->length(slot)) +
                 " tokens, so it cannot be cut to " + std::to_string(length)};
  cache->truncate(slot, length);
  return success();
}

int64_t Model::usedPages() const {
  std::lock_guard lock(mutex);
  return cache->usedPages();
}

void Model::setObserver(LaunchObserver observer) {
  std::lock_guard lock(mutex);
  device->setObserver(std::move(observer));
}

void Model::setTaskObserver(TaskObserver observer) {
  std::lock_guard lock(mutex);
  device->setTaskObserver(std::move(observer));
}

static Error wrongRoom(size_t room, size_t rows, int64_t width) {
  return Error{"there is room for " + std::to_string(room) + (width == 1 ? " tokens" : " logits") + ", but " +
               std::to_string(rows) + " rows of " + std::to_string(width) + " are asked for"};
}

Status Model::step(std::span<const int32_t> tokens, std::span<const int32_t> positions, std::span<const int32_t> slots,
                   std::span<const int32_t> rows, std::span<float> logits) {
  return run(tokens, positions, slots, rows, logits, vocab());
}

Status Model::stepArgmax(std::span<const int32_t> tokens, std::span<const int32_t> positions,
                         std::span<const int32_t> slots, std::span<const int32_t> rows, std::span<int32_t> argmax) {
  if (files.hasArgmax())
    return run(tokens, positions, slots, rows, argmax, /*width=*/1);
  // An artifact of an earlier moec.
  if (argmax.size() != rows.size())
    return wrongRoom(argmax.size(), rows.size(), /*width=*/1);
  std::vector<float> logits(rows.size() * vocab());
  MOEC_CHECK(step(tokens, positions, slots, rows, logits));
  for (size_t i = 0; i < rows.size(); ++i)
    argmax[i] = moec::argmax(std::span(logits).subspan(i * vocab(), vocab()));
  return success();
}

/// A step that gives `width` results for each of `rows`: logits, or their argmax.
template <typename Result>
Status Model::run(std::span<const int32_t> tokens, std::span<const int32_t> positions, std::span<const int32_t> slots,
                  std::span<const int32_t> rows, std::span<Result> results, int64_t width) {
  const size_t count = tokens.size();
  if (count == 0)
    return Error{"a step needs at least one token"};
  if (positions.size() != count || slots.size() != count)
    return Error{"a step has " + std::to_string(count) + " tokens, " + std::to_string(positions.size()) +
                 " positions and " + std::to_string(slots.size()) + " slots, expected equal numbers"};
  for (int32_t row : rows)
    if (row < 0 || static_cast<size_t>(row) >= count)
      return Error{"row is " + std::to_string(row) + ", but the step has " + std::to_string(count) + " tokens"};
  if (results.size() != rows.size() * width)
    return wrongRoom(results.size(), rows.size(), width);
  struct Run {
    int64_t begin, count;
  };
  std::map<int32_t, Run> runs;
  for (size_t t = 0; t < count; ++t) {
    if (tokens[t] < 0 || tokens[t] >= vocab())
      return Error{"token " + std::to_string(t) + " is " + std::to_string(tokens[t]) +
                   ", but the vocabulary has the ids 0 to " + std::to_string(vocab() - 1)};
    MOEC_CHECK(checkSlot(slots[t]));
    if (positions[t] < 0)
      return Error{"position of token " + std::to_string(t) + " is " + std::to_string(positions[t]) +
                   ", expected 0 or more"};
    Run &run = runs.try_emplace(slots[t], Run{positions[t], 0}).first->second;
    if (positions[t] != run.begin + run.count)
      return Error{"position of token " + std::to_string(t) + " in slot " + std::to_string(slots[t]) + " is " +
                   std::to_string(positions[t]) + ", expected " + std::to_string(run.begin + run.count) +
                   " after the one before"};
    ++run.count;
  }

  std::lock_guard lock(mutex);
  for (auto &[slot, run] : runs)
    MOEC_CHECK(cache->check(slot, run.begin, run.count));
  for (auto &[slot, run] : runs)
    cache->extend(slot, run.begin, run.count);
  for (size_t first = 0; first < count; first += maxTokens()) {
    size_t part = std::min<size_t>(maxTokens(), count - first);
    Status status = runPart(tokens.subspan(first, part), positions.subspan(first, part), slots.subspan(first, part),
                            first, rows, results, width);
    if (!status.ok()) {
      for (auto &[slot, run] : runs)
        cache->truncate(slot, run.begin);
      return status;
    }
  }
  return success();
}

/// Runs the tokens `[first, first + T)` of a step; `rows` and `results` are the whole step's.
template <typename Result>
Status Model::runPart(std::span<const int32_t> tokens, std::span<const int32_t> positions,
                      std::span<const int32_t> slots, int64_t first, std::span<const int32_t> rows,
                      std::span<Result> results, int64_t width) {
  const int64_t count = tokens.size();
  std::vector<int32_t> own; ///< rows that lie in this part, relative to it
  std::vector<size_t> to;   ///< their places in `results`
  bool plain = true;        ///< whether `results` takes them as they come
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < first || rows[i] >= first + count)
      continue;
    plain = plain && (own.empty() || (rows[i] - first > own.back() && i == to.back() + 1));
    own.push_back(rows[i] - first);
    to.push_back(i);
  }
  DeviceStep step{tokens, positions, slots, own, cache->table(), cache->pagesPerSlot()};
  const auto runInto = [&](Result *at) {
    if constexpr (std::is_same_v<Result, float>)
      step.logits = at;
    else
      step.argmax = at;
    return device->run(step);
  };
  if (plain) // strictly ascending, so at most `count` of them
    return runInto(own.empty() ? nullptr : results.data() + to.front() * width);
  // Each asked row once, then copied to where it is wanted.
  std::vector<int32_t> once = own;
  std::sort(once.begin(), once.end());
  once.erase(std::unique(once.begin(), once.end()), once.end());
  std::vector<Result> values(once.size() * width);
  step.rows = once;
  MOEC_CHECK(runInto(values.data()));
  for (size_t i = 0; i < own.size(); ++i) {
    int64_t from = std::lower_bound(once.begin(), once.end(), own[i]) - once.begin();
    std::copy_n(values.data() + from * width, width, results.data() + to[i] * width);
  }
  return success();
}

} // namespace moec
