// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The header of a GGUF file, read as hostile, and its tensors as matrices.
/// Source: the GGUF description and the block layouts of the ggml project.

#ifndef MOEC_DIALECTS_FORMATS_GGUF_H
#define MOEC_DIALECTS_FORMATS_GGUF_H

#include "dialects/Formats/StoredMatrix.h"
#include "runtime/Support/File.h"

#include <map>
#include <string_view>
#include <variant>

namespace moec {

/// An array of the metadata, checked but left where it is in the file.
struct GgufArray {
  enum class Type : uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };
  Type type = Type::U8;
  uint64_t count = 0;
  std::string_view bytes; ///< the elements one after the other; a string is its U64 length and its text
};

/// Unsigned integers, signed integers, floats, booleans, strings, arrays; each widened to the largest of its kind.
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;

/// A way to store elements in blocks of consecutive ones.
struct GgufType {
  uint32_t id;
  std::string_view name;
  int64_t elements, bytes; ///< of one block
  DType valueType;         ///< the smallest element type that holds every value, or F32 where values are rounded to it
  /// Writes the elements of the block at `data`, which has no alignment.
  void (*decode)(const std::byte *data, float *out);
};

/// F32, F16, BF16, Q8_0, Q4_0, Q4_K or Q6_K; null for any other id or name.
const GgufType *ggufType(uint32_t id);
const GgufType *ggufType(std::string_view name);
/// The matrix in the tensor `name` of `from`: U8 [rows, bytes of a row], rows of whole blocks of `type`. `from` must
/// outlive the result. Errors: no such tensor, another type or shape. Errors of `read`: a value that is not finite.
/// Scales may be negative or zero here, since ggml's quantizers make such.
Result<std::unique_ptr<StoredMatrix>> openBlocks(const GgufType &type, const std::string &name,
                                                 const TensorSource &from);

/// A tensor's place in a file.
struct GgufTensor {
  uint32_t type = 0;
  std::vector<int64_t> shape; ///< outermost first, as everywhere here; 1 to 4 dimensions, each >= 1
  uint64_t begin = 0;         ///< file offset of the first byte
  uint64_t bytes = 0;         ///< 0 if `type` is not known
};

/// What the start of a GGUF file says (version 2 or 3, little-endian): every count, length, offset and the alignment
/// is bounded by the file, rows hold whole blocks, no key or name is given twice, no two tensors of known type
/// overlap. Tensors of other types are listed and their offsets checked. Views into the file stay views.
struct GgufHeader {
  static constexpr uint64_t maxAlignment = 1 << 20;

  std::map<std::string, GgufValue, std::less<>> metadata;
  std::map<std::string, GgufTensor, std::less<>> tensors;

  /// `file` is the whole file; `path` names it in errors.
  static Result<GgufHeader> parse(std::string_view file, const std::string &path);
};

/// One validated GGUF file, mapped read-only.
class GgufFile final : public TensorSource {
public:
  static Result<GgufFile> open(const std::string &path);

  const GgufHeader &header() const { return parsed; }
  const MappedFile &mapping() const { return file; }
  /// The bytes of a tensor, whatever its type: U8 [rows, bytes of a row]. Rows are its innermost dimension; the others
  /// are flattened, so that row `e * out + i` of stacked experts is row i of expert e. Errors: no such tensor, a type
  /// that is not read.
  Result<TensorView> tensor(const std::string &name) const override;
  void release(const TensorView &view) const override;
  /// A tensor as a matrix of the same rows. This must outlive the result and stay in its place. Errors as in `tensor`
  /// and `openBlocks`.
  Result<std::unique_ptr<StoredMatrix>> matrix(const std::string &name) const;

private:
  MappedFile file;
  GgufHeader parsed;
};

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_GGUF_H
