// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// An artifact directory, read as if an enemy had written it. See
/// docs/artifact.md for the format.

#ifndef MOEC_RUNTIME_ARTIFACT_H
#define MOEC_RUNTIME_ARTIFACT_H

#include "runtime/Support/DType.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Result.h"
#include "runtime/Support/Safetensors.h"

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// Readable bytes that the runtime leaves behind weights, inputs and the arena
/// (kernels may load, never store, past the end).
inline constexpr uint64_t kReadableSlack = 128;

/// An integer expression in T (tokens of the step) and R (rows of logits).
class GridExpr {
public:
  /// `json` is an integer, "T", "R" or [op, a, b] with op one of
  /// + * ceildiv floordiv mod. Refuses an expression that could overflow 62
  /// bits or divide by less than 1 for some 1 <= T <= `maxTokens`,
  /// 0 <= R <= `maxTokens`.
  static Result<GridExpr> parse(const Json &json, int64_t maxTokens, const std::string &what);

  int64_t evaluate(int64_t tokens, int64_t rows) const;
  /// Bounds over all T and R of a step; not always attained.
  int64_t least() const { return low; }
  int64_t most() const { return high; }

private:
  enum class Op : uint8_t { Constant, T, R, Add, Mul, CeilDiv, FloorDiv, Mod };
  struct Step {
    Op op;
    int64_t value = 0;
  };
  Status append(const Json &json, int64_t maxTokens, const std::string &what, int depth);

  std::vector<Step> steps; ///< reverse Polish
  int64_t low = 0, high = 0;
};

struct CodeFile {
  std::string level; ///< "x86-64-v4", ...
  std::string path;  ///< inside the artifact, resolved
  uint64_t bytes = 0;
  std::string xxh3;
};

/// What a kernel multiplies in: elements of products, before they are summed.
enum class WorkUnit { F32, BF16, Int8 };
inline constexpr WorkUnit workUnits[] = {WorkUnit::F32, WorkUnit::BF16, WorkUnit::Int8};
/// "f32", "bf16", "int8"
std::string_view toString(WorkUnit unit);

/// What one launch of a kernel computes and reads at least. A multiplication and an addition are two operations.
struct WorkInfo {
  WorkUnit unit = WorkUnit::F32;
  int64_t perToken = 0;  ///< operations for each token of the step
  int64_t perRow = 0;    ///< ... for each row of logits
  int64_t perPair = 0;   ///< ... for each token and entry of the context that it attends to
  int64_t perEntry = 0;  ///< ... for each entry of the context of a run
  int64_t perChoice = 0; ///< ... for each expert that a token is given to
  /// Bytes of its weights that each token reads; unset: a launch reads them all, of experts those that are chosen.
  std::optional<int64_t> tokenBytes;
  /// Weights are `count` equal parts; arguments hold the first choice of each, i32[count + 1], and how many are chosen,
  /// followed by which, i32[count + 1].
  struct Experts {
    int64_t count = 0;
    size_t offsets = 0, active = 0; ///< positions of arguments
  };
  std::optional<Experts> experts;
};

struct KernelInfo {
  std::string symbol, kind;
  Json spec;
  WorkInfo work;
};

struct CacheInfo {
  std::string name;
  DType dtype = DType::F32;
  std::string codes; ///< what bytes (U8) are: "int8" or "fp8" codes and scales; empty for elements
  int64_t width = 0;
  /// Bytes of one page of MOE_PAGE_TOKENS entries.
  uint64_t pageBytes = 0;
};

struct BufferInfo {
  std::string name;
  DType dtype = DType::F32;
  std::vector<GridExpr> shape;
  uint64_t offset = 0, bytes = 0; ///< offset + bytes <= arenaBytes
};

/// One argument of a launch; `index` is into what `kind` says.
struct ArgInfo {
  enum class Kind { Tokens, Positions, Slots, Rows, PageTable, Logits, Argmax, Weight, Cache, Buffer };
  Kind kind = Kind::Tokens;
  size_t index = 0;    ///< of a weight, cache or buffer
  uint64_t offset = 0; ///< bytes; inside the thing it points into
};

struct LaunchInfo {
  size_t kernel = 0;
  std::string label;
  std::vector<GridExpr> grid; ///< the least is the number of tasks; at least one
  std::vector<size_t> writes; ///< ascending positions in `args`
  std::vector<ArgInfo> args;
  /// Left out of a step unless one of its runs, longest stretches of neighbouring tokens of one slot, has at least
  /// `runFrom` tokens and one has fewer than `runBelow`.
  int64_t runFrom = 1, runBelow = anyLength;
  static constexpr int64_t anyLength = std::numeric_limits<int64_t>::max();
  bool hasRunFrom() const { return runFrom > 1; }
  bool hasRunBelow() const { return runBelow != anyLength; }

  /// Number of tasks; less than 1 if there is nothing to do.
  int64_t tasks(int64_t tokens, int64_t rows) const;
};

struct ModelInfo {
  std::string type, name;
  int64_t vocab = 0, hidden = 0, layers = 0, maxContext = 0;
  int64_t bos = -1;         ///< -1: the model has none
  std::vector<int64_t> eos; ///< may be empty
};

/// A weight in a mapped file; at least kReadableSlack bytes behind it are readable.
struct WeightInfo {
  std::string name;
  TensorInfo tensor;
  const std::byte *data = nullptr;
  /// The checkpoint's matrices that it is made of, `{e}` for each expert's number; empty if the manifest does not say.
  std::vector<std::string> sources;
};

struct WeightFile {
  std::string path;
  uint64_t bytes = 0;
  std::string xxh3;
};

/// A whole artifact: every index, offset and size in it has been checked, and
/// its weights are mapped. Movable, immutable, safe to share between threads.
class Artifact {
public:
  /// The newest version of the format that this runtime reads.
  static constexpr int64_t version = 1;

  /// Reads `directory`. Code files are checked against their hashes; weights
  /// only against their sizes, as they may be larger than memory.
  static Result<Artifact> open(const std::string &directory);

  /// Reads all weights once and compares them with the manifest's hashes.
  Status verifyWeights() const;

  const std::string &directory() const { return dir; }
  const std::string &compiler() const { return compilerName; }
  const std::string &target() const { return targetName; }
  const ModelInfo &model() const { return modelInfo; }
  const std::vector<CodeFile> &code() const { return codeFiles; }
  const std::vector<WeightFile> &weightFiles() const { return weightFileInfos; }
  const std::vector<WeightInfo> &weights() const { return weightInfos; }
  const std::vector<KernelInfo> &kernels() const { return kernelInfos; }
  /// Whether the manifest says what work kernels are; those of an earlier moec do not.
  bool hasWork() const { return worksKnown; }
  const std::vector<CacheInfo> &caches() const { return cacheInfos; }
  const std::vector<BufferInfo> &buffers() const { return bufferInfos; }
  const std::vector<LaunchInfo> &launches() const { return launchInfos; }
  /// Whether the program gives the token with the greatest logit of each row, and can be run without storing logits.
  bool hasArgmax() const { return argmaxGiven; }
  /// T and R of one run of the program are at most this.
  int64_t maxTokens() const { return stepTokens; }
  uint64_t arenaBytes() const { return arena; }
  /// Pages that one sequence of model().maxContext tokens takes.
  int64_t pagesPerSlot() const;

private:
  class Mapping;

  Artifact() = default;
  Result<std::string> resolve(const std::string &relative, const std::string &what) const;
  Status readModel(const JsonObject &manifest);
  Status readCode(const JsonObject &manifest);
  Status readWeights(const JsonObject &manifest);
  Status readSources(const JsonObject &manifest);
  Status readKernels(const JsonObject &manifest);
  Status readProgram(const JsonObject &program);
  Status readBuffers(const JsonObject &program);
  Status readLaunch(const JsonObject &json);
  Result<ArgInfo> readArg(const Json &json, const std::string &what) const;
  Status checkExperts(const LaunchInfo &launch, const std::string &what) const;

  std::string dir, compilerName, targetName;
  ModelInfo modelInfo;
  std::vector<CodeFile> codeFiles;
  std::vector<WeightFile> weightFileInfos;
  std::vector<std::shared_ptr<const Mapping>> mappings;
  std::vector<WeightInfo> weightInfos;
  std::map<std::string, size_t> weightIndex;
  std::vector<KernelInfo> kernelInfos;
  bool worksKnown = false;
  std::vector<CacheInfo> cacheInfos;
  std::vector<BufferInfo> bufferInfos;
  std::vector<LaunchInfo> launchInfos;
  bool argmaxGiven = false;
  int64_t stepTokens = 0;
  uint64_t arena = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_ARTIFACT_H
