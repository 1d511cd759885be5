// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Generate.h"
#include "test/runtime/model_tiny.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

using namespace moec;
using namespace moec::test;

namespace {

class Generate : public testing::Test {
protected:
  void load(int64_t maxContext = 200, std::vector<int64_t> eos = {}) {
    TinyArtifact artifact(maxContext);
    artifact.manifest["model"]["eos"] = eos;
    artifact.write(dir.path());
    TinyArtifact::writeTokenizer(dir.path());
    ModelOptions options;
    options.threads = 2;
    model = take(Model::load(dir.path(), options));
    tokenizer = take(Tokenizer::load(dir.path()));
  }
  /// Greedy continuation from the model's definition.
  std::vector<int32_t> expected(std::vector<int32_t> tokens, size_t count) {
    const TinyArtifact tiny;
    std::vector<int32_t> continuation;
    while (continuation.size() < count) {
      std::vector<float> logits = tiny.reference(tokens);
      auto last = logits.end() - TinyArtifact::V;
      continuation.push_back(std::max_element(last, logits.end()) - last);
      tokens.push_back(continuation.back());
    }
    return continuation;
  }
  std::string all(Generation &generation) {
    std::string text;
    for (;;) {
      std::optional<std::string> part = take(generation.next());
      if (!part)
        return text;
      text += *part;
    }
  }
  Generation begin(const std::vector<int32_t> &prompt, const GenerationOptions &options) {
    return take(Generation::begin(*model, *tokenizer, prompt, options));
  }

  TemporaryDirectory dir;
  std::unique_ptr<Model> model;
  std::optional<Tokenizer> tokenizer;
  // Longer than one step of the tiny model, so that it is read in parts.
  const std::vector<int32_t> prompt = [] {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 60; ++i)
      tokens.push_back(i * i % 11);
    return tokens;
  }();
};

TEST_F(Generate, FollowsTheMostProbableToken) {
  load();
  GenerationOptions options;
  options.maxTokens = 40;
  Generation generation = begin(prompt, options);
  EXPECT_EQ(generation.stopReason(), std::nullopt);
  const std::string text = all(generation);
  const std::vector<int32_t> tokens = expected(prompt, 40);
  EXPECT_EQ(generation.tokens(), tokens);
  EXPECT_EQ(text, tokenizer->decode(tokens));
  EXPECT_EQ(generation.stopReason(), StopReason::Length);
  EXPECT_EQ(generation.stats().promptTokens, 60);
  EXPECT_EQ(generation.stats().generatedTokens, 40);
  EXPECT_GT(generation.stats().promptRate(), 0);
  EXPECT_GT(generation.stats().generationRate(), 0);
  EXPECT_EQ(*model->length(0), 99) << "the last token is not read";
  EXPECT_EQ(take(generation.next()), std::nullopt) << "an ended generation stays ended";
}

TEST_F(Generate, EndsBeforeAnEosToken) {
  const std::vector<int32_t> tokens = expected(prompt, 40);
  const int32_t eos = tokens[5];
  const size_t first = std::find(tokens.begin(), tokens.end(), eos) - tokens.begin();
  load(200, {eos});
  Generation generation = begin(prompt, {});
  all(generation);
  EXPECT_EQ(generation.stopReason(), StopReason::Eos);
  EXPECT_EQ(generation.tokens(), std::vector<int32_t>(tokens.begin(), tokens.begin() + first));
  GenerationOptions options;
  options.ignoreEos = true;
  options.maxTokens = 40;
  Generation further = begin(prompt, options);
  all(further);
  EXPECT_EQ(further.tokens(), tokens);
}

TEST_F(Generate, EndsWhenTheContextIsFull) {
  load(64);
  GenerationOptions options;
  options.maxTokens = -1;
  Generation generation = begin(prompt, options);
  all(generation);
  EXPECT_EQ(generation.stopReason(), StopReason::Context);
  EXPECT_EQ(generation.tokens(), expected(prompt, 5)) << "four fit behind the prompt, and one more is known";
  EXPECT_EQ(*model->length(0), 64);
}

TEST_F(Generate, ReadsCachedTokensNoMore) {
  load();
  GenerationOptions options;
  options.maxTokens = 7;
  Generation first = begin(prompt, options);
  all(first);
  std::vector<int32_t> longer = prompt;
  longer.insert(longer.end(), first.tokens().begin(), first.tokens().end());
  longer.push_back(3);
  options.cached = *model->length(0);
  Generation second = begin(longer, options);
  all(second);
  EXPECT_EQ(second.stats().promptTokens, 2);
  EXPECT_EQ(second.tokens(), expected(longer, 7));
  // A prompt that is cached as a whole is read from its last token on.
  options.cached = longer.size();
  Generation third = begin(longer, options);
  all(third);
  EXPECT_EQ(third.stats().promptTokens, 1);
  EXPECT_EQ(third.tokens(), second.tokens());
}

TEST_F(Generate, IsCancelledBetweenTokens) {
  load();
  std::atomic<bool> cancel{false};
  GenerationOptions options;
  options.cancel = &cancel;
  Generation generation = begin(prompt, options);
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(take(generation.next()).has_value());
  cancel = true;
  all(generation);
  EXPECT_EQ(generation.stopReason(), StopReason::Cancelled);
  EXPECT_EQ(generation.tokens().size(), 3u);
  Generation unread = begin(prompt, options);
  all(unread);
  EXPECT_EQ(unread.stopReason(), StopReason::Cancelled);
  EXPECT_EQ(unread.stats().promptTokens, 0);
}

TEST_F(Generate, SeedsDecide) {
  load();
  const auto draw = [&](uint64_t seed) {
    GenerationOptions options;
    options.sampling.temperature = 30; // the tiny model's logits are of order 100
    options.sampling.seed = seed;
    Generation generation = begin(prompt, options);
    return all(generation);
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST_F(Generate, TextIsWholeCharacters) {
  load();
  GenerationOptions options;
  options.maxTokens = 60;
  options.sampling.temperature = 1000; // close to uniform: halves of "é" come in any order
  Generation generation = begin(prompt, options);
  std::string text;
  bool seen = false;
  while (std::optional<std::string> part = take(generation.next())) {
    seen = seen || part->find("é") != std::string::npos;
    const bool half = !part->empty() && static_cast<unsigned char>(part->back()) == 0xc3;
    EXPECT_FALSE(half) << "half a character";
    text += *part;
  }
  EXPECT_TRUE(seen);
  EXPECT_EQ(text, tokenizer->decode(generation.tokens()));
}

TEST_F(Generate, BadRequestsAreSentences) {
  load(64);
  const auto refusal = [&](const std::vector<int32_t> &tokens, const GenerationOptions &options) {
    auto generation = Generation::begin(*model, *tokenizer, tokens, options);
    return generation.ok() ? "accepted" : generation.message();
  };
  EXPECT_EQ(refusal({}, {}), "the prompt has no tokens");
  EXPECT_EQ(refusal(std::vector<int32_t>(65, 1), {}),
            "the prompt has 65 tokens, but the artifact is compiled for a context of 64");
  GenerationOptions options;
  options.slot = 1;
  EXPECT_EQ(refusal({1}, options), "slot is 1, expected 0 to 0");
  options.slot = 0;
  options.cached = 1;
  EXPECT_EQ(refusal({1}, options), "slot 0 holds 0 tokens, not 1");
  options.cached = 0;
  options.sampling.topP = 2;
  EXPECT_EQ(refusal({1}, options), "top-p is 2.000000, expected more than 0 and at most 1");
  Generation unknown = begin({12}, {});
  EXPECT_EQ(unknown.next().message(), "token 0 is 12, but the vocabulary has the ids 0 to 10");
}

TEST(SamplingDefaults, FollowTheModelUnlessAsked) {
  const auto resolve = [](const GenerationDefaults &defaults, const SamplingRequest &request = {}) {
    return take(resolveSampling(request, defaults));
  };
  EXPECT_EQ(resolve({}).temperature, 0) << "no file: greedy";
  GenerationDefaults defaults;
  defaults.temperature = 0.6;
  defaults.topP = 0.95;
  defaults.topK = 20;
  EXPECT_EQ(resolve(defaults).temperature, 0.6);
  EXPECT_EQ(resolve(defaults).topP, 0.95);
  EXPECT_EQ(resolve(defaults).topK, 20);
  defaults.doSample = false;
  EXPECT_EQ(resolve(defaults).temperature, 0);
  SamplingRequest request;
  request.temperature = 0.3;
  EXPECT_EQ(resolve(defaults, request).temperature, 0.3) << "asked for";
  defaults.doSample = true;
  request.temperature = 0;
  EXPECT_EQ(resolve(defaults, request).temperature, 0);
  defaults.temperature.reset();
  EXPECT_EQ(resolve(defaults).temperature, 1);
  request.temperature = -1;
  EXPECT_EQ(resolveSampling(request, defaults).message(), "temperature is -1.000000, expected 0 (greedy) or more");
}

} // namespace
