// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/CpuInfo.h"
#include "runtime/Model.h"
#include "runtime/Sampler.h"
#include "test/runtime/model_tiny.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <numeric>
#include <vector>

using namespace moec;
using namespace moec::test;

namespace {

using Tokens = std::vector<int32_t>;

Tokens sequence(int64_t length, int seed) {
  Tokens tokens;
  for (int64_t i = 0; i < length; ++i)
    tokens.push_back((i * i + 3 * i * seed + seed) % TinyArtifact::V);
  return tokens;
}

Tokens iota(int64_t count, int32_t from = 0) {
  Tokens values(count);
  std::iota(values.begin(), values.end(), from);
  return values;
}

class ModelStep : public testing::Test {
protected:
  void SetUp() override { tiny.write(dir.path()); }

  std::unique_ptr<Model> load(int threads = 2, int64_t slots = 4) {
    ModelOptions options;
    options.threads = threads;
    options.maxSlots = slots;
    options.cpu = "";
    return take(Model::load(dir.path(), options));
  }
  /// Feeds `tokens` to one slot in steps of `chunk`, asking for every row.
  std::vector<float> feed(Model &model, int32_t slot, const Tokens &tokens, size_t chunk) {
    std::vector<float> all(tokens.size() * model.vocab());
    for (size_t at = 0; at < tokens.size(); at += chunk) {
      size_t count = std::min(chunk, tokens.size() - at);
      EXPECT_OK(model.step(std::span(tokens).subspan(at, count), iota(count, at), Tokens(count, slot), iota(count),
                           std::span(all).subspan(at * model.vocab(), count * model.vocab())));
    }
    return all;
  }
  /// The sentence with which a step is refused.
  std::string refuse(Model &model, const Tokens &tokens, const Tokens &positions, const Tokens &slots,
                     const Tokens &rows, int64_t logits = -1) {
    std::vector<float> out(logits < 0 ? rows.size() * model.vocab() : logits);
    Status status = model.step(tokens, positions, slots, rows, out);
    return status.ok() ? "accepted" : status.message();
  }

  TemporaryDirectory dir;
  TinyArtifact tiny;
};

TEST_F(ModelStep, EveryCutAndThreadCountGivesTheBitsOfTheDefinition) {
  // 200 tokens: four pages, and four parts of at most 50 tokens when fed at once.
  const Tokens tokens = sequence(200, 5);
  const std::vector<float> expected = tiny.reference(tokens);
  for (int threads : {1, 2, 5}) {
    auto model = load(threads);
    for (size_t chunk : {1, 7, 49, 50, 51, 64, 199, 200}) {
      EXPECT_EQ(feed(*model, 2, tokens, chunk), expected) << threads << " threads, steps of " << chunk;
      EXPECT_EQ(*model->length(2), 200);
      EXPECT_EQ(model->usedPages(), 4);
    }
  }
}

TEST_F(ModelStep, SequencesMixInOneStep) {
  // Four sequences interleaved token by token, 3 + 1 + 2 + 5 of them a round, in a pool whose pages interleave too.
  auto model = load();
  const int64_t take[4] = {3, 1, 2, 5};
  Tokens texts[4];
  std::vector<float> expected[4];
  for (int s = 0; s < 4; ++s) {
    texts[s] = sequence(take[s] * 30, s + 1);
    expected[s] = tiny.reference(texts[s]);
  }
  const int64_t V = TinyArtifact::V;
  for (int round = 0; round < 30; ++round) {
    Tokens tokens, positions, slots;
    for (int i = 0; i < 5; ++i)
      for (int s = 3; s >= 0; --s)
        if (i < take[s]) {
          positions.push_back(round * take[s] + i);
          tokens.push_back(texts[s][positions.back()]);
          slots.push_back(s);
        }
    const Tokens rows = {10, 0, 4, 4, 9}; // any order, one twice
    std::vector<float> logits(rows.size() * V);
    EXPECT_OK(model->step(tokens, positions, slots, rows, logits));
    for (size_t r = 0; r < rows.size(); ++r)
      for (int64_t v = 0; v < V; ++v)
        EXPECT_EQ(logits[r * V + v], expected[slots[rows[r]]][positions[rows[r]] * V + v])
            << "round " << round << ", row " << r << ", logit " << v;
  }
}

TEST_F(ModelStep, LaunchesWithABoundRunWhereSomeRunOfTokensMeetsIt) {
  // `head` adds to the logits: they tell how often it ran.
  Json &launches = tiny.manifest["program"]["launches"];
  for (auto [key, bound] : {std::pair{"run_from", 4}, {"run_below", 2}}) {
    launches.push_back(launches[4]);
    launches.back()[key] = bound;
  }
  tiny.write(dir.path());
  auto model = load();
  const std::vector<float> once = tiny.reference({3});
  const std::pair<Tokens, int> steps[] = {{{0, 0, 0, 0}, 2},       {{0, 0, 0}, 1},    {{0}, 2},
                                          {{0, 0, 0, 0, 1}, 3},    {{0, 0, 1, 1}, 1}, {{0, 1, 0, 1}, 2},
                                          {{1, 1, 0, 0, 0, 0}, 2}, {{2, 2, 2, 1}, 2}};
  for (const auto &[slots, times] : steps) {
    Tokens positions, seen(4, 0);
    for (int32_t slot : slots)
      positions.push_back(seen[slot]++);
    std::vector<float> logits(TinyArtifact::V);
    EXPECT_OK(model->step(Tokens(slots.size(), 3), positions, slots, Tokens{0}, logits));
    for (int64_t v = 0; v < TinyArtifact::V; ++v) {
      float expected = 0;
      for (int i = 0; i < times; ++i)
        expected += once[v];
      EXPECT_EQ(logits[v], expected) << testing::PrintToString(slots);
    }
  }
}

TEST_F(ModelStep, RowsOfALongStepLieInItsParts) {
  auto model = load();
  const Tokens tokens = sequence(170, 3);
  const std::vector<float> all = tiny.reference(tokens);
  const int64_t V = TinyArtifact::V;
  Tokens many(120, 60); // more rows than a part may have, all of one token
  for (const Tokens &rows : {Tokens{}, Tokens{169}, Tokens{0, 49, 50, 99, 169}, Tokens{169, 3, 60, 3}, many}) {
    std::vector<float> logits(rows.size() * V, -1.0f), expected;
    for (int32_t row : rows)
      expected.insert(expected.end(), all.begin() + row * V, all.begin() + (row + 1) * V);
    EXPECT_OK(model->step(tokens, iota(170), Tokens(170, 0), rows, logits));
    EXPECT_EQ(logits, expected);
  }
}

/// Whether the program gives tokens or they are found among logits.
TEST_F(ModelStep, ArgmaxIsThatOfTheLogits) {
  const Tokens tokens = sequence(170, 3);
  const std::vector<float> all = tiny.reference(tokens);
  for (bool given : {false, true}) {
    if (given) {
      tiny.addArgmax();
      tiny.writeManifest(dir.path());
    }
    auto model = load();
    EXPECT_EQ(model->artifact().hasArgmax(), given);
    for (const Tokens &rows : {Tokens{}, Tokens{169}, Tokens{0, 49, 50, 99, 169}, Tokens{169, 3, 60, 3}, iota(170)}) {
      Tokens argmax(rows.size(), -1), expected;
      for (int32_t row : rows)
        expected.push_back(moec::argmax(std::span(all).subspan(row * TinyArtifact::V, TinyArtifact::V)));
      EXPECT_OK(model->stepArgmax(tokens, iota(170), Tokens(170, 0), rows, argmax));
      EXPECT_EQ(argmax, expected);
    }
    Tokens none;
    EXPECT_EQ(model->stepArgmax(Tokens{1}, Tokens{0}, Tokens{0}, Tokens{0}, none).message(),
              "there is room for 0 tokens, but 1 rows of 1 are asked for");
    // Logits are as they were.
    EXPECT_EQ(feed(*model, 1, tokens, 50), all);
  }
}

TEST_F(ModelStep, RewindingForgetsWhatFollowed) {
  auto model = load();
  Tokens tokens = sequence(150, 2);
  feed(*model, 0, tokens, 50);
  const Tokens other = sequence(90, 9);
  // From position 70 on another text.
  std::vector<float> logits(TinyArtifact::V);
  EXPECT_OK(model->step(other, iota(90, 70), Tokens(90, 0), Tokens{89}, logits));
  EXPECT_EQ(*model->length(0), 160);
  tokens.resize(70);
  tokens.insert(tokens.end(), other.begin(), other.end());
  const std::vector<float> expected = tiny.reference(tokens);
  EXPECT_EQ(logits, std::vector<float>(expected.end() - TinyArtifact::V, expected.end()));
  EXPECT_OK(model->truncate(0, 0));
  EXPECT_EQ(model->usedPages(), 0);
  EXPECT_EQ(model->truncate(0, 1).message(), "slot 0 holds 0 tokens, so it cannot be cut to 1");
}

TEST_F(ModelStep, TheCallersRoundingDoesNotMatter) {
  auto model = load();
  const Tokens tokens = sequence(100, 4);
  std::fesetround(FE_UPWARD);
  std::vector<float> logits = feed(*model, 0, tokens, 100);
  int mode = std::fegetround();
  std::fesetround(FE_TONEAREST);
  EXPECT_EQ(mode, FE_UPWARD) << "the caller's mode is given back";
  EXPECT_EQ(logits, tiny.reference(tokens));
}

TEST_F(ModelStep, BadStepsAreSentencesAndChangeNothing) {
  auto model = load();
  feed(*model, 1, sequence(5, 1), 5);
  EXPECT_EQ(refuse(*model, {}, {}, {}, {}), "a step needs at least one token");
  EXPECT_EQ(refuse(*model, {1, 2}, {0}, {0, 0}, {}),
            "a step has 2 tokens, 1 positions and 2 slots, expected equal numbers");
  EXPECT_EQ(refuse(*model, {11}, {0}, {0}, {}), "token 0 is 11, but the vocabulary has the ids 0 to 10");
  EXPECT_EQ(refuse(*model, {-1}, {0}, {0}, {}), "token 0 is -1, but the vocabulary has the ids 0 to 10");
  EXPECT_EQ(refuse(*model, {1}, {0}, {4}, {}), "slot is 4, expected 0 to 3");
  EXPECT_EQ(refuse(*model, {1}, {0}, {-1}, {}), "slot is -1, expected 0 to 3");
  EXPECT_EQ(refuse(*model, {1}, {-1}, {0}, {}), "position of token 0 is -1, expected 0 or more");
  EXPECT_EQ(refuse(*model, {1}, {0}, {0}, {1}), "row is 1, but the step has 1 tokens");
  EXPECT_EQ(refuse(*model, {1}, {0}, {0}, {-1}), "row is -1, but the step has 1 tokens");
  EXPECT_EQ(refuse(*model, {1}, {0}, {0}, {0}, 10), "there is room for 10 logits, but 1 rows of 11 are asked for");
  EXPECT_EQ(refuse(*model, {1, 1}, {0, 2}, {0, 0}, {}),
            "position of token 1 in slot 0 is 2, expected 1 after the one before");
  EXPECT_EQ(refuse(*model, {1, 1}, {0, 0}, {0, 0}, {}),
            "position of token 1 in slot 0 is 0, expected 1 after the one before");
  EXPECT_EQ(refuse(*model, {1, 1}, {0, 6}, {0, 1}, {}),
            "slot 1 holds 5 tokens, so the next position is at most 5, but the step has 6");
  EXPECT_EQ(refuse(*model, Tokens(201, 1), iota(201), Tokens(201, 2), {}),
            "slot 2 would hold 201 tokens, but the artifact is compiled for a context of 200");
  EXPECT_EQ(*model->length(0), 0);
  EXPECT_EQ(*model->length(1), 5);
  EXPECT_EQ(model->usedPages(), 1);
  EXPECT_EQ(model->length(7).message(), "slot is 7, expected 0 to 3");
}

TEST_F(ModelStep, OptionsOutOfRangeAreRefused) {
  ModelOptions options;
  options.threads = -1;
  EXPECT_EQ(Model::load(dir.path(), options).message(), "number of threads is -1, expected 0 (all cores) or more");
  options.threads = 1;
  options.maxSlots = 0;
  EXPECT_EQ(Model::load(dir.path(), options).message(), "number of slots is 0, expected 1 to 536870911");
}

TEST_F(ModelStep, AnObserverSeesEveryLaunchAndMayChangeWhatItWrote) {
  const Tokens tokens = sequence(120, 3);
  const std::vector<float> expected = tiny.reference(tokens);
  auto model = load();
  struct Seen {
    size_t launch;
    int64_t tokens, rows;
    bool operator==(const Seen &) const = default;
  };
  std::vector<Seen> seen, all;
  for (int64_t part : {50, 50, 20}) // a step of 120 tokens in runs of at most 50
    for (size_t launch = 0; launch < 5; ++launch)
      all.push_back({launch, part, part});
  std::vector<float> embedded;
  model->setObserver([&](const LaunchView &view) {
    ASSERT_EQ(view.args.size(), model->artifact().launches()[view.launch].args.size());
    seen.push_back({view.launch, view.tokens, view.rows});
    if (view.launch == 0) {
      const auto *x = static_cast<const float *>(view.args[3]);
      embedded.insert(embedded.end(), x, x + view.tokens * TinyArtifact::D);
    }
  });
  EXPECT_EQ(feed(*model, 0, tokens, 120), expected);
  EXPECT_EQ(seen, all);
  ASSERT_EQ(embedded.size(), tokens.size() * TinyArtifact::D);
  for (size_t i = 0; i < embedded.size(); ++i)
    ASSERT_EQ(embedded[i], tiny.table[tokens[i / TinyArtifact::D] * TinyArtifact::D + i % TinyArtifact::D]);

  // Nothing is left of what `mix` gave to the head.
  model->setObserver([&](const LaunchView &view) {
    if (view.launch == 2)
      std::fill_n(static_cast<float *>(view.args[4]), view.tokens * TinyArtifact::D, 0.0f);
  });
  EXPECT_EQ(feed(*model, 0, tokens, 120), std::vector<float>(expected.size(), 0.0f));

  // Without rows there is no place for logits.
  std::vector<void *> places;
  model->setObserver([&](const LaunchView &view) {
    if (view.launch == 4)
      places.push_back(view.args[3]);
  });
  EXPECT_OK(model->step(iota(3), iota(3), Tokens(3, 0), {}, {}));
  EXPECT_EQ(places, std::vector<void *>{nullptr});

  seen.clear();
  model->setObserver({});
  EXPECT_EQ(feed(*model, 0, tokens, 120), expected);
  EXPECT_TRUE(seen.empty());
}

TEST_F(ModelStep, ArtifactsForOtherMachinesAreRefused) {
  auto message = [&](const std::string &level, const char *forced) {
    tiny.manifest["code"][0]["level"] = level;
    tiny.writeManifest(dir.path());
    ModelOptions options;
    options.cpu = forced;
    auto model = Model::load(dir.path(), options);
    return model.ok() ? (*model)->deviceDescription().substr(0, level.size()) : model.message();
  };
  EXPECT_EQ(message("x86-64", ""), "x86-64");
  EXPECT_EQ(message("x86-64", "v1"), "x86-64");
  EXPECT_EQ(message("x86-64", "v3"), dir.path() + ": MOEC_CPU asks for x86-64-v3, but there is code for x86-64 only");
  const std::string all = "x86-64, x86-64-v2, x86-64-v3, x86-64-v3-vnni, x86-64-v4, x86-64-v4-vnni, x86-64-v4-amx, "
                          "aarch64, aarch64-dotprod, "
                          "aarch64-i8mm";
  EXPECT_EQ(message("x86-64", "amd"),
            "MOEC_CPU is 'amd', expected one of " + all + ", or v1 to v4-amx, dotprod or i8mm");
  EXPECT_EQ(message("z15", ""), dir.path() + ": has code for 'z15', expected one of " + all);
  tiny.manifest["target"] = "nvptx";
  EXPECT_EQ(message("x86-64", ""), dir.path() + ": is compiled for the target 'nvptx', but this device is a cpu");
}

TEST(CpuLevels, TheFirstThatRunsHereIsTaken) {
  const CpuLevel both[] = {CpuLevel::V4, CpuLevel::V3}, high[] = {CpuLevel::V4};
  EXPECT_EQ(*chooseCpuLevel(both, CpuLevel::V4, "", "a"), 0u);
  EXPECT_EQ(*chooseCpuLevel(both, CpuLevel::V3, "", "a"), 1u);
  EXPECT_EQ(*chooseCpuLevel(both, CpuLevel::V4, "v3", "a"), 1u);
  const CpuLevel three[] = {CpuLevel::V4Vnni, CpuLevel::V4, CpuLevel::V3};
  EXPECT_EQ(*chooseCpuLevel(three, CpuLevel::V4, "", "a"), 1u);
  EXPECT_EQ(*chooseCpuLevel(three, CpuLevel::V4Vnni, "", "a"), 0u);
  EXPECT_EQ(*chooseCpuLevel(three, CpuLevel::V4Vnni, "v4", "a"), 1u);
  EXPECT_EQ(*chooseCpuLevel(three, CpuLevel::V4Vnni, "v4-vnni", "a"), 0u);
  EXPECT_EQ(*chooseCpuLevel(both, CpuLevel::V4, "x86-64-v3", "a"), 1u);
  EXPECT_EQ(chooseCpuLevel(both, CpuLevel::V3, "v4", "a").message(),
            "a: MOEC_CPU asks for x86-64-v4, but this machine supports x86-64-v3 at most");
  EXPECT_EQ(chooseCpuLevel(both, CpuLevel::V2, "", "a").message(),
            "a: has code for x86-64-v4, x86-64-v3, but this machine supports x86-64-v2 at most");
  EXPECT_EQ(chooseCpuLevel(high, std::nullopt, "", "a").message(),
            "a: has code for x86-64-v4, but this machine is neither x86-64 nor aarch64");
}

TEST(CpuLevels, ProductsOfBytesWithoutAvx512) {
  const CpuLevel all[] = {CpuLevel::V4Vnni, CpuLevel::V4, CpuLevel::V3Vnni, CpuLevel::V3};
  EXPECT_EQ(*chooseCpuLevel(all, CpuLevel::V3Vnni, "", "a"), 2u);
  EXPECT_EQ(*chooseCpuLevel(all, CpuLevel::V3, "", "a"), 3u);
  // A machine with AVX-512 need not have AVX_VNNI.
  EXPECT_EQ(chooseCpuLevel(all, CpuLevel::V4Vnni, "v3-vnni", "a").message(),
            "a: MOEC_CPU asks for x86-64-v3-vnni, but this machine supports x86-64-v4-vnni at most");
}

TEST(CpuLevels, ArchitecturesShareAnArtifact) {
  const CpuLevel all[] = {CpuLevel::V4, CpuLevel::V3, CpuLevel::Arm64I8mm, CpuLevel::Arm64};
  EXPECT_EQ(*chooseCpuLevel(all, CpuLevel::V3, "", "a"), 1u);
  EXPECT_EQ(*chooseCpuLevel(all, CpuLevel::Arm64I8mm, "", "a"), 2u);
  EXPECT_EQ(*chooseCpuLevel(all, CpuLevel::Arm64Dotprod, "", "a"), 3u);
  EXPECT_EQ(*chooseCpuLevel(all, CpuLevel::Arm64I8mm, "aarch64", "a"), 3u);
  EXPECT_EQ(chooseCpuLevel(all, CpuLevel::Arm64, "i8mm", "a").message(),
            "a: MOEC_CPU asks for aarch64-i8mm, but this machine supports aarch64 at most");
  // Neither is the other's.
  EXPECT_EQ(chooseCpuLevel(all, CpuLevel::V4Vnni, "aarch64", "a").message(),
            "a: MOEC_CPU asks for aarch64, but this machine supports x86-64-v4-vnni at most");
  const CpuLevel arm[] = {CpuLevel::Arm64};
  EXPECT_EQ(chooseCpuLevel(arm, CpuLevel::V4, "", "a").message(),
            "a: has code for aarch64, but this machine supports x86-64-v4 at most");
}

TEST(CpuLevels, CoresAreCounted) {
  EXPECT_GE(availableCores(), 1);
  EXPECT_LE(availableCores(), 4096);
}

} // namespace
