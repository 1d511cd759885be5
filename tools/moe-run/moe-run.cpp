// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// `moe-run`: artifacts at work. Results go to stdout, everything about them
/// to stderr; whatever is wrong is one sentence and exit code 1.

#include "runtime/Artifact.h"
#include "runtime/ChunkReader.h"
#include "runtime/Generate.h"
#include "runtime/Model.h"
#include "runtime/Sampler.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Json.h"
#include "runtime/Support/Safetensors.h"
#include "runtime/Support/Text.h"
#include "runtime/Tokenizer/ChatTemplate.h"
#include "runtime/Tokenizer/Tokenizer.h"
#include "tools/moe-run/Bench.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

using namespace moec;

namespace {

/// What Ctrl-C sets: generation ends after the token that it is at.
std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set in a signal handler");

/// No SA_RESTART: a prompt that waits for input gives up as well.
void catchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = true; };
  sigaction(SIGINT, &action, nullptr);
}

constexpr int exitInterrupted = 130; // 128 + SIGINT, as shells say

//===----------------------------------------------------------------------===//
// Options
//===----------------------------------------------------------------------===//

/// Where weights lie, by name; `load` refuses what is none.
void addWeights(CLI::App &app, std::string &placement) {
  app.add_option(
         "--weights", placement,
         "Where weights are read: mapped, in the page cache; copied, in huge pages of this process, on all memory "
         "nodes in turn; replicated, such a copy on each node, for its threads")
      ->check(CLI::IsMember(std::vector<std::string>(weightPlacementNames.begin(), weightPlacementNames.end())))
      ->capture_default_str();
}

struct ModelArgs {
  std::string artifact, weights = "mapped";
  int threads = 0;
  bool checkWeights = false;

  void add(CLI::App &app) {
    app.add_option("artifact", artifact, "Directory made by `moec compile`")->required()->type_name("ART");
    app.add_option("-t,--threads", threads, "Threads to use (default: the physical cores available)")->type_name("N");
    addWeights(app, weights);
    app.add_flag("--check-weights", checkWeights, "First read all weights and compare them with the artifact's hashes");
  }
  Result<std::unique_ptr<Model>> load() const {
    ModelOptions options;
    options.threads = threads;
    MOEC_TRY(options.weights, weightPlacementFromString(weights));
    MOEC_TRY(std::unique_ptr<Model> model, Model::load(artifact, options));
    if (checkWeights)
      MOEC_CHECK(model->artifact().verifyWeights());
    return model;
  }
};

struct SamplingArgs {
  double temperature = 0, topP = 1;
  int64_t topK = 0, predict = 128;
  uint64_t seed = 0;
  CLI::Option *temperatureOption = nullptr, *topPOption = nullptr, *topKOption = nullptr, *seedOption = nullptr;

  void add(CLI::App &app, int64_t defaultPredict) {
    predict = defaultPredict;
    app.add_option("-n,--predict", predict,
                   "Tokens to generate at most; -1: until the model or its context ends (default: " +
                       std::to_string(defaultPredict) + ")")
        ->type_name("N");
    const char *otherwise = " (default: as the model's generation_config.json says, ";
    temperatureOption =
        app.add_option("--temperature,--temp", temperature,
                       std::string("Divides the logits; 0: always the most probable token") + otherwise + "else 0)")
            ->type_name("X");
    topPOption = app.add_option("--top-p", topP,
                                std::string("Draw from the fewest most probable tokens that reach this probability") +
                                    otherwise + "else 1)")
                     ->type_name("X");
    topKOption =
        app.add_option("--top-k", topK,
                       std::string("Draw from this many most probable tokens; 0: from all") + otherwise + "else 0)")
            ->type_name("N");
    seedOption = app.add_option("-s,--seed", seed, "Equal seeds draw equal texts (default: another one each time)")
                     ->type_name("N");
  }
  Result<SamplingOptions> resolve(const GenerationDefaults &defaults) const {
    SamplingRequest request;
    if (temperatureOption->count() > 0)
      request.temperature = temperature;
    if (topPOption->count() > 0)
      request.topP = topP;
    if (topKOption->count() > 0)
      request.topK = topK;
    request.seed = seedOption->count() > 0 ? seed : std::random_device{}();
    return resolveSampling(request, defaults);
  }
};

//===----------------------------------------------------------------------===//
// Output
//===----------------------------------------------------------------------===//

Status print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    return Error{std::string("cannot write to standard output: ") + std::strerror(errno)};
  return success();
}

std::string rate(double perSecond) {
  char text[32];
  std::snprintf(text, sizeof text, perSecond < 10 ? "%.2f" : perSecond < 100 ? "%.1f" : "%.0f", perSecond);
  return text;
}

std::string describe(const Generation &generation) {
  const GenerationStats &stats = generation.stats();
  std::string line = "prompt " + std::to_string(stats.promptTokens) + " tokens, " + rate(stats.promptRate()) +
                     " tok/s; generated " + std::to_string(stats.generatedTokens) + " tokens, " +
                     rate(stats.generationRate()) + " tok/s";
  if (generation.stopReason() == StopReason::Context)
    line += "; stopped as the context is full";
  else if (generation.stopReason() == StopReason::Cancelled)
    line += "; interrupted";
  return line;
}

std::string describe(const SamplingOptions &sampling) {
  if (sampling.temperature == 0)
    return "greedy";
  char text[128];
  std::snprintf(text, sizeof text, "temperature %g, top-p %g, top-k %lld, seed %llu", sampling.temperature,
                sampling.topP, static_cast<long long>(sampling.topK), static_cast<unsigned long long>(sampling.seed));
  return text;
}

/// Prints text as it comes; returns all of it.
Result<std::string> stream(Generation &generation) {
  std::string all;
  for (;;) {
    MOEC_TRY(std::optional<std::string> text, generation.next());
    if (!text)
      return all;
    MOEC_CHECK(print(*text));
    all += *text;
  }
}

/// A file, or standard input if `path` is "-".
Result<std::string> readText(const std::string &path) {
  if (path != "-")
    return readFile(path, uint64_t(4) << 30);
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  return text;
}

//===----------------------------------------------------------------------===//
// Subcommands
//===----------------------------------------------------------------------===//

struct Generate {
  ModelArgs model;
  SamplingArgs sampling;
  std::string prompt, promptFile;
  bool raw = false, ignoreEos = false;

  void add(CLI::App &app) {
    model.add(app);
    auto *text = app.add_option("-p,--prompt", prompt, "Text to continue")->type_name("TEXT");
    auto *file = app.add_option("-f,--prompt-file", promptFile, "File with the text to continue; -: standard input")
                     ->type_name("FILE");
    text->excludes(file);
    sampling.add(app, 128);
    app.add_flag("--raw,--no-bos", raw, "Put no begin-of-sequence token in front of the prompt");
    app.add_flag("--ignore-eos", ignoreEos, "Go on after the end-of-sequence token");
    app.footer(
        "Prints the continuation, as it comes, and figures to standard error. Ctrl-C ends it with exit code 130.");
  }
  Result<int> run() {
    if (!promptFile.empty()) {
      MOEC_TRY(prompt, readText(promptFile));
    }
    MOEC_TRY(std::unique_ptr<Model> loaded, model.load());
    MOEC_TRY(Tokenizer tokenizer, Tokenizer::load(model.artifact));
    GenerationOptions options;
    options.maxTokens = sampling.predict;
    options.ignoreEos = ignoreEos;
    options.cancel = &interrupted;
    MOEC_TRY(options.sampling, sampling.resolve(tokenizer.generationDefaults()));
    EncodeOptions encoding;
    encoding.addBos = !raw;
    MOEC_TRY(Generation generation, Generation::begin(*loaded, tokenizer, tokenizer.encode(prompt, encoding), options));
    catchInterrupts();
    MOEC_TRY(std::string text, stream(generation));
    if (!text.empty() && text.back() != '\n')
      MOEC_CHECK(print("\n"));
    std::fprintf(stderr, "%s; %s, %s\n", describe(generation).c_str(), describe(options.sampling).c_str(),
                 loaded->deviceDescription().c_str());
    return generation.stopReason() == StopReason::Cancelled ? exitInterrupted : 0;
  }
};

struct Chat {
  ModelArgs model;
  SamplingArgs sampling;
  std::string system;
  bool thinking = false;

  void add(CLI::App &app) {
    model.add(app);
    app.add_option("--system", system, "What the system says before the first turn")->type_name("TEXT");
    app.add_flag("--thinking", thinking, "Ask the model to reason first, if its chat format has that choice");
    sampling.add(app, -1);
    app.footer("Reads one turn a line from standard input. /reset forgets the conversation, /exit or Ctrl-D ends; "
               "Ctrl-C ends an answer.");
  }
  Result<int> run() {
    MOEC_TRY(std::unique_ptr<Model> loaded, model.load());
    MOEC_TRY(Tokenizer tokenizer, Tokenizer::load(model.artifact));
    if (auto kind = detectChatKind(tokenizer); !kind.ok())
      return Error{model.artifact + ": " + kind.message()};
    GenerationOptions options;
    options.maxTokens = sampling.predict;
    options.cancel = &interrupted;
    MOEC_TRY(options.sampling, sampling.resolve(tokenizer.generationDefaults()));
    ChatOptions chat;
    chat.thinking = thinking;

    const bool terminal = ::isatty(STDIN_FILENO);
    if (terminal)
      std::fprintf(stderr, "%s, %s; %s\n/reset forgets the conversation, /exit or Ctrl-D ends\n",
                   loaded->info().name.c_str(), loaded->deviceDescription().c_str(),
                   describe(options.sampling).c_str());
    catchInterrupts();
    std::vector<ChatMessage> messages;
    const auto reset = [&] {
      messages.clear();
      if (!system.empty())
        messages.push_back({"system", system});
    };
    reset();
    std::vector<int32_t> held; // the tokens in the model's slot
    for (std::string line;;) {
      if (terminal)
        std::fprintf(stderr, "> ");
      if (!std::getline(std::cin, line) || line == "/exit") {
        if (terminal)
          std::fprintf(stderr, "\n");
        return interrupted ? exitInterrupted : 0;
      }
      if (line == "/reset") {
        reset();
        continue;
      }
      if (line.empty())
        continue;
      messages.push_back({"user", line});
      MOEC_TRY(std::vector<int32_t> prompt, encodeChat(tokenizer, messages, chat));
      // What the conversation shares with the cache is not read again; answers may render to other tokens than
      // were generated, and are then read once more from the first difference on.
      options.cached = std::mismatch(held.begin(), held.end(), prompt.begin(), prompt.end()).first - held.begin();
      auto generation = Generation::begin(*loaded, tokenizer, prompt, options);
      if (!generation.ok()) {
        // Too long a conversation is no reason to lose the rest of it.
        std::fprintf(stderr, "moe-run: %s; /reset forgets the conversation\n", generation.message().c_str());
        messages.pop_back();
        if (!terminal)
          return 1;
        continue;
      }
      MOEC_TRY(std::string answer, stream(*generation));
      MOEC_CHECK(print("\n"));
      std::fprintf(stderr, "[%s]\n", describe(*generation).c_str());
      messages.push_back({"assistant", answer});
      held = std::move(prompt);
      held.insert(held.end(), generation->tokens().begin(), generation->tokens().end());
      MOEC_TRY(int64_t length, loaded->length(options.slot));
      held.resize(length);
      if (interrupted && !terminal)
        return exitInterrupted;
      interrupted = false;
    }
  }
};

struct Logits {
  ModelArgs model;
  std::string tokens, output;
  int64_t chunk = 0;

  void add(CLI::App &app) {
    model.add(app);
    app.add_option("--tokens", tokens, "Ids to read, such as 0,5,7")->required()->type_name("IDS");
    app.add_option("-o,--output", output, "File to write: f32 [T, V], called logits")->required()->type_name("FILE");
    app.add_option("--chunk", chunk, "Tokens to read in one step (default: as many as is best)")->type_name("N");
  }
  Result<int> run() {
    MOEC_TRY(std::vector<int32_t> ids, parseIds(tokens, "--tokens"));
    if (chunk < 0)
      return Error{"--chunk is " + std::to_string(chunk) + ", expected at least 1"};
    MOEC_TRY(std::unique_ptr<Model> loaded, model.load());
    const int64_t count = ids.size(), vocab = loaded->vocab();
    if (count > loaded->maxContext())
      return Error{"there are " + std::to_string(count) + " tokens, but the artifact is compiled for a context of " +
                   std::to_string(loaded->maxContext())};
    MOEC_TRY(SafetensorsWriter writer, SafetensorsWriter::create(output, {{"logits", DType::F32, {count, vocab}}}));
    const int64_t step = std::min(chunk > 0 ? chunk : loaded->maxTokens(), count);
    std::vector<float> values(step * vocab);
    for (int64_t at = 0; at < count; at += step) {
      const int64_t size = std::min(step, count - at);
      std::vector<int32_t> positions(size), rows(size), slots(size, 0);
      std::iota(positions.begin(), positions.end(), static_cast<int32_t>(at));
      std::iota(rows.begin(), rows.end(), 0);
      const auto part = std::span(values).first(size * vocab);
      MOEC_CHECK(loaded->step(std::span(ids).subspan(at, size), positions, slots, rows, part));
      MOEC_CHECK(writer.write("logits", at * vocab * sizeof(float), part.data(), part.size_bytes()));
    }
    MOEC_CHECK(writer.finish());
    return 0;
  }
};

/// How far the logits of a model are from those of another one, position by position.
class Divergence {
public:
  void add(std::span<const float> base, std::span<const float> logits) {
    values.push_back(klDivergence(base, logits));
    sameTop += argmax(base) == argmax(logits);
  }
  double mean() const {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }
  /// The value that 99 of 100 do not exceed.
  double percentile99() const {
    std::vector<double> sorted = values;
    auto place = sorted.begin() + (static_cast<int64_t>(sorted.size()) * 99 + 99) / 100 - 1;
    std::nth_element(sorted.begin(), place, sorted.end());
    return *place;
  }
  double sameTopShare() const { return static_cast<double>(sameTop) / static_cast<double>(values.size()); }

private:
  std::vector<double> values;
  int64_t sameTop = 0;
};

struct Perplexity {
  static constexpr int64_t chunkTokens = ChunkReader::chunkTokens;
  ModelArgs model;
  std::string file, base;
  bool json = false;

  void add(CLI::App &app) {
    model.add(app);
    app.add_option("-f,--file", file, "Text to read; -: standard input")->required()->type_name("FILE");
    app.add_option("--kld", base, "Artifact of the same model to compare with, position by position")
        ->type_name("BASE_ART");
    app.add_flag("--json", json,
                 "Print a JSON object with the keys perplexity, tokens and chunks, and with --kld base_perplexity, "
                 "kld_mean, kld_p99 and same_top");
    app.footer("exp of the mean of -ln p over all tokens. The text is tokenized once and cut into chunks of 256 "
               "tokens, each read after a begin-of-sequence token; the last partial chunk is dropped. --kld adds the "
               "Kullback-Leibler divergence of the logits from those of BASE_ART, in nats: its mean and the value that "
               "99 of 100 positions do not exceed; and at how many positions both have the same most probable token.");
  }
  Result<int> run() {
    MOEC_TRY(std::string text, readText(file));
    MOEC_TRY(ChunkReader reader, open(model));
    MOEC_TRY(const std::vector<int32_t> ids, ChunkReader::encode(model.artifact, text));
    MOEC_TRY(const int64_t chunks, reader.chunksOf(ids, file));
    const int64_t count = chunks * chunkTokens;
    std::optional<ChunkReader> baseReader;
    if (!base.empty()) {
      MOEC_TRY(ChunkReader opened, openBase(text, ids, reader.vocab()));
      baseReader = std::move(opened);
    }

    catchInterrupts();
    const auto start = std::chrono::steady_clock::now();
    Divergence divergence;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t *expected = ids.data() + chunk * chunkTokens;
      MOEC_CHECK(reader.read(expected));
      if (baseReader) {
        MOEC_CHECK(baseReader->read(expected));
        for (int64_t t = 0; t < chunkTokens; ++t)
          divergence.add(baseReader->row(t), reader.row(t));
      }
      if (interrupted)
        return exitInterrupted;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!std::isfinite(reader.perplexity()) || (baseReader && !std::isfinite(baseReader->perplexity())))
      return Error{file + ": the perplexity is no finite number"};
    if (json) {
      Json found = {{"perplexity", reader.perplexity()}, {"tokens", count}, {"chunks", chunks}};
      if (baseReader) {
        found["base_perplexity"] = baseReader->perplexity();
        found["kld_mean"] = divergence.mean();
        found["kld_p99"] = divergence.percentile99();
        found["same_top"] = divergence.sameTopShare();
      }
      MOEC_CHECK(print(found.dump() + "\n"));
    } else {
      char line[256];
      std::snprintf(line, sizeof line, "perplexity %.4f over %lld tokens in %lld chunks\n", reader.perplexity(),
                    static_cast<long long>(count), static_cast<long long>(chunks));
      MOEC_CHECK(print(line));
      if (baseReader) {
        std::snprintf(
            line, sizeof line, "KLD mean %.3g, 99th percentile %.3g; same top token %.2f %%; base perplexity %.4f\n",
            divergence.mean(), divergence.percentile99(), 100 * divergence.sameTopShare(), baseReader->perplexity());
        MOEC_CHECK(print(line));
      }
    }
    std::fprintf(stderr, "%s tok/s; %s\n", rate(count / seconds).c_str(), reader->deviceDescription().c_str());
    return 0;
  }

private:
  static Result<ChunkReader> open(const ModelArgs &args) {
    MOEC_TRY(std::unique_ptr<Model> model, args.load());
    return ChunkReader::open(std::move(model));
  }
  /// The artifact to compare with; whether it is of the same model shows in its vocabulary and in what text becomes.
  Result<ChunkReader> openBase(const std::string &text, const std::vector<int32_t> &ids, int64_t vocab) const {
    ModelArgs args = model;
    args.artifact = base;
    MOEC_TRY(ChunkReader reader, open(args));
    if (reader.vocab() != vocab)
      return Error{base + ": has a vocabulary of " + std::to_string(reader.vocab()) + ", but " + model.artifact +
                   " has one of " + std::to_string(vocab) + "; --kld compares artifacts of one model"};
    MOEC_TRY(const std::vector<int32_t> baseIds, ChunkReader::encode(base, text));
    if (baseIds != ids)
      return Error{base + ": its tokenizer reads " + file + " differently from that of " + model.artifact +
                   "; --kld compares artifacts of one model"};
    return reader;
  }
};

struct Tokenize {
  std::string path, text, file;
  bool raw = false, json = false;

  void add(CLI::App &app) {
    app.add_option("path", path, "Artifact, checkpoint directory or tokenizer.json")->required()->type_name("PATH");
    auto *given = app.add_option("--text", text, "Text to tokenize")->type_name("TEXT");
    auto *from = app.add_option("-f,--file", file, "File to tokenize; -: standard input")->type_name("FILE");
    given->excludes(from);
    app.add_flag("--raw,--no-bos", raw, "Put no begin-of-sequence token in front of the text");
    app.add_flag("--json", json, "Print a JSON array of ids");
  }
  Result<int> run() {
    if (!file.empty()) {
      MOEC_TRY(text, readText(file));
    }
    MOEC_TRY(Tokenizer tokenizer, Tokenizer::load(path));
    EncodeOptions encoding;
    encoding.addBos = !raw;
    std::string line = json ? "[" : "";
    const char *separator = "";
    for (int32_t id : tokenizer.encode(text, encoding)) {
      line += separator + std::to_string(id);
      separator = json ? ", " : " ";
    }
    MOEC_CHECK(print(line + (json ? "]\n" : "\n")));
    return 0;
  }
};

struct BenchCommand {
  BenchOptions options;
  bool json = false, markdown = false;

  void add(CLI::App &app) {
    const auto list = [&](const char *names, auto &values, const char *what) {
      app.add_option(names, values, what)->delimiter(',')->type_name("N,...")->allow_extra_args(false);
    };
    app.add_option("artifact", options.artifact, "Directory made by `moec compile`")->required()->type_name("ART");
    list("-p,--prompt", options.prompts, "Tokens of the prompts to read; 0: none (default: 512)");
    list("-n,--predict", options.decodes, "Tokens to decode; 0: none (default: 64)");
    list("-d,--depth", options.depths, "Tokens in the cache before decoding begins (default: 0)");
    list("--sequences", options.sequences, "Sequences to decode together (default: 1)");
    list("-t,--threads", options.threads, "Threads to use (default: 0, the physical cores available)");
    addWeights(app, options.weights);
    app.add_option("-r,--repetitions", options.repetitions, "Repetitions of each test, in turn (default: 5)")
        ->type_name("N");
    auto *asJson = app.add_flag("--json", json, "Print a JSON object");
    app.add_flag("--markdown", markdown, "Print Markdown tables")->excludes(asJson);
    app.add_flag("--profile", options.profile, "Also say where the time of one more run goes, kernel by kernel");
    app.add_option("--trace", options.trace, "Write when each launch ran, for https://ui.perfetto.dev")
        ->type_name("FILE");
    app.footer(
        "Prints medians. Tests are called pp512 (a prompt of 512 tokens), tg64@d4096 (64 tokens decoded after 4096) "
        "and tg64x8 (by 8 sequences together: the rate is that of all). Tokens are random, the same each time. "
        "Beside each test are the bytes and operations that the program needs at least, as shares of what this "
        "machine reads from memory and multiplies, measured before each round of tests with as many threads.");
  }
  Result<int> run() {
    MOEC_TRY(const BenchReport report, runBench(options));
    MOEC_CHECK(print(json ? toJson(report) : toText(report, markdown ? TableStyle::Markdown : TableStyle::Plain)));
    return 0;
  }
};

/// Adds a subcommand; the one that the user names leaves its result in `outcome`.
template <typename Command>
void addCommand(CLI::App &app, Command &command, const char *name, const char *what,
                std::optional<Result<int>> &outcome) {
  CLI::App *sub = app.add_subcommand(name, what);
  command.add(*sub);
  sub->callback([&] { outcome = command.run(); });
}

int fail(const std::string &sentence) {
  std::fprintf(stderr, "moe-run: %s\n", sentence.c_str());
  return 1;
}

int run(int argc, char **argv) {
  CLI::App app("Runs artifacts made by `moec compile`.", "moe-run");
  app.set_version_flag("--version", "moe-run " MOEC_VERSION);
  app.require_subcommand(1);
  app.footer("MOEC_CPU=v3 (or v4, ...) in the environment forces one of the artifact's CPU levels.");
  std::optional<Result<int>> outcome;
  Generate generate;
  Chat chat;
  Logits logits;
  Perplexity perplexity;
  Tokenize tokenize;
  BenchCommand bench;
  addCommand(app, generate, "generate", "Continue a prompt", outcome);
  addCommand(app, chat, "chat", "Talk with a model, turn by turn", outcome);
  addCommand(app, logits, "logits", "Write a model's logits for given tokens", outcome);
  addCommand(app, perplexity, "perplexity", "Measure how well a model predicts a text", outcome);
  addCommand(app, bench, "bench", "Measure how fast a model runs, and how fast it could", outcome);
  addCommand(app, tokenize, "tokenize", "Print the ids of a text", outcome);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError &error) {
    if (error.get_exit_code() == 0) // --help, --version
      return app.exit(error);
    std::string sentence = error.what();
    std::replace(sentence.begin(), sentence.end(), '\n', ' ');
    return fail(sentence + "; see moe-run --help");
  }
  if (!outcome->ok())
    return fail(outcome->message());
  return **outcome;
}

} // namespace

int main(int argc, char **argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc &) {
    return fail("out of memory");
  } catch (const std::exception &error) {
    return fail(error.what());
  }
}
