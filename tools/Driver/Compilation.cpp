// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Compilation.h"

#include "codegen/Artifact/Manifest.h"
#include "codegen/Common/KernelSpec.h"
#include "codegen/Weights/Journal.h"
#include "codegen/Weights/Materialize.h"
#include "codegen/Weights/WeightFiles.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Reference/Interpreter.h"
#include "passes/Pipelines.h"
#include "runtime/CpuInfo.h"
#include "runtime/Hash.h"
#include "runtime/KernelAbi.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Safetensors.h"
#include "runtime/Support/Text.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include <dlfcn.h>
#include <sys/stat.h>

using namespace moec;

namespace {

/// Turns the first error that MLIR code emits while this lives into a sentence.
class DiagnosticSentence {
public:
  explicit DiagnosticSentence(mlir::MLIRContext &context)
      : handler(&context, [this](mlir::Diagnostic &diagnostic) {
          if (diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error && message.empty())
            message = text(diagnostic);
          return mlir::success();
        }) {}

  Error error() const { return Error{message.empty() ? "the compiler failed without saying why" : message}; }

private:
  /// Names the place as the checkpoint does, where the location is such a name.
  static std::string text(const mlir::Diagnostic &diagnostic) {
    std::string result = diagnostic.str();
    if (auto name = mlir::dyn_cast<mlir::NameLoc>(diagnostic.getLocation()))
      result = name.getName().str() + ": " + result;
    return result;
  }

  std::string message;
  mlir::ScopedDiagnosticHandler handler;
};

/// The files that make text of tokens; each may be absent.
constexpr std::array tokenizerFiles = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                                       "generation_config.json"};

/// Size and time of a file, as far as they tell that it is still the same.
std::string fileState(const std::string &path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0)
    return "absent\n";
  return path.substr(path.rfind('/') + 1) + " " + std::to_string(info.st_size) + " " +
         std::to_string(info.st_mtim.tv_sec) + "." + std::to_string(info.st_mtim.tv_nsec) + "\n";
}

/// The same of the program or library that this code is in.
std::string ownState() {
  static const char here = 0;
  Dl_info self;
  if (::dladdr(&here, &self) == 0 || !self.dli_fname)
    return "unknown\n";
  // A program that was found through PATH goes by its bare name.
  return fileState(std::strchr(self.dli_fname, '/') ? self.dli_fname : "/proc/self/exe");
}

} // namespace

/// What a textual pipeline asks for.
static Result<mlir::OpPassManager> parsePipeline(const std::string &text) {
  mlir::moe::registerMoePipelines();
  std::string errors;
  llvm::raw_string_ostream stream(errors);
  mlir::FailureOr<mlir::OpPassManager> pipeline = mlir::parsePassPipeline(text, stream);
  if (mlir::failed(pipeline)) {
    // The place is shown on further lines.
    llvm::StringRef reason = llvm::StringRef(errors).split('\n').first;
    if (size_t found = reason.find("error: "); found != llvm::StringRef::npos)
      reason = reason.substr(found + 7);
    return Error{"pass pipeline '" + text + "': " + reason.str()};
  }
  if (pipeline->getOpAnchorName() != mlir::ModuleOp::getOperationName())
    return Error{"pass pipeline '" + text + "': works on " + pipeline->getOpAnchorName().str() +
                 ", expected builtin.module(...)"};
  return std::move(*pipeline);
}

Status PassOptions::check() const {
  if (level < 0 || level > mlir::moe::kMaxOptimization)
    return Error{"level of optimization is " + std::to_string(level) + ", expected 0 to " +
                 std::to_string(mlir::moe::kMaxOptimization)};
  if (!pipeline.empty()) {
    MOEC_CHECK(parsePipeline(pipeline));
  }
  return success();
}

Compilation::Compilation(CompileOptions options, hf::SourceModel source)
    : options(std::move(options)), source(std::move(source)) {
  context.loadDialect<mlir::moe::MoeDialect, mlir::exec::ExecDialect, mlir::func::FuncDialect>();
}

Compilation::~Compilation() = default;

unsigned Compilation::threads() const {
  return options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency());
}

Result<std::unique_ptr<Compilation>> Compilation::open(CompileOptions options) {
  if (options.target != "cpu")
    return Error{"unknown target '" + options.target + "', expected cpu"};
  MOEC_TRY(hf::SourceModel source, hf::SourceModel::open(options.model));
  return of(std::move(options), std::move(source));
}

/// All CPU levels, for sentences.
static std::string levelNames() {
  std::string names;
  for (const cpu::Level &level : cpu::levels())
    names += (names.empty() ? "" : ", ") + level.name.str();
  return names;
}

/// The best level of this machine; empty if there is no code for it.
static std::string nativeLevel() {
  std::optional<CpuLevel> machine = machineCpuLevel();
  for (const cpu::Level &level : cpu::levels())
    if (machine && runsOn(*cpuLevelFromString(level.name.str()), *machine))
      return level.name.str();
  return "";
}

/// What `CompileOptions::cpus` asks for, in the order of `cpu::levels`.
static Result<std::vector<cpu::Level>> levelsFor(std::vector<std::string> cpus) {
  if (cpus.empty())
    cpus.push_back(cpu::hostArchitecture().str());
  std::set<std::string> wanted;
  for (const std::string &asked : cpus) {
    std::string name = asked == "native" ? nativeLevel() : asked;
    bool known = false;
    for (const cpu::Level &level : cpu::levels())
      if (level.name == name || level.architecture == name) {
        wanted.insert(level.name.str());
        known = true;
      }
    if (!known)
      return Error{"no code can be made for the CPU " + quote(asked) + ", expected native, x86-64, " + levelNames()};
  }
  std::vector<cpu::Level> result;
  llvm::copy_if(cpu::levels(), std::back_inserter(result),
                [&](const cpu::Level &level) { return wanted.contains(level.name.str()); });
  return result;
}

Result<std::unique_ptr<Compilation>> Compilation::of(CompileOptions options, hf::SourceModel source) {
  MOEC_CHECK(options.passes.check());
  MOEC_TRY(std::vector<cpu::Level> levels, levelsFor(options.cpus));
  if (options.rounding != "nearest" && options.calibration.empty())
    return Error{"rounding by " + options.rounding + " needs a calibration, a file that moec calibrate made"};
  std::optional<Calibration> calibration;
  if (!options.calibration.empty()) {
    MOEC_TRY(calibration, Calibration::open(options.calibration));
  }
  std::unique_ptr<Compilation> result(new Compilation(std::move(options), std::move(source)));
  result->calibration = std::move(calibration);
  result->levels = std::move(levels);
  DiagnosticSentence diagnostics(result->context);
  hf::ImportOptions import;
  import.maxContext = result->options.maxContext;
  import.layers = result->options.layers;
  auto module = hf::importModel(result->context, result->source.config, result->source.inventory, import);
  if (mlir::failed(module))
    return diagnostics.error();
  result->ir = std::move(*module);
  return result;
}

Status Compilation::run(llvm::function_ref<void(mlir::PassManager &)> build) {
  DiagnosticSentence diagnostics(context);
  mlir::PassManager manager(&context);
  if (options.configure)
    options.configure(manager);
  build(manager);
  if (mlir::failed(manager.run(*ir)))
    return diagnostics.error();
  return success();
}

std::string Compilation::text() {
  std::string result;
  llvm::raw_string_ostream stream(result);
  ir->print(stream, mlir::OpPrintingFlags().assumeVerified());
  stream << '\n';
  return result;
}

void Compilation::addMoePasses(mlir::OpPassManager &manager) const {
  if (!options.passes.pipeline.empty()) {
    manager = *parsePipeline(options.passes.pipeline);
    return;
  }
  mlir::moe::MoePipelineOptions formats;
  formats.level = options.passes.level;
  formats.experts = options.experts;
  formats.attention = options.attention;
  formats.dense = options.dense;
  formats.head = options.head;
  formats.overrides = options.formats;
  formats.rounding = options.rounding;
  formats.foldNorm = options.passes.foldNorm;
  formats.mla = options.mla;
  formats.cache = options.cache;
  mlir::moe::buildMoePipeline(manager, formats);
}

Status Compilation::optimize() {
  return run([&](mlir::PassManager &manager) { addMoePasses(manager); });
}

Status Compilation::lower() {
  return run([&](mlir::PassManager &manager) {
    mlir::moe::LowerPipelineOptions lowering;
    lowering.maxTokens = options.maxTokens;
    mlir::moe::buildLowerPipeline(manager, lowering);
  });
}

Result<std::vector<cpu::Kernel>> Compilation::kernels() {
  std::vector<cpu::Kernel> result;
  DiagnosticSentence diagnostics(context);
  for (auto op : ir->getOps<mlir::exec::KernelOp>()) {
    auto spec = fromAttr(op.getKind(), op.getSpec(), [&] { return op.emitError(); });
    if (mlir::failed(spec))
      return diagnostics.error();
    MOEC_CHECK(cpu::checkSpec(*spec));
    result.push_back({op.getSymName().str(), *spec});
  }
  return result;
}

Result<std::string> Compilation::code(Code kind, const std::string &levelName) {
  const cpu::Level *level = levelName.empty() ? &levels.front() : cpu::findLevel(levelName);
  if (!level)
    return Error{"unknown CPU level '" + levelName + "', expected one of " + levelNames()};
  MOEC_TRY(std::vector<cpu::Kernel> list, kernels());
  MOEC_TRY(std::vector<std::string> parts,
           cpu::compileKernels(list, *level, kind == Code::Llvm ? cpu::Output::LlvmIr : cpu::Output::Assembly));
  return std::accumulate(parts.begin(), parts.end(), std::string());
}

Result<Json> Compilation::manifestProgram() {
  DiagnosticSentence diagnostics(context);
  mlir::FailureOr<Json> program = buildManifestProgram(*ir);
  if (mlir::failed(program))
    return diagnostics.error();
  return std::move(*program);
}

std::string Compilation::fingerprint(const Json &program, const std::vector<WeightJob> &jobs) {
  std::string text = std::string(MOEC_VERSION) + "\n" + options.target + "\n";
  // Another build of the same version may make other code.
  text += ownState();
  text += program.dump() + "\n" + std::to_string(options.maxFileSize) + "\n";
  for (const cpu::Level &level : levels)
    text += level.name.str() + "\n";
  llvm::raw_string_ostream stream(text);
  for (const WeightJob &job : jobs) {
    stream << job.name << " " << toString(job.dtype) << " " << job.recipe;
    for (int64_t dim : job.shape)
      stream << " " << dim;
    for (const std::string &name : job.sources)
      stream << " " << name;
    stream << "\n";
  }
  std::set<std::string_view> shards;
  for (const auto &[name, tensor] : source.checkpoint.tensors())
    shards.insert(tensor.file);
  for (std::string_view shard : shards)
    stream << fileState(std::string(shard));
  if (calibration)
    stream << fileState(options.calibration);
  return xxh3Hex(text.data(), text.size());
}

Status Compilation::writeCode(const std::string &directory, Journal &journal, Json &manifest) {
  std::error_code error;
  std::filesystem::create_directory(directory + "/code", error);
  if (error)
    return Error{directory + "/code: cannot be made: " + error.message()};
  MOEC_TRY(std::vector<cpu::Kernel> list, kernels());
  for (const cpu::Level &level : levels) {
    std::string file = "code/" + level.name.str() + ".so", path = directory + "/" + file;
    MOEC_TRY(KnownFile known, journal.verify(file));
    if (known.bytes == 0 || known.bytes != std::filesystem::file_size(path, error)) {
      MOEC_TRY(std::vector<std::string> objects, cpu::compileKernels(list, level, cpu::Output::Object));
      MOEC_CHECK(cpu::linkShared(objects, path));
      known = {file, 0, {}};
      MOEC_CHECK(journal.extend(known, std::filesystem::file_size(path, error)));
    }
    manifest["code"].push_back(
        {{"level", level.name.str()}, {"file", file}, {"bytes", known.bytes}, {"xxh3", known.hash.hex()}});
  }
  return success();
}

Status Compilation::writeWeights(const std::string &directory, const std::vector<WeightJob> &jobs, Journal &journal,
                                 Json &manifest) {
  std::vector<TensorSpec> specs;
  uint64_t total = 0;
  for (const WeightJob &job : jobs) {
    specs.push_back({job.name, job.dtype, job.shape});
    total += job.bytes();
  }
  auto verifying = [&](uint64_t bytes, const std::string &file) {
    if (options.progress)
      options.progress(std::min(bytes, total), total, "verifying " + file);
  };
  MOEC_TRY(auto files, WeightFiles::open(directory, specs, options.maxFileSize, journal, verifying));
  uint64_t present = 0;
  for (size_t i = 0; i < jobs.size(); ++i)
    present += files->present(i);
  if (present > 0 && options.resumed)
    options.resumed(present, total);
  MaterializeOptions materializing;
  materializing.threads = threads();
  materializing.maxMemory = options.maxMemory;
  materializing.progress = options.progress;
  materializing.moments = calibration ? &*calibration : nullptr;
  MOEC_CHECK(materialize(jobs, source.checkpoint, *files, materializing));
  MOEC_TRY(std::vector<WeightFileEntry> entries, files->finish());
  for (const WeightFileEntry &entry : entries)
    manifest["weights"].push_back({{"file", entry.file}, {"bytes", entry.bytes}, {"xxh3", entry.xxh3}});
  return success();
}

Status Compilation::copyTokenizer(const std::string &directory) {
  for (const char *name : tokenizerFiles) {
    std::string from = options.model + "/" + name;
    std::error_code error;
    if (!std::filesystem::exists(from, error) && !error)
      continue;
    MOEC_TRY(std::string text, readFile(from));
    MOEC_CHECK(writeFile(directory + "/" + name, text));
  }
  return success();
}

Status Compilation::write(const std::string &output) {
  MOEC_TRY(OutputDirectory directory, OutputDirectory::create(output, "manifest.json"));
  MOEC_TRY(Json program, manifestProgram());
  std::vector<WeightJob> jobs;
  for (auto op : ir->getOps<mlir::exec::WeightOp>()) {
    MOEC_TRY(WeightJob job, WeightJob::from(op));
    jobs.push_back(std::move(job));
  }
  MOEC_TRY(Journal journal, Journal::open(directory.notesPath(), directory.path(), fingerprint(program, jobs)));

  Json manifest;
  manifest["format"] = "moec-artifact";
  manifest["version"] = 1;
  manifest["abi"] = MOE_ABI_VERSION;
  manifest["compiler"] = MOEC_VERSION;
  manifest["target"] = options.target;
  manifest["code"] = Json::array();
  manifest["weights"] = Json::array();
  for (auto &[key, value] : program.items())
    manifest[key] = value;
  MOEC_CHECK(copyTokenizer(directory.path()));
  MOEC_CHECK(writeCode(directory.path(), journal, manifest));
  try {
    MOEC_CHECK(writeWeights(directory.path(), jobs, journal, manifest));
  } catch (...) { // thrown by `progress`: whoever stops a compile may want to go on later
    directory.leave();
    throw;
  }
  MOEC_CHECK(writeFile(directory.path() + "/manifest.json", manifest.dump(1) + "\n"));
  return directory.commit();
}

Result<InterpretResult> Compilation::interpret(const std::vector<int32_t> &tokens, bool float64,
                                               mlir::moe::Interpreter::Observer observer) {
  using mlir::moe::InterpreterOptions;
  InterpreterOptions settings;
  settings.precision = float64 ? InterpreterOptions::Precision::F64 : InterpreterOptions::Precision::F32;
  settings.moments = calibration ? &*calibration : nullptr;
  DiagnosticSentence diagnostics(context);
  mlir::moe::Interpreter interpreter(*ir, source.checkpoint, settings);
  if (observer)
    interpreter.setObserver(std::move(observer));
  std::vector<int32_t> positions(tokens.size()), slots(tokens.size(), 0);
  std::iota(positions.begin(), positions.end(), 0);
  auto logits = interpreter.run(tokens, positions, slots, positions);
  if (mlir::failed(logits))
    return diagnostics.error();
  InterpretResult result;
  result.rows = logits->shape[0];
  result.vocab = logits->shape[1];
  result.logits.assign(logits->data.begin(), logits->data.end());
  return result;
}
