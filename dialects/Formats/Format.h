// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Published weight formats as data: what lies in which tensor of a quantized
/// linear layer, and which number a stored code stands for.

#ifndef MOEC_DIALECTS_FORMATS_FORMAT_H
#define MOEC_DIALECTS_FORMATS_FORMAT_H

#include "runtime/Support/DType.h"
#include "runtime/Support/Result.h"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace moec {

/// What a code stands for before zero point and scale.
enum class Element : uint8_t {
  F8E4M3,   ///< the `fn` variant, NaN codes refused
  F4E2M1,   ///< 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign in the top bit
  Signed,   ///< two's complement
  Unsigned, ///< 0 .. 2^bits - 1
};

/// Where the codes of a logical matrix `[out, in]` lie in a stored one. Bits
/// are counted from the lowest of the first byte; words are little-endian.
struct Packing {
  enum class Axis : uint8_t { In, Out };

  std::vector<DType> words;               ///< any of these, all of one size
  int bits = 8;                           ///< of one code: 4 or 8
  Axis along = Axis::In;                  ///< consecutive codes of a word lie along this axis
  bool inMajor = false;                   ///< stored as `[in, out]`
  std::array<uint8_t, 8> place = natural; ///< code i of a word is the place[i]-th from its lowest bits

  static constexpr std::array<uint8_t, 8> natural = {0, 1, 2, 3, 4, 5, 6, 7};

  int64_t perWord() const { return 8 * byteSize(words.front()) / bits; }
  /// Of the stored tensor; a last word may be part empty.
  std::vector<int64_t> shape(int64_t out, int64_t in) const;
  bool operator==(const Packing &) const = default;
};

/// One number for each group of `rows` x `cols` weights, where 0 means all of them. Last groups may be smaller.
struct Grid {
  std::string suffix;
  std::vector<DType> types; ///< U8 is read as F8_E8M0
  int64_t rows = 1, cols = 0;
  bool inMajor = false; ///< stored as `[groups of in, groups of out]`

  int64_t outGroups(int64_t out) const { return rows ? (out + rows - 1) / rows : 1; }
  int64_t inGroups(int64_t in) const { return cols ? (in + cols - 1) / cols : 1; }
  bool operator==(const Grid &) const = default;
};

/// `weight[i, j] = (code[i, j] - zero[g(i, j)]) * scale[g(i, j)] * global`. Tensors are called
/// `<layer>.<suffix>`; an empty suffix means that the format has no such tensor.
struct Format {
  std::string name; ///< within a sentence: "gptq int4 in groups of 128"
  Element element = Element::Unsigned;
  std::string codes;
  Packing packing;
  Grid scale;

  std::string globalScale; ///< one F32 for the matrix
  bool globalDivides = false;

  int zero = 0; ///< where no tensor holds it
  std::string zeroPoints;
  Packing zeroPacking; ///< of the matrix `[groups of out, groups of in]`
  int zeroAdded = 0;   ///< to each stored zero point, modulo 2^bits
  /// Every zero point is 2^(bits - 1), and whether `zeroAdded` is 1 or 0 shows in what is stored.
  bool symmetric = false;

  std::string groupIndex; ///< I32 [in]: the group of each column
  bool groupIndexRequired = false;
  std::string storedShape; ///< I64 or I32 [2]: out, in

  /// Tensors that may lie beside these and that weights do not need.
  std::vector<std::string> setAside;

  /// The smallest element type that holds every value exactly, as far as there is one: a product with an F32
  /// scale is rounded once, to F32. BF16 where scales are E8M0, which is exact for scales from 2^-124.
  DType valueType() const;
  bool operator==(const Format &) const = default;
};

/// A tensor that a layer in some format has.
struct RequiredTensor {
  std::string suffix;
  std::vector<DType> types;                 ///< one of these
  std::vector<std::vector<int64_t>> shapes; ///< one of these
  bool optional = false;

  /// Compares with what a header says. `tensor` is the full name; the error names it, what was found and expected.
  Status check(const std::string &tensor, DType type, const std::vector<int64_t> &shape) const;
};

/// The tensors of a layer `[out, in]`. Both in 1 .. 2^31 - 1.
std::vector<RequiredTensor> requiredTensors(const Format &format, int64_t out, int64_t in);

/// The formats. A group size of 0 means the whole row.
namespace formats {

/// How the scales of FP8 and FP4 layers are called.
enum class Naming : uint8_t {
  ScaleInv,    ///< `weight_scale_inv`: DeepSeek V3, multiplied despite its name
  WeightScale, ///< `weight_scale`
  Scale,       ///< `scale`: DeepSeek V4
};

/// E4M3 codes with one scale for `rows` x `cols` weights; F32, F16 or BF16 scales, or E8M0. `ScaleInv` has any of them
/// unless `e8m0`.
/// Source: DeepSeek-V3's README_WEIGHTS and its fp8_cast_bf16 program.
Format fp8(int64_t rows, int64_t cols, Naming naming, bool e8m0);
/// Source: the packing of AutoGPTQ and GPTQModel. `bits` is 4 or 8; version 1 stores zero points less 1.
Format gptq(int bits, int64_t group, bool symmetric, int version, bool actOrder);
/// Source: AutoAWQ's gemm version.
Format awq(int64_t group);
/// compressed-tensors `pack-quantized`; `bits` is 4 or 8.
Format packQuantized(int bits, int64_t group, bool symmetric, bool actOrder);
/// compressed-tensors `int-quantized`, 8 bits, symmetric; scales for `rows` x `cols` weights.
Format intQuantized(int64_t rows, int64_t cols);
/// compressed-tensors `nvfp4-pack-quantized`, whose global scale divides, or ModelOpt's NVFP4, whose multiplies.
Format nvfp4(bool modelOpt);
/// OCP Microscaling FP4, 32 codes to an E8M0 scale, low nibble first: DeepSeek V4's experts
/// (`Naming::Scale`) or compressed-tensors `mxfp4-pack-quantized` (`Naming::WeightScale`).
Format mxfp4(Naming naming);

} // namespace formats

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_FORMAT_H
