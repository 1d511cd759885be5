// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/KernelBuilder.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/BuiltinOps.h"

#include <numeric>

using namespace mlir;

namespace moec::cpu {

namespace {

bool isFloat(Value v) { return isa<FloatType>(getElementTypeOrSelf(v.getType())); }

/// Brings a scalar beside a vector to the vector's shape.
void broadcastEither(Val &a, Val &b) {
  auto va = dyn_cast<VectorType>(a.type());
  auto vb = dyn_cast<VectorType>(b.type());
  if (va && !vb)
    b = a.builder->splat(b, va.getNumElements());
  else if (vb && !va)
    a = a.builder->splat(a, vb.getNumElements());
}

template <typename FloatOp, typename IntOp> Val binary(Val a, Val b) {
  broadcastEither(a, b);
  assert(a.type() == b.type() && "operands of different types");
  KernelBuilder &builder = *a.builder;
  if (isFloat(a))
    return builder.wrap(FloatOp::create(builder, a.value, b.value));
  return builder.wrap(IntOp::create(builder, a.value, b.value));
}

template <typename IntOp> Val binaryInt(Val a, Val b) {
  broadcastEither(a, b);
  assert(a.type() == b.type() && !isFloat(a) && "integer operands of one type");
  return a.builder->wrap(IntOp::create(*a.builder, a.value, b.value));
}

Val compare(Val a, Val b, arith::CmpFPredicate floats, arith::CmpIPredicate ints) {
  broadcastEither(a, b);
  assert(a.type() == b.type() && "operands of different types");
  KernelBuilder &builder = *a.builder;
  if (isFloat(a))
    return builder.wrap(arith::CmpFOp::create(builder, floats, a.value, b.value));
  return builder.wrap(arith::CmpIOp::create(builder, ints, a.value, b.value));
}

unsigned alignmentOf(Type element) {
  return isa<LLVM::LLVMPointerType>(element) ? 8 : element.getIntOrFloatBitWidth() / 8;
}

TypedAttr numberAttr(Type type, double number) {
  Type element = getElementTypeOrSelf(type);
  TypedAttr scalar = isa<FloatType>(element) ? TypedAttr(FloatAttr::get(element, number))
                                             : TypedAttr(IntegerAttr::get(element, static_cast<int64_t>(number)));
  if (auto vector = dyn_cast<VectorType>(type))
    return DenseElementsAttr::get(vector, Attribute(scalar));
  return scalar;
}

} // namespace

Val Val::likeInt(int64_t number) const { return builder->constant(type(), number); }
Val Val::likeFloat(double number) const { return builder->constant(type(), number); }

Val operator+(Val a, Val b) { return binary<arith::AddFOp, arith::AddIOp>(a, b); }
Val operator-(Val a, Val b) { return binary<arith::SubFOp, arith::SubIOp>(a, b); }
Val operator*(Val a, Val b) { return binary<arith::MulFOp, arith::MulIOp>(a, b); }
// Unsigned, as the operands are never negative: it is the cheaper division.
Val operator/(Val a, Val b) { return binary<arith::DivFOp, arith::DivUIOp>(a, b); }
Val operator%(Val a, Val b) { return binaryInt<arith::RemUIOp>(a, b); }
Val operator&(Val a, Val b) { return binaryInt<arith::AndIOp>(a, b); }
Val operator|(Val a, Val b) { return binaryInt<arith::OrIOp>(a, b); }
Val operator^(Val a, Val b) { return binaryInt<arith::XOrIOp>(a, b); }
Val operator<<(Val a, Val b) { return binaryInt<arith::ShLIOp>(a, b); }
Val operator>>(Val a, Val b) { return binaryInt<arith::ShRSIOp>(a, b); }
Val operator<(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OLT, arith::CmpIPredicate::slt); }
Val operator<=(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OLE, arith::CmpIPredicate::sle); }
Val operator>(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OGT, arith::CmpIPredicate::sgt); }
Val operator>=(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OGE, arith::CmpIPredicate::sge); }
Val operator==(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OEQ, arith::CmpIPredicate::eq); }

Ptr Ptr::operator+(Val index) const {
  KernelBuilder &b = *base.builder;
  return {b.wrap(LLVM::GEPOp::create(b, b.ptr, element, base.value, ArrayRef<LLVM::GEPArg>{index.value})), element};
}

Ptr Ptr::operator+(int64_t index) const { return index ? *this + base.builder->cI64(index) : *this; }

Val Ptr::load() const {
  KernelBuilder &b = *base.builder;
  return b.wrap(LLVM::LoadOp::create(b, element, base.value, alignmentOf(element)));
}

Val Ptr::load(int64_t lanes) const {
  KernelBuilder &b = *base.builder;
  return b.wrap(LLVM::LoadOp::create(b, b.vec(element, lanes), base.value, alignmentOf(element)));
}

void Ptr::store(Val value) const {
  assert(getElementTypeOrSelf(value.type()) == element && "a value of another type");
  LLVM::StoreOp::create(*base.builder, value.value, base.value, alignmentOf(element));
}

void Ptr::store(Val value, Val mask) const {
  if (!mask.value)
    return store(value);
  assert(getElementTypeOrSelf(value.type()) == element && "a value of another type");
  // LLVM 22.1 makes a masked store of one lane a scalar one, of the width that the lane had before it was narrowed.
  auto constant = mask.value.getDefiningOp<arith::ConstantOp>();
  if (constant) {
    auto lanes = llvm::to_vector(cast<DenseElementsAttr>(constant.getValue()).getValues<bool>());
    if (lanes.front() && llvm::count(lanes, true) == 1)
      return store(base.builder->extract(value, 0));
  }
  LLVM::MaskedStoreOp::create(*base.builder, value.value, base.value, mask.value, alignmentOf(element));
}

KernelBuilder::KernelBuilder(ModuleOp module, Isa isa)
    : ImplicitLocOpBuilder(module.getLoc(), module.getContext()), instructions(isa), i1(getI1Type()), i8(getI8Type()),
      i16(getI16Type()), i32(getI32Type()), i64(getI64Type()), f16(getF16Type()), f32(getF32Type()), f64(getF64Type()),
      ptr(LLVM::LLVMPointerType::get(module.getContext())), module(module) {
  setInsertionPointToEnd(module.getBody());
}

Type KernelBuilder::vec(Type element, int64_t lanes) { return VectorType::get({lanes}, element); }

void KernelBuilder::kernel(StringRef symbol, llvm::function_ref<void()> body) {
  OpBuilder::InsertionGuard guard(*this);
  auto type = LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(getContext()), {ptr, ptr, i64, i64});
  auto function = LLVM::LLVMFuncOp::create(*this, symbol, type);
  entry = function.addEntryBlock(*this);
  setInsertionPointToStart(entry);
  body();
  LLVM::ReturnOp::create(*this, ValueRange());
}

void KernelBuilder::hide(StringRef symbol) {
  auto function = module.lookupSymbol<LLVM::LLVMFuncOp>(symbol);
  function.setLinkage(LLVM::Linkage::Internal);
}

void KernelBuilder::call(StringRef symbol, int64_t firstArg, Val begin, Val end) {
  Val args = (Ptr{wrap(entry->getArgument(0)), ptr} + firstArg).base;
  LLVM::CallOp::create(*this, module.lookupSymbol<LLVM::LLVMFuncOp>(symbol),
                       ValueRange{args, entry->getArgument(1), begin, end});
}

void KernelBuilder::tasks(llvm::function_ref<void(Val)> body) {
  auto [begin, end] = taskRange();
  loop(begin, end, 1, body);
}

std::pair<Val, Val> KernelBuilder::taskRange() { return {wrap(entry->getArgument(2)), wrap(entry->getArgument(3))}; }

Ptr KernelBuilder::arg(int64_t index, Type element) {
  Ptr args{wrap(entry->getArgument(0)), ptr};
  return {(args + index).load(), element};
}

Val KernelBuilder::isNotNull(Ptr pointer) {
  Val address = wrap(LLVM::PtrToIntOp::create(*this, i64, pointer.base));
  return (address == 0) ^ constant(i1, int64_t(1));
}

Val KernelBuilder::atomicAdd(Ptr at, Val value) {
  return wrap(LLVM::AtomicRMWOp::create(*this, LLVM::AtomicBinOp::add, at.base, value, LLVM::AtomicOrdering::acq_rel));
}

Val KernelBuilder::stepField(int64_t index) { return (Ptr{wrap(entry->getArgument(1)), i64} + index).load(); }

Val KernelBuilder::constant(Type type, int64_t number) {
  TypedAttr attr;
  Type element = getElementTypeOrSelf(type);
  if (isa<FloatType>(element))
    return constant(type, static_cast<double>(number));
  attr = IntegerAttr::get(element, number);
  if (auto vector = dyn_cast<VectorType>(type))
    attr = DenseElementsAttr::get(vector, Attribute(attr));
  return wrap(arith::ConstantOp::create(*this, attr));
}

Val KernelBuilder::constant(Type type, double number) {
  return wrap(arith::ConstantOp::create(*this, numberAttr(type, number)));
}

Val KernelBuilder::constants(ArrayRef<float> numbers) {
  auto type = cast<VectorType>(vec(f32, numbers.size()));
  return wrap(arith::ConstantOp::create(*this, DenseElementsAttr::get(type, numbers)));
}

Val KernelBuilder::constants(ArrayRef<int32_t> numbers) {
  auto type = cast<VectorType>(vec(i32, numbers.size()));
  return wrap(arith::ConstantOp::create(*this, DenseElementsAttr::get(type, numbers)));
}

Val KernelBuilder::firstLanes(int64_t count, int64_t lanes) {
  SmallVector<bool> bits(lanes, false);
  std::fill_n(bits.begin(), count, true);
  auto type = cast<VectorType>(vec(i1, lanes));
  return wrap(arith::ConstantOp::create(*this, DenseElementsAttr::get(type, ArrayRef<bool>(bits))));
}

Val KernelBuilder::firstLanes(Val count) {
  SmallVector<int32_t> lanes(kLanes);
  std::iota(lanes.begin(), lanes.end(), 0);
  return constants(ArrayRef<int32_t>(lanes)) < convert(count, i32);
}

Val KernelBuilder::splat(Val scalar, int64_t lanes) {
  return wrap(vector::BroadcastOp::create(*this, vec(scalar.type(), lanes), scalar.value));
}

Val KernelBuilder::fma(Val a, Val b, Val c) {
  // c first: where the product is of scalars it must not be taken for a vector's.
  broadcastEither(a, c);
  broadcastEither(b, c);
  broadcastEither(a, b);
  return wrap(math::FmaOp::create(*this, a.value, b.value, c.value));
}

Val KernelBuilder::sqrt(Val a) { return wrap(math::SqrtOp::create(*this, a.value)); }

Val KernelBuilder::select(Val condition, Val ifTrue, Val ifFalse) {
  broadcastEither(ifTrue, ifFalse);
  return wrap(arith::SelectOp::create(*this, condition.value, ifTrue.value, ifFalse.value));
}

Val KernelBuilder::isNaN(Val a) {
  return wrap(arith::CmpFOp::create(*this, arith::CmpFPredicate::UNO, a.value, a.value));
}

Val KernelBuilder::bitcast(Val a, Type type) {
  if (auto vector = dyn_cast<VectorType>(a.type()))
    if (!isa<VectorType>(type))
      type = vec(type, vector.getNumElements());
  return wrap(LLVM::BitcastOp::create(*this, type, a.value));
}

Val KernelBuilder::convert(Val a, Type element) {
  Type from = getElementTypeOrSelf(a.type());
  if (from == element)
    return a;
  Type type = element;
  if (auto vector = dyn_cast<VectorType>(a.type()))
    type = vec(element, vector.getNumElements());
  bool fromFloat = isa<FloatType>(from), toFloat = isa<FloatType>(element);
  bool widens = element.getIntOrFloatBitWidth() > from.getIntOrFloatBitWidth();
  assert((!fromFloat || toFloat) && "float to integer is poison for NaN: not offered");
  if (!fromFloat && toFloat)
    return wrap(arith::SIToFPOp::create(*this, type, a.value));
  if (fromFloat)
    return widens ? wrap(arith::ExtFOp::create(*this, type, a.value))
                  : wrap(arith::TruncFOp::create(*this, type, a.value));
  return widens ? wrap(arith::ExtSIOp::create(*this, type, a.value))
                : wrap(arith::TruncIOp::create(*this, type, a.value));
}

Val KernelBuilder::zeroExtend(Val a, Type element) {
  Type type = element;
  if (auto vector = dyn_cast<VectorType>(a.type()))
    type = vec(element, vector.getNumElements());
  return wrap(arith::ExtUIOp::create(*this, type, a.value));
}

Val KernelBuilder::shuffle(Val a, Val b, ArrayRef<int64_t> lanes) {
  return wrap(vector::ShuffleOp::create(*this, a.value, b.value, lanes));
}

Val KernelBuilder::extract(Val vector, int64_t lane) {
  return wrap(vector::ExtractOp::create(*this, vector.value, ArrayRef<int64_t>{lane}));
}

static SmallVector<int64_t> neighbours(int64_t from, int64_t count) {
  SmallVector<int64_t> lanes(count);
  std::iota(lanes.begin(), lanes.end(), from);
  return lanes;
}

/// The lower and the upper half of a vector's lanes.
static std::pair<Val, Val> halvesOf(KernelBuilder &b, Val v) {
  int64_t lanes = v.lanes() / 2;
  return {b.shuffle(v, v, neighbours(0, lanes)), b.shuffle(v, v, neighbours(lanes, lanes))};
}

/// Folds the upper half of a vector onto the lower with `combine` until one lane is left.
static Val foldHalves(KernelBuilder &b, Val v, llvm::function_ref<Val(Val, Val)> combine) {
  while (v.lanes() > 1) {
    auto [lower, upper] = halvesOf(b, v);
    v = combine(lower, upper);
  }
  return b.extract(v, 0);
}

Val KernelBuilder::sumLanes(Val vector) {
  return foldHalves(*this, vector, [](Val a, Val b) { return a + b; });
}

Val KernelBuilder::maxLanes(Val vector) {
  return foldHalves(*this, vector, [&](Val a, Val b) { return max(a, b); });
}

Val KernelBuilder::maxIntLanes(Val vector) {
  return wrap(vector::ReductionOp::create(*this, vector::CombiningKind::MAXSI, vector.value));
}

Val KernelBuilder::minIntLanes(Val vector) {
  return wrap(vector::ReductionOp::create(*this, vector::CombiningKind::MINSI, vector.value));
}

void KernelBuilder::loop(Val from, Val to, int64_t step, llvm::function_ref<void(Val)> body) {
  loop(from, to, step, {}, [&](Val index, ArrayRef<Val>) -> Vals {
    body(index);
    return {};
  });
}

Vals KernelBuilder::loop(Val from, Val to, int64_t step, ArrayRef<Val> init,
                         llvm::function_ref<Vals(Val, ArrayRef<Val>)> body) {
  SmallVector<Value> values(init.begin(), init.end());
  auto forOp = scf::ForOp::create(*this, from.value, to.value, cI64(step).value, values);
  {
    OpBuilder::InsertionGuard guard(*this);
    setInsertionPointToStart(forOp.getBody());
    Vals carried;
    for (Value v : forOp.getRegionIterArgs())
      carried.push_back(wrap(v));
    Vals next = body(wrap(forOp.getInductionVar()), carried);
    if (!init.empty()) {
      SmallVector<Value> yielded(next.begin(), next.end());
      scf::YieldOp::create(*this, yielded);
    }
  }
  Vals results;
  for (Value v : forOp.getResults())
    results.push_back(wrap(v));
  return results;
}

void KernelBuilder::vectors(int64_t width, llvm::function_ref<void(Val, Val)> body) {
  int64_t whole = width / kLanes * kLanes;
  if (whole > 0)
    loop(cI64(0), cI64(whole), kLanes, [&](Val offset) { body(offset, Val{}); });
  if (whole < width)
    body(cI64(whole), firstLanes(width - whole));
}

void KernelBuilder::ifThen(Val condition, llvm::function_ref<void()> body) {
  auto ifOp = scf::IfOp::create(*this, condition.value, /*withElseRegion=*/false);
  OpBuilder::InsertionGuard guard(*this);
  setInsertionPointToStart(ifOp.thenBlock());
  body();
}

Val KernelBuilder::inParts(int64_t parts, ArrayRef<Val> operands, llvm::function_ref<Val(ArrayRef<Val>)> body) {
  if (parts == 1)
    return body(operands);
  Vals lowers, uppers;
  for (Val operand : operands) {
    auto [lower, upper] = halvesOf(*this, operand);
    lowers.push_back(lower);
    uppers.push_back(upper);
  }
  Val lower = inParts(parts / 2, lowers, body), upper = inParts(parts / 2, uppers, body);
  return shuffle(lower, upper, neighbours(0, 2 * lower.lanes()));
}

Val KernelBuilder::call(StringRef intrinsic, Type result, ArrayRef<Val> operands) {
  SmallVector<Value> values(operands.begin(), operands.end());
  return wrap(LLVM::CallIntrinsicOp::create(*this, result, getStringAttr(intrinsic), values).getResult(0));
}

Val KernelBuilder::dotBf16(Val sums, Val a, Val b) {
  if (hasAvx512Dot()) {
    Type pairs = vec(getBF16Type(), 2 * kLanes);
    return call("llvm.x86.avx512bf16.dpbf16ps.512", vec(f32), {sums, bitcast(a, pairs), bitcast(b, pairs)});
  }
  if (instructions == Isa::NeonI8mm)
    return inParts(4, {sums, a, b}, [&](ArrayRef<Val> part) {
      Type pairs = vec(getBF16Type(), kLanes / 2), four = vec(f32, kLanes / 4);
      Val x = bitcast(part[1], pairs), y = bitcast(part[2], pairs);
      Val uppers = call("llvm.aarch64.neon.bfmlalt", four, {part[0], x, y});
      return call("llvm.aarch64.neon.bfmlalb", four, {uppers, x, y});
    });
  auto [first, second] = unpairBf16(a);
  auto [ofFirst, ofSecond] = unpairBf16(b);
  return fma(first, ofFirst, fma(second, ofSecond, sums));
}

Val KernelBuilder::pairBf16(Val first, Val second) {
  return zeroExtend(toBf16(first), i32) | (zeroExtend(toBf16(second), i32) << 16);
}

std::pair<Val, Val> KernelBuilder::unpairBf16(Val pairs) {
  return {bitcast(pairs << 16, f32), bitcast(pairs & static_cast<int32_t>(0xFFFF0000), f32)};
}

void KernelBuilder::prefetch(Ptr at) {
  LLVM::Prefetch::create(*this, at.base.value, /*rw=*/0, /*hint=*/2, /*cache=*/1);
}

void KernelBuilder::prefetchPanel(Ptr at, int64_t bytes, int64_t rows) {
  constexpr int64_t ahead = 8 << 10, line = 64;
  if (rows < 4)
    return;
  for (int64_t offset = 0; offset < bytes; offset += line)
    prefetch(Ptr{at.base, i8} + (ahead + offset));
}

Ptr KernelBuilder::scratch(Type element, int64_t count) {
  // In the entry block, so that it is a fixed part of the frame.
  OpBuilder::InsertionGuard guard(*this);
  setInsertionPointToStart(entry);
  return {wrap(LLVM::AllocaOp::create(*this, ptr, element, cI64(count).value, /*alignment=*/64)), element};
}

Type KernelBuilder::storage(DType type) {
  switch (type) {
  case DType::F32:
    return f32;
  case DType::F16:
    return f16;
  case DType::BF16:
    return i16;
  default:
    assert((type == DType::F8E4M3 || type == DType::F8E8M0 || type == DType::U8) &&
           "a stored type that specs do not allow");
    return i8;
  }
}

Val KernelBuilder::loadAsF32(Ptr stored, DType type, int64_t lanes) { return widen(stored.load(lanes), type); }

Val KernelBuilder::loadOneAsF32(Ptr stored, DType type) { return widen(stored.load(), type); }

Val KernelBuilder::loadNumbers(Ptr bytes, DType type, int64_t v) {
  Val value = loadAsF32({(bytes + v * kLanes * byteSize(type)).base, storage(type)}, type);
  double scale = weightScale(type);
  return scale == 1 ? value : value * scale;
}

Val KernelBuilder::widen(Val raw, DType type) {
  switch (type) {
  case DType::F32:
    return raw;
  case DType::F16:
    return convert(raw, f32);
  case DType::BF16:
    return bitcast(zeroExtend(raw, i32) << 16, f32);
  case DType::F8E8M0: {
    // The exponent of a float; 2^-127 is half of the least normal one.
    Val exponent = zeroExtend(raw, i32);
    return bitcast(select(exponent == 0, exponent.like(1 << 22), exponent << 23), f32);
  }
  default: {
    // Sign and exponent move to where f16 has them, which is 2^-8 times the value. Sign extension
    // leaves a copy of the sign in the highest exponent bit, which no such value uses. The code of
    // all ones, NaN in e4m3fn, would read as 480: it becomes f16's NaN.
    Val bits = (convert(raw, i16) << 7) & static_cast<int16_t>(0xBFFF);
    bits = select((bits & 0x3F80) == 0x3F80, bits | 0x7E00, bits);
    return convert(bitcast(bits, f16), f32);
  }
  }
}

/// The upper halves of the bits of f32 lanes become those of the nearest bf16, of two the even one.
static Val halfAdded(Val bits) { return bits + (((bits >> 16) & 1) + 0x7FFF); }

Val KernelBuilder::toBf16(Val a) {
  // In integers: the instruction for it takes subnormals for zero.
  Val bits = bitcast(a, i32);
  Val rounded = select(isNaN(a), bits | 0x00400000, halfAdded(bits));
  return convert(rounded >> 16, i16);
}

Val KernelBuilder::toBf16Fast(Val a, Val b) {
  if (hasAvx512Dot())
    return bitcast(call("llvm.x86.avx512bf16.cvtne2ps2bf16.512", vec(getBF16Type(), 2 * kLanes), {b, a}), i16);
  // The upper halves of all words.
  Val first = bitcast(halfAdded(bitcast(a, i32)), vec(i16, 2 * kLanes));
  Val second = bitcast(halfAdded(bitcast(b, i32)), vec(i16, 2 * kLanes));
  SmallVector<int64_t> lanes;
  for (int64_t l = 1; l < 4 * kLanes; l += 2)
    lanes.push_back(l);
  return shuffle(first, second, lanes);
}

void loadKernelDialects(MLIRContext &context) {
  context
      .loadDialect<arith::ArithDialect, LLVM::LLVMDialect, math::MathDialect, scf::SCFDialect, vector::VectorDialect>();
}

} // namespace moec::cpu
