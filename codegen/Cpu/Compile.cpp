// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/Compile.h"

#include "codegen/Common/KernelSignature.h"
#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Members.h"

#include "mlir/Conversion/ArithToLLVM/ArithToLLVM.h"
#include "mlir/Conversion/ControlFlowToLLVM/ControlFlowToLLVM.h"
#include "mlir/Conversion/MathToLLVM/MathToLLVM.h"
#include "mlir/Conversion/ReconcileUnrealizedCasts/ReconcileUnrealizedCasts.h"
#include "mlir/Conversion/SCFToControlFlow/SCFToControlFlow.h"
#include "mlir/Conversion/VectorToLLVM/ConvertVectorToLLVMPass.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"

#include "llvm/Analysis/TargetLibraryInfo.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/Target/TargetOptions.h"

#include <atomic>
#include <cmath>
#include <mutex>
#include <optional>
#include <thread>

namespace moec::cpu {

llvm::ArrayRef<Level> levels() {
  // v4 has 32 registers of one vector, v3 16 of half a vector, Arm 32 of a quarter.
  const Tiles wide{.gemmRows = 8,
                   .gemmAccumulators = 16,
                   .dotRows = 16,
                   .codesAhead = true,
                   .pairRows = 8,
                   .pairRowsWide = 8,
                   .valueVectors = 4};
  const Tiles narrow{
      .gemmRows = 6, .gemmAccumulators = 6, .dotRows = 4, .pairRows = 4, .pairRowsWide = 2, .valueVectors = 1};
  // An instruction takes pairs of bf16 as they lie in memory.
  Tiles ofPairs = wide;
  ofPairs.pairRows = ofPairs.pairRowsWide = 14;
  static const Level all[] = {
      {"x86-64-v4-amx", "x86-64", "x86-64-v4", "+avx512vnni,+avx512bf16,+amx-tile,+amx-int8,+amx-bf16", Isa::Amx,
       ofPairs},
      {"x86-64-v4-vnni", "x86-64", "x86-64-v4", "+avx512vnni,+avx512bf16", Isa::Avx512Dot, ofPairs},
      {"x86-64-v4", "x86-64", "x86-64-v4", "", Isa::Avx512, wide},
      {"x86-64-v3-vnni", "x86-64", "x86-64-v3", "+avxvnni", Isa::Avx2Dot, narrow},
      {"x86-64-v3", "x86-64", "x86-64-v3", "", Isa::Avx2, narrow},
      {"aarch64-i8mm", "aarch64", "generic", "+neon,+dotprod,+i8mm,+bf16", Isa::NeonI8mm, narrow},
      {"aarch64-dotprod", "aarch64", "generic", "+neon,+dotprod", Isa::NeonDot, narrow},
      {"aarch64", "aarch64", "generic", "+neon", Isa::Neon, narrow},
  };
  return all;
}

llvm::StringRef hostArchitecture() {
#if defined(__aarch64__)
  return "aarch64";
#else
  return "x86-64";
#endif
}

const Level *findLevel(llvm::StringRef name) {
  for (const Level &level : levels())
    if (level.name == name)
      return &level;
  return nullptr;
}

//===----------------------------------------------------------------------===//
// What can be emitted
//===----------------------------------------------------------------------===//

namespace {

/// Collects the first complaint about a spec.
struct Checker {
  std::optional<std::string> complaint;

  void require(bool holds, const llvm::Twine &sentence) {
    if (!holds && !complaint)
      complaint = sentence.str();
  }
  void positive(llvm::StringRef name, int64_t value) {
    require(value >= 1, name + " must be at least 1, found " + llvm::Twine(value));
  }
  void stride(llvm::StringRef name, int64_t value, int64_t width) {
    require(value >= width, name + " " + llvm::Twine(value) + " is less than the row's " + llvm::Twine(width));
  }
  void members(llvm::ArrayRef<int64_t> numbers) {
    require(std::ranges::adjacent_find(numbers, std::greater_equal<>()) == numbers.end(), "members must ascend");
    require(numbers.empty() || (numbers.front() >= 0 && numbers.back() <= MemberTable::maxMember),
            "members must be numbers from 0 to " + llvm::Twine(MemberTable::maxMember));
  }
  void finite(llvm::StringRef name, double value) { require(std::isfinite(value), name + " must be finite"); }
  void stored(DType type, bool fp8) {
    bool known = type == DType::F32 || type == DType::BF16 || type == DType::F16 || (fp8 && type == DType::F8E4M3);
    require(known, "weights of " + llvm::Twine(llvm::StringRef(toString(type))) + " are not supported");
  }

  /// Of rows that a kernel rounds as it stores them.
  void output(DType type, int64_t offset, int64_t columns) {
    require(type == DType::F32 || type == DType::BF16 || type == DType::U8, "results are stored as f32, bf16 or codes");
    if (type != DType::U8)
      return;
    positive("outputOffset", offset);
    require(columns % QuantizeRowsSpec::group == 0, llvm::Twine(columns) + " columns are no whole groups of " +
                                                        llvm::Twine(QuantizeRowsSpec::group) + " codes");
  }

  void operator()(const EmbedSpec &spec) {
    stored(spec.table, /*fp8=*/false);
    positive("width", spec.width);
    stride("outStride", spec.outStride, spec.width);
  }
  void operator()(const GatherRowsSpec &spec) {
    positive("width", spec.width);
    stride("xStride", spec.xStride, spec.width);
    stride("outStride", spec.outStride, spec.width);
  }
  void operator()(const RmsNormSpec &spec) {
    positive("width", spec.width);
    stride("xStride", spec.xStride, spec.width);
    stride("outStride", spec.outStride, spec.width);
    finite("eps", spec.eps);
  }
  void operator()(const GemmSpec &spec) {
    if (spec.weight != DType::U8)
      stored(spec.weight, /*fp8=*/true);
    positive("n", spec.n);
    positive("k", spec.k);
    require((spec.group != 0) == (spec.weight == DType::U8), "U8 weights, and no others, have groups");
    GroupFormat format = spec.format();
    int64_t multiple = format.codes == CodeKind::F4E2M1 ? 16 : GroupFormat::blockColumns;
    require(format.bits() == 8 || (spec.group % multiple == 0 && (spec.group == 0 || spec.k % format.unit() == 0)),
            "group " + llvm::Twine(spec.group) + " must be a multiple of " + llvm::Twine(multiple) +
                " whose units divide k " + llvm::Twine(spec.k));
    constexpr std::array scales = {DType::F32, DType::F16, DType::BF16, DType::F8E8M0, DType::F8E4M3};
    require(llvm::is_contained(scales, spec.groupScale),
            "scales of groups cannot be " + llvm::Twine(llvm::StringRef(toString(spec.groupScale))));
    positive("batch", spec.batch);
    stride("xStride", spec.xStride, spec.input == DType::U8 ? QuantizeRowsSpec::rowBytes(spec.k) : spec.k);
    stride("yStride", spec.yStride, spec.output == DType::U8 ? QuantizeRowsSpec::rowBytes(spec.n) : spec.n);
    output(spec.output, spec.outputOffset, spec.n);
    require(spec.output != DType::U8 || spec.epilogue != Epilogue::Add || spec.batch == 1,
            "a residual has no heads where codes are stored");
    require(spec.scaleCols >= 0, "scaleCols must not be negative");
    require(spec.scaleCols == 0 || spec.weight == DType::F8E4M3, "only F8_E4M3 weights have scales");
    require(spec.input == DType::F32 || spec.input == DType::U8 || spec.input == DType::BF16,
            "rows of x are f32, bf16 or codes");
    require(spec.input != DType::BF16 || (spec.weight == DType::BF16 && spec.xStride % 2 == 0 && spec.xBatch % 2 == 0),
            "bf16 rows are for weights of bf16, and have even strides");
    require(spec.input != DType::U8 || (spec.group != 0 && GemmSpec::takesCodes(format, spec.k)),
            "codes of x are for weights in codes of whole groups of 32 columns");
    if (spec.epilogue == Epilogue::Add)
      stride("residualStride", spec.residualStride, spec.n);
    require(spec.epilogue != Epilogue::Argmax ||
                (spec.routing == Routing::None && spec.batch == 1 && spec.output == DType::F32),
            "candidates for an argmax are of one matrix whose results are f32");
    if (spec.routing != Routing::None)
      positive("topk", spec.topk);
  }
  void operator()(const RopeAnglesSpec &spec) {
    require(!spec.invFreq.empty(), "invFreq is empty");
    for (float frequency : spec.invFreq)
      finite("invFreq", frequency);
    finite("factor", spec.factor);
  }
  void operator()(const RopeSpec &spec) {
    positive("heads", spec.heads);
    require(spec.dim >= 2 && spec.dim % 2 == 0, "dim must be even and positive, found " + llvm::Twine(spec.dim));
    stride("xHead", spec.heads > 1 ? spec.xHead : spec.dim, spec.dim);
    stride("outHead", spec.heads > 1 ? spec.outHead : spec.dim, spec.dim);
  }
  template <class Spec> void cacheEntry(const Spec &spec) {
    require(spec.cache == DType::F32 || spec.cache == DType::BF16,
            "a cache of " + llvm::Twine(llvm::StringRef(toString(spec.cache))) + " is not supported");
    require(spec.cache == DType::BF16 || spec.codes == CacheCodes::None, "entries in codes are read as bf16");
    positive("latent", spec.latent);
    require(spec.rope >= 0, "rope must not be negative");
    int64_t used = spec.latent + spec.rope;
    require(spec.width % kLanes == 0 && spec.width >= used,
            "width " + llvm::Twine(spec.width) + " must be a multiple of 16 that holds " + llvm::Twine(used));
  }
  void operator()(const CacheAppendSpec &spec) { cacheEntry(spec); }
  void operator()(const MlaAttentionSpec &spec) {
    cacheEntry(spec);
    positive("heads", spec.heads);
    finite("scale", spec.scale);
  }
  void operator()(const MlaCombineSpec &spec) {
    positive("heads", spec.heads);
    positive("latent", spec.latent);
  }
  void operator()(const MlaExpandedSpec &spec) {
    cacheEntry(spec);
    positive("heads", spec.heads);
    positive("nope", spec.nope);
    positive("value", spec.value);
    stored(spec.weight, /*fp8=*/false);
    stride("qStride", spec.qStride, spec.nope);
    stride("ropeStride", spec.ropeStride, spec.rope);
    stride("outHead", spec.heads > 1 ? spec.outHead : spec.value, spec.value);
    stride("outStride", spec.outStride, spec.value);
    output(spec.output, spec.outputOffset, spec.value);
    finite("scale", spec.scale);
  }
  void operator()(const RouteSpec &spec) {
    positive("experts", spec.experts);
    positive("topk", spec.topk);
    positive("groups", spec.groups);
    positive("topkGroups", spec.topkGroups);
    stride("logitsStride", spec.logitsStride, spec.experts);
    require(spec.shared >= 0, "shared must not be negative");
    finite("scale", spec.scale);
    if (complaint)
      return;
    require(spec.experts % spec.groups == 0,
            llvm::Twine(spec.experts) + " experts cannot be cut into " + llvm::Twine(spec.groups) + " groups");
    require(spec.topkGroups <= spec.groups && spec.topk <= spec.experts / spec.groups * spec.topkGroups,
            "topk " + llvm::Twine(spec.topk) + " exceeds the experts of " + llvm::Twine(spec.topkGroups) + " of " +
                llvm::Twine(spec.groups) + " groups");
  }
  void operator()(const DispatchSpec &spec) {
    positive("experts", spec.experts);
    positive("topk", spec.topk);
    require(spec.members.empty() || std::ssize(spec.members) == spec.experts,
            llvm::Twine(spec.members.size()) + " members, but " + llvm::Twine(spec.experts) + " experts");
    members(spec.members);
  }
  void operator()(const CombineSpec &spec) {
    positive("topk", spec.topk);
    positive("width", spec.width);
    stride("yStride", spec.yStride, spec.width);
    stride("outStride", spec.outStride, spec.width);
    members(spec.members);
  }
  void operator()(const ArgmaxSpec &spec) { positive("count", spec.count); }
  void operator()(const FakeQuantizeSpec &spec) {
    positive("width", spec.width);
    positive("group", spec.group);
    positive("rowsPerToken", spec.rowsPerToken);
    stride("xStride", spec.xStride, spec.width);
    stride("outStride", spec.outStride, spec.width);
    require(spec.codes == CodeKind::Int8 || spec.codes == CodeKind::F8E4M3,
            "activations are rounded to int8 or f8e4m3");
  }
  void operator()(const CastRowsSpec &spec) {
    positive("width", spec.width);
    positive("rowsPerToken", spec.rowsPerToken);
    stride("xStride", spec.xStride, spec.width);
    stride("outStride", spec.outStride, spec.width);
    require(spec.to == DType::BF16 || spec.to == DType::F32, "rows are rounded to bf16, and stored so or as f32");
  }
  void operator()(const QuantizeRowsSpec &spec) {
    positive("width", spec.width);
    require(spec.width % QuantizeRowsSpec::group == 0,
            "width " + llvm::Twine(spec.width) + " is no multiple of " + llvm::Twine(QuantizeRowsSpec::group));
    positive("scaleCols", spec.scaleCols);
    require(spec.scaleCols % QuantizeRowsSpec::group == 0, "scaleCols must be a multiple of the group");
    positive("offset", spec.offset);
    positive("rowsPerToken", spec.rowsPerToken);
    stride("xStride", spec.xStride, spec.width);
    stride("outStride", spec.outStride, QuantizeRowsSpec::rowBytes(spec.width));
  }
  void operator()(const RowsSpec &spec) {
    require(spec.parts.size() >= 2, "a kernel over rows has two parts or more");
    mlir::MLIRContext context;
    for (const KernelSpec &part : spec.parts) {
      require(worksOnRows(part), kindOf(part) + " does not work on rows");
      require(complaint || gridOf(part, &context) == gridOf(spec.parts.front(), &context),
              "parts of a kernel over rows have different grids");
    }
    parts(spec);
  }
  void operator()(const GemmChainSpec &spec) {
    auto *gemm = spec.parts.size() < 2 ? nullptr : std::get_if<GemmSpec>(&spec.parts[0]);
    auto *route = gemm ? std::get_if<RouteSpec>(&spec.parts[1]) : nullptr;
    auto *argmax = gemm ? std::get_if<ArgmaxSpec>(&spec.parts[1]) : nullptr;
    require(route || argmax, "a chain begins with a gemm and a route, or a gemm and an argmax");
    for (const KernelSpec &part : llvm::drop_begin(spec.parts, std::min<size_t>(spec.parts.size(), 2)))
      require(route && std::holds_alternative<DispatchSpec>(part), "only dispatches follow, and only after a route");
    require(complaint || (gemm->routing == Routing::None && gemm->batch == 1 &&
                          gemm->rows == (route ? route->rows : argmax->rows)),
            "a chain has a row of one matrix for each row that is read");
    require(complaint || !argmax || (gemm->epilogue == Epilogue::Argmax && gemm->panels() == argmax->count),
            "an argmax in a chain reads a candidate of each panel");
    parts(spec);
  }
  void operator()(const MlaValuesSpec &spec) {
    auto *combine = spec.parts.size() == 2 ? std::get_if<MlaCombineSpec>(&spec.parts.front()) : nullptr;
    auto *values = combine ? std::get_if<GemmSpec>(&spec.parts.back()) : nullptr;
    require(values, "values of attention are an mla_combine, then a gemm");
    require(complaint || (values->routing == Routing::None && values->rows == Rows::T &&
                          values->batch == combine->heads && values->k == combine->latent),
            "the values of attention are a gemm of all heads' latents");
    parts(spec);
  }
  template <MadeOfParts Spec> void parts(const Spec &spec) {
    for (const KernelSpec &part : spec.parts)
      if (!complaint)
        std::visit(*this, part);
  }
  void operator()(const ElementwiseSpec &spec) {
    positive("width", spec.width);
    stride("outStride", spec.outStride, spec.width);
  }
};

} // namespace

Status checkSpec(const KernelSpec &spec) {
  Checker checker;
  std::visit(checker, spec);
  if (checker.complaint)
    return Error{*checker.complaint};
  return success();
}

mlir::OwningOpRef<mlir::ModuleOp> emitModule(mlir::MLIRContext &context, llvm::ArrayRef<Kernel> kernels,
                                             const Level &level) {
  loadKernelDialects(context);
  mlir::OwningOpRef<mlir::ModuleOp> module = mlir::ModuleOp::create(mlir::UnknownLoc::get(&context));
  KernelBuilder builder(*module, level.isa);
  for (const Kernel &kernel : kernels)
    std::visit([&](const auto &spec) { emit(builder, kernel.symbol, spec, level.tiles); }, kernel.spec);
  return module;
}

//===----------------------------------------------------------------------===//
// Lowering
//===----------------------------------------------------------------------===//

Status lowerToLlvm(mlir::ModuleOp module) {
  std::string messages;
  mlir::ScopedDiagnosticHandler handler(module.getContext(), [&](mlir::Diagnostic &diagnostic) {
    if (messages.empty())
      messages = diagnostic.str();
  });
  mlir::PassManager passes(module.getContext());
  passes.addPass(mlir::createSCFToControlFlowPass());
  passes.addPass(mlir::createConvertVectorToLLVMPass());
  passes.addPass(mlir::createConvertMathToLLVMPass());
  passes.addPass(mlir::createArithToLLVMConversionPass());
  passes.addPass(mlir::createConvertControlFlowToLLVMPass());
  passes.addPass(mlir::createReconcileUnrealizedCastsPass());
  if (mlir::failed(passes.run(module)))
    return Error{"the CPU kernels cannot be lowered to LLVM: " + messages};
  return success();
}

namespace {

Result<std::unique_ptr<llvm::TargetMachine>> targetMachine(const Level &level) {
  static std::once_flag once;
  std::call_once(once, [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeAArch64TargetInfo();
    LLVMInitializeAArch64Target();
    LLVMInitializeAArch64TargetMC();
    LLVMInitializeAArch64AsmPrinter();
  });
  std::string message;
  llvm::Triple triple(level.architecture == "x86-64" ? "x86_64-unknown-linux-gnu" : "aarch64-unknown-linux-gnu");
  const llvm::Target *target = llvm::TargetRegistry::lookupTarget(triple, message);
  if (!target)
    return Error{"this LLVM cannot generate " + level.architecture.str() + " code: " + message};
  llvm::TargetOptions options;
  options.AllowFPOpFusion = llvm::FPOpFusion::Strict;
  return std::unique_ptr<llvm::TargetMachine>(target->createTargetMachine(
      triple, level.cpu, level.features, options, llvm::Reloc::PIC_, std::nullopt, llvm::CodeGenOptLevel::Aggressive));
}

void optimize(llvm::Module &module, llvm::TargetMachine &machine) {
  llvm::PipelineTuningOptions tuning;
  // Kernels are written in vectors; what scalar loops are left do bookkeeping.
  tuning.LoopVectorization = false;
  tuning.SLPVectorization = false;
  llvm::PassBuilder builder(&machine, tuning);
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager graphs;
  llvm::ModuleAnalysisManager modules;
  // There is no C library to call: loops must not become memcpy or memset.
  llvm::TargetLibraryInfoImpl library(module.getTargetTriple());
  library.disableAllFunctions();
  functions.registerPass([&] { return llvm::TargetLibraryAnalysis(library); });
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(graphs);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, graphs, modules);
  builder.buildPerModuleDefaultPipeline(llvm::OptimizationLevel::O3).run(module, modules);
}

} // namespace

Result<std::string> generate(mlir::ModuleOp module, const Level &level, Output output) {
  mlir::DialectRegistry registry;
  mlir::registerBuiltinDialectTranslation(registry);
  mlir::registerLLVMDialectTranslation(registry);
  module.getContext()->appendDialectRegistry(registry);
  llvm::LLVMContext context;
  std::unique_ptr<llvm::Module> code = mlir::translateModuleToLLVMIR(module, context, "moec");
  if (!code)
    return Error{"the CPU kernels cannot be translated to LLVM IR"};
  MOEC_TRY(std::unique_ptr<llvm::TargetMachine> machine, targetMachine(level));
  code->setTargetTriple(machine->getTargetTriple());
  code->setDataLayout(machine->createDataLayout());
  code->setPICLevel(llvm::PICLevel::SmallPIC);
  for (llvm::Function &function : *code) {
    if (function.isDeclaration())
      continue;
    function.addFnAttr("target-cpu", level.cpu);
    function.addFnAttr("target-features", level.features);
    function.addFnAttr("prefer-vector-width", "512");
    function.addFnAttr("no-builtins");
    function.addFnAttr(llvm::Attribute::NoUnwind);
  }
  optimize(*code, *machine);

  llvm::SmallString<0> text;
  llvm::raw_svector_ostream stream(text);
  if (output == Output::LlvmIr) {
    code->print(stream, nullptr);
    return text.str().str();
  }
  llvm::legacy::PassManager passes;
  auto kind = output == Output::Assembly ? llvm::CodeGenFileType::AssemblyFile : llvm::CodeGenFileType::ObjectFile;
  if (machine->addPassesToEmitFile(passes, stream, nullptr, kind))
    return Error{"this LLVM cannot write " + level.architecture.str() + " code"};
  passes.run(*code);
  return text.str().str();
}

Result<std::vector<std::string>> compileKernels(llvm::ArrayRef<Kernel> kernels, const Level &level, Output output) {
  for (const Kernel &kernel : kernels) {
    Status status = checkSpec(kernel.spec);
    if (!status.ok())
      return Error{"kernel " + kernel.symbol + ": " + status.message()};
  }
  // Few kernels a part, so that threads end together; the cut is by place in the list alone.
  constexpr size_t kPartSize = 4;
  size_t parts = std::max<size_t>((kernels.size() + kPartSize - 1) / kPartSize, 1);
  std::vector<std::string> outputs(parts);
  std::vector<std::optional<Error>> errors(parts);
  std::atomic<size_t> nextPart{0};
  auto work = [&] {
    for (size_t part; (part = nextPart++) < parts;) {
      auto compile = [&]() -> Result<std::string> {
        mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
        mlir::OwningOpRef<mlir::ModuleOp> module =
            emitModule(context, kernels.slice(part * kPartSize).take_front(kPartSize), level);
        MOEC_CHECK(lowerToLlvm(*module));
        return generate(*module, level, output);
      };
      Result<std::string> result = compile();
      if (result.ok())
        outputs[part] = std::move(*result);
      else
        errors[part] = result.takeError();
    }
  };
  size_t threads = std::min<size_t>(parts, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < threads; ++i)
    helpers.emplace_back(work);
  work();
  for (std::thread &helper : helpers)
    helper.join();
  for (std::optional<Error> &error : errors)
    if (error)
      return std::move(*error);
  return outputs;
}

} // namespace moec::cpu
