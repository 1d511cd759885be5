// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Plan.h"

#include "codegen/Weights/Materialize.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Formats/CodedEntry.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "frontends/HuggingFace/Inventory.h"
#include "passes/Analysis/Cost.h"
#include "passes/Moe/WeightFormat.h"
#include "runtime/Support/CacheCodes.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Text.h"
#include "tools/Driver/Compilation.h"
#include "tools/Driver/CompileRate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>

using namespace moec;
using hf::ModelConfig;
using hf::Part;

//===----------------------------------------------------------------------===//
// Formats
//===----------------------------------------------------------------------===//

std::span<const WeightFormat> moec::weightFormats() {
  static constexpr std::array formats = {
      WeightFormat{"f32", 32},
      WeightFormat{"bf16", 16},
      WeightFormat{"fp8", 8, 32, 128, 128, Unit::Fp8}, // DeepSeek-V3's blocks
      WeightFormat{"int8", 8, 32, 1, 0, Unit::Int8},   // one f32 scale for each row
      WeightFormat{"int4", 4, 16, 1, 32},              // one f16 scale for each 32 of a row
      WeightFormat{"mxfp4", 4, 8, 1, 32, Unit::Fp8},   // OCP Microscaling Formats 1.0, as in DeepSeek-V4
      WeightFormat{"nvfp4", 4, 8, 1, 16},
  };
  return formats;
}

const WeightFormat *moec::findWeightFormat(std::string_view name) {
  for (const WeightFormat &format : weightFormats())
    if (format.name == name)
      return &format;
  return nullptr;
}

static int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint64_t WeightFormat::bytes(int64_t rows, int64_t cols) const {
  int64_t total = rows * ceilDiv(cols * bits, 8);
  if (scaleBits) {
    int64_t blockCols = scaleCols ? scaleCols : cols;
    total += ceilDiv(rows, scaleRows) * ceilDiv(cols, blockCols) * scaleBits / 8;
  }
  return static_cast<uint64_t>(total);
}

std::string_view moec::toString(RateSource source) {
  switch (source) {
  case RateSource::Assumed:
    return "assumed";
  case RateSource::Given:
    return "given";
  case RateSource::Measured:
    return "measured";
  }
  return "";
}

//===----------------------------------------------------------------------===//
// The model
//===----------------------------------------------------------------------===//

namespace {

/// Keys whose values a config may have and moec not: without them the config still says what tensors there are.
constexpr std::array optionalKeys = {"quantization_config", "attention_bias",  "mlp_bias",    "hidden_act",
                                     "rope_interleave",     "rope_parameters", "rope_scaling"};

/// Reads `path`; a refusal of one of the keys above becomes an entry of `unsupported`.
Result<ModelConfig> readConfig(const std::string &path, std::vector<std::string> &unsupported) {
  MOEC_TRY(Json json, readJsonFile(path, 1 << 20));
  for (;;) {
    Result<ModelConfig> config = ModelConfig::parse(json, path);
    if (config.ok())
      return config;
    auto key = std::ranges::find_if(optionalKeys, [&](const char *key) {
      return json.is_object() && json.contains(key) &&
             config.message().find("'" + std::string(key)) != std::string::npos;
    });
    if (key == optionalKeys.end())
      return config;
    unsupported.push_back(config.message());
    json.erase(*key);
  }
}

/// "model.layers.3.mlp.experts.7.up_proj.weight" -> "model.layers.3.mlp.experts.{e}.up_proj": the module, whatever its
/// tensors are called in this or that format.
std::string moduleOf(std::string name) {
  constexpr std::string_view family = ".experts.";
  name.resize(std::min(name.rfind('.'), name.size()));
  size_t begin = name.find(family);
  if (begin == std::string::npos)
    return name;
  begin += family.size();
  size_t end = std::min(name.find_first_not_of("0123456789", begin), name.size());
  return end == begin ? name : name.replace(begin, end - begin, "{e}");
}

/// What one token at a position costs beside weights.
class ContextCost {
public:
  /// `element`: bytes of a cached number. `expands`: a prompt's latents may be expanded to keys and values, once for
  /// each of its tokens, where that is less work than attending to the latents themselves.
  ContextCost(const ModelConfig &config, double element, bool expands)
      : config(config), element(element), expands(expands) {}

  /// Bytes that a sequence of so many tokens keeps.
  double kept(double tokens) const {
    if (!config.v4)
      return layers() * (tokens * entry() + (isSparse(tokens) ? tokens * indexEntry() : 0));
    double bytes = layers() * std::min(tokens, window) * entry();
    for (int64_t ratio : config.v4->ratios)
      if (ratio > 0)
        bytes += tokens / static_cast<double>(ratio) * (entry() + (ratio == indexedRatio ? indexEntry() : 0));
    return bytes;
  }
  /// Bytes that the next token reads.
  double read(double tokens) const {
    double bytes = 0;
    visit(tokens, [&](double attended, double scanned) { bytes += attended * entry() + scanned * indexEntry(); });
    return bytes;
  }
  /// Multiplications and additions of the next token, of the prompt or behind it. The products that expand its own
  /// latent are those of a weight, and not among them.
  double operations(double tokens, bool prompt) const {
    double heads = static_cast<double>(config.heads);
    double pair = pairOperations(tokens, prompt);
    double index = config.indexer ? 2.0 * static_cast<double>(config.indexer->heads * config.indexer->headDim) : 0;
    double sum = 0;
    visit(tokens, [&](double attended, double scanned) { sum += attended * heads * pair + scanned * index; });
    return sum;
  }

private:
  static constexpr double window = 128;      ///< V4's uncompressed tokens
  static constexpr int64_t indexedRatio = 4; ///< V4's layers with an indexer
  double layers() const { return static_cast<double>(config.layers); }
  /// Of one head, one token and one entry that it attends to.
  double pairOperations(double tokens, bool prompt) const {
    if (config.v4)
      return 4.0 * static_cast<double>(config.v4->headDim);
    double absorbed =
        mlir::moe::absorbedPairFlops(static_cast<double>(config.kvLoraRank), static_cast<double>(config.ropeDim));
    // Where each token picks entries of its own, there is nothing to share.
    if (!expands || !prompt || isSparse(tokens))
      return absorbed;
    return std::min(absorbed, mlir::moe::expandedPairFlops(static_cast<double>(config.queryDim() - config.ropeDim),
                                                           static_cast<double>(config.ropeDim),
                                                           static_cast<double>(config.valueDim)));
  }
  double entry() const {
    return element * static_cast<double>(config.v4 ? config.v4->headDim : config.kvLoraRank + config.ropeDim);
  }
  /// FP8 with one f32 scale.
  double indexEntry() const { return config.indexer ? static_cast<double>(config.indexer->headDim) + 4 : 0; }
  /// Until the context is as long as what an indexer picks, it picks everything.
  bool isSparse(double tokens) const {
    return config.indexer && !config.v4 && tokens > static_cast<double>(config.indexer->topk);
  }
  /// `fn(entries attended to, entries that an indexer looks at)` for each layer.
  template <typename Fn> void visit(double tokens, Fn fn) const {
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      if (!config.v4) {
        bool sparse = isSparse(tokens);
        fn(sparse ? static_cast<double>(config.indexer->topk) : tokens, sparse ? tokens : 0);
        continue;
      }
      int64_t ratio = config.v4->ratios[layer];
      double compressed = ratio ? tokens / static_cast<double>(ratio) : 0;
      bool indexed = ratio == indexedRatio && config.indexer;
      double picked = indexed ? std::min(compressed, static_cast<double>(config.indexer->topk)) : compressed;
      fn(std::min(tokens, window) + picked, indexed ? compressed : 0);
    }
  }

  const ModelConfig &config;
  double element;
  bool expands;
};

/// Makes one plan; member functions fill in one subject each.
class Planner {
public:
  explicit Planner(const PlanOptions &options) : options(options) {}

  Result<Plan> run() {
    MOEC_CHECK(readTarget());
    MOEC_CHECK(readModel());
    MOEC_CHECK(chooseContext());
    countParameters();
    MOEC_CHECK(countBytes());
    finishParts();
    findPlaces();
    MOEC_CHECK(planCompile());
    return std::move(plan);
  }

private:
  /// The program that a compile makes now is the one for this chip.
  bool isCompiled(const Chip &chip) const { return chip.isCpu && importable; }

  Status readTarget() {
    plan.target = options.target;
    plan.maxTokens = options.maxTokens;
    if (options.target != "cpu") {
      const Chip *chip = findChip(options.target);
      if (!chip)
        return Error{"unknown target " + quote(options.target) + ", expected cpu or one of " + chipNames()};
      if (options.measure)
        return Error{"--measure takes the rates of this machine, but --target is " + chip->name};
      target = *chip;
      plan.target = chip->name;
      if (!chip->isCpu)
        plan.unsupported.push_back("code for " + chip->description + ": bytes and rates are a forecast");
    } else if (options.measure) {
      MOEC_TRY(target, measureThisMachine());
    } else {
      target = thisMachine();
    }
    if (!options.experts.empty() && !(expertFormat = findWeightFormat(options.experts))) {
      std::string names;
      for (const WeightFormat &format : weightFormats())
        names += (names.empty() ? "" : ", ") + std::string(format.name);
      return Error{"unknown format " + quote(options.experts) + " of experts, expected one of " + names};
    }
    return success();
  }

  Status readModel() {
    std::error_code error;
    const bool isDirectory = std::filesystem::is_directory(options.model, error);
    const std::string path = isDirectory ? options.model + "/config.json" : options.model;
    std::vector<std::string> refused;
    MOEC_TRY(plan.config, readConfig(path, refused));
    importable = refused.empty();
    plan.unsupported.insert(plan.unsupported.end(), refused.begin(), refused.end());
    std::filesystem::path name = std::filesystem::absolute(path, error).lexically_normal();
    plan.config.name = name.filename() == "config.json" ? name.parent_path().filename() : name.stem();
    for (const std::string &part : plan.config.missing()) {
      plan.unsupported.push_back(part);
      importable = false;
    }
    plan.hasHeaders = isDirectory && hf::Checkpoint::isIn(options.model);
    if (!plan.hasHeaders)
      return success();
    MOEC_TRY(hf::Checkpoint opened, hf::Checkpoint::open(options.model));
    checkpoint = std::move(opened);
    return checkpoint.reconcile(plan.config);
  }

  Status chooseContext() {
    constexpr int64_t usual = 32768;
    const ModelConfig &config = plan.config;
    if (options.context > config.maxPositions)
      return Error{"a context of " + std::to_string(options.context) + " tokens is asked for, but " + config.path +
                   " has 'max_position_embeddings' " + std::to_string(config.maxPositions)};
    const int64_t longest = importable ? config.longestContext() : config.maxPositions;
    plan.context = options.context ? options.context : std::min(longest, usual);
    if (longest < config.maxPositions)
      plan.unsupported.push_back("contexts beyond " + std::to_string(longest) +
                                 " tokens: attention is sparse there, and its indexer is not built");
    compiledContext = std::min(plan.context, longest);
    return success();
  }

  //===------------------------------------------------------------------===//
  // Parts
  //===------------------------------------------------------------------===//

  /// Parts in the order of the enumeration; the last stands for tensors that the config does not ask for.
  static constexpr int otherPart = static_cast<int>(Part::Buffers) + 1;
  PlanPart &part(int index) { return parts[index]; }
  PlanPart &part(Part which) { return parts[static_cast<int>(which)]; }

  /// Bytes or parameters of a part that one token needs.
  uint64_t active(int index, uint64_t amount, bool tableIsHead) const {
    const ModelConfig &config = plan.config;
    switch (static_cast<Part>(index)) {
    case Part::Experts:
      // Each expert has the same share, so that the division is exact.
      return amount / static_cast<uint64_t>(config.experts) * static_cast<uint64_t>(config.topk);
    case Part::Embeddings:
      return tableIsHead ? amount : amount / static_cast<uint64_t>(config.vocab);
    case Part::Mtp:
    case Part::Buffers:
      return 0;
    default:
      return index == otherPart ? 0 : amount;
    }
  }

  void countParameters() {
    expected = hf::expectedTensors(plan.config);
    std::vector<hf::ExpectedTensor> extra = hf::expectedExtraTensors(plan.config);
    expected.insert(expected.end(), extra.begin(), extra.end());
    for (const hf::ExpectedTensor &tensor : expected) {
      hf::TensorTotals totals = tensor.totals();
      PlanPart &entry = part(tensor.part);
      entry.parameters += totals.parameters;
      partOfModule.emplace(moduleOf(tensor.name), static_cast<int>(tensor.part));
      if (tensor.part == Part::Experts)
        expertType = tensor.stored.empty() ? tensor.dtype : tensor.stored.front().types.front();
      if (!plan.hasHeaders) {
        plan.checkpointTensors += totals.tensors;
        entry.checkpointBytes += totals.bytes;
      }
    }
    if (!plan.hasHeaders)
      return;
    plan.checkpointTensors = static_cast<int64_t>(checkpoint.tensors().size());
    for (const auto &[name, stored] : checkpoint.tensors()) {
      auto found = partOfModule.find(moduleOf(name));
      part(found == partOfModule.end() ? otherPart : found->second).checkpointBytes += stored.bytes();
    }
  }

  /// Two lists of bytes: those of the compiled program, and for what is not compiled yet those stored.
  Status countBytes() {
    for (auto &[index, entry] : parts)
      if (index != otherPart && index != static_cast<int>(Part::Mtp) && index != static_cast<int>(Part::Buffers))
        storedBytes[index] = entry.checkpointBytes;
    const std::string published = storedExperts();
    if (importable)
      MOEC_CHECK(lower());
    plan.exactWeights = plan.exactMemory = isCompiled(target);
    plan.experts = storedExperts();
    if (!expertFormat || plan.config.moeLayers() == 0)
      return success();
    uint64_t bytes = 0;
    for (const hf::ExpectedTensor &tensor : expected)
      if (tensor.part == Part::Experts)
        bytes += static_cast<uint64_t>(tensor.members) * expertFormat->bytes(tensor.shape[0], tensor.shape[1]);
    if (published != expertFormat->name)
      storedBytes[static_cast<int>(Part::Experts)] = bytes;
    if (plan.experts == expertFormat->name) // as a compile makes them
      return success();
    if (target.isCpu)
      plan.unsupported.push_back("experts in " + options.experts + ": their bytes are a forecast");
    plan.exactWeights = false;
    plan.experts = expertFormat->name;
    compiledBytes[static_cast<int>(Part::Experts)] = bytes;
    return success();
  }

  using PartBytes = std::map<int, uint64_t>;
  const PartBytes &bytesOn(const Chip &chip) const { return isCompiled(chip) ? compiledBytes : storedBytes; }
  uint64_t activeBytes(const Chip &chip, int index, uint64_t bytes) const {
    // The artifact has a head beside tied embeddings, the checkpoint has one table for both.
    return active(index, bytes, plan.config.tiedEmbeddings && !isCompiled(chip));
  }

  /// Compiles as far as no weight's data is needed.
  Status lower() {
    CompileOptions compile;
    compile.model = options.model;
    compile.maxContext = compiledContext;
    compile.maxTokens = options.maxTokens;
    compile.passes = options.passes;
    compile.cache = options.cache;
    hf::SourceModel source{plan.config, {}, hf::Inventory::assume(plan.config)};
    if (plan.hasHeaders) {
      MOEC_TRY(source.inventory, hf::Inventory::check(plan.config, checkpoint.tensors(), options.model));
    }
    // A stream of codes counts as int4 below; the bytes of other codes are forecast.
    constexpr std::array<std::string_view, 4> told = {"f32", "f16", "bf16", "int4"};
    if (std::ranges::find(told, options.experts) != told.end())
      compile.experts = options.experts;
    MOEC_TRY(auto compilation, Compilation::of(compile, std::move(source)));
    MOEC_CHECK(compilation->optimize());
    MOEC_CHECK(compilation->lower());

    for (auto op : compilation->program().getOps<mlir::exec::WeightOp>()) {
      MOEC_TRY(WeightJob job, WeightJob::from(op));
      auto found = partOfModule.find(moduleOf(job.sources.front()));
      assert(found != partOfModule.end() && "weights are made of expected tensors");
      int index = found->second;
      bool scales = llvm::any_of(op.getRecipe(), llvm::IsaPred<mlir::moe::PackBlockScalesAttr>);
      if (index == static_cast<int>(Part::Experts) && !scales)
        expertType = job.dtype;
      // Tied embeddings: the table of rows, and the same once more for the product.
      if (index == static_cast<int>(Part::Embeddings) &&
          llvm::any_of(op.getRecipe(), [](mlir::Attribute step) { return mlir::isa<mlir::moe::PackPanelsAttr>(step); }))
        index = static_cast<int>(Part::Head);
      auto bytes = static_cast<uint64_t>(job.bytes());
      // A shared expert may be behind the routed ones.
      for (mlir::Attribute step : op.getRecipe())
        if (auto append = mlir::dyn_cast<mlir::moe::AppendAttr>(step)) {
          auto shared = std::ranges::find_if(job.sources, [](auto &name) { return !mlir::moe::isFamily(name); });
          uint64_t part = bytes / job.shape.front() * append.getCount();
          compiledBytes[partOfModule.find(moduleOf(*shared))->second] += part;
          bytes -= part;
        }
      compiledBytes[index] += bytes;
    }
    for (auto op : compilation->program().getOps<mlir::exec::CacheOp>())
      compiledCache += static_cast<uint64_t>(op.getWidth()) * (op.getElementType().getIntOrFloatBitWidth() / 8);
    for (auto op : compilation->program().getOps<mlir::exec::ProgramOp>())
      plan.arenaBytes = static_cast<uint64_t>(op.getArenaBytes().value_or(0));
    return success();
  }

  /// What `--experts` calls the format that the checkpoint has and the compiler keeps.
  std::string storedExperts() const {
    if (plan.config.moeLayers() == 0)
      return "";
    if (plan.config.v4)
      return plan.config.v4->fp4Experts ? "mxfp4" : "fp8";
    switch (expertType) {
    case DType::F8E4M3:
      return "fp8";
    case DType::U8: // codes and scales in one stream
      return "int4";
    case DType::F32:
      return "f32";
    case DType::F16:
      return "f16";
    default:
      return "bf16";
    }
  }

  void finishParts() {
    for (const auto &[index, bytes] : bytesOn(target))
      part(index).bytes = bytes;
    for (auto &[index, entry] : parts) {
      entry.name = index == otherPart ? "others" : hf::toString(static_cast<Part>(index));
      entry.activeParameters =
          static_cast<int64_t>(active(index, static_cast<uint64_t>(entry.parameters), plan.config.tiedEmbeddings));
      entry.activeBytes = activeBytes(target, index, entry.bytes);
      if (entry.checkpointBytes && !entry.bytes)
        entry.aside = asideReason(index);
      if (entry.parameters || entry.checkpointBytes || entry.bytes)
        plan.parts.push_back(entry);
    }
  }

  std::string asideReason(int index) const {
    switch (static_cast<Part>(index)) {
    case Part::Indexer:
      return "contexts up to " + std::to_string(plan.config.indexer->topk) + " tokens are attended to as a whole";
    case Part::Mtp:
      return "speculative decoding is not built yet";
    case Part::Buffers:
      return "the program computes them itself";
    default:
      return plan.config.path + " does not ask for them";
    }
  }

  //===------------------------------------------------------------------===//
  // Places
  //===------------------------------------------------------------------===//

  /// The CPU's kernels cache f32 if not told otherwise, and expand nothing; others will do with half, and with less
  /// work.
  ContextCost costOn(const Chip &chip) const {
    return {plan.config, isCompiled(chip) ? cachedNumberBytes() : 2.0, /*expands=*/!isCompiled(chip)};
  }
  /// On the CPU.
  double cachedNumberBytes() const {
    if (cacheCodesFromString(options.cache) == CacheCodes::None)
      return options.cache == "f32" ? 4 : 2;
    CodedEntry entry{plan.config.kvLoraRank, plan.config.ropeDim};
    return static_cast<double>(entry.stride()) / static_cast<double>(entry.latent + entry.rope);
  }
  uint64_t cacheOn(const Chip &chip) const {
    constexpr int64_t page = mlir::exec::CacheOp::pageTokens;
    if (isCompiled(chip))
      return compiledCache * static_cast<uint64_t>(ceilDiv(plan.context, page) * page);
    return static_cast<uint64_t>(costOn(chip).kept(static_cast<double>(plan.context)));
  }

  void findPlaces() {
    const auto context = static_cast<double>(plan.context);
    plan.cacheBytes = cacheOn(target);
    plan.cacheBytesPerToken =
        isCompiled(target)
            ? compiledCache
            : static_cast<uint64_t>(std::llround(costOn(target).kept(context) - costOn(target).kept(context - 1)));
    plan.place = placeOn(target);
    if (options.target == "cpu")
      for (const Chip &chip : chips())
        plan.others.push_back(placeOn(chip));
  }

  /// What one device needs for the products with weights of one token.
  double arithmeticSeconds(const Chip &chip, bool withHead) const {
    double seconds = 0;
    for (const auto &[index, entry] : parts) {
      auto which = static_cast<Part>(index);
      if (which == Part::Head && !withHead)
        continue;
      if (which == Part::Embeddings && (!plan.config.tiedEmbeddings || !withHead))
        continue;
      seconds += 2.0 * static_cast<double>(entry.activeParameters) / chip.rate(unitOf(which));
    }
    return seconds;
  }

  Unit unitOf(Part which) const {
    switch (which) {
    case Part::Experts:
      if (const WeightFormat *format = findWeightFormat(plan.experts))
        return format->unit;
      return Unit::Bf16;
    case Part::Attention:
    case Part::Indexer:
    case Part::Dense:
    case Part::SharedExperts:
      return plan.config.quantization && plan.config.quantization->format.element == Element::F8E4M3 ? Unit::Fp8
                                                                                                     : Unit::Bf16;
    default:
      return Unit::Bf16;
    }
  }

  PlanPlace placeOn(const Chip &chip) const {
    PlanPlace place;
    place.chip = chip;
    place.cacheBytes = cacheOn(chip);
    place.arenaBytes = plan.arenaBytes;
    for (const auto &[index, bytes] : bytesOn(chip))
      place.weightBytes += bytes;
    auto memory = static_cast<uint64_t>(PlanPlace::usable * static_cast<double>(chip.memory));
    uint64_t needed = place.weightBytes + place.cacheBytes + place.arenaBytes;
    auto enough = static_cast<int64_t>(memory ? (needed + memory - 1) / memory : 0);
    // A machine is what it is; chips come in numbers.
    place.devices = options.devices ? options.devices : chip.name == "cpu" ? 1 : enough;
    place.fits = enough > 0 && place.devices >= enough;
    if (chip.bandwidth <= 0 || chip.bf16 <= 0)
      return place;

    const ContextCost cost = costOn(chip);
    const auto count = static_cast<double>(place.devices);
    const auto context = static_cast<double>(plan.context);
    double weights = 0, chunk = 0;
    for (const auto &[index, bytes] : bytesOn(chip)) {
      auto read = static_cast<double>(activeBytes(chip, index, bytes));
      weights += read;
      chunk += static_cast<Part>(index) == Part::Experts ? static_cast<double>(bytes) * expertsTouched() : read;
    }
    double memorySeconds = (weights + cost.read(context)) / chip.bandwidth;
    double unitSeconds =
        arithmeticSeconds(chip, true) + cost.operations(context, /*prompt=*/false) / chip.rate(Unit::Bf16);
    place.decode = count / std::max(memorySeconds, unitSeconds);
    place.decodeByMemory = memorySeconds >= unitSeconds;

    // A token of the prompt has half of the context before it, and its logits are not asked for.
    const double tokens = static_cast<double>(std::min(plan.maxTokens, plan.context));
    memorySeconds = (chunk + cost.read(context / 2)) / tokens / chip.bandwidth;
    unitSeconds =
        arithmeticSeconds(chip, false) + cost.operations(context / 2, /*prompt=*/true) / chip.rate(Unit::Bf16);
    place.prefill = count / std::max(memorySeconds, unitSeconds);
    place.prefillByMemory = memorySeconds >= unitSeconds;
    return place;
  }

  /// The share of the experts that a run of the program reads, if all are chosen alike.
  double expertsTouched() const {
    if (plan.config.experts == 0)
      return 0;
    double idle = 1.0 - static_cast<double>(plan.config.topk) / static_cast<double>(plan.config.experts);
    return 1.0 - std::pow(idle, static_cast<double>(std::min(plan.maxTokens, plan.context)));
  }

  Status planCompile() {
    for (const auto &[index, entry] : parts) {
      plan.writeBytes += entry.bytes;
      if (entry.bytes)
        plan.readBytes += entry.checkpointBytes;
    }
    if (options.diskRate) {
      plan.compileRate = options.diskRate;
      plan.compileRateSource = RateSource::Given;
    } else if (options.measure) {
      MOEC_TRY(double rate, measureCompileRate("."));
      plan.compileRate = static_cast<uint64_t>(rate);
      plan.compileRateSource = RateSource::Measured;
    } else {
      plan.compileRate = usualCompileRate;
    }
    plan.compileSeconds = static_cast<double>(plan.readBytes + plan.writeBytes) / static_cast<double>(plan.compileRate);
    return success();
  }

  /// An NVMe disk and a few cores.
  static constexpr uint64_t usualCompileRate = 1ull << 30;

  const PlanOptions &options;
  Plan plan;
  Chip target;
  const WeightFormat *expertFormat = nullptr;
  bool importable = false;
  int64_t compiledContext = 0;
  hf::Checkpoint checkpoint;
  std::vector<hf::ExpectedTensor> expected;
  std::map<std::string, int> partOfModule;
  std::map<int, PlanPart> parts;
  PartBytes compiledBytes, storedBytes;
  DType expertType = DType::BF16;
  uint64_t compiledCache = 0; ///< bytes per token
};

} // namespace

PlanPart Plan::total() const {
  PlanPart sum;
  sum.name = "total";
  const std::string_view aside[] = {hf::toString(Part::Mtp), hf::toString(Part::Buffers), "others"};
  for (const PlanPart &part : parts) {
    sum.checkpointBytes += part.checkpointBytes;
    sum.bytes += part.bytes;
    sum.activeBytes += part.activeBytes;
    sum.activeParameters += part.activeParameters;
    if (std::ranges::find(aside, part.name) == std::end(aside))
      sum.parameters += part.parameters;
  }
  return sum;
}

Result<Plan> moec::makePlan(const PlanOptions &options) { return Planner(options).run(); }
