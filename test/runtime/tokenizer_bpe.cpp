// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/runtime/tokenizer_support.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <random>

using namespace moec;
using testing::ElementsAre;

namespace {

using Merges = std::vector<std::pair<std::string, std::string>>;

TEST(TokenizerBpe, LowestRankFirstThenLeftmost) {
  // ab = 256, bc = 257, abc = 258, aa = 259
  Tokenizer tokenizer = makeTokenizer(byteTokenizer({{"a", "b"}, {"b", "c"}, {"ab", "c"}, {"a", "a"}}));
  EXPECT_THAT(tokenizer.encode("abc"), ElementsAre(258));
  EXPECT_THAT(tokenizer.encode("bcab"), ElementsAre(257, 256));
  EXPECT_THAT(tokenizer.encode("aaaaa"), ElementsAre(259, 259, byteId('a')));
  // "aab": a+b has the lower rank, so a+a never comes about.
  EXPECT_THAT(tokenizer.encode("aab"), ElementsAre(byteId('a'), 256));
}

TEST(TokenizerBpe, MergesTakeBothSpellings) {
  Json tree = byteTokenizer({{"a", "b"}, {"ab", "c"}});
  tree["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"})});
  EXPECT_THAT(makeTokenizer(tree).encode("abc"), ElementsAre(257));
  tree["model"]["merges"] = {"#version: 0.2", "a b", Json::array({"ab", "c"})};
  EXPECT_THAT(makeTokenizer(tree).encode("abc"), ElementsAre(257));
}

TEST(TokenizerBpe, IgnoreMergesTakesWholeWordsFirst) {
  Json tree = byteTokenizer({{"a", "b"}, {"c", "d"}});
  tree["model"]["vocab"]["abcd"] = 258;
  EXPECT_THAT(makeTokenizer(tree).encode("abcd abcde"), ElementsAre(256, 257, byteId(' '), 256, 257, byteId('e')));
  tree["model"]["ignore_merges"] = true;
  EXPECT_THAT(makeTokenizer(tree).encode("abcd abcde"), ElementsAre(258, byteId(' '), 256, 257, byteId('e')));
}

TEST(TokenizerBpe, BytesWithoutTokenVanish) {
  Json tree = byteTokenizer();
  tree["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}};
  tree["model"]["merges"] = {"a b"};
  // Without the byte between them, a and b are neighbours.
  EXPECT_THAT(makeTokenizer(tree).encode("axb"), ElementsAre(2));
}

/// The definition: merge the leftmost pair of the lowest rank until there is none.
std::vector<std::string> naiveBpe(const std::string &word, const Merges &merges) {
  std::vector<std::string> symbols;
  for (char c : word)
    symbols.emplace_back(1, c);
  while (true) {
    size_t bestRank = merges.size(), bestPlace = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      size_t rank = std::find(merges.begin(), merges.end(), std::pair(symbols[i], symbols[i + 1])) - merges.begin();
      if (rank < bestRank) {
        bestRank = rank;
        bestPlace = i;
      }
    }
    if (bestRank == merges.size())
      return symbols;
    symbols[bestPlace] += symbols[bestPlace + 1];
    symbols.erase(symbols.begin() + bestPlace + 1);
  }
}

TEST(TokenizerBpe, AgreesWithTheDefinition) {
  std::mt19937 rng(20260923);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    Merges merges;
    while (merges.size() < 25) {
      std::pair<std::string, std::string> merge = {tokens[rng() % tokens.size()], tokens[rng() % tokens.size()]};
      std::string joined = merge.first + merge.second;
      if (std::find(tokens.begin(), tokens.end(), joined) != tokens.end())
        continue;
      merges.push_back(merge);
      tokens.push_back(joined);
    }
    Tokenizer tokenizer = makeTokenizer(byteTokenizer(merges));
    for (int length = 0; length < 60; ++length) {
      std::string word;
      for (int i = 0; i < length; ++i)
        word += char('a' + rng() % 3);
      std::vector<std::string> found;
      for (int32_t id : tokenizer.encode(word))
        found.emplace_back(tokenizer.tokenBytes(id));
      ASSERT_EQ(found, naiveBpe(word, merges)) << word;
    }
  }
}

TEST(TokenizerBpe, ByteAlphabetRoundTrip) {
  const auto &alphabet = byteAlphabet();
  EXPECT_EQ(alphabet['!'], U'!');
  EXPECT_EQ(alphabet[' '], U'Ġ');
  EXPECT_EQ(alphabet['\n'], U'Ċ');
  EXPECT_EQ(alphabet[0xAD], U'\u0143');
  std::string token, bytes;
  for (unsigned byte = 0; byte < 256; ++byte) {
    appendUtf8(token, alphabet[byte]);
    bytes += char(byte);
  }
  EXPECT_EQ(bytesOfToken(token), bytes);
  EXPECT_EQ(bytesOfToken("<｜User｜>"), "<｜User｜>");
}

} // namespace
