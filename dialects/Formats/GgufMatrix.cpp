// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Gguf.h"

#include "runtime/Support/Text.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

namespace moec {

namespace {

uint8_t byteAt(const std::byte *data, int64_t index) { return static_cast<uint8_t>(data[index]); }

uint16_t bits16(const std::byte *data) { return static_cast<uint16_t>(byteAt(data, 0) | byteAt(data, 1) << 8); }

float half(const std::byte *data) { return f16ToFloat(bits16(data)); }

void decodeF32(const std::byte *data, float *out) { std::memcpy(out, data, 4); }
void decodeF16(const std::byte *data, float *out) { *out = half(data); }
void decodeBf16(const std::byte *data, float *out) { *out = bf16ToFloat(bits16(data)); }

/// F16 scale; 32 I8 codes.
void decodeQ80(const std::byte *data, float *out) {
  float scale = half(data);
  for (int i = 0; i < 32; ++i)
    out[i] = static_cast<float>(static_cast<int8_t>(data[2 + i])) * scale;
}

/// F16 scale; 16 bytes whose low nibbles are elements 0 to 15 and whose high ones 16 to 31, each less 8.
void decodeQ40(const std::byte *data, float *out) {
  float scale = half(data);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((byteAt(data, 2 + i) & 15) - 8) * scale;
    out[i + 16] = static_cast<float>((byteAt(data, 2 + i) >> 4) - 8) * scale;
  }
}

/// F16 scale of scales and F16 scale of minima; 12 bytes with eight 6-bit scales and minima; 256 4-bit codes.
/// value = d * scale * code - dmin * minimum, for each 32 codes.
void decodeQ4K(const std::byte *data, float *out) {
  float d = half(data), dmin = half(data + 2);
  const std::byte *packed = data + 4, *codes = data + 16;
  for (int group = 0; group < 8; ++group) {
    int scale, minimum;
    // Groups 0 to 3 lie in six bits of bytes 0 to 3 and 4 to 7; groups 4 to 7 take the four low (scale) and high
    // (minimum) bits of bytes 8 to 11 and, above them, the two bits that the first eight bytes leave.
    if (group < 4) {
      scale = byteAt(packed, group) & 63;
      minimum = byteAt(packed, group + 4) & 63;
    } else {
      scale = (byteAt(packed, group + 4) & 15) | (byteAt(packed, group - 4) >> 6) << 4;
      minimum = byteAt(packed, group + 4) >> 4 | (byteAt(packed, group) >> 6) << 4;
    }
    float step = d * static_cast<float>(scale), offset = dmin * static_cast<float>(minimum); // exact: 11 + 6 bits
    // Two groups share 32 bytes: low nibbles, then high.
    for (int i = 0; i < 32; ++i) {
      int code = byteAt(codes, group / 2 * 32 + i) >> (group % 2 * 4) & 15;
      out[group * 32 + i] = step * static_cast<float>(code) - offset;
    }
  }
}

/// 128 bytes of low nibbles, 64 of the two bits above them, 16 I8 scales, F16 scale of scales; code less 32.
void decodeQ6K(const std::byte *data, float *out) {
  const std::byte *low = data, *high = data + 128, *scales = data + 192;
  float d = half(data + 208);
  for (int i = 0; i < 256; ++i) {
    // Each half of 128 elements has four quarters: the low nibbles of 64 bytes, then their high nibbles; the
    // four quarters take bits 0-1, 2-3, 4-5, 6-7 of the same 32 bytes.
    int part = i / 128, quarter = i % 128 / 32, at = i % 32;
    int nibble = byteAt(low, part * 64 + quarter % 2 * 32 + at) >> (quarter / 2 * 4) & 15;
    int top = byteAt(high, part * 32 + at) >> (quarter * 2) & 3;
    float scale = d * static_cast<float>(static_cast<int8_t>(scales[i / 16])); // exact: 11 + 7 bits
    out[i] = scale * static_cast<float>((nibble | top << 4) - 32);
  }
}

constexpr GgufType types[] = {
    {0, "F32", 1, 4, DType::F32, decodeF32},       {1, "F16", 1, 2, DType::F16, decodeF16},
    {2, "Q4_0", 32, 18, DType::F32, decodeQ40},    {8, "Q8_0", 32, 34, DType::F32, decodeQ80},
    {12, "Q4_K", 256, 144, DType::F32, decodeQ4K}, {14, "Q6_K", 256, 210, DType::F32, decodeQ6K},
    {30, "BF16", 1, 2, DType::BF16, decodeBf16},
};

class GgufMatrix final : public StoredMatrix {
public:
  /// `label` names the tensor in errors; `bytes` is U8 [rows, bytes of a row].
  GgufMatrix(std::string label, const GgufType &type, TensorView bytes, const TensorSource &from)
      : label(std::move(label)), type(type), bytes(std::move(bytes)), from(from) {
    rows = this->bytes.shape[0];
    cols = rowBytes() / type.bytes * type.elements;
    dtype = type.valueType;
  }

  Status read(int64_t row, int64_t numRows, int64_t col, int64_t numCols, float *out) const override {
    assert(row >= 0 && numRows >= 0 && row + numRows <= rows && col >= 0 && numCols >= 0 && col + numCols <= cols);
    float block[256];
    for (int64_t r = row; r < row + numRows; ++r) {
      const std::byte *data = bytes.data + r * rowBytes();
      for (int64_t c = col; c < col + numCols;) {
        int64_t first = c % type.elements, count = std::min(type.elements - first, col + numCols - c);
        type.decode(data + c / type.elements * type.bytes, block);
        for (int64_t i = 0; i < count; ++i) {
          if (!std::isfinite(block[first + i]))
            return Error{label + " holds a value that is not finite at [" + std::to_string(r) + ", " +
                         std::to_string(c + i) + "]"};
          *out++ = block[first + i];
        }
        c += count;
      }
    }
    return success();
  }

  void release(int64_t row, int64_t numRows) const override {
    from.release({DType::U8, {numRows, rowBytes()}, bytes.data + row * rowBytes()});
  }

private:
  int64_t rowBytes() const { return bytes.shape[1]; }

  std::string label;
  const GgufType &type;
  TensorView bytes;
  const TensorSource &from;
};

} // namespace

const GgufType *ggufType(uint32_t id) {
  for (const GgufType &type : types)
    if (type.id == id)
      return &type;
  return nullptr;
}

const GgufType *ggufType(std::string_view name) {
  for (const GgufType &type : types)
    if (type.name == name)
      return &type;
  return nullptr;
}

Result<std::unique_ptr<StoredMatrix>> openBlocks(const GgufType &type, const std::string &name,
                                                 const TensorSource &from) {
  MOEC_TRY(TensorView bytes, from.tensor(name));
  if (bytes.dtype != DType::U8 || bytes.shape.size() != 2 || bytes.shape[1] % type.bytes != 0)
    return Error{"tensor " + quote(name) + " is " + std::string(toString(bytes.dtype)) + " " +
                 shapeToString(bytes.shape) + ", expected U8 and rows of " + std::string(type.name) + " blocks of " +
                 std::to_string(type.bytes) + " bytes"};
  return std::unique_ptr<StoredMatrix>(
      std::make_unique<GgufMatrix>("tensor " + quote(name), type, std::move(bytes), from));
}

Result<GgufFile> GgufFile::open(const std::string &path) {
  GgufFile result;
  MOEC_TRY(result.file, MappedFile::open(path));
  MOEC_TRY(result.parsed,
           GgufHeader::parse({reinterpret_cast<const char *>(result.file.data()), result.file.size()}, path));
  return result;
}

Result<TensorView> GgufFile::tensor(const std::string &name) const {
  auto found = parsed.tensors.find(name);
  if (found == parsed.tensors.end())
    return Error{file.path() + ": there is no tensor " + quote(name)};
  const GgufType *type = ggufType(found->second.type);
  if (!type) {
    std::string known;
    for (const GgufType &each : types)
      known += (known.empty() ? "" : &each == std::end(types) - 1 ? " and " : ", ") + std::string(each.name);
    return Error{file.path() + ": tensor " + quote(name) + " has the ggml type " + std::to_string(found->second.type) +
                 ", but only " + known + " are read"};
  }
  int64_t rowBytes = found->second.shape.back() / type->elements * type->bytes;
  int64_t rows = static_cast<int64_t>(found->second.bytes) / rowBytes;
  return TensorView{DType::U8, {rows, rowBytes}, file.data() + found->second.begin};
}

void GgufFile::release(const TensorView &view) const {
  uint64_t bytes = byteSize(view.dtype);
  for (int64_t dimension : view.shape)
    bytes *= dimension;
  file.release(view.data - file.data(), bytes);
}

Result<std::unique_ptr<StoredMatrix>> GgufFile::matrix(const std::string &name) const {
  MOEC_TRY(TensorView bytes, tensor(name));
  const GgufType &type = *ggufType(parsed.tensors.find(name)->second.type);
  return std::unique_ptr<StoredMatrix>(
      std::make_unique<GgufMatrix>(file.path() + ": tensor " + quote(name), type, std::move(bytes), *this));
}

} // namespace moec
