// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Conversion/MoeToExec/MoeToExec.h"

#include "codegen/Common/KernelSignature.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Formats/CodedEntry.h"
#include "dialects/Moe/MoeDialect.h"
#include "passes/Conversion/MoeToExec/WeightPacker.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MathExtras.h"

using moec::DType;
using moec::Epilogue;
using moec::Routing;
using moec::Rows;

namespace mlir::exec {

#define GEN_PASS_DEF_MOETOEXECPASS
#include "passes/Conversion/MoeToExec/Passes.h.inc"

namespace {

constexpr int64_t dynamic = ShapedType::kDynamic;

/// Elements between neighbours along each dimension.
SmallVector<int64_t> stridesOf(Value memory) { return cast<MemRefType>(memory.getType()).getStridesAndOffset().first; }
int64_t rowStride(Value memory) { return stridesOf(memory)[0]; }
/// From one head to the next; 0 for memory without heads.
int64_t headStride(Value memory) {
  SmallVector<int64_t> strides = stridesOf(memory);
  return strides.size() == 3 ? strides[1] : 0;
}
int64_t widthOfMemory(Value memory) { return cast<MemRefType>(memory.getType()).getShape().back(); }
int64_t widthOf(Value tensor) { return cast<RankedTensorType>(tensor.getType()).getShape().back(); }

/// How rounded rows lie in memory: F32; BF16; or U8, codes for weights that add `offset` to theirs.
struct RowForm {
  DType type = DType::F32;
  int64_t offset = 0;
};

/// What rows in memory are to a GEMM kernel.
DType inputType(Value memory) {
  Type element = cast<MemRefType>(memory.getType()).getElementType();
  return element.isF32() ? DType::F32 : element.isBF16() ? DType::BF16 : DType::U8;
}

/// What people call this part of the model: the importer's name, else the op's.
StringRef labelOf(Operation *op) {
  if (auto name = op->getLoc()->findInstanceOf<NameLoc>())
    return name.getName().getValue();
  return op->getName().getStringRef();
}

/// Builds the program of one step function, op by op.
class StepLowering {
public:
  StepLowering(ModuleOp module, func::FuncOp step, const moec::TargetTraits &target, int64_t maxTokens)
      : module(module), step(step), target(target), builder(module.getContext()), maxTokens(maxTokens) {}

  LogicalResult run();

  int64_t numLaunches = 0, numWeights = 0;
  int64_t numKernels() const { return static_cast<int64_t>(kernels.size()); }

private:
  /// Where a tensor of the function lies, and which extent its rows count.
  struct Place {
    Value memory;
    Rows rows = Rows::T;
  };

  /// What both forms of an attention read and write.
  struct MlaMemory {
    int64_t width;          ///< of an entry that is read
    DType cache;            ///< what its elements are
    moec::CacheCodes codes; ///< what its latents are stored in
    Value pages, query, ropeQuery, out;
  };

  LogicalResult checkSignature();
  LogicalResult lowerCaches();
  LogicalResult lowerOp(Operation &op);
  LogicalResult lower(moe::EmbedOp op);
  LogicalResult lower(moe::GatherRowsOp op);
  LogicalResult lower(moe::LinearOp op);
  LogicalResult lower(moe::GateUpOp op);
  LogicalResult lower(moe::SwigluOp op);
  LogicalResult lower(moe::AddOp op);
  LogicalResult lower(moe::RmsNormOp op);
  LogicalResult lower(moe::FakeQuantizeOp op);
  LogicalResult lower(moe::ReshapeOp op);
  LogicalResult lower(moe::SplitOp op);
  LogicalResult lower(moe::RopeOp op);
  LogicalResult lower(moe::MlaAttentionOp op);
  LogicalResult lower(moe::RouteOp op);
  LogicalResult lower(moe::ExpertsOp op);
  LogicalResult lowerElementwise(Operation *op, Value a, Value b, bool swiglu);

  /// Finds operands and refuses rows of logits where only tokens can be.
  LogicalResult needTokens(Operation *op);
  /// A tensor's elements as f32. What is rounded gets a launch for that when it is asked for first.
  Value memoryOf(Value tensor);
  /// The input of a projection: codes of `tensor`, if it is rounded to such and the kernel takes them, else its
  /// elements.
  Value inputFor(Value tensor, const WeightPacker::Panels &weight);
  /// Launches the rounding of rows to memory that holds them in the form `to`.
  Value roundRows(Operation *op, Attribute rounding, Value x, RowForm to, int64_t rowsPerToken, Rows rows);
  /// What the rows of `tensors` count, which must be one thing for all of them; those that are null have no say.
  FailureOr<Rows> needSameRows(Operation *op, ValueRange tensors);
  Rows rowsOf(Value tensor) { return places.lookup(tensor).rows; }

  Value buffer(Location loc, ArrayRef<int64_t> shape, Type element, int64_t rowsPerToken = 1, Rows rows = Rows::T);
  Value view(Location loc, Value source, ArrayRef<int64_t> shape, ArrayRef<int64_t> strides, int64_t offset);
  /// Memory for a result that a launch writes: the program's logits, or a new buffer.
  Value place(Value result, Rows rows = Rows::T);
  Value ref(WeightOp weight);
  Value ref(CacheOp cache);
  LaunchOp launch(Operation *op, const moec::KernelSpec &spec, ValueRange args, StringRef part = "");

  /// Angles of the step's positions, computed once for each table of frequencies.
  Value anglesFor(moe::RopeOp op);
  void rotateInto(moe::RopeOp op, Value out);
  /// Launches a GEMM; sizes, strides and operands that the spec can tell are filled in.
  LaunchOp gemm(Operation *op, moec::GemmSpec spec, Value x, const WeightPacker::Panels &weight, Value residual,
                Value y, ValueRange more = {}, StringRef part = "");
  /// The same for the program's logits, and the token that each row has the greatest of.
  void head(Operation *op, moec::GemmSpec spec, Value x, const WeightPacker::Panels &weight, Value logits);
  LogicalResult attendAbsorbed(moe::MlaAttentionOp op, const MlaMemory &memory);
  LogicalResult attendExpanded(moe::MlaAttentionOp op, const MlaMemory &memory);

  ModuleOp module;
  func::FuncOp step;
  const moec::TargetTraits &target;
  OpBuilder builder;
  int64_t maxTokens;
  SymbolNames names;
  std::unique_ptr<WeightPacker> weights;
  ProgramOp program;

  DenseMap<Value, Place> places;
  DenseMap<Operation *, Value> refs;
  DenseMap<Attribute, KernelOp> kernels; ///< by [kind, spec]
  DenseMap<std::pair<Attribute, Value>, Value> angles;
  DenseMap<std::pair<Value, int64_t>, Value> rounded; ///< by tensor, and offset of codes; 0: bf16
  /// offsets, active, order, by chosen experts and the members among them
  DenseMap<std::pair<Value, Attribute>, SmallVector<Value>> dispatched;
};

//===----------------------------------------------------------------------===//
// Memory and launches
//===----------------------------------------------------------------------===//

Value StepLowering::buffer(Location loc, ArrayRef<int64_t> shape, Type element, int64_t rowsPerToken, Rows rows) {
  auto create = [&](ArrayRef<int64_t> allocated) {
    return BufferOp::create(builder, loc, MemRefType::get(allocated, element), rowsPerToken,
                            /*per_row=*/rows == Rows::R, /*kept=*/false, /*offset=*/IntegerAttr());
  };
  // Where rows begin a power of two of bytes apart, those of a tile push each other out of the few places that a cache
  // has for such addresses: one line is left free between them.
  constexpr int64_t apart = 2048, line = 64;
  const int64_t elementBytes = (element.getIntOrFloatBitWidth() + 7) / 8;
  int64_t rowElements = 1;
  for (int64_t dim : shape.drop_front())
    rowElements *= dim;
  if (shape.front() != dynamic || rowElements * elementBytes % apart != 0)
    return create(shape);
  const int64_t stride = rowElements + line / elementBytes;
  SmallVector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size() - 1; i > 0; --i)
    strides[i - 1] = i == 1 ? stride : strides[i] * shape[i];
  return view(loc, create({dynamic, stride}), shape, strides, /*offset=*/0);
}

Value StepLowering::view(Location loc, Value source, ArrayRef<int64_t> shape, ArrayRef<int64_t> strides,
                         int64_t offset) {
  Type element = cast<MemRefType>(source.getType()).getElementType();
  auto type = MemRefType::get(shape, element);
  if (offset != 0 || type.getStridesAndOffset().first != strides)
    type = MemRefType::get(shape, element, StridedLayoutAttr::get(builder.getContext(), offset, strides));
  if (type == source.getType())
    return source;
  return ViewOp::create(builder, loc, type, source);
}

Value StepLowering::place(Value result, Rows rows) {
  auto type = cast<RankedTensorType>(result.getType());
  bool returned = rows == Rows::R && llvm::any_of(result.getUsers(), llvm::IsaPred<func::ReturnOp>);
  Value memory = returned ? Value(program.getArgument(ProgramOp::Logits))
                          : buffer(result.getLoc(), type.getShape(), type.getElementType(), 1, rows);
  places[result] = {memory, rows};
  return memory;
}

Value StepLowering::ref(WeightOp weight) {
  Value &value = refs[weight];
  if (!value)
    value = WeightRefOp::create(builder, weight.getLoc(), weight.getType(), weight.getSymName());
  return value;
}

Value StepLowering::ref(CacheOp cache) {
  Value &value = refs[cache];
  if (!value)
    value = CacheRefOp::create(builder, cache.getLoc(), cache.getPagesType(), cache.getSymName());
  return value;
}

LaunchOp StepLowering::launch(Operation *op, const moec::KernelSpec &spec, ValueRange args, StringRef part) {
  MLIRContext *context = builder.getContext();
  StringAttr kind = builder.getStringAttr(moec::kindOf(spec));
  DictionaryAttr dictionary = moec::toAttr(spec, context);
  KernelOp &kernel = kernels[builder.getArrayAttr({kind, dictionary})];
  if (!kernel) {
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPoint(program);
    kernel = KernelOp::create(builder, op->getLoc(), names.claim(moec::symbolFor(spec), "_"), kind, dictionary);
  }
  assert(moec::argumentsOf(spec).size() == args.size() && "a launch passes what its spec asks for");
  std::string label = labelOf(op).str();
  if (!part.empty())
    label += "." + part.str();
  ++numLaunches;
  return LaunchOp::create(builder, op->getLoc(), kernel.getSymName(), args, moec::gridOf(spec, context),
                          moec::writtenArgsOf(spec), builder.getStringAttr(label), /*run_from=*/IntegerAttr(),
                          /*run_below=*/IntegerAttr());
}

LogicalResult StepLowering::needTokens(Operation *op) {
  for (Value operand : op->getOperands())
    if (rowsOf(operand) == Rows::R)
      return op->emitOpError("works on tokens, but comes after moe.gather_rows");
  return success();
}

FailureOr<Rows> StepLowering::needSameRows(Operation *op, ValueRange tensors) {
  std::optional<Rows> rows;
  for (Value tensor : tensors) {
    if (!tensor)
      continue;
    if (rows.value_or(rowsOf(tensor)) != rowsOf(tensor))
      return op->emitOpError("takes rows of tokens and rows of logits together");
    rows = rowsOf(tensor);
  }
  return *rows;
}

//===----------------------------------------------------------------------===//
// Dense layers
//===----------------------------------------------------------------------===//

LogicalResult StepLowering::lower(moe::EmbedOp op) {
  moec::EmbedSpec spec;
  FailureOr<WeightOp> table = weights->table(op, op.getTable(), spec.table);
  if (failed(table) || failed(needTokens(op)))
    return failure();
  Value out = place(op.getResult());
  spec.width = widthOf(op.getResult());
  spec.outStride = rowStride(out);
  launch(op, spec, {memoryOf(op.getTokens()), ref(*table), out});
  return success();
}

LogicalResult StepLowering::lower(moe::GatherRowsOp op) {
  if (failed(needTokens(op)))
    return failure();
  Value x = memoryOf(op.getX());
  Value out = place(op.getResult(), Rows::R);
  moec::GatherRowsSpec spec{widthOf(op.getResult()), rowStride(x), rowStride(out)};
  launch(op, spec, {x, memoryOf(op.getRows()), out});
  return success();
}

LogicalResult StepLowering::lower(moe::RmsNormOp op) {
  Rows rows = rowsOf(op.getX());
  Value x = memoryOf(op.getX());
  SmallVector<Value> args = {x};
  if (op.getWeight()) {
    FailureOr<WeightOp> weight = weights->vector(op, op.getWeight());
    if (failed(weight))
      return failure();
    args.push_back(ref(*weight));
  }
  Value out = place(op.getResult(), rows);
  args.push_back(out);
  moec::RmsNormSpec spec{widthOf(op.getX()), rowStride(x), rowStride(out), op.getEps().convertToDouble(), rows};
  spec.weight = op.getWeight() != nullptr;
  launch(op, spec, args);
  return success();
}

LaunchOp StepLowering::gemm(Operation *op, moec::GemmSpec spec, Value x, const WeightPacker::Panels &weight,
                            Value residual, Value y, ValueRange more, StringRef part) {
  spec.weight = weight.type;
  spec.scaleCols = weight.scaleCols;
  spec.group = weight.group;
  spec.codes = weight.codes;
  spec.groupScale = weight.groupScale;
  spec.input = inputType(x);
  spec.xStride = rowStride(x);
  spec.xBatch = headStride(x);
  spec.yStride = rowStride(y);
  spec.yBatch = headStride(y);
  SmallVector<Value> args = {x, ref(weight.weight)};
  if (weight.scales)
    args.push_back(ref(weight.scales));
  if (residual) {
    spec.epilogue = Epilogue::Add;
    spec.residualStride = rowStride(residual);
    args.push_back(residual);
  }
  args.push_back(y);
  llvm::append_range(args, more);
  return launch(op, spec, args, part);
}

LogicalResult StepLowering::lower(moe::LinearOp op) {
  FailureOr<WeightPacker::Panels> weight = weights->panels(op, op.getWeight());
  if (failed(weight))
    return failure();
  Value residual = op.getResidual();
  FailureOr<Rows> rows = needSameRows(op, {op.getX(), residual});
  if (failed(rows))
    return failure();
  moec::GemmSpec spec;
  spec.n = widthOf(op.getResult());
  spec.k = widthOf(op.getX());
  spec.rows = *rows;
  Value y = place(op.getResult(), spec.rows), x = inputFor(op.getX(), *weight);
  if (y == program.getArgument(ProgramOp::Logits) && op.getResult().hasOneUse() && !residual)
    head(op, spec, x, *weight, y);
  else
    gemm(op, spec, x, *weight, residual ? memoryOf(residual) : Value(), y);
  return success();
}

void StepLowering::head(Operation *op, moec::GemmSpec spec, Value x, const WeightPacker::Panels &weight, Value logits) {
  spec.epilogue = Epilogue::Argmax;
  const int64_t panels = spec.panels();
  Value candidates = BufferOp::create(
      builder, op->getLoc(), MemRefType::get({dynamic, 2 * panels}, builder.getF32Type()), /*rows_per_token=*/1,
      /*per_row=*/spec.rows == Rows::R, /*kept=*/false, /*offset=*/IntegerAttr());
  gemm(op, spec, x, weight, /*residual=*/nullptr, logits, candidates);
  Value best = program.getBody().addArgument(MemRefType::get({dynamic}, builder.getI32Type()), op->getLoc());
  launch(op, moec::ArgmaxSpec{panels, spec.rows}, {candidates, best}, "argmax");
}

LogicalResult StepLowering::lower(moe::GateUpOp op) {
  FailureOr<WeightPacker::Panels> weight = weights->panels(op, {op.getGate(), op.getUp()});
  if (failed(weight))
    return failure();
  moec::GemmSpec spec;
  spec.n = widthOf(op.getResult());
  spec.k = widthOf(op.getX());
  spec.epilogue = Epilogue::Swiglu;
  spec.rows = rowsOf(op.getX());
  gemm(op, spec, inputFor(op.getX(), *weight), *weight, /*residual=*/nullptr, place(op.getResult(), spec.rows));
  return success();
}

LogicalResult StepLowering::lowerElementwise(Operation *op, Value a, Value b, bool swiglu) {
  FailureOr<Rows> rows = needSameRows(op, {a, b});
  if (failed(rows))
    return failure();
  Value out = place(op->getResult(0), *rows);
  Value left = memoryOf(a), right = memoryOf(b);
  moec::ElementwiseSpec spec{swiglu, widthOf(a), rowStride(left), rowStride(right), rowStride(out), *rows};
  launch(op, spec, {left, right, out});
  return success();
}

LogicalResult StepLowering::lower(moe::SwigluOp op) {
  return lowerElementwise(op, op.getGate(), op.getUp(), /*swiglu=*/true);
}

LogicalResult StepLowering::lower(moe::AddOp op) {
  return lowerElementwise(op, op.getLhs(), op.getRhs(), /*swiglu=*/false);
}

/// What a projection of `columns` with this weight reads of rows that are rounded so.
static RowForm inputOf(Attribute rounding, const WeightPacker::Panels &weight, int64_t columns) {
  auto codes = dyn_cast<moe::QuantizeAttr>(rounding);
  if (!codes)
    return {weight.type == DType::BF16 && columns % 2 == 0 ? DType::BF16 : DType::F32};
  bool taken = codes.getFormat().codes == moec::CodeKind::Int8 &&
               codes.getGroup() % moec::QuantizeRowsSpec::group == 0 && weight.group &&
               moec::GemmSpec::takesCodes({weight.codes, 1, weight.group, weight.groupScale}, columns);
  return taken ? RowForm{DType::U8, moec::GemmSpec::offsetOf(weight.codes)} : RowForm();
}

Value StepLowering::roundRows(Operation *op, Attribute rounding, Value x, RowForm to, int64_t rowsPerToken, Rows rows) {
  auto make = [&](auto spec, int64_t width, Type element) {
    spec.width = widthOfMemory(x);
    spec.xStride = rowStride(x);
    Value out = buffer(op->getLoc(), {dynamic, width}, element, rowsPerToken, rows);
    spec.outStride = rowStride(out);
    spec.rowsPerToken = rowsPerToken;
    spec.rows = rows;
    launch(op, spec, {x, out}, "round");
    return out;
  };
  int64_t width = widthOfMemory(x);
  auto codes = dyn_cast<moe::QuantizeAttr>(rounding);
  if (!codes) {
    moec::CastRowsSpec spec;
    spec.to = to.type;
    return make(spec, width, to.type == DType::BF16 ? Type(builder.getBF16Type()) : builder.getF32Type());
  }
  if (to.type == DType::U8) {
    moec::QuantizeRowsSpec spec;
    spec.scaleCols = codes.getGroup();
    spec.offset = to.offset;
    return make(spec, moec::QuantizeRowsSpec::rowBytes(width), builder.getIntegerType(8));
  }
  moec::FakeQuantizeSpec spec;
  spec.codes = codes.getFormat().codes;
  spec.group = codes.getGroup();
  return make(spec, width, builder.getF32Type());
}

LogicalResult StepLowering::lower(moe::FakeQuantizeOp op) {
  places[op.getResult()] = {Value(), rowsOf(op.getX())};
  return success();
}

Value StepLowering::memoryOf(Value tensor) {
  Place found = places.lookup(tensor);
  auto op = tensor.getDefiningOp<moe::FakeQuantizeOp>();
  if (found.memory || !op)
    return found.memory;
  Value out = roundRows(op, op.getFormat(), memoryOf(op.getX()), RowForm(), /*rowsPerToken=*/1, found.rows);
  places[tensor].memory = out;
  return out;
}

Value StepLowering::inputFor(Value tensor, const WeightPacker::Panels &weight) {
  auto op = tensor.getDefiningOp<moe::FakeQuantizeOp>();
  RowForm to = op ? inputOf(op.getFormat(), weight, widthOf(tensor)) : RowForm();
  if (to.type == DType::F32)
    return memoryOf(tensor);
  Value &found = rounded[{tensor, to.offset}];
  if (!found)
    found = roundRows(op, op.getFormat(), memoryOf(op.getX()), to, /*rowsPerToken=*/1, rowsOf(tensor));
  return found;
}

//===----------------------------------------------------------------------===//
// Views
//===----------------------------------------------------------------------===//

LogicalResult StepLowering::lower(moe::ReshapeOp op) {
  Value x = memoryOf(op.getX());
  auto [strides, offset] = cast<MemRefType>(x.getType()).getStridesAndOffset();
  ArrayRef<int64_t> from = op.getX().getType().getShape(), to = op.getType().getShape();
  if (from.size() == 3 && to.size() != 3 && strides[1] != from[2])
    return op.emitOpError("joins heads that do not lie side by side; this needs a copy, and there is no kernel for it");
  if (to.size() == 3)
    strides = {strides[0], to[2], 1};
  else
    strides = {strides[0], 1};
  if (from.size() == 3 && to.size() == 3 && from != to)
    return op.emitOpError("from three dimensions to three others has no lowering");
  places[op.getResult()] = {from == to ? x : view(op.getLoc(), x, to, strides, offset), rowsOf(op.getX())};
  return success();
}

LogicalResult StepLowering::lower(moe::SplitOp op) {
  Value x = memoryOf(op.getX());
  auto [strides, offset] = cast<MemRefType>(x.getType()).getStridesAndOffset();
  for (Value part : op.getParts()) {
    ArrayRef<int64_t> shape = cast<RankedTensorType>(part.getType()).getShape();
    places[part] = {view(op.getLoc(), x, shape, strides, offset), rowsOf(op.getX())};
    offset += shape.back();
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

Value StepLowering::anglesFor(moe::RopeOp op) {
  Value positions = memoryOf(op.getPositions());
  Value &table = angles[{op.getRope(), positions}];
  if (!table) {
    moec::RopeAnglesSpec spec;
    ArrayRef<float> frequencies = op.getRope().getInvFreq().asArrayRef();
    spec.invFreq.assign(frequencies.begin(), frequencies.end());
    spec.factor = op.getRope().getFactor().getValueAsDouble();
    table = buffer(op.getLoc(), {dynamic, widthOf(op.getX())}, builder.getF32Type());
    launch(op, spec, {positions, table}, "angles");
  }
  return table;
}

void StepLowering::rotateInto(moe::RopeOp op, Value out) {
  Value table = anglesFor(op);
  Value x = memoryOf(op.getX());
  auto shape = op.getX().getType().getShape();
  moec::RopeSpec spec;
  spec.heads = shape.size() == 3 ? shape[1] : 1;
  spec.dim = shape.back();
  spec.xStride = rowStride(x);
  spec.xHead = headStride(x);
  spec.outStride = rowStride(out);
  spec.outHead = headStride(out);
  launch(op, spec, {x, table, out});
}

/// Is this use the rotated query of an attention, which takes it in a buffer of its own?
bool isRopeQuery(OpOperand &use) {
  auto attention = dyn_cast<moe::MlaAttentionOp>(use.getOwner());
  return attention && &attention.getRopeQueryMutable() == &use;
}

LogicalResult StepLowering::lower(moe::RopeOp op) {
  if (failed(needTokens(op)))
    return failure();
  if (!llvm::all_of(op->getUses(), isRopeQuery))
    rotateInto(op, place(op.getResult()));
  return success();
}

LogicalResult StepLowering::lower(moe::MlaAttentionOp op) {
  if (failed(needTokens(op)))
    return failure();
  auto rope = op.getRopeQuery().getDefiningOp<moe::RopeOp>();
  if (!rope)
    return op.emitOpError("needs a rotated query that comes from moe.rope");
  auto cache = SymbolTable::lookupNearestSymbolFrom<CacheOp>(program, op.getCacheAttr());
  if (!cache)
    return op.emitOpError("names ") << op.getCacheAttr() << ", which is no moe.cache";

  Location loc = op.getLoc();
  auto shape = op.getQuery().getType().getShape();
  int64_t heads = shape[1];
  int64_t latent = widthOf(op.getLatent()), ropeDim = widthOf(op.getRopeKey());
  DType stored = cache.getElementType().isF32() ? DType::F32 : DType::BF16;
  moec::CacheCodes codes = moec::cacheCodesFromString(cache.getCodes().value_or(""));
  bool coded = codes != moec::CacheCodes::None;
  int64_t width = coded ? llvm::alignTo(latent + ropeDim, target.vectorMultiple) : cache.getWidth();
  if (coded ? moec::CodedEntry{latent, ropeDim}.stride() != int64_t(cache.getWidth()) : latent + ropeDim > width)
    return op.emitOpError("stores entries of ") << latent << " + " << ropeDim << " elements in a cache of width "
                                                << cache.getWidth() << (coded ? " for codes" : "");
  Value latentMemory = memoryOf(op.getLatent()), keyMemory = memoryOf(op.getRopeKey());
  Value positions = memoryOf(op.getPositions()), slots = memoryOf(op.getSlots());
  Value pageTable = program.getArgument(ProgramOp::PageTable), pages = ref(cache);

  moec::CacheAppendSpec append{latent, ropeDim, width, rowStride(latentMemory), rowStride(keyMemory), stored, codes};
  launch(op, append, {latentMemory, keyMemory, positions, slots, pageTable, pages}, "append");

  bool absorbed = op.getExpandedFrom() != 1u, expanded = op.getExpandedFrom().has_value();
  MlaMemory memory{width, stored, codes, pages, /*query=*/nullptr, /*ropeQuery=*/nullptr, /*out=*/nullptr};
  if (absorbed) {
    // The absorbed query and the rotated one lie side by side, as the entries do.
    memory.query = buffer(loc, {dynamic, heads, latent + ropeDim}, builder.getF32Type());
    memory.ropeQuery = view(loc, memory.query, {dynamic, heads, ropeDim}, stridesOf(memory.query), /*offset=*/latent);
  } else {
    memory.ropeQuery = buffer(loc, {dynamic, heads, ropeDim}, builder.getF32Type());
  }
  rotateInto(rope, memory.ropeQuery);
  memory.out = place(op.getResult());
  // The projection after the absorbed form writes all rows: the expanded form comes after it.
  if (absorbed && failed(attendAbsorbed(op, memory)))
    return failure();
  return expanded ? attendExpanded(op, memory) : success();
}

LogicalResult StepLowering::attendAbsorbed(moe::MlaAttentionOp op, const MlaMemory &memory) {
  FailureOr<WeightPacker::Panels> keys = weights->headPanels(op, op.getWUk(), "uk", /*transposed=*/true);
  FailureOr<WeightPacker::Panels> values = weights->headPanels(op, op.getWUv(), "uv", /*transposed=*/false);
  if (failed(keys) || failed(values))
    return failure();
  Location loc = op.getLoc();
  auto shape = op.getQuery().getType().getShape();
  int64_t heads = shape[1], latent = widthOf(op.getLatent());
  moec::GemmSpec absorb;
  absorb.n = latent;
  absorb.k = shape[2];
  absorb.batch = heads;
  Value absorbed = view(loc, memory.query, {dynamic, heads, latent}, stridesOf(memory.query), /*offset=*/0);
  SmallVector<LaunchOp> launches;
  launches.push_back(gemm(op, absorb, memoryOf(op.getQuery()), *keys, /*residual=*/nullptr, absorbed, {}, "absorb"));

  Value mixed = buffer(loc, {dynamic, heads, latent}, builder.getF32Type());
  moec::MlaAttentionSpec attention;
  attention.heads = heads;
  attention.latent = latent;
  attention.rope = widthOf(op.getRopeKey());
  attention.width = memory.width;
  attention.cache = memory.cache;
  attention.codes = memory.codes;
  attention.qStride = rowStride(memory.query);
  attention.qHead = headStride(memory.query);
  attention.outStride = rowStride(mixed);
  attention.outHead = headStride(mixed);
  attention.scale = op.getScale().convertToDouble();
  attention.runBelow = op.getExpandedFrom().value_or(0);
  // Where tokens are few, parts of a context are made by tasks of their own, and put together afterwards.
  Value parts = buffer(loc, {moec::MlaAttentionSpec::splitRows, moec::MlaAttentionSpec::maxSpans, attention.partSize()},
                       builder.getF32Type());
  Value positions = memoryOf(op.getPositions()), slots = memoryOf(op.getSlots());
  launches.push_back(
      launch(op, attention,
             {memory.query, positions, slots, program.getArgument(ProgramOp::PageTable), memory.pages, parts, mixed}));
  moec::MlaCombineSpec combine{heads, latent, attention.outStride, attention.outHead, attention.runBelow};
  launches.push_back(launch(op, combine, {parts, positions, slots, mixed}, "combine"));

  moec::GemmSpec expand;
  expand.n = widthOf(op.getResult());
  expand.k = latent;
  expand.batch = heads;
  launches.push_back(gemm(op, expand, mixed, *values, /*residual=*/nullptr, memory.out, {}, "expand"));
  for (LaunchOp launch : launches)
    launch.setRunBelow(op.getExpandedFrom());
  return success();
}

LogicalResult StepLowering::attendExpanded(moe::MlaAttentionOp op, const MlaMemory &memory) {
  FailureOr<WeightPacker::Panels> keys = weights->headPanels(op, op.getWUk(), "keys", /*transposed=*/false);
  FailureOr<WeightPacker::Panels> values = weights->headPanels(op, op.getWUv(), "uv", /*transposed=*/false);
  if (failed(keys) || failed(values))
    return failure();
  for (const WeightPacker::Panels &panels : {*keys, *values})
    if (panels.scales || panels.group || panels.type != keys->type)
      return op.emitOpError("in expanded form needs w_uk and w_uv as plain elements of one type");
  Value query = memoryOf(op.getQuery());
  auto shape = op.getQuery().getType().getShape();
  moec::MlaExpandedSpec spec;
  spec.weight = keys->type;
  spec.heads = shape[1];
  spec.nope = shape[2];
  spec.latent = widthOf(op.getLatent());
  spec.rope = widthOf(op.getRopeKey());
  spec.value = widthOf(op.getResult());
  spec.width = memory.width;
  spec.cache = memory.cache;
  spec.codes = memory.codes;
  spec.qStride = rowStride(query);
  spec.qHead = headStride(query);
  spec.ropeStride = rowStride(memory.ropeQuery);
  spec.ropeHead = headStride(memory.ropeQuery);
  spec.outStride = rowStride(memory.out);
  spec.outHead = headStride(memory.out);
  spec.scale = op.getScale().convertToDouble();
  spec.runFrom = *op.getExpandedFrom();
  LaunchOp attend = launch(op, spec,
                           {query, memory.ropeQuery, memoryOf(op.getPositions()), memoryOf(op.getSlots()),
                            program.getArgument(ProgramOp::PageTable), memory.pages, ref(keys->weight),
                            ref(values->weight), memory.out},
                           "expanded");
  if (spec.runFrom > 1)
    attend.setRunFrom(spec.runFrom);
  return success();
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

/// Experts that every token takes, beside those that `route` chooses; fails if its readers have different numbers.
static FailureOr<int64_t> sharedExpertsOf(moe::RouteOp route) {
  std::optional<int64_t> shared;
  for (Operation *user : route->getUsers())
    if (auto experts = dyn_cast<moe::ExpertsOp>(user)) {
      int64_t count = experts.getShared();
      if (shared.value_or(count) != count)
        return experts.emitOpError("has ") << count << " shared experts, but one of the same choice has " << *shared;
      shared = count;
    }
  return shared.value_or(0);
}

LogicalResult StepLowering::lower(moe::RouteOp op) {
  FailureOr<int64_t> shared = sharedExpertsOf(op);
  if (failed(shared))
    return failure();
  Rows rows = rowsOf(op.getLogits());
  Value logits = memoryOf(op.getLogits());
  moec::RouteSpec spec;
  spec.experts = widthOf(op.getLogits());
  spec.topk = op.getTopk();
  spec.shared = *shared;
  spec.groups = op.getGroups();
  spec.topkGroups = op.getTopkGroups();
  spec.sigmoid = op.getScoring() == moe::Scoring::Sigmoid;
  spec.groupTop2Sum = op.getGroupScore() == moe::GroupScore::Top2Sum;
  spec.normalize = op.getNormalize();
  spec.scale = op.getScale().convertToDouble();
  spec.logitsStride = rowStride(logits);
  spec.rows = rows;
  SmallVector<Value> args = {logits};
  if (op.getBias()) {
    FailureOr<WeightOp> bias = weights->vector(op, op.getBias());
    if (failed(bias))
      return failure();
    spec.bias = true;
    args.push_back(ref(*bias));
  }
  // Shared experts are choices of every token: the lists that follow know no difference.
  for (Value result : op.getResults()) {
    Type element = cast<RankedTensorType>(result.getType()).getElementType();
    args.push_back(buffer(op.getLoc(), {dynamic, spec.topk + spec.shared}, element, /*rowsPerToken=*/1, rows));
    places[result] = {args.back(), rows};
  }
  launch(op, spec, args);
  return success();
}

LogicalResult StepLowering::lower(moe::ExpertsOp op) {
  FailureOr<Rows> rows = needSameRows(op, {op.getX(), op.getWeights(), op.getExperts(), op.getResidual()});
  if (failed(rows))
    return failure();
  FailureOr<WeightPacker::Panels> gateUp = weights->panels(op, {op.getGate(), op.getUp()});
  FailureOr<WeightPacker::Panels> down = weights->panels(op, op.getDown());
  if (failed(gateUp) || failed(down))
    return failure();

  Location loc = op.getLoc();
  Type f32 = builder.getF32Type(), i32 = builder.getI32Type();
  int64_t experts = op.getGate().getType().getDimSize(0), inner = op.getGate().getType().getDimSize(1);
  // As many as the route writes, which has the shared experts among them.
  int64_t width = widthOf(op.getX()), topk = widthOfMemory(memoryOf(op.getExperts()));

  std::vector<int64_t> members(op.getMembers().value_or(ArrayRef<int64_t>()));
  SmallVector<Value> &lists = dispatched[{op.getExperts(), op.getMembersAttr()}];
  if (lists.empty()) {
    lists = {buffer(loc, {experts + 1}, i32), buffer(loc, {experts + 1}, i32),
             buffer(loc, {dynamic}, i32, topk, *rows)};
    launch(op, moec::DispatchSpec{experts, topk, members, *rows},
           {memoryOf(op.getExperts()), lists[0], lists[1], lists[2]}, "dispatch");
  }

  moec::GemmSpec first;
  first.n = inner;
  first.k = width;
  first.batch = experts;
  first.topk = topk;
  first.epilogue = Epilogue::Swiglu;
  first.routing = Routing::Gather;
  first.rows = *rows;
  Value hidden = buffer(loc, {dynamic, inner}, f32, topk, *rows);
  gemm(op, first, inputFor(op.getX(), *gateUp), *gateUp, /*residual=*/nullptr, hidden, lists, "gate_up");

  if (std::optional<Attribute> rounding = op.getActivations())
    hidden = roundRows(op, *rounding, hidden, inputOf(*rounding, *down, inner), topk, *rows);

  moec::GemmSpec second = first;
  second.n = width;
  second.k = inner;
  second.epilogue = Epilogue::None;
  second.routing = Routing::Scatter;
  Value parts = buffer(loc, {dynamic, width}, f32, topk, *rows);
  gemm(op, second, hidden, *down, /*residual=*/nullptr, parts, lists, "down");

  moec::CombineSpec combine;
  combine.topk = topk;
  combine.width = width;
  combine.yStride = rowStride(parts);
  combine.members = members;
  combine.rows = *rows;
  SmallVector<Value> args = {parts, memoryOf(op.getWeights())};
  if (!members.empty())
    args.push_back(memoryOf(op.getExperts()));
  if (op.getResidual()) {
    args.push_back(memoryOf(op.getResidual()));
    combine.residual = true;
    combine.residualStride = rowStride(args.back());
  }
  args.push_back(place(op.getResult(), *rows));
  combine.outStride = rowStride(args.back());
  launch(op, combine, args, "combine");
  return success();
}

//===----------------------------------------------------------------------===//
// The function
//===----------------------------------------------------------------------===//

LogicalResult StepLowering::checkSignature() {
  auto list = RankedTensorType::get({dynamic}, builder.getI32Type());
  SmallVector<Type> inputs(ProgramOp::RowsWanted + 1, list);
  FunctionType type = step.getFunctionType();
  auto logits = type.getNumResults() == 1 ? dyn_cast<RankedTensorType>(type.getResult(0)) : RankedTensorType();
  if (type.getInputs() != ArrayRef<Type>(inputs) || !logits || logits.getRank() != 2 || !logits.isDynamicDim(0) ||
      logits.isDynamicDim(1) || !logits.getElementType().isF32() || !step.getBody().hasOneBlock())
    return step.emitOpError("has type ") << type << ", expected (tokens, positions, slots, rows: " << list
                                         << ") -> tensor<?xVxf32> with one block";
  return success();
}

LogicalResult StepLowering::lowerCaches() {
  for (auto cache : llvm::make_early_inc_range(module.getOps<moe::CacheOp>())) {
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPoint(cache);
    names.claim(cache.getSymName().str(), ".");
    int64_t width = cache.getWidth();
    Type element = builder.getF32Type();
    StringAttr codes;
    if (moe::CacheCodesAttr format = cache.getCodes()) {
      width = moec::CodedEntry{format.getChannels(), width - format.getChannels()}.stride();
      element = builder.getI8Type();
      codes = builder.getStringAttr(moec::toString(
          format.getCodes() == moe::CodeFormat::Int8 ? moec::CacheCodes::Int8 : moec::CacheCodes::F8E4M3));
    } else {
      width = llvm::alignTo(width, target.vectorMultiple);
      if (auto type = cast_if_present<TypeAttr>(cache.getFormatAttr()))
        element = type.getValue();
    }
    CacheOp::create(builder, cache.getLoc(), cache.getSymName(), width, element, codes);
    cache.erase();
  }
  return success();
}

LogicalResult StepLowering::lowerOp(Operation &op) {
  if (!isa_and_nonnull<moe::MoeDialect>(op.getDialect()) && !isa<func::ReturnOp>(op))
    return op.emitOpError("has no lowering to exec");
  for (Type type : op.getResultTypes()) {
    auto shape = cast<RankedTensorType>(type);
    if (!isa<moe::WeightOp>(op) &&
        (!shape.isDynamicDim(0) || llvm::any_of(shape.getShape().drop_front(), ShapedType::isDynamic)))
      return op.emitOpError("gives ") << type << ", but only the number of rows may be, and must be, dynamic";
  }
  return TypeSwitch<Operation *, LogicalResult>(&op)
      .Case<moe::EmbedOp, moe::GatherRowsOp, moe::LinearOp, moe::GateUpOp, moe::SwigluOp, moe::AddOp, moe::RmsNormOp,
            moe::FakeQuantizeOp, moe::ReshapeOp, moe::SplitOp, moe::RopeOp, moe::MlaAttentionOp, moe::RouteOp,
            moe::ExpertsOp>([&](auto typed) { return lower(typed); })
      .Case<moe::WeightOp, func::ReturnOp>([](auto) { return success(); })
      .Case<moe::AttentionOp, moe::CacheAppendOp>([](auto typed) {
        return typed.emitOpError(
            "has no kernel by itself; run moe-fuse-mla first, which makes moe.mla_attention of it");
      })
      .Default([](Operation *other) { return other->emitOpError("has no lowering to exec"); });
}

LogicalResult StepLowering::run() {
  if (failed(checkSignature()) || failed(lowerCaches()))
    return failure();

  builder.setInsertionPointToEnd(module.getBody());
  program = ProgramOp::create(builder, step.getLoc(), names.claim(step.getSymName().str(), "."), maxTokens,
                              /*arena_bytes=*/IntegerAttr());
  auto list = MemRefType::get({dynamic}, builder.getI32Type());
  auto logits = cast<RankedTensorType>(step.getFunctionType().getResult(0));
  SmallVector<Type> types(ProgramOp::RowsWanted + 1, list);
  types.push_back(MemRefType::get({dynamic, dynamic}, builder.getI32Type()));
  types.push_back(MemRefType::get(logits.getShape(), logits.getElementType()));
  SmallVector<Location> locs(types.size(), step.getLoc());
  builder.createBlock(&program.getBody(), {}, types, locs);
  for (auto [from, to] : llvm::zip(step.getArguments(), program.getBody().getArguments()))
    places[from] = {to, Rows::T};

  // Weights stand before the function, kernels after it: the function goes in the end.
  weights = std::make_unique<WeightPacker>(target, names, OpBuilder(step));
  for (Operation &op : step.getBody().front())
    if (!isOpTriviallyDead(&op) && failed(lowerOp(op)))
      return failure();
  numWeights = weights->size();

  auto result = cast<func::ReturnOp>(step.getBody().front().getTerminator());
  if (memoryOf(result.getOperand(0)) != program.getArgument(ProgramOp::Logits))
    return result.emitOpError("gives no rows of logits: it must return what a kernel computes after moe.gather_rows");
  step.erase();
  return success();
}

struct MoeToExecPass : impl::MoeToExecPassBase<MoeToExecPass> {
  using Base::Base;
  MoeToExecPass(const MoeToExecPassOptions &options, moec::TargetTraits target)
      : Base(options), target(std::move(target)) {}

  void runOnOperation() override {
    ModuleOp module = getOperation();
    auto step = module.lookupSymbol<func::FuncOp>("step");
    if (!step || step.isExternal()) {
      module.emitError("module has no func.func @step to lower");
      return signalPassFailure();
    }
    if (maxTokens < 1) {
      module.emitError("max-tokens is ") << maxTokens.getValue() << ", expected at least 1";
      return signalPassFailure();
    }
    StepLowering lowering(module, step, target, maxTokens);
    if (failed(lowering.run()))
      return signalPassFailure();
    numLaunches += lowering.numLaunches;
    numKernels += lowering.numKernels();
    numWeights += lowering.numWeights;
  }

  moec::TargetTraits target;
};

} // namespace

std::unique_ptr<Pass> createMoeToExecPass(const MoeToExecPassOptions &options, moec::TargetTraits target) {
  return std::make_unique<MoeToExecPass>(options, std::move(target));
}

} // namespace mlir::exec
