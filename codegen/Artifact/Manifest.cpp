// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Artifact/Manifest.h"

#include "codegen/Artifact/KernelWork.h"
#include "codegen/Common/KernelSignature.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"

#include "mlir/IR/AffineExpr.h"
#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace moec;

namespace {

/// The element types that verifiers of the exec dialect let through, and those of kernels.
DType dtypeOf(Type element) {
  if (element.isInteger(32))
    return DType::I32;
  std::optional<DType> stored = moe::storedType(element);
  assert(stored && "the verifier allows no other type");
  return *stored;
}

std::string nameOf(DType type) { return std::string(toString(type)); }

/// Attributes that have a JSON form: strings, numbers, booleans, lists and dictionaries.
FailureOr<Json> toJson(Attribute attr, Location loc) {
  if (auto string = dyn_cast<StringAttr>(attr))
    return Json(string.getValue().str());
  if (auto boolean = dyn_cast<BoolAttr>(attr))
    return Json(boolean.getValue());
  if (auto integer = dyn_cast<IntegerAttr>(attr); integer && integer.getValue().getSignificantBits() <= 64)
    return Json(integer.getValue().getSExtValue());
  if (auto number = dyn_cast<FloatAttr>(attr))
    return Json(number.getValueAsDouble());
  if (auto numbers = dyn_cast<DenseF32ArrayAttr>(attr))
    return Json(std::vector<float>(numbers.asArrayRef()));
  if (auto numbers = dyn_cast<DenseI64ArrayAttr>(attr))
    return Json(std::vector<int64_t>(numbers.asArrayRef()));
  if (auto array = dyn_cast<ArrayAttr>(attr)) {
    Json list = Json::array();
    for (Attribute element : array) {
      FailureOr<Json> json = toJson(element, loc);
      if (failed(json))
        return failure();
      list.push_back(std::move(*json));
    }
    return list;
  }
  if (auto dictionary = dyn_cast<DictionaryAttr>(attr)) {
    Json object = Json::object();
    for (NamedAttribute entry : dictionary) {
      FailureOr<Json> json = toJson(entry.getValue(), loc);
      if (failed(json))
        return failure();
      object[entry.getName().str()] = std::move(*json);
    }
    return object;
  }
  return emitError(loc) << "attribute " << attr << " has no form in a manifest";
}

Json toJson(AffineExpr expr) {
  if (auto constant = dyn_cast<AffineConstantExpr>(expr))
    return constant.getValue();
  if (auto dim = dyn_cast<AffineDimExpr>(expr))
    return dim.getPosition() == 0 ? "T" : "R";
  // The verifier allows no symbols.
  auto binary = cast<AffineBinaryOpExpr>(expr);
  const char *op = nullptr;
  switch (binary.getKind()) {
  case AffineExprKind::Add:
    op = "+";
    break;
  case AffineExprKind::Mul:
    op = "*";
    break;
  case AffineExprKind::Mod:
    op = "mod";
    break;
  case AffineExprKind::FloorDiv:
    op = "floordiv";
    break;
  default:
    assert(binary.getKind() == AffineExprKind::CeilDiv && "all binary kinds are listed");
    op = "ceildiv";
  }
  return Json::array({op, toJson(binary.getLHS()), toJson(binary.getRHS())});
}

/// What people call the part of the model that writes a buffer.
std::string labelOf(Location loc, StringRef otherwise) {
  if (auto name = loc->findInstanceOf<NameLoc>())
    return name.getName().str();
  return otherwise.str();
}

class ProgramWriter {
public:
  explicit ProgramWriter(ModuleOp module) : module(module) {}

  FailureOr<Json> run();

private:
  LogicalResult writeKernels();
  LogicalResult writeLaunch(exec::LaunchOp launch);
  LogicalResult checkLaunch(exec::LaunchOp launch, const KernelSpec &spec);
  FailureOr<Json> argument(exec::LaunchOp launch, Value value);
  Json sources();

  ModuleOp module;
  exec::ProgramOp program;
  Json kernels = Json::array(), caches = Json::array(), buffers = Json::array(), launches = Json::array();
  llvm::StringMap<std::pair<size_t, KernelSpec>> kernelIndex;
  llvm::StringMap<size_t> cacheIndex;
  DenseMap<Value, size_t> bufferIndex;
};

LogicalResult ProgramWriter::writeKernels() {
  for (auto kernel : module.getOps<exec::KernelOp>()) {
    FailureOr<KernelSpec> spec =
        fromAttr(kernel.getKind(), kernel.getSpec(), [&] { return kernel.emitOpError() << "is not valid: "; });
    if (failed(spec))
      return failure();
    FailureOr<Json> json = toJson(kernel.getSpec(), kernel.getLoc());
    if (failed(json))
      return failure();
    kernelIndex.try_emplace(kernel.getSymName(), kernels.size(), *spec);
    kernels.push_back(
        {{"symbol", kernel.getSymName().str()}, {"kind", kernel.getKind().str()}, {"spec", std::move(*json)}});
    if (Json work = workOf(*spec); !work.empty())
      kernels.back()["work"] = std::move(work);
  }
  return mlir::success();
}

LogicalResult ProgramWriter::checkLaunch(exec::LaunchOp launch, const KernelSpec &spec) {
  SmallVector<KernelArg> signature = argumentsOf(spec);
  if (launch.getArgs().size() != signature.size())
    return launch.emitOpError("passes ") << launch.getArgs().size() << " arguments to a " << kindOf(spec)
                                         << " kernel that takes " << signature.size();
  for (auto [arg, value] : llvm::zip_equal(signature, launch.getArgs())) {
    DType type = dtypeOf(cast<MemRefType>(value.getType()).getElementType());
    if (type != arg.type)
      return launch.emitOpError("passes ") << nameOf(type) << " as '" << arg.name << "' of a " << kindOf(spec)
                                           << " kernel that takes " << nameOf(arg.type);
  }
  SmallVector<int64_t> writes = writtenArgsOf(spec);
  if (launch.getWrites() != ArrayRef<int64_t>(writes))
    return launch.emitOpError("says that it writes ") << launch.getWritesAttr() << ", but its kernel writes "
                                                      << DenseI64ArrayAttr::get(launch.getContext(), writes);
  AffineMap grid = gridOf(spec, launch.getContext());
  if (launch.getGrid() != grid)
    return launch.emitOpError("has grid ")
           << launch.getGridAttr() << ", but its kernel asks for " << AffineMapAttr::get(grid);
  return mlir::success();
}

FailureOr<Json> ProgramWriter::argument(exec::LaunchOp launch, Value value) {
  auto type = cast<MemRefType>(value.getType());
  int64_t offset = type.getStridesAndOffset().second * byteSize(dtypeOf(type.getElementType()));
  while (auto view = value.getDefiningOp<exec::ViewOp>())
    value = view.getSource();
  Json json;
  if (auto argument = dyn_cast<BlockArgument>(value)) {
    unsigned index = argument.getArgNumber();
    json[exec::ProgramOp::isOutput(index) ? "output" : "input"] = exec::ProgramOp::getArgumentName(index).str();
    if (offset != 0)
      return launch.emitOpError("passes a view that begins inside '")
             << exec::ProgramOp::getArgumentName(index) << "'; it must begin at its start";
  } else if (auto weight = value.getDefiningOp<exec::WeightRefOp>()) {
    json["weight"] = weight.getWeight().str();
  } else if (auto cache = value.getDefiningOp<exec::CacheRefOp>()) {
    json["cache"] = cacheIndex.lookup(cache.getCache());
  } else {
    json["buffer"] = bufferIndex.lookup(value);
  }
  if (offset != 0)
    json["offset"] = offset;
  return json;
}

LogicalResult ProgramWriter::writeLaunch(exec::LaunchOp launch) {
  const auto &[index, spec] = kernelIndex.find(launch.getKernel())->second;
  if (failed(checkLaunch(launch, spec)))
    return failure();
  Json grid = Json::array(), args = Json::array();
  for (AffineExpr expr : launch.getGrid().getResults())
    grid.push_back(toJson(expr));
  for (Value value : launch.getArgs()) {
    FailureOr<Json> json = argument(launch, value);
    if (failed(json))
      return failure();
    args.push_back(std::move(*json));
  }
  launches.push_back({{"kernel", index},
                      {"label", launch.getLabel().value_or("").str()},
                      {"grid", std::move(grid)},
                      {"writes", std::vector<int64_t>(launch.getWrites())},
                      {"args", std::move(args)}});
  if (std::optional<int64_t> from = launch.getRunFrom())
    launches.back()["run_from"] = *from;
  if (std::optional<int64_t> below = launch.getRunBelow())
    launches.back()["run_below"] = *below;
  return mlir::success();
}

/// The checkpoint's matrices that each weight is made of; of a quantized one the tensor of the codes, which comes
/// first.
Json ProgramWriter::sources() {
  Json json = Json::object();
  for (auto weight : module.getOps<exec::WeightOp>()) {
    ArrayRef<Attribute> recipe = weight.getRecipe().getValue(), names = weight.getSources().getValue();
    auto dequant = recipe.empty() ? nullptr : dyn_cast<moe::DequantAttr>(recipe.front());
    Json &list = json[weight.getSymName().str()] = Json::array();
    for (size_t i = 0; i < names.size(); i += dequant ? dequant.getNumSources() : 1)
      list.push_back(cast<StringAttr>(names[i]).str());
  }
  return json;
}

FailureOr<Json> ProgramWriter::run() {
  auto programs = module.getOps<exec::ProgramOp>();
  if (!llvm::hasSingleElement(programs))
    return module.emitError("module has ")
           << std::distance(programs.begin(), programs.end()) << " exec.program, expected one";
  program = *programs.begin();
  if (!program.getArenaBytes())
    return program.emitOpError("has no memory plan; run exec-plan-memory first");
  auto facts = module->getAttrOfType<DictionaryAttr>("moe.model");
  if (!facts)
    return module.emitError("module has no dictionary 'moe.model' that says what the model is");
  FailureOr<Json> model = toJson(facts, module.getLoc());
  if (failed(model) || failed(writeKernels()))
    return failure();

  for (auto cache : module.getOps<exec::CacheOp>()) {
    cacheIndex[cache.getSymName()] = caches.size();
    caches.push_back({{"name", cache.getSymName().str()},
                      {"dtype", nameOf(dtypeOf(cache.getElementType()))},
                      {"width", cache.getWidth()}});
    if (std::optional<StringRef> codes = cache.getCodes())
      caches.back()["codes"] = codes->str();
  }
  int64_t maxTokens = program.getMaxTokens();
  for (auto buffer : program.getBody().getOps<exec::BufferOp>()) {
    MemRefType type = buffer.getType();
    Json shape = Json::array();
    for (int64_t size : type.getShape()) {
      if (!ShapedType::isDynamic(size))
        shape.push_back(size);
      else if (buffer.getPerRow())
        shape.push_back("R");
      else if (buffer.getRowsPerToken() == 1)
        shape.push_back("T");
      else
        shape.push_back(Json::array({"*", "T", buffer.getRowsPerToken()}));
    }
    bufferIndex[buffer] = buffers.size();
    // The verifier has seen that the buffer ends inside the arena.
    buffers.push_back({{"name", labelOf(buffer.getLoc(), "buffer") + "." + std::to_string(buffers.size())},
                       {"dtype", nameOf(dtypeOf(type.getElementType()))},
                       {"shape", std::move(shape)},
                       {"offset", *buffer.getOffset()},
                       {"bytes", *buffer.getBytes(maxTokens)}});
  }
  for (auto launch : program.getBody().getOps<exec::LaunchOp>())
    if (failed(writeLaunch(launch)))
      return failure();

  Json json;
  json["model"] = std::move(*model);
  json["sources"] = sources();
  json["kernels"] = std::move(kernels);
  json["program"] = {{"max_tokens", maxTokens},
                     {"arena_bytes", *program.getArenaBytes()},
                     {"caches", std::move(caches)},
                     {"buffers", std::move(buffers)},
                     {"launches", std::move(launches)}};
  return json;
}

} // namespace

FailureOr<Json> moec::buildManifestProgram(ModuleOp module) { return ProgramWriter(module).run(); }
