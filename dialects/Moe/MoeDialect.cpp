// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

using namespace mlir;
using namespace mlir::moe;

/// `128x128`: two static dimensions.
static ParseResult parseBlockShape(AsmParser &parser, int64_t &rows, int64_t &cols) {
  SmallVector<int64_t> dims;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseDimensionList(dims, /*allowDynamic=*/false, /*withTrailingX=*/false))
    return failure();
  if (dims.size() != 2)
    return parser.emitError(loc) << "expected a block shape such as 128x128";
  rows = dims[0];
  cols = dims[1];
  return success();
}

static void printBlockShape(AsmPrinter &printer, int64_t rows, int64_t cols) { printer << rows << 'x' << cols; }

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

LogicalResult StackAttr::verify(EmitError emitError, int64_t count) {
  return checkPositive(emitError, "count", count); // C1
}

LogicalResult DequantFp8BlockAttr::verify(EmitError emitError, int64_t rows, int64_t cols, Type type) {
  // C1
  if (failed(checkPositive(emitError, "rows", rows)) || failed(checkPositive(emitError, "cols", cols)))
    return failure();
  return checkRounded(emitError, type); // C2
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

LogicalResult CastAttr::verify(EmitError emitError, Type type) {
  return checkRounded(emitError, type); // C1
}

LogicalResult PadAttr::verify(EmitError emitError, int64_t size) {
  return checkPositive(emitError, "size", size); // C1
}

LogicalResult PackPanelsAttr::verify(EmitError emitError, int64_t width) {
  return checkPositive(emitError, "width", width); // C1
}

LogicalResult QuantizeAttr::verify(EmitError emitError, CodeFormat, int64_t group, Type scale) {
  // C1
  if (group <= 0 || group % columnsPerBlock != 0)
    return emitError() << "group is " << group << ", expected a positive multiple of " << columnsPerBlock;
  // C2
  if (!scale.isBF16() && !scale.isF16())
    return emitError() << "scales are " << scale << ", expected bf16 or f16";
  return success();
}

LogicalResult PackGroupsAttr::verify(EmitError emitError, int64_t width) {
  return checkPositive(emitError, "width", width); // C1
}

LogicalResult PackBlockScalesAttr::verify(EmitError emitError, int64_t width, int64_t n, int64_t rows) {
  // C1
  return success(succeeded(checkPositive(emitError, "width", width)) && succeeded(checkPositive(emitError, "n", n)) &&
                 succeeded(checkPositive(emitError, "rows", rows)));
}
