// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The compiler's command line: compile, plan, calibrate, inspect, interpret, verify.

#include "passes/Moe/Passes.h"
#include "passes/Moe/WeightFormat.h"
#include "passes/Pipelines.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Safetensors.h"
#include "runtime/Support/Text.h"
#include "tools/Driver/Budget.h"
#include "tools/Driver/Calibrate.h"
#include "tools/Driver/Compilation.h"
#include "tools/Driver/Explain.h"
#include "tools/Driver/Text.h"
#include "tools/Driver/Verify.h"
#include "tools/moec/CalibrateCommand.h"
#include "tools/moec/Inspect.h"
#include "tools/moec/PassFlags.h"
#include "tools/moec/PlanCommand.h"

#include "mlir/IR/AsmState.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Support/Timing.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/raw_ostream.h"

#include <CLI/CLI.hpp>

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <optional>
#include <unistd.h>

using namespace moec;

namespace {

/// What --explain without a name stands for.
constexpr const char *onStderr = "-";

struct Arguments {
  CompileOptions compile;
  std::string output, emit, level, explain, maxMemory = "2GiB", maxFileSize = "4GiB", artifact, tokens, layers;
  std::string sizeBudget, errorBudget, base;
  VerifyOptions proof;
  bool json = false, verify = false, optimized = false, float64 = false, printAfterAll = false;
};

/// Progress of the weights on stderr: one line that is rewritten on a terminal,
/// else a line now and then, of which a quick compile prints none.
class ProgressLine {
public:
  void show(uint64_t done, uint64_t total, const std::string &what) {
    auto now = Clock::now();
    if (!begun) { // code comes before weights, and is none of their time
      begun = true;
      before = done;
      start = now;
      last = terminal ? Clock::time_point() : now;
    }
    if (now - last < (terminal ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000)))
      return;
    last = now;
    double seconds = std::chrono::duration<double>(now - start).count();
    auto rate = static_cast<uint64_t>(static_cast<double>(done - std::min(done, before)) / std::max(seconds, 1e-3));
    std::string left = rate ? std::to_string((total - done) / rate) + " s left" : "";
    std::fprintf(stderr, "%sweights %3d %%  %s of %s  %s/s  %s  %s%s", terminal ? "\r\033[K" : "",
                 static_cast<int>(100 * done / total), sizeText(done).c_str(), sizeText(total).c_str(),
                 sizeText(rate).c_str(), left.c_str(), what.c_str(), terminal ? "" : "\n");
    shown = terminal;
  }
  /// Goes on where an earlier compile was interrupted: the rate counts what is made from now on.
  void resume(uint64_t present, uint64_t total) {
    clear();
    std::fprintf(stderr, "weights: %s of %s were there and are intact\n", sizeText(present).c_str(),
                 sizeText(total).c_str());
    begun = false;
  }
  ~ProgressLine() { clear(); }

private:
  using Clock = std::chrono::steady_clock;
  void clear() {
    if (shown)
      std::fprintf(stderr, "\r\033[K");
    shown = false;
  }

  bool terminal = isatty(STDERR_FILENO);
  bool shown = false, begun = false;
  uint64_t before = 0; ///< bytes that were there when the weights began
  Clock::time_point start, last;
};

Status writeText(const std::string &path, const std::string &text) {
  if (path.empty() || path == "-") {
    std::cout << text << std::flush;
    if (!std::cout)
      return Error{"standard output cannot be written"};
    return success();
  }
  return writeFile(path, text);
}

/// The stage that is asked for, or the artifact, of a model that is lowered.
Status makeOutput(const Arguments &arguments, Compilation &compilation, mlir::TimingScope &whole,
                  std::chrono::steady_clock::time_point start) {
  if (arguments.emit == "exec")
    return writeText(arguments.output, compilation.text());
  if (!arguments.emit.empty()) {
    auto kind = arguments.emit == "asm" ? Compilation::Code::Assembly : Compilation::Code::Llvm;
    mlir::TimingScope generating = whole.nest("Code");
    MOEC_TRY(std::string text, compilation.code(kind, arguments.level));
    generating.stop();
    return writeText(arguments.output, text);
  }
  mlir::TimingScope writing = whole.nest("Code and weights");
  MOEC_CHECK(compilation.write(arguments.output));
  writing.stop();
  MOEC_TRY(Artifact artifact, Artifact::open(arguments.output));
  uint64_t bytes = 0;
  for (const WeightFile &file : artifact.weightFiles())
    bytes += file.bytes;
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s: %zu launches, %zu kernels, %s of weights, in %.1f s\n", arguments.output.c_str(),
              artifact.launches().size(), artifact.kernels().size(), sizeText(bytes).c_str(), seconds);
  return success();
}

Status compileOnce(Arguments &arguments) {
  auto start = std::chrono::steady_clock::now();
  CompileOptions &options = arguments.compile;
  MOEC_TRY(options.maxMemory, parseSize(arguments.maxMemory));
  MOEC_TRY(options.maxFileSize, parseSize(arguments.maxFileSize));
  if (arguments.emit.empty() && arguments.output.empty())
    return Error{"give the artifact a name with -o, or use --emit to print a stage"};
  const bool explains = !arguments.explain.empty();
  std::optional<ReportFiles> files;
  if (explains && arguments.emit == "moe")
    return Error{"--explain tells how a model was optimized and lowered, but --emit=moe ends before"};
  if (explains && arguments.explain != onStderr) {
    MOEC_TRY(ReportFiles created, ReportFiles::create(arguments.explain));
    files.emplace(std::move(created));
  }
  mlir::DefaultTimingManager timing;
  mlir::applyDefaultTimingManagerCLOptions(timing);
  mlir::TimingScope whole = timing.getRootScope();
  options.configure = [&](mlir::PassManager &manager) {
    (void)mlir::applyPassManagerCLOptions(manager);
    manager.enableTiming(whole);
  };
  ProgressLine progress;
  options.progress = [&](uint64_t done, uint64_t total, const std::string &weight) {
    progress.show(done, total, weight);
  };
  options.resumed = [&](uint64_t present, uint64_t total) { progress.resume(present, total); };

  mlir::TimingScope importing = whole.nest("Import");
  MOEC_TRY(auto compilation, Compilation::open(options));
  importing.stop();
  if (arguments.emit == "moe")
    return writeText(arguments.output, compilation->text());
  std::optional<Explainer> explainer;
  if (explains)
    explainer.emplace(*compilation);
  MOEC_CHECK(compilation->optimize());
  if (explainer)
    explainer->optimized();
  MOEC_CHECK(compilation->lower());
  Report report;
  if (explainer) {
    MOEC_TRY(report, explainer->lowered());
    if (!files)
      std::cerr << report.text();
  }
  MOEC_CHECK(makeOutput(arguments, *compilation, whole, start));
  return files ? files->write(report) : success();
}

/// "kld=0.01".
Result<double> parseErrorBudget(std::string_view text) {
  constexpr std::string_view unit = "kld=";
  double nats = 0;
  if (text.starts_with(unit)) {
    const char *end = text.data() + text.size();
    auto [last, error] = std::from_chars(text.data() + unit.size(), end, nats);
    if (error == std::errc() && last == end && std::isfinite(nats) && nats > 0)
      return nats;
  }
  return Error{"--error-budget is " + quote(std::string(text)) + ", expected kld= and a positive number of nats"};
}

/// Chooses the experts' formats by a budget, compiles, and measures what came of it.
Status compileWithinBudget(Arguments &arguments) {
  BudgetOptions options;
  options.compile = arguments.compile;
  std::optional<uint64_t> bytes;
  std::optional<double> allowed;
  if (!arguments.sizeBudget.empty()) {
    MOEC_TRY(bytes, parseSize(arguments.sizeBudget));
  } else {
    MOEC_TRY(allowed, parseErrorBudget(arguments.errorBudget));
  }
  std::vector<int32_t> text;
  if (!arguments.base.empty()) {
    MOEC_TRY(Calibration calibration, Calibration::open(arguments.compile.calibration));
    size_t count = std::min<size_t>(calibration.text().size(), CalibrateReport::sensitivityTokens);
    text.assign(calibration.text().begin(), calibration.text().begin() + count);
  }
  // Predictions are rough: where what is achieved costs more than allowed, less is aimed at.
  constexpr int attempts = 4;
  std::optional<double> aim = allowed;
  MOEC_TRY(Budget budget, Budget::measure(options));
  for (int attempt = 1;; ++attempt) {
    MOEC_TRY(BudgetReport report, budget.choose(bytes, aim));
    arguments.compile.formats = report.formats + options.compile.formats;
    MOEC_CHECK(compileOnce(arguments));
    if (!arguments.base.empty() && arguments.emit.empty()) {
      MOEC_TRY(report.achieved,
               divergenceOf(arguments.output, arguments.base, text, static_cast<int>(arguments.compile.threads)));
    }
    if (!allowed || !report.achieved || *report.achieved <= *allowed || attempt == attempts)
      return writeText("-", arguments.json ? report.json().dump() + "\n" : report.text());
    *aim *= 0.95 * *allowed / *report.achieved;
  }
}

Status compile(Arguments &arguments) {
  if (arguments.sizeBudget.empty() && arguments.errorBudget.empty())
    return compileOnce(arguments);
  return compileWithinBudget(arguments);
}

Status inspect(const Arguments &arguments) {
  MOEC_TRY(Artifact artifact, Artifact::open(arguments.artifact));
  if (arguments.verify)
    MOEC_CHECK(artifact.verifyWeights());
  if (arguments.json)
    std::cout << artifactJson(artifact) << "\n";
  else
    printArtifact(artifact, std::cout);
  return success();
}

/// Takes a slice of the model, if one is asked for.
Status takeLayers(Arguments &arguments) {
  if (arguments.layers.empty())
    return success();
  MOEC_TRY(std::vector<int32_t> layers, parseIds(arguments.layers, "--layers"));
  arguments.compile.layers.assign(layers.begin(), layers.end());
  return success();
}

Status interpret(Arguments &arguments) {
  MOEC_CHECK(takeLayers(arguments));
  MOEC_TRY(std::vector<int32_t> tokens, parseIds(arguments.tokens, "--tokens"));
  MOEC_TRY(auto compilation, Compilation::open(arguments.compile));
  if (arguments.optimized)
    MOEC_CHECK(compilation->optimize());
  MOEC_TRY(InterpretResult result, compilation->interpret(tokens, arguments.float64));
  MOEC_TRY(auto writer,
           SafetensorsWriter::create(arguments.output, {{"logits", DType::F32, {result.rows, result.vocab}}}));
  MOEC_CHECK(writer.write("logits", 0, result.logits.data(), result.logits.size() * sizeof(float)));
  return writer.finish();
}

Status verify(Arguments &arguments) {
  MOEC_CHECK(takeLayers(arguments));
  VerifyOptions &options = arguments.proof;
  options.compile = arguments.compile;
  if (!arguments.tokens.empty()) {
    MOEC_TRY(options.tokens, parseIds(arguments.tokens, "--tokens"));
  }
  MOEC_TRY(VerifyReport report, verify(options));
  MOEC_CHECK(writeText("-", arguments.json ? report.json().dump() + "\n" : report.text()));
  if (const VerifyStep *step = report.breach())
    return Error{options.compile.model + ": " + step->name + " does not hold: logits differ by " +
                 numberText(static_cast<float>(step->maxAbs)) + ", expected " +
                 (step->proof == Proof::Rounded ? "at most " + numberText(static_cast<float>(kRoundingBound))
                  : step->proof == Proof::Exact ? "no difference"
                                                : "numbers")};
  return success();
}

void addLayers(CLI::App &command, std::string &layers) {
  command.add_option("--layers", layers,
                     "a slice of the model, such as 0,3: these layers alone, in rising order (default: all)");
}

/// The form of attention; after the options of passes.
CLI::Option *addMla(CLI::App &command, CompileOptions &options) {
  return command
      .add_option(
          "--mla", options.mla,
          "form of latent attention: absorbed, expanded, or auto, expanded where a step brings many tokens of a "
          "sequence; with one form alone, bits do not depend on how a prompt is cut")
      ->check(CLI::IsMember({"auto", "absorbed", "expanded"}))
      ->excludes("--pass-pipeline")
      ->capture_default_str();
}

/// What the cache holds; after the options of passes.
CLI::Option *addCache(CLI::App &command, CompileOptions &options) {
  return command
      .add_option("--cache", options.cache,
                  "format of cache entries: f32; bf16 for half of the memory and of what attention reads; int8 or fp8, "
                  "latents in codes, for little more than half of that")
      ->check(CLI::IsMember(mlir::moe::cacheFormats()))
      ->excludes("--pass-pipeline")
      ->capture_default_str();
}

/// Options that say how weights are stored; after those of passes.
std::vector<CLI::Option *> addFormats(CLI::App &command, CompileOptions &options) {
  const auto isFormat = [](const std::string &name) {
    auto format = mlir::moe::WeightFormat::parse(name);
    return format ? std::string() : format.message();
  };
  const std::string forms =
      ": keep, f32, bf16, f16, int8, fp8, int4, int4:g64:bf16, int4:zero, int4:a32, mxfp4:a32, bf16:a16, nvfp4, ...";
  std::vector<CLI::Option *> added;
  for (auto [name, value, what] :
       {std::tuple{"--experts", &options.experts, "format of routed experts"},
        {"--attention", &options.attention, "format of attention's projections"},
        {"--dense", &options.dense, "format of dense feed-forward layers and shared experts"},
        {"--head", &options.head, "format of the projection to logits"}})
    added.push_back(command.add_option(name, *value, what + forms)
                        ->check(isFormat)
                        ->excludes("--pass-pipeline")
                        ->capture_default_str()
                        ->group("Formats of weights"));
  added.push_back(command
                      .add_option_function<std::vector<std::string>>(
                          "--format",
                          [&options](const std::vector<std::string> &rules) {
                            for (const std::string &rule : rules)
                              options.formats += rule + "\n";
                          },
                          "REGEX=FORMAT: the format of weights whose name in the checkpoint matches; the first match "
                          "decides, before the options above")
                      ->excludes("--pass-pipeline")
                      ->group("Formats of weights"));
  added.push_back(command
                      .add_option("--rounding", options.rounding,
                                  "how codes are chosen: nearest, or by a calibration: importance (of columns, for "
                                  "better scales), feedback (of errors: GPTQ)")
                      ->check(CLI::IsMember({"nearest", "importance", "feedback"}))
                      ->excludes("--pass-pipeline")
                      ->capture_default_str()
                      ->group("Formats of weights"));
  added.push_back(command.add_option("--calibration", options.calibration, "file that moec calibrate made")
                      ->group("Formats of weights"));
  return added;
}

int report(Status status) {
  if (status.ok())
    return 0;
  std::cout << std::flush;
  std::cerr << "moec: " << status.message() << "\n";
  return 1;
}

} // namespace

int main(int argc, char **argv) {
  CLI::App app("Ahead-of-time compiler for mixture-of-experts transformers");
  app.set_version_flag("--version", MOEC_VERSION);
  app.require_subcommand(1);
  Arguments arguments;
  CompileOptions &options = arguments.compile;

  CLI::App *compileCommand = app.add_subcommand("compile", "Compile a checkpoint directory into an artifact");
  compileCommand->add_option("MODEL_DIR", options.model, "directory with config.json and safetensors or GGUF")
      ->required();
  compileCommand->add_option("-o,--output", arguments.output,
                             "artifact directory, or a file with --emit (- for stdout)");
  compileCommand->add_option("--target", options.target, "chip to compile for")
      ->check(CLI::IsMember({"cpu"}))
      ->capture_default_str();
  compileCommand
      ->add_option("--cpu", options.cpus,
                   "CPUs to make code for: levels such as x86-64-v3, architectures with all of their levels (x86-64, "
                   "aarch64), or native; weights serve all of them (default: this machine's architecture)")
      ->delimiter(',');
  compileCommand
      ->add_option("--max-context", options.maxContext,
                   "longest sequence in tokens (default: what config.json allows, at most 32768)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24));
  compileCommand
      ->add_option("--max-tokens", options.maxTokens, "tokens in one run of the program; longer steps are cut")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 16))
      ->capture_default_str();
  addPassOptions(*compileCommand, options.passes);
  addMla(*compileCommand, options);
  addCache(*compileCommand, options);
  addFormats(*compileCommand, options);
  CLI::Option *sizeBudget =
      compileCommand
          ->add_option(
              "--size-budget", arguments.sizeBudget,
              "choose a format for each projection of each routed expert so that all weights fit into so much, "
              "such as 9GiB, at the least error; takes --calibration")
          ->excludes("--pass-pipeline")
          ->group("Formats of weights");
  compileCommand
      ->add_option("--error-budget", arguments.errorBudget,
                   "the same for the least bytes at no more than this mean divergence, such as kld=0.01")
      ->excludes(sizeBudget)
      ->excludes("--pass-pipeline")
      ->group("Formats of weights");
  compileCommand
      ->add_option(
          "--base", arguments.base,
          "artifact that was calibrated: what a budget achieved is measured against it, on the calibration's text")
      ->group("Formats of weights");
  compileCommand->add_flag("--json", arguments.json, "print what a budget chose, and its --format rules, as JSON")
      ->group("Formats of weights");
  compileCommand->add_option("--max-memory", arguments.maxMemory, "bound on the memory that making weights takes")
      ->capture_default_str();
  compileCommand
      ->add_option("--max-file-size", arguments.maxFileSize,
                   "size at which weights go on in another file, after whole tensors")
      ->capture_default_str();
  compileCommand->add_option("--threads", options.threads, "threads (default: one per processor)")
      ->check(CLI::Range(1u, 1024u));
  compileCommand
      ->add_option("--emit", arguments.emit,
                   "print a stage instead: the imported model, the program, LLVM IR, assembly")
      ->check(CLI::IsMember({"moe", "exec", "llvm", "asm"}));
  compileCommand->add_option("--level", arguments.level,
                             "CPU level that --emit=llvm and asm print (default: the best)");
  compileCommand->add_flag(
      "--explain{" + std::string(onStderr) + "}", arguments.explain,
      "say on stderr what was fused, what was chosen for each op, and why; --explain=REPORT writes "
      "REPORT.html and REPORT.json instead, with bytes, operations and the memory plan");
  compileCommand->add_flag("--print-ir-after-all", arguments.printAfterAll, "print the IR after each pass on stderr");
  compileCommand->allow_extras();
  compileCommand->footer(
      "The --mlir-* options of MLIR's own tools work too: --mlir-print-ir-before=PASS, --mlir-print-ir-after-all, "
      "--mlir-timing, --mlir-pass-statistics (which needs an LLVM that was built with statistics), ...");

  PlanCommand plan(app);
  CalibrateCommand calibrate(app);

  CLI::App *inspectCommand = app.add_subcommand("inspect", "Show what is in an artifact");
  inspectCommand->add_option("ARTIFACT", arguments.artifact, "artifact directory")->required();
  inspectCommand->add_flag("--json", arguments.json, "print JSON");
  inspectCommand->add_flag("--verify", arguments.verify, "read all weights and compare their checksums first");

  CLI::App *interpretCommand =
      app.add_subcommand("interpret", "Run a checkpoint in the reference interpreter: slow, and right by definition");
  interpretCommand->add_option("MODEL_DIR", options.model, "directory with config.json and safetensors or GGUF")
      ->required();
  interpretCommand->add_option("--tokens", arguments.tokens, "token ids, with commas between")->required();
  interpretCommand->add_option("-o,--output", arguments.output, "safetensors file: `logits` f32 [T, V]")->required();
  CLI::Option *optimized =
      interpretCommand->add_flag("--optimized", arguments.optimized, "interpret the module after the passes");
  addLayers(*interpretCommand, arguments.layers);
  std::vector<CLI::Option *> ofPasses = addPassOptions(*interpretCommand, options.passes);
  ofPasses.push_back(addMla(*interpretCommand, options));
  ofPasses.push_back(addCache(*interpretCommand, options));
  llvm::append_range(ofPasses, addFormats(*interpretCommand, options));
  for (CLI::Option *option : ofPasses)
    option->needs(optimized);
  interpretCommand->add_flag("--float64", arguments.float64, "compute in double precision");

  CLI::App *verifyCommand = app.add_subcommand(
      "verify", "Prove a compile: run the reference interpreter before and after each pass, then the artifact");
  verifyCommand->add_option("MODEL_DIR", options.model, "directory with config.json and safetensors or GGUF")
      ->required();
  CLI::Option *ids = verifyCommand->add_option("--tokens", arguments.tokens, "token ids, with commas between");
  verifyCommand->add_option("--count", arguments.proof.count, "tokens to draw, where none are given")
      ->check(CLI::Range(int64_t(1), int64_t(4096)))
      ->excludes(ids)
      ->capture_default_str();
  verifyCommand->add_option("--seed", arguments.proof.seed, "equal seeds draw equal tokens")
      ->excludes(ids)
      ->capture_default_str();
  addLayers(*verifyCommand, arguments.layers);
  addPassOptions(*verifyCommand, options.passes);
  addMla(*verifyCommand, options);
  addCache(*verifyCommand, options);
  addFormats(*verifyCommand, options);
  verifyCommand->add_flag("!--no-artifact", arguments.proof.artifact, "prove the passes only");
  verifyCommand->add_flag("--json", arguments.json, "print JSON");
  verifyCommand->footer(
      "A pass must leave every logit as it is, or declare that it rounds otherwise (2e-4 at most). "
      "Another format of weights or caches makes another model, whose difference is shown, as is that of "
      "an artifact that rounds activations or cache entries. The exit code is 1 "
      "if a step does not hold; the first op that differs is shown then, before and after.");

  mlir::moe::registerMoePipelines(); // --mlir-print-ir-after=<pass> wants to know them
  mlir::registerAsmPrinterCLOptions();
  mlir::registerMLIRContextCLOptions();
  mlir::registerPassManagerCLOptions();
  mlir::registerDefaultTimingManagerCLOptions();

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success &done) {
    return app.exit(done);
  } catch (const CLI::ParseError &error) {
    return report(Error{std::string(error.what()) + " (see --help)"});
  }

  if (*compileCommand) {
    // What CLI11 does not know is MLIR's or nobody's.
    std::vector<std::string> extras = compileCommand->remaining();
    std::vector<const char *> words = {argv[0]};
    if (arguments.printAfterAll)
      words.push_back("--mlir-print-ir-after-all");
    for (const std::string &extra : extras) {
      if (extra.rfind("--mlir-", 0) != 0)
        return report(Error{"unknown argument '" + extra + "' (see --help)"});
      words.push_back(extra.c_str());
    }
    std::string errors;
    llvm::raw_string_ostream stream(errors);
    if (!llvm::cl::ParseCommandLineOptions(static_cast<int>(words.size()), words.data(), "", &stream)) {
      if (errors.empty()) // bad values are told right away
        return 1;
      llvm::StringRef first = llvm::StringRef(errors).split('\n').first; // guesses follow
      first.consume_front("moec: ");
      return report(Error{first.str()});
    }
    return report(compile(arguments));
  }
  if (plan.isChosen())
    return report(plan.run());
  if (calibrate.isChosen())
    return report(calibrate.run());
  if (*inspectCommand)
    return report(inspect(arguments));
  if (*verifyCommand)
    return report(verify(arguments));
  return report(interpret(arguments));
}
