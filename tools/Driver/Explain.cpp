// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Explain.h"

#include "codegen/Weights/Materialize.h"
#include "dialects/Exec/ExecDialect.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "passes/Analysis/Cost.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/Table.h"
#include "tools/Driver/Compilation.h"
#include "tools/Driver/Text.h"

#include "mlir/IR/Remarks.h"
#include "mlir/Pass/PassManager.h"

#include <algorithm>
#include <mutex>
#include <set>

using namespace moec;

namespace {

std::string typeText(mlir::Type type) {
  std::string text;
  llvm::raw_string_ostream stream(text);
  stream << type;
  return text;
}

/// Why a weight is stored as it is.
std::string formatReason(mlir::exec::WeightOp weight) {
  mlir::Type element = mlir::cast<mlir::ShapedType>(weight.getType()).getElementType();
  bool codes = mlir::isa<mlir::IntegerType>(element);
  if (mlir::isa<mlir::Float8E4M3FNType>(element))
    return "kept: the target multiplies FP8 blocks";
  for (mlir::Attribute step : llvm::reverse(weight.getRecipe())) {
    if (mlir::isa<mlir::moe::QuantizeAttr>(step))
      return codes ? "quantized, as asked: codes and scales in groups"
                   : "quantized, as asked, but no kernel reads its codes here";
    if (mlir::isa<mlir::moe::PackBlockScalesAttr>(step))
      return "scales of an FP8 weight, one a lane";
    if (auto stored = mlir::dyn_cast<mlir::moe::DequantAttr>(step)) {
      const GgufType *blocks = stored.getBlocks();
      std::string format = blocks ? "GGUF " + std::string(blocks->name) : stored.getDescription().name;
      if (codes)
        return "kept: the target multiplies int4 in groups, as " + format + " is";
      bool cut = llvm::any_of(weight.getRecipe(), llvm::IsaPred<mlir::moe::HeadRowsAttr, mlir::moe::TransposeAttr>);
      if (stored.getFormat() == mlir::moe::StoredFormat::Fp8 && cut)
        return "dequantised: its rows are cut by head, across scale blocks";
      return "dequantised: the target has no kernel for " + format;
    }
    if (mlir::isa<mlir::moe::CastAttr>(step) &&
        !llvm::any_of(weight.getRecipe(), llvm::IsaPred<mlir::moe::DequantAttr>))
      return "widened: too small to matter";
  }
  return "kept as stored";
}

} // namespace

//===----------------------------------------------------------------------===//
// The report
//===----------------------------------------------------------------------===//

Report::Part Report::total() const {
  Part sum;
  sum.name = "total";
  for (const Part &part : parts) {
    sum.checkpointBytes += part.checkpointBytes;
    sum.bytes += part.bytes;
    sum.flopsBefore += part.flopsBefore;
    sum.flopsAfter += part.flopsAfter;
  }
  return sum;
}

std::string Report::text() const {
  std::string text;
  if (!fusions.empty()) {
    Table table({"op", "pass", "fused"});
    for (const Fusion &fusion : fusions)
      table.add({fusion.op, fusion.pass, fusion.fused ? fusion.text : "no: " + fusion.text});
    text += "fusions\n" + table.text() + "\n";
  }
  Table table({"op", "kernel"});
  for (const Launch &launch : launches)
    table.add({launch.label, launch.kernel});
  text += "kernel of each launch\n" + table.text() + "\nformat of each weight\n";
  Table formats({"weight", "stored as", "bytes", "why"});
  for (const Weight &weight : weights)
    formats.add({weight.name, weight.type, std::to_string(weight.bytes), weight.reason});
  return text + formats.text() + "\nweights " + sizeText(total().bytes) + ", arena " + sizeText(arenaBytes) + " for " +
         std::to_string(maxTokens) + " tokens a run, cache " + sizeText(cacheBytesPerToken) + " a token in " +
         cacheType + "\n";
}

static Json toJson(const Report::Part &part) {
  return {{"name", part.name},
          {"checkpoint_bytes", part.checkpointBytes},
          {"bytes", part.bytes},
          {"flops_before", part.flopsBefore},
          {"flops_after", part.flopsAfter}};
}

Json Report::json() const {
  Json json;
  json["compiler"] = MOEC_VERSION;
  json["target"] = target;
  json["model"] = model;
  json["passes"] = passes;
  json["memory"] = {{"weights", total().bytes},
                    {"arena", arenaBytes},
                    {"cache_per_token", cacheBytesPerToken},
                    {"cache_type", cacheType},
                    {"max_tokens", maxTokens}};
  json["context"] = context;
  json["total"] = toJson(total());
  json["parts"] = Json::array();
  for (const Part &part : parts)
    json["parts"].push_back(toJson(part));
  json["fusions"] = Json::array();
  for (const Fusion &fusion : fusions)
    json["fusions"].push_back(
        {{"pass", fusion.pass}, {"op", fusion.op}, {"fused", fusion.fused}, {"text", fusion.text}});
  json["weights"] = Json::array();
  for (const Weight &weight : weights)
    json["weights"].push_back(
        {{"name", weight.name}, {"type", weight.type}, {"bytes", weight.bytes}, {"reason", weight.reason}});
  json["launches"] = Json::array();
  for (const Launch &launch : launches)
    json["launches"].push_back({{"label", launch.label}, {"kernel", launch.kernel}});
  json["buffers"] = Json::array();
  for (const Buffer &buffer : buffers)
    json["buffers"].push_back({{"name", buffer.name},
                               {"dtype", buffer.dtype},
                               {"offset", buffer.offset},
                               {"bytes", buffer.bytes},
                               {"first_launch", buffer.firstLaunch},
                               {"last_launch", buffer.lastLaunch}});
  return json;
}

Result<ReportFiles> ReportFiles::create(std::string name) {
  for (const char *ending : {".html", ".json"})
    if (llvm::StringRef(name).ends_with(ending)) {
      name.resize(name.size() - 5);
      break;
    }
  MOEC_TRY(OutputFile html, OutputFile::create(name + ".html"));
  MOEC_TRY(OutputFile json, OutputFile::create(name + ".json"));
  return ReportFiles(std::move(html), std::move(json));
}

Status ReportFiles::write(const Report &report) {
  Json data = report.json();
  std::string dump = data.dump(1) + "\n", page = reportHtml(data);
  MOEC_CHECK(json.writeAt(0, dump.data(), dump.size()));
  MOEC_CHECK(html.writeAt(0, page.data(), page.size()));
  MOEC_CHECK(json.commit());
  return html.commit();
}

//===----------------------------------------------------------------------===//
// Filling it
//===----------------------------------------------------------------------===//

/// Hears the remarks of fusions. Belongs to the context, and may be called by several threads.
class Explainer::Listener final : public mlir::remark::detail::MLIRRemarkStreamerBase {
public:
  explicit Listener(std::shared_ptr<std::vector<Report::Fusion>> heard) : heard(std::move(heard)) {}

  void streamOptimizationRemark(const mlir::remark::detail::Remark &remark) override {
    auto name = remark.getLocation()->findInstanceOf<mlir::NameLoc>();
    std::lock_guard lock(mutex);
    heard->push_back({remark.getCategoryName().str(), name ? name.getName().str() : "unnamed",
                      remark.getRemarkType() == llvm::remarks::Type::Passed,
                      remark.getArgs().empty() ? "" : remark.getArgs().front().val});
  }

private:
  std::shared_ptr<std::vector<Report::Fusion>> heard;
  std::mutex mutex;
};

/// What one token needs depends on how many there are before it; this many are usual.
static constexpr int64_t usualContext = 4096;

Explainer::Explainer(Compilation &compilation)
    : compilation(compilation), heard(std::make_shared<std::vector<Report::Fusion>>()) {
  mlir::ModuleOp module = compilation.program();
  mlir::remark::RemarkCategories categories;
  categories.passed = categories.missed = ".*";
  (void)mlir::remark::enableOptimizationRemarks(*module.getContext(), std::make_unique<Listener>(heard),
                                                std::make_unique<mlir::remark::RemarkEmittingPolicyAll>(), categories);

  mlir::OpPassManager passes(mlir::ModuleOp::getOperationName());
  compilation.addMoePasses(passes);
  llvm::raw_string_ostream stream(report.passes);
  passes.printAsTextualPipeline(stream);
  if (auto facts = module->getAttrOfType<mlir::DictionaryAttr>("moe.model"))
    if (auto longest = facts.getAs<mlir::IntegerAttr>("max_context"))
      report.context = std::min(usualContext, longest.getInt());

  std::set<std::string> counted;
  module.walk([&](mlir::moe::WeightOp op) {
    mlir::moe::StackAttr stack = mlir::moe::stackOf(op.getRecipe());
    for (auto source : op.getSources().getAsValueRange<mlir::StringAttr>())
      for (int64_t i = 0, count = stack && mlir::moe::isFamily(source) ? stack.getCount() : 1; i < count; ++i) {
        std::string name = mlir::moe::memberOf(source, stack ? stack.memberAt(i) : 0);
        auto tensor = compilation.checkpointTensors().find(name);
        if (tensor != compilation.checkpointTensors().end() && counted.insert(name).second)
          part(mlir::moe::partOf(name)).checkpointBytes += tensor->second.bytes();
      }
  });
  countFlops(&Report::Part::flopsBefore);
}

Explainer::~Explainer() = default;

Report::Part &Explainer::part(const std::string &name) {
  auto [found, added] = partIndex.try_emplace(name, report.parts.size());
  if (added)
    report.parts.emplace_back().name = name;
  return report.parts[found->second];
}

void Explainer::countFlops(double Report::Part::*flops) {
  mlir::moe::DecodeCost cost(report.context);
  compilation.program().walk([&](mlir::Operation *op) {
    if (double count = cost.flops(op))
      part(mlir::moe::partOf(op)).*flops += count;
  });
}

void Explainer::optimized() {
  countFlops(&Report::Part::flopsAfter);
  report.fusions = *heard;
  // Passes visit ops in an order of their own; people read layer by layer.
  auto place = [&](const Report::Fusion &fusion) {
    auto found = partIndex.find(mlir::moe::partOf(fusion.op));
    return found == partIndex.end() ? partIndex.size() : found->second;
  };
  std::ranges::stable_sort(report.fusions, std::less(), place);
}

Result<Report> Explainer::lowered() {
  MOEC_TRY(Json manifest, compilation.manifestProgram());
  for (auto op : compilation.program().getOps<mlir::exec::WeightOp>()) {
    MOEC_TRY(WeightJob job, WeightJob::from(op));
    auto bytes = static_cast<uint64_t>(job.bytes());
    part(mlir::moe::partOf(job.sources.front())).bytes += bytes;
    report.weights.push_back({job.name, typeText(op.getType()), bytes, formatReason(op)});
  }
  const Json &program = manifest["program"];
  report.model = manifest["model"];
  report.target = compilation.target();
  report.maxTokens = program["max_tokens"];
  report.arenaBytes = program["arena_bytes"];
  for (const Json &cache : program["caches"]) {
    auto dtype = dtypeFromString(cache["dtype"].get<std::string>());
    report.cacheBytesPerToken += cache["width"].get<uint64_t>() * byteSize(*dtype);
    report.cacheType = cache.value("codes", llvm::StringRef(toString(*dtype)).lower()); // one for all
  }
  for (const Json &buffer : program["buffers"])
    report.buffers.push_back({buffer["name"], buffer["dtype"], buffer["offset"], buffer["bytes"]});
  std::vector<bool> met(report.buffers.size());
  for (const Json &launch : program["launches"]) {
    size_t time = report.launches.size();
    for (const Json &arg : launch["args"])
      if (auto index = arg.find("buffer"); index != arg.end()) {
        auto number = index->get<size_t>();
        Report::Buffer &buffer = report.buffers[number];
        if (!met[number])
          buffer.firstLaunch = time;
        met[number] = true;
        buffer.lastLaunch = time;
      }
    report.launches.push_back({launch["label"], manifest["kernels"][launch["kernel"].get<size_t>()]["symbol"]});
  }
  return report;
}
