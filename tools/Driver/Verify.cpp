// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Verify.h"

#include "dialects/Moe/MoeDialect.h"
#include "passes/Pipelines.h"
#include "runtime/Model.h"
#include "runtime/Sampler.h"
#include "runtime/Support/SplitMix.h"
#include "runtime/Support/Table.h"
#include "runtime/Support/Text.h"

#include "mlir/IR/OperationSupport.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassInstrumentation.h"
#include "mlir/Pass/PassManager.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/ScopeExit.h"
#include "llvm/Support/xxhash.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <span>

#include <unistd.h>

using namespace moec;

namespace {

//===----------------------------------------------------------------------===//
// Values of a run, small enough to keep
//===----------------------------------------------------------------------===//

/// A value that an op gave: enough to tell whether another one is equal, or near.
struct Sketch {
  static constexpr size_t kSums = 6;

  std::string op;                ///< as text, with where it comes from
  std::vector<int64_t> operands; ///< sketches of them; weights and arguments have none
  uint64_t hash = 0;
  size_t count = 0;
  double norm = 0;                     ///< root of the sum of squares
  std::array<double, kSums> sums = {}; ///< of the elements, each time with other signs

  /// Sums with random signs differ by about as much as the norm of the difference.
  bool isNear(const Sketch &other, double tolerance) const {
    if (count != other.count)
      return false;
    if (hash == other.hash || tolerance == 0)
      return hash == other.hash;
    for (size_t i = 0; i < kSums; ++i)
      if (!(std::abs(sums[i] - other.sums[i]) <= tolerance * (norm + 1e-6)))
        return false;
    return true;
  }
};

template <typename T> void describe(llvm::ArrayRef<T> data, Sketch &sketch) {
  sketch.count = data.size();
  sketch.hash = llvm::xxh3_64bits({reinterpret_cast<const uint8_t *>(data.data()), data.size() * sizeof(T)});
  double squares = 0;
  for (size_t i = 0; i < data.size(); ++i) {
    auto value = static_cast<double>(data[i]);
    squares += value * value;
    uint64_t signs = splitMix(i);
    for (size_t k = 0; k < Sketch::kSums; ++k)
      sketch.sums[k] += signs >> k & 1 ? value : -value;
  }
  sketch.norm = std::sqrt(squares);
}

std::string textOf(mlir::Operation *op) {
  std::string text;
  llvm::raw_string_ostream stream(text);
  op->print(stream, mlir::OpPrintingFlags().useLocalScope().skipRegions());
  constexpr size_t most = 160;
  if (text.size() > most)
    text = text.substr(0, most) + " ...";
  if (auto name = mlir::dyn_cast<mlir::NameLoc>(op->getLoc()))
    text = name.getName().str() + ": " + text;
  return text;
}

/// Everything that one run of a module gave.
struct Run {
  std::vector<Sketch> values;
  InterpretResult result;
};

Result<Run> runModule(Compilation &compilation, const std::vector<int32_t> &tokens) {
  Run run;
  llvm::DenseMap<mlir::Value, int64_t> places;
  MOEC_TRY(run.result, compilation.interpret(tokens, /*float64=*/false, [&](mlir::Operation *op, auto results) {
    for (auto [value, result] : llvm::zip_equal(op->getResults(), results)) {
      Sketch sketch;
      sketch.op = textOf(op);
      for (mlir::Value operand : op->getOperands())
        if (auto place = places.find(operand); place != places.end())
          sketch.operands.push_back(place->second);
      std::visit([&](const auto &tensor) { describe(llvm::ArrayRef(tensor.data), sketch); }, result);
      places[value] = static_cast<int64_t>(run.values.size());
      run.values.push_back(std::move(sketch));
    }
  }));
  return run;
}

//===----------------------------------------------------------------------===//
// Differences
//===----------------------------------------------------------------------===//

/// Where `after` first has a value that `before` lacks and that is not on the way to values that both have.
std::string firstDivergence(const std::vector<Sketch> &before, const std::vector<Sketch> &after, double tolerance) {
  auto counterpart = [&](const Sketch &value) {
    return std::ranges::find_if(before, [&](const Sketch &other) { return value.isNear(other, tolerance); });
  };
  std::vector<bool> agrees(after.size()), used(after.size()), leadsAstray(after.size());
  for (size_t i = 0; i < after.size(); ++i)
    agrees[i] = counterpart(after[i]) != before.end();
  // A fused op may have values of its own: they are harmless if all that is made of them is known again.
  for (size_t i = after.size(); i-- > 0;) {
    bool astray = !agrees[i] && (!used[i] || leadsAstray[i]);
    for (int64_t operand : after[i].operands) {
      used[operand] = true;
      if (astray)
        leadsAstray[operand] = true;
    }
    leadsAstray[i] = astray;
  }
  for (size_t i = 0; i < after.size(); ++i) {
    if (!leadsAstray[i] || agrees[i])
      continue;
    // The other side: an op over the same values that gives as many elements.
    auto same = std::ranges::find_if(before, [&](const Sketch &other) {
      return other.count == after[i].count && other.operands.size() == after[i].operands.size() &&
             std::equal(other.operands.begin(), other.operands.end(), after[i].operands.begin(),
                        [&](int64_t a, int64_t b) { return after[b].isNear(before[a], tolerance); });
    });
    auto side = [](const Sketch &value) {
      char norm[48];
      std::snprintf(norm, sizeof norm, "\n    norm %.9g", value.norm);
      return value.op + norm;
    };
    return "  after:  " + side(after[i]) +
           (same == before.end() ? "\n  before: no op has these operands" : "\n  before: " + side(*same));
  }
  return "  every value has its like; the logits alone differ";
}

VerifyStep compare(std::string name, Proof proof, const InterpretResult &before, const InterpretResult &after) {
  VerifyStep step;
  step.name = std::move(name);
  step.proof = proof;
  int64_t sameTop = 0;
  for (int64_t row = 0; row < before.rows; ++row) {
    auto rowOf = [&](const InterpretResult &result) {
      return std::span(result.logits).subspan(row * result.vocab, result.vocab);
    };
    std::span<const float> a = rowOf(before), b = rowOf(after);
    double most = 0, difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      most = std::max(most, std::abs(static_cast<double>(a[i])));
      double here = std::abs(static_cast<double>(a[i]) - b[i]);
      difference = here <= difference ? difference : here; // a NaN stays
    }
    step.maxAbs = difference <= step.maxAbs ? step.maxAbs : difference;
    step.maxRel = std::max(step.maxRel, most > 0 ? difference / most : difference);
    step.kldMean += klDivergence(a, b) / static_cast<double>(before.rows);
    sameTop += argmax(a) == argmax(b);
  }
  step.sameTop = static_cast<double>(sameTop) / static_cast<double>(before.rows);
  step.holds = proof == Proof::Formats ? std::isfinite(step.maxAbs)
                                       : step.maxAbs <= (proof == Proof::Exact ? 0 : kRoundingBound);
  return step;
}

/// What a pass declares. One that is not listed must leave every bit as it is.
Proof proofOf(llvm::StringRef pass, const CompileOptions &options) {
  // The absorbed form multiplies by other matrices than the expanded one.
  if (pass == "moe-fuse-mla" || pass == "moe-choose-mla")
    return Proof::Rounded;
  // Weights of norms are multiplied with those of projections first.
  if (pass == "moe-fold-norm")
    return Proof::Rounded;
  // Sums over the shared expert's width, and over experts, are taken in other parts.
  if (pass == "moe-join-shared-expert")
    return Proof::Rounded;
  if (pass == "moe-store-cache")
    return Proof::Formats;
  auto asked = {options.experts, options.attention, options.dense, options.head};
  bool mayAsk = !options.passes.pipeline.empty() || // and has formats of its own
                !options.formats.empty() ||
                llvm::any_of(asked, [](const std::string &format) { return format != "keep"; });
  if (pass == "moe-quantize" && mayAsk)
    return Proof::Formats;
  return Proof::Exact;
}

llvm::StringRef textOf(Proof proof) {
  switch (proof) {
  case Proof::Exact:
    return "exact";
  case Proof::Rounded:
    return "rounded";
  case Proof::Formats:
    return "formats";
  }
  llvm_unreachable("covered above");
}

/// Runs the module after each pass that changed it.
class PassProver {
public:
  PassProver(Compilation &compilation, const VerifyOptions &options, const std::vector<int32_t> &tokens,
             VerifyReport &report)
      : compilation(compilation), options(options), tokens(tokens), report(report) {}

  Status start() {
    MOEC_TRY(run, runModule(compilation, tokens));
    fingerprint.emplace(compilation.program());
    return success();
  }
  const InterpretResult &last() const { return run.result; }
  Status takeStatus() { return std::move(outcome); }

  void afterPass(std::string name) {
    if (!outcome.ok())
      return;
    mlir::OperationFingerPrint now(compilation.program());
    if (now == *fingerprint) {
      report.unchanged.push_back(std::move(name));
      return;
    }
    fingerprint.emplace(now);
    Result<Run> after = runModule(compilation, tokens);
    if (!after.ok()) {
      outcome = Error{"after pass '" + name + "': " + after.message()};
      return;
    }
    Proof proof = proofOf(name, options.compile);
    VerifyStep step = compare(std::move(name), proof, run.result, after->result);
    if (!step.holds)
      step.divergence = firstDivergence(run.values, after->values, proof == Proof::Exact ? 0 : kRoundingBound);
    report.steps.push_back(std::move(step));
    run = std::move(*after);
  }

private:
  Compilation &compilation;
  const VerifyOptions &options;
  const std::vector<int32_t> &tokens;
  VerifyReport &report;
  std::optional<mlir::OperationFingerPrint> fingerprint;
  Run run; ///< the last one
  Status outcome = success();
};

struct AfterEachPass final : mlir::PassInstrumentation {
  explicit AfterEachPass(PassProver &prover) : prover(prover) {}
  void runAfterPass(mlir::Pass *pass, mlir::Operation *) override {
    if (!pass->getArgument().empty()) // adaptors have none
      prover.afterPass(pass->getArgument().str());
  }
  PassProver &prover;
};

bool roundsActivations(mlir::ModuleOp module) {
  return module
      .walk([](mlir::Operation *op) {
        auto experts = mlir::dyn_cast<mlir::moe::ExpertsOp>(op);
        auto cache = mlir::dyn_cast<mlir::moe::CacheOp>(op);
        bool rounds = mlir::isa<mlir::moe::FakeQuantizeOp>(op) || (experts && experts.getActivations()) ||
                      (cache && cache.getFormat());
        return rounds ? mlir::WalkResult::interrupt() : mlir::WalkResult::advance();
      })
      .wasInterrupted();
}

/// Compiles into a directory of its own, runs the artifact on the tokens, and leaves nothing.
Result<InterpretResult> runArtifact(Compilation &compilation, const std::vector<int32_t> &tokens) {
  std::string path = std::filesystem::temp_directory_path() / ("moec-verify-" + std::to_string(getpid()));
  llvm::scope_exit remove([&] {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  });
  MOEC_CHECK(compilation.lower());
  MOEC_CHECK(compilation.write(path));
  MOEC_TRY(std::unique_ptr<Model> model, Model::load(path));
  InterpretResult result;
  result.rows = static_cast<int64_t>(tokens.size());
  result.vocab = model->vocab();
  result.logits.resize(result.rows * result.vocab);
  std::vector<int32_t> positions(tokens.size()), slots(tokens.size(), 0);
  std::iota(positions.begin(), positions.end(), 0);
  MOEC_CHECK(model->step(tokens, positions, slots, /*rows=*/positions, result.logits));
  return result;
}

std::string formatted(const char *format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

} // namespace

const VerifyStep *VerifyReport::breach() const {
  auto found = std::ranges::find_if(steps, [](const VerifyStep &step) { return !step.holds; });
  return found == steps.end() ? nullptr : &*found;
}

std::string VerifyReport::text() const {
  Table table({"step", "proof", "max abs", "max rel", "KLD", "same top", "holds"});
  for (const VerifyStep &step : steps)
    table.add({step.name, textOf(step.proof).str(), formatted("%.3g", step.maxAbs), formatted("%.3g", step.maxRel),
               formatted("%.3g", step.kldMean), formatted("%.1f %%", 100 * step.sameTop),
               step.proof == Proof::Formats && step.holds ? "-"
               : step.holds                               ? "yes"
                                                          : "NO"});
  std::string text = table.text();
  if (!unchanged.empty()) {
    text += "unchanged by";
    for (const std::string &pass : unchanged)
      text += " " + pass;
    text += "\n";
  }
  if (const VerifyStep *step = breach(); step && !step->divergence.empty())
    text += "first difference after " + step->name + ":\n" + step->divergence + "\n";
  return text;
}

Json VerifyReport::json() const {
  Json list = Json::array();
  for (const VerifyStep &step : steps) {
    Json entry = {{"name", step.name},      {"proof", textOf(step.proof).str()}, {"max_abs", step.maxAbs},
                  {"max_rel", step.maxRel}, {"kld_mean", step.kldMean},          {"same_top", step.sameTop},
                  {"holds", step.holds}};
    if (!step.divergence.empty())
      entry["divergence"] = step.divergence;
    list.push_back(std::move(entry));
  }
  return {{"tokens", tokens}, {"unchanged", unchanged}, {"steps", std::move(list)}, {"holds", breach() == nullptr}};
}

Result<VerifyReport> moec::verify(const VerifyOptions &options) {
  MOEC_TRY(auto compilation, Compilation::open(options.compile));
  const int64_t vocab = compilation->config().vocab;
  std::vector<int32_t> tokens = options.tokens;
  if (tokens.empty())
    for (int64_t i = 0; i < options.count; ++i)
      tokens.push_back(static_cast<int32_t>(splitMix(options.seed + splitMix(i)) % vocab));
  if (tokens.empty())
    return Error{"there is no token to run the model on"};
  for (int32_t token : tokens)
    if (token < 0 || token >= vocab)
      return Error{"token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(vocab)};
  VerifyReport report;
  report.tokens = static_cast<int64_t>(tokens.size());

  PassProver prover(*compilation, options, tokens, report);
  MOEC_CHECK(prover.start());
  const std::vector<float> &logits = prover.last().logits;
  if (llvm::all_equal(logits)) // holes in a file, say
    return Error{options.compile.model + ": all logits are " + numberText(logits.front()) +
                 ", so that equal ones would prove nothing"};
  MOEC_CHECK(compilation->run([&](mlir::PassManager &manager) {
    manager.getContext()->disableMultithreading(); // the module is read between passes
    manager.addInstrumentation(std::make_unique<AfterEachPass>(prover));
    if (options.pipeline)
      options.pipeline(manager);
    else
      compilation->addMoePasses(manager);
  }));
  MOEC_CHECK(prover.takeStatus());
  if (options.artifact && !options.pipeline) {
    // Where sums differ in their last bits, an activation or a cache entry that lies between two codes may take either,
    // and then tip a router over.
    Proof proof = roundsActivations(compilation->program()) ? Proof::Formats : Proof::Rounded;
    MOEC_TRY(InterpretResult result, runArtifact(*compilation, tokens));
    report.steps.push_back(compare("artifact", proof, prover.last(), result));
  }
  return report;
}
