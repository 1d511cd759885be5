// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The loop around a model that turns a prompt into text.

#ifndef MOEC_RUNTIME_GENERATE_H
#define MOEC_RUNTIME_GENERATE_H

#include "runtime/Model.h"
#include "runtime/Sampler.h"
#include "runtime/Support/Result.h"
#include "runtime/Tokenizer/Tokenizer.h"

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// What a user asked for; empty fields follow the model's generation_config.json.
struct SamplingRequest {
  std::optional<double> temperature, topP;
  std::optional<int64_t> topK;
  uint64_t seed = 0;
};

/// Fills in defaults and checks ranges. A generation_config.json that says
/// `do_sample: true`, or that gives a temperature and says nothing of
/// do_sample, sets temperature (1 if absent), top-p and top-k. Without one, or
/// with `do_sample: false`, decoding is greedy. A stated temperature of 0 is
/// greedy always; a stated temperature above 0 samples always.
Result<SamplingOptions> resolveSampling(const SamplingRequest &request, const GenerationDefaults &defaults);

enum class StopReason {
  Eos,      ///< the model ended its text
  Length,   ///< as many tokens as were asked for
  Context,  ///< the slot holds as many tokens as the artifact is compiled for
  Cancelled ///< `cancel` was set
};
/// "eos", "length", "context", "cancelled".
std::string_view toString(StopReason reason);

struct GenerationOptions {
  int64_t maxTokens = 128; ///< tokens to generate at most; negative: until the model or the context ends
  SamplingOptions sampling;
  bool ignoreEos = false; ///< go on after an end-of-sequence token, as if it were text
  int32_t slot = 0;
  /// Tokens at the begin of the prompt that the slot already holds. At least
  /// one token of the prompt is read again.
  int64_t cached = 0;
  /// Ends the generation before the next step when it becomes true.
  const std::atomic<bool> *cancel = nullptr;
};

struct GenerationStats {
  int64_t promptTokens = 0;     ///< read in this generation, without cached ones
  int64_t generatedTokens = 0;  ///< the end-of-sequence token not counted
  double promptSeconds = 0;     ///< to the logits of the first token
  double generationSeconds = 0; ///< of all steps and draws after that

  /// Per second; 0 if no time was measured.
  double promptRate() const { return promptSeconds > 0 ? promptTokens / promptSeconds : 0; }
  /// The first token comes out of the prompt's step, so it counts in neither rate's time.
  double generationRate() const {
    return generationSeconds > 0 && generatedTokens > 1 ? (generatedTokens - 1) / generationSeconds : 0;
  }
};

/// One text being generated, pulled token by token. Afterwards the slot holds
/// the prompt and the generated tokens without the last one.
class Generation {
public:
  /// Checks the options and the prompt's length; reads nothing yet. `model`
  /// must outlive the generation, and no other may use its slot meanwhile.
  static Result<Generation> begin(Model &model, const Tokenizer &tokenizer, std::span<const int32_t> prompt,
                                  const GenerationOptions &options);

  /// Generates one token and gives the text that it completes, whole UTF-8
  /// characters, maybe none. Nothing: the generation has ended. After a
  /// failure it must not be called again.
  Result<std::optional<std::string>> next();

  /// Set as soon as it is known that no token follows.
  std::optional<StopReason> stopReason() const { return reason; }
  /// The tokens generated so far, without an end-of-sequence token.
  const std::vector<int32_t> &tokens() const { return generated; }
  const GenerationStats &stats() const { return figures; }

private:
  Generation(Model &model, const Tokenizer &tokenizer, const GenerationOptions &options)
      : model(&model), options(options), sampler(options.sampling), decoder(tokenizer),
        logits(options.sampling.isGreedy() ? 0 : model.vocab()) {}
  Status read(std::span<const int32_t> tokens, int64_t position);
  Status readPrompt();

  Model *model;
  GenerationOptions options;
  Sampler sampler;
  StreamDecoder decoder;
  std::vector<int32_t> prompt, generated;
  std::vector<int64_t> eos;
  std::vector<float> logits; ///< of the last token read, where one is drawn by them
  int32_t likeliest = -1;    ///< after the last token read, where that one is taken
  std::optional<StopReason> reason;
  GenerationStats figures;
};

} // namespace moec

#endif // MOEC_RUNTIME_GENERATE_H
