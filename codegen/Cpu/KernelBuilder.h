// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the emitters are written in: values with arithmetic, typed pointers and
/// structured loops over MLIR's `scf`, `arith`, `math`, `vector` and `llvm`.
///
/// - `Val` is an SSA value. Operators work on integers and floats, scalars and
///   vectors; a number or a scalar beside a vector is broadcast. Integers are
///   signed. Nothing is reassociated or contracted: `fma` is written where meant.
/// - `Ptr` is an address with an element type; `p + i` counts elements.
/// - Vectors of floats have `kLanes` lanes at every CPU level, whatever the
///   registers' width, so that all levels compute the same bits.

#ifndef MOEC_CODEGEN_CPU_KERNELBUILDER_H
#define MOEC_CODEGEN_CPU_KERNELBUILDER_H

#include "runtime/Support/DType.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

#include <concepts>
#include <type_traits>

namespace moec::cpu {

/// Lanes of every f32 vector.
inline constexpr int64_t kLanes = 16;

/// The instructions that a builder may ask for by name.
enum class Isa {
  Avx2,
  Avx2Dot, ///< and AVX_VNNI: products of bytes, summed up in one instruction
  Avx512,
  Avx512Dot, ///< and AVX512_VNNI, AVX512_BF16: products of bytes and of bf16, summed up in one instruction
  Amx,       ///< and AMX_TILE, AMX_INT8, AMX_BF16: tiles of products of bytes and of bf16
  Neon,      ///< of Armv8.0
  NeonDot,   ///< and FEAT_DotProd: products of bytes of equal signedness, summed up in one instruction
  NeonI8mm,  ///< and FEAT_I8MM, FEAT_BF16: of unsigned bytes and signed ones, and of bf16
};

class KernelBuilder;

template <typename T>
concept Number = std::is_arithmetic_v<T>;

/// An SSA value; see the file comment.
struct Val {
  mlir::Value value;
  KernelBuilder *builder = nullptr;

  operator mlir::Value() const { return value; }
  mlir::Type type() const { return value.getType(); }
  /// Of a vector.
  int64_t lanes() const { return llvm::cast<mlir::VectorType>(type()).getNumElements(); }
  /// A constant of this value's type (every lane `number`).
  template <Number T> Val like(T number) const {
    if constexpr (std::is_integral_v<T>)
      return likeInt(static_cast<int64_t>(number));
    else
      return likeFloat(number);
  }

private:
  Val likeInt(int64_t number) const;
  Val likeFloat(double number) const;
};

using Vals = llvm::SmallVector<Val, 8>;

Val operator+(Val a, Val b);
Val operator-(Val a, Val b);
Val operator*(Val a, Val b);
Val operator/(Val a, Val b); ///< integers: both must be >= 0
Val operator%(Val a, Val b); ///< integers >= 0
Val operator&(Val a, Val b);
Val operator|(Val a, Val b);
Val operator^(Val a, Val b);
Val operator<<(Val a, Val b);
Val operator>>(Val a, Val b); ///< arithmetic
Val operator<(Val a, Val b);  ///< floats: false with a NaN, as in C
Val operator<=(Val a, Val b);
Val operator>(Val a, Val b);
Val operator>=(Val a, Val b);
Val operator==(Val a, Val b);

#define MOEC_CPU_NUMBER_OPERATOR(op)                                                                                   \
  template <Number T> Val operator op(Val a, T b) { return a op a.like(b); }                                           \
  template <Number T> Val operator op(T a, Val b) { return b.like(a) op b; }
MOEC_CPU_NUMBER_OPERATOR(+)
MOEC_CPU_NUMBER_OPERATOR(-)
MOEC_CPU_NUMBER_OPERATOR(*)
MOEC_CPU_NUMBER_OPERATOR(/)
MOEC_CPU_NUMBER_OPERATOR(%)
MOEC_CPU_NUMBER_OPERATOR(&)
MOEC_CPU_NUMBER_OPERATOR(|)
MOEC_CPU_NUMBER_OPERATOR(^)
MOEC_CPU_NUMBER_OPERATOR(<<)
MOEC_CPU_NUMBER_OPERATOR(>>)
MOEC_CPU_NUMBER_OPERATOR(<)
MOEC_CPU_NUMBER_OPERATOR(<=)
MOEC_CPU_NUMBER_OPERATOR(>)
MOEC_CPU_NUMBER_OPERATOR(>=)
MOEC_CPU_NUMBER_OPERATOR(==)
#undef MOEC_CPU_NUMBER_OPERATOR

/// An address and the type of what lies there.
struct Ptr {
  Val base;
  mlir::Type element;

  Ptr operator+(Val index) const;
  Ptr operator+(int64_t index) const;
  /// One element.
  Val load() const;
  /// `lanes` neighbours as a vector; needs the alignment of one element only.
  Val load(int64_t lanes) const;
  /// A scalar or a vector of elements.
  void store(Val value) const;
  /// The lanes of a vector where `mask` (vector of i1) is set; the others' memory is not touched.
  void store(Val value, Val mask) const;
};

/// Builds kernels into a module; one at a time.
class KernelBuilder : public mlir::ImplicitLocOpBuilder {
public:
  KernelBuilder(mlir::ModuleOp module, Isa isa);

  const Isa instructions;
  bool hasAvx512Dot() const { return instructions == Isa::Avx512Dot || instructions == Isa::Amx; }

  mlir::Type i1, i8, i16, i32, i64, f16, f32, f64, ptr;
  mlir::Type vec(mlir::Type element, int64_t lanes = kLanes);

  /// Emits `void symbol(args, step, begin, end)` of runtime/KernelAbi.h around `body`.
  void kernel(llvm::StringRef symbol, llvm::function_ref<void()> body);
  /// Makes a kernel of the module one that others of it alone call.
  void hide(llvm::StringRef symbol);
  /// Runs tasks [begin, end) of another kernel of the module, whose arguments are those of this one from `firstArg` on.
  void call(llvm::StringRef symbol, int64_t firstArg, Val begin, Val end);
  /// Runs `body` for each task in [begin, end) of the call.
  void tasks(llvm::function_ref<void(Val task)> body);
  /// The tasks of the call, [first, second).
  std::pair<Val, Val> taskRange();
  /// Argument `index` of the launch.
  Ptr arg(int64_t index, mlir::Type element);
  Val isNotNull(Ptr pointer);
  /// Adds to the integer at `at`, which other threads add to too; returns what was there. Who sees another's sum sees
  /// all that it wrote before.
  Val atomicAdd(Ptr at, Val value);
  Val tokens() { return stepField(0); }
  Val rows() { return stepField(1); }
  Val pagesPerSlot() { return stepField(2); }

  Val wrap(mlir::Value value) { return {value, this}; }
  Val constant(mlir::Type type, int64_t number);
  Val constant(mlir::Type type, double number);
  Val cI64(int64_t number) { return constant(i64, number); }
  Val cF32(double number) { return constant(f32, number); }
  /// A vector constant, one number per lane.
  Val constants(llvm::ArrayRef<float> numbers);
  Val constants(llvm::ArrayRef<int32_t> numbers);
  /// The mask with the first `count` of `lanes` lanes set.
  Val firstLanes(int64_t count, int64_t lanes = kLanes);
  /// The same for a count (i64) known at run time.
  Val firstLanes(Val count);

  Val splat(Val scalar, int64_t lanes = kLanes);
  Val fma(Val a, Val b, Val c);
  Val sqrt(Val a);
  /// `condition` may be a scalar or a mask.
  Val select(Val condition, Val ifTrue, Val ifFalse);
  /// `a > b ? a : b`: a NaN in `a` yields `b`, one in `b` yields `b`.
  Val max(Val a, Val b) { return select(a > b, a, b); }
  Val min(Val a, Val b) { return select(a < b, a, b); }
  Val isNaN(Val a);
  /// The bits (i16) of f32 lanes rounded to bf16, to nearest even; a NaN stays one.
  Val toBf16(Val a);
  /// Both, side by side, as `toBf16` has them for numbers and for the NaN that has one bit of its fraction set; what is
  /// below 2^-126 in magnitude may become 0 of its sign. Takes one instruction where there is one.
  Val toBf16Fast(Val a, Val b);
  /// Same bits as another type.
  Val bitcast(Val a, mlir::Type type);
  /// To an integer or float type (element type, for vectors): sign extends, converts, widens or narrows.
  Val convert(Val a, mlir::Type element);
  Val zeroExtend(Val a, mlir::Type element);

  Val shuffle(Val a, Val b, llvm::ArrayRef<int64_t> lanes);
  Val extract(Val vector, int64_t lane);
  /// The sum of a vector's lanes as a tree: halves, quarters, ...
  Val sumLanes(Val vector);
  /// The greatest lane, by the tree of `max`.
  Val maxLanes(Val vector);
  /// Greatest or least of integer lanes.
  Val maxIntLanes(Val vector);
  Val minIntLanes(Val vector);

  void loop(Val from, Val to, int64_t step, llvm::function_ref<void(Val index)> body);
  /// A loop that carries values; returns what the last iteration gave (or `init`).
  Vals loop(Val from, Val to, int64_t step, llvm::ArrayRef<Val> init,
            llvm::function_ref<Vals(Val index, llvm::ArrayRef<Val> carried)> body);
  /// Calls `body(offset, mask)` for vectors that cover [0, width): a loop over whole vectors
  /// (null mask), then one masked tail.
  void vectors(int64_t width, llvm::function_ref<void(Val offset, Val mask)> body);
  void ifThen(Val condition, llvm::function_ref<void()> body);

  /// Lane l of `sums` (f32) with the products of the two bf16 of word l of `a` and those of `b` (i32): the upper
  /// halves' first, then the lower halves', each by a fused multiply-add, which may take subnormal numbers for zeros of
  /// their sign, and give them so. That is `vdpbf16ps` (on AMD's Zen 4 for 64 million random operands of all sizes;
  /// Intel's manual says the same), and what other levels compute in its place, with BFMLALT and BFMLALB where Arm has
  /// them. (Its BFDOT rounds otherwise.)
  Val dotBf16(Val sums, Val a, Val b);

  /// Pairs of bf16, words of i32: the first of two is the lower half.
  Val pairBf16(Val first, Val second);
  /// The two of each pair, as f32.
  std::pair<Val, Val> unpairBf16(Val pairs);

  /// A vector of lanes as `parts` registers hold it: `body` of the same part of each operand, one after the other, and
  /// its results side by side.
  Val inParts(int64_t parts, llvm::ArrayRef<Val> operands, llvm::function_ref<Val(llvm::ArrayRef<Val>)> body);

  /// What one of LLVM's functions gives; the instructions it stands for must be there.
  Val call(llvm::StringRef intrinsic, mlir::Type result, llvm::ArrayRef<Val> operands);

  /// Asks for the cache line at an address that will be read soon; there need be no memory.
  void prefetch(Ptr at);

  /// The same for weights that are read in order, `bytes` of them at `at` by a tile of `rows` rows: asks for what comes
  /// 8 KiB later. A tile of one or two rows waits for memory whatever it does, and the machine's own prefetchers see to
  /// that best; a taller one multiplies meanwhile, and these stop too soon.
  void prefetchPanel(Ptr at, int64_t bytes, int64_t rows);

  /// Stack memory of the kernel, 64-byte aligned, uninitialised.
  Ptr scratch(mlir::Type element, int64_t count);

  /// `lanes` weights of a stored type as f32. F8E4M3 comes as value / 256 (a bit pattern of f16,
  /// exact for subnormals too); multiply by `weightScale`.
  Val loadAsF32(Ptr stored, DType type, int64_t lanes = kLanes);
  /// One element, a scalar.
  Val loadOneAsF32(Ptr stored, DType type);
  /// kLanes numbers of a stored type, from the number `kLanes * v` at `bytes` on, as f32; exact.
  Val loadNumbers(Ptr bytes, DType type, int64_t v);
  static double weightScale(DType type) { return type == DType::F8E4M3 ? 256.0 : 1.0; }
  /// What lies in memory for a stored type.
  mlir::Type storage(DType type);

private:
  Val stepField(int64_t index);
  /// Elements of a stored type, as `storage` has them, as f32; see `loadAsF32`.
  Val widen(Val raw, DType type);

  mlir::ModuleOp module;
  mlir::Block *entry = nullptr;
};

/// Loads the dialects that a KernelBuilder emits.
void loadKernelDialects(mlir::MLIRContext &context);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_KERNELBUILDER_H
