// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Weights as codes in groups that share a scale: the formats that `#moe.quantize` rounds to, and the panels that
/// `#moe.pack_groups` lays them into. Int4 to nearest has a faster way to the same bytes: `Int4.h`.

#ifndef MOEC_DIALECTS_FORMATS_GROUPS_H
#define MOEC_DIALECTS_FORMATS_GROUPS_H

#include "runtime/Support/DType.h"
#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moec {

/// What a code stands for before its scale.
enum class CodeKind : uint8_t {
  Int4,     ///< -8 .. 7, stored plus 8
  Int4Zero, ///< 0 .. 15 less the group's zero point, which is one of these
  Int8,     ///< -127 .. 127
  F8E4M3,   ///< the `fn` variant, no NaN
  F4E2M1,   ///< 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign in the top bit
};

/// One format. Fields and formulae are those of `#moe.quantize`, which defines what `quantizeRow` gives.
struct GroupFormat {
  CodeKind codes = CodeKind::Int4;
  int64_t rows = 1;         ///< of a group; more than 1 for scales of blocks
  int64_t group = 32;       ///< columns of a group; the last one of 8-bit codes may be smaller
  DType scale = DType::F16; ///< F32, F16, BF16, F8E8M0, or F8E4M3: then one F32 for the matrix multiplies all of them

  int bits() const { return codes == CodeKind::Int8 || codes == CodeKind::F8E4M3 ? 8 : 4; }
  bool hasZeros() const { return codes == CodeKind::Int4Zero; }
  bool hasGlobal() const { return scale == DType::F8E4M3; }
  int64_t groups(int64_t cols) const { return (cols + group - 1) / group; }
  /// The greatest magnitude that a code stands for.
  float most() const;

  /// Panels have the global scales of their lanes, if the format has them, then one unit after the other: the scales of
  /// its groups, a vector of all lanes for each, their zero points (U8) likewise, and the codes. A unit is a group; or
  /// two of 16 columns, since nibbles come in blocks of 32.
  int64_t unit() const { return bits() == 4 && group < blockColumns ? blockColumns : group; }
  int64_t headerBytes(int64_t width) const { return hasGlobal() ? 4 * width : 0; }
  /// Scales and zero points of a unit.
  int64_t scaleBytes(int64_t width) const { return unit() / group * width * (byteSize(scale) + hasZeros()); }
  int64_t unitBytes(int64_t width) const { return unitBytes(width, unit()); }
  /// The same for a last unit of fewer columns.
  int64_t unitBytes(int64_t width, int64_t cols) const {
    return scaleBytes(width) + (cols + wordColumns - 1) / wordColumns * wordColumns * width * bits() / 8;
  }
  int64_t panelBytes(int64_t width, int64_t cols) const {
    int64_t tail = cols % unit();
    return headerBytes(width) + cols / unit() * unitBytes(width) + (tail ? unitBytes(width, tail) : 0);
  }

  static constexpr int64_t blockColumns = 32; ///< columns whose nibbles lie together
  static constexpr int64_t wordColumns = 4;   ///< columns side by side in a lane
};

/// Codes and scales of one row of a matrix.
struct RowCodes {
  std::vector<uint8_t> codes; ///< [cols], as they are stored
  std::vector<float> scales;  ///< [groups], each a value of the scale's type; without the global one
  std::vector<uint8_t> zeros; ///< [groups], or empty
  float global = 1;

  /// What multiplies the codes of group `g`, in f32.
  float scale(int64_t g) const { return scales[g] * global; }
};

/// What the code `code` stands for before scale and zero point.
float codeValue(CodeKind kind, uint8_t code);
/// The code that is nearest to `value`, ties to even codes (in floating-point formats: to even mantissas), saturating.
/// For Int4Zero it is counted from the zero point: see `quantizeRow`.
uint8_t nearestCode(CodeKind kind, float value);
/// `out[i]`, what the codes of a row stand for.
void rowValues(const GroupFormat &format, const RowCodes &row, std::span<float> out);

/// What the rows of a matrix share.
struct SharedScales {
  float global = 1;
  /// [groups]: scales of the block of rows that this one is in; empty if `rows` is 1.
  std::span<const float> blocks;
};

/// The global scale of a matrix whose element of greatest magnitude is `most`; 1 for formats that have none.
float globalScale(const GroupFormat &format, float most);
/// The scale of a group whose element of greatest magnitude is `extreme` (for formats without zero points), as the
/// scale's type has it. Not finite where it is too large.
float groupScale(const GroupFormat &format, float extreme, float global);
/// Of two values the one of greater magnitude; of opposite ones the negative one.
inline float moreExtreme(float a, float b) {
  float x = a < 0 ? -a : a, y = b < 0 ? -b : b;
  return y > x || (y == x && b < a) ? b : a;
}

/// Rounds a row. `importance`, unless empty, has a weight for the squared error of each column, [cols]: then the scale
/// of each group of a single row is searched for the least sum of weighted squared errors. Errors: a value that is not
/// finite, or too large for the scale's type; `name` is the tensor.
Status quantizeRow(const GroupFormat &format, const std::string &name, std::span<const float> values,
                   const SharedScales &shared, std::span<const float> importance, RowCodes &out);

/// Scale and zero point of one group, chosen as in `quantizeRow`.
struct ChosenScale {
  float scale = 0; ///< not finite: too large for its type
  uint8_t zero = 0;
};
ChosenScale chooseScale(const GroupFormat &format, std::span<const float> values, float global,
                        std::span<const float> importance);

/// Puts a row into lane `lane` of a panel of `width` lanes. Codes that fill up words stand for 0.
void placeRow(const GroupFormat &format, const RowCodes &row, int64_t width, int64_t lane, std::byte *panel);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_GROUPS_H
