// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Exec/ExecDialect.h"

#include "runtime/Support/CacheCodes.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace mlir::exec;

#include "dialects/Exec/ExecDialect.cpp.inc"
#define GET_OP_CLASSES
#include "dialects/Exec/ExecOps.cpp.inc"

void ExecDialect::initialize() {
  addOperations<
#define GET_OP_LIST
#include "dialects/Exec/ExecOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// Symbols
//===----------------------------------------------------------------------===//

/// Dense, without a memory space.
static bool isPlain(MemRefType type) { return type.getLayout().isIdentity() && !type.getMemorySpace(); }

LogicalResult WeightOp::verify() {
  // C1
  if (getSources().empty())
    return emitOpError("has no sources");
  // C2
  auto type = cast<MemRefType>(getType());
  Type element = type.getElementType();
  if (!type.hasStaticShape() || !isPlain(type) ||
      !(element.isF32() || element.isF16() || element.isBF16() || isa<Float8E4M3FNType>(element) ||
        element.isSignlessInteger(32) || element.isSignlessInteger(8)))
    return emitOpError("has type ") << type
                                    << ", expected a dense static memref of f32, f16, bf16, f8E4M3FN, i32 or i8";
  return success();
}

LogicalResult CacheOp::verify() {
  // C1
  Type element = getElementType();
  if (!element.isF32() && !element.isF16() && !element.isBF16() && !element.isSignlessInteger(8))
    return emitOpError("has elements of ") << element << ", expected f32, f16, bf16 or i8";
  // C2
  if (element.isInteger(8) != getCodes().has_value())
    return emitOpError("has elements of ") << element << " and " << (getCodes() ? "" : "no ") << "codes";
  if (getCodes() && moec::cacheCodesFromString(*getCodes()) == moec::CacheCodes::None)
    return emitOpError("has codes ") << getCodesAttr() << ", expected \"int8\" or \"fp8\"";
  return success();
}

MemRefType CacheOp::getPagesType() {
  return MemRefType::get({ShapedType::kDynamic, pageTokens, static_cast<int64_t>(getWidth())}, getElementType());
}

LogicalResult KernelOp::verify() {
  // C1
  if (getKind().empty())
    return emitOpError("has an empty kind");
  return success();
}

LogicalResult WeightRefOp::verifySymbolUses(SymbolTableCollection &symbols) {
  // C1
  auto weight = symbols.lookupNearestSymbolFrom<WeightOp>(*this, getWeightAttr());
  if (!weight)
    return emitOpError("names ") << getWeightAttr() << ", which is no exec.weight";
  if (weight.getType() != getType())
    return (emitOpError("has type ") << getType() << ", but the weight has " << weight.getType())
               .attachNote(weight.getLoc())
           << "weight is here";
  return success();
}

LogicalResult CacheRefOp::verifySymbolUses(SymbolTableCollection &symbols) {
  // C1
  auto cache = symbols.lookupNearestSymbolFrom<CacheOp>(*this, getCacheAttr());
  if (!cache)
    return emitOpError("names ") << getCacheAttr() << ", which is no exec.cache";
  if (cache.getPagesType() != getType())
    return (emitOpError("has type ") << getType() << ", but the pages of the cache are " << cache.getPagesType())
               .attachNote(cache.getLoc())
           << "cache is here";
  return success();
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

LogicalResult BufferOp::verify() {
  MemRefType type = getType();
  // C1
  bool leading = type.getRank() > 0 && type.isDynamicDim(0);
  bool rest = type.getRank() == 0 || llvm::none_of(type.getShape().drop_front(), ShapedType::isDynamic);
  Type element = type.getElementType();
  bool known = element.isF32() || element.isBF16() || element.isSignlessInteger(32) || element.isSignlessInteger(8);
  if (!isPlain(type) || !rest || !known)
    return emitOpError("has type ")
           << type << ", expected a dense memref of f32, bf16, i32 or i8 that is static after the first dimension";
  // C2
  if (!leading && (getPerRow() || getRowsPerToken() != 1))
    return emitOpError("of ") << type << " has no leading '?' that " << (getPerRow() ? "per_row" : "rows_per_token")
                              << " could count";
  // C3
  if (std::optional<uint64_t> offset = getOffset(); offset && *offset % 64 != 0)
    return emitOpError("has offset ") << *offset << ", expected a multiple of 64";
  return success();
}

std::optional<int64_t> BufferOp::getBytes(int64_t maxTokens) {
  constexpr int64_t limit = int64_t(1) << 62;
  MemRefType type = getType();
  int64_t bytes = type.getElementTypeBitWidth() / 8;
  auto grow = [&](int64_t factor) {
    if (factor != 0 && bytes > limit / factor)
      return false;
    bytes *= factor;
    return true;
  };
  for (int64_t size : type.getShape())
    if (!(ShapedType::isDynamic(size) ? grow(maxTokens) && grow(getRowsPerToken()) : grow(size)))
      return std::nullopt;
  return bytes;
}

/// First and last element that a row of the type (or all of it, if its first dimension is static) reaches.
static std::pair<int64_t, int64_t> extent(ArrayRef<int64_t> shape, ArrayRef<int64_t> strides, int64_t offset) {
  int64_t first = offset, last = offset;
  for (auto [size, stride] : llvm::zip_equal(shape, strides)) {
    if (ShapedType::isDynamic(size))
      continue;
    (stride < 0 ? first : last) += (size - 1) * stride;
  }
  return {first, last};
}

LogicalResult ViewOp::verify() {
  MemRefType source = getSource().getType(), result = getType();
  // C1
  if (source.getElementType() != result.getElementType())
    return emitOpError("turns elements of ") << source.getElementType() << " into " << result.getElementType();
  SmallVector<int64_t> strides[2];
  int64_t offsets[2];
  MemRefType types[2] = {source, result};
  for (int i = 0; i < 2; ++i) {
    bool strided = succeeded(types[i].getStridesAndOffset(strides[i], offsets[i]));
    bool leadingOnly = types[i].getRank() > 0 && llvm::none_of(types[i].getShape().drop_front(), ShapedType::isDynamic);
    if (!strided || !leadingOnly || ShapedType::isDynamic(offsets[i]) ||
        llvm::any_of(strides[i], ShapedType::isDynamic))
      return emitOpError("needs static strides and offset, found ") << types[i];
  }
  // C2
  bool dynamic[2] = {source.isDynamicDim(0), result.isDynamicDim(0)};
  if (dynamic[0] != dynamic[1] || (dynamic[0] && strides[0][0] != strides[1][0]))
    return emitOpError("of ") << source << " as " << result << " changes the distance of rows";
  // C3
  auto [first, last] = extent(source.getShape(), strides[0], offsets[0]);
  auto [viewFirst, viewLast] = extent(result.getShape(), strides[1], offsets[1]);
  if (viewFirst < first || viewLast > last)
    return emitOpError("reaches elements ")
           << viewFirst << " to " << viewLast << " of a row, but the source has " << first << " to " << last;
  return success();
}

//===----------------------------------------------------------------------===//
// Launches
//===----------------------------------------------------------------------===//

LogicalResult LaunchOp::verifySymbolUses(SymbolTableCollection &symbols) {
  // C1
  if (!symbols.lookupNearestSymbolFrom<KernelOp>(*this, getKernelAttr()))
    return emitOpError("names ") << getKernelAttr() << ", which is no exec.kernel";
  return success();
}

LogicalResult LaunchOp::verify() {
  // C2
  AffineMap grid = getGrid();
  if (grid.getNumDims() != 2 || grid.getNumSymbols() != 0 || grid.getNumResults() == 0)
    return emitOpError("has grid ") << getGridAttr() << ", expected results of (T, R)";
  // C3
  int64_t previous = -1;
  for (int64_t position : getWrites()) {
    if (position <= previous || position >= static_cast<int64_t>(getArgs().size()))
      return emitOpError("writes ") << getWritesAttr() << ", expected ascending positions of its " << getArgs().size()
                                    << " arguments";
    previous = position;
    Value root = getArgs()[position];
    while (auto view = root.getDefiningOp<ViewOp>())
      root = view.getSource();
    auto argument = dyn_cast<BlockArgument>(root);
    if (root.getDefiningOp<WeightRefOp>() || (argument && !ProgramOp::isOutput(argument.getArgNumber())))
      return emitOpError("writes argument ")
             << position << ", which is " << (argument ? "an input of the program" : "a weight");
  }
  // C4
  if (getRunFrom() && getRunBelow())
    return emitOpError("has both run_from and run_below");
  return success();
}

//===----------------------------------------------------------------------===//
// The program
//===----------------------------------------------------------------------===//

StringRef ProgramOp::getArgumentName(unsigned index) {
  static constexpr StringLiteral names[] = {"tokens", "positions", "slots", "rows", "page_table", "logits", "argmax"};
  static_assert(std::size(names) == NumArguments);
  return names[index];
}

LogicalResult ProgramOp::verify() {
  // C1
  unsigned count = getBody().getNumArguments();
  if (count != Argmax && count != NumArguments)
    return emitOpError("has ") << count
                               << " arguments, expected tokens, positions, slots, rows, page_table and logits, "
                               << "and maybe argmax";
  Type i32 = IntegerType::get(getContext(), 32), f32 = Float32Type::get(getContext());
  constexpr int64_t dynamic = ShapedType::kDynamic;
  for (BlockArgument argument : getBody().getArguments()) {
    auto type = dyn_cast<MemRefType>(argument.getType());
    unsigned index = argument.getArgNumber();
    bool right = false;
    if (index == Logits)
      right = type && type.getRank() == 2 && type.isDynamicDim(0) && !type.isDynamicDim(1) && isPlain(type) &&
              type.getElementType() == f32;
    else
      right = type == (index == PageTable ? MemRefType::get({dynamic, dynamic}, i32) : MemRefType::get({dynamic}, i32));
    if (!right)
      return emitOpError("has '") << getArgumentName(index) << "' of type " << argument.getType() << ", expected "
                                  << (index == Logits      ? "memref<?xVxf32>"
                                      : index == PageTable ? "memref<?x?xi32>"
                                                           : "memref<?xi32>");
  }
  // C2
  constexpr int64_t mostTokens = int64_t(1) << 20;
  if (static_cast<int64_t>(getMaxTokens()) > mostTokens)
    return emitOpError("has max_tokens ") << getMaxTokens() << ", at most " << mostTokens << " is possible";

  for (Operation &op : getBody().front()) {
    // C3
    if (op.getDialect() != getOperation()->getDialect())
      return op.emitOpError("does not belong in an exec.program");
    // C4
    auto buffer = dyn_cast<BufferOp>(op);
    if (!buffer || !getArenaBytes())
      continue;
    if (!buffer.getOffset())
      return buffer.emitOpError("has no offset in a program with a memory plan");
    std::optional<int64_t> bytes = buffer.getBytes(getMaxTokens());
    uint64_t arena = *getArenaBytes();
    if (!bytes || *buffer.getOffset() > arena || static_cast<uint64_t>(*bytes) > arena - *buffer.getOffset())
      return buffer.emitOpError("at offset ")
             << *buffer.getOffset() << " does not fit into the arena of " << arena << " bytes";
  }
  return success();
}

ParseResult ProgramOp::parse(OpAsmParser &parser, OperationState &result) {
  StringAttr name;
  int64_t maxTokens = 0;
  if (parser.parseSymbolName(name, SymbolTable::getSymbolAttrName(), result.attributes))
    return failure();
  SmallVector<OpAsmParser::Argument> arguments;
  if (parser.parseArgumentList(arguments, OpAsmParser::Delimiter::Paren, /*allowType=*/true) ||
      parser.parseKeyword("max_tokens") || parser.parseInteger(maxTokens))
    return failure();
  result.addAttribute(getMaxTokensAttrName(result.name), parser.getBuilder().getI64IntegerAttr(maxTokens));
  if (parser.parseOptionalAttrDictWithKeyword(result.attributes))
    return failure();
  Region *body = result.addRegion();
  if (parser.parseRegion(*body, arguments))
    return failure();
  if (body->empty())
    body->emplaceBlock();
  return success();
}

void ProgramOp::print(OpAsmPrinter &printer) {
  printer << ' ';
  printer.printSymbolName(getSymName());
  printer << '(';
  llvm::interleaveComma(getBody().getArguments(), printer,
                        [&](BlockArgument argument) { printer.printRegionArgument(argument); });
  printer << ") max_tokens " << getMaxTokens();
  printer.printOptionalAttrDictWithKeyword((*this)->getAttrs(), {getSymNameAttrName(), getMaxTokensAttrName()});
  printer << ' ';
  printer.printRegion(getBody(), /*printEntryBlockArgs=*/false);
}
