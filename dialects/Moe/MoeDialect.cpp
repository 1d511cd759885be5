// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"

#include "dialects/Formats/Gguf.h"
#include "dialects/Moe/Recipe.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

#include <cmath>
#include <numeric>

using namespace mlir;
using namespace mlir::moe;

/// Before the names of ggml's block types in those of formats.
static constexpr StringLiteral blocksPrefix = "gguf_";

/// What the textual form of a format holds, and what it has where nothing is written.
struct FormatFields {
  bool block = false, bits = false; ///< written
  int64_t rows = 1, cols = 0, defaultBits = 8;
};

static FormatFields fieldsOf(StoredFormat format) {
  switch (format) {
  case StoredFormat::Fp8:
  case StoredFormat::Int8:
    return {/*block=*/true};
  case StoredFormat::Gptq:
  case StoredFormat::GptqV2:
  case StoredFormat::Packed:
    return {/*block=*/true, /*bits=*/true};
  case StoredFormat::Awq:
    return {/*block=*/true, /*bits=*/false, 1, 0, 4};
  case StoredFormat::Nvfp4:
  case StoredFormat::Nvfp4Modelopt:
    return {/*block=*/false, /*bits=*/false, 1, 16, 4};
  case StoredFormat::Mxfp4:
    return {/*block=*/false, /*bits=*/false, 1, 32, 4};
  case StoredFormat::GgufQ80:
    return {/*block=*/false, /*bits=*/false, 1, 32, 8};
  case StoredFormat::GgufQ40:
    return {/*block=*/false, /*bits=*/false, 1, 32, 4};
  case StoredFormat::GgufQ4K:
    return {/*block=*/false, /*bits=*/false, 1, 256, 4};
  case StoredFormat::GgufQ6K:
    return {/*block=*/false, /*bits=*/false, 1, 256, 6};
  }
  llvm_unreachable("all formats are listed");
}

/// `fp8 128x128`, `gptq 1x64 bits 4 symmetric indexed`, `mxfp4`; `?` in a block, 0 here, is a whole dimension.
static ParseResult parseStoredFormat(AsmParser &parser, StoredFormat &format, int64_t &rows, int64_t &cols,
                                     int64_t &bits, bool &symmetric, bool &zeros, bool &indexed, Type &scale) {
  StringRef keyword;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseKeyword(&keyword))
    return failure();
  std::optional<StoredFormat> known = symbolizeStoredFormat(keyword);
  if (!known)
    return parser.emitError(loc) << "'" << keyword << "' is no format of stored weights";
  format = *known;
  FormatFields fields = fieldsOf(format);
  rows = fields.rows;
  cols = fields.cols;
  bits = fields.defaultBits;
  if (fields.block) {
    SmallVector<int64_t> dims;
    loc = parser.getCurrentLocation();
    if (parser.parseDimensionList(dims, /*allowDynamic=*/true, /*withTrailingX=*/false))
      return failure();
    if (dims.size() != 2)
      return parser.emitError(loc) << "expected a block shape such as 128x128";
    for (int64_t dim : dims)
      if (dim == 0)
        return parser.emitError(loc) << "a block of 0, expected a positive number, or ? for a whole dimension";
    rows = ShapedType::isDynamic(dims[0]) ? 0 : dims[0];
    cols = ShapedType::isDynamic(dims[1]) ? 0 : dims[1];
  }
  if (fields.bits && (parser.parseKeyword("bits") || parser.parseInteger(bits)))
    return failure();
  symmetric = succeeded(parser.parseOptionalKeyword("symmetric"));
  zeros = succeeded(parser.parseOptionalKeyword("zeros"));
  indexed = succeeded(parser.parseOptionalKeyword("indexed"));
  if (succeeded(parser.parseOptionalKeyword("scale")) && parser.parseType(scale))
    return failure();
  return success();
}

static void printStoredFormat(AsmPrinter &printer, StoredFormat format, int64_t rows, int64_t cols, int64_t bits,
                              bool symmetric, bool zeros, bool indexed, Type scale) {
  printer << stringifyStoredFormat(format);
  FormatFields fields = fieldsOf(format);
  auto dimension = [](int64_t size) { return size ? std::to_string(size) : "?"; };
  if (fields.block)
    printer << ' ' << dimension(rows) << 'x' << dimension(cols);
  if (fields.bits)
    printer << " bits " << bits;
  for (auto [set, keyword] : {std::pair(symmetric, " symmetric"), {zeros, " zeros"}, {indexed, " indexed"}})
    if (set)
      printer << keyword;
  if (scale)
    printer << " scale " << scale;
}

/// `[1.0, 0.01]`, with as many digits as it takes: the array's own form keeps six.
static ParseResult parseFrequencies(AsmParser &parser, DenseF32ArrayAttr &frequencies) {
  SmallVector<float> values;
  auto parseOne = [&]() -> ParseResult {
    double value;
    if (parser.parseFloat(value))
      return failure();
    values.push_back(static_cast<float>(value));
    return success();
  };
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseOne))
    return failure();
  frequencies = parser.getBuilder().getDenseF32ArrayAttr(values);
  return success();
}

static void printFrequencies(AsmPrinter &printer, DenseF32ArrayAttr frequencies) {
  printer << '[';
  llvm::interleaveComma(frequencies.asArrayRef(), printer, [&](float value) { printer.printFloat(APFloat(value)); });
  printer << ']';
}

/// `64`, or `[0, 3, 5]` for some members of the families.
static ParseResult parseStacked(AsmParser &parser, int64_t &count, DenseI64ArrayAttr &members) {
  SmallVector<int64_t> numbers;
  if (failed(parser.parseOptionalLSquare()))
    return parser.parseInteger(count);
  if (parser.parseCommaSeparatedList([&] { return parser.parseInteger(numbers.emplace_back()); }) ||
      parser.parseRSquare())
    return failure();
  count = numbers.size();
  members = parser.getBuilder().getDenseI64ArrayAttr(numbers);
  return success();
}

static void printStacked(AsmPrinter &printer, int64_t count, DenseI64ArrayAttr members) {
  if (!members) {
    printer << count;
    return;
  }
  printer << '[';
  llvm::interleaveComma(members.asArrayRef(), printer);
  printer << ']';
}

#include "dialects/Moe/MoeDialect.cpp.inc"
#include "dialects/Moe/MoeEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Moe/MoeAttributes.cpp.inc"

void MoeDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialects/Moe/MoeAttributes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/Moe/MoeOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// Attribute verifiers
//===----------------------------------------------------------------------===//

using EmitError = function_ref<InFlightDiagnostic()>;

static LogicalResult checkPositive(EmitError emitError, StringRef name, int64_t value) {
  if (value > 0)
    return success();
  return emitError() << name << " is " << value << ", expected a positive number";
}

LogicalResult mlir::moe::checkMembers(EmitError emitError, ArrayRef<int64_t> members) {
  for (auto [index, member] : llvm::enumerate(members)) {
    if (member < 0)
      return emitError() << "members[" << index << "] is " << member << ", expected the number of an expert";
    if (index > 0 && member <= members[index - 1])
      return emitError() << "members[" << index << "] is " << member << ", expected more than the "
                         << members[index - 1] << " before it";
  }
  return success();
}

/// The types that a step may round to.
static LogicalResult checkRounded(EmitError emitError, Type type) {
  if (type.isF32() || type.isBF16() || type.isF16())
    return success();
  return emitError() << "element type is " << type << ", expected f32, bf16 or f16";
}

LogicalResult RopeAttr::verify(EmitError emitError, DenseF32ArrayAttr invFreq, FloatAttr factor) {
  // C1
  if (invFreq.empty())
    return emitError() << "inv_freq is empty, expected one element for each pair of channels";
  // C2
  for (auto [index, freq] : llvm::enumerate(invFreq.asArrayRef()))
    if (!std::isfinite(freq))
      return emitError() << "inv_freq[" << index << "] is " << freq << ", expected a finite number";
  // C3
  if (!factor.getType().isF64() || !factor.getValue().isFinite())
    return emitError() << "factor is " << factor << ", expected a finite f64";
  return success();
}

LogicalResult StackAttr::verify(EmitError emitError, int64_t count, DenseI64ArrayAttr members) {
  if (failed(checkPositive(emitError, "count", count))) // C1
    return failure();
  return members ? checkMembers(emitError, members) : success(); // C2
}

LogicalResult AppendAttr::verify(EmitError emitError, Axis, int64_t count) {
  return checkPositive(emitError, "count", count); // C1
}

LogicalResult ConcatAttr::verify(EmitError emitError, ArrayRef<int64_t> rows) {
  // C1
  if (rows.size() < 2)
    return emitError() << "rows has " << rows.size() << " elements, expected two or more";
  for (int64_t count : rows)
    if (failed(checkPositive(emitError, "rows", count)))
      return failure();
  return success();
}

LogicalResult DequantAttr::verify(EmitError emitError, StoredFormat format, int64_t rows, int64_t cols, int64_t bits,
                                  bool symmetric, bool zeros, bool indexed, Type scale, Type type) {
  FormatFields fields = fieldsOf(format);
  StringRef name = stringifyStoredFormat(format);
  bool isGptq = format == StoredFormat::Gptq || format == StoredFormat::GptqV2;
  bool isPacked = format == StoredFormat::Packed;
  // C1
  if (rows < 0 || cols < 0)
    return emitError() << "block is " << rows << "x" << cols << ", expected positive numbers";
  if ((isGptq || isPacked || format == StoredFormat::Awq) && rows != 1)
    return emitError() << name << " has groups of one row, not " << rows;
  if (!fields.block && (rows != fields.rows || cols != fields.cols))
    return emitError() << name << " has blocks of " << fields.rows << "x" << fields.cols;
  // C3
  if (fields.bits ? bits != 4 && bits != 8 : bits != fields.defaultBits)
    return emitError() << "bits of " << name << " are " << bits << ", expected "
                       << (fields.bits ? "4 or 8" : Twine(fields.defaultBits));
  // C4
  for (auto [set, allowed, keyword] : {std::tuple(symmetric, isGptq, "symmetric"),
                                       {zeros, isPacked, "zeros"},
                                       {indexed, isGptq || isPacked, "indexed"}})
    if (set && !allowed)
      return emitError() << name << " weights are never '" << keyword << "'";
  if (scale && !scale.isF16() && !scale.isBF16()) // C5
    return emitError() << "scales are " << scale << ", expected bf16 or f16";
  // C2
  if (name.starts_with(blocksPrefix) && !type.isF32())
    return emitError() << name << " blocks hold f32, not " << type;
  return checkRounded(emitError, type);
}

const moec::GgufType *DequantAttr::getBlocks() const {
  StringRef name = stringifyStoredFormat(getFormat());
  return name.consume_front(blocksPrefix) ? moec::ggufType(name.upper()) : nullptr;
}

moec::Format DequantAttr::getDescription() const {
  using namespace moec::formats;
  auto width = static_cast<int>(getBits());
  auto make = [&] {
    switch (getFormat()) {
    case StoredFormat::Fp8:
      return fp8(getRows(), getCols(), Naming::ScaleInv, /*e8m0=*/false);
    case StoredFormat::Gptq:
    case StoredFormat::GptqV2:
      return gptq(width, getCols(), getSymmetric(), getFormat() == StoredFormat::Gptq ? 1 : 2, getIndexed());
    case StoredFormat::Awq:
      return awq(getCols());
    case StoredFormat::Packed:
      return packQuantized(width, getCols(), !getZeros(), getIndexed());
    case StoredFormat::Int8:
      return intQuantized(getRows(), getCols());
    case StoredFormat::Nvfp4:
    case StoredFormat::Nvfp4Modelopt:
      return nvfp4(getFormat() == StoredFormat::Nvfp4Modelopt);
    case StoredFormat::Mxfp4:
      return mxfp4(Naming::WeightScale);
    case StoredFormat::GgufQ80:
    case StoredFormat::GgufQ40:
    case StoredFormat::GgufQ4K:
    case StoredFormat::GgufQ6K:
      break;
    }
    llvm_unreachable("formats with a description are listed");
  };
  moec::Format format = make();
  if (!getIndexed())
    format.groupIndex.clear();
  format.groupIndexRequired = getIndexed();
  return format;
}

int64_t DequantAttr::getNumSources() const {
  if (getBlocks())
    return 1;
  return static_cast<int64_t>(moec::requiredTensors(getDescription(), 1, 1).size());
}

QuantizeAttr DequantAttr::getInt4Groups() const {
  bool isMiddle = getFormat() == StoredFormat::Packed ? !getZeros() : getSymmetric();
  if (getBits() != 4 || !isMiddle || getIndexed() || !getScale() || getCols() == 0 ||
      getCols() % moec::GroupFormat::blockColumns != 0)
    return nullptr;
  return QuantizeAttr::get(getContext(), CodeFormat::Int4, getCols(), getScale(), /*rows=*/1, Rounding::Nearest);
}

DequantAttr DequantAttr::of(MLIRContext *context, const moec::Format &format, bool indexed, moec::DType scale,
                            Type type) {
  auto kind = [&] {
    using moec::Element;
    switch (format.element) {
    case Element::F8E4M3:
      return StoredFormat::Fp8;
    case Element::F4E2M1:
      return format.globalScale.empty() ? StoredFormat::Mxfp4
             : format.globalDivides     ? StoredFormat::Nvfp4
                                        : StoredFormat::Nvfp4Modelopt;
    case Element::Signed:
      return StoredFormat::Int8;
    case Element::Unsigned:
      if (!format.packing.inMajor)
        return StoredFormat::Packed;
      if (format.packing.along == moec::Packing::Axis::Out)
        return StoredFormat::Awq;
      return format.zeroAdded ? StoredFormat::Gptq : StoredFormat::GptqV2;
    }
    llvm_unreachable("all elements are listed");
  }();
  Builder builder(context);
  Type scaleType;
  if (format.element == moec::Element::Unsigned && format.packing.bits == 4)
    scaleType = scale == moec::DType::F16    ? Type(builder.getF16Type())
                : scale == moec::DType::BF16 ? Type(builder.getBF16Type())
                                             : Type();
  return get(context, kind, format.scale.rows, format.scale.cols, format.packing.bits, format.symmetric,
             kind == StoredFormat::Packed && !format.zeroPoints.empty(), indexed, scaleType, type);
}

DequantAttr DequantAttr::of(MLIRContext *context, const moec::GgufType &blocks) {
  auto format = *symbolizeStoredFormat((blocksPrefix + StringRef(blocks.name).lower()).str());
  FormatFields fields = fieldsOf(format);
  return get(context, format, fields.rows, fields.cols, fields.defaultBits, /*symmetric=*/false, /*zeros=*/false,
             /*indexed=*/false, /*scale=*/Type(), Float32Type::get(context));
}

LogicalResult HeadRowsAttr::verify(EmitError emitError, int64_t heads, int64_t begin, int64_t end) {
  // C1
  if (failed(checkPositive(emitError, "heads", heads)))
    return failure();
  // C2
  if (begin < 0 || begin >= end)
    return emitError() << "rows [" << begin << ", " << end << ") of each head, expected 0 <= begin < end";
  return success();
}

LogicalResult ColumnsAttr::verify(EmitError emitError, int64_t begin, int64_t end) {
  // C1
  if (begin < 0 || begin >= end)
    return emitError() << "columns [" << begin << ", " << end << "), expected 0 <= begin < end";
  return success();
}

LogicalResult ReshapeAttr::verify(EmitError emitError, ArrayRef<int64_t> from, ArrayRef<int64_t> to) {
  // C1
  for (auto [name, dims] : {std::pair("from", from), {"to", to}}) {
    if (dims.size() != 2 && dims.size() != 3)
      return emitError() << name << " has " << dims.size() << " dimensions, expected two or three";
    for (int64_t dim : dims)
      if (failed(checkPositive(emitError, name, dim)))
        return failure();
  }
  // C2; unsigned, as a product that wraps is still defined
  auto size = [](ArrayRef<int64_t> dims) {
    return std::accumulate(dims.begin(), dims.end(), uint64_t(1), std::multiplies<uint64_t>());
  };
  if (from[0] != to[0] || size(from) != size(to))
    return emitError() << "reshapes [" << from << "] to [" << to << "], expected equal first dimensions and sizes";
  return success();
}

LogicalResult CastAttr::verify(EmitError emitError, Type type) {
  return checkRounded(emitError, type); // C1
}

LogicalResult CacheCodesAttr::verify(EmitError emitError, CodeFormat codes, int64_t channels) {
  // C1
  if (codes != CodeFormat::Int8 && codes != CodeFormat::F8E4M3)
    return emitError() << "codes of a cache are " << stringifyCodeFormat(codes) << ", expected int8 or f8e4m3";
  return checkPositive(emitError, "channels", channels); // C2
}

LogicalResult ScaleColumnsAttr::verify(EmitError emitError, StringAttr by) {
  // C1
  if (!by || by.getValue().empty())
    return emitError() << "scales columns by a tensor without a name";
  if (isFamily(by.getValue()))
    return emitError() << "scales columns by '" << by.getValue() << "', a family of tensors, expected one";
  return success();
}

LogicalResult PadAttr::verify(EmitError emitError, int64_t size) {
  return checkPositive(emitError, "size", size); // C1
}

LogicalResult PackPanelsAttr::verify(EmitError emitError, int64_t width, int64_t columns) {
  // C1
  if (failed(checkPositive(emitError, "width", width)))
    return failure();
  return checkPositive(emitError, "columns", columns);
}

LogicalResult QuantizeAttr::verify(EmitError emitError, CodeFormat codes, int64_t group, Type scale, int64_t rows,
                                   Rounding rounding) {
  // C1
  bool isNvfp4 = codes == CodeFormat::F4E2M1 && isa<Float8E4M3FNType>(scale);
  bool isByte = codes == CodeFormat::Int8 || codes == CodeFormat::F8E4M3;
  int64_t multiple = isByte ? 1 : isNvfp4 ? 16 : moec::GroupFormat::blockColumns;
  if (group <= 0 || group % multiple != 0 || (isNvfp4 && group != multiple))
    return emitError() << "group is " << group << ", expected "
                       << (isNvfp4 ? "16" : "a positive multiple of " + std::to_string(multiple));
  // C2
  auto [known, expected] = [&]() -> std::pair<bool, StringRef> {
    bool half = scale.isBF16() || scale.isF16(), power = isa<Float8E8M0FNUType>(scale);
    switch (codes) {
    case CodeFormat::Int4:
      return {half || power, "bf16, f16 or f8E8M0FNU"};
    case CodeFormat::Int4Zero:
      return {half, "bf16 or f16"};
    case CodeFormat::Int8:
    case CodeFormat::F8E4M3:
      return {scale.isF32(), "f32"};
    case CodeFormat::F4E2M1:
      return {power || isNvfp4, "f8E8M0FNU or f8E4M3FN"};
    }
    llvm_unreachable("all codes are listed");
  }();
  if (!known)
    return emitError() << "scales of " << stringifyCodeFormat(codes) << " codes are " << scale << ", expected "
                       << expected;
  // C3
  if (rows <= 0 || (rows != 1 && (codes != CodeFormat::F8E4M3 || rounding == Rounding::Importance)))
    return emitError() << "rows is " << rows << ", expected "
                       << (rows <= 0 ? "a positive number"
                                     : "1 unless f8e4m3 codes are rounded to nearest or by feedback");
  return success();
}

moec::GroupFormat QuantizeAttr::getFormat() const {
  constexpr moec::CodeKind kinds[] = {moec::CodeKind::Int4, moec::CodeKind::Int4Zero, moec::CodeKind::Int8,
                                      moec::CodeKind::F8E4M3, moec::CodeKind::F4E2M1};
  return {kinds[static_cast<unsigned>(getCodes())], getRows(), getGroup(), *storedType(getScale())};
}

bool QuantizeAttr::divides(int64_t cols) const {
  moec::GroupFormat format = getFormat();
  return format.bits() == 8 || cols % format.unit() == 0;
}

LogicalResult PackGroupsAttr::verify(EmitError emitError, int64_t width) {
  return checkPositive(emitError, "width", width); // C1
}

LogicalResult PackBlockScalesAttr::verify(EmitError emitError, int64_t width, int64_t n, int64_t rows) {
  // C1
  return success(succeeded(checkPositive(emitError, "width", width)) && succeeded(checkPositive(emitError, "n", n)) &&
                 succeeded(checkPositive(emitError, "rows", rows)));
}
