// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Quantizer.h"

#include "dialects/Moe/Recipe.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

using namespace moec;
using mlir::moe::Rounding;

/// What the rows of a matrix share.
struct Quantizer::Shared {
  float global = 1;
  std::vector<float> blocks;     ///< [blocks of rows, groups]: their scales
  std::vector<float> importance; ///< [cols]
  std::optional<Feedback> feedback;
};

struct Quantizer::Entry {
  std::once_flag once;
  std::optional<Result<std::shared_ptr<const Shared>>> shared;
};

Result<std::unique_ptr<Quantizer>> Quantizer::open(mlir::moe::QuantizeAttr step, std::string source,
                                                   std::vector<int64_t> members, AppendedMatrices appended,
                                                   const Block &block, const MomentSource *moments) {
  if (!step.divides(block.cols))
    return Error{"tensor " + quote(source) + " has rows of " + std::to_string(block.cols) +
                 ", which are no whole groups of " + std::to_string(step.getFormat().unit())};
  if (step.getRounding() != Rounding::Nearest) {
    // A calibration knows the inputs of whole matrices, of which these are slices.
    if (!appended.name.empty())
      return Error{"tensor " + quote(appended.name) + " is appended to " + quote(source) +
                   ", which a calibration says nothing of"};
    if (!moments)
      return Error{"tensor " + quote(source) + " is to be rounded by what a calibration found, but there is none"};
    MOEC_CHECK(moments->check(source, block.cols));
  }
  return std::unique_ptr<Quantizer>(
      new Quantizer(step, std::move(source), std::move(members), std::move(appended), block, moments));
}

int64_t Quantizer::sharedBytes() const {
  int64_t floats = groups.rows > 1 ? (block.rows + groups.rows - 1) / groups.rows * groups.groups(block.cols) : 0;
  if (step.getRounding() == Rounding::Feedback)
    floats += 3 * block.cols * block.cols; // two that stay, one while they are made
  return 2 * floats * static_cast<int64_t>(sizeof(float));
}

std::string Quantizer::nameOf(int64_t batch) const {
  return batch < appended.from ? mlir::moe::memberOf(source, memberAt(batch)) : appended.name;
}

Result<std::shared_ptr<const Quantizer::Shared>> Quantizer::makeShared(int64_t batch) const {
  auto shared = std::make_shared<Shared>();
  if (groups.rows > 1 || groups.hasGlobal()) {
    const int64_t count = groups.groups(block.cols);
    float most = 0;
    std::vector<float> line(block.cols);
    for (int64_t row = 0; row < block.rows; ++row) {
      MOEC_CHECK(block.read({batch, row, 1, 0, block.cols}, line.data()));
      if (row % groups.rows == 0)
        shared->blocks.resize(shared->blocks.size() + count, 0.0f);
      float *extremes = shared->blocks.data() + shared->blocks.size() - count;
      for (int64_t c = 0; c < block.cols; ++c) {
        if (!std::isfinite(line[c]))
          return Error{"tensor " + quote(nameOf(batch)) + " holds " + numberText(line[c]) +
                       ", but weights must be numbers"};
        extremes[c / groups.group] = moreExtreme(extremes[c / groups.group], line[c]);
        most = std::max(most, std::abs(line[c]));
      }
    }
    shared->global = globalScale(groups, most);
    if (groups.rows > 1)
      for (float &scale : shared->blocks)
        scale = groupScale(groups, scale, shared->global);
    else
      shared->blocks.clear();
  }
  if (step.getRounding() != Rounding::Nearest) {
    if (step.getRounding() == Rounding::Feedback) {
      MOEC_TRY(SecondMoment moment, moments->moment(source, memberAt(batch)));
      shared->feedback.emplace(std::move(moment));
    } else {
      MOEC_TRY(shared->importance, moments->importance(source, memberAt(batch)));
    }
  }
  return std::shared_ptr<const Shared>(std::move(shared));
}

Result<std::shared_ptr<const Quantizer::Shared>> Quantizer::sharedOf(int64_t batch) const {
  std::shared_ptr<Entry> entry;
  {
    std::lock_guard lock(mutex);
    std::shared_ptr<Entry> &place = entries[batch];
    if (!place)
      place = std::make_shared<Entry>();
    entry = place;
    // Matrices are made in order: of those before, one may still be at work.
    while (entries.size() > 2 && entries.begin()->first < batch - 1)
      entries.erase(entries.begin());
  }
  std::call_once(entry->once, [&] { entry->shared.emplace(makeShared(batch)); });
  if (!entry->shared->ok())
    return Error{entry->shared->message()};
  return **entry->shared;
}

Status Quantizer::quantize(int64_t batch, int64_t row, int64_t count, RowCodes *out) const {
  MOEC_TRY(std::shared_ptr<const Shared> shared, sharedOf(batch));
  // Rows that are made together must share their scales, if rows do.
  const int64_t cols = block.cols, lanes = groups.rows > 1 ? std::gcd(groups.rows, Feedback::lanes) : Feedback::lanes;
  const int64_t height = shared->feedback && row % lanes == 0 ? lanes : 1;
  std::vector<float> lines(height * cols);
  for (int64_t r = 0; r < count; r += height) {
    int64_t rows = std::min(height, count - r);
    MOEC_CHECK(block.read({batch, row + r, rows, 0, cols}, lines.data()));
    SharedScales scales{shared->global, {}};
    if (groups.rows > 1)
      scales.blocks =
          std::span(shared->blocks).subspan((row + r) / groups.rows * groups.groups(cols), groups.groups(cols));
    MOEC_CHECK(shared->feedback ? shared->feedback->quantize(groups, nameOf(batch), lines.data(), rows, scales, out + r)
                                : quantizeRow(groups, nameOf(batch), lines, scales, shared->importance, out[r]));
  }
  return success();
}

Result<RowCodes> Quantizer::zeros(int64_t batch) const {
  MOEC_TRY(std::shared_ptr<const Shared> shared, sharedOf(batch));
  RowCodes row;
  std::vector<float> line(block.cols, 0.0f);
  MOEC_CHECK(quantizeRow(groups, source, line, {shared->global, {}}, {}, row));
  return row;
}
