// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/runtime/tokenizer_support.h"

#include <gmock/gmock.h>

using namespace moec;
using testing::ElementsAre;
using testing::IsEmpty;

namespace {

const std::string kTiny = MOEC_TEST_DIR "/models/tiny-shakespeare";

TEST(TokenizerText, KnownIds) {
  Result<Tokenizer> tokenizer = Tokenizer::load(kTiny);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.message();
  // As tokenizers 0.23.3 has them.
  EXPECT_THAT(tokenizer->encode("Hello there"), ElementsAre(0, 75, 418, 114, 515));
  EXPECT_THAT(tokenizer->encode("<｜begin▁of▁sentence｜>King", {.addBos = false}), ElementsAre(0, 78, 305));
  EXPECT_EQ(tokenizer->vocabSize(), 1280);
  EXPECT_EQ(tokenizer->bosId(), 0);
  EXPECT_EQ(tokenizer->eosId(), 1);
  EXPECT_TRUE(tokenizer->addsBos());
  EXPECT_EQ(tokenizer->tokenId("<｜▁pad▁｜>"), 2);
  EXPECT_EQ(tokenizer->tokenId("no such token"), std::nullopt);
  EXPECT_THAT(tokenizer->generationDefaults().eosIds, ElementsAre(1));
  EXPECT_EQ(tokenizer->generationDefaults().temperature, 0.8);
  EXPECT_EQ(tokenizer->generationDefaults().topP, 0.95);
  EXPECT_EQ(tokenizer->generationDefaults().doSample, true);
  EXPECT_EQ(tokenizer->generationDefaults().topK, std::nullopt);
}

TEST(TokenizerText, EmptyText) {
  Tokenizer tokenizer = makeTokenizer(byteTokenizer());
  EXPECT_THAT(tokenizer.encode(""), IsEmpty());
  EXPECT_EQ(tokenizer.decode({}), "");
}

TEST(TokenizerText, LongestAddedTokenOfTheLeftmost) {
  Json tree = byteTokenizer();
  Json special = addedToken(258, "b><", true);
  special["normalized"] = true; // So that all three are looked for at once.
  tree["added_tokens"] = {addedToken(256, "<a>"), addedToken(257, "<a><b>"), special};
  Tokenizer tokenizer = makeTokenizer(tree);
  EXPECT_THAT(tokenizer.encode("<a><b>x<a>"), ElementsAre(257, byteId('x'), 256));
  EXPECT_THAT(tokenizer.encode("b><a>"), ElementsAre(258, byteId('a'), byteId('>')));
  // As text, a special token still hides what overlaps it: the package does the same.
  EXPECT_THAT(tokenizer.encode("b><a>", {.addBos = true, .parseSpecial = false}).size(), 5);
}

TEST(TokenizerText, AddedTokensTakeSpaceBesideThem) {
  Json tree = byteTokenizer();
  Json left = addedToken(256, "<l>", true), right = addedToken(257, "<r>", true), word = addedToken(258, "cat", true);
  left["lstrip"] = true;
  right["rstrip"] = true;
  word["single_word"] = true;
  tree["added_tokens"] = {left, right, word};
  Tokenizer tokenizer = makeTokenizer(tree);
  EXPECT_THAT(tokenizer.encode("a \u3000\n<l> b"), ElementsAre('a', 256, ' ', 'b'));
  EXPECT_THAT(tokenizer.encode("a <r> \t\u00a0b"), ElementsAre('a', ' ', 257, 'b'));
  EXPECT_THAT(tokenizer.encode("<r>  <l>"), ElementsAre(257, 256));
  EXPECT_THAT(tokenizer.encode("cat-cat"), ElementsAre(258, '-', 258));
  EXPECT_THAT(tokenizer.encode("cats"), ElementsAre('c', 'a', 't', 's'));
  EXPECT_THAT(tokenizer.encode("_cat"), ElementsAre('_', 'c', 'a', 't'));
}

TEST(TokenizerText, NormalizedTokensComeSecond) {
  Json tree = byteTokenizer();
  tree["added_tokens"] = {addedToken(256, "abc", false), addedToken(257, "bcd", true)};
  Tokenizer tokenizer = makeTokenizer(tree);
  EXPECT_THAT(tokenizer.encode("abcd"), ElementsAre('a', 257));
  EXPECT_THAT(tokenizer.encode("abc"), ElementsAre(256));
}

TEST(TokenizerText, WhiteSpaceTokensThatStripStayLinear) {
  Json tree = byteTokenizer();
  Json space = addedToken(256, " ");
  space["lstrip"] = space["rstrip"] = true;
  tree["added_tokens"] = Json::array({space});
  Tokenizer tokenizer = makeTokenizer(tree);
  EXPECT_EQ(tokenizer.encode(std::string(500000, ' ')).size(), 500000);
}

TEST(TokenizerText, SpecialTokensAreSkippedOnRequest) {
  Json tree = byteTokenizer();
  tree["added_tokens"] = {addedToken(256, "<s>", true), addedToken(257, "<t>", false)};
  Tokenizer tokenizer = makeTokenizer(tree);
  std::vector<int32_t> ids = {256, 'a', 257, 9999, -1};
  EXPECT_EQ(tokenizer.decode(ids), "a<t>");
  EXPECT_EQ(tokenizer.decode(ids, /*skipSpecial=*/false), "<s>a<t>");
  EXPECT_TRUE(tokenizer.isSpecial(256));
  EXPECT_FALSE(tokenizer.isSpecial(257));
  EXPECT_FALSE(tokenizer.isSpecial(-1));
}

TEST(TokenizerText, StreamGivesWholeCharactersOnly) {
  Tokenizer tokenizer = makeTokenizer(byteTokenizer({{"ð", "Ł"}})); // F0 9F
  std::string family = "👩‍👧";
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (int32_t id : tokenizer.encode(family + "é")) {
    std::string part = decoder.push(id);
    EXPECT_TRUE(isWellFormedUtf8(part));
    EXPECT_EQ(part.find("\ufffd"), std::string::npos);
    text += part;
  }
  EXPECT_EQ(text, family + "é");
  EXPECT_EQ(decoder.flush(), "");
}

TEST(TokenizerText, StreamReplacesWhatCannotBecomeACharacter) {
  Tokenizer tokenizer = makeTokenizer(byteTokenizer());
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(0x9F), "");
  EXPECT_EQ(decoder.push('a'), "\ufffda");
  EXPECT_EQ(decoder.push(0x80), "\ufffd");
  EXPECT_EQ(decoder.push(0xED), "");
  EXPECT_EQ(decoder.push(0xA0), "\ufffd\ufffd"); // The first half of a surrogate is no start of anything.
  EXPECT_EQ(decoder.push(0xE4), "");
  EXPECT_EQ(decoder.push(0xBD), "");
  EXPECT_EQ(decoder.flush(), "\ufffd");
  EXPECT_EQ(decoder.push('b'), "b");
}

TEST(TokenizerText, StreamEqualsWholeForAllShortByteStrings) {
  Tokenizer tokenizer = makeTokenizer(byteTokenizer());
  const std::vector<int32_t> bytes = {0x41, 0x80, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2,
                                      0xE0, 0xE1, 0xED, 0xF0, 0xF1, 0xF4, 0xF5};
  std::vector<int32_t> ids(4);
  for (ids[0] = 0; ids[0] < 15; ++ids[0])
    for (ids[1] = 0; ids[1] < 15; ++ids[1])
      for (ids[2] = 0; ids[2] < 15; ++ids[2])
        for (ids[3] = 0; ids[3] < 15; ++ids[3]) {
          std::vector<int32_t> sample;
          StreamDecoder decoder(tokenizer);
          std::string text;
          for (int32_t i : ids) {
            sample.push_back(bytes[i]);
            text += decoder.push(bytes[i]);
          }
          text += decoder.flush();
          ASSERT_EQ(text, tokenizer.decode(sample)) << testing::PrintToString(sample);
          ASSERT_TRUE(isWellFormedUtf8(text));
        }
}

TEST(TokenizerText, InvalidUtf8CountsAsReplacement) {
  Tokenizer tokenizer = makeTokenizer(byteTokenizer());
  EXPECT_EQ(tokenizer.encode("a\xE4\xBDz\xFF"), tokenizer.encode("a\ufffdz\ufffd"));
  EXPECT_EQ(tokenizer.encode(std::string_view("a\0b", 3)).size(), 3);
}

} // namespace
