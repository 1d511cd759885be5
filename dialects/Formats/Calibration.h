// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a model's weights were multiplied with while it read a text: the file
/// that `moec calibrate` writes (docs/calibration.md) and that quantizers read.

#ifndef MOEC_DIALECTS_FORMATS_CALIBRATION_H
#define MOEC_DIALECTS_FORMATS_CALIBRATION_H

#include "dialects/Formats/Feedback.h"
#include "runtime/Support/Result.h"
#include "runtime/Support/Safetensors.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace moec {

/// What the router of one layer of experts did.
struct CalibrationRouting {
  int64_t topk = 0, experts = 0;
  std::span<const int32_t> chosen; ///< [tokens, topk]: experts, in the router's order; each below `experts`
  std::span<const float> weights;  ///< [tokens, topk]: what the choice's output is multiplied with
  std::span<const int64_t> counts; ///< [experts]: how often each was chosen; their sum is tokens * topk
  /// Nats per token that noise in the output of these experts costs, over the
  /// noise's mean squared norm; none if it was not measured.
  std::optional<double> sensitivity;
  /// Nats per token that choices of later routers cost which such noise tips over, over the root of that mean.
  std::optional<double> tipping;
};

/// The rows that one weight, or each expert of a family, was multiplied with.
struct CalibrationInput {
  std::string id; ///< equal for weights that read the same rows
  int64_t rows = 0, width = 0;
  /// bf16 bits [rows, width], mapped. Row t is token t's; where `perChoice` is
  /// set, row t * topk + k is that of token t's k-th choice. Not looked at by
  /// `open`: any bits may be there.
  const uint16_t *x = nullptr;
  bool perChoice = false;
  const CalibrationRouting *routing = nullptr; ///< of routed experts, else null

  /// Rows that `expert` read, ascending: those where it was chosen. `choices`, if not null, gets for
  /// each the place in `routing->chosen` and `routing->weights`.
  std::vector<int64_t> rowsOf(int64_t expert, std::vector<int64_t> *choices = nullptr) const;
};

/// A calibration file, mapped and parsed as hostile: every name that is spoken
/// of exists, types and shapes agree, choices are in range and sum up to the
/// counts, weights of choices are finite. Movable, immutable, safe to share
/// between threads. All spans and pointers lead into the mapping.
class Calibration final : public MomentSource {
public:
  /// Errors: the file cannot be opened, is no calibration, or contradicts itself.
  static Result<Calibration> open(const std::string &path);

  const std::string &path() const { return file->path(); }
  /// Tokens of the text that was read, N >= 1.
  int64_t tokens() const { return count; }
  /// The text in the ids of the model's tokenizer, [N]; empty if the file lacks them. Any numbers may be there.
  std::span<const int32_t> text() const { return ids; }
  /// By the checkpoint's names of weights; a family keeps its `{e}`, and of a
  /// quantized weight it is the tensor of its codes.
  const std::map<std::string, CalibrationInput> &inputs() const { return byName; }
  /// Null if the weight was not seen.
  const CalibrationInput *find(const std::string &weight) const;
  /// Writes rows `[first, first + count)` of `input` as f32 to `out`, [count, width]. Fails if one holds no finite
  /// number.
  Status read(const CalibrationInput &input, int64_t first, int64_t count, float *out) const;
  /// Of routed experts, inputs count by the square of the weight that their outputs get.
  Status check(const std::string &source, int64_t cols) const override;
  Result<SecondMoment> moment(const std::string &source, int64_t member) const override;
  Result<std::vector<float>> importance(const std::string &source, int64_t member) const override;
  /// Says that rows `[first, first + count)` are not needed soon (see MappedFile::release).
  void release(const CalibrationInput &input, int64_t first, int64_t count) const;

private:
  Calibration() = default;
  /// Calls `fn` with each input of a matrix, [width], and how much it counts.
  Status forEachInput(const std::string &source, int64_t member,
                      const std::function<void(const float *, float)> &fn) const;
  Result<CalibrationRouting> readRouting(const std::string &id) const;
  Status readInput(const std::string &weight, const std::string &id, const std::string &routingId);
  /// The tensor `name`, of `dtype` and, where a size is not negative, of `shape`; aligned to its elements.
  Result<const TensorInfo *> tensor(const std::string &name, DType dtype, const std::vector<int64_t> &shape) const;

  std::unique_ptr<SafetensorsFile> file; ///< on the heap: its tensors are pointed to
  int64_t count = 0;
  std::span<const int32_t> ids;
  std::map<std::string, CalibrationRouting> routings; ///< by id; nodes do not move
  std::map<std::string, CalibrationInput> byName;
};

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_CALIBRATION_H
