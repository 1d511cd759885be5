// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The whole way from a checkpoint directory to an artifact, step by step, for
/// the command line and for Python. Every failure is one sentence.

#ifndef MOEC_TOOLS_DRIVER_COMPILATION_H
#define MOEC_TOOLS_DRIVER_COMPILATION_H

#include "codegen/Cpu/Compile.h"
#include "dialects/Formats/Calibration.h"
#include "dialects/Moe/Reference/Interpreter.h"
#include "frontends/HuggingFace/Import.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Result.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mlir {
class OpPassManager;
class PassManager;
} // namespace mlir

namespace moec {

class Journal;
struct WeightJob;

/// Which passes optimize the model.
struct PassOptions {
  int64_t level = 2;     ///< 0 to 3, as `mlir::moe::buildMoePipeline` has them
  bool foldNorm = false; ///< whether the pass `moe-fold-norm` runs below level 3 too
  std::string pipeline;  ///< a textual pipeline, "builtin.module(...)", instead of a level and formats; empty: none

  /// Fails on a pipeline that cannot be parsed or a level that is not there.
  Status check() const;
};

struct CompileOptions {
  std::string model;          ///< checkpoint directory
  std::string target = "cpu"; ///< the only one so far
  /// CPUs that the artifact has code for: levels ("x86-64-v4", ...), architectures with all of their levels ("x86-64",
  /// "aarch64"), or "native", the best level of this machine. Empty: this machine's architecture.
  std::vector<std::string> cpus;
  /// Longest sequence the artifact accepts; 0: what config.json allows, at most 32768.
  int64_t maxContext = 0;
  /// The layers to compile, in rising order; empty: all. See `hf::ImportOptions`.
  std::vector<int64_t> layers;
  /// Formats of weights, as the pass `moe-quantize` names them: routed experts, attention's projections, feed-forward
  /// layers that every token takes, the projection to logits.
  std::string experts = "keep", attention = "keep", dense = "keep", head = "keep";
  /// Formats by name, before those: lines of REGEX=FORMAT; and how codes are chosen: "nearest", "importance" or
  /// "feedback", the last two by what `calibration` holds, a file that `moec calibrate` made.
  std::string formats, rounding = "nearest", calibration;
  PassOptions passes;
  /// Form of latent attention, as the pass `moe-choose-mla` names it: auto, absorbed or expanded.
  std::string mla = "auto";
  /// Format of cache entries, as the pass `moe-store-cache` names it: f32, bf16, int8 or fp8.
  std::string cache = "f32";
  /// Tokens in one run of the program; longer steps are cut by the runtime.
  int64_t maxTokens = 512;
  /// Bounds the materializer's tiles and mapped source pages, in bytes.
  uint64_t maxMemory = 2ull << 30;
  /// Weights go into files of at most so many bytes each, whole tensors at a time.
  uint64_t maxFileSize = 4ull << 30;
  unsigned threads = 0; ///< 0: as many as there are processors
  /// Called on each pass manager before it runs: IR printing, timing.
  std::function<void(mlir::PassManager &)> configure;
  /// Progress of the weights: bytes that are there, and which weight (or file being verified) it is about.
  std::function<void(uint64_t doneBytes, uint64_t totalBytes, const std::string &what)> progress;
  /// Called where an interrupted compile is taken up again, once its bytes are verified.
  std::function<void(uint64_t presentBytes, uint64_t totalBytes)> resumed;
};

/// Logits of the reference interpreter.
struct InterpretResult {
  int64_t rows = 0, vocab = 0;
  std::vector<float> logits; ///< [rows, vocab]
};

/// One checkpoint on its way to an artifact. The module is imported by `open`,
/// rewritten by `optimize`, turned into a device program by `lower`.
class Compilation {
public:
  /// Reads config and headers and imports the model; no weight is read.
  static Result<std::unique_ptr<Compilation>> open(CompileOptions options);
  /// The same for a model that is known already; without a checkpoint only `write` and `interpret` fail.
  static Result<std::unique_ptr<Compilation>> of(CompileOptions options, hf::SourceModel source);
  ~Compilation();

  /// The module as it is now.
  mlir::ModuleOp program() { return *ir; }
  /// The same as text.
  std::string text();
  const hf::ModelConfig &config() const { return source.config; }
  const std::string &target() const { return options.target; }
  const hf::TensorTable &checkpointTensors() const { return source.checkpoint.tensors(); }

  /// Runs passes over the module.
  Status run(llvm::function_ref<void(mlir::PassManager &)> build);
  /// Those that `optimize` runs: the pipeline of the options, else that of their level and formats.
  void addMoePasses(mlir::OpPassManager &manager) const;
  Status optimize(); ///< plain `moe` -> fused `moe`
  Status lower();    ///< fused `moe` -> `exec` with its memory planned

  /// LLVM IR or assembly of every kernel for one CPU level ("x86-64-v4", or "" for the best of those that `write` would
  /// make code for); after `lower`.
  enum class Code { Llvm, Assembly };
  Result<std::string> code(Code kind, const std::string &level);

  /// The keys `model`, `kernels` and `program` of the artifact's manifest; after `lower`.
  Result<Json> manifestProgram();

  /// Generates code, makes the weights and writes the artifact; after `lower`.
  /// `output` appears whole or not at all; an earlier artifact there is replaced.
  /// What a killed process made of the same output is verified and used; on an
  /// error, nothing is left. What `progress` throws goes on to the caller, and
  /// leaves as much as a kill does.
  Status write(const std::string &output);

  /// Runs the module, imported or optimized, in the reference interpreter: one
  /// sequence from position 0, logits of every token. `float64` computes in double. `observer` is told of each op.
  Result<InterpretResult> interpret(const std::vector<int32_t> &tokens, bool float64,
                                    mlir::moe::Interpreter::Observer observer = {});

private:
  Compilation(CompileOptions options, hf::SourceModel source);
  /// The kernels that the program launches.
  Result<std::vector<cpu::Kernel>> kernels();
  /// What the bytes of the artifact follow from, as a hash.
  std::string fingerprint(const Json &program, const std::vector<WeightJob> &jobs);
  Status writeCode(const std::string &directory, Journal &journal, Json &manifest);
  Status writeWeights(const std::string &directory, const std::vector<WeightJob> &jobs, Journal &journal,
                      Json &manifest);
  Status copyTokenizer(const std::string &directory);
  unsigned threads() const;

  CompileOptions options;
  hf::SourceModel source;
  std::optional<Calibration> calibration;
  std::vector<cpu::Level> levels; ///< to make code for, of each architecture the best first
  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> ir;
};

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_COMPILATION_H
