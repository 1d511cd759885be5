// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Codes that make a layer's outputs right rather than its weights: what inputs a matrix has seen, and rounding that
/// spreads each error over the columns after it. The bits are the same on every machine.
///
/// Sources: Frantar and others, GPTQ, arXiv:2210.17323; Chee and others, QuIP, arXiv:2307.13304, theorem 6, for the
/// form without an inverse; coordinate descent afterwards as in Behdin and others, QuantEase, arXiv:2309.01885.

#ifndef MOEC_DIALECTS_FORMATS_FEEDBACK_H
#define MOEC_DIALECTS_FORMATS_FEEDBACK_H

#include "dialects/Formats/Groups.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace moec {

/// `H = sum_t s[t] x[t] x[t]^T` over the inputs `x[t]` of a matrix of `size` columns.
class SecondMoment {
public:
  explicit SecondMoment(int64_t size) : columns(size), values(size * size, 0.0f) {}

  int64_t size() const { return columns; }
  /// Adds an input, [size], with the weight `s`.
  void add(const float *x, float s);
  float at(int64_t i, int64_t j) const { return i >= j ? values[i * columns + j] : values[j * columns + i]; }
  std::vector<float> diagonal() const;

private:
  friend class Feedback;
  int64_t columns;
  std::vector<float> values; ///< the lower triangle, row by row
};

/// Where moments come from: a calibration. Thread-safe.
class MomentSource {
public:
  virtual ~MomentSource() = default;
  /// Whether the inputs of the tensor `source`, or family of tensors, are known and have `cols` columns.
  virtual Status check(const std::string &source, int64_t cols) const = 0;
  /// Of member `member` of a family, counting from 0; of a single tensor, 0.
  virtual Result<SecondMoment> moment(const std::string &source, int64_t member) const = 0;
  /// The diagonal alone, [cols].
  virtual Result<std::vector<float>> importance(const std::string &source, int64_t member) const = 0;
};

/// Rounds rows of matrices that multiply such inputs. Thread-safe.
class Feedback {
public:
  /// Share of the mean of H's diagonal that is added to all of it: inputs that a calibration has not seen exist too.
  static constexpr float damping = 0.3f;
  /// Times that every code is reconsidered, given all the others.
  static constexpr int sweeps = 4;
  /// Rows that are rounded side by side.
  static constexpr int64_t lanes = 16;

  /// Factors `H + damping`. Takes `size^2` floats beside those of `moment`.
  explicit Feedback(SecondMoment moment);

  int64_t size() const { return moment.size(); }
  /// Rounds `count` rows of `size()` values, at most `lanes`. `out[r]` gets codes, scales and zero points. Scales are
  /// those of `shared` if it has some, which are then those of all these rows. Errors as in `quantizeRow`.
  Status quantize(const GroupFormat &format, const std::string &name, const float *values, int64_t count,
                  const SharedScales &shared, RowCodes *out) const;

private:
  SecondMoment moment;          ///< damped, and whole
  std::vector<float> factor;    ///< U of H = U D U^T, above the diagonal; row by row
  std::vector<float> variances; ///< D
};

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_FEEDBACK_H
