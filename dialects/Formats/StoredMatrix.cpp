// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/StoredMatrix.h"

#include "dialects/Formats/Runs.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>

static_assert(std::endian::native == std::endian::little, "words are taken apart byte by byte");

namespace moec {

namespace {

template <typename T> T load(const std::byte *data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float loadScale(DType type, const std::byte *data, int64_t index) {
  switch (type) {
  case DType::F32:
    return load<float>(data, index);
  case DType::F16:
    return f16ToFloat(load<uint16_t>(data, index));
  case DType::BF16:
    return bf16ToFloat(load<uint16_t>(data, index));
  case DType::F8E4M3:
    return f8e4m3ToFloat(load<uint8_t>(data, index));
  case DType::F8E8M0:
  case DType::U8:
    return f8e8m0ToFloat(load<uint8_t>(data, index));
  default:
    assert(false && "not a type of scales");
    return 0;
  }
}

/// The codes of one tensor, by their place in the logical matrix.
class CodeReader {
public:
  CodeReader() = default;
  CodeReader(const Packing &packing, const std::byte *data, int64_t out, int64_t in) : data(data) {
    auto perWord = static_cast<unsigned>(packing.perWord());
    assert(std::has_single_bit(perWord) && perWord <= places.size());
    int64_t wordBytes = byteSize(packing.words.front());
    std::vector<int64_t> shape = packing.shape(out, in);
    int64_t majorStride = shape[1] * wordBytes;
    rowStride = packing.inMajor ? wordBytes : majorStride;
    colStride = packing.inMajor ? majorStride : wordBytes;
    int shift = std::countr_zero(perWord);
    bool alongIn = packing.along == Packing::Axis::In;
    rowShift = alongIn ? 0 : shift;
    colShift = alongIn ? shift : 0;
    mask = (1u << packing.bits) - 1;
    for (unsigned i = 0; i < perWord; ++i) {
      int bit = packing.place[i] * packing.bits;
      places[i] = {static_cast<uint8_t>(bit / 8), static_cast<uint8_t>(bit % 8)};
    }
    contiguous = packing.bits == 8 && !packing.inMajor && alongIn && packing.place == Packing::natural;
  }

  uint8_t at(int64_t row, int64_t col) const {
    // One of the two shifts is 0, so its axis adds nothing to the place.
    const Place &place = places[(row & ((int64_t{1} << rowShift) - 1)) + (col & ((int64_t{1} << colShift) - 1))];
    auto byte = static_cast<uint8_t>(data[(row >> rowShift) * rowStride + (col >> colShift) * colStride + place.byte]);
    return byte >> place.shift & mask;
  }

  void run(int64_t row, int64_t col, int64_t count, uint8_t *out) const {
    if (contiguous) {
      std::memcpy(out, data + row * rowStride + col, count);
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      out[i] = at(row, col + i);
  }

private:
  struct Place {
    uint8_t byte = 0, shift = 0;
  };
  const std::byte *data = nullptr;
  int64_t rowStride = 0, colStride = 0;
  int rowShift = 0, colShift = 0;
  unsigned mask = 0;
  bool contiguous = false;
  std::array<Place, 8> places{};
};

std::array<float, 256> valueTable(Element element) {
  static constexpr float fp4[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code)
    switch (element) {
    case Element::F8E4M3:
      values[code] = f8e4m3ToFloat(static_cast<uint8_t>(code));
      break;
    case Element::F4E2M1:
      values[code] = code & 8 ? -fp4[code & 7] : fp4[code & 7];
      break;
    case Element::Signed:
      values[code] = static_cast<int8_t>(code);
      break;
    case Element::Unsigned:
      values[code] = static_cast<float>(code);
      break;
    }
  return values;
}

class QuantizedMatrix final : public StoredMatrix {
public:
  QuantizedMatrix(const Format &format, StoredNames names, int64_t out, int64_t in, const TensorSource &from,
                  DType type)
      : format(format), names(std::move(names)), from(from), values(valueTable(format.element)),
        inGroups(format.scale.inGroups(in)), outGroups(format.scale.outGroups(out)), zeroAdded(format.zeroAdded) {
    rows = out;
    cols = in;
    dtype = type;
    for (const RequiredTensor &tensor : requiredTensors(format, rows, cols))
      suffixes.push_back(tensor.suffix);
    isPlainF8 = format.element == Element::F8E4M3 && format.zero == 0 && format.zeroPoints.empty() &&
                format.globalScale.empty() && !format.packing.inMajor;
  }

  Status open() {
    for (const RequiredTensor &tensor : requiredTensors(format, rows, cols)) {
      Result<TensorView> view = from.tensor(named(tensor.suffix));
      if (!view && tensor.optional)
        continue;
      if (!view)
        return Error{"layer " + quote(names.layer) + " is " + format.name + " and needs " +
                     quote(named(tensor.suffix)) + ", but " + view.message()};
      MOEC_CHECK(tensor.check(named(tensor.suffix), view->dtype, view->shape));
      MOEC_CHECK(take(tensor.suffix, *view));
    }
    return format.symmetric ? detectZeroAdded() : success();
  }

  Status read(int64_t row, int64_t numRows, int64_t col, int64_t numCols, float *out) const override {
    assert(row >= 0 && numRows >= 0 && row + numRows <= rows && col >= 0 && numCols >= 0 && col + numCols <= cols);
    if (isPlainF8) {
      int64_t done = 0;
      while (done < numRows && readPlainF8(row + done, col, numCols, out + done * numCols))
        ++done;
      row += done;
      numRows -= done;
      out += done * numCols;
    }
    // Where rows lie side by side, narrow stripes let a cache line serve all the rows that share it.
    int64_t stripe = format.packing.inMajor ? chunk : std::max<int64_t>(numCols, 1);
    for (int64_t s = 0; s < numCols; s += stripe)
      for (int64_t r = 0; r < numRows; ++r)
        for (int64_t c = s, end = std::min(s + stripe, numCols); c < end; c += chunk)
          MOEC_CHECK(readRun(row + r, col + c, std::min(chunk, end - c), out + r * numCols + c));
    return success();
  }

  int64_t storedRows(int64_t row, int64_t numRows, int64_t col, int64_t numCols, StoredRows &out) const override {
    const int64_t rowGroup = format.scale.rows ? row / format.scale.rows : 0;
    if (!isPlainF8 || (format.scale.rows && (row + numRows - 1) / format.scale.rows != rowGroup))
      return 0;
    out.type = DType::F8E4M3;
    out.data = codes.data + row * cols + col;
    out.stride = cols;
    out.scaleCols = format.scale.cols ? format.scale.cols : cols;
    out.first = col % out.scaleCols;
    const int64_t begin = col / out.scaleCols;
    const auto count = std::min<int64_t>(out.scales.size(), (out.first + numCols - 1) / out.scaleCols + 1);
    for (int64_t i = 0; i < count; ++i)
      if (!isHarmless(out.scales[i] = loadScale(scales.dtype, scales.data, rowGroup * inGroups + begin + i)))
        return 0;
    return std::min(numCols, count * out.scaleCols - out.first);
  }

  Status readCodes(int64_t row, int64_t numRows, int64_t col, int64_t numCols, uint8_t *out,
                   uint16_t *outScales) const override {
    const int64_t group = format.scale.cols;
    assert(byteSize(scales.dtype) == 2 && format.scale.rows == 1 && group > 0 && !groupOf && col % group == 0);
    for (int64_t r = row; r < row + numRows; ++r)
      for (int64_t c = col; c < col + numCols; c += group, out += group) {
        int64_t inGroup = c / group;
        MOEC_TRY(float scale, scaleAt(r, inGroup));
        MOEC_TRY(float zero, zeroAt(r, inGroup));
        int64_t index = format.scale.inMajor ? inGroup * outGroups + r : r * inGroups + inGroup;
        *outScales++ = load<uint16_t>(scales.data, index);
        reader.run(r, c, group, out);
        for (int64_t i = 0; i < group && scale == 0; ++i)
          if (values[out[i]] != zero)
            return wrongValue(r, c + i, out[i], scale, inGroup);
      }
    return success();
  }

  void release(int64_t row, int64_t numRows) const override {
    // Stored as [in, out], rows share pages: they go together, with the last one.
    if (format.packing.inMajor) {
      if (row + numRows == rows)
        from.release(codes);
      return;
    }
    TensorView part = codes;
    part.data += row * codes.shape[1] * byteSize(codes.dtype);
    part.shape[0] = numRows;
    from.release(part);
  }

private:
  static constexpr int64_t chunk = 256;

  std::string named(const std::string &suffix) const {
    auto place = static_cast<size_t>(std::find(suffixes.begin(), suffixes.end(), suffix) - suffixes.begin());
    return place < names.tensors.size() ? names.tensors[place] : names.layer + "." + suffix;
  }

  Status take(const std::string &suffix, const TensorView &view) {
    if (suffix == format.codes) {
      codes = view;
      reader = CodeReader(format.packing, view.data, rows, cols);
    } else if (suffix == format.scale.suffix) {
      scales = view;
    } else if (suffix == format.globalScale) {
      global = load<float>(view.data, 0);
      if (!(global > 0) || !std::isfinite(global))
        return Error{"tensor " + quote(named(suffix)) + " holds " + numberText(global) +
                     ", expected a positive number"};
    } else if (suffix == format.zeroPoints) {
      zeros = CodeReader(format.zeroPacking, view.data, outGroups, inGroups);
    } else if (suffix == format.groupIndex) {
      groupOf = view.data;
    } else {
      assert(suffix == format.storedShape);
      std::vector<int64_t> stored;
      for (int64_t i : {0, 1})
        stored.push_back(view.dtype == DType::I64 ? load<int64_t>(view.data, i) : load<int32_t>(view.data, i));
      if (stored != std::vector<int64_t>{rows, cols})
        return Error{"tensor " + quote(named(suffix)) + " holds " + shapeToString(stored) + ", expected " +
                     shapeToString({rows, cols})};
    }
    return success();
  }

  /// Some tools declare version 1 and store as version 2; every zero point of a symmetric layer is the same, so
  /// that the first tells which it is. The others are compared as they are read.
  Status detectZeroAdded() {
    int middle = 1 << (format.zeroPacking.bits - 1);
    int first = zeros.at(0, 0);
    if (first != middle && first != middle - 1)
      return Error{"tensor " + quote(named(format.zeroPoints)) + " begins with the zero point " +
                   std::to_string(first) + ", but the zero points of a symmetric layer are stored as " +
                   std::to_string(middle - 1) + " or " + std::to_string(middle)};
    zeroAdded = middle - first;
    return success();
  }

  /// The scale of a group, as a plain factor.
  Result<float> scaleAt(int64_t outGroup, int64_t inGroup) const {
    int64_t index = format.scale.inMajor ? inGroup * outGroups + outGroup : outGroup * inGroups + inGroup;
    float scale = loadScale(scales.dtype, scales.data, index);
    if (!(scale >= 0) || !std::isfinite(scale))
      return Error{"tensor " + quote(named(format.scale.suffix)) + " holds the scale " + numberText(scale) + " at [" +
                   std::to_string(format.scale.inMajor ? inGroup : outGroup) + ", " +
                   std::to_string(format.scale.inMajor ? outGroup : inGroup) + "], expected a positive number"};
    return scale;
  }

  Result<float> zeroAt(int64_t outGroup, int64_t inGroup) const {
    if (format.zeroPoints.empty())
      return static_cast<float>(format.zero);
    int bits = format.zeroPacking.bits;
    int zero = (zeros.at(outGroup, inGroup) + zeroAdded) & ((1 << bits) - 1);
    if (format.symmetric && zero != 1 << (bits - 1))
      return Error{"tensor " + quote(named(format.zeroPoints)) + " holds differing zero points, but the layer is " +
                   "declared symmetric"};
    return static_cast<float>(zero);
  }

  /// The group of column `col`, and in `end` (at most that) where the next one begins.
  Result<int64_t> groupAt(int64_t col, int64_t &end) const {
    if (groupOf) {
      end = col + 1;
      auto group = load<int32_t>(groupOf, col);
      if (group < 0 || group >= inGroups)
        return Error{"tensor " + quote(named(format.groupIndex)) + " holds the group " + std::to_string(group) +
                     " at [" + std::to_string(col) + "], but there are " + std::to_string(inGroups) + " groups"};
      return group;
    }
    int64_t group = format.scale.cols ? col / format.scale.cols : 0;
    if (format.scale.cols)
      end = std::min(end, (group + 1) * format.scale.cols);
    return group;
  }

  /// One row of FP8 with nothing but scales, all of them harmless and all codes numbers; else false.
  bool readPlainF8(int64_t row, int64_t col, int64_t count, float *out) const {
    StoredRows rows;
    for (int64_t done = 0, run; done < count; done += run) {
      run = storedRows(row, 1, col + done, count - done, rows);
      if (run == 0 || !scaleF8E4M3(rows.data, rows.scales.data(), rows.scaleCols, rows.first, out + done, run))
        return false;
    }
    return true;
  }

  /// At most `chunk` columns of one row.
  Status readRun(int64_t row, int64_t col, int64_t count, float *out) const {
    std::array<uint8_t, chunk> run;
    reader.run(row, col, count, run.data());
    int64_t outGroup = format.scale.rows ? row / format.scale.rows : 0;
    for (int64_t c = col; c < col + count;) {
      int64_t end = col + count;
      MOEC_TRY(int64_t inGroup, groupAt(c, end));
      MOEC_TRY(float scale, scaleAt(outGroup, inGroup));
      MOEC_TRY(float zero, zeroAt(outGroup, inGroup));
      const uint8_t *from = run.data() + (c - col);
      float *to = out + (c - col);
      int64_t size = end - c;
      for (int64_t i = 0; i < size; ++i) {
        to[i] = valueOf(from[i], zero, scale);
        if (!std::isfinite(to[i]) || (scale == 0 && values[from[i]] != zero))
          return wrongValue(row, c + i, from[i], scale, inGroup);
      }
      c = end;
    }
    return success();
  }

  /// Products of FP8 codes with it are exact in `dtype`, or rounded once where that is F32, and none is infinite.
  bool isHarmless(float scale) const {
    constexpr float largest = 0x1p110f, smallest = 0x1p-110f;
    if (!(scale >= smallest && scale <= largest))
      return false;
    int exponent;
    return dtype == DType::F32 || (dtype == DType::BF16 && std::frexp(scale, &exponent) == 0.5f);
  }

  float valueOf(uint8_t code, float zero, float scale) const {
    // A code less its zero point is exact: small integers, or a float less 0. With a scale of at most 24 bits, so is
    // the product in a double; a quotient of floats that is rounded to a double rounds on to what the exact one gives.
    double value = static_cast<double>(values[code] - zero) * scale;
    if (!format.globalScale.empty())
      value = format.globalDivides ? value / global : value * global;
    return dtype == DType::F32 ? static_cast<float>(value) : roundOnce(dtype, value);
  }

  /// Why the value at `[row, col]` is none.
  Error wrongValue(int64_t row, int64_t col, uint8_t code, float scale, int64_t inGroup) const {
    std::string place = "[" + std::to_string(row) + ", " + std::to_string(col) + "]";
    if (std::isnan(values[code]))
      return Error{"tensor " + quote(named(format.codes)) + " holds a NaN at " + place +
                   ", but FP8 weights must be numbers"};
    if (scale == 0)
      return Error{"tensor " + quote(named(format.scale.suffix)) + " holds the scale 0 for the weight at " + place +
                   " (group " + std::to_string(inGroup) + " of its row), whose code is not zero"};
    return Error{"the weight of " + quote(names.layer) + " at " + place + " is too large for " +
                 std::string(toString(dtype))};
  }

  Format format;
  StoredNames names;
  std::vector<std::string> suffixes; ///< in the order of `requiredTensors`
  const TensorSource &from;
  std::array<float, 256> values;
  int64_t inGroups, outGroups;
  int zeroAdded;
  bool isPlainF8 = false; ///< codes of FP8 with nothing but scales
  TensorView codes, scales;
  CodeReader reader, zeros;
  const std::byte *groupOf = nullptr;
  float global = 1;
};

} // namespace

std::array<int64_t, 2> logicalShape(const Packing &packing, const std::vector<int64_t> &shape) {
  std::array<int64_t, 2> logical = {shape[0], shape[1]};
  if (packing.inMajor)
    std::swap(logical[0], logical[1]);
  logical[packing.along == Packing::Axis::Out ? 0 : 1] *= packing.perWord();
  return logical;
}

Result<std::unique_ptr<StoredMatrix>> openQuantized(const Format &format, const StoredNames &names, int64_t out,
                                                    int64_t in, const TensorSource &from, DType type) {
  if (out < 1 || in < 1 || out > INT32_MAX || in > INT32_MAX)
    return Error{"layer " + quote(names.layer) + " is " + shapeToString({out, in}) +
                 ", but both dimensions must lie in 1 to 2147483647"};
  auto matrix = std::make_unique<QuantizedMatrix>(format, names, out, in, from, type);
  MOEC_CHECK(matrix->open());
  return std::unique_ptr<StoredMatrix>(std::move(matrix));
}

} // namespace moec
