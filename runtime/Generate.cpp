// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Generate.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace moec {

Result<SamplingOptions> resolveSampling(const SamplingRequest &request, const GenerationDefaults &defaults) {
  SamplingOptions options;
  const bool samples = defaults.doSample.value_or(defaults.temperature.has_value());
  options.temperature = request.temperature.value_or(samples ? defaults.temperature.value_or(1) : 0);
  options.topP = request.topP.value_or(defaults.topP.value_or(1));
  options.topK = request.topK.value_or(defaults.topK.value_or(0));
  options.seed = request.seed;
  MOEC_CHECK(options.check());
  return options;
}

std::string_view toString(StopReason reason) {
  switch (reason) {
  case StopReason::Eos:
    return "eos";
  case StopReason::Length:
    return "length";
  case StopReason::Context:
    return "context";
  case StopReason::Cancelled:
    return "cancelled";
  }
  return "?";
}

Result<Generation> Generation::begin(Model &model, const Tokenizer &tokenizer, std::span<const int32_t> prompt,
                                     const GenerationOptions &options) {
  MOEC_CHECK(options.sampling.check());
  if (prompt.empty())
    return Error{"the prompt has no tokens"};
  const int64_t count = prompt.size();
  if (count > model.maxContext())
    return Error{"the prompt has " + std::to_string(count) + " tokens, but the artifact is compiled for a context of " +
                 std::to_string(model.maxContext())};
  MOEC_TRY(int64_t held, model.length(options.slot));
  if (options.cached < 0 || options.cached > held)
    return Error{"slot " + std::to_string(options.slot) + " holds " + std::to_string(held) + " tokens, not " +
                 std::to_string(options.cached)};
  Generation generation(model, tokenizer, options);
  generation.options.cached = std::min(options.cached, count - 1);
  generation.prompt.assign(prompt.begin(), prompt.end());
  if (options.maxTokens == 0)
    generation.reason = StopReason::Length;
  if (!options.ignoreEos) {
    generation.eos = model.info().eos;
    const std::vector<int64_t> &more = tokenizer.generationDefaults().eosIds;
    generation.eos.insert(generation.eos.end(), more.begin(), more.end());
    if (tokenizer.eosId())
      generation.eos.push_back(*tokenizer.eosId());
  }
  return generation;
}

/// Reads tokens at `position` and leaves the logits of the last in `logits`, or what is likeliest to follow in
/// `likeliest`.
Status Generation::read(std::span<const int32_t> tokens, int64_t position) {
  std::vector<int32_t> positions(tokens.size()), slots(tokens.size(), options.slot);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(position));
  const int32_t last = static_cast<int32_t>(tokens.size()) - 1;
  if (options.sampling.isGreedy())
    return model->stepArgmax(tokens, positions, slots, std::span(&last, 1), std::span(&likeliest, 1));
  return model->step(tokens, positions, slots, std::span(&last, 1), logits);
}

Status Generation::readPrompt() {
  const int64_t end = prompt.size();
  // In the model's own pieces, so that a cancellation need not wait for a long prompt.
  for (int64_t at = options.cached; at < end; at += model->maxTokens()) {
    if (options.cancel && *options.cancel) {
      reason = StopReason::Cancelled;
      return success();
    }
    int64_t count = std::min(model->maxTokens(), end - at);
    MOEC_CHECK(read(std::span(prompt).subspan(at, count), at));
    figures.promptTokens += count;
  }
  return success();
}

Result<std::optional<std::string>> Generation::next() {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const auto rest = [&]() -> std::optional<std::string> {
    std::string text = decoder.flush();
    return text.empty() ? std::nullopt : std::optional(std::move(text));
  };
  if (!reason && options.cancel && *options.cancel)
    reason = StopReason::Cancelled;
  if (reason)
    return rest();

  const auto start = Clock::now();
  const bool first = generated.empty();
  if (first)
    MOEC_CHECK(readPrompt());
  else
    MOEC_CHECK(read(std::span(&generated.back(), 1), prompt.size() + generated.size() - 1));
  if (reason)
    return rest();
  if (first)
    figures.promptSeconds = since(start);
  MOEC_TRY(int32_t token, options.sampling.isGreedy() ? Sampler::take(likeliest) : sampler.sample(logits));
  if (!first)
    figures.generationSeconds += since(start);
  if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
    reason = StopReason::Eos;
    return rest();
  }
  generated.push_back(token);
  ++figures.generatedTokens;
  const int64_t count = generated.size(), held = prompt.size() + count - 1;
  if (options.maxTokens >= 0 && count >= options.maxTokens)
    reason = StopReason::Length;
  else if (held >= model->maxContext())
    reason = StopReason::Context;
  return std::optional(decoder.push(token));
}

} // namespace moec
